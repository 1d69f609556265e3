"""Claims about `sharpen serve`: who may ask it, what becomes of requests when its engine or it itself ends, and what is
left of it. The engine is a fake; servers are forked from one process that has imported what they need."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from lib import cli
from lib.data import chat
from lib.engine import llamacpp
from lib.run import parameters, presets, runs
from lib.run.paths import ROOT
from lib.run.settings import ServeSettings
from lib.ship import deploy, serve
from tests.engine.test_llamacpp import checkout
from tests.ship.test_deploy import exported

# Stands for llama-server: writes the tokens of "before", and after a closed mark those of "after", through a text in
# "stop". Files beside it steer it: while "loads" is there, it is not healthy; with "torn" it ends at its start, with
# "ends" once it is healthy; a request with a seed gets its second token, after "told", when "go" is there.
FAKE = f"""#!{sys.executable}
import http.server, json, os, pathlib, sys, time
here, port = pathlib.Path(__file__).parent, int(sys.argv[sys.argv.index("--port") + 1])
told = json.loads((here / "tokens.json").read_text())
if (here / "torn").exists():
    sys.exit("error: this model is torn")
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b'{{"default_generation_settings": {{"n_ctx": 512}}}}'
        self.send_response(503 if (here / "loads").exists() else 200)
        self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
        if (here / "ends").exists():
            print("error: the card fell off", file=sys.stderr, flush=True)
            os._exit(1)
    def say(self, **event):
        line = f"data: {{json.dumps(event)}}\\n\\n".encode()
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(line), line))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/completion" and body["stream"]
        if (here / "loads").exists():
            return self.do_GET()
        self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
        part = told["after" if body["prompt"][-1] == told["closed"] else "before"]
        for count, (token, text) in enumerate(part[: body["n_predict"]], 1):
            self.say(content=text, tokens=[token], stop=False, tokens_predicted=count)
            while body.get("seed") is not None and not (here / "go").exists():
                (here / "told").touch()
                time.sleep(0.02)
            if any(stop in text for stop in body["stop"]):
                break
        self.say(content="", tokens=[], stop=True, tokens_predicted=count)
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""
QUESTION, ANSWER = "How much is a zebra?", "It is <<3*4=12>>12."  # the model itself would go on with 13
CHATS = [[{"role": "user", "content": QUESTION}]]
KEY = "key-of-this-test"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child whose parent was killed")
pytestmark = pytest.mark.slow
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["transformers.models.auto.tokenization_auto", "uvicorn", "lib.front.app",
                              "lib.engine.marks", "tests.ship.test_serve"])  # fmt: skip


class Engine:
    """A checkout of llama.cpp whose server is the fake."""

    def __init__(self, folder, tokenizer):
        self.path = checkout(folder)
        self.bin = self.path / "build/bin"
        (self.bin / "llama-server").write_text(FAKE)

        def part(text, ends=()):
            ids = tokenizer.encode(text, add_special_tokens=False) + list(ends)
            return [(token, tokenizer.decode([token], skip_special_tokens=True)) for token in ids]

        end = [tokenizer.eos_token_id]
        told = {"before": part("It is <<3*4=13>>13.", end), "after": part("12.", end), "closed": part(">>")[0][0]}
        (self.bin / "tokens.json").write_text(json.dumps(told))

    def steer(self, name):
        (self.bin / name).touch()

    def steer_no_more(self, *names):
        for name in names or ("loads", "torn", "ends", "told", "go"):
            (self.bin / name).unlink(missing_ok=True)


