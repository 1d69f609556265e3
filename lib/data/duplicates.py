"""Rows that ask what another row asks.

Evidence. How much a word, a number or a sentence says is learnt from the rows themselves: of one that a share p of
the rows holds, log2(1/p) bits (Sparck Jones 1972). So an instruction, a template's words and `Can you show me the
steps?` say next to nothing, and names and amounts much. Years are words of half the weight.

What is a duplicate. The weighted words and the numbers of two texts overlap; how much they must is lower where golds
are equal and rare. Golds that differ, years or numbers that were exchanged, and single words that were exchanged or a
negation that was put in between otherwise equal texts make another question. What both texts hold word for word (a
page, a preface) is then left out: what remains must be alike too, so that two questions on one page are two. A turn
of a conversation is compared as well as the whole.

Cost. Weighted MinHash (Broder 1997; weights by exponential ranks, Cohen 1997) finds candidates among neighbours in
buckets, WINDOW at most in each, so that a template of many rows costs no more than others: it grows linearly. A
long conversation costs at most MOST_TURNS texts of `questions.LONGEST` characters, each compared with MOST_OTHERS.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lib.data.questions import (
    Content,
    answers,
    asked,
    before_answer,
    content,
    names,
    normal,
    read,
    sentences,
    tokens,
    turns,
)

Splits = dict[str, list[dict]]  # rows by split: train, validation, test_seen, test
DROPPED_FROM = ("train", "validation")
PUT_AFTER = {"test_seen": 1, "validation": 2, "train": 3}  # the test; of two rows the later one goes
MOST_BITS = 8.0  # that one word says, however rare: a new word of a paraphrase must not outweigh the others
PRIOR_ROWS = 100  # a small set is taken as a part of so many more rows of other words
OFTEN_ROWS, OFTEN_SHARE = 5, 0.005  # a sentence of so many rows is boilerplate, and is compared as one word
MOST_TURNS = 16  # of one conversation that are compared, the longest ones
PERMUTATIONS, NUMBER_BAND, WORD_BAND = 64, 4, 2  # a pair of Jaccard similarity 0.35 is missed once in 65 times
WINDOW, MOST_OTHERS = 16, 24
ROUNDED = 0.003  # golds that are closer may be one number
FEW, RARE = 3.0, 5.0  # bits that are little (what an eighth of the rows have), and that chance seldom gives twice


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a row; `other` is the id of the row that it collides with.

    `matters`: gate "stop" raises and "drop" leaves the row out of training; else it is only shown.
    """

    check: str  # one of CHECKS
    split: str
    row: str
    reason: str
    other: str | None = None
    other_split: str | None = None  # or a benchmark's file name
    matters: bool = True


def duplicates(splits: Splits, benchmarks: Splits | None = None) -> list[Finding]:
    """Rows that ask what another row asks: for each, the most alike row of each split that was put
    before its own.

    The order is benchmarks, test, test_seen, validation, train, so that `other` is the row to keep.
    Not compared are a benchmark's rows with each other and with the test; within a split the rows of one
    `conversation`, preference pairs of which either answer differs and, but for exact copies, rows of one group: a
    page's questions are alike, and belong together."""
    benchmarks = benchmarks or {}
    order = sorted(splits, key=lambda name: PUT_AFTER.get(name, 0))
    parts = benchmarks | {name: splits[name] for name in order}
    rows = [row for part in parts.values() for row in part]
    split_of = [name for name, part in parts.items() for _ in part]

    def compared(row: int, other: int) -> bool:
        own, others = split_of[row], split_of[other]
        if own == others:
            return own not in benchmarks and _may_repeat(rows[row], rows[other])
        return own in DROPPED_FROM or others not in benchmarks

    best: dict[tuple[int, str], tuple[float, int, str]] = {}  # by row and the other's split
    for row, other in _copies(rows, split_of):
        if compared(row, other):
            reason = f"the same question, {_told(_gold(rows[row]), _gold(rows[other]))}"
            best[row, split_of[other]] = 2.0, other, reason
    texts = _Texts(rows)
    for first, second in _candidates(texts):
        other, row = texts.units[first].row, texts.units[second].row
        place = row, split_of[other]
        related = split_of[row] == split_of[other] and rows[row].get("group") == rows[other].get("group") is not None
        if row != other and not related and best.get(place, (0.0,))[0] < 2 and compared(row, other):
            found = _alike(texts, first, second, split_of[row] == split_of[other])
            if found:
                best[place] = max(best.get(place, (0.0, 0, "")), (found[0], other, found[1]))
    return [_finding(rows[row], split_of[row], rows[other], split, alikeness, reason)
            for (row, split), (alikeness, other, reason) in sorted(best.items())]  # fmt: skip


