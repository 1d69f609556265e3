"""Claims about the task for lm-evaluation-harness: it asks what the run asked, and grades as Sharpen does, alone.

SHARPEN_LM_EVAL names the Python of an environment with lm-evaluation-harness 0.4.13, in which the task is then run."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from transformers import AutoModelForCausalLM

from lib import cli
from lib.data import chat, tasks
from lib.grade import scoring
from lib.judge import evaluate
from lib.run import parameters, presets, runs
from lib.run.paths import ROOT
from lib.ship import task

HOSTILE = 'Is "{{ 7 * 7 }}" ! !!python/object/apply:os.system\u2028 <b>or</b> 49?'


def row(number: int, question: str, gold: dict | None, *earlier: dict) -> dict:
    messages = [*earlier, {"role": "user", "content": question}, {"role": "assistant", "content": "#### 1"}]
    return {"id": f"t{number}", "kind": "sum", "group": f"g{number}", "messages": messages, "gold": gold}


@pytest.fixture
def evaluated(tmp_path):
    """A finished run whose test has a hostile question, a row without a gold, and one with a system message."""
    rows = [row(0, HOSTILE, {"value": 49, "unit": "count"}), row(1, "Why?", None),
            row(2, "2+3?", {"value": 5, "unit": "none"}, {"role": "system", "content": "Be brief."}),
            row(3, "Half of 5 %?", {"value": "2.5%", "unit": "percent", "decimals": 1, "tolerance": 0.0}),
            row(4, "Is 7 prime?", {"value": True, "unit": "bool"}),
            row(5, "More?", {"value": 1, "unit": "count"})]  # fmt: skip
    resolved = presets.resolve("demo", {"eval_rows": 4, "max_new_tokens": 48})
    for name in ("prepare", "train", "evaluate"):
        stage = runs.begin(parameters.Request(name, "mine", tmp_path, resolved))
        if name == "prepare":
            stage.write_rows("test.jsonl", rows)
        stage.finish()
    return tmp_path / "mine"


def loaded(folder):
    """The written grader as a module, imported by its path as the harness does."""
    spec = importlib.util.spec_from_file_location("sharpen_task", folder / "sharpen_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_writes_the_test_that_the_run_asked(evaluated, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sharpen", "export-task", "mine", "--outputs", str(evaluated.parent)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().out
    assert ended.value.code == 0 and "left out: 1 of 4 questions, which are more than one message" in told
    assert "--tasks sharpen_mine --include_path" in told
    with open(evaluated / "task/questions.jsonl", encoding="utf-8") as file:
        questions = [json.loads(line) for line in file]
    assert [one["id"] for one in questions] == ["t0", "t3", "t4"] and questions[0]["question"] == HOSTILE
    text = (evaluated / "task/sharpen_mine.yaml").read_text()
    assert re.findall(r"!\w.*", text) == [f"!function sharpen_task.{name}" for name in ("questions", "process_results")]
    about = yaml.safe_load(text.replace("!function ", ""))
    assert about["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": 48}
    assert (about["task"], about["doc_to_text"], about["metadata"]["questions"]) == ("sharpen_mine", "question", 3)
    assert task.export(evaluated) == evaluated / "task", "again, over its own files"


def test_a_folder_with_something_else_and_a_test_that_was_changed_are_refused(evaluated, tmp_path, write_run):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    with pytest.raises(runs.RunError, match="holds 'thesis.txt', which is none of the task's: name an empty"):
        task.export(evaluated, tmp_path / "taken")
    with pytest.raises(runs.RunError, match="run 30_evaluate first"):
        task.export(write_run(tmp_path, "half", stages=("prepare", "train")))
    (evaluated / "data/test.jsonl").write_text("{}\n")
    with pytest.raises(runs.RunError, match="test.jsonl was changed"):
        task.export(evaluated)


def answers(gold: dict, worked: str) -> list[str]:
    """A row's own answer, and others: right, wrong, unmarked, in other marks, units, signs and powers."""
    value = str(gold["value"])
    return [worked, value, f"#### {value}", f"Final answer: **{value}** %", f"\\boxed{{{value}}}", f"#### -{value}",
            f"#### ({value})", f"The answer is ${value} million.", f"#### {value}0 or {value}", f"A: \u2212{value}",
            f"so it is {value} in 2019", f"#### {value}1\n#### {value}", "#### 1.2e-3",
            f"#### {value} bps", ""]  # fmt: skip


def test_the_written_grader_imports_nothing_of_sharpen_and_gives_its_verdicts(evaluated, tmp_path):
    folder = task.export(evaluated, tmp_path / "alone")
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import sharpen_task; print(*sys.modules)"],
        cwd=folder, capture_output=True, text=True, check=True)  # fmt: skip
    there = set(done.stdout.split())
    assert "sharpen_task" in there and not there & {"lib", "torch", "datasets", "numpy"}
    grader, graded, right = loaded(folder), 0, 0
    golds = [({"value": "Beta, Alpha", "unit": "choice"}, "#### Beta > Alpha"),
             ({"value": True, "unit": "bool"}, "#### yes")]  # fmt: skip
    golds += [(problem.gold, problem.reasoning) for problem in tasks.generate("test", 200, 5)]
    for gold, worked in golds:
        for text in answers(gold, worked):
            verdict = scoring.grade(text, gold)
            found = grader.process_results({"gold": json.dumps(gold)}, [text])
            assert found == {"correct": verdict.correct, "last_number_counts": verdict.correct_lenient}, (text, gold)
            graded, right = graded + 1, right + verdict.correct
    assert graded > 2000 and 0.2 < right / graded < 0.8


def test_lm_evaluation_harness_asks_the_same_prompts_and_is_answered_as_sharpen_is(evaluated, tokenizer, tmp_path):
    """The embedded base, in fp32, by a process in which there is no Sharpen."""
    python = os.environ.get("SHARPEN_LM_EVAL")
    if not python:
        pytest.skip("SHARPEN_LM_EVAL is not set: it names the Python of an environment with lm_eval 0.4.13")
    folder, base = task.export(evaluated, tmp_path / "task"), ROOT / "data/base"
    command = [python, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={base},dtype=float32",
               "--device", "cpu", "--batch_size", "4", "--apply_chat_template", "--tasks", "sharpen_mine",
               "--include_path", str(folder), "--log_samples", "--output_path", str(tmp_path / "logged")]  # fmt: skip
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True)
    (logged,) = (tmp_path / "logged").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in logged.read_text(encoding="utf-8").split("\n") if line]
    asked, options = zip(*(sample["arguments"]["gen_args_0"].values() for sample in samples))
    messages = [[{"role": "user", "content": sample["doc"]["question"]}] for sample in samples]
    prompts = [chat.prompt_ids(one, tokenizer) for one in messages]
    assert [tokenizer.encode(text, add_special_tokens=False) for text in asked] == prompts and len(prompts) == 3
    assert options[0]["until"] == [] and options[0]["max_gen_toks"] == 48
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    for sample, answer in zip(samples, evaluate.generate(model, tokenizer, prompts, 48, 4, False)):
        assert sample["filtered_resps"] == [answer["completion"]]
        assert sample["correct"] == scoring.grade(answer["completion"], json.loads(sample["doc"]["gold"])).correct
