"""What answers prompts, by one interface, and a model behind a server that does: asked by token ids, with the
calculator, a question for each slot of the server at once."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from lib import SharpenError
from lib.engine.marks import Marks

PARTS = 16  # answers of a slot that are journaled together: few wait for the longest of them


class EngineError(SharpenError):
    """An engine is missing, fails, or cannot answer for this model; the message says what to do."""


@runtime_checkable
class Engine(Protocol):
    """What answers prompts. `evaluate` orders, journals, decodes and grades for every engine alike."""

    name: str  # as reports say it
    part: int  # prompts that are answered, and journaled, together

    def answers(
        self, prompts: list[list[int]], max_new_tokens: int, ends: Collection[int], filling: Marks | None,
        tell: Callable[[int], None], stop: str = "", draws: Any = None,
    ) -> list[list[int]]:  # fmt: skip
        """The new token ids of each prompt: through one of `ends`, after which nothing counts, or cut.

        `filling` writes the calculator's values; `tell` hears how many have ended, but not of the last. After the
        text `stop` nothing counts either. `draws` (`judge.sampling`) choose the tokens, where it is not done greedily.
        """


class Served:
    """A model behind a server with `slots` and `complete(ids, count, stop, slot)`: llama-server, or vLLM.

    `request`: what each request says besides, as which of a server's models is asked. Which slots compute together is
    chance, and changes the last bits: a near tie can fall otherwise next time."""

    def __init__(self, server: Any, name: str = "llama-server", **request: Any):
        self.server, self.name, self.request = server, name, request
        self.part = PARTS * server.slots

    def answers(
        self, prompts: list[list[int]], max_new_tokens: int, ends: Collection[int], filling: Marks | None = None,
        tell: Callable[[int], None] = lambda ended: None, stop: str = "", draws: Any = None,
    ) -> list[list[int]]:  # fmt: skip
        if draws:
            raise EngineError(f"{self.name} answers greedily only: samples are drawn by torch")

        def answer(prompt: list[int], slot: int) -> list[int]:
            return self._answer(prompt, max_new_tokens, ends, filling, slot)

        def now_and_then(done: int) -> None:
            if done % self.server.slots == 0 and done < len(prompts):
                tell(done)

        return in_slots(self.server, answer, prompts, now_and_then)

    def _answer(self, prompt: list[int], most: int, ends: Collection[int], filling: Marks | None,
                slot: int) -> list[int]:  # fmt: skip
        """With the calculator the server stops at each `=`, and `Marks` says what is written there."""
        new: list[int] = []
        stops = []
        if filling:
            new, stops = filling.value(prompt)[:most], ["="]
        while len(new) < most:
            tokens = self.server.complete(prompt + new, most - len(new), stops, slot, **self.request)
            if not tokens:
                raise EngineError(f"{self.server.model.name}: the server answered without a token")
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


def in_slots(server: Any, work: Callable[[Any, int], Any], items: Sequence[Any],
             tell: Callable[[int], None]) -> list:  # fmt: skip
    """work(item, slot) of each item in their order, as many at once as the server has slots; `tell` counts them."""
    slots, done = list(range(server.slots)), []

    def work_in_slot(item: Any) -> Any:
        slot = slots.pop()  # there are as many threads as slots
        try:
            return work(item, slot)
        finally:
            slots.append(slot)

    with ThreadPoolExecutor(server.slots) as pool:
        for result in pool.map(work_in_slot, items):
            done.append(result)
            tell(len(done))
    return done
