"""Finished runs side by side: what each cost, how right its answers are, and whether two truly differ."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from lib.grade import stats
from lib.judge import answers
from lib.judge.answers import MODELS, asked, calculator_text, change, p_text, percent
from lib.run import runs

COSTS = ("rows", "steps", "trainable_parameters", "train_seconds", "tokens_per_second")  # of a training
MARGIN = 0.05  # a run that is surely less than this worse than another may stand in for it


@dataclass(frozen=True)
class Finished:
    """What a finished run left: manifests by stage, training metrics, its graded answers."""

    name: str
    rehearse: bool
    manifests: dict[str, dict]
    metrics: list[dict]
    summary: dict[str, Any]
    results: list[dict]

    @cached_property
    def questions(self) -> dict[str, dict[str, str]]:
        """split -> {id: the question and its gold as text}: equal only where the very same was asked."""
        questions: dict[str, dict[str, str]] = {}
        for row in self.results:
            text = json.dumps([row["question"], row["gold"]], sort_keys=True)
            questions.setdefault(row["split"], {})[row["id"]] = text
        return questions

    @cached_property
    def ways(self) -> dict[tuple[str, bool], list[dict]]:
        """(split, calculator) -> the tuned model's answers, in the order in which it was asked."""
        tuned = [row for row in self.results if row["model"] == "tuned"]
        return answers.grouped(tuned, "split", "calculator")


def load(run_folder: Path) -> Finished:
    """Read a finished run; RunError names the notebook to run if a stage is incomplete or was changed."""
    run_folder = Path(run_folder)
    manifests = {stage: runs.read(run_folder, stage) for stage in ("prepare", "train", "evaluate")}
    for name in COSTS:
        if not isinstance(manifests["train"]["metrics"].get(name), int | float | None):
            raise runs.RunError(f"{run_folder}: {name!r} of stage 'train' is no number: run 21_train_qlora again")
    metrics = runs.output(run_folder, "train", "metrics.jsonl")
    summary = runs.output(run_folder, "evaluate", "summary.json")
    generations = runs.output(run_folder, "evaluate", "generations.jsonl")
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


# ---- each run


def table(finished: Sequence[Finished]) -> list[dict]:
    """Right answers of base and tuned with their paired difference, by run, split and calculator setting."""
    rows = []
    for run in finished:
        whole = answers.overall(run.summary["table"])
        for pair in run.summary["paired"]:
            base, tuned = (whole[pair["split"], pair["calculator"], model] for model in MODELS)
            own = {"base": base, "tuned": tuned, "rehearse": run.rehearse}
            rows.append({"run": run.name, **pair, **own})
    return rows


def unlike_answers(finished: Sequence[Finished], rows: Sequence[dict]) -> list[str]:
    """What in `table`'s rows is not what a recount of every kept answer gives; empty where all is."""
    shown = {row["run"] for row in rows}
    problems = [f"{run.name} is missing" for run in finished if run.results and run.name not in shown]
    counts = {run.name: recount(run) for run in finished}
    for row in rows:
        name = f"{row['run']}, {asked(row['split'], row['calculator'])}"
        for model in MODELS:
            right, n = counts[row["run"]][row["split"], row["calculator"], model]
            if n != row["n"] or abs(right / n - row[model]["accuracy"]) > 1e-9:
                problems.append(f"{name}: {model} was right on {right} of {n} answers")
        if abs(row["tuned"]["accuracy"] - row["base"]["accuracy"] - row["difference"]) > 1e-9:
            problems.append(f"{name}: the difference is not that of its two accuracies")
        if not row["low"] - 1e-9 <= row["difference"] <= row["high"] + 1e-9:
            problems.append(f"{name}: the difference lies outside its interval")
    return problems


def recount(run: Finished) -> dict[tuple[str, bool, str], tuple[int, int]]:
    """(split, calculator, model) -> (right answers, answers), counted from every kept answer."""
    cells = answers.grouped(run.results, "split", "calculator", "model")
    return {cell: (sum(answers.column(rows, "correct")), len(rows)) for cell, rows in cells.items()}


