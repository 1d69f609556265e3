"""Every data set as rows of one schema, streamed: id, source, kind, messages, gold, group; and
mixtures of them."""

import csv
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from lib import SharpenError
from lib.data import chats, convfinqa, finance_reasoning, finqa, formats, tasks, tatqa, texts
from lib.run import untrusted
from lib.run.paths import in_project
from lib.run.settings import PrepareSettings, columns_of, parts_of

SPLITS = ("train", "validation", "test", "test_seen")
HUB = {  # repository and configuration; what has no rows of one type each (FinQA, TAT-QA, ...) is read from files
    "gsm8k": ("openai/gsm8k", "main"), "svamp": ("ChilleD/SVAMP", None),
    "investopedia": ("FinLang/investopedia-instruction-tuning-dataset", None),
}  # fmt: skip
PARSERS = {
    "gsm8k": formats.gsm8k, "svamp": formats.svamp, "finqa": finqa.finqa, "tatqa": tatqa.tatqa,
    "convfinqa": convfinqa.convfinqa, "finance_reasoning": finance_reasoning.finance_reasoning,
    "investopedia": formats.investopedia,
    "trader_sft": chats.trader_sft, "trader_dpo": chats.trader_dpo, "corpus": formats.corpus,
}  # fmt: skip
EXPANDED = {"tatqa": tatqa.questions, "convfinqa": convfinqa.turns}  # a record of theirs holds several
FILES = {  # names of published files; the first that is there is read
    ("finqa", "test"): ("test", "dev"),
    ("tatqa", "train"): ("train", "tatqa_dataset_train"),
    ("tatqa", "test"): ("test", "tatqa_dataset_test_gold", "tatqa_dataset_dev"),
    ("convfinqa", "train"): ("train", "train_turn"),
    ("convfinqa", "test"): ("dev", "dev_turn", "test"),  # its published test has no answers
}  # fmt: skip
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv")
UNSPLIT = ("investopedia", "trader_sft", "trader_dpo", "corpus", "own")  # come as one file, split by its groups
REJECTED_SHARE = 0.01  # above this share of bad rows a source is taken for the wrong file, not for a dirty one
LARGEST_JSON = 256 << 20  # bytes of a .json file, which is parsed whole
LONGEST_CELL = 1 << 20  # characters of a cell of a CSV file


class SourceError(SharpenError):
    """The data cannot be loaded; the message names the place and the remedy."""


class Loaded(NamedTuple):
    """One split of the settings' source."""

    rows: list[dict]
    rejected: list[dict]  # bad records: their place and the reason
    files: list[Path]  # local files that were read


def load(settings: PrepareSettings, splits: Sequence[str] = SPLITS) -> dict[str, Loaded]:
    """The splits of the settings' source; a file is parsed once, whichever splits are in it.

    For generated tasks `test` has unseen phrasings and ranges, and `test_seen` (a fifth of it)
    trained ones. Of one file, the groups of the last rows serve for validation, and for the test
    where it has no file of its own (where test_rows is none, held_out_percent of the rows): no
    group is in two splits. Bad records are told once, with train or the test's own file. Memory:
    all rows of the files that are read."""
    loaded = _whole(settings, splits)
    if settings.golds_only and "train" in loaded:
        rows = [formats.gold_only(row) for row in loaded["train"].rows if row["gold"]]
        loaded["train"] = loaded["train"]._replace(rows=rows)
    return loaded


def _whole(settings: PrepareSettings, splits: Sequence[str]) -> dict[str, Loaded]:
    if settings.source == "mixture":
        return _mixture(settings, splits)
    if settings.source == "quant_tasks":
        return {split: _generated(settings, split) for split in splits}
    loaded, read = {}, {}
    for split in splits:
        if split == "test_seen":
            loaded[split] = Loaded([], [], [])
            continue
        place, whole = _place(settings, split)
        if place not in read:
            read[place] = _read(settings, split, place, whole)
        loaded[split] = read[place][split]
    return loaded


