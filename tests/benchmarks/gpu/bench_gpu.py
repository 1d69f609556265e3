"""What Sharpen does on a GPU: speed, memory, utilisation, and a run that learns.

    python tests/benchmarks/gpu/bench_gpu.py [--budget-minutes 25] [--parts train scratch learn generate]
    python tests/benchmarks/gpu/bench_gpu.py --rehearse        # tiny, on a CPU too: no result, nothing is kept in git
    python tests/benchmarks/gpu/bench_gpu.py --table FILE      # a results file as the README's Markdown

Every case is a process of its own, so that its peak memory is its own. The cases are in the order of their worth; each
has a limit of seconds, and none starts when the budget is spent: what was left out is listed. The results file (raw
JSON with machine, versions, date and command) is written after every case. The same command again goes on where it
stopped, counts what was spent before, and tries again what failed.

train     LoRA of rank 16 on all linear layers of Llama-3.2-1B, 3B, Llama-3.1-8B and Qwen2.5-14B shaped models with
          random weights (speed and memory do not depend on the values), at 8,192 tokens a pass: "unsloth" is QLoRA
          by Sharpen's lib.train.qlora, "plain" by TRL, PEFT and bitsandbytes alone, "lora16" is the first on a base in
          16 bit; with and without recomputed layers, compiler, packing (rows of an eighth to half of the length).
          Tokens/s without padding: the median of 3 groups of 4 steps after 4 steps of warm-up; the most memory that
          torch held while it trained.
scratch   notebook 20's GPT, plain to fast, at `small` (37 M parameters) and `medium` (124 M): the median step.
learn     the largest GPT that the minutes allow, on generated text (whose tokenizer has 2,048 tokens: of the 32,000
          rows of its embeddings the others stay as they began); QLoRA on the demo's 900 rows; the chain to Q4_K_M.
generate  lib.judge.evaluate's batched answers: 128 tokens after questions of 128, medians of 3 after a warm-up.

Utilisation is tokens/s times the operations that the model itself needs for a token (`shapes.operations` says which:
6 N with all weights trained, 4 N + 6 times the adapter with a frozen base, and attention; layers computed again do not
count), as a share of what the same device reached, in the same process, in a bfloat16 product of two matrices of 8192.

The machine needs a GPU with bfloat16 (Ampere or newer), environment.yml's packages with torch's CUDA build, a C
compiler with Python's headers (Triton compiles), 40 GiB of disk under --folder, and for `learn` llama.cpp, which is
built at first use from the package index. Without internet, packages travel as wheels (wheels.py beside this file
collects and shrinks them), and llama.cpp as a built folder that LLAMA_CPP_PATH names.
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "tests/benchmarks/results/gpu.json"
PARTS = ("train", "scratch", "learn", "generate")
SHORTEST = 45  # seconds: no case takes less, so none is begun with less left
GIB = 2**30


def training(model: str, length: int = 2048, method: str = "unsloth", **changes) -> dict:
    usual = dict(tokens_a_pass=8192, checkpointing=True, compile=method != "plain", rows="full", packing=False)
    words = [f"{name}={value}" for name, value in changes.items()]
    return dict(part="train", name=" ".join(["train", model, str(length), method, *words]), limit_seconds=240,
                arguments=dict(model=model, length=length, method=method) | usual | changes)  # fmt: skip


def generation(model: str, batch: int, method: str = "unsloth") -> dict:
    return dict(part="generate", name=f"generate {model} batch {batch} {method}", limit_seconds=180,
                arguments=dict(model=model, batch=batch, method=method))  # fmt: skip


def scratch(size: str, batch: int, ladder: bool) -> dict:
    return dict(part="scratch", name=f"scratch {size} batch {batch}{' every recipe' * ladder}", limit_seconds=300,
                arguments=dict(size=size, batch=batch, length=1024, ladder=ladder))  # fmt: skip


MIXED = {"rows": "mixed"}
CASES = [  # the most worth first
    training("Llama-3.2-3B"),
    training("Llama-3.2-3B", method="plain"),
    scratch("medium", 64, ladder=False),
    scratch("medium", 16, ladder=True),
    dict(part="learn", name="learn", limit_seconds=960,
         arguments=dict(sizes=["medium", "small"], minutes=5, batch=32, rehearse=False)),
    training("Llama-3.2-3B", method="lora16"),
    *(training("Llama-3.2-3B", length, method) for length in (512, 4096) for method in ("unsloth", "plain")),
    *(generation("Llama-3.2-3B", batch) for batch in (64, 16, 1)),
    training("Llama-3.1-8B"),
    training("Llama-3.1-8B", method="plain"),
    training("Llama-3.2-3B", **MIXED),
    training("Llama-3.2-3B", **MIXED, packing=True),
    training("Llama-3.2-3B", checkpointing=False),
    training("Llama-3.2-3B", compile=False),
    training("Qwen2.5-14B"),
    training("Llama-3.2-1B"),
    training("Llama-3.2-1B", method="plain"),
    scratch("small", 16, ladder=True),
    training("Llama-3.2-3B", method="plain", **MIXED),
    training("Llama-3.2-3B", method="plain", **MIXED, packing=True),
    training("Llama-3.2-3B", method="plain", checkpointing=False),
    training("Llama-3.2-3B", method="plain", compile=True),
    *(training("Llama-3.2-3B", length, "lora16") for length in (512, 4096)),
    *(generation("Llama-3.2-3B", batch, "plain") for batch in (64, 16, 1)),
    training("Qwen2.5-14B", method="plain"),
]  # fmt: skip
SMALL = dict(model="rehearsal", length=64, tokens_a_pass=128)
REHEARSED = [
    training(**SMALL),
    training(**SMALL, method="plain"),
    training(**SMALL, method="lora16"),
    training(**SMALL, method="plain", **MIXED, packing=True),
    generation("rehearsal", 2),
    dict(part="scratch", name="scratch tiny", limit_seconds=240,
         arguments=dict(size="tiny", batch=2, length=64, ladder=False, steps=5)),
    dict(part="learn", name="learn", limit_seconds=400,
         arguments=dict(sizes=["tiny"], minutes=0.1, batch=4, rehearse=True)),
]  # fmt: skip


def run_all(cases: list[dict], found: dict, budget_seconds: float, measure: Callable[[dict, float], dict],
            save: Callable[[dict], None]) -> None:  # fmt: skip
    """Measure cases in their order until the budget is spent; `found` gets "cases", {name: case and result}, and
    "skipped", names. A case that is in `found` without an error is not measured again, but what it took counts."""
    for case in cases:
        before = found["cases"].get(case["name"], {})
        if before and "error" not in before:
            continue
        left = budget_seconds - sum(row["elapsed_seconds"] for row in found["cases"].values())
        if left < SHORTEST:
            found["skipped"].append(case["name"])
        else:
            began = time.monotonic()
            result = measure(case, min(case["limit_seconds"], left))
            spent = before.get("elapsed_seconds", 0) + time.monotonic() - began
            found["cases"][case["name"]] = case | result | {"elapsed_seconds": spent}
            print(f"{case['name']}: {told(result)}, {spent:.0f} s", flush=True)
        save(found)


def told(result: dict) -> str:
    if "error" in result:
        return f"FAILED: {result['error'].splitlines()[-1]}"
    return f"{result['tokens_per_second']:,.0f} tokens/s, {share(result)} utilisation, {gib(result)}"


def share(result: dict) -> str:
    return f"{result['utilisation']:.0%}" if result.get("utilisation") else "-"


def gib(result: dict) -> str:
    return f"{result['peak_bytes'] / GIB:.1f} GiB" if result["peak_bytes"] else "-"


def in_a_process(case: dict, limit_seconds: float, folder: Path, rehearse: bool) -> dict:
    """The case's result from a process of its own; {"error": its last words} where it failed or took too long."""
    result, log = folder / "result.json", folder / "logs" / f"{case['name'].replace(' ', '-')}.log"
    result.unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, __file__, "--folder", str(folder), "--case", json.dumps(case)]
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
                "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}  # fmt: skip
    if case["part"] == "train" and not case["arguments"]["compile"]:
        settings["UNSLOTH_COMPILE_DISABLE"] = "1"
    with open(log, "w") as file:
        process = subprocess.Popen(words + ["--rehearse"] * rehearse, stdout=file, stderr=subprocess.STDOUT,
                                   cwd=folder, env=os.environ | settings)  # fmt: skip
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            family = [*psutil.Process(process.pid).children(recursive=True), process]  # kernels have their own session
            for member in family:
                member.kill()
            process.wait()
            return {"error": f"stopped after {limit_seconds:.0f} s; its log: {log}"}
    if process.returncode or not result.exists():
        return {"error": log.read_text(errors="replace")[-2000:] + f"\nexit code {process.returncode}; its log: {log}"}
    return json.loads(result.read_text())


