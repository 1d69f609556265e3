"""Do two engines agree? One model of a run asked the same questions through both, and their verdicts compared."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.engine.client import EngineError
from lib.grade import stats
from lib.judge import answers
from lib.run import runs
from lib.ship import deploy, engines


def ask(run_folder: Path, names: Sequence[str], model: str = "tuned", count: int | None = None) -> dict:
    """What `report` tells of two engines of `engines.NAMES` and a `model` of `answers.MODELS`.

    The first `count` test questions with a gold are asked (None: all). Nothing in the run is changed.
    EngineError where an engine is unknown or cannot answer for this run."""
    known = f"name two of {', '.join(engines.NAMES)}, as in --engines torch,llama-server"
    if len(names) != 2 or not set(names) <= set(engines.NAMES):
        raise EngineError(f"--engines {','.join(names)}: {known}")
    if model not in answers.MODELS:
        raise EngineError(f"--model {model}: must be {' or '.join(answers.MODELS)}")
    if problems := runs.changes(run_folder, "train"):
        raise runs.RunError(f"{run_folder / 'adapter'}: {'; '.join(problems)}: run its notebook again")
    settings = deploy.settings_of(run_folder, full_finetuning=False)  # loaded to be asked, not to be trained
    for name in names:
        engines.check(name, settings, run_folder / "adapter")
    rows = runs.read_rows(runs.output(run_folder, "prepare", "test.jsonl"), count, gold=True)
    if not rows:
        raise EngineError(f"run {run_folder.name!r} has no test question with a gold: there is no verdict to compare")
    asked = [_asked(run_folder, name, settings, model, rows) for name in names]
    return {"run": run_folder.name, "model": model, "calculator": settings.calculator != "off"} | _compared(*asked)


def _asked(run_folder: Path, name: str, settings: Any, model: str, rows: list[dict]) -> tuple[list[dict], float]:
    """(graded answers of an engine, seconds that it took, without its start)."""
    from lib.train import qlora  # first: Unsloth patches transformers

    from lib.data import chat  # isort: skip
    from lib.judge import evaluate  # isort: skip

    adapter, answering = run_folder / "adapter", None
    tokenizer = chat.load_tokenizer(settings)
    if name == "torch":
        answering, tokenizer = qlora.load(settings, adapter if model == "tuned" else None)
        qlora.FastLanguageModel.for_inference(answering)
    with (
        tempfile.TemporaryDirectory(prefix=".agree-", dir=run_folder) as folder,
        engines.started(name, settings, adapter, Path(folder), tokenizer, rows, [model]) as others,
    ):
        began = time.monotonic()
        asker = others.get(model, answering)
        results = evaluate.ask(asker, tokenizer, rows, settings, settings.calculator != "off", {"model": model})
        return results, time.monotonic() - began


def _compared(first: tuple[list[dict], float], second: tuple[list[dict], float]) -> dict:
    """Each engine's accuracy and speed, how often verdicts and texts are equal, and the verdicts that are not."""
    (before, _), (after, _) = first, second
    told = []
    for results, seconds in (first, second):
        right = stats.wilson(sum(result["correct"] for result in results), len(results))
        told.append({"engine": results[0]["engine"], "accuracy": right.estimate, "low": right.low,
                     "high": right.high, "answers_per_second": len(results) / seconds})  # fmt: skip
    pairs = list(zip(before, after, strict=True))
    same = sum(a["correct"] == b["correct"] for a, b in pairs)
    share = stats.wilson(same, len(pairs))
    flips = [
        {name: a[name] for name in ("id", "kind", "question", "gold")}
        | {"right": told[b["correct"]]["engine"], "answers": [a["completion"], b["completion"]]}
        for a, b in pairs
        if a["correct"] != b["correct"]
    ]
    return {
        "n": len(pairs), "engines": told, "same_verdicts": same, "share": share.estimate, "low": share.low,
        "high": share.high, "same_texts": sum(a["completion"] == b["completion"] for a, b in pairs), "flips": flips,
    }  # fmt: skip


def report(found: dict) -> str:
    """What `ask` found, in lines for a terminal; answers of a model stand in it as they are."""
    n, way = found["n"], answers.calculator_text(found["calculator"])
    lines = [f"{found['model']} model of {found['run']}, {n} questions, {way}", ""]
    for engine in found["engines"]:
        speed = f"{engine['answers_per_second']:.1f} answers/s"
        lines.append(f"{engine['engine']:<20}  {answers.percent(engine)}  {speed}")
    share = answers.percent(found | {"accuracy": found["share"]})
    lines.append(f"{'same verdicts':<20}  {share}, {found['same_verdicts']} of {n}")
    lines.append(f"{'same texts':<20}  {found['same_texts']} of {n}")
    for flip in found["flips"]:
        lines += ["", f"[{flip['kind']}] {flip['question']}", f"gold: {flip['gold']['value']}; right: {flip['right']}"]
        for engine, text in zip(found["engines"], flip["answers"]):
            lines += [f"--- {engine['engine']}", text.strip()]
    return "\n".join(lines)
