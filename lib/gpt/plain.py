"""A GPT in plain sight, in the Llama form: each operation written out. `fast.py` is the same, fast."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    """Sizes, as transformers' LlamaConfig names them. Embeddings are tied: one matrix reads and writes."""

    vocab_size: int
    hidden_size: int  # C, the width
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # G: each serves H / G heads
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads  # D


SIZES = {
    "base": Config(2048, 256, 768, 4, 4, 2, 1024),  # the embedded base
    "tiny": Config(2048, 256, 768, 4, 4, 2, 1024),  # the same: shows the ablation in a minute on two cores
    "small": Config(32_000, 512, 1536, 6, 8, 8, 1024),  # the published one
    "medium": Config(32_000, 768, 2304, 13, 12, 12, 1024),  # 124 M parameters
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):  # (..., C)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotations(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of position * frequency, (positions, D) each: rotary embeddings (Su et al. 2021)."""
    D = config.head_dim
    frequencies = config.rope_theta ** (-torch.arange(0, D, 2).float() / D)  # (D / 2,)
    positions = torch.arange(config.max_position_embeddings).float()
    angles = torch.outer(positions, frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + D / 2]) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        width, shared = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin, allowed):
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        sharing = self.config.num_attention_heads // self.config.num_key_value_heads
        k, v = k.repeat_interleave(sharing, dim=1), v.repeat_interleave(sharing, dim=1)  # as q
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.config.head_dim)  # (B, H, T, T)
        scores = scores.masked_fill(~allowed, -torch.inf)
        y = scores.softmax(dim=-1) @ v  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)

    def heads(self, x):
        """(B, T, H * D) -> (B, H, T, D); keys and values have G heads instead of H."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): a gate decides what passes."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):  # (B, T, C)
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    norm_type, attention_type = RMSNorm, Attention

    def __init__(self, config: Config):
        super().__init__()
        self.self_attn, self.mlp = self.attention_type(config), MLP(config)
        self.input_layernorm = self.norm_type(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = self.norm_type(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, *context):
        """`context`: cosines, sines and what is seen, as `Attention` takes them."""
        x = x + self.self_attn(self.input_layernorm(x), *context)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """Its modules have transformers' names: its weights are a LlamaForCausalLM's (`pretrain.save`)."""

    norm_type, layer_type = RMSNorm, Layer  # fast.py has its own

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = [self.layer_type(config) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = self.norm_type(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotations(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self)

    def forward(self, ids, documents=None):
        """Logits (B, T, V) of ids (B, T); a token sees what precedes it in its document (B, T)."""
        T, allowed = ids.shape[1], seen(ids, documents)
        x = self.embed_tokens(ids)  # (B, T, C)
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T], allowed)
        return self.norm(x) @ self.embed_tokens.weight.T  # (B, T, V)

    def losses(self, ids, documents=None):
        """Cross entropy in nats of each next token, (B, T), of ids (B, T + 1)."""
        if documents is not None:
            documents = documents[:, :-1]
        logits, wanted = self(ids[:, :-1], documents), ids[:, 1:]
        logits = logits.float().flatten(0, 1)  # (B * T, V)
        losses = nn.functional.cross_entropy(logits, wanted.flatten(), reduction="none")
        return losses.view(wanted.shape)

    def loss(self, ids, weights, documents=None):
        """The mean of `losses`, each by its token's weight, (B, T + 1)."""
        weights = weights[:, 1:]
        return (self.losses(ids, documents) * weights).sum() / weights.sum()

    @torch.no_grad()
    def generate(self, ids, count: int):
        """`count` more tokens, greedily: ids (B, T) -> (B, T + count). Each recomputes everything."""
        for _ in range(count):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(dim=-1)], dim=1)
        return ids


def seen(ids, documents=None):
    """What each position attends to: it and those before, (T, T); in its document alone, (B, 1, T, T)."""
    T = ids.shape[1]
    before = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
    if documents is None:
        return before
    return (before & (documents[:, :, None] == documents[:, None, :]))[:, None]


def initialise(model: nn.Module) -> None:
    """Normal weights: 0.02 for matrices, 0.1 for embeddings (at 0.02 words stay alike, and are not copied)."""
    for parameter in model.parameters():
        if parameter is model.embed_tokens.weight:
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)


def llama(model: nn.Module):
    """The same weights as transformers' LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = asdict(model.config)
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    result = LlamaForCausalLM(LlamaConfig(
        **sizes, head_dim=model.config.head_dim, rope_parameters=rope, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    ))  # fmt: skip
    result.model.load_state_dict(model.state_dict())
    return result
