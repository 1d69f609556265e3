"""What a training is watched for: a finding stops it, or warns; and how to end it after a step."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from lib.data import chat
from lib.run import disk, progress
from lib.run.memory import TrainingError
from lib.train import resume

EXPLODED = 100  # times the median of the gradient norms before
NORMS = 10  # gradient norms that such a median needs
RISES = 3  # held-out losses in a row, each above the one before


STEPS = 20  # answers that show no difference for so many steps in a row teach nothing
LIMIT = 0.9  # share of answers that are cut off at their longest
CERTAIN = 0.01  # entropy of a token, nats: below, all answers to a question are one


class Stop:
    """Within it a first Ctrl-C or SIGTERM only sets `asked`, for a loop to end after its step."""

    def __init__(self):
        self.asked, self.before = False, {}

    def __enter__(self):
        numbers = [signal.SIGINT]
        if not dist.is_initialized():  # torchrun ends its ranks by SIGTERM, and means it
            numbers.append(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self.before = {number: signal.signal(number, self.ask) for number in numbers}
        return self

    def ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def stopped(step: int) -> KeyboardInterrupt:
    """What a training raises that was asked to stop, when its checkpoint is written."""
    remedy = "run all cells again to go on from the newest checkpoint"
    return KeyboardInterrupt(f"stopped after step {step}: {remedy}")


class Guard(TrainerCallback, ExportableState):
    """Watches TRL's trainer, says how far it is, and ends it at a step if `stop` was asked.

    `log(step, **metrics)` gets each logged line; `rows` are the tokenised training rows with their ids.
    A finding raises TrainingError or, where `warn` has its name (settings.GUARDS), is printed and kept in
    `warnings`. The batch that it was found in is written to failed_batch.json in the stage's folder.

    What a checkpoint leaves out goes into it as this callback's state, so that what follows a resumption
    is logged and found as without it."""

    def __init__(self, log: Callable, rows, warn=()):
        self.log, self.rows, self.warn, self.stop, self.leaving = log, rows, warn, Stop(), False
        self.batches = []  # (input_ids, labels, loss) of each pass since the last logged line
        self.norms, self.held_out, self.warnings = [], [], {}
        self.before = []  # totals of the weights that training began with

    def watch(self, trainer) -> None:
        """Become its last callback (the others are done when this one stops it), and keep each batch and
        its loss, which callbacks are not shown; a GPU need not wait to be asked for them."""
        trainer.add_callback(self)
        step = trainer.training_step

        def training_step(model, inputs, *args, **kwargs):
            batch = ids_and_labels(inputs)
            loss = step(model, inputs, *args, **kwargs)
            self.batches.append((*batch, loss))
            return loss

        trainer.training_step = training_step
        self.trainer = trainer

    def state(self):
        """For a checkpoint: what was found so far, and what is not logged yet."""
        kept = {name: getattr(self, name) for name in ("norms", "held_out", "warnings", "before")}
        return {"args": {}, "attributes": kept | {"not_logged": resume.not_logged(self.trainer)}}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.before = totals(self.trainer.model)
        else:
            own = state.stateful_callbacks[type(self).__name__]["attributes"]
            resume.go_on(self.trainer, state, **own["not_logged"])

    def on_step_end(self, args, state, control, **kwargs):
        progress.tell(state.global_step, state.max_steps)
        self.leaving = on_any_rank(self.stop.asked) and state.global_step < state.max_steps
        if self.leaving:
            control.should_save = True
        if state.global_step == state.max_steps:  # also where the last interval is not full
            control.should_log = True

    def on_save(self, args, state, control, **kwargs):
        if self.leaving:
            raise stopped(state.global_step)

    def on_log(self, args, state, control, logs=None, processing_class=None, **kwargs):
        values = {name: float(x) for name, x in logs.items() if isinstance(x, int | float)}
        if "train_runtime" in values:
            return
        for name, message, remedy, batches in self.findings(state.global_step, values, args):
            if name in self.warnings:
                continue
            if batches:
                message += f" (its batch is in {self.keep(name, batches, args, processing_class)})"
            self.act(name, f"{message}: {remedy}")
        if "loss" in values:
            self.batches.clear()
            progress.tell(state.global_step, state.max_steps, loss=values["loss"])
        self.log(state.global_step, **values)

    def findings(self, step: int, values: dict[str, float], args) -> Iterator[tuple[str, str, str, list]]:
        """(guard, what was found, what to do, the batches it was found in) for one logged line."""
        rate, clip = args.learning_rate, args.max_grad_norm
        slower = f"lower learning_rate (now {rate}) or max_grad_norm (now {clip})"
        last_step = self.batches[-args.gradient_accumulation_steps :]
        for name in ("loss", "eval_loss", "grad_norm"):
            skipped = name == "grad_norm" and args.fp16  # which takes no such step
            if skipped or math.isfinite(values.get(name, 0.0)):
                continue
            suspects = [batch for batch in self.batches if not batch[2].isfinite()][:1]
            if not suspects and name != "eval_loss":  # no batch here has held-out rows
                suspects = last_step
            yield "loss", f"{name} is {values[name]} at step {step}", slower, suspects
        for batch in self.batches:
            if not (batch[1] != chat.IGNORED).any(dim=1).all():
                what = f"a row without a supervised token was trained on at step {step}, or shortly before"
                yield "supervised_tokens", what, "leave the row out, or raise max_length", [batch]
        norm = values.get("grad_norm", math.nan)
        if math.isfinite(norm):
            usual = median(self.norms or [norm])
            if len(self.norms) >= NORMS and norm > EXPLODED * usual:
                what = f"the gradient norm is {norm:.3g} at step {step}, usually it is {usual:.3g}"
                yield "grad_norm", what, slower, last_step
            self.norms.append(norm)
        if "eval_loss" in values:
            self.held_out.append(values["eval_loss"])
            last = self.held_out[-RISES - 1 :]
            if len(last) > RISES and all(before < after for before, after in zip(last, last[1:])):
                rise = f"{last[0]:.4f} to {last[-1]:.4f}"
                what = f"the held-out loss rose {RISES} times in a row by step {step}, {rise}"
                epochs, steps = args.num_train_epochs, args.max_steps
                fewer = f"lower num_train_epochs (now {epochs:g}) or max_steps (now {steps})"
                yield "eval_loss", what, f"{fewer}; it overfits", []

    def act(self, name: str, message: str) -> None:
        """Stop, or warn: once, and for the record."""
        if name not in self.warn:
            raise TrainingError(message)
        self.warnings[name] = message
        print(f"warning: {message}", flush=True)

    def keep(self, name: str, batches: list, args, tokenizer) -> str:
        """Write the batches' rows as {"id", "text", "supervised_tokens"} into a file; its name."""
        known = {tuple(row["input_ids"]): row["id"] for row in self.rows}
        kept = []
        for batch_ids, batch_labels, _ in batches:
            for ids, labels in zip(batch_ids, batch_labels):
                real = ids != tokenizer.pad_token_id
                tokens, learnt = tuple(ids[real].tolist()), labels[real] != chat.IGNORED
                for part in parts(tokens, known):
                    row = {"id": known.get(tokens[part]), "text": tokenizer.decode(tokens[part])}
                    kept.append(row | {"supervised_tokens": int(learnt[part].sum())})
        file = Path(args.output_dir).with_name("failed_batch.json")
        if args.world_size > 1:
            file = file.with_stem(f"failed_batch-rank{args.process_index}")
        disk.write_atomically(file, [disk.to_json({"guard": name, "rows": kept}, indent=2)])
        return f"{file.parent.name}/{file.name}"

    def check_adapter(self, folder: Path) -> None:
        """The weights in `folder` are finite, and training moved those that it was to train."""
        files = [load_file(file) for file in folder.glob("*.safetensors")]
        finite = [tensor.isfinite().all() for weights in files for tensor in weights.values()]
        if not finite or not all(finite):
            what = "the adapter holds numbers that are not finite"
            self.act("adapter", f"{what}: lower learning_rate")
        elif totals(self.trainer.model) == self.before or (self.norms and not any(self.norms)):
            what = "training did not change the adapter (every trained weight is as before, or only decayed)"
            self.act("adapter", f"{what}: raise learning_rate")


