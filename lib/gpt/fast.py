"""The same GPT, fast: the weights and the logits of `plain.py`. What stands here is what differs.

Attention is one call, which stores no scores where the device has a kernel for it; heads share keys
without copies; half precision comes by autocast (`pretrain.train`); layers can be recomputed instead
of kept; generation keeps keys and values in a cache. The rest is left to the compiler, which fuses
what lies between the matrix products."""

import math

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lib.gpt import plain
from lib.gpt.plain import Config, rotate, seen


class RMSNorm(plain.RMSNorm):
    def forward(self, x):  # (..., C)
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


def attend(q, k, v, allowed):
    """q (B, H, T, D) on k, v (B, G, positions, D); `allowed` (B, 1, T, T), or None: all before it."""
    if allowed is None or q.is_cuda or not torch.compiler.is_compiling():
        causal = allowed is None and q.shape[2] > 1
        return scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, enable_gqa=True)
    # On a CPU two products with the compiler's softmax between them beat the library's masked kernel.
    (B, H, T, D), G = q.shape, k.shape[1]
    scores = q.reshape(B, G, -1, D) @ k.transpose(-2, -1)  # (B, G, H / G * T, T)
    scores = scores.view(B, G, -1, T, T).float() / math.sqrt(D)
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    return (scores.softmax(dim=-1).to(v.dtype).view(B, G, -1, T) @ v).view(B, H, T, D)


class Attention(plain.Attention):
    def forward(self, x, cos, sin, allowed, cache=None):
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if cache is not None:
            k, v = cache.update(k, v)  # (B, G, positions, D)
        y = attend(q, k, v, allowed)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class Layer(plain.Layer):
    norm_type, attention_type = RMSNorm, Attention


class Cache:
    """Keys and values of one layer, (B, G, positions, D) each, allocated once."""

    def __init__(self, config: Config, batch: int, positions: int, like: torch.Tensor):
        shape = batch, config.num_key_value_heads, positions, config.head_dim
        self.keys, self.values, self.used = like.new_zeros(shape), like.new_zeros(shape), 0

    def update(self, k, v):
        start, end = self.used, self.used + k.shape[2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class FastGPT(plain.GPT):
    """The weights of `plain.GPT`; with `checkpointing` the backward pass recomputes each layer."""

    norm_type, layer_type = RMSNorm, Layer

    def __init__(self, config: Config, checkpointing: bool = False):
        super().__init__(config)
        self.checkpointing = checkpointing

    def hidden(self, ids, documents=None, caches=None, start=0):
        """What the last layer says, (B, T, C)."""
        end = start + ids.shape[1]
        allowed = None if documents is None else seen(ids, documents)
        context = self.cos[start:end], self.sin[start:end], allowed
        x = self.embed_tokens(ids)  # (B, T, C)
        for layer, cache in zip(self.layers, caches or [None] * len(self.layers)):
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, *context, use_reentrant=False)
            else:
                x = layer(x, *context, cache)
        return self.norm(x)

    def forward(self, ids, documents=None):
        return self.hidden(ids, documents) @ self.embed_tokens.weight.T  # (B, T, V)

    @torch.inference_mode()
    def generate(self, ids, count: int):
        weight = self.embed_tokens.weight
        caches = [Cache(self.config, len(ids), ids.shape[1] + count, weight) for _ in self.layers]
        for _ in range(count):  # the prompt at once, then one token at a time
            start = caches[0].used
            x = self.hidden(ids[:, start:], caches=caches, start=start)[:, -1:]  # (B, 1, C)
            ids = torch.cat([ids, (x @ weight.T).argmax(dim=-1)], dim=1)
        return ids
