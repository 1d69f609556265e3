"""The fast GPT beside the plain one, and beside the same Llama in transformers.

    python tests/benchmarks/bench_gpt.py [--muon]

Prints a table and, as its last line, JSON. Training: block 512, batch 8, the generated text, medians of 3 runs of 12
steps in one process. Generation: 256 new tokens for one prompt, medians of 3. `--muon` (6 minutes on two cores) asks in
addition whether Muon reaches AdamW's loss in half the tokens.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from lib.gpt import ablation, plain, pretrain, tokens
from lib.run import memory, presets
from lib.run.paths import ROOT

STEPS, RUNS = 12, 3


def streams(folder: Path, count: int):
    settings = presets.resolve("demo", {"pretrain_tokens": count, "model_size": "tiny"}).settings
    processor = tokens.load_processor(ROOT / "data/base")
    tokens.prepare(settings, folder, processor)
    return settings, tokens.Blocks(folder / "train", 8, 512, 0), tokens.Blocks(folder / "held_out", 8, 512, 0)


def step_seconds(model, loss_of, optimisers, blocks) -> float:
    seconds = []
    for step in range(STEPS):
        ids, weights, documents = blocks.at(step)
        began = time.perf_counter()
        loss_of(ids, weights, documents).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimisers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return median(seconds[2:])  # the first two compile and warm up


def compared(settings, blocks) -> dict:
    """{name: {"tokens_per_second", "peak_bytes"}} of plain, fast, and transformers' Llama made fast the same way."""
    from transformers import LlamaForCausalLM

    def written_out():
        model = plain.GPT(plain.SIZES["tiny"])
        return model, model.loss, pretrain.optimizers(model, pretrain.Recipe(), settings)

    def made_fast():
        model = pretrain.FastGPT(plain.SIZES["tiny"])
        compiled = torch.compile(model.loss)
        return model, half(compiled), pretrain.optimizers(model, pretrain.FASTEST, settings)

    def transformers():
        model: LlamaForCausalLM = plain.llama(plain.GPT(plain.SIZES["tiny"]))
        compiled = torch.compile(model)

        def loss(ids, weights, documents):  # it cannot keep packed documents apart; it pays for one causal mask
            logits = compiled(input_ids=ids[:, :-1]).logits
            losses = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()

        return model, half(loss), pretrain.optimizers(model, pretrain.FASTEST, settings)

    tries: dict[str, list[dict]] = {}
    for _ in range(RUNS):
        for name, make in (("plain", written_out), ("transformers", transformers), ("fast", made_fast)):
            torch.compiler.reset()
            start = memory.reset_peak()
            speed = blocks.tokens_a_step / step_seconds(*make(), blocks)
            tries.setdefault(name, []).append({"tokens_per_second": speed, "peak_bytes": memory.peak_since(start)})
    return {name: ablation.medians(rows) for name, rows in tries.items()}


def half(function):
    def under_autocast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)

    return under_autocast


def muon_against_adamw(settings, blocks, held_out) -> dict:
    """Held-out losses by peak rate: AdamW's after a million tokens, Muon's after half of them.

    Three rates each; beside Muon, embeddings and norms have AdamW's best."""

    def loss(tokens: int, recipe: pretrain.Recipe, **rates) -> float:
        own = settings.model_copy(update={"pretrain_tokens": tokens} | rates)
        return pretrain.train(own, blocks, recipe=recipe, held_out=held_out, save_every=10**9)[1]["eval_loss"]

    adamw = {rate: loss(1_000_000, replace(pretrain.FASTEST, muon=False), adamw_learning_rate=rate)
             for rate in (1e-3, 2e-3, 4e-3)}  # fmt: skip
    others = min(adamw, key=adamw.get)
    muon = {rate: loss(500_000, pretrain.FASTEST, muon_learning_rate=rate, adamw_learning_rate=others)
            for rate in (0.012, 0.02, 0.03)}  # fmt: skip
    return {"adamw_1_000_000_tokens": adamw, "muon_500_000_tokens": muon}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--muon", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings, blocks, held_out = streams(Path(folder), 1_000_000 if arguments.muon else 200_000)
        result = {"training": compared(settings, blocks), "generation": ablation.generation("tiny", 256, RUNS)}
        show(result)
        if arguments.muon:
            result["muon"] = muon_against_adamw(settings, blocks, held_out)
    print(json.dumps(result))


def show(result: dict) -> None:
    speed = {name: values["tokens_per_second"] for name, values in result["training"].items()}
    written = [row["tokens_per_second"] for row in result["generation"]]
    for name, values in result["training"].items():
        peak = ""
        if values["peak_bytes"] is not None:
            peak = f", peak {values['peak_bytes'] / 2**20:,.0f} MiB"
        print(f"{name:<14}{values['tokens_per_second']:>9,.0f} tokens/s ({speed[name] / speed['plain']:.1f} x){peak}")
    gain = written[1] / written[0]
    print(f"generation    {written[0]:,.0f} -> {written[1]:,.0f} tokens/s ({gain:.1f} x)", flush=True)


if __name__ == "__main__":
    main()
