"""Claims about the server before an engine: OpenAI's protocol, the calculator's marks, and who waits, leaves or fails.

The engine is scripted; `Served`, which evaluations ask, says what an answer's tokens are."""

import asyncio
import contextlib
import copy
import itertools
import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
import uvicorn

from lib import SharpenError
from lib.data import chat
from lib.engine.client import EngineError, Served
from lib.engine.marks import Marks
from lib.engine.streaming import EngineDown
from lib.front import app as front
from lib.front.writing import Model
from lib.run.paths import ROOT
from lib.ship import serve

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
CONTEXT, MOST = 128, 60
NEVER = 1000  # tokens; no answer has as many


class Scripted:
    """Writes texts by heart, token by token, and notes what it is asked. From a mark that the calculator filled it goes
    on behind that mark, whatever it would have written there."""

    slots, model = 1, Path("scripted.gguf")  # as `Served` asks it

    def __init__(self, tokenizer):
        self.tokenizer, self.plays, self.notes, self.numbers = tokenizer, [], [], itertools.count()
        self.before = tokenizer.encode("a", add_special_tokens=False)

    def learn(self, text, question=None, waits=NEVER, fails=NEVER, error=None, parts=1):
        """The question that this text (or these token ids) answers. The engine `waits` for ever, or `fails`, after so
        many tokens of it, and tells them `parts` at once."""
        question = question or f"Question {next(self.numbers)}:"
        prompts = [chat.prompt_ids([{"role": "user", "content": question}], self.tokenizer),
                   self.tokenizer.encode(question, add_special_tokens=False)]  # fmt: skip
        play = SimpleNamespace(question=question, text=text, waits=waits, fails=fails, error=error, parts=parts)
        self.plays += [(prompt, play) for prompt in prompts]
        return question

    def _text(self, ids):
        return self.tokenizer.decode([*self.before, *ids], skip_special_tokens=True)[1:]  # a first space is kept

    def _next(self, ids, count, stops, ignore_eos=False):
        """What is asked for, how many tokens of it are written already, and those that follow."""
        known = [(prompt, play) for prompt, play in self.plays if ids[: len(prompt)] == prompt]
        if not known:
            raise EngineError("nobody learnt this by heart")
        prompt, play = max(known, key=lambda pair: len(pair[0]))
        new, tokens = ids[len(prompt) :], []
        if isinstance(play.text, list):
            rest = play.text[len(new) :]
        else:
            written, text = self._text(new), play.text
            if not text.startswith(written):
                marks = written.count(">>")
                written = ">>".join(text.split(">>")[:marks]) + ">>"
            rest = self.tokenizer.encode(text[len(written) :], add_special_tokens=False)
        for token in [*rest, *([] if ignore_eos else [self.tokenizer.eos_token_id])][:count]:
            tokens.append(token)
            if any(stop in self._text(tokens) for stop in stops):
                break
        return play, len(new), tokens

    def complete(self, ids, count, stops, slot):
        return self._next(ids, count, stops)[2]

    async def write(self, ids, count, stops, slot, sampling):
        play, written, tokens = self._next(ids, count, stops, sampling["ignore_eos"])
        note = SimpleNamespace(question=play.question, ids=ids, count=count, stops=stops, slot=slot, sampling=sampling,
                               waits=False, closed=False, event=asyncio.Event(),
                               loop=asyncio.get_running_loop())  # fmt: skip
        self.notes.append(note)
        try:
            for place in range(0, len(tokens), play.parts):
                if written + place >= play.waits:
                    note.waits = True
                    await note.event.wait()
                    note.waits = False
                if written + place >= play.fails:
                    raise play.error
                await asyncio.sleep(0)
                yield tokens[place : place + play.parts]
        finally:
            note.closed = True

    def asked(self, question):
        return [note for note in self.notes if note.question == question]

    def free(self, question):
        """It goes on, to its end."""
        for note in self.asked(question):
            note.loop.call_soon_threadsafe(note.event.set)

    def waits(self, question):
        return any(note.waits and not note.closed for note in self.asked(question))


@pytest.fixture(scope="module")
def engine(tokenizer):
    return Scripted(tokenizer)


@pytest.fixture(scope="module")
def marks(tokenizer):
    return Marks(tokenizer)


