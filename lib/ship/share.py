"""A finished run on the hub: its adapter, and a card with scores, data, licences, settings."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lib.data import sources
from lib.judge import answers
from lib.run import disk, gguf_base, rules, runs, untrusted
from lib.run.paths import in_project, is_gguf, is_local
from lib.run.settings import SettingsError, parts_of
from lib.run.stages import STAGES

LICENCES = {  # of the data, as data/README.md has them
    "quant_tasks": "Apache-2.0", "gsm8k": "MIT", "svamp": "MIT", "finqa": "MIT", "tatqa": "CC-BY-4.0",
    "convfinqa": "MIT", "finance_reasoning": "CC-BY-4.0", "investopedia": "CC-BY-NC-4.0",
}  # fmt: skip
OWN = "of the uploader's own files: ask"
FILES = (  # of the adapter's folder; no checkpoint, optimiser, log or row of data
    "adapter_model.safetensors", "adapter_config.json", "model*.safetensors", "model.safetensors.index.json",
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",  # where every weight was trained, the tokenizer goes with them
)  # fmt: skip
OF_THIS_MACHINE = ("base_model", "data_dir", "benchmarks", "rdzv_endpoint")  # settings with paths or hosts


class SharingError(runs.RunError):
    """Nothing was uploaded; the message says why and what to do."""


def check(repo_id: str) -> None:
    """SharingError, before hours of training, where the hub does not know our token."""
    from huggingface_hub import HfApi

    with _hub(repo_id):
        HfApi().whoami()


def push(run_folder: Path, repo_id: str, private: bool = True, echo: Callable[[str], Any] = print) -> str:
    """Upload a run's adapter and its card in one commit, and return the page's address.

    A repository that is not there yet is made, seen by its owner alone if `private`. The card is
    kept in the run's folder too. SettingsError without a token; RunError where the run is
    incomplete or was changed; SharingError."""
    from huggingface_hub import CommitOperationAdd, HfApi

    if problems := rules.hub_problems(repo_id):
        raise SettingsError(problems)
    manifests = {stage: runs.read(run_folder, stage) for stage in ("prepare", "train", "evaluate")}
    changed = [f"{STAGES[stage].folder}/{text}" for stage in manifests for text in runs.changes(run_folder, stage)]
    if changed:
        raise runs.RunError(f"run {run_folder.name!r} is not what its manifests say: {'; '.join(changed)}")
    train = manifests["train"]
    if train["rehearse"]:
        raise SharingError(f"run {run_folder.name!r} is a rehearsal, which is no result: it is not uploaded")
    base_model = train["settings"]["base_model"]
    with _hub(repo_id):
        base_licence = licence(base_model, train.get("base"))
    text = str(card(run_folder, manifests, repo_id, base_licence))
    disk.write_atomically(run_folder / "README.md", [text])
    folder = run_folder / STAGES["train"].folder
    files = sorted(path for pattern in FILES for path in folder.glob(pattern))
    added = [CommitOperationAdd(path.name, _for_others(path, base_model)) for path in files]
    added.append(CommitOperationAdd("README.md", text.encode()))
    echo(f"uploading {', '.join(file.path_in_repo for file in added)} to {repo_id}")
    api = HfApi()
    with _hub(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, added, commit_message=f"Upload run {run_folder.name}")
    return f"{api.endpoint}/{repo_id}"


def licence(base_model: str, made_from: dict | None = None) -> str:
    """The base's licence, as its page on the hub tells it, or the GGUF file that it was made from."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if in_project(base_model) == in_project("data/base"):
        return "Apache-2.0"
    if made_from:
        return str(made_from["licence"])
    if is_local(base_model):
        return "of a folder that the uploader has: ask"
    try:
        about = HfApi().model_info(base_model).card_data or {}
    except RepositoryNotFoundError:
        about = {}
    return str(about.get("license_name") or about.get("license") or "not told on its page")


def card(run_folder: Path, manifests: dict[str, dict], repo_id: str, base_licence: str) -> ModelCard:
    """README.md for the hub: scores with intervals, data's hashes, licences, settings; no key or path."""
    data, train = manifests["prepare"], manifests["train"]
    settings, origins = data["settings"] | train["settings"], data["origins"] | train["origins"]
    base, used = _name(settings["base_model"]), [part.source for part in parts_of(SimpleNamespace(**settings))]
    summary = untrusted.read_json(runs.output(run_folder, "evaluate", "summary.json"))
    about = ModelCardData(
        base_model=None if is_local(settings["base_model"]) else base, tags=["sharpen"],
        library_name="transformers" if settings["full_finetuning"] else "peft", pipeline_tag="text-generation",
        datasets=[sources.HUB[name][0] for name in used if name in sources.HUB] or None,
        model_name=repo_id.split("/")[1], eval_results=_evaluations(summary, used) or None,
    )  # fmt: skip
    splits = [{"split": split, "rows": f"{count:,}", "sha256": data["outputs"][f"{split}.jsonl"]}
              for split, count in data["metrics"]["rows"].items()]  # fmt: skip
    licences = [{"what": f"data: {name}", "licence": LICENCES.get(name, OWN)} for name in used]
    shown = [{"setting": name, "value": value, "from": origins[name]}
             for name, value in settings.items() if name not in OF_THIS_MACHINE]  # fmt: skip
    text = f"""---
{about.to_yaml()}
---

# {repo_id.split("/")[1]}

{base}, fine-tuned ({_method(settings)}) with Sharpen: preset `{train["preset"]}`, run `{run_folder.name}`,
{train["ended_at"][:10]}. {gguf_base.note(train.get("base"))}

{_scores(summary)}

## Data

{answers.markdown_table(splits)}

## Licences

{answers.markdown_table([{"what": f"base: {base}", "licence": base_licence}, *licences])}

Those of base and data bind whoever uses this model; the uploader's own terms come beside them.

## Settings

{answers.markdown_table(shown)}

Sharpen's commit: {train["git"]["commit"]}; {", ".join(f"{name} {v}" for name, v in train["versions"].items() if v)}.

{_use(settings, repo_id)}
"""
    return ModelCard(untrusted.redact(untrusted.visible(text)))