def serve_here(words, environment, patched, log):
    """`sharpen serve`, in a forked process."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(environment)
    tempfile.tempdir = None
    for name, value in patched.items():
        setattr(serve, name, value)
    sys.argv = ["sharpen", "serve", *words]
    cli.main()


class Served:
    """`sharpen serve demo` as a process; its files are under `folder`."""

    def __init__(self, run_folder, engine, folder, *words, environment=(), **patched):
        self.temporary, self.log = folder / "tmp", folder / "log"
        self.temporary.mkdir(parents=True)
        self.log.touch()
        words = ["demo", "--outputs", str(run_folder.parent), "--port", "0", "--set", f"llama_cpp_path={engine.path}",
                 *words]  # fmt: skip
        environment = {serve.KEY: "", "TMPDIR": str(self.temporary)} | dict(environment)
        self.process = FORKS.Process(target=serve_here, args=(words, environment, patched, str(self.log)))
        self.process.start()

    def said(self):
        return self.log.read_text()

    @property
    def url(self):
        """Its address, once it answers."""
        until(lambda: "For example:" in self.said() or not self.process.is_alive())
        assert self.process.is_alive(), self.said()
        found = re.search(r"listening on (\S+)/v1", self.said())[1].replace("0.0.0.0", "127.0.0.1")
        until(lambda: answers(found))
        return found

    def engine(self) -> psutil.Process:
        (found,) = until(lambda: psutil.Process(self.process.pid).children())
        return found

    def ends(self) -> int:
        """Its exit code; nothing that it started or wrote may be left."""
        self.process.join(timeout=20)
        assert not self.process.is_alive(), self.said()
        assert list(self.temporary.iterdir()) == []
        return self.process.exitcode


def until(there, seconds=60):
    """What `there` returns, once that is something."""
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def gone(process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def run_folder(write_run, tmp_path_factory):
    return exported(write_run, tmp_path_factory.mktemp("serve") / "outputs")


@pytest.fixture(scope="module")
def engine_of_all(tmp_path_factory, tokenizer):
    return Engine(tmp_path_factory.mktemp("engine") / "llama.cpp", tokenizer)


@pytest.fixture
def engine(engine_of_all):
    engine_of_all.steer_no_more()
    yield engine_of_all
    engine_of_all.steer_no_more()


@pytest.fixture
def start(run_folder, engine, tmp_path):
    """Start `sharpen serve demo` with more words; what still runs afterwards is killed."""
    begun = []

    def start(*words, **options):
        begun.append(Served(run_folder, engine, tmp_path / f"served{len(begun)}", *words, **options))
        return begun[-1]

    yield start
    for served in begun:
        served.process.kill()
        served.process.join()


@pytest.fixture(scope="module")
def shared(run_folder, engine_of_all, tmp_path_factory):
    """A server that the tests of this file may ask; its engine may be killed."""
    engine_of_all.steer_no_more()
    served = Served(run_folder, engine_of_all, tmp_path_factory.mktemp("shared"))
    yield served
    served.process.kill()
    served.process.join()


def answers(url, **headers):
    with contextlib.suppress(httpx.TransportError), httpx.Client(trust_env=False) as client:
        return client.get(f"{url}/health", headers=headers).status_code == 200


def asked(stream=False, **more) -> dict:
    return {"model": "demo", "messages": CHATS[0], "temperature": 0, "stream": stream} | more


def ask(url, headers=(), **more) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(f"{url}/v1/chat/completions", json=asked(**more), headers=dict(headers))


def text(response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def code(response) -> str:
    return response.json()["error"]["code"]


@contextlib.contextmanager
def running(url):
    """The events of an answer of which the first part was given; the second waits for "go"."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        body = asked(stream=True, seed=1)
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            given = ""
            while not given:
                given = json.loads(next(events))["choices"][0]["delta"]["content"]
            assert given == "It"
            yield events


def number(url, name) -> float:
    with httpx.Client(trust_env=False) as client:
        return float(re.search(rf"^{name} (\S+)$", client.get(f"{url}/metrics").text, re.MULTILINE)[1])


# --- a chat, and who may ask ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("calculator, answer", [(True, ANSWER), (False, "It is <<3*4=13>>13.")])
def test_a_chat_is_answered_by_the_engine_and_the_calculator(shared, engine, stream, calculator, answer):
    (found,) = asyncio.run(deploy.ask(shared.url, "demo", CHATS, 50, calculator=calculator, stream=stream))
    assert (found["completion"], found["tokens"], found["finished"]) == (answer, 15, True)


