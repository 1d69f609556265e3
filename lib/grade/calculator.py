"""Arithmetic inside `<<expression=value>>` marks (GSM8K's calculator notation): read, compute, check; never `eval`."""

import math
import re
from fractions import Fraction

MARK = re.compile(r"<<([^<>=]{1,200})=([^<>]{0,60})>>")
_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|sqrt|max|min|floor|\*\*|[-+*/^(),%])")
_PLAIN = {ord("−"): "-", ord("–"): "-", ord("×"): "*", ord("·"): "*", ord("÷"): "/", ord("\u00a0"): " "}
_NUMBER = r"[$€£¥]?(?>\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?+%?+"
_OPERATOR = r"[ \t]*(?:\*\*|[-+*/^]|(?<=[ \t])x(?=[ \t]))[ \t]*"
_SUM = re.compile(
    rf"(?<![\w.$€£¥])(?<!\d,)(-?+{_NUMBER}(?:{_OPERATOR}-?{_NUMBER}){{1,20}}+)[ \t]*=[ \t]*(-?[$€£¥]?+-?+{_NUMBER})"
    r"(?![.,]?\d|[A-Za-z]|[ \t]*(?:[*/^+=(\d:]|-[ \t]*[\d$€£¥(]|and[ \t]+\(?\d"  # c goes on: 16 and 2/3, 30 / 2
    r"|(?:k|m|bn|x|r|rem|remainder|cents?|thousand|million|billion)\b))"
)
_TAIL = re.compile(r"(?:[-+*/^%)\d]|\d and|[ \t)]x)$")
_FUNCTIONS = {  # each takes the list of its arguments
    "sqrt": lambda numbers: math.sqrt(*numbers), "floor": lambda numbers: Fraction(math.floor(*numbers)),
    "max": max, "min": min,
}  # fmt: skip


class CalculatorError(ValueError):
    """The text is not an expression that this calculator knows, or it has no finite real value."""


def calculate(expression: str) -> Fraction | float:
    """Value of an expression of numbers, + - * / ^ (or **), postfix %, parentheses, sqrt, max, min and floor.

    Exact (Fraction) until a root or a power that is not a small whole number makes it a float.
    Raises CalculatorError for anything else, division by zero and overflow included."""
    tokens, position = [], 0
    expression = expression.strip()
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if not match or len(tokens) > 200:
            raise CalculatorError(f"cannot read {expression[position : position + 20]!r} in {expression[:80]!r}")
        tokens.append(match[1])
        position = match.end()
    try:
        value, rest = _sum(tokens, 0)
        finite = math.isfinite(value)
    except (ArithmeticError, ValueError, TypeError, IndexError, RecursionError) as error:  # TypeError: sqrt(1,2)
        raise CalculatorError(f"{expression[:80]!r} has no value: {error}") from None
    if rest != len(tokens) or not finite:
        raise CalculatorError(f"{expression[:80]!r} is not one finite number")
    return value


# Recursive descent; each function takes (tokens, position) and returns (value, next position).
def _sum(tokens, i):
    value, i = _product(tokens, i)
    while i < len(tokens) and tokens[i] in "+-":
        other, j = _product(tokens, i + 1)
        value, i = (value + other if tokens[i] == "+" else value - other), j
    return value, i


def _product(tokens, i):
    value, i = _signed(tokens, i)
    while i < len(tokens) and tokens[i] in ("*", "/"):
        other, j = _signed(tokens, i + 1)
        value, i = (value * other if tokens[i] == "*" else value / other), j
    return value, i


def _signed(tokens, i):
    if tokens[i] in ("-", "+"):
        value, j = _signed(tokens, i + 1)
        return (-value if tokens[i] == "-" else value), j
    base, i = _atom(tokens, i)
    if i < len(tokens) and tokens[i] in ("^", "**"):
        exponent, i = _signed(tokens, i + 1)
        exact = exponent == int(exponent) and abs(exponent) * _bits(base) <= 4096  # small enough to be quick
        base = base ** int(exponent) if exact else float(base) ** float(exponent)
    return base, i


