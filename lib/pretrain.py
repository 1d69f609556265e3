"""Pretraining the embedded base from nothing: its tokenizer, its packed token stream, its loop (Muon + AdamW)."""

import hashlib
import itertools
import math
import re
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from lib import chat, corpus, evaluate
from lib.calculator import MARK, CalculatorError, calculate

VOCABULARY = 2048
SYMBOLS = ["<|user|>", "<|assistant|>", "\n", "<<", ">>", "####", "="]  # never merged with their neighbours
# Loss weight of what cannot be predicted (a question's random numbers, prose, a sum's value, which is a calculator's
# work): at full weight its noise drowns what is to be learnt, namely to copy the right numbers into the right sum.
UNPREDICTABLE = 0.1
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
        byte_fallback=True, character_coverage=1.0, split_digits=True, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, pad_piece="<pad>",
        user_defined_symbols=SYMBOLS, num_threads=2, minloglevel=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()


def load_processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer as SentencePiece itself reads it."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


class Tokens:
    """Blocks of packed documents: ids and loss weights, each (batch, length + 1)."""

    def __init__(self, processor, seed, stream, batch, length):
        self.documents, self.processor = corpus.documents(seed, stream), processor
        self.batch, self.length = batch, length
        self.ids, self.weights = [], []
        self.user, self.assistant, _, self.open, self.close, _, self.equals = map(processor.piece_to_id, SYMBOLS)
        self.sha = hashlib.sha256()

    def encode(self, document) -> tuple[list[int], list[float]]:
        """Token ids of a document with its <s> and </s>, and the loss weight of each."""
        if isinstance(document, str):
            ids = [1, *self.processor.encode(document), 2]
            return ids, [UNPREDICTABLE] * len(ids)
        question, answer = (self.processor.encode(text) for text in document)
        weights, value = [], False
        for id in answer:
            value = value and id != self.close
            weights.append(UNPREDICTABLE if value else 1.0)
            value = value or id == self.equals
        ids = [1, self.user, *question, self.assistant, *answer, 2]
        return ids, [UNPREDICTABLE] * (len(question) + 3) + weights + [1.0]

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
    """Share of the peak learning rate: warm-up over 2 %, constant to 40 %, then from 0.4 linearly to zero.

    Muon's step has a fixed size however noisy the gradient is; with blocks this few, what is copied exactly is learnt
    only at the lower rates."""
    if step >= 0.4 * steps:
        return 0.4 * (steps - step) / (0.6 * steps)
    return min(1, (step + 1) / max(1, 0.02 * steps))


