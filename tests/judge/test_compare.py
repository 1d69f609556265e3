"""Claims about finished runs side by side, on small made-up runs that keep the run contract."""

import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lib.grade import stats
from lib.judge import answers as graded
from lib.judge import compare
from lib.run import disk, parameters, runs

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
    rehearse: bool = False,
) -> Path:  # fmt: skip
    """A finished run, written through lib.run.runs as the notebooks write theirs."""

    def stage_of(stage: str) -> runs.Stage:
        return runs.begin(parameters.from_notebook(
            stage, {"preset": "demo", "run": name, "outputs": str(outputs), "rehearse": rehearse}
        ))  # fmt: skip

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
    told = compare.paired_runs_text(rows)
    assert told[0]["compared"] == "one - two: unseen phrasings and ranges, calculator on"
    assert compare.headline(three(two)).keys() == {"runs compared", *(r["label"] for r in rows[:8])}


def test_not_worse_is_shown_only_where_the_second_run_is_surely_close(two):
    same = compare.Finished("same", False, two[0].manifests, [], two[0].summary, [
        row | {"id": f"{row['id']}-{copy}", "question": f"{row['question']} {copy}"}
        for copy in range(5) for row in two[0].results
    ])  # fmt: skip
    twin = compare.Finished("twin", False, two[0].manifests, [], two[0].summary, same.results)
    assert all(row["not_worse"]["holds"] for row in compare.paired_runs([same, twin]) if row["n"] >= 100)
    assert not any(row["not_worse"]["holds"] for row in compare.paired_runs(two))  # two is some 30 points worse
    (told, *_) = compare.paired_runs_text(compare.paired_runs([same, twin]))
    assert told["second less than 5 points worse"].startswith("shown, p ")


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
    row = compare.paired_runs(two)[0]
    assert f"Right, then wrong: {row['right_to_wrong']} of {row['n']} questions" in page
    assert "From two to one" in page and "<th style='width:33%'>two, tuned</th><th>one, tuned</th>" in page
    assert "no other run" in compare.flips(two[:1], "test", True)


def test_flips_of_runs_with_other_questions_are_refused(two, tmp_path):
    other = compare.load(make_run(tmp_path, "other", first_id=5))
    page = compare.flips([two[0], other], "test", True)
    assert "Not compared: they were asked other questions" in page and "<table" not in page


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
    assert "different questions" in compare.headline([two[0], other])["runs compared"]


def test_a_changed_gold_makes_another_question(two):
    changed = [row | {"gold": {"value": -1}} if row["split"] == "test" else row for row in two[1].results]
    other = compare.Finished("changed", False, two[1].manifests, [], two[1].summary, changed)
    assert len(compare.different_questions([two[0], other])) == 1
    assert {row["split"] for row in compare.paired_runs([two[0], other])} == {"test_seen"}


def test_a_rehearsal_is_never_called_a_result(tmp_path):
    run = compare.load(make_run(tmp_path, "walk", rehearse=True))
    assert {row["run"] for row in compare.table_text(compare.table([run]))} == {"walk (REHEARSAL)"}
    assert {row["this is"] for row in compare.costs_text(compare.costs([run]))} == {"a REHEARSAL, no result"}


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
