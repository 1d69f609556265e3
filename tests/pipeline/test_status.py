"""What `sharpen status` says of runs, and what `sharpen clean` would free."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from lib.pipeline import status
from lib.run import parameters, presets, progress, runs
from lib.run.paths import ROOT
from lib.run.stages import STAGES

MANIFEST = {"preset": "demo", "rehearse": False, "ended_at": "", "elapsed_seconds": 1.0} | dict.fromkeys(
    ("settings", "origins", "code", "inputs", "external", "outputs", "versions", "device", "peak_memory_bytes",
     "metrics"), {})  # fmt: skip
MANIFEST["git"] = {"commit": None, "dirty": None}


def make(folder, complete=(), begun=None):
    for stage in complete:
        (folder / STAGES[stage].folder).mkdir(parents=True)
        (folder / STAGES[stage].folder / "manifest.json").write_text(json.dumps(MANIFEST | {"stage": stage}))
    if begun:
        (folder / STAGES[begun].folder).mkdir(parents=True)
        (folder / STAGES[begun].folder / "started.json").write_text("{}")
    return folder


@pytest.fixture
def writer(tmp_path):
    """Another process that trains in tmp_path/busy: 5 of 20 steps, and a line on stdin makes it take one more."""
    make(tmp_path / "busy", ["prepare"], "train")
    code = """
        import sys; from pathlib import Path; from lib.run import disk, progress
        progress.EVERY_SECONDS = 0.05
        folder, step = Path(sys.argv[1]), 5
        disk.lock(folder, "writer")
        progress.begin(folder, "train"); progress.tell(0, 20); progress.tell(5, 20, loss=1.5)
        print("ready", flush=True)
        for line in sys.stdin:
            step += 1; progress.tell(step, 20); print("told", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "busy")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.send_signal(signal.SIGCONT)
        process.stdin.close()


def wait_for(found, seconds=20):
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline:
        time.sleep(0.05)
    return found()


def row(outputs, **later):
    (only,) = status.table(outputs, datetime.now(UTC) + timedelta(**later))
    return only


# --- a stage at work --------------------------------------------------------------------------------------------------
def test_a_run_at_work_is_told_with_its_step_its_loss_and_what_is_left(tmp_path, writer):
    assert wait_for(lambda: row(tmp_path).get("step") == "5 of 20")
    found = row(tmp_path)
    assert (found["run"], found["complete"], found["unfinished"]) == ("busy", "prepare", "train (running)")
    assert found["loss"] == "1.5000" and found["left"].endswith(" min")
    assert status.line(tmp_path / "busy", "train").startswith("step 5 of 20, loss 1.5000, ")
    writer.stdin.write("go on\n")
    writer.stdin.flush()
    assert wait_for(lambda: status.line(tmp_path / "busy", "train").startswith("step 6 of 20, loss 1.5000, "))


def test_a_stage_that_lives_and_does_not_move_is_named(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(status, "HEARTBEAT_SECONDS", 10**6)
    assert wait_for(lambda: row(tmp_path).get("step") == "5 of 20")
    assert row(tmp_path, minutes=6)["unfinished"] == "train (stalled?)"
    monkeypatch.setattr(status, "STALLED_SECONDS", 0)
    assert status.line(tmp_path / "busy", "train").endswith(" left, stalled? no step for 0 min")


def test_a_process_that_says_nothing_is_named(tmp_path, writer, monkeypatch):
    assert wait_for(lambda: row(tmp_path).get("step") == "5 of 20")
    writer.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    last = (tmp_path / "busy" / "progress.json").read_bytes()
    monkeypatch.setattr(status, "HEARTBEAT_SECONDS", 0.2)
    time.sleep(0.3)
    assert (tmp_path / "busy" / "progress.json").read_bytes() == last
    assert row(tmp_path)["unfinished"] == "train (stalled: its process does not answer)"
    assert status.line(tmp_path / "busy", "train").endswith(" left, stalled: its process does not answer")


def test_the_heart_beats_while_a_step_takes_long(tmp_path, writer):
    def beat():
        return progress.read(tmp_path / "busy", "train").heartbeat

    first = beat()
    assert wait_for(lambda: beat() > first)
    told = progress.read(tmp_path / "busy", "train")
    assert told.pid == writer.pid and told.moved_at < told.heartbeat and told.memory_bytes > 10 * 2**20


def test_the_heart_beats_also_while_torch_is_being_imported(monkeypatch):
    half = ModuleType("torch")
    half.__spec__ = ModuleSpec("torch", None)
    half.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "torch", half)
    assert progress.memory_bytes() > 10 * 2**20


