"""Text -> memory-mapped tokens -> packed blocks: whole documents side by side, hardly a gap."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from lib.data.texts import CorpusError, EmptyCorpus, documents, held_out
from lib.gpt import corpus
from lib.run.settings import PretrainSettings

VOCABULARY = 2048
SYMBOLS = ["<|user|>", "<|assistant|>", "\n", "<<", ">>", "####", "="]  # never merged with others
BOS, EOS, PAD = 1, 2, 3
# Loss weight, in percent, of what cannot be predicted: a question's random numbers, prose, a sum's value
# (a calculator's work). At full weight its noise drowns what is to be learnt: to copy the right numbers
# into the right sum. Text that is not generated weighs 100 throughout.
UNPREDICTABLE = 10
WINDOW = 8192  # documents that are packed at once
Document = str | corpus.Turn


# --- the tokenizer --------------------------------------------------------------------------------
def train_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """SentencePiece BPE with digits split and byte fallback, as llama.cpp's stock converter takes it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, character_coverage=1.0, split_digits=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        max_sentence_length=1 << 20, unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=PAD, pad_piece="<pad>",
        user_defined_symbols=SYMBOLS, num_threads=2, minloglevel=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()


def generated_texts(seed: int, count: int) -> Iterator[str]:
    """What a tokenizer is trained on, `count` documents (the embedded base's: 60,000)."""
    for document in itertools.islice(corpus.documents(seed, "tokenizer"), count):
        if isinstance(document, str):
            yield document
        else:
            yield from document


def load_processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer as SentencePiece itself reads it."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


# --- tokens on the disk ---------------------------------------------------------------------------
def encode(document: Document, processor, weight: int = UNPREDICTABLE) -> tuple[list[int], list[int]]:
    """Token ids with <s> and </s>, and the loss weight of each in percent (of prose: `weight`)."""
    if isinstance(document, str):
        ids = [BOS, *processor.encode(document), EOS]
        return ids, [weight] * len(ids)
    user, assistant, _, _, close, _, equals = map(processor.piece_to_id, SYMBOLS)
    question, answer = processor.encode(list(document))
    share, weights = 100, [UNPREDICTABLE] * (len(question) + 3)
    for id in answer:
        if id == close:  # a value ends
            share = 100
        weights.append(share)
        if id == equals:  # a value begins
            share = UNPREDICTABLE
    return [BOS, user, *question, assistant, *answer, EOS], [*weights, 100]


def write(folder: Path, texts: Iterable[Document], processor, weight: int, most: int | None = None) -> dict:
    """Encode documents, up to `most` tokens, into tokens.bin, weights.bin and ends.bin; counts and hash.

    What is in memory at once is one document: a corpus may be larger than memory."""
    folder.mkdir(parents=True, exist_ok=True)
    count = size = total_bytes = 0
    digest = hashlib.sha256()
    with (
        open(folder / "tokens.bin", "wb") as tokens,
        open(folder / "weights.bin", "wb") as weights,
        open(folder / "ends.bin", "wb") as ends,
    ):
        for text in texts:
            ids, shares = encode(text, processor, weight)
            block = np.array(ids, dtype=np.uint16).tobytes()
            tokens.write(block)
            digest.update(block)
            weights.write(bytes(shares))
            size += len(ids)
            ends.write(np.int64(size).tobytes())
            count += 1
            total_bytes += len("".join(text).encode())
            if most and size >= most:
                break
    if not count:
        raise EmptyCorpus("the corpus holds no documents")
    return {"documents": count, "tokens": size, "bytes": total_bytes, "sha256": digest.hexdigest()}


