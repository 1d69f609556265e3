"""A line of text -> the number that it shows, in the numerals of markdown, LaTeX and accounts.

Nothing is computed (`6*7` is no number) or guessed (`1,2` is neither 12 nor 1.2), and no text can raise or take
more than linear time.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

AS_RATIO = {"ratio": 1.0, "multiple": 1.0, "percent": 1e-2, "basis points": 1e-4}
LONGEST_ANSWER = 300  # characters read after a marker, so that a line without end stays cheap


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text answers, in the `unit` shown (or "none"); `step` is one unit of its last digit."""

    value: float | str | bool | None
    unit: str = "none"
    step: float = 0.0
    error: str | None = None  # "no answer" or "conflicting answers"; value is then None
    reading: str = "marker"  # or "last number"


# ---- plain text

MINUSES = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\u2796")
SUPERSCRIPTS = re.compile("(?<=[0-9)])[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]{1,9}")


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """NFKC of one character (of a whole text it can take quadratic time)."""
    if unicodedata.category(character) == "Cf":  # zero-width and direction marks
        return ""
    folded = unicodedata.normalize("NFKC", character)
    if folded in MINUSES:
        return "-"
    if "\u2044" in folded:  # 3 and a half: "3 1/2", not "31/2"
        return " " + folded.replace("\u2044", "/")
    return folded


def normal(text: str) -> str:
    """Compatibility forms, minus signs and superscripts (after `^`) as ASCII."""
    if text.isascii():
        return text
    text = SUPERSCRIPTS.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    return text.translate({ord(character): _fold(character) for character in set(text) if character > "\x7f"})


LATEX = [
    (re.compile(r"~~[^~]*~~"), " "),  # Markdown's strike-through
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;: ]|~|\\[()\[\]]|\\q?quad\b"), " "),
    (re.compile(r"\\[dtc]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\[dtc]?frac\s?(\d)\s?(\d)"), r" \1/\2 "),
    (re.compile(r"\\color\s?\{[^{}]*\}"), " "),
    (re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it)|mbox|underline|left|right|displaystyle)(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), " x "),
    (re.compile(r"\\approx(?![a-zA-Z])"), " = "),
    (re.compile(r"\\(?:gt|succ|rightarrow|to)(?![a-zA-Z])"), " > "),
    (re.compile(r"\\\$"), "USD "),
    (re.compile(r"[\\{}]"), ""),  # other commands stay, glued to their argument: "sqrt4" is no number
]
POWER = re.compile(r"(?<=\d)\*\*(?=[-+(\d])")  # 10**3; other double stars are bold type
DASHES = re.compile("--+")  # a typewriter's dash is no minus
CURRENCIES = re.compile(
    r"(?:\b(?:US|CA|AU|HK|NZ|C|A|S))?\$|[\u00a3\u00a5\u20a0-\u20bf]|\bRs\.?(?![a-z])"
    r"|(?<![a-z])(?:USD|EUR|GBP|JPY|INR|CNY|RMB|CHF|CAD|AUD|HKD|SGD|NZD|SEK|NOK|DKK|KRW|BRL|MXN|ZAR)(?![a-z])"
    r"|\b(?:dollars?|euros?|pounds?|rupees?|yen|yuan|francs?)\b",
    re.IGNORECASE,
)


def plain(line: str) -> str:
    """A line of Markdown and LaTeX as bare text."""
    if "\\" in line or "{" in line or "~" in line:
        for pattern, replacement in LATEX:
            line = pattern.sub(replacement, line)
    line = POWER.sub("^", line).replace("**", "")
    line = DASHES.sub(" ", line)
    if line.count("$") % 2 == 0:  # pairs delimit mathematics; an escaped dollar is "USD" by now
        line = line.replace("$", "")
    return " ".join(line.replace("`", "").replace("_", " ").split()).strip("*: ")


# ---- numbers


