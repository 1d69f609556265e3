"""What one process measures: a training, a generation, a GPT from scratch, or a run that learns. Results are JSON."""

import json
import math
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import shapes
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback

from lib.data import chat
from lib.gpt import ablation, corpus, plain, pretrain, tokens
from lib.judge import evaluate
from lib.pipeline import execute
from lib.run import memory, presets, provenance, runs
from lib.run.paths import ROOT
from lib.run.stages import STAGES
from lib.train import scale

WARM_UP, GROUPS, STEPS = 4, 3, 4  # steps that compile and fill caches; then groups of steps, whose median counts
PROMPT, ANSWER = 128, 128  # tokens of a question and of its answer
ENOUGH = 40_000_000  # tokens that the embedded base was trained on: a larger model should not have fewer


def now() -> float:
    """Seconds, when the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(side: int) -> float:
    """Operations a second of this device in the product of two square bfloat16 matrices: the median of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(13):
        began = now()
        a @ b
        seconds.append(now() - began)
    return 2 * side**3 / median(seconds[3:])


class Clock(TrainerCallback):
    """Tokens a second of each group of steps after the warm-up; the device is waited for only between groups."""

    def __init__(self):
        self.marks = []

    def on_train_begin(self, args, state, control, **kwargs):
        memory.reset_peak()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= WARM_UP and (state.global_step - WARM_UP) % STEPS == 0:
            self.marks.append((now(), state.num_input_tokens_seen))

    def rates(self) -> list[float]:
        return [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(self.marks, self.marks[1:])]


def peak_bytes() -> int:
    """The most bytes held at once since the last reset: on the GPU, or without one by this process."""
    found = provenance.peak_memory_bytes()
    return found.get("cuda:0", found["resident"])


