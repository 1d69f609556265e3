"""One preset over a grid of settings, each cell with several seeds: what is best, and may it be luck?"""

import itertools
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib.grade import stats
from lib.pipeline import execute
from lib.run import disk, runs
from lib.run.paths import default_run, in_project, run_name_problems
from lib.run.presets import resolve
from lib.run.settings import FIELDS, SettingsError, flat, full_name
from lib.run.stages import STAGES
from lib.run.untrusted import visible

LOSS, TEST, PERPLEXITY = "validation loss", "accuracy, test,", "perplexity"
# Where these vary, validation losses are over other tokens, or are other losses.
LOSS_BY = {"base_model", "chat_template", "max_length", "completion_only_loss", "trainer", "dpo.beta", "dpo.loss_type"}


def read_grid(pairs: list[str]) -> dict[str, list[str]]:
    """`r=8,16` texts as {"r": ["8", "16"]}; of a setting that is a list itself, a whole text is one value."""
    grid = {}
    problems = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name, values = full_name(name.strip()), [value.strip() for value in text.split(",")]
        if not (name and equals):
            problems.append(f"--grid {pair!r}: must be KEY=VALUE,VALUE, as in --grid r=8,16")
        if name in FIELDS and "tuple" in str(FIELDS[name].annotation):
            values = [text]
        grid.setdefault(name, []).extend(values)
    if problems:
        raise SettingsError(problems)
    return grid


def plan(preset: str, grid: dict[str, list], seeds: int, name: str, overrides: dict,
         rehearse: bool) -> list[dict]:  # fmt: skip
    """A row a run, {"run", "cell", "settings", "seed"}; SettingsError names all that is wrong in any of them.

    `settings` are the cell's own, as they were read; the seeds count up from the preset's (or from --set seed)."""
    problems = run_name_problems(name)
    problems += [f"{field} is in --set and in --grid: leave it out of one" for field in grid if field in overrides]
    if "seed" in grid:
        problems.append("seed cannot be in --grid: --seeds says how many, --set seed=... the first")
    if "push_to_hub" in grid or "push_to_hub" in overrides:
        problems.append("push_to_hub: all runs would go to one repository; `sharpen push` uploads one")
    grid = {field: values for field, values in grid.items() if field != "seed"}
    rows = {}
    for values in itertools.product(*grid.values()):
        wanted = {**overrides, **dict(zip(grid, values))}
        try:
            settings = resolve(preset, wanted, rehearse).settings
            own_seeds = range(settings.seed, settings.seed + seeds)
            resolve(preset, wanted | {"seed": own_seeds[-1]}, rehearse)
        except SettingsError as error:
            problems += error.problems
            continue
        values = flat(settings)
        own = {field: values[full_name(field)] for field in grid}
        words = [f"{field}={_word(value)}" for field, value in own.items()]
        cell = ", ".join(words) or "the preset as it is"
        for seed in own_seeds:
            run = _run_name(name, own, seed)
            if run in rows:
                problems.append(f"--grid: {cell} is a second run {run}: name each value once")
            if len(run) > 100:
                problems.append(f"run {run}: {len(run)} characters, 100 are the most: shorten --run")
            rows[run] = {"run": run, "cell": cell, "settings": own, "seed": seed}
    if problems:
        raise SettingsError(problems)
    return list(rows.values())