def costs(finished: Sequence[Finished]) -> list[dict]:
    """What each run is made of and took: model, data, rows, steps, speed, memory, minutes, perplexity."""
    rows = []
    for run in finished:
        prepare, train = run.manifests["prepare"], run.manifests["train"]
        memory = train["peak_memory_bytes"]
        gpu = sum(size for name, size in memory.items() if name != "resident")
        rows.append({
            "run": run.name, "preset": train["preset"], "rehearse": run.rehearse,
            "model": train["settings"].get("base_model"),
            "source": prepare["settings"].get("source"),
            **{name: train["metrics"].get(name) for name in COSTS},
            "memory_bytes": gpu or memory.get("resident"), "memory_of": "GPU" if gpu else "process",
            "device": train["device"].get("name"),
            "perplexity": run.summary.get("perplexity") or {},
        })
    return rows


def accuracy_rows(finished: Sequence[Finished]) -> list[dict]:
    """The runs' rows by kind for `plots.accuracy_by_kind`; with several runs each model bears its run."""
    return _named(finished, [run.summary["table"] for run in finished])


def level_rows(finished: Sequence[Finished]) -> list[dict]:
    """The runs' rows by level, from the kept answers, for `plots.accuracy_by_level`; named as by kind."""
    return answers.summarise(_named(finished, [run.results for run in finished]), by="level")


def asked_alike(finished: Sequence[Finished], split: str, calculator: bool) -> list[dict]:
    """Every run's answers to one split asked in one way, for pictures of errors; named as by kind."""
    return answers.alike(_named(finished, [run.results for run in finished]), split, calculator)


def _named(finished: Sequence[Finished], rows_by_run: Sequence[list[dict]]) -> list[dict]:
    """All runs' rows in one list; with several runs each model bears its run."""
    if len(finished) == 1:
        return rows_by_run[0]
    return [row | {"model": f"{row['model']} ({run.name})"}
            for run, rows in zip(finished, rows_by_run) for row in rows]  # fmt: skip


def changes(finished: Sequence[Finished]) -> list[dict]:
    """The runs' paired differences for `plots.paired_change`; with several runs labelled."""
    rows = table(finished)
    if len(finished) > 1:
        splits = {row["split"] for row in rows}
        for row in rows:
            row["label"] = f"{row['run']}: {asked(row['split'], row['calculator'], splits)}"
    return rows


# ---- two runs


def different_questions(finished: Sequence[Finished]) -> list[str]:
    """A sentence for each two runs and split that were asked other questions, and so are not compared."""
    sentences = []
    for first, other in combinations(finished, 2):
        own, theirs = first.questions, other.questions
        for split in dict.fromkeys([*own, *theirs]):
            if own.get(split) != theirs.get(split):
                sizes = f"{len(theirs.get(split, ()))} and {len(own.get(split, ()))}"
                sentences.append(f"{other.name} was asked other questions than {first.name} on split {split!r} "
                                 f"({sizes}): they are not paired, as a difference between them may be the "
                                 "questions'.")  # fmt: skip
        for split, calculator in sorted(first.ways.keys() ^ other.ways.keys()):
            if own.get(split) == theirs.get(split):
                sentences.append(f"Only one of {first.name} and {other.name} was asked split {split!r} with the "
                                 f"{calculator_text(calculator)}: nothing to pair.")  # fmt: skip
    return sentences


def paired_runs(finished: Sequence[Finished]) -> list[dict]:
    """The tuned models of every two runs against each other, where both were asked the very same questions.

    A positive difference means that the first of the two is better. Keys as `answers.pair`, and "label",
    "first", "other"; "p_holm", adjusted for all rows; "not_worse": is the other within MARGIN of the first?
    """
    rows = []
    for first, other in combinations(finished, 2):
        for split, calculator in first.ways:
            pairs = _paired_answers(first, other, split, calculator)
            if not pairs:
                continue
            ours, theirs = zip(*pairs)
            test = stats.non_inferior(
                answers.column(ours, "correct"), answers.column(theirs, "correct"), MARGIN
            )
            rows.append({
                "label": f"{first.name} - {other.name}: {asked(split, calculator, first.questions)}",
                "first": first.name, "other": other.name, "split": split, "calculator": calculator,
                **answers.pair(theirs, ours),
                "not_worse": {"holds": test.holds, "p_value": test.p_value, "margin": test.margin},
            })  # fmt: skip
    return answers.adjusted(rows)


