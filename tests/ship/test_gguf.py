"""What llama.cpp makes of small models is what transformers made of them. Builds llama.cpp once, in minutes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lib.data import chat
from lib.data.tasks import generate
from lib.engine import llamacpp
from lib.engine.llamacpp import Server
from lib.judge import evaluate
from lib.run.paths import ROOT
from lib.ship import chain, engines, export
from lib.ship.export import ExportError
from tests.ship.test_export import make_adapter, make_base

pytestmark = pytest.mark.export
SPLITS = {  # the published regular expressions of two pre-tokenizers
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
             r"|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip
NAMED = {  # begin, end, pad
    "qwen2": (None, "<|im_end|>", "<|endoftext|>"),
    "llama-bpe": ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
}
ALL = {"compared": 500, "with unknown bytes": 0}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def llama():
    return llamacpp.find()


@pytest.fixture(scope="module")
def sequences():
    return [np.random.default_rng(seed).integers(4, 2000, 24).tolist() for seed in (1, 2)]


def bpe_tokenizer(llama, name):
    """Qwen2's or Llama 3's tokenizer, rebuilt from the vocabulary files in llama.cpp's source: no hub is asked."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    path = llama.folder / "models" / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there: this checkout of llama.cpp holds no vocabularies")
    fields = export.read_gguf(path).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    llama3 = name == "llama-bpe"
    vocabulary, pairs = {token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=llama3))
    split = pre_tokenizers.Split(Regex(SPLITS[name]), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([split, bytes_only]), decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds) if kind == 3]
    made.add_special_tokens(special)
    bos, eos, pad = NAMED[name]
    if llama3:
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    else:
        made.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_sentencepiece_model_is_converted_exactly_and_quantised(llama, tokenizer, tmp_path, sequences, kind, tied):
    base = make_base(tmp_path / "base", tokenizer, kind, tied, hidden=256)
    adapter, merged = make_adapter(base, tmp_path / "adapter"), tmp_path / "merged"
    export.merge(base, adapter, merged, tokenizer)
    other = shutil.copytree(merged, tmp_path / "other")
    merge = export.check_merge(base, adapter, merged, sequences)
    f16, q4 = tmp_path / "f16.gguf", tmp_path / "q4.gguf"
    assert export.to_gguf(llama, tmp_path / "merged", f16, "f16", "m")["tensor_types"] == {"F16": 1.0}
    found = export.check_conversion(llama, f16, merged, sequences, merge)
    assert found["logprob"] < 1e-3 and found["positions"] == 48
    file = merged / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, other / file.name)
    with pytest.raises(ExportError, match="the conversion changed the model"):
        export.check_conversion(llama, f16, other, sequences, merge)
    assert not list(tmp_path.glob("check-*"))
    facts = export.to_quantized(llama, f16, q4, "Q4_K_M", tmp_path / "merged")
    assert facts["as_named"] == 1.0 and q4.stat().st_size < 0.45 * f16.stat().st_size
    with Server(llama, q4, 256) as server:
        assert export.check_tokens(server, tokenizer, export.strings(tokenizer, ["What is 3 + 4?"])) == ALL
        check_chats(server, tokenizer)


def check_chats(server, tokenizer):
    """llama.cpp reads the chat template by itself; held against transformers' rendering of it."""
    questions = [problem.question for problem in generate("train", 6, 0)]
    questions += ["  two  spaces ", "<|user|> and </s>?", "€ 5 −3 %\n\n日本語", "a" * 100]
    chats = [[{"role": "user", "content": text}] for text in questions]
    asked = [(messages, chat.prompt_ids(messages, tokenizer)) for messages in chats]
    assert [messages for messages, ids in asked if not same_prompt(server, messages, ids)] == []
    for messages, ids in asked:  # it can tell: another token, one too many
        assert not same_prompt(server, messages, [*ids[:3], ids[3] ^ 1, *ids[4:]])
        assert not same_prompt(server, messages, [ids[0], *ids])


