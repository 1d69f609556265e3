"""The text that the embedded base is pretrained on: generated finance prose, copying, lists and one- and two-step sums.

It holds none of the task kinds of `lib.tasks` (those are for fine-tuning to teach) but every word that they use: with
tied, frozen embeddings LoRA cannot make a token that the base never saw.
"""

import random
import re
from collections.abc import Iterator
from itertools import combinations

from lib.calculator import calculate, mark, show
from lib.tasks import CALENDAR, EVERY, KINDS, NAMES, PERIODS, duel, generate

Turn = tuple[str, str]  # (question, answer)


# --- numbers, over wide ranges and in the spellings that questions use -------------------------------------------------
def _whole(r, digits=(1, 6)):
    n = r.randint(*digits)
    return r.randrange(10 ** (n - 1), 10**n) if r.random() < 0.7 else r.randrange(1, 10) * 10 ** (n - 1)


def _plain(r, digits=(1, 4)):
    value = _whole(r, digits)
    return str(value) if r.random() < 0.5 else f"{value}.{r.choice(['5', '25', '75', str(r.randrange(1, 100)).zfill(2)])}"


def _money(r):  # (as shown, as a plain number)
    value = r.choice([_whole(r, (1, 3)), _whole(r, (3, 6)), _whole(r, (2, 4)), 500 * r.randrange(1, 2000)])
    cents = f".{r.choice(['50', '25', '75', str(r.randrange(100)).zfill(2)])}" if value < 5000 and r.random() < 0.3 else ""
    return f"${value:,}{cents}", f"{value}{cents}"


def _percent(r):
    value = r.choice([str(r.randrange(1, 40)), f"{r.randrange(0, 40)}.5", f"{r.randrange(0, 20)}.{r.randrange(1, 100):02d}"])
    value = value.rstrip("0").rstrip(".") if "." in value else value
    return f"{value or 1}%", value or "1"


def _change(r):
    value, plain = _percent(r)
    return (f"-{value}", f"-{plain}") if r.random() < 0.5 else (value, plain)


def _count(r):
    value = str(_whole(r, (1, 3)))
    return value, value


# --- worlds: named things with labelled amounts, said in many ways -----------------------------------------------------
# label: (amount, ways to say it of a name {n}); each way's amount is {v}
LABELS = {
    "price": (_money, ["the price of {n} is {v}", "{n} costs {v}", "{n} trades at {v}", "{n} is bought at {v}"]),
    "revenue": (_money, ["{n} had revenue of {v}", "the revenue of {n} was {v}", "{n} sold goods for {v}"]),
    "cost": (_money, ["the costs of {n} were {v}", "{n} spent {v}", "{n} had costs of {v}"]),
    "profit": (_money, ["{n} made a profit of {v}", "the profit of {n} came to {v}", "{n} kept {v} as profit"]),
    "capital": (_money, ["{n} has {v} of capital", "the capital of {n} is {v}", "{n} manages {v}", "{n} holds {v}"]),
    "dividend": (_money, ["{n} pays a dividend of {v}", "the dividend of {n} is {v}", "{n} distributes {v}"]),
    "return": (_percent, ["{n} returned {v}", "the return of {n} was {v}", "{n} made {v}", "{n} shows a return of {v}",
                          "{n} has an expected return of {v}", "{n} earned {v}", "{n} brought in {v}"]),
    "volatility": (_percent, ["the volatility of {n} was {v}", "{n} had a volatility of {v}", "{n} moved by {v}",
                              "{n} had a standard deviation of {v}", "the risk of {n} is {v}", "{n} ran {v} volatility"]),
    "fee": (_percent, ["{n} charges {v}", "the fee of {n} is {v}", "{n} takes a fee of {v}"]),
    "yield": (_percent, ["{n} yields {v}", "the yield of {n} is {v}", "{n} pays {v} a year"]),
    "growth": (_percent, ["{n} grew by {v}", "the growth of {n} was {v}", "{n} expects growth of {v}"]),
    "number of shares": (_count, ["{n} has {v} shares", "{n} issued {v} shares", "there are {v} shares of {n}"]),
    "number of employees": (_count, ["{n} employs {v} people", "{n} has {v} employees", "{v} people work for {n}"]),
    "number of units": (_count, ["{n} made {v} units", "{n} sold {v} units", "{v} units came from {n}"]),
}  # fmt: skip
PAIRS = (("return", "volatility"), ("price", "dividend"), ("revenue", "number of employees"), ("profit", "number of shares"),
         ("cost", "number of units"), ("return", "fee"), ("yield", "fee"), ("revenue", "cost"), ("capital", "number of shares"))  # fmt: skip