def tcp():
    """A listening socket that says it is TCP's: asyncio sends at once on no other."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    return listening


@contextlib.contextmanager
def serving(engine, marks, slots=4, queue=8, seconds=30, listening=None, **options):
    """The front before this engine, by uvicorn on a free port."""
    model = Model("demo", engine.tokenizer, engine, CONTEXT, MOST, slots, queue, seconds, marks)
    app = front.app(model, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    with listening or tcp() as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
            yield SimpleNamespace(client=client, url=str(client.base_url), port=port, app=app)
        server.should_exit = True
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(engine, marks):
    with serving(engine, marks) as server:
        yield server


@pytest.fixture(scope="module")
def narrow(engine, marks):
    """One is answered, and one may wait."""
    with serving(engine, marks, slots=1, queue=1) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(engine, marks):
    with serving(engine, marks, slots=1, seconds=0.2) as server:
        yield server


def until(holds, seconds=5):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


# --- asking -----------------------------------------------------------------------------------------------------------
def body(kind, question, **rest):
    asked = {"messages": [{"role": "user", "content": question}]} if kind == "chat" else {"prompt": question}
    return {"model": "demo"} | asked | rest


def post(server, kind, question, **rest):
    return server.client.post(PATHS[kind], json=body(kind, question, **rest))


def events(text):
    """The events of a stream; its end is not one."""
    *events, end = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


def ask(server, question, kind="chat", streamed=False, **rest):
    """An answer's text, the parts that it came in, why it ended, its tokens and hidden marks."""
    if streamed:
        rest |= {"stream": True, "stream_options": {"include_usage": True}}
    response = post(server, kind, question, **rest)
    assert response.status_code == 200, response.text
    if not streamed:
        said = response.json()
        (choice,) = said["choices"]
        content = choice["message"] if kind == "chat" else choice
        text = content["content" if kind == "chat" else "text"]
        return SimpleNamespace(text=text, parts=[text], reason=choice["finish_reason"], usage=said["usage"],
                               marks=content.get("marks"))  # fmt: skip
    *said, last = events(response.text)
    assert last["choices"] == [] and not any("usage" in event for event in said)
    choices = [event["choices"][0] for event in said]
    contents = [choice["delta"] if kind == "chat" else choice for choice in choices]
    parts = [content["content" if kind == "chat" else "text"] for content in contents]
    assert not any(choice["finish_reason"] for choice in choices[:-1]) and parts[-1] == ""
    assert not any("marks" in content for content in contents[:-1])
    return SimpleNamespace(text="".join(parts), parts=parts, reason=choices[-1]["finish_reason"], usage=last["usage"],
                           marks=contents[-1].get("marks"))  # fmt: skip


def counts(server):
    """What /metrics tells: {name and labels: number}."""
    lines = server.client.get("/metrics").text.splitlines()
    return {name: float(number) for name, number in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@contextlib.contextmanager
def counted(server, **changes):
    """These numbers of /metrics grow by so much, and no others of their names do."""
    before = counts(server)
    yield
    after = counts(server)
    for name, labels in changes.items():
        grown = {key: after[key] - before.get(key, 0) for key in after if key.startswith(f"sharpen_{name}_total")}
        assert {re.sub(r".*\{|[}\"]", "", key): by for key, by in grown.items() if by} == labels


def connect(server, question, kind="chat", more=0, **rest):
    """A client that has asked and may leave: a socket. With `more` its request goes on."""
    data = json.dumps(body(kind, question, **rest)).encode()
    head = f"POST {PATHS[kind]} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.sendall(f"{head}Content-Length: {len(data) + more}\r\n\r\n".encode() + data)
    return client


def expected(engine, filling, question, kind="chat", most=MOST):
    """The tokens that an evaluation would get, and their text."""
    prompt = engine.tokenizer.encode(question, add_special_tokens=False)
    if kind == "chat":
        prompt = chat.prompt_ids([{"role": "user", "content": question}], engine.tokenizer)
    (tokens,) = Served(engine).answers([prompt], most, chat.end_ids(engine.tokenizer), filling)
    return len(prompt), tokens, engine.tokenizer.decode(tokens, skip_special_tokens=True)


REFUSED_429 = f'sharpen_requests_total{{route="{PATHS["chat"]}",status="429"}}'
WAYS = pytest.mark.parametrize("kind, streamed", [(kind, streamed) for kind in PATHS for streamed in (False, True)])
STREAMED = pytest.mark.parametrize("streamed", [False, True])


# --- an answer --------------------------------------------------------------------------------------------------------
@WAYS
def test_all_ways_to_ask_give_the_text_and_the_tokens_that_an_evaluation_gets(server, engine, marks, kind, streamed):
    question = engine.learn("So <<12*3=36>> it is 5 = 5, €5é and <<1/4=0>>")
    answer = ask(server, question, kind, streamed)
    prompt, tokens, text = expected(engine, marks, question, kind)
    assert (answer.text, answer.reason) == ("So <<12*3=36>> it is 5 = 5, €5é and <<1/4=0.25>>", "stop")
    assert answer.text == text
    assert answer.usage == {
        "prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens),
        "completion_tokens_details": {"calculator_tokens": 8},  # 3 6 >> and 0 . 2 5 >>
    }  # fmt: skip


def test_the_openai_client_reads_both(server, engine):
    question = engine.learn("So <<12*3=36>> it is.")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    messages, rest = [{"role": "user", "content": question}], {"marks": "hide"}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    whole = client.chat.completions.create(model="demo", messages=messages, extra_body=rest)
    *chunks, last = client.chat.completions.create(model="demo", messages=messages, extra_body=rest, **options)
    assert whole.choices[0].message.content == "So  it is." and whole.choices[0].message.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "So  it is."
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in [*chunks, last]}) == 1
    assert whole.choices[0].message.marks == chunks[-1].choices[0].delta.marks == ["<<12*3=36>>"]
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
    assert whole.usage == last.usage and whole.usage.completion_tokens_details.calculator_tokens == 3
    whole = client.completions.create(model="demo", prompt=question)
    *chunks, last = client.completions.create(model="demo", prompt=question, **options)
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == "So <<12*3=36>> it is."
    assert whole.usage == last.usage
    (told,) = client.models.list()
    assert (told.id, told.max_model_len, told.calculator) == ("demo", CONTEXT, True)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here, but 'demo'"):
        client.chat.completions.create(model="gpt", messages=messages)