def _paired_answers(first: Finished, other: Finished, split: str, calculator: bool) -> list[tuple]:
    """Both tuned models' answers to each question; none unless they were asked the very same in this way."""
    ours = first.ways.get((split, calculator), [])
    theirs = {row["id"]: row for row in other.ways.get((split, calculator), [])}
    same = first.questions.get(split) == other.questions.get(split)
    if not same or theirs.keys() != {row["id"] for row in ours}:
        return []
    return [(row, theirs[row["id"]]) for row in ours]


def flips(finished: Sequence[Finished], split: str, calculator: bool, most: int = 10) -> str:
    """HTML: `answers.flips` from each other run's tuned model to the first run's.

    A run that was asked other questions is named instead."""
    first, page = finished[0], ""
    for run in finished[1:]:
        page += f"<h3>From {html.escape(run.name)} to {html.escape(first.name)}</h3>"
        if pairs := _paired_answers(first, run, split, calculator):
            ours, theirs = zip(*pairs)
            names = f"{run.name}, tuned", f"{first.name}, tuned"
            page += answers.flips(theirs, ours, names, most)
        else:
            page += "<p>Not compared: they were asked other questions.</p>"
    return page or "<p>no other run was named</p>"


# ---- for readers


def headline(finished: Sequence[Finished]) -> dict[str, str]:
    """What is printed and reported first: the first run's tuned model against each other run's."""
    first = finished[0].name
    if len(finished) == 1:
        return {"runs compared": f"1 (with another: sharpen compare {first} OTHER)"}
    lines = {"runs compared": ", ".join(run.name for run in finished)}
    if different_questions(finished):
        lines["runs compared"] += " (asked different questions)"
    for row in paired_runs(finished):
        if row["first"] == first:
            holm = f"{p_text(row['p_holm'])} (Holm, over all comparisons)"
            lines[row["label"]] = f"{change(row)}, n = {row['n']}, {holm}"
    return lines


def paired_runs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`paired_runs` in words, for readers."""
    texts = []
    for row, text in zip(rows, answers.pairs_text(rows), strict=True):
        del text["asked"], text["detectable"]
        test = row["not_worse"]
        shown = "shown" if test["holds"] else "not shown"
        text[f"second less than {100 * MARGIN:g} points worse"] = f"{shown}, {p_text(test['p_value'])}"
        texts.append({"compared": row["label"], **text})
    return texts


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`table` in words, for readers."""
    splits = {row["split"] for row in rows}
    return [
        {
            "run": f"{row['run']} (REHEARSAL)" if row["rehearse"] else row["run"],
            "asked": asked(row["split"], row["calculator"], splits),
            "n": str(row["n"]), "base": percent(row["base"]), "tuned": percent(row["tuned"]),
            "tuned, over groups": answers.over_groups(row["tuned"].get("clustered")),
            "difference": change(row), "McNemar": p_text(row["p_value"]),
            "won, lost": answers.won_lost(row),
            "format rate": f"{_rate(row['base'])} -> {_rate(row['tuned'])}",
        }
        for row in rows
    ]  # fmt: skip


def costs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`costs` in words, for readers."""
    return [
        {
            "run": row["run"], "model": str(row["model"]), "data": str(row["source"]),
            "training rows": _number(row["rows"]), "steps": _number(row["steps"]),
            "trained parameters": _number(row["trainable_parameters"]),
            "minutes": _number(row["train_seconds"], ".1f", 60),
            "tokens/s": _number(row["tokens_per_second"]),
            "peak memory": f"{_number(row['memory_bytes'] or 0, '.2f', 2**30)} GiB ({row['memory_of']})",
            "perplexity": " -> ".join(map(_perplexity, map(row["perplexity"].get, MODELS))),
            "device": str(row["device"]),
            "this is": "a REHEARSAL, no result" if row["rehearse"] else "a result",
        }
        for row in rows
    ]  # fmt: skip


def _rate(row: dict) -> str:
    return f"{100 * row['format_rate']:.0f} %"


def _number(value: float | None, form: str = ",.0f", unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:{form}}"


def _perplexity(found: dict | None) -> str:
    if not found:
        return "-"
    return f"{found['perplexity']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
