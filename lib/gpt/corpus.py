"""The text that the embedded base is pretrained on: generated finance prose, copying, lists and one- and two-step sums.

It holds none of the task kinds of `lib.data.tasks` (those are for fine-tuning to teach) but every word that they use:
with tied, frozen embeddings LoRA cannot make a token that the base never saw. The phrases are in `corpus.json`.

`r` is a random.Random. Each draw from it, and their order, decides the text that data/base was trained on.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import NamedTuple

from lib.data.kinds import CALENDAR, EVERY, KINDS, NAMES, PERIODS, duel
from lib.data.tasks import generate
from lib.grade.calculator import calculate, mark, show

Turn = tuple[str, str]  # (question, answer)
PHRASES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


# --- amounts, over wide ranges and in the spellings that questions use ----------------------------
class Amount(NamedTuple):
    shown: str
    plain: str  # without signs, as a sum takes it


def _whole(r, digits=(1, 6)) -> int:
    n = r.randint(*digits)
    if r.random() < 0.7:
        return r.randrange(10 ** (n - 1), 10**n)
    return r.randrange(1, 10) * 10 ** (n - 1)


def _plain(r, digits=(1, 4)) -> str:
    value = _whole(r, digits)
    if r.random() < 0.5:
        return str(value)
    return f"{value}.{r.choice(['5', '25', '75', f'{r.randrange(1, 100):02d}'])}"


def _quotient(r) -> str:
    return show(calculate(f"{_whole(r, (1, 4))}/{_whole(r, (1, 4))}"))


def _money(r) -> Amount:
    value = r.choice([_whole(r, (1, 3)), _whole(r, (3, 6)), _whole(r, (2, 4)), 500 * r.randrange(1, 2000)])
    cents = ""
    if value < 5000 and r.random() < 0.3:
        cents = f".{r.choice(['50', '25', '75', f'{r.randrange(100):02d}'])}"
    return Amount(f"${value:,}{cents}", f"{value}{cents}")


def _percent(r) -> Amount:
    whole, half = str(r.randrange(1, 40)), f"{r.randrange(0, 40)}.5"
    value = r.choice([whole, half, f"{r.randrange(0, 20)}.{r.randrange(1, 100):02d}"])
    if "." in value:
        value = value.rstrip("0")
    return Amount(f"{value}%", value)


def _change(r) -> Amount:
    value, plain = _percent(r)
    if r.random() < 0.5:
        return Amount(f"-{value}", f"-{plain}")
    return Amount(value, plain)


def _count(r) -> Amount:
    value = str(_whole(r, (1, 3)))
    return Amount(value, value)


# --- phrases --------------------------------------------------------------------------------------
def _say(r, phrases: str, **slots) -> str:
    """One of the phrases of that name, its slots filled."""
    return r.choice(PHRASES[phrases]).format(**slots)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(parts: list[str], last: str = " and ") -> str:
    return ", ".join(parts[:-1]) + last + parts[-1]


def _joined(r, parts: list[str]) -> str:
    style = r.randrange(4)
    if style == 0:
        return " ".join(_sentence(part) + "." for part in parts)
    if style == 1:
        return _sentence("; ".join(parts)) + "."
    if style == 2 and len(parts) > 1:
        return _sentence(_listed(parts)) + "."
    return _say(r, "introductions") + "; ".join(parts) + "."


def _in_either_order(r, first: str, second: str, share: float) -> str:
    """Both texts, `first` in front in a `share` of all cases."""
    if r.random() < share:
        return f"{first} {second}"
    return f"{second} {first}"


def _asked(r, text: str, asks: list[Turn], after: float) -> Turn:
    """A text with one question or with several, whose answers follow each other."""
    questions, answers = zip(*asks)
    answer = "\n".join(answers)
    if len(asks) > 1:
        answer = answer.replace("#### ", "")
    return _in_either_order(r, text, " ".join(questions), after), answer


def _solved(expression: str, lead: str = "", unit: str = "") -> str:
    """The answer of one sum."""
    end = "." if lead else ""
    return f"{lead}{mark(expression)}{end}\n#### {show(calculate(expression))}{unit}"


# --- worlds: named things with labelled amounts, said in many ways --------------------------------
AMOUNTS = {
    **dict.fromkeys(("price", "revenue", "cost", "profit", "capital", "dividend"), _money),
    **dict.fromkeys(("return", "volatility", "fee", "yield", "growth"), _percent),
    **dict.fromkeys(("number of shares", "number of employees", "number of units"), _count),
}
WAYS = ("returned", "varied", "at_risk", "at_return")  # to say a return or a volatility in a clause
Table = dict[str, tuple[str, str]]  # name: (amount of x, amount of y)


@dataclass(kw_only=True)
class World:
    """Two to four named things with two labelled amounts each, and mostly a risk-free rate."""

    x: str
    y: str
    shown: Table
    plain: Table
    safe: Amount | None = None

    @property
    def risky(self) -> bool:  # the pair that tasks are about
        return (self.x, self.y) == ("return", "volatility")

    @property
    def has_ratio(self) -> bool:  # never return over volatility: that is a task
        return [self.x, self.y] in PHRASES["ratios"]


def _world(r) -> Turn:
    """A world and look-ups, lists, a choice, sums, an order or a ratio."""
    count, (x, y) = r.choice((2, 2, 3, 3, 3, 4)), r.choice(PHRASES["pairs"])
    amounts = {name: (AMOUNTS[x](r), AMOUNTS[y](r)) for name in r.sample(NAMES, count)}
    if any(len(set(column)) < count for column in zip(*amounts.values())):
        return _world(r)  # equal amounts would have no order
    shown = {name: (a.shown, b.shown) for name, (a, b) in amounts.items()}
    world = World(x=x, y=y, shown=shown, plain={})
    if world.risky and r.random() < 0.85:
        text = _risks_and_returns(r, shown)
    else:
        text = _pairs(r, x, y, shown)
    for name in sorted(amounts, key=text.index):  # as told, also where that was shuffled
        a, b = amounts[name]
        world.plain[name] = a.plain, b.plain
    if r.random() < 0.5:
        world.safe = _percent(r)
        text = _in_either_order(r, _say(r, "safe rates", v=world.safe.shown), text, 0.5)
    kinds = r.sample(WORLD_ASKS, r.choice((1, 1, 2, 3)))
    asks = [ask for kind in kinds if (ask := _ask_of_world(r, kind, world))]
    lines = sum(answer.count("\n") for _, answer in asks)
    if not asks or len(dict(asks)) < len(asks) or lines > 11:
        return _world(r)
    return _asked(r, text, asks, 0.7)


def _risks_and_returns(r, shown: Table) -> str:
    """What returns and volatilities are, in one of many forms."""
    x, y, clause = (r.choice(PHRASES[name]) for name in ("return", "volatility", "clauses"))
    mixed, style = r.random() < 0.2, r.random()
    if style < 0.25:
        return _respectively(r, x, y, shown)
    if style < 0.37:
        return _under_a_heading(r, x, y, shown)
    clause, parts = _with_ways(r, clause), []
    for place, (name, (a, b)) in enumerate(shown.items()):
        if mixed:
            clause = _with_ways(r, r.choice(PHRASES["clauses"]))
        form = clause
        if place and r.random() < 0.12 and clause.startswith("{n} ") and "{x}" not in clause:
            first = "a" if clause.index("{a}") < clause.index("{b}") else "b"
            form = r.choice(PHRASES[f"next pair, {first} first"])
        parts.append(form.format(n=name, x=x, y=y, a=a, b=b))
    return _joined(r, parts)


def _with_ways(r, clause: str) -> str:
    for way in WAYS:
        clause = clause.replace(f"{{{way}}}", r.choice(PHRASES[way]))
    return clause


def _respectively(r, x: str, y: str, shown: Table) -> str:
    """All returns together, and all volatilities."""
    join = r.choice([", ", ", ", "; ", " / "])
    returns, risks = zip(*shown.values())
    said = {}
    for slot, column in (("names", list(shown)), ("returns", returns), ("risks", risks)):
        said[slot] = join.join(column)
        if join == ", " and r.random() < 0.6:
            said[slot] = _listed(column)
    for slot, column in (("by_a", returns), ("by_b", risks)):
        parts = [f"{a} for {n}" if r.random() < 0.9 else f"{n} {a}" for n, a in zip(shown, column)]
        said[slot] = ", ".join(parts)
    return _sentence(_say(r, "respectively", x=x, y=y, **said)) + "."


def _under_a_heading(r, x: str, y: str, shown: Table) -> str:
    """Bare numbers, and in which order they come."""
    place, form = r.randrange(2), r.choice(PHRASES["bare pairs"])
    join = r.choice(["; ", ". ", ", ", "; "])
    body = join.join(form.format(n=name, p=pair[place], q=pair[1 - place]) for name, pair in shown.items())
    first, second = (x, y)[place], (y, x)[place]
    slots = {"first": first, "First": _sentence(first), "second": second, "body": body}
    return _say(r, "bare pairs with their heading", **slots)


def _pairs(r, x: str, y: str, shown: Table) -> str:
    """Two amounts each as a sentence or a list."""
    form, style = r.choice(PHRASES["pair forms"]), r.random()
    parts = []
    if style < 0.6:  # one form for all, labels sometimes only in a heading
        for name, (a, b) in shown.items():
            parts.append(form.format(n=name, x=x, y=y, a=a, b=b))
        text = _joined(r, parts)
        if "{x}" in form:
            return text
        return _say(r, "pairs under a heading", x=x, y=y, X=_sentence(x), text=text, bare=text[:-1])
    if style < 0.8:  # each amount in a sentence of its own
        for name, amounts in shown.items():
            for label, amount in zip((x, y), amounts):
                parts.append(r.choice(PHRASES["labels"][label]).format(n=name, v=amount))
        if r.random() < 0.3:
            r.shuffle(parts)
        return _joined(r, parts)
    for label, column in zip((x, y), zip(*shown.values())):  # all amounts of a label together
        if r.random() < 0.5:
            parts.append(_say(r, "label of names", x=label, n=", ".join(shown), v=", ".join(column)))
        else:
            by_name = ", ".join(f"{amount} for {name}" for name, amount in zip(shown, column))
            parts.append(_say(r, "label by name", x=label, p=by_name))
    return _sentence(" ".join(parts))


# --- questions about a world ----------------------------------------------------------------------
@dataclass(kw_only=True)
class Topic(World):
    """What one question is about: one of a world's labels, and some of its names."""

    place: int  # of the label in (x, y)
    label: str
    word: str  # the label as the question calls it
    name: str
    other: str
    wanted: list[str]
    called: str = ""  # what the wanted names are called in the question; nothing: each

    def say(self, r, phrases: str, **slots) -> str:
        return _say(r, phrases, l=self.word, n=self.name, x=self.x, y=self.y, c=self.called or "each", **slots)

    def say_of_wanted(self, r, phrases: str, **slots) -> str:
        return self.say(r, f"{phrases} of {'some' if self.called else 'all'}", **slots)


