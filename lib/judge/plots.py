"""Data in, a matplotlib Figure out: no pyplot, so no state stays behind; Jupyter shows each figure as a picture."""

import io
import math
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lib.grade import stats
from lib.judge.answers import asked, p_text

# Okabe and Ito's colours, which colour-blind readers can tell apart; grey stands for the base model.
GREY = "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
DPI = 144


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


def loss_curves(
    metrics_by_run: Mapping[str, Sequence[dict]], title: str = "Loss while training", rehearse: bool = False
) -> Picture:
    """Training loss (lines) and held-out loss (points) by optimiser step; below them the learning rate.

    `metrics_by_run`: the lines of each run's metrics.jsonl, with "step" and any of "loss", "eval_loss",
    "learning_rate"; a value that is absent or None is left out.
    """
    figure = _picture(8, 5.5, title, rehearse)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for index, (run, lines) in enumerate(metrics_by_run.items()):
        colour = COLOURS[index % len(COLOURS)]
        _training_and_held_out(upper, run, lines, "loss", colour)
        lower.plot(*_series(lines, "learning_rate"), color=colour, linewidth=1.4)
    for axis in (upper, lower):
        axis.grid(color="#e5e5e5", linewidth=0.7)
    pairs = any("rewards/margins" in line for lines in metrics_by_run.values() for line in lines)
    upper.set_ylabel("loss (dpo: of a pair)" if pairs else "loss (nats a token)")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimiser step")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if upper.lines:
        upper.legend(frameon=False, fontsize=9)
    return figure


def accuracy_curve(metrics_by_run: Mapping[str, Sequence[dict]], rehearse: bool = False) -> Picture:
    """Share of held-out questions answered right before training and at each checkpoint, with 95 % Wilson intervals.

    `metrics_by_run`: as for `loss_curves`; "accuracy" and "questions" of a line count.
    """
    figure = _picture(8, 3.2, "Accuracy while training", rehearse)
    axis = figure.subplots()
    for index, (run, lines) in enumerate(metrics_by_run.items()):
        (steps, shares), (_, counts) = _series(lines, "accuracy"), _series(lines, "questions")
        found = [stats.wilson(round(share * n), n) for share, n in zip(shares, counts)]
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(steps, shares, color=colour, linewidth=1.2)
        _points(axis, list(map(vars, found)), "estimate", steps, upright=True, color=colour, marker="o", label=run)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axis.grid(color="#e5e5e5", linewidth=0.7)
    axis.set_ylabel("right answers")
    axis.set_xlabel("optimiser step")
    axis.legend(frameon=False, fontsize=9)
    return figure


def preference_curves(metrics_by_run: Mapping[str, Sequence[dict]], rehearse: bool = False) -> Picture:
    """By how much the chosen answer's reward is the higher, and in which share of pairs it is, by optimiser step: of
    training batches (lines) and of held-out pairs (points).

    `metrics_by_run`: as for `loss_curves`; "rewards/margins", "rewards/accuracies" and their "eval_" forms count.
    """
    figure = _picture(8, 5.5, "Chosen against rejected answers", rehearse)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axis, name in ((upper, "rewards/margins"), (lower, "rewards/accuracies")):
        for index, (run, lines) in enumerate(metrics_by_run.items()):
            _training_and_held_out(axis, run, lines, name, COLOURS[index % len(COLOURS)])
        axis.grid(color="#e5e5e5", linewidth=0.7)
        axis.legend(frameon=False, fontsize=9)
    upper.axhline(0, color="#444444", linewidth=1)
    upper.set_ylabel("reward margin (nats x beta)")
    lower.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    lower.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    lower.set_ylabel("chosen answer ahead")
    lower.set_xlabel("optimiser step")
    return figure


