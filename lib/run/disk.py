"""What lies on the disk is whole: written atomically, read strictly, locked by one writer at a time."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from lib import SharpenError
from lib.run import untrusted

_locks: dict[Path, Any] = {}  # this process's locks: a start cell that is run again must not wait for itself


class RunError(SharpenError):
    """A run folder is not what a stage needs; the message says what to do."""


class Form(BaseModel):
    """The keys of a JSON file that are read, and their types; what else is in it is left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def write_atomically(path: Path, parts: Iterable[str]) -> Path:
    """Write text to a temporary file beside, flush it to the disk, rename it: a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk or a read-only folder as a RunError that names the place, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror or error}; make room, or name another folder by "
                       f"`outputs` (--outputs): what is complete is kept") from error


def lack_of_space(folder: Path, needed: float, what: str) -> str:
    """What to say where the disk has less than the bytes that are needed, with both figures; else an empty text."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return ""
    return f"{what} needs {size_text(needed)} in {folder}, and {size_text(free)} are free"


def size_text(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def whole_lines(path: Path) -> list[str]:
    """A log's lines, without one that is half written at this very moment."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): move it away and run its stage again") from None
    return [found for found in text.splitlines(keepends=True) if found.endswith("\n")]


class Log:
    """A growing metrics.jsonl. The first line of an attempt takes away those of its step and later ones: after a
    checkpoint that is gone on from they come again."""

    def __init__(self, path: Path):
        self.path, self.begun = path, False

    def __call__(self, step: int, **metrics: Any) -> None:
        if not self.begun and self.path.exists():
            try:
                kept = [line for line in whole_lines(self.path) if json.loads(line)["step"] < step]
            except (ValueError, TypeError, LookupError):
                raise RunError(f"{self.path} has lines that no training logged: move it away") from None
            write_atomically(self.path, kept)
        self.begun = True
        line = (to_json({"step": step} | metrics) + "\n").encode()
        with writing(self.path), open(self.path, "ab", buffering=0) as file:
            whole = file.tell()
            if file.write(line) < len(line):  # no half of it
                file.truncate(whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def load(path: Path, form: type[Form] = Form) -> dict[str, Any]:
    """A file's JSON object, of the given form; RunError names the file and what is wrong with it."""
    try:
        value = untrusted.read_json(path)
        form.model_validate(value)
    except untrusted.UntrustedError as error:
        raise RunError(f"{error}: move it away and run its stage again") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RunError(f"{path}: {place}: {first['msg']}: move it away and run its stage again") from None
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinities as null, numpy's numbers and arrays as plain ones."""
    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=lambda array: array.tolist())
    return json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def sha256(path: str | Path) -> str:
    """A file's SHA-256, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(run_folder: Path, name: str) -> None:
    """Take a run's lock for this process (the system frees it when the process ends); RunError names the holder.

    Refused too where a link in the run's folder would have us write elsewhere."""
    from filelock import FileLock, Timeout

    check_links(run_folder)
    path = run_folder / f".{name}.lock"
    if path in _locks:
        return
    held = FileLock(path, thread_local=False)
    with writing(run_folder):
        try:
            held.acquire(timeout=1)  # `holder` takes it for a moment, to look
        except Timeout:
            who = _who(run_folder, name)
            raise RunError(f"{run_folder} is being written by process {who.get('pid', '?')} on {who.get('host', '?')} "
                           f"since {who.get('since', '?')}: wait for it, or choose another run name") from None
    _locks[path] = held
    try:
        ours = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now()}
        write_atomically(run_folder / f".{name}.json", [to_json(ours)])
    except RunError:
        unlock(run_folder, name)
        raise


def holder(run_folder: Path, name: str = "writer") -> dict[str, Any] | None:
    """Who writes to a run now ({"pid", "host", "since"} as far as known), or None."""
    from filelock import FileLock, Timeout

    path = run_folder / f".{name}.lock"
    if path in _locks:
        return {"pid": os.getpid()}
    if not path.exists():
        return None
    try:
        with FileLock(path, timeout=0):
            return None
    except Timeout:
        return _who(run_folder, name)
    except OSError:  # nobody writes where the lock cannot be taken
        return None


def check_links(run_folder: Path) -> None:
    """RunError where a link in a run's folder leads out of it: no stage makes one, and none is followed."""
    if links := untrusted.links_out(run_folder):
        raise RunError(f"{links[0]} is a symbolic link out of {run_folder}: remove it, or put the file itself there")


def _who(run_folder: Path, name: str) -> dict[str, Any]:
    """What a lock's holder wrote of itself; the lock holds without it too."""
    try:
        return load(run_folder / f".{name}.json")
    except RunError:
        return {}


def unlock(run_folder: Path, name: str) -> None:
    """Give a lock back; without effect where this process does not hold it."""
    if held := _locks.pop(run_folder / f".{name}.lock", None):
        (run_folder / f".{name}.json").unlink(missing_ok=True)
        held.release()
