"""How far each run came, what is wrong with it, and what may be freed on the disk."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lib import runs

STALLED_SECONDS = 300  # a stage at work that has logged nothing for so long is named
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


def spare(outputs: Path, names: list[str]) -> list[tuple[Path, str, int]]:
    """(path, what it is, bytes) of what `clean` would free in the named runs (all, if none is named).

    Nothing of a stage that can still be gone on from, nothing of a run at work. RunError for an unknown run."""
    for name in names:
        if not runs.run_folder_of(outputs, name).is_dir():
            raise runs.RunError(f"no run {name!r} in {outputs}; there are: {', '.join(f.name for f in _runs(outputs))}")
    found = []
    for folder in _runs(outputs):
        if (names and folder.name not in names) or runs.holder(folder) is not None:
            continue
        for pattern, what in SPARE:
            for path in sorted(folder.glob(pattern)):
                if path.is_symlink() or (path.parent != folder and not (path.parent / "manifest.json").exists()):
                    continue
                found.append((path, what, _size(path)))
    return found


def free(paths: list[Path]) -> None:
    """Delete files and folders that `spare` named."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(outputs: Path) -> Iterator[Path]:
    folders = sorted(outputs.iterdir()) if outputs.is_dir() else []
    return (folder for folder in folders if any((folder / name).is_dir() for name in runs.FOLDERS.values()))


def _row(folder: Path, now: datetime) -> dict[str, str]:
    complete = [stage for stage, name in runs.FOLDERS.items() if (folder / name / "manifest.json").exists()]
    begun = {stage: folder / name / "started.json" for stage, name in runs.FOLDERS.items()}
    begun = {stage: path for stage, path in begun.items() if path.exists()}
    row = {"run": folder.name, "complete": ", ".join(complete) or "-"}
    if not begun:
        return row
    stage = max(begun, key=lambda stage: begun[stage].stat().st_mtime)
    last, when = _last(begun[stage].parent)
    silent = (now - when).total_seconds()
    busy = runs.holder(folder) is not None
    row["unfinished"] = f"{stage} ({'stopped' if not busy else 'stalled?' if silent > STALLED_SECONDS else 'running'})"
    row["step"] = str(last.get("step", "-"))
    row["loss"] = f"{last['loss']:.4f}" if isinstance(last.get("loss"), float) else "-"
    row["last sign"] = f"{silent:,.0f} s ago"
    if busy and (share := _share(begun[stage], last)):
        spent = when.timestamp() - begun[stage].stat().st_mtime
        row["left"] = f"{spent * (1 - share) / share / 60:.1f} min"
    return row


def _share(started: Path, last: dict) -> float:
    """How much of a training is done, from 0 (not known) to 1."""
    settings = json.loads(started.read_text())["plan"]["settings"]
    if "pretrain_tokens" in settings:
        return last.get("tokens", 0) / settings["pretrain_tokens"]
    if settings.get("max_steps", -1) > 0:
        return last.get("step", 0) / settings["max_steps"]
    return last.get("epoch", 0) / settings.get("num_train_epochs", 1)


def _last(folder: Path) -> tuple[dict, datetime]:
    """The last line of a stage's metrics that is whole, and when the stage last wrote anything."""
    newest = max(path.stat().st_mtime for path in folder.rglob("*"))
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    for line in reversed(lines[-2:]):
        try:
            return json.loads(line), datetime.fromtimestamp(newest, UTC)
        except ValueError:  # half written at this very moment
            continue
    return {}, datetime.fromtimestamp(newest, UTC)


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
