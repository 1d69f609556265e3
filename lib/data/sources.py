"""Every data set as rows of one schema, streamed: id, source, kind, messages, gold, group; and
mixtures of them."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from lib.data import chats, convfinqa, files, finance_reasoning, finqa, formats, tables, tasks, tatqa, texts
from lib.data.files import SourceError
from lib.run import untrusted
from lib.run.paths import in_project
from lib.run.settings import PrepareSettings, columns_of, nearest, parts_of

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
    ("finqa", "test"): ("test", "dev"), ("finqa", "validation"): ("validation", "dev"),
    ("tatqa", "train"): ("train", "tatqa_dataset_train"),
    ("tatqa", "validation"): ("validation", "dev", "tatqa_dataset_dev"),
    ("tatqa", "test"): ("test", "tatqa_dataset_test_gold", "dev", "tatqa_dataset_dev"),
    ("convfinqa", "train"): ("train", "train_turn"), ("convfinqa", "validation"): ("validation",),
    ("convfinqa", "test"): ("dev", "dev_turn", "test"),  # its published test has no answers
}  # fmt: skip
UNSPLIT = ("investopedia", "trader_sft", "trader_dpo", "corpus", "own")  # come as one file, split by its groups
NAMES = {  # of a split's file, without its ending
    "train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",),
}  # fmt: skip
# Fields that change what a row means or is worth. Those that a source's parser does not use are told.
MATTERS = frozenset((
    "weight", "weights", "label", "labels", "score", "scores", "rating", "reward", "split", "is_correct", "correct",
    "flagged", "reasoning", "reasoning_content", "thinking", "rationale", "explanation", "solution", "system",
    "system_prompt", "instruction", "input", "history", "tools", "functions", "tool_calls", "choices", "options",
    "images", "image", "table", "passage", "document", "answer", "gold", "unit", "units", "scale",
))  # fmt: skip
USED = {  # source -> those that its parser uses, beside the answer and the table
    "trader_sft": ("label", "system", "tools", "functions", "instruction", "input", "history"),
    "trader_dpo": ("system", "tools", "functions", "instruction", "input", "history"),
    "tatqa": ("scale",),
}  # fmt: skip
EMPTY = (None, "", [], {})
REJECTED_SHARE = 0.01  # above this share of bad rows a source is taken for the wrong file, not for a dirty one


class Loaded(NamedTuple):
    """One split of the settings' source."""

    rows: list[dict]
    rejected: list[dict]  # bad records: their place and the reason
    files: list[Path]  # local files that were read
    notes: tuple[str, ...] = ()  # what a user should know of how they were read


def load(settings: PrepareSettings, splits: Sequence[str] = SPLITS) -> dict[str, Loaded]:
    """The splits of the settings' source; a file is parsed once, whichever splits are in it.

    For generated tasks `test` has unseen phrasings and ranges, and `test_seen` (a fifth of it)
    trained ones. The groups of the training file's last rows serve for validation, and for the
    test, where these have no file of their own (where test_rows is none, held_out_percent of the
    rows): no group is in two splits. Bad records and notes are told once, with the first split of
    their file. Memory: all rows of the files that are read."""
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
        place, within = _place(settings, split)
        if place not in read:
            read[place] = _read(settings, place, within)
        loaded[split] = read[place][split]
    return loaded


def stream(
    settings: PrepareSettings, place: Path | str, rejected: list[dict], notes: list[str] | None = None
) -> Iterator[dict]:  # fmt: skip
    """The rows of a file, a corpus's folder or a hub split (`train`), one at a time; what is bad
    goes to `rejected`, and to `notes` once all is read what a user should know of how it was."""
    parse, expand = _format(settings)
    notes, unused, used, seen = [] if notes is None else notes, Counter(), _used(settings), set()
    for where, raw in _records(settings, place, rejected, notes):
        id = where.rsplit("/", 1)[-1]
        try:
            parts = [files.fields_of(raw)]
            seen |= parts[0].keys()
            unused.update(name for name in (MATTERS & parts[0].keys()) - used if parts[0][name] not in EMPTY)
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
    for name, column in columns_of(settings).items() if settings.source == "own" and seen else ():
        if name in ("context", "group") and column not in seen:
            raise SourceError(f"{place}: no record has the column of {name}={column} "
                              f"(but {', '.join(sorted(seen))[:200]}){nearest(column, seen)}")  # fmt: skip
    if unused:
        told = ", ".join(f"{name!r} (in {count:,} records)" for name, count in sorted(unused.items()))
        name = place.name if isinstance(place, Path) else place
        notes.append(f"{name}: {settings.source} does not use the fields {told}")


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