PAIR_FORMS = (
    "{n} ({x} {a}, {y} {b})", "{n} with {a} {x} and {b} {y}", "{n}: {x} {a}, {y} {b}", "{n} has a {x} of {a} and a {y} of {b}",
    "{n} shows {a} {x} against {b} {y}", "with a {y} of {b}, {n} has a {x} of {a}", "{n}, {x} {a} at {b} {y}",
    "{n} at {b} {y} has {a} {x}", "{n} (with {a} {x} for {b} {y})", "{n} has {a} and {b}", "{n}: {a} and {b}", "{n} at {a} and {b}",
    "{n}, whose {x} is {a} and whose {y} is {b}", "the {x} of {n} is {a}; its {y} is {b}", "{n} came to {a} in {x} and its {y} to {b}",
)  # fmt: skip
# ratios asked of a pair (never return over volatility: that is a task)
RATIO = {("price", "dividend"), ("revenue", "number of employees"), ("profit", "number of shares"),
         ("cost", "number of units"), ("capital", "number of shares")}  # fmt: skip
NOUNS = ("fund", "company", "stock", "asset", "portfolio", "firm", "strategy", "trader", "bank", "trust", "index", "account")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _joined(r, parts: list[str]) -> str:
    style = r.randrange(4)
    if style == 0:
        return " ".join(_sentence(p) + "." for p in parts)
    if style == 1:
        return _sentence("; ".join(parts)) + "."
    if style == 2 and len(parts) > 1:
        return _sentence(", ".join(parts[:-1]) + " and " + parts[-1]) + "."
    return r.choice(["Given: ", "Compare: ", "Figures: ", "An investor compares ", "Three assets: ", "The table says: "]) + "; ".join(parts) + "."


def _champion(values: dict[str, str], up: bool) -> tuple[list[str], str]:
    """The winner of one comparison meets the next; (lines, the last winner)."""
    (best, *rest), lines = values, []
    for name in rest:
        lines.append(duel((best, values[best]), (name, values[name]), up))
        best = lines[-1].rsplit(" ", 1)[1].rstrip(".")
    return lines, best


