"""An expression as lines of working: a step a line, each with a `<<expression=value>>` mark of its own."""

import re
from collections.abc import Callable
from fractions import Fraction

from lib.data.formats import BadRow
from lib.grade.calculator import MARK, calculate, mark, show

LITERAL = re.compile(r"[(\[]?-?(?:\d[\d,]*\.?\d*|\.\d+)%?[)\]]?")
INNER = re.compile(r"(max|min)?\(([^()]*)\)")
KEEP, PLAIN = str.maketrans("()", "[]"), str.maketrans("[]", "()")  # brackets: what is not to be taken apart


def steps(expression: str, exactly: bool = False) -> list[str]:
    """The expressions that give an expression's value one after another, what stands in parentheses first.

    A later one holds the values of earlier ones as they are shown; `exactly`: but for those that `show` rounds, whose
    expressions it holds instead. A bare number has none. Raises CalculatorError."""
    found = []
    while inner := INNER.search(expression):
        step = inner[0] if inner[1] else inner[2]
        value = step
        if not LITERAL.fullmatch(step):
            result = calculate(step.translate(PLAIN))
            value = show(result)
            if exactly and Fraction(value) != result:
                value = inner[0].translate(KEEP)
            elif step not in found:
                found.append(step)
        if value.startswith("-"):
            value = f"[{value}]"
        expression = expression.replace(inner[0], value, 1)
    if not LITERAL.fullmatch(expression):
        found.append(expression)
    return [step.translate(PLAIN) for step in found]


def working(expression: str, unit: str, accepts: Callable[[str], bool]) -> tuple[str, str] | None:
    """(lines, value as the last of them shows it) where `accepts(value)`; None where no way to write it ends so.

    Each line is a step, and what it shows is what the next computes with; where that would end wrong, rounded steps
    are part of the next mark. `unit` stands after the last value. BadRow where a mark would be too long to be read."""
    for exactly in (False, True):
        parts = steps(expression, exactly)
        marks = [mark(part) for part in parts]
        if not all(map(MARK.fullmatch, marks)):
            raise BadRow("field 'program' or 'derivation' has a step of over 200 characters when written out")
        values = [show(calculate(part)) for part in parts]
        lines = [f"{part} = {marked}{value}" for part, marked, value in zip(parts, marks, values, strict=True)]
        if parts and accepts(values[-1]):
            return "\n".join(lines) + f"{unit}\n", values[-1]
    return None


def as_percent(expression: str) -> str:
    """A hundred times an expression; a quotient and the hundred are one step."""
    outer, count = expression, 1
    while count:
        outer, count = re.subn(r"\([^()]*\)", "0", outer)
    if re.search(r"[\d%]\s*[-+]", outer):
        return f"100*({expression})"
    return f"100*{expression}"
