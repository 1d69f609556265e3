"""Every artefact of an export asked the same questions: accuracy, paired changes, cost, and a gate.

Where no row has a gold to grade by, every artefact reads the rows' own answers instead: perplexity for accuracy."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lib.data import chat
from lib.engine.client import Served, in_slots
from lib.engine.llamacpp import LlamaCpp, Server
from lib.grade import stats
from lib.judge import answers, evaluate
from lib.run.paths import is_local
from lib.ship.export import ALL_WEIGHTS, size_text


def losses(server: Server, tokenizer: Any, rows: list[dict]) -> list[dict]:
    """`evaluate.losses` of a served file: {"loss", "tokens"} of each row's own answer, in nats.

    A request a token, as llama-server tells no probabilities of a prompt: as slow as writing the answers."""

    def read(row: dict, slot: int) -> dict:
        encoded = chat.encode(row, tokenizer)
        ids, labels = encoded["input_ids"], encoded["labels"]
        learnt = [place for place, label in enumerate(labels) if label != chat.IGNORED]
        loss = -sum(server.logprob(ids[:place], ids[place], slot) for place in learnt)
        return {"loss": loss, "tokens": len(learnt)}

    return in_slots(server, read, rows)


@contextlib.contextmanager
def watched(pid: int | None = None) -> Iterator[dict]:
    """Seconds and the peak memory of a process (ours by default) while the block runs; on CUDA the allocator's peak."""
    import psutil

    process, found, over = psutil.Process(pid), {"memory_bytes": 0}, threading.Event()
    on_gpu = pid is None and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def look() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psutil.NoSuchProcess):
                found["memory_bytes"] = max(found["memory_bytes"], process.memory_info().rss)

    thread, began = threading.Thread(target=look, daemon=True), time.monotonic()
    thread.start()
    try:
        yield found
    finally:
        found["seconds"] = time.monotonic() - began
        over.set()
        thread.join()
        if on_gpu:
            found["memory_bytes"] = torch.cuda.max_memory_allocated()


def ask(name: str, model: Any, tokenizer: Any, rows: list[dict], settings: Any, pid: int | None = None) -> tuple:
    """(graded answers, {"seconds", "memory_bytes", "tokens_per_second"}) of one artefact of the chain.

    Of rows without a gold: how well it foretells their own answers, {"loss", "tokens"} each."""
    with watched(pid) as cost:
        if rows[0]["gold"]:
            results = evaluate.ask(model, tokenizer, rows, settings, settings.calculator != "off",
                                   {"model": name, "split": "test"})  # fmt: skip
        else:
            found = (losses(model.server, tokenizer, rows) if isinstance(model, Served) else
                     evaluate.losses(model, tokenizer, rows, settings, "export"))  # fmt: skip
            results = [{"id": row["id"], "model": name, "question": row["messages"][-2]["content"], "gold": None,
                        "reference": row["messages"][-1]["content"], "loss": one["loss"], "tokens": one["tokens"]}
                       for row, one in zip(rows, found)]  # fmt: skip
    return results, cost | {"tokens_per_second": sum(result["tokens"] for result in results) / cost["seconds"]}


