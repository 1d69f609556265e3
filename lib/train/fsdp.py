"""Many devices: torchrun starts a worker on each (`fsdp_worker`, `lib.gpt.pretrain_worker`), watched from here."""

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

RESTARTS = 2  # lost ranks that one launch makes good; a further start of the notebook goes on from the checkpoint too
STEP_TIMEOUT_SECONDS = 45  # a rank that is silent for so long in the middle of training counts as lost
LAST_LINES = 40


class LaunchError(SharpenError):
    """The devices cannot train, or cannot go on; the message says which rank, why and what to change."""


def share(settings) -> SimpleNamespace:
    """The settings of one worker: its rows of a step, so that a step has as many rows with any number of devices."""
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps // settings.devices
    batch = max(n for n in range(1, settings.per_device_train_batch_size + 1) if rows % n == 0)
    changed = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": rows // batch}
    return SimpleNamespace(**vars(settings) | changed)


def check(settings) -> None:
    """LaunchError where fewer devices are here than asked (without a GPU: as many processes), or the port is taken."""
    import torch  # counting devices asks the driver, and leaves CUDA alone

    here, wanted = torch.cuda.device_count(), settings.devices // settings.nodes
    if here and wanted > here:
        raise LaunchError(f"devices = {settings.devices} on nodes = {settings.nodes}: this machine has {here} of the "
                          f"{wanted} GPUs: set devices = {here * settings.nodes}, or look at CUDA_VISIBLE_DEVICES")
    if settings.rdzv_endpoint:
        host, port = settings.rdzv_endpoint.rsplit(":", 1)
        try:
            with socket.create_server((host, int(port))):
                pass
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(f"rdzv_endpoint = {settings.rdzv_endpoint!r}: port {port} is in use on this machine: "
                                  f"choose another, or end what holds it") from None
            raise LaunchError(f"rdzv_endpoint = {settings.rdzv_endpoint!r} is no address of this machine "
                              f"({error.strerror}): the notebook runs on the first node") from None


