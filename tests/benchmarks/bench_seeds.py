"""What training brought over several seeds: each run's model against the one that it went on from, and all together.

    python tests/benchmarks/bench_seeds.py outputs/demo_rewards outputs/rft_1 outputs/rft_2

The runs were asked the same test questions. The interval of all takes a question's changes as one cluster: it holds for
other questions, not for other seeds. As the last line, JSON."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lib.grade import stats
from lib.judge import answers
from lib.run import runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    changes, questions = [], []
    for folder in parser.parse_args().runs:
        results = runs.read_rows(runs.output(folder, "evaluate", "generations.jsonl"))
        before, after = (answers.arm(results, model, "test", True) for model in ("before", "tuned"))
        print(folder.name, answers.change(answers.pair(before, after)))
        changes += [b["correct"] - a["correct"] for a, b in zip(before, after)]
        questions += answers.column(before, "id")
    print(json.dumps(asdict(stats.clustered(changes, questions))))


if __name__ == "__main__":
    main()
