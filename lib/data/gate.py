"""The data gate: which rows may not be trained on or trusted, and why.

What a duplicate is. Rows made from one template differ in their numbers alone and are different
questions, while one question in other words has the same numbers. So numbers and words are two
signals. The numbers of a question form a multiset (`1,200`, `$1200` and `twelve hundred` are the
same; 1 is left out, as `one` is mostly no number). Its words form a set without case, order,
endings and function words, so that order and punctuation say nothing. MinHash (Broder 1997, by
datasketch) over the numbers, or over the words where there is no number, finds candidates in linear
time; the Jaccard similarities of both then decide; how alike the words must be depends on the
golds: `_alike` has the numbers.

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
from lib.data import chat, chats
from lib.grade import scoring
from lib.grade.calculator import wrong_marks, wrong_sums
from lib.grade.numerals import every_number

Splits = dict[str, list[dict]]  # rows by split: train, validation, test_seen, test
DROPPED_FROM = ("train", "validation")
CHECKS = {
    "exact duplicate": "asks what another row asks, but for case, spaces and punctuation",
    "near duplicate": "asks what another row asks, in other words",
    "shared group": "comes from a template, page or conversation of a held-out row",
    "template": "cannot be written by the chat template",
    "control token": "holds a token that steers the model, such as the end token",
    "lost part": "has tools, their calls or results, or names that the chat template does not write",
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
    """What was found. `lengths` and `learnt` are tokens by row id: of the whole row, and of its
    supervised part."""

    findings: tuple[Finding, ...]
    checked: dict[str, int]  # rows by check
    lengths: dict[str, int]
    learnt: dict[str, int]

    def of(self, check: str) -> list[Finding]:
        """The findings of one check, those that matter first."""
        return sorted((f for f in self.findings if f.check == check), key=lambda f: not f.matters)

    def table(self) -> list[dict]:
        """A line a check: rows checked, findings, how many of them matter, and the first rows
        found."""
        lines = []
        for check, meaning in CHECKS.items():
            findings = self.of(check)
            first = [" = ".join(filter(None, [finding.row, finding.other])) for finding in findings[:2]]
            lines.append({
                "check": check, "a row that": meaning, "rows": self.checked[check], "findings": len(findings),
                "that matter": sum(finding.matters for finding in findings), "first": ", ".join(first),
            })  # fmt: skip
        return lines

    def doubtful_pairs(self, splits: Splits, benchmarks: Splits) -> list[dict]:
        """The near duplicates with both questions, those that matter first: for a reader to
        judge."""
        rows = [row for part in (*splits.values(), *benchmarks.values()) for row in part]
        asked = {row["id"]: _asked(row) for row in rows}
        return [{"matters": f.matters, "row": asked[f.row], "other": asked[f.other], "why": f.reason}
                for f in self.of("near duplicate")]  # fmt: skip

    def left_in(self, rows: list[dict]) -> list[Finding]:
        """The findings that matter whose row is among these training rows; the pad token is no
        row's fault."""
        ids = {row["id"] for row in rows}
        return [f for f in self.findings
                if f.matters and f.split == "train" and f.row in ids and f.check != "pad token"]  # fmt: skip


def audit(
    splits: Splits, tokenizer, max_length: int, benchmarks: Splits | None = None, pairs: bool = False
) -> Audit:  # fmt: skip
    """Every check on every row. Training rows are compared with the benchmarks' rows too (see
    `read_benchmark`).

    With `pairs` the rejected answers are trained on too: a row is as long as the longer of its two
    answers makes it."""
    lengths, learnt, findings = {}, {}, [*duplicates(splits, benchmarks), *shared_groups(splits)]
    places = [(split, row) for split, rows in splits.items() for row in rows]
    for split, row in places:
        id, versions = row["id"], [row]
        for check, reason in _answer_faults(row):
            findings.append(Finding(check, split, id, reason, matters=check != "wrong arithmetic"))
        if pairs:
            rejected = normal(row.get("rejected") or "")
            if not rejected:
                findings.append(Finding("rejected answer", split, id, "it has no rejected answer"))
                continue
            if rejected == normal(row["messages"][-1]["content"]):
                same = "the rejected answer is the chosen one, but for case, spaces and punctuation"
                findings.append(Finding("rejected answer", split, id, same))
            versions.append(chats.with_rejected(row))
        try:
            encoded = [chat.encode(version, tokenizer) for version in versions]
        except chat.EncodingError as error:
            findings.append(Finding(error.check, split, id, str(error)))
            continue
        for check, reason, matters in chat.faults(row, tokenizer):
            findings.append(Finding(check, split, id, reason, matters=matters))
        lengths[id] = max(len(version["input_ids"]) for version in encoded)
        learnt[id] = sum(label != chat.IGNORED for version in encoded for label in version["labels"])
        if lengths[id] > max_length and split in DROPPED_FROM:
            over = f"{lengths[id] - max_length} more than max_length = {max_length}"
            findings.append(Finding("too long", split, id, f"{lengths[id]} tokens, {over}"))
    if places and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        split, row = places[0]
        reason = f"every row is padded with {tokenizer.pad_token!r}, and ends with {tokenizer.eos_token!r}"
        findings.append(Finding("pad token", split, row["id"], reason))
    checked = dict.fromkeys(CHECKS, len(places))
    checked["too long"] = sum(split in DROPPED_FROM for split, _ in places)
    if not pairs:
        checked["rejected answer"] = 0
    return Audit(tuple(findings), checked, lengths, learnt)


