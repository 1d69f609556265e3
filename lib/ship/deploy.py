"""Serve a run's best artefact on the loopback by an existing engine, ask it, and measure it."""

import asyncio
import contextlib
import json
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.engine import llamacpp
from lib.engine.llamacpp import Program
from lib.engine.vllm_client import max_lora_rank
from lib.grade import scoring
from lib.run import presets, runs, untrusted
from lib.run.paths import is_local, locate
from lib.run.settings import ServeSettings
from lib.run.stages import names_of

CONCURRENT = (1, 4, 16)  # requests at once in the load test
ADAPTER = "adapter_config.json"  # which a whole model's folder has not
# PYTHONSAFEPATH: the engine's folder holds a link of the run's name, which must not be taken for a module, as
# `statistics`, by the engine or by a process that it starts.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
               "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip


class DeployError(runs.RunError):
    """A run cannot be served as asked, or its server does not answer; the message has the remedy."""


@dataclass(frozen=True)
class Choice:
    """What serves a run: an engine, the file or folder that it loads, and why these."""

    engine: str
    path: Path
    why: str


def settings_of(run_folder: Path, **overrides: Any) -> ServeSettings:
    """The settings that a run was made with, from its manifests, then `overrides`."""
    made = {}
    for manifest in _manifests(run_folder):
        made |= runs.made_with(manifest)
    train = runs.read(run_folder, "train")
    return presets.resolve(train["preset"], made | overrides, train["rehearse"], stage="deploy").settings


def overrides_of(run_folder: Path) -> dict[str, Any]:
    """Those settings of notebook 41 in which a run differs from its preset."""
    overrides = {}
    for manifest in _manifests(run_folder):
        for name, value in runs.made_with(manifest).items():
            if name in names_of("deploy") and manifest["origins"].get(name) == "override":
                overrides[name] = value
    return overrides


def _manifests(run_folder: Path) -> list[dict]:
    later = [stage for stage in ("evaluate", "export") if runs.is_complete(run_folder, stage)]
    return [runs.read(run_folder, stage) for stage in ("train", *later)]


def choose(run_folder: Path, settings: ServeSettings) -> Choice:
    """The best artefact that there is and the engine for it: the file that notebook 40 ships, else
    the merged model, else the adapter. RunError where the wanted engine has nothing to serve, or a
    file is not as its manifest says."""
    if settings.llama_cpp_path is not None:
        llamacpp.named(settings.llama_cpp_path)  # also where nothing here needs it: it was named for a reason
    if runs.is_complete(run_folder, "export"):
        stage, model, what = "export", run_folder / "export" / "merged", "the merged model"
    else:
        stage, model, what = "train", run_folder / "adapter", "the adapter, as there is no export"
    if settings.engine in ("auto", "llama-server"):
        if "Modelfile" in runs.read(run_folder, stage)["outputs"]:
            modelfile = runs.output(run_folder, "export", "Modelfile").read_text()
            file = modelfile.partition("\n")[0].removeprefix("FROM ./")
            return Choice("llama-server", runs.output(run_folder, "export", file), f"notebook 40 ships {file}")
        if settings.engine == "llama-server":
            raise runs.RunError(f"engine = 'llama-server': run {run_folder.name!r} has no GGUF file: "
                                f"run 40_export first, or leave the engine out")  # fmt: skip
    if problems := runs.changes(run_folder, stage):
        raise runs.RunError(f"{model}: {'; '.join(problems)}: run its notebook again")
    if settings.engine == "vllm" and not shutil.which("vllm"):
        raise runs.RunError("engine = 'vllm': there is no program vllm: pip install vllm (it needs a GPU)")
    if settings.engine != "auto":
        engine, reason = settings.engine, "you chose it"
    elif shutil.which("vllm") and shutil.which("nvidia-smi"):
        engine, reason = "vllm", "vllm and a GPU are here"
    else:
        engine, reason = "transformers", "there is no GPU with vllm"
    return Choice(engine, model, f"{what}; {engine}, as {reason}")


@contextlib.contextmanager
def serving(choice: Choice, run_folder: Path, settings: ServeSettings) -> Iterator[Program]:
    """The server while the block runs, healthy at its start; the model goes by the run's name."""
    context = 64 * math.ceil((settings.max_length + settings.max_new_tokens) / 64)
    with tempfile.TemporaryDirectory(prefix="sharpen-serve-") as folder:
        if choice.engine == "llama-server":
            llama = llamacpp.find(settings.llama_cpp_path)
            program = llamacpp.Server(llama, choice.path, context, settings.parallel, port=settings.port,
                                      alias=run_folder.name)  # fmt: skip
            program.words += ["--cors-origins", "localhost"]  # no other site's page may read answers
        else:
            model = _loadable(choice.path, Path(folder) / run_folder.name, settings)
            words_for = _vllm if choice.engine == "vllm" else _transformers
            command = words_for(model, settings, context)
            program = Program(f"{choice.engine} serve", command, settings.parallel, settings.port, 600, Path(folder),
                              ENVIRONMENT)  # fmt: skip
        with program:
            yield program


