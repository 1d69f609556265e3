"""Rejection sampling: the model's own right answers are what it learns (Yuan 2023, arXiv:2308.01825; in rounds, each
from the first model anew: Singh 2023, arXiv:2312.06585)."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.data import chats
from lib.judge.answers import grouped
from lib.run import disk, runs
from lib.run.memory import TrainingError
from lib.train import qlora, rollouts


@dataclass(frozen=True)
class Round:
    """One round: its number, the rows that are learnt in it, where its adapter goes, and what logs its training."""

    number: int
    learnt: list[dict]
    folder: Path
    log: Callable


def learn(stage: runs.Stage, rows: list[dict], start: Path | None, fit: Callable[[Round], dict]) -> dict:
    """Sample and `fit` round by round, and leave the last round's adapter in the stage's folder.

    Answers are sampled by the model of the round before, first by `start`. What rounds an interrupted attempt
    finished is not made again. Returns the last round's metrics, with sums over all: "sampled_answers" and
    "sampled_tokens" (the calculator's included), "sampling_seconds"; and a line a round in "rounds"."""
    records, lines, steps = [], [], 0
    for number in range(1, stage.settings.rft.rounds + 1):
        folder, began = stage.folder / f"checkpoints/round-{number}", time.perf_counter()
        own = sampled(stage, rows, number, start)
        seconds, records = time.perf_counter() - began, records + own
        learnt = right_answers(rows, records, stage.settings.rft.max_answers)
        if not learnt and stage.rehearse:
            print("REHEARSAL: no sampled answer is right, so some that are wrong are learnt, to walk the path")
            learnt = right_answers(rows, [_as_right(one) for one in records[:32]], 1)
        if not learnt:
            raise TrainingError(f"none of {len(records)} sampled answers is right: start from a run that is sometimes "
                                f"(continue_from), or raise rollouts.num_generations")  # fmt: skip
        made = folder / "metrics.json"
        if not made.exists():
            metrics = fit(Round(number, learnt, folder, _log(stage, number, steps)))
            disk.write_atomically(made, [disk.to_json(metrics)])
        metrics, start = disk.load(made), folder
        steps += metrics["steps"]
        lines.append({
            "round": number, "answers": len(own), "right": sum(one["parts"]["right"] for one in own) / len(own),
            **rollouts.groups(own), "rows learnt": len(learnt), "steps": metrics["steps"],
            "sampling_seconds": seconds, "train_seconds": metrics["train_seconds"],
        })  # fmt: skip
    for file in folder.glob("adapter_*"):
        shutil.copy2(file, stage.folder)
    totals = {name: sum(line[name] for line in lines) for name in ("sampling_seconds", "train_seconds", "steps")}
    tokens = sum(one["tokens"] for one in records)
    return metrics | totals | {"sampled_answers": len(records), "sampled_tokens": tokens, "rounds": lines}


def sampled(stage: runs.Stage, rows: list[dict], number: int, start: Path | None) -> list[dict]:
    """A round's records of rollouts.jsonl, which are made if they are not there."""
    asked, settings = rollouts.repeated(rows, stage.settings), stage.settings
    records = [one for one in rollouts.read(stage.folder) if one["step"] == number]
    if len(records) == len(asked):
        return records
    model, tokenizer = qlora.load(settings, start)
    qlora.FastLanguageModel.for_inference(model)
    seed, label = [settings.seed, number], f"round {number}"
    records = rollouts.sample(model, tokenizer, asked, settings, seed, label, stage.folder)
    log = disk.Log(stage.folder / rollouts.FILE)
    for record in records:
        log(number, **record)
    return [{"step": number} | record for record in records]


def _log(stage: runs.Stage, number: int, before: int) -> Callable:
    def log(step: int, **values) -> None:
        if step or number == 1:  # a later round's step 0 is the last one of the round before
            stage.log(before + step, round=number, **values)

    return log


def right_answers(rows: list[dict], records: list[dict], most: int) -> list[dict]:
    """Rows to learn: each question with at most `most` distinct right answers, the first that were sampled.

    Two answers are one where they differ in spaces alone."""
    answers, learnt = grouped(records, "id"), []
    for row in rows:
        distinct = {}
        for one in answers.get(row["id"], []):
            if one["parts"]["right"]:
                distinct.setdefault("".join(one["completion"].split()), one)
        for number, one in enumerate(list(distinct.values())[:most]):
            messages = [*chats.as_context(row["messages"][:-1]), chats.answer(one["completion"])]
            learnt.append(row | {"id": f"{row['id']}/{number}", "messages": messages, "worked": True})
    return learnt


def _as_right(record: dict) -> dict:
    return record | {"parts": record["parts"] | {"right": 1.0}}