def _ask_of_world(r, kind, world: World) -> Turn | None:
    """One question of that kind and its answer; None where it has no sense."""
    names, place = list(world.plain), r.randrange(2)
    name, other = r.sample(names, 2)
    label = word = (world.x, world.y)[place]
    if world.risky and r.random() < 0.4:
        word = r.choice(PHRASES[label])  # asked for by another name than told
    topic = Topic(**vars(world), place=place, label=label, word=word, name=name, other=other, wanted=names)
    if kind is not _ask_amount and r.random() >= 0.35:  # some, in an order that is not the text's
        topic.wanted = r.sample(names, r.randint(2, len(names)))
        topic.called = _listed(topic.wanted, r.choice([" and ", ", ", ", then "]))
    return kind(r, topic)


def _ask_amount(r, topic: Topic) -> Turn:
    name, place = topic.name, topic.place
    ask, answer = topic.say(r, "amount"), f"#### {topic.shown[name][place]}"
    if r.random() < 0.5:
        answer = f"{name}: {topic.label} {topic.plain[name][place]}.\n{answer}"
    return ask, answer


def _ask_owner(r, topic: Topic) -> Turn:
    return topic.say(r, "owner", v=topic.shown[topic.name][topic.place]), f"#### {topic.name}"


def _ask_column(r, topic: Topic) -> Turn:
    lines = [f"{name}: {topic.plain[name][topic.place]}." for name in topic.wanted]
    return topic.say_of_wanted(r, "column"), "\n".join(lines)