def _loadable(model: Path, folder: Path, settings: ServeSettings) -> Path:
    """`folder`, through which an engine finds all that it loads: the model's files or, with an
    adapter, its own, the base's and the tokenizer: `transformers serve` takes a folder with a
    configuration for a whole model.

    SettingsError where one of these folders holds what must not be loaded."""
    locate(str(model))
    if not (model / ADAPTER).exists():
        folder.symlink_to(model.resolve())
        return folder
    from huggingface_hub import snapshot_download

    from lib.data import chat

    base = locate(settings.base_model)
    if not is_local(base):
        base = snapshot_download(base, allow_patterns=["*.safetensors", "*.json"])
    locate(str(untrusted.read_json(model / ADAPTER).get("base_model_name_or_path")))
    folder.mkdir()
    files = [*model.glob("adapter_*")]
    for pattern in ("model*.safetensors*", "config.json", "generation_config.json"):
        files += Path(base).glob(pattern)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    chat.load_tokenizer(settings).save_pretrained(folder)
    return folder


def _vllm(model: Path, settings: ServeSettings, context: int) -> list:
    """`vllm serve` with one model, or with a base and the adapter on it."""
    limits = ["--max-model-len", context, "--max-num-seqs", settings.parallel, "--generation-config", "vllm"]
    if not (model / ADAPTER).exists():
        return ["vllm", "serve", model, "--served-model-name", model.name, *limits]
    command = ["vllm", "serve", locate(settings.base_model), "--tokenizer", model, "--enable-lora",
               "--lora-modules", f"{model.name}={model}", "--max-lora-rank", max_lora_rank(model)]  # fmt: skip
    if settings.load_in_4bit:
        command += ["--quantization", "bitsandbytes"]
    return command + limits