def accuracy_by_kind(
    table: Sequence[dict], title: str = "Accuracy by kind, with 95 % Wilson intervals", rehearse: bool = False,
    word: str = "kind",
) -> Picture:  # fmt: skip
    """Accuracy of each model on each kind, a panel for each split and calculator setting in `table`.

    `table`: rows of `answers.summarise`; "model" may be any name, and the only one that begins with "base" is grey. The
    open marker is the format rate: the share of answers that end with an explicit answer mark.
    """
    panels = list(dict.fromkeys((row["split"], row["calculator"]) for row in table))
    kinds, models = _names(table, "kind", last="all"), _names(table, "model")
    columns = min(2, max(1, len(panels)))
    lines = math.ceil(max(1, len(panels)) / columns)
    high = lines * (0.9 + len(kinds) * max(0.42, 0.16 * len(models))) + 0.8
    figure = _picture(5.6 * columns + 1, high, title, rehearse)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True).flat
    splits = {split for split, _ in panels}
    for axis, (split, calculator) in zip(axes, panels, strict=False):
        chosen = [row for row in table if (row["split"], row["calculator"]) == (split, calculator)]
        for index, model in enumerate(models):
            rows = [row for row in chosen if row["model"] == model]
            offset = (index - (len(models) - 1) / 2) * 0.6 / len(models)
            places = [kinds.index(row["kind"]) + offset for row in rows]
            colour, marker = _colour(model, models), MARKERS[index % len(MARKERS)]
            axis.plot([row["format_rate"] for row in rows], places, linestyle="", marker=marker, color=colour,
                      fillstyle="none", alpha=0.45, markersize=8, label=f"{model}: format rate")
            _points(axis, rows, "accuracy", places, color=colour, marker=marker, label=f"{model}: accuracy")
        axis.set_title(f"{asked(split, calculator, splits)} ({_sizes(chosen, word)})", fontsize=10)
        axis.set_yticks(range(len(kinds)), kinds)
        axis.set_ylim(len(kinds) - 0.5, -0.5)  # the first kind at the top
        axis.set_xlim(-0.02, 1.02)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axis.set_xlabel("share of questions")
        if len(kinds) > 1 and kinds[-1] == "all":
            axis.axhline(len(kinds) - 1.5, color="#cccccc", linewidth=0.8)
    for axis in list(figure.axes)[len(panels):]:
        axis.set_visible(False)
    if panels:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    return figure


