"""Claims about deploying: the right artefact by the right engine, asked and measured. The server before the engine has
its claims in test_serve.py.

Engines are fakes here; llama.cpp's own server is asked in test_gguf.py and by notebook 41."""

import asyncio
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lib import cli
from lib.engine import llamacpp
from lib.run import parameters, presets, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.ship import deploy
from tests.engine.test_llamacpp import checkout

# Stands for any engine: streams the words "The answer is 7 ." by OpenAI's protocol, each a token, and tells in
# /health how many it answered at once; a question with "REFUSE" is refused.
FAKE_ENGINE = f"""#!{sys.executable}
import http.server, json, sys, threading, time
port = sys.argv[sys.argv.index("--port") + 1]
assert sys.argv[sys.argv.index("--host") + 1] == "127.0.0.1"
now, most, lock = 0, 0, threading.Lock()
class Answer(http.server.BaseHTTPRequestHandler):
    def send(self, code, body):
        self.send_response(code); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send(200, json.dumps({{"most": most}}).encode())
    def do_POST(self):
        global now, most
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "REFUSE" in body["messages"][-1]["content"]:
            return self.send(400, b'{{"error": {{"message": "not today"}}}}')
        with lock:
            now += 1; most = max(most, now)
        time.sleep(0.1)
        words = ["The", " answer", " is", " " + body["messages"][-1]["content"][-1], "."][: body["max_tokens"]]
        def choice(delta, reason=None):
            return {{"choices": [{{"index": 0, "delta": delta, "finish_reason": reason}}]}}
        chunks = [choice({{"content": word}}) for word in words]
        chunks += [choice({{}}, "stop" if len(words) == 5 else "length"),
                   {{"choices": [], "usage": {{"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}}}]
        same = {{"id": "1", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}}
        lines = [f"data: {{json.dumps(same | chunk)}}\\n\\n" for chunk in chunks] + ["data: [DONE]\\n\\n"]
        with lock:
            now -= 1
        self.send(200, "".join(lines).encode())
    def log_message(self, *words):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64
Server(("127.0.0.1", int(port)), Answer).serve_forever()
"""


def exported(write_run, outputs, files=("demo-Q4_K_M.gguf", "demo-f16.gguf"), ships="demo-Q4_K_M.gguf",
             overrides=None):  # fmt: skip
    """Make a run with an export (none, if `files` is None) of these files, and its folder."""
    folder = write_run(outputs, "demo", overrides)
    if files is not None:
        stage = runs.begin(parameters.Request("export", "demo", outputs, presets.resolve("demo", overrides)))
        stage.input("train")
        stage.save_json("merged/config.json", {})
        for file in files:
            (stage.folder / file).write_text("numbers")
        if ships:
            (stage.folder / "Modelfile").write_text(f"FROM ./{ships}\nPARAMETER temperature 0\n")
        stage.finish()
    return folder


@pytest.fixture
def export(write_run, tmp_path):
    return functools.partial(exported, write_run, tmp_path / "outputs")


def choose(folder, **overrides) -> deploy.Choice:
    return deploy.choose(folder, deploy.settings_of(folder, **overrides))


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A PATH of nothing but the programs that a test puts there."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def put(*names):
        for name in names:
            (tmp_path / "bin" / name).write_text("")
            (tmp_path / "bin" / name).chmod(0o755)

    return put


# --- what is served, and by what --------------------------------------------------------------------------------------
def test_the_file_that_notebook_40_ships_goes_to_llama_server(export):
    folder = export()
    found = choose(folder)
    assert (found.engine, found.path) == ("llama-server", folder / "export" / "demo-Q4_K_M.gguf")
    assert "notebook 40 ships demo-Q4_K_M.gguf" in found.why


def test_without_a_file_the_merged_model_goes_to_vllm_on_a_gpu_else_to_transformers(export, path, monkeypatch):
    folder = export(files=(), ships=None)
    assert (choose(folder).engine, choose(folder).path) == ("transformers", folder / "export" / "merged")
    monkeypatch.setattr(deploy.vllm_client, "python", lambda: "/vllm/bin/python")
    assert choose(folder).engine == "transformers" and "no GPU" in choose(folder).why
    path("nvidia-smi")
    assert choose(folder).engine == "vllm" and "a GPU" in choose(folder).why


