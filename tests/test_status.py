"""What `sharpen status` says of runs, and what `sharpen clean` would free."""

import json
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import pytest

from lib import runs, status
from lib.presets import ROOT


def make(folder, complete=(), begun=None, settings=None, lines=()):
    for stage in complete:
        (folder / runs.FOLDERS[stage]).mkdir(parents=True)
        (folder / runs.FOLDERS[stage] / "manifest.json").write_text("{}")
    if begun:
        place = folder / runs.FOLDERS[begun]
        place.mkdir(parents=True)
        (place / "started.json").write_text(json.dumps({"plan": {"settings": settings or {}}}))
        (place / "metrics.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def writer(tmp_path):
    """Another process that writes to tmp_path/busy."""
    make(tmp_path / "busy", ["prepare"], "train", {"max_steps": -1, "num_train_epochs": 4.0},
         ['{"step": 5, "loss": 1.5, "epoch": 1.0}\n', '{"step": 10, "lo'])  # fmt: skip
    code = """
        import sys; from pathlib import Path; from lib import runs
        runs.lock(Path(sys.argv[1]), "writer"); print("ready", flush=True); sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "busy")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def test_a_run_at_work_is_told_with_its_step_its_loss_and_what_is_left(tmp_path, writer):
    began = tmp_path / "busy" / "adapter" / "started.json"
    minute_ago = began.stat().st_mtime - 60
    os.utime(began, (minute_ago, minute_ago))
    (row,) = status.table(tmp_path)
    assert (row["run"], row["complete"], row["unfinished"]) == ("busy", "prepare", "train (running)")
    assert (row["step"], row["loss"]) == ("5", "1.5000")  # the line that is half written is not read
    assert row["left"] == "3.0 min"  # one epoch of four in a minute
    (later,) = status.table(tmp_path, datetime.now(UTC) + timedelta(minutes=6))
    assert later["unfinished"] == "train (stalled?)"


def test_a_stage_at_work_says_how_far_it_is(tmp_path, writer):
    assert status.line(tmp_path / "busy", "train").startswith("step 5, loss 1.5000, ")
    make(tmp_path / "busy", begun="evaluate", lines=[])
    (tmp_path / "busy" / "eval" / ".tuned.jsonl").write_text("[0, [{}, {}]]\n[2, [{}, {}]]\n[4, [{")
    assert status.line(tmp_path / "busy", "evaluate") == "4 answers"
    assert status.line(tmp_path / "busy", "compare") == "starting"


def test_a_run_whose_process_died_is_told_as_stopped(tmp_path, writer):
    writer.kill()
    writer.wait()
    (row,) = status.table(tmp_path)
    assert row["unfinished"] == "train (stopped)" and "left" not in row


def test_complete_runs_and_other_folders_are_told_apart(tmp_path):
    make(tmp_path / "done", ["prepare", "train", "evaluate", "compare"])
    (tmp_path / "notes").mkdir()
    assert status.table(tmp_path) == [{"run": "done", "complete": "prepare, train, evaluate, compare"}]
    assert status.table(tmp_path / "nowhere") == []


def test_what_can_be_freed_is_never_what_a_run_needs(tmp_path, writer):
    done = make(tmp_path / "done", ["prepare", "train"])
    begun = make(tmp_path / "begun", ["prepare"], "train")
    for path in (
        done / "data.former" / "rows", done / "adapter" / "checkpoints" / "a", tmp_path / "busy/eval.abandoned/a",
        begun / "adapter" / "checkpoints" / "a", done / "adapter" / "adapter_model.safetensors",
    ):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    found = status.spare(tmp_path, [])
    assert [(path.relative_to(tmp_path).as_posix(), size) for path, _, size in found] == [
        ("done/data.former", 5), ("done/adapter/checkpoints", 5),
    ]  # fmt: skip
    status.free([path for path, *_ in found])
    assert status.spare(tmp_path, []) == []
    assert (done / "adapter" / "adapter_model.safetensors").exists() and (begun / "adapter" / "checkpoints").exists()


def test_a_link_out_of_the_run_is_never_followed(tmp_path):
    done, kept = make(tmp_path / "runs" / "done", ["prepare"]), tmp_path / "kept"
    kept.mkdir()
    (done / "data.former").symlink_to(kept)
    assert status.spare(tmp_path / "runs", []) == []


def test_an_unknown_run_is_named_with_those_there_are(tmp_path):
    make(tmp_path / "done", ["prepare"])
    with pytest.raises(runs.RunError, match="no run 'dome'.*there are: done"):
        status.spare(tmp_path, ["dome"])


def test_clean_frees_only_where_it_is_agreed_to(tmp_path):
    spare = make(tmp_path / "done", ["prepare"]) / "data.former"
    spare.mkdir()
    (spare / "rows").write_bytes(b"1")
    command = [sys.executable, "-m", "lib.cli", "clean", "--outputs", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert told.returncode == 0 and "done/data.former" in told.stdout and "--yes frees it" in told.stdout
    assert spare.exists()
    told = subprocess.run([*command, "--yes"], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0 and "freed" in told.stdout and not spare.exists()
