"""One parser a data set: the fields of a record -> a row with messages, typed gold and group
(those on report pages have modules of their own)."""

import hashlib
import json
import math
import re
from collections import Counter

from lib.grade import calculator, numerals, reading
from lib.run.settings import nearest


class BadRow(ValueError):
    """A record cannot be used; the message names the field and what is wrong with it."""


# --- fields ---------------------------------------------------------------------------------------
def text_of(fields: dict, name: str, needed: bool = True) -> str:
    """A field's text without outer white space; BadRow where it is no text, or is needed and
    empty."""
    value = fields.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value.strip()):
        raise BadRow(f"field {name!r} is missing, empty or no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, or bytes that were no UTF-8
        raise BadRow(f"field {name!r} is not UTF-8 at character {error.start}: save the file as UTF-8") from None
    return value.strip()


def texts_of(fields: dict, name: str) -> list[str]:
    """The texts of a field that is a text, a list of texts, or empty."""
    value = fields.get(name)
    if not isinstance(value, list):
        return [text_of(fields, name, False)]
    return [text_of({name: part}, name, False) for part in value]


def label_of(fields: dict, name: str) -> str:
    """A field that says what a row belongs to, which is a text or a number; empty where there is none."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text_of(fields, name, False)
    return f"{number_of(fields, name):.15g}" if isinstance(value, float) else str(value)


def number_of(fields: dict, name: str) -> float:
    """A field's finite number, which may be written as text."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadRow(f"field {name!r} is missing or no number")
    try:
        number = float(str(value).replace(",", ""))
    except ValueError:
        number = math.nan
    if not abs(number) < 1e300:  # nor can larger ones be graded
        raise BadRow(f"field {name!r} is no finite number")
    return number


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


# --- rows -----------------------------------------------------------------------------------------
def typed(value: float | str | bool, unit: str, decimals: int, tolerance: float = 0.0) -> dict:
    """A gold. With tolerance 0 an answer may be off by half a unit of the last of `decimals`
    digits, and no more."""
    return {"value": value, "unit": unit, "decimals": decimals, "tolerance": tolerance}


def _whole(value: float) -> dict:
    """A grade-school gold, which is matched exactly where it is whole."""
    return {"value": value, "unit": "count" if value.is_integer() else "none"}


def decimals_of(value: float) -> int:
    """Digits that a number shows after its point."""
    digits, _, exponent = repr(float(value)).partition("e")
    return max(0, len(digits.partition(".")[2].rstrip("0")) - int(exponent or 0))


def decimals_shown(number: numerals.Reading) -> int:
    """Digits after the point that a text showed (-6: whole millions), as far as a gold can say
    it."""
    if number.step:
        decimals = -round(math.log10(number.step))
    else:
        decimals = decimals_of(number.value)
    return max(-15, min(15, decimals))


def row_of(
    source: str, kind: str, place: str, question: str, answer: str, gold: dict | None, group: str = ""
) -> dict:  # fmt: skip
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"{source}-{place}", "source": source, "kind": kind, "messages": messages, "gold": gold,
            "group": f"{source}-{group or place}"}  # fmt: skip


def gold_only(row: dict) -> dict:
    """The row without its worked answer: what follows the last marker stands in its place, by which its gold is
    known, and which SFT does not learn."""
    question, answer = row["messages"][:-1], row["messages"][-1]["content"]
    marked = f"####{answer.rpartition('####')[2]}"
    return row | {"messages": [*question, {"role": "assistant", "content": marked}], "worked": False}


def is_worked(row: dict) -> bool:
    """Has the row an answer to learn, or but a gold?"""
    return row.get("worked", True)


def joined(*parts: str) -> str:
    return "\n\n".join(filter(None, parts))


# --- word problems --------------------------------------------------------------------------------
def gsm8k(fields: dict, place: str) -> dict:
    """The worked answer keeps its <<expr=value>> marks and ends with `#### N`."""
    question, answer = text_of(fields, "question"), text_of(fields, "answer")
    marked = re.search(r"####\s*(-?\d[\d,]{0,30}(?:\.\d{1,30})?)\s*$", answer)
    if not marked:
        raise BadRow("field 'answer' does not end with '#### ' and a number")
    gold = _whole(float(marked[1].replace(",", "")))
    return row_of("gsm8k", "grade school", place, question, answer, gold)