def stream(settings: PrepareSettings, place: Path | str, rejected: list[dict]) -> Iterator[dict]:
    """The rows of a file, a corpus's folder or a hub split (`train`), one at a time; what is bad
    goes to `rejected`."""
    parse, expand = _format(settings)
    for where, raw in _records(settings, place, rejected):
        id = where.rsplit("/", 1)[-1]
        try:
            parts = [_fields(raw)]
            if expand:
                parts = expand(parts[0])
        except formats.BadRow as error:
            rejected.append({"place": where, "reason": str(error)})
            continue
        for number, part in enumerate(parts, 1):
            try:
                yield parse(part, f"{id}/{number}" if expand else id)
            except formats.BadRow as error:
                place_of_part = f"{where}, part {number}" if expand else where
                rejected.append({"place": place_of_part, "reason": str(error)})


# --- splits and mixtures --------------------------------------------------------------------------
def _generated(settings: PrepareSettings, split: str) -> Loaded:
    counts = {
        "train": settings.train_rows + settings.skip_rows, "validation": settings.validation_rows or 0,
        "test": settings.test_rows, "test_seen": settings.test_rows // 5,
    }  # fmt: skip
    kinds = settings.kinds or tasks.DEMO_KINDS
    if kinds == ("all",):
        kinds = tuple(tasks.KINDS)
    try:
        problems = tasks.generate(split, counts[split], settings.data_seed, kinds)
    except ValueError as error:  # a kind has only so many different questions
        raise SourceError(f"{split}_rows = {counts[split]}: {error}") from None
    rows = [problem.row() for problem in problems]
    return Loaded(rows[settings.skip_rows :] if split == "train" else rows, [], [])


def _read(settings: PrepareSettings, split: str, place: Path | str, whole: bool) -> dict[str, Loaded]:
    """The splits in a place: all three where it is the `whole`, else the test alone, or training
    and validation."""
    rejected: list[dict] = []
    rows = list(stream(settings, place, rejected))
    if settings.source == "finqa":
        finqa.by_report(rows)
    count, files = len(rows) + len(rejected), [place] if isinstance(place, Path) else []
    if not count:
        raise SourceError(f"{place}: no rows")
    if len(rejected) > REJECTED_SHARE * count:
        first = f"the first at {rejected[0]['place']}: {rejected[0]['reason']}"
        raise SourceError(f"{len(rejected)} of {count} rows are bad, {first}. Is this the right file?")
    if split == "test" and not whole:
        return {"test": Loaded(_first(rows, settings.test_rows), rejected, files)}
    asked = {"validation": settings.validation_rows or 0}
    if whole:
        tests = settings.test_rows
        if tests is None:
            tests = math.ceil(len(rows) * settings.held_out_percent / 100)
        asked = {"test": tests} | asked
    parts = _divide(rows, asked)
    if not parts["train"][settings.skip_rows :]:
        asked = {"skip": settings.skip_rows} | asked
        held = " and ".join(f"{name}_rows = {count}" for name, count in reversed(asked.items()) if count)
        groups = {row["group"] for row in rows}
        raise SourceError(f"{place}: {held} leave nothing to train on "
                          f"({len(rows)} rows in {len(groups)} groups); lower them")  # fmt: skip
    loaded = {name: Loaded(_first(parts[name], most), [], files) for name, most in asked.items()}
    train = parts["train"][settings.skip_rows :]
    return loaded | {"train": Loaded(train[: settings.train_rows], rejected, files)}


def _divide(rows: list[dict], asked: dict[str, int]) -> dict[str, list[dict]]:
    """Rows by split: the last groups go, whole, to the splits in turn until each has as many rows
    as are asked for. Of a conversation the test has a row a turn, and the others have the whole one."""
    last, split_of = deque(dict.fromkeys(row["group"] for row in reversed(rows))), {}
    parts: dict[str, list[dict]] = {name: [] for name in ("train", *asked)}
    for name, count in asked.items():
        sizes, total = Counter(row["group"] for row in rows if name == "test" or convfinqa.whole(row)), 0
        while last and total < count:
            group = last.popleft()
            split_of[group] = name
            total += sizes[group]
    for row in rows:
        name = split_of.get(row["group"], "train")
        if name == "test":
            parts[name].append(row)
        elif convfinqa.whole(row):
            parts[name].append(convfinqa.learnt(row))
    return parts