def test_a_chat_is_told_by_the_models_template_and_a_prompt_as_text_or_as_token_ids(server, engine, tokenizer):
    question = engine.learn("yes")
    for messages in ([("user", question)], [("user", question), ("assistant", "No."), ("user", "Sure?")]):
        messages = [{"role": role, "content": content} for role, content in messages]
        response = server.client.post(PATHS["chat"], json={"model": "demo", "messages": messages})
        assert response.status_code == 200 and engine.notes[-1].ids == chat.prompt_ids(messages, tokenizer)
    parts = [{"type": "text", "text": question[:5]}, {"type": "text", "text": question[5:]}]
    assert ask(server, parts).text == "yes"
    ids = tokenizer.encode(question)
    assert ask(server, ids, "completion").text == ask(server, question, "completion").text == "yes"
    assert [note.ids for note in engine.notes[-2:]] == [ids, ids]


def test_many_at_once_each_get_their_own_answer(server, engine):
    questions = [engine.learn(f"It is <<{i}+1=0>>.") for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda i: ask(server, questions[i], streamed=bool(i % 2)).text, range(12))
        assert list(answers) == [f"It is <<{i}+1={i + 1}>>." for i in range(12)]


@STREAMED
@pytest.mark.parametrize("ids", [["<0xC3>", "<0xA9>", "<0xF8>", "▁it"], ["<0x30>", "<0xF8>", "▁it"],
                                 ["<0xC3>", "<0xBF>", "<0x98>", "▁", "▁it"], ["▁it", "<0xE2>", "<0x82>"]])  # fmt: skip
def test_bytes_that_are_no_characters_are_shown_as_such_and_break_nothing(server, engine, tokenizer, ids, streamed):
    question = engine.learn(tokenizer.convert_tokens_to_ids(ids))
    answer = ask(server, question, streamed=streamed)
    assert "�" in answer.text and "it" in answer.text and answer.reason == "stop"
    assert answer.usage["completion_tokens"] == len(ids) + 1


# --- the calculator ---------------------------------------------------------------------------------------------------
@STREAMED
@pytest.mark.parametrize("rest, written, shown", [
    ({}, "<<2+3=9>> so <<5*5=1>>", "<<2+3=5>> so <<5*5=25>>"),
    ({"calculator": True}, "<<2+3=9>>", "<<2+3=5>>"),
    ({"calculator": False}, "<<2+3=9>> so", "<<2+3=9>> so"),
    ({}, "a = b and 2+3=9 c", "a = b and 2+3=9 c"),  # an `=` outside a mark
    ({}, "<<x=3>> <<1/0=7>> ok", "<<x=3>> <<1/0=7>> ok"),
    ({}, "cut <<2+3", "cut <<2+3"),
])  # fmt: skip
@pytest.mark.parametrize("parts", [1, 100])
def test_the_calculator_writes_the_values_that_it_can_compute(server, engine, marks, rest, written, shown, parts,
                                                              streamed):  # fmt: skip
    question = engine.learn(written, parts=parts)
    assert ask(server, question, streamed=streamed, **rest).text == shown
    assert shown == expected(engine, marks if rest.get("calculator", True) else None, question)[2]


def test_the_engine_is_stopped_at_each_equals_sign_and_goes_on_from_what_was_written(server, engine, tokenizer):
    question = engine.learn("a=b <<2+3=9>> c")
    ask(server, question, "completion", stop=["zz"], calculator=True)
    notes, prompt = engine.asked(question), tokenizer.encode(question)
    assert [tokenizer.decode(note.ids[len(prompt) :]) for note in notes] == ["", "a=", "a=b <<2+3=5>>"]
    assert [sorted(note.stops) for note in notes] == [["=", "zz"]] * 3
    assert [note.count for note in notes] == [MOST - len(note.ids) + len(prompt) for note in notes]
    ask(server, question, "completion", calculator=False)
    (note,) = engine.asked(question)[3:]
    assert note.stops == [] and note.count == MOST


@pytest.fixture(scope="module")
def over(tokenizer):
    """(An engine whose vocabulary has tokens that run over an `=`, its marks, the front before it.)"""
    wide = copy.deepcopy(tokenizer)
    wide.add_tokens(["=9", "=-"])
    engine, filling = Scripted(wide), Marks(wide)
    with serving(engine, filling) as server:
        yield engine, filling, server


@STREAMED
@pytest.mark.parametrize("written, shown, marks", [
    ("<<2+3=9>> so", "<<2+3=5>> so", {"outcome=computed": 1}),
    ("<<2-3=-2>> so", "<<2-3=-1>> so", {"outcome=computed": 1}),
    ("a=9 and x=-1", "a=9 and x=-1", {}), ("<<x=9>> so", "<<x=9>> so", {"outcome=failed": 1}),
])  # fmt: skip
def test_a_token_that_runs_over_the_equals_sign_gets_the_calculators_value(over, written, shown, marks, streamed):
    engine, filling, server = over
    question = engine.learn(written)
    assert engine.tokenizer.decode(engine.complete(engine.plays[-1][0], 99, ["="], 0))[-1] in "9-"
    with counted(server, calculator_marks=marks):
        assert ask(server, question, streamed=streamed).text == shown
    assert shown == expected(engine, filling, question)[2]


