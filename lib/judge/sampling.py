"""Sampled answers: each token by a random number of its own, so that a batch changes nothing."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import LogitsProcessor

NUCLEUS = 256  # tokens that seldom have less than top_p; a whole vocabulary costs as much as the model


def draws(rows: Sequence[dict], seed: Sequence[int], tokens: int, temperature: float, top_p: float) -> "Draws":
    """A stream of random numbers for each row and sample, by seed, id and sample number: no other row matters."""
    numbers = np.empty((len(rows), tokens))
    for place, row in enumerate(rows):
        id = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:16])
        numbers[place] = np.random.default_rng([*seed, row["sample"], id]).random(tokens)
    return Draws(torch.from_numpy(numbers), temperature, top_p)


@dataclass(frozen=True)
class Draws:
    """Sampled answers: a number from 0 to 1 for each token of each row says which token is taken.

    So an answer is the same whatever else is in its batch, as long as its logits are."""

    numbers: torch.Tensor  # (rows, tokens), 64 bit
    temperature: float
    top_p: float

    def of(self, rows: Sequence[int]) -> "Draws":
        """Those of some rows, in this order."""
        return replace(self, numbers=self.numbers[list(rows)])

    def tokens(self, logits: torch.Tensor, rows: Sequence[int], places: Sequence[int]) -> list[int]:
        """The next token of each row from its logits (B, V): the first at which the probability summed
        in the vocabulary's order passes the row's number at this place of its answer."""
        shares, ids = nucleus(logits.float(), self.temperature, self.top_p)  # (B, K)
        summed = shares.cumsum(-1)
        numbers = self.numbers[list(rows), list(places)].to(summed.device)
        chosen = torch.searchsorted(summed, (numbers * summed[:, -1])[:, None], right=True)
        return ids.gather(-1, chosen).squeeze(-1).tolist()


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities in 64 bit, token ids), (B, K) each, in the vocabulary's order, of what is drawn from.

    The likeliest tokens that have `top_p` of the probability together; others among them have 0."""
    if top_p == 1:
        shares = (logits.double() / temperature).softmax(-1)
        return shares, torch.arange(shares.shape[-1], device=shares.device).expand_as(shares)
    size, vocabulary = NUCLEUS, logits.shape[-1]
    total = (logits / temperature).logsumexp(-1, keepdim=True)
    while True:
        largest, ids = logits.topk(min(size, vocabulary))
        shares = (largest.double() / temperature - total).exp()
        if size >= vocabulary or shares.sum(-1).min() >= top_p:
            break
        size *= 8
    needed = shares.cumsum(-1) - shares < top_p  # what the likelier ones have does not suffice
    least = shares.masked_fill(~needed, 1).amin(-1, keepdim=True)
    ids, order = ids.sort(-1)
    return shares.masked_fill(shares < least, 0).gather(-1, order), ids


class Drawing(LogitsProcessor):
    """`Draws` for transformers' `generate`, which stays greedy: only the token drawn keeps a score.

    It comes before `evaluate.Calculator`, which so sees what was drawn, as in `decode`."""

    def __init__(self, draws: Draws, prompt: int):
        self.draws, self.prompt = draws, prompt

    def __call__(self, input_ids, scores):
        place, rows = input_ids.shape[1] - self.prompt, range(len(scores))
        drawn = self.draws.tokens(scores, rows, [place] * len(rows))
        scores = torch.full_like(scores, -math.inf)
        scores[list(rows), drawn] = 0.0
        return scores
