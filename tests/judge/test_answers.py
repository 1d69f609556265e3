"""Claims about graded answers: counts, intervals, pairs and what readers are shown of them."""

import math
import re
from dataclasses import asdict

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from lib.data import tasks
from lib.grade import scoring, stats
from lib.judge import answers


def result(id, model, correct, kind="k1", split="test", calculator=True, **more):
    plain = {"split": split, "calculator": calculator, "reading": "marker" if correct else "none", "finished": True,
             "tokens": 10, "correct_lenient": correct, "error": None if correct else "wrong value",
             "question": f"Question {id}?", "gold": {"value": 1}, "completion": f"{model} says {id}",
             "group": f"{kind}/{id[-1]}", "level": int(kind[-1]) if kind[-1].isdigit() else None, "value": 1.0,
             "within": {"0.1 %": correct, "5 %": True}}  # fmt: skip
    return {"id": id, "model": model, "correct": correct, "kind": kind} | plain | more


@pytest.fixture
def results():
    """20 questions of two kinds: base right on 0 to 5, tuned on 4 to 16."""
    return [
        result(f"q{i}", model, i in right, kind="k1" if i < 8 else "k2", tokens=10 + i, group=f"g{i // 2}")
        for model, right in (("base", range(0, 6)), ("tuned", range(4, 17))) for i in range(20)
    ]  # fmt: skip


def test_the_summary_counts_and_its_intervals_are_wilsons(results):
    table = {(r["model"], r["kind"]): r for r in answers.summarise(results)}
    expected = {("base", "all"): (6, 20), ("base", "k1"): (6, 8), ("base", "k2"): (0, 12),
                ("tuned", "all"): (13, 20), ("tuned", "k1"): (4, 8), ("tuned", "k2"): (9, 12)}  # fmt: skip
    assert table.keys() == expected.keys()
    for key, (right, n) in expected.items():
        interval = stats.wilson(right, n)
        assert (table[key]["n"], table[key]["accuracy"]) == (n, right / n)
        assert (table[key]["low"], table[key]["high"]) == (interval.low, interval.high)
        assert table[key]["format_rate"] == table[key]["accuracy_last_number"] == right / n
    assert table["base", "all"]["tokens"] == 10 + 19 / 2 and table["base", "k2"]["finished"] == 1


def test_the_summary_keeps_splits_and_calculator_apart(results):
    more = [result("x", "base", True, split="test_seen"), result("x", "base", True, calculator=False)]
    cells = {(r["split"], r["calculator"]): r["n"] for r in answers.summarise(results + more) if r["kind"] == "all"}
    assert cells == {("test", True): 20, ("test_seen", True): 1, ("test", False): 1}


def test_a_conversation_is_right_where_every_turn_of_it_is():
    rights = {"a": [True, True], "b": [True, False], "c": [True], "d": [True, True, True]}  # of c a turn was not asked
    turns = [
        result(f"{name}{turn}", "tuned", right, conversation=name, turns=3 if name == "d" else 2)
        for name, own in rights.items() for turn, right in enumerate(own)
    ]  # fmt: skip
    (row,) = answers.conversations([*turns, result("q1", "tuned", False)])
    assert (row["n"], row["accuracy"]) == (3, 2 / 3) and row["low"] == stats.wilson(2, 3).low
    assert answers.talks_headline([row], False) == {
        "whole conversations, test, calculator on": "tuned 66.7 % [20.8, 93.9], n = 3",
    }  # fmt: skip
    assert answers.conversations([result("q1", "tuned", False)]) == []


def test_pairs_count_flips_on_the_same_questions(results):
    others = [result("x", "tuned", True, split="test_seen"), result("q0", "base", False, calculator=False)]
    pair = answers.paired(results + others, "test", calculator=True)
    interval = stats.paired_interval([i < 6 for i in range(20)], [4 <= i < 17 for i in range(20)])
    assert (pair["n"], pair["right_to_wrong"], pair["wrong_to_right"]) == (20, 4, 11)
    assert pair["p_value"] == pytest.approx(2 * sum(math.comb(15, k) for k in range(5)) / 2**15)
    assert (pair["difference"], pair["low"], pair["high"]) == (interval.estimate, interval.low, interval.high)
    assert pair["difference"] == pytest.approx(7 / 20)