def _finding(row: dict, split: str, other: dict, other_split: str, alikeness: float, reason: str) -> Finding:
    check = "near duplicate"
    if alikeness == 2:
        check = "another gold" if _same(_gold(row), _gold(other)) is False else "exact duplicate"
    leak = split == "train" and split != other_split
    matters = split in DROPPED_FROM and (leak or check != "near duplicate")
    return Finding(check, split, row["id"], f"{check} of {other['id']} in {other_split}: {reason}",
                   other["id"], other_split, matters)  # fmt: skip


def _may_repeat(row: dict, other: dict) -> bool:
    """May two rows of one split be duplicates?"""
    if row.get("conversation") is not None and row["conversation"] == other.get("conversation"):
        return False
    return "rejected" not in row or "rejected" not in other or answers(row) == answers(other)


def _copies(rows: list[dict], split_of: list[str]) -> Iterator[tuple[int, int]]:
    """(row, the last row of each split before it that asks exactly the same)."""
    known: dict[int, int] = {}  # by hash: a text takes more memory
    names = dict.fromkeys(split_of)
    for place, (row, split) in enumerate(zip(rows, split_of, strict=True)):
        text = before_answer(row)
        own = hash((text, split, answers(row) if "rejected" in row else None))
        keys = {name: hash((text, name)) for name in names}
        yield from ((place, known[key]) for name, key in keys.items() if name != split and key in known)
        if own in known:
            yield place, known[own]
        known[own] = known[keys[split]] = place


# --- golds ----------------------------------------------------------------------------------------
def _gold(row: dict) -> float | str | bool | None:
    value = (row.get("gold") or {}).get("value")
    return normal(value) if isinstance(value, str) else value


def _same(gold, other) -> bool | None:
    """None where there is nothing to compare, or one may be the other rounded, or in percent."""
    if gold is None or other is None:
        return None
    if not is_number(gold) or not is_number(other):
        return gold == other if type(gold) is type(other) else None
    if math.isclose(gold, other, rel_tol=1e-4):
        return True
    whole = gold == int(gold) and other == int(other)
    if not whole and math.isclose(gold, other, rel_tol=ROUNDED):
        return None
    percent = any(math.isclose(100 * one, two, rel_tol=ROUNDED) for one, two in ((gold, other), (other, gold)))
    return None if percent else False


def is_number(gold) -> bool:
    return isinstance(gold, int | float) and not isinstance(gold, bool)


def _told(gold, other) -> str:
    return {None: "no golds to compare", True: "equal golds", False: "DIFFERENT golds"}[_same(gold, other)]


# --- what is compared -----------------------------------------------------------------------------
class _Unit(NamedTuple):
    """A text that is compared."""

    row: int
    turn: int | None  # None: all that the row asks
    answered: bool  # by the row's gold?


