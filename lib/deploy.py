"""Serve a run's best artefact on this machine's loopback by an existing engine, ask it, and measure it."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import llamacpp, presets, runs, scoring, untrusted
from lib.llamacpp import Program

CONCURRENT = (1, 4, 16)  # requests at once in the load test
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM makes room for
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class DeployError(RuntimeError):
    """A run cannot be served as asked, or its server does not answer; the message says what to do."""


@dataclass(frozen=True)
class Choice:
    """What serves a run: an engine, the file or folder that it loads, and why these."""

    engine: str
    path: Path
    why: str


def settings_of(run_folder: Path, **overrides: Any) -> presets.Settings:
    """The settings that a run was made with, from its manifests, then `overrides`."""
    complete = [stage for stage in ("evaluate", "export") if (run_folder / runs.FOLDERS[stage] / "manifest.json").exists()]
    manifests = [runs.read(run_folder, stage) for stage in ("train", *complete)]
    made = {name: value for manifest in manifests for name, value in manifest["settings"].items()}
    return presets.resolve(manifests[0]["preset"], made | overrides, manifests[0]["rehearse"], stage="deploy").settings


def choose(run_folder: Path, settings: Any) -> Choice:
    """The best artefact that there is and the engine for it: the file that notebook 40 ships, else the merged model,
    else the adapter. RunError where the wanted engine has nothing to serve, or a file is not as its manifest says."""
    model, what = run_folder / "adapter", "the adapter, as there is no export"
    exported = (run_folder / "export" / "manifest.json").exists()
    outputs = runs.read(run_folder, "export" if exported else "train")["outputs"]
    if exported:
        model, what = run_folder / "export" / "merged", "the merged model"
    if "Modelfile" in outputs and settings.engine in ("auto", "llama-server"):
        file = runs.output(run_folder, "export", "Modelfile").read_text().partition("\n")[0].removeprefix("FROM ./")
        return Choice("llama-server", runs.output(run_folder, "export", file), f"notebook 40 ships {file}")
    if settings.engine == "llama-server":
        raise runs.RunError(f"engine = 'llama-server': run {run_folder.name!r} has no GGUF file: run 40_export first, "
                            f"or leave the engine out")  # fmt: skip
    if problems := runs.changes(run_folder, "export" if exported else "train"):
        raise runs.RunError(f"{model}: {'; '.join(problems)}: run its notebook again")
    if settings.engine == "vllm" and not shutil.which("vllm"):
        raise runs.RunError("engine = 'vllm': there is no program vllm: pip install vllm (it needs a GPU)")
    gpu = shutil.which("vllm") and shutil.which("nvidia-smi")
    engine = settings.engine if settings.engine != "auto" else "vllm" if gpu else "transformers"
    reason = "you chose it" if settings.engine != "auto" else "vllm and a GPU are here" if gpu else (
        "there is no GPU with vllm")  # fmt: skip
    return Choice(engine, model, f"{what}; {engine}, as {reason}")


@contextlib.contextmanager
def serving(choice: Choice, run_folder: Path, settings: Any) -> Iterator[Program]:
    """The server while the block runs, healthy at its beginning; those who ask call the model by the run's name."""
    context = -(-(settings.max_length + settings.max_new_tokens) // 64) * 64
    with tempfile.TemporaryDirectory(prefix="sharpen-serve-") as folder:
        if choice.engine == "llama-server":
            llama = llamacpp.find(settings.llama_cpp_path)
            program = llamacpp.Server(llama, choice.path, context, settings.parallel, port=settings.port,
                                      alias=run_folder.name)  # fmt: skip
        else:
            model = _loadable(choice.path, Path(folder) / run_folder.name, settings)
            command = {"vllm": _vllm, "transformers": _transformers}[choice.engine](model, settings, context)
            program = Program(f"{choice.engine} serve", command, settings.parallel, settings.port, 600, Path(folder),
                              OFFLINE)  # fmt: skip
        with program:
            yield program
