"""What questions on report pages share: the table as Markdown, the text around it, and the sentences nearest to a
question."""

import math
import re
from collections import Counter

from lib.data.formats import BadRow, joined, text_of

SENTENCE = re.compile(
    r"\n+|(?<= [.?!;])\s+|(?<=[.?!])\s+(?=[A-Z])"
)  # what is between two; filings' full stops stand apart
WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*")
SATURATION, LENGTH = 1.2, 0.75  # BM25's k1 and b


def table_of(fields: dict) -> list[list[str]]:
    """The rows of a page's table, the first its header; BadRow where there is none."""
    table = fields.get("table")
    if isinstance(table, dict):  # as TAT-QA was published
        table = table.get("table")
    if not isinstance(table, list) or not table or not all(isinstance(row, list) and row for row in table):
        raise BadRow("field 'table' is missing, empty or no list of rows")
    table = [[*map(_cell, row)] for row in table]
    text_of({"table": " ".join(cell for row in table for cell in row)}, "table")
    return table


def _cell(value) -> str:
    if value is None:
        return ""
    return " ".join(str(value).split())


def passages(fields: dict, name: str) -> str:
    """A text, or a list of texts or of {"order", "text"}, as one text."""
    parts = fields.get(name) or []
    if isinstance(parts, str):
        parts = [parts]
    if isinstance(parts, list) and all(isinstance(part, dict) and "text" in part for part in parts):
        parts = [part["text"] for part in parts]
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise BadRow(f"field {name!r} is no text and no list of texts")
    return text_of({name: "\n".join(filter(str.strip, parts))}, name, needed=False)


def markdown(table: list[list]) -> str:
    """A table, its first row the header, as Markdown."""
    width, lines = max(map(len, table)), []
    for row in table:
        cells = [str(cell).replace("|", r"\|") for cell in row] + [""] * (width - len(row))
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, f"| {' | '.join(['---'] * width)} |")
    return "\n".join(lines)


def page(before: str, table: list[list[str]], after: str, question: str, context: str, most: int) -> str:
    """A page as it is shown: its text with the table in its place. Where `context` is "nearest" and it has more
    sentences than `most`, those nearest to the question, in their order, and a line that says so."""
    first, second = ([*filter(str.strip, SENTENCE.split(text))] for text in (before, after))
    sentences, told = first + second, ""
    if context == "nearest" and len(sentences) > most:
        kept = nearest(question, sentences, most)
        before = "\n".join(sentences[place] for place in kept if place < len(first))
        after = "\n".join(sentences[place] for place in kept if place >= len(first))
        told = f"(The table and the sentences nearest to the question: {most} of {len(sentences)}.)"
    return joined(before, markdown(table), after, told)


def nearest(question: str, sentences: list[str], most: int) -> list[int]:
    """Places of the `most` sentences that are nearest to a question, in their order: by BM25 over the page's own
    sentences, its numbers and years words too (Robertson and Zaragoza 2009)."""
    bags = [Counter(WORD.findall(sentence.lower())) for sentence in sentences]
    holding, mean = Counter(word for bag in bags for word in bag), sum(bag.total() for bag in bags) / len(bags)

    def score(bag: Counter) -> float:
        room = SATURATION * (1 - LENGTH + LENGTH * bag.total() / mean)
        return sum(math.log(1 + (len(bags) - holding[word] + 0.5) / (holding[word] + 0.5))
                   * bag[word] * (SATURATION + 1) / (bag[word] + room) for word in asked & bag.keys())  # fmt: skip

    asked = {*WORD.findall(question.lower())}
    return sorted(sorted(range(len(bags)), key=lambda place: -score(bags[place]))[:most])
