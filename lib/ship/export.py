"""From adapter to GGUF: merge, convert, quantise; each file whole or absent, and checked."""

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib import SharpenError
from lib.data import chat
from lib.engine import llamacpp
from lib.engine.llamacpp import LlamaCpp, Server
from lib.run import disk, published, runs, untrusted
from lib.run.disk import size_text
from lib.run.paths import is_local, locate
from lib.run.settings import short

# Bits a weight, for free space, and the tensor types that a file of that name should mostly hold.
QUANTIZATIONS = {
    "Q8_0": (8.5, {"Q8_0"}), "Q6_K": (6.6, {"Q6_K"}), "Q5_K_M": (5.7, {"Q5_K", "Q6_K"}),
    "Q5_K_S": (5.6, {"Q5_K"}), "Q4_K_M": (4.9, {"Q4_K", "Q6_K"}), "Q4_K_S": (4.6, {"Q4_K"}),
    "Q3_K_M": (3.9, {"Q3_K", "Q4_K", "Q5_K"}),
}  # fmt: skip
WHOLE = {"F32", "F16", "BF16"}
# What a merge and a conversion may change, in parts of what rounding to 16 bit does to the base itself. Measured:
# 0.5 and 0.001 on the embedded base, 0.8 and 0.003 on SmolLM2.
MERGED, CONVERTED = 4, 0.1
EXACT_BYTES = 8 * 2**30  # larger f32 files are not made for the check alone
FP16_MOST = 65504.0
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # the converter needs one of them
PROMPT, SYSTEM = "{{ .Prompt }}", "{{ .System }}"  # Ollama's placeholders
ALL_WEIGHTS = "all weights"
PLAIN = {  # what an adapter's config must say so that its matrices or scales are all that it changes
    "bias": "none", "fan_in_fan_out": False, "modules_to_save": None, "layer_replication": None,
    "lora_bias": False, "alpha_pattern": {},
}  # fmt: skip
PART = r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_magnitude_vector|ia3_l)(?:\.default)?(?:\.weight)?"


class ExportError(SharpenError):
    """An artefact cannot be made or is not what it should be; the message says what to do."""


# --- files ----------------------------------------------------------------------------------------
def check_space(folder: Path, needed: float, what: str) -> None:
    """ExportError where the disk has less than the bytes that are needed, with both figures."""
    if lack := disk.lack_of_space(folder, needed, what):
        raise ExportError(f"{lack}: make room, or name another folder by `outputs`")


