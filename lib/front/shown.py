"""What a client sees of an answer while it is written: whole marks or none, and nothing of a text that stops it."""

import re
from collections.abc import Sequence

MARK = re.compile(r"<<[^<>]{1,300}>>")
OPEN = re.compile(r"<(?:<(?:[^<>]{1,300}>?)?)?\Z")  # the end of a text that may yet become a mark


class Shown:
    """An answer's text, given on as far as it is settled.

    `marks`: "show" gives a mark once it is whole, "hide" keeps it in `hidden`, None knows no marks. `stops`: texts
    that end the answer and are no part of it."""

    def __init__(self, marks: str | None, stops: Sequence[str] = ()):
        self.marks, self.stops = marks, stops
        self.hidden: list[str] = []
        self.held = ""  # not settled yet
        self.stopped = False

    def add(self, text: str) -> str:
        """What is settled now that `text` has been written."""
        self.held += text
        if self.marks == "hide":
            self.hidden += MARK.findall(self.held)
            self.held = MARK.sub("", self.held)
        settled = len(self.held)
        if self.marks and (open_mark := OPEN.search(self.held)):
            settled = open_mark.start()
        if self._stop(settled if self.marks == "hide" else len(self.held)):
            return self._give(len(self.held))
        for stop in self.stops:
            longest = min(len(stop) - 1, len(self.held))
            begun = next((size for size in range(longest, 0, -1) if self.held.endswith(stop[:size])), 0)
            settled = min(settled, len(self.held) - begun)
        return self._give(settled)

    def rest(self) -> str:
        """What was held back, once nothing more is written."""
        self._stop(len(self.held))
        return self._give(len(self.held))

    def _stop(self, end: int) -> bool:
        """Cut what is held at the first text that stops the answer."""
        places = [place for stop in self.stops if (place := self.held.find(stop, 0, end)) >= 0]
        if places:
            self.held, self.stopped = self.held[: min(places)], True
        return self.stopped

    def _give(self, count: int) -> str:
        given, self.held = self.held[:count], self.held[count:]
        return given
