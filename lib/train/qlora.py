"""One device: Unsloth loads the base, LoRA (or what the settings choose) goes on it, TRL's SFT or DPOTrainer trains."""

# ruff: noqa: E402  (Unsloth must be imported before what it patches)

import contextlib
import gc
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel on every CPU machine
gc.disable()  # what is imported is no garbage; looking through it time and again takes a third of the imports' time

# isort: off
from unsloth import FastLanguageModel  # first: it patches the others

# isort: on
import torch
from datasets import Dataset
from peft import IA3Config, PeftModel, PrefixTuningConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.trainer_pt_utils import safe_globals
from trl import DPOConfig, SFTConfig, SFTTrainer
from unsloth_zoo.pad_token import fix_pad_token

from lib.data import chat
from lib.judge import evaluate
from lib.run import memory, runs, untrusted
from lib.run.memory import TrainingError
from lib.run.paths import locate
from lib.train import guards, preference, tracking
from lib.train.resume import Order

gc.freeze()
gc.enable()

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")  # a checkpoint's files beside weights and trainer_state.json
SHAPE = (  # what an adapter that goes on must have been made with
    "base_model", "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora",
    "num_virtual_tokens", "full_finetuning",
)  # fmt: skip


def load(settings, adapter: Path | None = None, dtype: torch.dtype | None = None):
    """(model, tokenizer) of `settings.base_model`, in 4, 8 or 16 bit (or `dtype`), with a trained adapter if given."""
    memory.keep_freed()
    start, prefix = adapter or settings.base_model, False
    if adapter and (adapter / "adapter_config.json").exists():  # it names its base itself, which is then loaded
        config = untrusted.read_json(adapter / "adapter_config.json")
        locate(str(config.get("base_model_name_or_path")))
        if prefix := config.get("peft_type") == "PREFIX_TUNING":
            start = settings.base_model  # as Unsloth would load it to be trained, which PEFT refuses for a prefix
    with memory.memory_told("load", settings):
        model, _ = FastLanguageModel.from_pretrained(
            locate(str(start)), max_seq_length=settings.max_length, load_in_4bit=settings.load_in_4bit,
            load_in_8bit=settings.load_in_8bit, dtype=dtype, trust_remote_code=False, use_safetensors=True,
            use_gradient_checkpointing=_checkpointing(settings),
            full_finetuning=getattr(settings, "full_finetuning", False),  # of training: others do not have it
        )  # fmt: skip
        if prefix:
            model = PeftModel.from_pretrained(model, locate(str(adapter)))
    tokenizer = chat.load_tokenizer(settings)
    fix_pad_token(tokenizer, model)  # some bases have none, or pad with their end token
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise TrainingError(f"{settings.base_model}: padding and end token are the same, so an end would not be learnt")
    return model, tokenizer


def attach(model, settings):
    """The model with fresh LoRA matrices (or another adapter), the only weights that are trained.

    A model that has an earlier run's adapter keeps it; where every weight is trained there is none."""
    if settings.full_finetuning or isinstance(model, PeftModel):
        return model
    modules = list(settings.target_modules)
    set_seed(settings.seed)  # a prefix starts at random
    if settings.peft_type == "ia3":
        inputs = [name for name in modules if name == "down_proj"]  # its input is scaled, of the others the output
        config = IA3Config(task_type="CAUSAL_LM", target_modules=modules, feedforward_modules=inputs)
        return get_peft_model(model, config)
    if settings.peft_type == "prefix_tuning":
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=settings.num_virtual_tokens)
        return get_peft_model(model, config)
    model = FastLanguageModel.get_peft_model(
        model, r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=modules, bias="none", random_state=settings.seed, use_rslora=settings.use_rslora,
        use_dora=settings.use_dora, use_gradient_checkpointing=_checkpointing(settings),
    )  # fmt: skip
    adapter = model.peft_config["default"]
    adapter.target_modules = sorted(adapter.target_modules)  # a set, which each process would write in its own order
    return model


def _checkpointing(settings) -> str | bool:
    return "unsloth" if getattr(settings, "gradient_checkpointing", False) else False


def earlier(stage: runs.Stage) -> Path | None:
    """The adapter of the run that `continue_from` names, remembered as an input; RunError where its shape differs."""
    name = stage.settings.continue_from
    if name is None:
        return None
    folder = stage.input("train", run=name)
    then = runs.read(stage.run_folder.with_name(name), "train")["settings"]
    now = stage.request.resolved.of_stage("train")
    if now["trainer"] == "dpo":  # which trains without dropout, whatever the adapter was made with
        then = then | {"lora_dropout": now["lora_dropout"]}
    if other := [f"{f} = {then.get(f)!r}, not {now[f]!r}" for f in SHAPE if then.get(f) != now[f]]:
        raise runs.RunError(f"continue_from = {name!r}: that run has {', '.join(other)}; use its values, or start anew")
    return folder


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


