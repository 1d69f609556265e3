"""One preset over a grid of settings, every cell with several seeds: which is best, and whether that may be luck."""

import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.grade import stats
from lib.pipeline import execute
from lib.run import disk, runs
from lib.run.paths import default_run, in_project, run_name_problems
from lib.run.presets import resolve
from lib.run.settings import Settings, SettingsError
from lib.run.stages import STAGES
from lib.run.untrusted import visible

LOSS, TEST, PERPLEXITY = "validation loss", "accuracy, test,", "perplexity"
# Where these vary, validation losses are over other tokens, or are other losses.
LOSS_BY = {"base_model", "chat_template", "max_length", "completion_only_loss", "trainer", "beta", "loss_type"}


def read_grid(pairs: Sequence[str]) -> dict[str, list[str]]:
    """`r=8,16` texts as {"r": ["8", "16"]}; of a setting that is a list itself, a whole text is one value."""
    wrong = [pair for pair in pairs if not pair.partition("=")[0].strip() or "=" not in pair]
    if wrong:
        raise SettingsError([f"--grid {pair!r}: must be KEY=VALUE,VALUE, as in --grid r=8,16" for pair in wrong])
    grid: dict[str, list[str]] = {}
    for name, _, text in (pair.partition("=") for pair in pairs):
        known = Settings.model_fields.get(name.strip())
        one_value = known and "tuple" in str(known.annotation)
        grid.setdefault(name.strip(), []).extend([text] if one_value else map(str.strip, text.split(",")))
    return grid


def plan(
    preset: str, grid: Mapping[str, Sequence[Any]], seeds: int, name: str, overrides: Mapping[str, Any], rehearse: bool
) -> list[dict[str, Any]]:
    """A row a run, {"run", "cell", "settings", "seed"}; SettingsError names all that is wrong in any of them.

    `settings` are the cell's own, as they were read; the seeds count up from the preset's (or from --set seed)."""
    problems = run_name_problems(name)
    problems += [f"{field} is in --set and in --grid: leave it out of one" for field in grid if field in overrides]
    problems += ["seed cannot be in --grid: --seeds says how many, --set seed=... the first"] * ("seed" in grid)
    problems += ["push_to_hub: all runs would go to one repository; `sharpen push` uploads one"] * (
        "push_to_hub" in {*grid, *overrides})
    grid = {field: values for field, values in grid.items() if field != "seed"}
    rows: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        wanted = {**overrides, **dict(zip(grid, values))}
        try:
            first = resolve(preset, wanted, rehearse).settings.seed
            for seed in range(first, first + seeds):
                settings = resolve(preset, wanted | {"seed": seed}, rehearse).settings
                own = {field: getattr(settings, field) for field in grid}
                cell = ", ".join(f"{field}={_word(value)}" for field, value in own.items()) or "the preset as it is"
                run = _run_name(name, own, seed)
                problems += [f"--grid: {cell} is a second run {run}: name each value once"] * (run in rows)
                rows[run] = {"run": run, "cell": cell, "settings": own, "seed": seed}
        except SettingsError as error:
            problems += error.problems
    problems += [f"run {run}: {len(run)} characters, 100 are the most: shorten --run" for run in rows if len(run) > 100]
    if problems:
        raise SettingsError(problems)
    return list(rows.values())


def run(preset: str, grid: Mapping[str, Sequence[Any]], seeds: int = 3, name: str | None = None,
        overrides: Mapping[str, Any] | None = None, rehearse: bool = False, outputs: str | Path | None = None,
        echo: Callable[[str], Any] = print) -> dict[str, Any]:  # fmt: skip
    """Make every run of the grid, write outputs/<name>/sweep.json after each and sweep.txt last; return the former.

    Each is an ordinary run: complete ones are skipped, a stopped one is gone on with, and each prepares its own data,
    which the same data_seed makes the same. One that fails is named under "failed", and the others go on.
    SettingsError before the first starts; RunError where the sweep's folder cannot be written, or is a run's."""
    name, overrides = name or f"{default_run(preset, rehearse)}-sweep", dict(overrides or {})
    rows = plan(preset, grid, seeds, name, overrides, rehearse)
    folder = Path(in_project(outputs or "outputs")).resolve() / name
    if any((folder / row.folder).exists() for row in STAGES.values()):
        raise runs.RunError(f"{folder} is a run: give the sweep another name by --run")
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    about = {"sweep": name, "preset": preset, "rehearse": rehearse, "overrides": overrides}
    disk.lock(folder, "sweep")
    try:
        for number, row in enumerate(rows, 1):
            echo(f"\nsweep {name}, run {number} of {len(rows)}: {row['cell']}, seed {row['seed']}")
            try:
                wanted = overrides | row["settings"] | {"seed": row["seed"]}
                summary = execute.run(preset, row["run"], wanted, rehearse, folder.parent, echo=echo)
                row |= measure(summary.run_folder)
            except (execute.StageFailed, runs.RunError, SettingsError) as error:
                row["error"] = str(error)
                echo(f"run {row['run']} failed; the sweep goes on")
            found = about | summarise(rows)
            disk.write_atomically(folder / "sweep.json", [json.dumps(found, indent=2, ensure_ascii=False) + "\n"])
        told = text(found)
        disk.write_atomically(folder / "sweep.txt", [told + "\n"])
    except KeyboardInterrupt:
        echo("the sweep goes on from there by the same `sharpen sweep`")
        raise
    finally:
        disk.unlock(folder, "sweep")
    echo(visible(f"\n{told}\n\n  {folder / 'sweep.txt'}"))
    return found