@STREAMED
def test_marks_and_tokens_are_counted(server, engine, streamed):
    question = engine.learn("<<x=3>> <<2+3=5>> <<1/0=7>> <<2*6=12>> a=b")
    with counted(server, calculator_marks={"outcome=computed": 2, "outcome=failed": 2},
                 requests={"route=/v1/chat/completions,status=200": 1}):  # fmt: skip
        before = counts(server)
        usage = ask(server, question, streamed=streamed).usage
        grown = {kind: counts(server)[name] - before[name] for kind in ("prompt", "written", "calculator")
                 if (name := f'sharpen_tokens_total{{kind="{kind}"}}')}  # fmt: skip
    assert grown == {"prompt": usage["prompt_tokens"], "written": usage["completion_tokens"] - 5, "calculator": 5}
    for name in ("first_token", "request"):
        assert counts(server)[f"sharpen_{name}_seconds_count"] == before[f"sharpen_{name}_seconds_count"] + 1


@STREAMED
@pytest.mark.parametrize("kind, question", [("completion", "Go on: <<7*6="), ("chat", "What is <<7*6=")])
def test_a_prompt_may_end_in_an_open_mark_and_its_value_counts_as_the_calculators(server, engine, marks, kind, question,
                                                                                  streamed):  # fmt: skip
    engine.learn("42>> it is", question)
    with counted(server, calculator_marks={"outcome=computed": 1}):
        answer = ask(server, question, kind, streamed)
    assert answer.text == "42>> it is" == expected(engine, marks, question, kind)[2]
    assert answer.usage["completion_tokens_details"] == {"calculator_tokens": 3}


def test_the_value_of_a_prompts_open_mark_is_cut_like_an_answer(server, engine, marks):
    question = engine.learn("42>> it is", "Cut it: <<7*6=")
    answer = ask(server, question, "completion", max_tokens=2)
    assert (answer.text, answer.reason) == ("42", "length")
    assert answer.text == expected(engine, marks, question, "completion", 2)[2]


@STREAMED
def test_a_prompt_that_goes_on_after_its_equals_sign_is_answered(server, engine, streamed):
    question = engine.learn("yes", "What is <<7*6=\n")
    assert ask(server, question, streamed=streamed).text == "yes"


def test_a_model_without_a_calculator_writes_its_own_values(engine):
    question = engine.learn("<<2+3=9>> so")
    with serving(engine, None) as server:
        assert ask(server, question).text == ask(server, question, streamed=True).text == "<<2+3=9>> so"
        assert ask(server, question, marks="hide").marks == ["<<2+3=9>>"]
        response = post(server, "chat", question, calculator=True)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "calculator")
        assert server.client.get("/v1/models").json()["data"][0]["calculator"] is False


@WAYS
def test_hidden_marks_are_told_beside_the_text(server, engine, kind, streamed):
    question = engine.learn("2+3 = <<2+3=9>>5 and <<4*25=100>>100. 1 < 2")
    answer = ask(server, question, kind, streamed, marks="hide")
    assert answer.text == "2+3 = 5 and 100. 1 < 2" and answer.marks == ["<<2+3=5>>", "<<4*25=100>>"]
    assert ask(server, question, kind, streamed, marks="show").marks is None


@pytest.mark.parametrize("rest", [{}, {"calculator": False, "marks": "hide"}, {"marks": "hide"}, {"max_tokens": 12}])
def test_a_stream_never_shows_a_part_of_a_mark(server, engine, rest):
    question = engine.learn("So <<12*3=36>> it is <<36/4=9>>9. 1 < 2")
    answer = ask(server, question, streamed=True, **rest)
    assert answer.text == ask(server, question, **rest).text and len(answer.parts) > 4
    shown = ""
    for part in answer.parts:
        shown += part
        assert "<<" not in re.sub(r"<<[^<>]*>>", "", shown) and ("marks" not in rest or "<<" not in shown)


# --- where it ends ----------------------------------------------------------------------------------------------------
@WAYS
@pytest.mark.parametrize("stop, text", [
    ("three", "one two "), (["four", "tw"], "one "), ("o th", "one tw"), (["thx", "<<"], "one two three. "),
    (["four!", "\n\n"], "one two three. <<1+1=2>> four"), ([], "one two three. <<1+1=2>> four"),
    (None, "one two three. <<1+1=2>> four"), ("2>", "one two three. <<1+1="),
])  # fmt: skip
def test_nothing_is_given_from_a_stop_on(server, engine, kind, streamed, stop, text):
    question = engine.learn("one two three. <<1+1=9>> four")
    answer = ask(server, question, kind, streamed, stop=stop)
    assert (answer.text, answer.reason) == (text, "stop")
    assert all(note.closed for note in engine.asked(question))


@WAYS
@pytest.mark.parametrize("most, text, calculated", [
    (1, "S", 0), (10, "So <<12*3=3", 1), (12, "So <<12*3=36>>", 3), (6, "So <<12", 0),
])  # fmt: skip
def test_max_tokens_cuts_an_answer_and_the_calculators_tokens_count(server, engine, marks, kind, streamed, most, text,
                                                                    calculated):  # fmt: skip
    question = engine.learn("So <<12*3=99>> it")
    answer = ask(server, question, kind, streamed, max_tokens=most)
    assert (answer.text, answer.reason) == (text, "length") and text == expected(engine, marks, question, kind, most)[2]
    assert answer.usage["completion_tokens"] == most
    assert answer.usage["completion_tokens_details"] == {"calculator_tokens": calculated}


