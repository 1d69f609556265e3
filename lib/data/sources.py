"""Every data set as rows of one schema, streamed: id, source, kind, messages, gold, group; and mixtures of them."""

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from lib import SharpenError
from lib.data import formats, pages, tasks, texts
from lib.run import untrusted
from lib.run.paths import in_project
from lib.run.settings import columns_of, parts_of

HUB = {  # repository and configuration; what has no rows of one type each (FinQA, TAT-QA, ...) is read from files
    "gsm8k": ("openai/gsm8k", "main"), "svamp": ("ChilleD/SVAMP", None),
    "investopedia": ("FinLang/investopedia-instruction-tuning-dataset", None),
}  # fmt: skip
PARSERS = {
    "gsm8k": formats.gsm8k, "svamp": formats.svamp, "finqa": pages.finqa, "tatqa": pages.tatqa,
    "finance_reasoning": pages.finance_reasoning, "investopedia": formats.investopedia,
    "trader_sft": formats.trader_sft, "trader_dpo": formats.trader_dpo, "corpus": formats.corpus,
}  # fmt: skip
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv")
UNSPLIT = ("investopedia", "trader_sft", "trader_dpo", "corpus", "own")  # come as one file; it is split by its groups
REJECTED_SHARE = 0.01  # above this share of bad rows a source is taken for the wrong file, not for a dirty one
LARGEST_JSON = 256 << 20  # bytes of a .json file, which is parsed whole
LONGEST_CELL = 1 << 20  # characters of a cell of a CSV file


class SourceError(SharpenError):
    """The data cannot be loaded; the message names the place and the remedy."""


class Rows(Sequence):
    """Rows that stay JSON text until they are read: a million short ones take 0.6 GB, and as a list 1.4 GB."""

    def __init__(self, rows: Iterable[dict] = ()):
        self._lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index):
        found = self._lines[index]
        return list(map(json.loads, found)) if isinstance(index, slice) else json.loads(found)

    def __eq__(self, other) -> bool:
        return list(self) == list(other)


def load(settings, split: str) -> tuple[Rows, list[dict], list[Path]]:
    """(rows, rejected records with their reasons, local files read) of one split of the settings' source.

    Splits: train, validation, test; for generated tasks `test` has unseen phrasings and ranges, and `test_seen` (a
    fifth of it) trained ones. The groups of the last training rows serve for validation, and for the test where one
    file holds all there is (where test_rows is none, held_out_percent of it): no group is in two splits of one file.
    Bad records are told once, with train or the test's own file. Memory: the rows that are returned, and the names of
    the groups."""
    counts = {"train": settings.train_rows, "validation": settings.validation_rows or 0, "test": settings.test_rows}
    if settings.source == "mixture":
        return _mixture(settings, split, counts.get(split))
    if settings.source == "quant_tasks":
        counts["test_seen"] = settings.test_rows // 5
        kinds = tuple(tasks.KINDS) if settings.kinds == ("all",) else settings.kinds or tasks.DEMO_KINDS
        try:
            problems = tasks.generate(split, counts[split], settings.data_seed, kinds)
        except ValueError as error:  # a kind has only so many different questions
            raise SourceError(f"{split}_rows = {counts[split]}: {error}") from None
        return Rows(problem.row() for problem in problems), [], []
    if split == "test_seen":
        return Rows(), [], []
    place, whole = _place(settings, split)
    rejected: list[dict] = []
    groups = [row["group"] for row in stream(settings, place, rejected)]  # what there is: once through, keeping little
    if not groups and not rejected:
        raise SourceError(f"{place}: no rows")
    if len(rejected) > REJECTED_SHARE * (len(groups) + len(rejected)):
        raise SourceError(
            f"{len(rejected)} of {len(groups) + len(rejected)} rows are bad, the first at {rejected[0]['place']}: "
            f"{rejected[0]['reason']}. Is this the right file?"
        )
    if whole and counts["test"] is None:
        counts["test"] = math.ceil(len(groups) * settings.held_out_percent / 100)
    held = {}
    if split != "test" or whole:
        held = _held_out(groups, {"test": counts["test"] if whole else 0, "validation": counts["validation"]})
    home = "train" if split != "test" or whole else "test"  # where the rows of no held-out group are
    wanted = (row for row in stream(settings, place, []) if held.get(row["group"], home) == split)
    rows = Rows(itertools.islice(wanted, counts[split]))
    if split == "train" and not rows:
        held_rows = f"validation_rows = {counts['validation']}" + f" and test_rows = {counts['test']}" * whole
        found = f"{len(groups)} rows in {len(set(groups))} groups"
        raise SourceError(f"{place}: {held_rows} leave nothing to train on ({found}); lower them")
    return rows, rejected if split == home else [], [place] if isinstance(place, Path) else []


def stream(settings, place: Path | str, rejected: list[dict]) -> Iterator[dict]:
    """The rows of a file, a corpus's folder or a hub split (`train`), one at a time; what is bad goes to `rejected`."""
    parse, expand = _format(settings)
    for where, raw in _records(settings, place, rejected):
        id = where.rsplit("/", 1)[-1]
        try:
            fields = _fields(raw)
            parts = [(id, fields)] if expand is None else [(f"{id}/{k}", f) for k, f in enumerate(expand(fields), 1)]
        except formats.BadRow as error:
            rejected.append({"place": where, "reason": str(error)})
            continue
        for id, part in parts:
            try:
                yield parse(part, id)
            except formats.BadRow as error:
                rejected.append({"place": where if expand is None else f"{where}, part {id.rpartition('/')[2]}",
                                 "reason": str(error)})  # fmt: skip


