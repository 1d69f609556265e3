"""A line of text -> the numbers that it shows, in the numerals of markdown, LaTeX and accounts.

Nothing is computed (`6*7` is no number) or guessed, and no text can raise or take more than linear time.

A comma before three digits groups and a point is decimal, as in English: `1,234` is 1234 and `1.234` is not. Two signs
that can only be meant the other way are read so: `1.234,56`, `1 234,50`, `1.234.567`. These are ambiguous, and read as
no number:

- `1,2`, `3,5 %`, `0,123`: one comma, before other than three digits (a decimal or a list; it is not guessed at);
- `1.234 €`, `kr 1.234`: three digits after one point beside money that is written with a decimal comma, and
  `1.234 Mio.`, `1,234 Mio.` before a scale that is not English, and `1,234 %`, with its space;
- `5 mil`, `5 bln`: a scale that has two values (`words.TWO_VALUES`), `5T` without money before it (tonnes), and an
  unknown word between a number and its currency, as in `5 E Ft`;
- `12.34,5,6`, `1,23,4`: groups that no country writes; `△5`, a minus in Japanese accounts and a rise elsewhere.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from lib.grade.words import CURRENCIES, ENGLISH, HAN, HAN_UNITS, LETTER, SCALE_WORDS, SCALES, UNIT_WORDS

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
RAISED = "[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]{1,9}"
SUPERSCRIPTS = re.compile(f"(?<=[0-9)]){RAISED}")
NOTE_SIGNS = re.compile(f"(?<=[^\\W\\d_]){RAISED}|(?<=%){RAISED}")  # of a footnote


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
    text = NOTE_SIGNS.sub("", text)
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
    (re.compile(r"\\pm(?![a-zA-Z])"), " \u00b1 "),
    (re.compile(r"\\(?:gt|succ|rightarrow|to)(?![a-zA-Z])"), " > "),
    (re.compile(r"\bB?R\\\$"), "BRL "),
    (re.compile(r"(?:\b[A-Z]{1,2})?\\\$"), "USD "),
    (re.compile(r"[\\{}]"), ""),  # other commands stay, glued to their argument: "sqrt4" is no number
]
POWER = re.compile(r"(?<=\d)\*\*(?=[-+(\d])")  # 10**3; other double stars are bold type
DASHES = re.compile("--+")  # a typewriter's dash is no minus


def plain(line: str) -> str:
    """A line of Markdown and LaTeX as bare text."""
    if "\\" in line or "{" in line or "~" in line:
        for pattern, replacement in LATEX:
            line = pattern.sub(replacement, line)
    line = POWER.sub("^", line).replace("**", "")
    line = DASHES.sub(" ", line)
    if "$" in line and _delimits(line.replace("$$", "$").split("$")):
        line = line.replace("$", "")
    return " ".join(line.replace("`", "").replace("_", " ").split()).strip("*: ")


def _delimits(parts: list[str]) -> bool:
    """Do the dollars between these parts delimit mathematics? They come in pairs (an escaped one is "USD" by now), and
    no digit follows the second of a pair, by pandoc's rule: `$5, up from $3` is money."""
    return len(parts) % 2 == 1 and not any(part.lstrip()[:1].isdigit() for part in parts[2::2])


def priced(line: str) -> str:
    """Each sign, code or name of money as `$`, or as `€` where it is one of a place with a decimal comma."""
    return CURRENCIES.sub(lambda match: "€" if match["comma"] else "$", line)


# ---- numbers