def test_without_an_export_the_adapter_is_served(export, path):
    folder = export(files=None)
    found = choose(folder)
    assert (found.engine, found.path) == ("transformers", folder / "adapter") and "no export" in found.why


def test_an_engine_that_has_nothing_to_serve_or_is_not_there_is_named_with_the_remedy(export, path):
    folder = export(files=None)
    with pytest.raises(runs.RunError, match="has no GGUF file: run 40_export first"):
        choose(folder, engine="llama-server")
    with pytest.raises(runs.RunError, match="pip install vllm"):
        choose(folder, engine="vllm")
    with pytest.raises(SettingsError, match="engine = 'ollama': must be one of auto, llama-server"):
        choose(folder, engine="ollama")


def test_another_engine_takes_the_merged_model_though_there_is_a_file(export, path):
    folder = export()
    assert choose(folder, engine="transformers").path == folder / "export" / "merged"


@pytest.mark.parametrize("changed, engine", [
    ("demo-Q4_K_M.gguf", "auto"), ("Modelfile", "auto"), ("merged/config.json", "transformers"),
])  # fmt: skip
def test_a_file_that_is_not_as_its_manifest_says_is_not_served(export, changed, engine):
    folder = export()
    with open(folder / "export" / changed, "a") as file:
        file.write("!")
    with pytest.raises(runs.RunError, match="was changed"):
        choose(folder, engine=engine)


def test_a_file_outside_the_export_is_not_served(export):
    folder = export(ships="../adapter/adapter_model.safetensors")
    with pytest.raises(runs.RunError, match="is missing|was added"):
        choose(folder)


def test_a_run_is_served_with_the_settings_that_it_was_made_with(export):
    folder = export(overrides={"max_new_tokens": 77, "r": 8})
    settings = deploy.settings_of(folder, port=0, parallel=3)
    assert (settings.max_new_tokens, settings.r, settings.parallel) == (77, 8, 3)
    assert deploy.overrides_of(folder) == {"max_new_tokens": 77}  # r is no setting of notebook 41


def test_a_stage_that_was_made_otherwise_later_says_how_it_is_served(write_run, tmp_path):
    folder = write_run(tmp_path / "outputs", "demo", {"calculator": "on"})
    assert deploy.overrides_of(folder) == {"calculator": "on"}
    stage = runs.begin(parameters.Request("export", "demo", folder.parent, presets.resolve("demo")))
    stage.finish()
    assert deploy.overrides_of(folder) == {} and deploy.settings_of(folder).calculator == "both"


def test_a_run_chooses_no_program_and_nothing_in_the_cloud(export, tmp_path):
    folder = export()
    planted = {"llama_cpp_path": str(tmp_path), "bucket": "theirs", "role_arn": "arn:aws:iam::123456789012:role/theirs"}
    for stage in ("adapter", "export"):
        path = folder / stage / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["settings"] |= planted
        manifest["origins"] |= dict.fromkeys(planted, "override")
        path.write_text(json.dumps(manifest))
    assert not planted.keys() & deploy.overrides_of(folder).keys()
    settings = deploy.settings_of(folder)
    assert (settings.llama_cpp_path, settings.bucket, settings.role_arn) == (None, None, None)


def test_a_program_that_is_named_and_not_there_is_told_also_where_nothing_needs_it(export, tmp_path):
    with pytest.raises(llamacpp.LlamaCppError, match="llama_cpp_path = '.*' lacks convert_hf_to_gguf.py"):
        choose(export(ships=None), llama_cpp_path=str(tmp_path))


# --- how it is started ------------------------------------------------------------------------------------------------
@pytest.fixture
def started(monkeypatch):
    """The words, folder and environment that a program is started with; it is not."""
    found = {}

    def start(command, cwd, env, **rest):
        found.update(words=list(map(str, command)), files=sorted(os.listdir(cwd)) if cwd else [], env=env)
        raise llamacpp.LlamaCppError("not started")

    monkeypatch.setattr(llamacpp, "start", start)
    return found


def start(folder, **overrides):
    """As `sharpen serve` starts it."""
    settings = deploy.settings_of(folder, **overrides)
    with tempfile.TemporaryDirectory() as work, pytest.raises(llamacpp.LlamaCppError, match="not started"):
        with deploy.engine(deploy.choose(folder, settings), folder, settings, Path(work))(0):
            pass


def follows(words, *pair) -> bool:
    return pair in zip(words, words[1:])