def accuracy_by_level(table: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy of each model by the steps of reasoning that a question takes: rows of `answers.summarise` by level."""
    levels = [row | {"kind": f"level {row['level']}"} for row in table]
    return accuracy_by_kind(levels, "Accuracy by level, with 95 % Wilson intervals", rehearse, "level")


def tolerance_curve(errors_by_model: Mapping[str, Sequence[float]], rehearse: bool = False) -> Picture:
    """Share of questions answered within each relative tolerance from 0.01 % to 10 %, a curve for each model.

    `errors_by_model`: relative errors, infinite where no number was read (`answers.relative_errors`). A curve that is
    flat says that answers are right or far off; one that rises says that they are imprecise.
    """
    figure = _picture(8, 4.4, "Share right, by the error allowed", rehearse)
    axis, names = figure.subplots(), list(errors_by_model)
    tolerances, marks = np.geomspace(1e-4, 1e-1, 301), np.array([1e-3, 1e-2, 5e-2])  # the grader's own are marked
    for index, (name, errors) in enumerate(errors_by_model.items()):
        if not len(errors):
            continue
        colour, distances = _colour(name, names), np.asarray(errors)[:, None]
        axis.plot(tolerances, (distances <= tolerances).mean(axis=0), color=colour, linewidth=1.6)
        found = [stats.wilson(int(right), len(errors)) for right in (distances <= marks).sum(axis=0)]
        shift = 1 + 0.04 * (index - (len(names) - 1) / 2)  # bars beside each other, not on top
        _points(axis, list(map(vars, found)), "estimate", marks * shift, upright=True, color=colour,
                marker=MARKERS[index % len(MARKERS)], label=f"{name} (n = {len(errors)} with a numeric gold)")
    axis.set_xscale("log")
    axis.set_xlim(1e-4, 1e-1)
    axis.set_ylim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axis.grid(color="#e5e5e5", linewidth=0.7)
    axis.set_xlabel("relative error allowed (logarithmic); bars: 95 % Wilson intervals at 0.1 %, 1 % and 5 %")
    axis.set_ylabel("share of questions")
    if axis.lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def paired_change(
    paired: Sequence[dict], title: str = "Change in accuracy from base to tuned, on the same questions",
    rehearse: bool = False,
) -> Picture:
    """Differences in accuracy with their 95 % intervals around a zero line, a row each.

    `paired`: dictionaries with split, calculator and `answers.paired`'s keys; a "label" names the row instead.
    """
    figure = _picture(9, 1.5 + 0.5 * max(1, len(paired)), title, rehearse)
    axis = figure.subplots()
    splits = {row["split"] for row in paired}
    names = [row.get("label") or asked(row["split"], row["calculator"], splits) for row in paired]
    axis.axvline(0, color="#444444", linewidth=1)
    _points(axis, paired, "difference", range(len(paired)), scale=100, color=COLOURS[0], marker="o")
    axis.set_yticks(range(len(paired)), names)
    axis.set_ylim(max(1, len(paired)) - 0.5, -0.5)
    axis.set_xlabel("difference in accuracy, percentage points (bars: 95 % intervals)")
    notes = axis.secondary_yaxis("right")
    notes.set_yticks(range(len(paired)), [
        f"n = {row['n']}, " + (f"{p_text(row['p_holm'])} (Holm)" if "p_holm" in row else p_text(row["p_value"]))
        for row in paired
    ], fontsize=9)  # fmt: skip
    notes.tick_params(length=0)
    notes.spines["right"].set_visible(False)
    return figure


def error_classes(results: Sequence[dict], rehearse: bool = False) -> Picture:
    """Counts of right answers and of each error class, a bar for each model, split and calculator setting.

    `results`: rows of `evaluate.ask`.
    """
    counts: dict[tuple, Counter] = {}
    for row in results:
        name = "correct" if row["correct"] else row["error"] or "unknown"
        counts.setdefault((row["split"], row["calculator"], row["model"]), Counter())[name] += 1
    bars = sorted(counts, key=lambda bar: (bar[0], not bar[1]))
    total = sum(counts.values(), Counter())
    classes = ["correct", *(name for name, _ in total.most_common() if name != "correct")]
    figure = _picture(9, 2.2 + 0.4 * max(1, len(bars)), "What kind of wrong: answers by error class", rehearse)
    axis, starts = figure.subplots(), np.zeros(len(bars))
    splits = {bar[0] for bar in bars}
    for index, name in enumerate(classes):
        widths = np.array([counts[bar][name] for bar in bars], dtype=float)
        colour = "#dddddd" if name == "correct" else COLOURS[(index - 1) % len(COLOURS)]
        hatch = "//" if index > len(COLOURS) else None  # a second round of colours stays tellable
        axis.barh(range(len(bars)), widths, left=starts, color=colour, hatch=hatch, edgecolor="white",
                  label=f"{name} ({total[name]})")
        starts += widths
    axis.set_yticks(range(len(bars)), [f"{model} | {asked(split, calculator, splits)} (n = {counts[bar].total()})"
                                       for bar in bars for split, calculator, model in [bar]], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("answers (count)")
    if bars:
        figure.legend(loc="outside lower center", ncols=min(4, len(classes)), frameon=False, fontsize=9)
    return figure


def token_lengths(
    lengths_by_kind: Mapping[str, Sequence[int]], max_length: int, title: str = "Row lengths by kind",
    rehearse: bool = False,
) -> Picture:
    """Tokens a row (box: middle half, whiskers: shortest and longest) against the limit `max_length`."""
    figure = _picture(8, 1.6 + 0.42 * max(1, len(lengths_by_kind)), title, rehearse)
    axis = figure.subplots()
    for index, lengths in enumerate(lengths_by_kind.values()):
        if len(lengths):
            axis.boxplot([list(lengths)], positions=[index], orientation="horizontal", whis=(0, 100), widths=0.55,
                         patch_artist=True, boxprops={"facecolor": COLOURS[5]}, medianprops={"color": "black"})
    axis.axvline(max_length, color=COLOURS[1], linestyle="--", label=f"max_length = {max_length} tokens")
    too_long = [sum(length > max_length for length in lengths) for lengths in lengths_by_kind.values()]
    axis.set_yticks(range(len(lengths_by_kind)), [
        f"{kind} (n = {len(lengths)}{f', {over} too long' if over else ''})"
        for (kind, lengths), over in zip(lengths_by_kind.items(), too_long, strict=True)
    ])
    axis.set_ylim(max(1, len(lengths_by_kind)) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("tokens a row (box: middle half; whiskers: all)")
    figure.legend(loc="outside lower right", frameon=False, fontsize=9)
    return figure


def answer_magnitudes(values_by_kind: Mapping[str, Iterable[Any]], rehearse: bool = False) -> Picture:
    """Each gold value as a dot on a logarithmic axis; zeros and negative values have their place on it.

    Values that are no number (a choice, a bool) are counted in the kind's name instead.
    """
    figure = _picture(8, 1.6 + 0.5 * max(1, len(values_by_kind)), "Gold answers by kind", rehearse)
    axis, names, shown = figure.subplots(), [], []
    for index, (kind, values) in enumerate(values_by_kind.items()):
        values = list(values)
        real = [value for value in values if isinstance(value, numbers.Real) and not isinstance(value, bool)]
        found = [float(value) for value in real if math.isfinite(value)]
        others = len(values) - len(found)
        names.append(f"{kind} (n = {len(values)}{f', {others} no number' if others else ''})")
        scatter = np.random.default_rng([0, index]).uniform(-0.3, 0.3, len(found))  # dots must not hide each other
        axis.plot(found, index + scatter, linestyle="", marker="o", markersize=3, alpha=0.5, color=COLOURS[0])
        shown += found
    sizes = [abs(value) for value in shown if value]
    if sizes and min(shown) > 0:
        axis.set_xscale("log")
    elif sizes:  # linear only between zero and the smallest size there is
        axis.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(min(sizes))))
        axis.axvline(0, color="#444444", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axis.set_xlabel("gold value, in the answer's own unit (logarithmic)")
    return figure


def speed_and_memory(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Tokens a second and peak GiB of each run: {"run", "tokens_per_second", "memory_bytes", "memory_of"} rows."""
    figure = _picture(9, 1.7 + 0.45 * max(1, len(rows)), "Training speed and peak memory", rehearse)
    axes = figure.subplots(1, 2, sharey=True)
    speeds = [row.get("tokens_per_second") or 0 for row in rows]
    memory = [(row.get("memory_bytes") or 0) / 2**30 for row in rows]
    kinds = sorted({row.get("memory_of") or "process" for row in rows})
    labels = "tokens a second, training", f"peak memory while training, GiB ({' or '.join(kinds)})"
    for axis, values, label, colour in zip(axes, (speeds, memory), labels, COLOURS, strict=False):
        bars = axis.barh(range(len(rows)), values, color=colour, height=0.55)
        axis.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=4)
        axis.set_xlabel(label)
        axis.margins(x=0.18)
    axes[0].set_yticks(range(len(rows)), [row["run"] for row in rows])
    axes[0].set_ylim(max(1, len(rows)) - 0.5, -0.5)
    return figure


