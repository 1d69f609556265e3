"""Every data set as rows of one schema: id, source, kind, messages, gold, group."""

import json
import re
from itertools import islice
from pathlib import Path

from lib import tasks
from lib.presets import in_project

HUB = {"gsm8k": ("openai/gsm8k", "main")}
REJECTED_SHARE = 0.01  # above this share of bad rows a source is taken for the wrong file, not for a dirty one


class SourceError(ValueError):
    """The data cannot be loaded; the message names the place and the remedy."""


def load(settings, split: str) -> tuple[list[dict], list[dict], list[Path]]:
    """(rows, rejected rows with their reasons, local files read) of one split of the settings' source.

    Splits: train, validation, test; for generated tasks `test` has unseen phrasings and ranges, and `test_seen` (a
    fifth of it) trained ones. Of gsm8k the last training rows serve for validation."""
    if settings.source == "quant_tasks":
        counts = {"train": settings.train_rows, "validation": settings.validation_rows, "test": settings.test_rows,
                  "test_seen": settings.test_rows // 5}  # fmt: skip
        kinds = tuple(tasks.KINDS) if settings.kinds == ("all",) else settings.kinds or tasks.DEMO_KINDS
        try:
            problems = tasks.generate(split, counts[split], settings.data_seed, kinds)
        except ValueError as error:  # a kind has only so many different questions
            raise SourceError(f"{split}_rows = {counts[split]}: {error}") from None
        return [problem.row() for problem in problems], [], []
    if split == "test_seen":
        return [], [], []
    raw, files = _raw(settings, "test" if split == "test" else "train")
    if not raw:
        raise SourceError(f"{', '.join(map(str, files)) or settings.source}: no rows")
    rows, rejected = [], []
    for place, fields in raw:
        try:
            rows.append(_gsm8k(fields, place))
        except SourceError as error:
            rejected.append({"place": place, "reason": str(error)})
    if len(rejected) > REJECTED_SHARE * len(raw):
        raise SourceError(
            f"{len(rejected)} of {len(raw)} rows are bad, the first at {rejected[0]['place']}: "
            f"{rejected[0]['reason']}. Is this the right file?"
        )
    if split == "test":
        return rows[: settings.test_rows], rejected, files
    held_out = settings.validation_rows or 0
    train = rows[: len(rows) - held_out][: settings.train_rows]
    return (train if split == "train" else rows[len(rows) - held_out :]), rejected, files


def read_rows(path: Path, limit: int | None = None) -> list[dict]:
    """The rows that a stage wrote, the first `limit` of them."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, limit)]


def _raw(settings, split: str) -> tuple[list, list[Path]]:
    """[(place, fields or None)] from a local folder where one is named, else from the hub."""
    if settings.data_dir:
        folder = Path(in_project(settings.data_dir))
        tried = [folder / settings.source / f"{split}.jsonl", folder / f"{split}.jsonl"]
        path = next((p for p in tried if p.is_file()), None)
        if path is None:
            raise SourceError(f"no {settings.source} rows: looked for {' and '.join(map(str, tried))}")
        with path.open("rb") as file:
            return [(f"{path.name}:{number}", line) for number, line in enumerate(file, 1) if line.strip()], [path]
    from datasets import load_dataset

    repository, configuration = HUB[settings.source]
    try:
        rows = load_dataset(repository, configuration, split=split, revision=settings.dataset_revision)
    except Exception as error:  # the hub's errors have no common class; each means the same to the user
        raise SourceError(
            f"cannot load {repository} from the hub ({type(error).__name__}: {str(error)[:200]}). "
            f"Offline? Give --data-dir, a folder with {settings.source}/{split}.jsonl"
        ) from error
    return [(f"{repository}/{split}:{number}", row) for number, row in enumerate(rows, 1)], []


def _gsm8k(fields: bytes | dict, place: str) -> dict:
    """A row of GSM8K: the worked answer keeps its <<expr=value>> marks and ends with `#### N`."""
    if isinstance(fields, bytes):
        try:
            fields = json.loads(fields)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"not JSON: {str(error)[:100]}") from None
    for name in ("question", "answer"):
        if not isinstance(fields, dict) or not isinstance(fields.get(name), str) or not fields[name].strip():
            raise SourceError(f"field {name!r} is missing, empty or no text")
    found = re.search(r"####\s*(-?\d[\d,]{0,30}(?:\.\d{1,30})?)\s*$", fields["answer"])
    if not found:
        raise SourceError("field 'answer' does not end with '#### ' and a number")
    value = float(found[1].replace(",", ""))
    return {
        "id": f"gsm8k-{place.rsplit('/', 1)[-1]}", "source": "gsm8k", "kind": "grade school",
        "messages": [{"role": "user", "content": fields["question"].strip()},
                     {"role": "assistant", "content": fields["answer"].strip()}],
        "gold": {"value": value, "unit": "count" if value.is_integer() else "none"},  # whole golds are matched exactly
        "group": f"gsm8k-{place.rsplit('/', 1)[-1]}",
    }  # fmt: skip
