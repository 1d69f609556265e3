"""Pretraining's parts, and the embedded base as it is committed."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from lib import chat, corpus, evaluate, presets, pretrain

BASE = presets.ROOT / "data/base"


@pytest.fixture(scope="module")
def processor():
    return pretrain.load_processor(BASE)


# --- the learning rate ------------------------------------------------------------------------------------------------
def test_the_learning_rate_warms_up_holds_and_falls_to_nothing():
    shares = [pretrain.schedule(step, 1000) for step in range(1000)]
    assert shares[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert set(shares[19:400]) == {1}
    assert shares[400:] == pytest.approx(np.linspace(0.4, 0.4 / 600, 600))
    assert pretrain.schedule(1000, 1000) == 0


@pytest.mark.parametrize("steps", [1, 2, 7, 49])
def test_short_runs_have_a_learning_rate_at_every_step(steps):
    assert all(0 < pretrain.schedule(step, steps) <= 1 for step in range(steps))


# --- the token stream -------------------------------------------------------------------------------------------------
def test_blocks_are_the_documents_tokens_one_after_the_other(processor):
    data = pretrain.Tokens(processor, 5, "train", batch=3, length=31)
    blocks = [data.next() for _ in range(10)]
    assert all(ids.shape == weights.shape == (3, 32) for ids, weights in blocks)
    assert blocks[0][0].dtype == torch.int64 and blocks[0][1].dtype == torch.float32
    encoded = [data.encode(document) for document in itertools.islice(corpus.documents(5, "train"), 100)]
    for i, column in enumerate(("ids", "weights")):
        stream = list(itertools.chain.from_iterable(document[i] for document in encoded))[: 10 * 3 * 32]
        packed = torch.cat([block[i].flatten() for block in blocks]).tolist()
        assert packed == pytest.approx(stream), column


def test_a_document_becomes_what_the_chat_format_makes_of_it(processor, tokenizer):
    data = pretrain.Tokens(processor, 0, "train", 1, 8)
    for document in itertools.islice(corpus.documents(6), 200):
        ids, weights = data.encode(document)
        assert len(ids) == len(weights)
        if isinstance(document, str):
            assert tokenizer.decode(ids) == f"<s>{document}</s>"
        else:
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), document)]
            row = chat.encode({"id": "x", "messages": messages}, tokenizer)
            assert ids == row["input_ids"]


def test_what_cannot_be_predicted_weighs_a_tenth(processor, tokenizer):
    data = pretrain.Tokens(processor, 0, "train", 1, 8)
    low, full = pretrain.UNPREDICTABLE, 1.0
    assert low == 0.1
    assert set(data.encode("A fund pays 5%.")[1]) == {low}
    ids, weights = data.encode(("What is 12 over 4?", "It is <<12/4=3.25>>, so <<1+1=2>>.\n#### 3"))
    shares = {w: tokenizer.decode([i for i, x in zip(ids, weights) if x == w]) for w in (low, full)}
    assert shares[low] == "<s><|user|>What is 12 over 4?<|assistant|>3.252"  # the question, and the values of the marks
    assert shares[full] == "It is <<12/4=>>, so <<1+1=>>.\n#### 3</s>"  # the sums, where they end, and the end


def test_the_same_seed_gives_the_same_stream_and_hash(processor):
    first, again, other = (pretrain.Tokens(processor, seed, "train", 2, 64) for seed in (1, 1, 2))
    for _ in range(3):
        assert torch.equal(first.next()[0], again.next()[0])
        other.next()
    assert first.sha.hexdigest() == again.sha.hexdigest() != other.sha.hexdigest()


def test_the_loss_is_the_weighted_mean_over_the_next_tokens():
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(BASE, num_hidden_layers=1)
    model = LlamaForCausalLM(config)
    ids, weights = torch.randint(4, 2048, (2, 9)), torch.rand(2, 9)
    with torch.no_grad():
        logs = model(input_ids=ids).logits.log_softmax(-1)  # (B, T, V)
        found = float(pretrain.loss_of(model, ids, weights))
    total = sum(-float(logs[b, t, ids[b, t + 1]] * weights[b, t + 1]) for b in range(2) for t in range(8))
    assert found == pytest.approx(total / float(weights[:, 1:].sum()), rel=0.01)  # bfloat16 inside


# --- the tokenizer ----------------------------------------------------------------------------------------------------
def test_transformers_and_sentencepiece_agree_on_the_corpus(processor, tokenizer):
    for document in itertools.islice(corpus.documents(12), 500):
        for text in [document] if isinstance(document, str) else document:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == processor.encode(text), text
            assert tokenizer.decode(ids) == text and processor.unk_id() not in ids


@pytest.mark.parametrize("text", [
    "", " ", "   ", " leading", "trailing ", "two  spaces", "tab\there", "\n\nlines\n", "\r\n",
    "Gr\u00f6\u00dfe 5 \u20ac", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 123",
    "\U0001f642\U0001f44d\U0001f3fd", "e\u0301 combining", "\ufb01 \u00bd \uff26\uff35\uff2c\uff2c",
    "\u0639\u0631\u0628\u064a \u0663", "a\u00a0b\u200bc\ufeff", "\x00\x07", "=<<=>>####=", "###", "#####",
    "the<<the>>the", "<|user|>x<|assistant|>", "<0x41>", "12,345.67%", "\u22121.5",
])  # fmt: skip
def test_transformers_and_sentencepiece_agree_on_any_text(processor, tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == processor.encode(text)
    assert tokenizer.decode(ids) == text and processor.unk_id() not in ids  # byte fallback loses nothing


def test_digits_and_the_notations_signs_are_tokens_of_their_own(processor):
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    assert len(pieces) == pretrain.VOCABULARY
    assert not [p for p in pieces if sum(c.isdigit() for c in p) > 1 and not p.startswith("<0x")]
    for symbol in pretrain.SYMBOLS:
        assert [p for p in pieces if symbol in p] == [symbol], symbol


# --- set-up accuracy --------------------------------------------------------------------------------------------------
def test_a_sum_counts_as_set_up_right_by_its_expression_not_its_value(tokenizer, monkeypatch):
    problems = [(f"q{i}", "<<12/4=3>>\n#### 3") for i in range(5)]
    said = ["Value: <<12/4=99>>", "<<12/5=2.4>>\n#### 3", "3", "<<1+1=2>> <<12/4=3>>", "<<4/12=3>>"]
    monkeypatch.setattr(evaluate, "generate", lambda *a, **k: [{"completion": text} for text in said])
    results = pretrain.setup_accuracy(None, tokenizer, problems)
    assert [r["correct"] for r in results] == [True, False, False, False, False]
    assert {r["wanted"] for r in results} == {"12/4"} and [r["got"] for r in results] == said


# --- the embedded base ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def config():
    return json.loads((BASE / "config.json").read_text())


def test_the_base_is_small_and_its_embeddings_are_tied(config):
    path = BASE / "model.safetensors"
    assert path.stat().st_size <= 16 * 2**20
    with safe_open(path, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    assert 3_000_000 <= sum(int(np.prod(shape)) for shape in shapes.values()) <= 5_000_000
    assert config["tie_word_embeddings"] and "lm_head.weight" not in shapes
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], config["hidden_size"]]


def test_the_base_fits_q4_k_and_its_attention_is_grouped(config):
    assert config["architectures"] == ["LlamaForCausalLM"] and config["head_dim"] == 64
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    heads, key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
    assert key_value_heads < heads and heads % key_value_heads == 0
    assert {name: config[name] for name in pretrain.CONFIG} == pretrain.CONFIG | {"rms_norm_eps": 1e-05}


def test_the_bases_files_agree_on_special_tokens(config, tokenizer, processor):
    generation = json.loads((BASE / "generation_config.json").read_text())
    for name, own in (("bos", processor.bos_id()), ("eos", processor.eos_id()), ("pad", processor.pad_id())):
        name = f"{name}_token_id"
        assert config[name] == generation[name] == getattr(tokenizer, name) == own
    assert config["pad_token_id"] != config["eos_token_id"]
    assert len(tokenizer) == config["vocab_size"] == processor.get_piece_size()


def test_the_bases_chat_template_marks_what_is_learnt():
    template = (BASE / "chat_template.jinja").read_text()
    assert "{% generation %}" in template and "{% endgeneration %}" in template and template == chat.TEMPLATE


def test_the_base_holds_nothing_that_can_be_executed():
    assert {p.suffix for p in BASE.iterdir()} <= {".safetensors", ".json", ".model", ".jinja", ".md"}
