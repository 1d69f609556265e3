"""Claims about finished runs side by side, on small made-up runs that keep the run contract."""

import copy
import dataclasses
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lib.grade import stats
from lib.judge import answers as graded
from lib.judge import compare
from lib.run import disk, parameters, runs, stages
from lib.run.paths import ROOT

KINDS = ("compounding", "position sizing")


def answers(share: dict[str, float], seed: int, per_kind: int, first_id: int = 0) -> list[dict]:
    """Graded answers of a base and a tuned model that are right on these shares of the questions."""
    random, rows = np.random.default_rng(seed), []
    for split in ("test", "test_seen"):
        for calculator in (True, False):
            for kind in KINDS:
                for number in range(first_id, first_id + per_kind):
                    for model, chance in share.items():
                        correct = bool(random.random() < chance * (1 if calculator else 0.7))
                        rows.append({
                            "id": f"{split}-{kind}-{number}", "kind": kind, "group": f"{kind}-1", "model": model,
                            "split": split, "calculator": calculator, "question": f"{kind} {number}?",
                            "gold": {"value": number, "unit": "none", "tolerance": 0.0}, "completion": f"#### {number}",
                            "tokens": 20, "finished": True, "correct": correct, "value": float(number),
                            "reading": "marker" if model == "tuned" else "last number", "flag": None,
                            "level": 1 + number % 3,
                            "error": None if correct else "wrong value", "correct_lenient": correct,
                        })  # fmt: skip
    return rows


def summary(results: list[dict]) -> dict:
    """What 30_evaluate saves, computed here from the answers without lib.judge.answers."""
    table, paired = [], []
    cells = dict.fromkeys((r["split"], r["calculator"]) for r in results)
    for split, calculator in cells:
        chosen = [r for r in results if (r["split"], r["calculator"]) == (split, calculator)]
        for model in ("base", "tuned"):
            for kind in (*KINDS, "all"):
                own = [r for r in chosen if r["model"] == model and kind in (r["kind"], "all")]
                found = stats.wilson(sum(r["correct"] for r in own), len(own))
                table.append({
                    "split": split, "model": model, "calculator": calculator, "kind": kind, "n": len(own),
                    "accuracy": found.estimate, "low": found.low, "high": found.high,
                    "format_rate": float(model == "tuned"), "finished": 1.0, "accuracy_last_number": found.estimate,
                    "tokens": 20.0,
                })  # fmt: skip
        base, tuned = ([r["correct"] for r in chosen if r["model"] == model] for model in ("base", "tuned"))
        lost = sum(b and not t for b, t in zip(base, tuned, strict=True))
        won = sum(t and not b for b, t in zip(base, tuned, strict=True))
        interval = stats.paired_interval(base, tuned)
        paired.append({
            "split": split, "calculator": calculator, "n": len(base), "right_to_wrong": lost, "wrong_to_right": won,
            "p_value": stats.mcnemar(lost, won), "difference": interval.estimate,
            "low": interval.low, "high": interval.high,
        })  # fmt: skip
    perplexity = {m: {"perplexity": p, "low": p * 0.9, "high": p * 1.1, "rows": 20, "tokens": 900}
                  for m, p in (("base", 9.5), ("tuned", 1.6))}  # fmt: skip
    return {"table": table, "paired": paired, "perplexity": perplexity}


def make_run(
    outputs: Path, name: str, tuned: float = 0.7, seed: int = 0, per_kind: int = 20, first_id: int = 0,
    rehearse: bool = False, **changed,
) -> Path:  # fmt: skip
    """A finished run, written through lib.run.runs as the notebooks write theirs; `changed`: its settings."""

    def stage_of(stage: str) -> runs.Stage:
        own = {setting: value for setting, value in changed.items() if setting in stages.names_of(stage)}
        names = {"preset": "demo", "run": name, "outputs": str(outputs), "rehearse": rehearse, "changes": own}
        return runs.begin(parameters.from_notebook(stage, names))

    prepare = stage_of("prepare")
    prepare.write_rows("train.jsonl", [{"id": "train-1"}])
    prepare.finish(headline={"rows": "train 1"})
    train = stage_of("train")
    train.input("prepare")
    for step in range(10, 171, 10):
        train.log(step, loss=2.0 * 0.98**step + 0.1, learning_rate=2e-3 * (1 - step / 170), grad_norm=1.0)
        if step % 50 == 0:
            train.log(step, eval_loss=2.0 * 0.98**step + 0.15)
    train.finish(steps=170, train_seconds=130.0, tokens_per_second=2345.6, rows=900, trainable_parameters=123456,
                 headline={"training": "170 steps in 2.2 min"})  # fmt: skip
    evaluate = stage_of("evaluate")
    evaluate.input("train")
    results = answers({"base": 0.05, "tuned": tuned}, seed, per_kind, first_id)
    evaluate.write_rows("generations.jsonl", results)
    evaluate.save_json("summary.json", summary(results))
    evaluate.finish(headline={"test, calculator on": f"tuned right on {tuned:.0%}, n = {2 * per_kind}"})
    return outputs / name


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[compare.Finished]:
    """Two runs that were asked the same questions."""
    outputs = tmp_path_factory.mktemp("outputs")
    make_run(outputs, "one", tuned=0.8, seed=1)
    make_run(outputs, "two", tuned=0.5, seed=2)
    return [compare.load(outputs / name) for name in ("one", "two")]


