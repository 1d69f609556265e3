"""A finished run made again from its manifests alone, and every figure and file of it held against the first ones."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from lib.pipeline import execute
from lib.run import disk, runs
from lib.run.paths import ROOT, in_project
from lib.run.stages import IN_EVERY_RUN, STAGES
from lib.run.untrusted import visible

# No results: time and memory, the runs' names, whether a stage was interrupted, and texts that repeat the figures.
NO_FIGURE = re.compile(r"seconds|per_second|runtime|memory|peak|^(headline|runs|resumed_from|restarts)\b")
# Files that hold times, or the run's name
NO_RESULT = re.compile(r"(metrics\.jsonl|comparison\.json|\.png|^export/summary\.json|^export/README\.md)$")
CAUSES = ("versions", "git", "code", "notebook", "device", "settings", "resumed")
ABSENT = "(absent)"
MOST = 40  # lines that are printed of one file's figures, or of what differs around them


def reproduce(run_name: str, outputs: str | Path | None = None, echo: Callable[[str], Any] = print) -> dict[str, Any]:
    """Make `run_name` again as `<run_name>-reproduced`, hold both against each other, write reproduction.json there.

    The settings are the manifests', seeds included, whatever the preset says now. What an earlier reproduction left is
    gone on with. Returns what `compare` does. RunError where the run is not finished or its files, or those that it was
    made from, are others now; SettingsError where there is no such preset or setting any more."""
    outputs = Path(in_project(outputs or "outputs")).resolve()
    first, again = (runs.run_folder_of(outputs, name) for name in (run_name, f"{run_name}-reproduced"))
    manifests = finished(first)
    preset, rehearse = (manifests["prepare"][key] for key in ("preset", "rehearse"))
    export, others = (["export"] if "export" in manifests else []), [name for name in manifests if name != "export"]
    settings: dict[str, Any] = {}
    for stages in filter(None, (others, export)):  # apart: an export may ask fewer questions than the evaluation did
        for stage in stages:
            settings = settings | runs.made_with(manifests[stage])
        execute.run(preset, again.name, settings, rehearse, outputs, stages=stages, echo=echo)
    found = compare(first, again, manifests)
    disk.write_atomically(again / "reproduction.json", [json.dumps(found, indent=2, ensure_ascii=False) + "\n"])
    echo(visible(f"\n{text(found)}\n\n  {again / 'reproduction.json'}"))
    return found


def finished(run_folder: Path) -> dict[str, dict]:
    """The manifests of a run's complete stages, in order; RunError names all that keeps it from being reproduced."""
    manifests = {stage: runs.read(run_folder, stage) for stage in (*IN_EVERY_RUN, "export")
                 if stage in ("prepare", "train", "evaluate") or runs.is_complete(run_folder, stage)}  # fmt: skip
    first, stage_of = manifests["prepare"], {row.folder: stage for stage, row in STAGES.items()}
    problems = []
    for stage, manifest in manifests.items():
        found = [text for text in runs.changes(run_folder, stage) if not text.endswith(" is missing")]  # hashes suffice
        if [manifest["preset"], manifest["rehearse"]] != [first["preset"], first["rehearse"]]:
            found.append(f"is of preset {manifest['preset']}, not of {first['preset']} in the same way")
        for key, recorded in manifest["inputs"].items():
            folder = run_folder / key
            if folder.name not in stage_of or runs.read(folder.parent, stage_of[folder.name])["outputs"] != recorded:
                found.append(f"was made from other files than are in {key} now")
        for key, recorded in manifest["external"].items():
            if key.startswith("lib/"):
                continue  # code, which may change: early runs noted their workers' here
            for name, then in runs.without_card(recorded).items():
                path = ROOT / key / name if (ROOT / key).is_dir() else ROOT / key
                if not path.is_file() or disk.sha256(path) != then:
                    found.append(f"was made from {path}, which {'was changed' if path.is_file() else 'is missing'}")
        problems += [f"\n  {STAGES[stage].folder}: {problem} ({STAGES[stage].notebook})" for problem in found]
    if problems:
        raise runs.RunError(f"run {run_folder.name!r} is not what its manifests say and cannot be reproduced:"
                            f"{''.join(problems)}\nbring the files back, or run these notebooks again")  # fmt: skip
    return manifests