def ablation(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Bars of tokens/s, peak memory, held-out loss and time to the plain loss; a row of `ablation.ladder` each."""
    runs = f"medians of {rows[0]['runs']} runs" if rows[0]["runs"] > 1 else "one run"
    figure = _picture(12, 0.6 + 0.45 * len(rows) + 0.6, f"What each step brings ({runs}, equal tokens)", rehearse)
    panels = (("tokens_per_second", 1, "tokens/s", "{:,.0f}"), ("peak_bytes", 2**30, "peak memory (GiB)", "{:.2f}"),
              ("loss", 1, "held-out loss (nats a token)", "{:.2f}"),
              ("seconds_to_loss", 1, "seconds to the plain one's loss", "{:.1f}"))  # fmt: skip
    for axis, (key, unit, label, form) in zip(figure.subplots(1, 4, sharey=True), panels):
        values = [None if row[key] is None else row[key] / unit for row in rows]
        colours = [GREY, *[COLOURS[0]] * (len(rows) - 1)]
        bars = axis.barh(range(len(rows)), [value or 0 for value in values], color=colours, height=0.7)
        axis.bar_label(bars, ["not reached" if v is None else form.format(v) for v in values], padding=3, fontsize=8)
        axis.set_xlim(0, 1.3 * max([value or 0 for value in values] + [1e-9]))
        axis.set_xlabel(label)
        axis.set_yticks(range(len(rows)), [row["step"] for row in rows])
    figure.axes[0].invert_yaxis()
    return figure


def load_test(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Seconds to the first and to the last token, and tokens a second, by requests at once: rows of `deploy.load_test`.
    """
    figure = _picture(10, 3.6, "The server under load", rehearse)
    left, right = figure.subplots(1, 2)
    counts = [row["concurrent"] for row in rows]
    for index, (name, label) in enumerate((("latency", "whole answer"), ("first_token", "first token"))):
        for share, style in ((50, "-"), (95, ":")):
            seconds = [row[f"{name}_p{share}_seconds"] for row in rows]
            left.plot(range(len(rows)), seconds, style, marker=MARKERS[index], color=COLOURS[index],
                      label=f"{label}, {'median' if share == 50 else '95th percentile'}")  # fmt: skip
    left.set_ylabel("seconds")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=9)
    bars = right.bar(range(len(rows)), [row["tokens_per_second"] for row in rows], color=COLOURS[2], width=0.55)
    right.bar_label(bars, fmt="{:,.0f}", padding=3)
    right.set_ylabel("tokens a second, all requests together")
    right.margins(y=0.15)
    for axis in (left, right):
        axis.set_xticks(range(len(rows)), counts)
        axis.set_xlabel(f"requests at once (of {rows[0]['requests']})")
    return figure