class RewardGuard(Guard):
    """Watches GRPO, whose batches are sampled: there is no row to blame, but a model that collapses.

    A finding must hold for STEPS steps in a row."""

    def __init__(self, log: Callable, warn=()):
        super().__init__(log, [], warn)
        self.since = {}  # guard: the step since which its condition holds

    def watch(self, trainer) -> None:
        trainer.add_callback(self)
        self.trainer = trainer

    def state(self):
        kept = super().state()
        kept["attributes"]["since"] = self.since
        return kept

    def findings(self, step: int, values: dict[str, float], args) -> Iterator[tuple[str, str, str, list]]:
        yield from super().findings(step, values, args)
        if "groups/same reward" not in values:
            return
        holds = {
            "reward": (
                values["groups/same reward"] == 1, "the answers to each question all earned the same",
                "start from a model that is sometimes right (continue_from), raise rollouts.temperature or "
                "rollouts.num_generations, or choose harder or easier questions",
            ),
            "length": (
                values["completions/clipped_ratio"] > LIMIT, "nearly all answers were cut off at their longest",
                "raise rollouts.max_completion_length, or rewards.shape and rewards.length",
            ),
            "entropy": (
                values.get("entropy", math.inf) < CERTAIN,  # on a GPU Unsloth logs none
                f"a token's entropy was below {CERTAIN} nats: all answers are alike",
                "lower learning_rate or num_train_epochs, or raise rollouts.temperature or grpo.beta",
            ),
        }  # fmt: skip
        for name, (held, what, remedy) in holds.items():
            if not held:
                self.since.pop(name, None)
            elif step - self.since.setdefault(name, step - args.logging_steps) >= STEPS:
                yield name, f"for {STEPS} steps, by step {step}, {what}", remedy, []


def parts(row: tuple[int, ...], known) -> list[slice]:
    """Where the `known` rows lie that were packed into one; the rest is one part."""
    slices, begin, lengths = [], 0, sorted({len(ids) for ids in known}, reverse=True)
    while begin < len(row):
        ends = (begin + length for length in lengths if row[begin : begin + length] in known)
        slices.append(slice(begin, next(ends, len(row))))
        begin = slices[-1].stop
    return slices


def ids_and_labels(inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, labels) of a batch. Of preference pairs, which come as all chosen rows and then all
    rejected ones, a row is both, one after the other."""
    ids = inputs["input_ids"]
    if "labels" in inputs:
        return ids, inputs["labels"]  # (B, T)
    labels = ids.masked_fill(inputs["completion_mask"] == 0, chat.IGNORED)  # (2 B, T)
    return torch.cat(ids.chunk(2), dim=1), torch.cat(labels.chunk(2), dim=1)  # (B, 2 T)


def totals(model) -> list[float]:
    """Each trained parameter's sum, exact enough to show any change; if sharded, of this rank's part."""
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    return [float(resume.local(weight).sum(dtype=torch.float64)) for weight in trained]


def on_any_rank(asked: bool) -> bool:
    """Whether any of the processes that train together was asked: they all end after the same step."""
    if not dist.is_initialized():
        return asked
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(float(asked), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
