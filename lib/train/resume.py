"""What makes a resumption exact to the bit: hooks into private parts of TRL and transformers, and why."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import get_length_grouped_indices, safe_globals

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")  # of a checkpoint, beside its weights
SUMS = ("_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens")


class Order(torch.utils.data.Sampler):
    """Rows of like length together (little padding), in an order that depends on seed and epoch alone:
    the same for any number of ranks, on each of them, and after a resumption. An epoch's last step is
    filled up with its first rows."""

    def __init__(self, trainer, rows: int):
        self.trainer, self.rows = trainer, rows
        self.lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.rows) * self.rows

    def __iter__(self):
        epoch = int(self.trainer.state.epoch or 0)
        key = np.random.default_rng([self.trainer.args.seed, epoch]).integers(2**62)
        generator = torch.Generator().manual_seed(int(key))
        order = get_length_grouped_indices(self.lengths, self.rows, generator=generator)
        return iter((order * self.rows)[: len(self)])


def make_exact(trainer) -> None:
    """After a resumption let a trainer take the rows, and compute in the types, of one that never ended: `Order`."""
    args = trainer.args
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    # transformers' own sampler would draw the order of a later epoch anew
    trainer._get_train_sampler = lambda *_: Order(trainer, rows)
    keep_types(trainer)


def keep_types(trainer) -> None:
    """After a resumption let a trainer compute in the types of one that never ended."""
    types = {name: parameter.dtype for name, parameter in trainer.model.named_parameters()}
    load = trainer._load_from_checkpoint

    def load_as_it_was(*args, **kwargs):  # PEFT reads a checkpoint's adapter back in single precision
        load(*args, **kwargs)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(types[name])

    trainer._load_from_checkpoint = load_as_it_was


def not_logged(trainer) -> dict:
    """What transformers and TRL added up since the last logged line, which is in no checkpoint of theirs."""
    values = vars(trainer)
    return {
        "sums": {name: values[name] for name in SUMS if name in values},
        "loss": float(values.get("_tr_loss", 0)),  # none before training begins
        "metrics": dict(values.get("_metrics", {}).get("train", {})),
    }


def go_on(trainer, state, sums: dict, loss: float, metrics: dict) -> None:
    """After a resumption: the trainer gets back what was `not_logged`, and each callback its state."""
    for callback in trainer.callback_handler.callbacks:  # transformers would make them anew instead
        if isinstance(callback, ExportableState):
            vars(callback).update(state.stateful_callbacks[type(callback).__name__]["attributes"])
    vars(trainer).update(sums)
    trainer._tr_loss += getattr(trainer, "own_loss", loss)  # of several processes each has its own
    if metrics:
        trainer._metrics["train"].update(metrics)


def save_one_adapter(model) -> None:
    """Keep a reference's adapter out of checkpoints: it would lie in a subfolder, and where there is one
    transformers restores those alone."""
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=["default"])


def newest_checkpoint(folder: Path, state: Iterable[str] = STATE) -> Path | None:
    """The newest checkpoint whose files load (a killed process can leave a torn one); `state` names those
    beside the weights. Other folders than `checkpoint-<step>`, as a synchroniser's copies, are none.

    Not one that was written when training ended: transformers would go one step beyond it."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    for step in sorted([int(name) for name in names if name.isdecimal()], reverse=True):
        path = folder / f"checkpoint-{step}"
        try:
            if not _ended(path, state):
                return path
        except Exception as error:  # whatever is torn about it, an older one will do
            print(f"{path.name} does not load ({type(error).__name__}): trying an older one")
    return None


def _ended(checkpoint: Path, state: Iterable[str]) -> bool:
    """Whether training had ended at this checkpoint; an error where one of its files does not load."""
    weights = [*checkpoint.glob("model*.safetensors")] or [checkpoint / "adapter_model.safetensors"]
    scaler = checkpoint.glob("scaler.pt")  # of fp16 alone
    for file in [*weights, *(checkpoint / name for name in state), *scaler]:
        if file.suffix == ".safetensors":
            load_file(file)
        else:
            with safe_globals():  # numpy's state, as transformers itself reads it
                torch.load(file, weights_only=True)
    callbacks = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
    return callbacks["TrainerControl"]["args"]["should_training_stop"]


def step_of(checkpoint: Path | str | None) -> int:
    """The step that a checkpoint was written at; 0 without one."""
    return int(str(checkpoint).rpartition("-")[2]) if checkpoint else 0


class ShardedCheckpoints:
    """A trainer's checkpoints where weights are sharded: each rank adds its own part of the optimiser's
    state, as safetensors. transformers would write the first rank's part alone, as a pickle."""

    def save_model(self, output_dir=None, _internal_call=False):
        self.model.save_pretrained(output_dir)  # the adapter only

    def _save_optimizer_and_scheduler(self, output_dir):
        tensors = {}
        for index, values in self.optimizer.optimizer.state_dict()["state"].items():
            for name, tensor in values.items():
                tensors[f"{index}.{name}"] = local(tensor).contiguous()
        scheduler = self.lr_scheduler.state_dict()
        numbers = {name: scheduler[name] for name in ("last_epoch", "_step_count", "_last_lr")}
        numbers["loss"] = float(self._tr_loss)  # not logged yet
        file = Path(output_dir) / shard_name(dist.get_rank())
        file.parent.mkdir(parents=True, exist_ok=True)  # another machine than the first may not have it
        save_file(tensors, file, {"numbers": json.dumps(numbers)})

    def _load_optimizer_and_scheduler(self, checkpoint):
        if not checkpoint:
            return
        optimizer, state = self.optimizer.optimizer, {}
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        with safe_open(Path(checkpoint) / shard_name(dist.get_rank()), "pt") as file:
            for key in file.keys():
                index, name = key.split(".")
                part = _like(file.get_tensor(key), parameters[int(index)])
                state.setdefault(int(index), {})[name] = part
            numbers = json.loads(file.metadata()["numbers"])
        self.own_loss = numbers.pop("loss")
        self.lr_scheduler.load_state_dict(self.lr_scheduler.state_dict() | numbers)
        for group, rate in zip(optimizer.param_groups, numbers["_last_lr"], strict=True):
            group["lr"] = rate
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def shard_name(rank: int) -> str:
    return f"optimizer-{rank}-of-{dist.get_world_size()}.safetensors"


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A rank's part of an optimiser's state, sharded as its parameter is; a count of steps is not."""
    if not isinstance(parameter, DTensor) or part.ndim == 0:
        return part
    return DTensor.from_local(
        part.to(parameter.to_local().device), parameter.device_mesh, parameter.placements,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
