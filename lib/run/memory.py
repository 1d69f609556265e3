"""How much memory was held at once, and what to lower where it runs out; freed memory kept, so that a CPU does not
fetch it anew at every step."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lib import SharpenError
from lib.run import progress
from lib.run.progress import system_bytes

# Parameters of glibc's mallopt (malloc.h)
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
FULL = (  # what is said where memory runs out, by torch, cuBLAS, and transformers of a model in 4 or 8 bit
    "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "dispatched on the CPU or the disk",
)  # fmt: skip

GLIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class TrainingError(SharpenError):
    """Training cannot go on honestly; the message says what to change."""


def keep_freed() -> None:
    """Let this process keep what it frees, where the system's allocator is glibc's.

    glibc maps each large tensor anew and gives it back when it is freed; the system then zeroes every page at the next
    step. For small models that is a good part of a training step. What oneDNN keeps is kernels, of 1,024 shapes by
    default: some 15 MB for each new length of a batch."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if hasattr(GLIBC, "mallopt"):
        for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (ARENA_MAX, 1)):
            GLIBC.mallopt(name, value)


def give_back() -> None:
    """Give freed memory back to the system, where its allocator is glibc's."""
    gc.collect()
    if hasattr(GLIBC, "malloc_trim"):
        GLIBC.malloc_trim(0)


def reset_peak() -> int | None:
    """Forget the peak so far; returns the bytes held now, or None where the system does not tell."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    give_back()  # what `keep_freed` kept would hide what is taken next
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from what is held now
        return system_bytes("VmRSS")
    except OSError:
        return None


def peak_since(start: int | None) -> int | None:
    """The most bytes held at once since `reset_peak` returned `start`, above what was held then."""
    if start is None:
        return None
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() - start
    return system_bytes("VmHWM") - start


@contextlib.contextmanager
def memory_told(stage: str, settings) -> Iterator[None]:
    """Where memory runs out, TrainingError says how much was held and which settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError, ValueError, TrainingError) as error:
        cause = error.__cause__ or error  # of one within another, the outer knows whose settings they are
        if not isinstance(cause, MemoryError) and not any(words in str(cause) for words in FULL):
            raise
        advice, held = progress.less_memory(stage, settings), progress.memory_bytes() / 2**30
        raise TrainingError(f"out of memory ({held:.1f} GiB were held): {advice}") from cause
