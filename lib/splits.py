"""Leaks between splits: the same question, or the same group, on both sides."""

import re
from collections import Counter
from itertools import combinations


class LeakError(ValueError):
    """A question is in two splits, or twice in one; the message names the rows."""


def normal(text: str) -> str:
    """The text without case, spacing and punctuation; numbers keep their points, signs and units (8-4 is not 8+4)."""
    return " ".join(re.findall(r"\.?\d(?:[\d.,]*\d)?|\w+|[-+*/^%$€£¥<>=]", text.lower()))


def check(splits: dict[str, list[dict]]) -> list[dict]:
    """Raise LeakError where a question stands in two splits; return the duplicates found within splits."""
    questions = {name: [normal(row["messages"][-2]["content"]) for row in rows] for name, rows in splits.items()}
    for a, b in combinations(splits, 2):
        if shared := set(questions[a]) & set(questions[b]):
            first = {name: splits[name][questions[name].index(min(shared))]["id"] for name in (a, b)}
            raise LeakError(
                f"{len(shared)} questions are in {a} and in {b}, such as {first[a]} = {first[b]}: remove them from one"
            )
    return [
        {"split": name, "question": text, "times": times}
        for name, texts in questions.items() for text, times in Counter(texts).items() if times > 1
    ]  # fmt: skip


def shared_groups(a: list[dict], b: list[dict]) -> set[str]:
    """Groups (templates, pages, conversations) that have rows on both sides."""
    return {row["group"] for row in a} & {row["group"] for row in b}
