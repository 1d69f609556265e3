"""Claims about finished runs side by side, on small made-up runs that keep the run contract."""

import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from lib import compare, presets, runs, stats

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
                            "error": None if correct else "wrong value", "correct_lenient": correct,
                        })  # fmt: skip
    return rows


def summary(results: list[dict]) -> dict:
    """What 30_evaluate saves, computed here from the answers without lib.evaluate (which loads torch)."""
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
    """A finished run, written through lib.runs as the notebooks write theirs."""
    def stage_of(stage: str) -> runs.Stage:
        return runs.start(presets.from_notebook(
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


def test_runs_are_paired_question_by_question(two):
    row = next(r for r in compare.paired_runs(two) if r["split"] == "test" and r["calculator"])
    ours, theirs = ({r["id"]: r["correct"] for r in run.results if (r["model"], r["split"], r["calculator"])
                     == ("tuned", "test", True)} for run in two)  # fmt: skip
    both = [[sum(ours[i] == a and theirs[i] == b for i in ours) for b in (True, False)] for a in (True, False)]
    assert row["p_value"] == pytest.approx(mcnemar(both, exact=True).pvalue)
    assert row["difference"] == pytest.approx(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    assert (row["wrong_to_right"], row["right_to_wrong"]) == (both[0][1], both[1][0])  # from two to one
    assert not compare.different_questions(two)


def test_different_questions_are_said_and_not_paired(two, tmp_path):
    other = compare.load(make_run(tmp_path, "other", first_id=5))
    told = compare.different_questions([two[0], other])
    assert len(told) == 2 and "'test_seen'" in told[1] and "other was asked other questions than one" in told[0]
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
    stage = runs.start(presets.from_notebook(
        "compare", {"preset": "demo", "run": "alone", "outputs": str(tmp_path), "others": ["alone"]}
    ))  # fmt: skip
    with pytest.raises(runs.RunError, match="alone more than once"):
        compare.load_all(stage)
    runs.unlock(stage.run_folder, "writer")


def test_an_answer_with_odd_line_ends_is_read_whole(tmp_path):
    folder = make_run(tmp_path, "odd")
    path = folder / "eval" / "generations.jsonl"
    first = json.loads(path.open(encoding="utf-8").readline()) | {"completion": "a\u2028b\x85c"}
    path.write_text(json.dumps(first, ensure_ascii=False) + "\n", encoding="utf-8")
    assert compare.load(folder).results == [first]


def test_table_cells_are_escaped():
    for upright in (True, False):
        shown = compare.html_table([{"<i>run": "<script>alert(1)</script>"}], upright).data
        assert "<script" not in shown and "&lt;script&gt;" in shown and "<i>" not in shown
