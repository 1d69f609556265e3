"""A completion and a typed gold -> verdict: a pure grader of quantitative answers."""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real

from lib.grade.numerals import AS_RATIO, NUMBER, Reading, normal, plain, priced
from lib.grade.reading import TRUTH, labels_of, parse, readings, truth
from lib.grade.sentences import first_number

__all__ = ["TOLERANCES", "UNITS", "Gold", "Reading", "Verdict", "grade", "parse"]
Gold = dict  # "value": a number, text or bool; "unit": of UNITS; "decimals": digits shown; "tolerance": relative
UNITS = ("none", "percent", "ratio", "currency", "basis points", "multiple", "count", "choice", "bool")
TOLERANCES = (0.001, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A graded completion: `value` is in the gold's unit, `within` maps relative tolerances to passes.

    `error` is None when correct, else: wrong sign, off by 100, off by a power of 1000, rounding, unit, wrong
    value, no answer, truncated or conflicting answers. `correct_lenient` takes an unmarked last number too.
    """

    correct: bool
    value: float | str | bool | None
    reading: str  # "marker", "last number" or "none"
    error: str | None
    flag: str | None = None  # a conversion that an auditor should see, such as "percent as ratio"
    correct_lenient: bool = False
    within: dict[float, bool] = field(default_factory=lambda: dict.fromkeys(TOLERANCES, False))


@dataclass(frozen=True, slots=True)
class _Target:
    """A gold, checked; `half_step` is half a unit of its last shown digit, `labels` those of a choice."""

    value: float | str | bool
    unit: str
    half_step: float = 0.0
    relative: float = 0.0
    labels: tuple[str, ...] = ()

    def near(self, value: float) -> bool:
        """|value - gold| <= max(relative * |gold|, half_step), but for the last bits of binary fractions."""
        slack = 4 * math.ulp(max(abs(value), abs(self.value)))
        allowed = max(self.relative * abs(self.value), self.half_step) * (1 + 1e-9)
        return abs(value - self.value) <= allowed + slack


@lru_cache(maxsize=4096, typed=True)  # typed, since True == 1 == 1.0
def _target(value, unit, decimals, tolerance) -> _Target:
    """A gold's fields, checked; ValueError says what they should be."""
    if not isinstance(value, str | Real) or not str(value).strip():
        raise ValueError(f"gold 'value' is {value!r}; give a number, a text or true/false")
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unknown gold unit {unit!r}; choose from {', '.join(UNITS)}")
    if decimals is not None and (type(decimals) is not int or abs(decimals) > 15):
        raise ValueError(f"gold 'decimals' is {decimals!r}; give a whole number from -15 to 15, such as 2")
    if tolerance is None:
        tolerance = 0.001
    if type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"gold 'tolerance' is {tolerance!r}; give a relative one of at least 0, such as 0.001")
    line = plain(normal(str(value).strip().replace("\n", ", ")))
    bare = unit in (None, "none")
    if unit == "choice":
        return _labels(line)
    if unit == "bool" or isinstance(value, bool) or (bare and TRUTH.fullmatch(line)):
        reading = truth(line)
        if reading.error:
            raise ValueError(f"gold value {value!r} is neither true nor false, but its unit is 'bool'")
        return _Target(reading.value, "bool")
    if isinstance(value, str):
        reading = first_number(line)
        if reading.error and NUMBER.fullmatch(priced(line)):
            raise ValueError(f"gold value {value!r} is ambiguous; give a number without separators, such as 18.5")
        if reading.error and bare:
            return _labels(line)
        number, step, unit = reading.value, reading.step, unit or reading.unit
    else:
        number, step = _shown(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"gold value {value!r} is not a finite number, but its unit is {unit or 'none'!r}")
    if unit == "count":
        return _Target(number, "count")
    if decimals is not None:
        step = 10.0**-decimals
    return _Target(number, unit or "none", step / 2, tolerance)