def encode(
    rows: list[dict], tokenizer, max_length: int, completion_only_loss: bool = True
) -> tuple[Dataset, list[str]]:  # fmt: skip
    """(tokenised rows, ids of the rows left out because they are longer than `max_length` tokens).

    A cut row would teach an answer without its end, so it is left out and named instead."""
    encoded = {row["id"]: chat.encode(row, tokenizer) for row in rows}
    if not completion_only_loss:
        encoded = {id: e | {"labels": e["input_ids"]} for id, e in encoded.items()}
    kept = {id: e for id, e in encoded.items() if len(e["input_ids"]) <= max_length}
    if rows and not kept:
        raise TrainingError(f"no row of {len(rows)} fits max_length = {max_length} tokens: raise it")
    return Dataset.from_list([{"id": id} | e for id, e in kept.items()]), [id for id in encoded if id not in kept]


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


class Accuracy(TrainerCallback):
    """Asks the same held-out questions before training and at each checkpoint: lines of `accuracy` for `log`.

    Greedy and with the calculator, as 30_evaluate asks first; an answer may be as long as the longest row. It asks
    before the checkpoint is written: what goes on from there has all lines of its step."""

    def __init__(self, tokenizer, rows: list[dict], settings, log):
        self.tokenizer, self.rows, self.log = tokenizer, [row for row in rows if row["gold"]], log
        self.rows = self.rows[: settings.accuracy_steps]
        self.settings = SimpleNamespace(
            max_new_tokens=settings.max_length, eval_batch_size=settings.per_device_train_batch_size,
            gradient_checkpointing=settings.gradient_checkpointing,
        )  # fmt: skip
        if len(self.rows) < settings.accuracy_steps:
            raise TrainingError(f"accuracy_steps = {settings.accuracy_steps}: only {len(self.rows)} held-out rows have "
                                f"a gold to grade by; lower it, or raise validation_rows")  # fmt: skip

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.ask(model, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save:
            self.ask(model, state)

    def ask(self, model, state):
        FastLanguageModel.for_inference(model)
        results = evaluate.ask(model, self.tokenizer, self.rows, self.settings, True, {"model": "held-out questions"})
        FastLanguageModel.for_training(model, use_gradient_checkpointing=_checkpointing(self.settings))
        right = sum(result["correct"] for result in results)
        self.log(state.global_step, accuracy=right / len(results), questions=len(results), epoch=state.epoch or 0)


def precision(device: str) -> dict[str, bool]:
    """bf16 where the device computes in it, else fp16 on a GPU (a T4 only emulates bf16), else neither."""
    cuda = device == "cuda"
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else torch.cpu._is_avx512_bf16_supported()
    return {"bf16": fast, "fp16": cuda and not fast}


def train(model, tokenizer, train_rows: Dataset, validation_rows: Dataset | None, settings, folder: Path, log,
          callbacks=(), resume: bool = False, trainer_class=SFTTrainer, state=STATE, **changes) -> dict:  # fmt: skip
    """Train, save the adapter as plain PEFT safetensors to `folder` (a model of which every weight was trained, whole
    and with its tokenizer), and return the metrics.

    Checkpoints lie in `folder/checkpoints` until the stage is complete; `resume` goes on from the newest whole one.
    `changes` are further arguments of SFTConfig (of DPOConfig, where `preference.encode` made the rows). With several
    processes all call this, and the first one writes. Returns steps, epochs, train_loss, train_seconds,
    tokens_per_second (padding left out), and what was asked for and what ran (on a CPU Unsloth replaces 8-bit
    optimisers and 8-bit weights, and does not pack)."""
    set_seed(settings.seed)
    device, patience = next(model.parameters()).device.type, settings.early_stopping_patience
    if settings.trainer == "dpo":
        config, trainer_class = DPOConfig, preference.PairTrainer
        own = {"beta": settings.beta, "loss_type": settings.loss_type, "remove_unused_columns": False}
    else:
        config, own = SFTConfig, {"packing": settings.packing}
    arguments = config(**dict(
        output_dir=str(folder / "checkpoints"), max_length=settings.max_length,
        learning_rate=settings.learning_rate, lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps, num_train_epochs=settings.num_train_epochs, max_steps=settings.max_steps,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps, optim=settings.optim,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm, seed=settings.seed,
        gradient_checkpointing=settings.gradient_checkpointing,  # TRL's own default is True
        save_steps=settings.save_steps, save_total_limit=2, logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if settings.eval_steps and validation_rows else "no", eval_steps=settings.eval_steps,
        load_best_model_at_end=bool(patience), metric_for_best_model="eval_loss" if patience else None,
        neftune_noise_alpha=settings.neftune_noise_alpha, **tracking.start(settings.report_to, folder),
        **precision(device),
    ) | own | changes)  # fmt: skip
    if patience:
        callbacks = [*callbacks, EarlyStoppingCallback(patience)]
    lengths = [len(ids) for ids in train_rows["input_ids"]]
    guard = guards.Guard(log, train_rows, settings.guard_warnings)
    trainer = trainer_class(
        model=model, processing_class=tokenizer, train_dataset=train_rows.remove_columns("id"),
        eval_dataset=validation_rows.remove_columns("id") if validation_rows else None,
        args=arguments, callbacks=[*callbacks, guard],
    )  # fmt: skip
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    trainer._get_train_sampler = lambda *_: Order(trainer, rows)
    guard.watch(trainer)
    keep_types(trainer)
    check_mask(trainer, train_rows)
    if settings.packing and not trainer.args.packing and device == "cuda":
        raise TrainingError("packing = True: Unsloth cannot keep packed rows of this model apart here (it says why "
                            "above); set packing = False")  # fmt: skip
    if settings.loraplus_lr_ratio:
        optimizer, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
        options |= {"loraplus_lr_ratio": settings.loraplus_lr_ratio, "loraplus_weight_decay": settings.weight_decay}
        trainer.optimizer = create_loraplus_optimizer(model, optimizer, **options)
    checkpoint = newest_checkpoint(folder / "checkpoints", state) if resume else None
    first = arguments.process_index == 0
    if first and not checkpoint:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    started = time.perf_counter()
    with guard.stop, memory.memory_told("train", settings):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    elapsed = time.perf_counter() - started
    tracking.finish(settings.report_to, folder)
    model.save_pretrained(folder / "checkpoints" / "adapter")
    if settings.full_finetuning:
        tokenizer.save_pretrained(folder / "checkpoints" / "adapter")
    if first:
        guard.check_adapter(folder / "checkpoints" / "adapter")
        for file in (folder / "checkpoints" / "adapter").iterdir():  # whole or not at all, also if we are killed here
            os.replace(file, folder / file.name)
    steps_here = trainer.state.global_step - (int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    tokens = sum(lengths) * trainer.state.epoch * steps_here / trainer.state.global_step  # last batches are short
    loaded = next((bits for bits in (4, 8) if getattr(model, f"is_loaded_in_{bits}bit", False)), 16)
    return {
        "steps": trainer.state.global_step, "epochs": trainer.state.epoch, "train_loss": result.training_loss,
        "train_seconds": elapsed, "tokens_per_second": tokens / elapsed, "rows": len(train_rows),
        "bf16": arguments.bf16, "optim_asked": settings.optim, "optim_ran": type(trainer.optimizer.optimizer).__name__,
        "bits_asked": 4 if settings.load_in_4bit else 8 if settings.load_in_8bit else 16, "bits_ran": loaded,
        "packing_asked": settings.packing, "packing_ran": settings.packing and trainer.args.packing,
        "ended_early": trainer.state.global_step < trainer.state.max_steps,
        "best_step": trainer.state.best_global_step if patience else None,
        "base_commit": getattr(model.config, "_commit_hash", None),  # of a base from the hub
        "resumed_from": checkpoint.name if checkpoint else None, "warnings": guard.warnings,
    }  # fmt: skip


def keep_types(trainer) -> None:
    """PEFT reads a checkpoint's adapter back in single precision; let it go on in the precision that it had."""
    load, types = trainer._load_from_checkpoint, {n: p.dtype for n, p in trainer.model.named_parameters()}

    def load_as_it_was(*args, **kwargs):
        load(*args, **kwargs)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(types[name])

    trainer._load_from_checkpoint = load_as_it_was


def check_mask(trainer, train_rows: Dataset) -> None:
    """The batches that the trainer will really see supervise what the rows say, no token more: the first rows as the
    collator gives them or, where rows are packed, all of them."""
    if getattr(trainer.args, "packing", False):
        found, first = [label for labels in trainer.train_dataset["labels"] for label in labels], 0
        rows = range(len(train_rows))
    else:  # a row's first token is no target: rows that are joined, as on a GPU, leave it out, and padded ones do not
        rows, first = range(min(4, len(train_rows))), 1
        batch = trainer.data_collator([trainer.train_dataset[i] for i in rows])
        found = guards.seen(batch)[1][:, first:].flatten().tolist()
    seen = sum(label != chat.IGNORED for label in found)
    meant = sum(sum(label != chat.IGNORED for label in train_rows[i]["labels"][first:]) for i in rows)
    if seen != meant or not seen:
        raise TrainingError(f"the trainer supervises {seen} tokens of the first rows, but their answers have {meant}")


def newest_checkpoint(folder: Path, state: Iterable[str] = STATE) -> Path | None:
    """The newest checkpoint whose files load (a killed process can leave a torn one); `state` names those beside the
    weights. Other folders than `checkpoint-<step>`, such as a synchroniser's copies, are none.

    Not one that was written when training ended: transformers would go one step beyond it."""
    names = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*")}
    for _, path in sorted(((int(name), names[name]) for name in names if name.isdecimal()), reverse=True):
        try:
            for file in [*path.glob("model*.safetensors")] or [path / "adapter_model.safetensors"]:
                load_file(file)
            told = json.loads((path / "trainer_state.json").read_text())
            for file in [*(path / name for name in state), *path.glob("scaler.pt")]:  # of fp16 alone
                with safe_globals():  # numpy's state, as transformers itself reads it
                    load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
            if not told["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]:
                return path
        except Exception as error:  # whatever is torn about it, an older one will do; say so
            print(f"{path.name} does not load ({type(error).__name__}): trying an older one")
    return None