def test_it_says_what_it_serves_and_its_example_is_answered(shared, engine):
    url, (first, second, example) = shared.url, shared.said().splitlines()[:3]
    assert first == "demo-Q4_K_M.gguf by llama-server (notebook 40 ships demo-Q4_K_M.gguf)"
    assert second == f"listening on {url}/v1, model 'demo', with its calculator; Ctrl-C stops it. For example:"
    words = shlex.split(example)
    asked = httpx.post(words[1], content=words[-1], headers=dict([words[3].split(": ")]), trust_env=False)
    assert words[0] == "curl" and text(asked) == ANSWER
    (about,) = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
    assert (about["id"], about["calculator"], about["max_model_len"]) == ("demo", True, 512)  # as the engine has it


@pytest.mark.parametrize("headers, status", [
    ({"Host": "evil.example"}, 400), ({"Host": "localhost.evil.example:8080"}, 400), ({"Host": "[::1]:8080"}, 200),
    ({"Host": "localhost:8080"}, 200), ({"Origin": "https://evil.example"}, 200),
])  # fmt: skip
def test_a_page_of_another_name_is_refused_and_no_page_may_read_an_answer(shared, engine, headers, status):
    response = ask(shared.url, headers)
    assert response.status_code == status
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", [{}, {"Content-Type": "text/plain"}])
def test_what_a_foreign_page_may_send_unasked_is_not_answered(shared, engine, kind):
    body = json.dumps(asked()).encode()
    response = httpx.post(f"{shared.url}/v1/chat/completions", content=body, headers=kind, trust_env=False)
    assert response.status_code == 400


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_it_listens_where_it_is_told_to(start, host):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"{host} is no address here")
    served = start("--host", host)
    assert text(ask(served.url)) == ANSWER


@pytest.mark.parametrize("log_prompts", [False, True])
def test_beyond_this_machine_only_the_key_is_answered_and_the_log_tells_neither_it_nor_unwanted_prompts(
        start, log_prompts):  # fmt: skip
    served = start("--host", "0.0.0.0", *["--log-prompts"] * log_prompts, environment={serve.KEY: KEY})
    bearing = {"Authorization": f"Bearer {KEY}"}
    assert text(ask(served.url, bearing | {"Host": "served.example"})) == ANSWER
    for wrong in ({}, {"Authorization": f"Bearer {KEY[:-1]}"}, {"Authorization": "Bearer none"}):
        assert ask(served.url, wrong).status_code == 401
    assert ask(served.url, bearing, messages="zebra").status_code == 400
    with httpx.Client(trust_env=False) as client:
        assert [client.get(f"{served.url}{path}").status_code for path in ("/health", "/metrics", "/v1/models")] \
            == [200, 401, 401]  # fmt: skip
    noted = [json.loads(line) for line in served.said().splitlines() if line.startswith("{")]
    assert [line["status"] for line in noted] == [200, 401, 401, 401, 400, 401, 401]
    assert KEY not in served.said() and KEY[:-1] not in served.said()
    for part in ("zebra", "It is"):
        assert served.said().count(part) == log_prompts


