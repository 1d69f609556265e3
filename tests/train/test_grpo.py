"""GRPO by TRL's trainer on the embedded base: our answers, paid by the grader, the calculator's tokens unlearnt."""

import json

import pytest

from lib.data import formats, tasks
from lib.grade.calculator import count_marks
from lib.run import presets
from tests.train import shown

pytestmark = pytest.mark.slow
FEW = {
    "trainer": "grpo", "continue_from": None, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
    "max_steps": 3, "save_steps": 2, "logging_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3, "r": 4,
    "rollouts.num_generations": 4, "rollouts.max_completion_length": 48, "rewards.length": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def grpo(qlora):
    from lib.train import grpo

    return grpo


@pytest.fixture(scope="module")
def rows():
    return [formats.gold_only(problem.row()) for problem in tasks.generate("train", 12, 0)]


@pytest.fixture
def build(qlora, grpo, rows):
    """(trainer, settings) that notebook 23 would make, in a folder; on an adapter of an earlier run, if given."""

    def call(folder, earlier=None, callbacks=(), **changes):
        settings = presets.resolve("demo_rewards", FEW | changes).settings
        return shown.rewarded(settings, rows, folder, earlier, callbacks), settings

    return call


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def quiet(step, **values):
    pass


def test_answers_are_ours_and_each_is_kept_with_what_it_earned(grpo, build, tmp_path):
    trainer, settings = build(tmp_path)
    metrics = grpo.fit(trainer, settings, quiet)
    records = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len(records) == metrics["sampled_answers"] == 3 * 16 and metrics["steps"] == 3
    assert [one["step"] for one in records] == [1] * 16 + [2] * 16 + [3] * 16
    marks = [count_marks(one["completion"]) for one in records]
    assert sum(one["computed"] for one in marks) > 5 and not any(one["another value"] for one in marks)
    for start in range(0, len(records), 4):
        group = records[start : start + 4]
        assert len({one["id"] for one in group}) == 1 and [one["sample"] for one in group] == [0, 1, 2, 3]
        mean = sum(one["reward"] for one in group) / 4
        spread = (sum((one["reward"] - mean) ** 2 for one in group) / 3) ** 0.5
        for one in group:
            assert one["advantage"] == pytest.approx((one["reward"] - mean) / (spread + 1e-4), abs=1e-3)


def test_no_gradient_comes_from_what_the_calculator_wrote(grpo, build, tmp_path, monkeypatch):
    import torch

    trainer, settings = build(tmp_path, **{"rollouts.max_completion_length": 96})
    batch = trainer._generate_and_score_completions([trainer.train_dataset[n // 4] for n in range(16)])
    model_tokens = (batch["completion_mask"] * batch["tool_mask"]).bool()
    forced = batch["completion_mask"].bool() & ~model_tokens
    assert forced.sum() > 10
    texts = [trainer.processing_class.decode(ids[own]) for ids, own in zip(batch["completion_ids"], forced)]
    assert all(set(text) <= set("0123456789.-> ") for text in texts), "values and their ends"
    logps = torch.full(batch["completion_ids"].shape, -1.0, requires_grad=True)
    monkeypatch.setattr(
        trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (logps, torch.ones_like(logps), None)
    )
    trainer.current_gradient_accumulation_steps = 2  # as in training
    trainer._compute_loss(trainer.model, batch).backward()
    earned = batch["advantages"].abs()[:, None] > 1e-2
    assert not logps.grad[~model_tokens].any() and logps.grad[model_tokens & earned].all()


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_what_is_gone_on_with_is_the_uninterrupted_training(grpo, qlora, build, tmp_path, beta):
    """On the adapter of an earlier run, of which TRL keeps a copy as reference."""
    earlier, _ = build(tmp_path / "earlier", max_steps=1)
    grpo.fit(earlier, _, quiet)

    class Stop(qlora.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.asked_to_stop.asked = True

    runs = {}
    for name in ("whole", "stopped"):
        callbacks = [Stop()] if name == "stopped" else []
        trainer, settings = build(tmp_path / name, tmp_path / "earlier", callbacks, max_steps=4, save_steps=3,
                                  **{"grpo.beta": beta})  # fmt: skip
        guard = grpo.guards.RewardGuard(quiet, settings.guard_warnings)
        trainer.asked_to_stop = guard.stop
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
                qlora.train(trainer, guard, settings)
            trainer, settings = build(tmp_path / name, tmp_path / "earlier", max_steps=4, save_steps=3,
                                      **{"grpo.beta": beta})  # fmt: skip
            metrics = grpo.fit(trainer, settings, quiet, resumed=True)
            assert metrics["resumed_from"] == "checkpoint-2"
        else:
            qlora.train(trainer, guard, settings)
        runs[name] = weights(tmp_path / name), (tmp_path / name / "rollouts.jsonl").read_text()
    assert runs["whole"] == runs["stopped"] and runs["whole"][0] != weights(tmp_path / "earlier")


def test_a_question_that_comes_twice_in_a_step_is_answered_anew(build, tmp_path, monkeypatch, grpo):
    trainer, _ = build(tmp_path)
    monkeypatch.setattr(grpo.GRPOTrainer, "_generate_and_score_completions", lambda trainer, inputs: {})
    monkeypatch.setattr(trainer, "_keep", lambda output: None)
    first, second = trainer.train_dataset[0], trainer.train_dataset[1]
    trainer._generate_and_score_completions([first] * 4 + [second] * 4 + [first] * 4)
    assert [row["sample"] for row in trainer.asked] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]


def test_the_questions_of_all_epochs_are_one_epoch_in_an_order_of_the_seed(grpo, rows):
    settings = presets.resolve("demo_rewards", FEW | {"max_steps": -1, "num_train_epochs": 3}).settings
    ids = [json.loads(one)["id"] for one in grpo.dataset(rows, settings)["row"]]
    assert grpo.steps_of(rows, settings) == 9 and len(ids) == 36
    epochs = [ids[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == sorted(row["id"] for row in rows) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = grpo.dataset(rows, settings.model_copy(update={"seed": settings.seed + 1}))
    assert [json.loads(one)["id"] for one in again["row"]] != ids
