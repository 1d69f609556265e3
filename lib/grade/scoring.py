"""A completion and a typed gold -> verdict: a pure grader for quantitative answers (`reading.py` reads texts)."""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real

from lib.grade.numerals import AS_RATIO, Reading, first_number, normal, plain
from lib.grade.reading import TRUTH, labels_of, parse, readings, truth

__all__ = ["TOLERANCES", "UNITS", "Gold", "Reading", "Verdict", "grade", "parse"]
Gold = dict  # {"value": number | str | bool, "unit": one of UNITS, "decimals": digits shown, "tolerance": relative}
UNITS = ("none", "percent", "ratio", "currency", "basis points", "multiple", "count", "choice", "bool")
TOLERANCES = (0.001, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A graded completion: `value` is in the gold's unit, `within` maps relative tolerances to passes of this reading.

    `error` is None when correct, else: wrong sign, off by 100, off by a power of 1000, rounding, unit, wrong value,
    no answer, truncated or conflicting answers. `correct_lenient` also takes the last number of an unmarked text.
    """

    correct: bool
    value: float | str | bool | None
    reading: str  # "marker", "last number" or "none"
    error: str | None
    flag: str | None = None  # a conversion that an auditor should see, such as "percent as ratio"
    correct_lenient: bool = False
    within: dict[float, bool] = field(default_factory=lambda: dict.fromkeys(TOLERANCES, False))


@lru_cache(maxsize=4096, typed=True)  # typed, since True == 1 == 1.0
def _typed(value, unit, decimals, tolerance):
    """(value, unit, half a unit of the last shown digit, relative tolerance) of a gold, or a ValueError."""
    if not isinstance(value, str | Real) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"gold 'value' is {value!r}; give a number, a text or true/false")
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unknown gold unit {unit!r}; choose from {', '.join(UNITS)}")
    if decimals is not None and (type(decimals) is not int or abs(decimals) > 15):
        raise ValueError(f"gold 'decimals' is {decimals!r}; give a whole number from -15 to 15, such as 2")
    if tolerance is not None and (type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf):
        raise ValueError(f"gold 'tolerance' is {tolerance!r}; give a relative one of at least 0, such as 0.001")
    line = plain(normal(value.strip().replace("\n", ", "))) if isinstance(value, str) else ""
    if unit == "choice":
        return labels_of(line or str(value)), "choice", 0.0, 0.0
    if unit == "bool" or isinstance(value, bool) or (unit in (None, "none") and TRUTH.fullmatch(line)):
        reading = truth(line or str(value))
        if reading.error:
            raise ValueError(f"gold value {value!r} is neither true nor false, but its unit is 'bool'")
        return reading.value, "bool", 0.0, 0.0
    if isinstance(value, Real):
        mantissa, _, exponent = str(value).partition("e")
        shown = len(mantissa.partition(".")[2]) - min(0, int(exponent or 0))
        number, step = (float(value), 10.0**-shown) if abs(value) < 1e300 else (math.nan, 0.0)
    else:
        reading = first_number(line)
        if reading.error and unit in (None, "none"):
            return labels_of(line), "choice", 0.0, 0.0
        number, step, unit = reading.value, reading.step, unit or reading.unit
    if number is None or not math.isfinite(number):
        raise ValueError(f"gold value {value!r} is not a finite number, but its unit is {unit or 'none'!r}")
    if unit == "count":
        return number, "count", 0.0, 0.0
    half_step = (step if decimals is None else 10.0**-decimals) / 2
    return number, unit or "none", half_step, 0.001 if tolerance is None else tolerance


def _near(value: float, gold: float, relative: float, half_step: float) -> bool:
    """|value - gold| <= max(relative * |gold|, half_step), not undone by the last bits of binary fractions."""
    slack = 4 * math.ulp(max(abs(value), abs(gold)))
    return abs(value - gold) <= max(relative * abs(gold), half_step) * (1 + 1e-9) + slack


def _failure(value: float, step: float, gold: float, relative: float, half_step: float) -> str:
    """The class of a wrong number; `step` is one unit of the last digit that it shows."""
    if gold and value:
        if _near(-value, gold, relative, half_step):
            return "wrong sign"
        if any(_near(value * factor, gold, relative, half_step) for factor in (100.0, 0.01)):
            return "off by 100"
        if any(_near(value * 1000.0**power, gold, relative, half_step) for power in (-4, -3, -2, -1, 1, 2, 3, 4)):
            return "off by a power of 1000"
    if half_step and _near(value, gold, 0.01, step / 2):
        return "rounding"  # the right number rounded further, or 1 % away through rounded intermediate results
    return "wrong value"


def _judge(reading: Reading, target, unit: str, half_step: float, relative: float) -> Verdict:
    """Compare one reading with one typed gold."""
    value, step, shown, flag, comparable = reading.value, reading.step, reading.unit, None, True
    if reading.error:
        return Verdict(False, None, reading.reading, reading.error)
    if unit in ("choice", "bool"):
        correct = value == (", ".join(target) if unit == "choice" else target)
        error = None if correct else "wrong value"
        return Verdict(correct, value, reading.reading, error, None, correct, dict.fromkeys(TOLERANCES, correct))
    if shown not in ("none", unit):
        flag = f"{shown} as {unit}"
        if shown in AS_RATIO and unit in AS_RATIO:
            value, step = value * AS_RATIO[shown] / AS_RATIO[unit], step * AS_RATIO[shown] / AS_RATIO[unit]
        else:  # a gold without a unit is compared with the number as shown; "3 times" and "$3" can be counts
            comparable = unit == "none" or (unit == "count" and shown in ("currency", "multiple"))
            flag = None if shown == "currency" else flag
    correct = comparable and _near(value, target, relative, half_step)
    if correct:
        error = None
    elif flag and unit != "none" and _near(reading.value, target, relative, half_step) or not comparable:
        error = "unit"
    else:
        error = _failure(value, step, target, relative, half_step)
    within = {share: comparable and _near(value, target, share, half_step) for share in TOLERANCES}
    return Verdict(correct, value, reading.reading, error, flag, correct, within)


def grade(completion: str, gold: Gold | float | str | bool, finished: bool = True) -> Verdict:
    """Grade a completion against a gold row, or against a bare number, word or truth value.

    A number passes when |p - g| <= max(tolerance * |g|, half a unit of the gold's last shown digit); counts, choices
    and truth values must be equal. (An exact gold that is no count says so: 18 with tolerance 0 and decimals 6.)
    A percent sign, `bps` or `x` converts between percent, ratio, basis points and multiple golds, and is flagged; a
    bare number is taken in the gold's unit. `finished=False`: generation stopped at the token limit.

    Never raises on a completion; a gold with an unknown unit, or a value that its unit does not fit, is a ValueError.
    """
    row = gold if isinstance(gold, dict) else {"value": gold}
    try:
        typed = _typed(row.get("value"), row.get("unit"), row.get("decimals"), row.get("tolerance"))
    except TypeError:  # a list or another dictionary: the cache cannot look it up
        raise ValueError(f"gold {gold!r} holds a list or a dictionary; give numbers, texts or true/false") from None
    found = readings(completion, typed[1], typed[0] if typed[1] == "choice" else ())
    verdict, nothing = _judge(next(found), *typed), "no answer" if finished else "truncated"
    if verdict.error == "no answer":
        return Verdict(False, None, "none", nothing)
    if verdict.reading == "last number":
        return replace(Verdict(False, verdict.value, "last number", nothing), correct_lenient=verdict.correct)
    earlier = next(found, None) if verdict.error == "wrong value" else None
    if earlier and earlier.value not in (None, verdict.value):
        return replace(verdict, error="conflicting answers")  # two marked answers, and the last one is wrong
    return verdict
