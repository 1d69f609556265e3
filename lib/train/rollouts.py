"""Answers sampled from the model that is trained: asked in the one prompt format, drawn by seed, graded, kept."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from lib.data import chat
from lib.grade import scoring
from lib.judge import evaluate, sampling
from lib.judge.answers import grouped
from lib.run import runs
from lib.run.memory import TrainingError
from lib.run.settings import TrainSettings
from lib.train import rewards

FILE = "rollouts.jsonl"  # in the stage's folder


def fitting(rows: list[dict], tokenizer, settings: TrainSettings) -> tuple[list[dict], list[str]]:
    """(rows with a gold whose prompt leaves room for the longest sampled answer, ids of the others)."""
    most, kept, left_out = settings.max_length - settings.rollouts.max_completion_length, [], []
    for row in rows:
        if row["gold"] and len(chat.asked_ids(row, tokenizer)) <= most:
            kept.append(row)
        else:
            left_out.append(row["id"])
    if not kept:
        raise TrainingError(f"no training row of {len(rows)} has a gold and a prompt of at most {most} tokens: raise "
                            f"max_length, or lower rollouts.max_completion_length")  # fmt: skip
    return kept, left_out


def repeated(rows: list[dict], settings: TrainSettings) -> list[dict]:
    """Each row as often as it is sampled, with "sample", its number."""
    return [row | {"sample": number} for row in rows for number in range(settings.rollouts.num_generations)]


def sample(
    model, tokenizer, rows: list[dict], settings: TrainSettings, seed: Sequence[int], label: str, folder: Path | None
) -> list[dict]:  # fmt: skip
    """A graded answer to each of the rows that `repeated` gives, as records of rollouts.jsonl.

    In `folder` what is answered is kept, for an attempt that goes on after this one was stopped."""
    how = settings.rollouts
    asking = SimpleNamespace(max_new_tokens=how.max_completion_length, eval_batch_size=how.rows_at_once)
    drawn = sampling.draws(rows, seed, how.max_completion_length, how.temperature, how.top_p)
    try:
        answered = evaluate.ask(model, tokenizer, rows, asking, how.calculator, {"model": label}, folder, drawn)
    except TrainingError as error:  # out of memory: what it would lower are settings of notebook 30
        raise TrainingError(f"out of memory while answers were sampled: lower rollouts.rows_at_once (now "
                            f"{how.rows_at_once}) or rollouts.max_completion_length") from error  # fmt: skip
    return [record(row, answer, settings) for row, answer in zip(rows, answered, strict=True)]


def record(row: dict, answer: dict, settings: TrainSettings) -> dict[str, Any]:
    """A sampled answer as rollouts.jsonl holds it; `answer`: its completion, finished, tokens."""
    text, finished, tokens = (answer[name] for name in ("completion", "finished", "tokens"))
    most = settings.rollouts.max_completion_length
    parts = rewards.parts(text, row["gold"], finished, tokens, most)
    return {
        "id": row["id"], "sample": row["sample"], "kind": row["kind"], "question": row["messages"][-2]["content"],
        "gold": row["gold"], "completion": text, "finished": finished, "tokens": tokens,
        "error": scoring.grade(text, row["gold"], finished).error, "parts": parts,
        "reward": rewards.total(parts, settings.rewards),
    }  # fmt: skip


def read(folder: Path) -> list[dict]:
    """The records so far, each with the step (of rejection sampling: the round) that it was sampled for."""
    return runs.read_rows(folder / FILE) if (folder / FILE).exists() else []


def groups(records: list[dict]) -> dict[str, float]:
    """Shares of the questions of which all, some or none of the sampled answers are right, and of those whose answers
    all earned the same, which teach GRPO nothing."""
    by_question = grouped(records, "step", "id").values()
    right = [[one["parts"]["right"] for one in own] for own in by_question]
    counts = {
        "all right": sum(map(all, right)), "mixed": sum(any(own) and not all(own) for own in right),
        "all wrong": sum(not any(own) for own in right),
        "same reward": sum(len({one["reward"] for one in own}) == 1 for own in by_question),
    }  # fmt: skip
    return {name: count / len(right) for name, count in counts.items()}


def by_step(records: list[dict]) -> list[dict[str, float]]:
    """Means over the answers of each step: reward, its parts, tokens, the share cut off, and shares of `groups`."""
    lines = []
    for step, own in grouped(records, "step").items():
        line = {"step": step, "reward": fmean(one["reward"] for one in own)}
        line |= {name: fmean(one["parts"][name] for one in own) for name in rewards.PARTS}
        line |= {"tokens": fmean(one["tokens"] for one in own), "cut off": fmean(not one["finished"] for one in own)}
        lines.append(line | groups(own))
    return lines


def doubtful(records: list[dict], most: int = 10) -> list[dict]:
    """The best-paid answers that are wrong, or that look so: right, but without arithmetic or in another shape."""
    odd = [one for one in records if not all(one["parts"][name] for name in ("right", "shape", "arithmetic"))]
    distinct = {(one["id"], one["completion"]): one for one in odd}
    return sorted(distinct.values(), key=lambda one: -one["reward"])[:most]