def row_lengths(kind: str, length: int, count: int) -> list[int]:
    """Tokens of `count` rows: all of `length` ("full"), or an eighth to a half of it ("mixed")."""
    if kind == "full":
        return [length] * count
    return np.random.default_rng(0).integers(length // 8, length // 2, count).tolist()


def random_rows(lengths: list[int]) -> Dataset:
    """Tokenised rows of random words (never padding or end); of each the first quarter is a question, not learnt."""
    rng, rows = np.random.default_rng(1), []
    for number, length in enumerate(lengths):
        ids = rng.integers(16, 2048, length).tolist()
        question = length // 4
        labels = [chat.IGNORED] * question + ids[question:]
        rows.append({"id": str(number), "input_ids": ids, "labels": labels})
    return Dataset.from_list(rows)


def train(folder: Path, model: str, length: int, method: str, tokens_a_pass: int, checkpointing: bool, compile: bool,
          rows: str, packing: bool) -> dict:  # fmt: skip
    """Speed and peak memory of training LoRA of rank 16 on all linear layers of a model, by one method.

    "unsloth" is Sharpen's own (lib.train.qlora), "lora16" the same on a base in 16 bit, "plain" is QLoRA by TRL, PEFT
    and bitsandbytes alone. A pass has `tokens_a_pass` tokens, padding included, and is a step."""
    path, config = shapes.build(model, method != "lora16", folder / "models"), shapes.config_of(model)
    batch, steps, clock = max(1, tokens_a_pass // length), WARM_UP + GROUPS * STEPS, Clock()
    lengths = row_lengths(rows, length, steps * batch * (8 if packing else 1))
    settings = presets.resolve("demo", dict(
        base_model=str(path), max_length=length, load_in_4bit=method != "lora16", packing=packing, r=16, lora_alpha=16,
        learning_rate=1e-4, per_device_train_batch_size=batch, max_steps=steps, gradient_checkpointing=checkpointing,
        optim="adamw_8bit", eval_steps=None, save_steps=10 * steps, logging_steps=steps,
    )).settings  # fmt: skip
    ran = train_plainly if method == "plain" else train_by_sharpen
    ran = ran(settings, random_rows(lengths), compile, folder, clock)
    speeds, trained = clock.rates(), scale.trained(config, settings)
    operations = shapes.operations(config, shapes.positions(lengths), trained)
    return {"tokens_per_second": median(speeds), "all_tokens_per_second": speeds, "peak_bytes": peak_bytes(),
            "operations_per_token": operations, "batch": batch, "ran": ran}  # fmt: skip


def train_by_sharpen(settings, rows: Dataset, compile: bool, folder: Path, clock: Clock) -> dict:
    """Notebook 21's path; returns what it says that it ran. (`compile`: bench_gpu.py has told Unsloth already.)"""
    from lib.train import qlora  # isort: skip  (first: Unsloth patches the others)
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = qlora.load(settings)
    model, out = qlora.attach(model, settings), folder / "adapter"
    out.mkdir(exist_ok=True)
    arguments = SFTConfig(
        max_length=settings.max_length, packing=settings.packing, max_steps=settings.max_steps, seed=settings.seed,
        per_device_train_batch_size=settings.per_device_train_batch_size, learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type, warmup_steps=settings.warmup_steps, optim=settings.optim,
        weight_decay=settings.weight_decay, gradient_checkpointing=settings.gradient_checkpointing,
        save_steps=settings.save_steps, logging_steps=settings.logging_steps,
        include_num_input_tokens_seen="non_padding",
        **qlora.precision(model.device.type), **qlora.bookkeeping(settings, out, None),
    )  # fmt: skip
    trainer = SFTTrainer(model=model, processing_class=tokenizer, args=arguments, callbacks=[clock],
                         train_dataset=qlora.columns(rows))  # fmt: skip
    metrics = qlora.fit(trainer, rows, settings, lambda *_, **__: None)
    return {name: metrics[name] for name in ("bits_ran", "packing_ran", "optim_ran", "bf16")}


def train_plainly(settings, rows: Dataset, compile: bool, folder: Path, clock: Clock) -> dict:
    """The same by TRL's SFTTrainer, PEFT and bitsandbytes, as their own guides do it; Unsloth is not imported."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    if not cuda:  # a rehearsal: TRL's loss is a Triton kernel
        SFTTrainer.compute_loss = Trainer.compute_loss
    arguments = SFTConfig(
        output_dir=str(folder / "plain"), max_length=settings.max_length, packing=settings.packing, bf16=cuda,
        per_device_train_batch_size=settings.per_device_train_batch_size, max_steps=settings.max_steps,
        learning_rate=settings.learning_rate, optim=settings.optim if cuda else "adamw_torch", report_to="none",
        gradient_checkpointing=settings.gradient_checkpointing, torch_compile=compile, save_strategy="no",
        logging_steps=settings.logging_steps, train_sampling_strategy="group_by_length", use_cpu=not cuda,
        include_num_input_tokens_seen="non_padding",
    )  # fmt: skip
    model = load_plainly(settings.base_model)
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=rows.remove_columns("id"),
        processing_class=AutoTokenizer.from_pretrained(settings.base_model), callbacks=[clock],
        peft_config=LoraConfig(r=settings.r, lora_alpha=settings.lora_alpha, task_type="CAUSAL_LM",
                               target_modules=list(settings.target_modules)),
    )  # fmt: skip
    trainer.train()
    return {"bits_ran": 4 if model.is_loaded_in_4bit else 16, "packing_ran": trainer.args.packing,
            "optim_ran": type(trainer.optimizer.optimizer).__name__}  # fmt: skip


def load_plainly(path: str):
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, device_map={"": device}, trust_remote_code=False, use_safetensors=True
    )


def generate(folder: Path, model: str, method: str, batch: int) -> dict:
    """Tokens a second that `evaluate` answers with: `batch` questions at once, greedily, without the calculator."""
    path = str(shapes.build(model, True, folder / "models"))
    if method == "plain":
        base, tokenizer = load_plainly(path).eval(), AutoTokenizer.from_pretrained(path)
    else:
        from lib.train import qlora

        base, tokenizer = qlora.load(presets.resolve("demo", {"base_model": path}).settings)
        qlora.FastLanguageModel.for_inference(base)
    prompts = np.random.default_rng(0).integers(16, 2048, (batch, PROMPT)).tolist()
    memory.reset_peak()
    speeds = []
    for _ in range(GROUPS + 1):
        began = now()
        answers = evaluate.generate(base, tokenizer, prompts, ANSWER, batch, calculator=False)
        speeds.append(sum(answer["tokens"] for answer in answers) / (now() - began))
    return {"tokens_per_second": median(speeds[1:]), "all_tokens_per_second": speeds[1:], "peak_bytes": peak_bytes()}


def scratch(folder: Path, size: str, batch: int, length: int, ladder: bool, steps: int = 13) -> dict:
    """Notebook 20's GPT: every recipe of `ablation.LADDER`, or the fastest one alone. The median step counts."""
    settings = presets.resolve("demo", dict(
        model_size=size, pretrain_batch_size=batch, block_size=length, pretrain_tokens=steps * batch * length,
        torch_compile=torch.cuda.is_available(),
    )).settings  # fmt: skip
    place, config = folder / f"tokens-{batch}x{length}", plain.SIZES[size]
    tokens.prepare(settings, place, tokens.load_processor(ROOT / "data/base"))
    blocks = tokens.Blocks(place / "train", batch, length, settings.pretrain_seed)
    operations = shapes.operations(config, shapes.positions(blocks.sizes.tolist()))
    if ladder:
        rows = ablation.ladder(settings, place / "train", place / "held_out", steps, runs=1)
    else:
        recipe = pretrain.recipe_of(settings)
        memory.reset_peak()
        _, metrics = pretrain.train(settings, blocks, recipe=recipe, log=lambda *_, **__: None)
        speed = blocks.tokens_a_step / median(metrics["step_seconds"][3:])
        rows = [{"step": "all", "tokens_per_second": speed, "peak_bytes": peak_bytes()}]
    last = rows[-1]
    return {"recipes": rows, "tokens_per_second": last["tokens_per_second"], "peak_bytes": last["peak_bytes"],
            "operations_per_token": operations}  # fmt: skip


def plan_of(folder: Path, sizes: list[str], minutes: float, batch: int) -> dict:
    """Which size is trained on how many tokens, and the tokens/s measured for it: of training, and of writing text."""
    processor, began = tokens.load_processor(ROOT / "data/base"), time.perf_counter()
    sample = tokens.write(folder / "sample", islice(corpus.documents(0), 2000), processor, tokens.UNPREDICTABLE)
    written, measured = sample["tokens"] / (time.perf_counter() - began), {}
    for size in sizes:
        measured[size] = scratch(folder, size, batch, 512, ladder=False)["tokens_per_second"]
        count = math.floor(60 * minutes / (1 / written + 1 / measured[size]))
        if count >= ENOUGH:
            break
    return {"model_size": size, "tokens": count, "trains": measured, "writes": written}


def learn(folder: Path, sizes: list[str], minutes: float, batch: int, rehearse: bool) -> dict:
    """A base from nothing, QLoRA on the demo's 900 rows, and the chain to Q4_K_M, each by its notebook.

    The first of `sizes` (the largest) that gets ENOUGH tokens in `minutes`, by its measured speed and that of the
    text's generator, is trained for those minutes. What is complete already is not done again."""
    plan, outputs, base = folder / "learn.json", folder / "outputs", folder / "outputs" / "learned-base" / "base"
    if not plan.exists():  # what is gone on with must be the same
        plan.write_text(json.dumps(plan_of(folder, sizes, minutes, batch)))
        torch.cuda.empty_cache()
    planned = json.loads(plan.read_text())
    parameters = {"run": "learned-base", "outputs": outputs, "rehearse": rehearse, "ablation_steps": 0,
                  "model_size": planned["model_size"], "pretrain_tokens": planned["tokens"],
                  "pretrain_batch_size": batch}  # fmt: skip
    if not (base / "manifest.json").exists():
        words = [word for pair in parameters.items() for word in ("-p", *map(str, pair))]
        notebook = execute.notebook_path(STAGES["pretrain"].notebook)
        executed = folder / "20_pretrain_gpt.ipynb"
        subprocess.run([sys.executable, "-m", "papermill", notebook, executed, *words], check=True)
    overrides = {"base_model": str(base), "learning_rate": 1e-3, "eval_batch_size": 180}
    summary = execute.run("demo", "learned", overrides, rehearse, outputs, export=True)
    metrics = {stage: runs.read(base.parent if stage == "pretrain" else summary.run_folder, stage)["metrics"]
               for stage in ("pretrain", "train", "evaluate", "export")}  # fmt: skip
    return {**planned, "headline": summary.headline, "stages": summary.stages,
            "tokens_per_second": metrics["pretrain"]["tokens_per_second"], "peak_bytes": None, **metrics}  # fmt: skip
