"""Pretraining from nothing: one loop for the plain and the fast GPT, exact to resume; and its result."""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, LlamaTokenizer

from lib.data import chat, texts
from lib.gpt import corpus, tokens
from lib.gpt.fast import FastGPT
from lib.gpt.plain import GPT, SIZES, llama
from lib.gpt.tokens import Blocks
from lib.grade.calculator import MARK, CalculatorError, calculate
from lib.grade.stats import Interval
from lib.judge import evaluate
from lib.run import memory, progress
from lib.run.paths import in_project
from lib.run.settings import PretrainSettings
from lib.train import guards

WARM_UP = 0.02  # share of the steps
Peaks = dict[torch.optim.Optimizer, float]  # learning rates
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, weights, documents: (B, T + 1) each


@dataclass(frozen=True)
class Recipe:
    """What makes training fast; notebook 20 turns it on piece by piece. All off is the plain GPT."""

    fast: bool = False  # lib/gpt/fast.py's model
    bf16: bool = False  # autocast: matrix products in bfloat16, weights in float32
    compile: bool = False
    fused: bool = False  # AdamW updates all weights in one pass
    muon: bool = False  # for the matrices; embeddings and norms keep AdamW
    checkpointing: bool = False


FASTEST = Recipe(fast=True, bf16=True, compile=True, fused=True, muon=True)


def recipe_of(settings: PretrainSettings) -> Recipe:
    """All that makes training fast, as far as the settings want it."""
    compile, checkpointing = settings.torch_compile, settings.checkpoint_activations
    return replace(FASTEST, compile=compile, checkpointing=checkpointing)


def tokenizer_for(settings: PretrainSettings, folder: Path) -> SentencePieceProcessor:
    """The tokenizer that the settings name, put into `folder`, as SentencePiece reads it."""
    if settings.tokenizer == "embedded":
        shutil.copy(in_project("data/base/tokenizer.model"), folder)
    elif settings.corpus == "generated":
        count = min(60_000, 4_000 + settings.pretrain_tokens // 10)  # documents
        tokens.train_tokenizer(folder, tokens.generated_texts(settings.pretrain_seed, count))
    else:
        tokens.train_tokenizer(folder, texts.documents(settings.corpus))
    return tokens.load_processor(folder)


def steps_of(settings: PretrainSettings, blocks: Blocks) -> int:
    """Optimiser steps that `pretrain_tokens` make."""
    tokens_a_step = blocks.batch * blocks.length * settings.pretrain_accumulation
    return math.ceil(settings.pretrain_tokens / tokens_a_step)


def schedule(step: int, steps: int, kind: str = "wsd", decay_share: float = 1.0) -> float:
    """Share of the peak learning rate at `step` of `steps`: warm-up over 2 %, then a cosine to zero, or
    stable and falling linearly to zero over the last `decay_share` of the steps (Hu et al. 2024)."""
    if step + 1 < WARM_UP * steps:
        return (step + 1) / (WARM_UP * steps)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (steps - step) / (decay_share * steps))