def test_a_base_that_was_shown_examples_is_what_the_tuned_model_is_compared_with(results):
    prompted = [result(f"q{i}", "base, 8 shots", i < 10, kind="k1" if i < 8 else "k2") for i in range(20)]
    asked_more = [*results, *prompted]
    assert answers.compared(results) == ("base", "tuned")  # as of runs before there were examples
    assert answers.compared(asked_more) == answers.compared(answers.summarise(asked_more)) == ("base, 8 shots", "tuned")
    pair = answers.paired(asked_more, "test", calculator=True)
    assert (pair["right_to_wrong"], pair["wrong_to_right"], pair["difference"]) == (4, 7, pytest.approx(3 / 20))
    assert {row["model"] for row in answers.summarise(asked_more)} == {"base", "base, 8 shots", "tuned"}
    shown = answers.side_by_side(asked_more, "test", True, 4)
    assert "base, 8 shots says q4" in shown and "base says" not in shown


def test_pairs_refuse_models_that_answered_other_questions(results):
    with pytest.raises(AssertionError, match="same questions"):
        answers.paired(results[:-1], "test", calculator=True)


def test_the_headline_says_n_interval_and_rehearsal(results):
    table, setting = answers.summarise(results), {"split": "test", "calculator": True}
    pair = answers.paired(results, **setting) | setting
    perplexity = {"tuned": {"perplexity": 2.5, "low": 2.25, "high": 2.75, "rows": 60, "tokens": 9},
                  "base": {"perplexity": 40, "low": 30, "high": 50, "rows": 60, "tokens": 9}}  # fmt: skip
    loss = {"base": 3.689, "tuned": 0.916, "difference": -2.773, "low": -3, "high": -2.5}
    lines = answers.headline(table, [pair], perplexity, loss, rehearse=False)
    assert list(lines) == ["test, calculator on", "perplexity", "held-out loss"]
    base, tuned = stats.wilson(6, 20), stats.wilson(13, 20)
    assert lines["test, calculator on"].startswith(
        f"base 30.0 % [{100 * base.low:.1f}, {100 * base.high:.1f}] -> "
        f"tuned 65.0 % [{100 * tuned.low:.1f}, {100 * tuned.high:.1f}], n = 20, McNemar p = 0.12"
    )
    assert lines["perplexity"] == "base 40.00 [30.00, 50.00] -> tuned 2.50 [2.25, 2.75], 60 answers"
    told = "base 3.689 -> tuned 0.916 nats a token: -2.773 [-3.000, -2.500], paired"
    assert lines["held-out loss"] == told
    assert list(answers.headline([], [], perplexity, loss, rehearse=False)) == ["perplexity", "held-out loss"]
    rehearsed = answers.headline(table, [pair], perplexity, loss, rehearse=True)
    assert all("rehearsal, no result" in name for name in rehearsed)
    assert list(rehearsed.values()) == list(lines.values())


def test_the_accuracies_of_a_manifest_are_records_over_all_kinds(results):
    assert answers.accuracies(answers.summarise(results)) == [
        {"model": "base", "split": "test", "calculator": True, "accuracy": 0.3},
        {"model": "tuned", "split": "test", "calculator": True, "accuracy": 0.65},
    ]


def test_errors_are_kept_apart_by_model(results):
    errors = answers.errors_by_model(results + [result("x", "other", True, gold={"value": "B"})])
    assert {model: len(own) for model, own in errors.items()} == {"base": 20, "tuned": 20, "other": 0}


