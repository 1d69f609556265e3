"""Data in, a matplotlib Figure out: no pyplot, so no state stays behind; Jupyter shows each figure as a picture."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lib.grade import stats
from lib.judge.answers import alike, asked, is_number, p_text

# Okabe and Ito's colours, which colour-blind readers can tell apart; grey stands for the base model.
GREY = "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
DPI = 144
GRID = {"color": "#e5e5e5", "linewidth": 0.7}
LEGEND = {"frameon": False, "fontsize": 9}
POINTS = {"linestyle": "", "capsize": 3, "markersize": 6}

Lines = Mapping[str, Sequence[dict]]  # run -> the lines of its metrics.jsonl


class Picture(Figure):
    """A Figure that shows itself in Jupyter as a PNG, with its title as the text for readers who cannot see it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        width, height = (round(inches * 96) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height, "alt": self.get_suptitle()}


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG and return its path."""
    figure.savefig(path, format="png", dpi=DPI)
    return Path(path)


# ---- while training


def loss_curves(metrics_by_run: Lines, title: str = "Loss while training", rehearse: bool = False) -> Picture:
    """Training loss (lines) and held-out loss (points) by optimiser step; below them the learning rate.

    A line has "step" and any of "loss", "eval_loss", "learning_rate"; a value that is absent or None is left out."""
    figure = _picture(8, 5.5, title, rehearse)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for (run, lines), colour in zip(metrics_by_run.items(), cycle(COLOURS)):
        _training_and_held_out(upper, run, lines, "loss", colour)
        lower.plot(*_series(lines, "learning_rate"), color=colour, linewidth=1.4)
    upper.set_ylabel("loss (dpo: of a pair)" if of_pairs(metrics_by_run) else "loss (nats a token)")
    upper.grid(**GRID)
    if metrics_by_run:
        upper.legend(**LEGEND)
    lower.set_ylabel("learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    lower.grid(**GRID)
    lower.set_xlabel("optimiser step")
    return figure


def of_pairs(metrics_by_run: Lines) -> Lines:
    """Those runs that were trained on preference pairs: their lines have reward margins."""
    return {run: lines for run, lines in metrics_by_run.items() if _series(lines, "rewards/margins")[0]}


def accuracy_curve(metrics_by_run: Lines, rehearse: bool = False) -> Picture:
    """Share of held-out questions answered right before training and at each checkpoint, with 95 % Wilson intervals:
    "accuracy" and "questions" of the lines."""
    figure = _picture(8, 3.2, "Accuracy while training", rehearse)
    axis = figure.subplots()
    for (run, lines), colour in zip(metrics_by_run.items(), cycle(COLOURS)):
        steps, shares = _series(lines, "accuracy")
        _, counts = _series(lines, "questions")
        intervals = [vars(stats.wilson(round(share * n), n)) for share, n in zip(shares, counts)]
        axis.plot(steps, shares, color=colour, linewidth=1.2)
        estimates, reach = _estimates(intervals, "estimate")
        axis.errorbar(steps, estimates, yerr=reach, color=colour, marker="o", label=run, **POINTS)
    axis.yaxis.set_major_formatter(_percent())
    axis.grid(**GRID)
    axis.set_ylabel("right answers")
    axis.set_xlabel("optimiser step")
    axis.legend(**LEGEND)
    return figure


def preference_curves(metrics_by_run: Lines, rehearse: bool = False) -> Picture:
    """By how much the chosen answer's reward is the higher, and in which share of pairs it is, by optimiser step: of
    training batches (lines) and of held-out pairs (points).

    "rewards/margins", "rewards/accuracies" and their "eval_" forms of the lines."""
    figure = _picture(8, 5.5, "Chosen against rejected answers", rehearse)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axis, name in ((upper, "rewards/margins"), (lower, "rewards/accuracies")):
        for (run, lines), colour in zip(metrics_by_run.items(), cycle(COLOURS)):
            _training_and_held_out(axis, run, lines, name, colour)
        axis.grid(**GRID)
        axis.legend(**LEGEND)
    upper.axhline(0, color="#444444", linewidth=1)
    upper.set_ylabel("reward margin (nats x beta)")
    lower.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    lower.yaxis.set_major_formatter(_percent())
    lower.set_ylabel("chosen answer ahead")
    lower.set_xlabel("optimiser step")
    return figure


def _training_and_held_out(axis: Axes, run: str, lines: Sequence[dict], name: str, colour: str) -> None:
    axis.plot(*_series(lines, name), color=colour, linewidth=1.4, label=f"{run}: training")
    steps, values = _series(lines, f"eval_{name}")
    if steps:
        axis.plot(steps, values, color=colour, marker="o", linestyle=":", markeredgecolor="white", markersize=7,
                  label=f"{run}: held-out (last {values[-1]:.3g})")  # fmt: skip


def _series(lines: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) in the order of steps; a step that was logged again after a resume counts once."""
    values = {line["step"]: line[name] for line in lines if line.get(name) is not None}
    return sorted(values), [values[step] for step in sorted(values)]