def measure(run_folder: Path) -> dict[str, Any]:
    """{"scores": {name: value}, "asked": what they were measured on} of a finished run's tuned model.

    The scores: loss on the validation rows (nats a token) where there are any, accuracies (shares), perplexity."""
    from lib.judge import answers, compare  # numpy: not before the settings are checked

    finished = compare.load(run_folder)
    data, evaluate = finished.manifests["prepare"], finished.manifests["evaluate"]
    losses = [line["eval_loss"] for line in finished.metrics if "eval_loss" in line]
    scores = {LOSS: losses[-1] if losses else None}
    for row in evaluate["metrics"]["accuracy"]:
        if row["model"] == "tuned":
            scores[f"accuracy, {row['split']}, {answers.calculator_text(row['calculator'])}"] = row["accuracy"]
    scores[PERPLEXITY] = finished.summary["perplexity"]["tuned"]["perplexity"]
    asked = {name: data["outputs"][name] for name in ("validation.jsonl", "test.jsonl")} | data["seeds"]
    asked |= {field: evaluate["settings"][field] for field in ("eval_rows", "calculator")}
    return {"scores": {name: score for name, score in scores.items() if score is not None}, "asked": asked}


def summarise(rows: Sequence[dict]) -> dict[str, Any]:
    """The runs as cells with mean and interval over the seeds, the best cell, and its lead over each neighbour: a cell
    that differs in one setting, in a number by one place.

    The best is chosen by the validation loss, as a choice by the test flatters itself; by the test only where no cell
    has that loss, or it is over other tokens. A cell with a failed seed is not chosen: less was asked of it."""
    cells: dict[str, dict] = {}
    for row in rows:
        cell = cells.setdefault(row["cell"], {"cell": row["cell"], "settings": row["settings"], "runs": []})
        cell["runs"].append({key: value for key, value in row.items() if key not in ("cell", "settings")})
    for cell in cells.values():
        done = [run["scores"] for run in cell["runs"] if "scores" in run]
        names = [name for name in (done[0] if done else ()) if all(name in scores for scores in done)]
        cell["scores"] = {name: _over_seeds([scores[name] for scores in done]) for name in names}
    asked = [row["asked"] for row in rows if "asked" in row]
    found = {
        "seeds": list(dict.fromkeys(row["seed"] for row in rows)), "cells": list(cells.values()),
        "asked_alike": all(other == asked[0] for other in asked), "data_seed": asked[0]["data_seed"] if asked else None,
        "failed": {row["run"]: row["error"] for row in rows if "error" in row},
    }  # fmt: skip
    whole = [cell for cell in cells.values() if all("scores" in run for run in cell["runs"])]
    by = [name for cell in whole for name in cell["scores"] if name.startswith(TEST)] or [PERPLEXITY]
    if any(LOSS in cell["scores"] for cell in whole) and not LOSS_BY & rows[0]["settings"].keys():
        by = [LOSS]
    whole = [cell for cell in whole if by[0] in cell["scores"]]
    if not whole:
        return found | {"chosen_by": None, "best": None, "neighbours": []}
    best = (min if by[0] in (LOSS, PERPLEXITY) else max)(whole, key=lambda cell: cell["scores"][by[0]]["mean"])
    beside = [cell for cell in whole if _are_neighbours(best["settings"], cell["settings"], cells.values())]
    leads = [
        {"cell": cell["cell"], "lead": {
            name: _over_seeds([ours["scores"][name] - theirs["scores"][name]
                               for ours, theirs in zip(best["runs"], cell["runs"], strict=True)])
            for name in best["scores"] if name in cell["scores"]
        }}
        for cell in beside
    ]  # fmt: skip
    return found | {"chosen_by": by[0], "best": best["cell"], "neighbours": leads}