def test_table_agrees_with_a_recount_of_the_answers(two):
    rows = compare.table(two)
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        run = next(run for run in two if run.name == row["run"])
        for model in ("base", "tuned"):
            right, n = compare.recount(run)[row["split"], row["calculator"], model]
            assert (row[model]["accuracy"], row["n"]) == (pytest.approx(right / n), n)


def test_a_run_whose_base_was_shown_examples_compares_with_one_made_before(two):
    results = []
    for row in two[0].results:
        results.append(row)
        if row["model"] == "base":
            results.append(row | {"model": "base, 4 shots", "correct": int(row["id"].split("-")[-1]) % 2 == 0})
    table = graded.summarise(results)
    paired = [{"split": split, "calculator": calculator, **graded.paired(results, split, calculator)}
              for split in ("test", "test_seen") for calculator in (True, False)]  # fmt: skip
    found = two[0].summary | {"table": table, "paired": paired}
    newer = dataclasses.replace(two[0], name="newer", results=results, summary=found)
    rows = compare.table([newer, two[1]])
    assert compare.unlike_answers([newer, two[1]], rows) == []
    first, second = compare.scores_text([newer, two[1]], rows)
    assert first["base"].startswith("50.0 % [") and first["base"].endswith("], 4 shots")
    assert "shot" not in second["base"]
    assert {row["model"] for row in compare.run_rows([newer, two[1]], rows)} == {"base, 4 shots", "base", "tuned"}


def test_a_table_that_is_not_what_the_answers_give_is_told(two):
    rows = compare.table(two)
    assert compare.unlike_answers(two, rows) == []
    right, n = compare.recount(two[0])["test", True, "tuned"]
    wrong = rows[0] | {"tuned": rows[0]["tuned"] | {"accuracy": 1.0}}
    told = [f"one, test, calculator on: tuned was right on {right} of {n} answers",
            "one, test, calculator on: the difference is not that of its two accuracies"]  # fmt: skip
    assert compare.unlike_answers(two, [wrong, *rows[1:]]) == told
    beyond = rows[0] | {"low": 0.99}
    assert compare.unlike_answers(two, [beyond, *rows[1:]]) == [
        "one, test, calculator on: the difference lies outside its interval"]  # fmt: skip
    assert compare.unlike_answers(two, [row for row in rows if row["run"] == "one"]) == ["two is missing"]


