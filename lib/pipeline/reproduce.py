"""A finished run made again from its manifests alone, and its figures and files compared."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lib.pipeline import execute
from lib.run import disk, packages, runs
from lib.run.paths import ROOT, in_project
from lib.run.stages import IN_EVERY_RUN, ON_REQUEST, STAGES
from lib.run.untrusted import visible

# No results: time and memory, the runs' names, interruptions, and texts that repeat the figures.
NO_FIGURE = re.compile(r"seconds|per_second|runtime|memory|peak|^(headline|runs|resumed_from|restarts)\b")
# Files that hold times, or the run's name
NO_RESULT = re.compile(r"(metrics\.jsonl|comparison\.json|\.png|^export/summary\.json|^export/README\.md)$")
CAUSES = ("versions", "git", "code", "notebook", "device", "settings", "resumed")
ABSENT, VERDICT = "(absent)", {True: "equal  ", False: "DIFFERS"}
MOST = 40  # lines that are printed of one file's figures, or of what differs around them


def reproduce(run_name: str, outputs: str | Path | None = None, echo: Callable = print) -> dict:
    """Make `run_name` again as `<run_name>-reproduced`; what `compare` says is its reproduction.json, too.

    The settings are the manifests', seeds included, whatever the preset says now. It goes on with what an
    earlier reproduction left. RunError where the run is not finished, or its files or inputs are others
    now; SettingsError where there is no such preset or setting any more."""
    outputs = Path(in_project(outputs or "outputs")).resolve()
    first, again = (runs.run_folder_of(outputs, name) for name in (run_name, f"{run_name}-reproduced"))
    manifests = finished(first)
    settings = {}
    stages = [stage for stage in manifests if stage not in ON_REQUEST]
    for stage in stages:
        settings |= runs.made_with(manifests[stage])
    preset, rehearse = manifests["prepare"]["preset"], manifests["prepare"]["rehearse"]
    execute.run(preset, again.name, settings, rehearse, outputs, stages=stages, echo=echo)
    for stage in ON_REQUEST:  # apart: they may ask fewer questions than the evaluation did, or otherwise
        if stage in manifests:
            own = settings | runs.made_with(manifests[stage])
            execute.run(preset, again.name, own, rehearse, outputs, stages=[stage], echo=echo)
    found = compare(first, again, manifests)
    disk.write_atomically(again / "reproduction.json", [disk.to_json(found, indent=2) + "\n"])
    echo(visible(f"\n{text(found)}\n\n  {again / 'reproduction.json'}"))
    return found


def finished(run_folder: Path) -> dict[str, dict]:
    """The manifests of a run's complete stages; RunError names all that forbids a reproduction."""
    manifests, problems = {}, ""
    for stage in (*IN_EVERY_RUN, *ON_REQUEST):
        if stage in ("prepare", "train", "evaluate") or runs.is_complete(run_folder, stage):
            manifests[stage] = runs.read(run_folder, stage)
    for stage in manifests:
        row = STAGES[stage]
        for problem in _problems(run_folder, stage, manifests):
            problems += f"\n  {row.folder}: {problem} ({row.notebook})"
    if problems:
        raise runs.RunError(f"run {run_folder.name!r} is not what its manifests say and cannot be reproduced:"
                            f"{problems}\nbring the files back, or run these notebooks again")  # fmt: skip
    return manifests


def _problems(run_folder: Path, stage: str, manifests: dict[str, dict]) -> Iterator[str]:
    """In what a stage is not what its manifest says, or does not belong to the others."""
    manifest, first = manifests[stage], manifests["prepare"]
    for change in runs.changes(run_folder, stage):
        if not change.endswith(" is missing"):  # its hash will do
            yield change
    if (manifest["preset"], manifest["rehearse"]) != (first["preset"], first["rehearse"]):
        yield f"is of preset {manifest['preset']}, not of {first['preset']} in the same way"
    stage_of = {row.folder: name for name, row in STAGES.items()}
    for key, recorded in manifest["inputs"].items():
        folder = run_folder / key
        made_by = stage_of.get(folder.name)
        if made_by is None or runs.read(folder.parent, made_by)["outputs"] != recorded:
            yield f"was made from other files than are in {key} now"
    for key, recorded in manifest["external"].items():
        if key.startswith("lib/"):
            continue  # code, which may change: early runs noted their workers' here
        if (pinned := packages.hashes(key)) and pinned != recorded:
            yield f"was made from another version of {key}"
        if pinned:
            continue
        place = ROOT / key
        for name, hash_then in runs.without_card(recorded).items():
            path = place / name if place.is_dir() else place
            if not path.is_file():
                yield f"was made from {path}, which is missing"
            elif disk.sha256(path) != hash_then:
                yield f"was made from {path}, which was changed"


