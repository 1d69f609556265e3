"""TAT-QA's sample predictions by its own protocol and by ours: `python tests/benchmarks/bench_protocols.py DATA`.

DATA holds tatqa/dev.jsonl (a context with its questions a line) and tatqa/sample_prediction.json, both from
github.com/NExTplusplus/TAT-QA. Its own tatqa_eval.py prints 45.92 and 58.88 for them.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lib.data import tatqa
from lib.data.formats import BadRow
from lib.grade import protocols, scoring
from lib.judge import beside

FIELDS = ("answer", "answer_type", "scale")


def completion(answers, scale: str | None) -> str:
    """A prediction as a model of ours would write it; nothing for none."""
    if answers in (None, "", []):
        return ""
    answers = answers if isinstance(answers, list) else [answers]
    line = ", ".join(answer if isinstance(answer, str) else f"{answer:.15g}" for answer in answers)
    return f"#### {line}" + {"": "", None: "", "percent": "%"}.get(scale, f" {scale}")


def sample(data: Path) -> Iterator[tuple[dict, dict, list]]:
    """(record of the question, its `published`, the predicted answers with their scale), in the file's order."""
    predicted = json.loads((data / "tatqa/sample_prediction.json").read_text(encoding="utf-8"))
    for line in (data / "tatqa/dev.jsonl").read_text(encoding="utf-8").splitlines():
        for record in tatqa.questions(json.loads(line)):
            published = {"protocol": "tatqa"} | {name: record[name] for name in FIELDS}
            yield record, published, predicted[record["uid"]]


def table(data: Path) -> list[str]:
    """The lines that are printed."""
    scores, reread, results, wrong, unknown = [], 0, [], 0, 0
    for record, published, prediction in sample(data):
        score, text = protocols.tatqa(*prediction, published), completion(*prediction)
        scores.append(score)
        reread += protocols.grade(text, published).correct == score.correct
        try:
            gold = tatqa.tatqa(record, record["uid"])["gold"]
        except BadRow:
            wrong += 1
            continue
        if not gold:
            unknown += 1
            continue
        verdict = beside.verdict({"published": published, "gold": gold}, text)
        results.append({"gold": gold} | asdict(scoring.grade(text, gold)) | verdict)
    n, both = len(scores), len(results)
    right = [sum(score.correct for score in scores), sum(score.f1 for score in scores)]
    lines = [
        f"{n:,} predictions: exact match {100 * right[0] / n:.2f} %, F1 {100 * right[1] / n:.2f} %",
        f"written as completions and read again: {reread:,} of {n:,} verdicts are equal",
        f"{both:,} rows have a gold of ours ({unknown} do not, and {wrong} derivations are wrong): ours "
        f"{100 * sum(result['correct'] for result in results) / both:.2f} %, exact match "
        f"{100 * sum(result['published_correct'] for result in results) / both:.2f} %",
    ]
    for title, ours in (("right by ours alone", True), ("right by exact match alone", False)):
        differ = [result for result in results if beside.disagree(result) and result["correct"] == ours]
        lines.append(f"{title}: {len(differ)}")
        lines += [f"    {why}: {count}" for why, count in Counter(map(beside.reason, differ)).most_common()]
    return lines


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))
