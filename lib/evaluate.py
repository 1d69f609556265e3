"""Questions through a model: batched greedy answers, calculator or not, graded; perplexity of the gold answers."""

import json
import math
import re
import time
from pathlib import Path

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from lib import chat, runs, scoring
from lib.calculator import CalculatorError, calculate, show

OPEN_MARK = re.compile(r"<<([^<>=]{1,200})=$")


class Calculator(LogitsProcessor):
    """Fills in `<<expression=value>>` while decoding: after the `=` the value's tokens and `>>` are forced.

    An expression that cannot be computed is left to the model."""

    def __init__(self, tokenizer, rows: int):
        self.tokenizer, self.queues = tokenizer, [[] for _ in range(rows)]
        vocabulary = range(len(tokenizer))
        self.equals = {
            i for i, text in zip(vocabulary, tokenizer.batch_decode([[i] for i in vocabulary])) if "=" in text
        }

    def __call__(self, input_ids, scores):
        for row, last in enumerate(input_ids[:, -1].tolist()):
            queue = self.queues[row]
            if not queue and last in self.equals:
                queue += self.value(input_ids[row, -220:].tolist())
            if queue:
                forced = queue.pop(0)
                scores[row] = -math.inf
                scores[row, forced] = 0.0
        return scores

    def value(self, ids: list[int]) -> list[int]:
        """Tokens of the value and `>>` that follow `ids`; none where no open mark that can be computed ends there."""
        found = OPEN_MARK.search(self.tokenizer.decode(ids))
        if not found:
            return []
        try:
            value = show(calculate(found[1]))
        except CalculatorError:
            return []
        before = self.tokenizer.encode(found[0], add_special_tokens=False)
        whole = self.tokenizer.encode(f"{found[0]}{value}>>", add_special_tokens=False)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self.tokenizer.encode(f"{value}>>", add_special_tokens=False)


@torch.inference_mode()
def generate(model, tokenizer, prompts: list[list[int]], max_new_tokens: int, batch_size: int, calculator: bool,
             progress=None, kinds: list[str] | None = None, journal: Path | None = None) -> list[dict]:  # fmt: skip
    """Greedy answers to token-id prompts, in their order: {"completion", "tokens", "finished"} each.

    Batches are left-padded and made of prompts of the same kind (their answers end together, so that no batch waits for
    one long answer) and of similar length; `finished` is False where the answer was cut off at `max_new_tokens`.
    `journal`: a file that each batch's answers are added to; batches that it holds from an interrupted attempt at the
    same prompts are not asked again."""
    device = next(model.parameters()).device
    ends, answers, done = set(chat.end_ids(tokenizer)), [None] * len(prompts), 0
    answered = _read_journal(journal)
    order = sorted(range(len(prompts)), key=lambda i: (kinds[i] if kinds else "", len(prompts[i])))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if start in answered:
            for i, answer in zip(batch, answered[start], strict=True):
                answers[i] = answer
            done += len(batch)
            continue
        longest = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id, device=device)  # (B, T)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i], device=device)
            mask[row, longest - len(prompts[i]) :] = 1
        processors = LogitsProcessorList([Calculator(tokenizer, len(batch))] if calculator else [])
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True,
            eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id, logits_processor=processors,
        )[:, longest:].tolist()  # fmt: skip
        for i, new in zip(batch, output):
            length = next((k for k, token in enumerate(new) if token in ends), None)
            text = tokenizer.decode(new[:length], skip_special_tokens=True)
            answers[i] = {"completion": text, "tokens": len(new) if length is None else length + 1,
                          "finished": length is not None}  # fmt: skip
        if journal:
            with open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps([start, [answers[i] for i in batch]]) + "\n")
        done += len(batch)
        if progress:
            progress(done)
    return answers


def _read_journal(journal: Path | None) -> dict[int, list[dict]]:
    """{where a batch starts: its answers}; a line that a killed process left half written ends it."""
    found = {}
    if journal and journal.exists():
        whole = runs.whole_lines(journal)
        journal.write_text("".join(whole), encoding="utf-8")
        found = dict(map(json.loads, whole))
    return found


def ask(model, tokenizer, rows: list[dict], settings, calculator: bool, labels: dict,
        folder: Path | None = None) -> list[dict]:  # fmt: skip
    """Every row's question answered and graded; `labels` ({"model": "tuned"}) and the row's split go into each result.

    Rows of several splits are best asked together: fewer and fuller batches. In `folder` a hidden journal keeps what is
    answered, for an attempt that goes on after this one was stopped."""
    prompts, began = [chat.prompt_ids(row["messages"], tokenizer) for row in rows], time.monotonic()
    name = f"{', '.join(labels.values())}, calculator {'on' if calculator else 'off'}"

    def progress(done):
        print(f"{name}: {done} of {len(rows)} answered, {time.monotonic() - began:.1f} s", flush=True)

    size = (settings.max_new_tokens, settings.eval_batch_size)
    journal = folder / f".{name.replace(', ', '-').replace(' ', '-')}.jsonl" if folder else None
    kinds = [row["kind"] for row in rows]
    answers = generate(model, tokenizer, prompts, *size, calculator, progress, kinds, journal)
    results = []
    for row, answer in zip(rows, answers):
        verdict = scoring.grade(answer["completion"], row["gold"], answer["finished"])
        results.append({
            "id": row["id"], "kind": row["kind"], "level": row.get("level"), "group": row["group"],
            "split": row.get("split", "test"), **labels, "calculator": calculator,
            "question": row["messages"][-2]["content"], "gold": row["gold"], **answer,
            "correct": verdict.correct, "value": verdict.value, "reading": verdict.reading, "error": verdict.error,
            "flag": verdict.flag, "correct_lenient": verdict.correct_lenient,
            "within": {f"{100 * share:g} %": passed for share, passed in verdict.within.items()},
        })  # fmt: skip
    return results


@torch.inference_mode()
def perplexity(model, tokenizer, rows: list[dict], batch_size: int) -> dict:
    """Perplexity per token of the rows' answers (end token included, prompts not), with a 95 % interval over rows.

    The interval is that of a ratio estimator: summed negative log-likelihood over summed tokens, rows independent."""
    from scipy.stats import t

    device, totals = next(model.parameters()).device, []  # (negative log-likelihood in nats, tokens) a row
    encoded = sorted((chat.encode(row, tokenizer) for row in rows), key=lambda e: len(e["input_ids"]))
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        longest = max(len(e["input_ids"]) for e in batch)
        ids = torch.tensor([e["input_ids"] + [tokenizer.pad_token_id] * (longest - len(e["input_ids"])) for e in batch])
        labels = torch.tensor([e["labels"] + [chat.IGNORED] * (longest - len(e["labels"])) for e in batch])
        mask = torch.tensor([[1] * len(e["input_ids"]) + [0] * (longest - len(e["input_ids"])) for e in batch])
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()  # (B, T, V)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:].to(device), ignore_index=chat.IGNORED, reduction="none"
        )  # (B, T - 1)
        totals += zip(losses.sum(1).tolist(), (labels[:, 1:] != chat.IGNORED).sum(1).tolist())
    n, tokens = len(totals), sum(count for _, count in totals)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 rows, got {n}")
    mean = sum(loss for loss, _ in totals) / tokens
    spread = math.sqrt(n / (n - 1) * sum((loss - mean * count) ** 2 for loss, count in totals)) / tokens
    reach = float(t.ppf(0.975, n - 1)) * spread
    return {"perplexity": math.exp(mean), "low": math.exp(mean - reach), "high": math.exp(mean + reach),
            "rows": n, "tokens": tokens}  # fmt: skip