def measure_here(case: dict, folder: Path, rehearse: bool) -> dict:
    """The case's result by this process, with the device's matrix rate and the utilisation."""
    if case["arguments"].get("method") in ("unsloth", "lora16"):
        import lib.train.qlora  # noqa: F401  (Unsloth comes first: it patches transformers)
    import cases

    measure = {"train": cases.train, "generate": cases.generate, "scratch": cases.scratch, "learn": cases.learn}
    found = measure[case["part"]](folder, **case["arguments"])
    rate = cases.matrix_rate(512 if rehearse else 8192)
    for row in (found, *found.get("recipes", ())):
        if "operations_per_token" in found:
            row["utilisation"] = row["tokens_per_second"] * found["operations_per_token"] / rate
    return found | {"matrix_operations_per_second": rate}


def machine() -> dict:
    import torch

    from lib.run import provenance

    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().total
    return {"device": provenance.device(), "device_memory_bytes": memory, "cuda": torch.version.cuda,
            "versions": provenance.versions(), "git": provenance.git()}  # fmt: skip


def table(found: dict) -> str:
    """A results file as Markdown."""
    device, versions = found["machine"]["device"], found["machine"]["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    done = [row for row in found["cases"].values() if "error" not in row]
    lines = ["REHEARSAL: no result.", ""] if found["rehearse"] else []
    lines += [f"{device['name']}, {found['machine']['device_memory_bytes'] / GIB:.0f} GiB, {found['date'][:10]}, "
              f"`{found['command']}`; {packages}."]  # fmt: skip
    if rates := [row["matrix_operations_per_second"] for row in done]:
        lines += [f"Matrix rate measured: {min(rates) / 1e12:,.0f} to {max(rates) / 1e12:,.0f} TFLOP/s in bfloat16."]
    figures = ("tokens/s", "peak memory", "utilisation")
    rows = {part: [row for row in done if row["part"] == part] for part in ("train", "generate", "scratch", "learn")}
    lines += grid(("training", "length", "method", "changed", *figures), [
        (a["model"], a["length"], a["method"], " ".join(row["name"].split()[4:]) or "-", *figures_of(row))
        for row in rows["train"] for a in (row["arguments"],)
    ])  # fmt: skip
    lines += grid(("GPT from scratch", "batch", "recipe", *figures), [
        (row["arguments"]["size"], row["arguments"]["batch"], recipe["step"], *figures_of(recipe))
        for row in rows["scratch"] for recipe in row["recipes"]
    ])  # fmt: skip
    lines += grid(("answers", "batch", "method", "tokens/s", "peak memory"), [
        (a["model"], a["batch"], a["method"], *figures_of(row)[:2])
        for row in rows["generate"] for a in (row["arguments"],)
    ])  # fmt: skip
    lines += grid(("a run that learns", ""), [
        line for row in rows["learn"]
        for line in (("model", f"{row['pretrain']['parameters']:,} parameters, {row['tokens']:,} tokens"),
                     *row["headline"].items())
    ])  # fmt: skip
    pair = [found["cases"].get(f"train Llama-3.2-3B 2048 {method}", {"error": ""}) for method in ("unsloth", "plain")]
    if all("error" not in row for row in pair):
        speed, memory = (pair[0][key] / pair[1][key] for key in ("tokens_per_second", "peak_bytes"))
        lines += ["", f"Llama-3.2-3B at 2,048: Unsloth trains {speed:.2f} times as fast as plain TRL, "
                      f"in {memory:.2f} of its memory."]  # fmt: skip
    failed = [name for name, row in found["cases"].items() if "error" in row]
    for word, names in (("Failed", failed), ("Not begun within the budget", found["skipped"])):
        lines += ["", f"{word}: {'; '.join(names)}."] if names else []
    return "\n".join(lines)


def figures_of(row: dict) -> tuple[str, str, str]:
    return f"{row['tokens_per_second']:,.0f}", gib(row), share(row)


def grid(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    """A Markdown table's lines; none without rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return [""] * bool(rows) + [f"| {' | '.join(map(str, line))} |" for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-minutes", type=float, default=25.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--folder", type=Path, help="for models and runs; by default build/gpu, ignored by git")
    parser.add_argument("--results", type=Path, help=f"by default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--table", type=Path, metavar="FILE")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return 0
    rehearse = arguments.rehearse
    folder = (arguments.folder or ROOT / f"build/gpu{'-rehearsal' * rehearse}").resolve()
    if arguments.case:
        (folder / "result.json").write_text(json.dumps(measure_here(arguments.case, folder, rehearse), default=str))
        return 0
    import torch

    if not torch.cuda.is_available() and not rehearse:
        print("torch finds no GPU here, and figures without one mean nothing: run this on a machine with one (see "
              "--help), or add --rehearse to walk the same path at tiny shapes", file=sys.stderr)  # fmt: skip
        return 2
    results = arguments.results or (folder / "results.json" if rehearse else RESULTS)
    chosen = [case for case in (REHEARSED if rehearse else CASES) if case["part"] in (arguments.parts or PARTS)]
    found = json.loads(results.read_text()) if results.exists() else {"cases": {}}
    if found.get("rehearse", rehearse) != rehearse:
        parser.error(f"--results {results}: a rehearsal and a real measurement cannot share a file")
    found |= {"rehearse": rehearse, "machine": machine(), "command": shlex.join(["python", *sys.argv]), "skipped": [],
              "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
              "budget_minutes": arguments.budget_minutes}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    run_all(chosen, found, 60 * arguments.budget_minutes,
            lambda case, limit: in_a_process(case, limit, folder, rehearse),
            lambda found: results.write_text(json.dumps(found, indent=2) + "\n"))  # fmt: skip
    print(table(found))
    print(f"\nraw figures: {results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