def _ask_both(r, topic: Topic) -> Turn:
    """Both amounts of each, sometimes after the risk-free rate."""
    safe, step = topic.safe, 1 if r.random() < 0.7 else -1  # -1: the second label first
    first, second = (topic.x, topic.y)[::step]
    rows = [(name, *topic.plain[name][::step]) for name in topic.wanted]
    lines = [f"{name}: {first} {a}, {second} {b}" for name, a, b in rows]
    if not (safe and r.random() < 0.6):
        return topic.say_of_wanted(r, "both", a=first, b=second), ".\n".join(lines) + "."
    ask = r.choice(PHRASES["both after the safe rate"])
    if r.random() < 0.4 and AMOUNTS[first] is _percent:  # the safe rate off the first of them
        ask = ask[:-1] + r.choice(PHRASES["with the excess"])
        lines = [f"{line}, excess {mark(f'{a}-{safe.plain}')}" for line, (_, a, _) in zip(lines, rows)]
    ask = ask.format(a=first, b=second, c=topic.called or "each")
    return ask, ".\n".join([f"Risk-free: {safe.plain}", *lines]) + "."


def _ask_sum(r, topic: Topic) -> Turn:
    """A sum of one amount each of two names, which are mostly read off first."""
    words, sign = r.choice(PHRASES["sum of two"])
    ask = words.format(l=topic.word, n=topic.name, m=topic.other)
    amounts = {name: topic.plain[name][topic.place] for name in (topic.name, topic.other)}
    solution = _solved(sign.join(amounts.values()))
    if r.random() < 0.75:
        lines = [f"{name}: {topic.label} {amount}." for name, amount in amounts.items()]
        solution = "\n".join([*lines, solution])
    return ask, solution


