"""Tables of records, a row at a time: CSV with its separator and decimal sign, Parquet and Arrow."""

import csv
import itertools
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from lib.data.files import AS_UTF8, Records, SourceError, ending_of, header, lines
from lib.data.formats import BadRow
from lib.run import untrusted

LONGEST_CELL = 1 << 20  # characters of a cell of a CSV file
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SPACES = " \u00a0\u2009\u202f'’"  # between thousands
NUMBER = re.compile(rf"(?P<before>[^0-9]{{0,8}})(?P<number>[0-9](?:[0-9.,{SPACES}]*[0-9])?)(?P<after>[^0-9]{{0,16}})")
ROWS_AT_ONCE = 100  # of Parquet and Arrow


def _form(thousands: str, decimal: str) -> re.Pattern:
    """Numbers with one decimal sign and, if they have, one sign between thousands."""
    grouped = rf"[1-9][0-9]{{0,2}}(?P<sign>[{thousands}{SPACES}])[0-9]{{3}}(?:(?P=sign)[0-9]{{3}})*"
    return re.compile(rf"(?:{grouped}|[0-9]+)(?:[{decimal}][0-9]+)?")


WITH_COMMA, WITH_POINT = _form(".", ","), _form(",", ".")


# --- CSV --------------------------------------------------------------------------------------------------------------
def csv_records(path: Path, number_column: str, notes: list[str]) -> Records:
    """The rows of a CSV or TSV file below its header; the place is the row's last line.

    The separator is the one that parts the header into most columns (in a .tsv the tab, where it has one). Numbers in
    `number_column` that have decimal commas get points. A bad byte stays a surrogate, told later. SourceError where
    header, separator or decimal sign are in doubt."""
    separator, cells = _separator(path)
    if separator != ("\t" if ending_of(path).startswith(".tsv") else ","):
        notes.append(f"{path.name}: its columns are parted by {SEPARATORS[separator]}")
    names = header(path, cells)
    if any(re.search("[\ud800-\udfff]", name) for name in names):
        raise SourceError(f"{path}: its header is not UTF-8: {AS_UTF8}")
    commas, unnamed = _has_decimal_commas(path, separator, names, number_column, notes), False
    rows = _rows(path, separator)
    next(rows, None)
    for at, row in rows:
        if isinstance(row, list):
            cells, more = row[: len(names)], row[len(names) :]
            unnamed |= any(cell.strip() for name, cell in zip(names, cells) if not name)
            row = {name: cell for name, cell in itertools.zip_longest(names, cells) if name}
            if commas and row[number_column]:
                row[number_column] = _with_point(row[number_column])
            if any(map(str.strip, more)):
                row = BadRow("has more cells than the header has columns: quote a text that holds the separator")
        yield f"{path.name}:{at}", row
    if unnamed:
        notes.append(f"{path.name}: a column without a name in the header is passed over")


def _rows(path: Path, separator: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """(last line, cells) of each row that is not empty; the header is the first."""
    csv.field_size_limit(LONGEST_CELL)
    at = 0

    def text(numbered) -> str:
        nonlocal at
        at, line, whole = numbered
        if not whole:
            raise csv.Error(f"longer than {untrusted.LONGEST_LINE >> 20} MiB")
        return line.decode("utf-8", "surrogateescape")

    with lines(path) as numbered:
        # map goes on after an error, a generator would not
        reader = csv.reader(map(text, numbered), delimiter=separator, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row = BadRow(f"not CSV: {error}")
            if isinstance(row, BadRow) or any(map(str.strip, row)) and row != ["sep=", ""]:  # a line `sep=;` for Excel
                yield at, row


def _separator(path: Path) -> tuple[str, list[str]]:
    """(the separator that parts the header into most columns, the header); SourceError where two part it alike."""
    heads = {sign: next(_rows(path, sign), (0, []))[1] for sign in SEPARATORS}
    parted = {sign: head for sign, head in heads.items() if isinstance(head, list)}
    if not parted:
        raise SourceError(f"{path}: its header is {heads[',']}; save the table anew as CSV (UTF-8)")
    most = max(map(len, parted.values()))
    if ending_of(path).startswith(".tsv") and len(parted.get("\t", ())) > 1:
        return "\t", parted["\t"]
    best = [sign for sign, head in parted.items() if len(head) == most]
    if most > 1 and len(best) > 1:
        names = " and by ".join(SEPARATORS[sign] for sign in best)
        raise SourceError(f"{path}: its header can be parted by {names}: quote the columns' names, or rename them")
    return best[0], parted[best[0]]


def _has_decimal_commas(path: Path, separator: str, names: list[str], column: str, notes: list[str]) -> bool:
    """Are a column's numbers written as 1.234,56? They are where all can be read so, and one can only be read so."""
    if column not in names:
        return False
    at, seen = names.index(column), {}
    rows = _rows(path, separator)
    next(rows, None)
    for _, row in rows:
        number = _number(row[at]) if isinstance(row, list) and at < len(row) else None
        if number and re.search("[.,]", number["number"]):
            comma, point = (bool(form.fullmatch(number["number"])) for form in (WITH_COMMA, WITH_POINT))
            seen.setdefault((comma, point), number[0].strip())
    only_comma, only_point, either = seen.get((True, False)), seen.get((False, True)), seen.get((True, True))
    if only_comma and not only_point:
        notes.append(f"{path.name}: column {column!r} has decimal commas: {only_comma!r} is read as "
                     f"{_with_point(only_comma)!r}")  # fmt: skip
        return True
    if separator == ";" and (only_comma or either and not only_point):  # elsewhere points are the rule
        doubt = f"{only_comma!r} has a decimal comma, {only_point!r} a point" if only_comma else (
            f"{either!r} can be thousands or decimals")  # fmt: skip
        raise SourceError(f"{path}: its columns are parted by semicolons, and of column {column!r} it is not known "
                          f"what comma and point mean: {doubt}; write its numbers without thousands' signs and with "
                          f"one decimal sign")  # fmt: skip
    return False


def _number(cell: str) -> re.Match | None:
    """The number that a cell is, or that stands behind its last `####`."""
    return NUMBER.fullmatch(cell.rpartition("####")[2])


def _with_point(cell: str) -> str:
    """1.234,56 -> 1234.56; what is no such number stays."""
    number = _number(cell)
    if not number or not WITH_COMMA.fullmatch(number["number"]):
        return cell
    before, mark, _ = cell.rpartition("####")
    digits = re.sub(f"[.{SPACES}]", "", number["number"]).replace(",", ".")
    return f"{before}{mark}{number['before']}{digits}{number['after']}"


# --- Parquet and Arrow ------------------------------------------------------------------------------------------------
def arrow_records(path: Path, notes: list[str]) -> Records:
    """The rows of a Parquet or Arrow file (IPC file or stream, as `datasets` keeps them), by batches.

    Columns of other types than text, numbers, times, and lists and structs of them are passed over, and told.
    SourceError where the file is torn; UntrustedError where it unpacks out of proportion to its size."""
    import pyarrow

    number, left = 0, untrusted.GZIP_BYTES + untrusted.GZIP_RATIO * path.stat().st_size
    try:
        with untrusted.opened(path) as file:
            for batch in _batches(path, file, left, notes):
                batch.validate(full=True)
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    columns = [_plain(path, column, left) for column in batch.slice(start, ROWS_AT_ONCE).columns]
                    left -= sum(len(column) + column.nbytes for column in columns)
                    if left < 0:
                        raise untrusted.out_of_proportion(path)
                    for values in zip(*map(_values, columns)):
                        number += 1
                        yield f"{path.name}:{number}", dict(zip(batch.schema.names, values))
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} is no whole {ending_of(path)} file ({str(error)[:100]}): fetch or write it again"
                          ) from None  # fmt: skip


