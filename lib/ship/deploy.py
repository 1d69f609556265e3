"""Serve a run's best artefact on the loopback by an existing engine, ask it, and measure it."""

import asyncio
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.engine import llamacpp, vllm_client
from lib.engine.llamacpp import Program
from lib.run import disk, presets, runs, untrusted
from lib.run.paths import is_local, locate
from lib.run.settings import ServeSettings
from lib.run.stages import names_of

KEY = "SHARPEN_API_KEY"
CONCURRENT = (1, 4, 16)  # requests at once in the load test
ADAPTER = "adapter_config.json"  # which a whole model's folder has not
# PYTHONSAFEPATH: the engine's folder holds a link of the run's name, which must not be taken for a module, as
# `statistics`, by the engine or by a process that it starts.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
               "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # fmt: skip


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
    """Those settings of notebook 41 in which a run differs from its preset, as its last stage has them."""
    overrides = {}
    for manifest in _manifests(run_folder):
        for name, value in runs.made_with(manifest).items():
            overrides.pop(name, None)
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
    if settings.engine == "vllm" and not vllm_client.python():
        raise runs.RunError(f"engine = 'vllm': {vllm_client.ABSENT}")
    if settings.engine != "auto":
        engine, reason = settings.engine, "you chose it"
    elif shutil.which("nvidia-smi") and vllm_client.python():
        engine, reason = "vllm", "vllm and a GPU are here"
    else:
        engine, reason = "transformers", "there is no GPU with vllm"
    return Choice(engine, model, f"{what}; {engine}, as {reason}")


def engine(choice: Choice, run_folder: Path, settings: ServeSettings, folder: Path) -> Callable[[int], Program]:
    """What makes the engine, not started yet, for a port; the model goes by the run's name.

    `folder`: where its files may lie."""
    if choice.engine == "llama-server":
        llama = llamacpp.find(settings.llama_cpp_path)
        return lambda port: llamacpp.Server(llama, choice.path, context(settings), settings.parallel, port=port,
                                            alias=run_folder.name)  # fmt: skip
    model = _loadable(choice.path, folder / run_folder.name, settings)
    words_for = _vllm if choice.engine == "vllm" else _transformers
    command = words_for(model, settings)
    return lambda port: Program(f"{choice.engine} serve", command, settings.parallel, port, 600, folder, ENVIRONMENT)


def context(settings: ServeSettings, config: Path | None = None) -> int:
    """Tokens of the longest prompt and answer together, at most as many as the model's `config` was trained for."""
    longest = 64 * math.ceil((settings.max_length + settings.max_new_tokens) / 64)
    if config and config.is_file():
        longest = min(longest, untrusted.read_json(config).get("max_position_embeddings", longest))
    return longest


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


def _vllm(model: Path, settings: ServeSettings) -> list:
    """vLLM's server with one model, or with a base and the adapter on it."""
    serve = [vllm_client.python(), "-m", "vllm.entrypoints.openai.api_server", "--model"]
    longest = context(settings, model / "config.json")
    limits = ["--max-model-len", longest, "--max-num-seqs", settings.parallel, "--generation-config", "vllm"]
    if not (model / ADAPTER).exists():
        return [*serve, model, "--served-model-name", model.name, *limits]
    command = [*serve, locate(settings.base_model), "--tokenizer", model, "--enable-lora",
               "--lora-modules", f"{model.name}={model}",
               "--max-lora-rank", vllm_client.max_lora_rank(model)]  # fmt: skip
    if settings.load_in_4bit:
        command += ["--quantization", "bitsandbytes"]
    return command + limits