def same_prompt(server, messages, ids) -> bool:
    """Asked for our ids where it has just answered the chat, llama-server finds all but the last (which it must
    compute) in its cache only if each is the same."""
    body = {"model": "model", "messages": messages, "max_tokens": 1, "temperature": 0}
    server.post("/v1/chat/completions", body | {"id_slot": 0, "cache_prompt": True})
    again = server.post("/completion", {"prompt": ids, "n_predict": 1, "id_slot": 0, "cache_prompt": True})
    return again["timings"]["cache_n"] == len(ids) - 1


@pytest.mark.parametrize("name, kind, tied", [("qwen2", "qwen2", True), ("llama-bpe", "llama", False)])
def test_a_known_bpe_tokenizer_keeps_its_tokens(llama, tmp_path, name, kind, tied):
    tokenizer = bpe_tokenizer(llama, name)
    base = make_base(tmp_path / "base", tokenizer, kind, tied, hidden=64, vocabulary=len(tokenizer))
    export.merge(base, make_adapter(base, tmp_path / "adapter"), tmp_path / "merged", tokenizer)
    export.to_gguf(llama, tmp_path / "merged", tmp_path / "f16.gguf", "f16", "m")
    with Server(llama, tmp_path / "f16.gguf", 256) as server:
        assert export.check_tokens(server, tokenizer, export.strings(tokenizer, ["What is 3 + 4?"])) == ALL