class _Texts:
    """The texts of rows, and what was learnt from them: `bits` by number of a feature, in `ids`."""

    def __init__(self, rows: list[dict]):
        self.rows, self.units = rows, [unit for place, row in enumerate(rows) for unit in _units(place, row)]
        self.golds, self.size = Counter(map(_gold, rows)), len(rows) + PRIOR_ROWS
        said = np.fromiter((hash(sentence) for row in rows for sentence in sentences(asked(row))), np.int64)
        hashes, counts = np.unique(said, return_counts=True)
        self.frequent = set(hashes[counts >= max(OFTEN_ROWS, OFTEN_SHARE * len(rows))].tolist())
        self.ids: dict[str, int] = {}
        flat, ends = array("i"), array("q")
        for number in range(len(self.units)):
            features = sorted(self.content(self.parts(number)).features)  # sets differ in their order from run to run
            flat.extend([self.ids.setdefault(feature, len(self.ids)) for feature in features])
            ends.append(len(flat))
        self.flat, self.ends = np.array(flat, np.int32), np.array(ends)  # the features of all texts, one after another
        whole = np.array([unit.turn is None for unit in self.units], bool)
        of_rows = self.flat[np.repeat(whole, np.diff(self.ends, prepend=0))]
        counts = np.maximum(np.bincount(of_rows, minlength=len(self.ids)), 1)
        self.bits = np.minimum(np.log2(self.size / counts), MOST_BITS)
        self.parts_and_content = lru_cache(maxsize=4096)(self._parts_and_content)

    def parts(self, number: int) -> dict[str, str]:
        unit = self.units[number]
        row = self.rows[unit.row]
        return sentences(asked(row) if unit.turn is None else turns(row)[unit.turn])

    def content(self, parts: dict[str, str]) -> Content:
        frequent = {key for key in parts if hash(key) in self.frequent}
        found = content("\n".join(part for key, part in parts.items() if key not in frequent))
        theirs = content("\n".join(parts[key] for key in frequent)).numbers if frequent else frozenset()
        return replace(found, sentences=frozenset(frequent), their_numbers=theirs)

    def _parts_and_content(self, number: int) -> tuple[dict[str, str], Content]:
        parts = self.parts(number)
        return parts, self.content(parts)

    def weigh(self, features: frozenset[str]) -> float:
        """Bits that features say; one that no text holds is as rare as any."""
        return math.fsum(self.bits[self.ids[feature]] for feature in features)  # in whatever order

    def is_main(self, number: int) -> bool:
        """Is a text most of what its row asks?"""
        unit = self.units[number]
        if unit.turn is None:
            return True
        whole = self.content(sentences(asked(self.rows[unit.row])))
        return 2 * self.weigh(self.parts_and_content(number)[1].features) >= self.weigh(whole.features)


def _units(place: int, row: dict) -> list[_Unit]:
    """All that a row asks, and each turn where there is more than one text."""
    whole, said = [_Unit(place, None, True)], turns(row)
    if row.get("kind") == "text" or sum(message["role"] != "assistant" for message in row["messages"]) == 1:
        return whole
    longest = sorted(range(len(said)), key=lambda turn: len(said[turn]), reverse=True)[:MOST_TURNS]
    return whole + [_Unit(place, turn, turn == len(said) - 1) for turn in sorted(longest)]


# --- candidates -----------------------------------------------------------------------------------
def _signatures(texts: _Texts, weights: np.ndarray, rng) -> np.ndarray:
    """(texts, PERMUTATIONS): two texts agree in as large a share of a row as their weighted Jaccard similarity says;
    infinite where a text has no feature of any weight."""
    starts = np.concatenate([[0], texts.ends[:-1]]).astype(np.int64)
    filled = texts.ends > starts
    signatures = np.full((len(starts), PERMUTATIONS), np.inf, np.float32)
    for permutation in range(PERMUTATIONS if filled.any() else 0):
        with np.errstate(divide="ignore"):
            ranks = (rng.exponential(size=len(weights)) / weights).astype(np.float32)
        signatures[filled, permutation] = np.minimum.reduceat(ranks[texts.flat], starts[filled])
    return signatures


def _candidates(texts: _Texts) -> list[tuple[int, int]]:
    """Pairs of texts, the earlier first, that may be alike: at most MOST_OTHERS for the later one."""
    rng = np.random.default_rng(0)  # any seed will do; one, so that findings repeat
    number = np.array([feature[0] == "#" for feature in texts.ids], bool)
    year = np.array([feature.isdecimal() for feature in texts.ids], bool)
    weights = np.maximum(texts.bits, 0.01) * np.where(year, 0.5, 1.0)
    by_number, by_all = _signatures(texts, weights * number, rng), _signatures(texts, weights, rng)
    golds = [_gold(texts.rows[unit.row]) if unit.answered else None for unit in texts.units]
    golds = np.array([float(gold) if is_number(gold) else math.nan for gold in golds])
    found = []
    for signatures, band_size, others in ((by_number, NUMBER_BAND, by_all), (by_all, WORD_BAND, by_number)):
        for first in range(0, PERMUTATIONS, band_size):
            band = signatures[:, first : first + band_size]
            filled = np.flatnonzero(np.isfinite(band[:, 0]))
            order = filled[np.lexsort([others[filled, first], others[filled, first + 1], *band[filled].T])]
            for step in range(1, WINDOW + 1):
                left, right = order[:-step], order[step:]
                kept = (band[left] == band[right]).all(1)
                if not kept.any():
                    break
                pairs = np.sort(np.stack([left[kept], right[kept]], 1), 1)
                pairs = pairs[~_differ(golds[pairs[:, 0]], golds[pairs[:, 1]])]
                in_numbers = (by_number[pairs[:, 0]] == by_number[pairs[:, 1]]).mean(1)
                in_all = (by_all[pairs[:, 0]] == by_all[pairs[:, 1]]).mean(1)
                without = ~np.isfinite(by_number[pairs[:, 1], 0])
                likely = (in_numbers >= 0.4) & (in_all >= np.where(without, 0.2, 0.08))
                found.append(np.column_stack([pairs, 100 * (in_numbers + in_all)]).astype(np.int32)[likely])
    pairs = np.unique(np.concatenate([np.zeros((0, 3), np.int32), *found]), axis=0)
    pairs = pairs[np.lexsort([-pairs[:, 2], pairs[:, 1]])]  # of each later text the most alike first
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 1], pairs[:, 1])
    return [(first, second) for first, second, _ in pairs[rank < MOST_OTHERS].tolist()]


