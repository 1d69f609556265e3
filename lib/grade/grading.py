"""`sharpen grade`: a file of completions with golds -> a table, and a file of verdicts.

A row is `{"id", "completion", "gold"}`, optionally with `finished` (false: cut off at the token limit) and `group`.
"""

import importlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib import SharpenError
from lib.grade import scoring, stats

FIELDS = {  # with their types, and those in words
    "id": ((str, int), "a text or a whole number"),
    "completion": ((str,), "a text"),
    "gold": ((dict, int, float, str, bool), "a number, a text, true/false or an object with 'value'"),
    "finished": ((bool,), "true or false"),
    "group": ((str, int), "a text or a whole number"),
}
GOLD_FIELDS = ("value", "unit", "tolerance", "decimals")
EXAMPLE = '{"id": "1", "completion": "#### 42", "gold": {"value": 42, "unit": "count"}}'
SHOWN_PROBLEMS = 5


class GradingError(SharpenError):
    """What a user can mend: one message that names the file, the line, the field and the remedy."""


@dataclass(frozen=True)
class Answer:
    """One row of the file, checked; `group` (by default its id) ties rows that may be right together."""

    id: str | int
    completion: str
    gold: scoring.Gold
    finished: bool
    group: str | int


def _answer(line: bytes) -> Answer:
    """A line as an answer with a valid gold, or a ValueError that names the field and the remedy."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:80]}); write one row a line, as in {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with 'id', 'completion' and 'gold', as in {EXAMPLE}")
    row = {"finished": True, "group": row.get("id")} | row
    for field, (types, allowed) in FIELDS.items():
        if field not in row:
            raise ValueError(f"field {field!r} is missing; give {allowed}")
        if type(row[field]) not in types:
            raise ValueError(f"field {field!r} is {json.dumps(row[field])[:60]}; give {allowed}")
    if not isinstance(row["gold"], dict):
        row["gold"] = {"value": row["gold"]}
    if unknown := sorted(set(row["gold"]) - set(GOLD_FIELDS)):
        raise ValueError(f"field 'gold' has an unknown {unknown[0]!r}; choose from {', '.join(GOLD_FIELDS)}")
    if "value" not in row["gold"]:
        raise ValueError("field 'gold.value' is missing; give a number, a text or true/false")
    try:
        scoring.grade("", row["gold"])
    except ValueError as error:
        raise ValueError(f"field 'gold': {error}") from None
    return Answer(*(row[field] for field in FIELDS))


def read(path: Path) -> list[Answer]:
    """The file's rows, without blank lines. GradingError names the lines that cannot be graded."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise GradingError(f"{path}: {error.strerror.lower()}; give JSON lines as {EXAMPLE}") from None
    answers, problems = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                answers.append(_answer(line))
            except ValueError as error:
                problems.append(f"{path}, line {number}: {error}")
    if len(problems) > SHOWN_PROBLEMS:
        problems[SHOWN_PROBLEMS:] = [f"and {len(problems) - SHOWN_PROBLEMS:,} more such lines"]
    if problems:
        raise GradingError("\n".join([*problems, "nothing was graded"]))
    if not answers:
        raise GradingError(f"{path} has no rows; give at least one, as {EXAMPLE}")
    return answers


def check_output(source: Path, out: Path) -> None:
    """Refuse, before any work, a path that cannot take verdicts or holds the answers."""
    if out.is_dir():
        raise GradingError(f"--out {out} is a folder; name a file in it, as {out / 'verdicts.jsonl'}")
    if not out.parent.is_dir():
        raise GradingError(f"--out {out}: no such folder {out.parent}; make it first, or choose another")
    if out.exists() and out.samefile(source):
        raise GradingError(f"--out {out} is the file that is graded; choose another")


def grade(answers: Iterable[Answer]) -> list[scoring.Verdict]:
    return [scoring.grade(answer.completion, answer.gold, answer.finished) for answer in answers]


def verdict_lines(answers: list[Answer], verdicts: list[scoring.Verdict]) -> Iterable[str]:
    """The file of verdicts, a JSON object a line."""
    for answer, verdict in zip(answers, verdicts, strict=True):
        row = {"id": answer.id, "correct": verdict.correct, "value": verdict.value, "reading": verdict.reading}
        yield json.dumps(row | {"error": verdict.error}) + "\n"