def test_what_is_left_follows_from_the_speed_so_far(tmp_path, monkeypatch):
    clock = iter([100.0, 160.0, 200.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "EVERY_SECONDS", 3600)
    progress.begin(tmp_path, "evaluate")
    try:
        progress.tell(10, 100, "answers of tuned")
        progress.tell(40, 100, "answers of tuned")  # 30 in 60 s, 60 more
        progress._heartbeat.write()
        assert status.line(tmp_path, "evaluate") == "step 40 of 100 (answers of tuned), 2.0 min left"
        progress.tell(0, 100, "answers of base")  # another count: its speed is not known
        progress._heartbeat.write()
        assert status.line(tmp_path, "evaluate") == "step 0 of 100 (answers of base)"
        assert status.line(tmp_path, "compare") == "starting"
    finally:
        progress.end()
    assert not (tmp_path / "progress.json").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"stage": "train"}', '{"stage": "train", "heartbeat": "soon"}'])
def test_a_progress_file_that_is_none_is_passed_over(tmp_path, text):
    make(tmp_path / "odd", begun="train")
    (tmp_path / "odd" / "progress.json").write_text(text)
    assert row(tmp_path)["unfinished"] == "train (stopped)"


def test_a_run_whose_process_died_is_told_as_stopped(tmp_path, writer):
    assert wait_for(lambda: row(tmp_path).get("step") == "5 of 20")
    writer.kill()
    writer.wait()
    found = row(tmp_path)
    assert found["unfinished"] == "train (stopped)" and found["step"] == "5 of 20" and "left" not in found


def test_a_stage_begun_by_a_notebook_tells_until_it_is_finished(tmp_path):
    stage = runs.begin(parameters.Request("prepare", "trial", tmp_path, presets.resolve("demo")))
    assert progress.read(tmp_path / "trial", "prepare").pid == os.getpid()
    assert status.line(tmp_path / "trial", "prepare") == "running"
    stage.finish()
    assert status.line(tmp_path / "trial", "prepare") == "ending"
    assert not (tmp_path / "trial" / "progress.json").exists()


# --- runs that rest ---------------------------------------------------------------------------------------------------
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
    status.free(tmp_path, [path for path, *_ in found])
    assert status.spare(tmp_path, []) == []
    assert (done / "adapter" / "adapter_model.safetensors").exists() and (begun / "adapter" / "checkpoints").exists()


def test_what_has_come_to_be_needed_since_it_was_shown_is_not_freed(tmp_path, writer):
    done = make(tmp_path / "done", ["prepare", "train"])
    shown = [done / "adapter/checkpoints", tmp_path / "busy/data.former"]
    for path in shown:
        path.mkdir()
    (done / "adapter/manifest.json").unlink()  # it is trained anew
    status.free(tmp_path, shown[:1])
    with pytest.raises(runs.RunError, match=f"busy is being written by process {writer.pid}"):
        status.free(tmp_path, shown[1:])
    assert all(path.is_dir() for path in shown)


def test_a_torn_manifest_makes_no_stage_complete(tmp_path):
    done = make(tmp_path / "done", ["prepare", "train"])
    (done / "adapter/checkpoints").mkdir()
    (done / "adapter/manifest.json").write_text('{"stage": "tra')
    assert status.table(tmp_path) == [{"run": "done", "complete": "prepare, train (unreadable)"}]
    assert status.spare(tmp_path, []) == []


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
