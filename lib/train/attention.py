"""Attention for training on a CPU: plain matrix products, which train on short rows faster than torch's flash
kernel does."""

import torch
from torch.autograd import Function
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
    hidden = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min / 2)
    hidden = hidden.expand(rows, heads, tokens, keys).reshape(rows * groups, -1, keys)
    query = query.reshape(rows * groups, -1, width)  # the heads of a group are so many more tokens
    key, value = (states.reshape(rows * groups, keys, width) for states in (key, value))
    mixed = _Products.apply(query, key, value, hidden, scaling)
    return mixed.view(rows, heads, tokens, width).transpose(1, 2).contiguous()


class _Products(Function):
    """softmax(q k' scaling + hidden) v, (B, T, width). Of its steps only the weights are kept, and all gradients
    lie in memory as what they belong to, for which autograd would copy them."""

    @staticmethod
    def forward(context, query, key, value, hidden, scaling):
        scores = hidden.baddbmm_(query, key.transpose(1, 2), alpha=scaling)
        weights = torch.softmax(scores, dim=-1, out=scores)  # a freed block of this size is a hole that nothing fills
        context.save_for_backward(query, key, value, weights)
        context.scaling = scaling
        return weights @ value

    @staticmethod
    def backward(context, gradient):
        query, key, value, weights = context.saved_tensors
        of_weights = gradient @ value.transpose(1, 2)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(context.scaling)
        return of_scores @ key, of_scores.transpose(1, 2) @ query, weights.transpose(1, 2) @ gradient, None, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