def ask_file(llama: LlamaCpp, path: Path, tokenizer: Any, rows: list[dict], settings: Any, name: str) -> tuple:
    """`ask` of a GGUF file, through a server that lives only for it."""
    if rows[0]["gold"]:
        longest = max(len(chat.prompt_ids(row["messages"], tokenizer)) for row in rows) + settings.max_new_tokens
    else:
        longest = max(len(chat.encode(row, tokenizer)["input_ids"]) for row in rows)
    context = -(-(longest + 8) // 64) * 64
    at_once = replace(settings, eval_batch_size=len(rows))  # else slots would wait for the longest answer of each batch
    with Server(llama, path, context, slots=min(settings.eval_batch_size, 16)) as server:
        return ask(name, Served(server), tokenizer, rows, at_once, server.process.pid)


def row(name: str, results: list[dict], tuned: list[dict], size: int, cost: dict) -> dict:
    """One artefact in the chain: accuracy with its interval, the paired difference to the tuned model, and its cost.

    Without golds: perplexity, and its change as a share."""
    if results[0]["gold"]:
        share = stats.wilson(sum(bool(r["correct"]) for r in results), len(results))
        change = answers.pair(tuned, results)
        score = {"n": change["n"], "accuracy": share.estimate, "low": share.low, "high": share.high}
        score |= {key: change[key] for key in ("right_to_wrong", "wrong_to_right", "p_value")}
    else:
        score, change = evaluate.perplexity(results), perplexity_change(tuned, results)
        score["n"] = score.pop("rows")
    differences = {"difference": change["difference"], **{f"difference_{end}": change[end] for end in ("low", "high")}}
    return {"artefact": name, **score, **differences, "bytes": size, **cost}


def perplexity_change(before: list[dict], after: list[dict]) -> dict:
    """How much higher the perplexity of the same answers is by the second artefact, as a share, with paired limits."""
    found = evaluate.loss_change(before, after)
    return {name: math.expm1(found[name]) for name in ("difference", "low", "high")} | {"n": found["rows"]}


def gate(merged: list[dict], quantized: list[dict], margin: float) -> dict:
    """Whether a quantised file may be shipped: the lower 95 % bound of (quantised - merged) is above -margin points.

    Without golds: the upper 95 % bound of what the perplexity rose by is below margin percent."""
    assert [r["id"] for r in merged] == [r["id"] for r in quantized], "both must be asked the same questions"
    graded = bool(merged[0]["gold"])
    if graded:
        verdicts = ([r["correct"] for r in results] for results in (merged, quantized))
        change = stats.non_inferior(*verdicts, margin / 100, alpha=0.025).interval
        found = {"difference": change.estimate, "low": change.low, "high": change.high, "n": change.n}
        lost, most_lost = -change.estimate, -change.low
    else:
        found = perplexity_change(merged, quantized)
        lost, most_lost = found["difference"], found["high"]
    unit, asked, bound = ("points", "questions", f"-{margin:g}") if graded else ("%", "answers", f"+{margin:g}")
    limits = f"[{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    text = f"{'' if graded else 'perplexity '}{100 * found['difference']:+.1f} {unit} {limits} against merged"
    if most_lost < margin / 100:
        reason = f"passes: {text}, within {bound}"
    elif lost < margin / 100:
        reason = f"fails: {text}; it may be within {margin:g} {unit}, but {found['n']} {asked} do not show it"
    else:
        reason = f"fails: {text}, where at most {bound} is allowed"
    return {"passes": most_lost < margin / 100, **found, "margin": margin, "reason": reason}


def changed_most(before: list[dict], after: list[dict], count: int = 5) -> list[dict]:
    """The answers without a gold that the second artefact foretells worse than the first by most, nats a token."""
    both = [(b["loss"] / b["tokens"] - a["loss"] / a["tokens"], a, b) for a, b in zip(before, after)]
    return [{"question": b["question"][:200], "its row's answer": b["reference"][:200], "tokens": b["tokens"],
             f"loss by {a['model']}": a["loss"] / a["tokens"], f"by {b['model']}": b["loss"] / b["tokens"]}
            for _, a, b in sorted(both, key=lambda one: -one[0])[:count]]  # fmt: skip


def score_text(row: dict) -> str:
    return f"{100 * row['accuracy']:.1f} %" if "accuracy" in row else f"perplexity {row['perplexity']:.3f}"


def headline(rows: list[dict], gates: dict[str, dict], best: str) -> str:
    """`demo-Q4_K_M.gguf to ship; adapter 64.0 %, merged 64.0 %, f16 64.0 %, Q4_K_M 63.1 %, n = 300`."""
    scores = ", ".join(f"{row['artefact']} {score_text(row)}" for row in rows)
    failed = [label for label, found in gates.items() if not found["passes"]]
    return f"{best} to ship; {scores}, n = {rows[0]['n']}" + f"; {', '.join(failed)} failed the gate" * bool(failed)


def printable(row: dict) -> dict:
    """A row of the chain for a table that people read."""
    change = f"{100 * row['difference']:+.1f} [{100 * row['difference_low']:+.1f}, {100 * row['difference_high']:+.1f}]"
    if "accuracy" in row:
        score = {"accuracy [95 %]": answers.percent(row), "against tuned, points": change,
                 "right to wrong": row["right_to_wrong"], "wrong to right": row["wrong_to_right"],
                 "p": round(row["p_value"], 3)}  # fmt: skip
        speed = {"tokens/s": round(row["tokens_per_second"])}
    else:
        score = {"perplexity [95 %]": f"{row['perplexity']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                 "against tuned, %": change}  # fmt: skip
        speed = {"seconds": round(row["seconds"])}  # of reading, which is no speed of writing
    return {
        "artefact": row["artefact"], "n": row["n"], **score, "size": size_text(row["bytes"]), **speed,
        "peak memory": size_text(row["memory_bytes"]),
    }  # fmt: skip


def card(name: str, settings: Any, rows: list[dict], gates: dict[str, dict], rehearse: bool, rounded: bool,
         method: str = "LoRA") -> str:  # fmt: skip
    """README.md of the exported files: what they are, and what every artefact scored."""
    verdicts = [f"- {file}: {found['reason']}" for file, found in gates.items()] or ["- no quantised file was asked"]
    note = "**A rehearsal: its figures are no result.**\n\n" if rehearse else ""
    calculator = "off" if settings.calculator == "off" else "on (values of `<<expression=value>>` are filled in)"
    asked = (f"The same {rows[0]['n']} test questions, from token ids, greedy, at most {settings.max_new_tokens} "
             f"tokens, calculator {calculator}." if "accuracy" in rows[0] else
             f"No test row has a gold to grade by, so every artefact read the same {rows[0]['n']} rows' own answers, "
             f"{rows[0]['tokens']:,} tokens: perplexity a token, lower is better.")  # fmt: skip
    base = Path(settings.base_model).name if is_local(settings.base_model) else settings.base_model
    onto = " onto the base as rounded to 4 bit in training" * rounded
    made = ("all of its weights fine-tuned with Sharpen, saved in fp16, converted" if method == ALL_WEIGHTS else
            f"fine-tuned by {method} with Sharpen, merged in fp32{onto} and saved in fp16, converted")  # fmt: skip
    return (
        f"# {name}\n\n{note}{base}, {made} and quantised by llama.cpp.\n\n"
        f"## What every artefact scored\n\n{asked} Differences are "
        f"paired, with 95 % intervals. Memory is the process's peak; base, adapter and merged run in a Python process, "
        f"GGUF files in llama-server.\n\n"
        + answers.markdown_table([printable(row) for row in rows]) + "\n\n## Gate\n\n" + "\n".join(verdicts)
        + "\n\n## Use\n\n`ollama create " + name.lower() + " -f Modelfile`, or `llama-server -m FILE.gguf`. "
        "Ask as it was trained: the chat template is in the file.\n"
    )  # fmt: skip
