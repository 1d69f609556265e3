"""vLLM in a process of its own, in this Python or another: base and tuned model in one engine, asked by token ids."""

import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lib.engine import vllm_worker
from lib.engine.client import EngineError
from lib.engine.llamacpp import last_words, start
from lib.run import processes, untrusted

PYTHON = "SHARPEN_VLLM_PYTHON"
WORKER = vllm_worker.__file__  # imported, so that a run counts it among its code
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM makes room for
# In one process, which ends at once when it is ended; PYTHONSAFEPATH: its folder holds modules of ours.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
               "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONSAFEPATH": "1"}  # fmt: skip
ABSENT = f"vLLM is not installed: pip install vllm, or name the Python of an environment that has it by {PYTHON}"
START_SECONDS = 900  # a large model is loaded and compiled


def python() -> str | None:
    """The Python that has vLLM: the one that SHARPEN_VLLM_PYTHON names, else this one; None where it has none.

    EngineError where the one that is named has none."""
    named = os.environ.get(PYTHON)
    if not named:
        found = importlib.util.find_spec("vllm")
        if found and found.origin:  # a folder `vllm` would pass for a module
            return sys.executable
        return None
    look = "import importlib.util as u, sys; found = u.find_spec('vllm'); sys.exit(not (found and found.origin))"
    try:
        asked = subprocess.run([named, "-I", "-c", look], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{PYTHON} = {named!r}: cannot be run ({error}); name a Python, or unset it") from None
    if asked.returncode:
        raise EngineError(f"{PYTHON} = {named!r}: has no vllm; install it there, name another Python, or unset it")
    return named


def max_lora_rank(adapter: Path) -> int:
    """The rank that vLLM must make room for."""
    rank = untrusted.read_json(adapter / "adapter_config.json")["r"]
    return next((most for most in LORA_RANKS if most >= rank), rank)


class Vllm:
    """vLLM with a base and, where `adapter` names one, LoRA on it, while a `with` block runs.

    `context`: tokens of the longest prompt and answer together; `slots`: prompts answered at once; `ends`: tokens that
    end an answer; `quantization`: as vLLM names it ("bitsandbytes": in 4 bit)."""

    def __init__(self, python: str, model: Path, adapter: Path | None, context: int, slots: int, ends: Sequence[int],
                 quantization: str | None = None):  # fmt: skip
        self.python, self.model, self.slots = python, Path(model), slots
        self.asked = {"model": str(model), "adapter": adapter and str(adapter), "context": context, "slots": slots,
                      "ends": list(ends), "quantization": quantization}  # fmt: skip
        if adapter:
            self.asked["rank"] = max_lora_rank(adapter)
        self.waiting: dict[int, Future] = {0: Future()}  # by the number of what was asked; 0: for the start
        self.ended: EngineError | None = None  # why nothing more is read
        self.numbers, self.lock = itertools.count(1), threading.Lock()

    def __enter__(self) -> "Vllm":
        self.log = tempfile.NamedTemporaryFile(prefix="sharpen-vllm-", suffix=".log")
        environment = os.environ | ENVIRONMENT
        if self.python != sys.executable:
            environment.pop("PYTHONPATH", None)  # it leads to packages of this one
        self.process = start(
            [self.python, WORKER, json.dumps(self.asked)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, encoding="utf-8", env=environment,
        )  # fmt: skip
        self.reader, ready = threading.Thread(target=self._read, daemon=True), self.waiting[0]
        self.reader.start()
        try:
            self.version = ready.result(START_SECONDS)["version"]
        except TimeoutError:
            self._end()
            raise EngineError(f"vllm ({self.model.name}) did not load in {START_SECONDS} s") from None
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._end()

    def _end(self) -> None:
        if self.process.poll() is None:
            processes.kill(processes.family(self.process.pid))  # they hold nothing that must be saved
        self.process.wait()
        self.reader.join()
        self.log.close()

    def _read(self) -> None:
        """Hand each reply to who waits for it; when the process has ended, say so to all."""
        for line in self.process.stdout:
            said = json.loads(line)
            with self.lock:
                waiting = self.waiting.pop(said["id"])
            waiting.set_result(said)
        said = last_words(Path(self.log.name).read_text(errors="replace").splitlines())
        with self.lock:
            self.ended = EngineError(
                f"vllm ({self.model.name}) has ended: {said}; to do without it: eval_engine = 'torch'"
            )
            for waiting in self.waiting.values():
                waiting.set_exception(self.ended)

    def complete(self, ids: list[int], count: int, stop: Sequence[str] = (), slot: int = -1,
                 tuned: bool = False) -> list[int]:  # fmt: skip
        """Up to `count` greedy tokens after the prompt `ids`, through its end or a text in `stop`, inclusive.

        What an earlier prompt began with is not computed again; `slot` is llama-server's, and is ignored."""
        number, reply = next(self.numbers), Future()
        line = json.dumps({"id": number, "prompt": ids, "count": count, "stop": list(stop), "tuned": tuned})
        with self.lock:
            if self.ended:  # while its process dies it can still be written to
                raise self.ended
            self.waiting[number] = reply
            with contextlib.suppress(OSError):  # it has ended: `_read` tells those who wait
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
        said = reply.result()
        if "error" in said:
            raise EngineError(f"vllm ({self.model.name}) refuses a prompt of {len(ids)} tokens: {said['error']}")
        return said["tokens"]
