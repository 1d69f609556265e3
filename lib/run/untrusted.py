"""What comes from elsewhere runs no code, leads nowhere, fills no memory, steers no terminal; no key goes out."""

import base64
import contextlib
import gzip
import html
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from lib import SharpenError

JSON_BYTES = 64 << 20  # of a JSON file that is parsed whole; the largest tokenizer.json of a hub model has half of it
LONGEST_LINE = 16 << 20  # bytes; a filing with its tables has at most some five million
# A packed file may give so many times its own size, and so many bytes however small it is: text gives 3 to 20 times, a
# bomb 1,000 times.
GZIP_RATIO, GZIP_BYTES = 100, 64 << 20
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
CODE = {"auto_map", "custom_pipelines"}  # what a config calls code of its own by
# C0 and C1 controls, what reorders the text around it, and half surrogates, which no file can hold.
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")
SECRET = re.compile(  # in a variable's name
    r"(TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEYS?|(?<=_)(PASS|PAT|PWD))(?![A-Z])", re.IGNORECASE
)
SHORTEST_SECRET = 8  # characters; what is shorter would be found in every other text


class UntrustedError(SharpenError):
    """A file is not what may be read from elsewhere; the message names it, the reason and the remedy."""


# --- coming in --------------------------------------------------------------------------------------------------------
def leads_out(path: Path, folder: Path) -> bool:
    """Does a path end outside of a folder (or nowhere), by symbolic links or `..`?

    A snapshot in the hub's cache is made of links to the blobs beside it, which are its own."""
    inside = Path(os.path.realpath(folder))
    if inside.parent.name == "snapshots" and (inside.parents[1] / "blobs").is_dir():
        inside = inside.parents[1]
    return not (os.path.exists(path) and Path(os.path.realpath(path)).is_relative_to(inside))


def links_out(folder: Path, pattern: str = "**/*") -> list[Path]:
    """The symbolic links in a folder that lead out of it, or nowhere."""
    return [path for path in sorted(folder.glob(pattern)) if path.is_symlink() and leads_out(path, folder)]


def model_problems(folder: Path) -> list[str]:
    """Why the model, adapter or tokenizer in a folder must not be loaded, a phrase each; none: it is plain data."""
    problems = [f"{path.name} is a symbolic link out of the folder: put the file there"
                for pattern in ("*", "*/*") for path in links_out(folder, pattern)]  # fmt: skip
    for path in sorted(folder.glob("*")):
        if path.suffix in PICKLES:
            problems.append(f"{path.name} is a pickle, which can run code: only safetensors are read; remove it")
        elif path.suffix == ".json" and not path.is_symlink():
            try:
                problems += _config_problems(path)
            except UntrustedError as error:
                problems.append(str(error))
    return problems


def _config_problems(path: Path) -> list[str]:
    """What is wrong with one of a model's JSON files; of vocabularies only the size is looked at."""
    _check_file(path)
    if not path.name.endswith(("config.json", ".index.json")):
        return []
    keys: set[str] = set()
    value = read_json(path, lambda pairs: keys.update(pairs) or pairs)
    problems = [f"{path.name} names code of its own ({name}), which is never run: use a model that transformers knows"
                for name in sorted(keys & CODE)]  # fmt: skip
    shards = value.get("weight_map", {})
    if not isinstance(shards, dict):
        shards = {"": shards}
    for file in sorted(set(map(str, shards.values()))):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            problems.append(f"{path.name} names {file!r}, which is no safetensors file in this folder")
    return problems


def read_json(path: Path, look: Any = None) -> dict:
    """A file's JSON object, of at most JSON_BYTES; `look` sees each object in it (json's `object_hook`)."""
    text = read_text(path)
    try:
        value = json.loads(text, object_hook=look)
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UntrustedError(f"{path} holds no JSON object")
    return value