def _first(rows: list[dict], most: int | None) -> list[dict]:
    """The first rows, `most` of them and what is left of the last one's conversation."""
    kept = rows[:most]
    if kept and "conversation" in kept[-1]:
        kept += takewhile(lambda row: row["conversation"] == kept[-1]["conversation"], rows[most:])
    return kept


def _mixture(settings: PrepareSettings, splits: Sequence[str]) -> dict[str, Loaded]:
    parts, loaded = parts_of(settings), []
    for part in parts:
        cap = part.cap
        if part.source == "quant_tasks":  # generated without end
            cap = cap or settings.train_rows
        own = {"source": part.source, "train_rows": cap, "dataset_revision": part.revision}
        loaded.append(load(SimpleNamespace(**vars(settings) | own), splits))
    mixed = {}
    for split in splits:
        sources = [source[split] for source in loaded]
        weights = [len(source.rows) for source in sources]
        if split == "train":
            weights = [part.weight or size for part, size in zip(parts, weights, strict=True)]
        most = getattr(settings, f"{split}_rows", None)
        mixed[split] = Loaded(
            _interleaved([source.rows for source in sources], weights, most),
            [bad for source in sources for bad in source.rejected],
            [file for source in sources for file in source.files],
        )
    return mixed


def _interleaved(sources: list[list[dict]], weights: list[float], most: int | None) -> list[dict]:
    """Rows of several sources, evenly interleaved in the ratio of their weights, none twice: as
    many as the scarcest source allows, and `most` at most."""
    if not any(sources):
        return []
    share = min(len(rows) / weight for rows, weight in zip(sources, weights, strict=True) if weight)
    if most is not None:
        share = min(share, most / sum(weights))
    order = []
    for number, weight in enumerate(weights):
        size = int(share * weight + 1e-9)
        order += [((k + 0.5) / size, number, k) for k in range(size)]
    return [sources[number][k] for _, number, k in sorted(order)]


# --- records --------------------------------------------------------------------------------------
def _format(settings: PrepareSettings) -> tuple[Callable, Callable | None]:
    """(record -> row, and where a line holds several records: line -> records) of the settings'
    source."""
    match settings.source:
        case "own":
            return partial(formats.own, columns=columns_of(settings)), None
        case "finqa" | "tatqa" | "convfinqa":
            shown = {"context": settings.page_context, "most": settings.nearest_sentences}
            return partial(PARSERS[settings.source], **shown), EXPANDED.get(settings.source)
        case "corpus":  # two characters a token, so that blocks fit: the embedded base has 2.6 in minutes
            return formats.corpus, partial(formats.corpus_blocks, most=2 * settings.max_length)
    return PARSERS[settings.source], None


def _place(settings: PrepareSettings, split: str) -> tuple[Path | str, bool]:
    """(the file, folder or hub split that a split's rows are in, whether all splits are in it)."""
    whole = settings.source in UNSPLIT
    if settings.data_dir:
        folder = Path(in_project(settings.data_dir))
        if folder.is_file():
            return folder, True
        if settings.source == "corpus":
            inner = folder / "corpus"
            return (_inside(inner, folder) if inner.exists() else folder), True
        whole = whole and not _file(folder, settings.source, "test")
    name = "test" if split == "test" and not whole else "train"
    if not settings.data_dir:
        return name, whole
    path = _file(folder, settings.source, name)
    if path is None:
        names = FILES.get((settings.source, name), (name,))
        tried = " and ".join(f"{folder / part / ' or '.join(names)}.jsonl" for part in (settings.source, ""))
        raise SourceError(f"no {settings.source} rows: looked for {tried} (or {', '.join(ENDINGS[1:])}); "
                          f"a data_dir that names one file has it split by its groups")  # fmt: skip
    return _inside(path, folder), whole


