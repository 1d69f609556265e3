"""Questions through a model: answers, with a calculator or not, graded; losses of the rows' own."""

import functools
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from lib.data import chat
from lib.engine.client import Engine
from lib.engine.marks import WINDOW, Marks
from lib.grade import scoring
from lib.judge import beside, decode
from lib.judge.answers import calculator_text, column
from lib.judge.sampling import Drawing, Draws
from lib.run import disk, memory, progress, runs
from lib.run.settings import EvaluateSettings, ExportSettings, ProbeSettings, TrainSettings
from lib.run.stages import STAGES

CALCULATORS = {"both": (True, False), "on": (True,), "off": (False,)}  # what the setting stands for
PART = 4  # batches of `decode` whose answers are journaled together, so that rows seldom run out within
LOGITS = 2**27  # of a batch whose loss is read; a large vocabulary's take more memory than the model
ANSWER = {"completion", "tokens", "finished"}

AskSettings = TrainSettings | EvaluateSettings | ProbeSettings | ExportSettings  # all of these stages ask


def questions(data: Path, settings: EvaluateSettings) -> tuple[dict[str, list], list[dict], list[dict]]:
    """(rows with a gold by split, those of the test without one, test rows to read for their loss).

    At most `eval_rows` of each split; without a gold as many that a published protocol grades, and `show_answers` that
    nothing does. A graded row says its split."""
    test = runs.read_rows(data / "test.jsonl")
    graded = {}
    for split, rows in (("test", test), ("test_seen", runs.read_rows(data / "test_seen.jsonl"))):
        with_gold = [row | {"split": split} for row in rows if row["gold"]]
        if with_gold:
            graded[split] = with_gold[: settings.eval_rows]
    ungraded = [row for row in test if not row["gold"]]
    by_protocol = [row for row in ungraded if row.get("published")][: settings.eval_rows]
    shown = [row for row in ungraded if not row.get("published")][: settings.show_answers]
    return graded, by_protocol + shown, test[: settings.eval_rows]


class Calculator(LogitsProcessor):
    """`marks.Marks` for transformers' `generate`, greedy or sampling.

    A token that would run over an `=` gives its score to the one that ends there; after the `=` the
    value's tokens are forced."""

    def __init__(self, filling: Marks, rows: int):
        self.marks, self.queues = filling, [[] for _ in range(rows)]

    def __call__(self, input_ids, scores):
        for row, ids in enumerate(input_ids[:, -WINDOW:].tolist()):
            queue = self.queues[row]
            if not queue and ids[-1] in self.marks.beginnings:
                queue += self.marks.value(ids)
            if queue:
                forced = queue.pop(0)
                scores[row] = -math.inf
                scores[row, forced] = 0.0
            elif others := self.marks.instead_of_all(ids):
                tokens = torch.tensor(list(others), device=scores.device)
                firsts = torch.tensor(list(others.values()), device=scores.device)
                scores[row].scatter_reduce_(0, firsts, scores[row, tokens], "amax")
                scores[row, tokens] = -math.inf
        return scores


@dataclass
class Folded:
    """A model's plain copy in 32 bit on a CPU as `Engine`, made when it is first asked."""

    model: torch.nn.Module
    tokenizer: Any
    batch_size: int
    beginning: list[int]  # of all prompts
    name = "torch"

    @property
    def part(self) -> int:
        return PART * self.batch_size

    @functools.cached_property
    def copy(self) -> tuple[torch.nn.Module, decode.Beginning]:
        copy = decode.folded(self.model)
        return copy, decode.read(copy, self.beginning)

    def answers(self, prompts, max_new_tokens, ends, filling, tell, stop="", draws=None):
        def stopped(new: list[int]) -> bool:  # a token has a character or more
            return bool(stop) and stop in self.tokenizer.decode(new[-len(stop) :])

        copy, beginning = self.copy
        return decode.answers(
            copy, prompts, max_new_tokens, self.batch_size, ends, filling, tell, draws, beginning, stopped
        )


@dataclass
class Generating:
    """A model by transformers' own `generate` as `Engine`."""

    model: Any
    tokenizer: Any
    part: int  # rows of a batch
    name = "torch"

    def answers(self, prompts, max_new_tokens, ends, filling, tell, stop="", draws=None):
        rest = self.part, filling, tell, stop, draws
        return _by_generate(self.model, self.tokenizer, prompts, max_new_tokens, *rest)