def loss_of(model, ids, weights):
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1]).logits  # (B, T, V)
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train(settings, folder: Path, log=print, log_every: int = 50, save_every: int = 500) -> dict:
    """Pretrain from nothing into `folder` (where the tokenizer already lies); `log(step, **metrics)` as it goes.

    Muon (Jordan et al. 2024) moves the matrices, AdamW embeddings and norms. Returns tokens, steps, parameters, the
    last losses, tokens per second and the sha256 of the token stream."""
    torch.manual_seed(settings.pretrain_seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = load_processor(folder)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(device)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)  # at 0.02 words stay alike, and are not copied
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=settings.muon_learning_rate, momentum=0.95, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=settings.adamw_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    peaks = {muon: settings.muon_learning_rate, adamw: settings.adamw_learning_rate}
    forward = torch.compile(model) if settings.torch_compile else model
    batch, length = settings.pretrain_batch_size, settings.block_size
    data = Tokens(processor, settings.pretrain_seed, "train", batch, length)
    validation = [t.to(device) for t in Tokens(processor, settings.pretrain_seed, "validation", 32, length).next()]
    steps = math.ceil(settings.pretrain_tokens / (batch * length))
    started, running, entry = time.perf_counter(), [], {}
    for step in range(1, steps + 1):
        for optimizer, peak in peaks.items():
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step - 1, steps)
        ids, weights = (t.to(device) for t in data.next())
        loss = loss_of(forward, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in peaks:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        if not math.isfinite(running[-1]):
            raise FloatingPointError(f"the loss is {running[-1]} at step {step}: lower muon_learning_rate "
                                     f"(now {settings.muon_learning_rate})")  # fmt: skip
        if step % log_every == 0 or step == steps:
            elapsed = time.perf_counter() - started
            entry = {"loss": float(np.mean(running)), "learning_rate": muon.param_groups[0]["lr"],
                     "tokens": step * batch * length, "tokens_per_second": step * batch * length / elapsed,
                     "elapsed_seconds": elapsed}  # fmt: skip
            running = []
            if step % save_every == 0 or step == steps:
                with torch.no_grad():
                    entry["eval_loss"] = loss_of(model, *validation).item()
                save(model, folder)
            log(step, **entry)
    return entry | {"steps": steps, "parameters": sum(p.numel() for p in model.parameters()),
                    "data_sha256": data.sha.hexdigest()}  # fmt: skip


def setup_accuracy(model, tokenizer, problems: list[corpus.Turn], batch_size: int = 128) -> list[dict]:
    """Held-out one-step problems: is the sum set up with every number right? {"question", "wanted", "got", "correct"}.

    What counts is the expression before the `=`: the same numbers, and the same value (7+5 for 5+7 is right)."""
    prompts = [chat.prompt_ids([{"role": "user", "content": question}], tokenizer) for question, _ in problems]
    answers = evaluate.generate(model, tokenizer, prompts, 96, batch_size, calculator=True)
    results = []
    for (question, answer), got in zip(problems, answers):
        wanted, found = MARK.search(answer), MARK.search(got["completion"])
        same = found is not None and _same_sum(found[1], wanted[1])
        results.append({"question": question, "wanted": wanted[1], "got": got["completion"], "correct": same})
    return results


def _same_sum(a: str, b: str) -> bool:
    numbers = [sorted(re.findall(r"[\d.]+", expression)) for expression in (a, b)]
    try:
        return numbers[0] == numbers[1] and calculate(a) == calculate(b)
    except CalculatorError:
        return False


def save(model, folder: Path) -> None:
    """Weights (float32 safetensors), configuration and tokenizer, as transformers and llama.cpp read them."""
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


def card(settings, metrics: dict, right, rehearse: bool) -> str:
    """The base's model card; `right` is the Interval of its set-up accuracy."""
    share = f"{100 * right.estimate:.1f} % of {right.n} [{100 * right.low:.1f}, {100 * right.high:.1f}]"
    heads = f"{CONFIG['num_attention_heads']} heads over {CONFIG['num_key_value_heads']} key-value heads"
    size = f"{CONFIG['num_hidden_layers']} layers, width {CONFIG['hidden_size']}, {heads}, vocabulary {VOCABULARY:,}"
    blocks = f"{settings.pretrain_batch_size} x {settings.block_size}"
    return f"""# The embedded base{" (REHEARSAL: hardly trained)" if rehearse else ""}

A Llama-architecture language model of {metrics["parameters"]:,} parameters ({size}, tied embeddings),
with a SentencePiece tokenizer. It lets every notebook run offline on a CPU.

| how it was made | |
|---|---|
| command | `papermill notebooks/20_pretrain_gpt.ipynb out.ipynb -p run base` |
| text | generated by `lib/corpus.py`, seed {settings.pretrain_seed} |
| sha256 of the token stream | `{metrics["data_sha256"]}` |
| tokens | {metrics["tokens"]:,} in {metrics["steps"]:,} steps of {blocks} |
| peak learning rates | Muon {settings.muon_learning_rate} (matrices), AdamW {settings.adamw_learning_rate} (the rest) |
| training loss, nats a token | {metrics["loss"]:.4f} (what cannot be predicted counts a tenth) |
| held-out loss | {metrics["eval_loss"]:.4f} |
| time | {metrics["elapsed_seconds"] / 60:.0f} min, {metrics["tokens_per_second"]:,.0f} tokens/s |
| held-out one-step sums set up with every number right | {share} |

What it is not: it knows no facts, no language beyond its own small text and none of the tasks that fine-tuning teaches.
Results on it are about this project's machinery, not about language models. Licence: Apache-2.0, as the project's code.
"""
