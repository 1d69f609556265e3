"""Questions through a model: batched greedy answers, calculator or not, graded; losses and perplexity of the rows'
own answers."""

import json
import math
import re
import time
from pathlib import Path

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from lib.data import chat
from lib.grade import scoring
from lib.grade.calculator import CalculatorError, calculate, show
from lib.run import disk, memory, progress, runs
from lib.run.stages import STAGES

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
    order = sorted(range(len(prompts)), key=lambda i: (kinds[i] if kinds else "", len(prompts[i])))
    batches = {start: order[start : start + batch_size] for start in range(0, len(order), batch_size)}
    answered = _read_journal(journal, batches)
    for start, batch in batches.items():
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
            with disk.writing(journal), open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps([start, [answers[i] for i in batch]]) + "\n")
        done += len(batch)
        if progress:
            progress(done)
    return answers


def _read_journal(journal: Path | None, batches: dict[int, list[int]]) -> dict[int, list[dict]]:
    """{where a batch starts: its answers}; a line that a killed process left half written ends it."""
    found = {}
    if journal and journal.exists():
        whole, names = disk.whole_lines(journal), ("completion", "tokens", "finished")
        try:
            for start, answers in map(json.loads, whole):
                rows = zip(batches[start], answers, strict=True)
                found[start] = [{name: answer[name] for name in names} for _, answer in rows]
        except (ValueError, TypeError, LookupError):
            raise runs.RunError(f"{journal} has lines that no evaluation wrote: move it away") from None
        disk.write_atomically(journal, whole)
    return found


def ask(model, tokenizer, rows: list[dict], settings, calculator: bool, labels: dict,
        folder: Path | None = None) -> list[dict]:  # fmt: skip
    """Every row's question answered and graded; `labels` ({"model": "tuned"}) and the row's split go into each result.

    An answer to a row without a gold has no verdict, but the row's own answer as "reference".

    Rows of several splits are best asked together: fewer and fuller batches. In `folder` a hidden journal keeps what is
    answered, for an attempt that goes on after this one was stopped."""
    prompts, began = [chat.prompt_ids(row["messages"], tokenizer) for row in rows], time.monotonic()
    name = f"{', '.join(labels.values())}, calculator {'on' if calculator else 'off'}"

    def answered(done):
        progress.tell(done, len(rows), f"answers of {name}")
        print(f"{name}: {done} of {len(rows)} answered, {time.monotonic() - began:.1f} s", flush=True)

    size = (settings.max_new_tokens, settings.eval_batch_size)
    journal = folder / f".{name.replace(', ', '-').replace(' ', '-')}.jsonl" if folder else None
    kinds = [row["kind"] for row in rows]
    with memory.memory_told("evaluate", settings):
        answers = generate(model, tokenizer, prompts, *size, calculator, answered, kinds, journal)
    results = []
    for row, answer in zip(rows, answers):
        results.append({
            "id": row["id"], "kind": row["kind"], "level": row.get("level"), "group": row["group"],
            "split": row.get("split", "test"), **labels, "calculator": calculator,
            "question": row["messages"][-2]["content"], "gold": row["gold"], **answer,
            **(_verdict(answer, row["gold"]) if row["gold"] else {"reference": row["messages"][-1]["content"]}),
        })  # fmt: skip
    return results


def _verdict(answer: dict, gold: dict) -> dict:
    verdict = scoring.grade(answer["completion"], gold, answer["finished"])
    return {
        "correct": verdict.correct, "value": verdict.value, "reading": verdict.reading, "error": verdict.error,
        "flag": verdict.flag, "correct_lenient": verdict.correct_lenient,
        "within": {f"{100 * share:g} %": passed for share, passed in verdict.within.items()},
    }  # fmt: skip


@torch.inference_mode()
def losses(model, tokenizer, rows: list[dict], settings, stage: str = "evaluate") -> list[dict]:
    """Each row's summed negative log-likelihood in nats, in the rows' order: {"loss", "tokens"} of its answer (end
    token included), and {"loss_with_prompt", "tokens_with_prompt"} of all that follows the row's first token."""
    device, found = next(model.parameters()).device, [None] * len(rows)
    batch_size = getattr(settings, STAGES[stage].memory[0])
    encoded = [chat.encode(row, tokenizer) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        lengths = [len(encoded[i]["input_ids"]) for i in batch]
        ids = torch.full((len(batch), max(lengths)), tokenizer.pad_token_id)  # (B, T)
        labels, mask = torch.full_like(ids, chat.IGNORED), torch.zeros_like(ids)
        for row, (i, length) in enumerate(zip(batch, lengths)):
            ids[row, :length], labels[row, :length] = (torch.tensor(encoded[i][key]) for key in ("input_ids", "labels"))
            mask[row, :length] = 1
        with memory.memory_told(stage, settings):
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()  # (B, T, V)
            every = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), ids[:, 1:].to(device), reduction="none"
            ).cpu()  # (B, T - 1)
        learnt, real = labels[:, 1:] != chat.IGNORED, mask[:, 1:] == 1
        for row, i in enumerate(batch):
            found[i] = {
                "loss": float(every[row, learnt[row]].sum()), "tokens": int(learnt[row].sum()),
                "loss_with_prompt": float(every[row, real[row]].sum()), "tokens_with_prompt": int(real[row].sum()),
            }  # fmt: skip
    return found


def perplexity(found: list[dict], of: str = "") -> dict:
    """Perplexity per token of what `losses` found (`of="_with_prompt"`: of prompts too), with a 95 % interval."""
    mean, reach, tokens = _a_token([row["loss" + of] for row in found], [row["tokens" + of] for row in found])
    return {"perplexity": math.exp(mean), "low": math.exp(mean - reach), "high": math.exp(mean + reach),
            "rows": len(found), "tokens": tokens}  # fmt: skip


def loss_change(base: list[dict], tuned: list[dict]) -> dict:
    """Losses of the same answers by both models, nats a token, and tuned - base with its paired 95 % interval."""
    tokens = [row["tokens"] for row in base]
    assert tokens == [row["tokens"] for row in tuned], "both models must read the same answers"
    difference, reach, total = _a_token([b["loss"] - a["loss"] for a, b in zip(base, tuned)], tokens)
    means = {name: sum(row["loss"] for row in found) / total for name, found in (("base", base), ("tuned", tuned))}
    return means | {"difference": difference, "low": difference - reach, "high": difference + reach,
                    "rows": len(tokens), "tokens": total}  # fmt: skip


def _a_token(sums: list[float], tokens: list[int]) -> tuple[float, float, int]:
    """(summed values over summed tokens, how far its 95 % interval reaches, tokens): a ratio estimator, rows
    independent (Cochran 1977, equation 6.9)."""
    from scipy.stats import t

    n, total = len(sums), sum(tokens)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 rows, got {n}")
    mean = sum(sums) / total
    spread = math.sqrt(n / (n - 1) * sum((value - mean * count) ** 2 for value, count in zip(sums, tokens))) / total
    return mean, float(t.ppf(0.975, n - 1)) * spread, total