def svamp(fields: dict, place: str) -> dict:
    """The equation is the working; a row whose equation does not give its answer is bad."""
    value, equation = number_of(fields, "answer"), re.sub(r"\.0\b|\s", "", text_of(fields, "equation"))
    try:
        result = calculator.calculate(equation)
        if not math.isclose(result, value, rel_tol=1e-9):
            raise BadRow(f"field 'equation' gives {calculator.show(result)}, not {value:g}")
    except calculator.CalculatorError as error:
        raise BadRow(f"field 'equation': {error}") from None
    answer = f"{equation} = {calculator.mark(equation)}{value:.15g}\n#### {value:.15g}"
    question = f"{text_of(fields, 'body')} {text_of(fields, 'question')}"
    return row_of("svamp", "word problem", place, question, answer, _whole(value))


# --- instructions, your own -------------------------------------------
def investopedia(fields: dict, place: str) -> dict:
    question = joined(text_of(fields, "context", False), text_of(fields, "question"))
    topic = text_of(fields, "topic")
    return row_of("investopedia", "investopedia", place, question, text_of(fields, "answer"), None, topic)


def own(fields: dict, place: str, columns: dict[str, str]) -> dict:
    """Your own rows; `columns` says which of your columns is the question, answer, gold, context and
    group.

    The gold is what the marked answer states (a number, yes or no, a choice's letter: `reading.stated`), or the whole
    answer where it is a number; else there is none. With a column of golds there is no answer to learn."""
    asked, name = columns.get("question", "question"), gold_column(columns)
    for column in (asked, name):
        if column not in fields:
            raise BadRow(f"there is no {column!r} (but {', '.join(fields)[:200]}); name yours: "
                         f"columns=question=NAME,answer=NAME{nearest(column, fields)}")  # fmt: skip
    question = text_of(fields, asked)
    if isinstance(fields[name], bool):
        answer = f"#### {'yes' if fields[name] else 'no'}"
    elif isinstance(fields[name], int | float):
        answer = f"{number_of(fields, name):.15g}"
    else:
        answer = text_of(fields, name)
    stated, gold = reading.stated(answer), None
    if stated.unit in ("bool", "choice") and not stated.error:
        gold = {"value": stated.value, "unit": stated.unit}
    elif not stated.error:
        gold = typed(stated.value, stated.unit, decimals_shown(stated))
    if stated.reading == "whole":
        answer = f"#### {answer}"
    context = joined(*texts_of(fields, columns.get("context", "context")))
    group = label_of(fields, columns.get("group", "group"))
    row = row_of("own", "own", place, joined(context, question), answer, gold, group)
    if "gold" not in columns:
        return row
    if gold is None:
        raise BadRow(f"field {name!r} is no number, nor does it end with '#### ' and one; it holds {stated.error}")
    return gold_only(row)


def golds_told(rows: list[dict]) -> str:
    """How many rows have a gold, and what the answers of the others hold instead."""
    others = Counter(reading.stated(row["messages"][-1]["content"]).error for row in rows if not row["gold"])
    told = f"{len(rows) - others.total():,} of {len(rows):,} rows have a gold"
    if others:
        told += "; others: " + ", ".join(f"{count:,} hold {why or 'an answer'}" for why, count in others.most_common())
    return told


def gold_column(columns: dict[str, str]) -> str:
    """Which of your own columns the gold is read from."""
    return columns.get("gold", columns.get("answer", "answer"))


def corpus_blocks(fields: dict, most: int) -> list[dict]:
    """A document -> blocks of whole sentences, of at most `most` characters; a longer sentence is a
    block alone."""
    blocks = [""]
    for sentence in re.split(r"(?<=[.!?])(?=\s)|(?=\n)", text_of(fields, "text")):
        if blocks[-1].strip() and len(blocks[-1]) + len(sentence) > most:
            blocks.append("")
        blocks[-1] += sentence
    return [{"text": block} for block in blocks]


def corpus(fields: dict, place: str) -> dict:
    """A block of text: its first sentence (of a single one: five words) is given, the rest is
    learnt."""
    text = text_of(fields, "text")
    opening = re.match(r".{20,400}?[.!?:](?=\s)|(?:\S+\s+){5}", text, re.DOTALL)
    if not opening:
        raise BadRow("field 'text' has fewer than six words")
    rest = text[opening.end() :].strip()
    return row_of("corpus", "text", place, opening[0].strip(), rest, None, place.rpartition("/")[0])
