"""Every notebook is executed by papermill, in this Python, and answers for the figures that it wrote."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

from lib.data.tasks import DEMO_KINDS
from lib.gpt import ablation
from lib.pipeline import execute
from lib.run import runs
from lib.run.paths import ROOT

pytestmark = pytest.mark.notebooks
NOTEBOOKS = ROOT / "notebooks"
FEWER = {"calculator": "on", "test_rows": 150, "few_shot": 1}  # test_sweep.py asks without the calculator


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def demo(outputs) -> execute.Summary:
    return execute.run("demo", outputs=outputs, overrides=FEWER)


def accuracy(run_folder: Path, model: str, split: str, calculator: bool, kind: str = "all") -> dict:
    table = json.loads((run_folder / "eval" / "summary.json").read_text())["table"]
    wanted = (model, split, calculator, kind)
    return next(row for row in table if (row["model"], row["split"], row["calculator"], row["kind"]) == wanted)


def test_the_demo_learns_tasks_that_its_base_cannot_do(demo):
    base, tuned = (accuracy(demo.run_folder, model, "test", True) for model in ("base", "tuned"))
    assert base["n"] == tuned["n"] == 150
    assert base["high"] <= 0.05
    assert tuned["low"] > 0.50  # 72 % [64, 79] was measured; machines differ by an answer or two
    assert accuracy(demo.run_folder, "tuned", "test_seen", True)["accuracy"] >= 0.85


def test_the_headline_sets_the_tuned_model_beside_the_base_after_an_example(demo):
    summary = json.loads((demo.run_folder / "eval" / "summary.json").read_text())
    rows = {row["id"]: row for row in map(json.loads, (demo.run_folder / "data/train.jsonl").open())}
    (example,) = summary["few_shot"]["examples"]
    asked = {json.loads(line)["group"] for line in (demo.run_folder / "eval" / "generations.jsonl").open()}
    assert rows[example]["group"] not in asked and summary["few_shot"]["shots"] == 1
    assert demo.headline["test, calculator on"].startswith("base, 1 shot ")
    shot, tuned = (accuracy(demo.run_folder, model, "test", True)["accuracy"] for model in ("base, 1 shot", "tuned"))
    assert summary["paired"][0]["difference"] == pytest.approx(tuned - shot)


def test_the_demo_reports_each_kind(demo):
    for split, n in (("test", 25), ("test_seen", 5)):
        assert [accuracy(demo.run_folder, "tuned", split, True, kind)["n"] for kind in DEMO_KINDS] == [n] * 6


def test_perplexity_of_the_answers_falls(demo):
    perplexity = json.loads((demo.run_folder / "eval" / "summary.json").read_text())["perplexity"]
    assert perplexity["tuned"]["high"] < perplexity["base"]["low"]
    assert perplexity["tuned"]["tokens"] == perplexity["base"]["tokens"]


def test_every_answer_is_kept_with_its_verdict(demo):
    lines = (demo.run_folder / "eval" / "generations.jsonl").read_text().splitlines()
    assert len(lines) == 3 * (150 + 30)
    assert all({"question", "completion", "gold", "correct", "reading"} <= json.loads(line).keys() for line in lines)


def test_a_second_demo_run_skips_every_stage(demo, outputs):
    again = execute.run("demo", outputs=outputs, overrides=FEWER, echo=lambda text: None)
    assert [state for _, state, _ in again.stages] == ["skipped"] * 4


def test_the_report_holds_every_notebook(demo):
    text = demo.report.read_text()
    for title in ("Prepare the data", "Train by QLoRA on one device", "Ask base and tuned model the same questions"):
        assert title in text
    assert "REHEARSAL" not in text


def test_commands_about_a_finished_run_work_as_they_are_typed(demo, outputs):
    """Those of the README, in a process of their own, on a copy of the run as a second one."""
    shutil.copytree(outputs / "demo", outputs / "rank8")
    asked = "You invest $3,000 at 4% a year, compounded annually. How much is it worth after 5 years?"
    found = {}
    for words in ("status", "clean", "compare demo rank8", f"ask demo '{asked}'"):
        command = [sys.executable, "-m", "lib.cli", *shlex.split(words), "--outputs", outputs]
        found[words.split()[0]] = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    shutil.rmtree(outputs / "rank8")
    assert re.search(r"^demo +prepare, train, evaluate, compare", found["status"], flags=re.MULTILINE)
    assert "in all" in found["clean"]
    between = runs.read(demo.run_folder, "compare")["metrics"]["runs"]
    assert between == ["demo", "rank8"] and "read as: " in found["ask"]


def test_notebook_20_pretrains_a_base_that_the_tokenizer_fits(tmp_path):
    executed = tmp_path / "20.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / "20_pretrain_gpt.ipynb", executed, progress_bar=False, cwd=NOTEBOOKS,
        parameters={"run": "base", "outputs": str(tmp_path), "rehearse": True},
    )  # fmt: skip
    manifest = runs.read(tmp_path / "base", "pretrain")
    assert manifest["rehearse"] is True
    assert manifest["metrics"]["tokens"] == 40_960
    assert manifest["metrics"]["eval_loss"] < 7.3  # twenty small steps; a guess has ln(2048) = 7.6
    steps = json.loads((tmp_path / "base" / "base" / "ablation.json").read_text())
    assert [row["step"] for row in steps] == [name for name, *_ in ablation.LADDER if name != "+ compiler"]
    assert "REHEARSAL" in (tmp_path / "base" / "base" / "README.md").read_text()


@pytest.fixture(scope="module")
def exported(demo, outputs) -> Path:
    execute.run("demo", outputs=outputs, overrides={"eval_rows": 60, "margin": 25}, stages=["export"])
    return demo.run_folder


@pytest.mark.export
def test_notebook_40_asks_every_artefact_the_same_questions(demo, exported):
    folder = demo.run_folder / "export"
    found = json.loads((folder / "summary.json").read_text())
    chain = {row["artefact"]: row for row in found["chain"]}
    assert list(chain) == ["base", "adapter", "merged", "f16", "Q4_K_M"]
    assert all(row["n"] == 60 and row["low"] <= row["accuracy"] <= row["high"] for row in chain.values())
    assert abs(chain["f16"]["accuracy"] - chain["merged"]["accuracy"]) <= 1 / 60
    assert chain["adapter"]["accuracy"] > chain["base"]["high"]
    assert found["gates"]["Q4_K_M"]["passes"]
    manifest = runs.read(demo.run_folder, "export")
    assert 0 < manifest["metrics"]["conversion"]["logprob"] < 1e-3
    assert {"README.md", "Modelfile", "demo-f16.gguf", "demo-Q4_K_M.gguf"} <= manifest["outputs"].keys()
    assert "From adapter to a file" in (demo.run_folder / "report.html").read_text()


@pytest.mark.export
def test_notebook_41_serves_the_file_that_notebook_40_ships_and_it_answers_as_there(exported, outputs):
    command = [sys.executable, "-m", "lib.cli", "deploy", "demo", "--outputs", outputs]  # settings as in the export
    subprocess.run(command, check=True, cwd=ROOT)
    manifest = runs.read(exported, "deploy")
    found = manifest["metrics"]
    assert found["engine"] == "llama-server" and "demo-Q4_K_M.gguf" in manifest["metrics"]["headline"]["deploy"]
    assert [row["concurrent"] for row in found["load"]] == [1, 4, 16]
    assert sum(row["errors"] for row in found["load"]) == 0
    summary = json.loads((exported / "deploy" / "summary.json").read_text())
    links = {(link["asked by"], link["calculator"]): link for link in summary["links"]}
    assert {calculator for _, calculator in links} == {True, False} and all(link["n"] == 60 for link in links.values())
    assert links["notebook 40", True]["same verdicts"] >= 58  # a near tie may fall otherwise
    chain = json.loads((exported / "export" / "summary.json").read_text())["chain"]
    shipped = next(row for row in chain if row["artefact"] == "Q4_K_M")
    assert links["notebook 40", True]["accuracy"] == shipped["accuracy"] > 20 / 60
    assert links["served", True]["accuracy"] > links["served", False]["accuracy"] + 0.2
    assert "against the model of notebook 30" in summary["gate"]["reason"]
    card = (exported / "deploy" / "README.md").read_text()
    assert "| `sharpen serve demo` | on | 60 |" in card and "## What every artefact scored" in card
    assert "What is served" in (exported / "report.html").read_text()


@pytest.mark.export
def test_two_engines_agree_on_a_finished_run_and_nothing_in_it_changes(exported, outputs, tmp_path):
    before = runs.hashes_of(exported)
    command = f"agree demo --engines torch,llama-server --questions 24 --out {tmp_path / 'found.json'}"
    command = [sys.executable, "-m", "lib.cli", *shlex.split(command), "--outputs", outputs]
    told = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["n"] == 24 and found["same_verdicts"] >= 22 and f"{found['same_verdicts']} of 24" in told
    assert [engine["engine"] for engine in found["engines"]] == ["torch", "llama-server (f16)"]
    assert "tuned.gguf" not in told, "notebook 40's own file was not asked"
    assert runs.hashes_of(exported) == before


def test_notebook_42_shows_both_requests_and_what_they_cost_and_asks_nobody(demo, outputs, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers there
    asked = {"bucket": "mine", "max_hours": 3}
    execute.run("demo", outputs=outputs, overrides=asked, stages=["cloud"], echo=lambda text: None)
    manifest = runs.read(demo.run_folder, "cloud")
    train = (demo.run_folder / "requests" / "train.txt").read_text()
    serve = (demo.run_folder / "requests" / "serve.txt").read_text()
    assert "create_training_job:" in train and "s3://mine/sharpen/sharpen-demo-" in train
    assert "10 an hour x 1 x 3 hours = at most 30.00" in train and '"learning_rate": "0.003"' in train
    if runs.is_complete(demo.run_folder, "export"):
        assert "create_endpoint:" in serve and "2 to 6 an hour, until it is deleted" in serve
    else:
        assert "run 40_export first" in serve
    assert "at most 30.00" in manifest["metrics"]["headline"]["cloud"]
    assert "bucket" not in manifest["metrics"]["made_up"] and "role_arn" in manifest["metrics"]["made_up"]
    assert not (demo.run_folder / "cloud").exists()


@pytest.mark.skipif("SHARPEN_DATA" not in os.environ, reason="SHARPEN_DATA does not name a folder with gsm8k/")
def test_the_gsm8k_preset_rehearses_on_its_real_rows(tmp_path):
    data = {"data_dir": os.environ["SHARPEN_DATA"]}
    # what comes after is rehearsed with rows of this form in test_presets_rehearsed.py
    summary = execute.run("llama32_3b_gsm8k", overrides=data, rehearse=True, outputs=tmp_path, stages=["prepare"])
    manifest = runs.read(summary.run_folder, "prepare")
    assert manifest["metrics"]["rows"]["train"] + manifest["metrics"]["dropped"] == 7473
    assert manifest["settings"]["max_length"] == 512 and "REHEARSAL" in summary.report.read_text()


def test_plain_papermill_is_refused_a_misspelt_parameter(tmp_path):
    """Of one notebook; that the others begin in the same way is claimed in test_notebook_style.py."""
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            NOTEBOOKS / "21_train_qlora.ipynb", tmp_path / "21.ipynb", progress_bar=False, cwd=NOTEBOOKS,
            parameters={"outputs": str(tmp_path), "learning_rte": "1e-4"},
        )  # fmt: skip
    assert error.value.ename == "SettingsError"
    assert "unknown setting 'learning_rte'" in error.value.evalue
    assert not (tmp_path / "demo").exists()
