"""Questions on report pages: FinQA, TAT-QA and FinanceReasoning as rows, tables as Markdown, golds
typed."""

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
)  # fmt: skip
from lib.grade import numerals, scoring
from lib.grade.calculator import CalculatorError, calculate, mark, show

SCALES = {  # TAT-QA's: power of ten, and how an answer says it
    "": (0, ""), "percent": (0, "%"), "thousand": (3, " thousand"), "million": (6, " million"),
    "billion": (9, " billion"),
}  # fmt: skip
SHORT = 5  # words that a text may have to be graded as a choice: a longer one is not said twice in the same words
PLACES = {"cent": 2, "single": 1, "one": 1, "two": 2, "three": 3, "four": 4}  # other words (dollar, integer): none
ASKED_PLACES = re.compile(r"(?:nearest|closest) (\w+)|(\w+) decimal", re.IGNORECASE)
PERCENT = re.compile(r"percent|growth|portion|%", re.IGNORECASE)
OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "exp": "^"}  # of FinQA's programs
OVER_ROWS = {  # what stands between the cells, and the whole of it
    "table_max": (", ", "max({})"), "table_min": (", ", "min({})"), "table_sum": ("+", "({})"),
    "table_average": ("+", "({})/{}"),
}  # fmt: skip
STEP = re.compile(rf"({'|'.join([*OPERATORS, *OVER_ROWS, 'greater'])})\((.*), (.*)\)")
NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?")
# A quotient has no last digit. FinQA's annotators show about three, and half a unit of the third is at most 0.5 %.
THREE_DIGITS = 0.005


def _table(fields: dict) -> list[list[str]]:
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


def _passages(fields: dict, name: str) -> str:
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


# --- FinQA ----------------------------------------------------------------------------------------
REPORT = re.compile(r"([\w.&-]{1,20}/\d{4})/")  # of an id, as in V/2008/page_17.pdf-1


def finqa(fields: dict, place: str, context: str = "page") -> dict:
    """A question on a filing's page; the gold is what its program gives, a ratio where percent is
    asked for. `context`: the whole page is shown, or ("facts") its table and the gold facts alone,
    which are all that some copies of the data hold.

    A program without a quotient gives a number that is exact as shown; else three digits count
    (THREE_DIGITS)."""
    if isinstance(fields.get("qa"), dict):  # as it was published
        fields = fields | fields["qa"]
    question, program, table = text_of(fields, "question"), text_of(fields, "program"), _table(fields)
    before, after, facts = _passages(fields, "pre_text"), _passages(fields, "post_text"), ""
    if context == "facts" or not before and not after:
        before, after, facts = "", "", _facts(fields)
    asked = joined(before, markdown(table), after, facts, question)
    truth = {"yes": True, "no": False}.get(str(fields.get("exe_ans")).strip())
    try:
        result = _expressions(program, table)[-1]
        compares = isinstance(result, tuple)
        agrees = compares == (truth is not None)
        if compares and agrees:
            agrees = truth == (calculate(result[0]) > calculate(result[1]))
        if not agrees:
            raise BadRow(f"field 'program' does not give {fields.get('exe_ans')!r}")
        if not compares:
            answer, gold = _computed(fields, result)
        else:
            sides = [f"{side} = {mark(side)}{show(calculate(side))}\n" for side in result]
            answer = f"{''.join(sides)}#### {fields['exe_ans'].strip()}"
            gold = {"value": truth, "unit": "bool"}
    except (CalculatorError, TypeError) as error:  # TypeError: a comparison where a number belongs
        raise BadRow(f"field 'program' cannot be computed: {error}") from None
    group, report = digest(table), REPORT.match(str(fields.get("id")))
    if report:
        group += f" {report[1]}"  # for `by_report`
    return row_of("finqa", "finqa", place, asked, answer, gold, group)


def by_report(rows: list[dict]) -> None:
    """Make each FinQA row's group its report, so that no report is in two splits; a row whose id names none belongs to
    the report of its table or, where no row of that table names one, to the table."""
    reports = dict(row["group"].split(" ") for row in rows if " " in row["group"])
    for row in rows:
        table = row["group"].partition(" ")[0]
        if table in reports:
            row["group"] = f"finqa-{reports[table]}"


