"""Text on the disk, whole documents in blocks, and nothing lost between the two."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.data import chat
from lib.data.texts import CorpusError, documents
from lib.gpt import corpus, tokens
from lib.run.paths import ROOT

BASE = ROOT / "data/base"


@pytest.fixture(scope="module")
def written(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("tokens")
    facts = tokens.write(folder, corpus.documents(5), processor, tokens.UNPREDICTABLE, most=30_000)
    return folder, facts


# --- encoding ---------------------------------------------------------------------------------------------------------
def test_a_document_becomes_what_the_chat_format_makes_of_it(processor, tokenizer):
    for document in itertools.islice(corpus.documents(6), 200):
        ids, weights = tokens.encode(document, processor)
        assert len(ids) == len(weights)
        if isinstance(document, str):
            assert tokenizer.decode(ids) == f"<s>{document}</s>"
        else:
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), document)]
            assert ids == chat.encode({"id": "x", "messages": messages}, tokenizer)["input_ids"]


def test_what_cannot_be_predicted_weighs_a_tenth(processor, tokenizer):
    low, full = tokens.UNPREDICTABLE, 100
    assert low == 10
    assert set(tokens.encode("A fund pays 5%.", processor)[1]) == {low}
    assert set(tokens.encode("A fund pays 5%.", processor, 100)[1]) == {full}
    ids, weights = tokens.encode(("What is 12 over 4?", "It is <<12/4=3.25>>, so <<1+1=2>>.\n#### 3"), processor)
    shares = {w: tokenizer.decode([i for i, x in zip(ids, weights) if x == w]) for w in (low, full)}
    assert shares[low] == "<s><|user|>What is 12 over 4?<|assistant|>3.252"  # the question, and the values of the marks
    assert shares[full] == "It is <<12/4=>>, so <<1+1=>>.\n#### 3</s>"  # the sums, where they end, and the end


# --- blocks -----------------------------------------------------------------------------------------------------------
def test_every_document_stands_whole_in_exactly_one_block(written, processor):
    folder, facts = written
    blocks = tokens.Blocks(folder, batch=4, length=1023, seed=0)  # none is longer
    found = []
    for step in range(-(-len(blocks.rows) // 4)):
        for row, (ids, weights, numbers) in enumerate(zip(*blocks.at(step))):
            if step * 4 + row < len(blocks.rows):  # the rest belongs to the next epoch
                for number in range(int(numbers.max()) + 1):
                    found.append(
                        (ids[numbers == number].tolist(), (100 * weights[numbers == number]).round().int().tolist())
                    )
    wanted = []
    for document in itertools.islice(corpus.documents(5), facts["documents"]):
        ids, shares = tokens.encode(document, processor)
        wanted.append((ids, [0, *shares[1:]]))  # nothing before a document's first token predicts it
    assert len(found) == facts["documents"]
    assert sorted(found) == sorted(wanted)


def test_hardly_a_token_is_padding_and_padding_weighs_nothing(written):
    blocks = tokens.Blocks(written[0], batch=8, length=511, seed=0)
    assert blocks.sizes.sum() / (len(blocks.rows) * 512) > 0.97
    ids, weights, numbers = blocks.at(1)
    assert (weights[numbers < 0] == 0).all() and (ids[numbers < 0] == tokens.PAD).all()


def test_a_document_longer_than_a_block_is_cut_and_loses_nothing(tmp_path, processor):
    text = " ".join(str(n) for n in range(300))
    tokens.write(tmp_path, [text, "short"], processor, 100)
    blocks = tokens.Blocks(tmp_path, batch=1, length=63, seed=0)
    assert blocks.sizes.max() == 64
    ids = tokens.encode(text, processor)[0]
    pieces = [blocks.tokens[s : s + n].tolist() for s, n in zip(blocks.starts, blocks.sizes)]
    assert sum(pieces[:-1], []) == ids and pieces[-1] == tokens.encode("short", processor)[0]


def test_a_step_is_the_same_whenever_it_is_asked_and_epochs_are_shuffled_anew(written):
    a, b = (tokens.Blocks(written[0], 4, 255, seed=3) for _ in range(2))
    first = [a.at(step)[0].clone() for step in range(6)]
    assert all(torch.equal(b.at(step)[0], first[step]) for step in (5, 0, 3))
    epoch = len(a.rows)
    assert sorted(a.row_of(n)[0] for n in range(epoch)) == sorted(a.row_of(n)[0] for n in range(epoch, 2 * epoch))
    assert [a.row_of(n) for n in range(epoch)] != [a.row_of(n) for n in range(epoch, 2 * epoch)]
    assert not torch.equal(tokens.Blocks(written[0], 4, 255, seed=4).at(0)[0], first[0])


def test_unpacked_rows_are_single_documents_padded_to_the_longest(written):
    blocks = tokens.Blocks(written[0], batch=4, length=511, seed=0, packed=False)
    ids, weights, numbers = blocks.at(0)
    assert set(numbers.unique().tolist()) <= {-1, 0}
    assert ids.shape[1] == (numbers >= 0).sum(1).max() < 512
    assert 0.5 < blocks.tokens_a_step / (4 * 512) < 1.5  # about as much text a step as packed


def test_what_is_written_is_counted_and_hashed(written, processor, tmp_path):
    folder, facts = written
    assert (
        facts["tokens"] == (folder / "tokens.bin").stat().st_size // 2 == np.fromfile(folder / "ends.bin", "int64")[-1]
    )
    texts = itertools.islice(corpus.documents(5), facts["documents"])
    assert facts["bytes"] == sum(len((t if isinstance(t, str) else "".join(t)).encode()) for t in texts)
    again = tokens.write(tmp_path / "a", corpus.documents(5), processor, tokens.UNPREDICTABLE, most=30_000)
    other = tokens.write(tmp_path / "b", corpus.documents(6), processor, tokens.UNPREDICTABLE, most=30_000)
    assert again == facts and other["sha256"] != facts["sha256"]


# --- one's own text ---------------------------------------------------------------------------------------------------
def test_own_text_is_parted_into_training_and_held_out(tmp_path, processor):
    rows = [{"text": f"Note {n}: the rate is {n} percent."} for n in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SimpleNamespace(corpus=str(tmp_path / "a.jsonl"), held_out_percent=10.0)
    train, held_out = tokens.prepare(settings, tmp_path / "t", processor)
    assert train["documents"] + held_out["documents"] == 300 and 10 <= held_out["documents"] <= 60
    assert (np.fromfile(tmp_path / "t/train/weights.bin", "uint8") == 100).all()


def test_too_few_documents_to_hold_any_out_are_refused(tmp_path, processor):
    (tmp_path / "a.txt").write_text("one document only")
    settings = SimpleNamespace(corpus=str(tmp_path / "a.txt"), held_out_percent=0.01)
    with pytest.raises(CorpusError, match="too few documents"):
        tokens.prepare(settings, tmp_path / "t", processor)


def test_the_fomc_minutes_train_a_tokenizer_that_loses_nothing(tmp_path, published_data):
    path = published_data / "fomc_minutes/sample24.jsonl"
    texts = [text[:4000] for text in documents(path)]
    assert len(texts) == 24
    tokens.train_tokenizer(tmp_path, texts)
    processor = tokens.load_processor(tmp_path)
    assert processor.get_piece_size() == tokens.VOCABULARY
    assert all(processor.decode(processor.encode(text)) == text for text in texts)
    embedded = tokens.load_processor(BASE)
    assert sum(len(processor.encode(t)) for t in texts) < 0.8 * sum(len(embedded.encode(t)) for t in texts)


# --- the embedded tokenizer -------------------------------------------------------------------------------------------
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
    assert len(pieces) == tokens.VOCABULARY
    assert not [p for p in pieces if sum(c.isdigit() for c in p) > 1 and not p.startswith("<0x")]
    for symbol in tokens.SYMBOLS:
        assert [p for p in pieces if symbol in p] == [symbol], symbol
