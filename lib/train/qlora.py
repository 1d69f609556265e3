"""One device: Unsloth loads the base, an adapter goes on it, and one of TRL's trainers is fitted."""

# ruff: noqa: E402  (Unsloth must be imported before what it patches)

import contextlib
import gc
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel
gc.disable()  # imports leave no garbage, and looking for it takes a third of their time

# isort: off
from unsloth import FastLanguageModel  # first: it patches the others

# isort: on
import torch
from datasets import Dataset
from peft import IA3Config, PeftModel, PrefixTuningConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from unsloth_zoo.pad_token import fix_pad_token

from lib.data import chat, formats
from lib.judge import evaluate
from lib.run import memory, runs, untrusted
from lib.run.memory import TrainingError
from lib.run.paths import locate
from lib.run.settings import REWARDED, EvaluateSettings, ExportSettings, ServeSettings, TrainSettings
from lib.train import guards, layers, resume, tracking

gc.freeze()
gc.enable()

SHAPE = (  # what an adapter that goes on must have been made with
    "base_model", "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora",
    "use_dora", "num_virtual_tokens", "full_finetuning",
)  # fmt: skip
PADDED = 16  # rows are padded to a multiple of it on a CPU, where oneDNN compiles, and keeps, kernels for each shape
Settings = TrainSettings | EvaluateSettings | ExportSettings | ServeSettings


def load(settings: Settings, adapter: Path | None = None, dtype: torch.dtype | None = None):
    """(model, tokenizer): the base, in 4, 8 or 16 bit (or `dtype`), with a trained adapter if given."""
    memory.keep_freed()
    locate(settings.base_model)  # made of a GGUF file, it is there now, where an adapter names its folder
    start, prefix = adapter or settings.base_model, None
    if adapter and (adapter / "adapter_config.json").exists():  # it names its base, which is loaded
        config = untrusted.read_json(adapter / "adapter_config.json")
        locate(str(config.get("base_model_name_or_path")))
        if config.get("peft_type") == "PREFIX_TUNING":  # Unsloth would load it to train: PEFT refuses
            start, prefix = settings.base_model, adapter
    with memory.memory_told("load", settings):
        model, _ = FastLanguageModel.from_pretrained(
            locate(str(start)), max_seq_length=settings.max_length, dtype=dtype,
            load_in_4bit=settings.load_in_4bit, load_in_8bit=settings.load_in_8bit,
            trust_remote_code=False, use_safetensors=True,
            use_gradient_checkpointing=_checkpointing(settings),
            full_finetuning=getattr(settings, "full_finetuning", False),  # a setting of training alone
        )  # fmt: skip
        if prefix:
            model = PeftModel.from_pretrained(model, locate(str(prefix)))
    tokenizer = chat.load_tokenizer(settings)
    fix_pad_token(tokenizer, model)  # some bases have none, or pad with their end token
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise TrainingError(f"{settings.base_model}: padding and end token are the same, "
                            f"so an end would not be learnt")  # fmt: skip
    return model, tokenizer


def attach(model, settings: TrainSettings):
    """The model with a fresh adapter, whose weights alone are trained; one of an earlier run is kept.

    Where every weight is trained there is none."""
    if settings.full_finetuning or isinstance(model, PeftModel):
        return model
    modules = list(settings.target_modules)
    set_seed(settings.seed)  # a prefix starts at random
    if settings.peft_type == "ia3":
        inner = [name for name in modules if name == "down_proj"]  # here the input is scaled
        config = IA3Config(task_type="CAUSAL_LM", target_modules=modules, feedforward_modules=inner)
        return get_peft_model(model, config)
    if settings.peft_type == "prefix_tuning":
        tokens = settings.num_virtual_tokens
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
        return get_peft_model(model, config)
    model = FastLanguageModel.get_peft_model(
        model, r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora, use_dora=settings.use_dora, target_modules=modules, bias="none",
        random_state=settings.seed, use_gradient_checkpointing=_checkpointing(settings),
    )  # fmt: skip
    adapter = model.peft_config["default"]
    adapter.target_modules = sorted(adapter.target_modules)  # of a set each process writes another order
    return model