def engine_of(model: Any, tokenizer: Any, batch_size: int, prompts: list[list[int]], most: int) -> Engine:
    """What answers for a model, `batch_size` rows at once: itself, where it is an engine."""
    if isinstance(model, Engine):
        return model
    shared, longest = decode.shared(prompts), max(map(len, prompts), default=0) + most
    why_not = decode.unsupported(model, batch_size, longest - shared)
    if not why_not:
        return Folded(model, tokenizer, batch_size, prompts[0][:shared] if prompts else [])
    _make_room(model, longest)
    if next(model.parameters()).device.type == "cpu":
        print(f"answered by transformers' generate, which is slower: {why_not}")
    return Generating(model, tokenizer, batch_size)


def engine_name(model: Any) -> str:
    """What answers for a model, as reports say it."""
    return model.name if isinstance(model, Engine) else "torch"


@torch.inference_mode()
def generate(
    model, tokenizer, prompts: list[list[int]], max_new_tokens: int, batch_size: int,
    calculator: bool, tell: Callable[[int], None] = lambda done: None, kinds: list[str] | None = None,
    journal: Path | None = None, stop: str = "", draws: Draws | None = None,
) -> list[dict]:  # fmt: skip
    """Answers to token-id prompts, in their order: {"completion", "tokens", "finished"} each; greedy, or by draws.

    Prompts of the same kind and of similar length are asked together, as their answers end together.
    `finished` is False for an answer cut off at `max_new_tokens`. `model`: an `Engine`, or a model that
    transformers has loaded: on a CPU a folded copy of it answers (`decode`), which reads once what all
    prompts begin with; one that cannot be copied so answers through transformers' `generate`. `stop`: a
    text at which an answer has ended, too.

    `journal`: a file that each part's answers are added to; parts that it holds from an interrupted
    attempt at the same prompts are not asked again. A part is asked by itself, so what is asked after
    an interruption is answered to the last bit as without one."""
    kinds = kinds or [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (kinds[i], len(prompts[i])))
    engine = engine_of(model, tokenizer, batch_size, prompts, max_new_tokens)
    parts = {start: order[start : start + engine.part] for start in range(0, len(order), engine.part)}
    answered = _read_journal(journal, parts)
    filling = Marks(tokenizer) if calculator else None
    ends = chat.end_ids(tokenizer)
    answers: list[dict] = []  # in the order of `order`

    def so_far(ended: int) -> None:
        tell(len(answers) + ended)

    for start, part in parts.items():
        if start in answered:
            answers += answered[start]
            continue
        asked, own = [prompts[i] for i in part], draws and draws.of(part)
        new = engine.answers(asked, max_new_tokens, ends, filling, so_far, stop, own)
        written = [_answer(tokens, tokenizer, stop) for tokens in new]
        if journal:
            with disk.writing(journal), open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps([start, written]) + "\n")
        answers += written
        tell(len(answers))
    by_prompt = dict(zip(order, answers, strict=True))
    return [by_prompt[i] for i in range(len(prompts))]


def _make_room(model: torch.nn.Module, tokens: int) -> None:
    """Unsloth cuts what is longer than a model was loaded for, and only warns of it."""
    for module in model.modules():
        if getattr(module, "max_seq_length", tokens) < tokens:
            module.max_seq_length = tokens


def _answer(new: list[int], tokenizer, stop: str = "") -> dict:
    ends = chat.end_ids(tokenizer)
    length = next((place for place, token in enumerate(new) if token in ends), None)
    text = tokenizer.decode(new[:length], skip_special_tokens=True)
    tokens = len(new) if length is None else length + 1
    finished = length is not None
    if stop and stop in text:
        text, finished = text.partition(stop)[0], True
    return {"completion": text, "tokens": tokens, "finished": finished}


