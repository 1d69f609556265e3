"""What answers a run's questions: torch, with the model as it was trained, or base and tuned model behind llama-server
or vLLM."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lib.data import chat
from lib.engine import llamacpp, vllm_client
from lib.engine.client import EngineError, Served
from lib.engine.vllm_client import Vllm
from lib.judge.answers import MODELS
from lib.run import runs
from lib.run.paths import is_local
from lib.run.settings import EvaluateSettings

NAMES = ("torch", "vllm", "llama-server")


def chosen(settings: EvaluateSettings, adapter: Path) -> str:
    """The engine that `eval_engine` names; "auto" is vLLM on a GPU where it is installed and can, else torch.

    EngineError where the one that is named cannot answer for this adapter, or here."""
    import torch

    name = settings.eval_engine
    if name != "auto":
        check(name, settings, adapter)
        return name
    if not torch.cuda.is_available() or not vllm_client.python():
        return "torch"
    if reason := _why_not("vllm", settings, adapter):
        print(f"torch answers, not vllm: {reason}")
        return "torch"
    return "vllm"


def check(name: str, settings: EvaluateSettings, adapter: Path) -> None:
    """EngineError where an engine cannot answer for this adapter, or is not here."""
    if reason := _why_not(name, settings, adapter):
        raise EngineError(f"eval_engine = {name!r}: {reason}; or set eval_engine = 'torch'")


def _why_not(name: str, settings: EvaluateSettings, adapter: Path) -> str | None:
    if name == "torch":
        return None
    from lib.ship import export  # what torch alone does not need stays no part of its code

    if settings.load_in_8bit:
        return "load_in_8bit = True rounds in a way of its own: other weights would be asked than were trained"
    try:
        method = export.method(adapter)
    except export.ExportError as error:
        return str(error)
    if name == "llama-server":
        llamacpp.named(settings.llama_cpp_path)
    elif method != "LoRA":
        return f"vLLM lays LoRA alone on a base by request, and this run is tuned by {method}"
    elif not vllm_client.python():
        return vllm_client.ABSENT
    return None


@contextmanager
def started(
    name: str, settings: EvaluateSettings, adapter: Path, folder: Path, tokenizer: Any, rows: Sequence[dict],
    models: Sequence[str] = MODELS,
) -> Iterator[dict[str, Served]]:  # fmt: skip
    """{"base": what answers for it, "tuned": ...} while the block runs; for torch none: there models answer themselves.

    `rows`: the longest questions that will be asked are among them; `folder`: where files that must be made lie while
    the block runs."""
    if name == "torch":
        yield {}
        return
    prompts = [chat.asked_ids(row, tokenizer) for row in rows]
    longest = max(map(len, prompts)) + settings.max_new_tokens
    made = folder / ".engine"
    made.mkdir(parents=True, exist_ok=True)
    start = {"vllm": _vllm, "llama-server": _llama}[name]
    with ExitStack() as stack:
        yield start(stack, settings, adapter, made, tokenizer, longest, models)
    shutil.rmtree(made)  # after an error they are kept: an attempt that goes on from there need not make them again


def _vllm(stack: ExitStack, settings, adapter: Path, made: Path, tokenizer, longest: int, models) -> dict[str, Served]:
    """Both models in one engine: the base, and LoRA on it."""
    import torch

    from lib.ship import export

    base, quantization = export.base_folder(settings.base_model), None
    if settings.load_in_4bit and torch.cuda.is_available():
        quantization = "bitsandbytes"
    elif _rounded(settings):  # vLLM rounds on GPUs alone
        facts = {"base": str(base), "rounded": True}
        export.keep(made, "base", facts, lambda part: export.merge(base, None, part, tokenizer, True))
        base = made / "base"
    ends, slots = chat.end_ids(tokenizer), settings.eval_batch_size
    server = stack.enter_context(Vllm(vllm_client.python(), base, adapter, longest, slots, ends, quantization))
    label = f"vllm {server.version}"
    return {model: Served(server, label, tuned=model == "tuned") for model in models}


def _llama(stack: ExitStack, settings, adapter: Path, made: Path, tokenizer, longest: int, models) -> dict[str, Served]:
    """A server for each model, of an f16 file: notebook 40's, or one that is made."""
    llama, served = llamacpp.find(settings.llama_cpp_path), {}
    for model in models:
        file = None
        if model == "tuned":
            file = _exported(adapter.parent)
        file = file or _converted(llama, model, settings, adapter, made, tokenizer)
        server = stack.enter_context(llamacpp.server_for(llama, file, longest, settings.eval_batch_size))
        served[model] = Served(server, "llama-server (f16)")
    return served


def _rounded(settings: EvaluateSettings) -> bool:
    """Was the base rounded to 4 bit in training? (One from a hub comes with 4-bit files of its own.)"""
    return settings.load_in_4bit and is_local(settings.base_model)


def _exported(run_folder: Path) -> Path | None:
    """The f16 file that notebook 40 made of the adapter that is here now, if there is one."""
    name = f"{run_folder.name}-f16.gguf"
    if not runs.is_complete(run_folder, "export"):
        return None
    export, train = runs.read(run_folder, "export"), runs.read(run_folder, "train")
    as_trained = export["settings"].get("merge_onto") == "trained"
    if name in export["outputs"] and as_trained and export["inputs"].get("adapter") == train["outputs"]:
        return runs.output(run_folder, "export", name)
    return None


def _converted(llama: llamacpp.LlamaCpp, model: str, settings, adapter: Path, made: Path, tokenizer) -> Path:
    """Base or tuned model as an f16 file, onto the base as it was trained on, as notebook 40 makes it."""
    from lib.ship import export

    base, merged = export.base_folder(settings.base_model), made / f"{model}-merged"
    rounded, tuned = _rounded(settings), None
    if model == "tuned":
        tuned = adapter

    def make(part: Path) -> dict:
        shutil.rmtree(merged, ignore_errors=True)  # of an attempt that was killed
        export.merge(base, tuned, merged, tokenizer, rounded)
        facts = export.to_gguf(llama, merged, part, "f16", model)
        shutil.rmtree(merged)
        return facts

    key = {"base": str(base), "adapter": tuned and runs.hashes_of(tuned), "rounded": rounded}
    export.keep(made, f"{model}.gguf", key, make)
    return made / f"{model}.gguf"
