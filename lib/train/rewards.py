"""What a sampled answer is paid for: small pure functions, each from 0 to 1, of its text alone.

Whatever is paid for is what a model learns to do, so `right` is the strict grader's verdict and more: an answer that
names a second value at another marker, or beside the first one, is no answer to be learnt."""

import re
import unicodedata

from lib.grade import calculator, scoring
from lib.grade.numerals import CURRENCIES, LONGEST_ANSWER, NUMBER, normal, plain
from lib.grade.reading import MARKER, after_thinking
from lib.run.settings import Rewards

PARTS = tuple(Rewards.model_fields)
SIGNS = re.compile(r"[^\w\s.,;>*_'\"()$}-]")  # that could turn a word's meaning, as in "!yes"
BARE = re.compile(r"\s*[-+]?[\d.,\s%]*")  # an expression without arithmetic


def parts(completion: str, gold: dict, finished: bool, tokens: int, most_tokens: int) -> dict[str, float]:
    """{part: from 0 to 1} of an answer of so many tokens, where at most `most_tokens` were allowed."""
    return {
        "right": right(completion, gold, finished), "shape": shape(completion, finished),
        "arithmetic": arithmetic(completion), "length": length(tokens, most_tokens),
    }  # fmt: skip


def total(parts: dict[str, float], weights: Rewards) -> float:
    """The reward: each part times its weight."""
    return sum(getattr(weights, name) * value for name, value in parts.items())


def right(completion: str, gold: dict, finished: bool = True) -> float:
    """1 where the strict grader calls a finished answer right and it commits to that: each of its markers says so, and
    after the last one nothing else stands, no word, no second value, no sign that cannot be seen."""
    if not finished or not scoring.grade(completion, gold).correct:
        return 0.0
    if "~~" in completion or any(unicodedata.category(character) == "Cf" for character in completion):
        return 0.0  # struck out, or with signs that are not seen
    text, said = after_thinking(normal(completion)), []
    begins = [marker.span() for marker in MARKER.finditer(text)]
    for (begin, end), following in zip(begins, [*begins[1:], (None, None)]):
        if text[end : following[0]].strip(" $*:\n"):  # a marker right before another, as "Answer: \\boxed{42}"
            said.append(text[begin : following[0]])
    return float(all(scoring.grade(part, gold).correct for part in said) and _is_alone(_last(text), gold))


def _last(text: str) -> str:
    """What stands after the last marker, to the end."""
    *_, marker = MARKER.finditer(text)
    return text[marker.end() :].strip().removesuffix("</answer>").strip()  # of a box with its closing brace


def _is_alone(said: str, gold: dict) -> bool:
    """Is this a number, with its unit at most, or the very words of a gold that is a choice or a truth value?"""
    if "\n" in said or len(said) > LONGEST_ANSWER:  # what the grader reads of it
        return False
    words = re.findall(r"\w+", said.casefold())
    if isinstance(gold["value"], bool) or gold.get("unit") == "bool":
        return words in (["yes"], ["no"], ["true"], ["false"]) and not SIGNS.search(said)
    if isinstance(gold["value"], str):
        return words == re.findall(r"\w+", gold["value"].casefold()) and not SIGNS.search(said)
    number = CURRENCIES.sub(" ", plain(said.rstrip("}$ ."))).strip(" =")
    return NUMBER.fullmatch(number) is not None


def shape(completion: str, finished: bool = True) -> float:
    """1 where the answer has one marker, on its last line, and ends there."""
    text = after_thinking(normal(completion))
    return float(finished and len(MARKER.findall(text)) == 1 and "\n" not in _last(text))


def arithmetic(completion: str) -> float:
    """The share of its marks that hold their expression's value; a mark that computes nothing is no mark."""
    marks = [mark for mark in calculator.MARK.finditer(completion) if not BARE.fullmatch(mark[1])]
    if not marks:
        return 0.0
    wrong = sum(bool(calculator.wrong_marks(mark[0])) for mark in marks)
    return 1 - wrong / len(marks)


def length(tokens: int, most_tokens: int) -> float:
    """The share of the tokens allowed that the answer leaves."""
    return 1 - min(tokens, most_tokens) / most_tokens

