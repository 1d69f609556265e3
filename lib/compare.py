"""Finished runs side by side: what each cost, how right its answers are, and whether two runs truly differ."""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import runs, stats
from lib.plots import asked, p_text


@dataclass(frozen=True)
class Finished:
    """What a finished run left: manifests by stage, training metrics, and everything about its answers."""

    name: str
    rehearse: bool
    manifests: dict[str, dict]
    metrics: list[dict]
    summary: dict[str, Any]
    results: list[dict]


def load(run_folder: Path) -> Finished:
    """Read a finished run; RunError names the notebook to run where a stage is not complete."""
    run_folder = Path(run_folder)
    manifests = {stage: runs.read(run_folder, stage) for stage in ("prepare", "train", "evaluate")}
    adapter, answers = (run_folder / runs.FOLDERS[stage] for stage in ("train", "evaluate"))
    return Finished(
        run_folder.name, any(manifest["rehearse"] for manifest in manifests.values()), manifests,
        _lines(adapter / "metrics.jsonl"), json.loads((answers / "summary.json").read_text(encoding="utf-8")),
        _lines(answers / "generations.jsonl"),
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
            "rows": metrics.get("rows"), "steps": metrics.get("steps"),
            "trainable_parameters": metrics.get("trainable_parameters"),
            "train_seconds": metrics.get("train_seconds"), "tokens_per_second": metrics.get("tokens_per_second"),
            "memory_bytes": gpu or memory.get("resident"), "memory_of": "GPU" if gpu else "process",
            "device": train["device"].get("name"), "perplexity": run.summary.get("perplexity") or {},
        })
    return rows


def accuracy_rows(finished: Sequence[Finished]) -> list[dict]:
    """The runs' rows by kind in one list for `plots.accuracy_by_kind`; with several runs each model bears its run."""
    several = len(finished) > 1
    return [
        row | {"model": f"{row['model']} ({run.name})" if several else row["model"]}
        for run in finished for row in run.summary["table"]
    ]


def changes(finished: Sequence[Finished]) -> list[dict]:
    """The runs' paired differences, tuned against base, for `plots.paired_change`; with several runs labelled."""
    splits = {pair["split"] for run in finished for pair in run.summary["paired"]}
    several = len(finished) > 1
    return [
        pair | ({"label": f"{run.name}: {asked(pair['split'], pair['calculator'], splits)}"} if several else {})
        for run in finished for pair in run.summary["paired"]
    ]


def different_questions(finished: Sequence[Finished]) -> list[str]:
    """A sentence for each run and split that was asked other questions than the first run's."""
    first, found = _questions(finished[0]), []
    for run in finished[1:]:
        own = _questions(run)
        for split in dict.fromkeys([*first, *own]):
            if own.get(split) != first.get(split):
                sizes = [f"{len(q[split])} in {r.name}" if split in q else f"none in {r.name}"
                         for r, q in ((finished[0], first), (run, own))]
                found.append(f"{run.name} was asked other questions than {finished[0].name} on split {split!r} "
                             f"({', '.join(sizes)}): a difference between them may be the questions'.")
    return found


def paired_runs(finished: Sequence[Finished]) -> list[dict]:
    """Each further run's tuned model against the first run's, wherever both were asked the very same questions.

    A positive difference means that the first run is better. Keys as `evaluate.paired`, and "label", "other".
    """
    first, rows = finished[0], []
    for run in finished[1:]:
        for split, questions in _questions(first).items():
            for calculator in (True, False):
                verdicts = [_verdicts(r, split, calculator) for r in (run, first)]
                if _questions(run).get(split) != questions or not all(v.keys() == questions.keys() for v in verdicts):
                    continue
                theirs, ours = ([answers[id] for id in questions] for answers in verdicts)
                lost = sum(t and not o for t, o in zip(theirs, ours, strict=True))
                won = sum(o and not t for t, o in zip(theirs, ours, strict=True))
                interval = stats.paired_interval(theirs, ours)
                rows.append({
                    "other": run.name, "split": split, "calculator": calculator, "n": len(questions),
                    "label": f"{first.name} - {run.name}: {asked(split, calculator, _questions(first))}",
                    "right_to_wrong": lost, "wrong_to_right": won, "p_value": stats.mcnemar(lost, won),
                    "difference": interval.estimate, "low": interval.low, "high": interval.high,
                })
    return rows


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
    against = paired_runs(finished)
    return {"runs compared": names + note} | {
        row["label"]: f"{change(row)}, n = {row['n']}, {p_text(row['p_value'])}" for row in against
    }


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """`table` in words, for readers."""
    splits = {row["split"] for row in rows}
    return [
        {
            "run": row["run"] + " (REHEARSAL)" * row["rehearse"],
            "asked": asked(row["split"], row["calculator"], splits), "n": str(row["n"]),
            "base": percent(row["base"]), "tuned": percent(row["tuned"]), "difference": change(row),
            "McNemar": p_text(row["p_value"]), "won, lost": f"{row['wrong_to_right']}, {row['right_to_wrong']}",
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


def html_table(rows: Sequence[dict[str, str]], upright: bool = False) -> Any:
    """Rows of text as an HTML table (`upright`: a column each); every cell is escaped, for names are others' text."""
    from IPython.display import HTML

    def cell(tag: str, text: str) -> str:
        whole = re.sub(r"\[.*?\]|p [<=] \S+|\S+ %", lambda found: found[0].replace(" ", "\u00a0"), text)  # not torn
        return f"<{tag}>{html.escape(whole)}</{tag}>"

    names = list(rows[0]) if rows else []
    if upright:
        lines = [cell("th", name) + "".join(cell("td", row[name]) for row in rows) for name in names]
    else:
        lines = ["".join(cell("th", name) for name in names)]
        lines += ["".join(cell("td", text) for text in row.values()) for row in rows]
    return HTML("<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>")


def percent(row: dict) -> str:
    """`61.3 % [55.7, 66.7]`: an accuracy with its 95 % interval."""
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def change(row: dict) -> str:
    """`+58.0 points [52.1, 63.4]`: a paired difference with its 95 % interval, in percentage points."""
    return f"{100 * row['difference']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


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


def _verdicts(run: Finished, split: str, calculator: bool) -> dict[str, bool]:
    wanted = ("tuned", split, calculator)
    return {r["id"]: bool(r["correct"]) for r in run.results if (r["model"], r["split"], r["calculator"]) == wanted}


def _lines(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:  # not splitlines(): an answer may hold other characters that end lines
        return [json.loads(line) for line in file if line.strip()]
