"""Artefact evaluation: every artefact of an export asked the same questions; what is shipped.

Where no row has a gold, every artefact reads the rows' own answers: perplexity for accuracy."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lib.data import chat
from lib.engine.client import Served, in_slots
from lib.engine.llamacpp import LlamaCpp, Server, server_for
from lib.grade import stats
from lib.judge import answers, evaluate
from lib.run import progress, runs
from lib.run.disk import size_text
from lib.run.gguf_base import note as base_note
from lib.run.paths import is_local, made_from
from lib.run.settings import ExportSettings, ServeSettings
from lib.ship import export, share

ALTERNATIVES = ("Q5_K_M", "Q6_K", "Q8_0")  # larger types, tried where a file failed the gate


# --- asking ---------------------------------------------------------------------------------------
def questions(data: Path, settings: ExportSettings | ServeSettings) -> list[dict]:
    """The test rows to ask: those whose answers can be graded or, where there are none, any."""
    test = data / "test.jsonl"
    graded = runs.read_rows(test, settings.eval_rows, gold=True)
    return graded or runs.read_rows(test, settings.eval_rows)


def ask(name: str, model: Any, tokenizer: Any, rows: list[dict], settings: ExportSettings,
        pid: int | None = None) -> tuple[list[dict], dict]:  # fmt: skip
    """(graded answers, {"seconds", "memory_bytes", "tokens_per_second"}) of one artefact.

    Of rows without a gold: how well it predicts their own answers, {"loss", "tokens"} each."""
    with watched(pid) as cost:
        if rows[0]["gold"]:
            labels = {"model": name, "split": "test"}
            results = evaluate.ask(model, tokenizer, rows, settings, settings.calculator != "off", labels)
        else:
            results = _read(name, model, tokenizer, rows, settings)
    tokens = sum(result["tokens"] for result in results)
    return results, cost | {"tokens_per_second": tokens / cost["seconds"]}


def _read(name: str, model: Any, tokenizer: Any, rows: list[dict], settings: ExportSettings) -> list[dict]:
    if isinstance(model, Served):
        found = losses(model.server, tokenizer, rows)
    else:
        found = evaluate.losses(model, tokenizer, rows, settings, "export")
    return [
        {"id": row["id"], "model": name, "question": row["messages"][-2]["content"], "gold": None,
         "reference": row["messages"][-1]["content"], "loss": loss["loss"], "tokens": loss["tokens"]}
        for row, loss in zip(rows, found)
    ]  # fmt: skip


def losses(server: Server, tokenizer: Any, rows: list[dict]) -> list[dict]:
    """`evaluate.losses` of a served file: {"loss", "tokens"} of each row's own answer, in nats.

    A request a token, as llama-server tells no probabilities of a prompt: as slow as writing."""

    def read(row: dict, slot: int) -> dict:
        encoded = chat.encode(row, tokenizer)
        ids = encoded["input_ids"]
        supervised = [place for place, label in enumerate(encoded["labels"]) if label != chat.IGNORED]
        loss = -sum(server.logprob(ids[:place], ids[place], slot) for place in supervised)
        return {"loss": loss, "tokens": len(supervised)}

    what = f"answers read by {server.model.name}"
    return in_slots(server, read, rows, lambda done: progress.tell(done, len(rows), what))


def ask_file(llama: LlamaCpp, path: Path, tokenizer: Any, rows: list[dict], settings: ExportSettings,
             name: str) -> tuple[list[dict], dict]:  # fmt: skip
    """`ask` of a GGUF file, through a server that lives only for it."""
    if rows[0]["gold"]:
        prompts = [chat.asked_ids(row, tokenizer) for row in rows]
        longest = max(map(len, prompts)) + settings.max_new_tokens
    else:
        longest = max(len(chat.encode(row, tokenizer)["input_ids"]) for row in rows)
    with server_for(llama, path, longest, settings.eval_batch_size) as server:
        return ask(name, Served(server), tokenizer, rows, settings, server.process.pid)


@contextlib.contextmanager
def watched(pid: int | None = None) -> Iterator[dict]:
    """Seconds and peak memory of a process (by default ours; on CUDA the allocator's) in the block."""
    import psutil

    process, cost, over = psutil.Process(pid), {"memory_bytes": 0}, threading.Event()
    on_gpu = pid is None and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def look() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psutil.NoSuchProcess):
                cost["memory_bytes"] = max(cost["memory_bytes"], process.memory_info().rss)

    thread, began = threading.Thread(target=look, daemon=True), time.monotonic()
    thread.start()
    try:
        yield cost
    finally:
        cost["seconds"] = time.monotonic() - began
        over.set()
        thread.join()
        if on_gpu:
            cost["memory_bytes"] = torch.cuda.max_memory_allocated()


