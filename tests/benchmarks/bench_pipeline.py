"""What does `sharpen run` cost beside one plain script? `python tests/benchmarks/bench_pipeline.py [NAME=VALUE ...]`

The demo, with these settings changed, once by the command and once as a script: the same notebooks' cells one after the
other in one process, without kernels, papermill, pictures rendered for the page, or a report. Reach: a stage starts
(its kernel, its imports) within 12 s, and all the rest is at most 3 % more than in the script.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from lib.presets import NOTEBOOKS, ROOT

STAGES = ("prepare", "train", "evaluate", "compare")
# Each stage's script has names of its own, as its notebook has: a start refuses those that it does not know
DRIVER = """
import json, runpy, sys, time
from lib import qlora  # first: Unsloth patches the others
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
    return cells, 1 + next(i for i, source in enumerate(cells) if source.startswith("from lib import presets"))


def by_command(outputs: Path, changes: list[str]) -> tuple[float, dict[str, tuple[float, float]]]:
    """Seconds in all, and of each stage (until its imports are done, after)."""
    words = [word for change in changes for word in ("--set", change)]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lib.cli", "run", "demo", "--run", "bench", "--outputs", outputs, *words],
                   cwd=ROOT, check=True, stdout=sys.stderr)  # fmt: skip
    elapsed, found = time.perf_counter() - began, {}
    for stage in STAGES:
        notebook = json.loads((outputs / f"bench/notebooks/{NOTEBOOKS[stage]}.ipynb").read_text())
        imports = sources(notebook)[0][sources(notebook)[1] - 1]
        done = next(cell for cell in notebook["cells"] if "".join(cell["source"]) == imports)
        whole, done = notebook["metadata"]["papermill"], done["metadata"]["papermill"]
        times = [datetime.fromisoformat(text) for text in (whole["start_time"], done["end_time"], whole["end_time"])]
        found[stage] = ((times[1] - times[0]).total_seconds(), (times[2] - times[1]).total_seconds())
    return elapsed, found


def by_script(outputs: Path, executed: Path) -> tuple[float, dict[str, tuple[float, float]]]:
    """The same of one process that runs the cells of the executed notebooks, parameters included."""
    scripts = []
    for stage in STAGES:
        cells, imported = sources(json.loads((executed / f"{NOTEBOOKS[stage]}.ipynb").read_text()))
        cells.insert(imported, "import time as _time\n_ready = _time.perf_counter()")
        cells.insert(imported - 1, f"outputs = {str(outputs)!r}")
        scripts.append(outputs / f"{stage}.py")
        scripts[-1].write_text("\n".join(cells))
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", DRIVER, outputs / "times.json", *scripts], cwd=ROOT / "notebooks", check=True,
                   stdout=subprocess.DEVNULL, env=environment)  # fmt: skip
    elapsed = time.perf_counter() - began
    return elapsed, dict(zip(STAGES, json.loads((outputs / "times.json").read_text()).values(), strict=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("command", "script")]
        for place in places:
            place.mkdir()
        (in_all, command) = by_command(places[0], sys.argv[1:])
        (plain, script) = by_script(places[1], places[0] / "bench/notebooks")
    print(f"\n{'seconds':<10}{'start':>8}{'in script':>11}{'rest':>8}{'in script':>11}{'overhead':>10}")
    for stage in STAGES:
        (start, rest), (imports, work) = command[stage], script[stage]
        print(f"{stage:<10}{start:>8.1f}{imports:>11.1f}{rest:>8.1f}{work:>11.1f}{rest - work:>10.1f}")
    starts, work = (sum(found[stage][i] for stage in STAGES) for found, i in ((command, 0), (script, 1)))
    over = in_all - starts - work
    print(f"all: {in_all:.1f} by the command, {plain:.1f} by the script; of it starts of stages {starts:.1f}, at most "
          f"{max(start for start, _ in command.values()):.1f} (reach: 12)")  # fmt: skip
    print(f"the rest: {over:.1f} s over {work:.1f} s, {over / work:.1%} (reach: 3 %), the command's own start and the "
          f"report included")  # fmt: skip


if __name__ == "__main__":
    main()
