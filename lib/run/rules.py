"""What a setting may be, how it is read, and which settings contradict each other."""

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lib.run.paths import HUB_ID, base_model_problems, in_project, is_gguf, is_nowhere, run_name_problems
from lib.run.settings import (
    FIELDS,
    FROM_HUB,
    GRADED,
    KIND_NAMES,
    ON_PAGES,
    REWARDED,
    Settings,
    as_text,
    columns_of,
    flat,
    full_name,
    nearest,
    parts_of,
    short,
)
from lib.run.stages import STAGES, names_of

TRACKERS = {"tensorboard": "tensorboard==2.21.0", "wandb": "wandb==0.31.0", "trackio": "trackio==0.43.0"}


# --- one setting ------------------------------------------------------------------------------------------------------
def unknown(named: Mapping[str, Any], known: Iterable[str] = FIELDS) -> list[str]:
    """Which of these are no settings, each with its value and the nearest of those there are."""
    problems = []
    for name, value in named.items():
        if name not in known:
            several = [field for field in known if field.endswith(f".{name}")]
            hint = nearest(name, known) or "; `sharpen settings` lists those there are"
            if several:
                hint = f"; did you mean {' or '.join(several)}?"
            problems.append(f"unknown setting {short(name)} = {short(value)}{hint}")
    return problems


def unread(stages: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """{setting named that none of these stages reads: the notebooks that do}."""
    read_here = {name for stage in stages for name in names_of(stage)}
    owners = {}
    for name in names:
        full = full_name(name)
        if full in FIELDS and full not in read_here:
            notebooks = [row.notebook for stage, row in STAGES.items() if full in names_of(stage)]
            owners[name] = " and ".join(notebooks or ["sharpen run"])
    return owners


def not_of(stage: str, names: Iterable[str]) -> list[str]:
    """Which of the settings named a stage does not read, each with the notebooks that do."""
    here = STAGES[stage].notebook
    return [f"{name!r} belongs to {owners}, not to {here}: leave it out"
            for name, owners in unread([stage], names).items()]  # fmt: skip


def _forms(name: str) -> tuple[dict, ...]:
    """The JSON schemas that a setting may satisfy: one, or two where it may be none."""
    form = _schemas()[name]
    return tuple(form.get("anyOf", (form,)))


@functools.cache
def _schemas() -> dict[str, dict]:
    """{name of a setting: its JSON schema}."""
    whole = Settings.model_json_schema()
    schemas = dict(whole["properties"])
    for block, definition in whole["$defs"].items():
        schemas |= {f"{block.lower()}.{name}": form for name, form in definition["properties"].items()}
    return schemas


def allowed(name: str) -> str:
    """What a setting may be, in words: `a whole number of at least 1, or none`."""
    return ", or ".join(map(_in_words, _forms(name)))


def _choices(form: dict) -> list[str]:
    """The values that a form names one by one."""
    only = [form["const"]] if "const" in form else []
    return [str(value) for value in form.get("enum", only)]


def _in_words(form: dict) -> str:
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "plain text",
             "null": "none"}  # fmt: skip
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    if "const" in form:
        return str(form["const"])
    if "enum" in form:
        return "one of " + ", ".join(_choices(form))
    if form["type"] == "array":
        names = "a list of names"
        if "pattern" in form["items"]:
            names += " of this form"  # which the setting's description says
        return names if form.get("minItems") else f"{names}, or an empty one"
    if "pattern" in form:
        return f"{words[form['type']]} of this form"
    bounds = " and ".join(f"{word} {form[key]:,}" for key, word in limits.items() if key in form)
    if bounds.startswith("at"):
        bounds = f"of {bounds}"
    return f"{words[form['type']]} {bounds}".rstrip()


def read(name: str, value: Any) -> Any:
    """Text as the type that the setting has (papermill and YAML give 1e-4 as text), a path as text, a number as
    Python's own; anything else as it came."""
    types = {form["type"] for form in _forms(name)}
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        value = _read_text(value, types)
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers too
        whole = isinstance(value, Integral) or "integer" in types and float(value).is_integer()
        if whole and abs(value) >= 2**63:
            return math.inf  # no setting may be so large, and Python writes out no number of over 4,300 digits
        return int(value) if whole else float(value)
    if isinstance(value, list) and "array" in types:
        return tuple(value)
    return value


