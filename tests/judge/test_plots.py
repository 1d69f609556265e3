"""Claims about the figures: they draw the numbers they are given, with their units, n and intervals."""

import sys

import matplotlib
import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from lib.grade import stats
from lib.judge import plots
from lib.judge.answers import asked


def row(model: str, kind: str, right: int, n: int, split: str = "test", calculator: bool = True) -> dict:
    interval = stats.wilson(right, n)
    return {"split": split, "model": model, "calculator": calculator, "kind": kind, "n": n, "accuracy": right / n,
            "low": interval.low, "high": interval.high, "format_rate": 0.9}  # fmt: skip


def texts(figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def bars(axis) -> list[tuple[float, float]]:
    """(low, high) of every horizontal error bar, in the order of drawing."""
    ends = [segment for container in axis.containers for segment in container.lines[2][0].get_segments()]
    return [(segment[0][0], segment[1][0]) for segment in ends]


def test_error_bars_are_the_wilson_intervals():
    counts = {("base", "compounding"): (1, 50), ("base", "all"): (2, 100), ("tuned", "compounding"): (31, 50),
              ("tuned", "all"): (66, 100)}  # fmt: skip
    figure = plots.accuracy_by_kind([row(*key, *count) for key, count in counts.items()])
    expected = [proportion_confint(*count, method="wilson") for count in counts.values()]
    assert bars(figure.axes[0]) == pytest.approx(np.array(expected))
    assert "95 %" in texts(figure) and "n = 50 a kind, 100 in all" in texts(figure)


def test_the_curve_while_training_has_an_interval_at_each_checkpoint():
    lines = [{"step": 0, "accuracy": 0.0, "questions": 50}, {"step": 40, "loss": 1.2, "accuracy": None},
             {"step": 100, "accuracy": 0.62, "questions": 50}]  # fmt: skip
    (axis,) = plots.accuracy_curve({"trial": lines}).axes
    (container,) = axis.containers
    found = [(segment[0][1], segment[1][1]) for segment in container.lines[2][0].get_segments()]
    expected = [proportion_confint(right, 50, method="wilson") for right in (0, 31)]
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-6)
    assert list(axis.lines[0].get_xdata()) == [0, 100] and axis.get_ylabel() == "right answers"


def test_preference_curves_draw_margin_and_accuracy_of_training_and_of_held_out_pairs():
    lines = [{"step": 1, "loss": 0.69, "rewards/margins": 0.0, "rewards/accuracies": 0.4},
             {"step": 2, "eval_rewards/margins": 0.21, "eval_rewards/accuracies": 0.75},
             {"step": 2, "loss": 0.5, "rewards/margins": 0.3, "rewards/accuracies": 0.8}]  # fmt: skip
    figure = plots.preference_curves({"trial": lines})
    drawn = [[list(map(float, line.get_ydata())) for line in axis.lines[:2]] for axis in figure.axes]
    assert drawn == [[[0.0, 0.3], [0.21]], [[0.4, 0.8], [0.75]]]
    assert plots.of_pairs({"trial": lines, "plain": [{"step": 1, "loss": 2.0}]}) == {"trial": lines}
    assert "trial: held-out (last 0.75)" in texts(figure) and figure.axes[1].get_ylabel() == "chosen answer ahead"
    assert [plots.loss_curves({"trial": found}).axes[0].get_ylabel() for found in (lines, [{"step": 1, "loss": 2.0}])
            ] == ["loss (dpo: of a pair)", "loss (nats a token)"]  # fmt: skip


def test_each_split_and_calculator_setting_has_its_own_panel():
    table = [row(model, "grade school", 3, 9, split, calculator)
             for model in ("base", "tuned") for split in ("test", "test_seen", "other") for calculator in (True, False)]
    figure = plots.accuracy_by_kind(table)
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 6 and titles[0].startswith("unseen phrasings and ranges, calculator on (n = 9 a kind)")
    assert titles[3].startswith("trained phrasings, calculator off") and titles[4].startswith("other, calculator on")


def test_unseen_is_said_only_beside_a_split_that_was_seen():
    assert asked("test", True) == "test, calculator on"
    assert asked("test", False, {"test", "test_seen"}) == "unseen phrasings and ranges, calculator off"


