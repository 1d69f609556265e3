"""Answers a second of a finished run: Sharpen's evaluation beside lm-evaluation-harness' `hf` model.

    pip install lm-eval==0.4.13
    python tests/benchmarks/bench_lm_eval.py outputs/demo [--questions 360] [--rows 60] [--turns 2] [--dtype auto]

Base and adapter answer the run's test questions greedily, without the calculator (which the harness does not have), as
many rows at once, each in a process of its own and in turns. Only the answering is timed. As the last line, JSON."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=360)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--dtype", default="auto", help="of the harness's weights")
    parser.add_argument("--only", choices=WAYS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(timed(given)))
        return
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    for turn in range(given.turns):
        for name in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"turn {turn}: {name}: {found[name][-1]}", flush=True)
    rates = {name: median(one["answers"] / one["seconds"] for one in found[name]) for name in WAYS}
    print(json.dumps(rates | {"ratio": rates["sharpen"] / rates["lm_eval"]}))


def timed(given: argparse.Namespace) -> dict:
    """How long one way took for how many answers and tokens."""
    from lib.run import presets, runs

    manifest = runs.read(given.run, "evaluate")
    settings = presets.resolve(manifest["preset"], manifest["settings"], stage="evaluate").for_stage("evaluate")
    rows = [row for name in ("test", "test_seen") for row in runs.read_rows(given.run / f"data/{name}.jsonl")]
    rows = rows[:: max(1, len(rows) // given.questions)][: given.questions]
    answer = WAYS[given.only](given, settings, rows)
    began = time.perf_counter()
    tokens = answer()
    return {"answers": len(rows), "tokens": tokens, "seconds": round(time.perf_counter() - began, 2)}


def sharpen(given, settings, rows: list[dict]):
    from lib.train import qlora  # isort: skip  (first: Unsloth patches transformers)
    from lib.data import chat
    from lib.judge import evaluate

    model, tokenizer = qlora.load(settings, given.run / "adapter")
    qlora.FastLanguageModel.for_inference(model)
    prompts = [chat.prompt_ids(row["messages"], tokenizer) for row in rows]
    kinds = [row["kind"] for row in rows]

    def answer() -> int:
        new = evaluate.generate(model, tokenizer, prompts, settings.max_new_tokens, given.rows, False, kinds=kinds)
        return sum(one["tokens"] for one in new)

    return answer


def lm_eval(given, settings, rows: list[dict]):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lib.data import chat
    from lib.run.paths import locate

    tokenizer = chat.load_tokenizer(settings)
    model = HFLM(pretrained=locate(settings.base_model), peft=str(given.run / "adapter"), dtype=given.dtype,
                 device="cpu", batch_size=given.rows, add_bos_token=False)  # fmt: skip
    options = {"until": [], "do_sample": False, "max_gen_toks": settings.max_new_tokens}
    requests = []
    for number, row in enumerate(rows):
        ids = chat.prompt_ids(row["messages"], tokenizer)
        requests.append(Instance("generate_until", row, (tokenizer.decode(ids), options), number))

    def answer() -> int:
        texts = model.generate_until(requests, disable_tqdm=True)
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts)

    return answer


WAYS = {"sharpen": sharpen, "lm_eval": lm_eval}

if __name__ == "__main__":
    main()