def _read_text(text: str, types: set[str]) -> Any:
    word = text.strip().lower()
    if "null" in types and word in ("none", "null"):
        return None
    if "boolean" in types and word in ("true", "false"):
        return word == "true"
    if "array" in types:
        parts = (part.strip() for part in text.strip().strip("[]()").split(","))
        return tuple(re.sub(r"^(['\"])(.*)\1$", r"\2", part) for part in parts if part)
    if types & {"integer", "number"}:
        try:
            return int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)
        except ValueError:
            pass  # refused as the text that it is
    return text


def refusal(name: str, value: Any) -> str:
    """Why a setting cannot have a value: what it may be, the nearest choice, and what it means."""
    field = FIELDS[name]
    choices = []
    for form in _forms(name):
        choices += _choices(form.get("items", form))
    given = read(name, value)
    parts = given if isinstance(given, tuple) else (value,)
    hints = [nearest(part, choices) for part in parts if part not in choices]
    hint = next(filter(None, hints), "")
    about = " ".join((field.description or "").split())
    if any(form["type"] == "string" and "enum" not in form for form in _forms(name)):
        hint = hint or as_text(name, value)
    shown = short(value) if field.repr else "(not shown)"  # it may be a secret
    return f"{name} = {shown}: must be {allowed(name)}{hint}" + (about and f" ({about})")


# --- settings together ------------------------------------------------------------------------------------------------
Rule = Callable[[Settings], str | None]
RULES: list[tuple[tuple[str, ...], tuple[str, ...], Rule]] = []


