"""Finished runs side by side: what each cost, how right its answers are, and whether two runs truly differ."""

import hashlib
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from pathlib import Path
from typing import Any

from lib.grade import stats
from lib.judge import answers
from lib.judge.answers import asked, change, p_text, percent
from lib.run import runs

COSTS = ("rows", "steps", "trainable_parameters", "train_seconds", "tokens_per_second")  # metrics of a training
MARGIN = 0.05  # a run that is surely less than this worse than another may stand in for it


@dataclass(frozen=True)
class Finished:
    """What a finished run left: manifests by stage, training metrics, and everything about its graded answers."""

    name: str
    rehearse: bool
    manifests: dict[str, dict]
    metrics: list[dict]
    summary: dict[str, Any]
    results: list[dict]


def load(run_folder: Path) -> Finished:
    """Read a finished run; RunError names the notebook to run where a stage is not complete, or is not as it was."""
    run_folder = Path(run_folder)
    manifests = {stage: runs.read(run_folder, stage) for stage in ("prepare", "train", "evaluate")}
    for name in COSTS:
        if not isinstance(manifests["train"]["metrics"].get(name), int | float | None):
            raise runs.RunError(f"{run_folder}: {name!r} of stage 'train' is no number: run 21_train_qlora again")
    metrics = runs.output(run_folder, "train", "metrics.jsonl")
    summary, generations = (runs.output(run_folder, "evaluate", name) for name in ("summary.json", "generations.jsonl"))
    return Finished(
        run_folder.name, any(manifest["rehearse"] for manifest in manifests.values()), manifests,
        runs.read_rows(metrics), json.loads(summary.read_text(encoding="utf-8")),
        [answer for answer in runs.read_rows(generations) if answer["gold"]],  # the others have no verdict
    )


def load_all(stage: runs.Stage) -> list[Finished]:
    """The stage's own run, then the `others` that it names, each remembered as an input."""
    names = [stage.run_folder.name, *stage.settings.others]
    if twice := {name for name in names if names.count(name) > 1}:
        raise runs.RunError(f"others names {', '.join(sorted(twice))} more than once; name each run once")
    for name in names:
        for earlier in ("prepare", "train", "evaluate"):
            stage.input(earlier, run=None if name == names[0] else name)
    return [load(stage.run_folder.with_name(name)) for name in names]


def table(finished: Sequence[Finished]) -> list[dict]:
    """Right answers: a row for each run, split and calculator setting, with base, tuned and their paired difference."""
    rows = []
    for run in finished:
        whole = {(r["split"], r["calculator"], r["model"]): r for r in run.summary["table"] if r["kind"] == "all"}
        for pair in run.summary["paired"]:
            base, tuned = (whole[pair["split"], pair["calculator"], model] for model in ("base", "tuned"))
            rows.append({"run": run.name, **pair, "base": base, "tuned": tuned, "rehearse": run.rehearse})
    return rows


def costs(finished: Sequence[Finished]) -> list[dict]:
    """What each run is made of and took: model, data, rows, steps, speed, memory, minutes, perplexity."""
    rows = []
    for run in finished:
        prepare, train = (run.manifests[stage] for stage in ("prepare", "train"))
        metrics, memory = train["metrics"], train["peak_memory_bytes"]
        gpu = sum(size for name, size in memory.items() if name != "resident")
        rows.append({
            "run": run.name, "preset": train["preset"], "rehearse": run.rehearse,
            "model": train["settings"].get("base_model"), "source": prepare["settings"].get("source"),
            **{name: metrics.get(name) for name in COSTS},
            "memory_bytes": gpu or memory.get("resident"), "memory_of": "GPU" if gpu else "process",
            "device": train["device"].get("name"), "perplexity": run.summary.get("perplexity") or {},
        })
    return rows


def accuracy_rows(finished: Sequence[Finished]) -> list[dict]:
    """The runs' rows by kind in one list for `plots.accuracy_by_kind`; with several runs each model bears its run."""
    return _named(finished, lambda run: run.summary["table"])


def changes(finished: Sequence[Finished]) -> list[dict]:
    """The runs' paired differences, tuned against base, for `plots.paired_change`; with several runs labelled."""
    splits = {pair["split"] for run in finished for pair in run.summary["paired"]}
    several = len(finished) > 1
    return [
        pair | ({"label": f"{run.name}: {asked(pair['split'], pair['calculator'], splits)}"} if several else {})
        for run in finished for pair in run.summary["paired"]
    ]