def _checkpointing(settings: Settings) -> str | bool:
    return "unsloth" if getattr(settings, "gradient_checkpointing", False) else False


def earlier(stage: runs.Stage) -> Path | None:
    """The adapter that `continue_from` names, remembered as an input; RunError where its shape differs."""
    name = stage.settings.continue_from
    if name is None:
        return None
    folder = stage.input("train", run=name)
    then = runs.read(stage.run_folder.with_name(name), "train")["settings"]
    now = stage.request.resolved.of_stage("train")
    if now["trainer"] in ("dpo", "grpo"):  # which train without dropout, whatever the adapter was made with
        then = then | {"lora_dropout": now["lora_dropout"]}
    changed = [field for field in SHAPE if then.get(field) != now[field]]
    if changed:
        those = ", ".join(f"{field} = {then.get(field)!r}, not {now[field]!r}" for field in changed)
        raise runs.RunError(f"continue_from = {name!r}: that run has {those}; "
                            f"use its values, or start anew")  # fmt: skip
    return folder


def went_on_from(stage: runs.Stage) -> Path | None:
    """The adapter that learning from rewards began with, remembered as an input; None of any other training."""
    training = runs.read(stage.run_folder, "train")
    name = training["settings"].get("continue_from")
    if training["settings"].get("trainer") not in REWARDED or name is None:
        return None
    folder = stage.input("train", run=name)
    if training["inputs"].get(f"../{name}/{folder.name}") != stage.inputs[f"../{name}/{folder.name}"]:
        raise runs.RunError(f"run {name!r}, from which this one went on, was trained anew since: run 23_train_rewards "
                            f"again, or bring its adapter back")  # fmt: skip
    return folder


@contextlib.contextmanager
def untuned(model, settings: Settings):
    """The base as it was: the adapter switched off or, where every weight was trained, loaded anew."""
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

    A cut row would teach an answer without its end."""
    bare = [row["id"] for row in rows if not formats.is_worked(row)]
    if bare:
        raise TrainingError(f"{len(bare)} of {len(rows)} rows have a gold and no worked answer, such as {bare[0]}: "
                            f"learn them from rewards (trainer = 'rft' or 'grpo'), or leave them out")  # fmt: skip
    kept, left_out = [], []
    for row in rows:
        encoded = chat.encode(row, tokenizer)
        if not completion_only_loss:
            encoded = encoded | {"labels": encoded["input_ids"]}
        if len(encoded["input_ids"]) > max_length:
            left_out.append(row["id"])
        else:
            kept.append({"id": row["id"]} | encoded)
    if rows and not kept:
        raise TrainingError(f"no row of {len(rows)} fits max_length = {max_length} tokens: raise it")
    return Dataset.from_list(kept), left_out


def columns(rows: Dataset | None) -> Dataset | None:
    """What a trainer reads of tokenised rows, which is not their ids; None where there is no row."""
    return rows.remove_columns("id") if rows else None


class LiveCurves(TrainerCallback):
    """Redraws a picture of the logged lines in the notebook: `draw(lines)` gives the figure."""

    def __init__(self, draw: Callable, every_seconds: float = 10):
        self.draw, self.every_seconds = draw, every_seconds
        self.lines, self.shown, self.last = [], False, 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append({"step": state.global_step} | logs)
        if "loss" in logs and time.monotonic() - self.last >= self.every_seconds:
            self.show()

    def on_train_end(self, args, state, control, **kwargs):
        if self.shown:
            self.show()

    def show(self):
        from IPython.display import display

        display(self.draw(self.lines), display_id=f"curves-{id(self)}", update=self.shown)
        self.shown, self.last = True, time.monotonic()


class GivesBack(TrainerCallback):
    """On a CPU gives freed memory back now and then: steps of ever other lengths leave holes in it
    that later ones do not fill."""

    STEPS = 20

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.STEPS == 0:
            memory.give_back()


class Accuracy(TrainerCallback):
    """Asks the same held-out questions before training and at each checkpoint: `accuracy` for `log`.

    Greedy and with the calculator, as 30_evaluate asks first; an answer may be as long as the longest
    row. Asked before the checkpoint is written: what goes on from there has all lines of its step."""

    def __init__(self, tokenizer, rows: list[dict], settings: TrainSettings, log: Callable):
        count = settings.accuracy_steps
        graded = [row for row in rows if row["gold"]]
        if len(graded) < count:
            raise TrainingError(f"accuracy_steps = {count}: only {len(graded)} held-out rows have a gold "
                                f"to grade by; lower it, or raise validation_rows")  # fmt: skip
        self.tokenizer, self.rows, self.log = tokenizer, graded[:count], log
        self.settings = SimpleNamespace(
            max_new_tokens=settings.max_length, gradient_checkpointing=settings.gradient_checkpointing,
            eval_batch_size=settings.per_device_train_batch_size,
        )  # fmt: skip

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.ask(model, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save:
            self.ask(model, state)

    def ask(self, model, state):
        FastLanguageModel.for_inference(model)
        what = {"model": "held-out questions"}
        answers = evaluate.ask(model, self.tokenizer, self.rows, self.settings, True, what)
        checkpointing = _checkpointing(self.settings)
        FastLanguageModel.for_training(model, use_gradient_checkpointing=checkpointing)
        accuracy = sum(answer["correct"] for answer in answers) / len(answers)
        self.log(state.global_step, accuracy=accuracy, questions=len(answers), epoch=state.epoch or 0)


def precision(device: str) -> dict[str, bool]:
    """SFTConfig's bf16 where the device computes in it, else fp16 on a GPU (a T4 only emulates bf16)."""
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return {"bf16": fast, "fp16": not fast}
    return {"bf16": torch.cpu._is_avx512_bf16_supported(), "fp16": False}


