"""Leaks between splits, planted and found."""

import pytest

from lib import splits


def row(id, question, group=None):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "#### 1"}]
    return {"id": id, "source": "test", "kind": "any", "messages": messages, "gold": None, "group": group or id}


CLEAN = {
    "train": [row("a-1", "What is 1.5 times 4?"), row("a-2", "What is 2 plus 2?")],
    "validation": [row("b-1", "What is 2 plus 3?")],
    "test": [row("c-1", "What is 15 times 4?"), row("c-2", "How far is it?")],
}


def test_clean_splits_pass():
    assert splits.check(CLEAN) == []


@pytest.mark.parametrize("copy", [
    "What is 1.5 times 4?", "what is 1.5 times 4", "WHAT IS 1.5  TIMES\n4 ?", " What\tis 1.5 times 4?! ",
])  # fmt: skip
def test_a_planted_duplicate_is_found_and_named(copy):
    planted = CLEAN | {"test": [*CLEAN["test"], row("c-3", copy)]}
    with pytest.raises(splits.LeakError, match="1 questions are in train and in test, such as a-1 = c-3"):
        splits.check(planted)


def test_every_pair_of_splits_is_checked():
    planted = CLEAN | {"test": [row("c-9", "what is 2 PLUS 3")]}
    with pytest.raises(splits.LeakError, match="in validation and in test, such as b-1 = c-9"):
        splits.check(planted)


def test_a_duplicate_within_a_split_is_returned():
    planted = CLEAN | {"train": [*CLEAN["train"], row("a-3", "What is 2 plus 2"), row("a-4", "what IS 2 plus 2?")]}
    assert splits.check(planted) == [{"split": "train", "question": "what is 2 plus 2", "times": 3}]


def test_the_last_question_of_a_conversation_is_compared():
    talk = row("t-1", "Hello")
    talk["messages"] = [*talk["messages"], *row("x", "How far is it?")["messages"]]
    with pytest.raises(splits.LeakError, match="t-1 = c-2"):
        splits.check({"train": [talk], "test": CLEAN["test"]})


def test_numbers_keep_their_decimal_points_and_separators():
    for a, b in [("1.5", "15"), ("1.5", "1 5"), ("1.05", "10.5"), ("1,234", "1.234"), ("12", "1 2")]:
        assert splits.normal(f"Is {a} much?") != splits.normal(f"Is {b} much?")
    assert splits.normal("It is 1.5. And 2, then 3!") == splits.normal("it is 1.5 and 2 then 3")


def test_shared_groups_are_named():
    a, b = [row("1", "x", "page 1"), row("2", "y", "page 2")], [row("3", "z", "page 2"), row("4", "w", "page 3")]
    assert splits.shared_groups(a, b) == {"page 2"}
    assert splits.shared_groups(a, b[1:]) == set()


@pytest.mark.parametrize("a, b", [("Compute 8-4.", "Compute 8+4."), ("Is -5 much?", "Is 5 much?"),
                                  ("Is .5 much?", "Is 5 much?"), ("Take 5% of it.", "Take $5 of it.")])
def test_other_sums_are_not_taken_for_duplicates(a, b):
    assert splits.normal(a) != splits.normal(b)
