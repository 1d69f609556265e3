"""A pipeline killed at random moments ends as one that nobody touched: same data, losses, adapter bytes and answers.

SHARPEN_KILLS=20 kills so often (and once more in an export); SHARPEN_KILLS_SEED=1 chooses other moments."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lib.pipeline import reproduce
from lib.run import runs
from lib.run.paths import ROOT
from lib.run.stages import IN_EVERY_RUN, STAGES

pytestmark = [pytest.mark.slow, pytest.mark.notebooks]
KILLS = int(os.environ.get("SHARPEN_KILLS", 1))
SEED = int(os.environ.get("SHARPEN_KILLS_SEED", 0))
WITHIN_SECONDS = 300
GONE_SECONDS = 10  # in which a kernel whose pipeline was killed must have ended
# Small, and through everything: a second epoch, and dropout, so that random state counts; a checkpoint in the middle of
# what a line of metrics.jsonl is the mean of; questions asked while it trains; several batches of answers.
SMALL = {
    "train_rows": 24, "validation_rows": 6, "test_rows": 12, "max_length": 400, "r": 2, "lora_dropout": 0.1,
    "max_steps": 20, "per_device_train_batch_size": 2, "save_steps": 7, "logging_steps": 2, "eval_steps": 4,
    "accuracy_steps": 1, "optim": "adamw_torch", "eval_rows": 12, "max_new_tokens": 32, "eval_batch_size": 8,
}  # fmt: skip
PROGRAM = f"from lib.pipeline import execute; import sys; execute.run('demo', 'trial', {SMALL!r}, rehearse=True, " \
          "outputs=sys.argv[1], stages=sys.argv[2:])"  # fmt: skip
# They hold times and memory; the figures in them that are results are compared one by one. llama-server batches what is
# asked as it comes, so that of two exports' answers, killed or not, a near tie may fall otherwise.
NO_RESULT = {"adapter/metrics.jsonl", "figures/comparison.json", "export/summary.json", "export/README.md",
             "export/generations.jsonl"}  # fmt: skip


def start(outputs: Path, stages=IN_EVERY_RUN) -> subprocess.Popen:
    # one thread: the order of sums is then the same
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, outputs, *stages], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def told_by(process) -> str:
    told = process.communicate(timeout=WITHIN_SECONDS)[0].decode()
    assert "\r" not in told, "this is no terminal"
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The outputs of a run that nobody touched."""
    outputs = tmp_path_factory.mktemp("whole")
    process = start(outputs)
    told = told_by(process)
    assert process.returncode == 0, told
    return outputs


def differences(whole: Path, cut: Path, stages=IN_EVERY_RUN) -> list[str]:
    """What two runs' figures, losses and files differ in."""
    found = reproduce.compare(whole / "trial", cut / "trial", stages)
    rows = [row for row in found["figures"] + found["files"] if not row["equal"]]
    return [text for row in rows if (text := f"{row['in']}/{row['name']}") not in NO_RESULT]


def seconds(outputs: Path, stage: str) -> float:
    """How long a stage took, its kernel's start included."""
    notebook = outputs / f"trial/notebooks/{STAGES[stage].notebook}.ipynb"
    return json.loads(notebook.read_text())["metadata"]["papermill"]["duration"]


def kill(process: subprocess.Popen, victim: str) -> list[psutil.Process]:
    """SIGKILL to the whole family at once, to the kernel alone, or to the pipeline alone; returns the family."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]  # its first child is the kernel, if there is one
    chosen = {"everything": reversed(family), "kernel": family[1:2] or family, "pipeline": [parent]}[victim]
    for one in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends in this very moment
            one.kill()
    return family


def check_after_a_kill(whole: Path, cut: Path, family: list[psutil.Process], stages) -> None:
    """Nothing is left running; what is believed to be complete is whole, and what nobody touched came to."""
    _, left = psutil.wait_procs(family, timeout=GONE_SECONDS)
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    complete = [stage for stage in stages if runs.is_complete(cut / "trial", stage)]
    assert all(runs.changes(cut / "trial", stage) == [] for stage in complete)
    assert not complete or differences(whole, cut, complete) == []


def go_on_after_kills(whole: Path, cut: Path, moments: list[tuple[float, str]], stages=IN_EVERY_RUN) -> None:
    """Kill a run at moments of the whole run's time, one after the other, each time going on where it was stopped."""
    for moment, victim in moments:
        behind = sum(seconds(whole, stage) for stage in stages
                     if runs.is_complete(cut / "trial", stage))  # fmt: skip
        process, deadline = start(cut, stages), time.monotonic() + max(0.5, moment - behind)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:  # what was kept made it quicker than the whole run
            print(f"ended before {moment:.1f} s", flush=True)
            break
        at = sorted(path.parent.name for path in (cut / "trial").glob("*/started.json"))
        family = kill(process, victim)
        told = told_by(process)
        assert process.returncode == -signal.SIGKILL or victim == "kernel", told
        check_after_a_kill(whole, cut, family, stages)
        print(f"killed {victim} at {moment:.1f} s, in {', '.join(at) or 'no stage'}", flush=True)
    process = start(cut, stages)
    told = told_by(process)
    assert process.returncode == 0, told
    assert differences(whole, cut, stages) == []


def test_killed_at_random_moments_a_run_ends_as_one_that_was_left_alone(whole, tmp_path):
    random, elapsed = np.random.default_rng([SEED, 8]), sum(seconds(whole, stage) for stage in IN_EVERY_RUN)
    moments = (np.arange(KILLS) + random.uniform(size=KILLS)) * elapsed / KILLS  # spread over all of it
    victims = random.choice(["everything", "everything", "kernel", "pipeline"], KILLS)
    go_on_after_kills(whole, tmp_path, list(zip(moments.tolist(), victims.tolist(), strict=True)))


def test_a_training_stopped_by_ctrl_c_keeps_its_step_and_goes_on_to_the_same_end(whole, tmp_path):
    stages = ["prepare", "train"]
    process, metrics = start(tmp_path, stages), tmp_path / "trial/adapter/metrics.jsonl"
    deadline = time.monotonic() + WITHIN_SECONDS
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads((tmp_path / "trial/progress.json").read_text())["stage"] == "train"
    process.send_signal(signal.SIGINT)
    told = told_by(process)
    assert "this goes on from there:\n  sharpen run demo --run trial" in told
    executed = (tmp_path / "trial/notebooks/21_train_qlora.ipynb").read_text()
    step = int(re.search(r"stopped after step (\d+)", executed)[1])
    assert 6 <= step < 20 and (metrics.parent / f"checkpoints/checkpoint-{step}").is_dir()
    assert not (metrics.parent / "adapter_model.safetensors").exists()

    process = start(tmp_path, stages)
    told = told_by(process)
    assert process.returncode == 0 and "10_prepare_data  skipped" in told, told
    assert runs.read(tmp_path / "trial", "train")["metrics"]["resumed_from"] == f"checkpoint-{step}"
    assert differences(whole, tmp_path, stages) == []


@pytest.mark.export
@pytest.mark.skipif("SHARPEN_KILLS" not in os.environ, reason="SHARPEN_KILLS is not set: minutes of exports")
def test_killed_in_an_export_it_ends_with_the_same_files(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    process = start(whole, ["export"])
    told = told_by(process)
    assert process.returncode == 0, told
    random = np.random.default_rng([SEED, 40])
    moments = np.sort(random.uniform(0, seconds(whole, "export"), 2))
    go_on_after_kills(whole, tmp_path, [(moments[0], "everything"), (moments[1], "kernel")], ["export"])