# --- blocks ---------------------------------------------------------------------------------------
class Blocks:
    """Batches of `batch` rows of length + 1 tokens from a folder that `write` made.

    A row holds whole documents, filled by best fit; only a document longer than a row is cut. Each epoch
    has a random order of rows of its own, so that `at(step)` is always the same: a resumed run trains on
    the same data. With packed=False a row is one document, padded to the batch's longest, and a batch
    has as many rows as hold about the same number of tokens."""

    def __init__(self, folder: Path, batch: int, length: int, seed: int, packed: bool = True):
        self.tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
        self.weights = np.memmap(folder / "weights.bin", dtype=np.uint8, mode="r")
        self.batch, self.length, self.seed = batch, length, seed
        ends, row = np.fromfile(folder / "ends.bin", dtype=np.int64).tolist(), length + 1
        pieces = []  # a document longer than a row is cut into several
        for start, end in itertools.pairwise([0, *ends]):
            pieces += [(first, min(row, end - first)) for first in range(start, end, row)]
        self.starts, self.sizes = np.array(pieces).T
        self.packed = packed
        if packed:
            self.rows = self._pack(row)
        else:
            self.rows = [[piece] for piece in range(len(self.sizes))]
            self.batch = max(1, round(batch * row / self.sizes.mean()))
        self.tokens_a_step = self.batch * self.sizes.sum() / len(self.rows)
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))
        kinds = (np.int64, np.float32, np.int64)
        self._buffers = [np.empty((self.batch, row), dtype=kind) for kind in kinds]

    def _pack(self, row: int) -> list[list[int]]:
        """Which pieces go into each row: the longest that fits, again and again, a window at a time."""
        rows = []
        for start in range(0, len(self.sizes), WINDOW):
            by_size: list[list[int]] = [[] for _ in range(row + 1)]
            for piece, size in enumerate(self.sizes[start : start + WINDOW].tolist(), start):
                by_size[size].append(piece)
            for longest in range(row, 0, -1):
                while by_size[longest]:
                    members, room, size = [], row, longest
                    while size:
                        if by_size[size]:
                            members.append(by_size[size].pop())
                            room -= size
                            size = min(size, room)
                        else:
                            size -= 1
                    rows.append(members)
        return rows

    def row_of(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self.rows))
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = epoch, generator.permutation(len(self.rows))
        return self.rows[self._order[1][place]]

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, loss weights and document numbers of a step, (batch, length + 1) each; padding weighs nothing.

        The arrays are allocated once and written anew at each call."""
        ids, weights, numbers = self._buffers
        ids.fill(PAD), weights.fill(0), numbers.fill(-1)
        for row in range(self.batch):
            place = 0
            for number, piece in enumerate(self.row_of(step * self.batch + row)):
                start, size = self.starts[piece], self.sizes[piece]
                end = place + size
                ids[row, place:end] = self.tokens[start : start + size]
                weights[row, place:end] = self.weights[start : start + size]
                numbers[row, place:end] = number
                weights[row, place] = 0  # nothing before a document's first token predicts it
                place = end
        weights /= 100
        longest = self.length + 1
        if not self.packed:
            longest = int((numbers >= 0).sum(axis=1).max())
        return tuple(torch.from_numpy(array[:, :longest]) for array in self._buffers)


def prepare(settings: PretrainSettings, folder: Path, processor) -> tuple[dict, dict]:
    """Write the corpus as folder/train and folder/held_out; the counts, bytes and hash of each."""
    train, kept = folder / "train", folder / "held_out"
    if settings.corpus == "generated":
        seed, most = settings.pretrain_seed, settings.pretrain_tokens
        written = write(train, corpus.documents(seed), processor, UNPREDICTABLE, most)
        validation = corpus.documents(seed, "validation")
        return written, write(kept, validation, processor, UNPREDICTABLE, min(most // 8, 60_000))
    path, percent = settings.corpus, settings.held_out_percent
    for_training = (text for text in documents(path) if not held_out(text, percent))
    for_loss = (text for text in documents(path) if held_out(text, percent))
    try:
        return write(train, for_training, processor, 100), write(kept, for_loss, processor, 100)
    except EmptyCorpus:
        raise CorpusError(f"{path}: too few documents to keep {percent} % of them from training; part the "
                          f"text into more, or raise held_out_percent") from None  # fmt: skip