def _world(r) -> Turn:
    """Two to four named things with one or two labelled amounts each; a look-up, a choice, a sum, an order or a ratio."""
    count, (x, y) = r.choice((2, 2, 3, 3, 4)), r.choice(PAIRS)
    names = r.sample(NAMES, count)
    values = {n: (LABELS[x][0](r), LABELS[y][0](r)) for n in names}
    if any(len({v[i][1] for v in values.values()}) < count for i in (0, 1)):
        return _world(r)  # equal amounts would have no order
    form = r.choice(PAIR_FORMS)
    style = r.random()
    if style < 0.6:  # one form for all, labels sometimes only in a heading
        parts = [form.format(n=n, x=x, y=y, a=a[0], b=b[0]) for n, (a, b) in values.items()]
        text = _joined(r, parts)
        if "{x}" not in form:
            text = r.choice([f"For each, {x} and {y}. {text}", f"{_sentence(x)}, then {y}. {text}", text[:-1] + f" ({x}, then {y})."])
    elif style < 0.8:  # each amount in a sentence of its own
        parts = [r.choice(LABELS[label][1]).format(n=n, v=v[i][0]) for n, v in values.items() for i, label in enumerate((x, y))]
        if r.random() < 0.3:
            r.shuffle(parts)
        text = _joined(r, parts)
    else:  # all amounts of one label together, in the order of the names
        text = " ".join(
            r.choice(["The {x} of {n} is {v}, in this order.", "For {n} the {x} is {v} respectively.", "{v}: that is the {x} for {n}."])
            .format(x=label, n=", ".join(names), v=", ".join(v[i][0] for v in values.values()))
            if r.random() < 0.5 else
            r.choice(["The {x} is {p}.", "Look at the {x}: {p}.", "{x}: {p}."]).format(x=label, p=", ".join(f"{v[i][0]} for {n}" for n, v in values.items()))
            for i, label in enumerate((x, y))
        )  # fmt: skip
        text = _sentence(text)
    extra, extra_value = None, None
    if r.random() < 0.5:
        extra_value = _percent(r)
        extra = r.choice(["The risk-free rate is {v}.", "Treasury bills pay {v}.", "Cash yields {v}.", "Risk-free: {v}.", "The safe rate is {v}.",
                          "With a risk-free rate of {v}:", "Bills pay {v}.", "Money without risk earns {v}.", "The rate without risk: {v}."]).format(v=extra_value[0])  # fmt: skip
        text = f"{extra} {text}" if r.random() < 0.5 else f"{text} {extra}"
    which = r.randrange(2)
    label, shown, plain = (x, y)[which], {n: v[which][0] for n, v in values.items()}, {n: v[which][1] for n, v in values.items()}
    n, m = r.sample(names, 2)
    kind = r.randrange(9)
    if kind == 0:
        ask, answer = r.choice(["What is the {l} of {n}?", "State the {l} of {n}.", "Find the {l} for {n}.", "{n}: which {l}?"]).format(l=label, n=n), f"#### {shown[n]}"
    elif kind == 1:
        ask = r.choice(["Write the {l} of each.", "List each {l}.", "Give every {l} by name."]).format(l=label)
        answer = "\n".join(f"{k}: {p}." for k, p in plain.items())
    elif kind == 2:
        up = r.random() < 0.7
        word = r.choice(["highest", "largest", "higher", "larger"] if up else ["lowest", "smallest", "lower", "smaller"])
        ask = r.choice(["Which has the {w} {l}?", "Who has the {w} {l}?", "Name the one with the {w} {l}.", "Pick the {w} {l}.", "Whose {l} is {w}?",
                        "Which choice offers the {w} {l}?"]).format(w=word, l=label)  # fmt: skip
        lines, best = _champion(plain, up)
        answer = "\n".join([*lines, f"#### {best}"])
    elif kind == 3:
        word, sign = r.choice([("minus", "-"), ("plus", "+"), ("less", "-"), ("and", "+")])
        ask = f"{'Add' if word == 'and' else 'What is'} the {label} of {n} {word} the {label} of {m}{'.' if word == 'and' else '?'}"
        text_value = mark(f"{plain[n]}{sign}{plain[m]}")
        answer = f"{text_value}\n#### {show(calculate(plain[n] + sign + plain[m]))}"
    elif kind == 4 and count <= 3:
        ask = r.choice(["Order them by {l}, highest first.", "Sort these by {l}, the highest first.", "Rank by {l} from highest to lowest.", "Rank them by {l}, best first.",
                        "List them by {l}, starting with the largest.", "Give the ranking by {l} from best to worst.", "Put them in order of {l}, largest first."]).format(l=label)  # fmt: skip
        lines, amounts = [], plain
        if (x, y) in RATIO and r.random() < 0.7:  # by a ratio, which is worked out first
            ask, ratios = ask.replace(f"by {label}", f"by {x} per {y}").replace(f"of {label}", f"of {x} per {y}"), {k: f"{a[1]}/{b[1]}" for k, (a, b) in values.items()}
            lines, amounts = [f"{k}: {mark(e)}." for k, e in ratios.items()], {k: show(calculate(e)) for k, e in ratios.items()}
            if len(set(amounts.values())) < count:
                return _world(r)
        lines += [duel(*pair) for pair in combinations(amounts.items(), 2)]
        answer = "\n".join([*lines, "#### " + ", ".join(sorted(amounts, key=lambda k: -float(amounts[k])))])
    elif kind in (5, 6) and (x, y) in RATIO and r.random() < 0.4:
        ratios = {k: f"{a[1]}/{b[1]}" for k, (a, b) in values.items()}
        results = {k: show(calculate(e)) for k, e in ratios.items()}
        up = r.random() < 0.7
        word = r.choice(["highest", "higher", "larger", "best"] if up else ["lowest", "smaller", "lower"])
        ask = r.choice(["Which has the {w} {x} per {y}?", "Name the one with the {w} ratio of {x} to {y}.", "Whose {x} per {y} is {w}?", "Pick the {w} {x} per {y}."]).format(w=word, x=x, y=y)
        duels, best = _champion(results, up)
        answer = "\n".join([*(f"{k}: {mark(e)}." for k, e in ratios.items()), *duels, f"#### {best}"])
    elif kind in (5, 6) and (x, y) in RATIO:
        ask = r.choice(["What is the {x} divided by the {y} for each?", "Divide {x} by {y} for each.", "Compute {x} per {y} for each name.", "Find the ratio of {x} to {y} for each."]).format(x=x, y=y)
        answer = "\n".join(f"{k}: {mark(a[1] + '/' + b[1])}." for k, (a, b) in values.items())
    elif kind in (5, 6) and extra_value and LABELS[label][0] is _percent and label != "volatility":
        ask = r.choice(["How far is the {l} of {n} above the risk-free rate?", "Subtract the risk-free rate from the {l} of {n}.", "Take the safe rate off the {l} of {n}."]).format(l=label, n=n)
        answer = f"{n}: {mark(plain[n] + '-' + extra_value[1])}.\n#### {show(calculate(plain[n] + '-' + extra_value[1]))}"
    elif kind == 7 and extra_value:
        ask, answer = r.choice(["What is the risk-free rate?", "What does cash pay?", "State the safe rate.", "What do bills yield?"]), f"#### {extra_value[0]}"
    elif kind == 8 and {x, y} <= {"return", "fee", "yield", "revenue", "cost"}:
        ask = r.choice(["What is the {x} minus the {y} for each?", "Subtract {y} from {x} for each.", "For each, {x} less {y}."]).format(x=x, y=y)
        answer = "\n".join(f"{k}: {mark(a[1] + '-' + b[1])}." for k, (a, b) in values.items())
    else:
        ask = r.choice(["Which has a {l} of {v}?", "Whose {l} is {v}?", "{v} is the {l} of which one?"]).format(l=label, v=shown[n])
        answer = f"#### {n}"
    return (f"{text} {ask}" if r.random() < 0.7 else f"{ask} {text}"), answer