def _bits(value) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) if isinstance(value, Fraction) else 64


def _atom(tokens, i):
    token = tokens[i]
    if token == "(":
        value, i = _sum(tokens, i + 1)
        i = _expect(")", tokens, i)
    elif token in _FUNCTIONS:
        arguments, i = [], _expect("(", tokens, i + 1) - 1
        while not arguments or tokens[i] == ",":
            value, i = _sum(tokens, i + 1)
            arguments.append(value)
        i = _expect(")", tokens, i)
        value = _FUNCTIONS[token](arguments)
    elif token[0].isdigit() or token[0] == ".":
        value, i = Fraction(token.rstrip(".")), i + 1
    else:
        raise ValueError(f"unexpected {token!r}")
    if i < len(tokens) and tokens[i] == "%":
        value, i = value / 100, i + 1
    return value, i


def _expect(token, tokens, i):
    if tokens[i] != token:
        raise ValueError(f"expected {token!r}")
    return i + 1


def show(value: Fraction | float, decimals: int | None = None) -> str:
    """The value as a calculator writes it: 2 decimals from 100 up, 4 below, 6 below 0.01, unless `decimals` says how
    many; halves go away from zero, trailing zeros are dropped."""
    if decimals is None:
        decimals = 2 if abs(value) >= 100 else 4 if abs(value) >= 0.01 else 6
    scaled = abs(Fraction(value)) * 10**decimals
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    text = f"{whole // 10**decimals}.{whole % 10**decimals:0{decimals}d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and whole else text


def mark(expression: str) -> str:
    """`12/4` -> `<<12/4=3>>`."""
    return f"<<{expression}={show(calculate(expression))}>>"


def wrong_marks(text: str) -> list[str]:
    """The marks in the text whose stated value is not their expression's, to half a unit of its last shown digit."""
    return [f"<<{e}={stated}>>" for e, stated in MARK.findall(text) if not _equal(e, stated.replace(",", ""))]


def wrong_sums(text: str) -> list[str]:
    """The plain sums `a op b = c` (or `a op b op c = d`) of a text that are wrong, to half a unit of c's last digit.

    Read are + - * / ^ and their typographic forms, thousands commas, currency and percent signs. Where a percent sign
    stands, it may mean a hundredth (`12/15 = 80%`) or be a mere unit (`100 * 12/15 = 80%`). Sums with words,
    parentheses or rounded units (`= 5 million`) are not read, nor are marks: those are for `wrong_marks`."""
    wrong = []
    for match in _SUM.finditer(MARK.sub("", text).translate(_PLAIN)):
        before = match.string[max(0, match.start() - 20) : match.start()].rstrip(" \t")
        if _TAIL.search(before) or (match[0][0] == "-" and before[-1:].isalnum()):
            continue  # the end of a longer expression, or a mixed number such as 1 1/2
        sum_, stated = (re.sub(r"[$€£¥,]", "", side).replace(" x ", "*") for side in match.groups())
        bare = stated.replace("%", "")
        readings = [(sum_, stated), (sum_.replace("%", ""), bare), (sum_, bare)]
        readings += [(re.sub(r"(/ +)(\d+/\d+)", r"\1(\2)", sum_), bare)]  # 60 / 3/4: by three quarters
        if not any(_equal(*reading) for reading in readings):
            wrong.append(match[0])
    return wrong


def _equal(expression: str, stated: str) -> bool:
    """Is the stated number (`3`, `0.33`, `12.5%`) the expression's value, to half a unit of its last shown digit?"""
    try:
        unit = Fraction(1, 100 if stated.strip().endswith("%") else 1) / 10 ** len(stated.partition(".")[2].strip(" %"))
        return abs(calculate(expression) - calculate(stated)) <= unit / 2 * Fraction(1000001, 1000000)
    except CalculatorError:
        return False