def optimizers(model: GPT, recipe: Recipe, settings: PretrainSettings) -> Peaks:
    """Muon (Jordan et al. 2024) for matrices, AdamW for the rest, each with its peak learning rate."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if recipe.muon and parameter.ndim == 2 and "embed" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    peaks, rate = {}, settings.muon_learning_rate
    if matrices:
        muon = torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=0.01)
        peaks[muon] = rate
    rate = settings.adamw_learning_rate
    adamw = torch.optim.AdamW(others, rate, (0.9, 0.95), weight_decay=0.0, fused=recipe.fused, foreach=False)
    peaks[adamw] = rate
    return peaks


def train(settings: PretrainSettings, blocks: Blocks, folder: Path | None = None,
          recipe: Recipe = FASTEST, held_out: Blocks | None = None,
          log: Callable = lambda step, **metrics: print(step, metrics),
          log_every: int = 50, save_every: int = 500,
          sample: list[int] | None = None) -> tuple[GPT, dict]:  # fmt: skip
    """Train a GPT of settings.model_size on `blocks`; returns it and its last metrics.

    `log(step, **metrics)` is called as it goes; held-out loss, the continuation of `sample` and a
    checkpoint in `folder` come every `save_every` steps. A checkpoint that lies there is continued,
    exactly. TrainingError where the loss is no number; on Ctrl-C a checkpoint is written.

    Several processes (`lib.gpt.pretrain_worker`) share each batch's rows and add their gradients up: the
    same training, whatever their number. Each holds the whole model, and the first logs and writes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory.keep_freed()
    torch.manual_seed(settings.pretrain_seed)
    torch.use_deterministic_algorithms(device.type == "cpu")
    model = new_model(settings.model_size, recipe).to(device).train()
    loss_of = torch.compile(model.loss) if recipe.compile else model.loss
    half = torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16)
    peaks = optimizers(model, recipe, settings)
    parts, steps, rank = settings.pretrain_accumulation, steps_of(settings, blocks), ranks()[0]
    begin, seconds, losses, entry = 0, [], [], {}
    path = folder and folder / "checkpoint.safetensors"
    if path and path.exists():
        begin, entry, losses = load_checkpoint(path, model, peaks)
        if rank == 0 and entry:  # again: the process may have been killed before it was logged
            log(begin, **entry)
    with guards.Stop() as stop, memory.memory_told("pretrain", settings):
        for step in range(begin + 1, steps + 1):
            started = time.perf_counter()
            for number in range((step - 1) * parts, step * parts):
                batch = blocks.at(number)
                losses.append(backward(loss_of, batch, parts, device, half))
                if not math.isfinite(losses[-1]):
                    raise diverged(losses[-1], step, folder, batch)
            update(model, peaks, schedule(step - 1, steps, settings.schedule, settings.decay_share))
            seconds.append(time.perf_counter() - started)
            progress.tell(step, steps, loss=losses[-1])
            leaving = guards.on_any_rank(stop.asked) and step < steps
            saving = step % save_every == 0 or step == steps
            logging = saving or step % log_every == 0
            if rank == 0 and logging:
                size, rate = blocks.batch * blocks.length * parts, next(iter(peaks)).param_groups[0]["lr"]
                entry = {"loss": sum(losses) / len(losses), "learning_rate": rate, "tokens": step * size,
                         "tokens_per_second": size / median(seconds)}  # fmt: skip
                losses = []
                if saving and held_out:
                    entry |= held_out_loss(model, held_out, half)
                if saving and sample:
                    written = model.generate(torch.tensor([sample], device=device), 48)
                    entry["sample"] = written[0, len(sample) :].tolist()
            if rank == 0 and path and (leaving or saving):
                save_checkpoint(path, step, model, peaks, entry if logging else {}, losses)
            if rank == 0 and logging:
                log(step, **entry)
            if leaving:
                raise guards.stopped(step)
    sizes = {"steps": steps, "parameters": sum(p.numel() for p in model.parameters())}
    return model.eval(), entry | sizes | {"step_seconds": seconds}


def new_model(size: str, recipe: Recipe) -> GPT:
    """A GPT with random weights."""
    if recipe.fast:
        return FastGPT(SIZES[size], recipe.checkpointing)
    return GPT(SIZES[size])


def backward(loss_of: Callable, batch: Batch, parts: int, device: torch.device, half: torch.autocast) -> float:
    """Add the gradients of this rank's rows of a batch, one of `parts`; returns the whole batch's loss."""
    rank, count = ranks()
    ids, weights, documents = (tensor[rank::count].to(device) for tensor in batch)
    with half:
        loss = loss_of(ids, weights, documents)
    if count > 1:  # a mean over all ranks' tokens, each by its weight
        loss = loss * (weights[:, 1:].sum() / batch[1][:, 1:].sum())
    (loss / parts).backward()
    return added_up([loss.detach()])[0].item()