def about(*names: str, not_in: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """A rule on these settings: it gets all settings, and says what is wrong, if anything is."""

    def register(rule: Rule) -> Rule:
        RULES.append((names, not_in, rule))
        return rule

    return register


def contradictions(settings: Settings, suspect: set[str], stage: str | None = None) -> list[str]:
    """Settings that are fine alone but not together, or not here; a rule on one that is refused already is left out."""
    problems = []
    for name, value in flat(settings).items():
        texts = value if isinstance(value, tuple) else (value,)
        if name not in suspect and any(isinstance(text, str) and not text.strip() for text in texts):
            problems.append(f"{name} = {short(value)}: a text must not be empty; leave it out")
            suspect = suspect | {name}
    for names, not_in, rule in RULES:
        if not suspect & set(names) and stage not in not_in and (problem := rule(settings)):
            problems.append(problem)
    return problems


# --- how long, how many, and of which data
@about("few_shot", "few_shot_tuned")
def the_tuned_model_gets_the_examples_that_there_are(s):
    if s.few_shot_tuned and s.few_shot == 0:
        return "few_shot_tuned = True: there are no examples to show; set few_shot, or leave it out"


@about("few_shot", "golds_only", "columns")
def examples_are_worked(s):
    if s.few_shot not in (0, "best") and (s.golds_only or "gold" in columns_of(s)):
        return f"few_shot = {s.few_shot}: no training row has a worked answer to show; leave it out"


@about("max_steps")
def steps_are_counted_or_follow_from_the_epochs(s):
    if s.max_steps == 0:
        return "max_steps = 0: must be -1 (by num_train_epochs) or at least 1"


@about("warmup_steps")
def warm_up_is_a_share_or_whole_steps(s):
    if s.warmup_steps >= 1 and not math.isclose(s.warmup_steps, round(s.warmup_steps)):
        return f"warmup_steps = {s.warmup_steps!r}: must be a share below 1, or a whole number of steps"


@about("warmup_steps", "max_steps")
def warm_up_ends_before_training(s):
    if 1 <= s.max_steps < s.warmup_steps:
        return f"warmup_steps = {s.warmup_steps!r} is more than max_steps = {s.max_steps!r}: lower it, or give a share"


@about("eval_rows", "test_rows")
def only_test_rows_are_asked(s):
    if s.eval_rows and s.test_rows and s.eval_rows > s.test_rows:
        return f"eval_rows = {s.eval_rows!r} is more than test_rows = {s.test_rows!r}: lower it, or raise test_rows"


@about("source", "train_rows", "validation_rows", "test_rows")
def generated_rows_are_counted(s):
    endless = [name for name in ("train_rows", "validation_rows", "test_rows") if getattr(s, name) is None]
    if s.source == "quant_tasks" and endless:
        return f"{', '.join(endless)} = None: 'all' has no end for source = 'quant_tasks', which generates its rows"


@about("source", "mixture")
def a_mixture_has_parts_and_nothing_else_has(s):
    if (s.source == "mixture") != bool(s.mixture):
        return f"mixture = {short(s.mixture)}: source = 'mixture' needs one, and source = {s.source!r} can have none"


@about("source", "mixture")
def a_mixture_names_each_source_once_and_weighs_all_or_none(s):
    parts = parts_of(s)
    weighted = {part.weight is not None for part in parts}
    if len({part.source for part in parts}) < len(parts) or len(weighted) == 2:
        return f"mixture = {short(s.mixture)}: name each source once, and give a weight to all of them or to none"


@about("source", "mixture", "train_rows")
def generated_training_rows_of_a_mixture_end(s):
    endless = any(part.source == "quant_tasks" and part.cap is None for part in parts_of(s))
    if s.source == "mixture" and endless and s.train_rows is None:
        return "mixture: quant_tasks has no end; give train_rows, or a cap as in quant_tasks:900"


@about("source", "mixture", "test_rows")
def generated_test_rows_of_a_mixture_end(s):
    if s.source == "mixture" and s.test_rows is None and "quant_tasks" in _sources(s):
        return "test_rows = None: quant_tasks, which the mixture names, has no end; give a number"


@about("source", "mixture", "data_dir")
def what_is_on_no_hub_is_read_from_files(s):
    files = [name for name in _sources(s) if name not in (*FROM_HUB, "quant_tasks")]
    if files and s.data_dir is None:
        return (f"data_dir = None: {', '.join(files)} can only be read from files: name the file or folder "
                "(--data-dir; data/README.md says where published ones are)")  # fmt: skip


@about("source", "data_dir")
def a_mixture_is_read_from_a_folder(s):
    if s.source == "mixture" and os.path.isfile(in_project(s.data_dir or "")):
        return f"data_dir = {short(s.data_dir)}: a mixture needs a folder that holds one folder a source"


@about("source", "mixture", "columns")
def only_files_of_ones_own_have_columns(s):
    if s.columns and "own" not in _sources(s):
        return f"columns = {short(s.columns)}: only source = 'own' has columns of yours; leave it out"


@about("columns")
def answers_are_worked_or_but_golds(s):
    if {"answer", "gold"} <= columns_of(s).keys():
        return f"columns = {short(s.columns)}: name the answer or the gold, not both"


@about("columns")
def each_column_is_named_once(s):
    if len(columns_of(s)) < len(s.columns):
        return f"columns = {short(s.columns)}: name each once"


@about("source", "skip_rows")
def rows_of_one_source_are_skipped(s):
    if s.source == "mixture" and s.skip_rows:
        return f"skip_rows = {s.skip_rows!r}: a mixture's rows are interleaved; leave it out, or name one source"


@about("source", "golds_only")
def only_what_has_a_gold_can_do_without_its_answer(s):
    without = [name for name in _sources(s) if name not in GRADED]
    if s.golds_only and without:
        return f"golds_only = True: {', '.join(without)} has no golds; leave it out"


@about("trainer", "golds_only", "columns")
def answers_are_learnt_where_there_are_some(s):
    if s.trainer not in REWARDED and (s.golds_only or "gold" in columns_of(s)):
        which = "golds_only" if s.golds_only else f"columns = {short(s.columns)}"
        return f"trainer = {s.trainer!r}: {which} leaves no answer to learn; set trainer = 'rft' or 'grpo'"


@about("source", "data_dir")
def generated_rows_come_from_no_folder(s):
    if s.source == "quant_tasks" and s.data_dir is not None:
        return (f"data_dir = {s.data_dir!r}: source = 'quant_tasks' generates its rows and reads no folder; "
                f"leave it out")  # fmt: skip


@about("source", "dataset_revision")
def only_the_hub_has_revisions(s):
    if s.dataset_revision and (s.source in ("quant_tasks", "mixture") or s.data_dir is not None):
        return (f"dataset_revision = {s.dataset_revision!r}: only rows from the hub have one; leave it out, or "
                f"data_dir (in a mixture: gsm8k@{s.dataset_revision})")  # fmt: skip


@about("source", "mixture", "kinds")
def only_generated_rows_have_kinds(s):
    if s.kinds is not None and "quant_tasks" not in _sources(s):
        return f"kinds = {short(s.kinds)}: only source = 'quant_tasks' has kinds; leave it out"


@about("source", "mixture", "page_context")
def what_is_asked_on_pages_has_a_context(s):
    on_pages = [name for name in _sources(s) if name in ON_PAGES]
    if s.page_context != "page" and not on_pages:
        return f"page_context = {s.page_context!r}: only {', '.join(ON_PAGES)} ask on pages; set 'page'"
    if s.page_context == "facts" and on_pages != ["finqa"]:
        others = " and ".join(name for name in on_pages if name != "finqa")
        return f"page_context = 'facts': {others} has no gold facts, only finqa has; set 'page' or 'nearest'"


@about("kinds")
def kinds_are_all_or_known_ones_each_once(s):
    if s.kinds is None or s.kinds == ("all",):
        return None
    wrong = [name for place, name in enumerate(s.kinds) if name not in KIND_NAMES or name in s.kinds[:place]]
    if wrong:
        return (f"kinds = {', '.join(map(short, wrong))}: must be 'all', or some of {', '.join(KIND_NAMES)}, each once"
                f"{nearest(wrong[0], KIND_NAMES)}")  # fmt: skip


@about("benchmarks")
def benchmarks_are_files(s):
    absent = [path for path in s.benchmarks if not os.path.isfile(in_project(path))]
    if absent:
        return f"benchmarks = {', '.join(map(short, absent))}: no such file"


def _sources(s: Settings) -> list[str]:
    return [part.source for part in parts_of(s)]


# --- model and adapter
@about("load_in_4bit", "load_in_8bit")
def weights_have_4_or_8_bits(s):
    if s.load_in_4bit and s.load_in_8bit:
        return "load_in_8bit = True: needs load_in_4bit = False"


@about("full_finetuning", "load_in_4bit", "load_in_8bit")
def only_whole_weights_are_trained(s):
    if s.full_finetuning and (s.load_in_4bit or s.load_in_8bit):
        return "full_finetuning = True: quantised weights cannot be trained; set load_in_4bit = load_in_8bit = False"


@about("full_finetuning", "peft_type")
def full_finetuning_has_no_adapter(s):
    if s.full_finetuning and s.peft_type != "lora":
        return f"full_finetuning = True: there is no adapter for peft_type = {s.peft_type!r}; leave one of them out"


@about("full_finetuning", "peft_type", "use_rslora", "use_dora", "loraplus_lr_ratio", "continue_from")
def what_only_lora_has_goes_with_lora(s):
    only = [name for name in ("use_rslora", "use_dora", "loraplus_lr_ratio", "continue_from") if getattr(s, name)]
    if only and (s.full_finetuning or s.peft_type != "lora"):
        return f"{', '.join(only)}: only LoRA has that; leave it out, or full_finetuning and peft_type"


@about("peft_type", "load_in_4bit", "load_in_8bit")
def ia3_goes_on_whole_weights(s):
    if s.peft_type == "ia3" and (s.load_in_4bit or s.load_in_8bit):
        return "peft_type = 'ia3': PEFT computes quantised layers in single precision then; needs load_in_4bit = False"


@about("peft_type", "gradient_checkpointing", "packing", "early_stopping_patience")
def a_prefix_goes_without_these(s):
    if s.peft_type == "prefix_tuning" and (s.gradient_checkpointing or s.packing or s.early_stopping_patience):
        return ("peft_type = 'prefix_tuning': needs gradient_checkpointing = packing = False, "
                "early_stopping_patience = None")  # fmt: skip


@about("eval_engine", "load_in_8bit", "full_finetuning", "use_dora", "peft_type")
def only_torch_holds_every_tuned_model(s):
    names = {"llama-server": ("load_in_8bit",), "vllm": ("load_in_8bit", "full_finetuning", "use_dora")}
    only = [name for name in names.get(s.eval_engine, ()) if getattr(s, name)]
    kinds = {"llama-server": ("prefix_tuning",), "vllm": ("prefix_tuning", "ia3")}
    if s.peft_type in kinds.get(s.eval_engine, ()):
        only.append(f"peft_type = {s.peft_type!r}")
    if only:
        return f"eval_engine = {s.eval_engine!r}: does not answer with {', '.join(only)}; set eval_engine = 'torch'"


@about("template_date")
def a_templates_date_is_a_day(s):
    try:
        date.fromisoformat(s.template_date)
    except ValueError as error:
        return f"template_date = {s.template_date!r}: must be a day as 2026-01-31 ({error})"


@about("base_model")
def a_base_is_plain_data(s):
    return "\n".join(base_model_problems(s.base_model))


@about("base_model", not_in=("deploy", "cloud"))  # a GGUF file is served without its base
def a_base_is_a_folder_or_a_hub_id(s):
    if is_nowhere(s.base_model) and is_gguf(s.base_model):
        return f"base_model = {short(s.base_model)}: no such file"
    if is_nowhere(s.base_model):
        return f"base_model = {short(s.base_model)}: neither a folder here nor a hub id, NAME or USER/NAME"


# --- training
@about("trainer", "source")
def pairs_come_from_a_source_that_has_them(s):
    if s.trainer == "dpo" and s.source != "trader_dpo":
        return f"trainer = 'dpo': source = {s.source!r} has no pairs (prompt, chosen, rejected); set 'trader_dpo'"


@about("trainer", "full_finetuning", "packing", "neftune_noise_alpha", "accuracy_steps", "lora_dropout",
       "completion_only_loss", "peft_type")  # fmt: skip
def dpo_goes_without_these(s):
    names = ("full_finetuning", "packing", "neftune_noise_alpha", "accuracy_steps", "lora_dropout")
    only = [name for name in names if getattr(s, name)]
    if not s.completion_only_loss:
        only.append("completion_only_loss")
    if s.peft_type != "lora":
        only.append("peft_type")
    if s.trainer == "dpo" and only:
        return (f"trainer = 'dpo': {', '.join(only)} only with trainer = 'sft'; leave it out (two answers are compared "
                "with the model without its LoRA: no dropout or noise, no second copy, no gold to grade by)")


@about("trainer", "source", "mixture")
def rewards_are_given_by_golds(s):
    without = [name for name in _sources(s) if name not in GRADED]
    if s.trainer in REWARDED and without:
        return f"trainer = {s.trainer!r}: {', '.join(without)} has no golds to reward by; set trainer = 'sft'"


@about("trainer", "full_finetuning", "packing", "neftune_noise_alpha", "completion_only_loss", "peft_type",
       "early_stopping_patience", "lora_dropout", "report_to")  # fmt: skip
def rewards_go_without_these(s):
    names = ["full_finetuning", "packing", "neftune_noise_alpha", "early_stopping_patience"]
    if s.trainer == "grpo":
        names.append("lora_dropout")  # the model that answers has none
    if s.trainer == "rft" and s.report_to != "none":
        return "trainer = 'rft': report_to only with other trainers, as each round is a training; leave it out"
    only = [name for name in names if getattr(s, name)]
    if not s.completion_only_loss:
        only.append("completion_only_loss")
    if s.peft_type != "lora":
        only.append("peft_type")
    if s.trainer in REWARDED and only:
        return f"trainer = {s.trainer!r}: {', '.join(only)} only with trainer = 'sft'; leave it out"


@about("trainer", "per_device_train_batch_size", "gradient_accumulation_steps", "rollouts.num_generations")
def a_step_holds_whole_groups(s):
    rows, each = s.per_device_train_batch_size * s.gradient_accumulation_steps, s.rollouts.num_generations
    if s.trainer == "grpo" and rows % each:
        return (f"trainer = 'grpo': a step has per_device_train_batch_size x gradient_accumulation_steps = {rows} "
                f"answers, which must be a multiple of rollouts.num_generations = {each}")  # fmt: skip


@about("trainer", "max_length", "rollouts.max_completion_length")
def a_sampled_answer_leaves_room_for_its_question(s):
    if s.trainer in REWARDED and s.rollouts.max_completion_length >= s.max_length:
        return (f"rollouts.max_completion_length = {s.rollouts.max_completion_length}: must be below "
                f"max_length = {s.max_length}, which the question is in too")  # fmt: skip


@about("rollouts.calculator", "grpo.use_vllm")
def vllm_samples_without_the_calculator(s):
    if s.grpo.use_vllm and s.rollouts.calculator:
        return "grpo.use_vllm = True: needs rollouts.calculator = False (TRL's own vLLM fills in no mark)"


@about("continue_from")
def an_adapter_goes_on_from_a_run(s):
    if s.continue_from is not None and run_name_problems(s.continue_from):
        return f"continue_from = {short(s.continue_from)}: must be the name of a run in the same outputs folder"


@about("early_stopping_patience", "eval_steps", "validation_rows")
def early_stopping_looks_at_held_out_rows(s):
    if s.early_stopping_patience and not (s.eval_steps and s.validation_rows):
        return f"early_stopping_patience = {s.early_stopping_patience!r}: needs eval_steps and validation_rows"


@about("early_stopping_patience", "eval_steps", "save_steps")
def early_stopping_can_go_back_to_the_best(s):
    if s.early_stopping_patience and s.eval_steps and s.save_steps % s.eval_steps:
        return (f"early_stopping_patience: save_steps = {s.save_steps!r} must be a multiple of "
                f"eval_steps = {s.eval_steps!r}")  # fmt: skip


@about("accuracy_steps", "validation_rows")
def questions_asked_while_training_are_held_out(s):
    if s.accuracy_steps > (s.validation_rows or 0):
        return (f"accuracy_steps = {s.accuracy_steps!r} is more than validation_rows = {s.validation_rows!r}: "
                f"raise those")  # fmt: skip


@about("report_to")
def a_tracker_is_installed(s):
    if s.report_to != "none" and (remedy := no_tracker(s.report_to)):
        return f"report_to = {s.report_to!r}: its package is not here: {remedy}"


def no_tracker(report_to: str) -> str | None:
    """The command that installs a tracker's package where it is absent. (A folder `wandb` would pass for a module.)"""
    try:
        metadata.distribution(report_to)
    except metadata.PackageNotFoundError:
        return f"python -m pip install {TRACKERS[report_to]}"
    return None


# --- devices
@about("devices", "load_in_8bit", "full_finetuning", "use_dora", "loraplus_lr_ratio", "continue_from", "packing",
       "neftune_noise_alpha", "early_stopping_patience", "accuracy_steps", "peft_type", "trainer")  # fmt: skip
def several_devices_go_without_these(s):
    names = ("load_in_8bit", "full_finetuning", "use_dora", "loraplus_lr_ratio", "continue_from", "packing",
             "neftune_noise_alpha", "early_stopping_patience", "accuracy_steps")  # fmt: skip
    only = [name for name in names if getattr(s, name)]
    if s.peft_type != "lora":
        only.append("peft_type")
    if s.trainer != "sft":
        only.append("trainer")
    if s.devices > 1 and only:
        return f"devices = {s.devices!r}: {', '.join(only)} only on one device; leave it out, or set devices = 1"


@about("devices", "nodes")
def each_node_has_as_many_devices(s):
    if s.devices % s.nodes:
        return f"devices = {s.devices!r} cannot be spread evenly over nodes = {s.nodes!r}: change one of them"


@about("devices", "per_device_train_batch_size", "gradient_accumulation_steps")
def devices_share_the_rows_of_a_step(s):
    rows, passes = s.per_device_train_batch_size, s.gradient_accumulation_steps
    if rows * passes % s.devices:
        return (f"devices = {s.devices!r} cannot share the rows of a step evenly: per_device_train_batch_size x "
                f"gradient_accumulation_steps = {rows!r} x {passes!r} are the rows of a step for any number of "
                f"devices; change one of them")  # fmt: skip


@about("devices", "pretrain_batch_size")
def devices_share_the_blocks_of_a_batch(s):
    if s.pretrain_batch_size % s.devices:
        return (f"devices = {s.devices!r} cannot share pretrain_batch_size = {s.pretrain_batch_size!r} blocks evenly: "
                f"change one of them")  # fmt: skip


@about("nodes", "rdzv_endpoint")
def several_machines_have_a_place_to_meet(s):
    if s.nodes > 1 and s.rdzv_endpoint is None:
        return f"nodes = {s.nodes!r} needs rdzv_endpoint, e.g. '10.0.0.1:29500': where the machines meet, on the first"


@about("rdzv_endpoint")
def a_meeting_place_has_host_and_port(s):
    meeting = re.fullmatch(r"[\w.-]+:(\d{1,5})", s.rdzv_endpoint or "")
    if s.rdzv_endpoint and not (meeting and 0 < int(meeting[1]) < 2**16):
        return f"rdzv_endpoint = {short(s.rdzv_endpoint)}: must be host:port, the port from 1 to 65535"


# --- other runs and places
@about("others")
def other_runs_are_named_once(s):
    if len(set(s.others)) < len(s.others):
        return f"others = {short(s.others)}: name each once"


@about("also_ask", "also_ask_dir")
def a_second_task_is_there(s):
    source = (s.also_ask or "").partition(":")[0]
    if s.also_ask_dir is not None and (s.also_ask is None or source == "quant_tasks"):
        return f"also_ask_dir = {short(s.also_ask_dir)}: also_ask = {s.also_ask!r} reads no files; leave it out"
    if s.also_ask and s.also_ask_dir is None and source not in (*FROM_HUB, "quant_tasks"):
        return (f"also_ask = {s.also_ask!r}: {source} can only be read from files: name the file or folder "
                "(also_ask_dir; data/README.md says where published ones are)")  # fmt: skip
    if s.also_ask_dir is not None and not os.path.exists(in_project(s.also_ask_dir)):
        return (f"also_ask_dir = {short(s.also_ask_dir)}: no such folder or file; give the one that holds "
                f"{source}/test.jsonl")  # fmt: skip


@about("general_text")
def a_general_text_is_there(s):
    if s.general_text is not None and not os.path.exists(in_project(s.general_text)):
        return f"general_text = {short(s.general_text)}: no such file or folder"


@about("push_to_hub")
def the_hub_can_be_written_to(s):
    if s.push_to_hub is not None:
        return "\n".join(hub_problems(s.push_to_hub))


def hub_problems(name: str) -> list[str]:
    """Why nothing could be uploaded to the hub as `name`, as far as this machine knows."""
    from huggingface_hub import get_token, is_offline_mode

    problems = []
    if not re.fullmatch(HUB_ID, name) or name.count("/") != 1:
        rule = "must be USER/NAME, of letters, digits, '-', '_' and '.', without '--' and '..'"
        problems.append(f"push_to_hub = {short(name)}: {rule}")
    if is_offline_mode():
        problems.append("push_to_hub: HF_HUB_OFFLINE is set: unset it, or leave push_to_hub out")
    if not get_token():
        problems.append("push_to_hub needs a token that may write: `hf auth login`, or set HF_TOKEN in the environment")
    return problems


@about("source", "data_dir")
def data_are_there(s):
    if s.source != "quant_tasks" and s.data_dir is not None and not os.path.exists(in_project(s.data_dir)):
        return (f"data_dir = {short(s.data_dir)}: no such folder or file; give the one that holds "
                f"{s.source}/train.jsonl")  # fmt: skip
