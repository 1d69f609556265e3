"""From adapter to GGUF: merge, convert, quantise; each file whole or not there, and checked against the model."""

import contextlib
import json
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
from lib.run import disk, published, untrusted
from lib.run.paths import is_local, locate

# Bits a weight, for free space, and the tensor types that a file of that name should mostly hold.
QUANTIZATIONS = {
    "Q8_0": (8.5, {"Q8_0"}), "Q6_K": (6.6, {"Q6_K"}), "Q5_K_M": (5.7, {"Q5_K", "Q6_K"}),
    "Q5_K_S": (5.6, {"Q5_K"}), "Q4_K_M": (4.9, {"Q4_K", "Q6_K"}), "Q4_K_S": (4.6, {"Q4_K"}),
    "Q3_K_M": (3.9, {"Q3_K", "Q4_K", "Q5_K"}),
}  # fmt: skip
ALTERNATIVES = ("Q5_K_M", "Q6_K", "Q8_0")
WHOLE = {"F32", "F16", "BF16"}
MERGE_TOLERANCE = 0.05  # largest difference of a logit that saving in 16 bit may bring; measured: 0.006
EXACT_TOLERANCE = 1e-3  # of a log-probability between the f32 file and transformers; measured: 3e-5
EXACT_BYTES = 8 * 2**30  # larger f32 files are not made for the check alone
FP16_MOST = 65504.0
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # the converter needs one of them
PROMPT = "{{ .Prompt }}"  # Ollama's placeholder
ALL_WEIGHTS = "all weights"
PLAIN = {  # what an adapter's config must say so that its matrices or scales are all that it changes
    "bias": "none", "fan_in_fan_out": False, "modules_to_save": None, "layer_replication": None, "lora_bias": False,
    "alpha_pattern": {},
}  # fmt: skip
PART = r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_magnitude_vector|ia3_l)(?:\.default)?(?:\.weight)?"


class ExportError(SharpenError):
    """An artefact cannot be made or is not what it should be; the message says what to do."""


