"""What a setting may be, and which settings contradict each other."""

import functools
import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lib.run.paths import HUB_ID, base_model_problems, in_project, is_local, run_name_problems
from lib.run.settings import FROM_HUB, KIND_NAMES, Settings, columns_of, nearest, parts_of, short
from lib.run.stages import STAGES

_ONE_DEVICE = (  # what 21_train_qlora can do and 22_train_fsdp cannot
    "load_in_8bit", "full_finetuning", "use_dora", "loraplus_lr_ratio", "continue_from", "packing",
    "neftune_noise_alpha", "early_stopping_patience", "accuracy_steps",
)  # fmt: skip
TRACKERS = {"tensorboard": "tensorboard==2.21.0", "wandb": "wandb==0.31.0", "trackio": "trackio==0.43.0"}
_OF_SFT = ("full_finetuning", "packing", "neftune_noise_alpha", "accuracy_steps", "lora_dropout")  # DPO has none


def unknown(named: Mapping[str, Any], known: Iterable[str] = Settings.model_fields) -> list[str]:
    """Which of these are no settings, each with its value and the nearest of those there are."""
    return [f"unknown setting {short(name)} = {short(value)}{nearest(name, known) or '; see lib/run/settings.py'}"
            for name, value in named.items() if name not in known]  # fmt: skip


def unread(stages: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """{setting named that none of these stages reads: the notebooks that do}."""
    foreign = Settings.model_fields.keys() - {field for stage in stages for field in STAGES[stage].settings}
    owners = {name: [STAGES[stage].notebook for stage in STAGES if name in STAGES[stage].settings] for name in foreign}
    return {name: " and ".join(owners[name] or ["sharpen run"]) for name in names if name in foreign}


def not_of(stage: str, names: Iterable[str]) -> list[str]:
    """Which of the settings named a stage does not read, each with the notebooks that do."""
    return [f"{name!r} belongs to {owners}, not to {STAGES[stage].notebook}: leave it out"
            for name, owners in unread([stage], names).items()]  # fmt: skip


def hub_problems(name: str) -> list[str]:
    """Why nothing could be uploaded to the hub as `name`, as far as this machine knows."""
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    problems = []
    try:
        validate_repo_id(name)
        known = name.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        allowed = "must be USER/NAME, of letters, digits, '-', '_' and '.', without '--' and '..'"
        problems.append(f"push_to_hub = {short(name)}: {allowed}")
    if is_offline_mode():
        problems.append("push_to_hub: HF_HUB_OFFLINE is set: unset it, or leave push_to_hub out")
    if not get_token():
        problems.append("push_to_hub needs a token that may write: `hf auth login`, or set HF_TOKEN in the environment")
    return problems


def allowed(field: str) -> str:
    """What a setting may be, in words: `a whole number of at least 1, or none`."""
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "plain text"}
    form = " of this form"  # which the setting's description says
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    parts = []
    for kind in _kinds(field):
        if "enum" in kind:
            parts.append("one of " + ", ".join(kind["enum"]))
        elif kind["type"] == "array":
            names = "a list of names" + form * ("pattern" in kind["items"])
            parts.append(names if kind.get("minItems") else f"{names}, or an empty one")
        elif kind["type"] != "null":
            bounds = " and ".join(f"{word} {kind[key]:,}" for key, word in limits.items() if key in kind)
            bounds = form if "pattern" in kind else f"{' of' * bounds.startswith('at')} {bounds}".rstrip()
            parts.append(words[kind["type"]] + bounds)
        else:
            parts.append("none")
    return ", or ".join(parts)


@functools.cache
def _kinds(field: str) -> tuple[dict, ...]:
    """The JSON schemas that a setting may satisfy: one, or two where it may be none."""
    schema = Settings.model_json_schema()["properties"][field]
    return tuple(schema.get("anyOf", (schema,)))


def read(field: str, value: Any) -> Any:
    """Text as the type that the field asks for (papermill and YAML give 1e-4 as text), a path as text, a number as
    Python's own; anything else as it came."""
    types = {kind["type"] for kind in _kinds(field)}
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        text = value.strip()
        if "null" in types and text.lower() in ("none", "null"):
            return None
        if "boolean" in types and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if "array" in types:
            parts = (part.strip() for part in text.strip("[]()").split(","))
            return tuple(re.sub(r"^(['\"])(.*)\1$", r"\2", part) for part in parts if part)
        if types & {"integer", "number"}:
            try:
                value = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
            except ValueError:
                return value
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers too
        whole = isinstance(value, Integral) or "integer" in types and float(value).is_integer()
        if whole and abs(value) >= 2**63:
            return math.inf  # no setting may be so large, and Python writes out no number of over 4,300 digits
        return int(value) if whole else float(value)
    return tuple(value) if isinstance(value, list) and "array" in types else value


