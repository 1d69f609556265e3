"""How far each run came, what is wrong with it, and what may be freed on the disk."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lib import progress, runs, untrusted

STALLED_SECONDS = 300  # a stage at work that has not moved for so long is named
HEARTBEAT_SECONDS = 30  # so is a process that says nothing at all, as one that was stopped or waits for a dead disk
# What a run does without once it is complete: (pattern in the run's folder, what it is)
SPARE = (
    ("*.former", "a finished result that was to be replaced"),
    ("*.abandoned", "an unfinished attempt with other settings, code or inputs"),
    ("*/checkpoints", "checkpoints of a training that has ended"),
    ("*/checkpoint.safetensors", "the checkpoint of a pretraining that has ended"),
    ("*/.tokens", "text as tokens, which pretraining writes again"),
)


def table(outputs: Path, now: datetime | None = None) -> list[dict[str, str]]:
    """A row a run: the stages that are complete, the one at work or stopped, its last step and loss, when it was."""
    return [_row(folder, now or datetime.now(UTC)) for folder in _runs(outputs)]


def line(run_folder: Path, stage: str) -> str:
    """How far a stage at work is: `step 120 of 228, loss 0.3124, 1.2 min left`; `running` where it counts no steps."""
    told = progress.read(run_folder, stage)
    if told is None:
        return "ending" if (run_folder / runs.FOLDERS[stage] / "manifest.json").exists() else "starting"
    found = _words(told)
    parts = [f"{name} {found[name]}" for name in ("step", "loss") if name in found]
    return ", ".join(parts + [f"{found.get('left')} left"] * ("left" in found)) or "running"


def spare(outputs: Path, names: list[str]) -> list[tuple[Path, str, int]]:
    """(path, what it is, bytes) of what `clean` would free in the named runs (all, if none is named).

    Nothing of a stage that can still be gone on from, nothing of a run at work. RunError for an unknown run."""
    for name in names:
        if not runs.run_folder_of(outputs, name).is_dir():
            raise runs.RunError(f"no run {name!r} in {outputs}; there are: {', '.join(f.name for f in _runs(outputs))}")
    found = []
    for folder in _runs(outputs):
        if (names and folder.name not in names) or folder.is_symlink() or runs.holder(folder) is not None:
            continue
        for pattern, what in SPARE:
            for path in sorted(folder.glob(pattern)):
                whole = path.parent == folder or (path.parent / "manifest.json").exists()
                ours = path.relative_to(folder).parts[0].split(".")[0] in runs.FOLDERS.values()
                if whole and ours and not path.is_symlink() and not untrusted.leads_out(path, folder):
                    found.append((path, what, _size(path)))
    return found


def free(paths: list[Path]) -> None:
    """Delete files and folders that `spare` named."""
    for path in paths:
        with runs.writing(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(outputs: Path) -> Iterator[Path]:
    folders = sorted(outputs.iterdir()) if outputs.is_dir() else []
    return (folder for folder in folders if any((folder / name).is_dir() for name in runs.FOLDERS.values()))


def _row(folder: Path, now: datetime) -> dict[str, str]:
    complete = [stage for stage, name in runs.FOLDERS.items() if (folder / name / "manifest.json").exists()]
    begun = {stage: folder / name for stage, name in runs.FOLDERS.items()
             if stage not in complete and (folder / name / "started.json").exists()}  # fmt: skip
    row = {"run": folder.name, "complete": ", ".join(complete) or "-"}
    if not begun:
        return row
    stage = max(begun, key=lambda stage: (begun[stage] / "started.json").stat().st_mtime)
    told = progress.read(folder, stage)
    found = _words(told) if told else {}
    silent = now.timestamp() - max(_last_sign(begun[stage]), told.moved_at.timestamp() if told else 0)
    if runs.holder(folder) is None:
        found.pop("left", None)
        state = "stopped"
    elif told and (now - told.heartbeat).total_seconds() > HEARTBEAT_SECONDS:
        state = "stalled: its process does not answer"
    else:
        state = "stalled?" if silent > STALLED_SECONDS else "running"
    return row | {"unfinished": f"{stage} ({state})"} | found | {"last sign": f"{silent:,.0f} s ago"}


def _words(told: progress.Told) -> dict[str, str]:
    """A stage's step, loss and the time that is left at its speed so far; what is not known is left out."""
    found = {}
    if told.step is not None:
        found["step"] = f"{told.step:,}" + (f" of {told.of:,}" if told.of else "")
        found["step"] += f" ({told.what})" if told.what else ""
    if told.loss is not None:
        found["loss"] = f"{told.loss:.4f}"
    if told.seconds_left is not None:
        found["left"] = f"{told.seconds_left / 60:.1f} min"
    return found


def _last_sign(folder: Path) -> float:
    """When a stage last wrote anything, in seconds since 1970."""
    newest = folder.stat().st_mtime
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that is being replaced
                newest = max(newest, os.lstat(os.path.join(place, name)).st_mtime)
    return newest


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
