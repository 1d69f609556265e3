"""Text -> memory-mapped tokens -> packed blocks: whole documents side by side in rows, none cut, hardly a gap."""

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from lib.data.texts import CorpusError, EmptyCorpus, documents, held_out
from lib.gpt import corpus

VOCABULARY = 2048
SYMBOLS = ["<|user|>", "<|assistant|>", "\n", "<<", ">>", "####", "="]  # never merged with their neighbours
BOS, EOS, PAD = 1, 2, 3
# Loss weight, in percent, of what cannot be predicted (a question's random numbers, prose, a sum's value, which is a
# calculator's work): at full weight its noise drowns what is to be learnt, namely to copy the right numbers into the
# right sum. Text that is not generated weighs 100 throughout.
UNPREDICTABLE = 10
WINDOW = 8192  # documents that are packed at once




# --- the tokenizer ----------------------------------------------------------------------------------------------------
def train_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """SentencePiece BPE with digits split and byte fallback, which llama.cpp's stock converter takes as it is."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, character_coverage=1.0, split_digits=True, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, max_sentence_length=1 << 20,
        unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=PAD, pad_piece="<pad>",
        user_defined_symbols=SYMBOLS, num_threads=2, minloglevel=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()


def generated_texts(seed: int, count: int) -> Iterator[str]:
    """What a tokenizer is trained on, `count` documents (the embedded base's: 60,000)."""
    for document in itertools.islice(corpus.documents(seed, "tokenizer"), count):
        yield from [document] if isinstance(document, str) else document


def load_processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer as SentencePiece itself reads it."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


# --- tokens on the disk -----------------------------------------------------------------------------------------------
def encode(document: str | corpus.Turn, processor, weight: int = UNPREDICTABLE) -> tuple[list[int], list[int]]:
    """Token ids of a document with its <s> and </s>, and the loss weight of each in percent (of prose: `weight`)."""
    if isinstance(document, str):
        ids = [BOS, *processor.encode(document), EOS]
        return ids, [weight] * len(ids)
    user, assistant, _, _, close, _, equals = map(processor.piece_to_id, SYMBOLS)
    question, answer = (processor.encode(text) for text in document)
    weights, value = [], False
    for id in answer:
        value = value and id != close
        weights.append(UNPREDICTABLE if value else 100)
        value = value or id == equals
    return [BOS, user, *question, assistant, *answer, EOS], [UNPREDICTABLE] * (len(question) + 3) + [*weights, 100]


def write(folder: Path, texts: Iterable[str | corpus.Turn], processor, weight: int, most: int | None = None) -> dict:
    """Encode documents, up to `most` tokens, into tokens.bin, weights.bin and ends.bin; returns counts and the hash.

    Streams: what is in memory at once is one document, so that a corpus may be larger than memory."""
    folder.mkdir(parents=True, exist_ok=True)
    count = size = total_bytes = 0
    digest = hashlib.sha256()
    files = (open(folder / f"{name}.bin", "wb") for name in ("tokens", "weights", "ends"))
    with contextlib.ExitStack() as stack:
        tokens, weights, ends = map(stack.enter_context, files)
        for text in texts:
            ids, shares = encode(text, processor, weight)
            block = np.array(ids, dtype=np.uint16).tobytes()
            tokens.write(block)
            digest.update(block)
            weights.write(bytes(shares))
            size += len(ids)
            ends.write(np.int64(size).tobytes())
            count, total_bytes = (
                count + 1,
                total_bytes + len((text if isinstance(text, str) else "".join(text)).encode()),
            )
            if most and size >= most:
                break
    if not count:
        raise EmptyCorpus("the corpus holds no documents")
    return {"documents": count, "tokens": size, "bytes": total_bytes, "sha256": digest.hexdigest()}


# --- blocks -----------------------------------------------------------------------------------------------------------
class Blocks:
    """Batches of `batch` rows of length + 1 tokens from a folder that `write` made.

    A row holds whole documents, filled by best fit; only a document longer than a row is cut. The rows of an epoch are
    in a random order of their own, so `batch(step)` is the same whenever and however often it is asked: a resumed run
    trains on the same data. With packed=False a row is one document, padded to the batch's longest, and a batch has
    as many rows as hold about the same number of tokens."""

    def __init__(self, folder: Path, batch: int, length: int, seed: int, packed: bool = True):
        self.tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
        self.weights = np.memmap(folder / "weights.bin", dtype=np.uint8, mode="r")
        self.batch, self.length, self.seed = batch, length, seed
        ends = np.fromfile(folder / "ends.bin", dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        row = length + 1
        pieces = -(-(ends - starts) // row)  # a document of several rows is cut into pieces
        first = np.repeat(starts, pieces)
        within = np.arange(len(first)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.starts = first + within * row
        self.sizes = np.minimum(np.repeat(ends, pieces) - self.starts, row)
        self.rows = self._pack(row) if packed else [[piece] for piece in range(len(self.sizes))]
        self.packed = packed
        if not packed:
            self.batch = max(1, round(batch * row / self.sizes.mean()))
        self.tokens_a_step = self.batch * self.sizes.sum() / len(self.rows)
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))
        self._buffers = [np.empty((self.batch, row), dtype=kind) for kind in (np.int64, np.float32, np.int64)]

    def _pack(self, row: int) -> list[list[int]]:
        """Which pieces go into each row: the longest that fits, again and again, a window of documents at a time."""
        rows = []
        for start in range(0, len(self.sizes), WINDOW):
            by_size: list[list[int]] = [[] for _ in range(row + 1)]
            for piece, size in enumerate(self.sizes[start : start + WINDOW].tolist(), start):
                by_size[size].append(piece)
            left, longest = sum(map(len, by_size)), row
            while left:
                while not by_size[longest]:
                    longest -= 1
                members, room, size = [], row, longest
                while size:
                    if by_size[size]:
                        members.append(by_size[size].pop())
                        room, left = room - size, left - 1
                        size = min(size, room)
                    else:
                        size -= 1
                rows.append(members)
        return rows

    def row_of(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self.rows))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return self.rows[self._order[1][place]]

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, loss weights and document numbers of a step's rows, each (batch, length + 1); padding weighs nothing.

        The arrays are allocated once and written anew at each call."""
        ids, weights, numbers = self._buffers
        ids.fill(PAD), weights.fill(0), numbers.fill(-1)
        for row in range(self.batch):
            place = 0
            for number, piece in enumerate(self.row_of(step * self.batch + row)):
                start, size = self.starts[piece], self.sizes[piece]
                here = np.s_[row, place : place + size]
                ids[here], weights[here], numbers[here] = (
                    self.tokens[start : start + size], self.weights[start : start + size], number
                )  # fmt: skip
                weights[row, place] = 0  # nothing before a document's first token predicts it
                place += size
        weights /= 100
        longest = self.length + 1 if self.packed else int((numbers >= 0).sum(axis=1).max())
        return tuple(torch.from_numpy(array[:, :longest]) for array in self._buffers)


def prepare(settings, folder: Path, processor) -> tuple[dict, dict]:
    """Write the settings' corpus as folder/train and folder/held_out; the counts, bytes and hash of each."""
    if settings.corpus == "generated":
        seed, most = settings.pretrain_seed, settings.pretrain_tokens
        texts = corpus.documents(seed), corpus.documents(seed, "validation")
        limits = most, min(most // 8, 60_000)
        return tuple(write(folder / name, text, processor, UNPREDICTABLE, limit)
                     for name, text, limit in zip(("train", "held_out"), texts, limits))  # fmt: skip
    path, percent = settings.corpus, settings.held_out_percent
    try:
        return tuple(write(folder / name, (t for t in documents(path) if held_out(t, percent) == out), processor, 100)
                     for name, out in (("train", False), ("held_out", True)))  # fmt: skip
    except EmptyCorpus:
        raise CorpusError(f"{path}: too few documents to keep {percent} % of them from training; "
                          f"part the text into more, or raise held_out_percent") from None  # fmt: skip