def test_llama_server_is_told_the_context_the_slots_and_the_runs_name(export, started, tmp_path):
    path = checkout(tmp_path / "llama.cpp")
    start(export(), llama_cpp_path=str(path), parallel=4, max_length=600, max_new_tokens=160)
    words = started["words"]
    assert words[0].endswith("llama-server") and words[2].endswith("demo-Q4_K_M.gguf")
    for pair in (("--alias", "demo"), ("--parallel", "4"), ("--ctx-size", str(4 * 768)), ("--host", "127.0.0.1"),
                 ("--cors-origins", "localhost")):  # fmt: skip
        assert follows(words, *pair), pair


def test_transformers_serves_a_merged_model_under_the_runs_name_and_offline(export, started, path):
    start(export(files=(), ships=None))
    assert started["words"][1:5] == ["-m", "transformers.cli.transformers", "serve", "demo"]
    assert started["files"] == ["demo"]  # a link in the folder that it works in
    assert follows(started["words"], "--host", "127.0.0.1") and started["env"]["HF_HUB_OFFLINE"] == "1"
    assert "--quantization" not in started["words"]  # the merged model is rounded already
    assert "--trust-remote-code" not in started["words"]


def test_a_run_that_is_named_like_a_module_is_not_executed(export, started, path, tmp_path):
    start(export(files=(), ships=None))
    folder = tmp_path / "work" / "statistics"  # a shared run, as the engine's folder shows it
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('executed')")
    for words in (["-c", "import statistics"], ["-m", "statistics", "--help"]):
        asked = subprocess.run([sys.executable, *words], cwd=folder.parent, env=started["env"], capture_output=True)
        assert (asked.returncode, asked.stderr) == (0, b"")


def test_vllm_serves_an_adapter_on_its_quantised_base(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy.vllm_client, "python", lambda: "/vllm/bin/python")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "adapter_config.json").write_text('{"r": 48}')
    settings = presets.resolve("demo", {"parallel": 5, "max_length": 600, "max_new_tokens": 160}).settings
    words = list(map(str, deploy._vllm(tmp_path / "demo", settings)))
    assert words[:2] == ["/vllm/bin/python", "-m"] and words[3:5] == ["--model", str(ROOT / "data/base")]
    for pair in (("--lora-modules", f"demo={tmp_path / 'demo'}"), ("--max-lora-rank", "64"), ("--max-num-seqs", "5"),
                 ("--quantization", "bitsandbytes"), ("--max-model-len", "768")):  # fmt: skip
        assert follows(words, *pair), pair
    (tmp_path / "demo" / "adapter_config.json").unlink()
    words = list(map(str, deploy._vllm(tmp_path / "demo", settings)))
    assert follows(words, "--model", str(tmp_path / "demo")) and follows(words, "--served-model-name", "demo")


@pytest.mark.parametrize("config, tokens", [
    (None, 768), ({}, 768), ({"max_position_embeddings": 4096}, 768), ({"max_position_embeddings": 512}, 512),
])  # fmt: skip
def test_the_context_holds_the_longest_prompt_and_answer_but_no_more_than_the_model_reads(tmp_path, config, tokens):
    settings = presets.resolve("demo", {"max_length": 600, "max_new_tokens": 105}).settings
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert deploy.context(settings, tmp_path / "config.json") == tokens
    assert deploy.context(settings) == 768 >= settings.max_length + settings.max_new_tokens > 768 - 64


def test_an_adapter_is_served_from_a_folder_that_holds_all_that_an_engine_reads(tmp_path, tokenizer):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "data/base"}')
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("numbers")
    folder = deploy._loadable(tmp_path / "adapter", tmp_path / "demo", presets.resolve("demo").settings)
    names = {"adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"}
    names |= {"model.safetensors"}
    assert names | {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in folder.iterdir()}
    assert type(tokenizer).from_pretrained(folder).chat_template == tokenizer.chat_template


def test_an_adapter_with_pickled_weights_is_not_handed_to_an_engine(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"cos\nsystem")
    with pytest.raises(SettingsError, match="adapter_model.bin"):
        deploy._loadable(tmp_path / "adapter", tmp_path / "demo", presets.resolve("demo").settings)


