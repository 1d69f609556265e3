"""What torchrun starts on each device to pretrain one GPT together, each on its rows of a batch."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from lib.gpt import pretrain, tokens
from lib.run import disk, memory
from lib.train import fsdp


def train(plan: dict) -> dict:
    """Train as the plan says, with the other ranks; the metrics."""
    settings, folder, data = SimpleNamespace(**plan["settings"]), Path(plan["folder"]), Path(plan["data"])
    fsdp.join(settings)
    size = settings.pretrain_batch_size, settings.block_size, settings.pretrain_seed
    blocks, held_out = tokens.Blocks(data / "train", *size), tokens.Blocks(data / "held_out", *size)
    log, arguments = disk.Log(folder / "metrics.jsonl"), plan["arguments"]
    recipe = replace(pretrain.recipe_of(settings), **arguments.pop("recipe", {}))
    _, metrics = pretrain.train(settings, blocks, folder, recipe, held_out, log, **arguments)
    return metrics | {"ranks": dist.get_world_size(), "backend": dist.get_backend()}


if __name__ == "__main__":
    fsdp.end_with_parent()
    fsdp.work(Path(sys.argv[1]), train, (memory.TrainingError,))
