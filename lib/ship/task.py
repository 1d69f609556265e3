"""A run's test as a task of lm-evaluation-harness: others ask its questions, and grade as it did, without Sharpen."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lib import __version__
from lib.grade import harness, numerals, reading, scoring, sentences, words
from lib.run import disk, runs

VERSION = "0.4.13"  # of lm-evaluation-harness, by which such a task was run
GRADER = "sharpen_task"
GRADED_BY = (words, numerals, sentences, reading, scoring, harness)  # each imports only what stands before it


def export(run_folder: Path, to: Path | None = None, echo: Callable[[str], Any] = print) -> Path:
    """Write YAML, questions (JSON lines) and grader (Python) to a folder, by default the run's `task/`.

    The questions are the test's that the run asked, as it asked them, without the calculator. RunError where
    the run was not evaluated or its test was changed, where no question can be asked, or where the folder holds
    something else."""
    test = runs.output(run_folder, "prepare", "test.jsonl")
    manifest = runs.read(run_folder, "evaluate")
    graded = runs.read_rows(test, manifest["settings"]["eval_rows"], gold=True)
    rows = [row for row in graded if _is_one_turn(row["messages"])]
    if not rows:
        raise runs.RunError(f"run {run_folder.name!r}: no question of its test fits a task: it needs a gold, and to be "
                            "one message of the user, without a system message or earlier turns")  # fmt: skip
    if left_out := len(graded) - len(rows):
        echo(f"left out: {left_out} of {len(graded)} questions, which are more than one message")
    name = f"sharpen_{run_folder.name}"
    files = {f"{GRADER}.py": grader(), "questions.jsonl": "".join(map(_line, rows)),
             f"{name}.yaml": about(name, manifest, len(rows))}  # fmt: skip
    folder = to or run_folder / "task"
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.name not in {*files, "__pycache__"})
    if others:
        raise runs.RunError(f"--to {folder}: holds {others[0]!r}, which is none of the task's: name an empty folder")
    for file, text in files.items():
        disk.write_atomically(folder / file, [text])
    return folder


def grader() -> str:
    """The source of lib/grade that reads and grades an answer, as one file that imports nothing of Sharpen."""
    head = (f"# Written by `sharpen export-task` (Sharpen {__version__}, Apache-2.0): its own grader, whose modules "
            "stand here one after the other.\n# Needs Python 3.11 or newer; grading needs no package.\n")  # fmt: skip
    whole = "\n\n".join(map(inspect.getsource, GRADED_BY))
    return head + re.sub(r"^(from lib\.|__all__ = ).*\n", "", whole, flags=re.MULTILINE)


def about(name: str, manifest: dict, questions: int) -> str:
    """The task's YAML; what comes from the run is data in it, and what is called stands at its end."""
    most = manifest["settings"]["max_new_tokens"]
    task = {
        "task": name, "test_split": "test", "output_type": "generate_until", "num_fewshot": 0,
        "doc_to_text": "question", "doc_to_target": "gold",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": most},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}
                        for metric in ("correct", "last_number_counts")],
        "metadata": {
            "version": 1.0, "preset": manifest["preset"], "rehearsal": manifest["rehearse"], "questions": questions,
            "calculator": "off", "asked_by_sharpen": manifest["ended_at"],
        },
    }  # fmt: skip
    return f"""# For lm-evaluation-harness {VERSION}:
#   {command(name, ".")}
{yaml.safe_dump(task, sort_keys=False)}custom_dataset: !function {GRADER}.questions
process_results: !function {GRADER}.process_results
"""


def command(name: str, folder: str) -> str:
    """How the task is run; MODEL is a folder or a hub id."""
    model = "--model hf --model_args pretrained=MODEL --apply_chat_template"
    return f"lm_eval {model} --tasks {name} --include_path {folder}"


def _is_one_turn(messages: list[dict]) -> bool:
    return [message["role"] for message in messages[:-1]] == ["user"]


def _line(row: dict) -> str:
    kept = {"id": row["id"], "kind": row["kind"], "question": row["messages"][0]["content"], "gold": row["gold"]}
    return json.dumps(kept, ensure_ascii=False) + "\n"
