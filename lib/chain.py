"""Every artefact of an export asked the same questions: accuracy, paired changes, cost, and a gate."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lib import answers, chat, evaluate, presets, stats
from lib.export import size_text
from lib.llamacpp import LlamaCpp, LlamaCppError, Server


class Served:
    """A served file in place of a transformers model, so that `evaluate.ask` asks, decodes and grades both alike."""

    def __init__(self, server: Server):
        self.server = server

    def parameters(self):
        """Prompts are made on the CPU."""
        yield torch.empty(0)

    def generate(self, input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, logits_processor,
                 **ignored):  # fmt: skip
        """(B, T + new) token ids: greedy answers to left-padded prompts (B, T), one slot of the server each.

        Which slots compute together is chance, and changes the last bits: a near tie can fall otherwise the next time.
        The calculator is `evaluate`'s own: the server stops at each `=`, and the calculator says what follows."""
        calculator = logits_processor[0] if logits_processor else None
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask)]
        slots, found = list(range(self.server.slots)), [None] * len(prompts)

        def answer(row: int) -> None:
            slot = slots.pop()  # there are as many threads as slots
            try:
                found[row] = self._answer(prompts[row], max_new_tokens, set(eos_token_id), calculator, slot)
            finally:
                slots.append(slot)

        with ThreadPoolExecutor(self.server.slots) as pool:
            list(pool.map(answer, range(len(prompts))))
        longest = max(map(len, found))
        padded = [new + [pad_token_id] * (longest - len(new)) for new in found]
        return torch.cat([input_ids, torch.tensor(padded, dtype=input_ids.dtype)], dim=1)

    def _answer(self, prompt: list[int], most: int, ends: set[int], calculator: Any, slot: int) -> list[int]:
        new: list[int] = []
        while len(new) < most:
            got = self.server.complete(prompt + new, most - len(new), ["="] if calculator else [], slot)
            if not got:
                raise LlamaCppError(f"{self.server.model.name}: the server answered without a token")
            end = next((place for place, token in enumerate(got) if token in ends), None)
            if end is not None:
                return new + got[: end + 1]
            new += got
            if calculator and new[-1] in calculator.equals:
                new += calculator.value((prompt + new)[-220:])[: most - len(new)]
        return new


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
    """(graded answers, {"seconds", "memory_bytes", "tokens_per_second"}) of one artefact of the chain."""
    with watched(pid) as cost:
        results = evaluate.ask(model, tokenizer, rows, settings, settings.calculator != "off",
                               {"model": name, "split": "test"})  # fmt: skip
    return results, cost | {"tokens_per_second": sum(result["tokens"] for result in results) / cost["seconds"]}


