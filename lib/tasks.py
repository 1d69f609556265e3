"""Quantitative finance problems whose gold is recomputed from the text shown.

A kind has phrasings with typed slots. A problem is drawn, written out, and then *read back* by `solve`, which sees only
the question: numbers rounded for display can so never disagree with the gold. Each kind keeps three phrasings and a
range of parameters out of training; the test split is made of those.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np

from lib.calculator import calculate, mark, show

SPLITS = {"train": 0, "validation": 1, "test": 2, "test_seen": 3}  # test: phrasings and ranges never trained on
TRAINED_PHRASINGS = 5  # of each kind's list; the rest are held out
NAMES = (
    "Alpha", "Birch", "Cedar", "Delta", "Ember", "Falcon", "Granite", "Harbor", "Iris", "Juniper", "Kestrel", "Lotus",
    "Maple", "Nova", "Orion", "Pioneer", "Quartz", "River", "Summit", "Tiger",
)  # fmt: skip
PERIODS = {"annually": 1, "semi-annually": 2, "quarterly": 4, "monthly": 12}
EVERY = {"every year": 1, "every half-year": 2, "every quarter": 4, "every month": 12}
CALENDAR = {"daily": "252 trading days", "weekly": "52 weeks", "monthly": "12 months"}


@dataclass(frozen=True)
class Problem:
    """One question with its worked answer and typed gold (see the row schema in README.md)."""

    id: str
    kind: str
    level: int  # steps of reasoning: 1 (one), 2 (two or three), 3 (more)
    template: int
    question: str
    reasoning: str
    gold: dict = field(hash=False)

    def row(self) -> dict:
        """The problem in the project's row schema; rows of one template form a group."""
        return {
            "id": self.id,
            "source": "quant_tasks",
            "kind": self.kind,
            "level": self.level,
            "messages": [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.reasoning},
            ],
            "gold": self.gold,
            "group": f"{self.kind}/{self.template}",
        }


@dataclass(frozen=True)
class Kind:
    name: str
    level: int
    phrasings: tuple[str, ...]
    draw: Callable  # (rng, unseen) -> slots, or None for a degenerate draw
    answer: Callable  # slots as read from the question -> (worked steps, final answer, gold)


def _money(value) -> str:
    return f"${value:,.2f}".removesuffix(".00")


