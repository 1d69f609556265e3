"""GRPO (Shao 2024, arXiv:2402.03300): TRL's trainer, with answers sampled and paid for as everywhere here."""

# ruff: noqa: E402  (Unsloth must be imported before what it patches)

import json
import os
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func`, as it says by a warning

# isort: off
import unsloth  # noqa: F401  (first: it patches the others)

# isort: on
import numpy as np
import torch
from datasets import Dataset
from trl import GRPOTrainer

from lib.data import chat
from lib.engine.marks import Marks
from lib.judge import evaluate, sampling
from lib.run import disk
from lib.run.settings import TrainSettings
from lib.train import guards, qlora, resume, rewards, rollouts

ONE_EPOCH = {"num_train_epochs": 1, "max_steps": -1}  # of `dataset`, which has all of them


def steps_of(rows: list[dict], settings: TrainSettings) -> int:
    """Optimiser steps: `max_steps`, or those in which each question is asked `num_train_epochs` times."""
    if settings.max_steps > 0:
        return settings.max_steps
    return max(1, round(settings.num_train_epochs * len(rows) / questions_a_step(settings)))


def questions_a_step(settings: TrainSettings) -> int:
    """Questions whose answers one optimiser step learns from."""
    answers = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return answers // settings.rollouts.num_generations


def dataset(rows: list[dict], settings: TrainSettings) -> Dataset:
    """The questions in the order in which they are asked, all epochs as one: TRL draws the order of a later epoch
    anew after a resumption."""
    count, order, epoch = steps_of(rows, settings) * questions_a_step(settings), [], 0
    while len(order) < count:
        order += np.random.default_rng([settings.seed, epoch]).permutation(len(rows)).tolist()
        epoch += 1
    asked = [rows[place] for place in order[:count]]
    return Dataset.from_list([
        {"prompt": row["messages"][:-1], "row": json.dumps(row)} for row in asked  # golds are of several types
    ])  # fmt: skip


class RewardTrainer(GRPOTrainer):
    """TRL's trainer on questions of `dataset`: answers drawn by seed, step and question, with the calculator where the
    settings say so, whose tokens are not learnt; each is kept in rollouts.jsonl with what it was paid."""

    def __init__(self, model, settings: TrainSettings, folder: Path, **arguments):
        self.settings, self.keep = settings, disk.Log(folder / rollouts.FILE)
        how, tokenizer = settings.rollouts, arguments["processing_class"]
        parts = [_part(name, how.max_completion_length, tokenizer) for name in rewards.PARTS]
        sample = None if settings.grpo.use_vllm else self.sample
        super().__init__(model=model, reward_funcs=parts, rollout_func=sample, **arguments)
        self.filling = Marks(self.processing_class) if how.calculator else None
        for weight in model.parameters():
            if weight.requires_grad:  # TRL rounded it to bf16, in which such small steps are lost
                weight.data = weight.data.float()
        if "ref" in model.peft_config:
            resume.save_one_adapter(model)
        resume.keep_types(self)

    def sample(self, prompts: list, trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: an answer to each prompt, and which of its tokens the model chose."""
        how, tokenizer, model = self.settings.rollouts, self.processing_class, trainer.model
        ids = [chat.prompt_ids([*prompt, {"role": "assistant", "content": ""}], tokenizer) for prompt in prompts]
        seed = [self.settings.seed, self.state.global_step]
        drawn = sampling.draws(self.asked, seed, how.max_completion_length, how.temperature, how.top_p)
        ends, new = chat.end_ids(tokenizer), []
        with torch.inference_mode():
            engine = evaluate.engine_of(model, tokenizer, how.rows_at_once, ids, how.max_completion_length)
            for start in range(0, len(ids), engine.part):
                part = range(start, min(start + engine.part, len(ids)))
                new += engine.answers(
                    [ids[i] for i in part], how.max_completion_length, ends, self.filling, lambda ended: None,
                    draws=drawn.of(part),
                )  # fmt: skip
        completions = [_through_end(tokens, ends) for tokens in new]
        output = {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}
        if self.filling:
            forced = [self.filling.forced(*pair) for pair in zip(ids, completions, strict=True)]
            output["env_mask"] = [[int(not one) for one in row] for row in forced]
        return output

    def _generate_and_score_completions(self, inputs):
        self.asked, times = [], Counter()  # at an epoch's end a question may come twice
        for row in (json.loads(one["row"]) for one in inputs):
            self.asked.append(row | {"sample": times[row["id"]]})
            times[row["id"]] += 1
        output = super()._generate_and_score_completions(inputs)
        self._keep(output)
        return output

    def _keep(self, output: dict) -> None:
        """The answers with their rewards and advantages, and what they say of the model."""
        ends, records = chat.end_ids(self.processing_class), []
        begun = chat.opening(self.processing_class)
        masks = output["completion_mask"].bool()
        for row, ids, mask, advantage in zip(
            self.asked, output["completion_ids"], masks, output["advantages"].tolist(), strict=True
        ):
            tokens = ids[mask].tolist()
            answer = {
                "completion": begun + self.processing_class.decode(tokens, skip_special_tokens=True),
                "finished": tokens[-1] in ends, "tokens": len(tokens),
            }  # fmt: skip
            record = rollouts.record(row, answer, self.settings)
            records.append({"step": self.state.global_step + 1} | record | {"advantage": advantage})
        for record in records:
            self.keep(**record)
        for name, share in rollouts.groups(records).items():
            self._metrics["train"][f"groups/{name}"].append(share)


def _part(name: str, most: int, tokenizer: Any) -> Callable:
    """One part of the reward as TRL's reward function, which has its name in the logs."""
    begun, ends = chat.opening(tokenizer), chat.end_ids(tokenizer)

    def reward(completions, completion_ids, row, **ignored) -> list[float]:
        return [
            _parts(begun + text["content"], one, ids[-1] in ends, len(ids), most)[name]
            for (text,), one, ids in zip(completions, row, completion_ids, strict=True)
        ]

    reward.__name__ = name
    return reward


@lru_cache(4096)  # each part of one answer's reward is asked for apart
def _parts(text: str, row: str, finished: bool, tokens: int, most: int) -> dict[str, float]:
    return rewards.parts(text, json.loads(row)["gold"], finished, tokens, most)


def _through_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first that ends an answer, that one included."""
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]


def fit(trainer: RewardTrainer, settings: TrainSettings, log: Callable, resumed: bool = False) -> dict:
    """Train as `qlora.train` does; "sampled_tokens" are those of all answers, the calculator's included."""
    guard = guards.RewardGuard(log, settings.guard_warnings)
    metrics = qlora.train(trainer, guard, settings, resumed)
    records = rollouts.read(Path(trainer.args.output_dir).parent)
    tokens = sum(one["tokens"] for one in records)
    new = sum(one["tokens"] for one in records if one["step"] > resume.step_of(metrics["resumed_from"]))
    return metrics | {
        "sampled_answers": len(records), "sampled_tokens": tokens,
        "tokens_per_second": new / metrics["train_seconds"],
    }  # fmt: skip
