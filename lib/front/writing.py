"""An answer while it is written: by an engine and, where it completes a mark, by the calculator."""

import asyncio
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lib.data import chat
from lib.engine.client import EngineError
from lib.engine.marks import CLOSED, Marks
from lib.engine.streaming import Streaming
from lib.front.protocol import Asked, Chat, Refused
from lib.front.shown import Shown


@dataclass(frozen=True)
class Model:
    """A model that is served, and how.

    `context`: tokens of the longest prompt and answer together; `most`: an answer's tokens where a request names none;
    `slots`: requests answered at once; `queue`: those that may wait; `seconds`: of a request, its waiting included."""

    name: str
    tokenizer: Any
    engine: Streaming
    context: int
    most: int
    slots: int
    queue: int
    seconds: float
    marks: Marks | None = None  # the calculator; None: it has none

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return frozenset(chat.end_ids(self.tokenizer))

    def prompt(self, asked: Asked) -> list[int]:
        """Token ids of what is asked; of a chat by the model's own template."""
        try:
            if isinstance(asked, Chat):
                messages = [message.plain() for message in asked.messages]
                if messages[-1]["role"] == "assistant":
                    raise Refused(400, "the last message must be the user's", "invalid_value", "messages")
                return chat.prompt_ids(messages, self.tokenizer)
            ids = asked.prompt
            if isinstance(ids, str):
                ids = self.tokenizer.encode(ids, **chat.UNTOLD)
        except (UnicodeError, TypeError):
            raise Refused(400, "a text is no valid Unicode", "invalid_value") from None
        except TemplateError as error:  # it does not take such turns
            raise Refused(400, f"the chat template refuses: {error}", "invalid_value", "messages") from None
        size = len(self.tokenizer)
        if not ids or not all(0 <= token < size for token in ids):
            told = f"a prompt is a text, or token ids from 0 to {size - 1}; it is not empty"
            raise Refused(400, told, "invalid_value", "prompt")
        return ids


