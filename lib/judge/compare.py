"""Finished runs side by side: what differs between them, how right their answers are, and what each cost."""

import html
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from lib.grade import stats
from lib.judge import answers
from lib.judge.answers import MODELS, asked, calculator_text, change, column, p_text, percent
from lib.run import runs

COSTS = ("rows", "steps", "trainable_parameters", "train_seconds", "tokens_per_second")  # of a training
MARGIN = 0.05  # a run that is surely less than this worse than another may stand in for it
NAMES = {"preset": "preset", "base_model": "base model", "source": "data"}  # what a run is called by
WIDEST = 7  # settings in a table that fits a page
UNGRADED = "No question of these runs has a gold answer, so nothing was graded."
MACHINES = ("rdzv_endpoint", "llama_cpp_path")  # settings that say where a run was made, not how


@dataclass(frozen=True)
class Finished:
    """What a finished run left: manifests by stage, training metrics, its graded answers."""

    name: str
    rehearse: bool
    manifests: dict[str, dict]
    metrics: list[dict]
    summary: dict[str, Any]
    results: list[dict]

    @property
    def title(self) -> str:
        """The run's name for readers, who must not take a rehearsal for a result."""
        return _title(self.name, self.rehearse)

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


# ---- what differs


def about(finished: Sequence[Finished]) -> list[str]:
    """Sentences: what is the same in all runs, whether any setting differs, and what differs around them.

    Of one run: what it is, and whether its preset was changed."""
    settings = [_settings(run) for run in finished]
    different = differing(settings)
    known = [f"{word} {settings[0].get(name)}" for name, word in NAMES.items() if name not in different]
    alike = ", ".join(known)
    if len(finished) == 1:
        if _overrides(finished[0]):
            return [f"{finished[0].title}: {alike}, but with these settings:"]
        return [f"{finished[0].title}: {alike}, with no setting changed."]
    sentences = []
    if known:
        sentences.append(f"All runs: {alike}.")
    if not different:
        sentences.append("No setting differs between these runs.")
    return sentences + _around(finished)


def settings_text(finished: Sequence[Finished]) -> list[list[dict[str, str]]]:
    """Tables with a row for each run, which hold the settings that are not the same in all, WIDEST at a time.

    Of one run, those that were changed from its preset's. No table where there is no such setting."""
    settings = [_settings(run) for run in finished]
    names = differing(settings)
    if len(finished) == 1:
        names = _overrides(finished[0])
    tables = []
    for start in range(0, len(names), WIDEST):
        shown = names[start : start + WIDEST]
        rows = []
        for run, own in zip(finished, settings):
            rows.append({"run": run.title} | {name: _value(own[name]) for name in shown if name in own})
        tables.append(rows)
    return tables


def differing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not equal in all that have them, in the order in which they come."""
    first, different = {}, set()
    for own in facts:
        for name, value in own.items():
            if first.setdefault(name, value) != value:
                different.add(name)
    return [name for name in first if name in different]


def _settings(run: Finished) -> dict[str, Any]:
    """The preset and every setting that prepare, train and evaluate were run with."""
    settings = {"preset": run.manifests["prepare"]["preset"]}
    for manifest in run.manifests.values():
        settings |= manifest["settings"]
    return {name: value for name, value in settings.items() if name not in MACHINES}


def _overrides(run: Finished) -> list[str]:
    """The settings that were changed from the preset's."""
    origins = {}
    for manifest in run.manifests.values():
        origins |= manifest["origins"]
    return [name for name in _settings(run) if origins.get(name) == "override"]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _around(finished: Sequence[Finished]) -> list[str]:
    """One sentence on the commit, device, versions and code that were not the same; none where all were."""
    facts = [_surroundings(run) for run in finished]
    parts, files = [], []
    for name in differing(facts):
        if name.startswith("lib/"):
            files.append(name)
            continue
        values = [own.get(name, "unknown") for own in facts]
        parts.append(f"{name} ({' / '.join(values)})")
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        parts.append(f"code ({', '.join(files[:3])}{more})")
    if not parts:
        return []
    return [f"Besides the settings, these differ, in the order of the runs: {', '.join(parts)}."]


def _surroundings(run: Finished) -> dict[str, str]:
    """Commit, device, versions and code (SHA-256 by file) that a run's stages were made with."""
    found = defaultdict(list)
    for manifest in run.manifests.values():
        found["git commit"].append(_commit(manifest["git"]))
        found["device"].append(str(manifest["device"].get("name")))
        for name, value in (manifest["versions"] | manifest["code"]).items():
            found[name].append(str(value))
        if engine := manifest["metrics"].get("engine"):
            found["engine"].append(str(engine))
    return {name: ", ".join(dict.fromkeys(values)) for name, values in found.items()}


def _commit(git: dict) -> str:
    commit = (git["commit"] or "none")[:8]
    return f"{commit} with uncommitted changes" if git["dirty"] else commit


# ---- each run


