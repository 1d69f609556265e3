"""Arithmetic inside `<<expression=value>>` marks (GSM8K's calculator notation): read, compute, check; never `eval`."""

import math
import operator
import re
from collections import deque
from fractions import Fraction

MARK = re.compile(r"<<([^<>=]{1,200})=([^<>]{0,60})>>")
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|sqrt|max|min|floor|\*\*|[-+*/^(),%]")
_SIGNS = {"+": operator.pos, "-": operator.neg}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_PLAIN = str.maketrans("−–×·÷\u00a0", "--**/ ")
_NUMBER = r"[$€£¥]?(?>\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?+%?+"
_OPERATOR = r"[ \t]*(?:\*\*|[-+*/^]|(?<=[ \t])x(?=[ \t]))[ \t]*"
_SUM = re.compile(
    rf"""(?<![\w.$€£¥])(?<!\d,)(-?+{_NUMBER}(?:{_OPERATOR}-?{_NUMBER}){{1,20}}+)[ \t]*=[ \t]*
    (-?[$€£¥]?+-?+{_NUMBER})
    (?![.,]?\d|[A-Za-z]
      |[ \t]*(?:[*/^+=(\d:]|-[ \t]*[\d$€£¥(]|and[ \t]+\(?\d  # c goes on: 16 and 2/3, 30 / 2
        |(?:k|m|bn|x|r|rem|remainder|cents?|thousand|million|billion)\b))""",
    re.VERBOSE,
)
_TAIL = re.compile(r"(?:[-+*/^%)\d]|\d and|[ \t)]x)$")


class CalculatorError(ValueError):
    """The text is not an expression that this calculator knows, or it has no finite real value."""


def calculate(expression: str) -> Fraction | float:
    """Value of an expression of numbers, + - * / ^ (or **), postfix %, parentheses, sqrt, max, min and floor.

    Exact (Fraction) until a root or a power that is not a small whole number makes it a float.
    Raises CalculatorError for anything else, division by zero and overflow included."""
    tokens = deque(_TOKEN.findall(expression))
    if "".join(tokens) != "".join(expression.split()) or len(tokens) > 200:
        raise CalculatorError(f"cannot read {expression[:80]!r}")
    tokens.append("end")
    try:
        value = _value(tokens)
        finite = math.isfinite(value)
    except (ArithmeticError, ValueError, RecursionError) as error:
        raise CalculatorError(f"{expression[:80]!r} has no value: {error}") from None
    if tokens[0] != "end" or not finite:
        raise CalculatorError(f"{expression[:80]!r} is not one finite number")
    return value


# Each takes what it reads from the left of the tokens, and returns its value.
def _value(tokens, lowest=1):
    """Operands and operators of at least this precedence."""
    value = _signed(tokens)
    while _PRECEDENCE.get(tokens[0], 0) >= lowest:
        sign = tokens.popleft()
        value = _OPERATIONS[sign](value, _value(tokens, _PRECEDENCE[sign] + 1))
    return value


def _signed(tokens):
    if tokens[0] in _SIGNS:
        return _SIGNS[tokens.popleft()](_signed(tokens))
    base = _atom(tokens)
    if tokens[0] not in ("^", "**"):
        return base
    tokens.popleft()
    return _power(base, _signed(tokens))


def _power(base, exponent):
    """A fraction where the result is small enough to be quick, else a float."""
    if isinstance(base, Fraction) and exponent == int(exponent):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) * bits <= 4096:
            return base ** int(exponent)
    return math.pow(base, exponent)


def _atom(tokens):
    token = tokens.popleft()
    if token == "(":
        value = _value(tokens)
        _expect(")", tokens)
    elif token[0].isdigit() or token[0] == ".":
        value = Fraction(token.rstrip("."))
    elif token in ("sqrt", "floor", "max", "min"):
        value = _function(token, tokens)
    else:
        raise ValueError(f"unexpected {token!r}")
    if tokens[0] == "%":
        tokens.popleft()
        value /= 100
    return value


def _function(name, tokens):
    _expect("(", tokens)
    arguments = [_value(tokens)]
    while tokens[0] == ",":
        tokens.popleft()
        arguments.append(_value(tokens))
    _expect(")", tokens)
    if name == "max":
        return max(arguments)
    if name == "min":
        return min(arguments)
    (number,) = arguments
    return math.sqrt(number) if name == "sqrt" else Fraction(math.floor(number))


def _expect(token, tokens):
    if tokens.popleft() != token:
        raise ValueError(f"expected {token!r}")


def show(value: Fraction | float, decimals: int | None = None) -> str:
    """The value as a calculator writes it: 2 decimals from 100 up, 4 below, 6 below 0.01, unless `decimals` says how
    many; halves go away from zero, trailing zeros are dropped."""
    if decimals is None:
        decimals = 6
        if abs(value) >= 0.01:
            decimals = 4
        if abs(value) >= 100:
            decimals = 2
    whole = math.floor(abs(Fraction(value)) * 10**decimals + Fraction(1, 2))
    before, after = divmod(whole, 10**decimals)
    text = f"{before}.{after:0{decimals}d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and whole else text


def mark(expression: str) -> str:
    """`12/4` -> `<<12/4=3>>`."""
    return f"<<{expression}={show(calculate(expression))}>>"


def wrong_marks(text: str) -> list[str]:
    """The marks in the text whose stated value is not their expression's, to half a unit of its last shown digit."""
    return [match[0] for match in MARK.finditer(text) if not _equal(match[1], match[2].replace(",", ""))]


def count_marks(text: str) -> dict[str, int]:
    """How many marks of a text hold their value, cannot be computed, hold another value, or are not closed."""
    found = MARK.findall(text)
    computable = sum(_is_computable(expression) for expression, _ in found)
    wrong = [mark for mark in wrong_marks(text) if _is_computable(MARK.fullmatch(mark)[1])]
    return {
        "computed": computable - len(wrong), "not computable": len(found) - computable,
        "another value": len(wrong), "left open": MARK.sub(" ", text).count("<<"),
    }  # fmt: skip


def _is_computable(expression: str) -> bool:
    try:
        calculate(expression)
    except CalculatorError:
        return False
    return True


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
        left, right = (re.sub(r"[$€£¥,]", "", side).replace(" x ", "*") for side in match.groups())
        bare = right.replace("%", "")
        by_fraction = re.sub(r"(/ +)(\d+/\d+)", r"\1(\2)", left)  # 60 / 3/4: by three quarters
        readings = [(left, right), (left.replace("%", ""), bare), (left, bare), (by_fraction, bare)]
        if not any(_equal(*reading) for reading in readings):
            wrong.append(match[0])
    return wrong


def _equal(expression: str, stated: str) -> bool:
    """Is the stated number (`3`, `0.33`, `12.5%`) the expression's value, to half a unit of its last shown digit?"""
    decimals = len(stated.partition(".")[2].strip(" %"))
    if stated.strip().endswith("%"):
        decimals += 2
    try:
        difference = abs(calculate(expression) - calculate(stated))
    except CalculatorError:
        return False
    return difference <= Fraction(1000001, 2000000) / 10**decimals
