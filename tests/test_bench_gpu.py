"""The GPU benchmark's arithmetic, its budget, and one of its cases at a tiny shape; its figures need a GPU."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib.gpt import plain
from lib.run import presets
from lib.train import scale

FOLDER = Path(__file__).parent / "benchmarks/gpu"
sys.path.insert(0, str(FOLDER))  # as Python has it where the script runs
import bench_gpu  # noqa: E402
import shapes  # noqa: E402
import wheels  # noqa: E402

PUBLISHED = {"Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824, "Llama-3.1-8B": 8_030_261_248,
             "Qwen2.5-14B": 14_770_033_664}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_parameters_as_its_card_says(name):
    assert sum(parameter.numel() for parameter in shapes.on_meta(name).parameters()) == PUBLISHED[name]


# --- operations -------------------------------------------------------------------------------------------------------
def counted(model, ids, loss_of) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss_of(model, ids).backward()
    return counter.get_total_flops()


def test_operations_of_a_gpt_are_those_that_torch_counts():
    config = plain.Config(512, 64, 128, 3, 4, 2, 64)
    ids = torch.randint(4, 512, (2, 49))
    found = counted(plain.GPT(config), ids, lambda model, ids: model.loss(ids, torch.ones(ids.shape)))
    # the plain GPT computes every score, also those that are masked: 48 positions a token
    assert found == pytest.approx(2 * 48 * shapes.operations(config, 48), rel=0.01)


def test_operations_of_lora_leave_out_the_gradients_of_frozen_weights():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = shapes.config_of("rehearsal")
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    base.enable_input_require_grads()  # as where layers are computed again: gradients reach the first layer's input
    settings = presets.resolve("demo", {"r": 8}).settings
    model = get_peft_model(base, LoraConfig(r=8, target_modules=list(settings.target_modules)))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == scale.trained(config, settings)
    ids = torch.randint(16, 2048, (2, 48))
    found = counted(model, ids, lambda model, ids: model(input_ids=ids, labels=ids).loss)
    assert found == pytest.approx(2 * 48 * shapes.operations(config, 48, trained), rel=0.02)


def test_a_token_of_a_causal_row_attends_to_half_of_it():
    assert shapes.positions([3]) == 2  # 1, 2 and 3 positions
    assert shapes.positions([1, 3]) == 7 / 4


# --- the budget -------------------------------------------------------------------------------------------------------
@pytest.fixture
def clock(monkeypatch):
    """Seconds that only pass where a case says so."""
    time = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(bench_gpu.time, "monotonic", lambda: time.seconds)
    return time


def cases(*names, limit_seconds=100):
    return [{"name": name, "limit_seconds": limit_seconds} for name in names]


FIGURES = {"tokens_per_second": 10.0, "peak_bytes": 2**30, "utilisation": 0.4}


def test_no_case_is_begun_when_the_budget_is_spent(clock):
    limits, saved, found = [], [], {"cases": {}, "skipped": []}

    def measure(case, limit):
        limits.append(limit)
        clock.seconds += 90
        return dict(FIGURES)

    bench_gpu.run_all(cases("a", "b", "c", "d"), found, 250, measure, lambda found: saved.append(len(found["cases"])))
    assert (list(found["cases"]), found["skipped"]) == (["a", "b", "c"], ["d"])
    assert limits == [100, 100, 70]  # no more than what is left
    assert saved == [1, 2, 3, 3]


def test_what_is_measured_is_kept_and_counts_and_what_failed_is_tried_again(clock):
    done, failed = FIGURES | {"elapsed_seconds": 60}, {"error": "out of memory", "elapsed_seconds": 30}
    found, asked = {"cases": {"a": done, "b": failed}, "skipped": []}, []

    def measure(case, limit):
        asked.append((case["name"], limit))
        clock.seconds += 20
        return dict(FIGURES)

    bench_gpu.run_all(cases("a", "b", "c"), found, 140, measure, lambda found: None)
    assert asked == [("b", 50)] and found["skipped"] == ["c"]
    assert found["cases"]["a"] == done and found["cases"]["b"]["elapsed_seconds"] == 50
    assert "error" not in found["cases"]["b"]


def test_every_case_has_a_name_of_its_own_and_the_first_two_are_the_comparison_that_matters():
    names = [case["name"] for case in bench_gpu.CASES]
    assert len(set(names)) == len(names)
    assert names[:2] == ["train Llama-3.2-3B 2048 unsloth", "train Llama-3.2-3B 2048 plain"]
    for key in ("length", "tokens_a_pass", "rows", "packing", "checkpointing"):
        assert bench_gpu.CASES[0]["arguments"][key] == bench_gpu.CASES[1]["arguments"][key]


# --- the script -------------------------------------------------------------------------------------------------------
def script(*words):
    return subprocess.run([sys.executable, FOLDER / "bench_gpu.py", *map(str, words)], capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so it would measure")
def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path):
    done = script("--results", tmp_path / "gpu.json")
    assert done.returncode == 2 and "torch finds no GPU here" in done.stderr and "--rehearse" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_case_rehearsed_gives_every_field_and_its_table(tmp_path):
    case = next(case for case in bench_gpu.REHEARSED if case["arguments"].get("method") == "plain")
    found = {"cases": {}, "skipped": ["learn"], "rehearse": True, "machine": bench_gpu.machine(), "date": "2026-11-21",
             "command": "python bench_gpu.py --rehearse"}  # fmt: skip
    bench_gpu.run_all([case], found, 600, lambda case, limit: bench_gpu.in_a_process(case, limit, tmp_path, True),
                      lambda found: (tmp_path / "results.json").write_text(json.dumps(found)))  # fmt: skip
    result = found["cases"][case["name"]]
    assert result.keys() == {
        "name", "part", "limit_seconds", "arguments", "tokens_per_second", "all_tokens_per_second", "peak_bytes",
        "operations_per_token", "batch", "ran", "utilisation", "matrix_operations_per_second", "elapsed_seconds",
    }  # fmt: skip
    assert len(result["all_tokens_per_second"]) == 3 and result["peak_bytes"] > 0 and result["batch"] == 2
    assert result["ran"]["bits_ran"] == 4
    assert result["utilisation"] == pytest.approx(
        result["tokens_per_second"] * result["operations_per_token"] / result["matrix_operations_per_second"])
    shown = script("--table", tmp_path / "results.json").stdout
    assert shown.startswith("REHEARSAL: no result.")
    assert f"| rehearsal | 64 | plain | tokens_a_pass=128 | {result['tokens_per_second']:,.0f} |" in shown
    assert "Not begun within the budget: learn." in shown


@pytest.mark.slow
def test_a_case_that_fails_leaves_its_last_words(tmp_path):
    case = {"name": "train nothing", "part": "train", "arguments": {"method": "plain", "compile": True, "moon": 1}}
    result = bench_gpu.in_a_process(case, 120, tmp_path, True)
    assert "moon" in result["error"] and "exit code 1" in result["error"]


# --- wheels -----------------------------------------------------------------------------------------------------------
def test_every_package_of_the_environment_is_known_by_its_normal_name():
    text = wheels.ENVIRONMENT.read_text()
    assert len(wheels.pinned(text)) == text.count("==")
    assert wheels.pinned("Huggingface_Hub==1.2\nnumpy==2\nlocal @ file:///tmp/x") == {
        "huggingface-hub": "Huggingface_Hub==1.2", "numpy": "numpy==2"}  # fmt: skip


def test_a_stripped_wheel_loses_the_files_and_their_lines_alone(tmp_path):
    wheel, names = tmp_path / "some-1-py3-none-any.whl", ["some/a.py", "some/libcuda118.so", "some/libcuda130.so"]
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, name * 100)
        file.writestr("some-1.dist-info/RECORD", "".join(f"{name},sha256=x,1\n" for name in names))
    wheels.strip(wheel, re.compile(r"some/libcuda(?!130)"))
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == ["some/a.py", "some/libcuda130.so", "some-1.dist-info/RECORD"]
        assert file.read("some-1.dist-info/RECORD").decode().split() == [f"{names[i]},sha256=x,1" for i in (0, 2)]
        assert file.read(names[2]).decode() == names[2] * 100
