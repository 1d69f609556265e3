"""Data in, a matplotlib Figure out: no pyplot, so no state stays behind; Jupyter shows it as a picture."""

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
from lib.judge.answers import asked, grouped, is_number, p_text

# Okabe and Ito's colours, which colour-blind readers can tell apart; grey is the base model.
GREY = "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
DPI = 144
GRID = {"color": "#e5e5e5", "linewidth": 0.7}
LEGEND, BELOW = {"frameon": False, "fontsize": 9}, "outside lower center"
POINTS = {"linestyle": "", "capsize": 3, "markersize": 6}

Lines = Mapping[str, Sequence[dict]]  # run -> the lines of its metrics.jsonl


class Picture(Figure):
    """A Figure that shows itself in Jupyter as a PNG, with its title as the text for who cannot see it."""

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


def loss_curves(
    metrics_by_run: Lines, title: str = "Loss while training", rehearse: bool = False
) -> Picture:
    """Training loss (lines) and held-out loss (points) by optimiser step; below them the learning rate.

    A line has "step" and any of "loss", "eval_loss", "learning_rate", which may also be None."""
    figure = _picture(8, 5.5, title, rehearse)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _training_and_held_out(upper, metrics_by_run, "loss")
    for lines, colour in zip(metrics_by_run.values(), cycle(COLOURS)):
        lower.plot(*_series(lines, "learning_rate"), color=colour, linewidth=1.4)
    upper.set_ylabel("loss (dpo: of a pair)" if of_pairs(metrics_by_run) else "loss (nats a token)")
    lower.set(xlabel="optimiser step", ylabel="learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    lower.grid(**GRID)
    return figure


def of_pairs(metrics_by_run: Lines) -> Lines:
    """Those runs that were trained on preference pairs: their lines have reward margins."""
    return {run: lines for run, lines in metrics_by_run.items() if _series(lines, "rewards/margins")[0]}


def accuracy_curve(metrics_by_run: Lines, rehearse: bool = False) -> Picture:
    """Share of held-out questions answered right at each checkpoint, with 95 % Wilson intervals.

    Of the lines: "accuracy" and "questions"."""
    figure = _picture(8, 3.2, "Accuracy while training", rehearse)
    axis = figure.subplots()
    for (run, lines), colour in zip(metrics_by_run.items(), cycle(COLOURS)):
        steps, shares = _series(lines, "accuracy")
        sizes = _series(lines, "questions")[1]
        axis.plot(steps, shares, color=colour, linewidth=1.2)
        right = [round(share * n) for share, n in zip(shares, sizes)]
        _wilson(axis, steps, right, sizes, color=colour, marker="o", label=run)
    axis.set(xlabel="optimiser step", ylabel="right answers")
    axis.legend(**LEGEND)
    return figure


def preference_curves(metrics_by_run: Lines, rehearse: bool = False) -> Picture:
    """By how much the chosen answer's reward is the higher, and in which share of pairs it is.

    By optimiser step, of training batches (lines) and of held-out pairs (points): "rewards/margins",
    "rewards/accuracies" and their "eval_" forms."""
    figure = _picture(8, 5.5, "Chosen against rejected answers", rehearse)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _training_and_held_out(upper, metrics_by_run, "rewards/margins")
    _training_and_held_out(lower, metrics_by_run, "rewards/accuracies")
    upper.axhline(0, color="#444444", linewidth=1)
    upper.set_ylabel("reward margin (nats x beta)")
    lower.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    lower.yaxis.set_major_formatter(_percent())
    lower.set(xlabel="optimiser step", ylabel="chosen answer ahead")
    return figure


def reward_curves(lines: Sequence[dict], logged: Sequence[dict] = (), rehearse: bool = False) -> Picture:
    """What sampled answers earned, step by step: reward and its parts, the groups they form, their length, how sure the
    model is of them.

    `lines` are those of `rollouts.by_step`; `logged`, of metrics.jsonl, may have "entropy" and "kl"."""
    sure = [name for name in ("entropy", "kl") if _series(logged, name)[0]]
    panels = 3 + bool(sure)
    figure = _picture(8, 2 * panels, "What the sampled answers earned", rehearse)
    reward, shares, length, *last = figure.subplots(panels, 1, sharex=True)
    for name, colour in zip(("reward", "right", "shape", "arithmetic"), COLOURS):
        reward.plot(*_series(lines, name), color=colour, marker=".", label=name)
    groups = ("all right", "mixed", "all wrong")
    steps, values = _series(lines, groups[0])[0], [_series(lines, name)[1] for name in groups]
    shares.stackplot(steps, *values, labels=groups, colors=(COLOURS[2], COLOURS[0], GREY))
    length.plot(*_series(lines, "tokens"), color=COLOURS[0], marker=".", label="an answer")
    length.set_ylim(bottom=0)
    for name, colour in zip(sure, COLOURS):
        last[0].plot(*_series(logged, name), color=colour, label=f"{name} of a token")
    for axis, label in zip((reward, shares, length, *last), ("mean", "questions", "tokens", "nats")):
        axis.set_ylabel(label)
        axis.grid(**GRID)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **LEGEND)
    shares.yaxis.set_major_formatter(_percent())
    (last or [length])[-1].set_xlabel("step" if sure else "round")
    return figure