def test_an_answer_that_ends_with_its_last_token_was_not_cut(server, engine):
    question = engine.learn("So it is")
    tokens = ask(server, question).usage["completion_tokens"]
    assert ask(server, question, max_tokens=tokens).reason == "stop"
    cut = ask(server, question, max_tokens=tokens - 1)
    assert (cut.text, cut.reason) == ("So it is", "length")


def test_both_names_of_a_chats_length_count_and_without_one_the_models_or_what_room_there_is(server, engine):
    question = engine.learn("word " * 80)
    assert ask(server, question, max_completion_tokens=7).usage["completion_tokens"] == 7
    assert ask(server, question).usage["completion_tokens"] == MOST
    long = engine.learn("word " * 80, "x " * 42 + "?")
    answer = ask(server, long, "completion")
    assert answer.usage["total_tokens"] == CONTEXT and answer.usage["completion_tokens"] < MOST
    assert answer.reason == "length"


def test_ignore_eos_writes_on_where_an_answer_would_end(server, engine, tokenizer):
    question = engine.learn([*tokenizer.encode("So"), tokenizer.eos_token_id, *tokenizer.encode(" it")] * 9)
    assert ask(server, question).text == "So"
    answer = ask(server, question, ignore_eos=True, max_tokens=8)
    assert answer.text == "So itSo it" and answer.reason == "length"
    assert engine.notes[-1].sampling["ignore_eos"] is True


def test_temperature_top_p_and_seed_reach_the_engine_and_no_two_parts_have_one_seed(server, engine):
    question = engine.learn("<<1+1=2>> <<2+2=4>> a=b")
    ask(server, question)
    assert all(note.sampling == {"temperature": 1, "top_p": 1, "ignore_eos": False} for note in engine.asked(question))
    seeds = []
    for seed in (7, 7, 2**63 - 1, -5):
        engine.notes.clear()
        ask(server, question, temperature=0.5, top_p=0.9, seed=seed)
        samplings = [note.sampling for note in engine.asked(question)]
        seeds.append([sampling.pop("seed") for sampling in samplings])
        assert samplings == [{"temperature": 0.5, "top_p": 0.9, "ignore_eos": False}] * 4
        assert len(set(seeds[-1])) == 4 and all(0 <= seed < 2**31 for seed in seeds[-1])
    assert seeds[0] == seeds[1] and seeds[0][0] == 7 and seeds[0] != seeds[2]


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rest, param", [
    ({"tools": [{"type": "function"}]}, "tools"), ({"n": 2}, "n"), ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"), ({"guess": 1}, "guess"), ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"max_tokens": 0}, "max_tokens"), ({"stop": ["a"] * 5}, "stop"), ({"stop": ""}, "stop.0"),
    ({"marks": "some"}, "marks"), ({"seed": 2**64}, "seed"), ({"stream_options": {"x": 1}}, "stream_options.x"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"), ({"model": None}, "model"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages.0.name"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_its_name(server, engine, rest, param):
    asked = len(engine.notes)
    response = post(server, "chat", "q", **rest)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"].startswith(param) and error["type"] == "invalid_request_error"
    assert error["message"] and error["code"] == "invalid_value" and len(engine.notes) == asked


@pytest.mark.parametrize("rest, param", [
    ({"prompt": []}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": [5, 99999]}, "prompt"),
    ({"prompt": [-1]}, "prompt"), ({"prompt": ["a", "b"]}, "prompt"), ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"), ({"logprobs": 1}, "logprobs"), ({"suffix": "x"}, "suffix"),
])  # fmt: skip
def test_a_prompt_that_no_engine_takes_is_refused(server, rest, param):
    response = post(server, "completion", "q", **rest)
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize("kind, rest", [
    ("chat", {"n": 1, "user": "me", "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "tools": [],
              "stop": None, "seed": None, "max_tokens": None, "stream": False, "stream_options": None}),
    ("completion", {"n": 1, "user": "me", "best_of": 1, "echo": False, "logprobs": None, "presence_penalty": 0}),
])  # fmt: skip
def test_what_changes_nothing_is_accepted(server, engine, kind, rest):
    assert ask(server, engine.learn("yes"), kind, **rest).text == "yes"


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("content, told", [
    (b"{", "the request is no JSON: "), (b"", ""), (b"[1]", ""), (b"\xff\xfe{", ""), (b"[" * 100_000, ""),
    ({"temperature": float("nan")}, "temperature: "), ({"prompt": "\ud800"}, ""), ({"\ud800": 1}, ""),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, ""),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}, ""),
    ({"stop": ["\ud800"]}, "stop.0: "),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_in_the_same_form(server, kind, content, told):
    if isinstance(content, dict):
        content = json.dumps(body(kind, "q", **content)).encode()
    response = server.client.post(PATHS[kind], content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].startswith(told)


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}, {}])
def test_only_json_is_read(server, engine, headers):
    """A page of another origin may send no JSON without asking first."""
    content = json.dumps(body("chat", engine.learn("yes"))).encode()
    response = server.client.post(PATHS["chat"], content=content, headers=headers)
    assert response.status_code == 400 and response.json()["error"]["code"] == "invalid_value"