def enforce(splits: Splits, findings: Iterable[Finding], gate: str) -> tuple[Splits, list[dict]]:
    """(the rows that stay, a line of rejected.jsonl for each that goes): none goes unless `gate` is
    "drop".

    GateError, before anything is dropped, where gate "stop" meets a finding that matters; where
    "stop" or "drop" meets a row without a supervised token (the template is wrong, not the row);
    and where "drop" would leave less than half of a split. "drop" lets stand what no training row
    is to blame for: findings in test rows, and the pad token."""
    if gate == "report":
        return splits, []
    findings = [finding for finding in findings if finding.matters]
    silent = [finding for finding in findings if finding.check == "nothing learnt"]
    if silent:
        raise GateError(f"{_summary(silent)}\nmend the chat template; gate = 'report' only shows what is found")
    if findings and gate == "stop":
        raise GateError(f"{_summary(findings)}\nmend or remove the rows, or let gate = 'drop' leave them out; "
                        f"gate = 'report' only shows what is found")  # fmt: skip
    faults = defaultdict(list)
    for finding in findings:
        if finding.split in DROPPED_FROM and finding.check != "pad token":
            faults[finding.split, finding.row].append(finding)
    kept, rejected = {split: [] for split in splits}, []
    for split, rows in splits.items():
        for row in rows:
            of_row = faults.get((split, row["id"]))
            if of_row is None:
                kept[split].append(row)
                continue
            rejected.append({
                "place": f"{split}/{row['id']}", "reason": "; ".join(finding.reason for finding in of_row),
                "checks": [finding.check for finding in of_row],
                "others": [finding.other for finding in of_row if finding.other], "row": row,
            })  # fmt: skip
        if 2 * len(kept[split]) < len(rows):
            why = _summary([finding for finding in findings if finding.split == split])
            few = f"the gate leaves {len(kept[split])} of {len(rows)} rows of {split}"
            remedy = "look at the data, base_model and max_length; gate = 'report' only shows what is found"
            raise GateError(f"{few}: {remedy}\n{why}")
    return kept, rejected


def _summary(findings: list[Finding]) -> str:
    """The findings as a user reads them: how many of which check, and the first three of each."""
    by_check = defaultdict(list)
    for finding in findings:
        by_check[finding.check].append(f"{finding.split}/{finding.row}: {finding.reason}")
    lines = []
    for check, reasons in by_check.items():
        lines += [f"{len(reasons)} x {check} ({CHECKS[check]}), such as", *(f"  {why}" for why in reasons[:3])]
    return "\n".join(lines)


# --- what rows are like ---------------------------------------------------------------------------
def spread(counts: dict[str, int]) -> dict[str, float]:
    """Smallest, median and largest of counts by row, such as the supervised tokens."""
    values = list(counts.values()) or [0]
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def by_kind(rows: list[dict], values: dict[str, float]) -> dict[str, list[float]]:
    """The values, which stand by row id, of each kind of rows; a row without a value is left
    out."""
    grouped = defaultdict(list)
    for row in rows:
        if row["id"] in values:
            grouped[row["kind"]].append(values[row["id"]])
    return grouped


def numeric_golds(rows: list[dict]) -> dict[str, float]:
    """The golds that are numbers, by row id."""
    golds = {row["id"]: row["gold"]["value"] for row in rows if row["gold"]}
    return {id: value for id, value in golds.items() if isinstance(value, int | float)}


def repeated_ids(splits: Splits) -> list[str]:
    """The ids that several rows have, in whichever splits."""
    counts = Counter(row["id"] for rows in splits.values() for row in rows)
    return [id for id, count in counts.items() if count > 1]


# --- duplicates -----------------------------------------------------------------------------------
PUT_AFTER = {"test_seen": 1, "validation": 2, "train": 3}  # the test; of two rows the later one goes
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
    """The text without case, spacing and punctuation; numbers keep their points, signs and units
    (8-4 is not 8+4)."""
    return " ".join(re.findall(r"\.?\d(?:[\d.,]*\d)?|\w+|[-+*/^%$€£¥<>=]", text.lower()))