def _ask_sums(r, topic: Topic) -> Turn:
    """Both amounts of each name in one sum."""
    words, sign = r.choice(PHRASES["sums of a pair"])
    if sign == "/" and not topic.has_ratio:
        words, sign = "{x} times {y}", "*"
    words, name = words.format(x=topic.x, y=topic.y), topic.name
    lines, values = _lines(r, topic, sign)
    if r.random() < 0.3:
        return topic.say(r, "sum of one", s=words), f"{lines[name]}\n#### {values[name]}"
    return topic.say_of_wanted(r, "sum", s=words), "\n".join(lines[name] for name in topic.wanted)


def _lines(r, world: World, sign: str) -> tuple[dict[str, str], dict[str, str]]:
    """A line a name that computes with both of its amounts, mostly read off first; and the values."""
    what = {"-": "difference", "+": "sum", "*": "product", "/": "ratio"}[sign]
    form = "{n}: {x} {a}, {y} {b}, {w} {m}." if r.random() < 0.7 else "{n}: {m}."
    lines, values = {}, {}
    for name, (a, b) in world.plain.items():
        expression = f"{a}{sign}{b}"
        lines[name] = form.format(n=name, x=world.x, y=world.y, a=a, b=b, w=what, m=mark(expression))
        values[name] = show(calculate(expression))
    return lines, values


def _ask_best(r, topic: Topic) -> Turn | None:
    """The largest, the smallest, or all in order; sometimes by a ratio, which is worked out first."""
    word, lines, single = topic.word, {}, r.random() < 0.6
    function = "min" if single and r.random() >= 0.7 else "max"
    amounts = {name: pair[topic.place] for name, pair in topic.plain.items()}
    if topic.has_ratio and r.random() < 0.6:
        word = f"{topic.x} per {topic.y}"
        lines, amounts = _lines(r, topic, "/")
        if len(set(amounts.values())) < len(amounts):
            return None
    if single:
        ask, answer = _extreme_of(r, function, word, amounts)
    elif len(amounts) > 3:
        return None
    else:
        ask = _say(r, "order", l=word)
        best_first = sorted(amounts, key=lambda name: -float(amounts[name]))
        answer = [duel(*pair) for pair in combinations(amounts.items(), 2)]
        answer.append(f"#### {', '.join(best_first)}")
    return ask, "\n".join([*lines.values(), *answer])