def test_another_model_or_route_is_not_found(server):
    response = post(server, "chat", "q", model="gpt")
    assert response.status_code == 404
    assert response.json()["error"] == {"message": "there is no model 'gpt' here, but 'demo'", "param": "model",
                                        "type": "invalid_request_error", "code": "model_not_found"}  # fmt: skip
    for method, path, status in (("POST", "/v1/embeddings", 404), ("GET", "/docs", 404), ("GET", PATHS["chat"], 405)):
        response = server.client.request(method, path)
        assert response.status_code == status and response.json()["error"]["code"] == "not_answered"


@STREAMED
@pytest.mark.parametrize("question, rest", [("x " * CONTEXT, {}), ("x", {"max_tokens": CONTEXT})])
def test_what_is_longer_than_the_context_is_refused(server, question, rest, streamed):
    response = post(server, "chat", question, stream=streamed, **rest)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_of_over_a_megabyte_is_refused(server, engine, chunked):
    for size, status in ((1 << 20, 200), ((1 << 20) + 1, 413)):
        content = json.dumps(body("chat", engine.learn("yes"))).encode().ljust(size)
        sent = (content[begin : begin + 100_000] for begin in range(0, size, 100_000)) if chunked else content
        response = server.client.post(PATHS["chat"], content=sent, headers={"Content-Type": "application/json"})
        assert response.status_code == status
        assert ("content-length" in response.request.headers) != chunked
    assert "1048576 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize("drips", [False, True])
def test_a_request_that_does_not_arrive_in_time_is_given_up(server, monkeypatch, drips):
    monkeypatch.setattr(front, "BODY_SECONDS", 0.15)
    with connect(server, "q", more=999) as client:
        client.settimeout(0.02)
        until_then, said = time.monotonic() + 0.8, b""
        while time.monotonic() < until_then and not said:
            with contextlib.suppress(TimeoutError):
                said = client.recv(1000)
            if drips and not said:
                client.sendall(b" ")
    assert said.startswith(b"HTTP/1.1 408 ")


# --- who waits, and who leaves ----------------------------------------------------------------------------------------
@STREAMED
def test_who_leaves_frees_a_slot_and_who_leaves_the_queue_a_place_in_it(narrow, engine, streamed):
    asked, waiting, refused, answered = (engine.learn(text, waits=waits) for text, waits in (
        ("never", 0), ("never", 0), ("no", NEVER), ("yes", NEVER)))  # fmt: skip
    route = "route=/v1/chat/completions,status="
    with counted(narrow, requests={f"{route}499": 2, f"{route}429": 1, f"{route}200": 1}):
        first = connect(narrow, asked, stream=streamed)
        until(lambda: engine.waits(asked))
        second = connect(narrow, waiting, stream=streamed)
        until(lambda: counts(narrow)["sharpen_requests_waiting"] == 1)
        assert counts(narrow)["sharpen_requests_running"] == 1
        response = post(narrow, "chat", refused, stream=streamed)
        assert response.status_code == 429 and int(response.headers["Retry-After"]) > 0
        assert response.json()["error"]["code"] == "queue_full"
        second.close()
        until(lambda: counts(narrow)["sharpen_requests_waiting"] == 0)
        first.close()
        until(lambda: engine.asked(asked)[0].closed)
        assert ask(narrow, answered, streamed=streamed).text == "yes"
        assert counts(narrow)["sharpen_requests_running"] == 0
    assert not engine.asked(waiting) and not engine.asked(refused)


def test_who_waits_is_answered_once_a_slot_is_free(narrow, engine):
    asked, waiting = engine.learn("never", waits=0), engine.learn("yes")
    with ThreadPoolExecutor(1) as pool, connect(narrow, asked):
        until(lambda: engine.waits(asked))
        answer = pool.submit(ask, narrow, waiting)
        until(lambda: counts(narrow)["sharpen_requests_waiting"] == 1)
        assert not answer.done() and not engine.asked(waiting)
        engine.free(asked)
        assert answer.result(5).text == "yes"


def test_no_more_wait_than_may_though_all_come_at_once(engine, marks):
    questions = [engine.learn("never", waits=0) for _ in range(24)]
    with serving(engine, marks, slots=1, queue=1) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(server, question)) for question in questions]
            until(lambda: counts(server).get(REFUSED_429, 0) + counts(server)["sharpen_requests_waiting"] == 23)
            assert counts(server)["sharpen_requests_waiting"] == 1 and len(clients) == 24


@pytest.mark.parametrize("kind", PATHS)
def test_who_leaves_in_the_middle_of_a_stream_ends_it(narrow, engine, kind):
    question = engine.learn("one two three four", waits=5)
    with connect(narrow, question, kind, stream=True) as client:
        said = b""
        while b"tw" not in said:
            said += client.recv(10_000)
    until(lambda: engine.asked(question)[0].closed)
    until(lambda: counts(narrow)["sharpen_requests_running"] == 0)


