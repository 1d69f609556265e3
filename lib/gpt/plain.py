"""A GPT in plain sight, in the Llama form: each operation written out in float32. `gpt_fast.py` is the same, fast."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    """Sizes under the names of transformers' LlamaConfig. Embeddings are tied: the same matrix reads and writes."""

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
    "tiny": Config(2048, 256, 768, 4, 4, 2, 1024),  # the same: a minute on two CPU cores shows the ablation
    "small": Config(32_000, 512, 1536, 6, 8, 8, 1024),  # 6 layers, 8 heads, width 512: the published one
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
    """Cosine and sine of position * frequency, each (positions, D): rotary embeddings (Su et al. 2021)."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)  # (D / 2,)
    angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + D / 2]) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        width, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(width, heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(width, groups * config.head_dim, bias=False)
        self.v_proj = nn.Linear(width, groups * config.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * config.head_dim, width, bias=False)

    def forward(self, x, cos, sin, allowed):
        B, T, _ = x.shape
        heads = self.config.num_attention_heads
        q = self.q_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, G, T, D)
        v = self.v_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, G, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))  # (B, H, T, D)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.config.head_dim)  # (B, H, T, T)
        scores = scores.masked_fill(~allowed, -torch.inf)
        y = scores.softmax(dim=-1) @ v  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


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

    def forward(self, x, cos, sin, allowed):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, allowed)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """Its modules have transformers' names, so that its weights are a LlamaForCausalLM's (`pretrain.save`)."""

    norm_type, layer_type = RMSNorm, Layer  # gpt_fast has its own

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.layer_type(config) for _ in range(config.num_hidden_layers))
        self.norm = self.norm_type(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotations(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self)

    def forward(self, ids, documents=None):
        """Logits (B, T, V) of ids (B, T); a token sees what precedes it in its own document (`documents`, (B, T))."""
        T = ids.shape[1]
        allowed = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()  # (T, T)
        if documents is not None:
            allowed = (allowed & (documents[:, :, None] == documents[:, None, :]))[:, None]  # (B, 1, T, T)
        x = self.embed_tokens(ids)  # (B, T, C)
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T], allowed)
        return self.norm(x) @ self.embed_tokens.weight.T  # (B, T, V)

    def losses(self, ids, documents=None):
        """Cross entropy in nats of each next token, (B, T), of ids (B, T + 1)."""
        logits = self(ids[:, :-1], None if documents is None else documents[:, :-1])
        wanted = ids[:, 1:]
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape)

    def loss(self, ids, weights, documents=None):
        """The mean of `losses`, each by its token's weight, (B, T + 1)."""
        weights = weights[:, 1:]
        return (self.losses(ids, documents) * weights).sum() / weights.sum()

    @torch.no_grad()
    def generate(self, ids, count: int):
        """`count` more tokens, greedily: ids (B, T) -> (B, T + count). Everything is computed anew for each token."""
        for _ in range(count):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(dim=-1)], dim=1)
        return ids


def initialise(model: nn.Module) -> None:
    """Matrices from a normal distribution of 0.02; embeddings of 0.1 (at 0.02 words stay alike, and are not copied)."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1 if name.startswith("embed_tokens") else 0.02)


def llama(model: nn.Module):
    """The same weights as transformers' LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = asdict(model.config) | {"head_dim": model.config.head_dim}
    theta = config.pop("rope_theta")
    result = LlamaForCausalLM(LlamaConfig(
        **config, rope_parameters={"rope_type": "default", "rope_theta": theta}, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    ))  # fmt: skip
    result.model.load_state_dict(model.state_dict())
    return result
