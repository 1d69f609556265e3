"""Decoding on a CPU: adapter and rounded base folded into one plain copy, one cache for all rows of a
batch, and rows that leave when they have ended, so that waiting ones enter. Greedy, or by draws."""

import copy
import platform
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from peft.utils.integrations import dequantize_module_weight
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import sdpa_mask

from lib.engine.marks import Marks
from lib.judge.sampling import Draws
from lib.run import memory

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
QUANTIZED = ("Linear4bit", "Linear8bitLt")
GROWTH = 128  # tokens that the cache grows by
SHARED = 128  # tokens of a common beginning from which on it is read once for all prompts
ATTENTION = "sharpen_grouped"
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which also gives the logarithms of its sums
PACKS = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


Beginning = list[tuple[torch.Tensor, torch.Tensor]]  # each layer's keys and values: (1, heads, tokens, width)


def _grouped(module, query, key, value, attention_mask, scaling=None, beginning=(), **ignored):
    """Attention that leaves grouped keys as they are: transformers copies them for each query head."""
    causal = attention_mask is None and query.shape[2] > 1
    if beginning:
        output = _after(beginning[module.layer_idx], query, key, value, attention_mask, causal, scaling)
    else:
        output = scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=causal, scale=scaling, enable_gqa=True
        )
    return output.transpose(1, 2).contiguous(), None


def _after(beginning, query, key, value, mask, causal: bool, scaling: float) -> torch.Tensor:
    """Attention to a beginning that all rows share, kept once, and to each row's own tokens after it.

    Two softmaxes, weighed by their sums, are the softmax of both: (rows, heads, tokens, width)."""
    rows, heads, tokens, width = query.shape
    apart = (rows, key.shape[1], -1, width)  # one row's queries for each head of the keys
    together = query.reshape(apart).transpose(0, 1).reshape(1, key.shape[1], -1, width)
    to_shared, shared_sums = _attend(together, *beginning, scale=scaling)
    to_shared = to_shared.view(key.shape[1], rows, -1, width).transpose(0, 1).reshape(query.shape)
    shared_sums = shared_sums.view(key.shape[1], rows, -1).transpose(0, 1).reshape(rows, heads, tokens, 1)
    if mask is not None:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    to_own, own_sums = _attend(query, key, value, is_causal=causal, attn_mask=mask, scale=scaling)
    share = torch.sigmoid(shared_sums - own_sums[..., None])
    return share * to_shared + (1 - share) * to_own


AttentionInterface.register(ATTENTION, _grouped)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# --- the copy -------------------------------------------------------------------------------------
def unsupported(model: Any, rows: int, tokens: int) -> str | None:
    """Why `answers` cannot be had of this model, `rows` of `tokens` at once; None where they can."""
    config, base = getattr(model, "config", None), model
    if getattr(config, "model_type", None) not in FAMILIES:
        return f"the model is none of {', '.join(FAMILIES)}"
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"} or _window(config):
        return "the model attends to a sliding window"
    if isinstance(model, PeftModel):
        adapter = model.peft_config[model.active_adapter]
        if adapter.peft_type != "LORA" or adapter.use_dora or adapter.lora_bias:
            return f"its adapter ({adapter.peft_type}) is not plain LoRA"
        base = model.get_base_model()
    for module in base.modules():
        if isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
            return "its adapter changes more than linear layers"
        if isinstance(module, LoraLayer | torch.nn.Linear) and not _is_known(module):
            return f"it has a layer of its own kind ({type(module).__name__})"
    memory.give_back()  # what an earlier copy held counts as free
    needed, free = _bytes(base, rows, tokens), psutil.virtual_memory().available
    if needed > 0.8 * free:
        return f"it would need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
    return None


def _window(config: Any) -> bool:
    return config.model_type == "mistral" and config.sliding_window is not None


def _is_known(layer: Any) -> bool:
    """Is its weight a plain matrix, or one that can be dequantised?"""
    inner = _inner(layer)
    return type(inner) is torch.nn.Linear or type(inner).__name__ in QUANTIZED


def _inner(layer: Any) -> Any:
    """The linear layer itself, where LoRA is around it."""
    if isinstance(layer, LoraLayer):
        return layer.get_base_layer()
    return layer


def _bytes(base: torch.nn.Module, rows: int, tokens: int) -> int:
    """Of the copy in 32 bit (a tied head is one more matrix of it), of the cache, twice while rows
    enter or it grows, and of what a block computes for the prompts."""
    config = base.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = config.num_hidden_layers * 2 * config.num_key_value_heads * head
    computed = 4 * config.hidden_size + 3 * config.intermediate_size
    weights = base.num_parameters()
    if config.tie_word_embeddings:
        weights += config.vocab_size * config.hidden_size
    return 4 * (weights + rows * tokens * (2 * cached + computed))


