"""Documents of text: files and folders read one document at a time, what is bad in them told with
its place."""

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from lib import SharpenError
from lib.run import untrusted
from lib.run.paths import in_project

Lines = Iterator[tuple[int, bytes, bool]]  # as `untrusted.lines` gives them


class CorpusError(SharpenError):
    """The text cannot be used; the message names the place and the remedy."""


class EmptyCorpus(CorpusError):
    """There are no documents."""


def documents(path: str | Path, rejected: list[dict] | None = None) -> Iterator[str]:
    """The documents of a text file (parted by lines `Article N:`), of a .jsonl or .jsonl.gz file
    (field `text`), or of all such files in a folder. What is bad is a CorpusError, or goes to
    `rejected` with its place and the reason."""
    path = Path(in_project(path))
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder; corpus = 'generated' needs none")
    endings = (".txt", ".md", ".jsonl", ".jsonl.gz")
    files = [file for file in sorted([path, *path.rglob("*")]) if file.name.endswith(endings) and not file.is_dir()]
    if not files:
        raise CorpusError(f"{path}: holds no .txt, .md, .jsonl or .jsonl.gz file")
    for file in files:
        if file != path and untrusted.leads_out(file, path):
            raise CorpusError(f"{file} is a symbolic link out of {path}: put the file there, or name it as corpus")
        read = _jsonl if ".jsonl" in file.name else _articles
        with untrusted.opened(file) as opened:
            try:
                yield from filter(str.strip, read(untrusted.lines(opened), file, rejected))
            except UnicodeDecodeError as error:
                _reject(rejected, str(file), f"is not UTF-8 text ({error.reason} at byte {error.start})")


def _articles(lines: Lines, file: Path, rejected: list[dict] | None) -> Iterator[str]:
    begun, article = 1, bytearray()
    for number, line, _ in itertools.chain(lines, [(0, b"Article 0:", True)]):  # which ends the last one
        if line.startswith(b"Article ") and line.rstrip().rstrip(b":")[8:].isdigit():
            if len(article) < untrusted.LONGEST_LINE:
                yield article.decode().replace("\r\n", "\n").strip()
            else:
                reason = f"begins a text of over {untrusted.LONGEST_LINE >> 20} MiB: part it by lines `Article N:`"
                _reject(rejected, f"{file}:{begun}", reason)
            begun, article = number, bytearray()
        elif len(article) < untrusted.LONGEST_LINE:
            article += line


def _jsonl(lines: Lines, file: Path, rejected: list[dict] | None) -> Iterator[str]:
    for number, line, whole in lines:
        if not whole:
            _reject(rejected, f"{file}:{number}", f"is longer than {untrusted.LONGEST_LINE >> 20} MiB")
            continue
        record = line.decode()
        try:
            text = json.loads(record)["text"].strip()
            text.encode()  # half a surrogate is no text
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            _reject(rejected, f"{file}:{number}", "is no JSON object with a text in its field 'text'")
        else:
            yield text


def _reject(rejected: list[dict] | None, place: str, reason: str) -> None:
    if rejected is None:
        raise CorpusError(f"{place}: {reason}") from None
    rejected.append({"place": place, "reason": reason})


def held_out(text: str, percent: float) -> bool:
    """Whether a document is kept from training: decided by its own text, so that no order or seed
    moves it."""
    return zlib.crc32(text.encode()) % 10_000 < 100 * percent