def table(finished: Sequence[Finished]) -> list[dict]:
    """Right answers of base and tuned with their paired difference, by run, split and calculator setting."""
    rows = []
    for run in finished:
        whole = answers.overall(run.summary["table"])
        models = answers.compared(run.summary["table"])
        for pair in run.summary["paired"]:
            base, tuned = (whole[pair["split"], pair["calculator"], model] for model in models)
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
            right, n = counts[row["run"]][row["split"], row["calculator"], row[model]["model"]]
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
    """What each run is made of and took: model, data, rows, steps, tokens, speed, memory, seconds, perplexity."""
    rows = []
    for run in finished:
        prepare, train, evaluate = (run.manifests[stage] for stage in ("prepare", "train", "evaluate"))
        memory = train["peak_memory_bytes"]
        gpu = sum(size for name, size in memory.items() if name != "resident")
        rows.append({
            "run": run.name, "preset": train["preset"], "rehearse": run.rehearse,
            "model": train["settings"].get("base_model"),
            "source": prepare["settings"].get("source"),
            **{name: train["metrics"].get(name) for name in COSTS},
            "memory_bytes": gpu or memory.get("resident"), "memory_of": "GPU" if gpu else "process",
            "tokens": _trained_tokens(train["metrics"]),
            "evaluate_seconds": evaluate["elapsed_seconds"],
            "device": train["device"].get("name"),
            "perplexity": run.summary.get("perplexity") or {},
        })
    return rows


def _trained_tokens(metrics: dict) -> float | None:
    """Tokens that were trained on, padding left out, each as often as it was seen."""
    seconds, speed = metrics.get("train_seconds"), metrics.get("tokens_per_second")
    return None if seconds is None or speed is None else seconds * speed


def interrupted(finished: Sequence[Finished]) -> list[str]:
    """A sentence for each training or evaluation that was gone on from: its cost holds the last part alone."""
    sentences = []
    for run in finished:
        if since := run.manifests["train"]["metrics"].get("resumed_from"):
            sentences.append(f"{run.name}: training went on from {since}; minutes and tokens count from there.")
        if run.manifests["evaluate"].get("resumed"):
            sentences.append(f"{run.name}: the evaluation was gone on with; its minutes count from there.")
    return sentences


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


def first_way(rows: Sequence[dict]) -> tuple[str, bool]:
    """(split, calculator) of `table`'s first row: the way of asking that the page begins with."""
    return (rows[0]["split"], rows[0]["calculator"]) if rows else ("test", False)


def run_rows(finished: Sequence[Finished], rows: Sequence[dict]) -> list[dict]:
    """Base and tuned model of each run on the first way of asking, for `plots.accuracy_by_run`."""
    titles = {run.name: run.title for run in finished}
    found = []
    for row in answers.alike(rows, *first_way(rows)):
        found += [row[model] | {"run": titles[row["run"]]} for model in MODELS]
    return found


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