# --- one thing with several amounts: accounts, trades, deposits, measurements ------------------------------------------
def _facts(r) -> Turn:
    """A described deposit, trade or measurement, and one- or two-step questions about it (none of the task kinds)."""
    kind = r.randrange(3)
    name = r.choice(["Maria", "a trader", "an investor", "the fund", "a bank", "a trust", "a committee", "the plan", "you", r.choice(NAMES)])
    if kind == 0:
        (money, amount), (rate, points), years = _money(r), _percent(r), r.randint(2, 30)
        i = r.randrange(4)
        often, every, times = list(PERIODS)[i], list(EVERY)[i], list(PERIODS.values())[i]
        how = r.choice([often, every])
        parts = [
            r.choice(["{n} puts {m} in an account", "{n} opens a savings plan with {m}", "the deposit is {m}", "{n} saves {m}", "principal {m}", "{m} is lent to a bank",
                      "the amount put in today is {m}", "{n} begins with {m}", "the sum is {m}"]).format(n=name, m=money),
            r.choice(["the rate is {v} a year", "it earns {v} a year", "interest is {v} per annum", "the bank pays {v} per year", "a nominal rate of {v}", "it pays {v} annual interest",
                      "annual rate {v}"]).format(v=rate),
            r.choice(["for {v} years", "the term is {v} years", "over {v} years", "it ends after {v} years", "it runs {v} years", "{v} years pass"]).format(v=years),
            r.choice(["interest is paid {f}", "it is credited {f}", "interest is added {f}", "compounded {f}", "compounding {f}", "payments come {f}"]).format(f=how),
        ]  # fmt: skip
        asks = [
            (r.choice(["What is the deposit?", "How much is put in?", "State the principal."]), f"#### {money}"),
            (r.choice(["What is the rate?", "Which rate is paid?"]), f"#### {rate}"),
            (r.choice(["For how many years?", "How long is the term in years?"]), f"#### {years}"),
            (r.choice(["How often in a year is interest paid?", "How many times a year is it credited?", "Periods a year?"]), f"{_sentence(how)}: {times}.\n#### {times}"),
            (r.choice(["How many periods are there in all?", "Count the periods.", "How many times is interest paid over the term?"]),
             f"Periods: {mark(f'{times}*{years}')}.\n#### {times * years}"),
            (r.choice(["What is the rate of one period?", "What rate is paid each time?"]), f"{mark(f'{points}/{times}')}\n#### {show(calculate(f'{points}/{times}'))}%"),
            (r.choice(["What is the interest of one year?", "How much interest does the first year bring without compounding?"]),
             f"{mark(f'{amount}*{points}/100')}\n#### {show(calculate(f'{amount}*{points}/100'))}"),
            (r.choice(["Write the principal, rate, times a year and years.", "List amount, rate, periods a year and years."]), f"{amount}, {points}, {times}, {years}."),
            (r.choice(["What is one plus the rate of a period?", "Write the growth factor of one period."]), mark(f"1+{points}/100/{times}") + "."),
        ]  # fmt: skip
    elif kind == 1:
        (money, amount), (risk, points) = _money(r), _percent(r)
        entry = r.choice([_whole(r, (2, 3)), _whole(r, (2, 3)) + 0.5, round(_whole(r, (2, 3)) + r.randrange(100) / 100, 2)])
        stop = max(0.5, r.choice([round(entry - r.randrange(1, 80) / 2, 2), round(entry * r.uniform(0.8, 0.98), 2)]))
        shown = {k: f"${v:,.2f}".removesuffix(".00") for k, v in (("entry", entry), ("stop", stop))}
        plain = {k: v.lstrip("$").replace(",", "") for k, v in shown.items()}
        parts = [
            r.choice(["{n} has a {m} account", "the account holds {m}", "account size {m}", "capital: {m}", "{n} trades {m}", "a fund of {m}", "the money in the account is {m}"]).format(n=name, m=money),
            r.choice(["the risk per trade is {v}", "{n} risks {v}", "at most {v} may go", "the limit is {v}", "it limits a loss to {v}", "risk {v}", "a loss of {v} is allowed"]).format(n=name, v=risk),
            r.choice(["entry at {v}", "the purchase is made at {v}", "entry price {v}", "{n} buys at {v}", "the shares cost {v}", "it is bought for {v}", "buying at {v}"]).format(n=name, v=shown["entry"]),
            r.choice(["stop at {v}", "the stop is placed at {v}", "stop-loss {v}", "the exit is at {v}", "a protective stop waits at {v}", "it is sold at {v} at the latest", "stop price {v}"]).format(v=shown["stop"]),
        ]  # fmt: skip
        below, part = f"{plain['entry']}-{plain['stop']}", f"{amount}*{points}/100"
        asks = [
            (r.choice(["What is the entry?", "At which price is it bought?", "State the purchase price."]), f"#### {shown['entry']}"),
            (r.choice(["Where is the stop?", "At which price is it sold?", "State the stop."]), f"#### {shown['stop']}"),
            (r.choice(["How big is the account?", "State the capital."]), f"#### {money}"),
            (r.choice(["What share may be lost?", "State the risk in percent."]), f"#### {risk}"),
            (r.choice(["How far is the stop below the entry?", "What is the distance from entry to stop?", "How much is lost on one share at the stop?"]),
             f"Per share: {mark(below)}.\n#### {show(calculate(below))}"),
            (r.choice(["How much money may be lost?", "What is the risk in money?", "How much is at risk?"]), f"At risk: {mark(part)}.\n#### {show(calculate(part))}"),
            ("Write account, risk, entry and stop.", f"{amount}, {points}, {plain['entry']}, {plain['stop']}."),
            (f"What do {r.randint(2, 90)} shares cost?", None),
        ]  # fmt: skip
        shares = re.search(r"\d+", asks[-1][0])[0]
        asks[-1] = (asks[-1][0], f"{mark(shares + '*' + plain['entry'])}\n#### {show(calculate(shares + '*' + plain['entry']))}")
    else:
        (v, points), period = _percent(r), r.choice(list(CALENDAR))
        calendar = CALENDAR[period] if r.random() < 0.7 else f"{r.randint(200, 365)} {r.choice(['trading days', 'days'])}"
        days = calendar.split()[0]
        parts = [
            r.choice(["the {p} volatility is {v}", "{p} returns vary with a standard deviation of {v}", "a {p} volatility of {v}", "{p} moves of {v}", "volatility {v}, {p}", "{p} data show {v}",
                      "{v} is the {p} standard deviation", "a {p} figure of {v} was measured"]).format(p=period, v=v),
            r.choice(["a year has {c}", "with {c} in a year", "take {c}", "one year: {c}", "{c} make a year", "using {c}", "there are {c} per year"]).format(c=calendar),
        ]  # fmt: skip
        number = r.randint(2, 90)
        number += str(number) == days  # the root of the year's own periods is a task
        asks = [
            (r.choice(["What is the volatility?", "How large is the standard deviation?", "Which figure was measured?"]), f"#### {v}"),
            (r.choice(["How many periods has the year?", "What is the number of periods in a year?"]), f"#### {days}"),
            (r.choice(["Is it daily, weekly or monthly?", "Which period is used?"]), f"#### {_sentence(period)}"),
            (r.choice(["What is the square root of the number of periods in a year?", "Take the root of the periods of a year."]), f"{mark(f'sqrt({days})')}\n#### {show(calculate(f'sqrt({days})'))}"),
            (f"Multiply the volatility by {number}.", f"{mark(f'{points}*{number}')}\n#### {show(calculate(f'{points}*{number}'))}"),
            (f"Multiply the volatility by the square root of {number}.", f"{mark(f'{points}*sqrt({number})')}\n#### {show(calculate(f'{points}*sqrt({number})'))}"),
            ("Write the volatility and the periods.", f"{points}, {days}."),
        ]  # fmt: skip
    r.shuffle(parts)
    text = _joined(r, parts)
    ask, answer = r.choice(asks)
    return (f"{text} {ask}" if r.random() < 0.8 else f"{ask} {text}"), answer