# ---- graded answers


def accuracy_by_kind(
    table: Sequence[dict], title: str = "Accuracy by kind, with 95 % Wilson intervals", rehearse: bool = False,
    word: str = "kind",
) -> Picture:  # fmt: skip
    """Accuracy of each model on each kind, a panel for each split and calculator setting in `table`.

    `table`: rows of `answers.summarise`; "model" may be any name, and the only one that begins with "base" is grey. The
    open marker is the format rate: the share of answers that end with an explicit answer mark."""
    ways = dict.fromkeys((row["split"], row["calculator"]) for row in table)
    kinds = sorted(dict.fromkeys(row["kind"] for row in table), key=lambda kind: kind == "all")
    models = list(dict.fromkeys(row["model"] for row in table))
    columns = 2 if len(ways) > 1 else 1
    lines = max(1, math.ceil(len(ways) / columns))
    height = lines * (0.9 + len(kinds) * max(0.42, 0.16 * len(models))) + 0.8
    figure = _picture(5.6 * columns + 1, height, title, rehearse)
    figure.subplots(lines, columns, sharey=True, sharex=True)
    splits = {split for split, _ in ways}
    for axis, (split, calculator) in zip(figure.axes, ways):
        rows = alike(table, split, calculator)
        _accuracies(axis, rows, kinds, models)
        axis.set_title(f"{asked(split, calculator, splits)} ({_sizes(rows, word)})", fontsize=10)
    for axis in figure.axes[len(ways) :]:
        axis.set_visible(False)
    if ways:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), **LEGEND)
    return figure


def _accuracies(axis: Axes, table: Sequence[dict], kinds: list[str], models: list[str]) -> None:
    """One panel: for each kind the models' accuracies and format rates, a little apart."""
    for index, model in enumerate(models):
        rows = [row for row in table if row["model"] == model]
        offset = (index - (len(models) - 1) / 2) * 0.6 / len(models)
        places = [kinds.index(row["kind"]) + offset for row in rows]
        look = {"color": _colour(model, models), "marker": MARKERS[index % len(MARKERS)]}
        axis.plot([row["format_rate"] for row in rows], places, linestyle="", fillstyle="none", alpha=0.45,
                  markersize=8, label=f"{model}: format rate", **look)  # fmt: skip
        _points(axis, rows, "accuracy", places, label=f"{model}: accuracy", **look)
    _name_rows(axis, kinds)
    axis.set_xlim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(_percent())
    axis.set_xlabel("share of questions")
    if len(kinds) > 1 and kinds[-1] == "all":
        axis.axhline(len(kinds) - 1.5, color="#cccccc", linewidth=0.8)


def _sizes(rows: Sequence[dict], word: str) -> str:
    """`n = 50 a kind, 300 in all`."""
    sizes = sorted({row["n"] for row in rows if row["kind"] != "all"})
    whole = max((row["n"] for row in rows if row["kind"] == "all"), default=0)
    if not sizes:
        return f"n = {whole}"
    text = f"n = {sizes[0]} to {sizes[-1]} a {word}" if len(sizes) > 1 else f"n = {sizes[0]} a {word}"
    if whole > sizes[-1]:
        text += f", {whole} in all"
    return text


