"""A rehearsal of one preset for each format of data that others publish, from the files to the report."""

import json
import random

import pytest

from lib.pipeline import execute
from lib.run import runs

pytestmark = pytest.mark.notebooks
NAMES = "Acme Borealis Cygnus Delta Evergreen Falcon Granite Harbour Iris Juniper Kestrel Lumen Meridian Nova".split()
VERBS = "raised cut confirmed missed doubled withdrew delayed published".split()
THINGS = "its dividend|the outlook for the year|a bond of ten years|its stake in a rival|the cost of capital".split("|")


def sentence(random) -> str:
    name, verb, thing = (random.choice(words) for words in (NAMES, VERBS, THINGS))
    return f"{name} {verb} {thing} by {random.randrange(10, 99)} percent to {random.randrange(1000, 9999)} million."


def text(random, sentences: int) -> str:
    return " ".join(sentence(random) for _ in range(sentences))


def write(path, records) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def news(folder, random) -> None:
    articles = (f"Article {n}:\n{text(random, 6)}\n\n" for n in range(1, 131))
    (folder / "news.txt").write_text("".join(articles), encoding="utf-8")


def finance(folder, random) -> None:
    """The three parts of the mixture, with conversations in both forms, of one or two turns, with thinking or not."""
    talks = [[("user", f"What happened? {sentence(random)}"), ("assistant", text(random, 2))] * (1 + n % 3 // 2)
             for n in range(120)]  # fmt: skip
    write(folder / "trader_sft/train.jsonl", [
        {"messages": [{"role": role, "content": said, "reasoning_content": text(random, 1) * (role == "assistant")}
                      for role, said in talk]} if n % 2 else
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": said} for role, said in talk]}
        for n, talk in enumerate(talks)
    ])  # fmt: skip
    write(folder / "trader_dpo/train.jsonl", [
        {"prompt": f"Buy or sell? {sentence(random)}", "chosen": f"Sell. {text(random, 1)}", "rejected": "Buy."}
        for _ in range(120)
    ])  # fmt: skip
    write(folder / "investopedia/train.jsonl", [
        {"Topic": f"topic {n // 2}", "Context": text(random, 2), "Question": f"What does {n} say?",
         "Answer": text(random, 1)} for n in range(120)
    ])  # fmt: skip


def grade_school(folder, random) -> None:
    for split, rows in (("train", 340), ("test", 70)):
        records = []
        for _ in range(rows):
            a, b = random.randrange(10, 999), random.randrange(10, 99)
            records.append({
                "question": f"{random.choice(NAMES)} sold {a} pens in {random.choice(VERBS)} boxes and {b} more. Sum?",
                "answer": f"It sold {a} + {b} = <<{a}+{b}={a + b}>>{a + b} pens.\n#### {a + b}",
            })  # fmt: skip
        write(folder / f"gsm8k/{split}.jsonl", records)


def own(folder, random) -> None:
    sums = [(random.randrange(10, 99), random.randrange(10, 99)) for _ in range(300)]
    rows = [f"{random.choice(NAMES)} asks: what is {a} plus {b}?,{a + b}\n" for a, b in sums]
    (folder / "own").mkdir()
    (folder / "own/train.csv").write_text("question,answer\n" + "".join(rows), encoding="utf-8")


def pairs(folder, random) -> None:
    write(folder / "trader_dpo/train.jsonl", [
        {"prompt": f"Buy or sell? {sentence(random)}", "chosen": f"Sell. {text(random, 1)}", "rejected": "Buy."}
        for _ in range(160)
    ])  # fmt: skip


def filings(folder, random) -> None:
    """The three sets of questions on pages, each with its training and test file, as they were published."""
    for split, pages in (("train", 160), ("test", 40)):
        finqa, talks, contexts = [], [], []
        for n in range(pages):
            a, b, name = random.randrange(200, 9999), random.randrange(100, 9999), f"{random.choice(NAMES)} {split} {n}"
            table = [["in millions", "2018", "2017"], [f"net sales of {name}", f"$ {a}", str(b)]]
            page = {"pre_text": [sentence(random), sentence(random)], "post_text": [sentence(random)], "table": table}
            change = f"subtract({a}, {b}), divide(#0, {b})"
            result, id = round((a - b) / b, 5), f"ACME{n}{split}/2018/page_{n}.pdf-1"
            asked = f"what was the percent change in net sales of {name} from {b} in 2017 to {a}?"
            gold = {"question": asked, "program": change, "exe_ans": result, "answer": "1%"}
            finqa.append(page | {"id": id, "qa": gold})
            talks.append(page | {"id": id, "annotation": {
                "dialogue_break": [f"the sales of {name} after {b}?", f"less {b}, how much did {name} grow?", asked],
                "turn_program": [str(a), f"subtract({a}, {b})", change],
                "exe_ans_list": [float(a), float(a - b), result],
            }})  # fmt: skip
            paragraphs = [{"order": 1, "text": sentence(random)}]
            contexts.append({"table": {"table": table}, "paragraphs": paragraphs, "questions": [
                {"question": f"What is the average of {a} and {b}, net sales of {name}?", "answer_type": "arithmetic",
                 "answer": round((a + b) / 2, 2), "derivation": f"({a} + {b}) / 2", "scale": "million"},
            ]})  # fmt: skip
        dev = {"train": "train", "test": "dev"}[split]
        name = {"train": "tatqa_dataset_train", "test": "tatqa_dataset_test_gold"}[split]
        for path, records in ((f"finqa/{split}", finqa), (f"convfinqa/{dev}", talks), (f"tatqa/{name}", contexts)):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / f"{path}.json").write_text(json.dumps(records), encoding="utf-8")


