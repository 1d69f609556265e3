"""How much memory rows take: `python tests/benchmarks/bench_sources.py`.

Reach: a million rows of JSONL in at most 1.6 GB, as the plain list that they are loaded as, and streamed in a size that
does not grow with them. Rows are like GSM8K's, of 75 to 230 characters. Each figure is of a process of its own: the
peak above what its imports took.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = 1_000_000
MEASURE = """
import resource, sys, time
from pathlib import Path
from lib.data import sources
from lib.run import presets
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
way, path = sys.argv[1], Path(sys.argv[2])
local = {"data_dir": str(path), "base_model": "data/base", "chat_template": None, "train_rows": None}
settings, before, began = presets.resolve("llama32_3b_gsm8k", local).settings, peak(), time.process_time()
if way == "stream":
    count = sum(1 for _ in sources.stream(settings, path, []))
else:
    count = len(sources.load(settings, ["train"])["train"].rows)
print(f"{way}: {count:,} rows, {(peak() - before) / 1e9:.3f} GB, {time.process_time() - began:.0f} s of one core")
"""


def write(path: Path, count: int) -> None:
    """`count` problems, of different lengths."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            question = f"Ann buys {number} pens at $2 each. " * (1 + number % 4) + "What does she pay?"
            answer = f"Each pen costs $2, so {number} pens cost {number} * 2 = {2 * number}.\n#### {2 * number}"
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        write(path, ROWS)
        print(f"{path.name}: {path.stat().st_size / 1e9:.3f} GB")
        for way in ("stream", "load"):
            subprocess.run([sys.executable, "-c", MEASURE, way, str(path)], check=True)