def _transformers(model: Path, settings: ServeSettings) -> list:
    """`transformers serve` with the folder of the run's name in the working directory."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model.name]
    if (model / ADAPTER).exists():  # a merged model is rounded already
        if settings.load_in_4bit:
            command += ["--quantization", "bnb-4bit"]
        elif settings.load_in_8bit:
            command += ["--quantization", "bnb-8bit"]
    return command


async def ask(url: str, model: str, chats: Sequence[list[dict]], max_tokens: int, concurrent: int = 1,
              calculator: bool = True, stream: bool = True) -> list[dict]:  # fmt: skip
    """Greedy answers to chats by /v1/chat/completions, in their order, `concurrent` at once.

    {"completion", "tokens", "prompt_tokens", "finished", "seconds"} each, of a stream also "first_token_seconds", or
    {"error"} where the server gave none."""
    import openai

    http = openai.DefaultAsyncHttpxClient(trust_env=False)  # no proxy between this machine and itself
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=os.environ.get(KEY) or "none", max_retries=0, timeout=600,
                                http_client=http)  # fmt: skip
    slots = asyncio.Semaphore(concurrent)
    how = {"model": model, "temperature": 0, "max_tokens": max_tokens, "extra_body": {"calculator": calculator}}

    async def answer(messages: list[dict]) -> dict:
        async with slots:
            began = time.perf_counter()
            try:
                if stream:
                    found = await _streamed(client, messages, how)
                else:
                    said = await client.chat.completions.create(messages=messages, **how)
                    found = {"completion": said.choices[0].message.content, **_counted(said.usage),
                             "finished": said.choices[0].finish_reason == "stop"}  # fmt: skip
            except openai.OpenAIError as error:
                return {"error": f"{type(error).__name__}: {error}"}
            return found | {"seconds": time.perf_counter() - began}

    async with client:
        return await asyncio.gather(*map(answer, chats))


async def _streamed(client: Any, messages: list[dict], how: dict[str, Any]) -> dict:
    began, first, text, found = time.perf_counter(), None, "", {}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await client.chat.completions.create(messages=messages, **how, **options):
        if chunk.usage:
            found |= _counted(chunk.usage)
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter() - began
                text += choice.delta.content
            if choice.finish_reason:
                found["finished"] = choice.finish_reason == "stop"
    return found | {"completion": text, "first_token_seconds": first or time.perf_counter() - began}


def _counted(usage: Any) -> dict[str, int]:
    return {"tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens}


def answered(answers: Sequence[dict]) -> list[dict]:
    """The answers; DeployError if one failed."""
    if failed := [answer["error"] for answer in answers if "error" in answer]:
        raise DeployError(f"{len(failed)} of {len(answers)} requests failed, e.g. {failed[0]}")
    return list(answers)


def earlier(run_folder: Path, choice: Choice, calculator: bool) -> dict[str, list[dict]]:
    """What answered the same questions before, the same way: the tuned model in notebook 30, and what is served now by
    its token ids in notebook 40; none where that was not asked."""
    asked = {"notebook 30": ("evaluate", "tuned")}
    if choice.path.suffix == ".gguf":
        asked["notebook 40"] = ("export", choice.path.stem.rpartition("-")[2])
    elif choice.path.name == "merged":
        asked["notebook 40"] = ("export", "merged")
    found = {}
    for label, (stage, model) in asked.items():
        if runs.is_complete(run_folder, stage) and "generations.jsonl" in runs.read(run_folder, stage)["outputs"]:
            rows = runs.read_rows(runs.output(run_folder, stage, "generations.jsonl"))
            wanted = {"model": model, "split": "test", "calculator": calculator}
            found[label] = [row for row in rows if wanted.items() <= row.items()]
    return {label: rows for label, rows in found.items() if rows}


def scores(run_folder: Path) -> tuple[str, dict[bool, dict]]:
    """(of what, {calculator: row}) a run's test score by whether the calculator was on: of the served model, else of
    the tuned one; no rows where nothing was graded."""
    if runs.is_complete(run_folder, "deploy"):
        rows = disk.load(runs.output(run_folder, "deploy", "summary.json"))["links"]
        return "the served model", {row["calculator"]: row for row in of_served(rows)}
    rows, wanted = [], {"kind": "all", "model": "tuned", "split": "test"}
    if runs.is_complete(run_folder, "evaluate"):
        rows = disk.load(runs.output(run_folder, "evaluate", "summary.json")).get("table", [])
    return "the tuned model", {row["calculator"]: row for row in rows if wanted.items() <= row.items()}


def of_served(links: Sequence[dict]) -> list[dict]:
    """Of notebook 41's links those of the served model: a row with the calculator, or without, or both."""
    return [row for row in links if row["asked by"] == "served"]


def score_text(run_folder: Path, calculator: bool) -> str:
    """Which of a run's scores is to be expected of what is served with the calculator, or without."""
    from lib.judge import answers

    what = "the calculator's values are filled in" if calculator else "no calculator: the model does its arithmetic"
    of, found = scores(run_folder)
    if calculator not in found:
        return f"{what}; it was not asked so: run 30_evaluate with calculator=both"
    row = found[calculator]
    text = f"{what}; asked so, {of} has {answers.percent(row)} of {row['n']} questions right"
    if not calculator and True in found:
        text += f" (with it, by `sharpen serve {run_folder.name}`, {answers.percent(found[True])})"
    return text


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


def headline(choice: Choice, load: Sequence[dict], links: Sequence[dict] = ()) -> str:
    """`demo-Q6_K.gguf by llama-server: calculator on 60.7 % [55.0, 66.0], n = 300; first token in 9 ms, 16 at once 190
    tokens/s, errors: 0`."""
    from lib.judge import answers

    shares = [f"{answers.calculator_text(row['calculator'])} {answers.percent(row)}"
              for row in of_served(links)]  # fmt: skip
    told = f": {', '.join(shares)}, n = {links[0]['n']}" if shares else ""
    first, most = 1000 * load[0]["first_token_p50_seconds"], load[-1]
    errors = sum(row["errors"] for row in load)
    return (f"{choice.path.name} by {choice.engine}{told}; first token in {first:.0f} ms, {most['concurrent']} at once "
            f"{most['tokens_per_second']:,.0f} tokens/s, errors: {errors}")  # fmt: skip