def _use(settings: dict, repo_id: str) -> str:
    library, loader = "peft", "AutoPeftModelForCausalLM"
    if settings["full_finetuning"]:
        library, loader = "transformers", "AutoModelForCausalLM"
    template = "the base's own chat template"
    if settings["chat_template"]:
        template = f"Unsloth's chat template `{settings['chat_template']}`"
    how = f"""```python
from {library} import {loader}

model = {loader}.from_pretrained("{repo_id}")
```"""
    if is_gguf(settings["base_model"]) and not settings["full_finetuning"]:  # the hub has no such base
        how = (f"The adapter needs its base, which must be made first: Sharpen does so where its setting `base_model` "
               f"names `{_name(settings['base_model'])}`.")  # fmt: skip
    return f"""## Use

{how}

Ask as it was trained: by {template}. Loaded so, it has no calculator: the scores above that have one are those of
`sharpen serve`, which fills it in."""


def _method(settings: dict) -> str:
    """`lora adapter, base in 4 bit`."""
    trained = "all weights" if settings["full_finetuning"] else f"{settings['peft_type']} adapter"
    if settings["load_in_4bit"]:
        return f"{trained}, base in 4 bit"
    return f"{trained}, base in {8 if settings['load_in_8bit'] else 16} bit"


def _evaluations(summary: dict, used: list[str]) -> list[EvalResult]:
    """The tuned model's accuracies over all kinds, by split and calculator."""
    test = "+".join(sources.HUB.get(name, [name])[0] for name in used)
    return [
        evaluation(answers.calculator_text(row["calculator"]), test, row["split"], row)
        for row in summary["table"] if row["kind"] == "all" and row["model"] == "tuned"
    ]  # fmt: skip


def evaluation(how: str, test: str, split: str, row: dict) -> EvalResult:
    """A row's accuracy or perplexity, with n and its 95 % interval, as the hub's evaluation metadata."""
    (metric,) = {"accuracy", "perplexity"} & row.keys()
    return EvalResult(
        task_type="text-generation", dataset_type=test, dataset_name=f"{test}, a run's own test", dataset_split=split,
        metric_type=metric, metric_value=round(row[metric], 4), metric_name=f"{metric}, {how}",
        metric_args={"n": row["n"], "low": round(row["low"], 4), "high": round(row["high"], 4)},
    )  # fmt: skip


def _scores(summary: dict) -> str:
    graded = [row for row in summary["table"] if row["kind"] == "all"]
    tables = "The test rows have no gold: no answer was graded."
    if graded:
        before, after = answers.compared(graded)
        tables = (f"{answers.markdown_table(answers.table_text(graded))}\n\nPaired, {before} -> {after}:\n\n"
                  f"{answers.markdown_table(answers.pairs_text(summary['paired']))}")  # fmt: skip
    perplexity = [{"model": model, "answers": found["rows"],
                   "perplexity [95 %]": f"{found['perplexity']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"}
                  for model, found in summary["perplexity"].items()]  # fmt: skip
    return f"""## Scores

Test questions, answered greedily by the base and by this model; 95 % intervals. Calculator on: values of
`<<expression=value>>` are filled in while decoding, which the model alone does not do.

{tables}

Held-out loss, paired: {answers.loss_text(summary["loss"])}. Perplexity of the test rows' own answers:

{answers.markdown_table(perplexity)}"""


def _name(base_model: str) -> str:
    """The base as others may know it: its hub id, or its folder's name without the place."""
    return Path(base_model).name if is_local(base_model) else base_model


def _for_others(path: Path, base_model: str) -> str | bytes:
    """A file as it goes up: weights as they are; the rest without keys and places on this machine."""
    if path.suffix != ".json":
        return str(path)
    text = path.read_text(encoding="utf-8")
    if path.name == "adapter_config.json":
        text = json.dumps(json.loads(text) | {"base_model_name_or_path": _name(base_model)}, indent=2)
    return untrusted.redact(text).encode()


@contextlib.contextmanager
def _hub(repo_id: str) -> Iterator[None]:
    """What the hub refuses, or why it does not answer, as a SharingError with the remedy."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        remedies = {
            401: "it does not know the token: `hf auth login` again, or set another HF_TOKEN",
            403: f"the token may not write to {repo_id}: give it that right (https://huggingface.co/settings/tokens)",
            404: f"there is no {repo_id}, or the token may not see it: look at user and name",
        }
        message, status = error.server_message or str(error).splitlines()[0], error.response.status_code
        remedy = remedies.get(status, "try again later")
        raise _error(f"the hub answered {status} ({message}): {remedy}") from error
    except (httpx.HTTPError, OSError) as error:
        raise _error(f"the hub does not answer ({type(error).__name__}: {error}): look at the network") from error


def _error(text: str) -> SharingError:
    return SharingError(untrusted.redact(f"{text}\nnothing was uploaded; the run is as complete as it was"))