def ask_file(llama: LlamaCpp, path: Path, tokenizer: Any, rows: list[dict], settings: Any, name: str) -> tuple:
    """`ask` of a GGUF file, through a server that lives only for it."""
    longest = max(len(chat.prompt_ids(row["messages"], tokenizer)) for row in rows)
    context = -(-(longest + settings.max_new_tokens + 8) // 64) * 64
    with Server(llama, path, context, slots=min(settings.eval_batch_size, 16)) as server:
        return ask(name, Served(server), tokenizer, rows, settings, server.process.pid)


def row(name: str, results: list[dict], tuned: list[dict], size: int, cost: dict) -> dict:
    """One artefact in the chain: accuracy with its interval, the paired difference to the tuned model, and its cost."""
    share = stats.wilson(sum(bool(r["correct"]) for r in results), len(results))
    change = answers.pair(tuned, results)
    return {
        "artefact": name, "n": change["n"], "accuracy": share.estimate, "low": share.low, "high": share.high,
        "difference": change["difference"], "difference_low": change["low"], "difference_high": change["high"],
        **{key: change[key] for key in ("right_to_wrong", "wrong_to_right", "p_value")}, "bytes": size, **cost,
    }  # fmt: skip


def gate(merged: list[dict], quantized: list[dict], margin: float) -> dict:
    """Whether a quantised file may be shipped: the lower 95 % bound of (quantised - merged) is above -margin points."""
    assert [r["id"] for r in merged] == [r["id"] for r in quantized], "both must be asked the same questions"
    verdicts = ([r["correct"] for r in results] for results in (merged, quantized))
    verdict = stats.non_inferior(*verdicts, margin / 100, alpha=0.025)
    found = verdict.interval
    text = f"{100 * found.estimate:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] against merged"
    if verdict.holds:
        reason = f"passes: {text}, above -{margin:g}"
    elif found.estimate > -margin / 100:
        reason = f"fails: {text}; it may be within {margin:g} points, but {found.n} questions do not show it"
    else:
        reason = f"fails: {text}, where at most -{margin:g} is allowed"
    return {"passes": verdict.holds, "difference": found.estimate, "low": found.low, "high": found.high, "n": found.n,
            "margin_points": margin, "reason": reason}  # fmt: skip


def headline(rows: list[dict], gates: dict[str, dict], best: str) -> str:
    """`demo-Q4_K_M.gguf to ship; adapter 64.0 %, merged 64.0 %, f16 64.0 %, Q4_K_M 63.1 %, n = 300`."""
    scores = ", ".join(f"{row['artefact']} {100 * row['accuracy']:.1f} %" for row in rows)
    failed = [label for label, found in gates.items() if not found["passes"]]
    return f"{best} to ship; {scores}, n = {rows[0]['n']}" + f"; {', '.join(failed)} failed the gate" * bool(failed)


def printable(row: dict) -> dict:
    """A row of the chain for a table that people read."""
    change = f"{100 * row['difference']:+.1f} [{100 * row['difference_low']:+.1f}, {100 * row['difference_high']:+.1f}]"
    return {
        "artefact": row["artefact"], "n": row["n"],
        "accuracy [95 %]": answers.percent(row),
        "against tuned, points": change, "right to wrong": row["right_to_wrong"],
        "wrong to right": row["wrong_to_right"], "p": round(row["p_value"], 3), "size": size_text(row["bytes"]),
        "tokens/s": round(row["tokens_per_second"]), "peak memory": size_text(row["memory_bytes"]),
    }  # fmt: skip


def card(name: str, settings: Any, rows: list[dict], gates: dict[str, dict], rehearse: bool, rounded: bool) -> str:
    """README.md of the exported files: what they are, and what every artefact scored."""
    verdicts = [f"- {file}: {found['reason']}" for file, found in gates.items()] or ["- no quantised file was asked"]
    note = "**A rehearsal: its figures are no result.**\n\n" if rehearse else ""
    calculator = "off" if settings.calculator == "off" else "on (values of `<<expression=value>>` are filled in)"
    base = Path(settings.base_model).name if presets.is_local(settings.base_model) else settings.base_model
    onto = " onto the base as rounded to 4 bit in training" * rounded
    return (
        f"# {name}\n\n{note}{base}, fine-tuned by LoRA with Sharpen, merged in fp32{onto} and saved in fp16, converted "
        f"and quantised by llama.cpp.\n\n## What every artefact scored\n\nThe same {rows[0]['n']} test questions, from "
        f"token ids, greedy, at most {settings.max_new_tokens} tokens, calculator {calculator}. Differences are "
        f"paired, with 95 % intervals. Memory is the process's peak; base, adapter and merged run in a Python process, "
        f"GGUF files in llama-server.\n\n"
        + answers.markdown_table([printable(row) for row in rows]) + "\n\n## Gate\n\n" + "\n".join(verdicts)
        + "\n\n## Use\n\n`ollama create " + name.lower() + " -f Modelfile`, or `llama-server -m FILE.gguf`. "
        "Ask as it was trained: the chat template is in the file.\n"
    )  # fmt: skip