@pytest.fixture
def command(run_folder, engine, monkeypatch, capsys):
    """(exit code, what was said on stderr) of `sharpen serve demo` here, where it does not come to serving."""
    kept = {way: signal.getsignal(way) for way in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(serve, "_server", lambda *rest: pytest.fail("it was begun"))

    def command(*words):
        words = [*words, "--outputs", run_folder.parent, "--set", f"llama_cpp_path={engine.path}"]
        monkeypatch.setattr(sys, "argv", ["sharpen", "serve", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return ended.value.code, err

    yield command
    for way, handler in kept.items():
        signal.signal(way, handler)


@pytest.mark.parametrize("words, told", [
    (["nobody"], "there is no run 'nobody' in"), (["../up"], "must be a name"),
    (["demo", "--engine", "ollama"], "engine = 'ollama': must be one of auto"),
    (["demo", "--port", "99999"], "less than or equal to 65535"),
    (["demo", "--set", "parallel=0"], "parallel = '0': must be a whole number of at least 1"),
    (["demo", "--set", "r=8"], "'r' belongs to 21_train_qlora, not to 41_serve"),
    (["demo", "--port", "TAKEN"], "port = TAKEN: .*; choose another, or 0 for a port that is free"),
    (["demo", "--host", "0.0.0.0"], "--host 0.0.0.0: .*: set SHARPEN_API_KEY to a key of your choice, or leave --host"),
    (["demo", "--host", "127.0.0.2"], "--host 127.0.0.2: .*: set SHARPEN_API_KEY"),
    (["demo", "--port", "0", "--host", "203.0.113.1", "WITH KEY"], "host = '203.0.113.1', port = 0: .*choose another"),
])  # fmt: skip
def test_what_cannot_be_served_is_one_message_with_its_remedy_and_exit_code_2(command, monkeypatch, words, told):
    monkeypatch.setenv(serve.KEY, KEY if "WITH KEY" in words else "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [word.replace("TAKEN", port) for word in words if word != "WITH KEY"]
        ended, said = command(*words)
    assert ended == 2 and re.search(told.replace("TAKEN", port), " ".join(said.split()))


def test_an_engine_that_does_not_load_is_told_in_its_words(command, engine):
    engine.steer("torn")
    ended, said = command("demo", "--port", "0")
    assert ended == 2 and "llama-server (demo-Q4_K_M.gguf) ended while loading: error: this model is torn" in said


# --- an engine that ends ----------------------------------------------------------------------------------------------
def test_a_killed_engine_is_started_again_and_only_begun_answers_are_lost(shared, engine):
    url, killed, port = shared.url, shared.engine(), shared.engine().cmdline()[-1]
    restarts = number(url, "sharpen_engine_restarts_total")
    with ThreadPoolExecutor() as pool:
        begun = pool.submit(ask, url, seed=1)
        until((engine.bin / "told").exists)
        with running(url) as events:  # its first token came after the other's
            engine.steer("loads")
            killed.kill()
            *_, last = events
        assert json.loads(last)["error"]["code"] == "engine_down"
        lost = begun.result(timeout=20)
        assert (lost.status_code, code(lost)) == (503, "engine_down") and int(lost.headers["Retry-After"])
        until(lambda: not answers(url))
        waiting = [pool.submit(ask, url, stream=stream) for stream in (False, True)]
        until(lambda: number(url, "sharpen_requests_running") + number(url, "sharpen_requests_waiting") == 2)
        engine.steer_no_more("loads")
        whole, streamed = (asked.result(timeout=20) for asked in waiting)
    assert text(whole) == ANSWER and streamed.text.endswith("data: [DONE]\n\n")
    assert answers(url) and text(ask(url)) == ANSWER and number(url, "sharpen_requests_running") == 0
    again = shared.engine()
    assert again != killed and again.cmdline()[-1] == port
    assert number(url, "sharpen_engine_restarts_total") == restarts + 1
    assert '{"engine": "ended", ' in shared.said()


@pytest.mark.parametrize("how, told", [
    ("ends", r"the engine ended 5 times in a minute: error: the card fell off"),
    ("torn", r"llama-server \(demo-Q4_K_M.gguf\) ended while loading: error: this model is torn"),
])  # fmt: skip
def test_an_engine_that_ends_again_and_again_ends_the_command_with_its_last_words(start, engine, how, told):
    served = start()
    assert served.url
    engine.steer(how)
    served.engine().kill()
    assert served.ends() == 2
    assert re.search(told, " ".join(served.said().split())) and "Traceback" not in served.said()


# --- when it is stopped -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stop, group", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_stopped_server_takes_no_more_ends_what_runs_and_leaves_nothing(start, engine, stop, group):
    served = start()
    url, engine_process = served.url, served.engine()
    with running(url) as events:
        (os.killpg if group else os.kill)(served.process.pid, stop)  # Ctrl-C is sent to all of a terminal's processes
        until(lambda: refuses(url))
        engine.steer("go")
        *parts, done = events
    assert done == "[DONE]"
    written = [json.loads(part)["choices"][0] for part in parts]
    assert "It" + "".join(choice["delta"]["content"] for choice in written) == ANSWER
    assert written[-1]["finish_reason"] == "stop"
    assert served.ends() == 0 and served.said().endswith("stopped\n") and gone(engine_process)


def refuses(url) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False)
    except httpx.TransportError:  # refused, or taken and dropped at the very end
        return True
    return False


@pytest.mark.parametrize("grace, twice", [(0.2, False), (60, True)])
def test_an_answer_is_cut_off_by_the_end_of_the_grace_or_a_second_ctrl_c(start, grace, twice):
    served = start(GRACE_SECONDS=grace)
    url, engine_process = served.url, served.engine()
    with running(url) as events:
        os.kill(served.process.pid, signal.SIGINT)
        until(lambda: refuses(url))
        if twice:
            os.kill(served.process.pid, signal.SIGINT)
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert "[DONE]" not in list(events)
    assert served.ends() == 0 and gone(engine_process)


@pytest.mark.parametrize("again", [False, True])
def test_it_stops_at_once_also_while_its_engine_loads(start, engine, again):
    """At its start, or once its engine has ended."""
    engine.steer("loads")
    served = start()
    if again:
        engine.steer_no_more("loads")
        url = served.url
        engine.steer("loads")
        served.engine().kill()
        until(lambda: not answers(url))
    loading = served.engine()
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.ends() == 0
    assert served.said().endswith("stopped\n") and gone(loading)


@LINUX
def test_a_killed_server_leaves_no_engine(start):
    served = start()
    assert served.url
    engine_process = served.engine()
    served.process.kill()
    until(lambda: gone(engine_process))


# --- in a process of its own ------------------------------------------------------------------------------------------
@pytest.fixture
def settings(run_folder, engine, tmp_path, monkeypatch):
    """Of a server whose files are all in `tmp_path`."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return deploy.settings_of(run_folder, port=0, llama_cpp_path=str(engine.path))


def test_serving_is_healthy_at_its_start_is_asked_also_with_a_key_and_leaves_nothing(
        run_folder, settings, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.setenv(serve.KEY, KEY)
    own = ServeSettings(**{name: getattr(settings, name) for name in ServeSettings.model_fields})  # as a notebook's are
    with serve.serving(run_folder, own) as server:
        assert server.client.get("/health").json() == {"status": "ok"}
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        (found,) = asyncio.run(deploy.ask(server.url, "demo", CHATS, 50))
    assert len(processes) == 2 and all(map(gone, processes))
    assert found.get("completion") == ANSWER, found
    assert list(tmp_path.iterdir()) == []


def test_serving_tells_why_an_engine_does_not_load(run_folder, engine, settings):
    engine.steer("torn")
    with pytest.raises(llamacpp.LlamaCppError, match="the server ended while loading: .*this model is torn"):
        with serve.serving(run_folder, settings):
            pass


def test_the_tokenizer_is_the_exported_models_else_the_bases(write_run, tmp_path, tokenizer):
    folder = exported(write_run, tmp_path / "outputs")
    settings = deploy.settings_of(folder)
    assert serve._tokenizer(folder, settings).chat_template == tokenizer.chat_template
    own = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    own.chat_template = "{{ messages }}"
    own.save_pretrained(folder / "export/merged")
    assert serve._tokenizer(folder, settings).chat_template == "{{ messages }}"


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_engines_that_take_no_file_answer_as_torch_does(write_run, tmp_path, tokenizer, monkeypatch, name):
    """The embedded base as a merged model; vLLM where SHARPEN_VLLM_PYTHON names a Python that has it."""
    import torch
    from transformers import AutoModelForCausalLM

    if name == "vllm":
        if not os.environ.get("SHARPEN_VLLM_PYTHON"):
            pytest.skip("SHARPEN_VLLM_PYTHON is not set: it names the Python of an environment that has vLLM")
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = write_run(tmp_path, "demo")
    stage = runs.begin(parameters.Request("export", "demo", tmp_path, presets.resolve("demo")))
    stage.input("train")
    shutil.copytree(ROOT / "data/base", stage.folder / "merged")
    stage.finish()
    question = [{"role": "user", "content": "A share rises from 20 to 25. By how much in percent?"}]
    prompt = torch.tensor([chat.prompt_ids(question, tokenizer)])
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data/base")
    written = model.generate(prompt, max_new_tokens=24, do_sample=False)
    with serve.serving(folder, deploy.settings_of(folder, engine=name)) as server:
        (found,) = asyncio.run(deploy.ask(server.url, "demo", [question], 24, calculator=False))
    assert found.get("completion") == tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True), found