def _batches(path: Path, file: BufferedReader, most: int, notes: list[str]) -> Iterator:
    """Record batches of the columns that are read; `most` bytes in all, as far as a Parquet file tells."""
    from pyarrow import ipc, parquet

    if ending_of(path) == ".parquet":
        reader = parquet.ParquetFile(file)
        groups = map(reader.metadata.row_group, range(reader.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > most:
            raise untrusted.out_of_proportion(path)
        schema, batches = reader.schema_arrow, reader.iter_batches(ROWS_AT_ONCE)
    elif file.peek(6).startswith(b"ARROW1"):
        reader = ipc.open_file(file)
        schema, batches = reader.schema, map(reader.get_batch, range(reader.num_record_batches))
    else:
        reader = ipc.open_stream(file)
        schema, batches = reader.schema, reader
    header(path, schema.names)
    read = [column.name for column in schema if _is_read(column.type)]
    notes += [f"{path.name}: column {column.name!r} is passed over: its type is {column.type}; save it as text or "
              f"numbers if it is needed" for column in schema if column.name not in read]  # fmt: skip
    return (batch.select(read) for batch in batches)


def _is_read(type, inside: bool = False) -> bool:
    """Is a type read? Types that others define may run code of theirs. Values of a dictionary, a view or of null are
    held once, however often they come: texts of the first two are measured by `_plain`, others are not read."""
    from pyarrow import types

    if types.is_list(type) or types.is_large_list(type):
        return _is_read(type.value_type, True)
    if types.is_struct(type):
        return type.num_fields > 0 and all(_is_read(field.type, True) for field in type.fields)
    if types.is_dictionary(type):
        return not inside and (types.is_string(type.value_type) or types.is_large_string(type.value_type))
    if types.is_string_view(type):
        return not inside
    known = (types.is_string, types.is_large_string, types.is_primitive, types.is_decimal, types.is_boolean)
    return any(is_known(type) for is_known in known) or types.is_null(type) and not inside


def _plain(path: Path, column, most: int):
    """A column with its texts written out, where it only points to them; UntrustedError over `most` bytes."""
    import pyarrow
    from pyarrow import compute

    if pyarrow.types.is_string_view(column.type):
        size = sum(text.as_buffer().size for text in column if text.is_valid)
    elif pyarrow.types.is_dictionary(column.type):
        size = len(column) * (compute.max(compute.binary_length(column.dictionary)).as_py() or 0)
    else:
        return column
    if size > most:
        raise untrusted.out_of_proportion(path)
    return column.cast(pyarrow.large_string())


def _values(column) -> list:
    """A column's values as JSON has them: a decimal is text with its digits, 0.1 of 32 bits is 0.1."""
    import pyarrow

    if pyarrow.types.is_decimal(column.type):
        return column.cast(pyarrow.string()).to_pylist()
    if pyarrow.types.is_float32(column.type):
        return [value if value is None else float(value) for value in column.cast(pyarrow.string()).to_pylist()]
    return column.to_pylist()
