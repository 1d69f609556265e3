"""What a CPU trains a Llama's layers by: the same arithmetic, in fewer passes over memory, and with less kept for
the backward pass. Attention is plain products, which train on short rows faster than torch's flash kernel does."""

from types import MethodType

import torch
from peft.tuners.lora.layer import LoraLayer
from torch.autograd import Function
from torch.nn.functional import linear, silu
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "products"
LONGEST = 512  # tokens of a batch's longest row: above, the kernel is hardly slower, and keeps no scores
KEPT = 2**25  # bytes of a layer's attention weights: up to so many are kept for the backward pass, which saves 7 %
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")  # whose norms and MLPs compute as Llama's do


def use(model, lora: bool = True) -> None:
    """Let a model on a CPU train by these layers; where a layer is of another kind it keeps its own."""
    if model.device.type != "cpu":
        return
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    for layer in model.modules():
        kind = type(layer).__name__
        if kind in [f"{family}RMSNorm" for family in FAMILIES]:
            layer.forward = MethodType(_norm, layer)
        elif kind in [f"{family}MLP" for family in FAMILIES] and layer.config.hidden_act == "silu":
            layer.forward = MethodType(_mlp, layer)
        elif lora and isinstance(layer, LoraLayer) and not layer.use_dora.get("default"):
            layer.forward = MethodType(_lora, layer)


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
    mask = mask.expand(rows, heads, tokens, keys)
    query = query.reshape(rows * groups, -1, width)  # the heads of a group are so many more tokens
    key, value = (states.reshape(rows * groups, keys, width) for states in (key, value))
    mixed = _Products.apply(query, key, value, mask, scaling)
    return mixed.view(rows, heads, tokens, width).transpose(1, 2).contiguous()


class _Products(Function):
    """softmax(q k' scaling) v, (B, T, width). Its weights are computed again for the backward pass where they are
    large, and all gradients lie in memory as what they belong to, for which autograd would copy them."""

    @staticmethod
    def forward(context, query, key, value, mask, scaling):
        weights = _weights(query, key, mask, scaling)
        context.save_for_backward(query, key, value, mask, weights if weights.nbytes <= KEPT else None)
        context.scaling = scaling
        return weights @ value

    @staticmethod
    def backward(context, gradient):
        query, key, value, mask, weights = context.saved_tensors
        if weights is None:
            weights = _weights(query, key, mask, context.scaling)
        of_weights = gradient @ value.transpose(1, 2)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(context.scaling)
        return of_scores @ key, of_scores.transpose(1, 2) @ query, weights.transpose(1, 2) @ gradient, None, None


def _weights(query, key, mask, scaling):
    one = mask[:, :1]  # the heads share it
    hidden = torch.zeros(one.shape, dtype=query.dtype).masked_fill_(~one, torch.finfo(query.dtype).min / 2)
    scores = hidden.expand(mask.shape).reshape(len(query), -1, key.shape[1])
    scores.baddbmm_(query, key.transpose(1, 2), alpha=scaling)
    return torch.softmax(scores, dim=-1, out=scores)  # a freed block of this size is a hole that nothing fills


class _Gated(Function):
    """silu(gate) * up, of which gate and up alone are kept."""

    @staticmethod
    def forward(context, gate, up):
        context.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(context, gradient):
        gate, up = context.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


def _mlp(mlp, states):
    return mlp.down_proj(_Gated.apply(mlp.gate_proj(states), mlp.up_proj(states)))


class _Norm(Function):
    """RMSNorm (Zhang and Sennrich 2019) in single precision, of which the input and a number a token are kept."""

    @staticmethod
    def forward(context, states, weight, epsilon):
        single = states.float()
        scale = torch.rsqrt(single.square().mean(-1, keepdim=True) + epsilon)
        context.save_for_backward(states, weight, scale)
        return weight * (single * scale).to(states.dtype)

    @staticmethod
    def backward(context, gradient):
        states, weight, scale = context.saved_tensors
        normed, of_weight = states.float() * scale, None
        if context.needs_input_grad[1]:
            of_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        of_normed = (gradient * weight).float()
        shared = (of_normed * normed).mean(-1, keepdim=True)
        return of_normed.sub_(normed.mul_(shared)).mul_(scale).to(states.dtype), of_weight, None


def _norm(norm, states):
    return _Norm.apply(states, norm.weight, norm.variance_epsilon)


def _lora(layer, states):
    """LoRA in the inputs' type, added within its second product. PEFT keeps a copy of the inputs in single precision,
    which autocast turns back, and makes, scales and adds a tensor of the layer's width."""
    if not layer.training or layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]:
        return type(layer).forward(layer, states)
    result = layer.base_layer(states)
    down, up = (weights["default"].weight.to(states.dtype) for weights in (layer.lora_A, layer.lora_B))
    low = linear(layer.lora_dropout["default"](states), down) * layer.scaling["default"]
    return torch.addmm(result.flatten(0, -2), low.flatten(0, -2), up.T).view_as(result)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