def test_runs_are_paired_question_by_question(two):
    row = next(r for r in compare.paired_runs(two) if r["split"] == "test" and r["calculator"])
    ours, theirs = ({r["id"]: r["correct"] for r in run.results if (r["model"], r["split"], r["calculator"])
                     == ("tuned", "test", True)} for run in two)  # fmt: skip
    both = [[sum(ours[i] == a and theirs[i] == b for i in ours) for b in (True, False)] for a in (True, False)]
    assert row["p_value"] == pytest.approx(mcnemar(both, exact=True).pvalue)
    assert row["difference"] == pytest.approx(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    assert (row["wrong_to_right"], row["right_to_wrong"]) == (both[0][1], both[1][0])  # from two to one
    assert not compare.different_questions(two)


def to_first(finished) -> list[dict]:
    """What the notebook shows against the first run."""
    pairs = [compare.turned(row) for row in compare.paired_runs(finished)]
    return compare.to_first(finished, pairs, compare.first_way(compare.table(finished)))


def three(two) -> list[compare.Finished]:
    """Two runs, and a third that is a little worse than the second: a few of its right answers are now wrong."""
    worse = [row | {"correct": row["correct"] and row["id"][-1] != "7"} for row in two[1].results]
    return [*two, compare.Finished("three", False, two[1].manifests, [], two[1].summary, worse)]


def test_every_two_runs_are_compared_and_holm_counts_all_of_it(two):
    rows = compare.paired_runs(three(two))
    assert [(r["first"], r["other"]) for r in rows[::4]] == [("one", "two"), ("one", "three"), ("two", "three")]
    p_values = [row["p_value"] for row in rows]
    assert len(rows) == 3 * 4 and [row["p_holm"] for row in rows] == pytest.approx(
        list(multipletests(p_values, method="holm")[1])
    )
    assert rows[0]["label"] == "one - two: unseen phrasings and ranges, calculator on"


def test_the_table_against_the_first_run_says_gain_or_loss_as_counted_from_the_answers(two):
    runs_of_three = three(two)
    rows = to_first(runs_of_three)
    assert [row["other"] for row in rows] == ["two", "three"]
    verdicts = []
    for run in runs_of_three:
        tuned = graded.arm(run.results, "tuned", "test", True)
        verdicts.append({answer["id"]: answer["correct"] for answer in tuned})
    for row, theirs in zip(rows, verdicts[1:]):
        won = sum(theirs[i] and not verdicts[0][i] for i in theirs)
        lost = sum(verdicts[0][i] and not theirs[i] for i in theirs)
        assert (row["wrong_to_right"], row["right_to_wrong"], row["n"]) == (won, lost, len(theirs))
        assert row["difference"] == pytest.approx((won - lost) / len(theirs)) and row["difference"] < 0
        interval = stats.paired_interval(list(verdicts[0].values()), [theirs[i] for i in verdicts[0]])
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        changes = [int(theirs[i]) - int(verdicts[0][i]) for i in verdicts[0]]
        assert row["clustered"]["low"] < np.mean(changes) < row["clustered"]["high"]
    told = compare.to_first_text(runs_of_three, rows)
    assert [text["run"] for text in told] == ["two", "three"] and told[0]["difference"].startswith("-")


def test_holm_counts_the_rows_against_the_first_run_alone(two):
    rows = to_first(three(two))
    expected = multipletests([row["p_value"] for row in rows], method="holm")[1]
    assert [row["p_holm"] for row in rows] == pytest.approx(list(expected))
    lines = compare.headline(three(two), rows)
    assert list(lines) == ["runs compared", "two against one: unseen phrasings and ranges, calculator on",
                           "three against one: unseen phrasings and ranges, calculator on"]  # fmt: skip
    assert lines["two against one: unseen phrasings and ranges, calculator on"].startswith("-")


def test_a_difference_seen_from_the_other_side_is_that_of_the_runs_named_the_other_way_round(two):
    there, back = compare.paired_runs(two), compare.paired_runs(two[::-1])
    for row, other in zip(there, back):
        seen = compare.turned(row)
        for name in ("difference", "low", "high", "p_value", "wrong_to_right", "right_to_wrong"):
            assert seen[name] == pytest.approx(other[name], abs=1e-8)
        assert [seen["clustered"][k] for k in ("low", "high")] == pytest.approx(
            [other["clustered"][k] for k in ("low", "high")])  # fmt: skip


def test_not_worse_is_shown_only_where_the_second_run_is_surely_close(two):
    same = compare.Finished("same", False, two[0].manifests, [], two[0].summary, [
        row | {"id": f"{row['id']}-{copy}", "question": f"{row['question']} {copy}"}
        for copy in range(5) for row in two[0].results
    ])  # fmt: skip
    twin = compare.Finished("twin", False, two[0].manifests, [], two[0].summary, same.results)
    assert all(row["not_worse"]["holds"] for row in compare.paired_runs([same, twin]) if row["n"] >= 100)
    assert not any(row["not_worse"]["holds"] for row in compare.paired_runs(two))  # two is some 30 points worse
    (told, *_) = compare.paired_runs_text(compare.paired_runs([same, twin]))
    assert told["less than 5 points worse"].startswith("shown, p ")


def test_answers_are_paired_by_question_whatever_their_order(two):
    turned = compare.Finished("turned", False, two[1].manifests, [], two[1].summary, two[1].results[::-1])
    mine, theirs = (compare.paired_runs([two[0], other]) for other in (two[1], turned))
    assert [r["wrong_to_right"] for r in mine] == [r["wrong_to_right"] for r in theirs]


def test_a_way_of_asking_that_one_run_lacks_is_said(two):
    on = [row for row in two[1].results if row["calculator"]]
    other = compare.Finished("on", False, two[1].manifests, [], two[1].summary, on)
    told = compare.different_questions([two[0], other])
    assert len(told) == 2 and "with the calculator off: nothing to pair" in told[0]
    assert {row["calculator"] for row in compare.paired_runs([two[0], other])} == {True}


def test_flips_between_runs_are_those_of_their_answers(two):
    page = compare.flips(two, "test", True)
    row = to_first(two)[0]
    assert f"Right, then wrong: {row['right_to_wrong']} of {row['n']} questions" in page
    assert "From one to two" in page and "<th style='width:33%'>one, tuned</th><th>two, tuned</th>" in page
    assert compare.flips(two[:1], "test", True) == ""


def test_levels_are_counted_from_the_kept_answers(two):
    rows = compare.level_rows(two)
    assert {row["model"] for row in rows} == {"base (one)", "tuned (one)", "base (two)", "tuned (two)"}
    row = next(r for r in rows if (r["model"], r["level"], r["split"], r["calculator"]) ==
               ("tuned (two)", 3, "test", True))  # fmt: skip
    own = [r for r in graded.arm(two[1].results, "tuned", "test", True) if r["level"] == 3]
    assert (row["n"], row["accuracy"]) == (len(own), pytest.approx(np.mean([r["correct"] for r in own])))
    old = compare.Finished("old", False, {}, [], {}, [{k: v for k, v in r.items() if k != "level"}
                                                      for r in two[0].results])  # fmt: skip
    assert compare.level_rows([old]) == []  # a run from before there were levels


def test_pictures_of_errors_take_one_way_of_asking_and_name_the_runs(two):
    rows = compare.asked_alike(two, "test", False)
    assert len(rows) == 2 * 2 * 40 and {(r["split"], r["calculator"]) for r in rows} == {("test", False)}
    assert {r["model"] for r in compare.asked_alike(two[:1], "test", False)} == {"base", "tuned"}


def test_different_questions_are_said_and_not_paired(two, tmp_path):
    other = compare.load(make_run(tmp_path, "other", first_id=5))
    told = compare.different_questions([two[0], other])
    assert (
        len(told) == 2
        and "'test_seen'" in told[1]
        and "other was asked other questions than one" in told[0]
        and "not paired" in told[0]
    )
    assert compare.paired_runs([two[0], other]) == []
    assert compare.flips([two[0], other], "test", True) == "" and to_first([two[0], other]) == []
    assert "different questions" in compare.headline([two[0], other], [])["runs compared"]
    (row,) = compare.to_first_text([two[0], other], [])
    assert row == {"run": "other", "difference": "not paired: no graded question in common with one"}
    assert compare.unlike_first([two[0], other]) == [f"Careful: {text}" for text in told]
    assert len(compare.different_questions([two[0], two[1], other])) == 4
    assert len(compare.unlike_first([two[0], two[1], other])) == 2


def test_a_changed_gold_makes_another_question(two):
    changed = [row | {"gold": {"value": -1}} if row["split"] == "test" else row for row in two[1].results]
    other = compare.Finished("changed", False, two[1].manifests, [], two[1].summary, changed)
    assert len(compare.different_questions([two[0], other])) == 1
    assert {row["split"] for row in compare.paired_runs([two[0], other])} == {"test_seen"}


def test_a_rehearsal_is_never_called_a_result(tmp_path):
    run = compare.load(make_run(tmp_path, "walk", rehearse=True))
    assert {row["run"] for row in compare.table_text(compare.table([run]))} == {"walk (REHEARSAL)"}
    shown = [compare.costs_text(compare.costs([run])), compare.scores_text([run], compare.table([run]))]
    assert [rows[0]["run"] for rows in shown] == ["walk (REHEARSAL)"] * 2
    assert compare.about([run])[0].startswith("walk (REHEARSAL): ")


def test_settings_that_differ_are_columns_and_no_others(tmp_path):
    make_run(tmp_path, "one", per_kind=2)
    make_run(tmp_path, "two", per_kind=2, r=8, data_seed=7, target_modules=("q_proj", "v_proj"))
    make_run(tmp_path, "six", per_kind=2, r=8, calculator="on")
    finished = [compare.load(tmp_path / name) for name in ("one", "two", "six")]
    all_modules = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    assert compare.settings_text(finished) == [[
        {"run": "one", "data_seed": "0", "r": "32", "target_modules": all_modules, "calculator": "both"},
        {"run": "two", "data_seed": "7", "r": "8", "target_modules": "q_proj, v_proj", "calculator": "both"},
        {"run": "six", "data_seed": "0", "r": "8", "target_modules": all_modules, "calculator": "on"},
    ]]  # fmt: skip
    assert compare.about(finished) == ["All runs: preset demo, base model data/base, data quant_tasks."]
    assert compare.settings_text(finished[:1] * 2) == []
    assert compare.about(finished[:1] * 2)[1:] == ["No setting differs between these runs."]


def test_of_one_run_the_settings_are_shown_that_its_preset_does_not_have(tmp_path):
    changed = compare.load(make_run(tmp_path, "changed", per_kind=2, learning_rate=1e-4, data_seed=5))
    assert compare.settings_text([changed]) == [
        [{"run": "changed", "data_seed": "5", "learning_rate": "0.0001"}]]  # fmt: skip
    assert compare.about([changed])[0].endswith("data quant_tasks, but with these settings:")
    plain = compare.load(make_run(tmp_path, "plain", per_kind=2))
    assert compare.settings_text([plain]) == []
    assert compare.about([plain]) == ["plain: preset demo, base model data/base, data quant_tasks, "
                                      "with no setting changed."]  # fmt: skip


def test_many_settings_that_differ_are_split_over_tables_that_fit_a_page(two):
    manifests = copy.deepcopy(two[1].manifests)
    manifests["train"]["settings"] = dict.fromkeys(manifests["train"]["settings"], "other")
    tables = compare.settings_text([two[0], dataclasses.replace(two[1], manifests=manifests)])
    names = [list(rows[0])[1:] for rows in tables]
    assert len(tables) > 2 and max(map(len, names)) == compare.WIDEST
    assert {list(rows[0])[0] for rows in tables} == {"run"}
    shared = manifests["evaluate"]["settings"].keys() | {"rdzv_endpoint"}  # the evaluation says these again
    assert {n for part in names for n in part} == manifests["train"]["settings"].keys() - shared


def test_a_setting_that_an_early_run_did_not_have_is_no_difference():
    assert compare.differing([{"r": 8, "modules": ["q"]}, {"r": 8.0, "modules": ["q"], "new": 1}]) == []
    assert compare.differing([{"new": None}, {"r": 8}, {"new": 1, "r": 8}]) == ["new"]


def test_commit_device_versions_and_code_that_differ_are_said_in_one_sentence(two):
    assert compare.about(two) == ["All runs: preset demo, base model data/base, data quant_tasks.",
                                  "No setting differs between these runs."]  # fmt: skip
    manifests = copy.deepcopy(two[1].manifests)
    for manifest in manifests.values():
        manifest["git"] = {"commit": "0123456789", "dirty": True}
        manifest["versions"]["torch"] = "1.0"
    manifests["train"]["code"]["lib/judge/compare.py"] = "other"
    manifests["train"]["device"]["name"] = "H200"
    told = compare.about([two[0], dataclasses.replace(two[1], manifests=manifests)])[-1]
    assert "/ 01234567 with uncommitted changes)" in told and "/ 1.0)" in told
    assert "H200" in told and "code (lib/judge/compare.py)." in told and "numpy" not in told


def test_scores_are_a_row_a_run_first_as_the_first_run_was_asked_then_otherwise(two):
    on = [row for row in two[1].results if not row["calculator"]]
    late = dataclasses.replace(two[1], name="late", results=on, summary=summary(on))
    finished = [*two, late]
    table = compare.table(finished)
    shown = compare.scores_text(finished, table)
    right, n = compare.recount(two[1])["test", True, "tuned"]
    assert [row["run"] for row in shown] == ["one", "two", "late"] and shown[2]["n"] == "not asked"
    assert shown[1]["n"] == str(n) and shown[1]["tuned"].startswith(f"{100 * right / n:.1f} % [")
    assert shown[1]["format rate"] == "0 % -> 100 %"
    right, n = compare.recount(late)["test_seen", False, "tuned"]
    others = compare.other_scores_text(finished, table)
    assert others[2]["trained phrasings, calculator off"].startswith(f"{100 * right / n:.1f} % [")
    assert "trained phrasings, calculator on" in others[1] and "trained phrasings, calculator on" not in others[2]
    assert others[0]["perplexity, tuned"] == "1.6 [1.44, 1.76]"
    assert [row["run"] for row in compare.run_rows(finished, table)] == ["one", "one", "two", "two"]


def test_runs_without_golds_are_said_to_be_ungraded(two):
    bare = [dataclasses.replace(run, results=[], summary={"table": [], "paired": []}) for run in two]
    assert compare.table(bare) == [] and compare.asked_text([]).startswith("No question")
    assert compare.scores_text(bare, []) == [] == compare.run_rows(bare, [])
    assert [row["difference"] for row in compare.to_first_text(bare, [])] == [
        "not paired: no graded question in common with one"]  # fmt: skip


def test_costs_are_those_of_the_manifests(two):
    (row, _), (told, _) = compare.costs(two), compare.costs_text(compare.costs(two))
    assert row["tokens"] == pytest.approx(130 * 2345.6)
    assert row["evaluate_seconds"] == two[0].manifests["evaluate"]["elapsed_seconds"]
    assert (told["trained tokens"], told["training, minutes"], told["steps"]) == ("304,928", "2.2", "170")
    assert told["trained parameters"] == "123,456" and told["tokens/s"] == "2,346"
    manifests = copy.deepcopy(two[0].manifests)
    del manifests["train"]["metrics"]["train_seconds"]
    (unknown,) = compare.costs_text(compare.costs([dataclasses.replace(two[0], manifests=manifests)]))
    assert unknown["trained tokens"] == "-" and compare.interrupted(two) == []


def test_a_cost_that_holds_only_what_came_after_an_interruption_is_said_to(two):
    manifests = copy.deepcopy(two[0].manifests)
    manifests["train"]["metrics"]["resumed_from"] = "checkpoint-100"
    manifests["evaluate"]["resumed"] = True
    told = compare.interrupted([dataclasses.replace(two[0], manifests=manifests)])
    assert "from checkpoint-100" in told[0] and "evaluation" in told[1]


def test_the_notebook_compares_two_runs(tmp_path, capsys):
    for name, share in (("one", 0.5), ("two", 0.9)):
        make_run(tmp_path, name, tuned=share)
    notebook = nbformat.read(ROOT / "notebooks" / "31_compare.ipynb", as_version=4)
    _, _, *cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names = {"preset": "demo", "run": "one", "outputs": str(tmp_path), "others": ["two"], "changes": {}}
    for source in cells:
        exec(source, names)
    found = json.loads((tmp_path / "one" / "figures" / "comparison.json").read_text())
    assert found["to_first"][0]["difference"] > 0 > found["between_runs"][0]["difference"]
    figures = runs.read(tmp_path / "one", "compare")["outputs"]
    assert {"accuracy_by_run.png", "between_runs.png", "comparison.json"} <= figures.keys()


def test_an_unfinished_run_is_refused_with_the_notebook_to_run(tmp_path):
    folder = make_run(tmp_path, "half")
    (folder / "eval" / "manifest.json").unlink()
    with pytest.raises(runs.RunError, match="run 30_evaluate first"):
        compare.load(folder)


def test_a_run_is_not_compared_with_itself(tmp_path):
    make_run(tmp_path, "alone")
    stage = runs.begin(parameters.from_notebook(
        "compare", {"preset": "demo", "run": "alone", "outputs": str(tmp_path), "others": ["alone"]}
    ))  # fmt: skip
    with pytest.raises(runs.RunError, match="alone more than once"):
        compare.load_all(stage)
    disk.unlock(stage.run_folder, "writer")


def test_an_answer_with_odd_line_ends_is_read_whole(tmp_path):
    folder = make_run(tmp_path, "odd")
    path = folder / "eval" / "generations.jsonl"
    hashed = disk.sha256(path)
    first = json.loads(path.open(encoding="utf-8").readline()) | {"completion": "a\u2028b\x85c"}
    path.write_text(json.dumps(first, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(runs.RunError, match="generations.jsonl was changed: run 30_evaluate again"):
        compare.load(folder)
    manifest = folder / "eval" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(hashed, disk.sha256(path)))
    assert compare.load(folder).results == [first]