def test_an_unknown_bpe_tokenizer_is_refused_in_the_converters_words(llama, tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["What is 3 + 4?"], special_tokens=["</s>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="</s>", pad_token="<pad>")
    base = make_base(tmp_path / "base", tokenizer, "llama", vocabulary=len(tokenizer))
    with pytest.raises(llamacpp.LlamaCppError, match="BPE pre-tokenizer was not recognized"):
        export.to_gguf(llama, base, tmp_path / "f16.gguf", "f16", "m")


def test_a_width_that_does_not_fit_is_refused_though_the_program_says_nothing(llama, tokenizer, tmp_path):
    base = make_base(tmp_path / "base", tokenizer, hidden=72)  # no multiple of 32
    export.to_gguf(llama, base, tmp_path / "f16.gguf", "f16", "m")
    with pytest.raises(ExportError, match="not quantised: rows of 72.*multiples of 256"):
        export.to_quantized(llama, tmp_path / "f16.gguf", tmp_path / "q4.gguf", "Q4_K_M", base)


def asking(base, **changes):
    """Settings of notebook 30."""
    usual = {"load_in_4bit": False, "llama_cpp_path": None, "eval_batch_size": 4, "max_new_tokens": 80}
    return SimpleNamespace(base_model=str(base), **usual | changes)


def test_a_base_behind_llama_server_answers_as_it_does_itself(llama, tokenizer, tmp_path):
    """The embedded base, 40 questions: the same answers with and without the calculator, but for rounding to fp16."""
    base, questions = ROOT / "data" / "base", _rows(40)
    prompts, model = [chat.prompt_ids(row["messages"], tokenizer) for row in questions], export.load(base, "cpu")
    with engines.started("llama-server", asking(base), tmp_path, tmp_path, tokenizer, questions, ["base"]) as served:
        for calculator in (True, False):
            rest = (tokenizer, prompts, 80, 20, calculator)
            answers, own = evaluate.generate(served["base"], *rest), evaluate.generate(model, *rest)
            assert sum(a == b for a, b in zip(answers, own)) >= 36
        rows = [{"id": "0", "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]}
                for text in ("It costs $ 1,250.50.", "Naïve 日本 🙂 costs € 5.")]  # fmt: skip
        settings = SimpleNamespace(eval_batch_size=2)
        read = chain.losses(served["base"].server, tokenizer, rows)
        own = evaluate.losses(model, tokenizer, rows, settings)
    assert [one["tokens"] for one in read] == [one["tokens"] for one in own]
    assert [one["loss"] for one in read] == pytest.approx([one["loss"] for one in own], rel=0.01)


def test_a_tuned_model_behind_llama_server_stands_on_the_base_as_it_was_rounded(llama, tokenizer, tmp_path):
    base = make_base(tmp_path / "base", tokenizer)
    adapter, questions = make_adapter(base, tmp_path / "run/adapter"), _rows(16)
    settings, folder = asking(base, load_in_4bit=True), tmp_path / "run/eval"
    prompts = [chat.prompt_ids(row["messages"], tokenizer) for row in questions]
    rest = (tokenizer, prompts, 12, 4, False)
    with engines.started("llama-server", settings, adapter, folder, tokenizer, questions, ["tuned"]) as served:
        answers = evaluate.generate(served["tuned"], *rest)
    assert list(folder.iterdir()) == [], "what was made for the asking was left"
    export.merge(base, adapter, tmp_path / "merged", tokenizer, rounded=True)
    expected = evaluate.generate(export.load(tmp_path / "merged", "cpu"), *rest)
    assert sum(a == b for a, b in zip(answers, expected)) >= 14


def _rows(count):
    return [{"messages": [{"role": "user", "content": p.question}]} for p in generate("test", count, 0)]


EXPORTS = """
import os, signal, sys
from pathlib import Path
from transformers import AutoTokenizer
from lib.engine import llamacpp
from lib.ship import export
base, adapter, stage = map(Path, sys.argv[1:])
tokenizer, llama = AutoTokenizer.from_pretrained(base), llamacpp.find()
merged, f16 = stage / "merged", stage / "m-f16.gguf"
print("ready", flush=True)
for deed in map(str.strip, sys.stdin):  # an export is a child of this process, so imports are paid once
    if deed == "start":
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr
            export.keep(stage, "merged", {}, lambda part: export.merge(base, adapter, part, tokenizer))
            export.keep(stage, f16.name, {}, lambda part: export.to_gguf(llama, merged, part, "f16", "m"))
            export.keep(stage, "m-Q4_K_M.gguf", {},
                        lambda part: export.to_quantized(llama, f16, part, "Q4_K_M", merged))
            os._exit(0)
    else:
        if deed == "kill":
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# An export is killed as soon as one of these, or of those behind it, is there (or a random while later).
MOMENTS = ("merged.part", "merged", "m-f16.gguf.part", "m-f16.gguf", "m-Q4_K_M.gguf.part")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child whose parent was killed")
def test_killed_at_any_moment_it_goes_on_and_no_torn_file_has_a_final_name(llama, tokenizer, tmp_path):
    base, stage = make_base(tmp_path / "base", tokenizer, hidden=256), tmp_path / "export"
    rng = np.random.default_rng(0)
    command = [sys.executable, "-c", EXPORTS, base, make_adapter(base, tmp_path / "adapter"), stage]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as exports:

        def told(deed: str) -> int:
            print(deed, file=exports.stdin, flush=True)
            return int(exports.stdout.readline())

        assert exports.stdout.readline() == "ready\n"
        for longest_seconds in (0, 0.05):
            stage.mkdir()
            for i in range(len(MOMENTS)):
                print("start", file=exports.stdin, flush=True)
                deadline = time.monotonic() + 60
                while not any((stage / name).exists() for name in MOMENTS[i:]):
                    assert time.monotonic() < deadline, f"no {MOMENTS[i]} came"
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, longest_seconds))
                assert told("kill") == -signal.SIGKILL
                for path in stage.glob("*.gguf"):
                    export.read_gguf(path)
            print("start", file=exports.stdin, flush=True)
            assert told("wait") == 0
            assert sorted(path.name for path in stage.iterdir()) == ["m-Q4_K_M.gguf", "m-f16.gguf", "merged", "records"]
            shutil.rmtree(stage)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_midway_leaves_nothing_behind(llama, tokenizer, tmp_path, monkeypatch):
    base, small = make_base(tmp_path / "base", tokenizer, hidden=256), tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:

        def convert(part):
            return export.to_gguf(llama, base, part, "f16", "m")

        with pytest.raises(ExportError, match=r"needs .* MiB in .*, and 1\.0 MiB are free"):
            export.keep(small, "m.gguf", {}, convert)
        monkeypatch.setattr(export, "check_space", lambda *arguments: None)  # another program took the room meanwhile
        with pytest.raises((ExportError, llamacpp.LlamaCppError), match="No space left|written|torn"):
            export.keep(small, "m.gguf", {}, convert)
        assert not [path for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", small], check=True)
