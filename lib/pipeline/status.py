"""How far each run came, what is wrong with it, and what may be freed on the disk."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lib.run import disk, progress, runs, untrusted
from lib.run.stages import STAGES

STALLED_SECONDS = 300  # a stage at work that has not moved for so long is named
HEARTBEAT_SECONDS = 30  # so is a process that says nothing at all: stopped, or on a dead disk
SILENT = "stalled: its process does not answer"
# What a run does without once it is complete: (pattern in the run's folder, what it is)
SPARE = (
    ("*.former", "a finished result that was to be replaced"),
    ("*.abandoned", "an unfinished attempt with other settings, code or inputs"),
    ("*/checkpoints", "checkpoints of a training that has ended"),
    ("*/checkpoint.safetensors", "the checkpoint of a pretraining that has ended"),
    ("*/.tokens", "text as tokens, which pretraining writes again"),
)


def table(outputs: Path, now: datetime | None = None) -> list[dict[str, str]]:
    """A row a run: the stages that are complete, the one at work or stopped, its step and loss."""
    return [_row(folder, now or datetime.now(UTC)) for folder in _runs(outputs)]


def line(run_folder: Path, stage: str) -> str:
    """How far a stage at work is: `step 120 of 228, loss 0.3124, 1.2 min left`, or `running`."""
    told = progress.read(run_folder, stage)
    if told is None:
        return "ending" if runs.is_complete(run_folder, stage) else "starting"
    words, now = _words(told), datetime.now(UTC)
    parts = [f"{name} {words[name]}" for name in ("step", "loss") if name in words]
    if "left" in words:
        parts.append(f"{words['left']} left")
    still = (now - told.moved_at).total_seconds()
    if _is_silent(told, now):
        parts.append(SILENT)
    elif still > STALLED_SECONDS:
        parts.append(f"stalled? no step for {still / 60:.0f} min")
    return ", ".join(parts) or "running"


def spare(outputs: Path, names: list[str]) -> list[tuple[Path, str, int]]:
    """(path, what it is, bytes) of what `clean` would free in these runs (in all, if none is named).

    Nothing that a stage can still go on from, nothing of a run at work. RunError for an unknown run."""
    folders = _runs(outputs)
    for name in names:
        if not runs.run_folder_of(outputs, name).is_dir():
            there = ", ".join(folder.name for folder in folders)
            raise runs.RunError(f"no run {name!r} in {outputs}; there are: {there}")
    rows = []
    for folder in folders:
        wanted = not names or folder.name in names
        if wanted and not folder.is_symlink() and disk.holder(folder) is None:
            rows += [(path, what, _size(path)) for path, what in _spare_of(folder)]
    return rows


def free(outputs: Path, paths: list[Path]) -> None:
    """Delete what `spare` named, if it can still be spared; RunError names who writes to a run now."""
    for folder in dict.fromkeys(outputs / path.relative_to(outputs).parts[0] for path in paths):
        disk.lock(folder, "writer")
        try:
            for path, _ in _spare_of(folder):
                if path not in paths:
                    continue
                with disk.writing(path):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
        finally:
            disk.unlock(folder, "writer")


def _spare_of(folder: Path) -> Iterator[tuple[Path, str]]:
    stage_of = {row.folder: stage for stage, row in STAGES.items()}
    for pattern, what in SPARE:
        for path in sorted(folder.glob(pattern)):
            stage = stage_of.get(path.relative_to(folder).parts[0].split(".")[0])
            if stage is None or path.is_symlink() or untrusted.leads_out(path, folder):
                continue
            if path.parent == folder or _is_whole(folder, stage):
                yield path, what


def _is_whole(folder: Path, stage: str) -> bool:
    """Whether a stage's manifest is there, and whole."""
    with contextlib.suppress(runs.RunError):
        return bool(runs.read(folder, stage))
    return False


def _runs(outputs: Path) -> list[Path]:
    """The folders in which a stage's folder lies."""
    names = [row.folder for row in STAGES.values()]
    return sorted({path.parent for name in names for path in outputs.glob(f"*/{name}") if path.is_dir()})


def _row(folder: Path, now: datetime) -> dict[str, str]:
    complete, begun = [], {}
    for stage, stage_row in STAGES.items():
        if runs.is_complete(folder, stage):
            complete.append(stage if _is_whole(folder, stage) else f"{stage} (unreadable)")
            continue
        with contextlib.suppress(OSError):  # not begun, or it ends in this moment
            begun[stage] = (folder / stage_row.folder / "started.json").stat().st_mtime
    row = {"run": folder.name, "complete": ", ".join(complete) or "-"}
    if not begun:
        return row
    stage = max(begun, key=begun.get)
    last = max(_last_sign(folder / STAGES[stage].folder), begun[stage])
    told, words = progress.read(folder, stage), {}
    if told:
        last, words = max(last, told.moved_at.timestamp()), _words(told)
    silent = now.timestamp() - last
    state = "running"
    if disk.holder(folder) is None:
        words.pop("left", None)
        state = "stopped"
    elif told and _is_silent(told, now):
        state = SILENT
    elif silent > STALLED_SECONDS:
        state = "stalled?"
    return row | {"unfinished": f"{stage} ({state})"} | words | {"last sign": f"{silent:,.0f} s ago"}


def _is_silent(told: progress.Told, now: datetime) -> bool:
    return (now - told.heartbeat).total_seconds() > HEARTBEAT_SECONDS


def _words(told: progress.Told) -> dict[str, str]:
    """A stage's step, loss and the time that is left at its speed so far, as far as known."""
    words = {}
    if told.step is not None:
        words["step"] = f"{told.step:,}"
        if told.of:
            words["step"] += f" of {told.of:,}"
        if told.what:
            words["step"] += f" ({told.what})"
    if told.loss is not None:
        words["loss"] = f"{told.loss:.4f}"
    if told.seconds_left is not None:
        words["left"] = f"{told.seconds_left / 60:.1f} min"
    return words


def _last_sign(folder: Path) -> float:
    """When a stage last wrote anything, in seconds since 1970."""
    newest = 0.0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a checkpoint that is being replaced
                newest = max(newest, os.lstat(os.path.join(place, name)).st_mtime)
    return newest


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if file.is_file())
