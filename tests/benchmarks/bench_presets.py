"""How long each preset's rehearsal takes, from its files to its report: `python tests/benchmarks/bench_presets.py`.

Reach: at most 90 s each on two cores. Names as arguments rehearse those alone. The test suite rehearses one preset for
each format of data (tests/test_presets_rehearsed.py), CI the others too, by this; one that fails ends it.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lib.pipeline import execute
from lib.run.presets import PRESETS
from tests.test_presets_rehearsed import filings, finance, grade_school, news, own, pairs

FILES = {"corpus": news, "mixture": finance, "gsm8k": grade_school, "own": own, "trader_dpo": pairs}
FILES |= dict.fromkeys(("finqa", "tatqa", "convfinqa"), filings)

if __name__ == "__main__":
    for name in sys.argv[1:] or PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            write, overrides = FILES.get(PRESETS[name].settings.source), {}
            if write:
                write(Path(folder) / "data", random.Random(5))
                overrides = {"data_dir": f"{folder}/data"}
            began = time.perf_counter()
            done = execute.run(name, None, overrides, rehearse=True, outputs=folder, echo=lambda _: None)
            assert [state for _, state, _ in done.stages] == ["done"] * 4
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