def compare(first: Path, again: Path, stages: Iterable[str]) -> dict:
    """Two runs: {"equal": are all figures?, "figures", "files", "causes": what differs around them, ...}.

    Each is a list of {"in", "name", "first", "again", "equal"}; floats are equal where every digit is.
    "left_out" are complete stages that were not made again."""
    figures, files, causes = [], [], []
    for stage in stages:
        folder = STAGES[stage].folder
        then, now = runs.read(first, stage), runs.read(again, stage)
        tables, tables_now = _tables(first / folder, then), _tables(again / folder, now)
        for name in tables | tables_now:
            figures += _rows(f"{folder}/{name}", tables.get(name, {}), tables_now.get(name, {}))
        files += _rows(folder, then["outputs"], now["outputs"])
        for cause in CAUSES:
            causes += _rows(folder, {cause: then.get(cause)}, {cause: now.get(cause)})
    figures = [row for row in figures if not NO_FIGURE.search(row["name"]) and not _is_newer(row)]
    return {
        "first": first.name, "again": again.name, "rehearse": then["rehearse"],
        "equal": all(row["equal"] for row in figures), "figures": figures, "files": files,
        "causes": [row for row in causes if not row["equal"]],
        "left_out": [stage for stage in STAGES if stage not in stages and runs.is_complete(first, stage)],
    }  # fmt: skip


def _is_newer(row: dict) -> bool:
    """A count of marks, which runs before December 2026 have not."""
    return row["first"] == ABSENT and bool(re.search(r"(^|\.)marks\.", row["name"]))


def text(found: dict) -> str:
    """A comparison for readers: each metric and file as equal or not, then what may be the cause."""
    figures, files = found["figures"], found["files"]
    lines = [f"{found['again']} against {found['first']}"]
    if found["rehearse"]:
        lines.insert(0, execute.REHEARSAL)
    for place, group in groupby(figures, key=itemgetter("in")):
        rows = list(group)
        lines.append(f"figures in {place}: {_count(rows)} are equal")
        if not place.endswith("manifest.json"):
            rows = [row for row in rows if not row["equal"]]
        lines += _at_most([f"  {VERDICT[row['equal']]}  {row['name']}: {_change(row)}" for row in rows])
    lines.append(f"files: {_count(files)} are equal")
    lines += [f"  {VERDICT[row['equal']]}  {row['in']}/{row['name']}" for row in files]
    differing = [f"{row['in']}/{row['name']}" for row in files if not row["equal"]]
    results = [name for name in differing if not NO_RESULT.search(name)]
    if differing != results:
        lines.append("  (expected of metrics.jsonl, comparison.json and pictures: they hold times, or the run's name)")
    if found["left_out"]:
        lines.append(f"not made again: {', '.join(found['left_out'])}")
    causes = {}
    for row in found["causes"]:
        causes.setdefault(f"{row['name']}: {_change(row)}", []).append(row["in"])
    if causes:
        lines.append("around them differ:")
        lines += _at_most([f"  {cause} ({', '.join(places)})" for cause, places in causes.items()])
    if not found["equal"]:
        why = "nothing recorded differs: sums in another order, as threads make"
        if causes:
            why = "possible causes are above"
        wrong = sum(not row["equal"] for row in figures)
        lines.append(f"NOT REPRODUCED: {wrong} of {len(figures)} figures differ; {why}")
    elif results:
        lines.append(f"REPRODUCED: all {len(figures)} figures are equal, but not the bytes of {', '.join(results)}")
    else:
        lines.append(f"REPRODUCED: all {len(figures)} figures are equal")
    return "\n".join(lines)


def _count(rows: list[dict]) -> str:
    return f"{sum(row['equal'] for row in rows)} of {len(rows)}"


def _at_most(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    if len(lines) <= MOST:
        return lines
    return [*lines[:MOST], f"  and {len(lines) - MOST} more in reproduction.json"]


def _tables(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's figures by the file that holds them."""
    metrics, curves = dict(manifest.get("metrics") or {}), {}
    if isinstance(metrics.get("accuracy"), dict):
        metrics["accuracy"] = _accuracy_records(metrics["accuracy"])
    tables = {"manifest.json": metrics}
    if (folder / "summary.json").exists():
        tables["summary.json"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for line in map(json.loads, disk.whole_lines(folder / "metrics.jsonl")):
        curves.setdefault(f"step {line['step']}", {}).update(line)
    return tables | ({"metrics.jsonl": curves} if curves else {})


def _accuracy_records(accuracy: dict[str, float]) -> list[dict]:
    """`{"tuned, test, calculator on": 0.5}`, as runs made until November 2026 have it, as the records of today."""
    records = []
    for way, share in accuracy.items():
        model, split, calculator = (way.split(", ") + ["", ""])[:3]
        records.append({"model": model, "split": split, "calculator": calculator == "calculator on", "accuracy": share})
    return records


def _flat(value: Any, name: str = "") -> dict:
    """{"a": {"b": [1]}} as {"a.b.0": 1}."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    flat = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{name}.{key}".lstrip("."))
    return flat


def _rows(place: str, then: Any, now: Any) -> list[dict]:
    """A row for each value that one of them has, however deep in it."""
    then, now, rows = _flat(then), _flat(now), []
    for name in then | now:
        first, again = then.get(name, ABSENT), now.get(name, ABSENT)
        rows.append({"in": place, "name": name, "first": first, "again": again, "equal": first == again})
    return rows


def _change(row: dict) -> str:
    """`0.62`, or `0.62 -> 0.61`; of a hash, its first digits."""
    values = [re.sub(r"^([0-9a-f]{8})[0-9a-f]{32,}$", r"\1", str(row[key])) for key in ("first", "again")]
    return values[0] if row["equal"] else " -> ".join(values)