def accuracy_by_level(table: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy of each model by the steps of reasoning that a question takes: rows of `answers.summarise` by level."""
    levels = [row | {"kind": f"level {row['level']}"} for row in table]
    return accuracy_by_kind(levels, "Accuracy by level, with 95 % Wilson intervals", rehearse, "level")


def tolerance_curve(errors_by_model: Mapping[str, Sequence[float]], rehearse: bool = False) -> Picture:
    """Share of questions answered within each relative tolerance from 0.01 % to 10 %, a curve for each model.

    `errors_by_model`: relative errors, infinite where no number was read (`answers.relative_errors`). A curve that is
    flat says that answers are right or far off; one that rises says that they are imprecise."""
    figure = _picture(8, 4.4, "Share right, by the error allowed", rehearse)
    axis, models = figure.subplots(), list(errors_by_model)
    tolerances, marks = np.geomspace(1e-4, 1e-1, 301), np.array([1e-3, 1e-2, 5e-2])  # the grader's own are marked
    for index, (model, errors) in enumerate(errors_by_model.items()):
        if not len(errors):
            continue
        colour, distances, n = _colour(model, models), np.asarray(errors)[:, None], len(errors)
        axis.plot(tolerances, (distances <= tolerances).mean(axis=0), color=colour, linewidth=1.6)
        intervals = [vars(stats.wilson(int(right), n)) for right in (distances <= marks).sum(axis=0)]
        shift = 1 + 0.04 * (index - (len(models) - 1) / 2)  # bars beside each other, not on top
        shares, reach = _estimates(intervals, "estimate")
        axis.errorbar(marks * shift, shares, yerr=reach, color=colour, marker=MARKERS[index % len(MARKERS)],
                      label=f"{model} (n = {n} with a numeric gold)", **POINTS)  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(1e-4, 1e-1)
    axis.set_ylim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axis.yaxis.set_major_formatter(_percent())
    axis.grid(**GRID)
    axis.set_xlabel("relative error allowed (logarithmic); bars: 95 % Wilson intervals at 0.1 %, 1 % and 5 %")
    axis.set_ylabel("share of questions")
    if axis.lines:
        figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return figure


def paired_change(
    paired: Sequence[dict], title: str = "Change in accuracy from base to tuned, on the same questions",
    rehearse: bool = False,
) -> Picture:  # fmt: skip
    """Differences in accuracy with their 95 % intervals around a zero line, a row each.

    `paired`: dictionaries with split, calculator and `answers.paired`'s keys; a "label" names the row instead."""
    figure = _rows_picture(9, len(paired), title, rehearse)
    axis = figure.subplots()
    splits = {row["split"] for row in paired}
    axis.axvline(0, color="#444444", linewidth=1)
    _points(axis, paired, "difference", range(len(paired)), scale=100, color=COLOURS[0], marker="o")
    _name_rows(axis, [row.get("label") or asked(row["split"], row["calculator"], splits) for row in paired])
    axis.set_xlabel("difference in accuracy, percentage points (bars: 95 % intervals)")
    notes = axis.secondary_yaxis("right")
    notes.set_yticks(range(len(paired)), [f"n = {row['n']}, {_p_text(row)}" for row in paired], fontsize=9)
    notes.tick_params(length=0)
    notes.spines["right"].set_visible(False)
    return figure


def _p_text(row: dict) -> str:
    return f"{p_text(row['p_holm'])} (Holm)" if "p_holm" in row else p_text(row["p_value"])


def error_classes(results: Sequence[dict], rehearse: bool = False) -> Picture:
    """Counts of right answers and of each error class, a bar for each model, split and calculator setting.

    `results`: rows of `evaluate.ask`."""
    counts: dict[tuple, Counter] = {}
    for row in results:
        name = "correct" if row["correct"] else row["error"] or "unknown"
        counts.setdefault((row["split"], row["calculator"], row["model"]), Counter())[name] += 1
    bars = sorted(counts, key=lambda bar: (bar[0], not bar[1]))
    total = sum(counts.values(), Counter())
    correct = total.pop("correct", 0)
    classes = {"correct": correct} | dict(total.most_common())
    figure = _rows_picture(9, len(bars), "What kind of wrong: answers by error class", rehearse, below=0.5)
    axis, starts = figure.subplots(), np.zeros(len(bars))
    for index, (name, n) in enumerate(classes.items()):
        widths = np.array([counts[bar][name] for bar in bars], dtype=float)
        colour = COLOURS[(index - 1) % len(COLOURS)] if index else "#dddddd"
        hatch = "//" if index > len(COLOURS) else None  # a second round of colours stays tellable
        axis.barh(range(len(bars)), widths, left=starts, color=colour, hatch=hatch, edgecolor="white",
                  label=f"{name} ({n})")  # fmt: skip
        starts += widths
    splits = {split for split, _, _ in bars}
    _name_rows(axis, [f"{model} | {asked(split, calculator, splits)} "
                      f"(n = {counts[split, calculator, model].total()})" for split, calculator, model in bars])
    axis.set_xlabel("answers (count)")
    if bars:
        figure.legend(loc="outside lower center", ncols=min(4, len(classes)), **LEGEND)
    return figure


# ---- rows of a data set


def token_lengths(
    lengths_by_kind: Mapping[str, Sequence[int]], max_length: int, title: str = "Row lengths by kind",
    rehearse: bool = False,
) -> Picture:  # fmt: skip
    """Tokens a row (box: middle half, whiskers: shortest and longest) against the limit `max_length`."""
    figure = _rows_picture(8, len(lengths_by_kind), title, rehearse)
    axis, names = figure.subplots(), []
    for index, (kind, lengths) in enumerate(lengths_by_kind.items()):
        too_long = sum(length > max_length for length in lengths)
        names.append(_counted(kind, len(lengths), too_long, "too long"))
        if len(lengths):
            axis.boxplot([list(lengths)], positions=[index], orientation="horizontal", whis=(0, 100), widths=0.55,
                         patch_artist=True, boxprops={"facecolor": COLOURS[5]}, medianprops={"color": "black"})
    axis.axvline(max_length, color=COLOURS[1], linestyle="--", label=f"max_length = {max_length} tokens")
    _name_rows(axis, names)
    axis.set_xlim(left=0)
    axis.set_xlabel("tokens a row (box: middle half; whiskers: all)")
    figure.legend(loc="outside lower right", **LEGEND)
    return figure


def answer_magnitudes(values_by_kind: Mapping[str, Iterable[Any]], rehearse: bool = False) -> Picture:
    """Each gold value as a dot on a logarithmic axis; zeros and negative values have their place on it.

    Values that are no number (a choice, a bool) are counted in the kind's name instead."""
    figure = _rows_picture(8, len(values_by_kind), "Gold answers by kind", rehearse)
    axis, names, shown = figure.subplots(), [], []
    for index, (kind, values) in enumerate(values_by_kind.items()):
        values = list(values)
        found = [float(value) for value in values if is_number(value)]
        names.append(_counted(kind, len(values), len(values) - len(found), "no number"))
        scatter = np.random.default_rng([0, index]).uniform(-0.3, 0.3, len(found))  # dots must not hide each other
        axis.plot(found, index + scatter, linestyle="", marker="o", markersize=3, alpha=0.5, color=COLOURS[0])
        shown += found
    sizes = [abs(value) for value in shown if value]
    if sizes and min(shown) > 0:
        axis.set_xscale("log")
    elif sizes:  # linear only between zero and the smallest size there is
        axis.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(min(sizes))))
        axis.axvline(0, color="#444444", linewidth=0.8)
    _name_rows(axis, names)
    axis.set_xlabel("gold value, in the answer's own unit (logarithmic)")
    return figure


