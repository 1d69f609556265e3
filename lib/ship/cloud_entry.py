"""What a machine in the cloud runs: the stage "train", in SageMaker's folders under /opt/ml.

Its outputs lie in the folder of checkpoints, which is copied to the bucket while it trains and put
back before a new attempt: so the run goes on as it would here. What is kept of them goes to the
folder `model`."""

import json
import os
import shutil
import signal
from pathlib import Path

from lib.pipeline import execute
from lib.run import parameters, presets, runs
from lib.run.stages import STAGES
from lib.run.untrusted import redact
from lib.train import fsdp

FIRST_MACHINE_TIMEOUT_SECONDS = 900  # that the others wait for it: a kernel's start, a model's download
FAILURE_CHARACTERS = 1000  # of a reason, as SageMaker shows it


def main(root: Path) -> None:
    """Train by the hyper-parameters under `root`; a failure is noted where SageMaker looks for it."""
    try:
        train(root)
    except Exception as error:
        path = root / "output" / "failure"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(redact(f"{type(error).__name__}: {error}")[:FAILURE_CHARACTERS], encoding="utf-8")
        raise


def train(root: Path) -> None:
    """This machine's part; the first one runs the notebook, and leaves the artefact."""
    asked = json.loads((root / "input/config/hyperparameters.json").read_text())
    overrides = {name: json.loads(asked[name]) for name in json.loads(asked["overrides"])}
    rehearse, outputs, (hosts, here) = json.loads(asked["rehearse"]), root / "checkpoints", machines(root)
    if len(hosts) > 1:
        overrides["rdzv_endpoint"] = f"{hosts[0]}:{overrides['rdzv_endpoint'].rsplit(':', 1)[1]}"
        os.environ["PET_LOCAL_ADDR"] = here  # torchrun's --local-addr: it numbers the machines in the order of these
    shutil.copytree(root / "input/data/runs", outputs, dirs_exist_ok=True)
    if here == hosts[0]:
        summary = execute.run(asked["preset"], asked["run"], overrides, rehearse, outputs, stages=["train"])
        keep(summary.run_folder, root / "model")
    else:
        signal.signal(signal.SIGTERM, lambda *_: None)  # where the machines are taken away, the first ends all together
        os.environ["PET_RDZV_CONF"] = f"is_host=0,read_timeout={FIRST_MACHINE_TIMEOUT_SECONDS}"
        resolved = presets.resolve(asked["preset"], overrides, rehearse, "train")
        stage = runs.begin(parameters.Request("train", asked["run"], outputs, resolved))
        fsdp.follow(stage, stage.input("prepare"))


def machines(root: Path) -> tuple[list[str], str]:
    """(the machines' names in order, this one's), by SkyPilot's environment or SageMaker's file."""
    if "SKYPILOT_NODE_IPS" in os.environ:
        hosts = os.environ["SKYPILOT_NODE_IPS"].split()
        return sorted(hosts), hosts[int(os.environ["SKYPILOT_NODE_RANK"])]
    told = json.loads((root / "input/config/resourceconfig.json").read_text())
    return sorted(told["hosts"]), told["current_host"]


def keep(run_folder: Path, model: Path) -> None:
    """Copy what the manifest names, the manifest, the executed notebook; no checkpoint, no lock."""
    adapter, outputs = STAGES["train"].folder, runs.read(run_folder, "train")["outputs"]
    notebooks = (run_folder / "notebooks").glob("*.ipynb")
    for name in [*(f"{adapter}/{name}" for name in (*outputs, "manifest.json")),
                 *(f"notebooks/{path.name}" for path in notebooks)]:  # fmt: skip
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_folder / name, model / name)


if __name__ == "__main__":
    main(Path(os.environ.get("SHARPEN_ML_ROOT", "/opt/ml")))