# --- lists -------------------------------------------------------------------------------------------------------------
def _list(r) -> Turn:
    """A list of numbers: read an item, the largest, running results, item by item sums."""
    digits, count = r.choice([(2, 3), (3, 4), (1, 2), (3, 3), (2, 2)]), r.randint(3, 8) if r.random() < 0.9 else r.randint(9, 13)
    if r.random() < 0.6:  # a walk, as prices move
        values = [r.randrange(30, 4000)]
        for _ in range(count - 1):
            values.append(max(5, round(values[-1] * r.uniform(0.7, 1.3))))
    else:
        values = [_whole(r, digits) for _ in range(count)]
    if r.random() < 0.15:
        values = [f"{v / 10:.1f}" for v in values]
    plain = [str(v) for v in values]
    shown = ", ".join(plain)
    intro = r.choice([
        "{s}.", "The values are {s}.", "Numbers: {s}.", "Prices by month: {s}.", "The fund was at {s}.", "Closing levels were {s}.", "Given {s}.", "A list reads {s}.", "Take {s}.",
        "Here is a series: {s}.", "Index levels over time: {s}.", "An account showed {s}.", "The last values, oldest to newest, were {s}.", "Asset values: {s}.", "Months one to {c}: {s}.",
        "Worth at each quarter: {s}.", "The curve went {s}.", "A strategy stood at {s}.",
    ]).format(s=shown, c=len(plain))  # fmt: skip
    kind = r.randrange(12)
    if kind == 0:
        k = r.randrange(min(3, len(plain)))
        place = ("first", "second", "third")[k]
        ask, answer = r.choice(["What is the {p} value?", "Give the {p} number.", "State the {p} item."]).format(p=place), f"#### {plain[k]}"
    elif kind == 1:
        ask, answer = r.choice(["What is the last value?", "Which number is the newest?", "Give the final one."]), f"#### {plain[-1]}"
    elif kind == 2:
        function, words = r.choice([("max", ["largest", "highest"]), ("min", ["smallest", "lowest"])])
        ask, expression = f"What is the {r.choice(words)} value?", f"{function}({','.join(plain)})"
        answer = f"{_sentence(words[0])}: {mark(expression)}.\n#### {show(calculate(expression))}"
    elif kind in (3, 4, 5):  # running results: the state is carried from mark to mark
        function = r.choice(["max", "max", "min", "+", "both", "both"])
        ask = {"max": r.choice(["Write the running maximum.", "Give the peak so far at each step.", "Follow the highest value so far.", "What was the running peak?"]),
               "min": r.choice(["Write the running minimum.", "Follow the lowest value so far."]), "+": r.choice(["Write the running total.", "Add them up step by step."]),
               "both": r.choice(["Write the running peak and the running total.", "At each step, the highest so far and the sum so far."])}[function]  # fmt: skip
        state, total, lines = plain[0], plain[0], []
        for p in plain[1:]:
            if function == "both":
                peak, adding = f"max({state},{p})", f"{total}+{p}"
                state, total = show(calculate(peak)), show(calculate(adding))
                lines.append(f"Peak {mark(peak)}, total {mark(adding)}")
                continue
            expression = f"{state}+{p}" if function == "+" else f"{function}({state},{p})"
            lines.append(mark(expression) if function == "+" else f"{'Peak' if function == 'max' else 'Low'} {mark(expression)}")
            state = show(calculate(expression))
        answer = r.choice([". ", ".\n"]).join(lines) + f".\n#### {state}"
    elif kind in (6, 7):  # each against one reference, item by item
        other = _plain(r, (2, 4))
        form, ask = r.choice([
            ("100*(1-{p}/{o})", f"By how many percent is each below {other}?"), ("100*{p}/{o}", f"Write each as a percentage of {other}."),
            ("{p}-{o}", f"Subtract {other} from each."), ("{p}+{o}", f"Add {other} to each."), ("{p}/{o}", f"Divide each by {other}."),
        ])  # fmt: skip
        answer = r.choice([".\n", ". "]).join(mark(form.format(p=p, o=other)) for p in plain[:5]) + "."
    elif kind == 8:
        (a, high), (b, low) = r.choice([(("first", plain[0]), ("last", plain[-1])), (("first", plain[0]), ("second", plain[1])),
                                        (("second", plain[1]), ("third", plain[2])), (("second", plain[1]), ("last", plain[-1]))])  # fmt: skip
        ask = r.choice(["What is the fall from the {a} value to the {b} in percent?", "By how many percent is the {b} value below the {a}?", "Compare the {b} with the {a}: how many percent lower?"])
        expression = f"100*(1-{low}/{high})"
        ask, answer = ask.format(a=a, b=b), f"Fall {mark(expression)}.\n#### {show(calculate(expression))}%"
    elif kind == 9:
        expression = "+".join(plain)
        ask, answer = r.choice(["What is the total?", "Add all.", "Find the sum."]), f"{mark(expression)}\n#### {show(calculate(expression))}"
    elif kind == 10:
        ask, answer = r.choice(["Repeat the list.", "Copy the values.", "Write them again."]), f"{shown}."
    else:
        ask, answer = r.choice(["Write neighbours in pairs.", "Pair each value with the next."]), ".\n".join(f"{a} to {b}" for a, b in zip(plain, plain[1:])) + "."
    return (f"{intro} {ask}" if r.random() < 0.75 else f"{ask} {intro}"), answer


