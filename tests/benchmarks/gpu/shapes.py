"""Models of published shape with random weights, in NF4 or 16 bit; and how many operations a token costs them."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lib.run.paths import ROOT
from lib.train import scale

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}  # those of data/base, whose tokenizer they borrow
_LLAMA = _IDS | {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "num_key_value_heads": 8,
    "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
CONFIGS: dict[str, dict] = {
    "Llama-3.2-1B": _LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                              "num_attention_heads": 32, "head_dim": 64, "rope_parameters": _ROPE},
    "Llama-3.2-3B": _LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                              "num_attention_heads": 24, "rope_parameters": _ROPE},
    "Llama-3.1-8B": _LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                              "num_attention_heads": 32, "tie_word_embeddings": False,
                              "rope_parameters": _ROPE | {"factor": 8.0}},
    "Qwen2.5-14B": _IDS | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 152064,
                           "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
                           "num_attention_heads": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
                           "max_position_embeddings": 131072, "tie_word_embeddings": False,
                           "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    "rehearsal": _LLAMA | {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
                           "rope_parameters": _ROPE},
}  # fmt: skip
QUANTIZATION = {  # as bitsandbytes writes it: NF4, scales quantised too
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
}  # fmt: skip


def config_of(name: str):
    """transformers' configuration of a row."""
    return AutoConfig.for_model(**CONFIGS[name])


def on_meta(name: str) -> torch.nn.Module:
    """The model without memory: all shapes, no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(name), dtype=torch.bfloat16)


def build(name: str, four_bit: bool, folder: Path) -> Path:
    """The folder of a model with random weights (normal, 0.02), made at first use; one layer is in memory at a time."""
    target = folder / f"{name}-{'nf4' if four_bit else 'bf16'}"
    if target.exists():
        return target
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shards: dict[str, list] = {}  # a file a layer, and one for all else
    for key, parameter in on_meta(name).named_parameters():
        shards.setdefault(re.search(r"layers\.\d+|$", key)[0] or "rest", []).append((key, parameter.shape))
    places, total = {}, 0
    for shard, parameters in shards.items():
        tensors = {}
        for key, shape in parameters:
            if len(shape) == 1:
                value = torch.full(shape, float("norm" in key), dtype=torch.bfloat16)  # norms one, biases zero
            else:
                value = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
            if four_bit and shard != "rest" and len(shape) == 2:
                value, state = quantize_4bit(value, quant_type="nf4", compress_statistics=True)
                tensors |= {f"{key}.{field}": tensor for field, tensor in state.as_dict(packed=True).items()}
            tensors[key] = value
        on_cpu = {key: tensor.cpu() for key, tensor in tensors.items()}
        save_file(on_cpu, part / f"{shard}.safetensors", {"format": "pt"})
        places |= dict.fromkeys(tensors, f"{shard}.safetensors")
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    row = CONFIGS[name] | {"dtype": "bfloat16"} | ({"quantization_config": QUANTIZATION} if four_bit else {})
    (part / "config.json").write_text(json.dumps(row, indent=2))
    for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "data/base" / file, part)
    os.replace(part, target)
    return target


def positions(lengths: list[int]) -> float:
    """How many positions a token attends to, itself included: the mean over all tokens of rows of these lengths."""
    return sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)


def operations(config, attended: float, trained: int | None = None) -> float:
    """Floating-point operations that training spends on a token: forward and backward, as Chowdhery et al. (2022,
    appendix B) count the model's own; layers computed again, optimiser and dequantisation are not in it.

    N are the weights that multiply each token: the blocks' matrices and the output matrix (a tied one once; reading an
    embedding costs nothing). With every weight trained, 6 N: forward 2, gradients of inputs 2, of weights 2. With a
    frozen base and `trained` LoRA numbers, 4 N + 6 `trained`: no gradients of frozen weights. Attention has no weights:
    scores and mix are 4 x heads x head_dim x `attended` operations a layer forward, and twice that backward."""
    matrices, layers = scale.linear(config), config.num_hidden_layers
    weights = layers * sum(a * b for a, b in matrices.values()) + config.vocab_size * config.hidden_size  # N
    attention = 12 * layers * matrices["q_proj"][1] * attended
    return (6 * weights if trained is None else 4 * weights + 6 * trained) + attention