def _labels(line: str) -> _Target:
    labels = labels_of(line)
    return _Target(", ".join(labels), "choice", labels=labels)


def _shown(value: Real) -> tuple[float, float]:
    """A number and one unit of the last digit that Python shows of it."""
    if not abs(value) < 1e300:
        return math.nan, 0.0
    mantissa, _, exponent = str(value).partition("e")
    shown = len(mantissa.partition(".")[2]) - min(0, int(exponent or 0))
    return float(value), 10.0**-shown


def _failure(value: float, step: float, target: _Target) -> str:
    """The class of a wrong number; `step` is one unit of the last digit that it shows."""
    if target.value and value:
        if target.near(-value):
            return "wrong sign"
        if target.near(value * 100.0) or target.near(value * 0.01):
            return "off by 100"
        if any(target.near(value * 1000.0**power) for power in (-4, -3, -2, -1, 1, 2, 3, 4)):
            return "off by a power of 1000"
    if target.half_step and replace(target, relative=0.01, half_step=step / 2).near(value):
        return "rounding"  # the right number rounded further, or 1 % away through rounded steps
    return "wrong value"


def _judge(reading: Reading, target: _Target) -> Verdict:
    """One reading compared with the gold."""
    value, step, shown, unit = reading.value, reading.step, reading.unit, target.unit
    if reading.error:
        return Verdict(False, None, reading.reading, reading.error)
    if unit in ("choice", "bool"):
        if value != target.value:
            return Verdict(False, value, reading.reading, "wrong value")
        return Verdict(True, value, reading.reading, None, None, True, dict.fromkeys(TOLERANCES, True))
    flag = None
    if shown not in ("none", unit):
        if shown != "currency":
            flag = f"{shown} as {unit}"
        if shown in AS_RATIO and unit in AS_RATIO:
            value, step = (number * AS_RATIO[shown] / AS_RATIO[unit] for number in (value, step))
        elif unit != "none" and (unit != "count" or shown not in ("currency", "multiple")):
            return Verdict(False, value, reading.reading, "unit", flag)
    within = {share: replace(target, relative=share).near(value) for share in TOLERANCES}
    if target.near(value):
        return Verdict(True, value, reading.reading, None, flag, True, within)
    error = _failure(value, step, target)
    if target.near(reading.value):  # before its conversion
        error = "unit"
    return Verdict(False, value, reading.reading, error, flag, False, within)


def grade(completion: str, gold: Gold | float | str | bool, finished: bool = True) -> Verdict:
    """Grade a completion against a gold row, or against a bare number, word or truth value.

    A number passes when |p - g| <= max(tolerance * |g|, half a unit of the gold's last shown digit); counts,
    choices and truth values must be equal. (An exact gold that is no count: 18 with tolerance 0 and decimals 6.)
    A percent sign, `bps` or `x` converts between percent, ratio, basis points and multiple golds, and is flagged;
    a bare number is in the gold's unit. `finished=False`: generation stopped at the token limit.

    No completion raises; a gold with an unknown unit, or a value that its unit does not fit, is a ValueError.
    """
    if not isinstance(gold, dict):
        gold = {"value": gold}
    try:
        target = _target(gold.get("value"), gold.get("unit"), gold.get("decimals"), gold.get("tolerance"))
    except TypeError:  # a list or another dictionary: the cache cannot look it up
        raise ValueError(f"gold {gold!r} holds a list or a dictionary; give numbers, texts or true/false") from None
    answers = readings(completion, target.unit, target.labels)
    verdict = _judge(next(answers), target)
    nothing = "no answer" if finished else "truncated"
    if verdict.error == "no answer":
        return Verdict(False, None, "none", nothing)
    if verdict.reading == "last number":
        return Verdict(False, verdict.value, "last number", nothing, correct_lenient=verdict.correct)
    if verdict.error == "wrong value":
        earlier = next(answers, None)
        if earlier and earlier.value not in (None, verdict.value):
            return replace(verdict, error="conflicting answers")
    return verdict