# --- what is shipped ------------------------------------------------------------------------------
def gate(merged: list[dict], quantized: list[dict], margin: float, against: str = "merged") -> dict:
    """Whether a quantised file may be shipped: its difference's lower 95 % bound > -margin points.

    Without golds: the upper 95 % bound of what the perplexity rose by is below margin percent."""
    assert [r["id"] for r in merged] == [r["id"] for r in quantized], "both must be asked the same questions"
    if merged[0]["gold"]:
        before, after = [r["correct"] for r in merged], [r["correct"] for r in quantized]
        interval = stats.non_inferior(before, after, margin / 100, alpha=0.025).interval
        change = {"difference": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}
        lost, most_lost = -interval.estimate, -interval.low
        what, unit, asked, bound = "", "points", "questions", f"-{margin:g}"
    else:
        change = perplexity_change(merged, quantized)
        lost, most_lost = change["difference"], change["high"]
        what, unit, asked, bound = "perplexity ", "%", "answers", f"+{margin:g}"
    text = f"{what}{_percent(change['difference'])} {unit} {_limits(change)} against {against}"
    if most_lost < margin / 100:
        reason = f"passes: {text}, within {bound}"
    elif lost < margin / 100:
        reason = f"fails: {text}; it may be within {margin:g} {unit}, but {change['n']} {asked} do not show it"
    else:
        reason = f"fails: {text}, where at most {bound} is allowed"
    return {"passes": most_lost < margin / 100, **change, "margin": margin, "reason": reason}


def judge(quantized: list[str], judged: Callable[[str], dict]) -> dict[str, dict]:
    """{type: its gate, `judged(type)`} of the files there are; where one fails, of larger types too."""
    gates = {label: judged(label) for label in quantized}
    if _failed(gates):
        gates |= {label: judged(label) for label in ALTERNATIVES if label not in gates}
    return gates


def ship(gates: dict[str, dict], files: dict[str, Path], merged: Path) -> Path:
    """The smallest file that passed its gate, else the f16 file, else the merged model.

    Files that failed are moved to `failed/`."""
    failed = _failed(gates)
    for label in failed:
        export.put_aside(files[label])
    if passed := [files[label] for label in gates if label not in failed]:
        return min(passed, key=export.size_of)
    return files.get("f16", merged)


def _failed(gates: dict[str, dict]) -> list[str]:
    return [label for label, verdict in gates.items() if not verdict["passes"]]


# --- what every artefact scored -------------------------------------------------------------------
def sizes(base: Path, adapter: Path, merged: Path, files: dict[str, Path]) -> dict[str, int]:
    """Bytes of each artefact; an adapter counts with its base."""
    places = {"base": base, "adapter": adapter, "merged": merged} | files
    bytes_of = {label: export.size_of(path) for label, path in places.items()}
    if export.method(adapter) != export.ALL_WEIGHTS:
        bytes_of["adapter"] += bytes_of["base"]
    return bytes_of