def _extreme_of(r, function: str, word: str, amounts: dict[str, str]) -> tuple[str, list[str]]:
    """A question for the extreme amount, or for the name that has it, and the lines of the answer."""
    extreme = r.choice(PHRASES[function])
    ask = _say(r, "extreme of names", w=extreme, l=word)
    if r.random() < 0.4:
        answer = _solved(f"{function}({','.join(amounts.values())})", f"{_sentence(extreme)}: ")
        return f"How large is the {extreme} {word}?", [answer]
    (best, *rest), lines = amounts, []
    for name in rest:  # the winner of one comparison meets the next
        lines.append(duel((best, amounts[best]), (name, amounts[name]), function == "max"))
        best = lines[-1].rsplit(" ", 1)[1].rstrip(".")
    return ask, [*lines, f"#### {best}"]


def _ask_excess(r, topic: Topic) -> Turn | None:
    """How far the first amounts are above the risk-free rate, sometimes times a number."""
    safe, name = topic.safe, topic.name
    if not safe or AMOUNTS[topic.x] is not _percent:
        return None
    factor, form = r.choice((2, 3, 5, 10, 12, 20, 100)), "{}-{}"
    if r.random() < 0.35:
        return _say(r, "safe rate"), f"#### {safe.shown}"
    ask = r.choice(PHRASES["excess"])
    if r.random() < 0.3:
        ask, form = f"{ask[:-1]} and multiply by {factor}{ask[-1]}", f"({form})*{factor}"
    sums = {key: form.format(a, safe.plain) for key, (a, _) in topic.plain.items()}
    if r.random() < 0.4:
        return ask.format(x=topic.x, c=name), _solved(sums[name], f"{name}: ")
    lines = [f"Risk-free: {safe.plain}.", *(f"{key}: {mark(sums[key])}." for key in topic.wanted)]
    return ask.format(x=topic.x, c=topic.called or "each"), "\n".join(lines)


WORLD_ASKS = (
    _ask_amount, _ask_column, _ask_both, _ask_both, _ask_sum, _ask_sums, _ask_best, _ask_excess, _ask_owner,
)  # fmt: skip


# --- one thing with several amounts: deposits, trades, measurements -------------------------------
def _facts(r) -> Turn:
    """A described deposit, trade or measurement, and look-ups and one-step questions about it (none is a task)."""
    who = r.choice((*PHRASES["who"], r.choice(NAMES)))
    name, draw = r.choice([("deposit", _deposit)] * 2 + [("trade", _trade)] * 3 + [("measurement", _measurement)])
    about, slots = PHRASES[name], draw(r) | {"n": who}
    asks = [item["ask"] if isinstance(item["ask"], str) else r.choice(item["ask"]) for item in about["sums"]]
    reads = [(r.choice(read["ask"]), f"#### {slots[read['of']]}") for read in about["reads"]]
    if about["wholes"] and r.random() < 0.5:
        text = _sentence(r.choice(about["wholes"]).format(**slots))
    else:  # in parts, each in one of many ways, in any order
        parts = [r.choice(ways).format(**slots) for ways in about["parts"]]
        text = _joined(r, r.sample(parts, len(parts)))
    ask, item = r.choice(list(zip(asks, about["sums"])))
    sum_ask = ask.format(**slots), _solved(item["expression"].format(**slots), item["lead"], item["unit"])
    numbers = {label: slots[slot] for label, slot in about["numbers"].items()}
    wanted = r.sample(list(numbers), r.randint(2, len(numbers)))
    listed = _say(r, "facts", w=_listed(wanted)), ", ".join(f"{label} {numbers[label]}" for label in wanted) + "."
    reads = r.sample(reads, 2)
    asks = r.choice([
        [sum_ask], [sum_ask], [listed], [listed], reads[:1], [listed, sum_ask], [listed, sum_ask], [sum_ask, reads[0]],
        reads, [*reads, sum_ask],
    ])  # fmt: skip
    return _asked(r, text, asks, 0.8)