# --- files ------------------------------------------------------------------------------------------------------------
def check_space(folder: Path, needed: float, what: str) -> None:
    """ExportError where the disk has less than the bytes that are needed, with both figures."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(f"{what} needs {size_text(needed)} in {folder}, and {size_text(free)} are free: make room, "
                          f"or name another folder by `outputs`")  # fmt: skip


def size_text(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def keep(folder: Path, name: str, key: dict, make: Callable[[Path], dict], skip: bool = False) -> dict | None:
    """What `make(part)` writes, under its final name only once it is whole; not made again where it is there.

    `key` says what it is made from. A file (or folder) of the same key is taken from this attempt, or from the former
    or abandoned one beside. With `skip` whatever is there is taken, and None is the answer where nothing is."""
    path, record = folder / name, folder / "records" / f"{name}.json"
    key = json.loads(json.dumps({"key": key, "code": _own_code()}, default=str))
    attempts = [folder, *(folder.with_name(f"{folder.name}.{aside}") for aside in ("former", "abandoned"))]
    for place in (attempt / inner / name for attempt in attempts for inner in (".", "failed")):
        attempt = place.parents[place.parent.name == "failed"]
        found = _record(attempt / "records" / f"{name}.json")
        if found and (skip or found["key"] == key) and place.exists() and _hashes(place) == found["files"]:
            if place != path:
                _remove(path)
                os.replace(place, path)
                disk.write_atomically(record, [json.dumps(found, indent=2)])
            print(f"{name}: is there already{' (skipped, so not compared with its inputs)' if skip else ''}")
            return found["facts"]
    if skip:
        return None
    part, began = path.with_name(f"{name}.part"), time.monotonic()
    for old in (part, path, record):
        _remove(old)
    try:
        facts = make(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:  # the latter where a disk is full: it hides the OSError in its text
        raise ExportError(f"{name} cannot be written: {error} ({folder})") from error
    finally:
        _remove(part)
    whole = {"key": key, "files": _hashes(path), "facts": facts | {"bytes": size_of(path)}}
    disk.write_atomically(record, [json.dumps(whole, indent=2)])
    print(f"{name}: {size_text(size_of(path))} in {time.monotonic() - began:.1f} s")
    return whole["facts"]


def _record(path: Path) -> dict | None:
    """A record that an earlier attempt left; a torn one counts as none."""
    try:
        found = json.loads(path.read_text())
        return found if {"key", "files", "facts"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _own_code() -> dict[str, str]:
    return {Path(file).name: disk.sha256(file) for file in (__file__, llamacpp.__file__)}


def _hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path.parent).as_posix(): disk.sha256(file) for file in files}


def put_aside(folder: Path, name: str) -> Path:
    """A file that failed the gate goes to `failed/`, so that nobody ships it by accident."""
    (folder / "failed").mkdir(exist_ok=True)
    return (folder / name).replace(folder / "failed" / name)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


# --- merge ------------------------------------------------------------------------------------------------------------
def method(tuned: Path) -> str:
    """How the model in a training's folder was tuned: "LoRA", "DoRA", "IA3" or "all weights".

    ExportError where the folder holds more than data, or an adapter that is no change of the base's weights, and so
    cannot be merged."""
    _check_plain(tuned, str(tuned))
    if (tuned / "config.json").exists():  # a whole model; an adapter has none
        return ALL_WEIGHTS
    config = untrusted.read_json(tuned / "adapter_config.json")
    match config.get("peft_type"):
        case "LORA":
            return "DoRA" if config.get("use_dora") else "LoRA"
        case "IA3":
            return "IA3"
        case "PREFIX_TUNING":
            raise ExportError("peft_type = 'prefix_tuning': a prefix is keys and values before each row, no change of "
                              "the weights, so it cannot be merged, and no GGUF file can hold it: to export, train "
                              "with peft_type = 'lora' or 'ia3'")  # fmt: skip
        case other:
            raise ExportError(f"{tuned}: {other} adapters are not merged here, only LoRA, DoRA and IA3: merge it by "
                              f"PEFT's merge_and_unload, and name that folder as base_model")  # fmt: skip


def _check_plain(folder: Path, name: str) -> None:
    """ExportError where a folder holds more than data: code, pickles, links out of it, shards that are elsewhere."""
    if problems := untrusted.model_problems(folder):
        raise ExportError(f"{name}: {problems[0]}")


def base_folder(name: str) -> Path:
    """The folder of the base's 16- or 32-bit weights; a 4-bit repository's 16-bit origin is taken instead.

    ExportError where the weights of a folder are quantised: merging into them would lose what was learnt."""
    if is_local(name):
        folder = Path(locate(name))
    else:
        from huggingface_hub import snapshot_download

        whole = re.sub(r"(-unsloth)?-bnb-4bit$", "", name)
        if whole != name:
            print(f"{name} holds 4-bit weights; the adapter is merged into {whole}")
        try:
            folder = Path(snapshot_download(whole, allow_patterns=["*.safetensors*", "*.json", "*.model", "*.jinja"]))
        except (OSError, ValueError) as error:  # all that the hub's client raises
            raise ExportError(f"base_model = {name!r} is no folder here, and the hub did not give it "
                              f"({type(error).__name__}): correct the path, or check the network") from error
    _check_plain(folder, f"base_model = {name!r}")
    if not any((folder / file).exists() for file in TOKENIZERS):
        raise ExportError(f"base_model = {name!r} has no {' and no '.join(TOKENIZERS)}: put its tokenizer there")
    if quantized := untrusted.read_json(folder / "config.json").get("quantization_config"):
        method = quantized.get("quant_method", "quantised")
        raise ExportError(f"base_model = {name!r} holds {method} weights, and merging into those loses what was "
                          f"learnt: set base_model to the 16-bit model that it was made from")  # fmt: skip
    return folder


def merge(base: Path, adapter: Path, folder: Path, tokenizer: Any, rounded: bool = False) -> dict:
    """Write the tuned model to `folder`, computed in fp32 and saved in fp16, one shard at a time.

    So a large model takes the memory of its largest shard. Where all weights were trained, they are in `adapter`, and
    only saved anew. `rounded`: onto the base as QLoRA saw it (`as_trained`). Returns what was counted."""
    how = method(adapter)
    source = adapter if how == ALL_WEIGHTS else base
    config, layers = untrusted.read_json(source / "config.json"), {} if how == ALL_WEIGHTS else _layers(adapter)
    shards = _shards(source)
    check_space(folder.parent, 2 * sum(shards.values()), "the merged model")
    folder.mkdir()
    index, merged, parameters = {}, set(), 0
    tied = config.get("tie_word_embeddings", False)
    for file in shards:
        tensors = {}
        with _reading(source / file) as weights:
            for name in weights.keys():  # noqa: SIM118  (no dictionary)
                tensor, layer = weights.get_tensor(name), name.rpartition(".")[0]
                if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
                    raise ExportError(f"{source / file}: {name} is {tensor.dtype}: merging needs 16- or 32-bit weights")
                if rounded:
                    tensor = as_trained(name, tensor)
                if layer in layers:
                    if tied and layer in ("model.embed_tokens", "lm_head"):
                        raise ExportError(f"the adapter changes {name}, which input and output share: untie them first")
                    tensor = _merged(tensor.float(), layers[layer], name)
                    merged.add(layer)
                tensors[name] = _half(tensor, name)
                index[name], parameters = file, parameters + tensor.numel()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        _sync(folder / file)
    if left := sorted(layers.keys() - merged):
        raise ExportError(f"the adapter changes {left[0]} (and {len(left) - 1} more), which {base} does not have: "
                          f"was it trained on another base?")  # fmt: skip
    if len(shards) > 1:
        total = {"total_size": 2 * parameters}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": index}))
    for key in ("torch_dtype", "quantization_config"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2))
    save_tokenizer(tokenizer, base, folder)
    return {"method": how, "merged_matrices": len(merged), "parameters": parameters, "shards": len(shards),
            "rounded": rounded}  # fmt: skip


def as_trained(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A linear layer's weight rounded to NF4 and back, as it was while QLoRA trained the adapter; others unchanged.

    The adapter has learnt to live with this rounding: on the unrounded base the demo's model lost 5 points (20
    answers of 300 lost, 4 won). By bitsandbytes as Unsloth sets it: double quantisation, blocks of 64."""
    if not name.endswith(tuple(f"{module}.weight" for module in published.LINEAR_MODULES)):
        return weight
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    old_gpu = torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    half = weight.to(torch.float16 if old_gpu else torch.bfloat16)
    return dequantize_4bit(*quantize_4bit(half, quant_type="nf4", compress_statistics=True, blocksize=64))


