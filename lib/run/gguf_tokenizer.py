"""The tokenizer in a GGUF file, as transformers has it: the same token ids as llama.cpp's, and the file's own special
tokens and chat template."""

from typing import Any

from lib.run.gguf_header import Header
from lib.run.settings import short
from lib.run.untrusted import UntrustedError

FIELD = "tokenizer.ggml."
# What llama.cpp calls the ways to split a text before its bytes are merged (tokenizer.ggml.pre)
PRE_TOKENIZERS = ("gpt-2", "smollm", "llama-bpe")
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens


def check(header: Header) -> None:
    """UntrustedError where a tokenizer is not read here, by name, or its fields do not fit each other."""
    fields, path = header.fields, header.path
    model, pre = fields.get(f"{FIELD}model"), fields.get(f"{FIELD}pre")
    if model != "gpt2":
        raise UntrustedError(f"{path}: tokenizer {short(model)} is not read, only byte-level BPE ('gpt2'): "
                             f"name the model's 16-bit folder or hub id")  # fmt: skip
    if pre not in PRE_TOKENIZERS:
        raise UntrustedError(f"{path}: pre-tokenizer {short(pre)} is not known here, only "
                             f"{', '.join(PRE_TOKENIZERS)}: name the model's 16-bit folder or hub id")  # fmt: skip
    tokens = fields.get(f"{FIELD}tokens")
    for name, kind in (("tokens", str), ("merges", str), ("token_type", int)):
        values = fields.get(f"{FIELD}{name}")
        if not isinstance(values, list) or not values or type(values[0]) is not kind:
            raise UntrustedError(f"{path}: {FIELD}{name} is missing, or no list")
    if len(set(tokens)) != len(tokens) or len(fields[f"{FIELD}token_type"]) != len(tokens):
        raise UntrustedError(f"{path}: {FIELD}tokens holds a token twice, or more or fewer than token_type")
    known = set(tokens)
    for merge in fields[f"{FIELD}merges"]:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise UntrustedError(f"{path}: merge {short(merge)} is not of two tokens to a third")
    if special_ids(header)["eos"] is None:
        raise UntrustedError(f"{path} names no end token ({FIELD}{SPECIAL['eos']}): no answer would end")
    if not isinstance(fields.get("tokenizer.chat_template", ""), str):
        raise UntrustedError(f"{path}: tokenizer.chat_template is no text")


def special_ids(header: Header) -> dict[str, int | None]:
    """{"bos", "eos", "pad" and "unk": its id, as the file has it}; None where it names none."""
    ids = {name: header.fields.get(f"{FIELD}{field}") for name, field in SPECIAL.items()}
    count = len(header.fields[f"{FIELD}tokens"])
    for name, id in ids.items():
        if id is not None and (type(id) is not int or not 0 <= id < count):
            raise UntrustedError(f"{header.path}: {FIELD}{SPECIAL[name]} = {short(id)}: there are {count:,} tokens")
    return ids


def build(header: Header, longest: int) -> Any:
    """transformers' tokenizer of a file that `check` has passed; `longest`: the model's context, tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fields, pre = header.fields, header.fields[f"{FIELD}pre"]
    tokens, merges = fields[f"{FIELD}tokens"], fields[f"{FIELD}merges"]
    ids = special_ids(header)
    named = {f"{name}_token": tokens[id] for name, id in ids.items() if id is not None}
    vocabulary, pairs = {token: id for id, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe",
                                unk_token=named.get("unk_token")))  # fmt: skip
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(_split(pre)), decoders.ByteLevel()
    for token, kind in zip(tokens, fields[f"{FIELD}token_type"]):
        if kind in (CONTROL, USER_DEFINED):
            made.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    if fields.get(f"{FIELD}add_bos_token", pre == "llama-bpe"):
        bos = named["bos_token"]
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids["bos"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=fields.get("tokenizer.chat_template"), model_max_length=longest,
        clean_up_tokenization_spaces=False, **named,
    )  # fmt: skip


def _split(pre: str) -> list[Any]:
    """The steps that split a text before its bytes are merged, as the pre-tokenizer of this name does."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

    if pre == "llama-bpe":
        return [Split(Regex(LLAMA_3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    words = ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return [Digits(individual_digits=True), words]
    return [words]