def _picture(width: float, height: float, title: str, rehearse: bool) -> Picture:
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    note = "REHEARSAL - not a result\n" if rehearse else ""
    figure.suptitle(note + title, fontsize=12, fontweight="bold", color=COLOURS[1] if rehearse else "black")
    return figure


def _training_and_held_out(axis: Any, run: str, lines: Sequence[dict], name: str, colour: str) -> None:
    axis.plot(*_series(lines, name), color=colour, linewidth=1.4, label=f"{run}: training")
    steps, values = _series(lines, f"eval_{name}")
    if steps:
        axis.plot(steps, values, color=colour, marker="o", linestyle=":", markeredgecolor="white", markersize=7,
                  label=f"{run}: held-out (last {values[-1]:.3g})")  # fmt: skip


def _series(lines: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) in the order of steps; a step that was logged again after a resume counts once."""
    found = {line["step"]: line[name] for line in lines if line.get(name) is not None}
    return sorted(found), [found[step] for step in sorted(found)]


def _names(rows: Sequence[dict], key: str, last: str | None = None) -> list[str]:
    """The different values of a key in their order, `last` at the end."""
    return sorted(dict.fromkeys(row[key] for row in rows), key=lambda name: name == last)


def _colour(model: str, models: list[str]) -> str:
    """Grey for the only base model; with several runs each model has a colour of its own."""
    bases = [name for name in models if name.split()[0] == "base"]
    if bases == [model]:
        return GREY
    return COLOURS[[name for name in models if bases != [name]].index(model) % len(COLOURS)]


def _points(axis: Any, rows: Sequence[dict], key: str, places: Iterable[float], scale: float = 1, upright: bool = False,
            **style: Any) -> None:  # fmt: skip
    """Estimates as points with bars from "low" to "high", lying on `places` (or `upright` above them)."""
    values, lows, highs = (scale * np.array([row[name] for row in rows]) for name in (key, "low", "high"))
    reach = np.maximum(0, [values - lows, highs - values])  # rounding can put a limit a hair inside the estimate
    x, y, bars = (list(places), values, "yerr") if upright else (values, list(places), "xerr")
    axis.errorbar(x, y, **{bars: reach}, linestyle="", capsize=3, markersize=6, **style)
    axis.grid(axis="y" if upright else "x", color="#e5e5e5", linewidth=0.7)
    axis.set_axisbelow(True)


def _sizes(rows: Sequence[dict], word: str = "kind") -> str:
    """`n = 50 a kind, 300 in all`."""
    kinds = sorted({row["n"] for row in rows if row["kind"] != "all"})
    if not kinds:
        return f"n = {rows[0]['n']}"
    each = f"{kinds[0]}" if len(kinds) == 1 else f"{kinds[0]} to {kinds[-1]}"
    whole = max((row["n"] for row in rows if row["kind"] == "all"), default=0)
    return f"n = {each} a {word}" + (f", {whole} in all" if whole > kinds[-1] else "")


def chain(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy (without golds: perplexity) with its 95 % interval, and size, of each artefact in the chain's order.

    `rows`: of `chain.row`, with "artefact", "n", "accuracy" or "perplexity", "low", "high" and "bytes".
    """
    figure = _picture(10, 1.7 + 0.45 * max(1, len(rows)), "From base to the file to ship", rehearse)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(rows))
    graded = not rows or "accuracy" in rows[0]
    score, scale, what = ("accuracy", 100, "accuracy, % of {} questions") if graded else (
        "perplexity", 1, "perplexity of {} answers")  # fmt: skip
    _points(left, rows, score, places, scale=scale, color=COLOURS[0], marker="o")
    for tuned in [scale * row[score] for row in rows if row["artefact"] == "adapter"]:
        left.axvline(tuned, color=GREY, linestyle=":", linewidth=1)
    left.set_xlabel(f"{what.format(rows[0]['n'] if rows else 0)} (bars: 95 %; dots: the tuned model)")
    bars = right.barh(places, [row["bytes"] / 2**20 for row in rows], color=COLOURS[5], height=0.55)
    right.bar_label(bars, [f"{row['bytes'] / 2**20:,.1f}" for row in rows], padding=4)
    right.set_xlabel("size, MiB")
    right.margins(x=0.2)
    left.set_yticks(places, [row["artefact"] for row in rows])
    left.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    return figure
