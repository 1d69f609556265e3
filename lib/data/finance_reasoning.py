"""FinanceReasoning: calculations without working, whose questions say how many decimals they want."""

import json
import re

from lib.data.formats import decimals_of, digest, joined, number_of, row_of, text_of, typed
from lib.data.pages import markdown

PLACES = {"cent": 2, "single": 1, "one": 1, "two": 2, "three": 3, "four": 4}  # other words (dollar, integer): none
ASKED_PLACES = re.compile(r"(?:nearest|closest) (\w+)|(\w+) decimal", re.IGNORECASE)


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