def keep(folder: Path, name: str, key: dict, make: Callable[[Path], dict], skip: bool = False) -> dict | None:
    """What `make(part)` writes, under its final name once it is whole; not made again if there.

    `key` says what it is made from. A file (or folder) of the same key is taken from this attempt,
    or from the former or abandoned one beside. With `skip` whatever is there is taken, and None is
    the answer where nothing is."""
    code = {Path(file).name: disk.sha256(file) for file in (__file__, llamacpp.__file__)}
    key = json.loads(json.dumps({"key": key, "code": code}, default=str))
    if record := _taken_over(folder, name, None if skip else key):
        note = " (skipped, so not compared with its inputs)" if skip else ""
        print(f"{name}: is there already{note}")
        return record["facts"]
    if skip:
        return None
    path, part, began = folder / name, folder / f"{name}.part", time.monotonic()
    for old in (part, path, _record_of(folder, name)):
        _remove(old)
    try:
        facts = make(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:  # a full disk too, which safetensors hides in its text
        raise ExportError(f"{name} cannot be written: {error} ({folder})") from error
    finally:
        _remove(part)
    facts["bytes"] = size_of(path)
    record = {"key": key, "files": runs.hashes_of(path), "facts": facts}
    disk.write_atomically(_record_of(folder, name), [json.dumps(record, indent=2)])
    print(f"{name}: {size_text(facts['bytes'])} in {time.monotonic() - began:.1f} s")
    return facts


def _taken_over(folder: Path, name: str, key: dict | None) -> dict | None:
    """The record of a whole file of this key (None: of any) which this attempt or one beside it
    left; it is moved here. A torn record counts as none."""
    for aside in ("", ".former", ".abandoned"):
        attempt = folder.with_name(folder.name + aside)
        try:
            record = untrusted.read_json(_record_of(attempt, name))
        except untrusted.UntrustedError:
            continue
        for place in (attempt / name, attempt / "failed" / name):
            same = key is None or record.get("key") == key
            if same and place.exists() and record.get("files") == runs.hashes_of(place):
                if place != folder / name:
                    _remove(folder / name)
                    os.replace(place, folder / name)
                    disk.write_atomically(_record_of(folder, name), [json.dumps(record, indent=2)])
                return record
    return None


def _record_of(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.json"


def put_aside(path: Path) -> Path:
    """A file that failed the gate goes to `failed/` beside, so that nobody ships it by accident."""
    failed = path.parent / "failed"
    failed.mkdir(exist_ok=True)
    return path.replace(failed / path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


# --- merge ----------------------------------------------------------------------------------------
def method(tuned: Path) -> str:
    """How the model in a training's folder was tuned: "LoRA", "DoRA", "IA3" or "all weights".

    ExportError where the folder holds more than data, or an adapter that is no change of the base's
    weights, and so cannot be merged."""
    _check_plain(tuned, str(tuned))
    if (tuned / "config.json").exists():  # a whole model; an adapter has none
        return ALL_WEIGHTS
    config = untrusted.read_json(tuned / "adapter_config.json")
    match config.get("peft_type"):
        case "LORA" if config.get("use_dora"):
            return "DoRA"
        case "LORA":
            return "LoRA"
        case "IA3":
            return "IA3"
        case "PREFIX_TUNING":
            raise ExportError("peft_type = 'prefix_tuning': a prefix is keys and values before each row, no change "
                              "of the weights, so it cannot be merged, and no GGUF file can hold it: to export, "
                              "train with peft_type = 'lora' or 'ia3'")  # fmt: skip
        case other:
            raise ExportError(f"{tuned}: {other} adapters are not merged here, only LoRA, DoRA and IA3: merge it "
                              f"by PEFT's merge_and_unload, and name that folder as base_model")  # fmt: skip


def _check_plain(folder: Path, name: str) -> None:
    """ExportError where a folder holds more than data: code, pickles, links or shards elsewhere."""
    if problems := untrusted.model_problems(folder):
        raise ExportError(f"{name}: {problems[0]}")


def base_folder(name: str) -> Path:
    """The folder of the base's 16- or 32-bit weights; of a 4-bit repository its 16-bit origin.

    ExportError where they are quantised: merging into them would lose what was learnt."""
    folder = Path(locate(name)) if is_local(name) else _downloaded(name)
    _check_plain(folder, f"base_model = {name!r}")
    if not _has_tokenizer(folder):
        raise ExportError(f"base_model = {name!r} has no {' and no '.join(TOKENIZERS)}: put its tokenizer there")
    if quantized := untrusted.read_json(folder / "config.json").get("quantization_config"):
        how = quantized.get("quant_method", "quantised")
        raise ExportError(f"base_model = {name!r} holds {how} weights, and merging into those loses what was "
                          f"learnt: set base_model to the 16-bit model that it was made from")  # fmt: skip
    return folder


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    whole = re.sub(r"(-unsloth)?-bnb-4bit$", "", name)
    if whole != name:
        print(f"{name} holds 4-bit weights; the adapter is merged into {whole}")
    patterns = ["*.safetensors*", "*.json", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(whole, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # all that the hub's client raises
        raise ExportError(f"base_model = {name!r} is no folder here, and the hub did not give it "
                          f"({type(error).__name__}): correct the path, or check the network") from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).exists() for file in TOKENIZERS)


def merge(base: Path, adapter: Path | None, folder: Path, tokenizer: Any, rounded: bool = False) -> dict:
    """Write the tuned model (without an adapter: the base) to `folder`, computed in fp32 and saved in
    fp16, one shard at a time.

    So a large model takes the memory of its largest shard. Where all weights were trained, they are
    in `adapter`, and only saved anew. `rounded`: onto the base as QLoRA saw it (`as_trained`).
    Returns what was counted."""
    how, source, layers = "no adapter", base, {}
    if adapter:
        how = method(adapter)
        source, layers = (adapter, {}) if how == ALL_WEIGHTS else (base, _layers(adapter))
    config = untrusted.read_json(source / "config.json")
    if config.get("tie_word_embeddings") and layers.keys() & {"model.embed_tokens", "lm_head"}:
        raise ExportError("the adapter changes the embeddings, which input and output share: untie them first")
    shards = _shards(source)
    check_space(folder.parent, 2 * sum(shards.values()), "the merged model")
    folder.mkdir()
    weight_map, merged, parameters = {}, set(), 0
    for file in shards:
        tensors = {}
        for name, tensor in _tensors(source / file):
            if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
                raise ExportError(f"{source / file}: {name} is {tensor.dtype}: merging needs 16- or 32-bit weights")
            if rounded:
                tensor = as_trained(name, tensor)
            layer = name.rpartition(".")[0]
            if layer in layers:
                tensor = _merged(tensor.float(), layers[layer], name)
                merged.add(layer)
            tensors[name] = _half(tensor, name)
            weight_map[name] = file
            parameters += tensor.numel()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        with open(folder / file, "rb") as written:
            os.fsync(written.fileno())
    if left := sorted(layers.keys() - merged):
        raise ExportError(f"the adapter changes {left[0]} (and {len(left) - 1} more), which {base} does not have: "
                          f"was it trained on another base?")  # fmt: skip
    if len(shards) > 1:
        index = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for key in ("torch_dtype", "quantization_config"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2))
    save_tokenizer(tokenizer, base, folder)
    return {"method": how, "merged_matrices": len(merged), "parameters": parameters, "shards": len(shards),
            "rounded": rounded}  # fmt: skip


def as_trained(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A linear layer's weight rounded to NF4 and back, as QLoRA saw it; others unchanged.

    The adapter has learnt to live with this rounding: on the unrounded base the demo's model lost 5
    points (20 answers of 300 lost, 4 won). By bitsandbytes as Unsloth sets it: double quantisation,
    blocks of 64."""
    if not name.endswith(tuple(f"{module}.weight" for module in published.LINEAR_MODULES)):
        return weight
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    old_gpu = torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    half = weight.to(torch.float16 if old_gpu else torch.bfloat16)
    return dequantize_4bit(*quantize_4bit(half, quant_type="nf4", compress_statistics=True, blocksize=64))


def save_tokenizer(tokenizer: Any, base: Path, folder: Path) -> None:
    """The tokenizer as both transformers and llama.cpp's converter read it.

    The converter learns which tokens are marks (<|user|>, ####) from `added_tokens_decoder`, which
    transformers 5 leaves out; without it llama.cpp cuts a mark that it meets in a text into
    pieces."""
    tokenizer.save_pretrained(folder)
    config = untrusted.read_json(folder / "tokenizer_config.json")
    fields = ("content", "lstrip", "normalized", "rstrip", "special")
    config["added_tokens_decoder"] = {}
    for index, token in tokenizer.added_tokens_decoder.items():
        config["added_tokens_decoder"][str(index)] = {field: getattr(token, field) for field in fields}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    for name in ("generation_config.json", "tokenizer.model"):  # the converter reads the latter where there is one
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def _layers(adapter: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The adapter's parts of each layer that it changes, in fp32; (alpha / r) is in `lora_B`."""
    config = untrusted.read_json(adapter / "adapter_config.json")
    for key, plain in PLAIN.items():
        if config.get(key) and config[key] != plain:
            raise ExportError(f"{adapter}: {key} = {config[key]!r}, and only plain adapters are merged here: "
                              f"merge this one by PEFT's merge_and_unload")  # fmt: skip
    layers = {}
    for name, tensor in _tensors(adapter / "adapter_model.safetensors"):
        part = re.fullmatch(PART, name)
        if not part:
            raise ExportError(f"{adapter}: {name} is no LoRA, DoRA or IA3 part of a linear layer")
        if not tensor.isfinite().all():
            raise ExportError(f"{adapter}: {name} holds numbers that are not finite: train again")
        layers.setdefault(part[1], {})[part[2]] = tensor.float()
    if config["peft_type"] == "IA3":
        return layers
    whole = {"lora_A", "lora_B"}
    if config.get("use_dora"):
        whole.add("lora_magnitude_vector")
    for name, parts in layers.items():
        if parts.keys() != whole or parts["lora_A"].shape[0] != parts["lora_B"].shape[1]:
            raise ExportError(f"{adapter}: its {', '.join(parts)} for {name} do not fit together")
        rank = parts["lora_A"].shape[0]
        parts["lora_B"] *= config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return layers


def _merged(tensor: torch.Tensor, parts: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A layer's weight (out, in), or its bias (out), as the adapter makes it.

    LoRA: W + (alpha / r) B A. DoRA: that, with each row as long as it learnt. IA3: W and bias times
    a scale (out, 1), or W alone times (1, in)."""
    scale = parts.get("ia3_l")
    shape = scale.shape if scale is not None else (parts["lora_B"].shape[0], parts["lora_A"].shape[1])
    if any(size not in (1, there) for size, there in zip(shape, tensor.shape)):
        raise ExportError(f"the adapter's {name} is {' x '.join(map(str, shape))}, the base's "
                          f"{tuple(tensor.shape)}: was it trained on another base?")  # fmt: skip
    is_bias = tensor.dim() == 1
    if scale is None and is_bias:
        return tensor
    if scale is not None and is_bias:  # a scale of inputs leaves the bias as it is
        return tensor if len(scale) == 1 else tensor * scale[:, 0]
    if scale is not None:
        return tensor * scale
    merged = tensor + parts["lora_B"] @ parts["lora_A"]
    if "lora_magnitude_vector" in parts:
        merged *= (parts["lora_magnitude_vector"] / merged.norm(dim=1))[:, None]
    return merged


def _half(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if not tensor.isfinite().all() or tensor.abs().max() > FP16_MOST:
        raise ExportError(f"{name} holds numbers that 16-bit floats cannot (above {FP16_MOST:g}, or not finite)")
    return tensor.to(torch.float16).contiguous()


def _shards(folder: Path) -> dict[str, int]:
    """{file: its parameters} of a model's safetensors, in the index's order."""
    index, files = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        files = untrusted.read_json(index)["weight_map"].values()
    counts = {}
    for file in dict.fromkeys(files):
        with _reading(folder / file) as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]
        counts[file] = sum(map(math.prod, shapes))
    return counts


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a safetensors file, one in memory at a time."""
    with _reading(path) as weights:
        for name in weights.keys():
            yield name, weights.get_tensor(name)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as weights:
            yield weights
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be read ({error}): it is torn or missing; make it again") from error


# --- the same numbers -----------------------------------------------------------------------------
def samples(rows: list[dict], tokenizer: Any) -> list[list[int]]:
    """The first 96 token ids of four rows, spread over all of them, to compare models on."""
    spread = rows[:: max(1, len(rows) // 4)][:4]
    return [chat.encode(row, tokenizer)["input_ids"][:96] for row in spread]


@torch.inference_mode()
def logits(model: Any, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
    """Teacher-forced logits (T, V) of each sequence of token ids, in fp32 on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in sequences]


def load(folder: Path, device: str | None = None) -> Any:
    """A model as transformers reads it: in fp32 on a CPU, in fp16 on a GPU (if there is one)."""
    from transformers import AutoModelForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.float16
    options = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    return AutoModelForCausalLM.from_pretrained(folder, **options).to(device).eval()


@torch.no_grad()
def check_merge(base: Path, adapter: Path, merged: Path, sequences: Sequence[list[int]], rounded: bool = False) -> dict:
    """The merged model says what base and adapter say: log-probabilities and next tokens, beside what
    rounding to 16 bit does to the base itself.

    ExportError where it says something else. Where an fp32 model does not fit into memory, it says so
    and compares nothing."""
    import psutil
    from peft import PeftModel

    needed, free = 2 * size_of(merged), psutil.virtual_memory().available
    if needed > 0.8 * free:
        return {"compared": False, "reason": f"needs {size_text(needed)} of memory, and {size_text(free)} are free"}
    all_weights = method(adapter) == ALL_WEIGHTS
    model, without_adapter = load(adapter if all_weights else base, "cpu"), contextlib.nullcontext
    if rounded:
        for name, parameter in model.named_parameters():
            parameter.copy_(as_trained(name, parameter))
    if not all_weights:
        model = PeftModel.from_pretrained(model, adapter)
        without_adapter = model.disable_adapter
    expected = logits(model, sequences)
    with without_adapter():
        whole = logits(model, sequences)
        _round_at_random(model)
        beside = _differences(whole, logits(model, sequences))
    del model
    found = _differences(expected, logits(load(merged, "cpu"), sequences))
    most = {"logprob": MERGED * beside["logprob"], "other_next_tokens": MERGED * beside["other_next_tokens"] + 0.01}
    for name, most_of_it in most.items():
        if not found[name] <= most_of_it:
            raise ExportError(f"the merged model is not what base and adapter are: {name} differs by "
                              f"{found[name]:.3g}, where rounding to 16 bit explains {most_of_it:.3g}: "
                              f"do not use it")  # fmt: skip
    return {"compared": True, **found, "base_rounded_to_16_bit": beside}


def _round_at_random(model: torch.nn.Module) -> None:
    """Move each weight by as much as fp16 may round it: a base that was published in fp16 shows none."""
    chance = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter *= 1 + 2**-11 * (2 * torch.rand(parameter.shape, generator=chance) - 1)


def _differences(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, float]:
    """Between logits of the same sequences: the largest difference of a log-probability over each
    position's 500 likeliest tokens, and the share of positions whose likeliest token is another."""
    gap, others = 0.0, []
    for before, after in zip(expected, found):
        likeliest = before.topk(min(500, before.shape[1])).indices
        moved = before.log_softmax(1) - after.log_softmax(1)
        gap = max(gap, moved.gather(1, likeliest).abs().max().item())
        others += (before.argmax(1) != after.argmax(1)).tolist()
    return {"logprob": gap, "other_next_tokens": sum(others) / len(others)}


def check_conversion(llama: LlamaCpp, f16: Path, merged: Path, sequences: Sequence[list[int]], merge: dict) -> dict:
    """The f16 file widened to f32 (which changes no weight), for this check alone, and compared
    with transformers at every position of the sequences: the largest difference of a
    log-probability, beside what `check_merge` found that rounding does."""
    if not merge["compared"]:
        return merge
    if 2 * size_of(merged) > EXACT_BYTES:
        return {"compared": False, "reason": f"needs an f32 file of {size_text(2 * size_of(merged))}"}
    part = f16.with_name("check-f32.gguf.part")
    try:
        check_space(f16.parent, 2.1 * f16.stat().st_size, part.name)
        llamacpp.quantize(llama, f16, part, "F32")
        check_file(part, merged, "F32")
        with Server(llama, part, 64 + max(map(len, sequences)), exact=True) as server:
            gap = _largest_gap(server, load(merged, "cpu"), sequences)
    finally:
        part.unlink(missing_ok=True)
    most = CONVERTED * merge["base_rounded_to_16_bit"]["logprob"]
    if not gap <= most:
        raise ExportError(f"{part.name}: a log-probability differs by {gap:.3g} from transformers (at most "
                          f"{most:.2g} is arithmetic): the conversion changed the model")  # fmt: skip
    return {"compared": True, "positions": sum(map(len, sequences)), "logprob": gap}


def _largest_gap(server: Server, model: Any, sequences: Sequence[list[int]]) -> float:
    """Over the 500 likeliest next tokens of each position, of the whole softmax."""
    gap = 0.0
    for ids, scores in zip(sequences, logits(model, sequences)):
        for position, expected in enumerate(scores.log_softmax(1)):
            served = server.next_logprobs(ids[: position + 1], min(500, len(expected)))
            difference = expected[list(served)] - torch.tensor(list(served.values()))
            gap = max(gap, difference.abs().max().item())
    return gap


# --- the file -------------------------------------------------------------------------------------
def to_gguf(llama: LlamaCpp, model: Path, part: Path, outtype: str, name: str) -> dict:
    """Convert a 16-bit folder by llama.cpp's converter, which would run a tokenizer's code."""
    _check_plain(model, str(model))
    if not _has_tokenizer(model):
        raise ExportError(f"{model} has no {' and no '.join(TOKENIZERS)}: export again without skip_merge")
    check_space(part.parent, size_of(model) * 1.05 + 2**24, part.name)
    llamacpp.convert(llama, model, part, outtype, name)
    _say_no_space_comes_first(part, model)
    return check_file(part, model, outtype.upper())


def _say_no_space_comes_first(part: Path, model: Path) -> None:
    """For a SentencePiece tokenizer of another architecture than Llama the converter leaves
    `add_space_prefix` out, and llama.cpp then puts a space before every text. The same file again
    with that field, by gguf's own copying."""
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    config = model / "tokenizer_config.json"
    if not config.exists() or untrusted.read_json(config).get("add_prefix_space") is not False:
        return  # reading the file would take seconds where the vocabulary is large
    reader, key = read_gguf(part), gguf.Keys.Tokenizer.ADD_PREFIX
    if key in reader.fields or _field(reader, "tokenizer.ggml.model") != "llama":
        return
    whole = part.with_name(f"{part.name}.part")
    try:
        writer = gguf.GGUFWriter(whole, _field(reader, "general.architecture"))
        copy_with_new_metadata(reader, writer, {key: MetadataDetails(gguf.GGUFValueType.BOOL, False)}, [])
        os.replace(whole, part)
    finally:
        whole.unlink(missing_ok=True)


def to_quantized(llama: LlamaCpp, source: Path, part: Path, quantization: str, model: Path) -> dict:
    """Quantise a 16- or 32-bit file by llama-quantize; a quantised source is refused."""
    if not source.exists():
        raise ExportError(f"there is no {source.name} to quantise: leave skip_gguf out, or set skip_quantize too")
    if quantized := tensor_types(read_gguf(source)).keys() - WHOLE:
        raise ExportError(f"{source.name} is quantised already ({', '.join(sorted(quantized))}): "
                          f"quantise the f16 file, else its loss comes on top")  # fmt: skip
    check_space(part.parent, source.stat().st_size * QUANTIZATIONS[quantization][0] / 16 * 1.2, part.name)
    llamacpp.quantize(llama, source, part, quantization)
    return check_file(part, model, quantization)


def read_gguf(path: Path) -> Any:
    """gguf's reader over a file; ExportError where the file is torn."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        for tensor in reader.tensors:
            tensor.data[-1:].sum()  # a torn file lacks its last bytes
        return reader
    except Exception as error:  # numpy, struct and gguf each have their own way to say it
        raise ExportError(f"{path.name} does not load ({type(error).__name__}: {error}): it is torn") from error


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents() if name in reader.fields else None


def tensor_types(reader: Any) -> Counter:
    """Weights in matrices by tensor type, whatever the file's name says: {"Q4_K": 2_000_000, ...}."""
    types = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
    return types


def check_file(path: Path, model: Path, quantization: str) -> dict:
    """What has bitten users: special tokens, chat template, rope base, vocabulary, tensor types.

    `model` is the folder that it was made from. ExportError with all that differs; else facts."""
    from transformers import AutoConfig, AutoTokenizer

    reader = read_gguf(path)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    architecture = _field(reader, "general.architecture")
    wanted = {
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
        f"{architecture}.context_length": config.max_position_embeddings,
    }
    problems = []
    for name, value in wanted.items():
        written = _field(reader, name)
        if value is not None and written != value:
            problems.append(f"{name} is {short(written)} and should be {short(value)}")
    if tokenizer.eos_token_id is None:
        problems.append("the tokenizer has no end token, so llama.cpp would take token 11 for it")
    rope = getattr(config, "rope_parameters", None) or {}
    base = rope.get("rope_theta", getattr(config, "rope_theta", 1e4))
    written = _field(reader, f"{architecture}.rope.freq_base") or 1e4
    if not math.isclose(written, base, rel_tol=1e-6):
        problems.append(f"rope base is {written:g} and should be {base:g}")
    tokens = len(_field(reader, "tokenizer.ggml.tokens"))
    if tokens != config.vocab_size:
        problems.append(f"{tokens} tokens, but the model has {config.vocab_size}")
    types = tensor_types(reader)
    problems += _type_problems(types, quantization, reader)
    if problems:
        raise ExportError(f"{path.name.removesuffix('.part')}: " + "; ".join(problems))
    shares = {name: count / types.total() for name, count in types.most_common()}
    _, expected = QUANTIZATIONS.get(quantization, (None, {quantization}))
    return {"tensor_types": shares, "as_named": sum(shares.get(name, 0) for name in expected), "tokens": tokens,
            "eos": tokenizer.eos_token_id, "rope_base": float(base)}  # fmt: skip


def _type_problems(types: Counter, quantization: str, reader: Any) -> list[str]:
    """A 16- or 32-bit file has one type; of a quantised one most weights are quantised."""
    if quantization not in QUANTIZATIONS:
        return [] if types.keys() == {quantization} else [f"its matrices are {dict(types)}, not {quantization}"]
    share = sum(types[name] for name in WHOLE) / types.total()
    if share <= 0.5:
        return []
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    rows = sorted({int(tensor.shape[0]) for tensor in matrices if tensor.tensor_type.name in WHOLE})
    return [f"{share:.0%} of its weights are not quantised: rows of {', '.join(map(str, rows))} weights, "
            f"and {quantization} needs multiples of 256 (or 32, for a larger type)"]  # fmt: skip


def strings(tokenizer: Any, questions: Sequence[str], count: int = 500) -> list[str]:
    """Texts on which tokenizers differ: numbers, currency, unicode, spaces, marks, questions."""
    rng = np.random.default_rng([0, count])
    marks = [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]
    odd = ["€", "£ 3.50", "¥", "−5.2 %", "naïve café", "日本語", "Ωmega", "🙂", "\n\n", "  two  spaces", "\t", "x²",
           "½", "<<12/4=3>>", "#### 7", "don't", "E=mc^2", "1e-3", "(a+b)*c", "“quoted”", "…"]  # fmt: skip
    made = [*odd, *marks, *questions[: count // 5]]
    while len(made) < count:
        number = f"{rng.lognormal(6, 4):,.{rng.integers(0, 5)}f}"
        pieces = [number, f"${number}", f"{number}%", f"-{number}", *rng.choice(odd, 2), *rng.choice(marks or odd, 1)]
        made.append(str(rng.choice(["", " "])).join(map(str, rng.permutation(pieces)[: rng.integers(1, 6)])))
    return made[:count]


def check_tokens(server: Server, tokenizer: Any, texts: Sequence[str]) -> dict[str, int]:
    """Each text has the same token ids in the file as in the tokenizer; how many were compared.

    A text with a byte that the vocabulary lacks is left out: the tokenizer writes its unknown token,
    and llama.cpp refuses it."""
    different, compared = [], 0
    for text in texts:
        expected = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.unk_token_id in expected:
            continue
        served = server.tokenize(text)
        compared += 1
        if expected != served:
            different.append(f"{short(text)}: {served[:12]} and should be {expected[:12]}")
    if different:
        raise ExportError(f"{server.model.name}: {len(different)} of {compared} texts are tokenised otherwise "
                          f"than by the model's tokenizer, e.g. {'; '.join(different[:3])}")  # fmt: skip
    if compared < len(texts) / 2:
        raise ExportError(f"{server.model.name}: of {len(texts)} texts the vocabulary can write only {compared}, "
                          f"too few to compare its tokens with the model's")  # fmt: skip
    return {"compared": compared, "with unknown bytes": len(texts) - compared}


# --- for those who use it -------------------------------------------------------------------------
def modelfile(file: str, tokenizer: Any, context: int) -> str:
    """An Ollama Modelfile; its template is the model's own with placeholders, but for the BOS."""
    user, system = {"role": "user", "content": PROMPT}, {"role": "system", "content": SYSTEM}

    def around_the_question(messages: list[dict]) -> tuple[str, str]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, _, after = text.replace(tokenizer.bos_token or "\0", "").partition(PROMPT)
        return before, after

    before, after = around_the_question([user])
    with contextlib.suppress(Exception):  # a template that takes no system message refuses it in a way of its own
        with_system, after_too = around_the_question([system, user])
        if after_too == after and SYSTEM in with_system:
            before = f"{{{{ if .System }}}}{with_system}{{{{ else }}}}{before}{{{{ end }}}}"
    stops = [tokenizer.convert_ids_to_tokens(token) for token in chat.end_ids(tokenizer)]
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{before}{PROMPT}{after}{{{{ .Response }}}}{stops[0]}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"