# --- sums said in words and in symbols ---------------------------------------------------------------------------------
def _sum(r) -> Turn:
    a, b, c = _plain(r), _plain(r, (1, 3)), _plain(r, (1, 2))
    (money, amount), (rate, points), n = _money(r), _percent(r), r.randint(2, 40)
    name, other = r.sample(NAMES, 2)
    words, expression = r.choice([
        (f"{a} plus {b}", f"{a}+{b}"), (f"{a} minus {b}", f"{a}-{b}"), (f"{a} times {b}", f"{a}*{b}"), (f"{a} divided by {b}", f"{a}/{b}"),
        (f"the square root of {n}", f"sqrt({n})"), (f"{a} times the square root of {n}", f"{a}*sqrt({n})"), (f"{c} to the power of {n % 9 + 2}", f"{c}^{n % 9 + 2}"),
        (f"{rate} of {money}", f"{amount}*{points}/100"), (f"{points} percent of {amount}", f"{amount}*{points}/100"), (f"the larger of {a} and {b}", f"max({a},{b})"),
        (f"the largest of {a}, {b} and {c}", f"max({a},{b},{c})"), (f"the whole part of {a}", f"floor({a})"), (f"{a} divided by {b} in whole numbers", f"floor({a}/{b})"),
        (f"one plus {rate}", f"1+{points}/100"), (f"how many whole times {b} goes into {a}", f"floor({a}/{b})"), (f"{a} less {b}, divided by {c}", f"({a}-{b})/{c}"),
        (f"the difference of {a} and {b}, over {c}", f"({a}-{b})/{c}"), (f"{b} below {a} in percent of {a}", f"100*(1-{b}/{a})"), (f"the sum of {a} and {b}, times {c}", f"({a}+{b})*{c}"),
        (f"{a}*(1+{b}/100/{n})^{n}" if float(b) < 50 else f"{a}*({b}+{n})", f"{a}*(1+{b}/100/{n})^{n}" if float(b) < 50 else f"{a}*({b}+{n})"),
        (f"{a}*(1+{points}/100/{c})^{n % 12 + 2}", f"{a}*(1+{points}/100/{c})^{n % 12 + 2}"), (f"({a}-{b})/{c}", f"({a}-{b})/{c}"), (f"100*(1-{b}/{a})", f"100*(1-{b}/{a})"),
        (f"{a}*sqrt({n})", f"{a}*sqrt({n})"), (f"floor({a}/{b})", f"floor({a}/{b})"), (f"{a}*{b}/100", f"{a}*{b}/100"), (f"max({a},{b},{c})", f"max({a},{b},{c})"),
        (f"{money} over {n} years", f"{amount}/{n}"), (f"{n} shares at {money}", f"{n}*{amount}"), (f"a fee of {rate} on {money}", f"{amount}*{points}/100"),
        (f"a price of {money} cut by {rate}", f"{amount}*(1-{points}/100)"), (f"{money} raised by {rate}", f"{amount}*(1+{points}/100)"),
        (f"{n} months in years", f"{n}/12"), (f"{n} years in months", f"{n}*12"), (f"{n} years in quarters", f"{n}*4"), (f"{n} years in half-years", f"{n}*2"),
    ])  # fmt: skip
    try:
        value = show(calculate(expression))
    except ValueError:
        return _sum(r)
    if len(value) > 14:
        return _sum(r)
    if r.random() < 0.15:
        return f"{r.choice(NOUNS).capitalize()}s {name} and {other}: {name} {a}, {other} {b}. What is {name} minus {other}?", f"{mark(f'{a}-{b}')}\n#### {show(calculate(f'{a}-{b}'))}"
    ask = r.choice(["What is {w}?", "Compute {w}.", "Find {w}.", "Calculate {w}.", "State {w}.", "How much is {w}?"]).format(w=words)
    lead = r.choice(["", "", "", "Value: ", "It is ", f"{_sentence(words)}: "])
    return ask, f"{lead}{mark(expression)}{'.' if lead else ''}\n#### {value}"