def compare(first: Path, again: Path, stages: Iterable[str]) -> dict[str, Any]:
    """Two runs: {"equal": are all figures?, "figures", "files", "causes": what differs around them}, each of these a
    list of {"in", "name", "first", "again", "equal"}; "left_out" are complete stages that were not made again. Floats
    are equal where every digit is."""
    figures, files, causes = [], [], []
    for stage in stages:
        folder = STAGES[stage].folder
        then, now = (runs.read(run_folder, stage) for run_folder in (first, again))
        tables = [_tables(run_folder / folder, manifest) for run_folder, manifest in ((first, then), (again, now))]
        for name in tables[0] | tables[1]:
            figures += _rows(f"{folder}/{name}", *(_flat(table.get(name, {})) for table in tables))
        files += _rows(folder, then["outputs"], now["outputs"])
        causes += _rows(folder, *(_flat({key: manifest.get(key) for key in CAUSES}) for manifest in (then, now)))
    figures = [row for row in figures if not NO_FIGURE.search(row["name"])]
    return {
        "first": first.name, "again": again.name, "rehearse": then["rehearse"],
        "equal": all(row["equal"] for row in figures), "figures": figures, "files": files,
        "causes": [row for row in causes if not row["equal"]],
        "left_out": [stage for stage in STAGES if stage not in stages and runs.is_complete(first, stage)],
    }  # fmt: skip


def text(found: Mapping[str, Any]) -> str:
    """A comparison for readers: every metric and file as equal or not, then what may have made the difference."""
    lines = ["REHEARSAL: a walk through the whole path; its figures are no result"] * found["rehearse"]
    lines += [f"{found['again']} against {found['first']}"]
    for place, group in groupby(found["figures"], key=lambda row: row["in"]):
        rows = list(group)
        lines += [f"figures in {place}: {sum(row['equal'] for row in rows)} of {len(rows)} are equal"]
        shown = [row for row in rows if place.endswith("manifest.json") or not row["equal"]]
        lines += [f"  {_verdict(row)}  {row['name']}: {_change(row)}" for row in shown[:MOST]]
        lines += [f"  and {len(shown) - MOST} more in reproduction.json"] * (len(shown) > MOST)
    lines += [f"files: {sum(row['equal'] for row in found['files'])} of {len(found['files'])} are equal"]
    lines += [f"  {_verdict(row)}  {row['in']}/{row['name']}" for row in found["files"]]
    differ = [f"{row['in']}/{row['name']}" for row in found["files"] if not row["equal"]]
    others = [name for name in differ if not NO_RESULT.search(name)]
    if differ != others:
        lines += ["  (expected of metrics.jsonl, comparison.json and pictures: they hold times, or the run's name)"]
    if found["left_out"]:
        lines += [f"not made again: {', '.join(found['left_out'])}"]
    causes: dict[str, list[str]] = {}
    for row in found["causes"]:
        causes.setdefault(f"{row['name']}: {_change(row)}", []).append(row["in"])
    lines += ["around them differ:"] * bool(causes)
    lines += [f"  {cause} ({', '.join(places)})" for cause, places in list(causes.items())[:MOST]]
    lines += [f"  and {len(causes) - MOST} more in reproduction.json"] * (len(causes) > MOST)
    wrong = sum(not row["equal"] for row in found["figures"])
    if not wrong:
        files = f", but not the bytes of {', '.join(others)}" if others else ""
        return "\n".join([*lines, f"REPRODUCED: all {len(found['figures'])} figures are equal{files}"])
    why = "possible causes are above" if causes else "nothing recorded differs: sums in another order, as threads make"
    return "\n".join([*lines, f"NOT REPRODUCED: {wrong} of {len(found['figures'])} figures differ; {why}"])


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


def _accuracy_records(accuracy: Mapping[str, float]) -> list[dict[str, Any]]:
    """`{"tuned, test, calculator on": 0.5}`, as runs made until November 2026 have it, as the records of today."""
    records = []
    for way, share in accuracy.items():
        model, split, calculator = way.split(", ")
        records.append({"model": model, "split": split, "calculator": calculator == "calculator on", "accuracy": share})
    return records


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": [1]}} as {"a.b.0": 1}."""
    if not isinstance(value, dict | list):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found |= _flat(inner, f"{name}.{key}".lstrip("."))
    return found


def _rows(place: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    pairs = {name: (then.get(name, ABSENT), now.get(name, ABSENT)) for name in {**then, **now}}
    return [{"in": place, "name": name, "first": a, "again": b, "equal": a == b} for name, (a, b) in pairs.items()]


def _verdict(row: Mapping[str, Any]) -> str:
    return "equal  " if row["equal"] else "DIFFERS"


def _change(row: Mapping[str, Any]) -> str:
    """`0.62`, or `0.62 -> 0.61`; of a hash, its first digits."""
    values = [re.sub(r"^([0-9a-f]{8})[0-9a-f]{32,}$", r"\1", str(row[key])) for key in ("first", "again")]
    return values[0] if row["equal"] else " -> ".join(values)