def _deposit(r) -> dict:
    (money, amount), (rate, points), years = _money(r), _percent(r), r.randint(2, 30)
    often, every = r.choice(list(zip(PERIODS, EVERY)))
    return {"money": money, "amount": amount, "rate": rate, "points": points, "years": years, "often": often,
            "every": r.choice([often, every]), "times": PERIODS[often]}  # fmt: skip


def _trade(r) -> dict:
    (money, amount), (risk, points) = _money(r), _percent(r)
    whole, half = _whole(r, (2, 3)), _whole(r, (2, 3)) + 0.5
    price = r.choice([whole, half, round(_whole(r, (2, 3)) + r.randrange(100) / 100, 2)])
    below = r.choice([round(price - r.randrange(1, 80) / 2, 2), round(price * r.uniform(0.8, 0.98), 2)])
    entry, stop = (f"${value:,.2f}".removesuffix(".00") for value in (price, max(0.5, below)))
    bought, sold = (shown.lstrip("$").replace(",", "") for shown in (entry, stop))
    return {"money": money, "amount": amount, "risk": risk, "points": points, "entry": entry, "stop": stop,
            "bought": bought, "sold": sold, "shares": r.randint(2, 90)}  # fmt: skip


def _measurement(r) -> dict:
    (volatility, points), period = _percent(r), r.choice(list(CALENDAR))
    calendar = CALENDAR[period]
    if r.random() >= 0.7:
        calendar = f"{r.randint(200, 365)} {r.choice(['trading days', 'days'])}"
    periods, number = calendar.split()[0], r.randint(2, 90)
    if str(number) == periods:  # the root of the year's own periods is a task
        number += 1
    return {"volatility": volatility, "points": points, "period": period, "Period": _sentence(period),
            "calendar": calendar, "periods": periods, "number": number}  # fmt: skip


# --- lists ----------------------------------------------------------------------------------------
def _list(r) -> Turn:
    """A list of numbers: read an item, the largest, running results, item by item sums."""
    digits = r.choice([(2, 3), (3, 4), (1, 2), (3, 3), (2, 2)])
    count = r.randint(3, 8) if r.random() < 0.9 else r.randint(9, 13)
    if r.random() < 0.6:  # a walk, as prices move
        values = [r.randrange(30, 4000)]
        while len(values) < count:
            values.append(max(5, round(values[-1] * r.uniform(0.7, 1.3))))
    else:
        values = [_whole(r, digits) for _ in range(count)]
    if r.random() < 0.15:
        values = [f"{value / 10:.1f}" for value in values]
    items = [str(value) for value in values]
    text = _say(r, "series", s=", ".join(items), c=count, v=items[0])
    return _asked(r, text, [_ask_of_list(r, items)], 0.75)


def _ask_of_list(r, items: list[str]) -> Turn:
    places = ("first", "second", "third")
    match r.randrange(12):
        case 0:
            place = r.randrange(min(3, len(items)))
            return _say(r, "item", p=places[place]), f"#### {items[place]}"
        case 1:
            return _say(r, "newest"), f"#### {items[-1]}"
        case 2:
            function, words = r.choice([("max", ("largest", "highest")), ("min", ("smallest", "lowest"))])
            solution = _solved(f"{function}({','.join(items)})", f"{_sentence(words[0])}: ")
            return f"What is the {r.choice(words)} value?", solution
        case 3 | 4 | 5:
            return _running(r, items)
        case 6 | 7:  # each against one reference, item by item
            reference = _plain(r, (2, 4))
            form, ask = r.choice(PHRASES["against one"])
            join = r.choice([".\n", ". "])
            marks = [mark(form.format(p=item, o=reference)) for item in items[:5]]
            return ask.format(o=reference), join.join(marks) + "."
        case 8:
            named = dict(zip(places, items)) | {"last": items[-1]}
            a, b = r.choice(PHRASES["falls"])
            return _say(r, "fall", a=a, b=b), _solved(f"100*(1-{named[b]}/{named[a]})", "Fall ", "%")
        case 9:
            return _say(r, "total"), _solved("+".join(items))
        case 10:
            return _say(r, "same list"), ", ".join(items) + "."
        case _:
            return _say(r, "neighbours"), "\n".join(f"{a} to {b}." for a, b in pairwise(items))