def text(found: Mapping[str, Any]) -> str:
    """A sweep for readers: the cells as a table, the best one beside its neighbours, and what failed."""
    cells, by = {cell["cell"]: cell for cell in found["cells"]}, found["chosen_by"]
    scores = list(dict.fromkeys(name for cell in cells.values() for name in cell["scores"]))
    shown = [name for name in scores if name == LOSS]
    shown += [name for name in scores if name.startswith(TEST)][:1] or [PERPLEXITY]
    rows = [["cell", "seeds", *shown]]
    for cell in cells.values():
        done = sum("scores" in run for run in cell["runs"])
        rows.append([cell["cell"], f"{done} of {len(cell['runs'])}",
                     *(_interval(name, cell["scores"].get(name)) for name in shown)])  # fmt: skip
    lines = ["REHEARSAL: a walk through the whole path; its figures are no result"] * found["rehearse"]
    lines += [f"sweep {found['sweep']} of preset {found['preset']}, seeds {', '.join(map(str, found['seeds']))}", ""]
    lines += [*_table(rows), ""]
    lines += ["mean [95 % over the seeds, Student's t]: the luck of the training, not of the questions"]
    if not found["asked_alike"]:
        lines += ["CAREFUL: the cells were asked different questions, or in other ways: that may set them apart"]
    elif scores:
        lines += [f"all cells have the same data_seed, {found['data_seed']}, and so were asked the same questions"]
    if by and len(cells) > 1:
        best, rows = cells[found["best"]], [["ahead of", "by seed", *shown, ""]]
        for beside in found["neighbours"]:
            lead = beside["lead"]
            luck = lead[by]["low"] is None or lead[by]["low"] <= 0 <= lead[by]["high"]
            rows.append([beside["cell"], _by_seed(by, cells[beside["cell"]]),
                         *(_interval(name, lead.get(name), "+") for name in shown),
                         "may be the seeds' luck" if luck else "more than the seeds' luck"])  # fmt: skip
        lines += ["", f"best by {by}: {best['cell']} (by seed: {_by_seed(by, best)})"]
        lines += _edges(best["settings"], cells.values())
        if by != LOSS:
            lines += ["chosen by the test, which flatters it: ask it new questions before you trust its score"]
        if found["neighbours"]:
            pair = [cells[name]["runs"][0]["run"] for name in (best["cell"], found["neighbours"][0]["cell"])]
            lines += ["", *_table(rows), "", f"question by question: {shlex.join(['sharpen', 'compare', *pair])}"]
    lines += [f"FAILED {run}: " + error.partition("\n")[0] for run, error in found["failed"].items()]
    return "\n".join(lines)


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _run_name(sweep: str, settings: Mapping[str, Any], seed: int) -> str:
    """A run is named by its cell, not by its place: a grid that grows keeps the runs that it has."""
    words = [sweep, *(f"{field}-{_word(value)}" for field, value in settings.items()), f"seed-{seed}"]
    return re.sub(r"\.\.+|[^A-Za-z0-9._-]+", "-", "-".join(words))


def _over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """{"mean", "low", "high"}; one seed has no interval."""
    if len(values) < 2:
        return {"mean": values[0], "low": None, "high": None}
    interval = stats.over_seeds(values)
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def _places(field: str, cells: Iterable[dict]) -> list:
    """The values of a setting that is a number, in order; empty for any other."""
    values = {cell["settings"][field] for cell in cells}
    return sorted(values) if all(type(value) in (int, float) for value in values) else []


def _are_neighbours(one: Mapping[str, Any], other: Mapping[str, Any], cells: Iterable[dict]) -> bool:
    differing = [field for field in one if one[field] != other[field]]
    if len(differing) != 1:
        return False
    places = _places(differing[0], cells)
    return not places or abs(places.index(one[differing[0]]) - places.index(other[differing[0]])) == 1


def _edges(best: Mapping[str, Any], cells: Iterable[dict]) -> list[str]:
    """Where the best lies at an end of what was tried, so that it has a neighbour on one side only."""
    lines = []
    for field, value in best.items():
        places = _places(field, cells)
        if len(places) > 1 and value in (places[0], places[-1]):
            most, more = ("smallest", "smaller") if value == places[0] else ("largest", "larger")
            lines.append(f"{field}={_word(value)} is the {most} that was tried: a {more} one may be better still")
    return lines


def _figure(name: str, value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if name.startswith("accuracy") else f"{value:{sign}.4f}"


def _interval(name: str, score: Mapping[str, Any] | None, sign: str = "") -> str:
    if score is None:
        return "-"
    unit = (" points" if sign else " %") * name.startswith("accuracy")
    mean = _figure(name, score["mean"], sign) + unit
    limits = [_figure(name, limit, sign) for limit in (score["low"], score["high"]) if limit is not None]
    return f"{mean} [{', '.join(limits)}]" if limits else mean


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]


def _by_seed(name: str, cell: Mapping[str, Any]) -> str:
    return ", ".join(_figure(name, run["scores"][name]) for run in cell["runs"])
