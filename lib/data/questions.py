"""What a row asks, as it is compared: its turns, and a text's numbers and words."""

import re
from collections import Counter
from dataclasses import dataclass

LONGEST = 20_000  # characters of a text that are compared: its beginning and its end
STOP = frozenset(
    "a an the of to in on at by for from with and or but if is are was were be been it its he she they him her them "
    "his their this that these those as so than then there what which how many much do does did will would can could "
    "has have had i you we my your our".split()
)
SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " \
        "seventeen eighteen nineteen"  # fmt: skip
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: float(value) for value, word in enumerate(SMALL.split())}
VALUES |= {word: 10.0 * value for value, word in enumerate(TENS.split(), 2)}
VALUES |= {"twice": 2.0, "double": 2.0, "thrice": 3.0, "triple": 3.0, "half": 0.5}
SCALES = {"dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9}
TOKEN = re.compile(r"\b[a-z]\d{1,2}\b(?![.,]\d)|(?<![\w.)])-(?=\.?\d)|\d[\d,]*(?:\.\d+)?|\.\d+|[^\W\d_]+")
UNSPACED = re.compile(  # scripts without spaces: Thai to Khmer, Japanese, Chinese; and Korean, whose endings vary
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]+"
)
UNIT = re.compile(rf"\.?\d(?:[\d.,]*\d)?|{UNSPACED.pattern[:-1]}|(?:(?!{UNSPACED.pattern[:-1]})[^\W\d_])+")
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}  # full-width letters, digits, marks
ENDING = re.compile(r"(?<=\w{3})(?:ings?|ed|e?s|ly|e)$")
NAME = re.compile(r"(?:(?<=\w )|(?<=[,(] ))[A-Z][a-z]\w*")
SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True)
class Content:
    """The numbers and words of a text, as sets: of a number that comes twice the second is another member."""

    numbers: frozenset[str]  # but for years
    years: frozenset[str]  # whole numbers from 1900 to 2099
    words: frozenset[str]  # stems; pairs of characters where no spaces part words
    sentences: frozenset[str] = frozenset()  # that many rows hold, each as one
    their_numbers: frozenset[str] = frozenset()

    @property
    def features(self) -> frozenset[str]:
        return self.numbers | self.years | self.words | self.sentences


def turns(row: dict) -> list[str]:
    """What the user says in a conversation, message by message."""
    return [_text(message) for message in row["messages"] if message["role"] == "user"]


def asked(row: dict) -> str:
    """All that is asked: what is set (system), said by the user, and told by tools. A block of running text (kind
    `text`) is asked and answered in one piece."""
    messages = [message for message in row["messages"] if message["role"] != "assistant"]
    if row.get("kind") == "text":
        messages = row["messages"]
    return "\n".join(map(_text, messages))


def before_answer(row: dict) -> str:
    """All of a conversation before its last answer, without case, spacing and punctuation: what two rows share that
    ask exactly the same."""
    earlier = (_text(message) for message in row["messages"][:-1] if message["role"] == "assistant")
    return normal("\n".join([asked(row), *earlier]))


def answers(row: dict) -> tuple[str, str]:
    """The chosen and the rejected answer of a preference pair, without case, spacing and punctuation."""
    return normal(_text(row["messages"][-1])), normal(str(row["rejected"] or ""))


def _text(message: dict) -> str:
    return message.get("content") or ""


def normal(text: str) -> str:
    """The text without case, spacing and punctuation; numbers keep their points, signs and units
    (8-4 is not 8+4)."""
    return " ".join(re.findall(r"\.?\d(?:[\d.,]*\d)?|\w+|[-+*/^%$€£¥<>=]", text.translate(WIDE).lower()))


def tokens(text: str) -> list[str]:
    """All words and numbers of a text as they come; single characters where no spaces part words."""
    return UNIT.findall(text.translate(WIDE).lower())


def content(text: str) -> Content:
    """The numbers and words of a text."""
    numbers, words = read(text)
    strong, years = set(), set()
    for number, times in Counter(numbers).items():
        if 1900 <= number < 2100 and number == int(number):
            years.add(f"{number:.0f}")
        else:
            strong.update(f"#{number} {k}" for k in range(times))
    return Content(frozenset(strong), frozenset(years), words)


def names(text: str) -> frozenset[str]:
    """The stems of words with a capital inside a sentence."""
    return read(" ".join(NAME.findall(text)))[1]


def shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]}\n{text[-LONGEST // 2 :]}"


def sentences(text: str) -> dict[str, str]:
    """The sentences and lines of a text (of a long one: of its ends) by their normal form, as they come."""
    parts = {normal(part): part for part in SENTENCE.split(shortened(text))}
    parts.pop("", None)
    return parts


def read(text: str, ones: bool = False) -> tuple[list[float], frozenset[str]]:
    """(the numbers in order, in digits or words, 1 only if asked; the stems of the content words)."""
    numbers, words, value, spelt, sign = [], set(), None, False, 1.0  # value: the number so far
    for token in [*TOKEN.findall(text.translate(WIDE).lower()), ""]:
        if token in SCALES:
            if value is None:
                value = 1.0
            value, spelt = value * SCALES[token], True
        elif spelt and token == "and" and value % 100 == 0:
            continue  # two hundred and fifty
        elif spelt and token in VALUES and _continues(value, VALUES[token]):
            value += VALUES[token]
        else:
            if value is not None:
                numbers.append(sign * value)
                sign = 1.0
            value, spelt = VALUES.get(token), token in VALUES
            if token[:1].isdecimal() or token[:1] == ".":
                value = float(token.replace(",", ""))
            elif token == "-":
                sign = -1.0
            elif value is None and token not in STOP:
                words.update(_stems(token))
    return [number for number in numbers if ones or abs(number) != 1], frozenset(words)


def _stems(token: str) -> list[str]:
    """A word without its ending; of a script without spaces its pairs of neighbouring characters."""
    if token.isascii() or not UNSPACED.search(token):
        return [ENDING.sub("", token)] if len(token) > 1 else []
    stems = _stems(UNSPACED.sub("", token)) if UNSPACED.sub("", token) else []
    for run in UNSPACED.findall(token):
        stems += [run[k : k + 2] for k in range(max(1, len(run) - 1))]
    return stems


def _continues(value: float, word: float) -> bool:
    """Does a number word go on with the one before it: `twenty` with `five`, `two hundred` with
    `fifty`?"""
    tens, hundreds = value % 100 >= 20 and value % 10 == 0, value >= 100 and value % 100 == 0
    return tens and 0 < word < 10 or hundreds and 2 <= word < 100
