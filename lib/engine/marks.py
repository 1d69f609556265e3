"""`<<expression=value>>` marks while a model writes: one rule for every engine and any vocabulary."""

import functools
import re
from collections.abc import Sequence
from typing import Any

from lib import SharpenError
from lib.grade.calculator import CalculatorError, calculate, show

OPEN = re.compile(r"<<[^<>=]{0,200}\Z")
CLOSED = re.compile(r"<<([^<>=]{1,200})=\Z")
ENDING = re.compile(r"(?:\A|<<)[^=]*=")
WINDOW = 900  # tokens; an expression has at most 200 characters of at most 4 bytes
WRITTEN = "0123456789.->="


class Marks:
    """While a mark is open, a token that holds an `=` counts as its text through that `=`, and the
    expression's value and `>>` follow. An expression that cannot be computed is left to the model.

    Byte-level vocabularies have tokens such as `=-`, `)=` or ` =>`: after them no text ends with `=`.
    SharpenError where a vocabulary cannot write a number."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        before = tokenizer.encode("a", add_special_tokens=False)[-1:]  # a first space would be lost
        texts = self._texts([before + [token] for token in range(len(tokenizer))])
        texts = [text[len(self._texts([before])[0]) :] for text in texts]
        single = {text: token for token, text in reversed(list(enumerate(texts)))}
        self.characters = {text: single[text] for text in WRITTEN if text in single}
        if len(self.characters) < len(WRITTEN):
            missing = "".join(text for text in WRITTEN if text not in single)
            raise SharpenError(f"the calculator cannot write with this vocabulary, which has no token "
                               f"for each of {missing}: set calculator = 'off'")  # fmt: skip
        # a token that holds an `=` -> what may end an expression in it: its text through each, and that text's tokens
        self.beginnings: dict[int, dict[str, tuple[int, ...]]] = {}
        for token, text in enumerate(texts):
            ends = [place.end() for place in ENDING.finditer(text)]
            if ends:
                self.beginnings[token] = {text[:end]: self._ids(token, text, end, single) for end in ends}
        self.opening = {token for token, text in enumerate(texts) if "<" in text}
        self.closing = {token for token, text in enumerate(texts) if ">" in text} - self.opening

    def _texts(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _ids(self, token: int, text: str, end: int, single: dict[str, int]) -> tuple[int, ...]:
        """Tokens that write the token's text up to `end`."""
        if end == len(text):
            return (token,)
        if text[:end] in single:
            return (single[text[:end]],)
        before = self.tokenizer.encode(text[: end - 1], add_special_tokens=False)
        return (*before, self.characters["="])

    def text(self, ids: Sequence[int]) -> str:
        """The end of what was written, as an answer shows it."""
        return self.tokenizer.decode(ids[-WINDOW:], skip_special_tokens=True)

    def _may_be_open(self, ids: Sequence[int]) -> bool:
        """Was a `<` written after the last `>`? It saves the decoding of most texts."""
        for token in reversed(ids[-WINDOW:]):
            if token in self.opening:
                return True
            if token in self.closing:
                return False
        return False

    def instead(self, ids: list[int], token: int) -> list[int]:
        """What is written where the model chose `token` after `ids`: the token itself or, where that
        completes an expression, its text through the `=`, the value and `>>`."""
        for beginning in self.beginnings.get(token, {}).values():
            value = self.value([*ids[-WINDOW:], *beginning])
            if value:
                return [*beginning, *value]
        return [token]

    def instead_of_all(self, ids: list[int]) -> dict[int, int]:
        """{token: the first token that is written in its place}, of every token for which that is
        another one: those that run over the `=` of an expression that can be computed."""
        if not self._may_be_open(ids):
            return {}
        mark = OPEN.search(self.text(ids))
        if not mark:
            return {}
        firsts, closed = {}, functools.cache(_closed)
        for token, beginnings in self.beginnings.items():
            first = next((own[0] for text, own in beginnings.items() if closed(mark[0] + text)), token)
            if first != token:
                firsts[token] = first
        return firsts

    def value(self, ids: list[int]) -> list[int]:
        """Tokens of the value and `>>` that follow `ids`; none where they do not end in the `=` of a
        mark that can be computed."""
        text = self.text(ids)
        closed = _closed(text)
        if not closed:
            return []
        mark, value = closed
        for tokens in self._ways(mark, value):
            if self.text([*ids[-WINDOW:], *tokens]).endswith(mark + value):
                return list(tokens)
        raise SharpenError(f"the calculator cannot write {value!r} after {text[-60:]!r} with this vocabulary: "
                           f"set calculator = 'off'")  # fmt: skip

    def forced(self, prompt: list[int], new: list[int]) -> list[bool]:
        """Which tokens of an answer the calculator wrote: those of values, each with its `>>`."""
        ids, written, left = [*prompt, *new], [], 0
        for place in range(len(prompt), len(ids)):
            if not left and (place == len(prompt) or ids[place - 1] in self.beginnings):
                left = len(self.value(ids[:place]))
            written.append(left > 0)
            left = max(0, left - 1)
        return written

    @functools.lru_cache(4096)  # noqa: B019  (it lives as long as its tokenizer)
    def _ways(self, mark: str, value: str) -> list[list[int]]:
        """How the value may be written: as within the whole mark (what training showed), alone, or
        character by character."""
        before, whole, alone = (
            self.tokenizer.encode(text, add_special_tokens=False) for text in (mark, mark + value, value)
        )
        ways = [alone, [self.characters[character] for character in value]]
        if whole[: len(before)] == before:
            ways.insert(0, whole[len(before) :])
        return ways


def _closed(text: str) -> tuple[str, str] | None:
    """(mark, value and `>>`) where a text ends in the `=` of a mark that can be computed."""
    mark = CLOSED.search(text)
    if not mark:
        return None
    try:
        return mark[0], show(calculate(mark[1])) + ">>"
    except CalculatorError:
        return None
