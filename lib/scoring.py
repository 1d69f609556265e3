"""Text -> number -> verdict: a pure grader for typed quantitative answers.

A completion is read on one line, after its last explicit marker: `####`, `Final answer:`, `The answer is`, `Answer:`,
`A:` or `\\boxed{}`. The last number of an unmarked text is a second reading, reported apart. Nothing is computed (`6*7`
is no answer) or guessed (`1,2` is neither 12 nor 1.2), and no text can raise or take more than linear time.
"""

import math
import re
import unicodedata
from collections import deque
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from numbers import Real

Gold = dict  # {"value": number | str | bool, "unit": one of UNITS, "decimals": digits shown, "tolerance": relative}
UNITS = ("none", "percent", "ratio", "currency", "basis points", "multiple", "count", "choice", "bool")
TOLERANCES = (0.001, 0.01, 0.05)
AS_RATIO = {"ratio": 1.0, "multiple": 1.0, "percent": 1e-2, "basis points": 1e-4}  # convertible, when a text says which
LONGEST_ANSWER = 300  # characters read after a marker: a line without end stays cheap, whatever it holds


@dataclass(frozen=True)
class Reading:
    """What a text answers: `value` in `unit` ("none" if none is shown); `step` is one unit of the last digit shown."""

    value: float | str | bool | None
    unit: str = "none"
    step: float = 0.0
    error: str | None = None  # "no answer" or "conflicting answers"; value is then None
    reading: str = "marker"  # or "last number"


@dataclass(frozen=True)
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


# ---- plain text

MINUSES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2212\u02d7\u2796\ufe58\ufe63\uff0d")
SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]{1,9}")


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """NFKC of one character (of a whole text it takes quadratic time on a run of combining marks)."""
    if character in MINUSES:
        return "-"
    if unicodedata.category(character) == "Cf":  # zero-width and direction marks
        return ""
    folded = unicodedata.normalize("NFKC", character)
    return " " + folded.replace("\u2044", "/") if "\u2044" in folded else folded  # 3 and a half: "3 1/2", not "31/2"


def _normal(text: str) -> str:
    """Compatibility forms, minus signs and superscripts (after `^`) as ASCII."""
    if text.isascii():
        return text
    text = SUPERSCRIPTS.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    return text.translate({ord(character): _fold(character) for character in set(text) if character > "\x7f"})


LATEX = [
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;: ]|~|\\[()\[\]]|\\q?quad\b"), " "),
    (re.compile(r"\\[dtc]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\[dtc]?frac(\d)(\d)"), r" \1/\2 "),
    (re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it)|mbox|left|right|displaystyle)(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), " x "),
    (re.compile(r"\\approx(?![a-zA-Z])"), " = "),
    (re.compile(r"\\(?:gt|succ|rightarrow|to)(?![a-zA-Z])"), " > "),
    (re.compile(r"\\\$"), "USD "),
    (re.compile(r"[\\{}]"), ""),  # other commands keep their name, glued to their argument: "sqrt4" is no number
]
POWER = re.compile(r"(?<=\d)\*\*(?=[-+(\d])")  # 10**3; other double stars are bold type
CURRENCIES = re.compile(
    r"(?:\b(?:US|CA|AU|HK|NZ|C|A|S))?\$|[\u00a3\u00a5\u20a0-\u20bf]|\bRs\.?(?![a-z])"
    r"|(?<![a-z])(?:USD|EUR|GBP|JPY|INR|CNY|RMB|CHF|CAD|AUD|HKD|SGD|NZD|SEK|NOK|DKK|KRW|BRL|MXN|ZAR)(?![a-z])"
    r"|\b(?:dollars?|euros?|pounds?|rupees?|yen|yuan|francs?)\b",
    re.IGNORECASE,
)


def _plain(line: str) -> str:
    """A line of Markdown and LaTeX as bare text in which every currency is `$`."""
    if "\\" in line or "{" in line or "~" in line:
        for pattern, replacement in LATEX:
            line = pattern.sub(replacement, line)
    if "**" in line:
        line = POWER.sub("^", line).replace("**", "")
    if line.count("$") % 2 == 0:  # pairs delimit mathematics; an escaped dollar is already spelled out
        line = line.replace("$", "")
    line = " ".join(line.replace("`", "").replace("_", " ").split())
    return CURRENCIES.sub("$", line.strip("*: "))


# ---- numbers


