"""FinQA: questions on pages of filings, worked step by step from their programs."""

import re
from functools import partial

from lib.data import pages
from lib.data.formats import BadRow, digest, joined, number_of, row_of, text_of, typed
from lib.data.working import LITERAL, as_percent, working
from lib.grade import scoring
from lib.grade.calculator import CalculatorError, calculate

PERCENT = re.compile(r"percent|growth|portion|%", re.IGNORECASE)
OPERATORS = {  # of programs
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "exp": "^", "greater": "-",  # what it is above zero by
}  # fmt: skip
OVER_ROWS = {  # what stands between the cells, and the whole of it
    "table_max": (", ", "max({})"), "table_min": (", ", "min({})"), "table_sum": ("+", "{}"),
    "table_average": ("+", "({})/{}"),
}  # fmt: skip
STEP = re.compile(rf"({'|'.join([*OPERATORS, *OVER_ROWS])})\((.*), (.*)\)")
NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?")
REPORT = re.compile(r"([\w.&-]{1,20}/\d{4})/")  # of an id, as in V/2008/page_17.pdf-1
# A quotient has no last digit. FinQA's annotators show about three, and half a unit of the third is at most 0.5 %.
THREE_DIGITS = 0.005
TRUTH = {"yes": True, "no": False}


def finqa(fields: dict, place: str, context: str = "page", most: int = 10) -> dict:
    """A question on a filing's page; the gold is what its program gives, a ratio where percent is asked for.

    `context`: the whole page is shown, its table and the `most` sentences "nearest" to the question, or ("facts") its
    table and the gold facts alone, which are all that some copies of the data hold. The answer has a line for each
    step of the program; the row's kind is that of `kind_of`."""
    if isinstance(fields.get("qa"), dict):  # as it was published
        fields = fields | fields["qa"]
    question, table = text_of(fields, "question"), pages.table_of(fields)
    before, after = pages.passages(fields, "pre_text"), pages.passages(fields, "post_text")
    if context == "facts" or not before and not after:
        page = joined(pages.markdown(table), _facts(fields))
    else:
        page = pages.page(before, table, after, question, context, most)
    answer, gold = worked(fields, table)
    group, report = digest(table), REPORT.match(str(fields.get("id")))
    if report:
        group += f" {report[1]}"  # for `by_report`
    kind = f"finqa {kind_of(fields['program'])}"
    return row_of("finqa", kind, place, joined(page, question), answer, gold, group) | published(fields)


def by_report(rows: list[dict]) -> None:
    """Make each FinQA row's group its report, so that no report is in two splits; a row whose id names none belongs to
    the report of its table or, where no row of that table names one, to the table."""
    reports = dict(row["group"].split(" ") for row in rows if " " in row["group"])
    for row in rows:
        table = row["group"].partition(" ")[0]
        if table in reports:
            row["group"] = f"finqa-{reports[table]}"


def published(fields: dict) -> dict:
    """What FinQA's own protocol grades by."""
    return {"published": {"protocol": "finqa", "exe_ans": fields["exe_ans"]}}


def _facts(fields: dict) -> str:
    """The gold facts: a list, or as published {place on the page: text}."""
    facts = fields.get("facts") or fields.get("gold_inds")
    if isinstance(facts, dict):
        facts = list(facts.values())
    return pages.passages({"facts": facts}, "facts")


# --- programs -------------------------------------------------------------------------------------
def worked(fields: dict, table: list[list[str]]) -> tuple[str, dict]:
    """(answer, gold) of a question's `program`, which gives `exe_ans`; BadRow where it does not.

    A program without a quotient gives a number that is exact as shown, by its five decimals or, where the calculator
    shows fewer, by those; else three digits count (THREE_DIGITS). A bare number is looked up: no working."""
    program = text_of(fields, "program")
    truth = TRUTH.get(str(fields.get("exe_ans")).strip())
    if (_parsed(program)[-1][0] == "greater") != (truth is not None):
        raise BadRow(f"field 'program' does not give {fields.get('exe_ans')!r}")
    try:
        expression = _expression(program, table)
        if truth is not None:
            return _compared(expression, truth)
        return _computed(fields, expression)
    except CalculatorError as error:
        raise BadRow(f"field 'program' cannot be computed: {error}") from None