def test_who_leaves_just_before_a_stream_begins_ends_it(engine, marks):
    question, sent = engine.learn("one two three four", waits=5), []
    model = Model("demo", engine.tokenizer, engine, CONTEXT, MOST, 1, 1, 2, marks)
    data = json.dumps(body("chat", question, stream=True)).encode()

    async def receive(calls=itertools.count()):  # noqa: B008
        """The request; nothing while its first token is waited for; then that the client has gone."""
        call = next(calls)
        if call == 1:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"} if call else {"type": "http.request", "body": data}

    async def send(message):
        sent.append(message)

    async def asked():
        scope = {"type": "http", "method": "POST", "path": PATHS["chat"], "query_string": b"", "asgi": {},
                 "headers": [(b"content-type", b"application/json"), (b"host", b"a")]}  # fmt: skip
        await front.app(model)(scope, receive, send)
        for _ in range(20):
            await asyncio.sleep(0)
        return engine.asked(question)[0].closed

    assert asyncio.run(asked())


def test_each_slot_is_one_answers(server, engine):
    first, second = engine.learn("never", waits=0), engine.learn("yes")
    with connect(server, first):
        until(lambda: engine.waits(first))
        ask(server, second)
    assert engine.asked(first)[0].slot != engine.asked(second)[0].slot
    until(lambda: counts(server)["sharpen_requests_running"] == 0)


def test_a_prompt_goes_to_the_slot_that_knows_half_of_it_else_to_the_longest_unused(engine, marks):
    beginning = "A long story of a fund, its costs, and its years."
    told, other, again = (engine.learn("yes", question=question)
                          for question in (beginning, "Something else?", f"{beginning} And then?"))  # fmt: skip
    with serving(engine, marks, slots=3) as server:
        for question in (told, other, again):
            ask(server, question)
        new = [engine.learn("yes", question=f"{number} is new") for number in (1, 2)]
        for question in new:
            ask(server, question)
    slots = [engine.asked(question)[0].slot for question in (told, other, again, *new)]
    assert slots[0] == slots[2] != slots[1]
    assert slots[3] not in slots[:3] and slots[4] == slots[1]


@STREAMED
def test_an_answer_that_takes_too_long_is_given_up(hasty, engine, streamed):
    question = engine.learn("never", waits=0)
    response = post(hasty, "chat", question, stream=streamed)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    assert engine.asked(question)[0].closed and ask(hasty, engine.learn("yes")).text == "yes"


# --- where the engine fails -------------------------------------------------------------------------------------------
DOWN, BROKEN = EngineDown("the engine has ended (ReadError)"), EngineError("the engine refuses: no")
FAILURES = pytest.mark.parametrize("error, status, code", [
    (DOWN, 503, "engine_down"), (BROKEN, 500, "engine_failed"), (SharpenError("cannot write"), 500, None),
    (KeyError("tokens"), 500, None),
])  # fmt: skip


@WAYS
@FAILURES
def test_an_engine_that_fails_before_anything_was_told_is_an_error(server, engine, kind, streamed, error, status, code):
    # an engine that is down must have begun: else the next one is waited for
    question = engine.learn("<unk>one" if error is DOWN else "one", fails=error is DOWN, error=error)
    route = f"route={PATHS[kind]},status={status}"
    with counted(server, requests={route: 1}):
        response = post(server, kind, question, stream=streamed)
    assert response.status_code == status and response.headers["Content-Type"] == "application/json"
    told = response.json()["error"]
    assert told["type"] == "server_error" and told["code"] == (code or told["code"])
    assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize("kind", PATHS)
@FAILURES
def test_an_engine_that_fails_in_the_middle_is_an_error_in_the_stream(server, engine, kind, error, status, code):
    question = engine.learn("one two three", fails=4, error=error)
    assert post(server, kind, question).status_code == status
    with counted(server, requests={f"route={PATHS[kind]},status={status}": 1}):
        response = post(server, kind, question, stream=True)
    *said, last = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and "tw" in "".join(said) and "[DONE]" not in response.text
    told = json.loads(last)["error"]
    assert told["type"] == "server_error" and told["code"] == (code or told["code"])


def test_a_stream_that_takes_too_long_ends_in_an_error(hasty, engine):
    question = engine.learn("one two three", waits=4)
    *said, last = post(hasty, "chat", question, stream=True).text.strip().split("\n\n")
    assert "on" in "".join(said) and json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert engine.asked(question)[0].closed
    client = openai.OpenAI(base_url=f"{hasty.url}/v1", api_key="any", max_retries=0)
    messages = [{"role": "user", "content": question}]
    with pytest.raises(openai.APIError, match="no whole answer in 0.2 s"):
        list(client.chat.completions.create(model="demo", messages=messages, stream=True))


def test_an_engine_without_a_token_is_an_error_and_not_asked_for_ever(server, engine):
    question = engine.learn([])
    response = post(server, "chat", question, ignore_eos=True)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    assert len(engine.asked(question)) == 1


@STREAMED
def test_who_asks_while_the_engine_is_started_again_waits_for_the_next_one(narrow, engine, streamed):
    question = engine.learn("yes", fails=0, error=DOWN)
    play = engine.plays[-1][1]
    with ThreadPoolExecutor(1) as pool:
        narrow.app.state.up = False
        answer = pool.submit(ask, narrow, question, streamed=streamed)
        until(lambda: len(engine.asked(question)) >= 2)  # and again
        response = narrow.client.get("/health")
        assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
        play.fails, narrow.app.state.up = NEVER, True
        engine.plays[-2][1].fails = NEVER
        assert answer.result(5).text == "yes" and narrow.client.get("/health").json() == {"status": "ok"}


