"""Merging, files and gates are right; nothing half-made is ever found under a final name."""

import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lib import SharpenError
from lib.data import chat
from lib.engine import client
from lib.judge import evaluate, plots
from lib.pipeline import execute
from lib.run import memory
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.ship import chain, export
from lib.ship.export import ExportError

BASE = ROOT / "data" / "base"
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def make_base(folder, tokenizer, kind="llama", tied=True, hidden=64, shard="5GB", vocabulary=2048, theta=50_000.0):
    """A model with random weights and the embedded tokenizer."""
    torch.manual_seed(0)
    config = MODELS[kind][0](
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, use_sliding_window=False,
    )  # fmt: skip
    model = MODELS[kind][1](config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    if (BASE / "tokenizer.model").exists() and vocabulary == 2048:
        shutil.copyfile(BASE / "tokenizer.model", folder / "tokenizer.model")
    return folder


def make_adapter(base, folder, kind=LoraConfig, **changes):
    """An adapter on some linear layers of each sort, which changes what the model says."""
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"]} | changes
    if kind is LoraConfig:
        settings = {"r": 4, "lora_alpha": 12} | settings
    model = get_peft_model(export.load(base, "cpu"), kind(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif "lora_magnitude_vector" in name or "ia3_l" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    return make_base(tmp_path_factory.mktemp("base"), tokenizer)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapter"))


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


# --- merge ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, tied, shard", [("llama", True, "5GB"), ("qwen2", False, "150KB")])
@pytest.mark.parametrize("changes", [
    {}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"use_dora": True},
    {"kind": IA3Config, "feedforward_modules": ["down_proj"]},
])  # fmt: skip
def test_the_merged_weights_are_those_of_peft(tmp_path, tokenizer, kind, tied, shard, changes):
    base = make_base(tmp_path / "base", tokenizer, kind, tied, shard=shard)
    adapter = make_adapter(base, tmp_path / "adapter", **changes)
    facts = export.merge(base, adapter, tmp_path / "merged", tokenizer)
    peft = PeftModel.from_pretrained(export.load(base, "cpu"), adapter).merge_and_unload(safe_merge=True)
    expected, found = dict(peft.state_dict()), weights(tmp_path / "merged")
    assert found.keys() == weights(base).keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor, expected[name].half(), rtol=1e-3, atol=1e-6)
    assert facts["merged_matrices"] == 8
    files = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in (base, tmp_path / "merged")]
    assert files[0] == files[1] and facts["shards"] == len(files[0])
    assert (facts["shards"] > 1) == (shard != "5GB")


def test_the_merged_folder_loads_and_says_what_base_and_adapter_say(tmp_path, base, adapter, tokenizer):
    export.merge(base, adapter, tmp_path / "merged", tokenizer)
    found = export.check_merge(base, adapter, tmp_path / "merged", [list(range(4, 40))])
    assert found["compared"] and 0 < found["logprob"] < 2 * found["base_rounded_to_16_bit"]["logprob"] < 0.01
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "float16" and config["rope_parameters"]["rope_theta"] == 50_000
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == (BASE / "tokenizer.model").read_bytes()