def smallest(bytes_of: dict[str, int]) -> str:
    """The smallest GGUF file among `sizes`, else the merged model."""
    files = [label for label in bytes_of if label not in ("base", "adapter", "merged")]
    return min(files, key=bytes_of.get, default="merged")


def row(name: str, results: list[dict], tuned: list[dict], size: int, cost: dict) -> dict:
    """One artefact: accuracy with its interval, paired difference to the tuned model, and cost.

    Without golds: perplexity, and its change as a share."""
    if results[0]["gold"]:
        score, change = answers.share(results), answers.pair(tuned, results)
        score |= {key: change[key] for key in ("right_to_wrong", "wrong_to_right", "p_value")}
        if results[0].get("calculator"):
            score["marks"] = answers.total_marks(results)
    else:
        score, change = evaluate.perplexity(results), perplexity_change(tuned, results)
        score["n"] = score.pop("rows")
    return {
        "artefact": name, **score, "difference": change["difference"], "difference_low": change["low"],
        "difference_high": change["high"], "bytes": size, **cost,
    }  # fmt: skip


def same(before: list[dict], after: list[dict]) -> bool:
    """May two artefacts be one model in other numbers? The accuracy moved by no more than 2 % and one
    answer, and verdicts by no more than chance explains (exact McNemar test, p > 0.001); without
    golds the perplexity by 1 % at most."""
    if not before[0]["gold"]:
        return abs(perplexity_change(before, after)["difference"]) <= 0.01
    change = answers.pair(before, after)
    return change["p_value"] > 0.001 and abs(change["difference"]) <= 0.02 + 1 / change["n"]


def perplexity_change(before: list[dict], after: list[dict]) -> dict:
    """How much higher the second artefact's perplexity of the same answers is, as a share, paired."""
    change = evaluate.loss_change(before, after)
    return {name: math.expm1(change[name]) for name in ("difference", "low", "high")} | {"n": change["rows"]}


def changed_most(before: list[dict], after: list[dict], count: int = 5) -> list[dict]:
    """The answers that the second artefact predicts worse than the first by most, in nats a token."""
    pairs = sorted(zip(before, after), key=lambda pair: _a_token(pair[0]) - _a_token(pair[1]))
    return [
        {"question": b["question"][:200], "its row's answer": b["reference"][:200], "tokens": b["tokens"],
         f"loss by {a['model']}": _a_token(a), f"by {b['model']}": _a_token(b)}
        for a, b in pairs[:count]
    ]  # fmt: skip


def _a_token(result: dict) -> float:
    return result["loss"] / result["tokens"]


def headline(rows: list[dict], gates: dict[str, dict], best: str) -> str:
    """`demo-Q4_K_M.gguf to ship; adapter 64.0 %, merged 64.0 %, Q4_K_M 63.1 %, n = 300`."""
    if "accuracy" in rows[0]:
        scores = [f"{row['artefact']} {100 * row['accuracy']:.1f} %" for row in rows]
    else:
        scores = [f"{row['artefact']} perplexity {row['perplexity']:.3f}" for row in rows]
    text = f"{best} to ship; {', '.join(scores)}, n = {rows[0]['n']}"
    if failed := _failed(gates):
        text += f"; {', '.join(failed)} failed the gate"
    return text


def printable(row: dict) -> dict:
    """A row for a table that people read."""
    limits = {"low": row["difference_low"], "high": row["difference_high"]}
    change = f"{_percent(row['difference'])} {_limits(limits)}"
    if "accuracy" in row:
        score = {"accuracy [95 %]": answers.percent(row), "against tuned, points": change,
                 "right to wrong": row["right_to_wrong"], "wrong to right": row["wrong_to_right"],
                 "p": round(row["p_value"], 3), "size": size_text(row["bytes"]),
                 "tokens/s": round(row["tokens_per_second"])}  # fmt: skip
    else:
        score = {"perplexity [95 %]": f"{row['perplexity']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                 "against tuned, %": change, "size": size_text(row["bytes"]),
                 "seconds": round(row["seconds"])}  # of reading, which is no speed of writing  # fmt: skip
    if "marks" in row:
        score["marks: " + ", ".join(row["marks"])] = ", ".join(map(str, row["marks"].values()))
    return {"artefact": row["artefact"], "n": row["n"], **score, "peak memory": size_text(row["memory_bytes"])}


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def _limits(change: dict) -> str:
    return f"[{_percent(change['low'])}, {_percent(change['high'])}]"


