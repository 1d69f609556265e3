"""A served model asked by token ids, as many questions at once as the server has slots, with the calculator."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lib.engine.llamacpp import LlamaCppError, Server
from lib.run import progress


class Served:
    """A served file in place of a transformers model, so that `evaluate.ask` asks, decodes and grades both alike."""

    def __init__(self, server: Server):
        self.server = server

    def parameters(self):
        """Prompts are made on the CPU."""
        yield torch.empty(0)

    def generate(self, input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, logits_processor,
                 **ignored):  # fmt: skip
        """(B, T + new) token ids: greedy answers to left-padded prompts (B, T), one slot of the server each.

        Which slots compute together is chance, and changes the last bits: a near tie can fall otherwise the next time.
        The calculator is `evaluate`'s own: the server stops at each `=`, and the calculator says what follows."""
        calculator = logits_processor[0] if logits_processor else None
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask)]

        def answer(prompt: list[int], slot: int) -> list[int]:
            return self._answer(prompt, max_new_tokens, set(eos_token_id), calculator, slot)

        found = in_slots(self.server, answer, prompts)
        longest = max(map(len, found))
        padded = [new + [pad_token_id] * (longest - len(new)) for new in found]
        return torch.cat([input_ids, torch.tensor(padded, dtype=input_ids.dtype)], dim=1)

    def _answer(self, prompt: list[int], most: int, ends: set[int], calculator: Any, slot: int) -> list[int]:
        new: list[int] = []
        while len(new) < most:
            got = self.server.complete(prompt + new, most - len(new), ["="] if calculator else [], slot)
            if not got:
                raise LlamaCppError(f"{self.server.model.name}: the server answered without a token")
            end = next((place for place, token in enumerate(got) if token in ends), None)
            if end is not None:
                return new + got[: end + 1]
            new += got
            if calculator and new[-1] in calculator.equals:
                new += calculator.value((prompt + new)[-220:])[: most - len(new)]
        return new


def in_slots(server: Server, work: Callable[[Any, int], Any], items: Sequence[Any]) -> list:
    """work(item, slot) of each item in their order, as many at once as the server has slots."""
    slots, done = list(range(server.slots)), []

    def one(item: Any) -> Any:
        slot = slots.pop()  # there are as many threads as slots
        try:
            return work(item, slot)
        finally:
            slots.append(slot)
            done.append(slot)
            progress.tell(len(done), len(items), f"answers by {server.model.name}")

    with ThreadPoolExecutor(server.slots) as pool:
        return list(pool.map(one, items))