def _by_generate(
    model, tokenizer, prompts: list[list[int]], max_new_tokens: int, batch_size: int, filling: Marks | None,
    tell: Callable[[int], None] = lambda ended: None, stop: str = "", draws: Draws | None = None,
) -> list[list[int]]:  # fmt: skip
    """The new token ids of each prompt, padding after an end included; batches are left-padded."""
    device, new, stopping = next(model.parameters()).device, [], {}
    if stop:
        stopping = {"stop_strings": [stop], "tokenizer": tokenizer}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        ids = _padded(batch, tokenizer.pad_token_id, "left")
        mask = _padded([[1] * len(prompt) for prompt in batch], 0, "left")
        processors = LogitsProcessorList()
        if draws:
            processors.append(Drawing(draws.of(range(start, start + len(batch))), ids.shape[1]))
        if filling:
            processors.append(Calculator(filling, len(batch)))
        output = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens,
            do_sample=False, use_cache=True, eos_token_id=chat.end_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id, logits_processor=processors, **stopping,
        )  # fmt: skip
        new += output[:, ids.shape[1] :].tolist()
        if len(new) < len(prompts):
            tell(len(new))
    return new


def _padded(rows: list[list[int]], value: int, side: str = "right") -> torch.Tensor:
    """Rows of different lengths as one batch: (B, T)."""
    return pad_sequence([torch.tensor(row) for row in rows], True, value, side)


def _read_journal(journal: Path | None, parts: dict[int, list[int]]) -> dict[int, list[dict]]:
    """{where a part starts: its answers}; a line that was left half written is not read."""
    if not journal or not journal.exists():
        return {}
    answered, lines = {}, disk.whole_lines(journal)
    try:
        for start, answers in map(json.loads, lines):
            whole = all(set(answer) == ANSWER for answer in answers)
            if len(answers) != len(parts[start]) or not whole:
                raise ValueError("these are no answers to this part")
            answered[start] = answers
    except (ValueError, TypeError, LookupError):
        raise runs.RunError(f"{journal} has lines that no evaluation wrote: move it away") from None
    disk.write_atomically(journal, lines)
    return answered


def ask(
    model, tokenizer, rows: list[dict], settings: AskSettings, calculator: bool, labels: dict,
    folder: Path | None = None, draws: Draws | None = None,
) -> list[dict]:  # fmt: skip
    """Every row's question answered and graded; each result has `labels` ({"model": "tuned"}) and its split.

    An answer to a row without a gold has no verdict, but the row's own answer as "reference". Rows of
    several splits are best asked together: fewer and fuller batches. In `folder` a hidden journal keeps
    what is answered, for an attempt that goes on after this one was stopped."""
    began, stop = time.monotonic(), ""
    prompts = [chat.asked_ids(row, tokenizer) for row in rows]
    if any(row.get("plain") for row in rows):
        stop = chat.STOP
    name = f"{', '.join(labels.values())}, {calculator_text(calculator)}, {engine_name(model)}"
    journal = folder and folder / f".{re.sub(r'[^a-z0-9]+', '-', name)}.jsonl"

    def tell(done: int) -> None:
        progress.tell(done, len(rows), f"answers of {name}")
        print(f"{name}: {done} of {len(rows)} answered, {time.monotonic() - began:.1f} s", flush=True)

    with memory.memory_told("evaluate", settings):
        answers = generate(model, tokenizer, prompts, settings.max_new_tokens, settings.eval_batch_size,
                           calculator, tell, [row["kind"] for row in rows], journal, stop, draws)  # fmt: skip
    if not stop and chat.opening(tokenizer):  # the prompt has begun the answer's thinking
        answers = [answer | {"completion": chat.opening(tokenizer) + answer["completion"]} for answer in answers]
    labels = labels | {"calculator": calculator, "engine": engine_name(model)}
    return [graded(row, answer, labels) for row, answer in zip(rows, answers)]


def graded(row: dict, answer: dict, labels: dict) -> dict:
    """One result of `ask`: a row's answer ({"completion", "tokens", "finished"}) with its verdict."""
    *_, question, reference = (message["content"] for message in row["messages"])
    result = {
        "id": row["id"], "kind": row["kind"], "level": row.get("level"), "group": row["group"],
        "split": row.get("split", "test"), **labels, "question": question, "gold": row["gold"], **answer,
    } | beside.verdict(row, answer["completion"])  # fmt: skip
    result |= {name: row[name] for name in ("conversation", "turns") if name in row}
    return result | (_verdict(answer, row["gold"]) if row["gold"] else {"reference": reference})


