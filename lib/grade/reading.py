"""A completion -> the number, choice or truth value that it answers, right or wrong.

It is read on one line, after the last marker: `####`, `Final answer:`, `The answer is`, `Answer:` (a heading too),
`A:`, `<answer>` or `\\boxed{}`, which may go over lines. A later marker whose line holds no answer and refuses none is
a remark (`the answer is rounded`), and the one before it counts; `the answer is unknown` takes an answer back. Where a
base model runs on (`#### 640 ... Answer: 1920`), the last one is its answer. A table is no one answer, and JSON
(`"answer": 640`) is no marker.

Thinking is not read: text up to the last `</think>`, and all that follows a `<think>` which nothing closes. The last
number of an unmarked text is a second reading, reported apart. No text can raise or take more than linear time.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from lib.grade.numerals import LONGEST_ANSWER, NUMBER, Reading, last_number, normal, number_of, numeral, plain, priced
from lib.grade.sentences import DIGIT, ROUNDING, first_number

# ---- truth values and choices

TRUTH = re.compile(
    r"(\b(?:not|never|cannot|\w{1,9}n['\u2019]t)\s(?:\w{1,15}\s){0,2})?\b(yes|no|true|false)\b", re.IGNORECASE
)
EITHER = re.compile(r"\s?(?:[/|&]|\bor\b|\band\b)?\s?", re.IGNORECASE)
NOUN = "fund|asset|portfolio|stock|strategy|option|choice|answer|company|investment|bond|project"
NOUNS = re.compile(rf"^(?:(?:the|{NOUN})s?\s+)+(?=\S)")
NOUNS_AFTER = re.compile(rf"(?<=\S)\s+(?:(?:{NOUN})s?|first|second|third|last)$")
NOTE = re.compile(
    r"(?<=\w)\s?\([^()]*\)|\s?[:=]\s?[-+$]*\.?\d(?:[\d.,]*[\d%])?|\b(?:because|since|with|has|which|due)\b.*"
)
COPULA = re.compile(r"\b(?:is|are)\b")
BETWEEN_LABELS = re.compile(
    r"\s?(?:[,;<>\u2192\u2265\u2264]|->|\bthen\b|\band\b|\bfollowed by\b|\s/(?=\s)|\s\d{1,2}[.)](?=\s))[\s,]*"
)
ENUMERATED = re.compile(  # "B. Fund Beta", "(B) Fund Beta", "B: Fund Beta", "B - Fund Beta"; but not "A: 1.2, B: 1.3"
    r"\W{0,3}(?:(?i:option|choice|answer)\s\(?)?([a-hA-H])(?:[.)]{1,2}\s+(?=\S)|(?::| -)\s+(?=[^\W\d_]{2}))"
    r"(?!.*\b[A-H](?:[.):]| -)\s)"
)
FENCE = re.compile(r"\s*(?:```|\\begin\b|\\end\b)")
LISTED = re.compile(r"^\s*(?:\d{1,2}[.)]\s+|[-*+\u2022]\s+)")
JUNK = " \t.:;!\"'()[]*\u201c\u201d"


def truth(line: str) -> Reading:
    """The truth value of a line: its words agree, or it opens with one (`No, there is no ...`)."""
    line = {"y": "yes", "n": "no"}.get(line.strip(JUNK).casefold(), line).lstrip(JUNK)
    matches = list(TRUTH.finditer(line))
    values = [(match[2].lower() in ("yes", "true")) != bool(match[1]) for match in matches]
    if not values:
        return Reading(None, "bool", error="no answer")
    opens = matches[0].start() == 0 and " or " not in line
    if opens and len(matches) > 1 and EITHER.fullmatch(line, matches[0].end(), matches[1].start()):
        opens = False  # "yes/no"
    if opens or len(set(values)) == 1:
        return Reading(values[0], "bool")
    return Reading(None, "bool", error="conflicting answers")


def labels_of(text: str) -> tuple[str, ...]:
    """The labels of a choice or an ordering, best first, without case, notes and generic nouns."""
    text = NOUNS.sub("", text.casefold().lstrip(JUNK))
    text = NOTE.sub("", text).strip(JUNK) or text.strip(JUNK)
    labels = []
    for part in BETWEEN_LABELS.split(text.rpartition(": ")[2]):  # "from best to worst: B, A, C"
        label = NOUNS.sub("", LISTED.sub("", part).strip(JUNK)).strip(JUNK)
        labels.append(NOUNS_AFTER.sub("", label))
    if re.search("[<\u2264]", text) and not re.search("[>\u2265]", text):
        labels.reverse()
    return tuple(filter(None, labels))


def _choice(lines: list[str], gold: tuple[str, ...]) -> Reading:
    labels: tuple[str, ...] = ()
    for line in lines:  # an ordering may stand as a list, one label a line
        if len(labels) >= max(1, len(gold)):
            break
        parts = [labels_of(part) for part in [*COPULA.split(line), line]]  # "B is best" and "the best is B"
        if letter := ENUMERATED.match(line):
            parts += [(letter[1].casefold(),), labels_of(line[letter.end() :])]
        labels += gold if gold in parts else next(filter(None, parts), ())
    if not labels:
        return Reading(None, "choice", error="no answer")
    if len(gold) == 1 < len(labels) or any(" or " in label for label in labels if label not in gold):
        return Reading(None, "choice", error="conflicting answers")
    return Reading(", ".join(labels), "choice")


# ---- markers

LONGEST_LINE = 2000  # characters of a marked text that is compared as a whole
MARKER = re.compile(
    r"(?=[#\\<ftmo]|^)(?:"  # the letters that a marker may begin with, looked at first: twice as fast
    r"#{4}|(?P<box>\\f?box(?:ed)?\s?\{)|<answer>"
    r"|(?<![a-z\d])final answer(?![a-z])[ *_]{0,6}(?:(?:\([^()\n]{0,40}\)|for [^:=.\n]{1,40})[ *_]{0,3})?"
    r"(?:[:=]|is\b|\n)"
    r"|\b(?:the|my|our) (?:correct )?answer(?: is\b| would be\b|[ *_]{0,3}[:=])"
    r"|^[ \t>*_#]{0,8}(?:(?-i:A)[ *_]{0,4}:|"
    r"(?:[-+] |\d{1,2}[.)] )?[*_]{0,3}answer[ *_]{0,4}(?:\([^()\n]{0,40}\)[ *_]{0,3})?(?:[:=]|\n)))",
    re.IGNORECASE | re.MULTILINE,
)
THINKING = re.compile(r"[<\[](/?)think(?:ing)?[>\]]", re.IGNORECASE)
REMARK = re.compile(  # goes on from "the answer is", in the same sentence
    r"(?:also |only |thus |therefore )?(?:based on|rounded|consistent|correct|reasonable|above|below"
    r"|(?:shown|given|stated|expressed|reported) (?:in|above|below))\b"
)
REFUSAL = re.compile(
    r"\b(?:n/?a|none|nan|null|unknown|undefined|unclear|unanswerable|impossible|insufficient|wrong|incorrect|invalid"
    r"|cannot|can't|not|no|nothing|neither)\b",
    re.IGNORECASE,
)
UNIT_AFTER_BOX = re.compile(
    r"[\s$]*(?:\\text\s?\{\s?)?\\?(%|(?:x|percent|pp|bps|basis points|thousand|million|billion|trillion|bn)\b)",
    re.IGNORECASE,
)


def _boxed(text: str, start: int, end: int) -> str:
    """The inside of the box that opens at start:end, with the minus before and the unit after it."""
    depth, longest = 1, min(len(text), end + LONGEST_ANSWER)
    for close in range(end, longest):
        depth += {"{": 1, "}": -1}.get(text[close], 0)
        if depth == 0:
            break
    else:  # it is never closed
        newline = text.find("\n", end, longest)
        close = longest if newline < 0 else newline
    inside = text[end:close].replace("\n", " ")
    if text[max(0, start - 3) : start].rstrip(" $").endswith("-"):
        inside = "-" + inside
    if unit := UNIT_AFTER_BOX.match(text, close + 1, close + 35):
        inside += " " + unit[1]
    return inside


def _marked(text: str, longest: int = LONGEST_ANSWER) -> Iterator[list[str]]:
    """The plain lines after each of the last markers, last first, if there are any."""
    for marker in reversed(deque(MARKER.finditer(text), maxlen=20)):
        if marker["box"]:
            lines = [_boxed(text, *marker.span())]
        else:
            first, *more = text[marker.end() : marker.end() + longest].split("\n")
            lines = [first, *(LISTED.sub("", line) for line in more if not FENCE.match(line))]  # a bullet is no minus
        lines = [line for line in map(plain, lines) if any(map(str.isalnum, line))]
        if lines:
            yield lines


def readings(completion: str, unit: str, labels: tuple[str, ...] = ()) -> Iterator[Reading]:
    """The last marked answer, then those before; without any the last number, or the last line's choice."""
    text, marked = after_thinking(normal(completion)), None
    for lines in _marked(text):
        marked = _read(lines, unit, labels)
        if not _is_remark(lines[0], marked, labels):
            yield marked
    if marked:
        yield Reading(None, unit, error="no answer")
        return
    reading = last_number(text)
    if unit in ("choice", "bool"):
        last_line = text.rstrip()[-LONGEST_ANSWER:].rpartition("\n")[2]
        reading = _read([plain(last_line)], unit, labels)
    yield replace(reading, reading="last number")


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; nothing where thinking never ends."""
    tags = deque(THINKING.finditer(text), maxlen=1)
    if not tags:
        return text
    return text[tags[0].end() :] if tags[0][1] else ""


def _is_remark(line: str, reading: Reading, labels: tuple[str, ...]) -> bool:
    """Does a line after a marker say no answer, but something about it?"""
    if REMARK.match(line):
        rounded = isinstance(reading.value, float) and line.startswith("rounded")  # to 42
        return not rounded and reading.value != ", ".join(labels)
    return reading.error == "no answer" and not DIGIT.search(ROUNDING.sub("", line)) and not REFUSAL.search(line)


def _read(lines: list[str], unit: str, labels: tuple[str, ...], opening: bool = False) -> Reading:
    if unit == "choice":
        return _choice(lines, labels)
    if unit == "bool":
        return truth(lines[0])
    if len(lines) > 1 and not DIGIT.search(lines[0]) and NUMBER.fullmatch(priced(lines[1].rstrip("."))):
        return first_number(lines[1], opening)  # "Final answer: the margin is" and a line with nothing but a number
    return first_number(lines[0], opening)


def parse(text: str, unit: str = "none") -> Reading | None:
    """What `text` answers, a number unless `unit` is "choice" or "bool"; None for nothing, or two."""
    reading = next(readings(text, unit))
    return None if reading.error else reading


def answer_line(text: str) -> str | None:
    """The plain line after the last marker, in its own characters, and None where there is no marker."""
    return next((lines[0] for lines in _marked(after_thinking(text), LONGEST_LINE)), None)


# ---- what a worked answer states, for a gold

CHOICE_LETTER = re.compile(
    r"\W{0,3}(?:(?i:the |option |choice |answer )\W?)?([A-H])\W*(?:\(.*)?"
)  # "Option B", "B (Fund 2)"
SAYS = re.compile(r"(?:yes|no|true|false)\b(?!\.?\s*\d)", re.IGNORECASE)


def stated(answer: str) -> Reading:
    """What a worked answer states at its last marker, or as a whole: a truth value that its line opens with, the letter
    of a choice, or a number that opens its line or a side of its equation (of `Kestrel, with 3 funds` it is none).

    Where there is none, `error` says what the answer holds: "only text", "a number among words", "an ambiguous
    number", "several numbers" or "no marker"."""
    if number := numeral(answer):
        return replace(number, reading="whole")
    text = after_thinking(normal(answer))
    for lines in _marked(text):
        line = lines[0]
        if SAYS.match(line.lstrip(JUNK)):
            return truth(line)
        if letter := CHOICE_LETTER.fullmatch(line) or ENUMERATED.match(line):
            return Reading(letter[1].upper(), "choice")
        reading = _read(lines, "none", (), opening=True)
        if not _is_remark(line, reading, ()):
            return replace(reading, error=reading.error and _why_none(line, reading.error))
    if not DIGIT.search(text):
        return Reading(None, error="only text")
    alone = NUMBER.fullmatch(priced(plain(text[:LONGEST_ANSWER])))
    return Reading(None, error="an ambiguous number" if alone else "no marker")


def _why_none(line: str, error: str) -> str:
    if error == "conflicting answers":
        return "several numbers"
    numbers = [number_of(match) for match in NUMBER.finditer(priced(line))]
    if not numbers:
        return "only text"
    return "a number among words" if all(numbers) else "an ambiguous number"
