"""`sharpen grade`: a file of completions with golds -> a table with intervals, and a file of verdicts.

A row is `{"id", "completion", "gold"}`; `finished` (false: cut off at the token limit) and `group` are optional.
"""

import importlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib import SharpenError
from lib.grade import scoring, stats

GOLD_FIELDS = ("value", "unit", "tolerance", "decimals")
EXAMPLE = '{"id": "1", "completion": "#### 42", "gold": {"value": 42, "unit": "count"}}'
SHOWN_PROBLEMS = 5


class GradingError(SharpenError):
    """What a user can mend: one message that names the file, the line, the field and the remedy."""


@dataclass(frozen=True)
class Answer:
    """One row of the file, checked; `group` ties rows that may be right or wrong together (by default its id)."""

    id: str | int
    completion: str
    gold: dict | float | str | bool
    finished: bool
    group: str | int


def _answer(line: bytes) -> Answer:
    """A line as an answer whose gold can be graded, or a ValueError that names the field and the remedy."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:80]}); write one row a line, as in {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with 'id', 'completion' and 'gold', as in {EXAMPLE}")
    for field, types, allowed in (
        ("id", (str, int), "a text or a whole number"), ("completion", (str,), "a text"),
        ("gold", (dict, int, float, str, bool), "a number, a text, true/false or an object with 'value'"),
    ):  # fmt: skip
        if field not in row:
            raise ValueError(f"field {field!r} is missing; give {allowed}")
        if type(row[field]) not in types:
            raise ValueError(f"field {field!r} is {_short(row[field])}; give {allowed}")
    finished, group, gold = row.get("finished", True), row.get("group", row["id"]), row["gold"]
    if type(finished) is not bool:
        raise ValueError(f"field 'finished' is {_short(finished)}; give true or false, or leave it out")
    if type(group) not in (str, int):
        raise ValueError(f"field 'group' is {_short(group)}; give a text or a whole number, or leave it out")
    if isinstance(gold, dict):
        unknown = sorted(set(gold) - set(GOLD_FIELDS))
        if unknown:
            raise ValueError(f"field 'gold' has an unknown {unknown[0]!r}; choose from {', '.join(GOLD_FIELDS)}")
        if "value" not in gold:
            raise ValueError("field 'gold.value' is missing; give a number, a text or true/false")
    try:
        scoring.grade("", gold)
    except ValueError as error:
        raise ValueError(f"field 'gold': {error}") from None
    return Answer(row["id"], row["completion"], gold, finished, group)


def _short(value) -> str:
    """A value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read(path: Path) -> list[Answer]:
    """The file's rows, in order; blank lines are skipped. GradingError names the lines that cannot be graded."""
    if path.is_dir():
        raise GradingError(f"{path} is a folder; give a JSON-lines file with rows as {EXAMPLE}")
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise GradingError(f"{path}: no such file; give a JSON-lines file with rows as {EXAMPLE}") from None
    except OSError as error:
        raise GradingError(f"{path} cannot be read ({error.strerror}); give a file that you may read") from None
    answers, problems = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                answers.append(_answer(line))
            except ValueError as error:
                problems.append(f"{path}, line {number}: {error}")
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"and {more:,} more such lines"] if more > 0 else [])
        raise GradingError("\n".join([*shown, "nothing was graded"]))
    if not answers:
        raise GradingError(f"{path} has no rows; give at least one, as {EXAMPLE}")
    return answers


def check_output(source: Path, out: Path) -> None:
    """Refuse, before any work, a path that verdicts could not be written to or that would destroy the answers."""
    if out.is_dir():
        raise GradingError(f"--out {out} is a folder; name a file in it, as {out / 'verdicts.jsonl'}")
    if not out.parent.is_dir():
        raise GradingError(f"--out {out}: no such folder {out.parent}; make it first, or choose another")
    if out.exists() and out.samefile(source):
        raise GradingError(f"--out {out} is the file that is graded; choose another, or the answers would be lost")


def grade(answers: Iterable[Answer]) -> list[scoring.Verdict]:
    return [scoring.grade(answer.completion, answer.gold, answer.finished) for answer in answers]