def probed(run_folder) -> None:
    """Notebook 32 kept every answer, and says that it is a rehearsal wherever it is read."""
    sampled, greedy = (
        [json.loads(line) for line in (run_folder / f"probe/{name}.jsonl").open()] for name in ("samples", "answers")
    )
    assert len({(row["id"], row["model"], row["sample"]) for row in sampled}) == len(sampled) == 2 * 12 * 3
    assert len(greedy) == 2 * (4 * 12 + 6) and {row["model"] for row in greedy} == {"base", "tuned"}
    summary = json.loads((run_folder / "probe/summary.json").read_text())
    assert {(row["model"], row["k"]) for row in summary["curves"]} == {(m, k) for m in ("base", "tuned") for k in
                                                                       (1, 2, 3)}  # fmt: skip
    assert summary["general_text"]["rows"] == 100 and [row["task"] for row in summary["second_task"]] == ["quant_tasks"]
    headline = runs.read(run_folder, "probe")["metrics"]["headline"]
    assert {"pass@3 (rehearsal, no result)", "general text (rehearsal, no result)"} <= headline.keys()
    report = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "Probe what training brought" in report and "Asked otherwise, and what was forgotten" in report


@pytest.mark.parametrize(("preset", "files", "graded"), [
    ("llama32_1b_news", news, False), ("qwen_14b_finance", finance, False), ("tinyllama_gsm8k", grade_school, True),
    ("trader_dpo", pairs, False), ("finqa_4b", filings, True), ("tatqa_4b", filings, True),
    ("convfinqa_4b", filings, True),
])  # fmt: skip
def test_a_preset_runs_from_its_files_to_its_report(preset, files, graded, tmp_path):
    (tmp_path / "data").mkdir()
    files(tmp_path / "data", random.Random(5))
    overrides, probe = {"data_dir": str(tmp_path / "data")}, preset == "tinyllama_gsm8k"
    if probe:
        overrides |= {"samples": 3, "also_ask": "quant_tasks:6", "calculator": "both"}
    done = execute.run(preset, overrides=overrides, rehearse=True, outputs=tmp_path, probe=probe)
    assert [state for _, state, _ in done.stages] == ["done"] * (4 + probe)
    if probe:
        probed(done.run_folder)
    train = runs.read(done.run_folder, "train")
    assert train["metrics"]["steps"] == 6 and train["settings"]["base_model"] == "data/base"
    summary = json.loads((done.run_folder / "eval/summary.json").read_text())
    for found in (summary["perplexity"], summary["with_prompt"]):
        assert {found[model]["rows"] for model in ("base", "tuned")} == {24}
    assert summary["loss"]["low"] <= summary["loss"]["difference"] <= summary["loss"]["high"]
    answers = [json.loads(line) for line in (done.run_folder / "eval/generations.jsonl").open()]
    answers = [answer for answer in answers if answer["model"] in ("base", "tuned")]  # and not after worked examples
    assert all(bool(answer["gold"]) == graded for answer in answers) and bool(summary["table"]) == graded
    assert len(answers) == (2 * 2 * 24 if graded else 2 * 10)
    if preset == "trader_dpo":
        assert 0 <= train["metrics"]["preference_low"] <= train["metrics"]["preference_accuracy"] <= 1
        assert train["metrics"]["preference_pairs"] == 24 and "held-out pairs (rehearsal)" in done.headline
        assert (done.run_folder / "figures/preference_curves.png").stat().st_size > 1000
    report = done.report.read_text(encoding="utf-8")
    assert "REHEARSAL" in report and "this notebook was not run" not in report and "stopped at an error" not in report
    assert ("not graded" in report) == (not graded)
    assert any("held-out loss" in label for label in done.headline)