def test_a_row_is_readable_in_words(results):
    row = next(r for r in answers.summarise(results) if (r["model"], r["kind"]) == ("base", "k2"))
    (told,) = answers.table_text([row])
    assert told["accuracy [95 %]"] == "0.0 % [0.0, 24.2]" and told["asked"] == "test, calculator on"  # Wilson, 0 of 12
    assert told["format rate"] == "0 %" and told["finished"] == "100 %" and told["within 0.1, 5 %"] == "0, 100 %"


# --- side by side -----------------------------------------------------------------------------------------------------
def verdicts(html):
    """(base, tuned) of each question shown."""
    shown = re.findall(r"<b>(right|wrong)[^<]*</b><pre", html)
    return list(zip(shown[::2], shown[1::2]))


def test_answers_without_a_gold_are_shown_beside_their_rows_own_and_not_called_wrong():
    rows = [{"id": f"q{n}", "kind": "conversation", "question": f"what? {n}", "gold": None, "model": model,
             "completion": f"{model} says <b>{n}</b>", "reference": f"it is {n}"}
            for model in ("tuned", "base") for n in range(2)]  # fmt: skip
    page = answers.ungraded([*rows, rows[0] | {"gold": {"value": 1}}])
    assert page.count("<tr>") == 1 + 2 and page.count("not graded") == 4 and "wrong" not in page
    first = page[page.index("what? 0"):page.index("what? 1")]
    assert first.index("it is 0") < first.index("base says &lt;b&gt;0") < first.index("tuned says &lt;b&gt;0")
    assert answers.ungraded([]) == answers.ungraded([row | {"gold": {"value": 1}} for row in rows])


def test_side_by_side_shows_right_and_wrong_and_kinds_in_turn(results):
    html = answers.side_by_side(results, "test", True, 10)
    assert len(verdicts(html)) == 10 and sum(tuned == "right" for _, tuned in verdicts(html)) == 5
    assert "wrong: wrong value" in html
    kinds = re.findall(r"<b>(k[12])</b>", html)
    assert kinds.count("k1") == 6 and kinds[:2] == ["k1", "k2"]  # right ones in turn, then wrong ones


@pytest.mark.parametrize("right, count, shown_right", [
    (20, 10, 10), (0, 10, 0), (2, 10, 2), (19, 10, 9), (10, 4, 2), (10, 99, 10),
])  # fmt: skip
def test_side_by_side_fills_up_where_one_verdict_is_rare(right, count, shown_right):
    both = [result(f"q{i}", model, i < right) for model in answers.MODELS for i in range(20)]
    shown = verdicts(answers.side_by_side(both, "test", True, count))
    assert len(shown) == min(count, 20) and sum(tuned == "right" for _, tuned in shown) == shown_right


def test_side_by_side_escapes_what_models_and_data_say():
    evil = "<script>alert(1)</script> & <<1+1=2>>"
    both = [result("q", model, False, kind=evil, question=evil, completion=evil, gold={"value": evil})
            for model in answers.MODELS]  # fmt: skip
    html = answers.side_by_side(both, "test", True, 10)
    assert "<script" not in html and "<<" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;&lt;1+1=2&gt;&gt;") == 5