def test_paired_change_draws_the_interval_in_points_around_zero():
    pair = {"split": "test", "calculator": False, "n": 300, "p_value": 1e-9, "difference": 0.5, "low": 0.4, "high": 0.6}
    figure = plots.paired_change([pair])
    assert bars(figure.axes[0]) == [(pytest.approx(40), pytest.approx(60))]
    assert "n = 300, p < 0.001" in texts(figure) and "percentage points (bars: 95 % intervals)" in texts(figure)
    assert any(list(line.get_xdata()) == [0, 0] for line in figure.axes[0].lines)


def test_an_estimate_on_its_limit_is_drawn():
    plots.paired_change([{"split": "test", "calculator": True, "n": 3, "p_value": 1.0, "difference": 0.1,
                          "low": 0.1 + 1e-12, "high": 0.2}])  # fmt: skip


def test_loss_curves_leave_out_gaps_and_take_a_repeated_step_once():
    lines = [{"step": 1, "loss": 2.0, "learning_rate": 0.1}, {"step": 2, "loss": None}, {"step": 3, "loss": 9.0},
             {"step": 3, "loss": 1.0}, {"step": 3, "eval_loss": 1.5}]  # fmt: skip
    upper, lower = plots.loss_curves({"demo": lines}).axes
    assert [list(line.get_ydata()) for line in upper.lines] == [[2.0, 1.0], [1.5]]
    assert list(lower.lines[0].get_ydata()) == [0.1]
    plots.loss_curves({"nothing logged": []}).draw_without_rendering()


def test_error_classes_count_every_answer():
    results = [{"split": "test", "calculator": True, "model": model, "correct": error is None, "error": error}
               for model in ("base", "tuned") for error in (None, "rounding", "rounding", "no answer")]
    figure = plots.error_classes(results)
    widths = {c.get_label(): [patch.get_width() for patch in c.patches] for c in figure.axes[0].containers}
    assert widths == {"correct (2)": [1, 1], "rounding (4)": [2, 2], "no answer (2)": [1, 1]}
    assert "tuned | test, calculator on (n = 4)" in texts(figure)


def test_levels_have_their_own_picture():
    table = [{**row("tuned", "unused", right, 50), "level": level} for level, right in ((1, 40), (2, 20))]
    figure = plots.accuracy_by_level([{k: v for k, v in r.items() if k != "kind"} for r in table])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["level 1", "level 2"]
    expected = [proportion_confint(right, 50, method="wilson") for right in (40, 20)]
    assert bars(figure.axes[0]) == pytest.approx(np.array(expected)) and "n = 50 a level" in texts(figure)


def test_runs_are_rows_of_one_picture_whatever_they_are_called():
    counts = {("one", "base"): 2, ("one", "tuned"): 40, ("all", "base"): 3, ("all", "tuned"): 30}
    rows = [row(model, "all", right, 50) | {"run": run} for (run, model), right in counts.items()]
    figure = plots.accuracy_by_run(rows)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "all"]
    drawn = [counts["one", "base"], counts["all", "base"], counts["one", "tuned"], counts["all", "tuned"]]
    expected = [proportion_confint(right, 50, method="wilson") for right in drawn]
    assert bars(figure.axes[0]) == pytest.approx(np.array(expected))


def test_the_tolerance_curve_counts_answers_within_each_error():
    errors = {"tuned": [0.0, 0.0005, 0.02, np.inf], "base": [np.inf] * 4, "empty": []}
    figure = plots.tolerance_curve(errors)
    (tuned, base) = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 10]
    shares = np.interp([1e-4, 1e-3, 1e-2, 0.1], tuned.get_xdata(), tuned.get_ydata())
    assert shares == pytest.approx([0.25, 0.5, 0.5, 0.75]) and not any(base.get_ydata())
    ends = [segment for segment in figure.axes[0].containers[0].lines[2][0].get_segments()]
    expected = [proportion_confint(right, 4, method="wilson") for right in (2, 2, 3)]  # at 0.1 %, 1 % and 5 %
    assert [(low[1], high[1]) for low, high in ends] == pytest.approx(np.array(expected))
    told = texts(figure)
    assert "tuned (n = 4 with a numeric gold)" in told and "95 % Wilson intervals at 0.1 %, 1 % and 5 %" in told


