"""What serving takes: the front before llama-server beside llama-server alone, its load, and what it outlives.

    python tests/benchmarks/bench_serve.py RUN [--outputs DIR] [--rounds 3] [--requests 32] [--tokens 200]
    python tests/benchmarks/bench_serve.py RUN --outlives 10000

RUN is a run with a GGUF file. First: the same chats, streamed, calculator off, to the front and to llama-server alone
in turn, with `ignore_eos`, so that both write as many tokens; then the front with its calculator. With --outlives: so
many requests, 16 at once, every tenth malformed, huge, or left by its client, the engine killed twice on the way.
Times are of this machine, with nothing else at work on it. As the last line, JSON."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from lib.run import runs
from lib.run.paths import ROOT
from lib.ship import deploy

CONCURRENT = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=32, help="of each number at once, in each round")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--outlives", type=int, default=0, help="requests")
    given = parser.parse_args()
    folder = given.outputs / given.run
    rows = runs.read_rows(runs.output(folder, "prepare", "test.jsonl"), given.requests, gold=True)
    chats = [row["messages"][:-1] for row in rows]
    measure = asyncio.run(outlive(given, chats)) if given.outlives else asyncio.run(beside(given, folder, chats))
    print(json.dumps(measure))


@contextlib.contextmanager
def front(given: argparse.Namespace) -> Iterator[tuple[subprocess.Popen, str, float]]:
    """`sharpen serve`, its address, and the seconds until it listened."""
    command = [sys.executable, "-m", "lib.cli", "serve", given.run, "--port", "0", "--outputs", str(given.outputs)]
    began = time.monotonic()
    served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    served.stdout.readline()
    url = served.stdout.readline().split()[2].removesuffix("/v1,")
    try:
        yield served, url, time.monotonic() - began
    finally:
        served.terminate()
        served.wait()


# --- beside llama-server alone ------------------------------------------------------------------------------------
async def beside(given: argparse.Namespace, folder: Path, chats: list) -> dict:
    settings = deploy.settings_of(folder)
    choice = deploy.choose(folder, settings)
    same = {"max_tokens": given.tokens, "ignore_eos": True, "temperature": 0, "stream": True, "model": given.run}
    ways = {"alone": same, "front": same | {"calculator": False}}
    found: dict = {}
    make = deploy.engine(choice, folder, settings, Path())
    with front(given) as (_, url, seconds), make(0) as engine:
        urls = {"alone": engine.url, "front": url}
        for name in ways:
            await load(urls[name], ways[name], chats[:4], 4, given.tokens)  # warm
        for _ in range(given.rounds):
            for count in CONCURRENT:
                for name in ways:
                    measured = await load(urls[name], ways[name], chats, count, given.tokens)
                    found.setdefault((count, name), []).append(measured)
        by_mark = {"temperature": 0, "stream": True, "model": given.run, "max_tokens": settings.max_new_tokens}
        marks = await deploy.load_test(url, given.run, chats, by_mark["max_tokens"])
    measures = {"starts in seconds": seconds}
    for count in CONCURRENT:
        speeds = {name: statistics.median(speed for speed, _ in found[count, name]) for name in ways}
        first = {name: statistics.median(seconds for _, firsts in found[count, name] for seconds in firsts)
                 for name in ways}  # fmt: skip
        measures[f"{count} at once"] = {
            "alone, tokens/s": speeds["alone"], "front, tokens/s": speeds["front"],
            "front's share": speeds["front"] / speeds["alone"],
            "first token, ms more": 1000 * (first["front"] - first["alone"]),
            "calculator on, tokens/s": next(r["tokens_per_second"] for r in marks if r["concurrent"] == count),
        }  # fmt: skip
        print(count, measures[f"{count} at once"])
    return measures


async def load(url: str, body: dict, chats: list, concurrent: int, tokens: int) -> tuple[float, list[float]]:
    """(tokens a second over all, seconds to each answer's first text) of chats that are streamed."""
    slots, firsts = asyncio.Semaphore(concurrent), []

    async def ask(client: httpx.AsyncClient, messages: list) -> None:
        async with slots:
            began, heard = time.perf_counter(), None
            async with client.stream("POST", "/v1/chat/completions", json=body | {"messages": messages}) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for part in answer.aiter_raw():
                    if not heard and b'"content":"' in part.replace(b'"content":""', b""):
                        heard = time.perf_counter() - began
            firsts.append(heard)

    # a new connection each time: llama-server drops some that it has streamed on
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(ask(client, messages) for messages in chats))
        return tokens * len(chats) / (time.perf_counter() - began), firsts


# --- what it outlives -----------------------------------------------------------------------------------------------
async def outlive(given: argparse.Namespace, chats: list) -> dict:
    statuses, memory, kills, slots = Counter(), [], [], asyncio.Semaphore(16)
    body = {"model": given.run, "temperature": 0, "max_tokens": 40}
    with front(given) as (served, url, _):
        process = psutil.Process(served.pid)

        async def ask(client: httpx.AsyncClient, number: int) -> None:
            kind = "good" if number % 10 else ("malformed", "huge", "left")[number // 10 % 3]
            asked = body | {"messages": chats[number % len(chats)], "stream": bool(number % 2) or kind == "left"}
            if kind == "malformed":
                asked |= {"temperature": "warm"}
            if kind == "huge":
                asked |= {"user": "x" * (2 << 20)}
            async with slots:
                try:
                    async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
                        status = str(answer.status_code)
                        async for line in answer.aiter_lines():
                            if kind == "left":
                                break
                            if line.startswith('data: {"error"'):
                                status = str(json.loads(line[6:])["error"]["code"])
                except httpx.TransportError as error:
                    status = type(error).__name__
                statuses[kind, status] += 1
            if sum(statuses.values()) in (given.outlives // 3, 2 * given.outlives // 3):
                (engine,) = process.children()
                engine.kill()
                kills.append(sum(statuses.values()))
            if not sum(statuses.values()) % (given.outlives // 10):
                memory.append(process.memory_info().rss / 2**20)
                print(f"{sum(statuses.values())} requests, {memory[-1]:.0f} MiB, {dict(statuses)}", flush=True)

        limits = httpx.Limits(max_keepalive_connections=0, max_connections=20)
        async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, limits=limits) as client:
            for begin in range(0, given.outlives, 1000):
                await asyncio.gather(*(ask(client, n) for n in range(begin, min(begin + 1000, given.outlives))))
            metrics = (await client.get("/metrics")).text
        family = [process, *process.children(recursive=True)]
        served.send_signal(signal.SIGTERM)
        served.wait()
        _, left = psutil.wait_procs(family, timeout=2)
    wanted = ("sharpen_requests_r", "sharpen_requests_w", "sharpen_engine_restarts_total")
    told = [line for line in metrics.splitlines() if line.startswith(wanted)]
    return {
        "answers": {f"{kind}, {status}": count for (kind, status), count in sorted(statuses.items())},
        "engine killed after": kills, "memory, MiB": memory, "at the end": told, "processes left": len(left),
    }  # fmt: skip


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