def _digits(separator: str) -> str:
    """A pattern for 1234567, 1,234,567, 1 234 567 or 12,34,567, with decimals; `separator` names its group."""
    western = rf"[1-9]\d{{0,2}}(?P<{separator}>[, '\u2019])\d{{3}}(?:(?P={separator})\d{{3}})*+"
    return rf"(?:(?:{western}|[1-9]\d?(?:,\d\d)+,\d{{3}}|\d+)(?:\.\d+)?|\.\d+)(?!\d|[.,]\d)"


NUMBER = re.compile(
    rf"""(?<![\w.,\u221a\u00b1])(?P<before>\$\s?)?(?P<open>\(\s?)?(?P<sign>(?:[-+]|minus\b|negative\b)\s?)?
    (?P<inner>\$\s?)?(?P<sign_after>[-+]\s?)?(?:(?P<whole>\d{{1,9}})[ ](?=\d{{1,9}}\s?/\s?\d))?
    (?P<main>{_digits("comma")})(?:\s?/\s?(?P<below>{_digits("comma_below")}))?
    (?:\s?[x*\u00d7]\s?10\s?\^\s?\(?(?P<power>[-+]?\d{{1,9}})\)?|e(?P<exponent>[-+]?\d{{1,9}}))?
    (?:(?(before)\s?|(?(inner)\s?))(?P<short>k|mm?|mn|bn?|tn)(?![a-z\d])
      |[ -]?(?P<long>thousand|million|billion|trillion|mn|bn|tn)(?![a-z]))?
    (?:\s?(?P<unit>%|(?:percent(?:age)?(?:\ points?)?|per\ cent|pct|p\.?p\.?t?s?|bps?|basis\ points?|[x\u00d7]|times)
      (?![a-z\d])))?
    (?P<after>\s?\$)?(?P<close>\s?\))?(?(close)(?:\s?(?P<outer>%|(?:thousand|million|billion|k|m|mn|bn)(?![a-z])))?)""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
SCALES = {"k": 1e3, "th": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
UNIT_NAMES = {"%": "percent", "p": "percent", "b": "basis points"} | dict.fromkeys("x\u00d7t", "multiple")
OPERATORS = frozenset(["+", "-", "*", "x", "\u00d7", "/", "\u00f7", "^", ":"])
CONNECTED = re.compile(r"(?:\bor|\band|\bto|\bbut|[,;/+&|-]|\u00b1|^)$", re.IGNORECASE)
EQUALS = re.compile(r"[=\u2248]|\b(?:is|are|was|were|equals?)\b", re.IGNORECASE)
ASIDE = re.compile(r"\.\s|;|\b(?:because|since|which|where|as)\b", re.IGNORECASE)
DIGIT = re.compile("[0-9]")


def _ungrouped(digits: str) -> float:
    return float(re.sub("[, '\u2019]", "", digits))


def _number(match: re.Match, aside: bool = False) -> Reading | None:
    """The number of one NUMBER match; `aside`: right after another number, so parentheses are no accounting minus."""
    value, factor, step = _ungrouped(match["main"]), 1.0, 10.0 ** -len(match["main"].partition(".")[2])
    if match["below"]:
        below, step = _ungrouped(match["below"]), 0.0
        if below == 0:
            return None
        value = float(match["whole"] or 0) + value / below
    for word in filter(None, (match["short"] or match["long"], match["outer"])):
        factor *= SCALES.get(word[:2].lower()) or SCALES.get(word[0].lower(), 1.0)
    power = match["power"] or match["exponent"]
    factor *= float(f"1e{power}") if power else 1.0  # from text: an absurd power is infinite, not a huge integer
    if not math.isfinite(value * factor):
        return None
    signs = ((match["sign"] or "") + (match["sign_after"] or "")).lower()
    negative = "-" in signs or "m" in signs or "n" in signs or (match["open"] and match["close"] and not aside)
    unit = (match["unit"] or ("%" if match["outer"] == "%" else "")).lower()
    money = match["before"] or match["inner"] or match["after"]
    name = UNIT_NAMES[unit[0]] if unit else "currency" if money else "none"
    return Reading((-value if negative else value) * factor + 0.0, name, step * factor)


def _first_number(line: str) -> Reading:
    """The one number that a marked line answers with."""
    for aside in ASIDE.finditer(line):
        if DIGIT.search(line, 0, aside.start()):
            line = line[: aside.start()]
            break
    for part in reversed(EQUALS.split(line)):  # "6*7 = 42" and "42 = 6*7" both answer 42
        matches = list(NUMBER.finditer(part))
        gaps = [part[left.end() : right.start()].strip() for left, right in pairwise(matches)]
        joined = [
            gap in OPERATORS or (not gap and bool(match["sign"] or match["sign_after"]))
            for gap, match in zip(gaps, matches[1:], strict=True)
        ]  # two numbers of one expression or range: neither is an answer
        kept = [place for place in range(len(matches)) if not any(joined[max(place - 1, 0) : place + 1])]
        readings = [(place, _number(matches[place])) for place in kept]
        readings = [(place, reading) for place, reading in readings if reading]
        if not readings:
            continue
        first = readings[0][1]
        for place, other in readings[1:]:
            if CONNECTED.search(gaps[place - 1]) and not matches[place]["open"] and other.value != first.value:
                return Reading(None, error="conflicting answers")
        return first
    return Reading(None, error="no answer")


def _last_number(text: str) -> Reading:
    """The last number anywhere in a text: what most public graders read."""
    end = max(map(text.rfind, "0123456789")) + 1
    start = max(text.rfind("\n", 0, end) + 1, end - LONGEST_ANSWER)
    line, last, previous = _plain(text[start : end + 60].partition("\n")[0]), None, 0
    for match in NUMBER.finditer(line):
        follows = last is not None and not line[previous : match.start()].strip()
        last, previous = _number(match, aside=follows) or last, match.end()
    return last or Reading(None, error="no answer")


# ---- truth values and choices

TRUTH = re.compile(r"\b(not\s)?(yes|no|true|false)\b", re.IGNORECASE)
NOUNS = re.compile(r"^(?:(?:the|fund|asset|portfolio|stock|strategy|option)s?\s+)+(?=\S)")
NOTE = re.compile(
    r"(?<=\w)\s?\([^()]*\)|\s?[:=]\s?[-+$]*\.?\d(?:[\d.,]*[\d%])?|\b(?:because|since|with|has|which|due)\b.*"
)
COPULA = re.compile(r"\b(?:is|are)\b")
BETWEEN_LABELS = re.compile(r"\s?(?:[,;<>\u2192]|->|\bthen\b|\band\b)[\s,]*")
LISTED = re.compile(r"^\s*(?:\d{1,2}[.)]\s+|[-*+\u2022]\s+)")
JUNK = " \t.:;\"'()[]*"


def _truth(line: str) -> Reading:
    found = [(match[2].lower() in ("yes", "true")) != bool(match[1]) for match in TRUTH.finditer(line)]
    opens = TRUTH.match(line.lstrip(JUNK)) and " or " not in line  # "No, there is no ..." and "Yes, no change"
    if found and (opens or len(set(found)) == 1):
        return Reading(found[0], "bool")
    return Reading(None, "bool", error="conflicting answers" if found else "no answer")


def _labels(text: str) -> tuple[str, ...]:
    """The labels of a choice or an ordering, best first, without case, separators, notes and generic nouns."""
    text = NOTE.sub("", NOUNS.sub("", text.casefold().lstrip(JUNK))).strip(JUNK)
    parts = BETWEEN_LABELS.split(text.rpartition(": ")[2])  # "from best to worst: B, A, C"
    labels = [NOUNS.sub("", LISTED.sub("", part).strip(JUNK)).strip(JUNK) for part in parts]
    ascending = "<" in text and ">" not in text
    return tuple(filter(None, reversed(labels) if ascending else labels))


def _choice(lines: list[str], gold: tuple[str, ...]) -> Reading:
    labels: tuple[str, ...] = ()
    for line in lines:  # an ordering may stand as a list, one label a line
        parts = [_labels(part) for part in COPULA.split(line)]  # "B is best" and "the best is B"
        labels += gold if gold in parts else next(filter(None, parts), ())
        if len(labels) >= max(1, len(gold)):
            break
    several = len(gold) == 1 and len(labels) > 1 or any(" or " in label for label in labels if label not in gold)
    if several or not labels:
        return Reading(None, "choice", error="conflicting answers" if several else "no answer")
    return Reading(", ".join(labels), "choice")


# ---- markers

MARKER = re.compile(
    r"#{4}|(?P<box>\\f?box(?:ed)?\s?\{)|\bfinal answer\b[ *_]{0,6}(?:[:=]|is\b|\n)"
    r"|\bthe (?:correct )?answer is\b|^[ \t>*_]{0,6}(?:(?-i:A)|answer)[ *_]{0,4}:",
    re.IGNORECASE | re.MULTILINE,
)
UNIT_AFTER_BOX = re.compile(r"[\s$]*\\?(%|(?:x|percent|bps|basis points|thousand|million|billion)\b)", re.IGNORECASE)


def _boxed(text: str, start: int, end: int) -> str:
    """The inside of the box that opens at start:end, with the minus before it and the unit after it."""
    depth, close = 1, end
    for close in range(end, min(len(text), end + LONGEST_ANSWER)):
        depth += (text[close] == "{") - (text[close] == "}")
        if depth == 0 or text[close] == "\n":
            break
    minus = "-" if text[max(0, start - 3) : start].rstrip(" $").endswith("-") else ""
    unit = UNIT_AFTER_BOX.match(text, close + 1, close + 25)
    return minus + text[end : close + (depth > 0)] + (" " + unit[1] if unit else "")


def _marked(text: str) -> list[list[str]]:
    """The plain lines after the last marker and the one before it, last first; markers of nothing are skipped."""
    found: list[list[str]] = []
    for marker in reversed(deque(MARKER.finditer(text), maxlen=20)):
        if marker["box"]:
            lines = [_boxed(text, *marker.span())]
        else:
            first, *more = text[marker.end() : marker.end() + LONGEST_ANSWER].split("\n")
            lines = [first, *(LISTED.sub("", line) for line in more)]  # a bullet is not a minus
        lines = [line for line in map(_plain, lines) if any(map(str.isalnum, line))]
        found += [lines] if lines else []
        if len(found) == 2:
            break
    return found


def _readings(completion: str, unit: str, labels: tuple[str, ...] = ()) -> list[Reading]:
    """The last marked answer and the one before it; without a marker the last number (or the last line's choice)."""
    text = _normal(completion)
    marked = _marked(text)
    reading = "marker" if marked else "last number"
    if unit not in ("choice", "bool"):
        found = [_first_number(lines[0]) for lines in marked] or [_last_number(text)]
    else:
        last_line = _plain(text.rstrip()[-LONGEST_ANSWER:].rpartition("\n")[2])
        found = [_choice(lines, labels) if unit == "choice" else _truth(lines[0]) for lines in marked or [[last_line]]]
    return [replace(one, reading=reading) for one in found]


def parse(text: str, unit: str = "none") -> Reading | None:
    """What `text` answers, a number unless `unit` is "choice" or "bool"; None where it answers nothing, or two."""
    reading = _readings(text, unit)[0]
    return None if reading.error else reading


# ---- verdicts


@lru_cache(maxsize=4096, typed=True)  # typed, since True == 1 == 1.0
def _typed(value, unit, decimals, tolerance):
    """(value, unit, half a unit of the last shown digit, relative tolerance) of a gold, or a ValueError."""
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unknown gold unit {unit!r}; choose from {', '.join(UNITS)}")
    line = _plain(_normal(str(value).strip().replace("\n", ", ")))
    if unit == "choice":
        return _labels(line), "choice", 0.0, 0.0
    if unit == "bool" or isinstance(value, bool) or (unit in (None, "none") and TRUTH.fullmatch(line)):
        if _truth(line).error:
            raise ValueError(f"gold value {value!r} is neither true nor false, but its unit is 'bool'")
        return _truth(line).value, "bool", 0.0, 0.0
    if isinstance(value, Real):
        mantissa, _, exponent = str(value).partition("e")
        number, shown = float(value), len(mantissa.partition(".")[2]) - min(0, int(exponent or 0))
        step = 10.0**-shown if math.isfinite(number) else math.nan
    else:
        reading = _first_number(line)
        if reading.error and unit in (None, "none"):
            return _labels(line), "choice", 0.0, 0.0
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
    typed = _typed(row["value"], row.get("unit"), row.get("decimals"), row.get("tolerance"))
    last, *earlier = _readings(completion, typed[1], typed[0] if typed[1] == "choice" else ())
    verdict, nothing = _judge(last, *typed), "no answer" if finished else "truncated"
    if verdict.error == "no answer":
        return Verdict(False, None, "none", nothing)
    if verdict.reading == "last number":
        return replace(Verdict(False, verdict.value, "last number", nothing), correct_lenient=verdict.correct)
    if verdict.error == "wrong value" and any(one.value not in (None, last.value) for one in earlier):
        return replace(verdict, error="conflicting answers")  # two marked answers, and the last one is wrong
    return verdict
