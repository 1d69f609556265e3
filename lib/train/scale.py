"""What training will need: memory on one device, or on each of N with the bytes over the wire, by formula; and counted
on a model without weights; and an estimate of its time.

Time = tokens x 6 x parameters / (devices x PEAK x UTILISATION): 2 FLOP a weight and token forward, 2 back through the
frozen weights, 2 for computing them again (or, where all weights are trained, for their gradients). Assumed are an A100
and the share of its peak that small batches reach; long packed rows reach twice that, QLoRA on older GPUs half of it.
Loading, held-out losses and the evaluation come on top."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from lib import SharpenError
from lib.run import presets
from lib.run.paths import is_local, locate
from lib.train import fsdp

# Published shapes; Qwen's are counted in the Llama form (its biases are nothing beside its matrices).
_LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8}
SHAPES: dict[str, dict] = {
    "1B": _LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                    "num_attention_heads": 32, "tie_word_embeddings": True},
    "3B": _LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                    "num_attention_heads": 24, "tie_word_embeddings": True},
    "8B": _LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "tie_word_embeddings": False},
    "14B": {"vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
            "num_attention_heads": 40, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "32B": {"vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
            "num_attention_heads": 40, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "70B": _LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                     "num_attention_heads": 64, "tie_word_embeddings": False},
}  # fmt: skip
_QWEN3 = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
BASES: dict[str, dict] = {  # the presets' bases, so that nothing is fetched to list them
    "unsloth/Llama-3.2-1B": SHAPES["1B"], "unsloth/Llama-3.2-3B": SHAPES["3B"],
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": SHAPES["14B"],
    "mistralai/Mistral-7B-Instruct-v0.3": SHAPES["8B"] | {"vocab_size": 32768},
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "unsloth/Qwen3-1.7B-Base": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                                         "num_attention_heads": 16, "tie_word_embeddings": True},
    "unsloth/Qwen3-4B-Base": _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
                                       "num_attention_heads": 32, "tie_word_embeddings": True},
    "unsloth/Qwen3-8B-Base": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                                       "num_attention_heads": 32, "tie_word_embeddings": False},
}  # fmt: skip
HALF, SINGLE = 2, 4  # bytes a number
PACKED = 0.5  # NF4: bytes a number
SCALES = (1 + SINGLE / 256) / 64  # NF4's doubly quantised scales: a byte for 64 numbers, a float for 256 such bytes
TRAINED = 4 * SINGLE  # a LoRA number: itself, its gradient, Adam's two moments
LOGITS = 2**29  # bytes: Unsloth computes them in chunks, which on a large GPU are larger than they need to be
PEAK = 312e12  # FLOP/s of an A100 in bf16, after its data sheet
UTILISATION = 0.2  # the share of it that is assumed
ROWS = {"gsm8k": 7473}  # training rows where all are taken
ROW_TOKENS = {"gsm8k": 174, "quant_tasks": 112}  # a third of a row's mean characters
MEASURED = {"demo": "2 to 3 min on two CPU cores (measured)"}
RESERVE = 2**30  # bytes that CUDA and its libraries take beside


class TooLarge(SharpenError):
    """A model that this device cannot train; the message says what would fit."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by what they are for."""

    weights: float  # its share of the base
    scales: float  # NF4's, whole on every rank
    adapters: float  # its share of LoRA, gradients and Adam's state
    gathered: float  # what it holds of the others' shares at the worst moment
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.scales + self.adapters + self.gathered + self.activations


@dataclass(frozen=True)
class OneDevice:
    """Bytes on one device that trains alone, by what they are for."""

    weights: float
    adapter: float
    optimiser: float  # gradients, and Adam's two moments
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.optimiser + self.activations


def linear(config) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a block's linear layers."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    return {"q_proj": (width, queries), "k_proj": (width, keys), "v_proj": (width, keys), "o_proj": (queries, width),
            "gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}  # fmt: skip


def numbers(config) -> tuple[int, int, int]:
    """(a block's linear weights, its LoRA numbers for each of rank 1, everything outside the blocks)."""
    shapes, width = linear(config).values(), config.hidden_size
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    norms = width * (2 * config.num_hidden_layers + 1)
    return sum(a * b for a, b in shapes), sum(a + b for a, b in shapes), tables + norms