def verdict_lines(answers: list[Answer], verdicts: list[scoring.Verdict]) -> Iterable[str]:
    for answer, verdict in zip(answers, verdicts, strict=True):
        row = {"id": answer.id, "correct": verdict.correct, "value": verdict.value, "reading": verdict.reading}
        yield json.dumps(row | {"error": verdict.error}) + "\n"


def table(answers: list[Answer], verdicts: list[scoring.Verdict]) -> str:
    """Accuracy, tolerances and format with 95 % intervals, clustered where rows share a group; then what went wrong."""
    n, groups = len(verdicts), [answer.group for answer in answers]
    clusters = len(set(groups))
    scores = {
        "correct": [verdict.correct for verdict in verdicts],
        **{f"within {100 * share:g} %": [v.within[share] for v in verdicts] for share in scoring.TOLERANCES},
        "marked answer": [verdict.reading == "marker" for verdict in verdicts],
        "last number counts": [verdict.correct_lenient for verdict in verdicts],
    }
    lines, warnings = [f"{'':26}{'n':>9}{'share':>10}   95 % interval"], set()
    for name, passed in scores.items():
        share, limits = sum(passed) / n, "none: all in one group"
        if clusters > 1 or n == 1:
            interval = stats.clustered(passed, groups) if clusters < n else stats.wilson(sum(passed), n)
            limits = f"{100 * interval.low:5.1f} to {100 * interval.high:5.1f} %"
            warnings |= {interval.warning} - {None}
        lines.append(f"{name:26}{sum(passed):9,}{100 * share:8.1f} %   {limits}")
    grouped = f"{clusters:,} groups: clustered intervals" if clusters < n else "Wilson's intervals"
    lines.append(f"{n:,} answers; {grouped}")
    lines += [f"warning: {warning}" for warning in sorted(warnings)]
    for title, found in (
        ("errors", [verdict.error for verdict in verdicts if verdict.error]),
        ("units converted", [verdict.flag for verdict in verdicts if verdict.flag]),
    ):
        counts = Counter(found).most_common()
        lines += ["", f"{title:26}{'n':>9}"] if counts else []
        lines += [f"{name:26}{count:9,}{100 * count / n:8.1f} %" for name, count in counts]
    return "\n".join(lines)


# ---- beside Math-Verify


def math_verify_verdicts(answers: list[Answer]) -> list[bool]:
    """What Math-Verify (Hugging Face) says of the same completions. It knows no units, tolerances or orderings."""
    try:
        library = importlib.import_module("math_verify")
    except ImportError:
        raise GradingError("--beside math-verify needs the package: pip install math-verify") from None
    configurations = [
        library.LatexExtractionConfig(), library.ExprExtractionConfig(), library.StringExtractionConfig()
    ]  # fmt: skip
    verdicts = []
    for answer in answers:
        value = answer.gold["value"] if isinstance(answer.gold, dict) else answer.gold
        gold = library.parse(str(value), configurations)
        verdicts.append(bool(library.verify(gold, library.parse(answer.completion, configurations))))
    return verdicts


def beside(answers: list[Answer], verdicts: list[scoring.Verdict], others: list[bool], name: str) -> str:
    """Two graders side by side: a table of agreement, then each disagreement with the end of its text."""
    counts = Counter((verdict.correct, other) for verdict, other in zip(verdicts, others, strict=True))
    lines = [
        f"{'':26}{name + ': right':>22}{'wrong':>9}",
        f"{'sharpen: right':26}{counts[True, True]:22,}{counts[True, False]:9,}",
        f"{'sharpen: wrong':26}{counts[False, True]:22,}{counts[False, False]:9,}",
    ]
    for answer, verdict, other in zip(answers, verdicts, others, strict=True):
        if verdict.correct != other:
            gold = answer.gold["value"] if isinstance(answer.gold, dict) else answer.gold
            says = "right" if verdict.correct else verdict.error
            lines.append(
                f"{answer.id}: gold {gold!r}; sharpen reads {verdict.value!r} ({says}), {name} says "
                f"{'right' if other else 'wrong'}; text ends {answer.completion[-80:]!r}"
            )
    return "\n".join(lines)