def level_rows(finished: Sequence[Finished]) -> list[dict]:
    """The runs' rows by level, counted from the kept answers, for `plots.accuracy_by_level`; named as by kind."""
    return answers.summarise(_named(finished), by="level")


def asked_alike(finished: Sequence[Finished], split: str, calculator: bool) -> list[dict]:
    """Every run's answers to one split asked in one way, the models named by their runs, for pictures of errors."""
    return [row for row in _named(finished) if (row["split"], row["calculator"]) == (split, calculator)]


def different_questions(finished: Sequence[Finished]) -> list[str]:
    """A sentence for each two runs and split that are not compared, because they were asked other questions."""
    found = []
    for first, other in combinations(finished, 2):
        own, theirs = _questions(first), _questions(other)
        for split in dict.fromkeys([*own, *theirs]):
            if own.get(split) != theirs.get(split):
                found.append(f"{other.name} was asked other questions than {first.name} on split {split!r} "
                             f"({len(theirs.get(split, ()))} and {len(own.get(split, ()))}): they are not paired, as a "
                             "difference between them may be the questions'.")  # fmt: skip
        for split, calculator in sorted(_ways(first).keys() ^ _ways(other).keys()):
            if own.get(split) == theirs.get(split):
                found.append(f"Only one of {first.name} and {other.name} was asked split {split!r} with the "
                             f"calculator {'on' if calculator else 'off'}: nothing to pair.")  # fmt: skip
    return found


def paired_runs(finished: Sequence[Finished]) -> list[dict]:
    """The tuned models of every two runs against each other, wherever both were asked the very same questions.

    A positive difference means that the first of the two is better. Keys as `answers.pair`, and "label", "first",
    "other"; "p_holm", adjusted for all rows; and "not_worse": does the other stay within MARGIN of the first?
    """
    rows = []
    for first, other in combinations(finished, 2):
        splits = _questions(first)
        for split, calculator in _ways(first):
            both = _paired_answers(first, other, split, calculator)
            if both is None:
                continue
            ours, theirs = both
            test = stats.non_inferior([row["correct"] for row in ours], [row["correct"] for row in theirs], MARGIN)
            rows.append({
                "label": f"{first.name} - {other.name}: {asked(split, calculator, splits)}", "first": first.name,
                "other": other.name, "split": split, "calculator": calculator, **answers.pair(theirs, ours),
                "not_worse": {"holds": test.holds, "p_value": test.p_value, "margin": test.margin},
            })  # fmt: skip
    for row, p_value in zip(rows, stats.holm([row["p_value"] for row in rows]) if rows else (), strict=True):
        row["p_holm"] = p_value
    return rows


def flips(finished: Sequence[Finished], split: str, calculator: bool, most: int = 10) -> str:
    """HTML: questions whose verdict differs between another run's tuned model and the first run's, with both answers.

    "Right, then wrong" is from the other run to the first. A run that was asked other questions is named instead.
    """
    first, page = finished[0], ""
    for run in finished[1:]:
        page += f"<h3>From {html.escape(run.name)} to {html.escape(first.name)}</h3>"
        if both := _paired_answers(first, run, split, calculator):
            ours, theirs = both
            page += answers.flips(theirs, ours, (f"{run.name}, tuned", f"{first.name}, tuned"), most)
        else:
            page += "<p>Not compared: they were asked other questions.</p>"
    return page or "<p>no other run was named</p>"


def recount(run: Finished) -> dict[tuple[str, bool, str], tuple[int, int]]:
    """(split, calculator, model) -> (right answers, answers), counted afresh from every kept answer."""
    counts: dict[tuple, list[int]] = {}
    for row in run.results:
        cell = counts.setdefault((row["split"], row["calculator"], row["model"]), [0, 0])
        cell[0] += bool(row["correct"])
        cell[1] += 1
    return {key: (right, n) for key, (right, n) in counts.items()}


