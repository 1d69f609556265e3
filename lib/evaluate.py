"""Questions through a model: batched greedy answers, calculator or not, graded; perplexity of the gold answers."""

import html
import math
import re
import time
from collections import defaultdict

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from lib import chat, scoring, stats
from lib.calculator import CalculatorError, calculate, show

MODELS = ("base", "tuned")
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
                queue += self._value(input_ids[row, -220:].tolist())
            if queue:
                forced = queue.pop(0)
                scores[row] = -math.inf
                scores[row, forced] = 0.0
        return scores

    def _value(self, ids: list[int]) -> list[int]:
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
             progress=None, kinds: list[str] | None = None) -> list[dict]:  # fmt: skip
    """Greedy answers to token-id prompts, in their order: {"completion", "tokens", "finished"} each.

    Batches are left-padded and made of prompts of the same kind (their answers end together, so that no batch waits for
    one long answer) and of similar length; `finished` is False where the answer was cut off at
    `max_new_tokens`."""
    device = next(model.parameters()).device
    ends, answers, done = set(chat.end_ids(tokenizer)), [None] * len(prompts), 0
    order = sorted(range(len(prompts)), key=lambda i: (kinds[i] if kinds else "", len(prompts[i])))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
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
        done += len(batch)
        if progress:
            progress(done)
    return answers


