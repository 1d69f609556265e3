"""What each step of the fast GPT brings: the plain one, then one change after the other, at equal tokens and seed."""

import time
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

# (what is added, the recipe so far, whether documents are packed); the last costs time and saves memory
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


def ladder(settings, folder: Path, held_out: Path, steps: int, runs: int = 3, log=print) -> list[dict]:
    """A row a step of LADDER: medians over `runs` seeds of tokens/s, peak memory, held-out loss and time to a loss.

    Every recipe trains on about the same number of tokens a step (padding is not counted), for `steps` steps. The fixed
    loss is the plain recipe's last one; None where a recipe did not reach it. Without torch_compile nothing is
    compiled, and that step is left out."""
    compiles = settings.torch_compile
    rungs = [(name, replace(recipe, compile=recipe.compile and compiles), packed) for name, recipe, packed in LADDER
             if compiles or name != "+ compiler"]  # fmt: skip
    found: dict[str, list[dict]] = {name: [] for name, *_ in rungs}
    for run in range(runs):
        seed = settings.pretrain_seed + run
        for name, recipe, packed in rungs:
            size = settings.pretrain_batch_size, settings.block_size, seed
            blocks = tokens.Blocks(folder, *size, packed=packed)
            count = steps * blocks.batch * blocks.length
            own = SimpleNamespace(**vars(settings) | {"pretrain_seed": seed, "pretrain_tokens": count})
            curve: list[float] = []
            free = memory.reset_peak()
            _, metrics = train(own, blocks, recipe=recipe, held_out=tokens.Blocks(held_out, *size), save_every=steps,
                               log_every=1, log=lambda step, curve=curve, **m: curve.append(m["loss"]))  # fmt: skip
            seconds = metrics["step_seconds"]
            found[name].append({
                "tokens_per_second": blocks.tokens_a_step / median(seconds[1:] or seconds),  # the first compiles
                "peak_bytes": memory.peak_since(free), "loss": metrics["eval_loss"], "curve": curve,
                "seconds": median(seconds[1:] or seconds),
            })  # fmt: skip
            log(f"run {run + 1} of {runs}, {name}: {found[name][-1]['tokens_per_second']:,.0f} tokens/s, "
                f"held-out loss {metrics['eval_loss']:.3f}")  # fmt: skip
    goals = [run["curve"][-1] for run in found["plain"]]
    rows = []
    for name, tries in found.items():
        reached = [next((n * t["seconds"] for n, loss in enumerate(t["curve"], 1) if loss <= goal), None)
                   for t, goal in zip(tries, goals)]  # fmt: skip
        peaks = [t["peak_bytes"] for t in tries]
        rows.append({
            "step": name, "tokens_per_second": median(t["tokens_per_second"] for t in tries),
            "peak_bytes": None if None in peaks else median(peaks), "loss": median(t["loss"] for t in tries),
            "seconds_to_loss": None if None in reached else median(reached), "runs": runs,
        })  # fmt: skip
    return rows


def generation(size: str, new_tokens: int, runs: int = 3, batch: int = 1, prompt: int = 32) -> list[dict]:
    """Generated tokens/s of the same weights without and with a cache of keys and values, medians of `runs`."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = GPT(SIZES[size]).to(device).eval()
    fast = FastGPT(SIZES[size]).to(device).eval()
    fast.load_state_dict(plain.state_dict())
    ids, rows = torch.randint(4, SIZES[size].vocab_size, (batch, prompt), device=device), []
    answers = [model.generate(ids, new_tokens) for model in (plain, fast)]
    assert torch.equal(*answers), "the cache changed what is generated"
    for name, model in (("without cache", plain), ("with cache", fast)):
        seconds = []
        for _ in range(runs):
            began = time.perf_counter()
            model.generate(ids, new_tokens)[0, -1].item()
            seconds.append(time.perf_counter() - began)
        rows.append({"generation": name, "tokens_per_second": batch * new_tokens / median(seconds),
                     "new_tokens": new_tokens, "runs": runs})  # fmt: skip
    return rows