def read(text: str, ones: bool = False) -> tuple[list[float], frozenset[str]]:
    """(the numbers in order, in digits or words, 1 only if asked; the content words by their first
    five letters)."""
    numbers, words, value, spelt, sign = [], set(), None, False, 1.0  # value: the number so far
    for token in [*TOKEN.findall(text.lower()), ""]:
        if token in SCALES:
            if value is None:
                value = 1.0
            value, spelt = value * SCALES[token], True
        elif spelt and token == "and" and value % 100 == 0:
            continue  # two hundred and fifty
        elif spelt and token in VALUES and _continues(value, VALUES[token]):
            value += VALUES[token]
        else:
            if value is not None:
                numbers.append(sign * value)
                sign = 1.0
            value, spelt = VALUES.get(token), token in VALUES
            if token[:1].isdecimal() or token[:1] == ".":
                value = float(token.replace(",", ""))
            elif token == "-":
                sign = -1.0
            elif value is None and len(token) > 1 and token not in STOP:
                words.add(token[:5].rstrip("s"))
    return [number for number in numbers if ones or abs(number) != 1], frozenset(words)


def _continues(value: float, word: float) -> bool:
    """Does a number word go on with the one before it: `twenty` with `five`, `two hundred` with
    `fifty`?"""
    tens, hundreds = value % 100 >= 20 and value % 10 == 0, value >= 100 and value % 100 == 0
    return tens and 0 < word < 10 or hundreds and 2 <= word < 100


def duplicates(splits: Splits, benchmarks: Splits | None = None) -> list[Finding]:
    """Rows that ask what another row asks: for each, the most alike row of each split that was put
    before its own.

    The order is benchmarks, test, test_seen, validation, train, so that `other` is the row to
    keep."""
    benchmarks = benchmarks or {}
    order = sorted(splits, key=lambda name: PUT_AFTER.get(name, 0))
    known = [question for name, rows in benchmarks.items() for question in _questions(name, rows)]
    asked = known + [question for name in order for question in _questions(name, splits[name])]
    index, findings = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS), []
    sketches = MinHash.generator(map(_signal, asked), num_perm=PERMUTATIONS)
    for number, sketch in enumerate(sketches):
        if number >= len(known):
            others = [asked[other] for other in index.query(sketch)]
            findings += _most_alike(asked[number], others, benchmarks)
        index.insert(number, sketch)
    return findings


def _signal(question: _Question) -> list[bytes]:
    """What MinHash compares."""
    return [member.encode() for member in question.numbers or question.words]


def _asked(row: dict) -> str:
    """The last question of a row's conversation."""
    return [message["content"] for message in row["messages"] if message["role"] == "user"][-1]


def _questions(split: str, rows: list[dict]) -> Iterator[_Question]:
    for row in rows:
        text = _asked(row)
        sequence, words = read(text)
        numbers = frozenset(f"{n} {k}" for n, times in Counter(sequence).items() for k in range(times))
        gold = (row.get("gold") or {}).get("value")
        yield _Question(split, row["id"], row.get("group"), gold, normal(text), sequence, words, numbers)


def _most_alike(row: _Question, others: list[_Question], benchmarks: Splits) -> list[Finding]:
    best, findings = {}, []
    for other in others:
        if other.split in benchmarks and row.split not in DROPPED_FROM:
            continue
        alike = _alike(row, other)
        if alike:
            alikeness, reason = alike
            best[other.split] = max(best.get(other.split, (0.0,)), (alikeness, other.id, reason))
    for split, (alikeness, id, reason) in best.items():
        check = "exact duplicate" if alikeness == 2 else "near duplicate"
        leak = row.split == "train" and split != row.split
        matters = row.split in DROPPED_FROM and (leak or check == "exact duplicate")
        reason = f"{check} of {id} in {split}: {reason}"
        findings.append(Finding(check, row.split, row.id, reason, id, split, matters))
    return findings