def unlike_first(finished: Sequence[Finished]) -> list[str]:
    """Those sentences of `different_questions` that name the first run, for readers."""
    first, *others = finished
    return [f"Careful: {text}" for run in others for text in different_questions([first, run])]


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
            way = asked(split, calculator, first.questions)
            rows.append({
                "label": f"{first.name} - {other.name}: {way}", "asked": way,
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


def turned(row: dict) -> dict:
    """A row of `paired_runs` from the other side: a positive difference means that the other run is better.

    So it reads as gain or loss of its "other" run over its "first"."""
    clustered = row["clustered"]
    if clustered["low"] is not None:
        clustered = clustered | _negated(clustered)
    return row | _negated(row) | {
        "label": f"{row['other']} against {row['first']}: {row['asked']}",
        "difference": 0 - row["difference"], "clustered": clustered,
        "right_to_wrong": row["wrong_to_right"], "wrong_to_right": row["right_to_wrong"],
    }  # fmt: skip


def _negated(limits: dict) -> dict[str, float]:
    return {"low": 0 - limits["high"], "high": 0 - limits["low"]}


def to_first(finished: Sequence[Finished], rows: Sequence[dict], way: tuple[str, bool]) -> list[dict]:
    """Of `turned` rows those of one way of asking against the first run; Holm adjusts for these alone."""
    first = finished[0].name
    return answers.adjusted([row for row in answers.alike(rows, *way) if row["first"] == first])


def flips(finished: Sequence[Finished], split: str, calculator: bool, most: int = 10) -> str:
    """HTML: `answers.flips` from the first run's tuned model to each other run's.

    A run that was asked other questions is left out: `different_questions` names it."""
    first, page = finished[0], ""
    for run in finished[1:]:
        if pairs := _paired_answers(first, run, split, calculator):
            ours, theirs = zip(*pairs)
            names = f"{first.name}, tuned", f"{run.name}, tuned"
            page += f"<h3>From {html.escape(first.name)} to {html.escape(run.name)}</h3>"
            page += answers.flips(ours, theirs, names, most)
    return page


# ---- for readers


def headline(finished: Sequence[Finished], rows: Sequence[dict]) -> dict[str, str]:
    """What is printed and reported first: each other run's tuned model against the first's, of `to_first`."""
    first = finished[0].name
    if len(finished) == 1:
        return {"runs compared": f"1 (with another: sharpen compare {first} OTHER)"}
    lines = {"runs compared": ", ".join(run.name for run in finished)}
    if different_questions(finished):
        lines["runs compared"] += " (asked different questions)"
    for row in rows:
        lines[row["label"]] = f"{change(row)}, n = {row['n']}, {p_text(row['p_holm'])} (Holm)"
    return lines


def asked_text(rows: Sequence[dict]) -> str:
    """How the questions behind `scores_text` were asked, or that there are none."""
    if not rows:
        return UNGRADED
    splits = {row["split"] for row in rows}
    return f"Asked first: {asked(*first_way(rows), splits)}."


def scores_text(finished: Sequence[Finished], rows: Sequence[dict]) -> list[dict[str, str]]:
    """A row for each run: `table`'s first way of asking in words. Empty where nothing was graded."""
    asked_first = {row["run"]: row for row in answers.alike(rows, *first_way(rows))}
    texts = []
    for run in finished:
        row = asked_first.get(run.name)
        if row is None:
            texts.append({"run": run.title, "n": "not asked"})
            continue
        texts.append({
            "run": run.title, "n": str(row["n"]),
            "tuned": percent(row["tuned"]), "base": _base(row["base"]),
            "tuned, over groups": answers.over_groups(row["tuned"].get("clustered")),
            "format rate": f"{_rate(row['base'])} -> {_rate(row['tuned'])}",
        })  # fmt: skip
    return texts if asked_first else []


def other_scores_text(finished: Sequence[Finished], rows: Sequence[dict]) -> list[dict[str, str]]:
    """A row for each run: the tuned model on `table`'s other ways of asking, and both perplexities."""
    splits, texts = {row["split"] for row in rows}, []
    for run in finished:
        text = {"run": run.title}
        for row in rows:
            way = row["split"], row["calculator"]
            if row["run"] == run.name and way != first_way(rows):
                text[asked(*way, splits)] = f"{percent(row['tuned'])} of {row['n']}"
        for model in MODELS[::-1]:
            text[f"perplexity, {model}"] = _perplexity((run.summary.get("perplexity") or {}).get(model))
        texts.append(text)
    return texts


def to_first_text(finished: Sequence[Finished], rows: Sequence[dict]) -> list[dict[str, str]]:
    """A row for each run but the first: `to_first` in words; of a run that is not paired, why."""
    found = dict(zip(column(rows, "other"), paired_runs_text(rows)))
    unpaired = f"not paired: no graded question in common with {finished[0].name}"
    texts = []
    for run in finished[1:]:
        text = found.get(run.name, {"difference": unpaired})
        text.pop("compared", None)
        texts.append({"run": run.title, **text})
    return texts


def paired_runs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`turned` rows in words, for readers."""
    texts = []
    for row, text in zip(rows, answers.pairs_text(rows), strict=True):
        del text["asked"], text["detectable"]
        test = row["not_worse"]
        shown = "shown" if test["holds"] else "not shown"
        text[f"less than {100 * MARGIN:g} points worse"] = f"{shown}, {p_text(test['p_value'])}"
        texts.append({"compared": row["label"], **text})
    return texts


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`table` in words, for readers."""
    splits = {row["split"] for row in rows}
    return [
        {
            "run": _title(row["run"], row["rehearse"]),
            "asked": asked(row["split"], row["calculator"], splits),
            "n": str(row["n"]), "base": _base(row["base"]), "tuned": percent(row["tuned"]),
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
            "run": _title(row["run"], row["rehearse"]),
            "training, minutes": _number(row["train_seconds"], ".1f", 60),
            "peak memory": f"{_number(row['memory_bytes'] or 0, '.2f', 2**30)} GiB ({row['memory_of']})",
            "trained tokens": _number(row["tokens"]), "tokens/s": _number(row["tokens_per_second"]),
            "evaluation, minutes": _number(row["evaluate_seconds"], ".1f", 60),
            "steps": _number(row["steps"]), "trained parameters": _number(row["trainable_parameters"]),
            "device": str(row["device"]),
        }
        for row in rows
    ]  # fmt: skip


def _title(run: str, rehearse: bool) -> str:
    return f"{run} (REHEARSAL)" if rehearse else run


def _base(row: dict) -> str:
    """`12.3 % [9.1, 16.5], 8 shots`: the accuracy of a base, and its prompt where it was given examples."""
    return percent(row) + row["model"].removeprefix("base")


def _rate(row: dict) -> str:
    return f"{100 * row['format_rate']:.0f} %"


def _number(value: float | None, form: str = ",.0f", unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:{form}}"


def _perplexity(found: dict | None) -> str:
    if not found:
        return "-"
    return f"{found['perplexity']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