def _evaluations(rows: list[dict], settings: ExportSettings) -> list[EvalResult]:
    """What merged model and files scored, as the hub's evaluation metadata."""
    found, calculator = [], answers.calculator_text(settings.calculator != "off")
    for row in rows:
        how = row["artefact"]
        if "accuracy" in row:
            how += f", {calculator}"
        if row["artefact"] not in ("base", "adapter"):
            found.append(share.evaluation(how, "sharpen", "test", row))
    return found


def card(name: str, settings: ExportSettings, rows: list[dict], gates: dict[str, dict], files: dict[str, dict],
         rehearse: bool, rounded: bool, method: str = "LoRA") -> ModelCard:  # fmt: skip
    """README.md of the exported files: what they are, what every artefact scored, and which types
    the `files` hold (label -> `export.check_file`'s facts)."""
    base, hub_id = settings.base_model, settings.base_model
    if is_local(base):
        base, hub_id = Path(base).name, None
    note, scored = "", _evaluations(rows, settings)
    if rehearse:
        note, scored = "**A rehearsal: its figures are no result.**\n\n", None
    about = ModelCardData(base_model=hub_id, library_name="gguf", pipeline_tag="text-generation", tags=["sharpen"],
                          model_name=name, eval_results=scored)  # fmt: skip
    made = "all of its weights fine-tuned with Sharpen, saved in fp16"
    if method != export.ALL_WEIGHTS:
        onto = " onto the base as rounded to 4 bit in training" if rounded else ""
        made = f"fine-tuned by {method} with Sharpen, merged in fp32{onto} and saved in fp16"
    if "accuracy" in rows[0]:
        calculator = "off" if settings.calculator == "off" else "on (values of `<<expression=value>>` are filled in)"
        asked = (f"The same {rows[0]['n']} test questions, from token ids, greedy, at most {settings.max_new_tokens} "
                 f"tokens, calculator {calculator}.")  # fmt: skip
    else:
        asked = (f"No test row has a gold to grade by, so every artefact read the same {rows[0]['n']} rows' own "
                 f"answers, {rows[0]['tokens']:,} tokens: perplexity a token, lower is better.")  # fmt: skip
    verdicts = [f"- {label}: {gate['reason']}" for label, gate in gates.items()]
    held = []
    for label, facts in files.items():
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in facts["tensor_types"].items())
        held.append(f"- {label}: {shares}; {facts['as_named']:.0%} as its name says")
    return ModelCard(f"""---
{about.to_yaml()}
---

# {name}

{note}{base}, {made}, converted and quantised by llama.cpp. {base_note(made_from(settings.base_model))}

## What every artefact scored

{asked} Differences are paired, with 95 % intervals. Memory is the process's peak; base, adapter and merged run in a
Python process (on a CPU with a copy in 32 bit, which answers), GGUF files in llama-server.

{answers.markdown_table([printable(row) for row in rows])}

## Gate

{chr(10).join(verdicts) or "- no quantised file was asked"}

## What the files hold

Weights in matrices, by type. Where a matrix's rows do not fit a type, llama-quantize takes a larger one.

{chr(10).join(held) or "- no file was made"}

## Use

`sharpen serve {name}` serves it with the calculator. `ollama create {name.lower()} -f Modelfile` and `llama-server -m
FILE.gguf` do so without: the model then does its arithmetic itself. `sharpen deploy {name}` measures both. Ask as it
was trained: the chat template is in the file.
""")
