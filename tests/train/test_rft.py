"""Rejection sampling: which answers are learnt, by which model each round samples, what a resumption makes again."""

import json
from types import SimpleNamespace

import pytest

from lib.data import formats, tasks
from lib.run import disk, presets
from lib.run.memory import TrainingError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rft(qlora):
    from lib.train import rft

    return rft


@pytest.fixture
def rows():
    return [formats.gold_only(problem.row()) for problem in tasks.generate("train", 3, 0)]


def record(row, text, right, sample=0):
    parts = {"right": float(right), "shape": 1.0, "arithmetic": 1.0, "length": 0.5}
    return {"id": row["id"], "sample": sample, "completion": text, "parts": parts, "reward": float(right), "tokens": 7}


def test_distinct_right_answers_are_learnt_the_first_of_each_question(rft, rows):
    said = [("So 1", True), ("So  1", True), ("No", False), ("Thus 1 ", True), ("Hence 1", True)]
    records = [record(rows[0], *one, number) for number, one in enumerate(said)] + [record(rows[1], "x", False)]
    learnt = rft.right_answers(rows, records, 2)
    assert [row["messages"][-1]["content"] for row in learnt] == ["So 1", "Thus 1"]
    assert [row["id"] for row in learnt] == [f"{rows[0]['id']}/0", f"{rows[0]['id']}/1"]
    assert all(map(formats.is_worked, learnt)) and not any(map(formats.is_worked, rows))
    assert learnt[0]["messages"][:-1] == rows[0]["messages"][:-1] and learnt[0]["gold"] == rows[0]["gold"]


@pytest.fixture
def stage(tmp_path):
    settings = presets.resolve("demo_rewards", {"rollouts.num_generations": 2, "rft.rounds": 3}).settings
    lines = []
    return SimpleNamespace(
        settings=settings, folder=tmp_path, rehearse=False, lines=lines, resumed=False,
        log=lambda step, **values: lines.append((step, values)),
    )  # fmt: skip


def play(rft, monkeypatch, stage, rows, right=True, stop_in=None):
    """(metrics, the folder that each round sampled from, the ids that it learnt): no model is loaded."""
    started, learnt = [], []

    def sample(model, tokenizer, asked, settings, seed, label, folder):
        return [record(row, f"{label} {seed[-1]} {row['sample']}", right, row["sample"]) for row in asked]

    def load(settings, start):
        started.append(start and start.name)
        return None, None

    def fit(this):
        if this.number == stop_in:
            raise KeyboardInterrupt
        learnt.append([row["messages"][-1]["content"] for row in this.learnt])
        this.folder.mkdir(parents=True)
        (this.folder / "adapter_model.safetensors").write_text(f"of round {this.number}")
        this.log(5, loss=1.0)
        return {"steps": 5, "train_seconds": 1.0}

    monkeypatch.setattr(rft.qlora, "load", load)
    monkeypatch.setattr(rft.qlora.FastLanguageModel, "for_inference", lambda model: None)
    monkeypatch.setattr(rft.rollouts, "sample", sample)
    try:
        return rft.learn(stage, rows, None, fit), started, learnt
    except KeyboardInterrupt:
        return None, started, learnt


def test_each_round_samples_from_the_one_before_and_learns_all_that_was_kept(rft, monkeypatch, stage, rows):
    metrics, started, learnt = play(rft, monkeypatch, stage, rows)
    assert started == [None, "round-1", "round-2"]
    assert [len(texts) for texts in learnt] == [6, 12, 12], "at most four a question"
    assert metrics["sampled_answers"] == 18 and metrics["sampled_tokens"] == 18 * 7 and metrics["steps"] == 15
    assert (stage.folder / "adapter_model.safetensors").read_text() == "of round 3"
    assert [(step, values["round"]) for step, values in stage.lines] == [(5, 1), (10, 2), (15, 3)]
    lines = [json.loads(line) for line in disk.whole_lines(stage.folder / "rollouts.jsonl")]
    assert [line["step"] for line in lines] == [1] * 6 + [2] * 6 + [3] * 6


def test_what_is_finished_is_not_made_again(rft, monkeypatch, stage, rows):
    assert play(rft, monkeypatch, stage, rows, stop_in=2)[0] is None
    metrics, started, learnt = play(rft, monkeypatch, stage, rows)
    assert started == ["round-2"], "the second round was sampled, the first was trained"
    assert [len(texts) for texts in learnt] == [12, 12] and metrics["steps"] == 15
    assert metrics["sampled_answers"] == 18


def test_no_right_answer_is_told_with_the_remedy(rft, monkeypatch, stage, rows):
    with pytest.raises(TrainingError, match="none of 6 sampled answers is right: start from a run"):
        play(rft, monkeypatch, stage, rows, right=False)
    stage.rehearse = True
    assert play(rft, monkeypatch, stage, rows, right=False)[0]["steps"] == 15
