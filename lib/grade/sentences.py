"""A line of text -> the one number that it answers with.

Which one, where it holds several:

- of an equation the last side that states a number (`6*7 = 42` and `42 = 6*7` both answer 42); `is`, `was`, `reached`
  and the like, and the colon after a label, are read as equals signs;
- what explains is left out: parentheses after a number, and what follows `because`, `which`, `i.e.`, `for n = 4` or
  a sentence's end;
- years, dates, spans of time (`After 4 years, ...`), ordinals and numbers of a name (`Fund 2`, `3-year`) answer only
  where nothing else does;
- of what is left the first, unless another stands beside it (`42 or 43`, `3% to 5%`): then it is no one answer;
- a sign is read as it is written: `a decrease of 5.2%` is 5.2.
"""

import re

from lib.grade.numerals import DATE, LONGEST_ANSWER, NUMBER, Reading, number_of, priced, same
from lib.grade.words import SCALES

OPERATORS = frozenset(["+", "-", "*", "x", "\u00d7", "\u00b7", "\u22c5", "/", "\u00f7", "^", ":"])
FACTORS = OPERATORS - {"x", ":"}
CONNECTED = re.compile(r"(?:\bor|\band|\bto|\bbut|[,;/+&|-]|\u00b1|^)$", re.IGNORECASE)
ALTERNATIVE = re.compile(r"\bor$", re.IGNORECASE)
DENIED = re.compile(r"\bnot$", re.IGNORECASE)
OF = re.compile(r"of(?: the| its)?", re.IGNORECASE)
LABEL = r"(?<=[a-z0-9%)]):\s"
EQUALS = re.compile(
    r"[=\u2248]|\b(?:is|are|was|were|be|been|equals?|worth|reach(?:es|ed)|total(?:s|l?ed)|amount(?:s|ed) to"
    rf"|c[oa]mes? to|stands? at|stood at|rounded (?:up |down |off )?to)\b|{LABEL}",
    re.IGNORECASE,
)
LABELLED = re.compile(rf"{LABEL}(?=[-+($\u20ac]{{0,3}}\.?\d)", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.\s|;|\b(?:because|since|namely|that is)\b|\b[ie]\.\s?[eg]\b", re.IGNORECASE)
ASIDE = re.compile(
    r"\b(?:which|where|as)\b(?! an? (?:percent|share|proportion|fraction|ratio|multiple))", re.IGNORECASE
)
GIVEN = re.compile(r"\b(?:with|for|at|when|if|assuming|using|given|from)\s[^\d=]{1,30}=", re.IGNORECASE)
ASSIGNED = re.compile(
    r"=\s?[-+($\u20ac]{0,3}\.?\d[^=,;]*(?:[,;]|\b(?:and|or)\b)\s*[a-z]\w{0,20}\s?=[^=,;]*$", re.IGNORECASE
)
ROUNDING = re.compile(  # 41.73, rounded to 2 decimals
    r"\b(?:rounded )?to (?:the nearest [a-z]+"
    r"|\w{1,9} (?:decimals?|digits?|places?|significant|sig|d\.?p)\b(?: (?:places?|digits?|figures?)\b)?)",
    re.IGNORECASE,
)
FOOTNOTE = re.compile(r"(?<=[\da-z%)])\[\^?\d{1,2}\]|(?<=[\d%)]) \[\^?\d{1,2}\]", re.IGNORECASE)
PARENTHESES = re.compile(r"\s?\((?!\s?or\b)([^()]*)(?:\)|$)", re.IGNORECASE)
DIGIT = re.compile("[0-9]")
YEAR = re.compile(r"(?:19|20)\d\d")

MONTHS = r"(?:jan|feb|mar|apr|june?|july?|aug|sept?|oct|nov|dec)(?:uary|ruary|ch|il|ust|ember|tember|ober)?"
NAME_BEFORE = re.compile(
    rf"\b(?:{MONTHS}\.?|may|year|quarter|fy|fiscal|note|table|figure|fig|item|page|section|step|part|level|tier|phase"
    r"|chapter|exhibit|fund|option|scenario|case|question|problem|month|week|day|top|round|class|series"
    r"|s&p|russell|nasdaq|ftse|nikkei|stoxx|fortune)\s$",
    re.IGNORECASE,
)
NAME_AFTER = re.compile(
    rf"-[a-z]|(?:st|nd|rd|th)\b|[qh]\d{{0,4}}\b|\s(?:of )?{MONTHS}\b|\s?[年月日期季]", re.IGNORECASE
)
SPAN_OPENS = re.compile(
    r"\W*(?:(?:after|over|within|during|for|in|by|at|the|end|of|first|past|last|next|full)\s)+", re.IGNORECASE
)
SPAN_CLOSES = re.compile(
    r"[ -]?(?:year|yr|month|week|day|quarter|hour|period)s?\b(?:[^\d,]{0,30},| ended\b)", re.IGNORECASE
)
ABOUT = re.compile(
    r"\W*(?:(?:about|approximately|approx\.?|around|roughly|nearly|almost|only|just|circa|ca\.|a total of|equal to|at"
    r"|by|to|the|it)\s+)*[-+($\u20ac~]*",
    re.IGNORECASE,
)


def first_number(line: str, opening: bool = False) -> Reading:
    """The one number that a marked line answers with; with `opening` only one that nothing but `about` and the like
    precedes in its side of an equation (as in a gold: `Kestrel, with 3 funds` is a text)."""
    line = _without_notes(priced(line[: 3 * LONGEST_ANSWER]))
    if len(LABELLED.findall(line)) > 1 or ASSIGNED.search(line):  # "rent: 5, food: 3", "x = 5, y = 3"
        return Reading(None, error="conflicting answers")
    line = line[: _end(line)]
    sides = [side for side in EQUALS.split(line) if DIGIT.search(side)]
    for named in (False, True):
        for side in reversed(sides):
            if reading := _answer(side, named, opening):
                alone = reading.error and NUMBER.fullmatch(sides[0].strip())  # "42 is the sum of 40 and 2"
                return alone and number_of(alone) or reading
    return Reading(None, error="no answer")


def _without_notes(line: str) -> str:
    """A line without footnotes, the digits it is rounded to, and parentheses that are no number of accounts."""
    if "[" in line:
        line = FOOTNOTE.sub("", line)
    if " to " in line:
        line = ROUNDING.sub("", line)
    if "(" in line:
        line = PARENTHESES.sub(_kept, PARENTHESES.sub(_kept, line))  # twice: one may stand inside another
    return line


def _kept(note: re.Match) -> str:
    """Parentheses as they stand, or nothing where they only explain."""
    line, inside = note.string, note[1].strip()
    numeral = NUMBER.fullmatch(inside)
    if inside.lower() in SCALES:
        return f" {inside}"
    before = line[: note.start()].rstrip()[-1:]
    if line[note.end() :].lstrip()[:1] in FACTORS or before in FACTORS:
        return note[0]
    if before in ("", ",", ":", "=") and NUMBER.match(inside):
        return note[0]
    if DIGIT.search(line, 0, note.start()):
        return ""
    if numeral and not YEAR.fullmatch(inside) or DIGIT.search(inside) and not DIGIT.search(line, note.end()):
        return note[0]
    return ""


def _end(line: str) -> int:
    """Where an explanation begins: after a number that answers."""
    ends = sorted([*SENTENCE_END.finditer(line), *ASIDE.finditer(line), *GIVEN.finditer(line)], key=re.Match.start)
    numbers = list(NUMBER.finditer(line)) if ends else []
    for end in ends:
        before = [number for number in numbers if number.start() < end.start()]
        if not before or before[-1].end() > end.start():  # the point of "3.2 Mio. EUR" ends nothing
            continue
        closes = end.re is SENTENCE_END and not line[before[-1].end() : end.start()].strip(" ,")
        if end.re is GIVEN and not ABOUT.fullmatch(EQUALS.split(line[: before[0].start()])[-1]):
            continue  # "the NPV at 5% for n = 4 is 35.54"
        if closes or any(not _is_name(line, number) for number in before):
            return end.start()
    return len(line)


def _is_name(side: str, match: re.Match) -> bool:
    """Does a number stand in a date, a span of time or a name, rather than for an amount?"""
    if any(match[part] for part in ("before", "inner", "after", "unit", "short", "long", "han")):
        return False  # an amount
    start, end = match.span()
    shown = match[0].strip(" ()")
    if YEAR.fullmatch(shown):
        alone = not side[:start].rstrip(" ~(") and side[end : end + 1] in ("", ",", ".", ")")
        return not alone or YEAR.search(side, end) is not None
    if NAME_BEFORE.search(side, max(0, start - 20), start) or NAME_AFTER.match(side, end) or DATE.fullmatch(shown):
        return True
    return SPAN_OPENS.fullmatch(side, 0, start) is not None and SPAN_CLOSES.match(side, end) is not None


def _answer(side: str, named: bool, opening: bool) -> Reading | None:
    """The number that one side of an equation answers with, or an error if it is ambiguous or not the only one;
    `named`: dates, spans and numbers of names may answer too."""
    matches = list(NUMBER.finditer(side))
    starts = [0, *(match.end() for match in matches)]
    gaps = [side[start : match.start()].strip() for start, match in zip(starts, matches)]
    joined = _computed(gaps, matches)
    first, chained = None, True
    for gap, match, part_of_more in zip(gaps, matches, joined):
        chained = chained and CONNECTED.search(gap)  # "12, 13 or 14", but not "12 in 2019 and 2020"
        if part_of_more or DENIED.search(gap) or not named and _is_name(side, match):
            continue
        number = number_of(match)
        if first is None:
            if number is None or opening and not ABOUT.fullmatch(side, 0, match.start()):
                return Reading(None, error="no answer")
            first, chained = number, True
        elif (chained or ALTERNATIVE.search(gap)) and not match["open"] and not (number and same(first, number)):
            return Reading(None, error="conflicting answers")
    return first


def _computed(gaps: list[str], matches: list[re.Match]) -> list[bool]:
    """Is each number part of a computation, and so no answer: joined by a sign, as 20 % of 50, or as 2 (1.05)^4?"""
    joined = [False] * (len(matches) + 1)
    for place in range(len(matches) - 1, 0, -1):
        gap, match, previous = gaps[place], matches[place], matches[place - 1]
        signed = gap == "" and (match["sign"] or match["sign_after"])
        factor = joined[place] and (gap == "" and match["open"] or gap == "(")
        if gap in OPERATORS or signed or factor or previous["unit"] and OF.fullmatch(gap):
            joined[place - 1] = joined[place] = True
    return joined[:-1]