def update(model: GPT, peaks: Peaks, share: float) -> None:
    """One step of each optimiser at `share` of its peak rate, with the gradients of all ranks."""
    added_up([parameter.grad for parameter in model.parameters()])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in peaks.items():
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def diverged(loss: float, step: int, folder: Path | None, batch: Batch) -> memory.TrainingError:
    """What a training raises whose loss is no number; its batch is kept in `folder`."""
    place = ""
    if folder:
        path = folder / "failed_batch.safetensors"
        save_file(dict(zip(("ids", "weights", "documents"), batch)), path)
        place = f" (its batch is in {folder.name}/{path.name})"
    advice = "lower muon_learning_rate or adamw_learning_rate"
    return memory.TrainingError(f"the loss is {loss} at step {step}{place}: {advice}")


def ranks() -> tuple[int, int]:
    """This process's number among those that train together, and how many they are."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def added_up(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors with the sums over all ranks in them."""
    if dist.is_initialized():
        together = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(together)
        for part, total in zip(parts, together.split([part.numel() for part in parts])):
            part.copy_(total.view_as(part))
    return parts


@torch.no_grad()
def held_out_loss(model: GPT, blocks: Blocks, half: torch.autocast) -> dict:
    """Loss in nats a token over all documents of `blocks`: as trained (weighted), and of all tokens alike."""
    device = next(model.parameters()).device
    weighted = weight = nats = count = 0.0
    model.eval()
    for step in range(math.ceil(len(blocks.rows) / blocks.batch)):
        ids, weights, documents = (tensor.to(device) for tensor in blocks.at(step))
        weights[max(0, len(blocks.rows) - step * blocks.batch) :] = 0  # rows of the next epoch
        weights = weights[:, 1:]
        counted = (weights > 0).float()
        with half:
            losses = model.losses(ids, documents)  # (B, T)
        weighted += (losses * weights).sum().item()
        weight += weights.sum().item()
        nats += (losses * counted).sum().item()
        count += counted.sum().item()
    model.train()
    return {"eval_loss": weighted / weight, "eval_nats": nats, "eval_tokens": int(count),
            "perplexity": math.exp(nats / count)}  # fmt: skip


def bits_per_byte(nats: float, size: int) -> float:
    """What vocabularies can be compared by: bits that the model needs for a byte of text."""
    return nats / math.log(2) / size