def bookkeeping(settings: TrainSettings, folder: Path, validation_rows: Dataset | None) -> dict:
    """SFTConfig's arguments for what is kept: two checkpoints, each loss (also NaN), the best step, a tracker."""
    arguments = {"output_dir": str(folder / "checkpoints"), "save_total_limit": 2}
    arguments |= {"logging_nan_inf_filter": False, "eval_strategy": "no"}
    if settings.eval_steps and validation_rows:
        arguments["eval_strategy"] = "steps"
    if settings.early_stopping_patience:
        arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    return arguments | tracking.start(settings.report_to, folder)


def fit(trainer, train_rows: Dataset, settings: TrainSettings, log: Callable, resumed: bool = False,
        state: Iterable[str] = resume.STATE) -> dict:  # fmt: skip
    """Train on rows as `train` does. Adds to TRL's trainer the order of rows, and refuses batches that supervise
    other tokens than their rows' answers."""
    resume.make_exact(trainer)
    check_mask(trainer, train_rows)
    if settings.packing and not trainer.args.packing and trainer.args.device.type == "cuda":
        raise TrainingError("packing = True: Unsloth cannot keep packed rows of this model apart here "
                            "(it says why above); set packing = False")  # fmt: skip
    if trainer.args.device.type == "cpu":
        trainer.data_collator.pad_to_multiple_of = PADDED  # TRL's collators all have it
    guard = guards.Guard(log, train_rows, settings.guard_warnings)
    metrics = train(trainer, guard, settings, resumed, state)
    tokens = sum(len(ids) for ids in train_rows["input_ids"])  # of an epoch
    tokens *= metrics["epochs"] * (metrics["steps"] - resume.step_of(metrics["resumed_from"])) / metrics["steps"]
    speed = {"tokens_per_second": tokens / metrics["train_seconds"], "rows": len(train_rows)}
    return metrics | speed


