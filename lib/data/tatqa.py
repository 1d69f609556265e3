"""TAT-QA: questions on a table and its text, worked step by step from their derivations."""

import re

from lib.data import pages
from lib.data.formats import BadRow, decimals_shown, digest, joined, number_of, row_of, text_of, typed
from lib.data.working import as_percent, working
from lib.grade import numerals, scoring
from lib.grade.calculator import CalculatorError, calculate

SCALES = {  # power of ten, and how an answer says it
    "": (0, ""), "percent": (0, "%"), "thousand": (3, " thousand"), "million": (6, " million"),
    "billion": (9, " billion"),
}  # fmt: skip
SHORT = 5  # words that a text may have to be graded as a choice: a longer one is not said twice in the same words
ROUNDED = 0.0051  # answers are rounded to two decimals, halves either way
_AMOUNT = r"-?\$?\d[\d,]*(?:\.\d+)?%?"
CHAIN = re.compile(rf"{_AMOUNT}(?:>{_AMOUNT})+|{_AMOUNT}(?:<{_AMOUNT})+")


def questions(fields: dict) -> list[dict]:
    """A context with its questions -> one record a question."""
    questions, records = fields.get("questions"), []
    if not isinstance(questions, list) or not questions:
        raise BadRow("field 'questions' is missing, empty or no list")
    for question in questions:
        records.append(fields | question if isinstance(question, dict) else {})
    return records


def tatqa(fields: dict, place: str, context: str = "page", most: int = 10) -> dict:
    """A question on a table and its text, all of it or (`context`) the `most` sentences "nearest" to the question. The
    gold is the answer times its scale, and percents are percents.

    Computed answers were rounded to two decimals; spans show their own. A text of a few words is a choice; a longer
    one, and several at once, have no gold. A derivation is worked step by step, a count counts its items, a comparison
    is shown."""
    question, table = text_of(fields, "question"), pages.table_of(fields)
    page = pages.page(pages.passages(fields, "paragraphs"), table, "", question, context, most)
    kind, scale = text_of(fields, "answer_type"), text_of(fields, "scale", False)
    if scale not in SCALES:
        raise BadRow(f"field 'scale' is {scale!r}; known are {', '.join(map(repr, SCALES))}")
    derivation = ""
    if kind in ("arithmetic", "count", "span"):
        derivation = numerals.normal(text_of(fields, "derivation", False))
    match kind:
        case "count":
            value = number_of(fields, "answer")
            answer, gold = _result(value, "count", scale)
            answer = _counted(derivation, value) + answer
        case "arithmetic":
            value, unit = number_of(fields, "answer"), "percent" if scale == "percent" else "none"
            answer, gold = _result(value, unit, scale)
            answer = _derived(derivation, value, scale) + answer
        case "span":
            answer, gold = _span(", ".join(_spans(fields)), scale)
            if gold:
                answer = _compared(derivation) + answer
        case "multi-span":
            answer, gold = ", ".join(_scaled(span, scale) for span in _spans(fields)), None
        case _:
            raise BadRow(f"field 'answer_type' is {kind!r}; known are arithmetic, count, span, multi-span")
    truth = {"answer": fields["answer"], "scale": scale, "answer_type": kind}
    row = row_of("tatqa", f"tatqa {kind}", place, joined(page, question), answer, gold, digest(table))
    return row | {"published": {"protocol": "tatqa"} | truth}


def _result(value: float, unit: str, scale: str) -> tuple[str, dict]:
    power, suffix = SCALES[scale]
    return f"#### {value:.15g}{suffix}", typed(value * 10**power, unit, 2 - power)


def _derived(derivation: str, value: float, scale: str) -> str:
    """A derivation as lines of working; nothing where the calculator cannot read it, BadRow where it is wrong."""
    power, suffix = SCALES[scale]
    named = re.sub("thousand|million|billion", lambda name: f"*{10.0 ** (SCALES[name[0]][0] - power):g}", derivation)
    expression = re.sub(r"[\s$,]", "", named).translate(str.maketrans("[]{}", "()()"))
    readings = [expression, re.sub(r"\((\d+\.?\d*)\)", r"(-\1)", expression)]  # then (71) as accounts mean it
    if scale == "percent":
        readings = [form for reading in readings for form in (as_percent(reading), reading)]
    try:
        result = calculate(expression)
        for reading in readings:
            if found := working(reading, suffix, lambda shown: abs(float(shown) - value) <= ROUNDED):
                return found[0]
    except CalculatorError:
        return ""
    raise BadRow(f"field 'derivation' gives {float(result):.6g}, not {value:g}")


def _counted(derivation: str, value: float) -> str:
    """`2018##2017` as a list, an item a line; nothing where it holds another number of items than are counted."""
    items = [" ".join(item.split()) for item in derivation.split("##")]
    if len(items) != value or not all(items):
        return ""
    return "".join(f"{number}. {item}\n" for number, item in enumerate(items, 1))


def _compared(derivation: str) -> str:
    """`918>914>814` as a line; nothing where it is no comparison of numbers, or is wrong."""
    chain = re.sub(r"\s", "", derivation)
    if not CHAIN.fullmatch(chain):
        return ""
    shown = re.split("[<>]", chain)
    values = [calculate(re.sub("[$,]", "", amount)) for amount in shown]
    if values != sorted(set(values), reverse=">" in chain):
        return ""
    return f" {'>' if '>' in chain else '<'} ".join(shown) + "\n"


def _spans(fields: dict) -> list[str]:
    spans = fields.get("answer")
    if not isinstance(spans, list):
        spans = [spans]
    spans = [*filter(None, [text_of({"answer": span}, "answer", False) for span in spans])]
    if not spans:
        raise BadRow("field 'answer' is missing or empty")
    return spans


def _span(text: str, scale: str) -> tuple[str, dict | None]:
    """(answer, gold) of one span: a number as it is shown, a few words as a choice, or a longer
    text without gold."""
    number = numerals.numeral(text)
    if number is None:
        answer, gold = f"#### {text}", {"value": text, "unit": "choice"}
        if len(text.split()) <= SHORT and scoring.grade(answer, gold).correct:
            return answer, gold
        return text, None
    shown = _scaled(text, scale)
    power = SCALES[scale][0] if shown != text else 0
    unit = "percent" if scale == "percent" and shown != text else number.unit
    return f"#### {shown}", typed(number.value * 10**power, unit, decimals_shown(number) - power)


def _scaled(text: str, scale: str) -> str:
    """A span, with its scale where it is a number that does not say it itself."""
    if numerals.numeral(text) is None or re.search("[a-z%]", numerals.priced(numerals.normal(text.lower()))):
        return text
    return text + SCALES[scale][1]
