"""The text that the embedded base is pretrained on: generated finance prose, copying, lists and one- and two-step sums.

It holds none of the task kinds of `lib.data.tasks` (those are for fine-tuning to teach) but every word that they use: with
tied, frozen embeddings LoRA cannot make a token that the base never saw.
"""

import random
import re
from collections.abc import Iterator
from itertools import combinations

from lib.data.kinds import CALENDAR, EVERY, KINDS, NAMES, PERIODS, duel
from lib.data.tasks import generate
from lib.grade.calculator import calculate, mark, show

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
PAIRS = (*[("return", "volatility")] * 6, ("price", "dividend"), ("revenue", "number of employees"), ("profit", "number of shares"),
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
# the pair that the tasks are about, in the ways that reports say it: as a verb, as an attribute, as a bare item
RETURNED = (
    "returned {a}", "earned {a}", "gained {a}", "made {a}", "brought in {a}", "yields {a}", "delivered {a}", "is up {a}", "is expected to earn {a}", "promises {a}",
    "has a return of {a}", "has a mean return of {a}", "has an expected return of {a}", "paid its holders {a}", "shows a gain of {a}", "grew by {a}", "achieved {a}",
    "offers {a}", "produced {a}", "brings {a}", "should return {a}", "rose by {a}", "gains {a}", "earns {a}", "had a total return of {a}",
    "posted {a}", "booked a gain of {a}", "generated {a}", "recorded {a}", "climbed by {a}", "advanced {a}", "performed at {a}", "made a profit of {a}", "appreciated by {a}", "has gained {a}",
    "gives {a}", "realised a return of {a}", "averaged {a}", "compensates its owners with {a}",
)
VARIED = (
    "had a volatility of {b}", "swings by {b}", "moves by {b}", "has a standard deviation of {b}", "has a sigma of {b}", "varied by {b}", "deviates by {b}", "fluctuates by {b}",
    "carries a risk of {b}", "ran {b} volatility", "shows swings of {b}", "has volatility {b}", "bears a risk of {b}", "was volatile at {b}", "spreads by {b}",
    "had a variability of {b}", "shows a dispersion of {b}", "scatters by {b}", "has an uncertainty of {b}", "had returns that vary by {b}", "was as risky as {b}", "ran a risk of {b}", "wobbles by {b}",
)
AT_RISK = (
    "with a volatility of {b}", "at {b} volatility", "at a risk of {b}", "on a volatility of {b}", "with {b} risk", "for a risk of {b}", "(volatility {b})", "(vol {b})",
    "with swings of {b}", "at a sigma of {b}", "with a standard deviation of {b}", "against a volatility of {b}", "bearing {b} of risk", "while varying by {b}", "(sigma {b})",
    "with {b} of variability", "at the price of {b} volatility", "taking {b} of risk", "under a dispersion of {b}", "despite a volatility of {b}", "(standard deviation {b})", "for {b} of volatility",
)
AT_RETURN = ("with a return of {a}", "returning {a}", "earning {a}", "yielding {a}", "(return {a})", "that made {a}", "for a gain of {a}", "with a mean of {a}", "gaining {a}", "expected to earn {a}", "with {a} gained", "posting {a}", "for an average of {a}", "bringing {a}")
RETURN_NAMES = ("return", "return", "mean return", "expected return", "gain", "yield", "mean", "annual return", "returns")
RISK_NAMES = ("volatility", "volatility", "risk", "sigma", "standard deviation", "vol", "deviation", "swings", "spread")
CLAUSES = (
    "{n} {returned} {at_risk}", "{n} {returned} and {varied}", "{n} {varied} and {returned}", "{n} {returned}, {at_risk}", "{at_risk}, {n} {returned}", "{at_return}, {n} {varied}",
    "{n}, {at_return} and {at_risk}", "{n}, which {varied} and {returned}", "{n}, which {returned} and {varied}", "{n} {at_risk} {returned}", "{n} ({x} {a}, {y} {b})", "{n}: {x} {a}, {y} {b}",
    "{n} ({y} {b}, {x} {a})", "{n}: {y} {b}, {x} {a}", "{n} {x} {a}, {y} {b}", "{x} {a}, {y} {b}: {n}", "{n} has {a} {x} and {b} {y}", "the {x} of {n} is {a} and its {y} {b}",
    "the {y} of {n} is {b} and its {x} {a}", "for {n}, {x} = {a} and {y} = {b}", "{n} shows {a} of {x} for {b} of {y}", "{n} has a {y} of {b} and a {x} of {a}", "{a} {x} and {b} {y} for {n}",
    "from {n} one gets {a} and bears {b}", "{n} paid {a} for {b} of {y}", "{b} {y} comes with {a} {x} in {n}", "if {n} {returned}, it {varied}", "{n} {returned}; it {varied}", "{n} {varied}; it {returned}",
    "as for {n}, it {returned} and {varied}", "{n}, on the other hand, {returned} {at_risk}", "one choice is {n}, {at_return} {at_risk}", "while {n} {returned}, it {varied}", "an owner of {n} gets {a} and stands {b} of {y}",
    "{n}: {a} of {x}, {b} of {y}", "the figures for {n} are {x} {a}, {y} {b}", "{n} earned its holders {a}, {at_risk}", "with {n}, expect a {x} of {a} and a {y} of {b}", "{x} of {n}: {a}; {y} of {n}: {b}",
)
RESPECTIVELY = (
    "{names} {x}: {as}; {y}: {bs}", "{names} have a {x} of {as} and a {y} of {bs}, respectively", "the {x} is {as} for {names} and the {y} {bs}, in this order",
    "{names} earned {as}, with volatilities of {bs}", "the returns of {names} are {as}, the standard deviations {bs}", "{y}: {bs}; {x}: {as} ({names}, in this order)",
    "{x} {by_a}; {y} {by_b}", "the {x} is {by_a}. The {y} is {by_b}", "{y} of {by_b}, and {x} of {by_a}", "{names} should earn {as}, and they vary by {bs}",
    "{names} are expected to return {as}. Their risks are {bs}", "{names} vary by {bs} and bring {as}, respectively", "at {bs} of {y}, {names} made {as}",
)  # fmt: skip
NOUNS = ("fund", "company", "stock", "asset", "portfolio", "firm", "strategy", "trader", "bank", "trust", "index", "account")


SAFE_RATES = (
    "The risk-free rate is {v}.", "Treasury bills pay {v}.", "Cash yields {v}.", "Risk-free: {v}.", "The safe rate is {v}.", "With a risk-free rate of {v}:", "Bills pay {v}.",
    "Money without risk earns {v}.", "The rate without risk: {v}.", "Risk-free rate {v}.", "T-bills are at {v}.", "A savings account pays {v}.", "Deposits earn {v}.", "The riskless asset earns {v}.",
    "{v} can be had without risk.", "Government paper yields {v}.", "Let the risk-free rate be {v}.", "Use {v} as the riskless rate.", "Safe money brings {v}.", "The return on cash is {v}.",
    "Short bills of the government return {v}.", "Without any risk one gets {v}.", "A bank pays {v}.", "The riskless rate stands at {v}.", "Take {v} for the safe return.",
)  # fmt: skip


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


def _risk_and_return(r, values: dict) -> str:
    """What returns and volatilities {name: ((shown, plain), (shown, plain))} are, in one of many forms."""
    x, y, clause = r.choice(RETURN_NAMES), r.choice(RISK_NAMES), r.choice(CLAUSES)
    mixed, style = r.random() < 0.2, r.random()
    if style < 0.25:
        join = r.choice([", ", ", ", "; ", " / "])
        both = [", ".join(parts[:-1]) + " and " + parts[-1] if join == ", " and r.random() < 0.6 else join.join(parts)
                for parts in (list(values), [v[0][0] for v in values.values()], [v[1][0] for v in values.values()])]  # fmt: skip
        by = [", ".join(f"{v[i][0]} for {n}" if r.random() < 0.9 else f"{n} {v[i][0]}" for n, v in values.items()) for i in (0, 1)]
        return _sentence(r.choice(RESPECTIVELY).format(x=x, y=y, names=both[0], by_a=by[0], by_b=by[1], **{"as": both[1], "bs": both[2]})) + "."
    if style < 0.37:  # bare numbers under a heading
        first, form = r.randrange(2), r.choice(["{n} {p} and {q}", "{n}: {p}, {q}", "{n} ({p}, {q})", "{n} {p} / {q}", "{n} at {p} and {q}", "{n}, {p}, {q}", "{n} has {p} and {q}"])
        order = (y, x) if first else (x, y)
        body = r.choice(["; ", ". ", ", ", "; "]).join(form.format(n=n, p=v[first][0], q=v[1 - first][0]) for n, v in values.items())
        return r.choice([f"{_sentence(order[0])}, then {order[1]}: {body}.", f"{body} ({order[0]}, then {order[1]}).", f"Name, {order[0]}, {order[1]}: {body}.",
                         f"{body}. The {order[0]} is given before the {order[1]}.", f"{body}. Figures are {order[0]} / {order[1]}.", f"{_sentence(order[0])} and {order[1]}, in this order: {body}."])  # fmt: skip
    returned, varied, at_risk, at_return = (r.choice(ways) for ways in (RETURNED, VARIED, AT_RISK, AT_RETURN))
    parts = []
    for place, (n, (a, b)) in enumerate(values.items()):
        if mixed:
            clause, returned, varied, at_risk, at_return = (r.choice(ways) for ways in (CLAUSES, RETURNED, VARIED, AT_RISK, AT_RETURN))
        fill = clause.replace("{returned}", returned).replace("{varied}", varied).replace("{at_risk}", at_risk).replace("{at_return}", at_return)
        if place and r.random() < 0.12 and fill.startswith("{n} ") and "{x}" not in fill:
            fill = r.choice(["{n} has {a} and {b}", "for {n} they are {a} and {b}"] if fill.index("{a}") < fill.index("{b}") else ["{n} has {b} and {a}", "for {n} it is {b} and {a}"])
        parts.append(fill.format(n=n, x=x, y=y, a=a[0], b=b[0]))
    return _joined(r, parts)


def _pairs_told(r, x: str, y: str, values: dict) -> str:
    """Names with two labelled amounts each, as a sentence or a list."""
    names, form, style = list(values), r.choice(PAIR_FORMS), r.random()
    if style < 0.6:  # one form for all, labels sometimes only in a heading
        text = _joined(r, [form.format(n=n, x=x, y=y, a=a[0], b=b[0]) for n, (a, b) in values.items()])
        if "{x}" not in form:
            text = r.choice([f"For each, {x} and {y}. {text}", f"{_sentence(x)}, then {y}. {text}", text[:-1] + f" ({x}, then {y})."])
        return text
    if style < 0.8:  # each amount in a sentence of its own
        parts = [r.choice(LABELS[label][1]).format(n=n, v=v[i][0]) for n, v in values.items() for i, label in enumerate((x, y))]
        if r.random() < 0.3:
            r.shuffle(parts)
        return _joined(r, parts)
    return _sentence(" ".join(  # all amounts of one label together, in the order of the names
        r.choice(["The {x} of {n} is {v}, in this order.", "For {n} the {x} is {v} respectively.", "{v}: that is the {x} for {n}."])
        .format(x=label, n=", ".join(names), v=", ".join(v[i][0] for v in values.values()))
        if r.random() < 0.5 else
        r.choice(["The {x} is {p}.", "Look at the {x}: {p}.", "{x}: {p}."]).format(x=label, p=", ".join(f"{v[i][0]} for {n}" for n, v in values.items()))
        for i, label in enumerate((x, y))
    ))  # fmt: skip


def _asked(r, text: str, asks: list[Turn], after: float = 0.75) -> Turn:
    """A text with one question or with several, whose answers follow each other."""
    answer = asks[0][1] if len(asks) == 1 else "\n".join(a.replace("#### ", "") for _, a in asks)
    ask = " ".join(q for q, _ in asks)
    return (f"{text} {ask}" if r.random() < after else f"{ask} {text}"), answer


def _world(r) -> Turn:
    """Two to four named things with two labelled amounts each: look-ups, lists, a choice, sums, an order or a ratio."""
    count, (x, y) = r.choice((2, 2, 3, 3, 3, 4)), r.choice(PAIRS)
    names = r.sample(NAMES, count)
    values = {n: (LABELS[x][0](r), LABELS[y][0](r)) for n in names}
    if any(len({v[i][1] for v in values.values()}) < count for i in (0, 1)):
        return _world(r)  # equal amounts would have no order
    risky = (x, y) == ("return", "volatility")
    text = _risk_and_return(r, values) if risky and r.random() < 0.85 else _pairs_told(r, x, y, values)
    values, safe = {n: values[n] for n in sorted(names, key=text.index)}, None  # as told, also where that was shuffled
    if r.random() < 0.5:
        safe = _percent(r)
        extra = r.choice(SAFE_RATES).format(v=safe[0])
        text = f"{extra} {text}" if r.random() < 0.5 else f"{text} {extra}"
    kinds = r.sample(("read", "each", "all", "all", "sum", "pairwise", "best", "safe", "of"), r.choice((1, 1, 2, 3)))
    asks = [ask for kind in kinds if (ask := _world_ask(r, kind, x, y, values, safe))]
    if not asks or len({q for q, _ in asks}) < len(asks) or sum(a.count("\n") for _, a in asks) > 11:
        return _world(r)
    return _asked(r, text, asks, 0.7)


def _wanted(r, names: list[str]) -> tuple[list[str], str]:
    """The names that a list is asked for and how they are called: each, or some in an order that is not the text's."""
    if r.random() < 0.35:
        return names, ""
    wanted = r.sample(names, r.randint(2, len(names)))
    return wanted, ", ".join(wanted[:-1]) + r.choice([" and ", ", ", ", then "]) + wanted[-1]


def _lines(r, x: str, y: str, values: dict, sums: dict[str, str], what: str) -> dict[str, str]:
    """A line a name that computes with both of its amounts, which are mostly read off first."""
    form = "{n}: {x} {a}, {y} {b}, {w} {m}." if r.random() < 0.7 else "{n}: {m}."
    return {n: form.format(n=n, x=x, y=y, a=a[1], b=b[1], w=what, m=mark(sums[n])) for n, (a, b) in values.items()}


def _world_ask(r, kind: str, x: str, y: str, values: dict, safe: tuple[str, str] | None) -> Turn | None:
    """One question about what `_world` told and its answer; None where that kind of question has no sense."""
    names, which = list(values), r.randrange(2)
    label, shown, plain = (x, y)[which], {n: v[which][0] for n, v in values.items()}, {n: v[which][1] for n, v in values.items()}
    n, m = r.sample(names, 2)
    risky, word = (x, y) == ("return", "volatility"), label
    if risky and r.random() < 0.4:  # asked for by another name than told
        word = r.choice((RETURN_NAMES, RISK_NAMES)[which])
    if kind == "read":
        return r.choice(["What is the {l} of {n}?", "State the {l} of {n}.", "Find the {l} for {n}.", "{n}: which {l}?"]).format(l=word, n=n), (f"{n}: {label} {plain[n]}.\n" if r.random() < 0.5 else "") + f"#### {shown[n]}"
    wanted, called = _wanted(r, names)
    if kind == "each":
        ask = r.choice(["Write the {l} of {c}.", "List the {l} for {c}.", "{c}: which {l}?", "For {c}, the {l}?"] if called else ["Write the {l} of each.", "List each {l}.", "Give every {l} by name."])
        return ask.format(l=word, c=called), "\n".join(f"{k}: {plain[k]}." for k in wanted)
    if kind == "all":
        (first, second), order = ((x, y), (0, 1)) if r.random() < 0.7 else ((y, x), (1, 0))
        lines = [f"{k}: {first} {values[k][order[0]][1]}, {second} {values[k][order[1]][1]}" for k in wanted]
        if safe and r.random() < 0.6:
            ask = r.choice(["Write the risk-free rate, then {a} and {b} of {c}.", "Risk-free rate, then {a} and {b} for {c}?", "List the safe rate; then, for {c}, {a} and {b}."])
            if r.random() < 0.4 and LABELS[first][0] is _percent:  # the safe rate off the first of them
                ask, lines = ask[:-1] + r.choice([", with the excess over the risk-free rate.", " and how far the {a} is above the safe rate."]), [
                    f"{line}, excess {mark(v[order[0]][1] + '-' + safe[1])}" for line, v in zip(lines, (values[k] for k in wanted))]  # fmt: skip
            return ask.format(a=first, b=second, c=called or "each"), "\n".join([f"Risk-free: {safe[1]}.", *(f"{line}." for line in lines)])
        ask = r.choice(["Write {a} and {b} of {c}.", "List {a} and {b} for {c}.", "For {c}, {a} and {b}?", "{c}: {a} and {b}?"] if called else ["Write {a} and {b} of each.", "List {a} and {b} by name.", "For each, {a} and {b}?", "Who has which {a} and which {b}?"])
        return ask.format(a=first, b=second, c=called), ".\n".join(lines) + "."
    if kind == "sum":
        said, sign = r.choice([("minus", "-"), ("plus", "+"), ("less", "-"), ("and", "+")])
        ask = f"{'Add' if said == 'and' else 'What is'} the {word} of {n} {said} the {word} of {m}{'.' if said == 'and' else '?'}"
        lead = "".join(f"{k}: {label} {plain[k]}.\n" for k in (n, m)) if r.random() < 0.75 else ""  # read off first
        return ask, f"{lead}{mark(f'{plain[n]}{sign}{plain[m]}')}\n#### {show(calculate(plain[n] + sign + plain[m]))}"
    if kind == "pairwise":  # both amounts of each name in one sum
        said, sign = r.choice([("the {x} minus the {y}", "-"), ("{x} plus {y}", "+"), ("{x} less {y}", "-"), ("{x} times {y}", "*"), ("the {x} per {y}", "/"), ("{x} over {y}", "/"),
                               ("the ratio of {x} to {y}", "/"), ("{x} divided by {y}", "/")])  # fmt: skip
        if sign == "/" and (x, y) not in RATIO:
            said, sign = "{x} times {y}", "*"
        said, sums = said.format(x=x, y=y), {k: f"{a[1]}{sign}{b[1]}" for k, (a, b) in values.items()}
        lines = _lines(r, x, y, values, sums, {"-": "difference", "+": "sum", "*": "product", "/": "ratio"}[sign])
        if r.random() < 0.3:
            return r.choice(["What is {s} for {n}?", "Find {s} for {n}.", "For {n} alone, {s}?"]).format(s=said, n=n), f"{lines[n]}\n#### {show(calculate(sums[n]))}"
        ask = r.choice(["What is {s} for {c}?", "Find {s} for {c}.", "For {c}, {s}?", "{c}: {s}?"] if called else ["What is {s} for each?", "Find {s} for each name.", "For each, {s}?", "By name, {s}."])
        return ask.format(s=said, c=called), "\n".join(lines[k] for k in wanted)
    if kind == "best":
        choose = r.random() < 0.6
        lines, amounts, up = [], plain, not choose or r.random() < 0.7
        if (x, y) in RATIO and r.random() < 0.6:  # by a ratio, which is worked out first
            ratios = {k: f"{a[1]}/{b[1]}" for k, (a, b) in values.items()}
            lines, amounts = [*_lines(r, x, y, values, ratios, "ratio").values()], {k: show(calculate(e)) for k, e in ratios.items()}
            word = f"{x} per {y}"
            if len(set(amounts.values())) < len(names):
                return None
        if choose:
            best_word = r.choice(["highest", "largest", "higher", "larger"] if up else ["lowest", "smallest", "lower", "smaller"])
            ask = r.choice(["Which has the {w} {l}?", "Who has the {w} {l}?", "Name the one with the {w} {l}.", "Pick the {w} {l}.", "Whose {l} is {w}?",
                            "Which choice offers the {w} {l}?"]).format(w=best_word, l=word)  # fmt: skip
            if r.random() < 0.4:  # the number itself, not its name
                function = f"{'max' if up else 'min'}({','.join(amounts.values())})"
                return f"How large is the {best_word} {word}?", "\n".join([*lines, f"{_sentence(best_word)}: {mark(function)}.", f"#### {show(calculate(function))}"])
            duels, best = _champion(amounts, up)
            return ask, "\n".join([*lines, *duels, f"#### {best}"])
        if len(names) > 3:
            return None
        ask = r.choice(["Order them by {l}, highest first.", "Sort these by {l}, the highest first.", "Rank by {l} from highest to lowest.", "Rank them by {l}, best first.",
                        "List them by {l}, starting with the largest.", "Give the ranking by {l} from best to worst.", "Put them in order of {l}, largest first."]).format(l=word)  # fmt: skip
        lines += [duel(*pair) for pair in combinations(amounts.items(), 2)]
        return ask, "\n".join([*lines, "#### " + ", ".join(sorted(amounts, key=lambda k: -float(amounts[k])))])
    if kind == "safe" and safe and LABELS[x][0] is _percent:
        k, step = r.choice((2, 3, 5, 10, 12, 20, 100)), "{a}-{s}"
        if r.random() < 0.35:
            return r.choice(["What is the risk-free rate?", "What does cash pay?", "State the safe rate.", "What do bills yield?"]), f"#### {safe[0]}"
        ask = r.choice(["How far is the {l} of {w} above the risk-free rate?", "Subtract the risk-free rate from the {l} of {w}.", "Take the safe rate off the {l} of {w}."])
        if r.random() < 0.3:
            ask, step = ask[:-1] + f" and multiply by {k}" + ask[-1], f"({step})*{k}"
        steps = {name: step.format(a=v[0][1], s=safe[1]) for name, v in values.items()}
        if r.random() < 0.4:
            return ask.format(l=x, w=n), f"{n}: {mark(steps[n])}.\n#### {show(calculate(steps[n]))}"
        return ask.format(l=x, w=called or "each"), "\n".join([f"Risk-free: {safe[1]}.", *(f"{k}: {mark(steps[k])}." for k in wanted)])
    if kind == "of":
        return r.choice(["Which has a {l} of {v}?", "Whose {l} is {v}?", "{v} is the {l} of which one?"]).format(l=word, v=shown[n]), f"#### {n}"
    return None


# --- one thing with several amounts: accounts, trades, deposits, measurements ------------------------------------------
# Told in parts, each in one of many ways and in any order, or as a whole; {f}: quarterly, {e}: every quarter.
WHO = ("Maria", "Ben", "Anna", "a trader", "an investor", "the fund", "a bank", "a trust", "a committee", "the plan", "you", "a client", "someone", "a firm", "a desk", "the manager", "a saver", "an analyst", "a couple")
DEPOSIT = (
    ["{n} puts {m} in an account", "{n} opens a savings plan with {m}", "the deposit is {m}", "{n} saves {m}", "principal {m}", "{m} is lent to a bank", "the amount put in today is {m}",
     "{n} begins with {m}", "the sum is {m}", "{m} is paid in", "{n} sets {m} aside", "the opening balance is {m}", "a lump sum of {m} is deposited", "the starting amount is {m}", "{n} places {m}",
     "{n} has {m} to invest", "the certificate costs {m}", "{n} lends out {m}", "capital: {m}", "initial value {m}", "{m} is locked away", "{n} deposits {m}", "the loan is {m}", "{n} brings {m} to the bank",
     "the stake is {m}", "{n} contributes {m} once", "a nest egg of {m} is invested", "{n} hands over {m}", "the sum invested is {m}", "{n} starts out with {m}", "an inheritance of {m} is banked"],
    ["the rate is {v} a year", "it earns {v} a year", "interest is {v} per annum", "the bank pays {v} per year", "a nominal rate of {v}", "it pays {v} annual interest", "annual rate {v}",
     "the yearly rate is {v}", "the account bears {v}", "{v} is offered per year", "it grows at {v} a year", "the nominal annual rate is {v}", "rate {v}", "at {v} yearly interest", "the debt costs {v} a year", "interest accrues at {v} a year", "{v} is the quoted annual rate", "the stated rate is {v}", "the coupon rate is {v}", "{v} a year is guaranteed"],
    ["for {y} years", "the term is {y} years", "over {y} years", "it ends after {y} years", "it runs {y} years", "{y} years pass", "the time is {y} years", "the money stays for {y} years", "maturity comes in {y} years",
     "it is left alone for {y} years", "nothing is taken out for {y} years", "{y} years later it ends", "term {y} years", "a period of {y} years", "it lasts {y} years", "untouched for {y} years", "it matures after {y} years", "the horizon is {y} years", "during {y} years", "{n} waits {y} years", "the contract covers {y} years"],
    ["interest is paid {t}", "it is credited {t}", "interest is added {t}", "compounded {f}", "compounding {f}", "payments come {t}", "interest is reinvested {t}", "with {f} compounding", "interest comes {t}",
     "the balance is credited {t}", "interest joins the principal {t}", "{t} the interest is booked", "the bank adds interest {t}", "compounding takes place {t}", "capitalised {t}", "interest earns interest {t}", "the interest is rolled up {t}", "accrued interest is added {t}", "interest is compounded {f}"],
)
DEPOSITS = (
    "{n} leaves {m} with a bank for {y} years; it pays {v} a year, {t}.", "For {y} years {m} lies in an account that bears {v} per annum, with interest {t}.",
    "{m} at {v}, {y} years, {f}.", "A {y}-year certificate over {m} has a yearly rate of {v} and pays {t}.", "The bank promises {v} a year on {m}, credited {t}, to whoever waits {y} years.",
    "{n} borrows {m} at a nominal {v} a year, added to the debt {t}, and repays it {y} years later.", "With {f} compounding at {v} a year, {n} keeps {m} invested over {y} years.",
    "Amount {m}, rate {v}, years {y}, interest {f}.", "Interest of {v} a year is added {t} to the {m} that {n} paid in {y} years ago.", "{y} years ago {n} put {m} into a plan at {v} per year, compounded {f}.",
    "If {n} ties up {m} until {y} years are over, the yearly {v} is credited {t}.", "{t}, interest at {v} a year is added to a balance of {m}; this goes on for {y} years.",
    "Yearly rate: {v}. Paid in: {m}. How often: {t}. How long: {y} years.", "There is {m} in the plan today, at {v} nominal a year, {f}, and {y} years to go.",
    "Hello, I have {m}, the bank gives me {v} a year {t}, and I can wait {y} years.", "A bond fund that opened with {m} grows {v} a year, reinvested {t}, for {y} years.",
    "{y} years at {v} a year, {f}: so reads the offer for {m}.", "Given a nominal rate of {v}, a principal of {m}, {f} compounding and {y} years.",
)
TRADE = (
    ["{n} has a {m} account", "the account holds {m}", "account size {m}", "capital: {m}", "{n} trades {m}", "a fund of {m}", "the money in the account is {m}", "equity {m}", "the portfolio is worth {m}",
     "the budget is {m}", "{n} owns {m}", "there is {m} in the account", "account {m}", "the capital stands at {m}", "the pot is {m}", "the desk runs {m}", "{n} manages {m}", "total equity: {m}", "the bankroll is {m}", "{n} commands {m}", "{m} of trading money", "net worth {m}", "the book holds {m}", "{n} starts with {m} in cash"],
    ["the risk per trade is {v}", "{n} risks {v}", "at most {v} may go", "the limit is {v}", "it limits a loss to {v}", "risk {v}", "a loss of {v} is allowed", "no more than {v} may be lost", "maximum loss {v}",
     "the loss is capped at {v}", "{n} accepts a loss of {v}", "{v} of it is at risk", "up to {v} of it may be lost", "the risk limit is {v}", "risk per trade: {v}", "a wrong trade may cost {v} of it", "downside {v}", "{n} tolerates a loss of {v}", "{n} is willing to lose {v}", "the threshold for losses is {v}", "exposure is kept to {v}", "losses stop at {v} of it", "only {v} may be surrendered"],
    ["entry at {i}", "the purchase is made at {i}", "entry price {i}", "{n} buys at {i}", "the shares cost {i}", "it is bought for {i}", "buying at {i}", "long at {i}", "the buy order is at {i}", "purchase price {i}",
     "a share costs {i}", "the position is opened at {i}", "entry {i}", "in at {i}", "each share is bought at {i}", "the stock trades at {i} and is bought", "{n} pays {i} a share", "the market price is {i}", "the order fills at {i}", "{n} goes long at {i}", "acquired at {i}", "the cost per share is {i}"],
    ["stop at {o}", "the stop is placed at {o}", "stop-loss {o}", "the exit is at {o}", "a protective stop waits at {o}", "it is sold at {o} at the latest", "stop price {o}", "out at {o}", "the sell order is at {o}",
     "{n} gets out at {o}", "if it falls to {o} it is sold", "the position is closed at {o}", "stop {o}", "protective exit at {o}", "the stop sits at {o}", "exit price {o} if wrong", "it is liquidated at {o}", "{n} bails out at {o}", "the trade is abandoned at {o}", "a fall to {o} ends the trade", "a sale is triggered at {o}", "the lowest price {n} waits for is {o}"],
)
TRADES = (
    "{n} buys at {i}, sells at {o} if wrong, and risks {v} of {m}.", "Of {m}, {v} may be lost between the entry at {i} and the stop at {o}.", "An account of {m} loses {v} at most: entry {i}, stop {o}.",
    "With a stop of {o} under an entry of {i}, {n} lets {v} of {m} go.", "{v} of an equity of {m} is the limit; in at {i}, out at {o}.", "The stock costs {i}; it is sold at {o}; the portfolio of {m} may lose {v}.",
    "Enter at {i}. Leave at {o}. Lose no more than {v}. The capital is {m}.", "A stop-loss at {o} protects shares bought at {i}, in an account of {m} that risks {v}.", "Hello, I buy at {i}, stop out at {o}, and put {v} of my {m} at risk.",
    "Risk {v}, capital {m}, purchase {i}, exit {o}.", "Stop {o}, entry {i}, risk {v}, equity {m}.", "From {i} down to {o} is what a share may fall; from {m}, {v} is what {n} may lose.",
    "Since {n} never loses over {v} of {m} on one idea, the share bought at {i} has a stop at {o}.", "Shares bought at {i} each are sold once they touch {o}; that may cost {v} of the {m}.",
    "A desk of {m} takes a long position at {i}, closed at {o} or before, with {v} as its loss limit.", "Purchase at {i}, protective sale at {o}: the loss must stay within {v} of {m}.",
)
MEASURED = (
    ["the {p} volatility is {v}", "{p} returns vary with a standard deviation of {v}", "a {p} volatility of {v}", "{p} moves of {v}", "volatility {v}, {p}", "{p} data show {v}", "{v} is the {p} standard deviation",
     "a {p} figure of {v} was measured", "{p} sigma {v}", "on a {p} basis the risk is {v}", "{p} swings of {v}", "the standard deviation of {p} changes is {v}", "{p} price changes deviate by {v}", "{v} on {p} data", "{p} fluctuations of {v}", "the {p} dispersion is {v}", "{p} variability: {v}", "measured {p}, sigma is {v}", "the estimate from {p} returns is {v}", "{p} risk of {v}"],
    ["a year has {c}", "with {c} in a year", "take {c}", "one year: {c}", "{c} make a year", "using {c}", "there are {c} per year", "assume {c}", "counting {c} to the year", "{c} in one year", "a year being {c}", "on the basis of {c}", "supposing {c} a year", "{c} annually", "a year contains {c}", "where a year means {c}", "if the year is {c} long"],
)


def _facts(r) -> Turn:
    """A described deposit, trade or measurement, and look-ups and one-step questions about it (none of the task kinds)."""
    name, kind, parts, wholes = r.choice((*WHO, r.choice(NAMES))), r.choice((0, 0, 1, 1, 1, 2)), (), ()
    if kind == 0:
        (money, amount), (rate, points), years = _money(r), _percent(r), r.randint(2, 30)
        i = r.randrange(4)
        often, every, times = list(PERIODS)[i], list(EVERY)[i], list(PERIODS.values())[i]
        told, parts, wholes = {"m": money, "v": rate, "y": years, "f": often, "t": r.choice([often, every])}, DEPOSIT, DEPOSITS
        plain = {"principal": amount, "rate": points, "periods a year": str(times), "years": str(years)}
        sums = [
            (r.choice(["How many periods are there in all?", "Count the periods.", "How many times is interest paid over the term?"]), "Periods: ", f"{times}*{years}", ""),
            (r.choice(["What is the rate of one period?", "What rate is paid each time?"]), "", f"{points}/{times}", "%"),
            (r.choice(["What is the interest of one year?", "How much interest does the first year bring without compounding?"]), "", f"{amount}*{points}/100", ""),
            (r.choice(["What is one plus the rate of a period?", "Write the growth factor of one period."]), "Factor: ", f"1+{points}/100/{times}", ""),
        ]  # fmt: skip
        reads = [
            (r.choice(["What is the deposit?", "How much is put in?", "State the principal.", "What is the principal?"]), money),
            (r.choice(["What is the rate?", "Which rate is paid?"]), rate), (r.choice(["For how many years?", "How long is the term in years?"]), years),
            (r.choice(["How often in a year is interest paid?", "How many times a year is it credited?", "Periods a year?"]), times),
        ]  # fmt: skip
    elif kind == 1:
        (money, amount), (risk, points) = _money(r), _percent(r)
        entry = r.choice([_whole(r, (2, 3)), _whole(r, (2, 3)) + 0.5, round(_whole(r, (2, 3)) + r.randrange(100) / 100, 2)])
        stop = max(0.5, r.choice([round(entry - r.randrange(1, 80) / 2, 2), round(entry * r.uniform(0.8, 0.98), 2)]))
        prices = [f"${v:,.2f}".removesuffix(".00") for v in (entry, stop)]
        told, parts, wholes = {"m": money, "v": risk, "i": prices[0], "o": prices[1]}, TRADE, TRADES
        plain = {"account": amount, "risk": points} | dict(zip(("entry", "stop"), (price.lstrip("$").replace(",", "") for price in prices)))
        shares = r.randint(2, 90)
        sums = [
            (r.choice(["How far is the stop below the entry?", "What is the distance from entry to stop?", "How much is lost on one share at the stop?"]), "Per share: ", f"{plain['entry']}-{plain['stop']}", ""),
            (r.choice(["How much money may be lost?", "What is the risk in money?", "How much is at risk?"]), "At risk: ", f"{amount}*{points}/100", ""),
            (f"What do {shares} shares cost?", "", f"{shares}*{plain['entry']}", ""), (f"What do {shares} shares bring at the stop?", "", f"{shares}*{plain['stop']}", ""),
        ]  # fmt: skip
        reads = [
            (r.choice(["What is the entry?", "At which price is it bought?", "State the purchase price."]), prices[0]), (r.choice(["Where is the stop?", "At which price is it sold?", "State the stop."]), prices[1]),
            (r.choice(["How big is the account?", "State the capital."]), money), (r.choice(["What share may be lost?", "State the risk in percent."]), risk),
        ]  # fmt: skip
    else:
        (v, points), period = _percent(r), r.choice(list(CALENDAR))
        calendar = CALENDAR[period] if r.random() < 0.7 else f"{r.randint(200, 365)} {r.choice(['trading days', 'days'])}"
        days = calendar.split()[0]
        told, parts, plain = {"p": period, "v": v, "c": calendar}, MEASURED, {"volatility": points, "periods a year": days}
        number = r.randint(2, 90)
        number += str(number) == days  # the root of the year's own periods is a task
        sums = [
            (r.choice(["What is the square root of the number of periods in a year?", "Take the root of the periods of a year."]), "", f"sqrt({days})", ""),
            (f"Multiply the volatility by {number}.", "", f"{points}*{number}", ""), (f"Multiply the volatility by the square root of {number}.", "", f"{points}*sqrt({number})", ""),
        ]  # fmt: skip
        reads = [
            (r.choice(["What is the volatility?", "How large is the standard deviation?", "Which figure was measured?"]), v), (r.choice(["Is it daily, weekly or monthly?", "Which period is used?"]), _sentence(period)),
            (r.choice(["How many periods has the year?", "What is the number of periods in a year?"]), days),
        ]  # fmt: skip
    if wholes and r.random() < 0.5:
        text = _sentence(r.choice(wholes).format(n=name, **told))
    else:
        text = _joined(r, r.sample([r.choice(ways).format(n=name, **told) for ways in parts], len(parts)))
    ask, lead, expression, unit = r.choice(sums)
    sum_ask = (ask, f"{lead}{mark(expression)}{'.' if lead else ''}\n#### {show(calculate(expression))}{unit}")
    wanted = r.sample(list(plain), r.randint(2, len(plain)))
    listed = (r.choice(["Write {w}.", "List {w}.", "State {w}.", "Give {w}.", "What are {w}?"]).format(w=", ".join(wanted[:-1]) + " and " + wanted[-1]), ", ".join(f"{key} {plain[key]}" for key in wanted) + ".")
    read = [(ask, f"#### {value}") for ask, value in r.sample(reads, 2)]
    asks = r.choice([[sum_ask], [sum_ask], [listed], [listed], [read[0]], [listed, sum_ask], [listed, sum_ask], [sum_ask, read[0]], read, [*read, sum_ask]])
    return _asked(r, text, asks, 0.8)


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
        "Worth at each quarter: {s}.", "The curve went {s}.", "A strategy stood at {s}.", "{s}: so moved the price.", "Month-end balances are {s}.", "Over {c} days the index closed at {s}.",
        "A stock went through {s}.", "The record reads {s}, in time order.", "{c} values, {s}, are on file.", "The unit price moved as follows: {s}.", "At successive dates it was worth {s}.", "Year by year: {s}.",
        "Hi, my account went {s}.", "Levels {s}.", "Let the wealth be {s}.", "The balances, in order, come to {s}.", "Wealth over {c} quarters was {s}.", "One price a week: {s}.", "As time passed it was valued at {s}.",
        "Its worth developed like this: {s}.", "Quotes: {s}.", "The chart shows {s}.", "From start to end: {s}.", "Track record: {s}.", "Observed values, in sequence: {s}.", "The fund's history is {s}.", "It began at {v} and went on: {s}.",
    ]).format(s=shown, c=len(plain), v=plain[0])  # fmt: skip
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
        function = r.choice(["max", "min", "+", "both", "both", "both"])
        channel, factor = r.choice(["total", "largest", "largest"]), r.randrange(2, 100)
        of = r.choice([f"{factor}*({{p}}-{plain[0]})", f"100*({{p}}/{_plain(r, (2, 4))})", f"{factor}*({{s}}+{{p}})", f"({{s}}+{{p}})/{factor}", f"({{p}}-{factor})/{plain[0]}"])
        ask = {"max": r.choice(["Write the running maximum.", "Give the peak so far at each step.", "Follow the highest value so far.", "What was the running peak?"]),
               "min": r.choice(["Write the running minimum.", "Follow the lowest value so far."]), "+": r.choice(["Write the running total.", "Add them up step by step."]),
               "both": r.choice(["Write the running peak and the running total.", "At each step, the highest so far and the sum so far."]) if channel == "total" else
                       r.choice(["With p the value, follow the peak and the largest {o}.", "At each value p: the peak so far, and the largest {o} so far."]).format(o=of.format(p="p", s="peak"))}[function]  # fmt: skip
        state, second, lines = plain[0], plain[0] if channel == "total" else "0", []
        for p in plain[1:]:
            expression = f"{state}+{p}" if function == "+" else f"{'max' if function == 'both' else function}({state},{p})"
            lines.append(f"{p}: " * (function == "both") + (mark(expression) if function == "+" else f"{'low' if function == 'min' else 'peak'} {mark(expression)}"))
            state = show(calculate(expression))
            if function == "both":
                other = f"{second}+{p}" if channel == "total" else f"max({second},{of.format(p=p, s=state)})"
                second = show(calculate(other))
                lines[-1] += f", {channel} {mark(other)}"
        answer = ".\n".join(lines) + f".\n#### {second if function == 'both' else state}"
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
        (f"max({c},100*({b}/{a}))", f"max({c},100*({b}/{a}))"), (f"max({points},{n}*({a}-{b}))", f"max({points},{n}*({a}-{b}))"), (f"floor({a}/({b}+{c}))", f"floor({a}/({b}+{c}))"),
        (f"({a}-{points})/{n}", f"({a}-{points})/{n}"), (f"the larger of {c} and {n} times the sum of {a} and {b}", f"max({c},{n}*({a}+{b}))"), (f"{c} times the difference of {a} and {b}", f"{c}*({a}-{b})"),
        (f"how many whole shares at ${b} {money} buys", f"floor({amount}/{b})"), (f"{n} months in years", f"{n}/12"), (f"{n} years in months", f"{n}*12"), (f"{n} years in quarters", f"{n}*4"), (f"{n} years in half-years", f"{n}*2"),
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
    if kind >= 3 and r.random() < 0.85:
        pairs = {n: r.choice((_plain, lambda r: show(calculate(f"{_whole(r, (1, 4))}/{_whole(r, (1, 4))}"))))(r) for n in r.sample(NAMES, r.randint(2, 8))}
        if len(set(pairs.values())) < len(pairs):
            return _copy(r)
        n, ways = r.choice(list(pairs)), r.choice(["{k}: {v}.\n", "{k} {v}. ", "{v} for {k}, ", "{k} has {v}; "])
        text = "".join(ways.format(k=k, v=v) for k, v in pairs.items()).strip(" ,;") + "\n"
        if r.random() < 0.5:  # in an order of the question's own
            wanted = r.sample(list(pairs), r.randint(2, len(pairs)))
            return text + r.choice(["{s}?", "What have {s}?", "Write {s}.", "In this order: {s}."]).format(s=", ".join(wanted)), "\n".join(f"{k}: {pairs[k]}." for k in wanted)
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
        kind = r.randrange(7)
        if kind == 0:
            sentences.append(r.choice(DEFINITIONS))
        elif kind == 1:
            label = r.choice(list(LABELS))
            amount, ways = LABELS[label]
            sentences.append(_sentence(r.choice(ways).format(n=r.choice(NAMES), v=amount(r)[0])) + ".")
        elif kind in (2, 6):
            sentences.append(f"{r.choice(['The words', 'Note the words', 'Some words are'])} {', '.join(r.sample(WORDS, r.randint(3, 9)))}{r.choice(['.', ' are used here.', ' appear in the report.'])}")
        else:
            text = f"{r.choice(SUBJECTS)} {r.choice(VERBS)} {r.choice(OBJECTS)}"
            text += r.choice(["", f" of {r.choice(NAMES)}", f" at {_percent(r)[0]}", f" of {_money(r)[0]}", f" for {r.randint(2, 30)} years", f" and {r.choice(OBJECTS)}"])
            sentences.append(_sentence(f"{text} {r.choice(TAILS)}." if r.random() < 0.5 else text + "."))
    return " ".join(sentences)


CHATS = ((_world, 36), (_facts, 26), (_list, 18), (_sum, 10), (_copy, 18))
PROSE_SHARE = 0.08


def documents(seed: int, stream: str = "train") -> Iterator[str | Turn]:
    """Endless documents: a str is prose, a (question, answer) pair is one chat. The same seed and stream give the same."""
    r = random.Random(f"{seed}/{stream}")
    makers, weights = zip(*CHATS)
    while True:
        yield _prose(r) if r.random() < PROSE_SHARE else r.choices(makers, weights)[0](r)


def one_step_problems(count: int, seed: int) -> list[Turn]:
    """Held-out chats of one question whose answer has exactly one mark: is the sum set up with every number right?"""
    found = []
    for document in documents(seed, "held-out"):
        if isinstance(document, tuple) and document[1].count("<<") == 1 and "#### " in document[1]:
            found.append(document)
            if len(found) == count:
                return found