def _running(r, items: list[str]) -> Turn:
    """Running results: the state is carried from mark to mark."""
    function = r.choice(["max", "min", "+", "both", "both", "both"])
    channel, factor, first = r.choice(["total", "largest", "largest"]), r.randrange(2, 100), items[0]
    form = r.choice([
        f"{factor}*({{p}}-{first})", f"100*({{p}}/{_plain(r, (2, 4))})", f"{factor}*({{s}}+{{p}})",
        f"({{s}}+{{p}})/{factor}", f"({{p}}-{factor})/{first}",
    ])  # fmt: skip
    asks = {kind: r.choice(PHRASES[f"running {kind}"]) for kind in ("max", "min", "+", channel)}
    if function == "both":
        return asks[channel].format(o=form.format(p="p", s="peak")), _peak_and(channel, form, items)
    word = {"max": "peak ", "min": "low ", "+": ""}[function]
    state, lines = first, []
    for item in items[1:]:
        expression = f"{state}+{item}" if function == "+" else f"{function}({state},{item})"
        lines.append(f"{word}{mark(expression)}.")
        state = show(calculate(expression))
    return asks[function], "\n".join([*lines, f"#### {state}"])


def _peak_and(channel: str, form: str, items: list[str]) -> str:
    """The running peak, and beside it the running total or the largest value of `form`."""
    peak, lines = items[0], []
    second = peak if channel == "total" else "0"
    for item in items[1:]:
        highest = f"max({peak},{item})"
        peak = show(calculate(highest))
        expression = f"{second}+{item}" if channel == "total" else f"max({second},{form.format(p=item, s=peak)})"
        second = show(calculate(expression))
        lines.append(f"{item}: peak {mark(highest)}, {channel} {mark(expression)}.")
    return "\n".join([*lines, f"#### {second}"])


# --- sums said in words and in symbols ------------------------------------------------------------
def _sum(r) -> Turn:
    a, b, c = _plain(r), _plain(r, (1, 3)), _plain(r, (1, 2))
    (money, amount), (rate, points), n = _money(r), _percent(r), r.randint(2, 40)
    name, other = r.sample(NAMES, 2)
    growth = f"{a}*(1+{b}/100/{n})^{n}" if float(b) < 50 else f"{a}*({b}+{n})"
    slots = dict(a=a, b=b, c=c, n=n, money=money, amount=amount, rate=rate, points=points, growth=growth,
                 few=n % 9 + 2, times=n % 12 + 2)  # fmt: skip
    words, expression = (text.format(**slots) for text in r.choice(PHRASES["sums"]))
    try:
        value = show(calculate(expression))
    except ValueError:
        return _sum(r)
    if len(value) > 14:
        return _sum(r)
    if r.random() < 0.15:
        text = f"{_say(r, 'nouns').capitalize()}s {name} and {other}: {name} {a}, {other} {b}."
        return f"{text} What is {name} minus {other}?", _solved(f"{a}-{b}")
    ask = _say(r, "sum asked", w=words)
    return ask, _solved(expression, r.choice(["", "", "", "Value: ", "It is ", f"{_sentence(words)}: "]))


# --- copying --------------------------------------------------------------------------------------
def _copy(r) -> Turn:
    """Amounts as written to plain numbers; words to the same words."""
    kind = r.randrange(6)
    if kind == 0:
        amounts = [r.choice((_money, _percent, _money, _count, _change))(r) for _ in range(r.randint(1, 5))]
        shown, plain = (", ".join(column) for column in zip(*amounts))
        return _say(r, "as plain numbers", s=shown), f"{plain}."
    if kind == 1:
        numbers = ", ".join(_plain(r) for _ in range(r.randint(2, 6)))
        return _say(r, "copy numbers", s=numbers), f"{numbers}."
    if kind == 2:
        names = ", ".join(r.sample(NAMES, r.randint(2, 6)))
        return _say(r, "copy names", s=names), f"{names}."
    if r.random() < 0.85:
        return _entries(r)
    words = ", ".join(r.sample(WORDS, r.randint(1, 6)))
    return _say(r, "copy words", s=words), words


