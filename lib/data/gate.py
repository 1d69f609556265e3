"""The data gate: which rows may not be trained on or trusted, and why.

What a duplicate is. Rows made from one template differ in their numbers alone and are different questions, while one
question in other words has the same numbers. So numbers and words are two signals. The numbers of a question form a
multiset (`1,200`, `$1200` and `twelve hundred` are the same; 1 is left out, as `one` is mostly no number). Its words
form a set without case, order, endings and function words, so that order and punctuation say nothing. MinHash (Broder
1997, by datasketch) over the numbers, or over the words where there is no number, finds candidates in linear time; the
Jaccard similarities of both then decide, and how alike the words must be hangs on the golds: `_alike` has the numbers.

Who goes. The training row, never the test row; of two copies in one split the later one.
"""

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasketch import MinHash, MinHashLSH

from lib import SharpenError
from lib.data import chat, formats
from lib.grade import scoring
from lib.grade.calculator import wrong_marks, wrong_sums

Splits = dict[str, list[dict]]  # rows by split: train, validation, test_seen, test
DROPPED_FROM = ("train", "validation")
CHECKS = {
    "exact duplicate": "asks what another row asks, but for case, spaces and punctuation",
    "near duplicate": "asks what another row asks, in other words",
    "shared group": "comes from a template, page or conversation of a held-out row",
    "rejected answer": "has a rejected answer that is empty, or is the chosen one",
    "too long": "would be cut at max_length, before its end token",
    "prompt tokens": "has a prompt whose tokens are no prefix of the row's tokens",
    "nothing learnt": "has no supervised token",
    "end token": "does not end with a supervised end token",
    "pad token": "is padded with the end token",
    "contradicted gold": "ends with another answer than its gold, or its working",
    "wrong arithmetic": "shows a calculation with a wrong result",
}


class GateError(SharpenError):
    """The data must not be trained on; the message names the rows and the remedy."""


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


@dataclass(frozen=True)
class Audit:
    """What was found. `lengths` and `learnt` are tokens by row id: of the whole row, and of its supervised part."""

    findings: tuple[Finding, ...]
    checked: dict[str, int]  # rows by check
    lengths: dict[str, int]
    learnt: dict[str, int]

    def table(self) -> list[dict]:
        """A line a check: rows checked, findings, how many of them matter, and the first rows found."""
        lines = []
        for check, meaning in CHECKS.items():
            found = sorted((f for f in self.findings if f.check == check), key=lambda f: not f.matters)
            first = ", ".join(f.row + (f" = {f.other}" if f.other else "") for f in found[:2])
            counts = {"rows": self.checked[check], "findings": len(found), "that matter": sum(f.matters for f in found)}
            lines.append({"check": check, "a row that": meaning} | counts | {"first": first})
        return lines


def audit(
    splits: Splits, tokenizer, max_length: int, benchmarks: Splits | None = None, pairs: bool = False
) -> Audit:  # fmt: skip
    """Every check on every row. Training rows are compared with the benchmarks' rows too (see `read_benchmark`).

    With `pairs` the rejected answers are trained on too: a row is as long as the longer of its two answers makes it."""
    lengths, learnt, findings = {}, {}, [*duplicates(splits, benchmarks), *shared_groups(splits)]
    for split, rows in splits.items():
        for row in rows:
            findings += [Finding(check, split, row["id"], why, matters=matters) for check, why, matters in _answer(row)]
            if pairs and not (rejected := normal(row.get("rejected") or "")):
                findings.append(Finding("rejected answer", split, row["id"], "it has no rejected answer"))
                continue
            if pairs and rejected == normal(row["messages"][-1]["content"]):
                same = "the rejected answer is the chosen one, but for case, spaces and punctuation"
                findings.append(Finding("rejected answer", split, row["id"], same))
            try:
                both = [row, formats.with_rejected(row)] if pairs else [row]
                encoded = [chat.encode(one, tokenizer) for one in both]
            except chat.EncodingError as error:
                findings.append(Finding(error.check, split, row["id"], str(error)))
                continue
            lengths[row["id"]] = length = max(len(one["input_ids"]) for one in encoded)
            learnt[row["id"]] = sum(label != chat.IGNORED for one in encoded for label in one["labels"])
            if length > max_length and split in DROPPED_FROM:
                reason = f"{length} tokens, {length - max_length} more than max_length = {max_length}"
                findings.append(Finding("too long", split, row["id"], reason))
    first = next(((split, row["id"]) for split, rows in splits.items() for row in rows), None)
    if first and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        reason = f"every row is padded with {tokenizer.pad_token!r}, and ends with {tokenizer.eos_token!r}"
        findings.append(Finding("pad token", *first, reason))
    counts = {split: len(rows) for split, rows in splits.items()}
    checked = dict.fromkeys(CHECKS, sum(counts.values()))
    checked["rejected answer"] *= pairs
    checked["too long"] = sum(counts.get(split, 0) for split in DROPPED_FROM)
    return Audit(tuple(findings), checked, lengths, learnt)


