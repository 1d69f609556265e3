"""Pretraining the embedded base from nothing: its tokenizer, its packed token stream, its loop (Muon + AdamW)."""

import hashlib
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from lib import chat, corpus

VOCABULARY = 2048
SYMBOLS = ["<|user|>", "<|assistant|>", "\n", "<<", ">>", "####", "="]  # never merged with their neighbours
QUESTION_WEIGHT = 0.1  # a question's numbers are random: their loss is noise beside the answer's
CONFIG = dict(
    vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, tie_word_embeddings=True, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=0.02,
)  # fmt: skip


def train_tokenizer(folder: Path, seed: int, count: int = 60_000) -> None:
    """SentencePiece BPE with digits split and byte fallback, which llama.cpp's stock converter takes as it is."""
    lines = itertools.islice(corpus.documents(seed, "tokenizer"), count)
    texts = (line for d in lines for text in ([d] if isinstance(d, str) else d) for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2, pad_id=3, pad_piece="<pad>",
        user_defined_symbols=SYMBOLS, num_threads=2, minloglevel=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()


class Tokens:
    """Blocks of packed documents: ids and loss weights, each (batch, length + 1)."""

    def __init__(self, processor, seed, stream, batch, length):
        self.documents, self.processor = corpus.documents(seed, stream), processor
        self.batch, self.length = batch, length
        self.ids, self.weights = [], []
        self.marks = [processor.piece_to_id(s) for s in SYMBOLS[:2]]
        self.sha = hashlib.sha256()

    def encode(self, document):
        user, assistant = self.marks
        if isinstance(document, str):
            ids = self.processor.encode(document)
            return [1, *ids, 2], [1.0] * (len(ids) + 2)
        question, answer = (self.processor.encode(text) for text in document)
        ids = [1, user, *question, assistant, *answer, 2]
        return ids, [QUESTION_WEIGHT] * (len(question) + 3) + [1.0] * (len(answer) + 1)

    def next(self):
        need = self.batch * (self.length + 1)
        while len(self.ids) < need:
            ids, weights = self.encode(next(self.documents))
            self.ids += ids
            self.weights += weights
        ids, weights = np.array(self.ids[:need], dtype=np.int64), np.array(self.weights[:need], dtype=np.float32)
        del self.ids[:need], self.weights[:need]
        self.sha.update(ids.tobytes())
        shape = (self.batch, self.length + 1)
        return torch.from_numpy(ids).view(shape), torch.from_numpy(weights).view(shape)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: warm-up over 2 %, constant, then linear to zero over the last 40 %."""
    return min(1, (step + 1) / max(1, 0.02 * steps), (steps - step) / (0.4 * steps))


def loss_of(model, ids, weights):
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1]).logits  # (B, T, V)
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train(folder: Path, total_tokens: int, seed: int, batch: int = 8, length: int = 512, muon_rate: float = 0.02,
          adamw_rate: float = 3e-3, compiled: bool = False, log_every: int = 50, save_every: int = 500, report=print) -> dict:
    """Pretrain on `total_tokens` generated tokens and save model, tokenizer and card figures to `folder`."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    peaks = [muon_rate, adamw_rate]
    forward = torch.compile(model) if compiled else model
    data, held_out = Tokens(processor, seed, "train", batch, length), Tokens(processor, seed, "validation", 32, length)
    validation = [t.to(device) for t in held_out.next()]
    steps = math.ceil(total_tokens / (batch * length))
    started, log, running = time.perf_counter(), [], []
    for step in range(steps):
        share = schedule(step, steps)
        for optimizer, peak in zip(optimizers, peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        ids, weights = (t.to(device) for t in data.next())
        loss = loss_of(forward, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        if not math.isfinite(running[-1]):
            raise FloatingPointError(f"the loss is {running[-1]} at step {step}: lower the learning rate")
        if (step + 1) % log_every == 0 or step + 1 == steps:
            elapsed = time.perf_counter() - started
            entry = {"step": step + 1, "tokens": (step + 1) * batch * length, "loss": float(np.mean(running)),
                     "tokens_per_second": round((step + 1) * batch * length / elapsed), "elapsed_seconds": round(elapsed, 1)}
            running = []
            if (step + 1) % save_every == 0 or step + 1 == steps:
                with torch.no_grad():
                    entry["validation_loss"] = loss_of(model, *validation).item()
                save(model, folder)
            log.append(entry)
            report(json.dumps(entry))
    return {"seed": seed, "tokens": steps * batch * length, "steps": steps, "data_sha256": data.sha.hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()), "log": log}


def save(model, folder: Path) -> None:
    """Weights (float32 safetensors), configuration and tokenizer, as transformers and llama.cpp's converter read them."""
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    model.save_pretrained(folder)
    tokenizer = LlamaTokenizer.from_pretrained(
        folder, add_prefix_space=False, legacy=False, add_bos_token=False, bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", pad_token="<pad>", additional_special_tokens=SYMBOLS[:2], model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    # SentencePiece never splits its own symbols; the converted tokenizer must be told of those that no merge makes
    tokenizer.add_tokens([AddedToken(s, normalized=False, special=False) for s in SYMBOLS if len(s) in (2, 4)])
    tokenizer.chat_template = chat.TEMPLATE
    tokenizer.save_pretrained(folder)
