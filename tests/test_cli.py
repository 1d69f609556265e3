"""Claims about the command `sharpen`: one clear message, the right exit code, and a quick start."""

import subprocess
import sys
import time
import types

import pytest

import lib
from lib import cli, pipeline
from lib.presets import PRESETS, ROOT


@pytest.fixture
def sharpen(monkeypatch, capsys):
    """Call the command in this process: (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sharpen", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of the pipeline, which does not run."""
    calls = []
    monkeypatch.setattr(pipeline, "run", lambda *arguments, **named: calls.append((arguments, named)))
    return calls


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "gsm9k"], "unknown preset 'gsm9k'; choose from demo, llama32_3b_gsm8k"),
        (["run", "demo", "--set", "learning_rte=1e-4"], "did you mean 'learning_rate'?"),
        (["run", "demo", "--set", "learning_rate"], "must be KEY=VALUE"),
        (["run", "demo", "--run", "../up"], "run = '../up': must be a name"),
        (["run", "llama32_3b_gsm8k", "--data-dir", "no/such"], "no such folder"),
        (["compare", "no_such_run"], "run 30_evaluate first"),
        (["compare", "../up"], "must be a name"),
        (["rnu"], "No such command"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(sharpen, tmp_path, words, told):
    code, out, err = sharpen(*words, *(["--outputs", str(tmp_path)] if words[0] != "rnu" else []))
    assert code == 2 and told in err and "Traceback" not in err + out
    assert not list(tmp_path.iterdir())


def test_settings_on_the_command_line_reach_the_pipeline(sharpen, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--set", "learning_rate=1e-4", "--set", "base_model=a=b", "--data-dir", "here", "--rehearse", "--force"]
    assert sharpen("run", "demo", "--run", "x", *words, "--outputs", "out")[0] == 0
    overrides = {"learning_rate": "1e-4", "base_model": "a=b", "data_dir": str(tmp_path / "here")}
    assert asked == [(("demo", "x", overrides, True, tmp_path / "out", True), {})]


def test_a_failed_stage_is_exit_code_1_and_an_interrupt_130(sharpen, monkeypatch):
    def fail(*_):
        raise pipeline.StageFailed("said already")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", fail)
    assert sharpen("run", "demo") == (1, "", "")
    monkeypatch.setattr(pipeline, "run", stop)
    assert sharpen("run", "demo")[0] == 130


def test_presets_lists_every_preset_with_its_published_result_quickly():
    began = time.monotonic()
    out = subprocess.check_output([sys.executable, "-m", "lib.cli", "presets"], text=True, cwd=ROOT)
    elapsed_seconds = time.monotonic() - began
    assert all(name in out for name in PRESETS) and "32.90 %" in out and "QLoRA" in out
    assert elapsed_seconds < 3  # about 0.3 s on an idle machine; the cores may be busy with a training run


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_fails_only_on_a_failure(sharpen, monkeypatch, state, code):
    examination = types.SimpleNamespace(
        checks=lambda: [types.SimpleNamespace(state=state)], report=lambda found: f"{found[0].state} disk"
    )
    monkeypatch.setitem(sys.modules, "lib.doctor", examination)
    monkeypatch.setattr(lib, "doctor", examination, raising=False)
    assert sharpen("doctor") == (code, f"{state} disk\n", "")


def test_compare_asks_for_the_comparison_alone(sharpen, asked, monkeypatch, tmp_path):
    monkeypatch.setattr("lib.runs.read", lambda folder, stage: {"preset": "demo", "rehearse": True})
    assert sharpen("compare", "a", "b", "c", "--outputs", str(tmp_path))[0] == 0
    (arguments, named) = asked[0]
    assert arguments == ("demo", "a", {"others": ("b", "c")}, True, tmp_path)
    assert named == {"force": True, "stages": ["compare"]}
