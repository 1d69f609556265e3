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
# What a tokenizer has beside its tokens: byte-level BPE its merges, SentencePiece's BPE the tokens' scores
LISTS = {"gpt2": {"merges": str}, "llama": {"scores": float}}
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens
LONGEST = 512  # characters of a token
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for it


def check(header: Header) -> None:
    """UntrustedError where a tokenizer is not read here, by name, or its fields do not fit each other."""
    fields, path = header.fields, header.path.name
    model, pre = fields.get(f"{FIELD}model"), fields.get(f"{FIELD}pre")
    if str(model) not in LISTS:
        raise UntrustedError(f"{path}: tokenizer {short(model)} is not read, only {' and '.join(LISTS)}: "
                             f"name the model's 16-bit folder or hub id")  # fmt: skip
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        raise UntrustedError(f"{path}: pre-tokenizer {short(pre)} is not known here, only "
                             f"{', '.join(PRE_TOKENIZERS)}: name the model's 16-bit folder or hub id")  # fmt: skip
    tokens = fields.get(f"{FIELD}tokens")
    for name, kind in {"tokens": str, "token_type": int, **LISTS[model]}.items():
        values = fields.get(f"{FIELD}{name}")
        if not isinstance(values, list) or not values or type(values[0]) is not kind:
            raise UntrustedError(f"{path}: {FIELD}{name} is missing, or no list")
    lengths = {len(set(tokens)), *(len(fields[f"{FIELD}{name}"]) for name in ("tokens", "token_type"))}
    if len(lengths) > 1 or len(fields.get(f"{FIELD}scores", tokens)) != len(tokens):
        raise UntrustedError(f"{path}: {FIELD}tokens holds a token twice, or more or fewer than token_type or scores")
    if max(map(len, tokens)) > LONGEST:
        raise UntrustedError(f"{path}: a token is longer than {LONGEST} characters")
    known = set(tokens)
    for merge in fields.get(f"{FIELD}merges", ()):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise UntrustedError(f"{path}: merge {short(merge)} is not of two tokens to a third")
    if special_ids(header)["eos"] is None:
        raise UntrustedError(f"{path} names no end token ({FIELD}{SPECIAL['eos']}): no answer would end")
    if not isinstance(fields.get("tokenizer.chat_template", ""), str):
        raise UntrustedError(f"{path}: tokenizer.chat_template is no text")


def special_ids(header: Header) -> dict[str, int | None]:
    """{"bos", "eos", "pad" and "unk": its id, as the file has it}; None where it names none."""
    ids, count = {}, len(header.fields[f"{FIELD}tokens"])
    for name, field in SPECIAL.items():
        ids[name] = id = header.fields.get(f"{FIELD}{field}")
        if id is not None and (type(id) is not int or not 0 <= id < count):
            raise UntrustedError(f"{header.path.name}: {FIELD}{field} = {short(id)}: there are {count:,} tokens")
    return ids


def build(header: Header, longest: int) -> Any:
    """transformers' tokenizer of a file that `check` has passed; `longest`: the model's context, tokens."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    fields, tokens, ids = header.fields, header.fields[f"{FIELD}tokens"], special_ids(header)
    named = {f"{name}_token": tokens[id] for name, id in ids.items() if id is not None}
    sentencepiece, llama_3 = fields[f"{FIELD}model"] == "llama", fields.get(f"{FIELD}pre") == "llama-bpe"
    make = _sentencepiece if sentencepiece else _byte_level
    made = make(fields, {token: id for id, token in enumerate(tokens)}, named.get("unk_token"))
    added = []
    for token, kind in zip(tokens, fields[f"{FIELD}token_type"]):
        if kind in (CONTROL, USER_DEFINED):
            added.append(AddedToken(token, special=kind == CONTROL, normalized=False))
    made.add_tokens(added)  # at once: each call goes through all that were added
    bos = named.get("bos_token")
    if bos and fields.get(f"{FIELD}add_bos_token", sentencepiece or llama_3):
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids["bos"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=fields.get("tokenizer.chat_template"), model_max_length=longest,
        clean_up_tokenization_spaces=False, **named,
    )  # fmt: skip


def _byte_level(fields: dict[str, Any], vocabulary: dict[str, int], unknown: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pre, merges = fields[f"{FIELD}pre"], [tuple(merge.split(" ", 1)) for merge in fields[f"{FIELD}merges"]]
    whole_first = pre == "llama-bpe"  # a word that is a token is not merged
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_first, unk_token=unknown))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(_split(pre)), decoders.ByteLevel()
    return made


def _sentencepiece(fields: dict[str, Any], vocabulary: dict[str, int], unknown: str | None) -> Any:
    """Two neighbours are merged to the token of the highest score: so all pairs that make a token are its merges.

    Of two characters that are no tokens, as `<<`, the pair is found whole, since BPE here merges only tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    scores, ranked, whole = fields[f"{FIELD}scores"], [], []
    for (token, id), kind in zip(vocabulary.items(), fields[f"{FIELD}token_type"]):
        if kind == NORMAL:
            pairs = ((token[:place], token[place:]) for place in range(1, len(token)))
            found = [(-scores[id], *pair) for pair in pairs if vocabulary.keys() >= set(pair)]
            ranked += found
            if len(token) == 2 and not found:
                whole.append(AddedToken(token, special=False, normalized=False))
    merges = [(left, right) for _, left, right in sorted(ranked)]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces, back = [normalizers.Replace(" ", SPACE)], [decoders.Replace(SPACE, " "), decoders.ByteFallback(),
                                                       decoders.Fuse()]  # fmt: skip
    if fields.get(f"{FIELD}add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    made.add_tokens(whole)
    made.normalizer, made.decoder = normalizers.Sequence(spaces), decoders.Sequence(back)
    return made


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