def _verdict(answer: dict, gold: dict) -> dict:
    verdict = scoring.grade(answer["completion"], gold, answer["finished"])
    within = {f"{100 * share:g} %": passed for share, passed in verdict.within.items()}
    return asdict(verdict) | {"within": within}


def losses(model, tokenizer, rows: list[dict], settings: AskSettings, stage: str = "evaluate") -> list:
    """Each row's summed negative log-likelihood in nats, in the rows' order.

    {"loss", "tokens"} of its answer (end token included), and {"loss_with_prompt", "tokens_with_prompt"} of
    all that follows the row's first token."""
    return losses_of(model, tokenizer, [chat.encode(row, tokenizer) for row in rows], settings, stage)


@torch.inference_mode()
def losses_of(model, tokenizer, encoded: list[dict], settings: AskSettings, stage: str = "evaluate") -> list:
    """`losses` of what is tokenised already: {"input_ids", "labels"} each, as `chat.encode` gives them."""
    device = next(model.parameters()).device
    batch_size = getattr(settings, STAGES[stage].memory[0])
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    results = {}
    while order:
        batch = order[:batch_size]
        tokens = len(encoded[batch[-1]]["input_ids"])  # of the longest
        batch = batch[: max(1, LOGITS // (tokens * len(tokenizer)))]
        order = order[len(batch) :]
        ids = _padded([encoded[i]["input_ids"] for i in batch], tokenizer.pad_token_id)
        labels = _padded([encoded[i]["labels"] for i in batch], chat.IGNORED)
        mask = _padded([[1] * len(encoded[i]["labels"]) for i in batch], 0)
        with memory.memory_told(stage, settings):
            output = model(input_ids=ids.to(device), attention_mask=mask.to(device))
            every = [  # (T - 1) a row: in 32 bit only one row's logits are held
                cross_entropy(logits[:-1].float(), row[1:].to(device), reduction="none").cpu()
                for logits, row in zip(output.logits, ids)
            ]
        supervised, real = labels[:, 1:] != chat.IGNORED, mask[:, 1:] == 1
        for i, loss, own, whole in zip(batch, every, supervised, real):
            results[i] = {
                "loss": float(loss[own].sum()), "tokens": int(own.sum()),
                "loss_with_prompt": float(loss[whole].sum()), "tokens_with_prompt": int(whole.sum()),
            }  # fmt: skip
        progress.tell(len(results), len(encoded), "rows' own answers read")
    return [results[i] for i in range(len(encoded))]


def perplexity(found: list[dict], of: str = "") -> dict:
    """Perplexity per token of `losses` (`of="_with_prompt"`: of prompts too), with a 95 % interval."""
    mean, reach, tokens = _a_token(column(found, f"loss{of}"), column(found, f"tokens{of}"))
    low, high = math.exp(mean - reach), math.exp(mean + reach)
    return {"perplexity": math.exp(mean), "low": low, "high": high, "rows": len(found), "tokens": tokens}


def loss_change(base: list[dict], tuned: list[dict]) -> dict:
    """Losses of the same answers, nats a token, and tuned - base with its paired 95 % interval."""
    tokens = column(base, "tokens")
    assert tokens == column(tuned, "tokens"), "both models must read the same answers"
    differences = [b["loss"] - a["loss"] for a, b in zip(base, tuned)]
    difference, reach, total = _a_token(differences, tokens)
    return {
        "base": sum(column(base, "loss")) / total, "tuned": sum(column(tuned, "loss")) / total,
        "difference": difference, "low": difference - reach, "high": difference + reach,
        "rows": len(tokens), "tokens": total,
    }  # fmt: skip


def _a_token(sums: list[float], tokens: list[int]) -> tuple[float, float, int]:
    """(summed values over summed tokens, how far its 95 % interval reaches, tokens).

    A ratio estimator, rows independent (Cochran 1977, equation 6.9)."""
    from scipy.stats import t

    n, total = len(sums), sum(tokens)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 rows, got {n}")
    mean = sum(sums) / total
    squares = sum((value - mean * count) ** 2 for value, count in zip(sums, tokens))
    spread = math.sqrt(n / (n - 1) * squares) / total
    return mean, float(t.ppf(0.975, n - 1)) * spread, total
