"""Claims about the three engines that write token by token: what each is sent, and the tokens that it is said to write.

None is started here; llama-server's way to tell tokens is copied from its sources (`process_token`)."""

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest

from lib.engine.client import EngineError
from lib.engine.streaming import EngineDown, Llama, Transformers, Vllm
from lib.front.protocol import Completion
from lib.front.writing import Answer, Model

SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "ignore_eos": False}
ENGINES = {
    "llama": lambda client, tokenizer: Llama(client, tokenizer),
    "vllm": lambda client, tokenizer: Vllm(client, "demo", [2]),
    "transformers": lambda client, tokenizer: Transformers(client, "demo", tokenizer, [2]),
}


def wrote(engine: str, answer, tokenizer, ids=(5, 6), count=9, stops=(), sampling=SAMPLING) -> list[list[int]]:
    """What an engine is said to write, where its server answers a request's body by `answer`."""
    return asyncio.run(_wrote(ENGINES[engine], answer, tokenizer, list(ids), count, stops, sampling))


async def _wrote(make, answer, tokenizer, ids, count, stops, sampling):
    def handle(request):
        assert request.method == "POST"
        return answer(request.url.path, json.loads(request.content))

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://engine") as client:
        return [tokens async for tokens in make(client, tokenizer).write(ids, count, stops, 3, sampling)]


def told(*events) -> httpx.Response:
    """A stream of these events, between lines that are none."""
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    return httpx.Response(200, text="\n\n".join([": ping", *lines, "data: [DONE]", ""]))


class LlamaServer:
    """llama-server, that writes a text by heart: it tells a token's id once its character is whole, and holds back the
    text, not the id, of what may become a stop."""

    def __init__(self, tokenizer, text):
        self.tokenizer, self.tokens, self.bodies = tokenizer, tokenizer.encode(text, add_special_tokens=False), []

    def bytes_of(self, token):
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        return name.replace("▁", " ").encode()

    def __call__(self, path, body):
        self.bodies.append(body)
        start = len(body["prompt"]) - len(self.bodies[0]["prompt"])
        events, text, sent = [], b"", 0
        for count, token in enumerate(self.tokens[start : start + body["n_predict"]], 1):
            text += self.bytes_of(token)
            try:
                new = text.decode()[sent:]
            except UnicodeDecodeError:
                continue
            stopped = min((new.find(stop) for stop in body["stop"] if stop in new), default=None)
            if stopped is not None:
                new = new[:stopped]
            elif any(new.endswith(stop[:size]) for stop in body["stop"] for size in range(1, len(stop))):
                new = ""
            sent += len(new)
            events.append({"content": new, "tokens": [token], "tokens_predicted": count, "stop": False})
            if stopped is not None:
                break
        return told(*events, {"truncated": False})


# --- llama-server -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature, top_k", [(0.5, 0), (0, 1)])
def test_llama_server_is_sent_ids_its_slot_and_no_sampler_of_its_own(tokenizer, temperature, top_k):
    server = LlamaServer(tokenizer, "So it")
    wrote("llama", server, tokenizer, stops=["="], sampling=SAMPLING | {"temperature": temperature})
    (body,) = server.bodies
    assert body == {
        "prompt": [5, 6], "n_predict": 9, "stop": ["="], "id_slot": 3, "stream": True, "cache_prompt": True,
        "temperature": temperature, "top_p": 0.9, "seed": 7, "ignore_eos": False, "top_k": top_k, "min_p": 0,
        "response_fields": body["response_fields"],
    }  # fmt: skip


@pytest.mark.parametrize("text, stops, through", [
    ("So it is 1=2", [], "So it is 1=2"), ("So it is 1=2", ["="], "So it is 1="), ("a é€b日 c", [], "a é€b日 c"),
    ("é=b", ["="], "é="), ("a\n\nb", ["\n\n"], "a\n\n"),
    ("a\né b", ["\n\n"], "a\né b"),  # the text of the first line's end is held back, and comes with the character's
    ("x。y", ["。"], "x。"), ("a é!b", ["é!"], "a é!"), ("a é b", ["é!", "="], "a é b"), ("日本", ["本"], "日本"),
])  # fmt: skip
def test_tokens_that_llama_server_tells_late_are_none_too_few_and_none_too_many(tokenizer, text, stops, through):
    expected = tokenizer.encode(through, add_special_tokens=False)
    tokens = sum(wrote("llama", LlamaServer(tokenizer, text), tokenizer, count=99, stops=stops), [])
    assert tokens[: len(expected)] == expected
    assert tokens == tokenizer.encode(text, add_special_tokens=False)[: len(tokens)]


@pytest.mark.parametrize("text, most", [("é€", 1), ("aé€", 4), ("aé€", 5), ("a", 1), ("a€b", 4)])
def test_an_answer_that_is_cut_in_half_a_character_ends_there(tokenizer, text, most):
    """llama-server tells nothing of it."""

    async def answer():
        transport = httpx.MockTransport(lambda request: server(request.url.path, json.loads(request.content)))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            model = Model("demo", tokenizer, Llama(client, tokenizer), 64, 60, 1, 1, 9)
            answer = Answer(model, Completion(model="demo", prompt="q", max_tokens=most), [5, 6])
            return "".join([piece async for piece in answer.pieces(0)]), answer.reason

    server = LlamaServer(tokenizer, text)
    shown, reason = asyncio.run(answer())
    whole = b"".join(map(server.bytes_of, server.tokens[:most])).decode(errors="ignore")
    assert (shown.rstrip("\ufffd"), reason) == (whole, "length")