def enforce(splits: Splits, findings: Iterable[Finding], gate: str) -> tuple[Splits, list[dict]]:
    """(the rows that stay, a line of rejected.jsonl for each that goes): none goes unless `gate` is "drop".

    GateError, before anything is dropped, where gate "stop" meets a finding that matters; where "stop" or "drop" meets
    a row without a supervised token (the template is wrong, not the row); and where "drop" would leave less than half
    of a split. "drop" lets stand what no training row is to blame for: findings in test rows, and the pad token."""
    found = [finding for finding in findings if finding.matters and gate != "report"]
    silent = [finding for finding in found if finding.check == "nothing learnt"]
    if silent or (found and gate == "stop"):
        remedy = "mend the chat template" if silent else "mend or remove the rows, or let gate = 'drop' leave them out"
        raise GateError(f"{_told(silent or found)}\n{remedy}; gate = 'report' only shows what is found")
    going = defaultdict(list)
    for finding in found:
        if finding.split in DROPPED_FROM and finding.check != "pad token":
            going[finding.split, finding.row].append(finding)
    kept = {split: [row for row in rows if (split, row["id"]) not in going] for split, rows in splits.items()}
    for split, rows in splits.items():
        if 2 * len(kept[split]) < len(rows):
            why = _told([finding for finding in found if finding.split == split])
            few = f"the gate leaves {len(kept[split])} of {len(rows)} rows of {split}"
            remedy = "look at the data, base_model and max_length; gate = 'report' only shows what is found"
            raise GateError(f"{few}: {remedy}\n{why}")
    rejected = [
        {"place": f"{split}/{row['id']}", "reason": "; ".join(finding.reason for finding in going[split, row["id"]]),
         "checks": [finding.check for finding in going[split, row["id"]]],
         "others": [finding.other for finding in going[split, row["id"]] if finding.other], "row": row}
        for split, rows in splits.items() for row in rows if (split, row["id"]) in going
    ]  # fmt: skip
    return kept, rejected


def spread(counts: dict[str, int]) -> dict[str, float]:
    """Smallest, median and largest of counts by row, such as the supervised tokens."""
    values = list(counts.values()) or [0]
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


