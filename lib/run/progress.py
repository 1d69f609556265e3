"""A stage at work says so every few seconds in its run's progress.json: how far it is, what it holds, that it lives."""

import contextlib
import os
import re
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ValidationError

from lib.run import untrusted
from lib.run.stages import STAGES

EVERY_SECONDS = 3
SYSTEM = Path("/proc/self/status")


class Told(BaseModel):
    """What progress.json holds; `what` names what the steps are of, where a stage counts several things."""

    stage: str
    pid: int
    step: int | None = None
    of: int | None = None
    what: str | None = None
    loss: float | None = None
    seconds_left: float | None = None
    memory_bytes: int  # the most held so far
    moved_at: AwareDatetime  # the last step
    heartbeat: AwareDatetime


class Heartbeat:
    """Writes what was told last, from a thread of its own: a long step or a slow load is no silence."""

    def __init__(self, path: Path, stage: str):
        now = datetime.now(UTC)
        self.told = Told(stage=stage, pid=os.getpid(), memory_bytes=memory_bytes(), moved_at=now, heartbeat=now)
        self.path, self.first, self.over = path, (0, 0.0), threading.Event()  # first: step, seconds
        self.write()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def beat(self) -> None:
        while not self.over.wait(EVERY_SECONDS):
            with contextlib.suppress(OSError):  # a full disk stops the stage, where it writes what counts
                self.write()

    def write(self) -> None:
        now = self.told.model_copy(update={"memory_bytes": memory_bytes(), "heartbeat": datetime.now(UTC)})
        part = self.path.with_name(".progress.json.part")
        part.write_text(now.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def end(self) -> None:
        self.over.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)


_heartbeat: Heartbeat | None = None  # a process is at work on one stage


def begin(run_folder: Path, stage: str) -> None:
    """This process is at work on a stage from now on, and on no other."""
    global _heartbeat
    end()
    _heartbeat = Heartbeat(run_folder / "progress.json", stage)


def tell(step: int, of: int | None = None, what: str | None = None, loss: float | None = None) -> None:
    """How far the stage of this process is; without a loss the last one stands.

    Without effect where no stage has begun: a worker's launcher tells for it."""
    if _heartbeat is None:
        return
    now, before = time.monotonic(), _heartbeat.told
    if before.step is None or step < before.step or (of, what) != (before.of, before.what):  # another count begins
        _heartbeat.first = step, now
    first, began = _heartbeat.first
    seconds_left = None
    if of and step > first:
        seconds_left = (now - began) / (step - first) * (of - step)
    if loss is None:
        loss = before.loss
    moved = {"step": step, "of": of, "what": what, "seconds_left": seconds_left, "loss": loss}
    _heartbeat.told = before.model_copy(update=moved | {"moved_at": datetime.now(UTC)})


def end() -> None:
    """The stage of this process is complete."""
    global _heartbeat
    if _heartbeat:
        _heartbeat.end()
    _heartbeat = None


def read(run_folder: Path, stage: str) -> Told | None:
    """What a run's stage told last, if anything."""
    try:
        told = Told.model_validate_json(untrusted.read_text(run_folder / "progress.json"))
    except (untrusted.UntrustedError, ValidationError):  # none, or not written by us
        return None
    if told.stage == stage:
        return told
    return None


def memory_bytes() -> int:
    """The most that this process held so far: of the GPU where torch uses one, else resident."""
    torch = sys.modules.get("torch")  # the heart beats also while it is being imported
    if torch and not torch.__spec__._initializing and torch.cuda.is_available() and torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))
    return resident_bytes()


def system_bytes(field: str) -> int:
    """What Linux says of this process: VmRSS is held now, VmHWM was held at most."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", SYSTEM.read_text())[1])


def resident_bytes() -> int:
    """The most that this process held resident so far."""
    if SYSTEM.exists():  # Linux: ru_maxrss would count what the parent held before this program was started
        return system_bytes("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":  # in bytes there, elsewhere in KiB
        return peak
    return 1024 * peak


def less_memory(stage: str, settings: Any) -> str:
    """Which settings to lower where a stage (or "load", of a model) ran out of memory, with what they are now."""
    if stage == "load":
        advice = f"choose a smaller base_model (now {settings.base_model})"
        if not settings.load_in_4bit:
            advice += ", or set load_in_4bit = true (now false): a quarter of its weights"
        return advice
    row = STAGES.get(stage)
    if row is None or row.memory is None:
        return "close other programs, or take a machine with more memory"
    rows, length = row.memory
    now, tokens = getattr(settings, rows), getattr(settings, length)
    at_once, same_step = now, ""
    if stage == "train":  # of several devices each has its share of a step's rows at once (`fsdp.share`)
        at_once = min(now, now * settings.gradient_accumulation_steps // settings.devices)
    if row.accumulation:
        same_step = f" and raise {row.accumulation} as much, for the same step"
    return (f"lower {rows} (now {now}; try {max(1, at_once // 2)}){same_step}, or lower {length} "
            f"(now {tokens} tokens)")  # fmt: skip
