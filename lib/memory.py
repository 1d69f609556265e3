"""How much memory was held at once; and freed memory kept, so that a CPU does not fetch it anew at every step."""

import ctypes
import gc
import sys
from pathlib import Path

import torch

from lib.progress import system_bytes

# Parameters of glibc's mallopt (malloc.h)
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


GLIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def keep_freed() -> None:
    """Let this process keep what it frees, where the system's allocator is glibc's.

    glibc maps each large tensor anew and gives it back when it is freed; the system then zeroes every page at the next
    step. For small models that is a good part of a training step."""
    if hasattr(GLIBC, "mallopt"):
        for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (ARENA_MAX, 1)):
            GLIBC.mallopt(name, value)


def reset_peak() -> int | None:
    """Forget the peak so far; returns the bytes held now, or None where the system does not tell."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()
    if hasattr(GLIBC, "malloc_trim"):
        GLIBC.malloc_trim(0)  # what `keep_freed` kept would hide what is taken next
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from what is held now
        return system_bytes("VmRSS")
    except OSError:
        return None


def peak_since(start: int | None) -> int | None:
    """The most bytes held at once since `reset_peak` returned `start`, above what was held then."""
    if start is None:
        return None
    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else system_bytes("VmHWM")) - start