def save_checkpoint(path: Path, step: int, model, peaks: Peaks, entry: dict, losses: list[float]) -> None:
    """Weights and the optimisers' state after `step`, its line of the log (if any) and the losses that are
    not logged yet; written whole or not at all."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, optimizer in enumerate(peaks):
        for index, values in optimizer.state_dict()["state"].items():
            for name, tensor in values.items():
                state[f"optimizer.{number}.{index}.{name}"] = tensor
    save_file(state, f"{path}.part", {"told": json.dumps([step, entry, losses])})
    with open(f"{path}.part", "rb") as file:
        os.fsync(file.fileno())
    os.replace(f"{path}.part", path)


def load_checkpoint(path: Path, model: GPT, peaks: Peaks) -> tuple[int, dict, list[float]]:
    """(step, entry, losses) of `save_checkpoint`; model and optimisers are put back to that step.

    TrainingError where the file is torn."""
    try:
        with safe_open(path, "pt") as file:
            step, entry, losses = json.loads(file.metadata()["told"])
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, LookupError) as error:
        why = f"{path} does not load ({error}): move it away, and pretraining begins anew"
        raise memory.TrainingError(why) from error
    model.load_state_dict({name: state[f"model.{name}"] for name in model.state_dict()})
    for number, optimizer in enumerate(peaks):
        whole = optimizer.state_dict()
        for name, tensor in state.items():
            if name.startswith(f"optimizer.{number}."):
                index, key = name.split(".")[2:]
                whole["state"].setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(whole)
    return step, entry, losses


def trained(settings: PretrainSettings, folder: Path) -> GPT:
    """The model of the checkpoint that training left in `folder`."""
    model = FastGPT(SIZES[settings.model_size])
    load_checkpoint(folder / "checkpoint.safetensors", model, {})
    return model.eval()


def save(model: GPT, folder: Path) -> None:
    """Weights (float32 safetensors), configuration and tokenizer, for transformers and llama.cpp."""
    llama(model).save_pretrained(folder)
    tokenizer = LlamaTokenizer.from_pretrained(
        folder, add_prefix_space=False, legacy=False, add_bos_token=False, bos_token="<s>",
        eos_token="</s>", unk_token="<unk>", pad_token="<pad>", clean_up_tokenization_spaces=False,
        additional_special_tokens=tokens.SYMBOLS[:2],
        model_max_length=model.config.max_position_embeddings,
    )  # fmt: skip
    # SentencePiece never splits its own symbols; the converted tokenizer must be told of these
    symbols = ("<<", ">>", "####")
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=False) for symbol in symbols])
    tokenizer.chat_template = chat.TEMPLATE
    tokenizer.save_pretrained(folder)


def setup_accuracy(model, tokenizer, problems: list[corpus.Turn]) -> list[dict]:
    """Of held-out one-step problems: {"question", "wanted", "got", "correct"}.

    Right is an expression before the `=` of the same numbers and the same value (7+5 for 5+7)."""
    prompts = [chat.prompt_ids([{"role": "user", "content": question}], tokenizer) for question, _ in problems]
    answers = evaluate.generate(model, tokenizer, prompts, 96, batch_size=128, calculator=True)
    results = []
    for (question, answer), got in zip(problems, answers):
        wanted, got = MARK.search(answer)[1], got["completion"]
        written = MARK.search(got)
        correct = written is not None and _same_sum(written[1], wanted)
        results.append({"question": question, "wanted": wanted, "got": got, "correct": correct})
    return results


def _same_sum(a: str, b: str) -> bool:
    numbers, others = (sorted(re.findall(r"[\d.]+", expression)) for expression in (a, b))
    try:
        return numbers == others and calculate(a) == calculate(b)
    except CalculatorError:
        return False


def card(settings: PretrainSettings, metrics: dict, text: dict, right: Interval | None, rehearse: bool) -> str:
    """The model's card; `text` is what `tokens.prepare` says of the training text, `right` the set-up
    accuracy (None for a corpus of one's own)."""
    config, muon, adamw = SIZES[settings.model_size], settings.muon_learning_rate, settings.adamw_learning_rate
    heads = f"{config.num_attention_heads} heads over {config.num_key_value_heads} key-value heads"
    batch = settings.pretrain_batch_size * settings.pretrain_accumulation
    title, source, weighing, accuracy = "A GPT from scratch", settings.corpus, "", ""
    if settings.corpus == "generated":
        title = "The embedded base"
        source = f"generated by `lib/gpt/corpus.py`, seed {settings.pretrain_seed}"
        weighing = " as trained (what cannot be predicted counts a tenth)"
    if rehearse:
        title += " (REHEARSAL: hardly trained)"
    if right:
        accuracy = (f"| held-out one-step sums set up with every number right | {100 * right.estimate:.1f} % of "
                    f"{right.n} [{100 * right.low:.1f}, {100 * right.high:.1f}] |\n")  # fmt: skip
    return f"""# {title}

A Llama-architecture language model of {metrics["parameters"]:,} parameters ({config.num_hidden_layers} layers,
width {config.hidden_size}, {heads}, vocabulary {config.vocab_size:,}, tied embeddings), trained from
random weights by `lib/gpt/fast.py`, with a SentencePiece tokenizer.

| how it was made | |
|---|---|
| command | `papermill notebooks/20_pretrain_gpt.ipynb out.ipynb -p run base` |
| text | {source}: {text["tokens"]:,} tokens, {text["documents"]:,} documents |
| sha256 of the tokens | `{text["sha256"]}` |
| trained on | {metrics["tokens"]:,} tokens in {metrics["steps"]:,} steps of {batch} x {settings.block_size} |
| peak learning rates | Muon {muon} (matrices), AdamW {adamw} (the rest), {settings.schedule} |
| held-out loss, nats a token | {metrics["eval_loss"]:.4f}{weighing} |
| held-out perplexity of all tokens | {metrics["perplexity"]:.3f} |
| bits a byte | {metrics["bits_per_byte"]:.4f} |
| speed | {metrics["tokens_per_second"]:,.0f} tokens/s (median step) |
{accuracy}
What it is not: it knows no facts, no language beyond its own small text and none of the tasks that
fine-tuning teaches. Results on it are about this project's machinery, not about language models.
Licence: Apache-2.0, as the project's code.
"""