def _read(settings: PrepareSettings, place: Path | str, within: Sequence[str]) -> dict[str, Loaded]:
    """The splits `within` a place: the test or the validation alone, or training and what has no
    place of its own."""
    rejected: list[dict] = []
    notes: list[str] = []
    rows = list(stream(settings, place, rejected, notes))
    notes += _left_beside(settings, place)
    if settings.source == "finqa":
        finqa.by_report(rows)
    count, local = len(rows) + len(rejected), [place] if isinstance(place, Path) else []
    if not count:
        raise SourceError(f"{place}: no rows")
    if len(rejected) > REJECTED_SHARE * count:
        first = f"the first at {rejected[0]['place']}: {rejected[0]['reason']}"
        raise SourceError(f"{len(rejected)} of {count} rows are bad, {first}. Is this the right file?")
    if "train" not in within:
        (name,) = within
        if name == "validation":
            rows = [convfinqa.learnt(row) for row in rows if convfinqa.whole(row)]
        kept = _first(rows, getattr(settings, f"{name}_rows"))
        return {name: Loaded(kept, rejected, local, tuple(notes))}
    asked = {}
    if "test" in within:
        asked["test"] = settings.test_rows
        if settings.test_rows is None:
            asked["test"] = math.ceil(len(rows) * settings.held_out_percent / 100)
    if "validation" in within:
        asked["validation"] = settings.validation_rows or 0
    parts = _divide(rows, asked)
    if not parts["train"][settings.skip_rows :]:
        asked = {"skip": settings.skip_rows} | asked
        held = " and ".join(f"{name}_rows = {count}" for name, count in reversed(asked.items()) if count)
        groups = {row["group"] for row in rows}
        raise SourceError(f"{place}: {held} leave nothing to train on "
                          f"({len(rows)} rows in {len(groups)} groups); lower them")  # fmt: skip
    loaded = {name: Loaded(_first(parts[name], most), [], local) for name, most in asked.items()}
    train = parts["train"][settings.skip_rows :]
    return loaded | {"train": Loaded(train[: settings.train_rows], rejected, local, tuple(notes))}


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
            tuple(note for source in sources for note in source.notes),
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
            return partial(chats.own, columns=columns_of(settings)), None
        case "finqa" | "tatqa" | "convfinqa":
            shown = {"context": settings.page_context, "most": settings.nearest_sentences}
            return partial(PARSERS[settings.source], **shown), EXPANDED.get(settings.source)
        case "corpus":  # two characters a token, so that blocks fit: the embedded base has 2.6 in minutes
            return formats.corpus, partial(formats.corpus_blocks, most=2 * settings.max_length)
    return PARSERS[settings.source], None


def _place(settings: PrepareSettings, split: str) -> tuple[Path | str, tuple[str, ...]]:
    """(the file, folder or hub split that a split's rows are in, the splits within it)."""
    everything = ("train", "validation", "test")
    alone = [] if settings.source in UNSPLIT else ["test"]  # splits with a place of their own
    if settings.data_dir:
        folder = Path(in_project(settings.data_dir))
        if folder.is_file():
            return folder, everything
        if settings.source == "corpus":
            inner = folder / "corpus"
            return (_inside(inner, folder) if inner.exists() else folder), everything
        test, validation = (_file(folder, settings.source, part) for part in ("test", "validation"))
        if test:
            alone = ["test"]
        if settings.validation_rows != 0 and validation and validation != test:
            alone.append("validation")
    name = split if split in alone else "train"
    within = (name,) if name in alone else tuple(part for part in everything if part not in alone)
    if not settings.data_dir:
        return name, within
    path = _file(folder, settings.source, name)
    if path is None:
        names = FILES.get((settings.source, name), NAMES[name])
        tried = " and ".join(f"{folder / part / ' or '.join(names)}.jsonl" for part in (settings.source, ""))
        raise SourceError(f"no {settings.source} rows: looked for {tried} (or {', '.join(files.ENDINGS[1:])}); "
                          f"a data_dir that names one file has it split by its groups")  # fmt: skip
    return _inside(path, folder), within


def _file(folder: Path, source: str, split: str) -> Path | None:
    published = [(name,) for name in FILES.get((source, split), ())]
    for inner in (folder / source, folder):
        for names in published or [NAMES[split]]:
            if path := files.find(inner, *names):
                return path
    return None


def _used(settings: PrepareSettings) -> set[str]:
    """Fields of MATTERS that the source's parser uses."""
    if settings.source != "own":
        return {"answer", "table", *USED.get(settings.source, ())}
    columns = columns_of(settings)
    return {formats.gold_column(columns), *(columns.get(name, name) for name in ("question", "context", "group"))}


def _left_beside(settings: PrepareSettings, place: Path | str) -> Iterator[str]:
    """Tells of the other splits' files beside a training file that data_dir names."""
    alone = settings.data_dir and place == Path(in_project(settings.data_dir))
    if alone and place in files.named(place.parent, *NAMES["train"]):
        for path in files.named(place.parent, *NAMES["validation"], *NAMES["test"]):
            yield f"{place.name}: {path.name} beside it is not read, as data_dir names one file: name their folder"


def _inside(path: Path, folder: Path) -> Path:
    if untrusted.leads_out(path, folder):
        raise SourceError(f"{path} is a symbolic link out of {folder}: put the file there, or name it as data_dir")
    return path


def _records(
    settings: PrepareSettings, place: Path | str, rejected: list[dict], notes: list[str]
) -> files.Records:  # fmt: skip
    if isinstance(place, str):
        yield from _hub(settings, place)
    elif settings.source == "corpus":
        for number, text in enumerate(texts.documents(place, rejected), 1):
            yield f"document:{number}", {"text": text}
    else:
        match files.ending_of(place).removesuffix(".gz"):
            case ".csv" | ".tsv":
                columns = columns_of(settings) if settings.source == "own" else {}
                yield from tables.csv_records(place, formats.gold_column(columns), notes)
            case ".parquet" | ".arrow" | ".feather":
                yield from tables.arrow_records(place, notes)
            case _:
                yield from files.json_records(place, notes)


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