def _copy(r) -> Turn:
    """Amounts as written to plain numbers; words to the same words."""
    kind = r.randrange(6)
    if kind == 0:
        items = [r.choice((_money, _percent, _money, _count, _change))(r) for _ in range(r.randint(1, 5))]
        return r.choice(["As plain numbers: {s}.", "Write {s} without signs.", "Plain: {s}."]).format(s=", ".join(a for a, _ in items)), ", ".join(b for _, b in items) + "."
    if kind == 1:
        items = [_plain(r) for _ in range(r.randint(2, 6))]
        return r.choice(["Copy {s}.", "Repeat {s}.", "Again: {s}."]).format(s=", ".join(items)), ", ".join(items) + "."
    if kind == 2:
        names = r.sample(NAMES, r.randint(2, 6))
        return r.choice(["Copy {s}.", "Repeat the names {s}."]).format(s=", ".join(names)), ", ".join(names) + "."
    if kind >= 3 and r.random() < 0.7:
        pairs = {n: r.choice((_plain, lambda r: show(calculate(f"{_whole(r, (1, 4))}/{_whole(r, (1, 4))}"))))(r) for n in r.sample(NAMES, r.randint(2, 6))}
        if len(set(pairs.values())) < len(pairs):
            return _copy(r)
        n, ways = r.choice(list(pairs)), r.choice(["{k}: {v}.\n", "{k} {v}. ", "{v} for {k}, ", "{k} has {v}; "])
        text = "".join(ways.format(k=k, v=v) for k, v in pairs.items()).strip(" ,;") + "\n"
        if r.random() < 0.4:
            return text + r.choice([f"Who has {pairs[n]}?", f"{pairs[n]} belongs to whom?", f"Which is {pairs[n]}?"]), f"#### {n}"
        if r.random() < 0.5:
            return text + r.choice([f"What has {n}?", f"{n}?", f"Which number is of {n}?"]), f"{n}: {pairs[n]}.\n#### {pairs[n]}"
        return text + r.choice(["List them again.", "Write each by name.", "All again."]), "\n".join(f"{k}: {v}." for k, v in pairs.items())
    words = r.sample(WORDS, r.randint(1, 6))
    return r.choice(["Repeat: {s}", "Write again: {s}", "Copy the words {s}"]).format(s=", ".join(words)), ", ".join(words)