class Answer:
    """One answer while it is written. The calculator's tokens count as the answer's, as in an evaluation."""

    def __init__(self, model: Model, asked: Asked, prompt: list[int]):
        self.model, self.asked, self.prompt = model, asked, prompt
        self.id = f"{'chatcmpl' if isinstance(asked, Chat) else 'cmpl'}-{uuid.uuid4().hex}"
        self.created, self.tokens = int(time.time()), []
        self.text, self.reason = "", None  # as far as it was given on; why it ended
        self.computed, self.failed = 0, 0  # marks
        wanted = getattr(asked, "max_completion_tokens", None) or asked.max_tokens
        room = model.context - len(prompt)
        if room < (wanted or 1):
            raise Refused(400, f"{len(prompt)} tokens of prompt and {wanted or 1} of answer are more than this model's "
                               f"context of {model.context} tokens", "context_length_exceeded")  # fmt: skip
        self.most = wanted or min(model.most, room)
        if asked.calculator and not model.marks:
            raise Refused(400, "this model is served without a calculator", "unsupported", "calculator")
        self.filling = model.marks if asked.calculator is not False else None
        settles = asked.marks if self.filling or asked.marks == "hide" else None
        self.shown = Shown(settles, asked.stop)
        self.ends = frozenset() if asked.ignore_eos else model.ends

    async def pieces(self, slot: int) -> AsyncIterator[str]:
        """The answer's text as it settles; afterwards `reason` says why it ended."""
        begun, decoded, read = 0, 0, ""
        if self.filling:  # a prompt may end in an open mark
            value = self.filling.value(self.prompt)
            self.tokens, self.computed = value[: self.most], int(bool(value))
            if len(self.tokens) == self.most:
                self.reason = "length"
        while not self.reason:
            async with aclosing(self._more(slot)) as grown:
                async for _ in grown:
                    known, text = self._text(begun, decoded), self._text(begun)
                    if len(text) <= len(known) or text.endswith("\ufffd"):  # half a character
                        continue
                    begun, decoded, text = decoded, len(self.tokens), text[len(known) :]
                    read += text
                    if settled := self.shown.add(text):
                        yield self._give(settled)
                    if self.shown.stopped:
                        self.reason = "stop"
                        return
        if rest := self.shown.add(self._text(0)[len(read) :]) + self.shown.rest():  # it may end in half a character
            yield self._give(rest)

    async def _more(self, slot: int) -> AsyncIterator[None]:
        """Write on until the engine stops; with the calculator it does so at each `=`."""
        before, goes_on = len(self.tokens), True
        asked, stops = self.asked, [*self.asked.stop, *(["="] if self.filling else [])]
        sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "ignore_eos": asked.ignore_eos}
        if asked.seed is not None:  # each part has its own: all would begin with the same draws
            sampling["seed"] = (asked.seed + before) % 2**31
        writing = self.model.engine.write(self.prompt + self.tokens, self.most - before, stops, slot, sampling)
        async with aclosing(writing):
            async for tokens in writing:
                for token in tokens:
                    goes_on = goes_on and self._take(token)
                yield
        if len(self.tokens) == before and self.most - before < 4:
            self.reason = "length"  # llama-server tells nothing of half a character
        elif len(self.tokens) == before:
            raise EngineError("the engine answered without a token")
        if not self.reason and len(self.tokens) == self.most:
            self.reason = "length"

    def _take(self, token: int) -> bool:
        """What the engine chose, or what the calculator writes in its place; may the engine write on from there?"""
        written = [token]
        if self.filling and token in self.filling.beginnings:
            before = self.prompt + self.tokens
            written = self.filling.instead(before, token)
            if written != [token]:
                self.computed += 1
            elif self._completes(before, token):
                self.failed += 1
        self.tokens += written[: self.most - len(self.tokens)]
        if token in self.ends:
            self.reason = "stop"
        return written == [token] and not self.reason

    def _completes(self, before: list[int], token: int) -> bool:
        """Does a token complete an expression, be it one that cannot be computed?"""
        ends = self.filling.beginnings[token].values()
        return any(CLOSED.search(self.filling.text([*before, *end])) for end in ends)

    def _text(self, begin: int, end: int | None = None) -> str:
        return self.model.tokenizer.decode(self.tokens[begin:end], skip_special_tokens=True)

    def _give(self, text: str) -> str:
        self.text += text
        return text

    @functools.cached_property
    def usage(self) -> dict[str, Any]:
        """The tokens of an answer that has ended; which are the calculator's is read from its text once."""
        prompt, written, calculated = len(self.prompt), len(self.tokens), 0
        if self.computed:
            calculated = sum(self.model.marks.forced(self.prompt, self.tokens))
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
                "completion_tokens_details": {"calculator_tokens": calculated}}  # fmt: skip

    # --- by OpenAI's forms
    def whole(self) -> dict[str, Any]:
        """The response of a request that does not stream."""
        content = self._hidden() | {"text": self.text}
        if isinstance(self.asked, Chat):
            content = {"message": self._hidden() | {"role": "assistant", "content": self.text}}
        return self._form(content, self.reason) | {"usage": self.usage}

    def chunk(self, text: str, reason: str | None = None, **delta: Any) -> str:
        """A part of a stream."""
        content = {"text": text} | delta
        if isinstance(self.asked, Chat):
            content = {"delta": {"content": text} | delta}
        return event(self._form(content, reason))

    def last_chunks(self) -> str:
        """The end of a stream: why the answer ended, its hidden marks and, where asked for, its tokens."""
        said = self.chunk("", self.reason, **self._hidden())
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            said += event(self._form({}, None) | {"choices": [], "usage": self.usage})
        return said + "data: [DONE]\n\n"

    def _hidden(self) -> dict[str, list[str]]:
        if self.asked.marks == "hide":
            return {"marks": self.shown.hidden}
        return {}

    def _form(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        kind = "text_completion"
        if isinstance(self.asked, Chat):
            kind = "chat.completion.chunk" if self.asked.stream else "chat.completion"
        choice = {"index": 0, **content, "finish_reason": reason, "logprobs": None}
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name,
                "choices": [choice]}  # fmt: skip


def event(said: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(said, separators=(',', ':'))}\n\n"


class Queue:
    """Slots of an engine, each with what it has computed: a prompt goes to the one that knows at least half of it, else
    to the one that was not used for the longest time."""

    def __init__(self, slots: int, most: int):
        self.most, self.inside = most, 0
        self.closed = False  # no engine will answer any more
        self.free: list[tuple[int, list[int]]] = [(slot, []) for slot in range(slots)]  # the longest unused first
        self.slots, self.semaphore = slots, asyncio.Semaphore(slots)

    def enter(self) -> None:
        """Take a place. Refused where as many wait as may, or nothing answers any more."""
        if self.closed:
            raise Refused(503, "the engine was given up", "engine_down")
        if self.inside >= self.slots + self.most:
            told = f"{self.waiting()} requests are waiting already; ask again later"
            raise Refused(429, told, "queue_full")
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    def running(self) -> int:
        return self.slots - len(self.free)

    def waiting(self) -> int:
        return self.inside - self.running()

    @asynccontextmanager
    async def slot(self, answer: Answer) -> AsyncIterator[int]:
        async with self.semaphore:
            known = [_shared(answer.prompt, ids) for _, ids in self.free]
            most = max(known)
            slot, _ = self.free.pop(known.index(most) if 2 * most >= len(answer.prompt) else 0)
            try:
                yield slot
            finally:
                self.free.append((slot, answer.prompt + answer.tokens))


def _shared(some: Sequence[int], other: Sequence[int]) -> int:
    """How many token ids two texts begin with alike."""
    return next((place for place, (a, b) in enumerate(zip(some, other)) if a != b), min(len(some), len(other)))
