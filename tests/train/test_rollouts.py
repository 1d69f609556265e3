"""Sampled answers: which questions are asked, what is kept of an answer, what is shown of many."""

from types import SimpleNamespace

import pytest

from lib.data import chat, formats, tasks
from lib.judge import evaluate
from lib.run import presets
from lib.run.memory import TrainingError
from lib.run.settings import Rewards
from lib.train import rewards, rollouts


@pytest.fixture
def rows():
    return [formats.gold_only(problem.row()) for problem in tasks.generate("train", 6, 0)]


def settings_of(**changes):
    return presets.resolve("demo_rewards", changes).settings


def record(id, reward, right, step=1, **others):
    parts = {"right": right, "shape": 1.0, "arithmetic": 1.0, "length": 0.5}
    return {"id": id, "step": step, "reward": reward, "parts": parts, "tokens": 10, "finished": True,
            "completion": f"{id} {reward}"} | others  # fmt: skip


def test_questions_without_room_or_gold_are_left_out(rows, tokenizer):
    lengths = [len(chat.prompt_ids(row["messages"], tokenizer)) for row in rows]
    rows[0]["gold"] = None
    changes = {"rollouts.max_completion_length": 100, "max_length": 100 + sorted(lengths)[-2]}
    kept, left_out = rollouts.fitting(rows, tokenizer, settings_of(**changes))
    longest = rows[lengths.index(max(lengths))]["id"]
    assert sorted(left_out) == sorted({rows[0]["id"], longest}) and len(kept) + len(left_out) == 6
    with pytest.raises(TrainingError, match="no training row of 6 has a gold and a prompt of at most 1 tokens: raise"):
        rollouts.fitting(rows, tokenizer, settings_of(**changes | {"max_length": 101}))


def test_an_answer_is_kept_with_all_that_its_reward_is_made_of(rows):
    row, settings = rows[0] | {"sample": 3}, settings_of(**{"rewards.length": 2.0})
    gold = row["messages"][-1]["content"]
    kept = rollouts.record(row, {"completion": f"<<1+1=3>>\n{gold}", "finished": True, "tokens": 100}, settings)
    assert kept["parts"] == {"right": 1, "shape": 1, "arithmetic": 0, "length": 0.75} and kept["error"] is None
    assert kept["reward"] == 1 + 0.1 + 2 * 0.75 == rewards.total(kept["parts"], Rewards(length=2.0))
    assert (kept["id"], kept["sample"], kept["question"]) == (row["id"], 3, row["messages"][0]["content"])


def test_groups_are_told_apart_and_best_paid_wrong_answers_come_first():
    records = [record("a", 1.2, 1.0), record("a", 1.2, 1.0), record("b", 0.2, 0.0), record("b", 1.2, 1.0),
               record("c", 0.2, 0.0), record("c", 0.1, 0.0), record("c", 0.3, 0.0, step=2)]  # fmt: skip
    found = rollouts.groups(records)
    assert found == {"all right": 1 / 4, "mixed": 1 / 4, "all wrong": 2 / 4, "same reward": 2 / 4}
    first, second = rollouts.by_step(records)
    assert (first["step"], first["right"], second["reward"], second["all wrong"]) == (1, 0.5, 0.3, 1)
    assert [one["completion"] for one in rollouts.doubtful(records, 2)] == ["c 0.3", "b 0.2"]


def test_what_to_lower_where_memory_runs_out_is_a_setting_of_this_notebook(rows, monkeypatch):
    def full(*args):
        raise TrainingError("out of memory (9.0 GiB were held): lower eval_batch_size")

    monkeypatch.setattr(evaluate, "ask", full)
    asked = rollouts.repeated(rows, settings_of())
    assert len(asked) == 48 and [row["sample"] for row in asked[:9]] == [*range(8), 0]
    with pytest.raises(TrainingError, match="lower rollouts.rows_at_once .now 120. or rollouts.max_completion_length"):
        rollouts.sample(SimpleNamespace(), None, asked, settings_of(), [0, 1], "round 1", None)
