"""Engines that write an answer token by token, asked by token ids over HTTP: llama-server, vLLM, transformers."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import httpx

from lib.engine.client import EngineError


class EngineDown(EngineError):
    """The engine has ended, or is not there yet; asked again later it may answer."""


class Streaming(Protocol):
    """One engine's own protocol."""

    def write(
        self, ids: list[int], count: int, stops: Sequence[str], slot: int, sampling: dict[str, Any]
    ) -> AsyncIterator[list[int]]:
        """Up to `count` token ids after the prompt `ids`, as they come, through its end or a text in `stops`; those
        of more than one character may be overrun.

        `slot`: of llama-server's slots, the one that holds what was computed of this prompt already; `sampling`:
        "temperature", "top_p", "seed" and "ignore_eos", as OpenAI's protocol and vLLM name them."""


class Llama:
    """llama-server, by /completion."""

    def __init__(self, client: httpx.AsyncClient, tokenizer: Any):
        self.client, self.tokenizer = client, tokenizer

    async def write(self, ids, count, stops, slot, sampling):
        # Of its own samplers only those that the protocol names: all others are at what changes nothing. It tells a
        # token late while its text may begin a longer stop, and then not all that it needs to be read.
        short = [stop for stop in stops if len(stop.encode()) == 1]
        body = sampling | {"prompt": ids, "n_predict": count, "stop": short, "id_slot": slot, "stream": True,
                           "cache_prompt": True, "top_k": 0, "min_p": 0, "response_fields": ["truncated"]}  # fmt: skip
        if sampling["temperature"] == 0:
            body["top_k"] = 1
        told = 0
        async for said in _events(self.client, "/completion", body):
            if "tokens_predicted" not in said or not said.get("tokens"):
                continue
            tokens, counted = said["tokens"], said["tokens_predicted"]
            if counted - told > len(tokens):  # tokens of a part of a character are told with its last one, as text
                tokens = self.tokenizer.encode(said["content"], add_special_tokens=False) or tokens
            told = counted
            yield tokens


class Vllm:
    """vLLM's server, by /v1/completions, which takes and gives token ids."""

    def __init__(self, client: httpx.AsyncClient, model: str, ends: Sequence[int]):
        self.client, self.model, self.ends = client, model, list(ends)

    async def write(self, ids, count, stops, slot, sampling):
        body = sampling | {"model": self.model, "prompt": ids, "max_tokens": count, "stop": list(stops), "stream": True,
                           "include_stop_str_in_output": True, "return_token_ids": True}  # fmt: skip
        if not sampling["ignore_eos"]:
            body["stop_token_ids"] = self.ends
        async for said in _events(self.client, "/v1/completions", body):
            for choice in said["choices"]:
                if choice.get("token_ids"):
                    yield choice["token_ids"]


class Transformers:
    """`transformers serve`, by /v1/completions, which takes and gives texts, one request after the other.

    An answer comes in parts that end at a stop, not token by token, and its tokens are those of its text."""

    def __init__(self, client: httpx.AsyncClient, model: str, tokenizer: Any, ends: Sequence[int]):
        self.client, self.model, self.tokenizer, self.ends = client, model, tokenizer, list(ends)
        self.added = tokenizer.encode("")  # what the server puts before each text

    async def write(self, ids, count, stops, slot, sampling):
        if sampling["ignore_eos"]:
            raise EngineError("ignore_eos: transformers' server always ends an answer there")
        own = ids[len(self.added) :] if ids[: len(self.added)] == self.added else ids
        prompt = self.tokenizer.decode(own)
        body = {"model": self.model, "prompt": prompt, "max_tokens": count} | sampling
        del body["ignore_eos"]
        if stops:
            body["stop"] = list(stops)
        said = await _asked(self.client, "/v1/completions", body)
        (choice,) = said["choices"]
        text, tokens = choice["text"], self.tokenizer.encode(choice["text"], add_special_tokens=False)
        whole = self.tokenizer.encode(prompt + text, add_special_tokens=False)
        if whole[: len(own)] == own:
            tokens = whole[len(own) :]  # a first space is kept
        if choice["finish_reason"] == "stop" and not any(stop in text for stop in stops):
            tokens += self.ends[:1]
        yield tokens


async def _asked(client: httpx.AsyncClient, path: str, body: dict) -> dict:
    """An engine's whole answer."""
    try:
        response = await client.post(path, json=body)
    except httpx.TransportError as error:
        raise _down(error) from error
    _check(response.status_code, response.text)
    return response.json()


async def _events(client: httpx.AsyncClient, path: str, body: dict) -> AsyncIterator[dict]:
    """What an engine says, event by event."""
    try:
        async with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                _check(response.status_code, (await response.aread()).decode(errors="replace"))
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    said = json.loads(line[6:])
                    if "error" in said:
                        raise EngineError(f"the engine failed: {json.dumps(said['error'])[:500]}")
                    yield said
    except httpx.TransportError as error:
        raise _down(error) from error


def _check(status: int, text: str) -> None:
    """EngineDown where an engine is not there yet, EngineError where it refuses."""
    if status == 503:
        raise EngineDown("the engine is loading")
    if status != 200:
        raise EngineError(f"the engine refuses: {text[:500]}")


def _down(error: httpx.TransportError) -> EngineDown:
    return EngineDown(f"the engine has ended ({type(error).__name__})")
