"""llama.cpp is found or built once; its server lives exactly as long as we need it. No llama.cpp is needed here."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from lib.engine import llamacpp
from lib.engine.llamacpp import LlamaCpp, LlamaCppError, Server
from lib.run.packages import PackageError

# Stands for llama-server: loads for a moment (503), then answers; `DIES` and `HANGS` are names of models.
FAKE_SERVER = f"""#!{sys.executable}
import http.server, json, os, sys, time
model, port = (sys.argv[sys.argv.index(name) + 1] for name in ("--model", "--port"))
if "DIES" in model:
    sys.exit("error: this model is torn")
began = time.monotonic()
class Answer(http.server.BaseHTTPRequestHandler):
    def send(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send(200 if time.monotonic() - began > 0.3 and "HANGS" not in model else 503, {{}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.send(400, {{"error": "no tokenizer today"}})
        mine = [name for name in os.environ if name.startswith("LLAMA_ARG_")]
        self.send(200, {{"tokens": body["prompt"][-1:] * body["n_predict"], "truncated": bool(mine)}})
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Answer).serve_forever()
"""


def checkout(folder, bin_folder="build/bin"):
    """A folder that looks like a checkout of llama.cpp with its build."""
    (folder / bin_folder).mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").touch()
    for name in llamacpp.PROGRAMS:
        (folder / bin_folder / name).write_text(FAKE_SERVER)
        (folder / bin_folder / name).chmod(0o755)
    return folder


@pytest.fixture
def llama(tmp_path) -> LlamaCpp:
    return llamacpp.check(checkout(tmp_path / "llama.cpp"))


@pytest.mark.parametrize("bin_folder", ["build/bin", "bin", "."])
def test_a_checkout_is_found_wherever_its_build_put_the_programs(tmp_path, bin_folder):
    folder = checkout(tmp_path / "own", bin_folder)
    assert llamacpp.find(folder).quantize == (folder / bin_folder / "llama-quantize").resolve()


def test_the_variable_names_a_checkout_and_the_setting_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_PATH", str(checkout(tmp_path / "variable")))
    assert llamacpp.find().folder == tmp_path / "variable"
    assert llamacpp.find(checkout(tmp_path / "setting")).folder == tmp_path / "setting"


def test_what_a_checkout_lacks_is_named_with_the_paths_tried_and_the_command(tmp_path):
    folder = checkout(tmp_path / "half")
    (folder / "build/bin/llama-server").chmod(0o644)  # there, but not a program
    (folder / "convert_hf_to_gguf.py").unlink()
    with pytest.raises(LlamaCppError) as error:
        llamacpp.find(folder)
    tried = [str(folder / place / "llama-server") for place in ("build/bin", "bin")]
    command = "cmake --build build --target llama-quantize llama-server"
    assert all(part in str(error.value) for part in ("lacks convert_hf_to_gguf.py, llama-server;", *tried, command))
    assert "half/build/bin/llama-quantize" not in str(error.value)


@pytest.fixture
def fake_build(tmp_path, monkeypatch):
    """Builds that cost nothing; the list holds what was done."""
    done = []
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_PATH", raising=False)

    def unpack(archive, part):
        done.append("unpack")
        part.mkdir()
        (part / ".unpacked").touch()

    def compiled(part, echo):
        done.append("compile")
        time.sleep(0.3)
        if "break" in done:
            done.remove("break")
            raise KeyboardInterrupt
        checkout(part)
        (part / "build" / "objects").mkdir()

    monkeypatch.setattr(llamacpp, "_archive", lambda echo: done.append("fetch"))
    monkeypatch.setattr(llamacpp, "_unpack", unpack)
    monkeypatch.setattr(llamacpp, "_compile", compiled)
    return done


def test_it_is_built_once_and_found_in_under_a_second_afterwards(fake_build):
    llama = llamacpp.find(echo=lambda text: None)
    assert os.access(llama.server, os.X_OK) and not (llama.folder / "build" / "objects").exists()
    began = time.monotonic()
    assert llamacpp.find() == llama
    assert time.monotonic() - began < 1
    assert fake_build == ["fetch", "unpack", "compile"]


def test_two_at_once_build_once(fake_build):
    said, found = [], []
    threads = [threading.Thread(target=lambda: found.append(llamacpp.find(echo=said.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake_build.count("compile") == 1 and len(set(found)) == 1
    assert any("waiting" in text for text in said)


def test_an_interrupted_build_is_gone_on_with(fake_build):
    fake_build.append("break")
    with pytest.raises(KeyboardInterrupt):
        llamacpp.find(echo=lambda text: None)
    assert llamacpp.cached() is None
    llamacpp.find(echo=lambda text: None)
    assert [step for step in fake_build if step != "break"] == ["fetch", "unpack", "compile", "compile"]


def test_another_archive_than_the_pinned_one_is_refused_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path))
    (tmp_path / llamacpp.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(PackageError, match=f"not {llamacpp.SHA256}"):
        llamacpp._archive(print)
    assert not (tmp_path / llamacpp.ARCHIVE).exists()


def test_a_failing_program_is_told_with_its_last_words_and_the_remedy():
    command = [sys.executable, "-c", "import sys; print('noise'); sys.exit('tensor 7 is torn')"]
    with pytest.raises(LlamaCppError, match="converting failed: .*tensor 7 is torn; is the disk full?"):
        llamacpp._run(command, "converting", "is the disk full?")


def test_a_program_that_was_killed_is_told_so():
    with pytest.raises(LlamaCppError, match="killed by SIGKILL"):
        llamacpp._run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "quantising", "is the disk full?")


def test_the_server_answers_and_is_gone_afterwards(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_N_PREDICT", "1")  # a user's own defaults must not change what we measure
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nor may a proxy see our questions
    with Server(llama, tmp_path / "model.gguf", 64, slots=2) as server:
        assert server.complete([5, 7], 3) == [7, 7, 7]
        process, log = psutil.Process(server.process.pid), server.log
        with pytest.raises(LlamaCppError, match="refuses /tokenize: .*no tokenizer today"):
            server.tokenize("x")
    assert not process.is_running() and not log.exists()


def test_ctrl_c_in_a_terminal_does_not_reach_the_server(llama, tmp_path):
    with Server(llama, tmp_path / "model.gguf", 64) as server:
        assert os.getsid(server.process.pid) == server.process.pid != os.getsid(0)


def test_a_port_that_is_taken_is_named_with_the_remedy(llama, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LlamaCppError, match=f"port = {port}: .*choose another, or 0"), \
                Server(llama, tmp_path / "model.gguf", 64, port=port):  # fmt: skip
            pass


def test_the_server_is_gone_after_an_error_too(llama, tmp_path):
    with pytest.raises(ZeroDivisionError), Server(llama, tmp_path / "model.gguf", 64) as server:
        process = psutil.Process(server.process.pid)
        1 / 0  # noqa: B018
    assert not process.is_running()


def test_a_model_that_does_not_load_is_told_in_the_servers_words(llama, tmp_path):
    with pytest.raises(LlamaCppError, match=r"DIES.gguf\) ended .* error: this model is torn"), \
            Server(llama, tmp_path / "DIES.gguf", 64):  # fmt: skip
        pass


def test_a_server_that_never_loads_is_given_up(llama, tmp_path):
    server = Server(llama, tmp_path / "HANGS.gguf", 64, start_seconds=0.5)
    with pytest.raises(LlamaCppError, match=r"HANGS.gguf\) did not load in 0.5 s"), server:
        pass
    assert server.process.poll() is not None


def test_a_server_that_died_is_told_so(llama, tmp_path):
    with Server(llama, tmp_path / "model.gguf", 64) as server:
        server.process.kill()
        with pytest.raises(LlamaCppError, match=r"llama-server \(model.gguf\) has ended: it said nothing"):
            server.wait()
        with pytest.raises(LlamaCppError, match="does not answer .*it said nothing"):
            server.complete([1], 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child whose parent was killed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_does_not_outlive_us_however_we_end(llama, tmp_path, number):
    code = f"""
        import time
        from lib.engine import llamacpp
        with llamacpp.Server(llamacpp.find({str(llama.folder)!r}), "model.gguf", 64) as server:
            print(server.process.pid, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as user:
        server = psutil.Process(int(user.stdout.readline()))
        user.send_signal(number)
        user.wait()
    psutil.wait_procs([server], timeout=5)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