def _entries(r) -> Turn:
    """Names with a number each: all again, some in an order of the question's own, or one."""
    entries = {name: r.choice((_plain, _quotient))(r) for name in r.sample(NAMES, r.randint(2, 8))}
    if len(set(entries.values())) < len(entries):
        return _copy(r)
    name, form = r.choice(list(entries)), r.choice(PHRASES["entries"])
    number = entries[name]
    text = "".join(form.format(k=key, v=value) for key, value in entries.items()).strip(" ,;") + "\n"
    lines = {key: f"{key}: {value}." for key, value in entries.items()}
    if r.random() < 0.5:
        wanted = r.sample(list(entries), r.randint(2, len(entries)))
        return text + _say(r, "entries of some", s=", ".join(wanted)), "\n".join(lines[key] for key in wanted)
    if r.random() < 0.4:
        return text + _say(r, "entry's name", v=number), f"#### {name}"
    if r.random() < 0.5:
        return text + _say(r, "entry's number", n=name), f"{lines[name]}\n#### {number}"
    return text + _say(r, "all entries"), "\n".join(lines.values())


# --- prose ----------------------------------------------------------------------------------------
def _words() -> list[str]:
    """Every word that the tasks use, in small letters and capitalised: the base must have met each one."""
    texts = [problem.reasoning for problem in generate("train", 180, 0, kinds=tuple(KINDS))]
    for kind in KINDS.values():
        texts += [re.sub(r"{\w+}", "", phrasing) for phrasing in kind.phrasings]
    words = re.findall(r"[A-Za-z][a-z]*(?:-[a-z]+)*", "\n".join(texts))
    forms = {word.lower() for word in words} | {word.capitalize() for word in words}
    return sorted(forms - {name.lower() for name in NAMES})


WORDS = _words()


def _prose(r) -> str:
    sentences = []
    for _ in range(r.randint(2, 6)):
        kind = r.randrange(7)
        if kind == 0:
            sentences.append(_say(r, "definitions"))
        elif kind == 1:
            label = r.choice(list(AMOUNTS))
            form = r.choice(PHRASES["labels"][label])
            sentences.append(_sentence(form.format(n=r.choice(NAMES), v=AMOUNTS[label](r).shown)) + ".")
        elif kind in (2, 6):
            lead, words = _say(r, "words"), r.sample(WORDS, r.randint(3, 9))
            sentences.append(f"{lead} {', '.join(words)}{_say(r, 'words end')}")
        else:
            text = " ".join(_say(r, name) for name in ("subjects", "verbs", "objects"))
            details = {"name": r.choice(NAMES), "rate": _percent(r).shown, "money": _money(r).shown,
                       "years": r.randint(2, 30), "object": _say(r, "objects")}  # fmt: skip
            text += _say(r, "details", **details)
            if r.random() < 0.5:
                text += f" {_say(r, 'tails')}"
            sentences.append(_sentence(f"{text}."))
    return " ".join(sentences)


CHATS = {_world: 36, _facts: 26, _list: 18, _sum: 10, _copy: 18}  # and their weights
PROSE_SHARE = 0.08


def documents(seed: int, stream: str = "train") -> Iterator[str | Turn]:
    """Endless documents, the same for the same seed and stream: prose is a str, a chat is a (question, answer) pair."""
    r = random.Random(f"{seed}/{stream}")
    while True:
        if r.random() < PROSE_SHARE:
            yield _prose(r)
        else:
            (make,) = r.choices(list(CHATS), list(CHATS.values()))
            yield make(r)


def one_step_problems(count: int, seed: int) -> list[Turn]:
    """Held-out chats of one question whose answer has exactly one mark: is the sum set up with every number right?"""
    chats = (document for document in documents(seed, "held-out") if isinstance(document, tuple))
    problems = ((question, answer) for question, answer in chats if answer.count("<<") == 1 and "#### " in answer)
    return list(islice(problems, count))
