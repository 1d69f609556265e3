"""The reward for a right answer on answers that cheat, beside the one that TRL's guides use.

    python -m pip install --target FOLDER math-verify==0.9.0
    PYTHONPATH=.:FOLDER python tests/benchmarks/bench_rewards.py

The file is tests/train/adversarial.jsonl: 200 answers, 100 of them written without sight of any reward's code. Printed
is, for each reward, how many cheats it pays for and how many honest answers it does not. Math-Verify (0.9.0) parses and
compares; TRL's `accuracy_reward` calls it for LaTeX alone, so an unmarked or `####` answer earns nothing there. Golds
are given to both as text.
"""

import json
from pathlib import Path

from math_verify import parse, verify
from trl.rewards import accuracy_reward

from lib.train import rewards

FILE = Path(__file__).parents[1] / "train/adversarial.jsonl"


def main():
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    golds = [f"${row['gold']['value']}$" for row in rows]
    by_trl = accuracy_reward([[{"content": row["completion"]}] for row in rows], golds)
    paid = {
        "Sharpen": [rewards.right(row["completion"], row["gold"], row["finished"]) for row in rows],
        "Math-Verify": [float(verify(parse(gold), parse(row["completion"]))) for gold, row in zip(golds, rows)],
        "TRL's accuracy_reward": by_trl,
    }
    for name, values in paid.items():
        false = [value for value, row in zip(values, rows, strict=True) if value and not row["right"]]
        missed = [row for value, row in zip(values, rows, strict=True) if not value and row["right"]]
        cheats, honest = (sum(row["right"] == right for row in rows) for right in (False, True))
        print(f"{name:<22} paid for {len(false)} of {cheats} cheats, not for {len(missed)} of {honest} honest answers")


if __name__ == "__main__":
    main()
