"""What each step of the fast GPT brings: one change after the other, at equal tokens and seed."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from lib.gpt import tokens
from lib.gpt.fast import FastGPT
from lib.gpt.plain import GPT, SIZES
from lib.gpt.pretrain import FASTEST, Recipe, train
from lib.run import memory
from lib.run.settings import PretrainSettings

# (what is added, the recipe, whether documents are packed); the last one costs time and saves memory
LADDER = (
    ("plain", Recipe(), False),
    ("+ packing", Recipe(), True),
    ("+ attention in one call", Recipe(fast=True), True),
    ("+ bfloat16", Recipe(fast=True, bf16=True), True),
    ("+ compiler", Recipe(fast=True, bf16=True, compile=True), True),
    ("+ fused AdamW", Recipe(fast=True, bf16=True, compile=True, fused=True), True),
    ("+ Muon", FASTEST, True),
    ("+ recomputed layers", replace(FASTEST, checkpointing=True), True),
)


def ladder(settings: PretrainSettings, folder: Path, held_out: Path, steps: int, runs: int = 3,
           log: Callable = print) -> list[dict]:  # fmt: skip
    """A row a step of LADDER, each with medians over `runs` seeds.

    Every recipe trains for `steps` steps of about the same number of tokens, padding not counted. `seconds_to_loss` is
    the time to the plain recipe's last loss, None where it was not reached. Without torch_compile nothing is compiled,
    and that step is left out."""
    tries: dict[str, list[dict]] = {}
    for run in range(runs):
        for name, recipe, packed in LADDER:
            if not settings.torch_compile:
                recipe = replace(recipe, compile=False)
                if name == "+ compiler":
                    continue
            row = measured(settings, folder, held_out, steps, run, recipe, packed)
            curve, seconds = row.pop("curve"), row.pop("seconds")
            if name == "plain":
                goal = curve[-1]
            times = (seconds * step for step, loss in enumerate(curve, 1) if loss <= goal)
            row["seconds_to_loss"] = next(times, None)
            tries.setdefault(name, []).append(row)
            log(f"run {run + 1} of {runs}, {name}: {row['tokens_per_second']:,.0f} tokens/s, "
                f"held-out loss {row['loss']:.3f}")  # fmt: skip
    return [{"step": name, **medians(rows), "runs": runs} for name, rows in tries.items()]


def measured(settings: PretrainSettings, folder: Path, held_out: Path, steps: int, run: int,
             recipe: Recipe, packed: bool) -> dict:  # fmt: skip
    """Speed, peak memory, held-out loss, seconds a step and the curve of losses of one training."""
    seed = settings.pretrain_seed + run
    size = settings.pretrain_batch_size, settings.block_size, seed
    blocks = tokens.Blocks(folder, *size, packed=packed)
    count = steps * blocks.batch * blocks.length
    own = SimpleNamespace(**vars(settings) | {"pretrain_seed": seed, "pretrain_tokens": count})
    curve: list[float] = []
    free = memory.reset_peak()
    _, metrics = train(own, blocks, None, recipe, tokens.Blocks(held_out, *size), log_every=1, save_every=steps,
                       log=lambda step, **line: curve.append(line["loss"]))  # fmt: skip
    seconds = median(metrics["step_seconds"][1:] or metrics["step_seconds"])  # the first compiles
    return {"tokens_per_second": blocks.tokens_a_step / seconds, "peak_bytes": memory.peak_since(free),
            "loss": metrics["eval_loss"], "seconds": seconds, "curve": curve}  # fmt: skip


def medians(rows: list[dict]) -> dict:
    """The median of each column; None where a row has none."""
    result = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        result[name] = None if None in values else median(values)
    return result


def generation(size: str, new_tokens: int, runs: int = 3, batch: int = 1, prompt: int = 32) -> list[dict]:
    """Generated tokens/s of the same weights without and with a cache, medians of `runs`."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {"without cache": GPT(SIZES[size]), "with cache": FastGPT(SIZES[size])}
    models["with cache"].load_state_dict(models["without cache"].state_dict())
    ids = torch.randint(4, SIZES[size].vocab_size, (batch, prompt), device=device)
    written = [model.to(device).eval().generate(ids, new_tokens) for model in models.values()]
    assert torch.equal(*written), "the cache changed what is generated"
    rows = []
    for name, model in models.items():
        seconds = []
        for _ in range(runs):
            began = time.perf_counter()
            model.generate(ids, new_tokens)[0, -1].item()
            seconds.append(time.perf_counter() - began)
        speed = batch * new_tokens / median(seconds)
        rows.append({"generation": name, "tokens_per_second": speed, "new_tokens": new_tokens, "runs": runs})
    return rows