def _alike(a: _Question, b: _Question) -> tuple[float, str] | None:
    """(how alike two questions are, in what), 2 where they are equal; None where they are different
    questions.

    The limits lie between what `tests/benchmarks/bench_gate.py` plants and what GSM8K and the
    generated tasks hold."""
    numbers = _jaccard(a.numbers, b.numbers)
    if numbers < 0.6 and (a.numbers or b.numbers):
        return None
    numeric = _is_number(a.gold) and _is_number(b.gold)
    same = a.gold == b.gold is not None or (numeric and math.isclose(a.gold, b.gold, rel_tol=1e-3))
    golds = "no golds to compare"  # names may be changed
    if same:
        golds = "equal golds"
    elif numeric:
        golds = "DIFFERENT golds"
    if a.text == b.text:
        return 2.0, f"the same question, {golds}"
    words, few = _jaccard(a.words, b.words), 0.1
    if numbers == 1 and len(a.numbers) >= 4:  # chance seldom gives two questions four equal numbers
        few = 0.0
    if not a.numbers and not b.numbers:
        duplicate = words >= 0.6
    elif same:
        duplicate = numbers >= 0.8 and words >= few or numbers >= 0.6 and words >= 0.25
    elif numeric:  # numbers that changed places ask something else, and so may rows of one page
        duplicate = a.sequence == b.sequence and words >= 0.6 and (a.group is None or a.group != b.group)
    else:
        duplicate = numbers >= 0.8 and words >= 0.1 + few or numbers >= 0.6 and words >= 0.4
    if not duplicate:
        return None
    return (numbers + words) / 2, f"{numbers:.0%} of the numbers and {words:.0%} of the words, {golds}"


def _jaccard(a: frozenset, b: frozenset) -> float:
    return len(a & b) / max(len(a | b), 1)


def read_benchmark(path: Path) -> list[dict]:
    """Rows of a benchmark's JSON lines, as far as duplicates need them: questions, and golds where
    they are numbers.

    A line holds `messages`, or a `question`, `problem` or `prompt` (with the `body` that comes
    before it, if any) and perhaps an `answer`. GateError names the line that does not."""
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
        gold, body = fields.get("gold"), fields.get("body")
        if not isinstance(gold, dict):
            gold = None
        if "messages" in fields:
            question = _asked(fields)
        else:
            question = next(fields[name] for name in ("question", "problem", "prompt") if name in fields)
            answer = scoring.parse(str(fields.get("answer", "")))
            gold = {"value": answer.value} if answer else None
        if not isinstance(question, str):
            raise TypeError
        if body:
            question = f"{body} {question}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, StopIteration):
        raise GateError(f"benchmark {place}: no JSON object with messages, question, problem or prompt") from None
    return {"id": place, "messages": [{"role": "user", "content": question}], "gold": gold}


# --- groups, golds --------------------------------------------------------------------------------
def shared_groups(splits: Splits) -> list[Finding]:
    """Training rows whose group (template, page, conversation) the test has too: a leak. What the
    other held-out splits share with the training rows is wanted (`test_seen`: trained phrasings,
    other numbers), and is told once a group."""
    train, findings = defaultdict(list), []
    for row in splits.get("train", []):
        train[row["group"]].append(row["id"])
    for split, rows in splits.items():
        if split == "train":
            continue
        for group, other in {row["group"]: row["id"] for row in reversed(rows)}.items():
            ids, leak = train.get(group, []), split == "test"
            reason = f"its group {group!r} ({len(ids)} training rows) is in {split} too"
            for id in ids if leak else ids[:1]:
                findings.append(Finding("shared group", "train", id, reason, other, split, leak))
    return findings


def _answer_faults(row: dict) -> list[tuple[str, str]]:
    """(check, reason) where the worked answer contradicts the row's gold, or its own arithmetic.

    A gold may have been read from the very marker that it is graded by (GSM8K), so what the marker
    says must also stand in the working before it, if only in cents for dollars or in thousands."""
    answer, gold, faults = row["messages"][-1]["content"], row.get("gold"), []
    if gold:
        verdict = scoring.grade(answer, gold)
        working = answer.rpartition("####")[0]
        if not verdict.correct:
            reads = "has no marked answer"
            if verdict.value is not None:
                reads = f"reads {verdict.value!r}"
            reason = f"gold {gold['value']!r}, but the worked answer {reads} ({verdict.error})"
            faults.append(("contradicted gold", reason))
        elif working.strip() and _is_number(verdict.value) and not _stands_in(working, abs(verdict.value)):
            faults.append(("contradicted gold", f"{verdict.value!r} is marked, but stands nowhere in the working"))
    wrong = wrong_marks(answer) + wrong_sums(answer)
    if wrong:
        faults.append(("wrong arithmetic", ", ".join(wrong[:3])))
    return faults


def _stands_in(working: str, value: float) -> bool:
    """Is it a number of the working, in digits or words, or 100 or 1000 times one?"""
    numbers = [*every_number(working), *read(working, ones=True)[0]]
    scaled = (abs(number) * scale for number in numbers for scale in (1, 100, 0.01, 1000, 0.001))
    return not numbers or any(math.isclose(number, value, rel_tol=1e-3, abs_tol=0.005) for number in scaled)


def _is_number(gold) -> bool:
    return isinstance(gold, int | float) and not isinstance(gold, bool)
