"""Claims about a report's first screen: it says what a recount of the kept answers gives."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from statsmodels.stats.proportion import proportion_confint

from lib.grade import stats
from lib.judge import plots
from lib.pipeline import report
from lib.run import disk, parameters, runs
from lib.run.stages import STAGES
from tests.judge.test_compare import make_run

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)></div></header>"
FAILS = {"passes": False, "reason": "fails: -9.0 points <b>"}
PASSES = {"passes": True, "reason": "passes: -0.3 points"}


def screen(run_folder: Path) -> BeautifulSoup:
    page = BeautifulSoup(report.write(run_folder).read_text(encoding="utf-8"), "html.parser")
    return page.header


def notes(header: BeautifulSoup) -> str:
    return " ".join(note.text for note in header(class_="note"))


def answered(run_folder: Path) -> dict[str, dict[str, dict]]:
    """The answers to unseen questions with the calculator by model and id, read without lib."""
    by_model = {"base": {}, "tuned": {}}
    for line in (run_folder / "eval" / "generations.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "test" and row["calculator"]:
            by_model[row["model"]][row["id"]] = row
    return by_model


def rewrite(run_folder: Path, stage: str, name: str, text: str) -> None:
    """Put other contents into a stage's file, with their hash in the manifest."""
    folder = run_folder / STAGES[stage].folder
    (folder / name).write_text(text, encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["outputs"][name] = disk.sha256(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def amend(run_folder: Path, stage: str, **changes) -> None:
    """Change what a stage's manifest says."""
    path = run_folder / STAGES[stage].folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, change in changes.items():
        manifest[key] |= change
    path.write_text(json.dumps(manifest))


def begin(run_folder: Path, stage: str) -> runs.Stage:
    given = {"preset": "demo", "run": run_folder.name, "outputs": str(run_folder.parent)}
    return runs.begin(parameters.from_notebook(stage, given))


def export(run_folder: Path, gates: dict) -> None:
    stage = begin(run_folder, "export")
    stage.input("train")
    stage.save_json("summary.json", {"gates": gates})
    stage.finish(headline={"export": f"{HOSTILE} to ship; Q4_K_M failed the gate"})


def probe(run_folder: Path, **pictures: bytes) -> None:
    stage = begin(run_folder, "probe")
    stage.input("train")
    for name, picture in pictures.items():
        (stage.folder / f"{name}.png").write_bytes(picture)
    stage.finish(headline={f"pass@8 {HOSTILE}": "base 1 % -> tuned 70 %"})


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path, "trial")


def test_the_sentence_says_what_a_recount_gives(run):
    base, tuned = answered(run).values()
    said = screen(run).find(class_="answer").text
    begin = "data/base was trained on 900 rows of quant_tasks by QLoRA: right answers to 40 unseen "
    assert said.startswith(f"{begin}questions went from ")
    for rows in (base, tuned):
        right = sum(row["correct"] for row in rows.values())
        low, high = proportion_confint(right, 40, method="wilson")
        assert f" {100 * right / 40:.1f} % [{100 * low:.1f}, {100 * high:.1f}] " in said
    before, after = ([rows[name]["correct"] for name in base] for rows in (base, tuned))
    points, limits = 100 * (sum(after) - sum(before)) / 40, stats.paired_interval(before, after)
    low, high = 100 * limits.low, 100 * limits.high
    end = f"with the calculator on, a difference of {points:+.1f} points [{low:+.1f}, {high:+.1f}]."
    assert said.endswith(end)


def test_the_sentence_sets_the_tuned_model_beside_the_base_at_its_best_prompt_and_tells_the_cold_one(run):
    summary = json.loads((run / "eval" / "summary.json").read_text())
    cold = [row for row in summary["table"] if row["model"] == "base"]
    best = [row | {"model": "base, 8 shots", "accuracy": 0.5, "low": 0.4, "high": 0.6} for row in cold]
    summary["table"] += best
    rewrite(run, "evaluate", "summary.json", json.dumps(summary))
    said = screen(run).find(class_="answer").text
    right = sum(row["correct"] for row in answered(run)["base"].values())
    assert " went from 50.0 % [40.0, 60.0] (base, 8 shots; without examples " in said
    assert f"without examples {100 * right / 40:.1f} % [" in said


@pytest.mark.parametrize("settings, method", [
    ({"load_in_4bit": False}, "900 rows of quant_tasks by LoRA"), ({"use_dora": True}, "by QDoRA"),
    ({"peft_type": "ia3"}, "by IA3"), ({"full_finetuning": True}, "by full fine-tuning"),
    ({"trainer": "dpo"}, "900 pairs of quant_tasks by DPO and QLoRA"),
])  # fmt: skip
def test_the_sentence_names_the_method(run, settings, method):
    amend(run, "train", settings=settings)
    assert f" {method}: " in screen(run).find(class_="answer").text


def test_a_mixture_is_named_by_its_parts(run):
    amend(run, "prepare", settings={"source": "mixture", "mixture": ["gsm8k=2", "finqa:100"]})
    assert " of gsm8k=2 + finqa:100 by QLoRA" in screen(run).find(class_="answer").text


def test_what_was_probed_is_told_with_its_picture_unless_the_adapter_is_another_now(run):
    assert "Asked otherwise" not in screen(run).text
    probe(run, pass_at_k=b"\x89PNG")
    header = screen(run)
    assert f"pass@8 {HOSTILE}: base 1 % -> tuned 70 %" in header.text and "Asked otherwise" in header.text
    assert header.find("img", alt=re.compile("Questions that k sampled answers solve"))
    rewrite(run, "probe", "pass_at_k.png", "no picture")
    assert "pass_at_k.png is no PNG of at most 8 MiB: run 32_probe again" in notes(screen(run))
    rewrite(run, "train", "adapter_config.json", "{}")
    header = screen(run)
    assert "32_probe was run on another adapter/ than is here now" in notes(header)
    assert "Asked otherwise" not in header.text


def mark(run_folder: Path, verdicts: list[tuple[bool, bool]]) -> list[str]:
    """Mark the first by (base is right, tuned is right), the rest as right; the questions."""
    asked = answered(run_folder)["base"]
    marks = dict(zip(asked, verdicts))

    def marked(row: dict) -> dict:
        base, tuned = marks.get(row["id"], (True, True))
        correct = tuned if row["model"] == "tuned" else base
        return {"correct": correct, "error": "wrong value", "completion": f"{row['model']} says"}

    change(run_folder, marked)
    return [row["question"] for row in asked.values()]


def change(run_folder: Path, changed: Callable[[dict], dict]) -> None:
    """Change every kept answer."""
    lines = (run_folder / "eval" / "generations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    text = "".join(json.dumps(row | changed(row)) + "\n" for row in rows)
    rewrite(run_folder, "evaluate", "generations.jsonl", text)


def test_the_three_answers_are_the_first_of_each_verdict(run):
    mended, broken, wrong = (False, True), (True, False), (False, False)
    asked = mark(run, [(True, True), broken, wrong, mended, wrong, mended, mended])
    shown = screen(run).find(class_="examples").find_all("div", recursive=False)
    titles = [example.h3.text for example in shown]
    assert titles == ["Mended: 3 of 40", "Broken: 1 of 40", "Still wrong: 2 of 40"]
    bad = "wrong: wrong value"
    told = ((asked[3], bad, "right"), (asked[1], "right", bad), (asked[2], bad, bad))
    for example, (question, base, tuned) in zip(shown, told, strict=True):
        verdicts = f"base{base}base says" f"tuned{tuned}tuned says"
        assert re.search(rf"{re.escape(question)}gold: \d+{verdicts}", example.text)


def test_a_verdict_without_a_question_is_said_in_a_line(run):
    mark(run, [(False, True)])
    header = screen(run)
    assert len(header("h3")) == 1 and "Training broke none of the 40." in header.text
    assert "Wrong before and after is none of the 40." in header.text
    mark(run, [])
    assert "Training mended none of the 40." in screen(run).text


def test_long_answers_and_questions_are_folded(run):
    mark(run, [(False, True)])
    assert not screen(run).find(class_="examples")("details")
    change(run, lambda row: {"completion": "says " * 100 if row["model"] == "tuned" else "none"})
    (folded,) = screen(run).find(class_="examples")("details")
    assert folded.pre.text == "says " * 100 and folded.summary.text.startswith("read ")
    change(run, lambda row: {"question": "why " * 100, "completion": "short"})
    (folded,) = screen(run).find(class_="examples")("details")
    assert folded.text.endswith("why " * 100) and folded.summary.text == "why " * 25 + " ..."


def test_the_figure_is_the_one_that_31_compare_saved(run):
    assert not screen(run)("img"), "there is none yet"
    stage = begin(run, "compare")
    stage.input("evaluate")
    table = json.loads((run / "eval" / "summary.json").read_text())["table"]
    plots.save(plots.accuracy_by_kind(table), stage.folder / "accuracy_by_kind.png")
    stage.finish()
    (picture,) = screen(run)("img")
    saved = (run / "figures" / "accuracy_by_kind.png").read_bytes()
    assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) == saved
    assert picture["alt"].startswith("Right answers by kind")
    rewrite(run, "compare", "accuracy_by_kind.png", "<svg onload=alert(1)>")
    header = screen(run)
    assert "accuracy_by_kind.png is no PNG of at most 8 MiB: run 31_compare again" in notes(header)
    assert not header("img")


def test_the_gates_verdict_on_an_export_is_told_with_its_reasons(run):
    export(run, {"Q4_K_M": FAILS, "Q8_0": PASSES})
    header = screen(run)
    assert f"{HOSTILE} to ship; Q4_K_M failed the gate." in header.text
    assert "Q4_K_M fails: -9.0 points <b>.Q8_0 passes: -0.3 points." in header.text
    assert "No quantised" not in header.text
    export(run, {"Q4_K_M": FAILS})
    assert "No quantised file passed the gate." in screen(run).text


def deployed(run, gate: dict | None):
    stage = begin(run, "deploy")
    stage.input("train"), stage.input("export")
    stage.save_json("summary.json", {"links": [], "gate": gate})
    stage.finish(headline={"deploy": f"{HOSTILE} by llama-server"})


def test_the_served_models_verdict_is_told(run):
    export(run, {"Q4_K_M": PASSES})
    deployed(run, {"reason": "passes: +0.7 points"})
    assert f"{HOSTILE} by llama-server. What is served passes: +0.7 points." in screen(run).text
    export(run, {"Q8_0": PASSES})  # another export
    header = screen(run)
    assert "What is served" not in header.text
    assert notes(header) == "41_serve was run on another export/ than is here now: run it again"


def test_without_golds_the_sentence_compares_perplexities(run):
    summary = json.loads((run / "eval" / "summary.json").read_text())
    loss = {"difference": -1.0296, "low": -1.1, "high": -0.958}
    summary |= {"paired": [], "table": [], "loss": loss}
    rewrite(run, "evaluate", "summary.json", json.dumps(summary))
    change(run, lambda row: {"gold": None})
    amend(run, "train", metrics={"headline": {"held-out pairs": "chosen answer ahead in 71.0%"}})
    header = screen(run)
    assert header.find(class_="answer").text.endswith(
        "the perplexity of 20 unseen answers went from 9.50 [8.55, 10.45] to 1.60 [1.44, 1.76], "
        "a difference of -1.030 [-1.100, -0.958] nats a token.")  # fmt: skip
    assert "Held-out pairs: chosen answer ahead in 71.0%." in header.text
    assert not header.find(class_="examples") and not notes(header)


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    begin(tmp_path / "trial", "prepare").finish()
    header = screen(tmp_path / "trial")
    told = "There is no answer yet (complete: prepare; to come: train, evaluate, compare)."
    assert header.find(class_="answer").text == told and not notes(header)


def test_a_rehearsal_says_so_in_the_sentence(tmp_path):
    said = screen(make_run(tmp_path, "walk", per_kind=2, rehearse=True)).find(class_="answer").text
    assert said.startswith("In a rehearsal, which is no result, data/base was trained")


def test_a_score_of_another_adapter_is_not_shown(run):
    rewrite(run, "train", "metrics.jsonl", "")
    header = screen(run)
    told = "30_evaluate was run on another adapter/ than is here now: run it again"
    assert notes(header) == told
    assert "There is no answer yet (complete: prepare, train; to come: " in header.text


@pytest.mark.parametrize("name", ["summary.json", "generations.jsonl"])
def test_a_torn_file_is_noted_and_the_rest_is_shown(run, name):
    path = run / "eval" / name
    path.write_bytes(path.read_bytes()[:-30])
    header = screen(run)
    assert f"{name} was changed: run 30_evaluate again" in notes(header)
    assert bool(header.find(class_="answer")) == (name != "summary.json")
    assert bool(header.find(class_="examples")) == (name != "generations.jsonl")
    path.unlink()
    assert f"{name} is missing: run 30_evaluate again" in notes(screen(run))


@pytest.mark.parametrize("text", [
    "{}", "[]", "{", '{"paired": [{"split": "test"}], "table": 1}', '{"paired": 5}', "[" * 100_000,
    '{"gold": {"value": 1}, "split": 1}\n', '{"gold": 1}\n', '{"gold": 1, "paired": [[]]}',
])  # fmt: skip
def test_a_file_that_no_notebook_wrote_is_noted(run, text):
    for name in ("summary.json", "generations.jsonl"):
        rewrite(run, "evaluate", name, text)
    header = screen(run)
    assert all(str(run / "eval") in note.text for note in header(class_="note"))
    assert notes(header).count("again") == 2 and not header.find(class_="answer")


def test_what_is_hostile_on_the_first_screen_is_text(tmp_path):
    run = make_run(tmp_path, "trial")
    mark(run, [(False, True), (True, False), (False, False)])
    hostile = dict.fromkeys(("question", "completion", "kind", "value", "error"), HOSTILE)
    change(run, lambda row: hostile | {"gold": {"value": HOSTILE}})
    export(run, {HOSTILE: {"passes": True, "reason": HOSTILE}})
    amend(run, "prepare", settings={"source": HOSTILE})
    amend(run, "train", settings={"base_model": HOSTILE})
    run = run.rename(tmp_path / "<img src=x>")
    header = screen(run)
    assert not header(["script", "img", "iframe"]) and header.h1.text == "Sharpen: run <img src=x>"
    assert not {"onerror", "onload"} & {name for element in header(True) for name in element.attrs}
    assert header.find(class_="answer").text.count(HOSTILE) == 2
    assert header.find(class_="examples").text.count(HOSTILE) == 3 * 5 + 4
