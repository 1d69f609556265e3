"""A served model, asked by token ids, with the calculator: a question for each slot of the server at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lib.engine.llamacpp import LlamaCppError, Server
from lib.engine.marks import Marks
from lib.run import progress


class Served:
    """A served file in place of a transformers model: `evaluate.ask` asks, decodes and grades both alike."""

    def __init__(self, server: Server):
        self.server = server

    def parameters(self):
        """Prompts are made on the CPU."""
        yield torch.empty(0)

    def generate(self, input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, logits_processor,
                 **ignored):  # fmt: skip
        """(B, T + new) token ids: greedy answers to left-padded prompts (B, T), one slot of the server each.

        Which slots compute together is chance, and changes the last bits: a near tie can fall otherwise next time.
        With the calculator the server stops at each `=`, and `Marks` says what is written there."""
        filling = next((processor.marks for processor in logits_processor), None)
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask)]

        def answer(prompt: list[int], slot: int) -> list[int]:
            return self._answer(prompt, max_new_tokens, set(eos_token_id), filling, slot)

        answers = in_slots(self.server, answer, prompts)
        rows = [torch.tensor(new, dtype=input_ids.dtype) for new in answers]
        return torch.cat([input_ids, pad_sequence(rows, batch_first=True, padding_value=pad_token_id)], dim=1)

    def _answer(self, prompt: list[int], most: int, ends: set[int], filling: Marks | None,
                slot: int) -> list[int]:  # fmt: skip
        new: list[int] = []
        stops = []
        if filling:
            new, stops = filling.value(prompt)[:most], ["="]
        while len(new) < most:
            tokens = self.server.complete(prompt + new, most - len(new), stops, slot)
            if not tokens:
                raise LlamaCppError(f"{self.server.model.name}: the server answered without a token")
            for token in tokens:
                written = [token]
                if filling:
                    written = filling.instead(prompt + new, token)
                new += written
                if token in ends:
                    return new
                if written != [token]:
                    break
        return new[:most]


def in_slots(server: Server, work: Callable[[Any, int], Any], items: Sequence[Any]) -> list:
    """work(item, slot) of each item in their order, as many at once as the server has slots."""
    slots, done = list(range(server.slots)), []

    def work_in_slot(item: Any) -> Any:
        slot = slots.pop()  # there are as many threads as slots
        try:
            return work(item, slot)
        finally:
            slots.append(slot)
            done.append(slot)
            progress.tell(len(done), len(items), f"answers by {server.model.name}")

    with ThreadPoolExecutor(server.slots) as pool:
        return list(pool.map(work_in_slot, items))