def _compared(expression: str, truth: bool) -> tuple[str, dict]:
    """(answer, gold) of a comparison: is the difference of its sides above zero?"""
    name = "yes" if truth else "no"
    found = working(expression, " > 0" if truth else " <= 0", lambda shown: (float(shown) > 0) == truth)
    if not found:
        raise BadRow(f"field 'program' does not give {name!r}")
    return f"{found[0]}#### {name}", {"value": truth, "unit": "bool"}


def _computed(fields: dict, expression: str) -> tuple[str, dict]:
    """(answer, gold) of a program that gives a number."""
    value, result, tolerance = number_of(fields, "exe_ans"), calculate(expression), 0.0
    if abs(result - value) > 1e-5 + 1e-9 * abs(value):
        raise BadRow(f"field 'program' gives {float(result):.6g}, not {value:.6g}")
    display, unit, sign = text_of(fields, "answer", False), "none", ""
    if "%" in display or not display and PERCENT.search(fields["question"]):
        unit, sign = "ratio", "%"
        if re.search(r"multiply\([^()]*const_100\)$", fields["program"].strip()) or not re.search("[/%]", expression):
            unit = "percent"
    elif "$" in display:
        unit = "currency"
    if "/" in expression:
        tolerance = THREE_DIGITS
    if LITERAL.fullmatch(expression):
        shown = expression.strip("()")
        if unit != "ratio" and shown.endswith("%"):
            shown = f"{value:.15g}"
        return f"#### {shown.rstrip('%')}{sign}", typed(value, unit, 5, tolerance)
    if unit == "ratio":
        expression = as_percent(expression)
    for decimals in (5, 4, 2):  # exe_ans was rounded to five
        gold = typed(value, unit, decimals, tolerance)
        if found := working(expression, sign, partial(_is_right, sign, gold)):
            return f"{found[0]}#### {found[1]}{sign}", gold
    raise BadRow(f"field 'program' gives {value:.15g}, which its working does not come to")


def _is_right(sign: str, gold: dict, shown: str) -> bool:
    return scoring.grade(f"#### {shown}{sign}", gold).correct


def _parsed(program: str) -> list[tuple[str, str, str]]:
    """The steps of a program: (name, left, right); a bare number is one step of no name."""
    if LITERAL.fullmatch(_literal(program)):
        return [("", program, "")]
    found = []
    for step in re.split(r"(?<=\)), (?=\w+\()", program):
        parts = STEP.fullmatch(step.strip())
        if not parts:
            raise BadRow(f"field 'program' has an unknown step {step[:80]!r}")
        found.append(parts.groups())
    if any(name == "greater" for name, _, _ in found[:-1]):
        raise BadRow("field 'program' computes with a comparison")
    return found


def _expression(program: str, table: list[list[str]]) -> str:
    """A program as one expression for the calculator, each step that a later one names in parentheses."""
    steps = []
    for name, left, right in _parsed(program):
        if not name:
            steps.append(_literal(left))
        elif name in OVER_ROWS:
            steps.append(_over_row(name, left.strip().lower(), table))
        else:
            steps.append(f"{_operand(left, steps)}{OPERATORS[name]}{_operand(right, steps)}")
        if len(steps[-1]) > 2000:  # each step may double the one before
            raise BadRow("field 'program' is longer than 2,000 characters when written out")
    return steps[-1]


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


def kind_of(program: str) -> str:
    """What is asked for, by the operations of a question's program:

    - "yes or no": a comparison
    - "table": a row's largest, smallest or sum, whatever is done with it
    - "average": of a row, or a sum divided by a constant or a number up to 12
    - "change": a difference divided by a number (times 100), or a quotient less one
    - "ratio": divisions and multiplications, with one division at least
    - "product": multiplications
    - "sum or difference": additions and subtractions
    - "other": all else"""
    parsed = _parsed(program)
    names, (last, left, right) = [name for name, _, _ in parsed], parsed[-1]
    if "greater" in names:
        return "yes or no"
    if names == ["table_average"]:
        return "average"
    if any(name in OVER_ROWS for name in names):
        return "table"
    few = re.fullmatch(r"const_\d|1?\d", right.strip())
    if names[:-1] and last == "divide" and {*names[:-1]} == {"add"} and few and left.strip().startswith("#"):
        return "average"
    if names in (["subtract", "divide"], ["subtract", "divide", "multiply"], ["divide", "subtract"]):
        return "change"
    for kind, allowed in (("product", {"multiply"}), ("ratio", {"multiply", "divide"}),
                          ("sum or difference", {"add", "subtract"})):  # fmt: skip
        if {*names} <= allowed:
            return kind
    return "other"
