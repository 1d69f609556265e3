"""Files of records: which there are, in which encoding, and the records of JSON files one at a time."""

import codecs
import contextlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lib import SharpenError
from lib.data.formats import BadRow
from lib.run import untrusted

LINES = (".jsonl", ".ndjson")  # a record a line
ENDINGS = (
    ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz",
    ".parquet", ".arrow", ".feather",
)  # fmt: skip
REMEDIES = {  # what is not read, and what to do with it
    (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"): "a spreadsheet: save its sheet as CSV (UTF-8)",
    (".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz", ".gz"):
        "packed, and of packed files only .jsonl.gz, .json.gz, .csv.gz and .tsv.gz are read: unpack it",
    (".pkl", ".pickle", ".pt", ".bin", ".npy", ".npz"):
        "of a kind that can hold code, and is never read: save the records as Parquet or JSON lines",
}  # fmt: skip
BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
LARGEST_JSON = 256 << 20  # bytes of a .json file, which is parsed whole
AS_UTF8 = "save the file as UTF-8 (it may be in Latin-1 or Windows-1252)"
Records = Iterator[tuple[str, object]]  # (place, a dictionary, a JSON line as bytes, or the BadRow that it is)


class SourceError(SharpenError):
    """The data cannot be loaded; the message names the place and the remedy."""


# --- which files ------------------------------------------------------------------------------------------------------
def ending_of(path: Path) -> str:
    """The ending of a file of records in small letters, `.gz` included; SourceError names the remedy of any other."""
    name = path.name.lower()
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return ending
    for endings, remedy in REMEDIES.items():
        if name.endswith(endings):
            raise SourceError(f"{path} is {remedy}")
    raise SourceError(f"{path}: its ending is none of {', '.join(ENDINGS)}: save it as one of them, or rename it")


def find(folder: Path, *names: str) -> Path | None:
    """The one file of records in a folder that is called one of `names`, with any ending that is read, in any case;
    None where there is none. SourceError where there are several, or where it is in parts or of a kind not read."""
    found = named(folder, *names)
    found = [
        path for path in found if path.name.lower().endswith(ENDINGS)
    ] or found  # a .zip may lie beside what it held
    if len(found) > 1:
        there = " and ".join(path.name for path in found[:3])
        raise SourceError(f"{folder} holds {there}: keep one, or name the one that is meant as data_dir (parts of "
                          f"a file: join them)")  # fmt: skip
    for path in found:
        ending_of(path)
        parts = re.search(r"-of-(\d+)\.", path.name)
        if parts and int(parts[1]) > 1:
            raise SourceError(f"{path} is one of {int(parts[1])} parts: join them into one file")
    return found[0] if found else None


def named(folder: Path, *names: str) -> list[Path]:
    """The files in a folder that are called one of `names` and hold records, or what users keep records in.

    The hub's `train-00000-of-00001.parquet` is called train."""
    form = re.compile(rf"({'|'.join(map(re.escape, names))})(-\d+-of-\d+)?", re.IGNORECASE)
    endings = (*ENDINGS, *itertools.chain(*REMEDIES))
    found = []
    for path in sorted(folder.glob("*")):
        called = {path.name[: -len(ending)] for ending in endings if path.name.lower().endswith(ending)}
        if path.is_file() and any(map(form.fullmatch, called)):
            found.append(path)
    return found


# --- their text -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def lines(path: Path) -> Iterator[Iterator[tuple[int, bytes, bool]]]:
    """A file's lines as `untrusted.lines` gives them, in UTF-8 where the file has a mark of UTF-16 or UTF-32."""
    with untrusted.opened(path) as file:
        yield untrusted.lines(_as_utf8(path, file))


def _as_utf8(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    start = file.peek(4)[:4]
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return _Recoded(path, io.TextIOWrapper(file, encoding, newline="\n"))
    if b"\0" in start:
        raise SourceError(f"{path} is no text, or UTF-16 without a byte order mark: save it as UTF-8")
    return file


class _Recoded(NamedTuple):
    """Reads the lines of a text in another encoding as UTF-8."""

    path: Path
    text: io.TextIOWrapper

    def readline(self, size: int) -> bytes:
        try:
            return self.text.readline(size).encode()
        except UnicodeError as error:
            raise SourceError(f"{self.path} is no whole {self.text.encoding} text ({error}): save as UTF-8") from None


# --- JSON -------------------------------------------------------------------------------------------------------------
def json_records(path: Path, notes: list[str]) -> Records:
    """The records of JSON lines, or of a .json file: lines too, a list, or an object that holds one list of them."""
    if not ending_of(path).startswith(LINES) and not _is_lines(path):
        for number, record in enumerate(_list(path, notes), 1):
            yield f"{path.name}:{number}", record
        return
    with lines(path) as numbered:
        for number, line, whole in numbered:
            if not whole:
                yield f"{path.name}:{number}", BadRow(f"longer than {untrusted.LONGEST_LINE >> 20} MiB")
            elif line := line.strip():
                if number == 1 and (line == b"[" or line.startswith(b"[{")):
                    raise SourceError(f"{path} is one JSON list, not a record a line: name it .json")
                yield f"{path.name}:{number}", line


def _is_lines(path: Path) -> bool:
    """Is the first line of a .json file an object, and not the only line?"""
    with lines(path) as numbered:
        first, *others = itertools.islice((line for _, line, _ in numbered if line.strip()), 2) or [b""]
    if not others:
        return False
    try:
        return isinstance(parsed(first), dict)
    except BadRow:
        return False


def _list(path: Path, notes: list[str]) -> list:
    """The records of a .json file that is parsed whole."""
    with untrusted.opened(path) as file:
        text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise SourceError(f"{path}: has over {LARGEST_JSON >> 20} MiB, and such a .json file is not read whole; one "
                          f"record a line in a .jsonl file may be of any size")  # fmt: skip
    try:
        records = parsed(text.decode(json.detect_encoding(text)))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is no {error.encoding} text at byte {error.start}: {AS_UTF8}") from None
    except BadRow as error:
        raise SourceError(f"{path}: is {error}") from None
    if isinstance(records, dict):
        lists = [name for name, value in records.items() if _are_records(value)]
        if len(lists) > 1:
            raise SourceError(f"{path}: holds several lists of records ({', '.join(lists)}): give each a file of its "
                              f"own (train.json, test.json)")  # fmt: skip
        if lists:
            notes.append(f"{path.name}: the records are those of {lists[0]!r}")
            records = records[lists[0]]
    if not isinstance(records, list):
        raise SourceError(f"{path}: holds no list of records; save one object a record, in a list or one a line (of a "
                          f"pandas table: to_json(orient='records'))")  # fmt: skip
    return records


def _are_records(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(record, dict) for record in value)


def parsed(text: bytes | str) -> object:
    """A JSON value, in which no object has a field twice; BadRow says what is wrong with it."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise BadRow(f"not JSON: not UTF-8 at byte {error.start}: {AS_UTF8}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {str(error)[:100]}") from None


def _once(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"it has the field {_repeated(name for name, _ in pairs)!r} twice")
    return fields


# --- their fields -----------------------------------------------------------------------------------------------------
def fields_of(record: object) -> dict:
    """A record's fields by their names in small letters, without outer spaces (SVAMP has been published both ways)."""
    if isinstance(record, BadRow):
        raise record
    if isinstance(record, bytes):
        record = parsed(record)
    if not isinstance(record, dict):
        raise BadRow(f"is no object with fields, but {type(record).__name__}")
    fields = {plain(name): value for name, value in record.items()}
    if len(fields) < len(record):
        raise BadRow(f"it has the field {_repeated(map(plain, record))!r} twice, but for case and spaces")
    return fields


def header(path: Path, names: Iterable[str]) -> list[str]:
    """The names of a table's columns as records have them; SourceError where two are the same."""
    names = list(map(plain, names))
    if repeated := _repeated(filter(None, names)):
        raise SourceError(f"{path} has two columns {repeated!r} (case and outer spaces do not count): rename or remove "
                          f"one, as it is not known which is meant")  # fmt: skip
    return names


def plain(name: str) -> str:
    return name.strip().lower()


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that comes twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
