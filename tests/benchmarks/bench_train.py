"""QLoRA on a CPU: notebook 21's training beside a plain script of transformers' Trainer and PEFT.

    PYTHONPATH=. python tests/benchmarks/bench_train.py [--model FOLDER] [--rows N] [--rounds N]

Both learn the same rows of the demo in one epoch, with as many rows a forward pass, adapters of one shape and as many
threads, each in a process of its own and in turns. Printed are medians of rows and real tokens a second, the most
memory that was resident, and the share of matrix products in the profile of one step, on one thread (of several the
profile counts the first alone, which waits for the others in products only); as the last line, JSON. The
script recomputes nothing; `--recompute` lets it call PEFT's prepare_model_for_kbit_training, which does. Reach on the
embedded base: 2.7 x the rows of the script, on a model of 135 million parameters 1.8 x; products at least 60 % of a
step; half the memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from lib.data import tasks
from lib.run import presets, progress

ROWS_A_PASS = 16
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::baddbmm_"}


def plain(settings, rows: list[dict], folder: Path, recompute: bool):
    """(what trains and returns its seconds, tokens of the rows): as a reader of the guides writes it."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )  # fmt: skip

    from lib.data import chat
    from lib.run.paths import locate

    tokenizer = chat.load_tokenizer(settings)
    bf16 = torch.cpu._is_avx512_bf16_supported()
    dtype = torch.bfloat16 if bf16 else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    base = locate(settings.base_model)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=dtype)
    if recompute:
        model = prepare_model_for_kbit_training(model)
    lora = LoraConfig(
        r=settings.r, lora_alpha=settings.lora_alpha, target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=ROWS_A_PASS, num_train_epochs=1, bf16=bf16, use_cpu=True,
        learning_rate=settings.learning_rate, report_to="none", save_strategy="no",
    )  # fmt: skip
    encoded = [chat.encode(row, tokenizer) for row in rows]
    trainer = Trainer(
        model=get_peft_model(model, lora), args=arguments, train_dataset=encoded,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip

    def train() -> float:
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began

    return train, sum(len(row["input_ids"]) for row in encoded)


def sharpen(settings, rows: list[dict], folder: Path):
    """The same by notebook 21's own cells."""
    from lib.train import qlora
    from tests.train import shown

    model, tokenizer = qlora.load(settings)
    model = qlora.attach(model, settings)
    encoded, _ = qlora.encode(rows, tokenizer, settings.max_length)

    def train() -> float:
        metrics = shown.train(model, tokenizer, encoded, None, settings, folder, lambda *_, **__: None)
        return metrics["train_seconds"]

    return train, sum(len(ids) for ids in encoded["input_ids"])


def measure(case: str, arguments) -> dict:
    """One epoch: what `Trainer.train` took, or the share of products in one step."""
    changes = {"base_model": arguments.model, "per_device_train_batch_size": ROWS_A_PASS, "num_train_epochs": 1}
    settings = presets.resolve("demo", changes | {"save_steps": 10**6, "eval_steps": None}).settings
    rows = [problem.row() for problem in tasks.generate("train", arguments.rows, 0)]
    with tempfile.TemporaryDirectory() as folder:
        if case == "sharpen":
            train, tokens = sharpen(settings, rows, Path(folder))
        else:
            train, tokens = plain(settings, rows, Path(folder), arguments.recompute)
        if case == arguments.profile:
            return {"products": products_share(train)}
        seconds = train()
    rates = {"rows_per_second": len(rows) / seconds, "tokens_per_second": tokens / seconds}
    return rates | {"peak_gib": progress.system_bytes("VmHWM") / 2**30}


def products_share(train) -> float:
    """The share of matrix products in the processor time of the third step's forward and backward pass."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import Trainer

    torch.set_num_threads(1)
    step, found = Trainer.training_step, []

    def training_step(*inputs, **named):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            loss = step(*inputs, **named)
        found.append(profiled.key_averages())
        return loss

    Trainer.training_step = training_step
    train()
    events = found[2]
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    return products / sum(event.self_cpu_time_total for event in events)


def in_own_process(case: str, words: list[str]) -> dict:
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--case", case, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/base")
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--case", choices=["plain", "sharpen"], help="for its own processes")
    parser.add_argument("--profile", choices=["plain", "sharpen"], help="for its own processes")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments)))
        return
    words = ["--model", arguments.model, "--rows", str(arguments.rows)]
    if arguments.recompute:
        words.append("--recompute")
    found = {"plain": [], "sharpen": []}
    for _ in range(arguments.rounds):
        for case in found:
            found[case].append(in_own_process(case, words))
    result = {}
    for case, rounds in found.items():
        result[case] = {name: median(one[name] for one in rounds) for name in rounds[0]}
        few = ["--model", arguments.model, "--rows", str(3 * ROWS_A_PASS), *words[4:]]
        result[case] |= in_own_process(case, [*few, "--profile", case])
        shown = ", ".join(f"{name} {value:.2f}" for name, value in result[case].items())
        print(f"{case:<9}{shown}", flush=True)
    ratios = {name: value / result["plain"][name] for name, value in result["sharpen"].items()}
    print("ratio    " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
