"""A completion -> what a data set's own protocol says of it: FinQA's execution accuracy, TAT-QA's exact match and F1.

These stand beside our grader (`scoring`), so that a score can be set beside published ones. A row's `published` names
its protocol: {"protocol": "finqa", "exe_ans": a number, "yes" or "no"}, or {"protocol": "tatqa", "answer" (as it was
published), "answer_type": of ANSWER_TYPES, "scale": of TATQA_SCALES}.
"""

import re
import string
from dataclasses import dataclass
from fractions import Fraction

from lib.grade.calculator import MARK, CalculatorError, calculate, show
from lib.grade.numerals import Reading, normal
from lib.grade.reading import LONGEST_LINE, answer_line, readings

ANSWER_TYPES = ("arithmetic", "count", "span", "multi-span")
TATQA_SCALES = ("", "thousand", "million", "billion", "percent")
MEASURES = {"finqa": "execution accuracy", "tatqa": "exact match"}


@dataclass(frozen=True, slots=True)
class Score:
    """A protocol's verdict; `read` and `wanted` are what it compared, `f1` is None where it knows none."""

    correct: bool
    read: float | str | None
    wanted: float | str
    f1: float | None = None


def grade(completion: str, published: dict, unit: str = "none") -> Score:
    """The verdict of the protocol that `published` names; `unit`: the gold's. ValueError for one that is not known."""
    match published.get("protocol"):
        case "finqa":
            return finqa(completion, published["exe_ans"], unit == "percent")
        case "tatqa":
            # a line does not say whether its commas stand between spans or in one: the better reading counts
            whole = re.sub(r"\s*percent$", "%", _line(completion))
            scores = [tatqa(*tatqa_prediction(completion), published), tatqa(whole, "", published)]
            return max(scores, key=lambda score: (score.correct, score.f1))
        case other:
            raise ValueError(f"unknown protocol {other!r} in 'published'; choose from {', '.join(MEASURES)}")


# ---- FinQA
_LITERAL = re.compile(r"\d+\.?\d*|\.\d+")
_NO_NUMBER = re.compile(r"[^-\d.%]")  # in the value that a mark shows
_HUNDREDFOLD = re.compile(r"100\*(?:\(.*\)|[\d.]+/[\d.]+)|.*\*100")
_EXACT = 30  # decimals of a value that goes on into later steps: fractions would grow with each


def finqa(completion: str, exe_ans: float | str, in_percent: bool = False) -> Score:
    """FinQA's execution accuracy: the program's result, rounded to five decimals, is `exe_ans`; yes and no are equal.

    A completion's program are its `<<expression=value>>` marks, one a step: an operand that equals an earlier mark's
    shown value stands for that mark's exact one, as `#0` does in FinQA's programs. The result is what the last mark
    computes whose value, shown or exact, is the marked answer (rounded, and perhaps in percent); an answer that is of
    no mark counts as it stands.

    FinQA's percents are fractions, so an answer with a percent sign is taken by the hundredth, and one without whose
    mark is a hundredfold (`100*(...)`, `100*a/b`) may be. `in_percent`: this `exe_ans` is one of the few in percent.

    Source: Chen et al. 2021, FinQA, section 5; github.com/czyssrs/FinQA, code/evaluate/evaluate.py."""
    if exe_ans in ("yes", "no"):
        answer = next(readings(completion, "bool"))
        read = {True: "yes", False: "no"}.get(answer.value if answer.reading == "marker" else None)
        return Score(read == exe_ans, read, exe_ans)
    answer, exe_ans = next(readings(completion, "none")), float(exe_ans)
    if answer.error or answer.reading != "marker":
        return Score(False, None, exe_ans)
    results = [float(result) for result in _results(completion, answer, in_percent)]
    correct = any(round(result, 5) == round(exe_ans, 5) for result in results)
    return Score(correct, results[0], exe_ans)


def _results(completion: str, answer: Reading, in_percent: bool) -> list[Fraction]:
    """What the program may have given, in the unit of `exe_ans`: two values where a percent sign is missing."""
    shown = Fraction(answer.value)
    percent = answer.unit == "percent"
    hundredth = 1 if in_percent or not percent else 100
    for expression, stated, value in reversed(_executed(completion)):
        if _shows(shown, answer.step, stated, value):
            if not percent and not in_percent and _HUNDREDFOLD.fullmatch(expression):
                return [value / 100, value]
            return [value / hundredth]
        if percent and _shows(shown / 100, answer.step / 100, stated, value):
            return [value * 100 / hundredth]
    return [shown / hundredth]


def _executed(completion: str) -> list[tuple[str, Fraction, Fraction]]:
    """(expression without spaces, shown value, exact value) of each mark that can be computed."""
    executed, by_shown = [], {}
    for expression, text in MARK.findall(completion):
        exact = _LITERAL.sub(lambda literal: by_shown.get(Fraction(literal[0].rstrip(".")), literal[0]), expression)
        try:
            value, stated = Fraction(calculate(exact)), Fraction(calculate(_NO_NUMBER.sub("", text)))
        except CalculatorError:
            continue
        executed.append(("".join(expression.split()), stated, value))
        by_shown[abs(stated)] = show(abs(value), _EXACT)
    return executed


def _shows(shown: Fraction, step: float, *values: Fraction) -> bool:
    """Is `shown` one of the values, rounded to its last digit?"""
    return any(abs(shown - value) <= Fraction(step) / 2 * Fraction(1000001, 1000000) for value in values)


