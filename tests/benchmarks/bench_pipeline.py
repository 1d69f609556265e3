"""What does `sharpen run` cost beside one plain script? `python tests/benchmarks/bench_pipeline.py [NAME=VALUE ...]`

The demo, with these settings changed, once by the command and once as a script: the same notebooks' cells one after the
other in one process, without kernels, papermill, pictures rendered for the page, or a report. Reach: at most 12 s a
stage (kernel start and imports) and 3 % of the rest. A stage's start ends with its cell of imports; what is imported
later (transformers for the tokenizer) counts as overhead too, as the script has it from its beginning.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from lib.run.paths import ROOT
from lib.run.stages import IN_EVERY_RUN, STAGES

ROUNDS = 3  # command and script in turns
# Each stage's script has names of its own, as its notebook has: a start refuses those that it does not know
DRIVER = """
import json, runpy, sys, time
from lib.train import qlora  # first: Unsloth patches the others
found = {}
for script in sys.argv[2:]:
    began = time.perf_counter()
    ready = runpy.run_path(script)["_ready"]
    found[script] = [ready - began, time.perf_counter() - ready]
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


def sources(notebook: dict) -> tuple[list[str], int]:
    """The code cells' sources without the set-up for Colab, and how many of them end with the imports."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells = [source for source in cells if "google.colab" not in source]
    return cells, 1 + next(i for i, source in enumerate(cells) if source.startswith("from lib.run import parameters"))


def by_command(outputs: Path, changes: list[str]) -> tuple[float, dict[str, tuple[float, float]]]:
    """Seconds in all, and of each stage (until its imports are done, after)."""
    words = [word for change in changes for word in ("--set", change)]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lib.cli", "run", "demo", "--run", "bench", "--outputs", outputs, *words],
                   cwd=ROOT, check=True, stdout=sys.stderr)  # fmt: skip
    elapsed, found = time.perf_counter() - began, {}
    for stage in IN_EVERY_RUN:
        notebook = json.loads((outputs / f"bench/notebooks/{STAGES[stage].notebook}.ipynb").read_text())
        imports = sources(notebook)[0][sources(notebook)[1] - 1]
        done = next(cell for cell in notebook["cells"] if "".join(cell["source"]) == imports)
        whole, done = notebook["metadata"]["papermill"], done["metadata"]["papermill"]
        times = [datetime.fromisoformat(text) for text in (whole["start_time"], done["end_time"], whole["end_time"])]
        found[stage] = ((times[1] - times[0]).total_seconds(), (times[2] - times[1]).total_seconds())
    return elapsed, found


def by_script(outputs: Path, executed: Path) -> tuple[float, dict[str, tuple[float, float]]]:
    """The same of one process that runs the cells of the executed notebooks, parameters included."""
    scripts = []
    for stage in IN_EVERY_RUN:
        cells, imported = sources(json.loads((executed / f"{STAGES[stage].notebook}.ipynb").read_text()))
        cells.insert(imported, "import time as _time\n_ready = _time.perf_counter()")
        cells.insert(imported - 1, f"outputs = {str(outputs)!r}")
        scripts.append(outputs / f"{stage}.py")
        scripts[-1].write_text("\n".join(cells))
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", DRIVER, outputs / "times.json", *scripts], cwd=ROOT / "notebooks", check=True,
                   stdout=subprocess.DEVNULL, env=environment)  # fmt: skip
    elapsed = time.perf_counter() - began
    return elapsed, dict(zip(IN_EVERY_RUN, json.loads((outputs / "times.json").read_text()).values(), strict=True))


def main() -> None:
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / name for name in ("command", "script")]
            for place in places:
                place.mkdir()
            command = by_command(places[0], sys.argv[1:])
            rounds.append((*command, *by_script(places[1], places[0] / "bench/notebooks")))

    def middle(value) -> float:
        return statistics.median(value(*found) for found in rounds)

    print(f"\n{'seconds':<10}{'command':>9}{'script':>8}{'overhead':>10}{'start':>8}   medians of {ROUNDS}")
    for stage in IN_EVERY_RUN:
        by = [middle(lambda _, command, __, script, stage=stage: sum(command[stage])),
              middle(lambda _, command, __, script, stage=stage: script[stage][1])]  # fmt: skip
        start = middle(lambda _, command, *__, stage=stage: command[stage][0])
        print(f"{stage:<10}{by[0]:>9.1f}{by[1]:>8.1f}{by[0] - by[1]:>10.1f}{start:>8.1f}")
    work = middle(lambda _, __, ___, script: sum(found[1] for found in script.values()))
    both = [middle(lambda in_all, *_: in_all), middle(lambda _, __, plain, ___: plain)]
    outside = middle(lambda in_all, command, *_: in_all - sum(map(sum, command.values())))
    over = both[0] - work
    print(f"all: {both[0]:.1f} by the command, {both[1]:.1f} by the script, of it {work:.1f} work; before, between "
          f"and after the notebooks (report included) {outside:.1f}")  # fmt: skip
    print(f"overhead {over:.1f} s; reach: 12 s a stage, 3 % of the work, {12 * len(IN_EVERY_RUN) + 0.03 * work:.1f} s")


if __name__ == "__main__":
    main()