def test_the_curves_of_pass_at_k_have_an_interval_at_each_k_and_no_bar_hides_another():
    rows = [{"model": model, "score": score, "k": k, "samples": 4, "n": 50, "estimate": share, "low": share / 2,
             "high": share + 0.1} for model, share in (("base", 0.2), ("tuned", 0.6))
            for score in ("pass", "majority") for k in (1, 2, 4)]  # fmt: skip
    figure = plots.pass_curves(rows)
    (axis,) = figure.axes
    drawn = [[segment[:, 1].tolist() for segment in bar.lines[2][0].get_segments()] for bar in axis.containers]
    np.testing.assert_allclose(drawn, [[[0.1, 0.3]] * 3, [[0.3, 0.7]] * 3])
    places = {tuple(bar.lines[0].get_xdata().tolist()) for bar in axis.containers}
    assert len(places) == 2, "the bars of two arms stand side by side"
    assert "n = 50 questions, 4 samples each" in texts(figure) and "base: majority of k" in texts(figure)


def test_adjusted_p_values_are_shown_as_adjusted():
    pair = {"split": "test", "calculator": True, "n": 9, "p_value": 0.01, "difference": 0.1, "low": 0, "high": 0.2}
    assert "p = 0.03 (Holm)" in texts(plots.paired_change([pair | {"p_holm": 0.03}]))


def test_rows_beyond_the_limit_are_counted():
    told = texts(plots.token_lengths({"drawdown": [10, 20, 600], "empty": []}, 512))
    assert "drawdown (n = 3, 1 too long)" in told and "max_length = 512 tokens" in told and "empty (n = 0)" in told


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 1e6, 0.01], "log"), ([0, -5, 1e6], "symlog"), ([0, 0], "linear"), (["B", True], "linear")],
)
def test_zeros_and_negative_answers_have_their_place(values, scale):
    figure = plots.answer_magnitudes({"kind": values})
    figure.draw_without_rendering()
    assert figure.axes[0].get_xscale() == scale
    drawn = [x for line in figure.axes[0].lines[:1] for x in line.get_xdata()]
    assert drawn == [value for value in values if type(value) in (int, float)]


def test_answers_that_are_no_number_are_said():
    assert "ranking (n = 3, 2 no number)" in texts(plots.answer_magnitudes({"ranking": ["A", True, 7]}))


@pytest.mark.parametrize("draw", [
    lambda flag: plots.loss_curves({}, rehearse=flag), lambda flag: plots.accuracy_by_kind([], rehearse=flag),
    lambda flag: plots.paired_change([], rehearse=flag), lambda flag: plots.error_classes([], rehearse=flag),
    lambda flag: plots.token_lengths({}, 512, rehearse=flag), lambda flag: plots.answer_magnitudes({}, rehearse=flag),
    lambda flag: plots.accuracy_by_run([], rehearse=flag), lambda flag: plots.accuracy_by_level([], rehearse=flag),
    lambda flag: plots.tolerance_curve({}, rehearse=flag), lambda flag: plots.tolerance_curve({"x": []}, rehearse=flag),
    lambda flag: plots.pass_curves([], rehearse=flag),
])  # fmt: skip
def test_a_rehearsal_says_so_and_nothing_to_draw_is_no_error(draw):
    assert "REHEARSAL - not a result" in texts(draw(True))
    assert "REHEARSAL" not in texts(draw(False))


def test_a_figure_shows_itself_with_its_title_as_text(tmp_path):
    figure = plots.loss_curves({"demo": [{"step": 1, "loss": 1.0}]}, title="Loss of a demo")
    picture, about = figure._repr_png_()
    assert picture.startswith(b"\x89PNG") and about["alt"] == "Loss of a demo"
    assert plots.save(figure, tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_pyplot_state_stays_behind():
    before = "matplotlib.pyplot" in sys.modules
    plots.paired_change([])._repr_png_()
    assert before or "matplotlib.pyplot" not in sys.modules


def test_the_load_test_shows_both_latencies_and_the_tokens_of_each_number_at_once():
    rows = [{"concurrent": count, "requests": 32, "errors": 0, "tokens_per_second": 1000.0 * count,
             "first_token_p50_seconds": 0.01 * count, "first_token_p95_seconds": 0.02 * count,
             "latency_p50_seconds": 0.1 * count, "latency_p95_seconds": 0.2 * count}
            for count in (1, 4, 16)]  # fmt: skip
    figure = plots.load_test(rows, rehearse=True)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["whole answer, 95th percentile"] == pytest.approx([0.2, 0.8, 3.2])
    assert lines["first token, median"] == pytest.approx([0.01, 0.04, 0.16])
    assert [bar.get_height() for bar in figure.axes[1].patches] == [1000, 4000, 16_000]
    assert all(text in texts(figure) for text in ("seconds", "requests at once (of 32)", "16,000", "REHEARSAL"))
