"""What torchrun starts on each device: Unsloth shards the model, each rank proves it, `qlora.fit` trains."""

# ruff: noqa: E402  (Unsloth comes before what it patches, and its settings before it)

import os
import sys
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

# Shard even a model that would fit on each device (else Unsloth replicates it), and step with torch's
# AdamW, whose state is sharded with the weights.
os.environ.setdefault("UNSLOTH_FSDP2_LAYOUT", "sharded")
os.environ["UNSLOTH_FSDP2_BNB_LOCAL"] = "0"
if torch.cuda.is_available():
    os.environ["UNSLOTH_FSDP2"] = "1"  # its trainer shards the model
else:  # compiling costs more than it brings; QLoRA on a CPU needs the weights' own types
    os.environ |= {"TORCHDYNAMO_DISABLE": "1", "UNSLOTH_FSDP2_PARAM_DTYPE": "storage"}

# isort: off
from lib.run import disk, provenance
from lib.train import qlora

if not torch.cuda.is_available():  # the package's other modules need Triton; its sharding does not
    import unsloth

    package = types.ModuleType("unsloth.models")
    package.__path__ = [str(Path(unsloth.__file__).with_name("models"))]
    sys.modules.setdefault(package.__name__, package)
from unsloth.models import fsdp2_native, fsdp2_save

# isort: on
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from lib.data import chat
from lib.run import runs
from lib.run.settings import SettingsError
from lib.train import fsdp, resume

TOLERANCE = 0.1  # of 1/N, for the parameter bytes that a rank holds


class ShardedTrainer(resume.ShardedCheckpoints, SFTTrainer):
    """TRL's trainer, with checkpoints to which each rank adds its own shard."""


def shard(model):
    """The model, of which each rank keeps its share; all call its `save_pretrained`, the first writes."""
    if not torch.cuda.is_available():
        if getattr(model, "is_loaded_in_4bit", False):  # as TRL would, when it is sharded already
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        model = fsdp2_native.shard_model(model, fsdp2_native.FSDP2Config.from_env())
    save = model.save_pretrained

    def save_gathered(folder):
        with fsdp2_save.fsdp2_gathered(model, trainable_only=True) as first:
            if first:
                save(folder)

    model.save_pretrained = save_gathered
    return model


def parameter_bytes(model) -> dict[str, int]:
    """Bytes of parameters: `whole` of the model, `held` by this rank (its storages), `replicated` on every rank."""
    held = {}
    for parameter in model.parameters():
        storage = resume.local(parameter).untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
    whole = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    replicated = sum(p.numel() * p.element_size() for p in model.parameters() if not isinstance(p, DTensor))
    return {"whole": whole, "held": sum(held.values()), "replicated": replicated}


class Proof(TrainerCallback):
    """Refuses to train unless each rank holds its share of the parameters; keeps the most it held."""

    def __init__(self, step_timeout_seconds: float):
        self.step_timeout_seconds, self.bytes, self.steps = step_timeout_seconds, {}, 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.bytes, self.steps = parameter_bytes(model), state.max_steps
        ranks, whole, held = dist.get_world_size(), self.bytes["whole"], self.bytes["held"]
        if abs(held * ranks / whole - 1) > TOLERANCE:
            raise qlora.TrainingError(
                f"training would run unsharded: rank {dist.get_rank()} of {ranks} holds {held:,} of "
                f"{whole:,} parameter bytes, not 1/{ranks} of them; start it by 22_train_fsdp's launcher"
            )
        # loading may take minutes, a step may not: from here a silent rank is a lost one
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.step_timeout_seconds))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.bytes["held"] = max(self.bytes["held"], parameter_bytes(model)["held"])


def on_every_rank(value: Any) -> list:
    """Every rank's value, on all of them."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def peak_memory() -> int:
    """The most bytes that this rank held: on its GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return provenance.peak_memory_bytes()["resident"]


def train(plan: dict) -> dict:
    """Train as the plan says, with the other ranks; the metrics, and the processes' part of the manifest."""
    settings = types.SimpleNamespace(**plan["settings"])
    folder, data = Path(plan["folder"]), Path(plan["data"])
    fsdp.join(settings)
    ranks, restarts = dist.get_world_size(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    arguments = on_every_rank(plan["arguments"])[0]  # the notebook runs on the first machine alone
    if torch.cuda.is_available() and not settings.load_in_4bit:  # NF4 is whole until it is cut
        os.environ["UNSLOTH_FSDP2_SHARDED_LOAD"] = "1"  # each rank reads its share only
    dtype = torch.float32 if arguments.get("bf16") is False else None
    model, tokenizer = qlora.load(settings, dtype=dtype)
    model = qlora.attach(model, settings)
    trainable, _ = model.get_nb_trainable_parameters()
    if ranks > 1:
        model = shard(model)
    learnt = (tokenizer, settings.max_length, settings.completion_only_loss)
    rows, left_out = qlora.encode(runs.read_rows(data / "train.jsonl"), *learnt)
    validation_rows, _ = qlora.encode(runs.read_rows(data / "validation.jsonl"), *learnt)

    here = qlora.precision(model.device.type) | qlora.bookkeeping(settings, folder, validation_rows)
    proof = Proof(plan["step_timeout_seconds"])
    trainer = ShardedTrainer(
        model=model, processing_class=tokenizer, args=SFTConfig(**here | arguments),
        train_dataset=qlora.columns(rows), eval_dataset=qlora.columns(validation_rows), callbacks=[proof],
    )  # fmt: skip
    write = disk.Log(folder / "metrics.jsonl")

    def log(step, **metrics):
        held = on_every_rank(peak_memory())
        if dist.get_rank() == 0:
            write(step, of=proof.steps, **metrics, memory_bytes=held)

    resumed, state = plan["resume"] or restarts > 0, state_files()
    if resumed and settings.nodes > 1:  # without a shared disk they may differ: then none is used
        newest = resume.newest_checkpoint(folder / "checkpoints", state)
        resumed = len(set(on_every_rank(resume.step_of(newest)))) == 1
    metrics = qlora.fit(trainer, rows, settings, log, resumed, state)
    return metrics | {
        "left_out": left_out, "trainable_parameters": trainable, "ranks": ranks, "restarts": restarts,
        "backend": dist.get_backend(), "layout": os.environ["UNSLOTH_FSDP2_LAYOUT"], **sizes(proof),
    }  # fmt: skip


def state_files() -> list[str]:
    """A checkpoint's files beside its weights: every rank's shard and random state."""
    ranks = range(dist.get_world_size())
    shards = [resume.shard_name(rank) for rank in ranks]
    if len(ranks) == 1:
        return [*shards, "rng_state.pth"]
    return shards + [f"rng_state_{rank}.pth" for rank in ranks]


def sizes(proof: Proof) -> dict:
    """The bytes that each rank held, of parameters and in all; and the devices, for the manifest."""
    held = on_every_rank(peak_memory())
    peaks = {"resident": sum(held)}
    if torch.cuda.is_available():
        peaks = {f"cuda:{i}": size for i, size in enumerate(held)}
    return {
        "parameter_bytes": proof.bytes["whole"], "parameter_bytes_replicated": proof.bytes["replicated"],
        "parameter_bytes_by_rank": on_every_rank(proof.bytes["held"]), "memory_bytes_by_rank": held,
        "workers": {"device": provenance.device() | {"count": len(held)}, "peak_memory_bytes": peaks},
    }  # fmt: skip


if __name__ == "__main__":
    fsdp.end_with_parent()
    fsdp.work(Path(sys.argv[1]), train, (qlora.TrainingError, SettingsError, chat.EncodingError))