def _facts(fields: dict) -> str:
    """The gold facts: a list, or as published {place on the page: text}."""
    facts = fields.get("facts") or fields.get("gold_inds")
    if isinstance(facts, dict):
        facts = list(facts.values())
    return _passages({"facts": facts}, "facts")


def _computed(fields: dict, expression: str) -> tuple[str, dict]:
    """(answer, gold) of a FinQA program that is one expression."""
    value, result, quotient = number_of(fields, "exe_ans"), calculate(expression), "/" in expression
    if abs(result - value) > 1e-5 + 1e-9 * abs(value):
        raise BadRow(f"field 'program' gives {float(result):.6g}, not {value:.6g}")
    display, unit, sign, tolerance = text_of(fields, "answer", False), "none", "", 0.0
    if "%" in display or not display and PERCENT.search(fields["question"]):
        unit, sign = "ratio", "%"
        if re.search(r"multiply\([^()]*const_100\)$", fields["program"].strip()) or not re.search("[/%]", expression):
            unit = "percent"
    elif "$" in display:
        unit = "currency"
    if unit == "ratio":
        expression = f"100*({expression})"
    if quotient:
        shown, tolerance = show(calculate(expression)), THREE_DIGITS
    else:
        shown = show(calculate(expression), 5)
    answer = f"{expression} = <<{expression}={shown}>>{shown}{sign}\n#### {shown}{sign}"
    return answer, typed(value, unit, 5, tolerance)  # exe_ans was rounded to five decimals


def _expressions(program: str, table: list[list[str]]) -> list:
    """FinQA's program, step by step, each as one expression for the calculator (of `greater`: its
    two sides)."""
    steps = []
    for step in re.split(r"(?<=\)), (?=\w+\()", program):
        parts = STEP.fullmatch(step.strip())
        if not parts:
            raise BadRow(f"field 'program' has an unknown step {step[:80]!r}")
        name, left, right = parts.groups()
        if name in OVER_ROWS:
            steps.append(_over_row(name, left.strip().lower(), table))
        elif name == "greater":
            steps.append((_operand(left, steps), _operand(right, steps)))
        else:
            steps.append(f"{_operand(left, steps)}{OPERATORS[name]}{_operand(right, steps)}")
        if len(steps[-1]) > 2000:  # each step may double the one before
            raise BadRow("field 'program' is longer than 2,000 characters when written out")
    return steps


def _over_row(name: str, title: str, table: list[list[str]]) -> str:
    """A step over the numbers of the row of this title."""
    cells = next((row[1:] for row in table if row[0].lower() == title), [])
    numbers = [NUMBER.search(re.sub(r"[\s$]", "", cell)) for cell in cells]
    numbers = [_literal(number[0]) for number in numbers if number]
    between, whole = OVER_ROWS[name]
    return whole.format(between.join(numbers), len(numbers))


def _operand(text: str, steps: list[str]) -> str:
    text = text.strip()
    if not re.fullmatch(r"#\d+", text):
        return _literal(text.removeprefix("const_").replace("m", "-"))
    if int(text[1:]) >= len(steps):
        raise BadRow(f"field 'program' names {text} before that step")
    step = steps[int(text[1:])]
    if re.fullmatch(r"(?:max|min)?\([^()]*\)", step):
        return step
    return f"({step})"


def _literal(text: str) -> str:
    number = re.sub(r"[\s$,]", "", text)
    if number.startswith("-"):
        return f"({number})"
    return number


# --- TAT-QA ---------------------------------------------------------------------------------------
def tatqa_questions(fields: dict) -> list[dict]:
    """A context with its questions -> one record a question."""
    questions, records = fields.get("questions"), []
    if not isinstance(questions, list) or not questions:
        raise BadRow("field 'questions' is missing, empty or no list")
    for question in questions:
        records.append(fields | question if isinstance(question, dict) else {})
    return records