def train(trainer, guard: guards.Guard, settings: TrainSettings, resumed: bool = False,
          state: Iterable[str] = resume.STATE) -> dict:  # fmt: skip
    """Train, and save the adapter (or, with full_finetuning, model and tokenizer) as safetensors.

    Adds to TRL's trainer guards, early stopping and LoRA+. `resumed` goes on from the newest whole checkpoint (its
    files beside the weights: `state`), to the very adapter of an uninterrupted training. Several processes all call
    this, and the first one writes.

    Returns steps, epochs, train_loss, train_seconds, and what was asked for and what ran: on a CPU Unsloth replaces
    8-bit optimisers and weights, and packs not."""
    checkpoints = Path(trainer.args.output_dir)
    if settings.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    if trainer.args.device.type == "cpu":
        trainer.add_callback(GivesBack())
        # FSDP gathers the weights of A and B for their own forward passes alone
        layers.use(trainer.model, lora=settings.devices == 1)
    guard.watch(trainer)  # the last callback
    if settings.loraplus_lr_ratio:
        _use_loraplus(trainer, settings)
    checkpoint = None
    if resumed:
        checkpoint = resume.newest_checkpoint(checkpoints, state)
    if trainer.args.process_index == 0 and not checkpoint:
        shutil.rmtree(checkpoints, ignore_errors=True)
    started = time.perf_counter()
    with guard.stop, memory.memory_told("train", settings):
        result = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    seconds = time.perf_counter() - started
    tracking.finish(settings.report_to, checkpoints.parent)
    _save(trainer, guard, settings.full_finetuning)
    done = trainer.state
    return {
        "steps": done.global_step, "epochs": done.epoch, "train_loss": result.training_loss, "train_seconds": seconds,
        **_asked_and_ran(trainer, settings), "ended_early": done.global_step < done.max_steps,
        "best_step": done.best_global_step if settings.early_stopping_patience else None,
        "base_commit": getattr(trainer.model.config, "_commit_hash", None),  # of a base from the hub
        "resumed_from": checkpoint and checkpoint.name, "warnings": guard.warnings,
    }  # fmt: skip


def check_mask(trainer, train_rows: Dataset) -> None:
    """The trainer's own batches supervise what the rows say, no token more.

    Looked at are the first rows as the collator gives them or, where rows are packed, all of them."""
    if getattr(trainer.args, "packing", False):
        meant = train_rows["labels"]
        seen = trainer.train_dataset["labels"]
    else:  # a first token is no target: rows that are joined, as on a GPU, leave it out, padded ones do not
        meant = [labels[1:] for labels in train_rows[:4]["labels"]]
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(meant))])
        seen = guards.ids_and_labels(batch)[1][:, 1:].tolist()
    tokens, wanted = _supervised(seen), _supervised(meant)
    if tokens != wanted or not tokens:
        raise TrainingError(f"the trainer supervises {tokens} tokens of the first rows, "
                            f"but their answers have {wanted}")  # fmt: skip


def _supervised(rows: Iterable[list[int]]) -> int:
    return sum(label != chat.IGNORED for labels in rows for label in labels)


def _use_loraplus(trainer, settings: TrainSettings) -> None:
    """The optimiser by which LoRA's B learns faster than its A (Hayou 2024)."""
    optimizer, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer = create_loraplus_optimizer(
        trainer.model, optimizer, loraplus_lr_ratio=settings.loraplus_lr_ratio,
        loraplus_weight_decay=settings.weight_decay, **options,
    )  # fmt: skip


def _save(trainer, guard: guards.Guard, with_tokenizer: bool) -> None:
    """The weights, looked at, into the stage's folder: whole or not at all, also if it is killed here."""
    part = Path(trainer.args.output_dir) / "adapter"
    trainer.model.save_pretrained(part)
    if with_tokenizer:
        trainer.processing_class.save_pretrained(part)
    if trainer.args.process_index == 0:
        guard.check_adapter(part)
        for file in part.iterdir():
            os.replace(file, part.parents[1] / file.name)


def _asked_and_ran(trainer, settings: TrainSettings) -> dict:
    model = trainer.model
    loaded = (getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
    return {
        "bf16": trainer.args.bf16, "optim_asked": settings.optim,
        "optim_ran": type(trainer.optimizer.optimizer).__name__,
        "bits_asked": _bits(settings.load_in_4bit, settings.load_in_8bit), "bits_ran": _bits(*loaded),
        "packing_asked": settings.packing, "packing_ran": settings.packing and trainer.args.packing,
    }  # fmt: skip


def _bits(in_4bit: bool, in_8bit: bool) -> int:
    if in_4bit:
        return 4
    return 8 if in_8bit else 16