def headline(finished: Sequence[Finished]) -> dict[str, str]:
    """What the pipeline prints and the report shows first: the first run's tuned model against each other run's."""
    if len(finished) == 1:
        return {"runs compared": f"1 (with another: sharpen compare {finished[0].name} OTHER)"}
    names = ", ".join(run.name for run in finished)
    note = " (asked different questions)" if different_questions(finished) else ""
    return {"runs compared": names + note} | {
        row["label"]: f"{change(row)}, n = {row['n']}, {p_text(row['p_holm'])} (Holm, over all comparisons)"
        for row in paired_runs(finished) if row["first"] == finished[0].name
    }  # fmt: skip


def paired_runs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`paired_runs` in words, for readers."""
    found = []
    for row, shown in zip(rows, answers.pairs_text(rows), strict=True):
        test = row["not_worse"]
        sure = f"{'shown' if test['holds'] else 'not shown'}, {p_text(test['p_value'])}"
        kept = {name: shown[name] for name in ("n", "won, lost", "difference", "95 % over groups", "McNemar", "Holm")}
        found.append({"compared": row["label"], **kept, f"second less than {100 * MARGIN:g} points worse": sure})
    return found


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`table` in words, for readers."""
    splits = {row["split"] for row in rows}
    return [
        {
            "run": row["run"] + " (REHEARSAL)" * row["rehearse"],
            "asked": asked(row["split"], row["calculator"], splits),
            "n": str(row["n"]),
            "base": percent(row["base"]),
            "tuned": percent(row["tuned"]),
            "tuned, over groups": answers.over_groups(row["tuned"].get("clustered")),
            "difference": change(row),
            "McNemar": p_text(row["p_value"]),
            "won, lost": f"{row['wrong_to_right']}, {row['right_to_wrong']}",
            "format rate": " -> ".join(f"{100 * row[model]['format_rate']:.0f} %" for model in ("base", "tuned")),
        }
        for row in rows
    ]


def costs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`costs` in words, for readers."""
    return [
        {
            "run": row["run"], "model": str(row["model"]), "data": str(row["source"]),
            "training rows": _number(row["rows"]), "steps": _number(row["steps"]),
            "trained parameters": _number(row["trainable_parameters"]),
            "minutes": _number(row["train_seconds"] and row["train_seconds"] / 60, ".1f"),
            "tokens/s": _number(row["tokens_per_second"]),
            "peak memory": f"{_number((row['memory_bytes'] or 0) / 2**30, '.2f')} GiB ({row['memory_of']})",
            "perplexity": " -> ".join(_perplexity(row["perplexity"].get(model)) for model in ("base", "tuned")),
            "device": str(row["device"]), "this is": "a REHEARSAL, no result" if row["rehearse"] else "a result",
        }
        for row in rows
    ]


def _number(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _perplexity(found: dict | None) -> str:
    return f"{found['perplexity']:.3g} [{found['low']:.3g}, {found['high']:.3g}]" if found else "-"


def _questions(run: Finished) -> dict[str, dict[str, str]]:
    """split -> {id: hash of the question and its gold}: equal only where the very same was asked."""
    asked_of: dict[str, dict[str, str]] = {}
    for row in run.results:
        text = json.dumps([row["question"], row["gold"]], sort_keys=True)
        asked_of.setdefault(row["split"], {})[row["id"]] = hashlib.sha256(text.encode()).hexdigest()
    return asked_of


def _ways(run: Finished) -> dict[tuple[str, bool], None]:
    """The splits and calculator settings in which the tuned model was asked, in their order."""
    return dict.fromkeys((row["split"], row["calculator"]) for row in run.results if row["model"] == "tuned")


def _paired_answers(first: Finished, other: Finished, split: str, calculator: bool) -> tuple[list, list] | None:
    """Both tuned models' answers in the same order; None unless the very same questions were asked in this way."""
    ours, theirs = (answers.arm(run.results, "tuned", split, calculator) for run in (first, other))
    by_id = {row["id"]: row for row in theirs}
    if _questions(first).get(split) != _questions(other).get(split) or by_id.keys() != {row["id"] for row in ours}:
        return None
    return ours, [by_id[row["id"]] for row in ours]


def _named(finished: Sequence[Finished], rows_of: Callable = attrgetter("results")) -> list[dict]:
    """All runs' answers (or other rows); with several runs each model bears its run."""
    several = len(finished) > 1
    return [row | {"model": f"{row['model']} ({run.name})" if several else row["model"]}
            for run in finished for row in rows_of(run)]  # fmt: skip