def trained(config, settings) -> int:
    """How many numbers are trained: the adapter's or, with full_finetuning, all."""
    block, _, others = numbers(config)
    layers = linear(config)
    shapes = {name: layers[name] for name in layers if name in settings.target_modules}
    if settings.full_finetuning:
        return config.num_hidden_layers * block + others
    each = {
        "lora": settings.r * sum(map(sum, shapes.values())) + settings.use_dora * sum(b for _, b in shapes.values()),
        "ia3": sum(a if name == "down_proj" else b for name, (a, b) in shapes.items()),
        "prefix_tuning": 2 * layers["k_proj"][1] * settings.num_virtual_tokens,
    }  # fmt: skip
    return config.num_hidden_layers * each[settings.peft_type]


def one_device(config, settings) -> OneDevice:
    """Memory on one GPU with Unsloth, which keeps recomputed blocks' inputs in the host's memory and logits in chunks.

    Against a measured peak: Llama-3.2-1B in NF4, r 16, 32 rows of 512 tokens, has 3.56 GB published and 3.3 here."""
    block, _, others = numbers(config)
    layers, width, tokens = config.num_hidden_layers, config.hidden_size, _tokens(settings)
    stored = PACKED + SCALES if settings.load_in_4bit else 1 if settings.load_in_8bit else HALF
    size = HALF if settings.full_finetuning else SINGLE  # an adapter is kept in single precision
    moments = 2 * (1 if "8bit" in settings.optim else SINGLE if "32bit" in settings.optim else size)
    count = trained(config, settings)
    a_block = tokens * HALF * (8 * width + 4 * config.intermediate_size)
    unpacked = width * config.intermediate_size * HALF if settings.load_in_4bit or settings.load_in_8bit else 0
    logits = min(LOGITS, tokens * config.vocab_size * (HALF + SINGLE))
    return OneDevice(
        weights=layers * block * stored + others * HALF, adapter=0 if settings.full_finetuning else count * SINGLE,
        optimiser=count * (size + moments),
        activations=a_block * (1 if settings.gradient_checkpointing else layers) + unpacked + logits,
    )  # fmt: skip


def shape(base_model: str) -> SimpleNamespace | None:
    """The shape of a base, without its weights; None where the hub is asked for its config.json and does not answer."""
    if base_model in BASES:
        return SimpleNamespace(**BASES[base_model])
    if is_local(base_model):
        file = Path(locate(base_model)) / "config.json"
        return SimpleNamespace(**{"tie_word_embeddings": False} | json.loads(file.read_text(encoding="utf-8")))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base_model, trust_remote_code=False).get_text_config()
    except OSError:
        return None


def needed(settings) -> float | None:
    """Bytes that each device will need; None where the base's shape is not known."""
    config = shape(settings.base_model)
    if config is None:
        return None
    if settings.devices == 1:
        return one_device(config, settings).total
    return memory(config, settings.devices, settings.load_in_4bit, settings.r, _tokens(fsdp.share(settings))).total


def check(settings, available: int) -> None:
    """TooLarge, with what would fit, where one device's `available` bytes do not hold what training needs."""
    need = needed(settings)
    if need is None or need + RESERVE <= available:
        return
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows, "gradient_checkpointing": True}
    packed = {"load_in_4bit": True, "load_in_8bit": False, "full_finetuning": False}
    fits = []
    for changes in (small, packed, small | packed):
        changed = needed(SimpleNamespace(**vars(settings) | changes))
        if not fits and changed + RESERVE <= available:
            words = ", ".join(f"{k} = {v}" for k, v in changes.items() if getattr(settings, k) != v)
            fits.append(f"{words} ({gib(changed)})")
    others = {name: needed(row.settings) for name, row in presets.PRESETS.items() if row.settings.devices == 1}
    fits += [f"preset {name} ({gib(size)})" for name, size in others.items() if size + RESERVE <= available]
    raise TooLarge(f"{settings.base_model} needs about {gib(need)} and {gib(RESERVE)} for CUDA, and here are "
                   f"{gib(available)}: nothing was loaded. What would fit: {'; '.join(fits) or 'nothing'}")  # fmt: skip


def available() -> int:
    """Bytes that are free on the GPU, or without one in the computer."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def seconds(settings, tokens: float) -> float | None:
    """An estimate of the time that training on so many tokens takes; None where the base's shape is not known."""
    config = shape(settings.base_model)
    if config is None:
        return None
    block, _, others = numbers(config)
    parameters = config.num_hidden_layers * block + others
    return tokens * 6 * parameters / (settings.devices * PEAK * UTILISATION)