def ask(model, tokenizer, rows: list[dict], settings, calculator: bool, labels: dict) -> list[dict]:
    """Every row's question answered and graded; `labels` ({"model": "tuned", "split": "test"}) go into each result."""
    prompts, began = [chat.prompt_ids(row["messages"], tokenizer) for row in rows], time.monotonic()
    name = f"{', '.join(labels.values())}, calculator {'on' if calculator else 'off'}"

    def progress(done):
        print(f"{name}: {done} of {len(rows)} answered, {time.monotonic() - began:.1f} s", flush=True)

    size = (settings.max_new_tokens, settings.eval_batch_size)
    answers = generate(model, tokenizer, prompts, *size, calculator, progress, [row["kind"] for row in rows])
    results = []
    for row, answer in zip(rows, answers):
        verdict = scoring.grade(answer["completion"], row["gold"], answer["finished"])
        results.append({
            "id": row["id"], "kind": row["kind"], "group": row["group"], **labels, "calculator": calculator,
            "question": row["messages"][-2]["content"], "gold": row["gold"], **answer,
            "correct": verdict.correct, "value": verdict.value, "reading": verdict.reading, "error": verdict.error,
            "flag": verdict.flag, "correct_lenient": verdict.correct_lenient,
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


def summarise(results: list[dict]) -> list[dict]:
    """A row for each model, split, calculator and kind (and "all"): n, accuracy with its interval, format rate."""
    cells = defaultdict(list)
    for result in results:
        for kind in (result["kind"], "all"):
            cells[result["split"], result["model"], result["calculator"], kind].append(result)
    table = []
    for (split, model, calculator, kind), members in cells.items():
        n = len(members)
        interval = stats.wilson(sum(m["correct"] for m in members), n)
        table.append({
            "split": split, "model": model, "calculator": calculator, "kind": kind, "n": n,
            "accuracy": interval.estimate, "low": interval.low, "high": interval.high,
            "format_rate": sum(m["reading"] == "marker" for m in members) / n,
            "finished": sum(m["finished"] for m in members) / n,
            "accuracy_last_number": sum(m["correct_lenient"] for m in members) / n,
            "tokens": sum(m["tokens"] for m in members) / n,
        })  # fmt: skip
    return table


def _arm(results: list[dict], model: str, split: str, calculator: bool) -> list[dict]:
    return [r for r in results if (r["model"], r["split"], r["calculator"]) == (model, split, calculator)]


def paired(results: list[dict], split: str, calculator: bool) -> dict:
    """Tuned against base on the same questions: flips, exact McNemar p, interval of the difference in accuracy."""
    verdicts = {model: {r["id"]: r["correct"] for r in _arm(results, model, split, calculator)} for model in MODELS}
    ids = list(verdicts["base"])
    assert ids == list(verdicts["tuned"]), "both models must answer the same questions"
    base, tuned = ([verdicts[m][i] for i in ids] for m in MODELS)
    lost, won = sum(b and not t for b, t in zip(base, tuned)), sum(t and not b for b, t in zip(base, tuned))
    interval = stats.paired_interval(base, tuned)
    return {"n": len(ids), "right_to_wrong": lost, "wrong_to_right": won, "p_value": stats.mcnemar(lost, won),
            "difference": interval.estimate, "low": interval.low, "high": interval.high}  # fmt: skip


def interval_text(row: dict) -> str:
    """`64.0 % [58.4, 69.2]`."""
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def printable(row: dict) -> dict:
    """A row of `summarise` for a table that people read."""
    return {
        "split": row["split"], "model": row["model"], "calculator": "on" if row["calculator"] else "off",
        "kind": row["kind"], "n": row["n"], "accuracy [95 %]": interval_text(row),
        "format rate": f"{row['format_rate']:.0%}", "finished": f"{row['finished']:.0%}",
        "last number": f"{row['accuracy_last_number']:.1%}", "tokens an answer": round(row["tokens"]),
    }  # fmt: skip


def headline(table: list[dict], pairs: list[dict], perplexity: dict, rehearse: bool) -> dict[str, str]:
    """The figures that a reader wants first, each with n, interval and setting."""
    note, lines = " (rehearsal, no result)" if rehearse else "", {}
    for pair in pairs:
        base, tuned = (next(r for r in table if (r["model"], r["split"], r["calculator"], r["kind"]) ==
                            (m, pair["split"], pair["calculator"], "all")) for m in MODELS)  # fmt: skip
        name = f"{pair['split'].replace('_', ' ')}, calculator {'on' if pair['calculator'] else 'off'}{note}"
        lines[name] = (f"base {interval_text(base)} -> tuned {interval_text(tuned)}, n = {pair['n']}, "
                       f"McNemar p = {pair['p_value']:.2g}")  # fmt: skip
    lines["perplexity" + note] = " -> ".join(
        f"{m} {p['perplexity']:.2f} [{p['low']:.2f}, {p['high']:.2f}]" for m, p in sorted(perplexity.items())
    ) + f", {perplexity['base']['rows']} answers"  # fmt: skip
    return lines


def side_by_side(results: list[dict], split: str, calculator: bool, count: int) -> str:
    """HTML: base and tuned answers to the same question; by kind in turn, half of them right and half wrong."""
    arms = {model: {r["id"]: r for r in _arm(results, model, split, calculator)} for model in MODELS}
    right, wrong = ([i for i, r in arms["tuned"].items() if r["correct"] == verdict] for verdict in (True, False))
    half = max(count // 2, count - len(wrong))
    chosen = _spread(right, arms["tuned"], half) + _spread(wrong, arms["tuned"], count - min(half, len(right)))
    cells, cell = [], "<td style='text-align:left;vertical-align:top'>"
    for id in chosen:
        row = arms["tuned"][id]
        asked = f"<b>{html.escape(row['kind'])}</b><br>{html.escape(row['question'])}<br>"
        cells.append(f"{cell}{asked}gold: {html.escape(str(row['gold']['value']))}</td>")
        for answer in (arm[id] for arm in arms.values()):
            verdict = "right" if answer["correct"] else f"wrong: {answer['error']}"
            text = html.escape(answer["completion"])
            cells[-1] += f"{cell}<b>{verdict}</b><pre style='white-space:pre-wrap'>{text}</pre></td>"
    head = "<tr><th style='width:34%'>question</th><th style='width:33%'>base</th><th>tuned</th></tr>"
    body = "".join(f"<tr>{cell}</tr>" for cell in cells)
    return f"<table>{head}{body}</table>"


def _spread(ids: list[str], results: dict, count: int) -> list[str]:
    """The first `count` ids, one of each kind in turn."""
    seen, ranked = defaultdict(int), []
    for id in ids:
        seen[results[id]["kind"]] += 1
        ranked.append((seen[results[id]["kind"]], len(ranked), id))
    return [id for _, _, id in sorted(ranked)[:count]]