def refusal(field: str, value: Any) -> str:
    choices = [choice for kind in _kinds(field) for choice in kind.get("items", kind).get("enum", ())]
    about = f" ({text})" if (text := Settings.model_fields[field].description) else ""
    parts = found if isinstance(found := read(field, value), tuple) else [value]
    meant = next((text for part in parts if part not in choices and (text := nearest(part, choices))), "")
    shown = short(value) if Settings.model_fields[field].repr else "(not shown)"  # it may be a secret
    return f"{field} = {shown}: must be {allowed(field)}{meant}{about}"


def contradictions(s: Settings, suspect: set[str], stage: str | None) -> list[str]:
    """Settings that are fine alone but not together, or not here; a rule about one refused already is left out."""
    empty = [field for field, value in s for text in (value if isinstance(value, tuple) else [value])
             if isinstance(text, str) and not text.strip() and field not in suspect]  # fmt: skip
    told = [f"{field} = {short(getattr(s, field))}: a text must not be empty; leave it out" for field in empty]
    suspect = suspect | set(empty)
    generated = s.source == "quant_tasks"
    parts = [] if suspect & {"source", "mixture"} else parts_of(s)
    names, weighted = [part.source for part in parts], {part.weight is not None for part in parts}
    endless = [part for part in parts if part.source == "quant_tasks" and part.cap is None and s.train_rows is None]
    files = [name for name in names if name not in (*FROM_HUB, "quant_tasks") and s.data_dir is None]
    fields = [] if "columns" in suspect else list(columns_of(s))
    whole = [f for f in ("train_rows", "validation_rows", "test_rows") if generated and getattr(s, f) is None]
    batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
    of_lora = [f for f in ("use_rslora", "use_dora", "loraplus_lr_ratio", "continue_from") if getattr(s, f)]
    alone = [f for f in _ONE_DEVICE if getattr(s, f)] + ["peft_type"] * (s.peft_type != "lora")
    alone += ["trainer"] * (s.trainer != "sft")
    of_sft = [f for f in _OF_SFT if getattr(s, f)] + ["completion_only_loss"] * (not s.completion_only_loss)
    of_sft += ["peft_type"] * (s.peft_type != "lora")
    unknown = [] if "kinds" in suspect or s.kinds == ("all",) else _unknown_kinds(s.kinds or ())
    absent = [] if "benchmarks" in suspect else [path for path in s.benchmarks if not os.path.isfile(in_project(path))]
    unsafe = [] if "base_model" in suspect else base_model_problems(s.base_model)
    absent_tracker = None if "report_to" in suspect or s.report_to == "none" else no_tracker(s.report_to)
    no_upload = [] if "push_to_hub" in suspect or s.push_to_hub is None else hub_problems(s.push_to_hub)
    meeting = re.fullmatch(r"[\w.-]+:(\d{1,5})", s.rdzv_endpoint or "")
    rules = [  # (settings it is about, is it broken, what to say); tests that compare numbers guard against suspects
        (("max_steps",), lambda: s.max_steps == 0, "max_steps = 0: must be -1 (by num_train_epochs) or at least 1"),
        (("warmup_steps",), lambda: s.warmup_steps >= 1 and not math.isclose(s.warmup_steps, round(s.warmup_steps)),
         f"warmup_steps = {s.warmup_steps!r}: must be a share below 1, or a whole number of steps"),
        (("warmup_steps", "max_steps"), lambda: 1 <= s.max_steps < s.warmup_steps,
         f"warmup_steps = {s.warmup_steps!r} is more than max_steps = {s.max_steps!r}: lower it, or give a share"),
        (("eval_rows", "test_rows"), lambda: None not in (s.eval_rows, s.test_rows) and s.eval_rows > s.test_rows,
         f"eval_rows = {s.eval_rows!r} is more than test_rows = {s.test_rows!r}: lower it, or raise test_rows"),
        (("source", *whole), lambda: whole,
         f"{', '.join(whole)} = None: 'all' has no end for source = 'quant_tasks', which generates its rows"),
        (("source", "mixture"), lambda: (s.source == "mixture") != bool(s.mixture),
         f"mixture = {short(s.mixture)}: source = 'mixture' needs one, and source = {s.source!r} can have none"),
        (("source", "mixture"), lambda: len(set(names)) < len(names) or len(weighted) == 2,
         f"mixture = {short(s.mixture)}: name each source once, and give a weight to all of them or to none"),
        (("source", "mixture", "train_rows"), lambda: endless and not generated,
         "mixture: quant_tasks has no end; give train_rows, or a cap as in quant_tasks:900"),
        (("source", "mixture", "test_rows"), lambda: s.test_rows is None and "quant_tasks" in names and not generated,
         "test_rows = None: quant_tasks, which the mixture names, has no end; give a number"),
        (("source", "mixture", "data_dir"), lambda: files,
         f"data_dir = None: {', '.join(files)} can only be read from files (data/README.md says where they are from)"),
        (("source", "data_dir"), lambda: s.source == "mixture" and os.path.isfile(in_project(s.data_dir or "")),
         f"data_dir = {short(s.data_dir)}: a mixture needs a folder that holds one folder a source"),
        (("source", "mixture", "columns"), lambda: s.columns and "own" not in names,
         f"columns = {short(s.columns)}: only source = 'own' has columns of yours; leave it out"),
        (("columns",), lambda: len(fields) < len(s.columns), f"columns = {short(s.columns)}: name each once"),
        (("source", "data_dir"), lambda: generated and s.data_dir is not None,
         f"data_dir = {s.data_dir!r}: source = 'quant_tasks' generates its rows and reads no folder; leave it out"),
        (("source", "dataset_revision"), lambda: s.dataset_revision and (
            s.source in ("quant_tasks", "mixture") or s.data_dir is not None),
         f"dataset_revision = {s.dataset_revision!r}: only rows from the hub have one; leave it out, or data_dir "
         f"(in a mixture: gsm8k@{s.dataset_revision})"),
        (("source", "mixture", "kinds"), lambda: s.kinds is not None and "quant_tasks" not in names,
         f"kinds = {short(s.kinds)}: only source = 'quant_tasks' has kinds; leave it out"),
        (("kinds",), lambda: unknown,
         f"kinds = {', '.join(map(short, unknown))}: must be 'all', or some of {', '.join(KIND_NAMES)}, each once"
         f"{nearest(*unknown[:1], KIND_NAMES) if unknown else ''}"),
        (("benchmarks",), lambda: absent, f"benchmarks = {', '.join(map(short, absent))}: no such file"),
        (("load_in_4bit", "load_in_8bit"), lambda: s.load_in_4bit and s.load_in_8bit,
         "load_in_8bit = True: needs load_in_4bit = False"),
        (("full_finetuning", "load_in_4bit", "load_in_8bit"),
         lambda: s.full_finetuning and (s.load_in_4bit or s.load_in_8bit),
         "full_finetuning = True: quantised weights cannot be trained; set load_in_4bit = load_in_8bit = False"),
        (("full_finetuning", "peft_type"), lambda: s.full_finetuning and s.peft_type != "lora",
         f"full_finetuning = True: there is no adapter for peft_type = {s.peft_type!r}; leave one of them out"),
        (("full_finetuning", "peft_type", *of_lora), lambda: of_lora and (s.full_finetuning or s.peft_type != "lora"),
         f"{', '.join(of_lora)}: only LoRA has that; leave it out, or full_finetuning and peft_type"),
        (("peft_type", "load_in_4bit", "load_in_8bit"),
         lambda: s.peft_type == "ia3" and (s.load_in_4bit or s.load_in_8bit),
         "peft_type = 'ia3': PEFT computes quantised layers in single precision then; needs load_in_4bit = False"),
        (("peft_type", "gradient_checkpointing", "packing", "early_stopping_patience"),
         lambda: s.peft_type == "prefix_tuning" and (
             s.gradient_checkpointing or s.packing or s.early_stopping_patience),
         "peft_type = 'prefix_tuning': needs gradient_checkpointing = packing = False, early_stopping_patience = None"),
        (("trainer", "source"), lambda: s.trainer == "dpo" and s.source != "trader_dpo",
         f"trainer = 'dpo': source = {s.source!r} has no pairs (prompt, chosen, rejected); set 'trader_dpo'"),
        (("trainer", *of_sft), lambda: s.trainer == "dpo" and of_sft,
         f"trainer = 'dpo': {', '.join(of_sft)} only with trainer = 'sft'; leave it out (two answers are compared with "
         f"the model without its LoRA: no dropout or noise, no second copy, no gold to grade by)"),
        (("continue_from",), lambda: s.continue_from is not None and run_name_problems(s.continue_from),
         f"continue_from = {short(s.continue_from)}: must be the name of a run in the same outputs folder"),
        (("early_stopping_patience", "eval_steps", "validation_rows"),
         lambda: s.early_stopping_patience and not (s.eval_steps and s.validation_rows),
         f"early_stopping_patience = {s.early_stopping_patience!r}: needs eval_steps and validation_rows"),
        (("early_stopping_patience", "eval_steps", "save_steps"),
         lambda: s.early_stopping_patience and s.eval_steps and s.save_steps % s.eval_steps,
         f"early_stopping_patience: save_steps = {s.save_steps!r} must be a multiple of eval_steps = {s.eval_steps!r}"),
        (("accuracy_steps", "validation_rows"), lambda: s.accuracy_steps > (s.validation_rows or 0),
         f"accuracy_steps = {s.accuracy_steps!r} is more than validation_rows = {s.validation_rows!r}: raise those"),
        (("devices", *alone), lambda: s.devices > 1 and alone,
         f"devices = {s.devices!r}: {', '.join(alone)} only on one device; leave it out, or set devices = 1"),
        (("devices", "nodes"), lambda: s.devices % s.nodes,
         f"devices = {s.devices!r} cannot be spread evenly over nodes = {s.nodes!r}: change one of them"),
        (("devices", *batch), lambda: s.per_device_train_batch_size * s.gradient_accumulation_steps % s.devices,
         f"devices = {s.devices!r} cannot share the rows of a step evenly: per_device_train_batch_size x "
         f"gradient_accumulation_steps = {s.per_device_train_batch_size!r} x {s.gradient_accumulation_steps!r} are the "
         f"rows of a step for any number of devices; change one of them"),
        (("devices", "pretrain_batch_size"), lambda: s.pretrain_batch_size % s.devices,
         f"devices = {s.devices!r} cannot share pretrain_batch_size = {s.pretrain_batch_size!r} blocks evenly: change "
         f"one of them"),
        (("nodes", "rdzv_endpoint"), lambda: s.nodes > 1 and s.rdzv_endpoint is None,
         f"nodes = {s.nodes!r} needs rdzv_endpoint, e.g. '10.0.0.1:29500': where the machines meet, on the first"),
        (("rdzv_endpoint",), lambda: s.rdzv_endpoint and not (meeting and 0 < int(meeting[1]) < 2**16),
         f"rdzv_endpoint = {short(s.rdzv_endpoint)}: must be host:port, the port from 1 to 65535"),
        (("base_model",), lambda: unsafe, "\n".join(unsafe)),
        (("base_model",),  # a GGUF file is served without its base
         lambda: stage != "deploy" and not is_local(s.base_model) and not re.fullmatch(HUB_ID, s.base_model),
         f"base_model = {short(s.base_model)}: neither a folder here nor a hub id, NAME or USER/NAME"),
        (("others",), lambda: len(set(s.others)) < len(s.others), f"others = {short(s.others)}: name each once"),
        (("report_to",), lambda: absent_tracker,
         f"report_to = {s.report_to!r}: its package is not here: {absent_tracker}"),
        (("push_to_hub",), lambda: no_upload, "\n".join(no_upload)),
        (("data_dir",), lambda: not generated and s.data_dir is not None and not os.path.exists(in_project(s.data_dir)),
         f"data_dir = {short(s.data_dir)}: no such folder or file; give the one that holds {s.source}/train.jsonl"),
    ]
    return told + [message for fields, broken, message in rules if not suspect & set(fields) and broken()]


def no_tracker(report_to: str) -> str | None:
    """The command that installs a tracker's package where it is absent. (A folder `wandb` would pass for a module.)"""
    try:
        metadata.distribution(report_to)
    except metadata.PackageNotFoundError:
        return f"python -m pip install {TRACKERS[report_to]}"
    return None


def _unknown_kinds(named: tuple[str, ...]) -> list[str]:
    """Those named that are no kind of task, or are named twice."""
    return [name for place, name in enumerate(named) if name not in KIND_NAMES or name in named[:place]]
