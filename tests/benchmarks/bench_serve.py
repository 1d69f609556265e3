"""What serving takes: from the command to an answer, the first token, load, and what is left after stop and kill.

    python tests/benchmarks/bench_serve.py RUN [--outputs DIR] [--repeats 5] [--requests 64]

RUN is an exported run. Times are of this machine, with nothing else at work on it."""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from lib.run import runs
from lib.run.paths import ROOT
from lib.run.runs import read_rows
from lib.ship import deploy


def start(run: str, outputs: Path) -> tuple[subprocess.Popen, str]:
    """`sharpen serve`, and its address once it listens."""
    command = [sys.executable, "-m", "lib.cli", "serve", run, "--port", "0", "--outputs", str(outputs)]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    served.stdout.readline()
    return served, served.stdout.readline().split()[2].removesuffix("/v1,")


def left_after(run: str, outputs: Path, stop: signal.Signals) -> int:
    """Processes that are left two seconds after the command got this signal."""
    served, _ = start(run, outputs)
    family = [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
    assert len(family) == 2
    served.send_signal(stop)
    served.wait()
    _, alive = psutil.wait_procs(family, timeout=2)
    return len(alive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--repeats", type=int, default=5, help="commands started; idle requests are ten times as many")
    parser.add_argument("--requests", type=int, default=64, help="of each number at once")
    options = parser.parse_args()
    rows = read_rows(runs.output(options.outputs / options.run, "prepare", "test.jsonl"), options.requests, gold=True)
    chats = [row["messages"][:-1] for row in rows]
    most = deploy.settings_of(options.outputs / options.run).max_new_tokens

    seconds = []
    for _ in range(options.repeats):
        began = time.monotonic()
        served, url = start(options.run, options.outputs)
        asyncio.run(deploy.ask(url, options.run, chats[:1], most))
        seconds.append(time.monotonic() - began)
        served.terminate()
        served.wait()
    print(f"from the command to a whole answer: {statistics.median(seconds):.2f} s (median of {options.repeats}; "
          f"{min(seconds):.2f} to {max(seconds):.2f})")  # fmt: skip

    served, url = start(options.run, options.outputs)
    idle = asyncio.run(deploy.ask(url, options.run, (chats * 10)[: 10 * options.repeats], most))
    first = sorted(1000 * row["first_token_seconds"] for row in idle)
    print(f"first token on an idle server: {statistics.median(first):.0f} ms, the slowest of {len(first)} "
          f"{first[-1]:.0f} ms")  # fmt: skip
    for row in asyncio.run(deploy.load_test(url, options.run, chats, most)):
        first = [1000 * row[f"first_token_p{share}_seconds"] for share in (50, 95)]
        print(f"{row['concurrent']:>2} at once: {row['errors']} errors of {row['requests']}, first token "
              f"{first[0]:.0f} ms (p95 {first[1]:.0f}), answer "
              f"{row['latency_p50_seconds']:.2f} s (p95 {row['latency_p95_seconds']:.2f}), "
              f"{row['tokens_per_second']:,.0f} tokens/s")  # fmt: skip
    served.terminate()
    served.wait()
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        print(f"processes left after {stop.name}: {left_after(options.run, options.outputs, stop)}")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
