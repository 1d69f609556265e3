"""What torchrun starts on each device: Unsloth's FSDP2 shards the model, each rank proves it, `qlora.train` trains."""

# ruff: noqa: E402  (Unsloth must be imported before what it patches, and its settings be there before it)

import json
import os
import sys
import types
from datetime import timedelta
from pathlib import Path

import torch

# Shard even a model that would fit on each device (else Unsloth replicates it), and step with torch's AdamW, whose
# state is sharded with the weights.
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl import SFTTrainer

from lib.data import chat
from lib.run import memory, runs
from lib.run.settings import SettingsError
from lib.train import fsdp

TOLERANCE = 0.1  # of 1/N, for the parameter bytes that a rank holds


class ShardedTrainer(SFTTrainer):
    """TRL's trainer, with checkpoints to which each rank adds its own shard, as safetensors."""

    def save_model(self, output_dir=None, _internal_call=False):
        self.model.save_pretrained(output_dir)  # the adapter only

    def _save_optimizer_and_scheduler(self, output_dir):
        state = self.optimizer.optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": local(t).contiguous() for i, values in state.items() for name, t in values.items()}
        scheduler = self.lr_scheduler.state_dict()
        numbers = {name: scheduler[name] for name in ("last_epoch", "_step_count", "_last_lr")}
        numbers = {"scheduler": json.dumps(numbers), "loss": json.dumps(float(self._tr_loss))}  # not logged yet
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the first rank's machine has it, another may not
        save_file(tensors, Path(output_dir) / state_name(), numbers)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if not checkpoint:
            return
        optimizer, state = self.optimizer.optimizer, {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with safe_open(Path(checkpoint) / state_name(), "pt") as file:
            for key in file.keys():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = like(file.get_tensor(key), parameters[int(index)])
            scheduler, self.own_loss = (json.loads(file.metadata()[name]) for name in ("scheduler", "loss"))
        self.lr_scheduler.load_state_dict(self.lr_scheduler.state_dict() | scheduler)
        for group, rate in zip(optimizer.param_groups, scheduler["_last_lr"], strict=True):
            group["lr"] = rate
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def shard(model):
    """The model, of which each rank keeps its share; all ranks call its `save_pretrained`, and the first writes."""
    if not torch.cuda.is_available():
        if getattr(model, "is_loaded_in_4bit", False):  # as TRL would do later, when the weights are sharded already
            for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                parameter.data = parameter.data.to(torch.bfloat16)
        model = fsdp2_native.shard_model(model, fsdp2_native.FSDP2Config.from_env())
    save = model.save_pretrained

    def save_gathered(folder):
        with fsdp2_save.fsdp2_gathered(model, trainable_only=True) as first:
            if first:
                save(folder)

    model.save_pretrained = save_gathered
    return model


def state_name(rank: int | None = None) -> str:
    return f"optimizer-{dist.get_rank() if rank is None else rank}-of-{dist.get_world_size()}.safetensors"


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A rank's part of an optimiser's state, sharded as its parameter is; a count of steps stays as it is."""
    if not isinstance(parameter, DTensor) or part.ndim == 0:
        return part
    return DTensor.from_local(part.to(parameter.to_local().device), parameter.device_mesh, parameter.placements,
                              shape=parameter.shape, stride=parameter.stride())  # fmt: skip


def parameter_bytes(model) -> dict[str, int]:
    """Bytes of parameters: `whole` of the model, `held` by this rank (its storages), `replicated` on every rank."""
    held = {}
    for parameter in model.parameters():
        storage = local(parameter).untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
    whole = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    replicated = sum(p.numel() * p.element_size() for p in model.parameters() if not isinstance(p, DTensor))
    return {"whole": whole, "held": sum(held.values()), "replicated": replicated}


class Proof(TrainerCallback):
    """Refuses to train unless each rank holds its share of the parameters; keeps the most that it held."""

    def __init__(self, step_timeout_seconds: float):
        self.step_timeout_seconds, self.bytes, self.steps = step_timeout_seconds, {}, 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.bytes, self.steps = parameter_bytes(model), state.max_steps
        ranks, whole = dist.get_world_size(), self.bytes["whole"]
        if abs(self.bytes["held"] * ranks / whole - 1) > TOLERANCE:
            raise qlora.TrainingError(
                f"training would run unsharded: rank {dist.get_rank()} of {ranks} holds {self.bytes['held']:,} of "
                f"{whole:,} parameter bytes, not 1/{ranks} of them; start it by 22_train_fsdp's launcher"
            )
        # loading may take minutes, a step may not: from here a silent rank is a lost one
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.step_timeout_seconds))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.bytes["held"] = max(self.bytes["held"], parameter_bytes(model)["held"])


def on_every_rank(number: float) -> list[int]:
    """One whole number of each rank, on all of them."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    numbers = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=device)
    dist.all_gather_into_tensor(numbers, torch.tensor([number], dtype=torch.float64, device=device))
    return [int(n) for n in numbers.tolist()]


def peak_memory() -> int:
    """The most bytes that this rank held: on its GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return provenance.peak_memory_bytes()["resident"]


def train(plan: dict) -> dict:
    """Train as the plan says, with the other ranks; the metrics, and what the manifest says of these processes."""
    settings, folder = types.SimpleNamespace(**plan["settings"]), Path(plan["folder"])
    fsdp.join(settings)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if torch.cuda.is_available() and not settings.load_in_4bit:  # NF4 is whole on every rank until it is cut
        os.environ["UNSLOTH_FSDP2_SHARDED_LOAD"] = "1"  # each rank reads its share only
    single = torch.float32 if plan["arguments"].get("bf16") is False else None
    model, tokenizer = qlora.load(settings, dtype=single)
    model = qlora.attach(model, settings)
    trainable, _ = model.get_nb_trainable_parameters()
    model = shard(model) if ranks > 1 else model
    data = Path(plan["data"])
    learnt = (tokenizer, settings.max_length, settings.completion_only_loss)
    rows, left_out = qlora.encode(runs.read_rows(data / "train.jsonl"), *learnt)
    validation_rows, _ = qlora.encode(runs.read_rows(data / "validation.jsonl"), *learnt)

    write = disk.Log(folder / "metrics.jsonl")

    def log(step, **metrics):
        held = on_every_rank(peak_memory())
        if rank == 0:
            write(step, of=proof.steps, **metrics, memory_bytes=held)

    proof = Proof(plan["step_timeout_seconds"])
    states = [state_name(rank) for rank in range(ranks)]
    states += [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    resume = plan["resume"] or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if resume and settings.nodes > 1:  # without a shared disk they may hold different checkpoints: then none is used
        newest = qlora.newest_checkpoint(folder / "checkpoints", states)
        resume = len(set(on_every_rank(int(newest.name.split("-")[1]) if newest else 0))) == 1
    with memory.memory_told("train", settings):  # by what the user set: a rank knows only its share
        metrics = qlora.train(
            model, tokenizer, rows, validation_rows, fsdp.share(settings), folder, log, [proof], resume, ShardedTrainer,
            states, **plan["arguments"],
        )  # fmt: skip
    held = on_every_rank(peak_memory())
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    peaks = {f"cuda:{i}": size for i, size in enumerate(held)} if kind == "cuda" else {"resident": sum(held)}
    return metrics | {
        "left_out": left_out, "trainable_parameters": trainable,
        "ranks": ranks, "backend": dist.get_backend(), "layout": os.environ["UNSLOTH_FSDP2_LAYOUT"],
        "restarts": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
        "parameter_bytes": proof.bytes["whole"], "parameter_bytes_replicated": proof.bytes["replicated"],
        "parameter_bytes_by_rank": on_every_rank(proof.bytes["held"]), "memory_bytes_by_rank": held,
        "workers": {"device": provenance.device() | {"count": ranks}, "peak_memory_bytes": peaks},
    }  # fmt: skip


if __name__ == "__main__":
    fsdp.end_with_parent()
    fsdp.work(Path(sys.argv[1]), train, (qlora.TrainingError, SettingsError, chat.EncodingError))