def table(answers: list[Answer], verdicts: list[scoring.Verdict]) -> str:
    """Scores with 95 % intervals, clustered where rows share a group; then what went wrong."""
    n, groups = len(verdicts), [answer.group for answer in answers]
    clusters = len(set(groups))
    scores = {"correct": [verdict.correct for verdict in verdicts]}
    for share in scoring.TOLERANCES:
        scores[f"within {100 * share:g} %"] = [verdict.within[share] for verdict in verdicts]
    scores["marked answer"] = [verdict.reading == "marker" for verdict in verdicts]
    scores["last number counts"] = [verdict.correct_lenient for verdict in verdicts]
    lines, warnings = [f"{'':26}{'n':>9}{'share':>10}   95 % interval"], set()
    for name, passed in scores.items():
        interval, limits = _interval(passed, groups), "none: all in one group"
        if interval:
            limits = f"{100 * interval.low:5.1f} to {100 * interval.high:5.1f} %"
            warnings.add(interval.warning)
        lines.append(_line(name, sum(passed), n, limits))
    grouped = "Wilson's intervals"
    if clusters < n:
        grouped = f"{clusters:,} groups: clustered intervals"
    lines.append(f"{n:,} answers; {grouped}")
    lines += [f"warning: {warning}" for warning in sorted(filter(None, warnings))]
    errors = Counter(verdict.error for verdict in verdicts if verdict.error)
    flags = Counter(verdict.flag for verdict in verdicts if verdict.flag)
    for title, counts in (("errors", errors), ("units converted", flags)):
        if counts:
            lines += ["", f"{title:26}{'n':>9}"]
            lines += [_line(name, count, n) for name, count in counts.most_common()]
    return "\n".join(lines)


def _interval(passed: list[bool], groups: list[str | int]) -> stats.Interval | None:
    """Wilson's where each answer is its own group, else clustered; None where there is one group."""
    clusters = len(set(groups))
    if clusters == len(groups):
        return stats.wilson(sum(passed), len(groups))
    if clusters > 1:
        return stats.clustered(passed, groups)
    return None


def _line(name: str, count: int, n: int, limits: str = "") -> str:
    return f"{name:26}{count:9,}{100 * count / n:8.1f} %   {limits}".rstrip()


# ---- beside Math-Verify


def math_verify_verdicts(answers: list[Answer]) -> list[bool]:
    """What Math-Verify (Hugging Face) says, which knows no units, tolerances or orderings."""
    try:
        library = importlib.import_module("math_verify")
    except ImportError:
        raise GradingError("--beside math-verify needs the package: pip install math-verify") from None
    kinds = [library.LatexExtractionConfig(), library.ExprExtractionConfig(), library.StringExtractionConfig()]
    verdicts = []
    for answer in answers:
        gold = library.parse(str(answer.gold["value"]), kinds)
        verdicts.append(bool(library.verify(gold, library.parse(answer.completion, kinds))))
    return verdicts


def beside(answers: list[Answer], verdicts: list[scoring.Verdict], others: list[bool], name: str) -> str:
    """Two graders side by side: how often they agree, then each disagreement."""
    counts = Counter((verdict.correct, other) for verdict, other in zip(verdicts, others, strict=True))
    title = f"{name}: right"
    lines = [
        f"{'':26}{title:>22}{'wrong':>9}",
        f"{'sharpen: right':26}{counts[True, True]:22,}{counts[True, False]:9,}",
        f"{'sharpen: wrong':26}{counts[False, True]:22,}{counts[False, False]:9,}",
    ]
    says = {True: "right", False: "wrong"}
    for answer, verdict, other in zip(answers, verdicts, others, strict=True):
        if verdict.correct != other:
            lines.append(
                f"{answer.id}: gold {answer.gold['value']!r}; sharpen reads {verdict.value!r} "
                f"({verdict.error or 'right'}), {name} says {says[other]}; text ends {answer.completion[-80:]!r}"
            )
    return "\n".join(lines)