def test_rewards_go_on_from_a_run_that_is_made_first(tmp_path):
    """Rejection sampling to the report, with the model that it began with as a third arm; GRPO to its adapter."""
    done = execute.run("demo_rewards", overrides={"train_rows": 24}, rehearse=True, outputs=tmp_path)
    first = tmp_path / "demo_rewards-sft-rehearsal"
    assert [state for _, state, _ in done.stages] == ["done"] * 4 and runs.is_complete(first, "evaluate")
    train = runs.read(done.run_folder, "train")
    assert train["metrics"]["sampled_answers"] == 2 * 24 * 4 and len(train["metrics"]["rounds"]) == 2
    assert "../demo_rewards-sft-rehearsal/adapter" in train["inputs"]
    answers = [json.loads(line) for line in (done.run_folder / "eval/generations.jsonl").open()]
    assert {answer["model"] for answer in answers} == {"tuned", "before", "base"}
    before = [answer["completion"] for answer in answers if answer["model"] == "before"]
    then = [json.loads(line) for line in (first / "eval/generations.jsonl").open()]
    assert before == [answer["completion"] for answer in then if answer["model"] == "tuned"]
    assert "since the run it went on from" in done.headline
    report = done.report.read_text(encoding="utf-8")
    assert "by rejection sampling and QLoRA" in report and "stopped at an error" not in report
    rollouts = [json.loads(line) for line in (done.run_folder / "adapter/rollouts.jsonl").open()]
    questions = [json.loads(line) for line in (done.run_folder / "data/train.jsonl").open()]
    assert {one["id"] for one in rollouts} == {row["id"] for row in questions}
    assert not any(row["worked"] for row in questions)

    changes = {"train_rows": 24, "trainer": "grpo"}
    execute.run("demo_rewards", "grpo", changes, rehearse=True, outputs=tmp_path, stages=["prepare", "train"])
    train = runs.read(tmp_path / "grpo", "train")
    assert train["metrics"]["steps"] == 6 and train["metrics"]["sampled_answers"] == 6 * 8
    again = execute.run("demo_rewards", "grpo", changes, rehearse=True, outputs=tmp_path, stages=["prepare", "train"])
    assert [state for _, state, _ in again.stages] == ["skipped"] * 2