def _differ(golds: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which golds `_same` surely tells apart; nan is no number."""
    close = [np.isclose(scale * golds, others, rtol=2 * ROUNDED, atol=0) for scale in (0.01, 1, 100)]
    return np.isfinite(golds) & np.isfinite(others) & ~np.any(close, axis=0)


# --- evidence -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Evidence:
    """How two texts agree."""

    numbers: float  # Jaccard similarity; 0 where neither has any
    words: float  # weighted Jaccard similarity, of sentences that many rows hold too
    covered: float  # the share of the words of the one that the other has, the larger of both
    number_bits: float  # that they share
    bits: float  # in all; words depend on each other, and count but 60 %
    numeric: bool  # has either a number?
    rich: bool  # do they share numbers that chance seldom gives?
    exchanged_numbers: bool  # has each a number that the other has not?
    exchanged_years: bool


def _evidence(texts: _Texts, a: Content, b: Content) -> _Evidence:
    weigh = texts.weigh
    numbers_of_a = a.numbers | a.their_numbers & b.numbers  # one may say in its own words what is boilerplate elsewhere
    numbers_of_b = b.numbers | b.their_numbers & a.numbers
    both, either = numbers_of_a & numbers_of_b, numbers_of_a | numbers_of_b
    words_of_a, words_of_b = a.words | a.sentences, b.words | b.sentences
    number_bits, words, years = weigh(both), weigh(words_of_a & words_of_b), weigh(a.years & b.years) / 2
    only_a, only_b = weigh(words_of_a - words_of_b), weigh(words_of_b - words_of_a)
    return _Evidence(
        numbers=len(both) / max(len(either), 1), words=words / max(words + only_a + only_b, 1e-9),
        covered=max((words + years) / max(words + years + only, 1e-9) for only in (only_a, only_b)),
        number_bits=number_bits, bits=number_bits + years + 0.6 * words, numeric=bool(either),
        rich=len(both) >= 2 and number_bits >= 10,
        exchanged_numbers=bool(numbers_of_a - both and numbers_of_b - both),
        exchanged_years=bool(a.years - b.years and b.years - a.years),
    )  # fmt: skip


def _alike(texts: _Texts, first: int, second: int, within: bool) -> tuple[float, str] | None:
    """(how alike two texts are, in what); None where they ask different things.

    The limits lie between what `tests/benchmarks/bench_gate.py` plants and what sets without duplicates hold."""
    units = [texts.units[number] for number in (first, second)]
    rows = [texts.rows[unit.row] for unit in units]
    golds = [_gold(row) if unit.answered else None for unit, row in zip(units, rows)]
    same = _same(*golds)
    if same is False or within and all(unit.answered for unit in units) and golds.count(None) == 1:
        return None  # the rows of one set have golds of one sort
    if golds == [None, None] and all(unit.answered for unit in units) and not _answers_agree(*rows):
        return None
    gold_bits = 0.0
    if same:
        gold_bits = min(math.log2(texts.size / texts.golds[golds[0]]), MOST_BITS)
        gold_bits *= gold_bits >= FEW  # one of a few choices
    (parts_a, a), (parts_b, b) = texts.parts_and_content(first), texts.parts_and_content(second)
    whole = _evidence(texts, a, b)
    told = f"{whole.numbers:.0%} of the numbers and {whole.words:.0%} of the words, {_told(*golds)}"
    main = texts.is_main(first) or texts.is_main(second)
    if parts_a.keys() == parts_b.keys() and main and (a.words or a.numbers):
        return 1.0, told
    chance = math.log2(texts.size)  # bits that some pair of the rows shares by chance
    if whole.bits + gold_bits < (chance if main else chance + 10) or whole.exchanged_years:
        return None
    if not _overlap(whole, gold_bits, rows[0].get("kind") == "text"):
        return None
    if whole.words >= 0.75 and whole.numbers == 1 and whole.number_bits < 16 and gold_bits < 6:
        if _numbers_moved(parts_a, parts_b):
            return None
    rest_a = {key: part for key, part in parts_a.items() if key not in parts_b}
    rest_b = {key: part for key, part in parts_b.items() if key not in parts_a}
    if rest_a and rest_b and not _rest_is_alike(texts, rest_a, rest_b, gold_bits, a):
        return None
    return min(1.0, (whole.numbers + whole.words) / 2 if whole.numeric else whole.words), told


def _numbers_moved(parts_a: dict, parts_b: dict) -> bool:
    """Do numbers come in another order, though no sentences changed places?"""
    in_a, in_b = ([tuple(read(part)[0]) for part in parts.values()] for parts in (parts_a, parts_b))
    return sum(in_a, ()) != sum(in_b, ()) and sorted(filter(None, in_a)) != sorted(filter(None, in_b))


def _answers_agree(row: dict, other: dict) -> bool:
    """Do two answers without golds share a word or a number, or is there nothing to compare?"""
    one, two = (content(row["messages"][-1].get("content") or "").features for row in (row, other))
    return not one or not two or bool(one & two)


def _overlap(whole: _Evidence, gold_bits: float, running_text: bool) -> bool:
    """Do two texts share enough to be one question?"""
    words, limit = whole.words, max(0.45 - 0.04 * gold_bits, 0.1)
    if running_text:
        return words >= 0.6 and (whole.numbers >= 0.6 or not whole.numeric)
    if not whole.numeric:
        return words >= max(limit, 0.3) or words >= 0.3 and whole.covered >= 0.8
    if gold_bits < RARE and (whole.exchanged_numbers or not whole.rich):
        return whole.numbers >= 0.8 and words >= limit and not whole.exchanged_numbers
    return (whole.numbers >= 0.8 and words >= _few(whole, gold_bits)
            or whole.numbers >= 0.6 and words >= (0.25 if gold_bits >= RARE else 0.4))  # fmt: skip


def _few(evidence: _Evidence, gold_bits: float) -> float:
    """How alike the words must be where the numbers are: the more these say, the less."""
    said = evidence.number_bits + gold_bits
    return 0.0 if said >= 24 else 0.06 if said >= 15 else 0.1 if said >= 12 else 0.2


def _rest_is_alike(texts: _Texts, rest_a: dict, rest_b: dict, gold_bits: float, whole: Content) -> bool:
    """Is what two texts do not hold word for word one question in other words?"""
    a, b = texts.content(rest_a), texts.content(rest_b)
    rest = _evidence(texts, a, b)
    if rest.exchanged_years or rest.exchanged_numbers and gold_bits < RARE:
        return False
    if rest.rich or gold_bits >= RARE:
        return rest.words >= (_few(rest, gold_bits) if rest.numbers >= 0.8 else 0.1)
    little = 2 * texts.weigh(a.features) < texts.weigh(whole.features)  # a question on a page
    counted = rest.number_bits >= 2 * FEW
    limit = 0.5 if little else 0.3 if counted else 0.45
    if rest.words < max(limit - 0.04 * gold_bits, 0.25) and not (rest.words >= 0.25 and rest.covered >= 0.8):
        return False
    return counted or gold_bits >= FEW or not _exchanged(rest_a, rest_b, a.words, b.words)


NEGATIONS = frozenset("not no never without except isn don doesn didn wasn won aren cannot".split())


def _exchanged(rest_a: dict, rest_b: dict, a: frozenset[str], b: frozenset[str]) -> bool:
    """Has each text a name that the other has not? Or are they the same but for words that were exchanged, or for a
    negation?"""
    text_a, text_b = " ".join(rest_a.values()), " ".join(rest_b.values())
    if names(text_a) - b and names(text_b) - a:
        return True
    in_a, in_b = Counter(tokens(text_a)), Counter(tokens(text_b))
    if (in_a & in_b).total() < 0.5 * max(in_a.total(), in_b.total()):
        return False
    a, b = (read(" ".join(left.elements()))[1] for left in (in_a - in_b, in_b - in_a))
    return bool((a ^ b) & NEGATIONS or a - b and b - a)
