"""Questions on report pages: FinQA, TAT-QA and FinanceReasoning as rows, tables as Markdown, golds typed."""

import json
import re

from lib.data.formats import (
    BadRow,
    decimals_of,
    decimals_shown,
    digest,
    joined,
    number_of,
    numeral,
    row_of,
    text_of,
    typed,
)
from lib.grade import numerals, scoring
from lib.grade.calculator import CalculatorError, calculate, mark, show

SCALES = {"": 0, "percent": 0, "thousand": 3, "million": 6, "billion": 9}  # TAT-QA's, as powers of ten
SHORT = 5  # words that a text may have to be graded as a choice: a longer one is not said twice in the same words
PLACES = {"cent": 2, "single": 1, "one": 1, "two": 2, "three": 3, "four": 4}  # other words (dollar, integer): none
ASKED_PLACES = re.compile(r"(?:nearest|closest) (\w+)|(\w+) decimal", re.IGNORECASE)
PERCENT = re.compile(r"percent|growth|portion|%", re.IGNORECASE)
OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "exp": "^"}  # of FinQA's programs
OVER_ROWS = {"table_max": "max({})", "table_min": "min({})", "table_sum": "({})", "table_average": "({})/{}"}
# A quotient has no last digit. FinQA's annotators show about three, and half a unit of the third is at most 0.5 %.
THREE_DIGITS = 0.005


def _table(fields: dict) -> list[list[str]]:
    table = fields.get("table")
    table = table.get("table") if isinstance(table, dict) else table  # as TAT-QA was published
    if not isinstance(table, list) or not table or not all(isinstance(row, list) and row for row in table):
        raise BadRow("field 'table' is missing, empty or no list of rows")
    table = [[" ".join(("" if cell is None else str(cell)).split()) for cell in row] for row in table]
    text_of({"table": " ".join(cell for row in table for cell in row)}, "table")
    return table


def _passages(value, name: str) -> str:
    """A text, or a list of texts or of {"order", "text"}, as one text."""
    parts = [value] if isinstance(value, str) else value or []
    if isinstance(parts, list) and all(isinstance(part, dict) and "text" in part for part in parts):
        parts = [part["text"] for part in parts]
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise BadRow(f"field {name!r} is no text and no list of texts")
    return text_of({name: "\n".join(filter(str.strip, parts))}, name, needed=False)


def markdown(table: list[list]) -> str:
    """A table, its first row the header, as Markdown."""
    width = max(map(len, table))
    cells = [[str(cell).replace("|", r"\|") for cell in row] + [""] * (width - len(row)) for row in table]
    lines = [f"| {' | '.join(row)} |" for row in [cells[0], ["---"] * width, *cells[1:]]]
    return "\n".join(lines)


def finqa(fields: dict, place: str) -> dict:
    """A question on a filing's page; the gold is what its program gives, a ratio where percent is asked for.

    A program without a quotient gives a number that is exact as shown; else three digits count (THREE_DIGITS)."""
    if isinstance(fields.get("qa"), dict):  # as it was published
        fields = fields | fields["qa"]
    question, program, table = text_of(fields, "question"), text_of(fields, "program"), _table(fields)
    before, after = (_passages(fields.get(name), name) for name in ("pre_text", "post_text"))
    facts = "" if before or after else _passages(fields.get("facts"), "facts")
    asked = joined(before, markdown(table), after, facts, question)
    group, truth = digest(table), {"yes": True, "no": False}.get(str(fields.get("exe_ans")).strip())
    try:
        steps = _expressions(program, table)
        compares = isinstance(steps[-1], tuple)
        if compares != (truth is not None) or compares and truth != (calculate(steps[-1][0]) > calculate(steps[-1][1])):
            raise BadRow(f"field 'program' does not give {fields.get('exe_ans')!r}")
        if compares:
            shown = [f"{one} = {mark(one)}{show(calculate(one))}" for one in steps[-1]]
            answer = "\n".join([*shown, f"#### {'yes' if truth else 'no'}"])
            return row_of("finqa", "finqa", place, asked, answer, {"value": truth, "unit": "bool"}, group)
        value, found = number_of(fields, "exe_ans"), calculate(steps[-1])
    except (CalculatorError, TypeError) as error:  # TypeError: a comparison where a number belongs
        raise BadRow(f"field 'program' cannot be computed: {error}") from None
    if abs(found - value) > 1e-5 + 1e-9 * abs(value):
        raise BadRow(f"field 'program' gives {float(found):.6g}, not {value:.6g}")
    display, expression, quotient = text_of(fields, "answer", False), steps[-1], "/" in steps[-1]
    unit = "currency" if "$" in display else "none"
    if "%" in display if display else PERCENT.search(question):
        points = re.search(r"multiply\([^()]*const_100\)$", program) or not (quotient or "%" in expression)
        unit = "percent" if points else "ratio"
    if unit == "ratio":
        expression = f"100*({expression})"
    result = show(calculate(expression), None if quotient else 5)
    sign = "%" if unit in ("ratio", "percent") else ""
    answer = f"{expression} = <<{expression}={result}>>{result}{sign}\n#### {result}{sign}"
    gold = typed(value, unit, 5, THREE_DIGITS if quotient else 0.0)  # exe_ans was rounded to five decimals
    return row_of("finqa", "finqa", place, asked, answer, gold, group)