def _transformers(model: Path, settings: ServeSettings, context: int) -> list:
    """`transformers serve` with the folder of the run's name in the working directory."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model.name]
    if (model / ADAPTER).exists():  # a merged model is rounded already
        if settings.load_in_4bit:
            command += ["--quantization", "bnb-4bit"]
        elif settings.load_in_8bit:
            command += ["--quantization", "bnb-8bit"]
    return command


async def ask(url: str, model: str, chats: Sequence[list[dict]], max_tokens: int, concurrent: int = 1) -> list[dict]:
    """Greedy answers to chats by /v1/chat/completions, in their order, `concurrent` at once.

    {"completion", "tokens", "finished", "first_token_seconds", "seconds"} each, or {"error"} where
    the server gave none."""
    import openai

    http = openai.DefaultAsyncHttpxClient(trust_env=False)  # no proxy between this machine and itself
    fresh = {"Connection": "close"}  # llama-server now and then drops a connection that it has streamed an answer on
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600, http_client=http,
                                default_headers=fresh)  # fmt: skip
    slots = asyncio.Semaphore(concurrent)

    async def answer(messages: list[dict]) -> dict:
        async with slots:
            began, first, text, counted = time.perf_counter(), None, "", {}
            try:
                async for chunk in await client.chat.completions.create(
                    model=model, messages=messages, temperature=0, max_tokens=max_tokens, stream=True,
                    stream_options={"include_usage": True},
                ):  # fmt: skip
                    if chunk.usage:
                        counted["tokens"] = chunk.usage.completion_tokens
                        counted["prompt_tokens"] = chunk.usage.prompt_tokens
                    for choice in chunk.choices:
                        if choice.delta.content:
                            first = first or time.perf_counter() - began
                            text += choice.delta.content
                        if choice.finish_reason:
                            counted["finished"] = choice.finish_reason == "stop"
            except openai.OpenAIError as error:
                return {"error": f"{type(error).__name__}: {error}"}
            seconds = time.perf_counter() - began
            return counted | {"completion": text, "first_token_seconds": first or seconds, "seconds": seconds}

    async with client:
        return await asyncio.gather(*map(answer, chats))


def same_prompt(server: Program, model: str, messages: list[dict], ids: list[int]) -> bool:
    """Does the server make of a chat the very token ids that we make of it?

    transformers renders the template as we do, so their number is enough. llama.cpp has a reader of
    templates of its own: asked for our ids where it has just answered the chat, it finds all but
    the last (which it must compute) in its cache only if each is the same."""
    chat = {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0}
    if not isinstance(server, llamacpp.Server):
        return server.post("/v1/chat/completions", chat)["usage"]["prompt_tokens"] == len(ids)
    server.post("/v1/chat/completions", chat | {"id_slot": 0, "cache_prompt": True})
    again = server.post("/completion", {"prompt": ids, "n_predict": 1, "id_slot": 0, "cache_prompt": True})
    return again["timings"]["cache_n"] == len(ids) - 1


def graded(rows: Sequence[dict], answers: Sequence[dict]) -> list[dict]:
    """Answers to test rows with verdicts, as `evaluate.ask` writes them; DeployError if one failed.

    A row without a gold has no verdict."""
    if failed := [answer["error"] for answer in answers if "error" in answer]:
        raise DeployError(f"{len(failed)} of {len(answers)} requests failed, e.g. {failed[0]}")
    results = []
    for row, answer in zip(rows, answers, strict=True):
        correct = None
        if row["gold"]:
            correct = scoring.grade(answer["completion"], row["gold"], answer["finished"]).correct
        results.append({"id": row["id"], "kind": row["kind"], "question": row["messages"][-2]["content"],
                        "gold": row["gold"], **answer, "correct": correct})  # fmt: skip
    return results


def earlier(run_folder: Path, choice: Choice) -> list[dict]:
    """The answers to hold a server's against: of a file for llama.cpp those of notebook 40, else
    the tuned model's of notebook 30 without the calculator; none where that notebook was not
    run."""
    stage, asked = "evaluate", {"model": "tuned", "split": "test", "calculator": False}
    if choice.engine == "llama-server":
        stage, asked = "export", {"model": choice.path.stem.rpartition("-")[2]}
    if not runs.is_complete(run_folder, stage):
        return []
    rows = runs.read_rows(runs.output(run_folder, stage, "generations.jsonl"))
    return [row for row in rows if asked.items() <= row.items()]


def agreement(answers: Sequence[dict], others: Sequence[dict]) -> dict[str, int]:
    """Two ways of asking the same questions: how many are right, graded alike, and the same text."""
    other = {row["id"]: row for row in others}
    pairs = [(row, other[row["id"]]) for row in answers if row["id"] in other]
    verdicts = [(bool(a.get("correct")), bool(b.get("correct"))) for a, b in pairs]
    return {
        "n": len(pairs), "right": sum(a for a, _ in verdicts), "right in the other": sum(b for _, b in verdicts),
        "same verdicts": sum(a == b for a, b in verdicts),
        "same texts": sum(a["completion"] == b["completion"] for a, b in pairs),
    }  # fmt: skip


async def load_test(url: str, model: str, chats: Sequence[list[dict]], max_tokens: int,
                    concurrent: Sequence[int] = CONCURRENT) -> list[dict]:  # fmt: skip
    """A row for each number of requests at once: seconds to the first token and to the last
    (median, 95th percentile), tokens per second over all, and the errors."""
    rows = []
    await ask(url, model, chats[:1], max_tokens)  # the first request of all warms caches up
    for count in concurrent:
        began = time.perf_counter()
        answers = await ask(url, model, chats, max_tokens, count)
        rows.append(load_row(count, answers, time.perf_counter() - began))
    return rows


def load_row(concurrent: int, answers: Sequence[dict], seconds: float) -> dict:
    """What `load_test` reports of answers that took `seconds` together."""
    import numpy as np

    good = [answer for answer in answers if "error" not in answer]
    row = {"concurrent": concurrent, "requests": len(answers), "errors": len(answers) - len(good)}
    for name, key in (("first_token", "first_token_seconds"), ("latency", "seconds")):
        p50 = p95 = None
        if good:
            p50, p95 = np.percentile([answer[key] for answer in good], (50, 95)).tolist()
        row |= {f"{name}_p50_seconds": p50, f"{name}_p95_seconds": p95}
    return row | {"tokens_per_second": sum(answer["tokens"] for answer in good) / seconds}


def curl(url: str, model: str, question: str) -> str:
    """The same request as a shell command."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def headline(choice: Choice, load: Sequence[dict]) -> str:
    """`demo-Q4_K_M.gguf by llama-server; first token in 9 ms, 16 at once 190 tokens/s, errors: 0`."""
    first, most = 1000 * load[0]["first_token_p50_seconds"], load[-1]
    errors = sum(row["errors"] for row in load)
    return (f"{choice.path.name} by {choice.engine}; first token in {first:.0f} ms, {most['concurrent']} at once "
            f"{most['tokens_per_second']:,.0f} tokens/s, errors: {errors}")  # fmt: skip
