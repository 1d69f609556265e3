"""What training over N devices will need: memory a GPU and bytes over the wire, by formula, and counted on a model
without weights."""

from dataclasses import dataclass

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
HALF, SINGLE = 2, 4  # bytes a number
PACKED = 0.5  # NF4: bytes a number
SCALES = (1 + SINGLE / 256) / 64  # NF4's doubly quantised scales: a byte for 64 numbers, a float for 256 such bytes
TRAINED = 4 * SINGLE  # a LoRA number: itself, its gradient, Adam's two moments


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


def numbers(config) -> tuple[int, int, int]:
    """(a block's linear weights, its LoRA numbers for each of rank 1, everything outside the blocks)."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    shapes = [(width, queries), (width, keys), (width, keys), (queries, width), *[(width, inner)] * 2, (inner, width)]
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    norms = width * (2 * config.num_hidden_layers + 1)
    return sum(a * b for a, b in shapes), sum(a + b for a, b in shapes), tables + norms


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

    from lib.published import LINEAR_MODULES

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
