"""One device: Unsloth loads the base in 4 bit, LoRA goes on it, TRL's SFTTrainer trains it on the completions only."""

# ruff: noqa: E402  (Unsloth must be imported before what it patches)

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel on every CPU machine

# isort: off
from unsloth import FastLanguageModel  # first: it patches the others

# isort: on
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from lib import chat, memory, presets, untrusted

STATE = ("optimizer.pt", "scheduler.pt")  # a checkpoint's files beside the adapter and trainer_state.json


class TrainingError(RuntimeError):
    """Training cannot go on honestly; the message says what to change."""


def load(settings, adapter: Path | None = None, dtype: torch.dtype | None = None):
    """(model, tokenizer) of `settings.base_model`, in NF4 or 16 bit (or `dtype`), with a trained adapter if given."""
    memory.keep_freed()
    if adapter:  # it names its base itself, which is then loaded
        presets.locate(str(untrusted.read_json(adapter / "adapter_config.json").get("base_model_name_or_path")))
    model, _ = FastLanguageModel.from_pretrained(
        presets.locate(str(adapter or settings.base_model)), max_seq_length=settings.max_length,
        load_in_4bit=settings.load_in_4bit, dtype=dtype, trust_remote_code=False, use_safetensors=True,
    )  # fmt: skip
    tokenizer = chat.load_tokenizer(settings)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise TrainingError(f"{settings.base_model}: padding and end token are the same, so an end would not be learnt")
    return model, tokenizer


def attach(model, settings):
    """The model with fresh LoRA matrices, the only weights that are trained."""
    return FastLanguageModel.get_peft_model(
        model, r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=list(settings.target_modules), bias="none", random_state=settings.seed,
        use_gradient_checkpointing="unsloth" if settings.gradient_checkpointing else False,
    )  # fmt: skip