def time_text(name: str, settings) -> str:
    """A preset's training time for the list: `about 9 min`; `at most` where rows may be shorter than max_length."""
    rows, length = settings.train_rows or ROWS.get(settings.source), ROW_TOKENS.get(settings.source)
    tokens = settings.num_train_epochs * (rows * (length or settings.max_length) if rows else 1e6)
    if name in MEASURED or (found := seconds(settings, tokens)) is None:
        return MEASURED.get(name, "unknown")
    how = "about" if length or not rows else "at most"
    time = f"{how} {found / 3600:.0f} h" if found >= 2 * 3600 else f"{how} {max(found / 60, 1):.0f} min"
    return time if rows else f"{time} a million tokens of yours"


def gib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _tokens(settings) -> int:
    """Tokens of one forward pass on one device; a preference pair is two rows."""
    return settings.per_device_train_batch_size * settings.max_length * (2 if settings.trainer == "dpo" else 1)


def memory(config, ranks: int, four_bit: bool, r: int = 16, tokens: int = 2048) -> Memory:
    """Memory a GPU, with all linear layers adapted and blocks computed again in the backward pass; `tokens` are those
    of one forward pass on one GPU. What CUDA, NCCL and the allocator take beside (1 to 2 GiB) is not in it."""
    block, lora, others = numbers(config)
    layers, width = config.num_hidden_layers, config.hidden_size
    stored = block * (PACKED if four_bit else HALF)
    gathered = 2 * stored + others * HALF if ranks > 1 else 0  # a block, the next one on its way, and the root
    if four_bit:
        gathered += width * config.intermediate_size * HALF  # one matrix at a time, unpacked
    kept = layers * tokens * width * HALF  # each block's input
    block_again = tokens * HALF * (8 * width + 4 * config.intermediate_size)
    logits = tokens * config.vocab_size * (HALF + SINGLE)
    return Memory(
        weights=(layers * stored + others * HALF) / ranks, scales=layers * block * SCALES if four_bit else 0,
        adapters=layers * lora * r * TRAINED / ranks, gathered=gathered,
        activations=kept + max(block_again, logits),
    )  # fmt: skip


def loading(config, ranks: int, four_bit: bool) -> float:
    """The most bytes of weights on one GPU while they are read: NF4 is whole on every rank before it is cut (Unsloth,
    by source); of 16 bit each rank reads its share of the blocks."""
    block, _, others = numbers(config)
    blocks = config.num_hidden_layers * block
    return (blocks * (PACKED + SCALES) if four_bit else blocks * HALF / ranks) + others * HALF


def received(config, ranks: int, four_bit: bool, r: int = 16, passes: int = 1) -> float:
    """Bytes that a rank receives in one optimiser step: the others' weights, gathered forward and backward in each of
    `passes` forward passes; and LoRA's gradients, once."""
    block, lora, others = numbers(config)
    layers = config.num_hidden_layers
    weights = layers * block * (PACKED if four_bit else HALF) + others * HALF
    return (ranks - 1) / ranks * (2 * weights * passes + layers * lora * r * SINGLE)


def simulate(config, ranks: int, four_bit: bool, r: int = 16) -> dict[str, int]:
    """The same counted parameter by parameter, as FSDP2 cuts them (along the first axis, each part of equal length),
    on the real model with real LoRA layers on the meta device, which has shapes and no memory."""
    import logging

    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel on every CPU machine
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lib.run.published import LINEAR_MODULES

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model = get_peft_model(model, LoraConfig(r=r, target_modules=list(LINEAR_MODULES)))
    blocks = model.base_model.model.model.layers
    in_blocks = {id(parameter) for parameter in blocks.parameters()}
    found = {"weights": 0, "adapters": 0}
    for parameter in model.parameters():
        rows, bytes_a_row = parameter.shape[0], parameter.numel() // parameter.shape[0] * HALF
        if four_bit and parameter.ndim == 2 and id(parameter) in in_blocks and not parameter.requires_grad:
            rows, bytes_a_row = parameter.numel() // 2, 1  # bitsandbytes packs a matrix into one column of bytes
        part = -(-rows // ranks)
        if parameter.requires_grad:
            found["adapters"] += part * bytes_a_row // HALF * TRAINED
        else:
            found["weights"] += part * bytes_a_row
    return found