# --- prose -------------------------------------------------------------------------------------------------------------
# Every word that the tasks use, as written and capitalised: the base must have met each one.
WORDS = sorted({
    form for problem_text in [p for kind in KINDS.values() for p in kind.phrasings] + [p.reasoning for p in generate("train", 180, 0, kinds=tuple(KINDS))]
    for word in re.findall(r"[A-Za-z][a-z]*(?:-[a-z]+)*", re.sub(r"{\w+}", "", problem_text)) for form in (word.lower(), word.capitalize())
} - {n.lower() for n in NAMES})  # fmt: skip
DEFINITIONS = (
    "Volatility is the standard deviation of returns.", "The standard deviation of returns is called volatility, or simply risk.",
    "A drawdown is a fall from a peak.", "The running peak is the highest value so far.", "A trough is a low after a high.",
    "The Sharpe ratio sets return above the risk-free rate against volatility.", "Bills, cash and the safe rate carry no risk.",
    "To annualise is to convert a figure to one year.", "A stop-loss is a protective exit: shares are sold at the stop.",
    "Compounding adds interest to the principal, so that interest earns interest.", "Per annum means a year.",
    "Quarterly means every quarter, four times a year.", "Monthly means every month, twelve times a year.",
    "Semi-annually means every half-year, twice a year.", "Annually means every year, once a year.", "Yearly and annual mean the same.",
    "A ranking puts the best first and the worst last.", "Reward is return; reward to risk compares the two.", "Principal is the sum put in.",
    "Position size is the number of shares held.", "Capital is the money in an account.", "The risk-free rate is what treasury bills pay.",
    "Oldest first means in order of time.", "A nominal rate is the rate as stated for a year.", "A balance is what an account holds.",
    "Net asset value is what a fund is worth.", "An earlier high is a previous peak.", "The deepest loss is the largest fall.",
)  # fmt: skip
SUBJECTS = ("the committee", "a trader", "the investor", "the portfolio", "the fund", "an account", "the bank", "the market", "a strategy", "the index", "the trust", "the board")
VERBS = ("measures", "compares", "reports", "expects", "limits", "holds", "states", "offers", "takes", "finds", "keeps", "pays", "credits", "yields", "earned", "gained", "delivered", "returned")
OBJECTS = ("the return", "the volatility", "a loss", "the risk", "the interest", "a final value", "the balance", "the capital", "the maximum", "the price", "an annual figure", "the safe rate",
           "the drawdown", "a stop-loss", "the ranking", "the deposit", "the standard deviation", "a treasury bill", "the net asset value", "whole shares")  # fmt: skip
TAILS = ("this year", "every quarter", "over time", "in percent", "per year", "at the end of the month", "from an earlier high", "with care", "as planned", "after costs", "by a wide margin")


def _prose(r) -> str:
    sentences = []
    for _ in range(r.randint(2, 6)):
        kind = r.randrange(6)
        if kind == 0:
            sentences.append(r.choice(DEFINITIONS))
        elif kind == 1:
            label = r.choice(list(LABELS))
            amount, ways = LABELS[label]
            sentences.append(_sentence(r.choice(ways).format(n=r.choice(NAMES), v=amount(r)[0])) + ".")
        elif kind == 2:
            sentences.append(f"{r.choice(['The words', 'Note the words', 'Some words are'])} {', '.join(r.sample(WORDS, 4))}{r.choice(['.', ' are used here.', ' appear in the report.'])}")
        else:
            text = f"{r.choice(SUBJECTS)} {r.choice(VERBS)} {r.choice(OBJECTS)}"
            text += r.choice(["", f" of {r.choice(NAMES)}", f" at {_percent(r)[0]}", f" of {_money(r)[0]}", f" for {r.randint(2, 30)} years", f" and {r.choice(OBJECTS)}"])
            sentences.append(_sentence(f"{text} {r.choice(TAILS)}." if r.random() < 0.5 else text + "."))
    return " ".join(sentences)


CHATS = ((_world, 34), (_facts, 20), (_list, 24), (_sum, 10), (_copy, 10))
PROSE_SHARE = 0.08


def documents(seed: int, stream: str = "train") -> Iterator[str | Turn]:
    """Endless documents: a str is prose, a (question, answer) pair is one chat. The same seed and stream give the same."""
    r = random.Random(f"{seed}/{stream}")
    makers, weights = zip(*CHATS)
    while True:
        yield _prose(r) if r.random() < PROSE_SHARE else r.choices(makers, weights)[0](r)


def one_step_problems(count: int, seed: int) -> list[Turn]:
    """Held-out chats whose answer has exactly one mark: can the model set a sum up with every number right?"""
    found = []
    for document in documents(seed, "held-out"):
        if isinstance(document, tuple) and document[1].count("<<") == 1:
            found.append(document)
            if len(found) == count:
                return found