# --- splits and mixtures ----------------------------------------------------------------------------------------------
def _held_out(groups: list[str], counts: dict[str, int]) -> dict[str, str]:
    """{group: split} of the last groups, taken whole until each split has its count of rows."""
    sizes, last, held = Counter(groups), iter(dict.fromkeys(reversed(groups))), {}
    for split, count in counts.items():
        total = 0
        while total < count and (group := next(last, None)) is not None:
            held[group] = split
            total += sizes[group]
    return held


def _mixture(settings, split: str, count: int | None) -> tuple[Rows, list[dict], list[Path]]:
    """Rows of several sources, evenly interleaved, none twice.

    Training rows come in the ratio of the weights (without weights: of what there is), as many as the scarcest source
    allows; a cap is the most that is trained on of one source. The test asks each in the ratio of what it has."""
    loaded, weights, rejected, files = [], [], [], []
    for part in parts_of(settings):
        most = part.cap or (settings.train_rows if part.source == "quant_tasks" else None)  # generated without end
        own = {"source": part.source, "train_rows": most, "dataset_revision": part.revision}
        rows, bad, used = load(SimpleNamespace(**vars(settings) | own), split)
        loaded.append(rows)
        weights.append(len(rows) if part.weight is None or split != "train" else part.weight)
        rejected += bad
        files += used
    if not any(loaded):
        return Rows(), rejected, files
    share = min(len(rows) / weight for rows, weight in zip(loaded, weights, strict=True) if weight)
    if count is not None:
        share = min(share, count / sum(weights))
    sizes = [int(share * weight + 1e-9) for weight in weights]
    order = sorted(((k + 0.5) / size, number, k) for number, size in enumerate(sizes) for k in range(size))
    return Rows(loaded[number][k] for _, number, k in order), rejected, files


# --- records ----------------------------------------------------------------------------------------------------------
def _format(settings) -> tuple[Callable, Callable | None]:
    """(record -> row, and where a line holds several records: line -> records) of the settings' source."""
    if settings.source == "own":
        return partial(formats.own, columns=columns_of(settings)), None
    expand = {
        "tatqa": pages.tatqa_questions,
        # Two characters a token, so that blocks fit: with its small vocabulary the embedded base has 2.6 in minutes.
        "corpus": partial(formats.corpus_blocks, most=2 * settings.max_length),
    }
    return PARSERS[settings.source], expand.get(settings.source)


def _place(settings, split: str) -> tuple[Path | str, bool]:
    """(the file, folder or hub split that a split's rows are in, whether all splits are in it)."""
    published = "test" if split == "test" else "train"
    if not settings.data_dir:
        return published if settings.source not in UNSPLIT else "train", settings.source in UNSPLIT
    folder = Path(in_project(settings.data_dir))
    if folder.is_file():
        return folder, True
    if settings.source == "corpus":
        return _inside(folder / "corpus", folder) if (folder / "corpus").exists() else folder, True
    found = {}
    for name in ("train", "test"):
        stems = [folder / settings.source / name, folder / name]
        found[name] = next((p for stem in stems for end in ENDINGS if (p := Path(f"{stem}{end}")).is_file()), None)
    whole = settings.source in UNSPLIT and found["test"] is None
    path = found["train" if whole else published]
    if path is None:
        tried = " and ".join(f"{folder / part / published}.jsonl" for part in (settings.source, ""))
        raise SourceError(f"no {settings.source} rows: looked for {tried} (or {', '.join(ENDINGS[1:])}); "
                          f"a data_dir that names one file has it split by its groups")  # fmt: skip
    return _inside(path, folder), whole


def _inside(path: Path, folder: Path) -> Path:
    if untrusted.leads_out(path, folder):
        raise SourceError(f"{path} is a symbolic link out of {folder}: put the file there, or name it as data_dir")
    return path


def _records(settings, place: Path | str, rejected: list[dict]) -> Iterator[tuple[str, object]]:
    """(place, record): a JSON line as bytes, a dictionary, or the BadRow that it is."""
    if isinstance(place, str):
        yield from _hub(settings, place)
    elif settings.source == "corpus":
        documents = texts.documents(place, rejected)
        yield from ((f"document:{number}", {"text": text}) for number, text in enumerate(documents, 1))
    elif place.suffix == ".json":
        if (size := place.stat().st_size) > LARGEST_JSON:
            raise SourceError(f"{place}: has {size >> 20:,} MiB, and a .json file of over {LARGEST_JSON >> 20} is not "
                              f"read whole; one record a line in a .jsonl file may be of any size")  # fmt: skip
        try:
            records = json.loads(place.read_bytes())
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{place}: is not JSON: {str(error)[:100]}") from None
        if not isinstance(records, list):
            raise SourceError(f"{place}: holds no list of records; one record a line belongs into a .jsonl file")
        yield from ((f"{place.name}:{number}", record) for number, record in enumerate(records, 1))
    else:
        with untrusted.opened(place) as file:
            yield from (_table if place.suffix == ".csv" else _jsonl)(file, place.name)


def _jsonl(file, name: str) -> Iterator[tuple[str, object]]:
    for number, line, whole in untrusted.lines(file):
        if not whole:
            yield f"{name}:{number}", formats.BadRow(f"longer than {untrusted.LONGEST_LINE >> 20} MiB")
        elif line.strip():
            yield f"{name}:{number}", line


def _table(file, name: str) -> Iterator[tuple[str, object]]:
    """Rows of a CSV file with a header; the place is the row's last line. A bad byte stays a surrogate, told later."""
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


def _hub(settings, split: str) -> Iterator[tuple[str, object]]:
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
    yield from ((f"{repository}/{split}:{number}", row) for number, row in enumerate(rows, 1))


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