def test_the_command_line_imports_nothing_heavy():
    check = "import sys; from lib import cli; from lib.ship import deploy, serve; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", check], text=True, cwd=ROOT).split())
    assert not loaded & {"torch", "transformers", "unsloth", "numpy", "gradio", "openai", "fastapi", "uvicorn"}


# --- asking it --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp("llama.cpp") / "build")
    (folder / "build/bin/llama-server").write_text(FAKE_ENGINE)
    with llamacpp.Server(llamacpp.check(folder), "demo.gguf", 64, alias="demo") as server:
        yield server


def chats(*questions):
    return [[{"role": "user", "content": text}] for text in questions]


def test_answers_come_in_order_and_no_more_at_once_than_asked_for(engine):
    questions = [f"What is {i}" for i in range(9)]
    found = asyncio.run(deploy.ask(engine.url, "demo", chats(*questions), 50, concurrent=3))
    assert [row["completion"] for row in found] == [f"The answer is {i}." for i in range(9)]
    assert engine.client.get("/health").json() == {"most": 3}
    assert all(row["tokens"] == 5 and row["finished"] for row in found)
    assert all(0 < row["first_token_seconds"] <= row["seconds"] for row in found)


def test_an_answer_that_is_cut_off_says_so(engine):
    (found,) = asyncio.run(deploy.ask(engine.url, "demo", chats("What is 7"), 2))
    assert found["completion"] == "The answer" and not found["finished"]


def test_a_refused_request_is_an_error_of_its_own_and_the_others_are_answered(engine):
    found = asyncio.run(deploy.ask(engine.url, "demo", chats("What is 1", "REFUSE", "What is 2"), 50, concurrent=2))
    assert "error" not in found[0] and "error" not in found[2]
    assert "BadRequestError" in found[1]["error"] and "not today" in found[1]["error"]
    with pytest.raises(deploy.DeployError, match="1 of 3 requests failed, e.g. BadRequestError"):
        deploy.answered(found)
    assert deploy.answered(found[::2]) == found[::2]


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(engine, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    (found,) = asyncio.run(deploy.ask(engine.url, "demo", chats("What is 7"), 50))
    assert found["completion"] == "The answer is 7."


def test_a_row_of_the_load_test_counts_all_requests_and_leaves_errors_out_of_the_times():
    seconds = np.arange(1, 101) / 10  # 0.1 to 10 s
    answers = [{"first_token_seconds": s / 10, "seconds": s, "tokens": 20} for s in seconds] + [{"error": "no"}] * 2
    row = deploy.load_row(16, answers, 50.0)
    assert (row["concurrent"], row["requests"], row["errors"]) == (16, 102, 2)
    assert row["latency_p50_seconds"] == pytest.approx(5.05) and row["latency_p95_seconds"] == pytest.approx(9.505)
    assert row["first_token_p50_seconds"] == pytest.approx(0.505) and row["tokens_per_second"] == 40
    assert deploy.load_row(1, [{"error": "no"}], 1.0)["latency_p50_seconds"] is None


def test_the_load_test_asks_with_each_number_of_requests_at_once(engine):
    found = asyncio.run(deploy.load_test(engine.url, "demo", chats(*"12345678"), 50, (1, 4)))
    assert [row["concurrent"] for row in found] == [1, 4] and {row["requests"] for row in found} == {8}
    assert found[1]["tokens_per_second"] > 2 * found[0]["tokens_per_second"]  # the fake waits 0.1 s for each


def test_the_shell_command_survives_quotes(engine):
    shown = deploy.curl(engine.url, "demo", "What's \"this\" $HOME 7")
    assert shown.startswith(f"curl {engine.url}/v1/chat/completions")
    assert json.loads(shlex.split(shown)[-1])["messages"][0]["content"] == "What's \"this\" $HOME 7"


# --- the commands -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words, told", [
    (["ask", "nobody", "?"], "there is no run 'nobody'"),
    (["ask", "demo", "?", "--top-p", "0.5"], "top_p = 0.5: counts only while sampling; give a temperature"),
    (["demo", "nobody"], "there is no run 'nobody'"), (["deploy", "nobody"], "there is no run 'nobody'"),
])  # fmt: skip
def test_a_users_slip_is_one_message_and_exit_code_2(export, words, told, tmp_path, monkeypatch, capsys):
    export()
    monkeypatch.setattr(sys, "argv", ["sharpen", *words, "--outputs", str(tmp_path / "outputs")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and told in err and "Traceback" not in err + out