# --- duplicates -------------------------------------------------------------------------------------------------------
PERMUTATIONS, BANDS = 64, (16, 4)  # finds a pair of similarity 0.8 with probability 0.9998, of 0.6 with 0.89
STOP = frozenset(
    "a an the of to in on at by for from with and or but if is are was were be been it its he she they him her them "
    "his their this that these those as so than then there what which how many much do does did will would can could "
    "has have had i you we my your our not no".split()
)
SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " \
        "seventeen eighteen nineteen"  # fmt: skip
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: float(value) for value, word in enumerate(SMALL.split())}
VALUES |= {word: 10.0 * value for value, word in enumerate(TENS.split(), 2)}
VALUES |= {"twice": 2.0, "double": 2.0, "thrice": 3.0, "triple": 3.0, "half": 0.5}
SCALES = {"dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9}
TOKEN = re.compile(r"(?<![\w.)])-(?=\.?\d)|\d[\d,]*(?:\.\d+)?|\.\d+|[^\W\d_]+")


@dataclass(frozen=True)
class _Question:
    """A row's question as it is compared."""

    split: str
    id: str
    group: str | None
    gold: float | str | bool | None
    text: str  # `normal`
    sequence: list[float]  # the numbers as they come
    words: frozenset[str]
    numbers: frozenset[str]  # the multiset of numbers as a set: the second 5 is another member than the first


def normal(text: str) -> str:
    """The text without case, spacing and punctuation; numbers keep their points, signs and units (8-4 is not 8+4)."""
    return " ".join(re.findall(r"\.?\d(?:[\d.,]*\d)?|\w+|[-+*/^%$€£¥<>=]", text.lower()))


def read(text: str, ones: bool = False) -> tuple[list[float], frozenset[str]]:
    """(the numbers in order, in digits or words, 1 only if asked; the content words by their first five letters)."""
    numbers, words, value, spelt, sign = [], set(), None, False, 1.0  # value: the number so far
    for token in [*TOKEN.findall(text.lower()), ""]:
        digits = token[:1].isdecimal() or token[:1] == "."
        if token in SCALES:
            value, spelt = (1.0 if value is None else value) * SCALES[token], True
        elif spelt and token == "and" and value % 100 == 0:
            continue  # two hundred and fifty
        elif spelt and token in VALUES and _continues(value, VALUES[token]):
            value += VALUES[token]
        else:
            if value is not None:
                numbers.append(sign * value)
                sign = 1.0
            value, spelt = float(token.replace(",", "")) if digits else VALUES.get(token), token in VALUES
            if token == "-":
                sign = -1.0
            elif value is None and len(token) > 1 and token not in STOP:
                words.add(token[:5].rstrip("s"))
    return [number for number in numbers if ones or abs(number) != 1], frozenset(words)


def _continues(value: float, word: float) -> bool:
    """Does a number word go on with the one before it: `twenty` with `five`, `two hundred` with `fifty`?"""
    tens, hundreds = value % 100 >= 20 and value % 10 == 0, value >= 100 and value % 100 == 0
    return tens and 0 < word < 10 or hundreds and 2 <= word < 100


def duplicates(splits: Splits, benchmarks: Splits | None = None) -> list[Finding]:
    """Rows that ask what another row asks: for each, the most alike row of each split that was put before its own.

    The order is benchmarks, test, test_seen, validation, train, so that `other` is the row to keep."""
    last = [name for name in ("test_seen", "validation", "train") if name in splits]
    order = [*(name for name in splits if name not in last), *last]
    known = [question for name, rows in (benchmarks or {}).items() for question in _questions(name, rows)]
    asked = known + [question for name in order for question in _questions(name, splits[name])]
    index, findings = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS), []
    members = ([word.encode() for word in question.numbers or question.words] for question in asked)
    for number, sketch in enumerate(MinHash.generator(members, num_perm=PERMUTATIONS)):
        if number >= len(known):
            findings += _most_alike(asked[number], (asked[other] for other in index.query(sketch)), benchmarks or {})
        index.insert(number, sketch)
    return findings


def _questions(split: str, rows: list[dict]) -> Iterator[_Question]:
    for row in rows:
        asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
        sequence, words = read(asked[-1])
        numbers = frozenset(f"{n} {k}" for n, times in Counter(sequence).items() for k in range(times))
        gold = (row.get("gold") or {}).get("value")
        yield _Question(split, row["id"], row.get("group"), gold, normal(asked[-1]), sequence, words, numbers)


def _most_alike(row: _Question, others: Iterable[_Question], benchmarks: Splits) -> list[Finding]:
    best = {}
    for other in others:
        if (other.split not in benchmarks or row.split in DROPPED_FROM) and (found := _alike(row, other)):
            best[other.split] = max(best.get(other.split, (0.0,)), (found[0], other.id, found[1]))
    findings = []
    for split, (alikeness, id, reason) in best.items():
        check = "exact duplicate" if alikeness == 2 else "near duplicate"
        leak = row.split == "train" and split != row.split
        matters = row.split in DROPPED_FROM and (leak or check == "exact duplicate")
        reason = f"{check} of {id} in {split}: {reason}"
        findings.append(Finding(check, row.split, row.id, reason, id, split, matters))
    return findings


def _alike(a: _Question, b: _Question) -> tuple[float, str] | None:
    """(how alike two questions are, in what), 2 where they are equal; None where they are different questions.

    The limits lie between what `tests/benchmarks/bench_gate.py` plants and what GSM8K and the generated tasks hold."""
    numbers = _jaccard(a.numbers, b.numbers)
    if numbers < 0.6 and (a.numbers or b.numbers):
        return None
    numeric = _is_number(a.gold) and _is_number(b.gold)
    same = a.gold == b.gold is not None or (numeric and math.isclose(a.gold, b.gold, rel_tol=1e-3))
    golds = "equal golds" if same else "DIFFERENT golds" if numeric else "no golds to compare"  # names may be changed
    if a.text == b.text:
        return 2.0, f"the same question, {golds}"
    words = _jaccard(a.words, b.words)
    few = 0.0 if numbers == 1 and len(a.numbers) >= 4 else 0.1  # chance seldom gives two questions four equal numbers
    if not a.numbers and not b.numbers:
        duplicate = words >= 0.6
    elif same:
        duplicate = numbers >= 0.8 and words >= few or numbers >= 0.6 and words >= 0.25
    elif numeric:  # numbers that changed places ask something else, and so may rows of one page
        duplicate = a.sequence == b.sequence and words >= 0.6 and (a.group is None or a.group != b.group)
    else:
        duplicate = numbers >= 0.8 and words >= 0.1 + few or numbers >= 0.6 and words >= 0.4
    reason = f"{numbers:.0%} of the numbers and {words:.0%} of the words, {golds}"
    return ((numbers + words) / 2, reason) if duplicate else None


