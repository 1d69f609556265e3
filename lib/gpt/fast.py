"""The same GPT, fast: the same weights and the same logits as `plain.py`. What stands here is what differs.

Attention is one call, which need not store its scores where a device has a kernel for it; heads share keys without
copies; half precision enters by autocast (`pretrain.train`); layers can be computed again instead of kept; generation
keeps keys and values in a preallocated cache. The rest is the compiler's work: it fuses what lies between the matrix
products."""

import math

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lib.gpt import plain
from lib.gpt.plain import Config, rotate


class RMSNorm(plain.RMSNorm):
    def forward(self, x):  # (..., C)
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


def attend(q, k, v, allowed):
    """q (B, H, T, D) on k and v (B, G, positions, D); `allowed` (B, 1, T, T), or None for all that precedes."""
    if allowed is None or q.is_cuda or not torch.compiler.is_compiling():
        causal = allowed is None and q.shape[2] > 1
        return scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, enable_gqa=True)
    # On a CPU two batched products with the compiler's softmax between them beat the library's masked kernel.
    (B, H, T, D), G = q.shape, k.shape[1]
    scores = q.reshape(B, G, -1, D) @ k.transpose(-2, -1)  # (B, G, H / G * T, T): heads that share keys stand together
    scores = scores.view(B, G, -1, T, T).float() / math.sqrt(D)
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    return (scores.softmax(dim=-1).to(v.dtype).view(B, G, -1, T) @ v).view(B, H, T, D)


class Attention(plain.Attention):
    def forward(self, x, cos, sin, allowed, cache=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, G, T, D)
        v = self.v_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, G, T, D)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if cache is not None:
            k, v = cache.update(k, v)  # (B, G, positions, D)
        y = attend(q, k, v, allowed)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class Layer(plain.Layer):
    norm_type, attention_type = RMSNorm, Attention

    def forward(self, x, cos, sin, allowed, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, allowed, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Cache:
    """Keys and values of one layer, (B, G, positions, D) each, allocated once."""

    def __init__(self, config: Config, batch: int, positions: int, like: torch.Tensor):
        shape = batch, config.num_key_value_heads, positions, config.head_dim
        self.keys, self.values, self.used = like.new_zeros(shape), like.new_zeros(shape), 0

    def update(self, k, v):
        end = self.used + k.shape[2]
        self.keys[:, :, self.used : end], self.values[:, :, self.used : end], self.used = k, v, end
        return self.keys[:, :, :end], self.values[:, :, :end]


class FastGPT(plain.GPT):
    """The weights of `plain.GPT`; `checkpointing` computes each layer's inside again in the backward pass."""

    norm_type, layer_type = RMSNorm, Layer

    def __init__(self, config: Config, checkpointing: bool = False):
        super().__init__(config)
        self.checkpointing = checkpointing

    def hidden(self, ids, documents=None, caches=None, start=0):
        """What the last layer says, (B, T, C)."""
        T, allowed = ids.shape[1], None
        if documents is not None:
            allowed = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
            allowed = (allowed & (documents[:, :, None] == documents[:, None, :]))[:, None]  # (B, 1, T, T)
        x = self.embed_tokens(ids)  # (B, T, C)
        cos, sin = self.cos[start : start + T], self.sin[start : start + T]
        for i, layer in enumerate(self.layers):
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, cos, sin, allowed, use_reentrant=False)
            else:
                x = layer(x, cos, sin, allowed, caches[i] if caches else None)
        return self.norm(x)

    def forward(self, ids, documents=None):
        return self.hidden(ids, documents) @ self.embed_tokens.weight.T  # (B, T, V)

    @torch.inference_mode()
    def generate(self, ids, count: int):
        weight = self.embed_tokens.weight
        caches = [Cache(self.config, len(ids), ids.shape[1] + count, weight) for _ in self.layers]
        result, done = ids.new_zeros(len(ids), ids.shape[1] + count), ids.shape[1]
        result[:, :done] = ids
        for end in range(done, done + count):  # the prompt at once, then one token at a time
            x = self.hidden(result[:, caches[0].used : end], caches=caches, start=caches[0].used)[:, -1]  # (B, C)
            result[:, end] = (x @ weight.T).argmax(dim=-1)
        return result