def command(settings, plan: Path, worker: str = "lib.train.fsdp_worker") -> list[str]:
    """torchrun's command line: what `launch` starts here, and what each further node (or a cloud job) starts."""
    nodes = ["--nnodes", str(settings.nodes), "--rdzv-backend=c10d", "--rdzv-endpoint", str(settings.rdzv_endpoint)]
    return [
        sys.executable, "-m", "torch.distributed.run", *(nodes if settings.rdzv_endpoint else ["--standalone"]),
        "--nproc-per-node", str(settings.devices // settings.nodes), f"--max-restarts={RESTARTS}",
        "--shutdown-timeout=5", "--redirects=3", "--log-dir", str(plan.parent), "-m", worker, str(plan),
    ]  # fmt: skip


def launch(stage, data: Path, show: Callable[[dict], None], step_timeout_seconds: float = STEP_TIMEOUT_SECONDS,
           worker: str = "lib.train.fsdp_worker", **arguments) -> dict:  # fmt: skip
    """Train on `settings.devices` devices, by default the stage's adapter; returns the workers' metrics.

    `show(line)` gets each logged line as it comes. Further `arguments` are SFTConfig's, or `pretrain.train`'s. A lost
    rank is made good from the newest whole checkpoint (times in the metrics are then those since); LaunchError where
    that does not help. On Ctrl-C the ranks end after their step, with a checkpoint. No process outlives the call."""
    check(stage.settings)
    control = plan(stage, data, step_timeout_seconds, **arguments).parent
    lines, log = Lines(stage.folder / "metrics.jsonl"), control / "torchrun.log"

    def tell(line):
        progress.tell(line["step"], line.get("of"), loss=line.get("loss"))
        show(line)

    with open(log, "wb") as output:
        torchrun = subprocess.Popen(
            command(stage.settings, control / "plan.json", worker), env=environment(), stdout=output,
            stderr=subprocess.STDOUT, preexec_fn=end_with_parent,
            start_new_session=True,  # Ctrl-C reaches the ranks from here only
        )
        try:
            while torchrun.poll() is None and not (control / "refusal.txt").exists():
                lines.show(tell)
                time.sleep(0.2)
            lines.show(tell)
        except KeyboardInterrupt:
            interrupt(torchrun, step_timeout_seconds)
            raise
        finally:
            end(torchrun)
    if (control / "refusal.txt").exists():
        raise LaunchError((control / "refusal.txt").read_text())
    if torchrun.returncode:
        raise LaunchError(what_failed(log.read_text(errors="replace"), control, stage))
    result = json.loads((control / "result.json").read_text())
    shutil.rmtree(control)
    return result


def plan(stage, data: Path, step_timeout_seconds: float = STEP_TIMEOUT_SECONDS, **arguments) -> Path:
    """Write what this machine's workers are to do; the file that they read."""
    control = stage.folder / ".torchrun"  # hidden: no output
    shutil.rmtree(control, ignore_errors=True)
    return stage.save_json(".torchrun/plan.json", {
        "settings": stage.settings, "data": data, "folder": stage.folder, "resume": stage.resumed,
        "step_timeout_seconds": step_timeout_seconds, "arguments": arguments,
    })  # fmt: skip


def follow(stage, data: Path) -> None:
    """A further machine's part of a training that 22_train_fsdp launches on the first one, where they share no disk.

    LaunchError where a rank, here or there, failed."""
    path = plan(stage, data)
    log = path.with_name("torchrun.log")
    with open(log, "wb") as output:
        ended = subprocess.run(command(stage.settings, path), env=environment(), stdout=output,
                               stderr=subprocess.STDOUT, preexec_fn=end_with_parent)  # fmt: skip
    if ended.returncode:
        raise LaunchError(what_failed(log.read_text(errors="replace"), path.parent, stage))


def environment() -> dict[str, str]:
    """What torchrun itself needs; what the workers need they set themselves."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Without the second, most restarts hung or wasted a try (measured, torch 2.13); the last: no bars in log files
    more = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return os.environ | {"PYTHONPATH": path} | more


class Lines:
    """The lines of a growing JSON-lines file, each shown once, also where a resumption cuts the file back."""

    def __init__(self, path: Path):
        self.path, self.shown = path, 0

    def show(self, show: Callable[[dict], None]) -> None:
        lines = list(map(json.loads, whole_lines(self.path)))
        self.shown = min(self.shown, len(lines))
        for line in lines[self.shown :]:
            show(line)
        self.shown = len(lines)


def end_with_parent() -> None:
    """Linux ends this process when its parent ends, however that ends: no launcher leaves a rank behind."""
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


def what_failed(told: str, control: Path, stage) -> str:
    """The rank that torchrun says failed first, how, and the last lines that it wrote."""
    found = re.search(r"Root Cause.*?rank\s*:\s*(\d+) \(local_rank: (\d+)\).*?exitcode\s*:\s*(-?\d+)", told, re.DOTALL)
    if not found:
        return f"torchrun failed:\n{last_lines(told)}"
    rank, local_rank, code = map(int, found.groups())
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    if code == -signal.SIGKILL:
        how += f" (most often as memory runs out: {progress.less_memory(stage.request.stage, stage.settings)})"
    logs = sorted(control.glob(f"*/attempt_*/{local_rank}/std*.log"), key=lambda path: path.stat().st_mtime)
    text = "".join(path.read_text(errors="replace") for path in logs if path.parts[-3] == logs[-1].parts[-3])
    return f"rank {rank} {how}, {RESTARTS} restarts did not help; its last lines:\n{last_lines(text)}"


def last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_LINES:])


# --- in a worker ------------------------------------------------------------------------------------------------------
def join(settings) -> None:
    """Meet the other ranks, by NCCL on GPUs and gloo without; LaunchError where they are not as many as asked for."""
    import torch
    import torch.distributed as dist

    ranks, here = (int(os.environ.get(name, -1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks != settings.devices:
        raise LaunchError(f"devices = {settings.devices}, but {max(ranks, 1)} process(es) were started: start them by "
                          f"torchrun, as the notebook shows, or change devices")
    if torch.cuda.is_available():
        if here > torch.cuda.device_count():
            raise LaunchError(f"{here} processes on a machine with {torch.cuda.device_count()} GPU(s)")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(minutes=30))


def work(path: Path, train: Callable[[dict], dict], refused: tuple[type[Exception], ...] = ()) -> None:
    """Train by the plan at `path`, and leave the result beside it, or why another try would end the same way."""
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