RUN = r"(?:\d++(?:[.,'\u2019]\d++|(?<!\d\d\d\d)[ ]\d{3}(?!\d))*+|\.\d++)"  # whole, so that no part of it is read
HANS = "".join(HAN)
NUMBER = re.compile(
    rf"""(?<![\w.,\u221a\u00b1\u25b3\u25b2])(?P<before>[$\u20ac]\s?)?(?P<open>\(\s?)?
    (?P<sign>(?:[-+]|(?:minus|negative|moins|menos|meno)\b|[\u8d1f\u8ca0])\s?)?
    (?P<inner>[$\u20ac]\s?)?(?P<sign_after>[-+]\s?)?(?P<rate>%\s?|\u767e\u5206\u4e4b)?
    (?:(?P<whole>\d{{1,9}})[ ](?=\d{{1,9}}\s?/\s?\d))?(?P<main>{RUN})(?:\s?/\s?(?P<below>{RUN}))?
    (?:\s?[x*\u00d7\u00b7\u22c5]\s?10\s?\^\s?\(?(?P<power>[-+]?\d{{1,9}})\)?|e(?P<exponent>[-+]?\d{{1,9}}))?
    (?:(?:(?(before)\s?|(?(inner)\s?))|\s(?=(?-i:[kKMBT])(?!\.?\w)|[kmbnt]{{1,2}}\s?[$\u20ac]))
       (?P<short>k|mm?|mn|bn?|tn?)(?![{LETTER}\d])
      |[ -]?(?:de[ ])?(?P<long>(?:{SCALE_WORDS})(?:[ ](?:{SCALE_WORDS}))?)(?![{LETTER}])
       (?:\.(?=\s?(?:[$\u20ac(),]|(?-i:[a-z])|$)))?
      |\s?(?P<han>[{HANS}]{{1,3}}(?![\u5206\u514b\u7c73\u74e6])(?:\s?\d[\d,.]*+[{HANS}]{{1,3}}){{0,3}}))?
    (?:\s?(?P<unit>[%\u2030\u2031]|(?:{UNIT_WORDS})(?![{LETTER}\d])|{HAN_UNITS}))?
    (?P<behind>-(?=\s?[$\u20ac]?[\s.]?$))?(?P<after>(?:\s(?:de|di)\s|\sd'|\s?)[$\u20ac](?!\s?\.?\d))?(?P<close>\s?\))?
    (?(close)(?:\s?(?P<outer>%|(?:{SCALE_WORDS}|k|m)(?![{LETTER}])))?)""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
SHORT_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}  # by the first letter
UNIT_NAMES = {"b": "basis points", "\u2031": "basis points"} | dict.fromkeys("x\u00d7t\u500d\ubc30", "multiple")
ENGLISH_STYLE = re.compile(
    r"(?:[1-9]\d{0,2}(?P<group>[, '\u2019])\d{3}(?:(?P=group)\d{3})*+|[1-9]\d?(?:,\d\d)+,\d{3}|\d+)(?:\.\d+)?|\.\d+"
)
DATE = re.compile(r"\d\d?[./]\d\d?[./](?:\d\d){1,2}|\d\d?/(?:19|20)\d\d|(?:19|20)\d\d/\d\d")
COMMA_STYLE = re.compile(
    r"[1-9]\d{0,2}(?P<group>[. '\u2019])\d{3}(?:(?P=group)\d{3})*+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}"
)
MORE = re.compile(  # an unknown scale (5 E, 5L, 5 xyz $), or a fraction in words
    rf"\s?(?!(?:in|as|of|per|de|di|d)\b)[{LETTER}]{{1,12}}\.?\s?[$\u20ac](?!\s?[-(]?[.\d])|\s?(?-i:[B-HJ-Z])(?!\.?\w)"
    r"|\s?and an? (?:half|third|quarter)",
    re.IGNORECASE,
)
SEPARATORS = str.maketrans("", "", ", '\u2019")
COMMA_SEPARATORS = str.maketrans(",", ".", ". '\u2019")


def _decimal(digits: str, doubtful: str = "") -> tuple[float, float] | None:
    """(value, one unit of its last digit) of digits with separators, or None if they are ambiguous.

    Three digits after a single `doubtful` separator are."""
    if ENGLISH_STYLE.fullmatch(digits):
        whole, separator, after = digits.partition("." if "." in digits else ",")
        if separator and separator in doubtful and len(after) == 3 and len(whole) < 4 and whole[:1] not in ("", "0"):
            return None
        digits = digits.translate(SEPARATORS)
    elif COMMA_STYLE.fullmatch(digits):
        digits = digits.translate(COMMA_SEPARATORS)
    else:
        return None
    return float(digits), 10.0 ** -len(digits.partition(".")[2])


def number_of(match: re.Match, aside: bool = False) -> Reading | None:
    """The number of a match, or None if it is ambiguous or infinite; `aside`: parentheses, right after another number,
    are no accounting minus."""
    part = match.groupdict("")
    money = part["before"] + part["inner"] + part["after"]
    scale = (part["long"] or part["outer"].strip("%")).lower()
    shown = part["unit"].lower() or "%" * (part["outer"] == "%")
    doubtful = ""
    if set(scale.split()) - ENGLISH - SHORT_SCALES.keys():
        doubtful = ".,"
    elif "\u20ac" in money and not (scale or part["short"]):
        doubtful = "."
    elif shown == "%" and match.string[match.start("unit") - 1] == " ":
        doubtful = ","
    found, factor = _decimal(part["main"], doubtful), _factor(part, scale, money)
    if not (found and factor) or DATE.fullmatch(match[0].strip(" ()")) or MORE.match(match.string, match.end()):
        return None
    value, step = found
    if part["below"]:
        below = _decimal(part["below"])
        if not below or not below[0]:
            return None
        value, step = float(part["whole"] or 0) + value / below[0], 0.0
    value, step = value * factor, step * factor
    for digits, powers in re.findall(rf"(\d[\d,.]*)([{HANS}]+)", part["han"]):  # 1億2,000万
        more = _decimal(digits)
        if not more:
            return None
        step = math.prod(HAN[power] for power in powers)
        value += more[0] * step
    unit = "none"
    if shown == "\u2030" or "mil" in shown:
        value, step, unit = value / 10, step / 10, "percent"
    elif shown or part["rate"]:
        unit = UNIT_NAMES.get(shown[:1], "percent")
    elif money:
        unit = "currency"
    if not math.isfinite(value):
        return None
    signs = (part["sign"] + part["sign_after"] + part["behind"]).lower()
    accounting = part["open"] and part["close"] and not aside
    if signs.strip(" +") or accounting:  # a minus, or a word for it
        value = -value
    return Reading(value + 0.0, unit, step)  # + 0.0: zero has no sign


def _factor(part: dict[str, str], scale: str, money: str) -> float | None:
    """What the scale, sign or power beside a number multiplies it by, or None if that has two values."""
    short = part["short"].lower()
    factor = SCALES.get(scale) or SHORT_SCALES.get(scale)
    if not factor:  # "hundred thousand"
        words = scale.split()
        if not SCALES.keys() >= set(words):
            return None
        factor = math.prod(SCALES[word] for word in words)
    if short == "t" and not part["before"] + part["inner"]:  # 5t are tonnes, $5t trillions
        if part["short"] == "T" or money:
            return None
    elif short:
        factor *= SHORT_SCALES[short[0]]
    han = re.match(f"[{HANS}]*", part["han"])[0]
    factor *= math.prod(HAN[power] for power in han)
    power = part["power"] + part["exponent"]
    return factor * float(f"1e{power or 0}")  # from text: an absurd power is infinite, not a huge integer


def numeral(text: str) -> Reading | None:
    """The number that a text is from end to end (`$1,496.5`, `(32)`, `120 bps`, `5e-05`), else None."""
    match = len(text) <= 60 and NUMBER.fullmatch(priced(plain(normal(text))).rstrip("."))
    return number_of(match) if match else None


def last_number(text: str) -> Reading:
    """The last number anywhere in a text: what most public graders read."""
    end = max(map(text.rfind, "0123456789")) + 1
    start = max(text.rfind("\n", 0, end) + 1, end - LONGEST_ANSWER)
    line = priced(plain(text[start : end + 60].partition("\n")[0]))
    last, previous = None, 0
    for match in NUMBER.finditer(line):
        follows = previous and not line[previous : match.start()].strip()
        last, previous = number_of(match, aside=bool(follows)), match.end()
    return last or Reading(None, error="no answer")


def every_number(text: str) -> Iterator[float]:
    """All that the numerals of a text may be taken for: with what stands beside them, and without it."""
    for line in normal(text).split("\n"):
        for match in NUMBER.finditer(priced(plain(line))):
            if number := number_of(match, aside=True):
                yield number.value
            for digits in filter(None, (match["main"], match["below"])):
                if found := _decimal(digits):
                    yield found[0]


def same(a: Reading, b: Reading) -> bool:
    """Are two numbers the same, as rounded as the rougher: 5.2 million and 5,200,000, or 33 % and 0.33?"""
    for ratios in ({}, AS_RATIO):  # as they stand, then by their units
        scale_a, scale_b = ratios.get(a.unit, 1.0), ratios.get(b.unit, 1.0)
        value = a.value * scale_a
        rough = min(max(a.step * scale_a, b.step * scale_b) / 2, 0.05 * abs(value)) * (1 + 1e-9)
        if abs(value - b.value * scale_b) <= rough:
            return True
    return False
