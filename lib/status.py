"""How far each run came, what is wrong with it, and what may be freed on the disk."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from lib import runs, untrusted

STALLED_SECONDS = 300  # a stage at work that has logged nothing for so long is named
# What a run does without once it is complete: (pattern in the run's folder, what it is)
SPARE = (
    ("*.former", "a finished result that was to be replaced"),
    ("*.abandoned", "an unfinished attempt with other settings, code or inputs"),
    ("*/checkpoints", "checkpoints of a training that has ended"),
    ("*/checkpoint.safetensors", "the checkpoint of a pretraining that has ended"),
    ("*/.tokens", "text as tokens, which pretraining writes again"),
)


Whole = Annotated[int, Field(ge=-1, lt=2**63)]


class _Logged(runs.Form):
    """A line of metrics.jsonl, as far as it says how far a training is."""

    step: Whole
    loss: float | None = None
    epoch: float = 0
    tokens: float = 0


class _Settings(runs.Form):
    max_steps: Whole = -1
    num_train_epochs: Annotated[float, Field(gt=0)] = 1
    pretrain_tokens: Annotated[Whole, Field(gt=0)] = 1


class _Plan(runs.Form):
    settings: _Settings


class _Started(runs.Form):
    plan: _Plan


def table(outputs: Path, now: datetime | None = None) -> list[dict[str, str]]:
    """A row a run: the stages that are complete, the one at work or stopped, its last step and loss, when it was."""
    return [_row(folder, now or datetime.now(UTC)) for folder in _runs(outputs)]


def line(run_folder: Path, stage: str) -> str:
    """How far a stage at work is: `step 120, loss 0.3124, 1.2 min left`, or `180 answers`, or `running`."""
    folder = run_folder / runs.FOLDERS[stage]
    if not (folder / "started.json").exists():
        return "ending" if (folder / "manifest.json").exists() else "starting"
    found = _progress(folder)
    try:
        journals = [batch for path in folder.glob(".*.jsonl") for batch in runs.whole_lines(path)]
        answers = sum(len(json.loads(batch)[1]) for batch in journals)
    except (runs.RunError, ValueError, TypeError, LookupError):  # no journal of answers
        answers = 0
    parts = [f"{name} {found[name]}" for name in ("step", "loss") if name in found]
    parts += [f"{answers} answers"] * (answers > 0) + [f"{found.get('left')} left"] * ("left" in found)
    return ", ".join(parts) or "running"


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
    begun = {stage: folder / name for stage, name in runs.FOLDERS.items() if (folder / name / "started.json").exists()}
    row = {"run": folder.name, "complete": ", ".join(complete) or "-"}
    if not begun:
        return row
    stage = max(begun, key=lambda stage: (begun[stage] / "started.json").stat().st_mtime)
    found, silent = _progress(begun[stage]), now.timestamp() - _last_sign(begun[stage])
    if runs.holder(folder) is None:
        found.pop("left", None)
        state = "stopped"
    else:
        state = "stalled?" if silent > STALLED_SECONDS else "running"
    return row | {"unfinished": f"{stage} ({state})"} | found | {"last sign": f"{silent:,.0f} s ago"}


def _progress(folder: Path) -> dict[str, str]:
    """A training's step, loss and the time that is left at its speed so far; what is not known is left out."""
    metrics, started = folder / "metrics.jsonl", folder / "started.json"
    try:
        if not (lines := runs.whole_lines(metrics)):
            return {}
        last, settings = _Logged.model_validate_json(lines[-1]), runs.load(started, _Started)["plan"]["settings"]
    except runs.RunError as error:
        return {"problem": str(error)}
    except ValidationError:
        return {"problem": f"{metrics}: its last line is none of a training's"}
    found = {"step": str(last.step)} | ({"loss": f"{last.loss:.4f}"} if last.loss else {})
    if share := _share(settings, last):
        seconds = metrics.stat().st_mtime - started.stat().st_mtime
        found["left"] = f"{seconds * (1 - share) / share / 60:.1f} min"
    return found


def _share(settings: dict, last: _Logged) -> float:
    """How much of a training is done, from 0 (not known) to 1."""
    if "pretrain_tokens" in settings:
        return last.tokens / settings["pretrain_tokens"]
    if settings.get("max_steps", -1) > 0:
        return last.step / settings["max_steps"]
    return last.epoch / settings.get("num_train_epochs", 1)


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
