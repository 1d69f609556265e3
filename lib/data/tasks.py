"""Quantitative finance problems whose gold is recomputed from the text shown.

A kind (`kinds.py`) has phrasings with typed slots. A problem is drawn, written out, and then *read
back* by `solve`, which sees only the question: numbers rounded for display can so never disagree
with the gold. Each kind keeps three phrasings and a range of parameters out of training; the test
split is made of those.
"""

import re
import zlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache

import numpy as np

from lib.data.kinds import HELD_OUT_PHRASINGS, KINDS, SLOTS, Draw

SPLITS = {"train": 0, "validation": 1, "test": 2, "test_seen": 3}  # test: phrasings and ranges never trained on
DEMO_KINDS = (
    "compounding", "maximum drawdown", "Sharpe comparison", "volatility annualisation", "position sizing",
    "risk-adjusted ranking",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One question with its worked answer and typed gold (see docs/data.md for the row)."""

    id: str
    kind: str
    level: int  # 1 to 3, by steps of reasoning
    template: int
    question: str
    reasoning: str
    gold: dict = field(hash=False)

    def row(self) -> dict:
        """The problem in the project's row schema; rows of one template form a group."""
        return {
            "id": self.id, "source": "quant_tasks", "kind": self.kind, "level": self.level,
            "messages": [
                {"role": "user", "content": self.question}, {"role": "assistant", "content": self.reasoning},
            ],
            "gold": self.gold, "group": f"{self.kind}/{self.template}",
        }  # fmt: skip


def _write(template: str, slots: dict) -> str:
    text = re.sub(r"{(\w+)}", lambda m: SLOTS[m[1]].write(slots[m[1]]), template)
    return text[0].upper() + text[1:]


@cache
def _pattern(template: str) -> re.Pattern:
    parts, pattern = re.split(r"{(\w+)}", template), ""
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pattern += re.escape(part)
        elif f"(?P<{part}>" in pattern:
            pattern += f"(?P={part})"
        else:
            pattern += f"(?P<{part}>{SLOTS[part].pattern})"
    return re.compile(pattern)


def solve(question: str) -> tuple[str, dict]:
    """(worked answer, gold) from the shown text alone. ValueError if no kind's phrasing fits."""
    for kind in KINDS.values():
        for template in kind.phrasings:
            if match := _pattern(template).fullmatch(question):
                slots = {name: SLOTS[name].read(text) for name, text in match.groupdict().items()}
                steps, final, gold = kind.answer(slots)
                return "\n".join([*steps, f"#### {final}"]), gold
    raise ValueError(f"no kind of task reads {question[:120]!r}")


def generate(split: str, count: int, seed: int, kinds: tuple[str, ...] = DEMO_KINDS) -> list[Problem]:
    """`count` problems, the kinds in turn. Each has its own random stream [seed, split, kind,
    index], the kind by its place in KINDS, so that more rows or more kinds extend a data set and
    never reshuffle it. No question is given twice, and none stands in two splits, whatever the
    seeds and the phrasings: a hash of the worked answer, which is the same in all of them, says
    which split it may be in. ValueError for an unknown split or kind, for no kind or one named
    twice, and where there are fewer questions."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    for name in kinds:
        if name not in KINDS:
            nearest = get_close_matches(name, KINDS, 1)
            meant = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(f"unknown kind {name!r}; {meant}choose from {', '.join(KINDS)}")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds = {kinds!r}: name at least one kind, and each once")
    numbers = {name: number for number, name in enumerate(KINDS)}
    unseen, problems, seen = split == "test", [], set()
    for number in range(count):
        index, which = divmod(number, len(kinds))
        kind = KINDS[kinds[which]]
        phrasings = len(kind.phrasings)
        trained = phrasings - HELD_OUT_PHRASINGS
        draw = Draw(np.random.default_rng([seed, SPLITS[split], numbers[kind.name], index]), unseen)
        for _ in range(1000):
            template, slots = draw.count((0, trained), (trained, phrasings)), kind.draw(draw)
            if slots is None:
                continue
            question = _write(kind.phrasings[template], slots)
            if question in seen:
                continue
            reasoning, gold = solve(question)
            if not unseen and _split_of(reasoning) != split:
                continue
            if not _tells(question, gold):
                break
        else:
            raise ValueError(f"no {index + 1} different questions of {kind.name!r} for {split}: ask for fewer rows")
        seen.add(question)
        id = f"{split}-{seed}-{kind.name.replace(' ', '_')}-{index:04d}"
        problems.append(Problem(id, kind.name, kind.level, template, question, reasoning, gold))
    return problems


def _split_of(reasoning: str) -> str:
    """The one split that a problem with a trained phrasing may be in: eight in ten may be trained
    on."""
    return ("validation", "test_seen", *["train"] * 8)[zlib.crc32(reasoning.encode()) % 10]


def _tells(question: str, gold: dict) -> bool:
    """Does the answer stand in the question, so that copying a number could hit it by accident?"""
    if gold["unit"] == "choice":
        return gold["value"] in question
    return gold["value"] in {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", question)}