def tatqa(fields: dict, place: str) -> dict:
    """A question on a table and its text. The gold is the answer times its scale, and percents are
    percents.

    Computed answers were rounded to two decimals; spans show their own. A text of a few words is a
    choice; a longer one, and several at once, have no gold."""
    question, table = text_of(fields, "question"), _table(fields)
    asked = joined(_passages(fields, "paragraphs"), markdown(table), question)
    kind, scale = text_of(fields, "answer_type"), text_of(fields, "scale", False)
    if scale not in SCALES:
        raise BadRow(f"field 'scale' is {scale!r}; known are {', '.join(map(repr, SCALES))}")
    power, suffix = SCALES[scale]
    match kind:
        case "count":
            answer, gold = _result(number_of(fields, "answer"), "count", scale)
        case "arithmetic":
            value, unit = number_of(fields, "answer"), "percent" if scale == "percent" else "none"
            working = _derived(text_of(fields, "derivation", False), value, suffix)
            answer, gold = _result(value, unit, scale)
            answer = working + answer
        case "span":
            answer, gold = _span(_spans(fields), scale)
        case "multi-span":
            answer, gold = _spans(fields), None
        case _:
            raise BadRow(f"field 'answer_type' is {kind!r}; known are arithmetic, count, span, multi-span")
    return row_of("tatqa", f"tatqa {kind}", place, asked, answer, gold, digest(table))


def _result(value: float, unit: str, scale: str) -> tuple[str, dict]:
    power, suffix = SCALES[scale]
    return f"#### {value:.15g}{suffix}", typed(value * 10**power, unit, 2 - power)


def _derived(derivation: str, value: float, suffix: str) -> str:
    """A derivation as a line of working; nothing where the calculator cannot read it, BadRow where
    it is wrong."""
    expression = re.sub(r"[\s$,]", "", numerals.normal(derivation)).translate(str.maketrans("[]{}", "()()"))
    candidates = [expression]
    if suffix == "%":
        candidates = [f"100*({expression})", expression]
    try:
        results = [calculate(candidate) for candidate in candidates]
    except CalculatorError:
        return ""
    for candidate, result in zip(candidates, results):
        if abs(result - value) <= 0.0051:
            return f"{candidate} = {mark(candidate)}{show(result)}{suffix}\n"
    raise BadRow(f"field 'derivation' gives {float(results[0]):.6g}, not {value:g}")


def _spans(fields: dict) -> str:
    spans = fields.get("answer")
    if not isinstance(spans, list):
        spans = [spans]
    answer = ", ".join(filter(None, [text_of({"answer": span}, "answer", False) for span in spans]))
    if not answer:
        raise BadRow("field 'answer' is missing or empty")
    return answer


def _span(text: str, scale: str) -> tuple[str, dict | None]:
    """(answer, gold) of one span: a number as it is shown, a few words as a choice, or a longer
    text without gold."""
    number = numeral(text)
    if number is None:
        answer, gold = f"#### {text}", {"value": text, "unit": "choice"}
        if len(text.split()) <= SHORT and scoring.grade(answer, gold).correct:
            return answer, gold
        return text, None
    if re.search(r"[a-z%]{4}|%", text):  # it says its scale itself
        scale = ""
    power, suffix = SCALES[scale]
    unit = "percent" if scale == "percent" else number.unit
    return f"#### {text}{suffix}", typed(number.value * 10**power, unit, decimals_shown(number) - power)


# --- FinanceReasoning -----------------------------------------------------------------------------
def finance_reasoning(fields: dict, place: str) -> dict:
    """A calculation with its ground truth and no working; the question says how many decimals it
    wants."""
    question, context, group = text_of(fields, "question"), text_of(fields, "context", False), ""
    wish, truth = question[-120:], fields.get("ground_truth")
    if isinstance(truth, bool):
        answer, gold = f"#### {truth}", {"value": truth, "unit": "bool"}
    else:
        value, unit, sign = number_of(fields, "ground_truth"), "none", ""
        places = [PLACES.get((a or b).lower(), 0) for a, b in ASKED_PLACES.findall(wish)]
        if re.search(r"\b(?:dollars?|cents?|euros?|USD)\b", wish):
            unit = "currency"
        elif "percent" in wish.lower():
            unit, sign = "percent", "%"
        answer = f"#### {value:.15g}{sign}"
        gold = typed(value, unit, max([decimals_of(value), *places[-1:]]))
    if context:
        group, context = digest(context), text_of({"context": _rendered(context)}, "context", False)
    return row_of("finance_reasoning", "finance reasoning", place, joined(context, question), answer, gold, group)


def _rendered(context: str) -> str:
    """A context that is a JSON table, {row: {column: cell}}, as Markdown; any other as it is."""
    try:
        rows = json.loads(context)
    except (ValueError, RecursionError):
        return context
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        return context
    columns = dict.fromkeys((column for row in rows.values() for column in row), "")
    return markdown([["", *columns], *([name, *(columns | row).values()] for name, row in rows.items())])
