"""Which engine answers a run's questions, and whether two of them agree."""

import json
from types import SimpleNamespace

import pytest
import torch

from lib.engine import vllm_client
from lib.engine.client import EngineError
from lib.run import runs
from lib.run.stages import STAGES
from lib.run.untrusted import visible
from lib.ship import agree, engines


def settings(**changes):
    return SimpleNamespace(**{"eval_engine": "auto", "load_in_8bit": False, "llama_cpp_path": None} | changes)


@pytest.fixture
def adapter(tmp_path):
    """A function that writes how an adapter was made; its folder."""

    def write(**config):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
        return tmp_path

    return write


@pytest.mark.parametrize(("gpu", "python", "config", "engine", "said"), [
    (False, "python", {}, "torch", ""), (True, None, {}, "torch", ""), (True, "python", {}, "vllm", ""),
    (True, "python", {"use_dora": True}, "torch", "torch answers, not vllm: vLLM lays LoRA alone on a base by request, "
     "and this run is tuned by DoRA\n"),
])  # fmt: skip
def test_by_itself_vllm_answers_on_a_gpu_where_it_can(adapter, monkeypatch, capsys, gpu, python, config, engine, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(vllm_client, "python", lambda: python)
    assert engines.chosen(settings(), adapter(**config)) == engine
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(("name", "changes", "config", "told"), [
    ("vllm", {}, {}, "vLLM is not installed: pip install vllm, or name the Python .* by SHARPEN_VLLM_PYTHON; or set"),
    ("vllm", {}, {"peft_type": "IA3"}, "this run is tuned by IA3; or set eval_engine = 'torch'"),
    ("vllm", {"load_in_8bit": True}, {}, "load_in_8bit = True rounds in a way of its own"),
    ("llama-server", {"load_in_8bit": True}, {}, "load_in_8bit = True rounds in a way of its own"),
    ("llama-server", {}, {"peft_type": "PREFIX_TUNING"}, "peft_type = 'prefix_tuning': .* cannot be merged"),
])  # fmt: skip
def test_an_engine_that_cannot_answer_is_refused_with_the_remedy(adapter, monkeypatch, name, changes, config, told):
    monkeypatch.setattr(vllm_client, "python", lambda: None)
    with pytest.raises(EngineError, match=f"eval_engine = '{name}': .*{told}"):
        engines.chosen(settings(eval_engine=name, **changes), adapter(**config))


def test_notebook_40s_file_is_asked_where_it_was_made_of_the_adapter_that_is_here(write_run, tmp_path):
    folder = write_run(tmp_path, "one", stages=("prepare", "train", "export"))
    assert engines._exported(folder) is None, "there is no such file"
    (folder / "export/one-f16.gguf").write_bytes(b"GGUF")
    rewrite(folder, "export", outputs=runs.hashes_of(folder / "export"))
    assert engines._exported(folder) == folder / "export/one-f16.gguf"
    (folder / "export/one-f16.gguf").write_bytes(b"torn")
    with pytest.raises(runs.RunError, match="one-f16.gguf was changed: run 40_export again"):
        engines._exported(folder)
    rewrite(folder, "train", outputs={"adapter_model.safetensors": "another"})
    assert engines._exported(folder) is None


def rewrite(run_folder, stage, **changes):
    path = run_folder / STAGES[stage].folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def answered(engine, verdicts, texts):
    return [{"id": str(i), "kind": "k", "question": f"q{i}?", "gold": {"value": 7}, "correct": verdict,
             "completion": text, "engine": engine}
            for i, (verdict, text) in enumerate(zip(verdicts, texts))]  # fmt: skip


def test_verdicts_and_texts_are_counted_and_each_flip_is_shown_with_both_answers():
    first = answered("torch", [True, True, False, False], ["#### 7", "#### 7", "#### 8", "9"])
    second = answered("vllm 1.0", [True, False, False, True], ["#### 7.0", "\x1b[2J#### 3", "#### 8", "#### 7"])
    found = agree._compared((first, 2.0), (second, 0.5))
    assert (found["same_verdicts"], found["same_texts"], found["n"], found["share"]) == (2, 1, 4, 0.5)
    assert found["low"] < 0.2 and found["high"] > 0.8
    assert [engine["answers_per_second"] for engine in found["engines"]] == [2.0, 8.0]
    assert [(flip["id"], flip["right"]) for flip in found["flips"]] == [("1", "torch"), ("3", "vllm 1.0")]
    told = agree.report(found | {"run": "demo", "model": "tuned", "calculator": True})
    assert "[k] q1?\ngold: 7; right: torch\n--- torch\n#### 7\n--- vllm 1.0\n" in told and "q0?" not in told
    assert "same verdicts         50.0 % [15.0, 85.0], 2 of 4" in told and "\x1b" not in visible(told)