# --- vLLM -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_vllm_is_sent_ids_and_tells_ids(tokenizer, ignore_eos):
    bodies = []

    def answer(path, body):
        bodies.append((path, body))
        choices = [[{"token_ids": [7], "text": "x"}], [{"text": ""}], [{"token_ids": [], "text": ""}], [],
                   [{"token_ids": [8, 10], "text": "=", "finish_reason": "stop"}]]  # fmt: skip
        return told(*({"choices": choice} for choice in choices))

    sampling = SAMPLING | {"ignore_eos": ignore_eos}
    assert wrote("vllm", answer, tokenizer, stops=["="], sampling=sampling) == [[7], [8, 10]]
    assert bodies == [("/v1/completions", {
        "model": "demo", "prompt": [5, 6], "max_tokens": 9, "stop": ["="], "stream": True, "temperature": 0.5,
        "top_p": 0.9, "seed": 7, "ignore_eos": ignore_eos, "include_stop_str_in_output": True, "return_token_ids": True,
    } | ({} if ignore_eos else {"stop_token_ids": [2]}))]  # fmt: skip


# --- transformers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stops, text, reason, ends", [
    ([], " it is", "stop", [2]), (["="], " it=", "stop", []), (["="], " it is", "stop", [2]),
    (["="], " it is", "length", []), ([], "", "stop", [2]),
])  # fmt: skip
def test_transformers_is_sent_a_text_and_tells_one(tokenizer, stops, text, reason, ends):
    bodies, ids = [], [1, *tokenizer.encode("So 12")]

    def answer(path, body):
        bodies.append((path, body))
        return httpx.Response(200, json={"choices": [{"text": text, "finish_reason": reason}]})

    tokens = wrote("transformers", answer, tokenizer, ids, stops=stops)
    assert tokens == [[*tokenizer.encode("So 12" + text)[len(ids) - 1 :], *ends]]
    expected = {"model": "demo", "prompt": "<s>So 12", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    assert bodies == [("/v1/completions", expected | ({"stop": stops} if stops else {}))]


def test_what_transformers_puts_before_each_text_is_not_sent_twice(tokenizer):
    class Begins:
        """A tokenizer that begins each text with <s>."""

        decode = staticmethod(tokenizer.decode)

        @staticmethod
        def encode(text, add_special_tokens=True):
            return [1] * add_special_tokens + tokenizer.encode(text, add_special_tokens=False)

    def answer(path, body):
        prompts.append(body["prompt"])
        return httpx.Response(200, json={"choices": [{"text": " it", "finish_reason": "length"}]})

    prompts, own = [], tokenizer.encode("So")
    for ids in ([1, *own], own):
        assert wrote("transformers", answer, Begins, ids) == [tokenizer.encode(" it")]
    assert prompts == ["So", "So"]


def test_transformers_cannot_write_on_after_an_end(tokenizer):
    with pytest.raises(EngineError, match="ignore_eos: transformers' server always ends an answer there"):
        wrote("transformers", None, tokenizer, sampling=SAMPLING | {"ignore_eos": True})


# --- failures ---------------------------------------------------------------------------------------------------------
def breaks(error):
    def answer(path, body):
        raise error

    return answer


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("answer, kind, message", [
    (lambda path, body: httpx.Response(400, text="not today"), EngineError, "the engine refuses: not today"),
    (lambda path, body: httpx.Response(500, content=b"\xff" * 600), EngineError, "the engine refuses: .{1,500}$"),
    (lambda path, body: httpx.Response(503, text="loading"), EngineDown, "the engine is loading"),
    (breaks(httpx.ConnectError("refused")), EngineDown, r"the engine has ended \(ConnectError\)"),
    (breaks(httpx.ReadError("reset")), EngineDown, r"the engine has ended \(ReadError\)"),
])  # fmt: skip
def test_what_an_engine_refuses_is_an_error_and_one_that_is_gone_is_down(tokenizer, engine, answer, kind, message):
    with pytest.raises(EngineError, match=message) as error:
        wrote(engine, answer, tokenizer)
    assert type(error.value) is kind


@pytest.mark.parametrize("engine", ["llama", "vllm"])
def test_an_error_within_a_stream_is_told(tokenizer, engine):
    with pytest.raises(EngineError, match="the engine failed: .*no block is left") as error:
        wrote(engine, lambda path, body: told({"error": {"message": "no block is left"}}), tokenizer)
    assert type(error.value) is EngineError


@pytest.mark.parametrize("leaves", ["engine", "reader"])
def test_who_leaves_in_the_middle_is_noticed_by_the_other(tokenizer, leaves):
    async def asked():
        gone = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            event = b'data: {"content": "x", "tokens": [7], "tokens_predicted": 1}\n\n'
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            if leaves == "reader":
                gone.set_result(await reader.read())
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                async with aclosing(Llama(client, tokenizer).write([5], 9, [], 0, SAMPLING)) as writing:
                    assert await anext(writing) == [7]
                    if leaves == "engine":
                        with pytest.raises(EngineDown, match="the engine has ended"):
                            await anext(writing)
                if leaves == "reader":
                    assert await asyncio.wait_for(gone, 5) == b""

    asyncio.run(asked())