def _expressions(program: str, table: list[list[str]]) -> list:
    """FinQA's program, step by step, each as one expression for the calculator (of `greater`: its two sides)."""
    steps = []
    for step in re.split(r"(?<=\)), (?=\w+\()", program):
        parts = re.fullmatch(r"(\w+)\((.*), (.*)\)", step.strip())
        name, left, right = parts.groups() if parts else ("", "", "")
        if name in OVER_ROWS:
            row = next((row for row in table if row[0].lower() == left.strip().lower()), [""])
            cells = [re.search(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?", re.sub(r"[\s$]", "", cell)) for cell in row[1:]]
            cells = [_literal(cell[0]) for cell in cells if cell]
            joined = (", " if name in ("table_max", "table_min") else "+").join(cells)
            steps.append(OVER_ROWS[name].format(joined, len(cells)))
        elif name in OPERATORS or name == "greater":
            left, right = _operand(left, steps), _operand(right, steps)
            steps.append((left, right) if name == "greater" else f"{left}{OPERATORS[name]}{right}")
        else:
            raise BadRow(f"field 'program' has an unknown step {step[:80]!r}")
        if len(steps[-1]) > 2000:  # each step may double the one before
            raise BadRow("field 'program' is longer than 2,000 characters when written out")
    return steps


def _operand(text: str, steps: list[str]) -> str:
    if not re.fullmatch(r"#\d+", text := text.strip()):
        return _literal(text.removeprefix("const_").replace("m", "-"))
    if int(text[1:]) >= len(steps):
        raise BadRow(f"field 'program' names {text} before that step")
    step = steps[int(text[1:])]
    return step if re.fullmatch(r"max\([^()]*\)|min\([^()]*\)|\([^()]*\)", step) else f"({step})"


def _literal(text: str) -> str:
    number = re.sub(r"[\s$,]", "", text)
    return f"({number})" if number.startswith("-") else number


def tatqa_questions(fields: dict) -> list[dict]:
    """A context with its questions -> one record a question."""
    questions = fields.get("questions")
    if not isinstance(questions, list) or not questions:
        raise BadRow("field 'questions' is missing, empty or no list")
    return [fields | question if isinstance(question, dict) else {} for question in questions]


def tatqa(fields: dict, place: str) -> dict:
    """A question on a table and its text. The gold is the answer times its scale, and percents are percents.

    Computed answers were rounded to two decimals; spans show their own. A text of a few words is a choice; a longer
    one, and several at once, have no gold."""
    question, table = text_of(fields, "question"), _table(fields)
    asked = joined(_passages(fields.get("paragraphs"), "paragraphs"), markdown(table), question)
    kind, scale = text_of(fields, "answer_type"), text_of(fields, "scale", False)
    if scale not in SCALES:
        raise BadRow(f"field 'scale' is {scale!r}; known are {', '.join(map(repr, SCALES))}")
    suffix = "%" if scale == "percent" else f" {scale}" if scale else ""
    if kind in ("arithmetic", "count"):
        value = number_of(fields, "answer")
        shown = f"{value:.15g}{suffix}"
        unit = "count" if kind == "count" else "percent" if suffix == "%" else "none"
        gold = typed(value * 10 ** SCALES[scale], unit, 2 - SCALES[scale])
        answer = _derived(text_of(fields, "derivation", False), value, suffix) if kind == "arithmetic" else ""
        answer += f"#### {shown}"
    elif kind in ("span", "multi-span"):
        spans = fields.get("answer")
        spans = [text_of({"answer": span}, "answer", False) for span in (spans if isinstance(spans, list) else [spans])]
        answer = ", ".join(filter(None, spans))
        if not answer:
            raise BadRow("field 'answer' is missing or empty")
        answer, gold = _span(answer, scale, suffix) if kind == "span" else (answer, None)
    else:
        raise BadRow(f"field 'answer_type' is {kind!r}; known are arithmetic, count, span, multi-span")
    return row_of("tatqa", f"tatqa {kind}", place, asked, answer, gold, digest(table))


def _derived(derivation: str, value: float, suffix: str) -> str:
    """A derivation as a line of working; nothing where the calculator cannot read it, BadRow where it is wrong."""
    expression = re.sub(r"[\s$,]", "", numerals.normal(derivation)).translate(str.maketrans("[]{}", "()()"))
    candidates = [f"100*({expression})", expression] if suffix == "%" else [expression]
    try:
        found = [(one, calculate(one)) for one in candidates]
    except CalculatorError:
        return ""
    for one, result in found:
        if abs(result - value) <= 0.0051:
            return f"{one} = {mark(one)}{show(result)}{suffix}\n"
    raise BadRow(f"field 'derivation' gives {float(found[0][1]):.6g}, not {value:g}")


def _span(text: str, scale: str, suffix: str) -> tuple[str, dict | None]:
    """(answer, gold) of one span: a number as it is shown, a few words as a choice, or a longer text without gold."""
    number = numeral(text)
    if number is None:
        answer, gold = f"#### {text}", {"value": text, "unit": "choice"}
        return (answer, gold) if len(text.split()) <= SHORT and scoring.grade(answer, gold).correct else (text, None)
    if re.search(r"[a-z%]{4}|%", text):  # it says its scale itself
        scale, suffix = "", ""
    unit = "percent" if suffix == "%" else number.unit
    value, decimals = number.value * 10 ** SCALES[scale], decimals_shown(number) - SCALES[scale]
    return f"#### {text}{suffix}", typed(value, unit, decimals)


def finance_reasoning(fields: dict, place: str) -> dict:
    """A calculation with its ground truth and no working; the question says how many decimals it wants."""
    question, context = text_of(fields, "question"), text_of(fields, "context", False)
    wish, truth = question[-120:], fields.get("ground_truth")
    if isinstance(truth, bool):
        gold = {"value": truth, "unit": "bool"}
    else:
        value = number_of(fields, "ground_truth")
        places = [PLACES.get((a or b).lower(), 0) for a, b in ASKED_PLACES.findall(wish)]
        money = re.search(r"\b(?:dollars?|cents?|euros?|USD)\b", wish)
        unit = "currency" if money else "percent" if "percent" in wish.lower() else "none"
        gold = typed(value, unit, max([decimals_of(value), *places[-1:]]))
    answer = f"#### {truth if isinstance(truth, bool) else f'{value:.15g}'}{'%' if gold['unit'] == 'percent' else ''}"
    group = digest(context) if context else ""
    asked = joined(text_of({"context": _rendered(context)}, "context", False), question)
    return row_of("finance_reasoning", "finance reasoning", place, asked, answer, gold, group)


def _rendered(context: str) -> str:
    """A context that is a JSON table, {row: {column: cell}}, as Markdown; any other as it is."""
    try:
        rows = json.loads(context)
    except (ValueError, RecursionError):
        return context
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        return context
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return markdown([["", *columns], *cells])