def _counted(kind: str, n: int, others: int, what: str) -> str:
    """`drawdown (n = 50, 2 too long)`, or without what there is none of."""
    return f"{kind} (n = {n}, {others} {what})" if others else f"{kind} (n = {n})"


# ---- cost


def speed_and_memory(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Tokens a second and peak GiB of each run: {"run", "tokens_per_second", "memory_bytes", "memory_of"} rows."""
    figure = _rows_picture(9, len(rows), "Training speed and peak memory", rehearse)
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = sorted({row.get("memory_of") or "process" for row in rows})
    _bars(left, [row.get("tokens_per_second") or 0 for row in rows], COLOURS[0])
    _bars(right, [(row.get("memory_bytes") or 0) / 2**30 for row in rows], COLOURS[1])
    left.set_xlabel("tokens a second, training")
    right.set_xlabel(f"peak memory while training, GiB ({' or '.join(kinds)})")
    _name_rows(left, [row["run"] for row in rows])
    return figure


def ablation(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Bars of tokens/s, peak memory, held-out loss and time to the plain loss; a row of `ablation.ladder` each."""
    runs = f"medians of {rows[0]['runs']} runs" if rows[0]["runs"] > 1 else "one run"
    figure = _rows_picture(12, len(rows), f"What each step brings ({runs}, equal tokens)", rehearse)
    panels = (("tokens_per_second", 1, "tokens/s"), ("peak_bytes", 2**30, "peak memory (GiB)"),
              ("loss", 1, "held-out loss (nats a token)"),
              ("seconds_to_loss", 1, "seconds to the plain one's loss"))  # fmt: skip
    for axis, (name, unit, label) in zip(figure.subplots(1, 4, sharey=True), panels):
        bars = axis.barh(range(len(rows)), [(row[name] or 0) / unit for row in rows], color=COLOURS[0], height=0.55)
        bars[0].set_color(GREY)
        axis.bar_label(bars, ["not reached" if row[name] is None else _short(row[name] / unit) for row in rows],
                       padding=4)
        axis.margins(x=0.3)
        axis.set_xlabel(label)
    _name_rows(figure.axes[0], [row["step"] for row in rows])
    return figure


def load_test(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Seconds to the first and to the last token, and tokens a second, by requests at once: rows of
    `deploy.load_test`."""
    figure = _picture(10, 3.6, "The server under load", rehearse)
    left, right = figure.subplots(1, 2)
    places = range(len(rows))
    for name, label, look in (("latency", "whole answer", {"color": COLOURS[0], "marker": "o"}),
                              ("first_token", "first token", {"color": COLOURS[1], "marker": "s"})):  # fmt: skip
        left.plot(places, [row[f"{name}_p50_seconds"] for row in rows], "-", label=f"{label}, median", **look)
        left.plot(places, [row[f"{name}_p95_seconds"] for row in rows], ":", label=f"{label}, 95th percentile", **look)
    left.set_ylabel("seconds")
    left.set_ylim(bottom=0)
    left.legend(**LEGEND)
    bars = right.bar(places, [row["tokens_per_second"] for row in rows], color=COLOURS[2], width=0.55)
    right.bar_label(bars, fmt="{:,.0f}", padding=3)
    right.set_ylabel("tokens a second, all requests together")
    right.margins(y=0.15)
    for axis in (left, right):
        axis.set_xticks(places, [row["concurrent"] for row in rows])
        axis.set_xlabel(f"requests at once (of {rows[0]['requests']})")
    return figure


def chain(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy (without golds: perplexity) with its 95 % interval, and size, of each artefact in the chain's order.

    `rows`: of `chain.row`, with "artefact", "n", "accuracy" or "perplexity", "low", "high" and "bytes"."""
    figure = _rows_picture(10, len(rows), "From base to the file to ship", rehearse)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    score, scale, label = "perplexity", 1, f"perplexity of {rows[0]['n']} answers"
    if "accuracy" in rows[0]:
        score, scale, label = "accuracy", 100, f"accuracy, % of {rows[0]['n']} questions"
    _points(left, rows, score, range(len(rows)), scale, color=COLOURS[0], marker="o")
    for row in rows:
        if row["artefact"] == "adapter":
            left.axvline(scale * row[score], color=GREY, linestyle=":", linewidth=1)
    left.set_xlabel(f"{label} (bars: 95 %; dots: the tuned model)")
    _bars(right, [row["bytes"] / 2**20 for row in rows], COLOURS[5])
    right.set_xlabel("size, MiB")
    _name_rows(left, [row["artefact"] for row in rows])
    return figure


# ---- what they share


def _picture(width: float, height: float, title: str, rehearse: bool) -> Picture:
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    colour = "black"
    if rehearse:
        title, colour = f"REHEARSAL - not a result\n{title}", COLOURS[1]
    figure.suptitle(title, fontsize=12, fontweight="bold", color=colour)
    return figure


def _rows_picture(width: float, rows: int, title: str, rehearse: bool, below: float = 0) -> Picture:
    """A picture as high as its rows need, and `below` more inches for a legend."""
    return _picture(width, 1.7 + 0.45 * max(1, rows) + below, title, rehearse)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first at the top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)


def _percent() -> PercentFormatter:
    return PercentFormatter(1.0, symbol=" %")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _bars(axis: Axes, values: Sequence[float], colour: str) -> None:
    """A bar with its number in each row."""
    bars = axis.barh(range(len(values)), values, color=colour, height=0.55)
    axis.bar_label(bars, [_short(value) for value in values], padding=4)
    axis.margins(x=0.2)


def _points(axis: Axes, rows: Sequence[dict], name: str, places: Iterable[float], scale: float = 1, **look) -> None:
    """Estimates as points on their rows' places, with bars from "low" to "high"."""
    values, reach = _estimates(rows, name, scale)
    axis.errorbar(values, places, xerr=reach, **POINTS, **look)
    axis.grid(axis="x", **GRID)


def _estimates(rows: Sequence[dict], name: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (n,), and how far their intervals reach below and above them (2, n)."""
    table = np.array([(row[name], row["low"], row["high"]) for row in rows], dtype=float).reshape(-1, 3)
    values, lows, highs = scale * table.T
    return values, np.maximum(0, [values - lows, highs - values])  # rounding can put a limit a hair inside


def _colour(model: str, models: list[str]) -> str:
    """Grey for the only base model; with several runs each model has a colour of its own."""
    bases = [name for name in models if name.split()[0] == "base"]
    if bases == [model]:
        return GREY
    coloured = models if len(bases) > 1 else [name for name in models if name not in bases]
    return COLOURS[coloured.index(model) % len(COLOURS)]