def _file(folder: Path, source: str, split: str) -> Path | None:
    for inner in (folder / source, folder):
        for name in FILES.get((source, split), (split,)):
            for ending in ENDINGS:
                path = inner / f"{name}{ending}"
                if path.is_file():
                    return path
    return None


def _inside(path: Path, folder: Path) -> Path:
    if untrusted.leads_out(path, folder):
        raise SourceError(f"{path} is a symbolic link out of {folder}: put the file there, or name it as data_dir")
    return path


def _records(
    settings: PrepareSettings, place: Path | str, rejected: list[dict]
) -> Iterator[tuple[str, object]]:  # fmt: skip
    """(place, record): a JSON line as bytes, a dictionary, or the BadRow that it is."""
    if isinstance(place, str):
        yield from _hub(settings, place)
    elif settings.source == "corpus":
        for number, text in enumerate(texts.documents(place, rejected), 1):
            yield f"document:{number}", {"text": text}
    elif place.suffix == ".json":
        for number, record in enumerate(_list(place), 1):
            yield f"{place.name}:{number}", record
    else:
        read = _table if place.suffix == ".csv" else _jsonl
        with untrusted.opened(place) as file:
            yield from read(file, place.name)


def _list(place: Path) -> list:
    """The records of a .json file."""
    size = place.stat().st_size
    if size > LARGEST_JSON:
        raise SourceError(f"{place}: has {size >> 20:,} MiB, and a .json file of over {LARGEST_JSON >> 20} is not "
                          f"read whole; one record a line in a .jsonl file may be of any size")  # fmt: skip
    try:
        records = json.loads(place.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: is not JSON: {str(error)[:100]}") from None
    if not isinstance(records, list):
        raise SourceError(f"{place}: holds no list of records; one record a line belongs into a .jsonl file")
    return records


def _jsonl(file, name: str) -> Iterator[tuple[str, object]]:
    for number, line, whole in untrusted.lines(file):
        if not whole:
            yield f"{name}:{number}", formats.BadRow(f"longer than {untrusted.LONGEST_LINE >> 20} MiB")
        elif line.strip():
            yield f"{name}:{number}", line


def _table(file, name: str) -> Iterator[tuple[str, object]]:
    """Rows of a CSV file with a header; the place is the row's last line. A bad byte stays a
    surrogate, told later."""
    csv.field_size_limit(LONGEST_CELL)
    at = 0

    def text(numbered) -> str:
        nonlocal at
        at, line, whole = numbered
        if not whole:
            raise csv.Error(f"longer than {untrusted.LONGEST_LINE >> 20} MiB")
        return line.decode("utf-8", "surrogateescape")

    numbered = untrusted.lines(file)
    rows = csv.DictReader(map(text, numbered), strict=True)  # map goes on after an error, a generator would not
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row = formats.BadRow(f"not CSV: {error}")
        yield f"{name}:{at}", row


def _hub(settings: PrepareSettings, split: str) -> Iterator[tuple[str, object]]:
    """Rows of a hub data set, which `datasets` keeps in its cache, memory-mapped."""
    if settings.source not in HUB:
        raise SourceError(f"{settings.source} is read from files only: give data_dir (data/README.md)")
    from datasets import load_dataset

    repository, configuration = HUB[settings.source]
    try:
        rows = load_dataset(repository, configuration, split=split, revision=settings.dataset_revision)
    except Exception as error:  # the hub's errors have no common class; each means the same to the user
        raise SourceError(
            f"cannot load {repository} from the hub ({type(error).__name__}: {str(error)[:200]}). "
            f"Offline? Give --data-dir, a folder with {settings.source}/{split}.jsonl"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{repository}/{split}:{number}", row


def _fields(raw) -> dict:
    """A record's fields by their names in small letters (SVAMP has been published both ways)."""
    if isinstance(raw, formats.BadRow):
        raise raw
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise formats.BadRow(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(raw, dict):
        raise formats.BadRow(f"is no object with fields, but {type(raw).__name__}")
    if None in raw:
        raise formats.BadRow("has more cells than the header has columns")
    return {name.lower(): value for name, value in raw.items()}