def _training_and_held_out(axis: Axes, metrics_by_run: Lines, name: str) -> None:
    for (run, lines), colour in zip(metrics_by_run.items(), cycle(COLOURS)):
        axis.plot(*_series(lines, name), color=colour, linewidth=1.4, label=f"{run}: training")
        steps, values = _series(lines, f"eval_{name}")
        if steps:
            axis.plot(steps, values, color=colour, marker="o", linestyle=":", markeredgecolor="white",
                      markersize=7, label=f"{run}: held-out (last {values[-1]:.3g})")  # fmt: skip
    axis.grid(**GRID)
    if metrics_by_run:
        axis.legend(**LEGEND)


def _series(lines: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) in the order of steps; a step that was logged again counts once."""
    values = {line["step"]: line[name] for line in lines if line.get(name) is not None}
    return sorted(values), [values[step] for step in sorted(values)]


# ---- graded answers


def accuracy_by_kind(
    table: Sequence[dict], title: str = "Accuracy by kind, with 95 % Wilson intervals",
    rehearse: bool = False, word: str = "kind",
) -> Picture:  # fmt: skip
    """Accuracy of each model on each kind, a panel for each split and calculator setting in `table`.

    `table`: rows of `answers.summarise`; of models the only one that begins with "base" is grey. The open
    marker is the format rate: the share of answers that end with an explicit answer mark."""
    panels = grouped(table, "split", "calculator")
    kinds = sorted(grouped(table, "kind"), key=lambda kind: kind == "all")
    models = list(grouped(table, "model"))
    columns = min(2, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    height = lines * (0.9 + len(kinds) * max(0.42, 0.16 * len(models))) + 0.8
    figure = _picture(5.6 * columns + 1, height, title, rehearse)
    figure.subplots(lines, columns, sharey=True, sharex=True)
    splits = {split for split, _ in panels}
    for axis, ((split, calculator), rows) in zip(figure.axes, panels.items()):
        _accuracies(axis, rows, kinds, models)
        axis.set_title(f"{asked(split, calculator, splits)} ({_sizes(rows, word)})", fontsize=10)
    for axis in figure.axes[len(panels) :]:
        axis.set_visible(False)
    if panels:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc=BELOW, ncols=len(models), **LEGEND)
    return figure


def _accuracies(axis: Axes, table: Sequence[dict], kinds: list[str], models: list[str]) -> None:
    """One panel: for each kind the models' accuracies and format rates, a little apart."""
    for index, (model, marker) in enumerate(zip(models, cycle(MARKERS))):
        rows = [row for row in table if row["model"] == model]
        offset = (index - (len(models) - 1) / 2) * 0.6 / len(models)
        places = [kinds.index(row["kind"]) + offset for row in rows]
        look = {"color": _colour(model, models), "marker": marker}
        axis.plot([row["format_rate"] for row in rows], places, linestyle="", fillstyle="none",
                  alpha=0.45, markersize=8, label=f"{model}: format rate", **look)  # fmt: skip
        _points(axis, rows, "accuracy", places, label=f"{model}: accuracy", **look)
    _name_rows(axis, kinds)
    axis.xaxis.set_major_formatter(_percent())
    axis.set(xlabel="share of questions", xlim=(-0.02, 1.02))
    if len(kinds) > 1 and kinds[-1] == "all":
        axis.axhline(len(kinds) - 1.5, color="#cccccc", linewidth=0.8)