# ---- TAT-QA
_SCALE_WORDS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "percent": 0.01}
_NO_DIGITS = str.maketrans("", "", "'\"\\$€£¥%(),[]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WITH_WORD = re.compile(r"(?<![\d.])[\d.]++\s?[a-zA-Z]+")
_LONGEST_NUMBER = 200  # digits; no report has a longer one
_SUFFIX = re.compile(r"\s*(%|\b(?:thousand|million|billion|percent)s?)[\s.]*$", re.IGNORECASE)


def tatqa_prediction(completion: str) -> tuple[list[str], str]:
    """(answers, scale) as TAT-QA's predictions give them: what stands after the last marker, parts between `, `.

    `#### 12.5 million` is (["12.5"], "million"), `#### -22.22%` (["-22.22"], "percent"). Without a marker, which
    this protocol does not know, it is the last line; nothing is ([], "")."""
    line = normal(_line(completion))
    parts = [part.strip() for part in re.split(r",\s+", line) if any(map(str.isalnum, part))]
    scales = {_scale_of(part) for part in parts} - {""}
    if len(scales) != 1:
        return parts, ""
    return [_SUFFIX.sub("", part) if _scale_of(part) else part for part in parts], *scales


def _line(completion: str) -> str:
    line = answer_line(completion)
    if line is None:
        line = completion.strip()[-LONGEST_LINE:].rpartition("\n")[2]
    return line if any(map(str.isalnum, line)) else ""


def _scale_of(part: str) -> str:
    """The scale that a number is followed by; a text has none."""
    suffix = _SUFFIX.search(part)
    if not suffix or not _is_number(part[: suffix.start()]):
        return ""
    return suffix[1].lower().rstrip("s").replace("%", "percent")


def tatqa(answers: list[str] | str | float | None, scale: str | None, published: dict) -> Score:
    """TAT-QA's exact match and numeracy-focused F1 of one prediction.

    Answers are sorted and joined; a number among them is rounded to two decimals, times its scale, and shown with four
    decimals (one with a percent sign: its hundredth). Then texts are compared word by word in lower case, without
    articles and punctuation. A single number without a scale is also right by its bare value (0.2342 for 23.42 %).
    Exact match: the texts are equal. F1: of their sets of words, to two decimals; of computed answers and counts it is
    the exact match. (The official script aligns several such texts, but its own joining leaves one.)

    Source: Zhu et al. 2021, TAT-QA, section 5.2; github.com/NExTplusplus/TAT-QA, tatqa_metric.py."""
    kind = published["answer_type"]
    golds = published["answer"] if isinstance(published["answer"], list) else [published["answer"]]
    wanted = _normalised(_joined(golds, published["scale"]))
    if answers is None or answers in ([], "", 0):
        return Score(False, None, wanted, 0.0)
    answers = answers if isinstance(answers, list) else [answers]
    texts = [_joined(answers, scale or "")]
    bare = str(answers[0])
    if len(answers) == 1 and not scale and "%" not in bare and _is_number(bare) and _number(bare) is not None:
        texts.append(f"{_number(bare):.4f}")
    scores = []
    for read in map(_normalised, texts):
        f1 = float(read == wanted) if kind in ("arithmetic", "count") else _f1(set(read.split()), set(wanted.split()))
        scores.append(Score(read == wanted, read, wanted, f1))
    return max(scores, key=lambda score: (score.correct, score.f1))


def _joined(answers: list, scale: str) -> str:
    texts = []
    for text in sorted(map(str, answers)):
        number = _number(text) if _is_number(text) else None
        if number is None:
            texts.append(f"{text} {scale}" if scale else text)
        elif "%" in text:
            texts.append(f"{number:.4f}")
        else:
            texts.append(f"{round(number, 2) * _factor(scale):.4f}")
    return " ".join(texts)


def _factor(text: str) -> float:
    return next((factor for word, factor in _SCALE_WORDS.items() if word in text.lower()), 1)


def _is_number(text: str) -> bool:
    """A number alone, or followed by the word of a scale."""
    words = text.translate(_NO_DIGITS).split()
    try:
        return bool(words) and float(words[0]) == float(words[0]) and (len(words) == 1 or _factor(words[1]) != 1)
    except ValueError:
        return False


def _number(text: str) -> float | None:
    """The first number of a text times the scale that its word names; (5) is -5, and 5 % a hundredth."""
    digits = re.search(r"[+-]?\d+(?:\.\d+)?", text.translate(_NO_DIGITS))
    first = re.search(r"[+-]?\.?\d", text.translate(_NO_DIGITS))
    if not digits or first.start() < digits.start() or len(digits[0]) > _LONGEST_NUMBER:
        return None  # as .5, which the official script does not read
    number = float(digits[0]) if "." in digits[0] else int(digits[0])
    if word := _WITH_WORD.search(text):
        number *= _factor(word[0])
    if re.search(r"\([\d.\s]+\)", text.strip()):
        number = -number
    if re.search(r"[\d.\s]%", text.strip()):
        number *= 0.01
    return round(number, 4)


def _normalised(text: str) -> str:
    return " ".join(" ".join(map(_word, text.lower().split(" "))).split())


def _word(word: str) -> str:
    if not _is_number(word):
        word = word.translate(_NO_PUNCTUATION)  # which may leave a number
    if _is_number(word):
        return str(_number(word))
    return re.sub(r"\b(?:a|an|the)\b", " ", word)


def _f1(read: set[str], wanted: set[str]) -> float:
    shared = len(read & wanted)
    precision = shared / len(read) if read else 1.0
    recall = shared / len(wanted) if wanted else 1.0
    if not precision + recall:
        return 0.0
    return round(100 * (2 * precision * recall / (precision + recall))) / 100