def _percent(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


# (write, pattern, read) by type; a slot not listed is a fund's name.
_MONEY = (_money, r"\$\d+(?:,\d{3})*(?:\.\d+)?", lambda text: text.lstrip("$").replace(",", ""))
_PERCENT = (_percent, r"\d+(?:\.\d+)?%", lambda text: text.rstrip("%"))
_WORD = (str, r"(?i:[a-z-]+(?: [a-z-]+)?)", str.lower)
_COUNT = (str, r"\d+", str)
_SERIES = (lambda values: ", ".join(map(str, values)), r"(?:\d+, )+\d+", lambda text: text.split(", "))
_CALENDAR = (str, r"\d+ [a-z]+(?: [a-z]+)?", str)
_NAME = (str, r"[A-Z][a-z]+", str)
_SLOTS = {
    "principal": _MONEY, "account": _MONEY, "entry": _MONEY, "stop": _MONEY,
    "rate": _PERCENT, "risk": _PERCENT, "risk_free": _PERCENT, "volatility": _PERCENT,
    "years": _COUNT, "count": _COUNT, "series": _SERIES,
    "frequency": _WORD, "every": _WORD, "period": _WORD, "calendar": _CALENDAR,
} | {f"{what}_{who}": _PERCENT for what in ("return", "volatility") for who in "abc"}  # fmt: skip


def _write(template: str, slots: dict) -> str:
    text = re.sub(r"{(\w+)}", lambda m: _SLOTS.get(m[1], _NAME)[0](slots[m[1]]), template)
    return text[0].upper() + text[1:]


@cache
def _pattern(template: str) -> re.Pattern:
    parts, pattern = re.split(r"{(\w+)}", template), ""
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pattern += re.escape(part)
        elif f"(?P<{part}>" in pattern:
            pattern += f"(?P={part})"
        else:
            pattern += f"(?P<{part}>{_SLOTS.get(part, _NAME)[1]})"
    return re.compile(pattern)


def _pick(rng, low, high, step):
    """A multiple of `step` in [low, high], as a short decimal."""
    return round(float(low + step * rng.integers(0, round((high - low) / step) + 1)), 2)


def _number(expression: str, unit: str, decimals: int) -> tuple[str, dict]:
    """(the answer as the calculator shows it, the gold rounded to `decimals`)."""
    value = calculate(expression)
    gold = {"value": round(float(value), decimals), "unit": unit, "decimals": decimals}
    return show(value) + ("%" if unit == "percent" else ""), gold | {"tolerance": 0.0 if unit == "count" else 0.001}


def _choice(value: str) -> tuple[str, dict]:
    return value, {"value": value, "unit": "choice", "tolerance": 0.0}


# --- compounding ------------------------------------------------------------------------------------------------------
def _draw_compounding(rng, unseen):
    frequency = int(rng.integers(len(PERIODS)))
    return {
        "principal": _pick(rng, *((25_000, 95_000, 500) if unseen else (1_000, 20_000, 100))),
        "rate": _pick(rng, *((8.25, 14, 0.25) if unseen else (2, 8, 0.25))),
        "years": int(rng.integers(*((11, 21) if unseen else (2, 11)))),
        "frequency": list(PERIODS)[frequency],
        "every": list(EVERY)[frequency],
    }


def _answer_compounding(s):
    periods = PERIODS[s["frequency"]] if "frequency" in s else EVERY[s["every"]]
    count = f"{periods}*{s['years']}"
    value = f"{s['principal']}*(1+{s['rate']}/100/{periods})^{show(calculate(count))}"
    return [f"Periods: {mark(count)}.", f"Value: {mark(value)}."], *_number(value, "currency", 2)


# --- maximum drawdown -------------------------------------------------------------------------------------------------
def _draw_drawdown(rng, unseen):
    count = int(rng.integers(5, 8))
    level, values = rng.integers(*((500, 3000) if unseen else (60, 400))), []
    for _ in range(count):
        values.append(int(level))
        level = max(10, level * (1 + rng.uniform(-0.25, 0.25)))
    if all(b >= a for a, b in zip(values, values[1:])):
        return None  # never falls: a drawdown of zero is degenerate
    return {"series": values, "count": count}


def _answer_drawdown(s):
    peak, worst, steps = s["series"][0], "0", []  # both are carried from line to line
    for value in s["series"][1:]:
        highest = f"max({peak},{value})"
        peak = show(calculate(highest))
        fall = f"100*(1-{value}/{peak})"
        largest = f"max({worst},{show(calculate(fall))})"
        worst = show(calculate(largest))
        steps.append(f"{value}: peak {mark(highest)}, fall {mark(fall)}, worst {mark(largest)}.")
    return steps, *_number(worst, "percent", 2)


# --- Sharpe ratio comparison and ranking ------------------------------------------------------------------------------
def _draw_funds(rng, unseen, count):
    slots = {"risk_free": _pick(rng, *((4.25, 6, 0.25) if unseen else (1, 4, 0.25)))}
    for who, name in zip("abc"[:count], rng.permutation(len(NAMES))):
        slots[who] = NAMES[name]
        slots[f"return_{who}"] = _pick(rng, *((15.5, 30, 0.5) if unseen else (5, 15, 0.5)))
        slots[f"volatility_{who}"] = _pick(rng, *((21, 40, 1) if unseen else (5, 20, 1)))
    return slots


def _ratios(s, count, risk_free):
    over = {
        s[w]: (f"({s[f'return_{w}']}-{risk_free})" if risk_free else s[f"return_{w}"]) + f"/{s[f'volatility_{w}']}"
        for w in "abc"[:count]
    }
    return [f"{name}: {mark(text)}." for name, text in over.items()], {n: show(calculate(t)) for n, t in over.items()}


def duel(a: tuple[str, str], b: tuple[str, str], up: bool = True) -> str:
    """`Iris or Maple: <<2.04-0.47=1.57>>, Iris.` from (name, number) pairs: the sign of the difference decides."""
    difference = f"{a[1]}-{b[1]}"
    winner = a[0] if (calculate(difference) >= 0) == up else b[0]
    return f"{a[0]} or {b[0]}: {mark(difference)}, {winner}."


def _draw_sharpe(rng, unseen):
    slots = _draw_funds(rng, unseen, 2)
    a, b = ((slots[f"return_{w}"] - slots["risk_free"]) / slots[f"volatility_{w}"] for w in "ab")
    return slots if abs(a - b) >= 0.02 else None  # too close to call from rounded figures


def _answer_sharpe(s):
    steps, ratios = _ratios(s, 2, s["risk_free"])
    return [*steps, duel(*ratios.items())], *_choice(max(ratios, key=lambda name: float(ratios[name])))


def _draw_ranking(rng, unseen):
    slots = _draw_funds(rng, unseen, 3)
    ratios = sorted(slots[f"return_{w}"] / slots[f"volatility_{w}"] for w in "abc")
    return slots if min(np.diff(ratios)) >= 0.02 else None


def _answer_ranking(s):
    steps, ratios = _ratios(s, 3, None)
    steps += [duel(*pair) for pair in combinations(ratios.items(), 2)]
    return steps, *_choice(", ".join(sorted(ratios, key=lambda name: -float(ratios[name]))))


# --- volatility annualisation -----------------------------------------------------------------------------------------
def _draw_volatility(rng, unseen):
    period = list(CALENDAR)[int(rng.integers(3))]
    ranges = {"daily": ((0.3, 2), (2.01, 4)), "weekly": ((1, 4), (4.01, 8)), "monthly": ((2, 7), (7.01, 14))}
    return {
        "period": period, "calendar": CALENDAR[period], "volatility": _pick(rng, *ranges[period][unseen], 0.01)
    }  # fmt: skip


def _answer_volatility(s):
    value = f"{s['volatility']}*sqrt({s['calendar'].split()[0]})"
    return [f"Annual: {mark(value)}."], *_number(value, "percent", 2)


# --- position sizing --------------------------------------------------------------------------------------------------
def _draw_position(rng, unseen):
    entry = _pick(rng, *((120, 400, 0.5) if unseen else (10, 100, 0.5)))
    slots = {
        "account": _pick(rng, *((150_000, 900_000, 5_000) if unseen else (5_000, 100_000, 500))),
        "risk": _pick(rng, *((2.25, 4, 0.25) if unseen else (0.5, 2, 0.25))),
        "entry": entry,
        "stop": round(entry - _pick(rng, *((10.5, 40, 0.5) if unseen else (0.5, 10, 0.5))), 2),
    }
    return slots if slots["stop"] > 0 else None


def _answer_position(s):
    risk, distance = f"{s['account']}*{s['risk']}/100", f"{s['entry']}-{s['stop']}"
    shares = f"floor({show(calculate(risk))}/{show(calculate(distance))})"
    steps = [f"At risk: {mark(risk)}.", f"Per share: {mark(distance)}.", f"Shares: {mark(shares)}."]
    return steps, *_number(shares, "count", 0)


KINDS = {kind.name: kind for kind in (
    Kind("compounding", 2, (
        "You invest {principal} at {rate} a year, compounded {frequency}. How much is it worth after {years} years?",
        "A deposit of {principal} earns {rate} per year with interest added {every}. What is the balance after {years} years?",
        "An account pays {rate} annual interest, compounded {frequency}. If {principal} is put in today, what will the account hold in {years} years?",
        "What is the future value of {principal} after {years} years at an annual rate of {rate}, compounded {frequency}?",
        "Maria saves {principal} for {years} years. The bank credits interest {every} at {rate} a year. Find the final amount.",
        "Over {years} years a bond fund grows at a nominal {rate} a year with {frequency} compounding. Starting from {principal}, what is the final value?",
        "Interest of {rate} a year is credited {every} to a savings plan opened with {principal}. Compute its value at the end of {years} years.",
        "A trust places {principal} for a term of {years} years at {rate} per annum, compounded {frequency}. What sum does it receive at the end?",
    ), _draw_compounding, _answer_compounding),
    Kind("maximum drawdown", 3, (
        "A portfolio closed the last {count} months at {series}. What was its maximum drawdown in percent?",
        "Month-end values of a fund: {series}. Find the maximum drawdown as a percentage.",
        "An equity curve reads {series}. Calculate the largest peak-to-trough fall in percent.",
        "The value of an account over time was {series}. What is the worst percentage decline from a running peak?",
        "Given the index levels {series}, compute the maximum drawdown in percent.",
        "Quarter by quarter a strategy was worth {series}. By how many percent did it fall at most from an earlier high?",
        "Prices of a stock, oldest first: {series}. State the maximum drawdown in percent.",
        "Take the net asset values {series}. What is the deepest loss from a previous peak, in percent?",
    ), _draw_drawdown, _answer_drawdown),
    Kind("Sharpe comparison", 2, (
        "{a} returned {return_a} with a volatility of {volatility_a}. {b} returned {return_b} with a volatility of {volatility_b}. The risk-free rate is {risk_free}. Which has the higher Sharpe ratio?",
        "With a risk-free rate of {risk_free}, compare two funds: {a} (return {return_a}, volatility {volatility_a}) and {b} (return {return_b}, volatility {volatility_b}). Which one has the better Sharpe ratio?",
        "{a} has an expected return of {return_a} and a standard deviation of {volatility_a}; {b} has {return_b} and {volatility_b}. Cash yields {risk_free}. Which offers the higher Sharpe ratio?",
        "Treasury bills pay {risk_free}. {a} earned {return_a} at {volatility_a} volatility, {b} earned {return_b} at {volatility_b} volatility. Name the one with the higher Sharpe ratio.",
        "Which has the higher Sharpe ratio when the risk-free rate is {risk_free}: {a}, returning {return_a} with volatility {volatility_a}, or {b}, returning {return_b} with volatility {volatility_b}?",
        "An investor can hold {a} or {b}. {a} gained {return_a} and its volatility was {volatility_a}; {b} gained {return_b} and its volatility was {volatility_b}. Bills yield {risk_free}. Which choice has the larger Sharpe ratio?",
        "Annual figures: {a} return {return_a}, standard deviation {volatility_a}; {b} return {return_b}, standard deviation {volatility_b}; risk-free {risk_free}. Pick the higher Sharpe ratio.",
        "The safe rate stands at {risk_free}. At a volatility of {volatility_a}, {a} delivered {return_a}. At a volatility of {volatility_b}, {b} delivered {return_b}. Whose Sharpe ratio is higher?",
    ), _draw_sharpe, _answer_sharpe),
    Kind("volatility annualisation", 1, (
        "A stock has a {period} volatility of {volatility}. With {calendar} in a year, what is its annualised volatility?",
        "The standard deviation of {period} returns is {volatility}. Annualise it, assuming {calendar} a year.",
        "Assume {calendar} per year. What annual volatility corresponds to a {period} volatility of {volatility}?",
        "{period} returns of a fund vary with a standard deviation of {volatility}. Convert this to an annual figure using {calendar}.",
        "Annualise a {period} volatility of {volatility} (one year has {calendar}).",
        "A trader measures {volatility} {period} volatility. Taking {calendar} as one year, state the annualised volatility.",
        "If {period} price changes have a standard deviation of {volatility} and a year counts {calendar}, how large is the yearly volatility?",
        "Scale a volatility of {volatility}, observed on {period} data, to one year of {calendar}.",
    ), _draw_volatility, _answer_volatility),
    Kind("position sizing", 2, (
        "A trader with a {account} account risks {risk} per trade. Entry is at {entry} and the stop at {stop}. How many whole shares can be bought?",
        "Account size {account}, risk per trade {risk}, entry {entry}, stop-loss {stop}. What is the position size in whole shares?",
        "You may lose {risk} of {account} on one trade. You buy at {entry} with a stop-loss at {stop}. How many whole shares do you take?",
        "Buying at {entry} with a stop at {stop}, how many whole shares keep the loss within {risk} of a {account} account?",
        "A fund of {account} limits the loss of each position to {risk}. The entry price is {entry}; the stop price is {stop}. Compute the number of whole shares.",
        "The plan: enter at {entry}, exit at {stop} if wrong, and lose no more than {risk} of the {account} capital. How many whole shares is that?",
        "Capital is {account}. The stop sits at {stop}, below an entry of {entry}. If at most {risk} may be lost, what is the largest whole number of shares?",
        "With {risk} of {account} at risk, a purchase price of {entry} and a protective stop of {stop}, find the whole number of shares.",
    ), _draw_position, _answer_position),
    Kind("risk-adjusted ranking", 3, (
        "Rank by return per unit of risk, best first: {a} (return {return_a}, volatility {volatility_a}), {b} (return {return_b}, volatility {volatility_b}), {c} (return {return_c}, volatility {volatility_c}).",
        "{a} returned {return_a} with volatility {volatility_a}, {b} returned {return_b} with volatility {volatility_b} and {c} returned {return_c} with volatility {volatility_c}. Order them from the best to the worst ratio of return to volatility.",
        "Three assets: {a} with {return_a} return and {volatility_a} volatility; {b} with {return_b} return and {volatility_b} volatility; {c} with {return_c} return and {volatility_c} volatility. Rank them by risk-adjusted return from highest to lowest.",
        "Sort these by return divided by volatility, highest first. {a}: {return_a} and {volatility_a}. {b}: {return_b} and {volatility_b}. {c}: {return_c} and {volatility_c}.",
        "Expected returns are {return_a} for {a}, {return_b} for {b} and {return_c} for {c}. Their volatilities are {volatility_a}, {volatility_b} and {volatility_c}. Rank them by return-to-risk ratio, best first.",
        "A committee compares {a} (earning {return_a} at {volatility_a} risk), {b} (earning {return_b} at {volatility_b} risk) and {c} (earning {return_c} at {volatility_c} risk). List them by risk-adjusted return, the best first.",
        "Put in order of return per unit of volatility, starting with the highest: {a} at {return_a} and {volatility_a}, {b} at {return_b} and {volatility_b}, {c} at {return_c} and {volatility_c} (return, then volatility).",
        "For {a} the return is {return_a} and the volatility {volatility_a}. For {b} they are {return_b} and {volatility_b}; for {c}, {return_c} and {volatility_c}. Give the ranking by reward to risk from best to worst.",
    ), _draw_ranking, _answer_ranking),
)}  # fmt: skip


def _worked(steps: list[str], final: str, gold: dict) -> tuple[str, dict]:
    return "\n".join([*steps, f"#### {final}"]), gold


def solve(question: str) -> tuple[str, dict]:
    """(worked answer, gold) from the shown text alone. ValueError if no kind's phrasing fits."""
    for kind in KINDS.values():
        for template in kind.phrasings:
            if match := _pattern(template).fullmatch(question):
                slots = {name: _SLOTS.get(name, _NAME)[2](text) for name, text in match.groupdict().items()}
                return _worked(*kind.answer(slots))
    raise ValueError(f"no kind of task reads {question[:120]!r}")


def generate(split: str, count: int, seed: int) -> list[Problem]:
    """`count` problems, the kinds in turn. Each has its own random stream [seed, split, kind, index], so that more rows
    extend a data set and never reshuffle it. No question is given twice, and none stands in two splits, whatever the
    seeds: a hash of its text says which split it may be in."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    unseen, problems, seen = split == "test", [], set()
    for number in range(count):
        index, which = divmod(number, len(KINDS))
        kind = list(KINDS.values())[which]
        rng = np.random.default_rng([seed, SPLITS[split], which, index])
        for _ in range(1000):
            low, high = (TRAINED_PHRASINGS, len(kind.phrasings)) if unseen else (0, TRAINED_PHRASINGS)
            template, slots = int(rng.integers(low, high)), kind.draw(rng, unseen)
            question = _write(kind.phrasings[template], slots) if slots else None
            if question and question not in seen and (unseen or _split_of(question) == split):
                break
        else:
            raise ValueError(f"no {index + 1} different questions of {kind.name!r} for {split}: ask for fewer rows")
        seen.add(question)
        reasoning, gold = solve(question)
        id = f"{split}-{seed}-{kind.name.replace(' ', '_')}-{index:04d}"
        problems.append(Problem(id, kind.name, kind.level, template, question, reasoning, gold))
    return problems


def _split_of(question: str) -> str:
    """The one split that a question with a trained phrasing may be in: eight in ten may be trained on."""
    return ("validation", "test_seen", *["train"] * 8)[zlib.crc32(question.encode()) % 10]