def test_a_model_of_which_all_weights_were_trained_is_saved_anew(tmp_path, base, tokenizer):
    """The base lends it what transformers does not save: tokenizer.model, without which marks are cut into pieces."""
    tuned = make_base(tmp_path / "tuned", tokenizer, shard="150KB")
    for file in tuned.glob("*.safetensors"):
        save_file({name: (1.5 * t).bfloat16() for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    (tuned / "tokenizer.model").unlink()
    assert export.method(tuned) == export.ALL_WEIGHTS
    facts = export.merge(base, tuned, tmp_path / "merged", tokenizer)
    assert facts["method"] == export.ALL_WEIGHTS and facts["merged_matrices"] == 0 and facts["shards"] > 1
    for name, tensor in weights(tmp_path / "merged").items():
        torch.testing.assert_close(tensor, (1.5 * weights(base)[name]).bfloat16().half(), rtol=0, atol=0)
    assert (tmp_path / "merged" / "tokenizer.model").exists()
    assert export.check_merge(base, tuned, tmp_path / "merged", [list(range(4, 40))])["compared"]


def test_a_prefix_is_refused_before_anything_is_written(tmp_path, base, tokenizer):
    prefix = tmp_path / "prefix"
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(export.load(base, "cpu"), config).save_pretrained(prefix)
    with pytest.raises(ExportError, match="no change of the weights.*no GGUF file can hold it.*'lora' or 'ia3'"):
        export.merge(base, prefix, tmp_path / "merged", tokenizer)
    assert not (tmp_path / "merged").exists()
    with pytest.raises(SettingsError, match="a prefix changes no weights"):  # not after hours of training
        execute.run("demo", overrides={"peft_type": "prefix_tuning"}, outputs=tmp_path / "outputs", export=True)
    assert not (tmp_path / "outputs").exists()


def test_another_kind_of_adapter_is_named_with_the_remedy(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    with pytest.raises(ExportError, match="VERA adapters are not merged here.*merge_and_unload"):
        export.method(tmp_path)


@pytest.mark.parametrize("name, content, told", [
    ("model.safetensors.index.json", {"weight_map": {"w": "../precious.safetensors"}}, "'../precious.safetensors'"),
    ("model.safetensors.index.json", {"weight_map": {"w": "/etc/passwd"}}, "names '/etc/passwd', which is no"),
    ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "config.json names code of its own"),
    ("adapter_model.bin", {}, "adapter_model.bin is a pickle"),
])  # fmt: skip
def test_a_tuned_model_that_is_more_than_data_is_refused(tmp_path, base, tokenizer, name, content, told):
    precious = tmp_path / "precious.safetensors"
    save_file({"w": torch.ones(2, 2)}, precious, metadata={"format": "pt"})
    before, tuned = precious.read_bytes(), shutil.copytree(base, tmp_path / "tuned")
    (tuned / name).write_text(json.dumps(content))
    with pytest.raises(ExportError, match=f"^{re.escape(str(tuned))}: .*{re.escape(told)}"):
        export.merge(base, tuned, tmp_path / "merged", tokenizer)
    assert not (tmp_path / "merged").exists() and precious.read_bytes() == before


def test_the_code_of_a_shared_merged_models_tokenizer_is_not_run(tmp_path, base):
    """`skip_merge` takes the folder as it is, and llama.cpp's converter loads it with trust_remote_code=True."""
    merged = shutil.copytree(base, tmp_path / "merged")
    (merged / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    with pytest.raises(ExportError, match="tokenizer_config.json names code of its own"):
        export.to_gguf(None, merged, tmp_path / "a.gguf.part", "f16", "demo")


def test_weights_are_read_from_safetensors_alone(tmp_path, base):
    folder = shutil.copytree(base, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        export.load(folder, "cpu")


def test_the_base_can_be_rounded_as_qlora_saw_it(tmp_path, base, adapter, tokenizer):
    """bitsandbytes' own layer is the judge of what training saw; embeddings and norms stay as they are."""
    from bitsandbytes.nn import Linear4bit

    export.merge(base, adapter, tmp_path / "merged", tokenizer, rounded=True)
    found = export.check_merge(base, adapter, tmp_path / "merged", [list(range(4, 40))], rounded=True)
    assert found["logprob"] < 2 * found["base_rounded_to_16_bit"]["logprob"]
    with pytest.raises(ExportError, match="logprob differs by"):
        export.check_merge(base, adapter, tmp_path / "merged", [list(range(4, 40))], rounded=False)
    before, after = weights(base), weights(tmp_path / "merged")
    torch.testing.assert_close(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"].half())
    name = "model.layers.1.self_attn.k_proj.weight"  # without LoRA here
    layer = Linear4bit(64, 32, bias=False, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict({"weight": before[name].bfloat16()})
    layer = layer.to("cpu")
    seen = layer(torch.eye(64, dtype=torch.float32)).T  # (out, in): what the layer multiplies by
    torch.testing.assert_close(after[name].float(), seen.float(), rtol=0.01, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a part of a process")
def test_a_merge_holds_one_shard_at_a_time(tmp_path, tokenizer):
    shards = {f"model-{i}.safetensors": f"model.layers.{i}.self_attn.q_proj.weight" for i in range(24)}
    (tmp_path / "base").mkdir(), (tmp_path / "adapter").mkdir()
    for file, name in shards.items():
        save_file({name: torch.full((2048, 2048), 0.5)}, tmp_path / "base" / file)  # 16 MiB each
    index = {"weight_map": {name: file for file, name in shards.items()}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "base" / "config.json").write_text("{}")
    layers = {f"base_model.model.{name.removesuffix('.weight')}": name for name in shards.values()}
    pairs = {f"{layer}.lora_{part}.weight": torch.full(shape, 0.5) for layer in layers
             for part, shape in (("A", (4, 2048)), ("B", (2048, 4)))}  # fmt: skip
    save_file(pairs, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4}')
    start = memory.reset_peak()
    facts = export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", tokenizer)
    # Measured: 84 to 194 MiB, by what the allocator gives back; 260 and more where all results are held.
    assert memory.peak_since(start) < 230 * 2**20
    assert facts["shards"] == facts["merged_matrices"] == 24
    assert all((tensor == 1.5).all() for tensor in weights(tmp_path / "merged").values())


def test_another_merged_model_is_noticed(tmp_path, base, adapter, tokenizer):
    export.merge(base, adapter, tmp_path / "merged", tokenizer)
    file = tmp_path / "merged" / "model.safetensors"
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    told = "the merged model is not what base and adapter are: logprob differs by .*, where rounding to 16 bit explains"
    with pytest.raises(ExportError, match=told):
        export.check_merge(base, adapter, tmp_path / "merged", [list(range(4, 40))])


def test_a_vocabulary_that_can_write_few_texts_is_not_compared_in_silence(tokenizer):
    server = SimpleNamespace(tokenize=lambda text: [1], model=ROOT / "m.gguf")
    lacking = SimpleNamespace(encode=lambda text, add_special_tokens: [1] if text == "a" else [0, 1], unk_token_id=0)
    assert export.check_tokens(server, lacking, ["a", "a", "€"]) == {"compared": 2, "with unknown bytes": 1}
    with pytest.raises(ExportError, match="of 3 texts the vocabulary can write only 1"):
        export.check_tokens(server, lacking, ["a", "€", "£"])


def test_a_large_merge_says_that_it_was_not_compared(monkeypatch, base, adapter):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    found = export.check_merge(base, adapter, base, [])
    assert found["compared"] is False and "are free" in found["reason"]


def test_merging_into_4_bit_weights_is_refused(tmp_path, base, monkeypatch):
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="bitsandbytes weights.*16-bit"):
        export.base_folder(str(tmp_path / "base"))


def test_a_4_bit_repository_gives_way_to_its_16_bit_origin(base, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **rest: asked.append(name) or str(base))
    for name in ("unsloth/Llama-3.2-3B-bnb-4bit", "unsloth/Llama-3.2-3B-unsloth-bnb-4bit", "unsloth/Llama-3.2-3B"):
        export.base_folder(name)
    assert asked == ["unsloth/Llama-3.2-3B"] * 3


def test_a_base_that_is_nowhere_is_told_with_its_path():
    with pytest.raises(ExportError, match="'/no/such/base' is no folder here, and the hub did not give it"):
        export.base_folder("/no/such/base")


def test_a_base_without_tokenizer_is_told_so(tmp_path, base):
    shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ExportError, match="has no tokenizer.model and no tokenizer.json: put its tokenizer there"):
        export.base_folder(str(tmp_path / "base"))


def damage(name, base, adapter, folder):
    """One of the ways in which inputs are broken; (base, adapter) with it."""
    base, adapter = (shutil.copytree(path, folder / path.name) for path in (base, adapter))
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors = load_file(weights)
    first = next(iter(tensors))
    if name == "truncated adapter":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "no adapter":
        weights.unlink()
    elif name == "no config":
        config.unlink()
    elif name == "torn config":
        config.write_text(config.read_text()[:30])
    elif name == "truncated base":
        file = base / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    elif name == "no base weights":
        (base / "model.safetensors").unlink()
    elif name == "not finite":
        save_file(tensors | {first: torch.full_like(tensors[first], torch.nan)}, weights)
    elif name == "another base":
        save_file({key.replace("layers.1", "layers.7"): tensor for key, tensor in tensors.items()}, weights)
    elif name == "another width":
        save_file({key: t[:, :-1].contiguous() if "lora_A" in key else t for key, t in tensors.items()}, weights)
    elif name == "half a pair":
        save_file({key: tensor for key, tensor in tensors.items() if key != first}, weights)
    elif name == "trained biases":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"bias": "all"}))
    elif name == "too large":
        file = base / "model.safetensors"
        save_file({key: tensor * 1e7 for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    elif name == "8-bit weights":
        file = base / "model.safetensors"
        whole = {key: tensor.to(torch.int8) for key, tensor in load_file(file).items()}
        save_file(whole, file, metadata={"format": "pt"})
    elif name == "shared embeddings":
        tied = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
        (base / "config.json").write_text(json.dumps(tied))
        pair = {f"base_model.model.model.embed_tokens.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
        save_file(tensors | pair, weights)
    return base, adapter


DAMAGES = {
    "truncated adapter": "adapter_model.safetensors cannot be read", "no adapter": "torn or missing",
    "no config": "adapter_config.json cannot be read", "torn config": "adapter_config.json is not JSON",
    "truncated base": "model.safetensors cannot be read", "no base weights": "torn or missing",
    "not finite": "not finite: train again", "another base": "does not have: was it trained on another base",
    "another width": "was it trained on another base", "half a pair": "lora_. for .* do not fit together",
    "trained biases": "bias = 'all', and only plain adapters", "too large": "16-bit floats cannot",
    "8-bit weights": "is torch.int8: merging needs 16- or 32-bit weights", "shared embeddings": "untie them first",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_input_is_named_and_leaves_nothing_that_looks_whole(name, base, adapter, tokenizer, tmp_path):
    damaged = damage(name, base, adapter, tmp_path)
    stage = tmp_path / "export"
    stage.mkdir()
    with pytest.raises(SharpenError, match=DAMAGES[name]):
        export.keep(stage, "merged", {}, lambda part: export.merge(*damaged, part, tokenizer))
    assert list(stage.iterdir()) == []
    facts = export.keep(stage, "merged", {}, lambda part: export.merge(base, adapter, part, tokenizer))  # goes on
    assert facts["merged_matrices"] == 8 and not list(stage.rglob("*.part"))


# --- files ------------------------------------------------------------------------------------------------------------
def writer(text):
    def make(part):
        part.write_text(text)
        return {"made": text}

    return make


def never(part):
    raise AssertionError("made again")


def test_a_file_is_made_once_and_again_when_its_inputs_changed(tmp_path):
    assert export.keep(tmp_path, "a.gguf", {"from": 1}, writer("one"))["made"] == "one"
    assert export.keep(tmp_path, "a.gguf", {"from": 1}, never)["made"] == "one"
    assert export.keep(tmp_path, "a.gguf", {"from": 2}, writer("two"))["made"] == "two"
    (tmp_path / "a.gguf").write_text("someone else's")  # a file that is not what its record says counts for nothing
    assert export.keep(tmp_path, "a.gguf", {"from": 2}, writer("three"))["made"] == "three"


@pytest.mark.parametrize("aside", ["former", "abandoned"])
def test_an_earlier_attempts_file_is_taken_over(tmp_path, aside):
    old, new = tmp_path / f"export.{aside}", tmp_path / "export"
    old.mkdir(), new.mkdir()
    export.keep(old, "a.gguf", {"from": 1}, writer("one"))
    export.put_aside(old / "a.gguf")  # even from failed/: this attempt judges for itself
    assert export.keep(new, "a.gguf", {"from": 1}, never)["bytes"] == 3
    assert (new / "a.gguf").read_text() == "one"


def test_a_skipped_step_takes_what_is_there_or_goes_without(tmp_path):
    assert export.keep(tmp_path, "a.gguf", {}, never, skip=True) is None
    export.keep(tmp_path, "a.gguf", {"from": 1}, writer("one"))
    assert export.keep(tmp_path, "a.gguf", {"from": 2}, never, skip=True)["made"] == "one"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
def test_an_interrupted_step_leaves_no_file_and_is_made_again(tmp_path, error):
    def interrupted(part):
        part.write_text("half")
        raise error

    with pytest.raises(ExportError if isinstance(error, OSError) else type(error)):
        export.keep(tmp_path, "a.gguf", {}, interrupted)
    assert not list(tmp_path.iterdir())
    assert export.keep(tmp_path, "a.gguf", {}, writer("whole"))["made"] == "whole"


def test_a_full_disk_is_told_with_both_figures_before_anything_is_written(tmp_path, base, adapter, tokenizer,
                                                                          monkeypatch):  # fmt: skip
    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100_000))
    with pytest.raises(ExportError, match=r"merged model needs 0\.\d MiB in .*, and 0\.1 MiB are free: make room"):
        export.merge(base, adapter, tmp_path / "merged", tokenizer)
    assert not (tmp_path / "merged").exists()


# --- the file's contents ----------------------------------------------------------------------------------------------
def gguf_file(path, model, tokenizer, changes=None, types=("Q4_K",)):
    """A GGUF file as a converter writes it, without its numbers; `changes` replaces fields."""
    from gguf import GGMLQuantizationType, GGUFWriter, quant_shape_to_byte_shape

    fields = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id,
              "template": tokenizer.chat_template, "rope": 50_000.0, "tokens": 2048, "context": 512}  # fmt: skip
    fields |= changes or {}
    out = GGUFWriter(path, "llama")
    out.add_eos_token_id(fields["eos"]), out.add_bos_token_id(fields["bos"]), out.add_pad_token_id(fields["pad"])
    out.add_chat_template(fields["template"]), out.add_rope_freq_base(fields["rope"])
    out.add_token_list([f"t{i}" for i in range(fields["tokens"])]), out.add_context_length(fields["context"])
    for index, name in enumerate(types):
        kind = GGMLQuantizationType[name]
        shape = (4, 256) if kind.name in ("F16", "F32") else quant_shape_to_byte_shape((4, 256), kind)
        dtype = {"F16": np.float16, "F32": np.float32}.get(name, np.uint8)
        out.add_tensor(f"blk.{index}.weight", np.zeros(shape, dtype), raw_dtype=kind)
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    return path


def test_a_good_file_passes_with_its_tensor_types(tmp_path, base, tokenizer):
    found = export.check_file(gguf_file(tmp_path / "a", base, tokenizer, types=["Q4_K"] * 3 + ["F16"]), base, "Q4_K_M")
    assert found["tensor_types"] == {"Q4_K": 0.75, "F16": 0.25} and found["as_named"] == 0.75


@pytest.mark.parametrize("changes, words", [
    ({"eos": 11}, "eos_token_id is 11 and should be 2"), ({"bos": 7}, "bos_token_id is 7"),
    ({"pad": 0}, "padding_token_id is 0"), ({"template": "{{ messages }}"}, "chat_template is"),
    ({"rope": 10_000.0}, "rope base is 10000 and should be 50000"), ({"tokens": 2000}, "2000 tokens, but the model"),
    ({"context": 4096}, "context_length is 4096"),
])  # fmt: skip
def test_what_differs_from_the_model_is_named(tmp_path, base, tokenizer, changes, words):
    with pytest.raises(ExportError, match=words):
        export.check_file(gguf_file(tmp_path / "a", base, tokenizer, changes), base, "Q4_K_M")


def test_a_quantised_file_that_is_mostly_f16_is_refused_with_the_reason(tmp_path, base, tokenizer):
    file = gguf_file(tmp_path / "a", base, tokenizer, types=["F16", "F16", "Q4_K"])
    with pytest.raises(ExportError, match="67% of its weights are not quantised: rows of 256.*multiples of 256"):
        export.check_file(file, base, "Q4_K_M")


def test_quantising_a_quantised_file_is_refused(tmp_path, base, tokenizer):
    file = gguf_file(tmp_path / "a", base, tokenizer, types=["Q8_0"])
    with pytest.raises(ExportError, match=r"quantised already \(Q8_0\)"):
        export.to_quantized(None, file, tmp_path / "b", "Q4_K_M", base)


def test_a_missing_or_torn_file_is_told_so(tmp_path, base, tokenizer):
    with pytest.raises(ExportError, match="there is no f16.gguf to quantise: leave skip_gguf out"):
        export.to_quantized(None, tmp_path / "f16.gguf", tmp_path / "b", "Q4_K_M", base)
    file = gguf_file(tmp_path / "a", base, tokenizer)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ExportError, match="does not load .* it is torn"):
        export.check_file(file, base, "Q4_K_M")


def test_a_model_without_tokenizer_is_refused(tmp_path, base):
    shutil.copytree(base, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ExportError, match="no tokenizer.model and no tokenizer.json"):
        export.to_gguf(None, tmp_path / "m", tmp_path / "part", "f16", "m")


def test_the_texts_hold_numbers_currency_unicode_and_the_chats_marks(tokenizer):
    texts = export.strings(tokenizer, ["What is 3 + 4?"])
    assert len(texts) == 500 and len(set(texts)) > 450 and texts == export.strings(tokenizer, ["What is 3 + 4?"])
    everything = "".join(texts)
    assert all(part in everything for part in ("€", "日本語", "<|user|>", "<|assistant|>", "What is 3 + 4?", "%", "\n"))


# --- every artefact ---------------------------------------------------------------------------------------------------
class FakeServer:
    """Greedy decoding and reading by a transformers model, through the interface of `llamacpp.Server`."""

    slots, model = 3, ROOT / "fake.gguf"

    def __init__(self, model, tokenizer):
        self.torch_model, self.tokenizer = model, tokenizer

    def complete(self, ids, count, stop=(), slot=-1):
        new = []
        while len(new) < count:
            new.append(int(export.logits(self.torch_model, [ids + new])[0][-1].argmax()))
            if new[-1] == self.tokenizer.eos_token_id or any(s in self.tokenizer.decode(new[-1:]) for s in stop):
                break
        return new

    def logprob(self, ids, token, slot=-1):
        return float(export.logits(self.torch_model, [ids])[0][-1].log_softmax(0)[token])


@pytest.mark.parametrize("calculator", [True, False])
def test_a_served_file_answers_as_transformers_does(calculator, tokenizer):
    """The same weights behind both interfaces: the calculator, the ends and the cuts must fall alike."""
    model = export.load(BASE, "cpu")
    prompts = [chat.prompt_ids([{"role": "user", "content": text}], tokenizer) for text in
               ("What is 12 + 30?", "Compute <<3*4=12>> then 2 + 2.", "A stock rises from 100 to 110.")]  # fmt: skip
    rest = (tokenizer, prompts, 60, 2, calculator)
    assert evaluate.generate(client.Served(FakeServer(model, tokenizer)), *rest) == evaluate.generate(model, *rest)


def results(verdicts, name="x"):
    return [{"id": str(i), "correct": v, "model": name, "kind": "k", "group": "g", "question": f"q{i}",
             "gold": {"value": i}, "completion": f"{name}{i}"} for i, v in enumerate(verdicts)]  # fmt: skip


def test_the_gate_is_the_lower_bound_of_the_paired_difference():
    merged = results([True] * 700 + [False] * 300)
    same = chain.gate(merged, merged, 2.0)
    assert same["passes"] and same["low"] > -0.02
    worse = chain.gate(merged, results([True] * 660 + [False] * 340), 2.0)  # 40 of 1,000 lost: 4 points
    assert not worse["passes"] and "at most -2 is allowed" in worse["reason"]
    few = chain.gate(merged[:60], merged[:60], 2.0)  # nothing lost, but 60 questions cannot show it
    assert not few["passes"] and "60 questions do not show it" in few["reason"]
    assert chain.gate(merged[:60], merged[:60], 10.0)["passes"]


def test_a_row_of_the_artefact_evaluation_counts_flips_both_ways():
    tuned, other = results([True, True, False, False]), results([True, False, True, True])
    row = chain.row("f16", other, tuned, 2**20, {"tokens_per_second": 9.0, "memory_bytes": 2**31, "seconds": 1.0})
    assert (row["right_to_wrong"], row["wrong_to_right"], row["accuracy"]) == (1, 2, 0.75)
    assert row["difference"] == 0.25 and row["difference_low"] < 0.25 < row["difference_high"]
    assert chain.printable(row)["size"] == "1.0 MiB" and chain.printable(row)["peak memory"] == "2.00 GiB"


def test_two_artefacts_are_told_apart_by_more_than_chance():
    merged = results([True] * 150 + [False] * 150)
    assert chain.same(merged, results([True] * 141 + [False] * 150 + [True] * 9)), "nine flips each way"
    assert not chain.same(merged, results([True] * 138 + [False] * 162)), "twelve lost, none won: p = 0.0005"
    few = results([True] * 10)
    assert chain.same(few, results([True] * 9 + [False])) and not chain.same(few, results([True] * 8 + [False] * 2))
    losses = np.random.default_rng(0).normal(20, 5, 50)
    assert chain.same(read(losses), read(losses + 0.05)) and not chain.same(read(losses), read(losses + 0.2))


def verdicts(**passes) -> dict[str, dict]:
    return {label: {"passes": passed} for label, passed in passes.items()}


def test_larger_types_are_judged_only_where_a_file_fails():
    asked = []

    def judged(label):
        asked.append(label)
        return {"passes": label != "Q3_K_M"}

    assert chain.judge([], judged) == {}
    assert list(chain.judge(["Q4_K_M", "Q6_K"], judged)) == asked == ["Q4_K_M", "Q6_K"]
    asked.clear()
    assert list(chain.judge(["Q3_K_M", "Q6_K"], judged)) == asked == ["Q3_K_M", "Q6_K", "Q5_K_M", "Q8_0"]


@pytest.mark.parametrize(("gates", "shipped", "failed"), [
    (verdicts(Q4=True, Q8=True), "m-Q4.gguf", []), (verdicts(Q4=False, Q8=True), "m-Q8.gguf", ["m-Q4.gguf"]),
    (verdicts(Q4=False, Q8=False), "m-f16.gguf", ["m-Q4.gguf", "m-Q8.gguf"]), ({}, "m-f16.gguf", []),
])  # fmt: skip
def test_the_smallest_file_that_passed_is_shipped_and_what_failed_lies_apart(tmp_path, gates, shipped, failed):
    files = {label: tmp_path / f"m-{label}.gguf" for label in ("f16", "Q8", "Q4")}
    for size, path in zip((16, 8, 4), files.values()):
        path.write_bytes(bytes(size))
    assert chain.ship(gates, files, tmp_path / "merged") == tmp_path / shipped
    assert sorted(path.name for path in tmp_path.glob("failed/*")) == failed
    assert not [name for name in failed if (tmp_path / name).exists()] and (tmp_path / shipped).exists()


def test_without_any_file_the_merged_model_is_shipped(tmp_path):
    assert chain.ship({}, {}, tmp_path / "merged") == tmp_path / "merged"


def test_an_adapters_size_counts_its_base(tmp_path, base, adapter):
    (tmp_path / "m-f16.gguf").write_bytes(bytes(16))
    found = chain.sizes(base, adapter, base, {"f16": tmp_path / "m-f16.gguf"})
    assert found["f16"] == 16
    assert found["adapter"] == found["base"] + export.size_of(adapter)
    assert chain.sizes(base, base, base, {})["adapter"] == found["base"]  # all weights were trained
    assert (chain.smallest(found), chain.smallest({"base": 1, "merged": 2})) == ("f16", "merged")


def read(losses, name="x"):
    """What `chain.ask` gives where rows have no gold: answers of ten tokens each."""
    return [{"id": str(i), "model": name, "question": f"q{i}", "gold": None, "reference": f"a{i}", "loss": loss,
             "tokens": 10} for i, loss in enumerate(losses)]  # fmt: skip


def test_a_served_file_reads_answers_as_transformers_does(tokenizer):
    model, rows = export.load(BASE, "cpu"), [
        {"id": str(i), "gold": None, "messages": [{"role": "user", "content": question},
                                                  {"role": "assistant", "content": answer}]}
        for i, (question, answer) in enumerate([("What is 12 + 30?", "It is 42."), ("Why?", "Naïve 日本 costs € 5.")])
    ]  # fmt: skip
    settings = SimpleNamespace(eval_batch_size=2)
    own, _ = chain.ask("merged", model, tokenizer, rows, settings)
    served, cost = chain.ask("f16", client.Served(FakeServer(model, tokenizer)), tokenizer, rows, settings)
    assert [one["tokens"] for one in served] == [one["tokens"] for one in own]
    assert [one["loss"] for one in served] == pytest.approx([one["loss"] for one in own], rel=1e-4)
    assert served[1]["reference"] == "Naïve 日本 costs € 5." and cost["seconds"] > 0


def test_without_golds_the_gate_is_the_upper_bound_of_the_perplexity():
    losses = np.random.default_rng(0).normal(20, 5, 200)
    merged = read(losses)
    worse = chain.gate(merged, read(losses * 1.02), 2.0)  # 0.04 nats a token more: 4 %
    assert worse["difference"] == pytest.approx(math.exp(0.002 * losses.mean()) - 1)
    assert not worse["passes"] and "at most +2 is allowed" in worse["reason"]
    assert chain.gate(merged, read(losses * 1.005), 2.0)["passes"]
    few = chain.gate(merged[:5], read(losses[:5] + [2, -2, 2, -2, 0.5]), 2.0)
    assert not few["passes"] and "5 answers do not show it" in few["reason"]


def test_without_golds_table_card_and_picture_tell_perplexities():
    tuned, other = read([20.0, 30.0], "adapter"), read([20.0, 31.0], "Q4_K_M")
    cost = {"tokens_per_second": 9.0, "memory_bytes": 2**31, "seconds": 1.0}
    table = [chain.row(found[0]["model"], found, tuned, 2**20, cost) for found in (tuned, other)]
    assert [row["perplexity"] for row in table] == pytest.approx([math.exp(2.5), math.exp(2.55)])
    assert table[1]["difference"] == pytest.approx(math.exp(0.05) - 1)
    assert chain.printable(table[1])["against tuned, %"].startswith("+5.1 [")
    gates = {"Q4_K_M": chain.gate(tuned, other, 2.0)}
    assert "adapter perplexity 12.182, Q4_K_M perplexity 12.807, n = 2" in chain.headline(table, gates, "best")
    settings = SimpleNamespace(base_model="data/base", calculator="off", max_new_tokens=9)
    held = {"Q4_K_M": {"tensor_types": {"Q5_0": 0.8, "Q4_K": 0.2}, "as_named": 0.2}}
    made = chain.card("m", settings, table, gates, held, False, False, export.ALL_WEIGHTS)
    (scored,) = ModelCard(str(made)).data.eval_results  # the adapter's own score is not of these files
    assert (scored.metric_name, scored.metric_value) == ("perplexity, Q4_K_M", 12.8071)
    rehearsed = chain.card("m", settings, table, gates, held, True, False)
    assert "model-index" not in str(rehearsed), "a rehearsal is no result"
    card = str(made)
    assert "No test row has a gold" in card and "20 tokens" in card and "all of its weights fine-tuned" in card
    assert "- Q4_K_M: 80% Q5_0, 20% Q4_K; 20% as its name says" in card
    assert "perplexity of 2 answers" in plots.chain(table).axes[0].get_xlabel()
    assert [one["question"] for one in chain.changed_most(tuned, other, 1)] == ["q1"]


def test_artefacts_that_were_asked_other_questions_are_not_compared():
    with pytest.raises(AssertionError, match="the same questions"):
        chain.row("f16", results([True, False])[::-1], results([True, False]), 1, {})


def test_the_server_that_says_nothing_is_no_endless_loop(tokenizer):
    server = SimpleNamespace(complete=lambda *arguments: [], model=ROOT / "a.gguf", slots=1)
    with pytest.raises(client.EngineError, match="without a token"):
        client.Served(server).answers([[1, 1, 1]], 5, [2])


# --- for those who use it ---------------------------------------------------------------------------------------------
def test_the_modelfile_holds_the_models_own_template(tokenizer):
    text = export.modelfile("demo-Q4_K_M.gguf", tokenizer, 1024)
    assert text.startswith("FROM ./demo-Q4_K_M.gguf\n")
    told, alone = re.search(r"\{\{ if .System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}", text).groups()
    assert (told, alone) == ("<|user|>{{ .System }}<|user|>", "<|user|>")
    assert "{{ end }}{{ .Prompt }}<|assistant|>{{ .Response }}</s>" in text and "<s><" not in text
    assert 'PARAMETER stop "</s>"' in text and "PARAMETER num_ctx 1024" in text