def save_tokenizer(tokenizer: Any, base: Path, folder: Path) -> None:
    """The tokenizer as both transformers and llama.cpp's converter read it.

    The converter learns which tokens are marks (<|user|>, ####) from `added_tokens_decoder`, which transformers 5
    leaves out; without it llama.cpp cuts a mark that it meets in a text into pieces."""
    tokenizer.save_pretrained(folder)
    config = untrusted.read_json(folder / "tokenizer_config.json")
    fields = ("content", "lstrip", "normalized", "rstrip", "special")
    added = tokenizer.added_tokens_decoder.items()
    config["added_tokens_decoder"] = {str(i): {name: getattr(token, name) for name in fields} for i, token in added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    for name in ("generation_config.json", "tokenizer.model"):  # the converter reads the latter where there is one
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def _layers(adapter: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the adapter holds for each layer that it changes, in fp32; (alpha / r) is in `lora_B` already."""
    config = untrusted.read_json(adapter / "adapter_config.json")
    for key, plain in PLAIN.items():
        if config.get(key, plain) != plain and config.get(key):
            raise ExportError(f"{adapter}: {key} = {config[key]!r}, and only plain adapters are merged here: "
                              f"merge this one by PEFT's merge_and_unload")  # fmt: skip
    layers = {}
    with _reading(adapter / "adapter_model.safetensors") as weights:
        for name in weights.keys():  # noqa: SIM118
            tensor, match = weights.get_tensor(name).float(), re.fullmatch(PART, name)
            if not match:
                raise ExportError(f"{adapter}: {name} is no LoRA, DoRA or IA3 part of a linear layer")
            if not tensor.isfinite().all():
                raise ExportError(f"{adapter}: {name} holds numbers that are not finite: train again")
            layers.setdefault(match[1], {})[match[2]] = tensor
    if config["peft_type"] == "IA3":
        return layers
    whole = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if config.get("use_dora") else [])}
    for name, parts in layers.items():
        if parts.keys() != whole or parts["lora_A"].shape[0] != parts["lora_B"].shape[1]:
            raise ExportError(f"{adapter}: its {', '.join(parts)} for {name} do not fit together")
        rank = parts["lora_A"].shape[0]
        parts["lora_B"] *= config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return layers


def _merged(tensor: torch.Tensor, parts: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A layer's weight (out, in), or its bias (out), as the adapter makes it.

    LoRA: W + (alpha / r) B A. DoRA: that, with each row as long as it learnt. IA3: W and bias times a scale (out, 1),
    or W alone times (1, in)."""
    ia3 = parts.get("ia3_l")
    shape = (parts["lora_B"].shape[0], parts["lora_A"].shape[1]) if ia3 is None else tuple(ia3.shape)
    if any(size not in (1, there) for size, there in zip(shape, tensor.shape)):
        raise ExportError(f"the adapter's {name} is {' x '.join(map(str, shape))}, the base's {tuple(tensor.shape)}: "
                          f"was it trained on another base?")  # fmt: skip
    if tensor.dim() == 1:
        return tensor if ia3 is None or len(ia3) == 1 else tensor * ia3[:, 0]
    if ia3 is not None:
        return tensor * ia3
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
    index = folder / "model.safetensors.index.json"
    named = untrusted.read_json(index)["weight_map"].values() if index.exists() else ["model.safetensors"]
    counts = {}
    for file in dict.fromkeys(named):
        with _reading(folder / file) as weights:
            counts[file] = sum(int(np.prod(weights.get_slice(n).get_shape())) for n in weights.keys())  # noqa: SIM118
    return counts


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as weights:
            yield weights
    except ExportError:
        raise
    except Exception as error:  # safetensors has an exception type of its own, and raises OSError too
        raise ExportError(f"{path} cannot be read ({error}): it is torn or missing; make it again") from error


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# --- the same numbers -------------------------------------------------------------------------------------------------
@torch.inference_mode()
def logits(model: Any, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
    """Teacher-forced logits (T, V) of each sequence of token ids, in fp32 on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in sequences]


def load(folder: Path, device: str | None = None) -> Any:
    """A model as transformers reads it: in fp32 on a CPU, in fp16 on a GPU (by default, if there is one)."""
    from transformers import AutoModelForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.float16
    options = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    return AutoModelForCausalLM.from_pretrained(folder, **options).to(device).eval()


@torch.no_grad()
def check_merge(base: Path, adapter: Path, merged: Path, sequences: Sequence[list[int]], rounded: bool = False) -> dict:
    """The merged model says what base and adapter say (both 16 bit or more): largest difference of a logit.

    ExportError above MERGE_TOLERANCE. Where an fp32 model does not fit into memory, it says so and compares nothing."""
    import psutil
    from peft import PeftModel

    needed, free = 2 * size_of(merged), psutil.virtual_memory().available
    if needed > 0.8 * free:
        return {"compared": False, "reason": f"needs {size_text(needed)} of memory, and {size_text(free)} are free"}
    whole = method(adapter) == ALL_WEIGHTS
    under = load(adapter if whole else base, "cpu")
    for name, parameter in under.named_parameters():
        if rounded:
            parameter.copy_(as_trained(name, parameter))
    with_adapter = logits(under if whole else PeftModel.from_pretrained(under, adapter), sequences)
    alone = logits(load(merged, "cpu"), sequences)
    gap = max((a - b).abs().max().item() for a, b in zip(with_adapter, alone))
    same = float(np.mean(np.concatenate([(a.argmax(1) == b.argmax(1)).numpy() for a, b in zip(with_adapter, alone)])))
    if not gap <= MERGE_TOLERANCE:
        raise ExportError(f"a logit of the merged model differs by {gap:.3g} from base and adapter "
                          f"(at most {MERGE_TOLERANCE} is rounding): do not use it")  # fmt: skip
    return {"compared": True, "largest_logit_difference": gap, "same_next_token": same}


def check_conversion(llama: LlamaCpp, f16: Path, merged: Path, sequences: Sequence[list[int]]) -> dict:
    """The f16 file widened to f32 (which changes no weight), for this check alone, and compared with transformers at
    every position of the sequences."""
    if 2 * size_of(merged) > EXACT_BYTES:
        return {"compared": False, "reason": f"needs an f32 file of {size_text(2 * size_of(merged))}"}
    part = f16.with_name("check-f32.gguf.part")
    try:
        check_space(f16.parent, 2.1 * f16.stat().st_size, part.name)
        llamacpp.quantize(llama, f16, part, "F32")
        check_file(part, merged, "F32")
        with Server(llama, part, 64 + max(map(len, sequences)), exact=True) as server:
            gap = check_exact(server, load(merged, "cpu"), sequences)
    finally:
        part.unlink(missing_ok=True)
    return {"compared": True, "positions": sum(map(len, sequences)), "largest_logprob_difference": gap}


def check_exact(server: Server, model: Any, sequences: Sequence[list[int]]) -> float:
    """Largest difference of a log-probability between a file (f32, served exactly) and transformers, at each position.

    Read are the 500 likeliest next tokens, by /completion: it sends log-probabilities of the whole softmax."""
    gap = 0.0
    for ids, expected in zip(sequences, logits(model, sequences)):
        expected = expected.log_softmax(1)
        for position in range(len(ids)):
            found = server.next_logprobs(ids[: position + 1], min(500, expected.shape[1]))
            there = expected[position, list(found)]
            gap = max(gap, (there - torch.tensor(list(found.values()))).abs().max().item())
    if not gap <= EXACT_TOLERANCE:
        raise ExportError(f"{server.model.name}: a log-probability differs by {gap:.3g} from transformers "
                          f"(at most {EXACT_TOLERANCE:g} is rounding): the conversion changed the model")  # fmt: skip
    return gap


# --- the file ---------------------------------------------------------------------------------------------------------
def to_gguf(llama: LlamaCpp, model: Path, part: Path, outtype: str, name: str) -> dict:
    """Convert a 16-bit folder by llama.cpp's converter, which would run a tokenizer's code, and load-check the file."""
    _check_plain(model, str(model))
    if not any((model / file).exists() for file in TOKENIZERS):
        raise ExportError(f"{model} has no {' and no '.join(TOKENIZERS)}: export again without skip_merge")
    check_space(part.parent, size_of(model) * 1.05 + 2**24, part.name)
    llamacpp.convert(llama, model, part, outtype, name)
    _say_no_space_comes_first(part, model)
    return check_file(part, model, outtype.upper())


def _say_no_space_comes_first(part: Path, model: Path) -> None:
    """For a SentencePiece tokenizer of another architecture than Llama the converter leaves `add_space_prefix` out, and
    llama.cpp then puts a space before every text. The same file again with that field, by gguf's own copying."""
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    config = model / "tokenizer_config.json"
    if not config.exists() or untrusted.read_json(config).get("add_prefix_space") is not False:
        return  # reading the file would take seconds where the vocabulary is large
    reader, key = read_gguf(part), gguf.Keys.Tokenizer.ADD_PREFIX
    if key in reader.fields or reader.fields["tokenizer.ggml.model"].contents() != "llama":
        return
    whole = part.with_name(f"{part.name}.part")
    try:
        writer = gguf.GGUFWriter(whole, reader.fields["general.architecture"].contents())
        copy_with_new_metadata(reader, writer, {key: MetadataDetails(gguf.GGUFValueType.BOOL, False)}, [])
        os.replace(whole, part)
    finally:
        whole.unlink(missing_ok=True)


def to_quantized(llama: LlamaCpp, source: Path, part: Path, quantization: str, model: Path) -> dict:
    """Quantise a 16- or 32-bit file by llama-quantize and load-check what came out; a quantised source is refused."""
    if not source.exists():
        raise ExportError(f"there is no {source.name} to quantise: leave skip_gguf out, or set skip_quantize too")
    types = tensor_types(read_gguf(source))
    if quantised := types.keys() - WHOLE:
        raise ExportError(f"{source.name} is quantised already ({', '.join(sorted(quantised))}): "
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


def tensor_types(reader: Any) -> Counter:
    """Weights in matrices by tensor type: {"Q4_K": 2_000_000, ...}; what the file holds, whatever its name says."""
    types = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
    return types


def check_file(path: Path, model: Path, quantization: str) -> dict:
    """What has bitten users: end, begin and pad token, chat template, rope base, vocabulary, and the tensor types.

    `model` is the folder that it was made from. ExportError with everything that differs; else the facts."""
    from transformers import AutoConfig, AutoTokenizer

    reader = read_gguf(path)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)

    def field(name):
        return reader.fields[name].contents() if name in reader.fields else None

    architecture = field("general.architecture")
    wanted = {
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id, "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id, "tokenizer.chat_template": tokenizer.chat_template,
        f"{architecture}.context_length": config.max_position_embeddings,
    }  # fmt: skip
    problems = [f"{name} is {_short(field(name))} and should be {_short(value)}" for name, value in wanted.items()
                if value is not None and field(name) != value]  # fmt: skip
    if tokenizer.eos_token_id is None:
        problems.append("the tokenizer has no end token, so llama.cpp would take token 11 for it")
    base = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", getattr(config, "rope_theta", 1e4))
    if not np.isclose(written := field(f"{architecture}.rope.freq_base") or 1e4, base, rtol=1e-6):
        problems.append(f"rope base is {written:g} and should be {base:g}")
    if (tokens := len(field("tokenizer.ggml.tokens"))) != config.vocab_size:
        problems.append(f"{tokens} tokens, but the model has {config.vocab_size}")
    types = tensor_types(reader)
    total = sum(types.values())
    expected = QUANTIZATIONS[quantization][1] if quantization in QUANTIZATIONS else {quantization}
    whole = sum(types[name] for name in WHOLE) / total
    if quantization in QUANTIZATIONS and whole > 0.5:
        rows = sorted({int(t.shape[0]) for t in reader.tensors if len(t.shape) > 1 and t.tensor_type.name in WHOLE})
        problems.append(f"{whole:.0%} of its weights are not quantised: rows of {', '.join(map(str, rows))} weights, "
                        f"and {quantization} needs multiples of 256 (or 32, for a larger type)")  # fmt: skip
    elif quantization not in QUANTIZATIONS and types.keys() != expected:
        problems.append(f"its matrices are {dict(types)}, not {quantization}")
    if problems:
        raise ExportError(f"{path.name.removesuffix('.part')}: " + "; ".join(problems))
    return {"tensor_types": {name: count / total for name, count in types.most_common()},
            "as_named": sum(types[name] for name in expected) / total, "tokens": tokens,
            "eos": tokenizer.eos_token_id, "rope_base": float(base)}  # fmt: skip


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:50]}... ({len(repr(value))} characters)"


def strings(tokenizer: Any, questions: Sequence[str], count: int = 500) -> list[str]:
    """Texts on which tokenizers differ: numbers, currency, unicode, spaces, the chat's own marks, and questions."""
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


def check_tokens(server: Server, tokenizer: Any, texts: Sequence[str]) -> int:
    """Each text has the same token ids in the file as in the Hugging Face tokenizer; how many were compared."""
    different = []
    for text in texts:
        expected, found = tokenizer.encode(text, add_special_tokens=False), server.tokenize(text)
        if expected != found:
            different.append(f"{_short(text)}: {found[:12]} and should be {expected[:12]}")
    if different:
        raise ExportError(f"{server.model.name}: {len(different)} of {len(texts)} texts are tokenised otherwise than "
                          f"by the model's tokenizer, e.g. {'; '.join(different[:3])}")  # fmt: skip
    return len(texts)


# --- for those who use it ---------------------------------------------------------------------------------------------
def modelfile(file: str, tokenizer: Any, context: int) -> str:
    """An Ollama Modelfile; its template is the model's own, rendered with placeholders, but for the BOS."""
    user, system = ({"role": role, "content": mark} for role, mark in (("user", PROMPT), ("system", "{{ .System }}")))

    def rendered(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.replace(tokenizer.bos_token or "\0", "").partition(PROMPT)[::2]  # (before, after the question)

    before, after = rendered([user])
    with contextlib.suppress(Exception):  # a template that takes no system message refuses it in a way of its own
        told, after_told = rendered([system, user])
        if after_told == after and "{{ .System }}" in told:
            before = f"{{{{ if .System }}}}{told}{{{{ else }}}}{before}{{{{ end }}}}" if before else told
    stops = [tokenizer.convert_ids_to_tokens(i) for i in chat.end_ids(tokenizer)]
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{before}{PROMPT}{after}{{{{ .Response }}}}{stops[0]}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"
