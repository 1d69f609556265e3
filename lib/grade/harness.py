"""What lm-evaluation-harness calls in a task that `sharpen export-task` wrote: its questions, an answer's verdict."""

import json
from pathlib import Path

from lib.grade.scoring import grade


def questions(**_) -> dict:
    """{"test": the rows of questions.jsonl beside this file}; a gold is one text, as its value may be of any type."""
    from datasets import Dataset

    with open(Path(__file__).with_name("questions.jsonl"), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {"test": Dataset.from_list([row | {"gold": json.dumps(row["gold"])} for row in rows])}


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """Is the marked answer right; and would it be, were the last number of an unmarked one taken?"""
    verdict = grade(results[0], json.loads(doc["gold"]))
    return {"correct": float(verdict.correct), "last_number_counts": float(verdict.correct_lenient)}
