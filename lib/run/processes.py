"""Processes that this one started, ended together with all that they started."""

import contextlib
from collections.abc import Iterable

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, while they still hang together; empty where it has ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process], wait_seconds: float = 10) -> None:
    """End processes at once, also those that are stopped, and wait for their end."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil compares start times: no stranger is hit
            process.kill()
    psutil.wait_procs(processes, timeout=wait_seconds)
