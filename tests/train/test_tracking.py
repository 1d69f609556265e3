"""Claims about trackers: where they write, that none asks anybody anything, and that an absent one is told first."""

import os
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from lib.run import disk, parameters, presets, rules, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.train import tracking


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What `start` sets is gone after the test."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_", "TENSORBOARD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_the_default_is_none_and_writes_nothing(tmp_path):
    assert tracking.start(presets.resolve("demo").settings.report_to, tmp_path)["report_to"] == "none"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_absent_package_is_told_with_its_command_before_anything_starts(name):
    if any(found.name == name for found in metadata.distributions()):
        pytest.skip(f"{name} is installed")
    with pytest.raises(SettingsError) as refused:
        presets.resolve("demo", {"report_to": name})
    assert f"report_to = '{name}': its package is not here: python -m pip install {name}==" in str(refused.value)


def test_a_folder_that_is_called_like_a_package_is_none(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "distribution", metadata.Distribution.from_name)
    assert "pip install wandb==" in rules.no_tracker("wandb")
    assert rules.no_tracker("tensorboard") is None


def test_the_versions_named_are_those_of_the_environment():
    pinned = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert f"- {rules.TRACKERS['tensorboard']}\n" in pinned


@pytest.mark.parametrize(("given", "mode"), [
    ({}, "offline"), ({"WANDB_MODE": "online"}, "offline"),  # without a key it would ask for one
    ({"WANDB_API_KEY": "k" * 40}, "online"), ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "offline"),
])  # fmt: skip
def test_wandb_is_offline_unless_there_is_a_key_and_leaves_no_link_behind(tmp_path, monkeypatch, given, mode):
    asked, place = {}, tmp_path / "trial/adapter/.tracking"

    def init(**arguments):
        asked.update(arguments)
        (place / "wandb").mkdir()
        (place / "wandb/debug-core.log").symlink_to(tmp_path / "elsewhere.log")

    fake = SimpleNamespace(init=init, Settings=dict, Error=OSError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    os.environ.update(given)
    told = tracking.start("wandb", tmp_path / "trial" / "adapter")
    assert (asked["mode"], asked["dir"], told["run_name"]) == (mode, place, "trial")
    assert asked["settings"]["console"] == "off" and asked["settings"]["disable_git"]
    assert os.environ["WANDB_LOG_MODEL"] == "false"
    disk.check_links(tmp_path / "trial")
    fake.init = lambda **_: (place / "wandb/debug-core.log").symlink_to(tmp_path / "elsewhere.log") or 1 / 0
    fake.Error = ZeroDivisionError  # as if nobody answered
    with pytest.raises(tracking.TrackingError, match="set WANDB_MODE=offline, or unset WANDB_API_KEY"):
        tracking.start("wandb", tmp_path / "trial" / "adapter")
    disk.check_links(tmp_path / "trial")


def test_only_the_first_rank_starts_a_wandb_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    os.environ["RANK"] = "1"
    assert tracking.start("wandb", tmp_path / "adapter")["report_to"] == "wandb"


def test_trackio_stays_on_this_machine_in_the_runs_folder(tmp_path):
    tracking.start("trackio", tmp_path / "adapter")
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "adapter/.tracking")


def test_what_a_viewer_writes_later_does_not_change_the_run(tmp_path):
    stage = runs.begin(parameters.Request("train", "trial", tmp_path, presets.resolve("demo")))
    tracking.start("trackio", stage.folder)
    (stage.folder / tracking.FOLDER / "sharpen.db").write_text("rows")
    stage.finish()
    (stage.folder / tracking.FOLDER / "sharpen.db-wal").write_text("a viewer's")
    assert runs.changes(tmp_path / "trial", "train") == [] == list(runs.read(tmp_path / "trial", "train")["outputs"])


@pytest.mark.slow
def test_tensorboards_curve_is_that_of_metrics_jsonl_and_holds_no_key(tmp_path):
    """In a process of its own, whose standard input is closed: nothing may wait for an answer."""
    program = """
import sys
from pathlib import Path
from lib.train import qlora
from lib.data import tasks
from lib.run import parameters, presets, runs
from tests.train import shown
few = {"report_to": "tensorboard", "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "r": 4,
       "eval_steps": 2, "save_steps": 4}
stage = runs.begin(parameters.Request("train", "trial", Path(sys.argv[1]), presets.resolve("demo", few)))
model, tokenizer = qlora.load(stage.settings)
rows = [problem.row() for problem in tasks.generate("train", 6, 0, ("compounding",))]
kept, held = (qlora.encode(part, tokenizer, 640)[0] for part in (rows, rows[:2]))
shown.train(qlora.attach(model, stage.settings), tokenizer, kept, held, stage.settings, stage.folder, stage.log)
"""
    secret = "planted-key-9f8e7d6c"
    told = {"PYTHONPATH": str(ROOT), "ANNS_API_KEY": secret, "HF_TOKEN": f"hf_{secret}"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=os.environ | told, cwd=tmp_path,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lib.run.runs import read_rows

    folder = tmp_path / "trial" / "adapter"
    found, lines = EventAccumulator(str(folder / ".tracking")).Reload(), read_rows(folder / "metrics.jsonl")
    for ours, theirs in (("loss", "train/loss"), ("eval_loss", "eval/loss"), ("learning_rate", "train/learning_rate")):
        expected = [(line["step"], line[ours]) for line in lines if ours in line]
        assert [event.step for event in found.Scalars(theirs)] == [step for step, _ in expected] and expected
        values = [event.value for event in found.Scalars(theirs)]
        assert values == pytest.approx([value for _, value in expected], rel=1e-6)  # single precision
    assert f"tensorboard --logdir {tmp_path.name}/trial/adapter/.tracking" in done.stdout
    kept = [path for path in (tmp_path / "trial").rglob("*") if path.is_file()]
    assert not [path for path in kept if secret.encode() in path.read_bytes()]