def _digits(separator: str) -> str:
    """A pattern for 1234567, 1,234,567, 1 234 567 or 12,34,567; `separator` names its group."""
    western = rf"[1-9]\d{{0,2}}(?P<{separator}>[, '\u2019])\d{{3}}(?:(?P={separator})\d{{3}})*+"
    return rf"(?:(?:{western}|[1-9]\d?(?:,\d\d)+,\d{{3}}|\d+)(?:\.\d+)?|\.\d+)(?!\d|[.,]\d)"


WORDS = "hundred|thousands?|millions?|billions?|trillions?|lakhs?|crores?|mil|mln|mn|bn|tn"
NUMBER = re.compile(
    rf"""(?<![\w.,\u221a\u00b1])(?P<before>\$\s?)?(?P<open>\(\s?)?(?P<sign>(?:[-+]|minus\b|negative\b)\s?)?
    (?P<inner>\$\s?)?(?P<sign_after>[-+]\s?)?(?:(?P<whole>\d{{1,9}})[ ](?=\d{{1,9}}\s?/\s?\d))?
    (?P<main>{_digits("comma")})(?:\s?/\s?(?P<below>{_digits("comma_below")}))?
    (?:\s?[x*\u00d7\u00b7\u22c5]\s?10\s?\^\s?\(?(?P<power>[-+]?\d{{1,9}})\)?|e(?P<exponent>[-+]?\d{{1,9}}))?
    (?:(?:(?(before)\s?|(?(inner)\s?))|\s(?=[kmbnt]{{1,2}}\s?\$))(?P<short>k|mm?|mn|bn?|tn?)(?![a-z\d])
      |[ -]?(?P<long>{WORDS})(?![a-z]))?
    (?:\s?(?P<unit>%|(?:percent(?:age)?(?:\ points?)?|per\ cent|pct|p\.?p\.?t?s?|bps?|basis\ points?|[x\u00d7]|times)
      (?![a-z\d])))?
    (?P<after>\s?\$)?(?P<close>\s?\))?(?(close)(?:\s?(?P<outer>%|(?:{WORDS}|k|m)(?![a-z])))?)""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
SCALES = {"k": 1e3, "h": 1e2, "m": 1e6, "b": 1e9, "t": 1e12, "l": 1e5, "c": 1e7}  # by the first letter
UNIT_NAMES = {"%": "percent", "p": "percent", "b": "basis points"} | dict.fromkeys("x\u00d7t", "multiple")
OPERATORS = frozenset(["+", "-", "*", "x", "\u00d7", "\u00b7", "\u22c5", "/", "\u00f7", "^", ":"])
CONNECTED = re.compile(r"(?:\bor|\band|\bto|\bbut|[,;/+&|-]|\u00b1|^)$", re.IGNORECASE)
ALTERNATIVE = re.compile(r"\bor$", re.IGNORECASE)
DENIED = re.compile(r"\bnot$", re.IGNORECASE)
EQUALS = re.compile(r"[=\u2248]|\b(?:is|are|was|were|equals?|rounded (?:up |down |off )?to)\b", re.IGNORECASE)
ASIDE = re.compile(
    r"\.\s|;|\b(?:because|since|which|where|as)\b"
    r"|\bto (?:the nearest|\w{1,9} (?:decimals?|digits?|places?|significant|sig|d\.?p))\b",  # rounded to 2 decimals
    re.IGNORECASE,
)
LABEL = re.compile(r"[a-z][^:=]*:\s(?=[-+(]{0,2}\$?[-+(]{0,2}\.?\d[^:=]*$)", re.IGNORECASE)  # "After 5 years: 42"
DIGIT = re.compile("[0-9]")
SEPARATORS = str.maketrans("", "", ", '\u2019")


def _scale(word: str) -> float:
    word = word.lower()
    return 1e3 if word.startswith("th") else SCALES.get(word[:1], 1.0)


def _number(match: re.Match, aside: bool = False) -> Reading | None:
    """The number of a match; `aside`: parentheses, right after another number, are no accounting minus."""
    part = match.groupdict("")
    main = part["main"].translate(SEPARATORS)
    value, step = float(main), 10.0 ** -len(main.partition(".")[2])
    if part["below"]:
        below = float(part["below"].translate(SEPARATORS))
        if below == 0:
            return None
        value, step = float(part["whole"] or 0) + value / below, 0.0
    money = part["before"] or part["inner"] or part["after"]
    factor = _scale(part["outer"])
    word = part["short"] + part["long"]
    if money or word not in ("t", "T"):  # $5t are trillions, 5t are tonnes
        factor *= _scale(word)
    power = part["power"] + part["exponent"]
    factor *= float(f"1e{power or 0}")  # from text: an absurd power is infinite, not a huge integer
    value *= factor
    if not math.isfinite(value):
        return None
    signs = (part["sign"] + part["sign_after"]).lower()
    if "-" in signs or "n" in signs or (part["open"] and part["close"] and not aside):  # minus, negative
        value = -value
    unit = "none"
    if part["unit"]:
        unit = UNIT_NAMES[part["unit"][0].lower()]
    elif part["outer"] == "%":
        unit = "percent"
    elif money:
        unit = "currency"
    return Reading(value + 0.0, unit, step * factor)  # + 0.0: zero has no sign


def _same(a: Reading, b: Reading) -> bool:
    """Are two numbers the same, as rounded as the rougher: 5.2 million and 5,200,000, or 33 % and 0.33?"""
    for ratios in ({}, AS_RATIO):  # as they stand, then by their units
        scale_a, scale_b = ratios.get(a.unit, 1.0), ratios.get(b.unit, 1.0)
        value = a.value * scale_a
        rough = min(max(a.step * scale_a, b.step * scale_b) / 2, 0.05 * abs(value)) * (1 + 1e-9)
        if abs(value - b.value * scale_b) <= rough:
            return True
    return False


def first_number(line: str) -> Reading:
    """The one number that a marked line answers with."""
    line = CURRENCIES.sub("$", line)
    for aside in ASIDE.finditer(line):
        if DIGIT.search(line, 0, aside.start()):
            line = line[: aside.start()]
            break
    if label := LABEL.match(line):
        line = line[label.end() :]
    for part in reversed(EQUALS.split(line)):  # "6*7 = 42" and "42 = 6*7" both answer 42
        if reading := _answer(part):
            return reading
    return Reading(None, error="no answer")


def _answer(part: str) -> Reading | None:
    """The number that one side of an equation answers with, or an error if it names two."""
    matches = list(NUMBER.finditer(part))
    starts = [0, *(match.end() for match in matches)]
    gaps = [part[start : match.start()].strip() for start, match in zip(starts, matches)]
    joined = [False, *map(_joins, gaps[1:], matches[1:]), False]
    first, chained = None, True
    for place, (gap, match) in enumerate(zip(gaps, matches)):
        chained = chained and CONNECTED.search(gap)  # "12, 13 or 14", but not "12 in 2019 and 2020"
        if joined[place] or joined[place + 1] or DENIED.search(gap):
            continue
        number = _number(match)
        if first is None:
            first, chained = number, True
        elif number and (chained or ALTERNATIVE.search(gap)) and not match["open"] and not _same(first, number):
            return Reading(None, error="conflicting answers")
    return first


def _joins(gap: str, match: re.Match) -> bool:
    """Does a number go on with what stands before it? Then neither is an answer."""
    return gap in OPERATORS or (gap == "" and bool(match["sign"] or match["sign_after"]))


def last_number(text: str) -> Reading:
    """The last number anywhere in a text: what most public graders read."""
    end = max(map(text.rfind, "0123456789")) + 1
    start = max(text.rfind("\n", 0, end) + 1, end - LONGEST_ANSWER)
    line = CURRENCIES.sub("$", plain(text[start : end + 60].partition("\n")[0]))
    last, previous = None, 0
    for match in NUMBER.finditer(line):
        follows = last is not None and not line[previous : match.start()].strip()
        last, previous = _number(match, aside=follows) or last, match.end()
    return last or Reading(None, error="no answer")