def _sizes(rows: Sequence[dict], word: str) -> str:
    """`n = 50 a kind, 300 in all`."""
    sizes = sorted({row["n"] for row in rows if row["kind"] != "all"})
    whole = max((row["n"] for row in rows if row["kind"] == "all"), default=0)
    if not sizes:
        return f"n = {whole}"
    text = f"n = {' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} a {word}"
    if whole > sizes[-1]:
        text += f", {whole} in all"
    return text


def accuracy_by_level(table: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy of each model by the steps that a question takes: `answers.summarise` by level."""
    levels = [row | {"kind": f"level {row['level']}"} for row in table]
    return accuracy_by_kind(levels, "Accuracy by level, with 95 % Wilson intervals", rehearse, "level")


def accuracy_by_run(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy of base and tuned model, a row for each run: rows of `compare.run_rows`."""
    named = [row | {"kind": row["run"]} for row in rows]
    return accuracy_by_kind(named, "Accuracy by run, with 95 % Wilson intervals", rehearse, "run")


def tolerance_curve(errors_by_model: Mapping[str, Sequence[float]], rehearse: bool = False) -> Picture:
    """Share of questions answered within each relative tolerance from 0.01 % to 10 %, a curve a model.

    `errors_by_model`: of `answers.relative_errors`, infinite where no number was read. A flat curve says
    that answers are right or far off; one that rises says that they are imprecise."""
    figure = _picture(8, 4.4, "Share right, by the error allowed", rehearse)
    axis, models = figure.subplots(), list(errors_by_model)
    tolerances = np.geomspace(1e-4, 1e-1, 301)
    marks = np.array([1e-3, 1e-2, 5e-2])  # the grader's own
    for index, (model, marker) in enumerate(zip(models, cycle(MARKERS))):
        errors, colour = np.array(errors_by_model[model]), _colour(model, models)
        if not errors.size:
            continue
        shares = (errors[:, None] <= tolerances).mean(axis=0)
        axis.plot(tolerances, shares, color=colour, linewidth=1.6)
        right = (errors[:, None] <= marks).sum(axis=0).tolist()
        shift = 1 + 0.04 * (index - (len(models) - 1) / 2)  # bars must not hide each other
        _wilson(axis, marks * shift, right, [errors.size] * len(marks), color=colour, marker=marker,
                label=f"{model} (n = {errors.size} with a numeric gold)")  # fmt: skip
    axis.set(xscale="log", xlim=(1e-4, 1e-1), ylim=(-0.02, 1.02), ylabel="share of questions")
    axis.set_xlabel("relative error allowed (logarithmic); "
                    "bars: 95 % Wilson intervals at 0.1 %, 1 % and 5 %")  # fmt: skip
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    if axis.lines:
        figure.legend(loc=BELOW, ncols=2, **LEGEND)
    return figure


def pass_curves(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """pass@k with its 95 % intervals, and the majority of k (open, dotted), by k; a colour an arm.

    `rows`: of `probe.curves`. Curves that meet say that the other model knew the answers too, if seldom."""
    figure = _picture(8, 4.4, "Right among k sampled answers", rehearse)
    axis, arms, counts = figure.subplots(), list(grouped(rows, "model")), sorted({row["k"] for row in rows})
    for (arm, score), own in grouped(rows, "model", "score").items():
        look = {"color": _colour(arm, arms), "marker": MARKERS[arms.index(arm)]}
        shift = 1 + 0.03 * (arms.index(arm) - (len(arms) - 1) / 2)  # bars must not hide each other
        places, (values, reach) = [row["k"] * shift for row in own], _estimates(own, "estimate")
        if score == "pass":
            axis.errorbar(places, values, yerr=reach, **POINTS | {"linestyle": "-"}, **look, label=f"{arm}: pass@k")
        else:
            axis.plot(places, values, ":", fillstyle="none", **look, label=f"{arm}: majority of k")
    axis.set(xscale="log", ylim=(-0.02, 1.02), ylabel="questions")
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(_percent())
    axis.grid(**GRID)
    if rows:
        sizes = f"n = {rows[0]['n']} questions, {rows[0]['samples']} samples each"
        axis.set_xlabel(f"k, of {sizes} (bars: 95 % intervals over questions)")
        figure.legend(loc=BELOW, ncols=min(4, 2 * len(arms)), **LEGEND)
    return figure


def paired_change(
    paired: Sequence[dict], title: str = "Change in accuracy from base to tuned, on the same questions",
    rehearse: bool = False,
) -> Picture:  # fmt: skip
    """Differences in accuracy with their 95 % intervals around a zero line, a row each.

    `paired`: split, calculator and `answers.paired`'s keys; a "label" names the row instead."""
    figure = _picture_of_rows(9, len(paired), title, rehearse)
    axis, places = figure.subplots(), range(len(paired))
    splits = {row["split"] for row in paired}
    axis.axvline(0, color="#444444", linewidth=1)
    _points(axis, paired, "difference", places, scale=100, color=COLOURS[0], marker="o")
    ways = [asked(row["split"], row["calculator"], splits) for row in paired]
    _name_rows(axis, [row.get("label", way) for row, way in zip(paired, ways)])
    axis.set_xlabel("difference in accuracy, percentage points (bars: 95 % intervals)")
    notes = axis.secondary_yaxis("right")
    notes.set_yticks(places, [f"n = {row['n']}, {_p_text(row)}" for row in paired], fontsize=9)
    notes.tick_params(length=0)
    notes.spines["right"].set_visible(False)
    return figure


def _p_text(row: dict) -> str:
    return f"{p_text(row['p_holm'])} (Holm)" if "p_holm" in row else p_text(row["p_value"])


def error_classes(results: Sequence[dict], rehearse: bool = False) -> Picture:
    """Counts of right answers and of each error class of `evaluate.ask`, a bar a model and way of asking."""
    answers = grouped(results, "split", "calculator", "model")
    bars = sorted(answers, key=lambda bar: (bar[0], not bar[1]))
    counts = [Counter(map(_error_class, answers[bar])) for bar in bars]
    total = Counter({"correct": 0})
    total.update(map(_error_class, results))
    classes = sorted(total, key=lambda name: (name != "correct", -total[name]))
    title = "What kind of wrong: answers by error class"
    figure = _picture_of_rows(9, len(bars) + 1, title, rehearse)
    axis, starts = figure.subplots(), np.zeros(len(bars))
    for name, colour in zip(classes, cycle(("#dddddd", *COLOURS, GREY, "#F0E442", "#882255"))):
        widths = np.array([count[name] for count in counts], dtype=float)
        axis.barh(range(len(bars)), widths, left=starts, color=colour, edgecolor="white",
                  label=f"{name} ({total[name]})")  # fmt: skip
        starts += widths
    splits = {split for split, _, _ in bars}
    _name_rows(axis, [f"{model} | {asked(split, calculator, splits)} (n = {count.total()})"
                      for (split, calculator, model), count in zip(bars, counts)])  # fmt: skip
    axis.set_xlabel("answers (count)")
    if bars:
        figure.legend(loc=BELOW, ncols=min(4, len(classes)), **LEGEND)
    return figure


def _error_class(result: dict) -> str:
    if result["correct"]:
        return "correct"
    return result["error"] or "unknown"


# ---- rows of a data set


def token_lengths(
    lengths_by_kind: Mapping[str, Sequence[int]], max_length: int, title: str = "Row lengths by kind",
    rehearse: bool = False,
) -> Picture:  # fmt: skip
    """Tokens a row (box: middle half, whiskers: all) against the limit `max_length`."""
    figure = _picture_of_rows(8, len(lengths_by_kind), title, rehearse)
    axis, names = figure.subplots(), []
    for index, (kind, lengths) in enumerate(lengths_by_kind.items()):
        too_long = sum(length > max_length for length in lengths)
        names.append(_counted(kind, len(lengths), too_long, "too long"))
        if len(lengths):
            axis.boxplot([list(lengths)], positions=[index], orientation="horizontal", whis=(0, 100),
                         widths=0.55, patch_artist=True, boxprops={"facecolor": COLOURS[5]},
                         medianprops={"color": "black"})  # fmt: skip
    limit = f"max_length = {max_length} tokens"
    axis.axvline(max_length, color=COLOURS[1], linestyle="--", label=limit)
    _name_rows(axis, names)
    axis.set_xlim(left=0)
    axis.set_xlabel("tokens a row (box: middle half; whiskers: all)")
    figure.legend(loc="outside lower right", **LEGEND)
    return figure


def answer_magnitudes(values_by_kind: Mapping[str, Iterable[Any]], rehearse: bool = False) -> Picture:
    """Each gold value as a dot on a logarithmic axis, with a place for zeros and negative values.

    Values that are no number (a choice, a bool) are counted in the kind's name instead."""
    figure = _picture_of_rows(8, len(values_by_kind), "Gold answers by kind", rehearse)
    axis, names, shown = figure.subplots(), [], []
    for index, (kind, values) in enumerate(values_by_kind.items()):
        values = list(values)
        numeric = [float(value) for value in values if is_number(value)]
        names.append(_counted(kind, len(values), len(values) - len(numeric), "no number"))
        random = np.random.default_rng([0, index])
        places = index + random.uniform(-0.3, 0.3, len(numeric))  # dots must not hide each other
        axis.plot(numeric, places, "o", markersize=3, alpha=0.5, color=COLOURS[0])
        shown += numeric
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


def ablation(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Tokens/s, peak memory, held-out loss and time to the plain loss: rows of `ablation.ladder`."""
    runs = f"medians of {rows[0]['runs']} runs" if rows[0]["runs"] > 1 else "one run"
    title = f"What each step brings ({runs}, equal tokens)"
    figure = _picture_of_rows(12, len(rows), title, rehearse)
    panels = (("tokens_per_second", 1, "tokens/s"), ("peak_bytes", 2**30, "peak memory (GiB)"),
              ("loss", 1, "held-out loss (nats a token)"),
              ("seconds_to_loss", 1, "seconds to the plain one's loss"))  # fmt: skip
    for axis, (name, unit, label) in zip(figure.subplots(1, 4, sharey=True), panels):
        values = [row[name] and row[name] / unit for row in rows]
        _bars(axis, values, [GREY] + [COLOURS[0]] * (len(rows) - 1), label)
    _name_rows(figure.axes[0], [row["step"] for row in rows])
    return figure


def load_test(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Seconds to the first and last token, and tokens a second, by requests at once: `deploy.load_test`."""
    figure = _picture(10, 3.6, "The server under load", rehearse)
    left, right = figure.subplots(1, 2)
    places = range(len(rows))
    for name, label, colour, marker in (("latency", "whole answer", COLOURS[0], "o"),
                                        ("first_token", "first token", COLOURS[1], "s")):  # fmt: skip
        for share, what, style in ((50, "median", "-"), (95, "95th percentile", ":")):
            seconds = [row[f"{name}_p{share}_seconds"] for row in rows]
            left.plot(places, seconds, style, color=colour, marker=marker, label=f"{label}, {what}")
    left.set_ylabel("seconds")
    left.set_ylim(bottom=0)
    left.legend(**LEGEND)
    speeds = [row["tokens_per_second"] for row in rows]
    bars = right.bar(places, speeds, color=COLOURS[2], width=0.55)
    right.bar_label(bars, fmt="{:,.0f}", padding=3)
    right.set_ylabel("tokens a second, all requests together")
    right.margins(y=0.15)
    for axis in figure.axes:
        axis.set_xticks(places, [row["concurrent"] for row in rows])
        axis.set_xlabel(f"requests at once (of {rows[0]['requests']})")
    return figure


def chain(rows: Sequence[dict], rehearse: bool = False) -> Picture:
    """Accuracy (without golds: perplexity) with its 95 % interval, and size: rows of `chain.row`."""
    figure = _picture_of_rows(10, len(rows), "From base to the file to ship", rehearse)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    score, scale, label = "perplexity", 1, f"perplexity of {rows[0]['n']} answers"
    if "accuracy" in rows[0]:
        score, scale, label = "accuracy", 100, f"accuracy, % of {rows[0]['n']} questions"
    _points(left, rows, score, range(len(rows)), scale, color=COLOURS[0], marker="o")
    for row in rows:
        if row["artefact"] == "adapter":
            left.axvline(scale * row[score], color=GREY, linestyle=":", linewidth=1)
    left.set_xlabel(f"{label} (bars: 95 %; dots: the tuned model)")
    _bars(right, [row["bytes"] / 2**20 for row in rows], COLOURS[5], "size, MiB")
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


def _picture_of_rows(width: float, rows: int, title: str, rehearse: bool) -> Picture:
    return _picture(width, 1.7 + 0.45 * max(1, rows), title, rehearse)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first at the top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)


def _percent() -> PercentFormatter:
    return PercentFormatter(1.0, symbol=" %")


def _bars(axis: Axes, values: Sequence[float | None], colour: str | list[str], label: str) -> None:
    """A bar with its number in each row."""
    lengths = [value or 0 for value in values]
    bars = axis.barh(range(len(values)), lengths, color=colour, height=0.55)
    axis.bar_label(bars, list(map(_number, values)), padding=4)
    axis.margins(x=0.25)
    axis.set_xlabel(label)


def _number(value: float | None) -> str:
    if value is None:
        return "not reached"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _points(axis: Axes, rows: Sequence[dict], name: str, places: Iterable, scale: float = 1, **look):
    """Estimates as points on their rows' places, with bars from "low" to "high"."""
    values, reach = _estimates(rows, name, scale)
    axis.errorbar(values, places, xerr=reach, **POINTS, **look)
    axis.grid(axis="x", **GRID)


def _wilson(axis: Axes, places: Iterable, right: Sequence[int], sizes: Sequence[int], **look):
    """Shares of right answers as points above their places, with 95 % Wilson intervals."""
    intervals = [vars(stats.wilson(*counts)) for counts in zip(right, sizes)]
    values, reach = _estimates(intervals, "estimate")
    axis.errorbar(places, values, yerr=reach, **POINTS, **look)
    axis.yaxis.set_major_formatter(_percent())
    axis.grid(**GRID)


def _estimates(rows: Sequence[dict], name: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (n,), and how far their intervals reach below and above them (2, n)."""
    table = np.array([[row[name], row["low"], row["high"]] for row in rows], dtype=float)
    values, lows, highs = scale * table.reshape(-1, 3).T
    return values, np.maximum(0, [values - lows, highs - values])  # a limit may be rounded to inside


def _colour(model: str, models: list[str]) -> str:
    """Grey for the only base model; with several runs each model has a colour of its own."""
    bases = [name for name in models if name.split()[0] == "base"]
    if len(bases) == 1:
        colours = dict(zip([name for name in models if name not in bases], cycle(COLOURS)))
        return colours.get(model, GREY)
    return COLOURS[models.index(model) % len(COLOURS)]