@contextlib.contextmanager
def untuned(model, settings):
    """The base as it was before training: the adapter switched off or, where every weight was trained, loaded anew."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        base, _ = load(settings)
        FastLanguageModel.for_inference(base)
        yield base


def encode(rows: list[dict], tokenizer, max_length: int) -> tuple[Dataset, list[str]]:
    """(tokenised rows, ids of the rows left out because they are longer than `max_length` tokens).

    A cut row would teach an answer without its end, so it is left out and named instead."""
    encoded = {row["id"]: chat.encode(row, tokenizer) for row in rows}
    kept = {id: e for id, e in encoded.items() if len(e["input_ids"]) <= max_length}
    if rows and not kept:
        raise TrainingError(f"no row of {len(rows)} fits max_length = {max_length} tokens: raise it")
    return Dataset.from_list(list(kept.values())), [id for id in encoded if id not in kept]


class Guard(TrainerCallback):
    """Stops at a loss that is no number, and passes each logged step on: `log(step, **metrics)`."""

    def __init__(self, log):
        self.log = log

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        for name in ("loss", "eval_loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise TrainingError(
                    f"{name} is {values[name]} at step {state.global_step}: lower learning_rate "
                    f"(now {args.learning_rate}) or max_grad_norm (now {args.max_grad_norm})"
                )
        if "train_runtime" not in values:
            self.log(state.global_step, **values)


class LiveCurves(TrainerCallback):
    """Redraws a picture of the logged lines in the notebook while it trains: `draw(lines)` gives the figure."""

    def __init__(self, draw, every_seconds: float = 10):
        self.draw, self.every_seconds, self.lines, self.shown, self.last = draw, every_seconds, [], None, 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        from IPython.display import display

        self.lines.append({"step": state.global_step} | (logs or {}))
        if time.monotonic() - self.last < self.every_seconds or "loss" not in (logs or {}):
            return
        self.last = time.monotonic()
        if self.shown is None:
            self.shown = display(self.draw(self.lines), display_id=True)
        elif self.shown:
            self.shown.update(self.draw(self.lines))

    def on_train_end(self, args, state, control, **kwargs):
        if self.shown:
            self.shown.update(self.draw(self.lines))


def train(model, tokenizer, train_rows: Dataset, validation_rows: Dataset | None, settings, folder: Path, log,
          callbacks=(), resume: bool = False, trainer_class=SFTTrainer, state=STATE, **changes) -> dict:  # fmt: skip
    """Train, save the adapter as plain PEFT safetensors to `folder`, and return the metrics.

    Checkpoints lie in `folder/checkpoints` while it trains; with `resume` training goes on from the newest whole one.
    `changes` are further arguments of SFTConfig. With several processes all call this, and the first one writes.
    Returns steps, epochs, train_loss, train_seconds, tokens_per_second (padding left out), and the optimiser that
    was asked for and the one that ran (Unsloth replaces 8-bit optimisers on a CPU)."""
    set_seed(settings.seed)
    device = next(model.parameters()).device.type
    bf16 = torch.cuda.is_bf16_supported() if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
    arguments = SFTConfig(**dict(
        output_dir=str(folder / "checkpoints"), max_length=settings.max_length,
        learning_rate=settings.learning_rate, lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps, num_train_epochs=settings.num_train_epochs, max_steps=settings.max_steps,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps, optim=settings.optim,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm, seed=settings.seed,
        save_steps=settings.save_steps, save_total_limit=2, logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False, train_sampling_strategy="group_by_length",  # little padding in a batch
        eval_strategy="steps" if settings.eval_steps and validation_rows else "no", eval_steps=settings.eval_steps,
        bf16=bf16, fp16=device == "cuda" and not bf16, report_to="none",
    ) | changes)  # fmt: skip
    lengths = [len(ids) for ids in train_rows["input_ids"]]
    trainer = trainer_class(
        model=model, processing_class=tokenizer, train_dataset=train_rows, eval_dataset=validation_rows or None,
        args=arguments, callbacks=[Guard(log), *callbacks],
    )  # fmt: skip
    check_mask(trainer, train_rows)
    checkpoint = newest_checkpoint(folder / "checkpoints", state) if resume else None
    first = arguments.process_index == 0
    if first and not checkpoint:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    elapsed = time.perf_counter() - started
    model.save_pretrained(folder / "checkpoints" / "adapter")
    if first:
        check_adapter(folder / "checkpoints" / "adapter")
        for file in (folder / "checkpoints" / "adapter").iterdir():  # whole or not at all, also if we are killed here
            os.replace(file, folder / file.name)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    steps_here = trainer.state.global_step - (int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    tokens = sum(lengths) * trainer.state.epoch * steps_here / trainer.state.global_step  # last batches are short
    return {
        "steps": trainer.state.global_step, "epochs": trainer.state.epoch, "train_loss": result.training_loss,
        "train_seconds": elapsed, "tokens_per_second": tokens / elapsed, "rows": len(train_rows),
        "bf16": arguments.bf16, "optim_asked": settings.optim, "optim_ran": type(trainer.optimizer.optimizer).__name__,
        "resumed_from": checkpoint.name if checkpoint else None,
    }  # fmt: skip


def check_mask(trainer, train_rows: Dataset) -> None:
    """The batch that the trainer will really see supervises what the rows say, no token more."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(min(4, len(train_rows)))])
    seen = int((batch["labels"] != chat.IGNORED).sum())
    meant = sum(sum(label != chat.IGNORED for label in train_rows[i]["labels"]) for i in range(min(4, len(train_rows))))
    if seen != meant or not seen:
        raise TrainingError(f"the trainer supervises {seen} tokens of the first rows, but their answers have {meant}")


def check_adapter(folder: Path) -> None:
    """The saved adapter holds finite matrices, and training moved them (LoRA's B starts at zero)."""
    weights = load_file(folder / "adapter_model.safetensors")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise TrainingError("the adapter holds numbers that are not finite: lower learning_rate")
    if not any(tensor.any() for name, tensor in weights.items() if "lora_B" in name):
        raise TrainingError("training did not change the adapter (every lora_B is zero): raise learning_rate")


def newest_checkpoint(folder: Path, state: Iterable[str] = STATE) -> Path | None:
    """The newest checkpoint whose files load (a killed process can leave a torn one); `state` names the optimiser's."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            load_file(path / "adapter_model.safetensors")
            json.loads((path / "trainer_state.json").read_text())
            for name in state:
                load_file(path / name) if name.endswith("safetensors") else torch.load(path / name, weights_only=True)
            return path
        except Exception as error:  # whatever is torn about it, an older one will do; say so
            print(f"{path.name} does not load ({type(error).__name__}): trying an older one")
    return None
