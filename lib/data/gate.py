"""The data gate: which rows may not be trained on or trusted, and why. `duplicates` finds those that ask the same.

Who goes. The training row, never the test row; of two copies in one split the later one.
"""

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib import SharpenError
from lib.data import chat, chats
from lib.data.duplicates import DROPPED_FROM, Finding, Splits, duplicates, is_number
from lib.data.questions import asked, normal, read
from lib.grade import scoring
from lib.grade.calculator import wrong_marks, wrong_sums
from lib.grade.numerals import every_number

CHECKS = {
    "exact duplicate": "asks what another row asks, but for case, spaces and punctuation",
    "near duplicate": "asks what another row asks, in other words",
    "another gold": "asks what another row asks, with another gold: one of the two is wrong",
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
        texts = {row["id"]: asked(row) for row in rows}
        return [{"matters": f.matters, "row": texts[f.row], "other": texts[f.other], "why": f.reason}
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
        for check, reason, matters in dict.fromkeys(fault for one in versions for fault in chat.faults(one, tokenizer)):
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


# --- benchmarks -----------------------------------------------------------------------------------
def read_benchmark(path: Path) -> list[dict]:
    """Rows of a benchmark's JSON lines, as far as duplicates need them: questions, and golds where
    they are numbers.

    A line holds `messages` (a whole conversation, which need not end with an answer), or a `question`, `problem` or
    `prompt` (with the `body` that comes before it, if any) and perhaps an `answer`. GateError names the line that
    does not."""
    rows = []
    with open(path, encoding="utf-8-sig") as file:
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
            messages = [{"role": message["role"], "content": _text(message)} for message in fields["messages"]]
        else:
            question = next(fields[name] for name in ("question", "problem", "prompt") if name in fields)
            answer = scoring.parse(str(fields.get("answer", "")))
            gold = {"value": answer.value} if answer else None
            messages = [{"role": "user", "content": f"{body} {question}" if body else _text({"content": question})}]
        if not any(message["role"] == "user" and message["content"] for message in messages):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, StopIteration):
        raise GateError(f"benchmark {place}: no JSON object with messages, question, problem or prompt") from None
    if messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})  # as in all rows

    return {"id": place, "messages": messages, "gold": gold}


def _text(message: dict) -> str:
    """A message's text, which may come in parts; a call of a tool has none."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError
    return content


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
        elif working.strip() and is_number(verdict.value) and not _stands_in(working, abs(verdict.value)):
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