# --- who may ask ------------------------------------------------------------------------------------------------------
def test_with_a_key_only_who_bears_it_is_answered(engine, marks):
    question = engine.learn("yes")
    with serving(engine, marks, key="secret") as server:
        for key in (None, "Bearer", "Bearer other", "Bearer sécret", "Basic secret"):
            server.client.headers = {"Authorization": key.encode()} if key else {}
            responses = [post(server, kind, question) for kind in PATHS]
            responses += [server.client.get(path) for path in ("/v1/models", "/metrics")]
            assert [response.status_code for response in responses] == [401] * 4
            assert responses[0].json()["error"]["code"] == "invalid_api_key"
            assert server.client.get("/health").status_code == 200
        assert not engine.asked(question)
        server.client.headers = {"Authorization": "Bearer secret"}
        assert ask(server, question).text == "yes" and counts(server)
        assert counts(server)[f'sharpen_requests_total{{route="{PATHS["chat"]}",status="401"}}'] == 5


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("evil.example", 400),
    ("127.0.0.1.evil.example", 400),
])  # fmt: skip
def test_only_names_of_this_machine_are_answered(local, host, status):
    for path in ("/health", "/v1/models", "/metrics"):
        assert local.client.get(path, headers={"Host": host}).status_code == status


@pytest.fixture(scope="module")
def local(engine, marks):
    with serving(engine, marks, hosts=serve.LOOPBACK) as server:
        yield server


# --- what is logged ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("log_prompts", [False, True])
def test_neither_prompt_nor_answer_is_logged_unless_that_is_wanted(engine, marks, caplog, log_prompts):
    secrets = [engine.learn(f"answer {text}", f"ask {text}", **how) for text, how in (
        ("whole", {}), ("streamed", {}), ("broken", {"fails": 2, "error": BROKEN}))]  # fmt: skip
    caplog.set_level(logging.INFO, "sharpen.serve")
    with serving(engine, marks, log_prompts=log_prompts) as server:
        ask(server, secrets[0])
        ask(server, secrets[1], "completion", streamed=True)
        post(server, "chat", secrets[2])
        post(server, "chat", "ask refused", tools=["ask refused"])
        server.client.post(PATHS["chat"], content=b'{"ask refused"', headers={"Content-Type": "application/json"})
        post(server, "chat", "ask refused", model="ask refused")
        server.client.get("/ask refused")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "sharpen.serve"]
    assert [line["status"] for line in lines] == [200, 200, 500, 400, 400, 404, 404]
    assert lines[0]["tokens"]["written"] == 1 + len(engine.tokenizer.encode("answer whole"))
    assert lines[1]["route"] == PATHS["completion"] and lines[1]["finish_reason"] == "stop"
    told = [json.dumps(line) for line in lines]
    for line, text in zip(told, ("whole", "streamed", "broken")):
        assert (f"ask {text}" in line) == log_prompts
    assert ("answer whole" in told[0]) == ("answer streamed" in told[1]) == log_prompts
    assert not any("refused" in line for line in told)


def test_a_token_is_sent_at_once(engine, marks):
    """Unless the server's own socket is one on which asyncio does so, each is held back for 40 ms."""
    with serving(engine, marks, listening=serve._listen("127.0.0.1", 0)) as server:
        seconds = []
        for _ in range(12):
            began = time.monotonic()
            assert server.client.get("/health").status_code == 200
            seconds.append(time.monotonic() - began)
    assert min(seconds[6:]) < 0.03


# --- the page of docs for clients -------------------------------------------------------------------------------------
def blocks():
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/clients.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_pages_first_client_is_answered(server, engine, capsys):
    engine.learn("5 % is <<200*0.05=1>>10.", question="What is 5 % of $200?")
    exec(blocks()[0].replace("http://127.0.0.1:8080", server.url.rstrip("/")), {})  # noqa: S102  (our own page)
    told = capsys.readouterr().out
    assert told.startswith("5 % is 10. ['<<200*0.05=10>>'] CompletionUsage(")


@pytest.mark.parametrize("arguments, value", [
    ('{"expression": "1200*(1+0.05)^3"}', "1389.15"), ('{"expression": "open(1)"}', "error: "), ("no JSON", "error: "),
])  # fmt: skip
def test_the_pages_loop_lets_a_model_that_calls_tools_calculate(arguments, value):
    page, heard = {}, []
    exec(blocks()[1], page)  # noqa: S102
    call = SimpleNamespace(id="1", function=SimpleNamespace(arguments=arguments))
    turns = [SimpleNamespace(tool_calls=[call], content=None), SimpleNamespace(tool_calls=None, content="done")]

    def create(messages, tools, **rest):
        heard.append(messages)
        assert tools[0]["function"]["name"] == "calculate"
        return SimpleNamespace(choices=[SimpleNamespace(message=turns[len(heard) - 1])])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    assert page["ask"](client, "any", [{"role": "user", "content": "?"}]) == "done"
    answer = heard[1][-1]
    assert (answer["role"], answer["tool_call_id"]) == ("tool", "1") and answer["content"].startswith(value)
