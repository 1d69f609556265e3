"""Many devices: torchrun starts a worker on each (`fsdp_worker`, or lib/gpt's), watched from here."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

from lib import SharpenError
from lib.run import processes, progress
from lib.run.disk import whole_lines, write_atomically
from lib.run.paths import ROOT
from lib.run.runs import Stage
from lib.run.settings import PretrainSettings, TrainSettings

RESTARTS = 2  # lost ranks that one launch makes good; starting the notebook again goes on too
STEP_TIMEOUT_SECONDS = 45  # a rank that is silent for so long in the middle of training is lost
LAST_LINES = 40
WORKER = "lib.train.fsdp_worker"

Settings = TrainSettings | PretrainSettings


class LaunchError(SharpenError):
    """The devices cannot train, or go on; the message says which rank, why and what to change."""


def share(settings: TrainSettings) -> SimpleNamespace:
    """One worker's settings: its rows of a step, which has as many with any number of devices."""
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    rows //= settings.devices
    batch = max(n for n in range(1, settings.per_device_train_batch_size + 1) if rows % n == 0)
    changed = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": rows // batch}
    return SimpleNamespace(**vars(settings) | changed)


def check(settings: Settings) -> None:
    """LaunchError where GPUs are too few (without any, processes do), or the port is taken."""
    import torch  # counting devices asks the driver, and leaves CUDA alone

    here, wanted = torch.cuda.device_count(), settings.devices // settings.nodes
    if 0 < here < wanted:
        raise LaunchError(
            f"devices = {settings.devices} on nodes = {settings.nodes}: this machine has {here} of the "
            f"{wanted} GPUs: set devices = {here * settings.nodes}, or look at CUDA_VISIBLE_DEVICES"
        )
    if not settings.rdzv_endpoint:
        return
    host, port = settings.rdzv_endpoint.rsplit(":", 1)
    try:
        socket.create_server((host, int(port))).close()
    except OSError as error:
        given = f"rdzv_endpoint = {settings.rdzv_endpoint!r}"
        if error.errno == errno.EADDRINUSE:
            raise LaunchError(f"{given}: port {port} is in use on this machine: "
                              f"choose another, or end what holds it") from None
        raise LaunchError(f"{given} is no address of this machine ({error.strerror}): "
                          f"the notebook runs on the first node") from None


