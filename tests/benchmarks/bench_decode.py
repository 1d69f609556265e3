"""Answers a second: evaluation's decoding by a folded copy against transformers' `generate` as it was used before.

python tests/benchmarks/bench_decode.py [--run outputs/demo] [--questions 360] [--rows 60]
python tests/benchmarks/bench_decode.py --base FOLDER [--run outputs/demo]   # its questions, a base without an adapter
python tests/benchmarks/bench_decode.py --base FOLDER --run outputs/demo --shots 8   # after examples against without

Both answer the same prompts in turns, greedily, with the calculator and the same rows at once; batches of `generate`
hold questions of one kind and of similar length. Told too: how many texts are equal.

With --shots every answer has --tokens tokens, asked cold and after so many worked examples."""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lib.train import qlora  # isort: skip  (first: Unsloth patches transformers)

import torch

from lib.data import chat
from lib.engine.marks import Marks
from lib.judge import decode, evaluate, shots
from lib.run import presets, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--base", help="a base model's folder, asked without an adapter")
    parser.add_argument("--questions", type=int, default=360)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=540)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--shots", type=int, default=0)
    given = parser.parse_args()
    changes = {"base_model": given.base} if given.base else {}
    settings = presets.resolve("demo", changes).settings
    model, tokenizer = qlora.load(settings, None if given.base else given.run / "adapter")
    qlora.FastLanguageModel.for_inference(model)
    rows = [row for name in ("test", "test_seen") for row in runs.read_rows(given.run / f"data/{name}.jsonl")]
    rows = sorted(rows[:: max(1, len(rows) // given.questions)][: given.questions], key=lambda row: row["kind"])
    if given.shots:
        return after_examples(model, tokenizer, rows, given)
    prompts = [chat.prompt_ids(row["messages"], tokenizer) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["kind"], len(prompts[i])))
    asked, filling, ends = [prompts[i] for i in order], Marks(tokenizer), chat.end_ids(tokenizer)

    def now() -> list[list[int]]:
        plain, new = decode.folded(model), []
        size = evaluate.PART * given.rows
        for start in range(0, len(asked), size):
            new += decode.answers(plain, asked[start : start + size], given.tokens, given.rows, ends, filling)
        return new

    def before(asker=model) -> list[list[int]]:
        return evaluate._by_generate(asker, tokenizer, asked, given.tokens, given.rows, filling)

    def same_weights() -> list[list[int]]:
        plain = decode.folded(model)
        plain.config._attn_implementation = "sdpa"
        return before(plain)

    texts, rates = {}, {}
    for turn in range(given.turns):
        for work in (now, before, same_weights):
            began = time.perf_counter()
            with torch.inference_mode():
                new = work()
            seconds = time.perf_counter() - began
            texts[work.__name__] = [evaluate._answer(tokens, tokenizer) for tokens in new]
            tokens = sum(answer["tokens"] for answer in texts[work.__name__])
            rates.setdefault(work.__name__, []).append(len(rows) / seconds)
            print(f"turn {turn}: {work.__name__}: {len(rows)} answers, {tokens} tokens in {seconds:.1f} s: "
                  f"{len(rows) / seconds:.2f} answers/s, {tokens / seconds:.0f} tokens/s", flush=True)  # fmt: skip
    for name in ("before", "same_weights"):
        equal = sum(one == other for one, other in zip(texts["now"], texts[name]))
        print(f"now is {max(rates['now']) / max(rates[name]):.1f} x {name}; texts equal: {equal} of {len(rows)}")


def after_examples(model, tokenizer, rows: list[dict], given) -> None:
    """Seconds for answers of equal length, cold and after examples, of which the beginning is read once or in each
    prompt."""
    pool = shots.pool_of(runs.read_rows(given.run / "data/train.jsonl", gold=True), rows, 0)
    plain, filling, seconds = decode.folded(model), Marks(tokenizer), {}
    for turn in range(given.turns):
        for name, count, share in (("cold", 0, True), (f"{given.shots} shots", given.shots, True),
                                   (f"{given.shots} shots, each read whole", given.shots, False)):  # fmt: skip
            asked = shots.Prompting(pool=pool).before(rows, count)
            began = time.perf_counter()
            prompts = [chat.prompt_ids(row["messages"], tokenizer) for row in asked]
            shared = share * decode.shared(prompts)
            beginning = decode.read(plain, prompts[0][:shared])
            new = decode.answers(plain, prompts, given.tokens, given.rows, [], filling, beginning=beginning)
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            assert {len(tokens) for tokens in new} == {given.tokens}
            ratio = min(seconds[name]) / min(seconds["cold"])
            print(f"turn {turn}: {name}: {len(rows)} answers of {given.tokens} tokens after {len(prompts[0])} "
                  f"({shared} shared) in {seconds[name][-1]:.1f} s; best {ratio:.2f} x cold", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
