"""Attention for training on a CPU: plain matrix products, which train on short rows faster than torch's flash
kernel does."""

import torch
from torch.nn.functional import softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "products"
LONGEST = 512  # tokens of a batch's longest row: above, the kernel is hardly slower, and keeps no scores


def use(model) -> None:
    """Let a model on a CPU train by `attend`; one that cannot choose its attention keeps its own."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """transformers' SDPA, but by plain products where it trains on short rows."""
    tokens, keys = query.shape[2], key.shape[2]
    causal = attention_mask is None and tokens == keys
    if attention_mask is None and not causal or dropout or not module.training or keys > LONGEST:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if causal:
        attention_mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    return products(query, key, value, attention_mask, scaling), None


def products(query, key, value, mask, scaling):
    """softmax(q k' scaling) v where `mask` is True, each key and value for its group of heads: (B, T, heads, width)."""
    rows, heads, tokens, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    query = (query * scaling).reshape(rows, groups, -1, width)  # (B, groups, heads of a group * T, width)
    scores = query @ key.transpose(2, 3)
    scores = scores.view(rows, heads, tokens, keys).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    weights = softmax(scores, dim=-1).view(rows, groups, -1, keys)
    return (weights @ value).view(rows, heads, tokens, width).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
