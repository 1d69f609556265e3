"""A tracker beside metrics.jsonl (`report_to`): it writes into the run's folder, and asks nobody."""

import os
from pathlib import Path

from lib import SharpenError

PROJECT = "sharpen"
FOLDER = ".tracking"  # hidden, so not hashed: viewers write into it, as `wandb sync` does
VIEW = {
    "tensorboard": "tensorboard --logdir {folder}",
    "wandb": "wandb sync {folder}/wandb/offline-run-*",
    "trackio": "TRACKIO_DIR={folder} trackio show --project sharpen",
}  # fmt: skip


class TrackingError(SharpenError):
    """A tracker cannot be started; the message says why and what to do."""


def start(report_to: str, folder: Path) -> dict[str, str]:
    """SFTConfig's arguments for a tracker that writes to `folder/.tracking`, as the environment tells it."""
    place, run = Path(folder).resolve() / FOLDER, Path(folder).resolve().parent.name
    if report_to != "none":
        place.mkdir(parents=True, exist_ok=True)
        os.environ |= dict.fromkeys(["TENSORBOARD_LOGGING_DIR", "TRACKIO_DIR"], str(place))
        os.environ["WANDB_LOG_MODEL"] = "false"
    if report_to == "wandb" and os.environ.get("RANK", "0") == "0":
        _start_wandb(place, run)
    return {"report_to": report_to, "run_name": run, "project": PROJECT}


def _start_wandb(place: Path, run: str) -> None:
    """A run that transformers goes on with; offline without WANDB_API_KEY, as it would ask for one.

    With a key it sends neither the console, nor code, git's remote or the weights."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    mode, project = "offline", os.environ.get("WANDB_PROJECT", PROJECT)
    if "WANDB_API_KEY" in os.environ:
        mode = os.environ.get("WANDB_MODE", "online")
    quiet = wandb.Settings(console="off", silent=True, symlink=False, save_code=False, disable_git=True)
    try:
        wandb.init(dir=place, name=run, mode=mode, project=project, settings=quiet)
    except wandb.Error as error:  # after a minute and a half without an answer
        remedy = "set WANDB_MODE=offline, or unset WANDB_API_KEY"
        raise TrackingError(f"report_to = 'wandb': {error}: {remedy}") from error
    finally:
        _remove_links(place)


def finish(report_to: str, folder: Path) -> None:
    """Close what transformers leaves open, and say how to look at it."""
    place = Path(folder).resolve() / FOLDER
    if report_to == "wandb":
        import wandb

        wandb.finish()
        _remove_links(place)
    if report_to != "none":
        shown = place.relative_to(place.parents[3])  # reports are shared: no path of this machine
        print(f"{report_to}: {VIEW[report_to].format(folder=shown)}")


def _remove_links(place: Path) -> None:
    """wandb links to a log in its cache; a link out of a run's folder is refused by all that read it."""
    for path in [*place.rglob("*")]:
        if path.is_symlink():
            path.unlink()