# --- groups, levels, tolerances ---------------------------------------------------------------------------------------
def test_the_overall_score_has_an_interval_over_groups(results):
    table = {(r["model"], r["kind"]): r for r in answers.summarise(results)}
    found, expected = table["tuned", "all"]["clustered"], stats.clustered([4 <= i < 17 for i in range(20)],
                                                                         [i // 2 for i in range(20)])  # fmt: skip
    assert (found["low"], found["high"], found["groups"]) == (expected.low, expected.high, 10)
    assert found["warning"] is None and "clustered" not in table["tuned", "k1"]
    row = table["tuned", "all"]
    assert found["high"] - found["low"] > row["high"] - row["low"]  # pairs of questions that rise and fall together


def test_few_groups_are_warned_of_where_people_read(results):
    few = [row | {"group": row["kind"]} for row in results]
    row = next(r for r in answers.summarise(few) if (r["model"], r["kind"]) == ("tuned", "all"))
    assert answers.table_text([row])[0]["95 % over groups"].endswith("(only 2 groups: too few to trust the width)")
    one = [row | {"group": "g"} for row in results]
    row = next(r for r in answers.summarise(one) if r["kind"] == "all")
    assert answers.table_text([row])[0]["95 % over groups"] == "one group shows no spread between groups"


def test_the_table_by_level_counts_each_level_and_leaves_out_rows_without_one(results):
    results = results + [result("x", "base", True, kind="k1", level=None)]
    table = {(r["model"], r["level"]): (round(r["accuracy"] * r["n"]), r["n"]) for r in
             answers.summarise(results, by="level")}  # fmt: skip
    assert table == {("base", 1): (6, 8), ("base", 2): (0, 12), ("tuned", 1): (4, 8), ("tuned", 2): (9, 12)}
    assert answers.summarise([row | {"level": None} for row in results], by="level") == []


def test_shares_within_each_tolerance_are_counted(results):
    row = next(r for r in answers.summarise(results) if (r["model"], r["kind"]) == ("tuned", "all"))
    assert row["within"] == {"0.1 %": 13 / 20, "5 %": 1}
    assert answers.table_text([row])[0]["within 0.1, 5 %"] == "65, 100 %"


@pytest.mark.parametrize("factor", [1, 1.0005, 1.004, 0.97, 1.2, -1, 0.01])
def test_relative_errors_agree_with_the_grader_at_its_tolerances(factor):
    graded = []
    for problem in tasks.generate("test", 60, 3):
        gold = problem.gold
        text = f"#### {gold['value'] * factor:.6f}" if isinstance(gold["value"], float) else f"#### {gold['value']}"
        graded.append((scoring.grade(text, gold), gold))
    rows = [asdict(verdict) | {"gold": gold} for verdict, gold in graded]
    errors = answers.relative_errors(rows)
    numeric = [verdict for verdict, gold in graded if isinstance(gold["value"], float)]
    assert len(errors) == len(numeric) < len(rows)  # rankings have no distance
    for tolerance in scoring.TOLERANCES:
        assert [error <= tolerance * (1 + 1e-9) for error in errors] == [v.within[tolerance] for v in numeric]


def test_an_answer_that_was_not_marked_or_has_another_unit_is_infinitely_far():
    gold = {"value": 50.0, "unit": "percent", "decimals": 2}
    rows = [{"gold": gold, "value": 50.0, "reading": "marker", "error": None}]
    rows += [rows[0] | more for more in ({"reading": "last number"}, {"value": None}, {"error": "unit"})]
    assert answers.relative_errors(rows) == [0, math.inf, math.inf, math.inf]
    assert answers.relative_errors([rows[0] | {"gold": {"value": 0.0}, "value": 1.0}]) == [math.inf]
    assert answers.relative_errors([rows[0] | {"gold": {"value": 40.0}}]) == [0.25]


# --- several pairs ----------------------------------------------------------------------------------------------------
def test_each_kind_has_its_own_test_adjusted_by_holm(results):
    rows = answers.paired_kinds(results, "test", True)
    assert [(r["kind"], r["right_to_wrong"], r["wrong_to_right"]) for r in rows] == [("k1", 4, 2), ("k2", 0, 9)]
    p_values = [2 * (1 + 6 + 15) / 64, 2 / 2**9]  # by hand: 6 flips, 2 or fewer one way; 9 flips, all one way
    assert [r["p_value"] for r in rows] == pytest.approx(p_values)
    assert [r["p_holm"] for r in rows] == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert [told["Holm"] for told in answers.pairs_text(rows)] == ["p = 0.69", "p = 0.0078"]
    assert answers.paired_kinds([], "test", True) == []


def test_a_pair_says_what_so_many_questions_could_detect(results):
    pair = answers.paired(results, "test", True)
    assert pair["detectable"] == pytest.approx(stats.detectable(20, 15 / 20))
    few = [row for row in results if row["id"] in ("q0", "q1", "q2")]
    assert answers.paired(few, "test", True)["detectable"] is None  # three questions can show nothing
    same = [row | {"correct": True} for row in results]
    unchanged = answers.paired(same, "test", True)
    assert unchanged["detectable"] is None and unchanged["clustered"]["low"] is None
    assert answers.pairs_text([unchanged])[0]["detectable"] == "-"


def test_the_interval_of_a_change_over_groups_is_that_of_its_mean():
    """Two gains among 100 questions in 20 groups: a t interval that does not hide that there may be no gain."""
    both = [result(f"q{i}", model, i in right, group=f"g{i % 20}")
            for model, right in (("base", ()), ("tuned", (3, 7))) for i in range(100)]  # fmt: skip
    means = np.array([0.2 if group in (3, 7) else 0 for group in range(20)])
    error = 2.093 * means.std(ddof=1) / math.sqrt(20)  # t, 19 degrees
    found = answers.paired(both, "test", True)["clustered"]
    assert (found["low"], found["high"]) == pytest.approx((0.02 - error, 0.02 + error), abs=2e-3)
    assert found["low"] < 0 < found["high"]


# --- flips ------------------------------------------------------------------------------------------------------------
def test_every_question_that_was_lost_is_listed_and_those_won_are_capped(results):
    page = answers.flips(results[:20], results[20:], most=3)
    assert "Right, then wrong: 4 of 20 questions</h3>" in page
    assert "Wrong, then right: 11 of 20 questions, 8 of them not shown</h3>" in page
    lost, won = page.split("<h3>")[1:]
    assert re.findall(r"Question (q\d+)\?", lost) == ["q0", "q1", "q2", "q3"]
    assert re.findall(r"Question (q\d+)\?", won) == ["q6", "q8", "q7"]  # the kinds in turn
    assert verdicts_of_flips(lost) == [("right", "wrong")] * 4 and verdicts_of_flips(won) == [("wrong", "right")] * 3
    assert "base says q0" in lost and "tuned says q0" in lost and "gold: 1" in lost


def verdicts_of_flips(html):
    shown = re.findall(r"<b>(right|wrong)[^<]*</b><details", html)
    return list(zip(shown[::2], shown[1::2]))


def test_no_flips_are_said_without_a_table(results):
    page = answers.flips(results[:20], results[:20])
    assert "Right, then wrong: 0 of 20 questions" in page and "<table" not in page


def test_flips_need_the_same_questions(results):
    with pytest.raises(AssertionError, match="same questions"):
        answers.flips(results[:20], results[21:])


def test_flips_escape_what_models_runs_and_data_say():
    evil = "<script>alert(1)</script> & <<1+1=2>>"
    both = [result("q", "m", correct, kind=evil, question=evil, completion=evil, error=evil, value=evil,
                   gold={"value": evil}) for correct in (True, False)]  # fmt: skip
    page = answers.flips(*[[one] for one in both], names=(evil, evil))
    assert "<script" not in page and "<<" not in page and page.count("&lt;script&gt;") == 10


def test_table_cells_are_escaped():
    evil = "<script>alert(1)</script>"
    shown = answers.html_table([{"<i>run": evil}]).data + answers.html_lines([evil]).data
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 2 and "<i>" not in shown


def test_columns_of_numbers_alone_are_set_right():
    shown = answers.html_table([{"run": "2024", "steps": "1,228"}, {"run": "b", "steps": "-"}]).data
    found = re.findall(r"text-align:(left|right)'>([^<]+)<", shown)
    assert [text for side, text in found if side == "right"] == ["steps", "1,228", "-"]
    assert answers.html_table([]).data == ""


def test_a_cell_that_a_row_lacks_is_empty_and_one_that_is_long_is_whole():
    shown = answers.html_table([{"run": "a", "device": "long " * 40}, {"run": "b"}]).data
    assert "long " * 39 in shown and re.search(r">b</td><td[^>]*></td>", shown)