def _jaccard(a: frozenset, b: frozenset) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def read_benchmark(path: Path) -> list[dict]:
    """Rows of a benchmark's JSON lines, as far as duplicates need them: questions, and golds where they are numbers.

    A line holds `messages`, or a `question`, `problem` or `prompt` (with the `body` that comes before it, if any) and
    perhaps an `answer`. GateError names the line that does not."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(_benchmark_row(line, f"{path.name}:{number}"))
    if not rows:
        raise GateError(f"benchmark {path} has no rows")
    return rows


def _benchmark_row(line: str, place: str) -> dict:
    try:
        fields = json.loads(line)
        gold, body = fields.get("gold"), fields.get("body", "")
        if "messages" in fields:
            question = [message["content"] for message in fields["messages"] if message["role"] == "user"][-1]
        else:
            question = next(fields[name] for name in ("question", "problem", "prompt") if name in fields)
            answer = scoring.parse(str(fields.get("answer", "")))
            gold = {"value": answer.value} if answer else None
        content = {"role": "user", "content": f"{body} " * bool(body) + question}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, StopIteration):
        raise GateError(f"benchmark {place}: no JSON object with messages, question, problem or prompt") from None
    return {"id": place, "messages": [content], "gold": gold if isinstance(gold, dict) else None}


# --- groups, golds ----------------------------------------------------------------------------------------------------
def shared_groups(splits: Splits) -> list[Finding]:
    """Training rows whose group (template, page, conversation) the test has too: a leak. What the other held-out splits
    share with the training rows is wanted (`test_seen`: trained phrasings, other numbers), and is told once a group."""
    train, findings = defaultdict(list), []
    for row in splits.get("train", []):
        train[row["group"]].append(row["id"])
    for split in (name for name in splits if name != "train"):
        for group, other in {row["group"]: row["id"] for row in reversed(splits[split])}.items():
            ids = train.get(group, [])
            for id in ids if split == "test" else ids[:1]:
                reason = f"its group {group!r} ({len(ids)} training rows) is in {split} too"
                findings.append(Finding("shared group", "train", id, reason, other, split, split == "test"))
    return findings


def _answer(row: dict) -> Iterator[tuple[str, str, bool]]:
    """(check, reason, does it matter): where the worked answer contradicts the row's gold, or its own arithmetic.

    A gold may have been read from the very marker that it is graded by (GSM8K), so what the marker says must also stand
    in the working before it, if only in cents for dollars or in thousands."""
    answer = row["messages"][-1]["content"]
    if gold := row.get("gold"):
        verdict = scoring.grade(answer, gold)
        working = re.sub(r"(?<=\d) (?=\d{3}\b)", "", answer.rpartition("####")[0])
        if not verdict.correct:
            reads = f"reads {verdict.value!r}" if verdict.value is not None else "has no marked answer"
            yield "contradicted gold", f"gold {gold['value']!r}, but the worked answer {reads} ({verdict.error})", True
        elif working.strip() and _is_number(verdict.value) and not _stands_in(working, abs(verdict.value)):
            yield "contradicted gold", f"{verdict.value!r} is marked, but stands nowhere in the working", True
    if wrong := [*wrong_marks(answer), *wrong_sums(answer)]:
        yield "wrong arithmetic", ", ".join(wrong[:3]), False


def _stands_in(working: str, value: float) -> bool:
    numbers = [*read(working, ones=True)[0], *(float(digits) for digits in re.findall(r"\d+(?:\.\d+)?", working))]
    scaled = (abs(number) * scale for number in numbers for scale in (1, 100, 0.01, 1000, 0.001))
    return not numbers or any(math.isclose(number, value, rel_tol=1e-3, abs_tol=0.005) for number in scaled)


def _is_number(gold) -> bool:
    return isinstance(gold, int | float) and not isinstance(gold, bool)


def _told(findings: list[Finding]) -> str:
    """The findings as a user reads them: how many of which check, and the first three of each."""
    by_check = defaultdict(list)
    for finding in findings:
        by_check[finding.check].append(f"{finding.split}/{finding.row}: {finding.reason}")
    return "\n".join(f"{len(lines)} x {check} ({CHECKS[check]}), such as\n  " + "\n  ".join(lines[:3])
                     for check, lines in by_check.items())  # fmt: skip