@torch.no_grad()
def folded(model: torch.nn.Module) -> torch.nn.Module:
    """A plain copy in fp32 that computes what the model does: its base dequantised, an active LoRA
    added."""
    base = model
    if isinstance(model, PeftModel):
        base = model.get_base_model()
    layers = [module for module in base.modules() if isinstance(module, LoraLayer)]
    inner = {id(layer.get_base_layer()) for layer in layers}
    layers += [module for module in base.modules() if isinstance(module, torch.nn.Linear) and id(module) not in inner]
    copies = {id(layer): _plain(layer) for layer in layers}  # deepcopy takes these, and copies the rest
    plain = copy.deepcopy(base, copies).eval()
    for parameter in plain.parameters():  # but no buffer: the rotary frequencies are in 32 bit
        parameter.data = parameter.data.float()
    plain.config._attn_implementation = ATTENTION
    return plain


def _plain(layer: Any) -> torch.nn.Module:
    """A linear layer, quantised or not, with or without LoRA, as one in 32 bit."""
    inner = _inner(layer)
    weight = dequantize_module_weight(inner).float()  # (out, in)
    if inner is not layer and not layer.disable_adapters and not layer.merged:
        weight = weight + sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
    bias = inner.bias
    if bias is not None:
        bias = bias.float()
    if PACKS:
        return _Packed(weight, bias)
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None, "meta")
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = torch.nn.Parameter(bias, requires_grad=False)
    return plain


class _Packed(torch.nn.Module):
    """A linear layer through oneDNN, its weights laid out for it once: with few rows two to four times
    as fast in fp32 as torch's own, which calls MKL."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight), bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


# --- the cache ------------------------------------------------------------------------------------
class _Layer(StaticLayer):
    """Keys and values (rows, heads, tokens, width) in which each row writes at a place of its own."""

    is_compileable = False

    def __init__(self, rows: int):
        super().__init__(GROWTH)
        self.rows, self.places = rows, torch.zeros(0, dtype=torch.long)

    def hold(self, like: torch.Tensor, tokens: int) -> None:
        """Make room for so many tokens in all."""
        if not self.is_initialized:
            self.keys = self.values = like.new_zeros(self.rows, like.shape[1], 0, like.shape[3])
            self.is_initialized = True
        missing = tokens - self.keys.shape[2]
        if missing > 0:
            size = GROWTH * -(-missing // GROWTH)
            more = self.keys.new_zeros(*self.keys.shape[:2], size, self.keys.shape[3])
            self.keys = torch.cat([self.keys, more], dim=2)
            self.values = torch.cat([self.values, more], dim=2)

    def enter(self, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        rows, tokens = slice(first, first + keys.shape[0]), keys.shape[2]
        self.hold(keys, tokens)
        self.keys[rows, :, :tokens], self.values[rows, :, :tokens] = keys, values

    def move(self, source: int, target: int) -> None:
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def update(self, key_states, value_states, *ignored, **also_ignored):
        rows, tokens = len(self.places), int(self.places.max()) + 1
        self.hold(key_states, tokens)
        every = torch.arange(rows)
        self.keys[every, :, self.places] = key_states[:, :, 0]
        self.values[every, :, self.places] = value_states[:, :, 0]
        return self.keys[:rows, :, :tokens], self.values[:rows, :, :tokens]


class _Cache(Cache):
    """Each row's own keys and values, and those of the beginning of all prompts."""

    def __init__(self, model: torch.nn.Module, rows: int, beginning: Beginning):
        super().__init__(layers=[_Layer(rows) for _ in range(model.config.num_hidden_layers)])
        self.beginning, self.skipped = beginning, 0
        if beginning:
            self.skipped = beginning[0][0].shape[2]  # tokens


def shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with and that are worth reading once; each keeps one of its own."""
    if len(prompts) < 2:
        return 0
    length = 0
    for first, last in zip(min(prompts), max(prompts)):  # what these two share, all between them do
        if first != last:
            break
        length += 1
    length = min(length, min(map(len, prompts)) - 1)
    return length if length >= SHARED else 0


@torch.inference_mode()
def read(model: torch.nn.Module, tokens: list[int]) -> Beginning:
    """The keys and values of a beginning, by a model of `folded`; none of no tokens."""
    if not tokens:
        return []
    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


# --- the loop -------------------------------------------------------------------------------------
@dataclass
class _Row:
    """A question that is being answered: what was written, and what is to be written next."""

    index: int
    prompt: list[int]
    new: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)

    def write(self, choice: int, filling: Marks | None) -> None:
        """The next token: the model's choice, unless a mark's value is being written."""
        if not self.forced:
            self.forced = [choice]
            if filling:
                self.forced = filling.instead(self.prompt + self.new, choice)
        self.new.append(self.forced.pop(0))


@torch.inference_mode()
def answers(
    model: torch.nn.Module, prompts: list[list[int]], max_new_tokens: int, batch_size: int, ends: Collection[int],
    filling: Marks | None = None, tell: Callable[[int], None] = lambda ended: None, draws: Draws | None = None,
    beginning: Beginning = (), stopped: Callable[[list[int]], bool] = lambda new: False,
) -> list[list[int]]:  # fmt: skip
    """The new token ids of each prompt by a model of `folded`, greedy or by draws: through an end, or cut.

    `beginning`: `read` of the first tokens of all prompts. `stopped` says of what was written whether
    it has ended. `batch_size` rows at once; when a quarter of them have ended, waiting ones enter.
    `tell` hears how many have ended, but not of the last. Which rows share a batch changes only the
    last bits."""
    waiting, rows = deque(enumerate(prompts)), []
    cache = _Cache(model, batch_size, beginning)
    new: dict[int, list[int]] = {}
    told = 0
    while waiting or rows:
        free = batch_size - len(rows)
        if waiting and (not rows or 4 * free >= batch_size):
            entering = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            rows += _enter(model, cache, len(rows), entering, filling, draws)
        else:
            for row, choice in zip(rows, _choices(model, cache, rows, draws)):
                row.write(choice, filling)
        ended = [
            place for place, row in enumerate(rows)
            if row.new[-1] in ends or len(row.new) == max_new_tokens or stopped(row.new)
        ]  # fmt: skip
        for place in reversed(ended):
            new[rows[place].index] = rows[place].new
            last = rows.pop()
            if place < len(rows):  # the last row takes the place of the one that left
                rows[place] = last
                for layer in cache.layers:
                    layer.move(len(rows), place)
        if batch_size <= len(new) - told < len(prompts) - told:
            told = len(new)
            tell(told)
    return [new[index] for index in range(len(prompts))]


def _enter(
    model, cache: _Cache, first: int, entering: list[tuple[int, list[int]]], filling: Marks | None, draws: Draws | None
) -> list[_Row]:
    """Read prompts into the cache's rows from `first` on, and write the first token of each."""
    own = [torch.tensor(prompt[cache.skipped :]) for _, prompt in entering]
    ids, lengths = pad_sequence(own, batch_first=True), torch.tensor(list(map(len, own)))  # (B, T), (B,)
    read = DynamicCache(config=model.config)
    # padding stands to the right, where causal attention does not look
    hidden = model.get_decoder()(
        input_ids=ids, position_ids=cache.skipped + torch.arange(ids.shape[1])[None], past_key_values=read,
        use_cache=True, beginning=cache.beginning,
    ).last_hidden_state  # (B, T, C)  # fmt: skip
    last = hidden[torch.arange(len(entering)), lengths - 1]  # (B, C)
    for layer, new in zip(cache.layers, read.layers):
        layer.enter(first, new.keys, new.values)
    rows = [_Row(index, prompt) for index, prompt in entering]
    for row, choice in zip(rows, _pick(model.get_output_embeddings()(last), rows, draws)):
        if filling:  # a prompt may end in an open mark
            row.forced = filling.value(row.prompt)
        row.write(choice, filling)
    return rows


def _choices(model, cache: _Cache, rows: list[_Row], draws: Draws | None) -> list[int]:
    """The token chosen after each row's last one, which is read into the cache."""
    ids = torch.tensor([row.new[-1:] for row in rows])  # (B, 1)
    places = torch.tensor([len(row.prompt) + len(row.new) - 1 for row in rows]) - cache.skipped
    for layer in cache.layers:
        layer.places = places
    seen = torch.arange(int(places.max()) + 1) <= places[:, None]  # (B, T)
    hidden = model.get_decoder()(
        input_ids=ids, attention_mask=seen[:, None, None], position_ids=cache.skipped + places[:, None],
        past_key_values=cache, use_cache=True, beginning=cache.beginning,
    ).last_hidden_state  # (B, 1, C)  # fmt: skip
    return _pick(model.get_output_embeddings()(hidden[:, -1]), rows, draws)


def _pick(logits: torch.Tensor, rows: list[_Row], draws: Draws | None) -> list[int]:
    """The next token of each row: the likeliest, or by its draw."""
    if draws is None:
        return logits.argmax(-1).tolist()
    return draws.tokens(logits, [row.index for row in rows], [len(row.new) for row in rows])