def run(preset: str, grid: dict[str, list], seeds: int = 3, name: str | None = None,
        overrides: dict | None = None, rehearse: bool = False, outputs: str | Path | None = None,
        echo: Callable = print) -> dict:  # fmt: skip
    """Make every run of the grid, write outputs/<name>/sweep.json after each and sweep.txt last.

    Returns what sweep.json holds. Complete runs are skipped, a stopped one is gone on with, and each prepares its
    own data, which the same data_seed makes the same. Where one fails, "failed" names it and the others go on.
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
            disk.write_atomically(folder / "sweep.json", [disk.to_json(found, indent=2) + "\n"])
        disk.write_atomically(folder / "sweep.txt", [text(found) + "\n"])
    except KeyboardInterrupt:
        echo("the sweep goes on from there by the same `sharpen sweep`")
        raise
    finally:
        disk.unlock(folder, "sweep")
    echo(visible(f"\n{text(found)}\n\n  {folder / 'sweep.txt'}"))
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


def summarise(rows: list[dict]) -> dict:
    """The runs as cells with mean and interval over the seeds, the best cell, and its lead over each
    neighbour: a cell that differs in one setting, in a number by one place.

    The validation loss chooses the best, as a choice by the test flatters itself; the test only where no cell
    has that loss, or it is over other tokens. A cell with a failed seed is not chosen."""
    cells = _cells(rows)
    asked = [row["asked"] for row in rows if "asked" in row]
    found = {
        "seeds": list(dict.fromkeys(row["seed"] for row in rows)), "cells": cells,
        "asked_alike": all(other == asked[0] for other in asked),
        "data_seed": asked[0]["data_seed"] if asked else None,
        "failed": {row["run"]: row["error"] for row in rows if "error" in row},
        "chosen_by": None, "best": None, "neighbours": [],
    }  # fmt: skip
    whole = [cell for cell in cells if len(_scores(cell)) == len(cell["runs"])]
    by = _chosen_by(whole, rows[0]["settings"])
    whole = [cell for cell in whole if by in cell["scores"]]
    if not whole:
        return found
    best, *_ = sorted(whole, key=lambda cell: cell["scores"][by]["mean"], reverse=by.startswith(TEST))
    beside = [cell for cell in whole if _are_neighbours(best["settings"], cell["settings"], cells)]
    leads = [{"cell": cell["cell"], "lead": _lead(best, cell)} for cell in beside]
    return found | {"chosen_by": by, "best": best["cell"], "neighbours": leads}


def _scores(cell: dict) -> list[dict]:
    """The scores of the runs that have some; others failed, or are still to come."""
    return [run["scores"] for run in cell["runs"] if "scores" in run]


def _cells(rows: list[dict]) -> list[dict]:
    """The runs by their cell, with the scores that all of its runs have."""
    cells = {}
    for row in rows:
        cell = cells.setdefault(row["cell"], {"cell": row["cell"], "settings": row["settings"], "runs": []})
        cell["runs"].append({key: value for key, value in row.items() if key not in ("cell", "settings")})
    for cell in cells.values():
        cell["scores"] = _over_seeds(_scores(cell))
    return list(cells.values())


def _chosen_by(cells: list[dict], fields: dict) -> str:
    """The score that chooses the best of these cells, which differ in `fields`."""
    names = _names(cells)
    if LOSS in names and not LOSS_BY & fields.keys():
        return LOSS
    return _of_the_test(names)


def _names(cells: Iterable[dict]) -> list[str]:
    """The scores that any of these cells has."""
    return list(dict.fromkeys(name for cell in cells for name in cell["scores"]))


def _of_the_test(names: list[str]) -> str:
    return next((name for name in names if name.startswith(TEST)), PERPLEXITY)


def _lead(best: dict, other: dict) -> dict[str, dict]:
    """By how much a cell is above another, seed by seed."""
    seeds = []
    for ours, theirs in zip(_scores(best), _scores(other), strict=True):
        seeds.append({name: ours[name] - theirs[name] for name in ours if name in theirs})
    return _over_seeds(seeds)


def text(found: dict) -> str:
    """A sweep for readers: the cells as a table, the best beside its neighbours, what failed."""
    cells, best = {cell["cell"]: cell for cell in found["cells"]}, found["best"]
    names = _names(cells.values())
    shown = [_of_the_test(names)]
    if LOSS in names:
        shown.insert(0, LOSS)
    rows = [["cell", "seeds", *shown]]
    for cell in cells.values():
        intervals = [_interval(name, cell["scores"].get(name)) for name in shown]
        rows.append([cell["cell"], f"{len(_scores(cell))} of {len(cell['runs'])}", *intervals])
    lines = [
        f"sweep {found['sweep']} of preset {found['preset']}, seeds {', '.join(map(str, found['seeds']))}", "",
        *execute.columns(rows), "",
        "mean [95 % over the seeds, Student's t]: the luck of the training, not of the questions",
    ]  # fmt: skip
    if found["rehearse"]:
        lines.insert(0, execute.REHEARSAL)
    if not found["asked_alike"]:
        lines.append("CAREFUL: the cells were asked different questions, or in other ways: that may set them apart")
    elif names:
        lines.append(f"all cells have the same data_seed, {found['data_seed']}, and so were asked the same questions")
    if best and len(cells) > 1:
        lines += _beside_its_neighbours(found, cells, shown)
    for run, error in found["failed"].items():
        lines.append(f"FAILED {run}: " + error.partition("\n")[0])
    return "\n".join(lines)


def _beside_its_neighbours(found: dict, cells: dict[str, dict], shown: list[str]) -> list[str]:
    """The best cell, and by how much it is ahead of each neighbour."""
    by, best = found["chosen_by"], cells[found["best"]]
    lines = ["", f"best by {by}: {best['cell']} (by seed: {_by_seed(by, best)})"]
    lines += _edges(best["settings"], cells.values())
    if by != LOSS:
        lines.append("chosen by the test, which flatters it: ask it new questions before you trust its score")
    if not found["neighbours"]:
        return lines
    rows = [["ahead of", "by seed", *shown, ""]]
    for neighbour in found["neighbours"]:
        cell, lead = cells[neighbour["cell"]], neighbour["lead"]
        verdict, low = "more than the seeds' luck", lead[by]["low"]
        if low is None or low <= 0 <= lead[by]["high"]:
            verdict = "may be the seeds' luck"
        intervals = [_interval(name, lead.get(name), "+") for name in shown]
        rows.append([cell["cell"], _by_seed(by, cell), *intervals, verdict])
    first = cells[found["neighbours"][0]["cell"]]
    words = ["sharpen", "compare", best["runs"][0]["run"], first["runs"][0]["run"]]
    return [*lines, "", *execute.columns(rows), "", f"question by question: {shlex.join(words)}"]


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _run_name(sweep: str, settings: dict, seed: int) -> str:
    """A run is named by its cell, not by its place: a grid that grows keeps its runs."""
    words = [sweep, *(f"{field}-{_word(value)}" for field, value in settings.items()), f"seed-{seed}"]
    return re.sub(r"\.\.+|[^A-Za-z0-9._-]+", "-", "-".join(words))


def _over_seeds(seeds: list[dict]) -> dict[str, dict]:
    """{score that all seeds have: {"mean", "low", "high"}}; one seed has no interval."""
    scores = {}
    for name in dict.fromkeys(name for seed in seeds for name in seed):
        values = [seed[name] for seed in seeds if name in seed]
        if len(values) < len(seeds):
            continue
        scores[name] = {"mean": values[0], "low": None, "high": None}
        if len(values) > 1:
            interval = stats.over_seeds(values)
            scores[name] = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
    return scores


def _places(field: str, cells: Iterable[dict]) -> list:
    """The values of a setting that is a number, in order; empty for any other."""
    values = {cell["settings"][field] for cell in cells}
    return sorted(values) if all(type(value) in (int, float) for value in values) else []


def _are_neighbours(one: dict, other: dict, cells: list[dict]) -> bool:
    differing = [field for field in one if one[field] != other[field]]
    if len(differing) != 1:
        return False
    (field,) = differing
    places = _places(field, cells)
    return not places or abs(places.index(one[field]) - places.index(other[field])) == 1


def _edges(best: dict, cells: Iterable[dict]) -> list[str]:
    """Where the best lies at an end of what was tried."""
    lines = []
    for field, value in best.items():
        places = _places(field, cells)
        if len(places) > 1 and value in (places[0], places[-1]):
            most, more = "largest", "larger"
            if value == places[0]:
                most, more = "smallest", "smaller"
            lines.append(f"{field}={_word(value)} is the {most} that was tried: a {more} one may be better still")
    return lines


def _figure(name: str, value: float, sign: str = "") -> str:
    if name.startswith("accuracy"):
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.4f}"


def _interval(name: str, score: dict | None, sign: str = "") -> str:
    if score is None:
        return "-"
    text = _figure(name, score["mean"], sign)
    if name.startswith("accuracy"):
        text += " points" if sign else " %"
    if score["low"] is None:
        return text
    return f"{text} [{_figure(name, score['low'], sign)}, {_figure(name, score['high'], sign)}]"


def _by_seed(name: str, cell: dict) -> str:
    return ", ".join(_figure(name, scores[name]) for scores in _scores(cell))