def command(settings: Settings, plan: Path, worker: str = WORKER) -> list[str]:
    """torchrun's command line, which `launch` starts here, and each further node or a cloud job there."""
    where = ["--standalone"]
    if settings.rdzv_endpoint:
        where = ["--nnodes", str(settings.nodes), "--rdzv-backend=c10d",
                 "--rdzv-endpoint", settings.rdzv_endpoint]
    return [
        sys.executable, "-m", "torch.distributed.run", *where,
        "--nproc-per-node", str(settings.devices // settings.nodes), f"--max-restarts={RESTARTS}",
        "--redirects=3", "--log-dir", str(plan.parent), "-m", worker, str(plan),
    ]  # fmt: skip


def launch(stage: Stage, data: Path, show: Callable[[dict], None], worker: str = WORKER,
           step_timeout_seconds: float = STEP_TIMEOUT_SECONDS, **arguments) -> dict:  # fmt: skip
    """Train on `settings.devices` devices, by default the stage's adapter; the workers' metrics.

    `show(line)` gets each logged line; `arguments` are SFTConfig's, or `pretrain.train`'s. A lost rank is
    made good from the newest whole checkpoint (times in the metrics are then those since); LaunchError
    where that does not help. On Ctrl-C the ranks end after their step, with a checkpoint. No process
    outlives the call."""
    check(stage.settings)
    path = plan(stage, data, step_timeout_seconds, **arguments)
    lines = Lines(stage.folder / "metrics.jsonl", show)
    log, refusal = path.with_name("torchrun.log"), path.with_name("refusal.txt")
    with open(log, "wb") as output:
        torchrun = subprocess.Popen(
            command(stage.settings, path, worker), env=environment(), stdout=output, stderr=output,
            preexec_fn=end_with_parent, start_new_session=True,  # Ctrl-C reaches them from here only
        )  # fmt: skip
        try:
            while torchrun.poll() is None and not refusal.exists():
                lines.show_new()
                time.sleep(0.2)
            lines.show_new()
        except KeyboardInterrupt:
            interrupt(torchrun, step_timeout_seconds)
            raise
        finally:
            end(torchrun)
    if refusal.exists():
        raise LaunchError(refusal.read_text())
    if torchrun.returncode:
        raise LaunchError(what_failed(log.read_text(errors="replace"), path.parent, stage))
    result = json.loads(path.with_name("result.json").read_text())
    shutil.rmtree(path.parent)
    return result


def plan(stage: Stage, data: Path, seconds: float = STEP_TIMEOUT_SECONDS, **arguments) -> Path:
    """Write what this machine's workers are to do; the file that they read."""
    shutil.rmtree(stage.folder / ".torchrun", ignore_errors=True)  # hidden: no output
    return stage.save_json(".torchrun/plan.json", {
        "settings": stage.settings, "data": data, "folder": stage.folder, "resume": stage.resumed,
        "step_timeout_seconds": seconds, "arguments": arguments,
    })  # fmt: skip


def follow(stage: Stage, data: Path) -> None:
    """A further machine's part of what 22_train_fsdp launches on the first, without a shared disk.

    LaunchError where a rank, here or there, failed."""
    path = plan(stage, data)
    log = path.with_name("torchrun.log")
    with open(log, "wb") as output:
        ended = subprocess.run(command(stage.settings, path), env=environment(), stdout=output,
                               stderr=output, preexec_fn=end_with_parent)  # fmt: skip
    if ended.returncode:
        raise LaunchError(what_failed(log.read_text(errors="replace"), path.parent, stage))


def environment() -> dict[str, str]:
    """What torchrun itself needs; what the workers need they set themselves."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",  # no bars in log files
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else most restarts hung (measured, torch 2.13)
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",  # seconds; the option of that name came after Colab's torch 2.11
    }


class Lines:
    """Lines of a growing JSON-lines file, each shown once, also where a resumption cuts it back."""

    def __init__(self, path: Path, show: Callable[[dict], None]):
        self.path, self.show, self.shown = path, show, 0

    def show_new(self) -> None:
        lines = whole_lines(self.path)
        for line in map(json.loads, lines[self.shown :]):
            progress.tell(line["step"], line.get("of"), loss=line.get("loss"))
            self.show(line)
        self.shown = len(lines)


def end_with_parent() -> None:
    """Linux ends this process when its parent ends, in any way: no launcher leaves a rank behind."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def interrupt(torchrun: subprocess.Popen, timeout_seconds: float) -> None:
    """Ask the ranks to end after the step at hand, and wait for them."""
    import psutil

    for rank in psutil.Process(torchrun.pid).children():
        rank.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        torchrun.wait(timeout_seconds)


def end(torchrun: subprocess.Popen) -> None:
    """End torchrun and its ranks, also those that are stopped and hear no signal but this one."""
    if torchrun.poll() is None:
        processes.kill(processes.family(torchrun.pid))
        torchrun.wait()


def what_failed(text: str, control: Path, stage: Stage) -> str:
    """The rank that torchrun's text says failed first, how, and the last lines that it wrote."""
    cause = r"Root Cause.*?rank\s*:\s*(\d+) \(local_rank: (\d+)\).*?exitcode\s*:\s*(-?\d+)"
    first = re.search(cause, text, re.DOTALL)
    if not first:
        return f"torchrun failed:\n{last_lines(text)}"
    rank, local_rank, code = map(int, first.groups())
    how = f"failed with exit code {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        advice = progress.less_memory(stage.request.stage, stage.settings)
        how += f" (most often as memory runs out: {advice})"
    logs = sorted(control.glob(f"*/attempt_*/{local_rank}/std*.log"), key=os.path.getmtime)
    last = [path for path in logs if path.parts[-3] == logs[-1].parts[-3]]  # of the last attempt
    its_lines = last_lines("".join(path.read_text(errors="replace") for path in last))
    return f"rank {rank} {how}, {RESTARTS} restarts did not help; its last lines:\n{its_lines}"


def last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_LINES:])


# --- in a worker -----------------------------------------------------------------------------------
def join(settings: Settings) -> None:
    """Meet the other ranks, by NCCL on GPUs, else by gloo; LaunchError where their number is wrong."""
    import torch
    import torch.distributed as dist

    ranks, here = (int(os.environ.get(name, -1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks != settings.devices:
        raise LaunchError(
            f"devices = {settings.devices}, but {max(ranks, 1)} process(es) were started: start them "
            f"by torchrun, as the notebook shows, or change devices"
        )
    backend, gpus = "gloo", torch.cuda.device_count()
    if torch.cuda.is_available():
        backend = "nccl"
        if here > gpus:
            raise LaunchError(f"{here} processes on a machine with {gpus} GPU(s)")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=timedelta(minutes=30))


def work(path: Path, train: Callable[[dict], dict], refused: tuple = ()) -> None:
    """Train by the plan at `path`; leave the result beside it, or which of `refused` errors ended it."""
    import torch.distributed as dist

    try:
        result = train(json.loads(path.read_text(encoding="utf-8")))
    except (LaunchError, *refused) as error:
        write_atomically(path.with_name("refusal.txt"), [str(error)])
        raise
    except KeyboardInterrupt:  # asked to stop, with a checkpoint: no failure, so no restart
        return
    if dist.get_rank() == 0:
        write_atomically(path.with_name("result.json"), [json.dumps(result)])
    dist.destroy_process_group()