def read_text(path: Path) -> str:
    """The text of a regular file of at most JSON_BYTES; UntrustedError says why it is none."""
    _check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UntrustedError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UntrustedError(f"{path} is not UTF-8 text (at byte {error.start})") from None


def _check_file(path: Path) -> None:
    """UntrustedError unless a path is a regular file of at most JSON_BYTES."""
    if (size := _size_of_file(path)) > JSON_BYTES:
        raise UntrustedError(f"{path} has {size >> 20:,} MiB, and at most {JSON_BYTES >> 20} are read")


def _size_of_file(path: Path) -> int:
    """Bytes of a regular file; UntrustedError where it is none, as a pipe, which would be waited for for ever."""
    try:
        about = path.stat()
    except OSError as error:
        raise UntrustedError(f"{path} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(about.st_mode):
        raise UntrustedError(f"{path} is no file")
    return about.st_size


def opened(path: Path) -> io.BufferedIOBase:
    """A data file for reading bytes, unpacked where it ends in .gz: torn, it is named; a bomb stops at its limit."""
    size = _size_of_file(path)
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(_Unpacked(path, size), 1 << 20)
    return open(path, "rb")


def lines(file: io.BufferedIOBase) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, is it whole); of a line of any length at most LONGEST_LINE bytes are in memory."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number, whole = number + 1, len(line) < LONGEST_LINE or line.endswith(b"\n")
        rest = line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        yield number, line, whole


def out_of_proportion(path: Path) -> UntrustedError:
    return UntrustedError(f"{path} unpacks to over {GZIP_RATIO} times its size: unpack it yourself")


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, as long as it is in proportion to the file."""

    def __init__(self, path: Path, size: int):
        self.path, self.file, self.left = path, gzip.open(path), GZIP_BYTES + GZIP_RATIO * size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            part = self.file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UntrustedError(f"{self.path} is no whole gzip file ({error}): fetch it again") from None
        self.left -= len(part)
        if self.left < 0:
            raise out_of_proportion(self.path)
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self.file.close()
        super().close()


# --- going out --------------------------------------------------------------------------------------------------------
def visible(text: str) -> str:
    """Text for a terminal or a page: what would steer it is written out, as \\u001b."""
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def redact(text: str) -> str:
    """Text in which the environment's tokens, keys and passwords are replaced by their variables' names."""
    written = {form: name for name, value in _secrets() for form in _forms(value)}
    for form in sorted(written, key=len, reverse=True):  # one may be a part of another
        text = text.replace(form, f"[{written[form]}]")
    return text


def _secrets() -> Iterator[tuple[str, str]]:
    """(name, value) of each secret: by its variable's name, in a URL before its host, and of `hf auth login`."""
    for name, value in os.environ.items():
        if SECRET.search(name):
            yield name, value
        for user in re.findall(r"://([^/\s]+)@", value):
            yield from ((name, user), (name, user.partition(":")[2]))
    with contextlib.suppress(ImportError, OSError):  # logged out, or no library that would read the token
        from huggingface_hub.constants import HF_TOKEN_PATH

        yield "HF_TOKEN", Path(HF_TOKEN_PATH).read_text(encoding="utf-8")


def _forms(secret: str) -> Iterator[str]:
    """What writers make of a secret: a notebook parts it by lines, a page, a URL and a header each have their signs."""
    for part in {secret, *secret.splitlines()}:
        if len(part := part.strip()) < SHORTEST_SECRET:
            continue
        raw = part.encode(errors="surrogateescape")
        yield from (quote(raw), quote(raw, ""), quote_plus(raw))
        for skipped in range(3):  # wherever it begins among the three bytes that four letters stand for
            yield base64.b64encode(raw[skipped : len(raw) - (len(raw) - skipped) % 3]).decode()
        for shown in (part, repr(part)[1:-1]):  # as an error prints the environment
            for marked in (shown, html.escape(shown), html.escape(shown, quote=False)):
                yield from (marked, json.dumps(marked, ensure_ascii=False)[1:-1])  # as a notebook keeps that
