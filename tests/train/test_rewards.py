"""What is paid for: nothing that commits to no answer, or to another. The file of cheats was written for it: the half
that is marked `seen` with this code at hand, the other half without."""

import json
from pathlib import Path

import pytest

from lib.data import tasks
from lib.data.kinds import KINDS
from lib.run.settings import Rewards
from lib.train import rewards

CHEATS = [json.loads(line) for line in Path(__file__).with_name("adversarial.jsonl").read_text().splitlines()]


def paid(row: dict) -> bool:
    return rewards.right(row["completion"], row["gold"], row["finished"]) == 1


def test_no_cheat_is_paid_for_as_right():
    assert len(CHEATS) == 200 and sum(row["seen"] for row in CHEATS) == 100
    assert len({row["kind"] for row in CHEATS}) > 100 and len({row["gold"]["unit"] for row in CHEATS}) == 9
    wrong = [row for row in CHEATS if not row["right"]]
    assert len(wrong) > 160 and [row for row in wrong if paid(row)] == []


def test_odd_but_honest_answers_are_paid_for():
    missed = [row["kind"] for row in CHEATS if row["right"] and not paid(row)]
    assert missed == ["honest count noun"], "a number's unit may follow it, any other word may not"


NUMBER, TRUE, CHOICE = ({"value": value, "unit": unit, "decimals": 0, "tolerance": 0.0}
                        for value, unit in ((42, "none"), (True, "bool"), ("Fund B", "choice")))  # fmt: skip


@pytest.mark.parametrize(("text", "gold"), [
    ("#### 42" + " " * 300 + "017", NUMBER), ("#### 42 million", NUMBER), ("~~#### 42~~", NUMBER),
    ("#### ~~17~~ 42", NUMBER), ("Answer: 17 #### 42", NUMBER), ("#### \u00acyes", TRUE), ("#### !yes", TRUE),
    ("#### \u2260 yes", TRUE), ("#### yes \u274c", TRUE), ("#### !Fund B", CHOICE), ("~~#### Fund B~~", CHOICE),
])  # fmt: skip
def test_signs_that_take_an_answer_back_are_not_paid_for(text, gold):
    assert rewards.right(text, gold) == 0


@pytest.mark.parametrize(("text", "gold"), [
    ("The answer is \\boxed{42}.", NUMBER), ("Final answer: $\\boxed{42}$", NUMBER), ("Answer: \\boxed{42}", NUMBER),
    ("The final answer is: $\\boxed{42}$", NUMBER), ("#### \\boxed{42}", NUMBER), ("<answer>42</answer>", NUMBER),
    ("#### **42**", NUMBER), ("#### yes.", TRUE), ("#### **Fund B**", CHOICE), ("#### (Fund B)", CHOICE),
])  # fmt: skip
def test_the_usual_forms_of_real_models_are_paid_for(text, gold):
    assert rewards.right(text, gold) == 1


def test_every_generated_worked_answer_earns_all_but_its_length():
    for split in ("train", "test"):
        for problem in tasks.generate(split, 3 * len(KINDS), 5, tuple(KINDS)):
            answer = problem.row()["messages"][-1]["content"]
            parts = rewards.parts(answer, problem.gold, True, 50, 200)
            assert parts == {"right": 1, "shape": 1, "arithmetic": 1, "length": 0.75}, answer
            assert rewards.parts(answer, problem.gold, False, 200, 200)["right"] == 0


@pytest.mark.parametrize(("text", "share"), [
    ("<<2+3=5>> <<4*2=9>>", 0.5), ("<<5=5>> #### 5", 0.0), ("<<-5=-5>> <<1+1=2>>", 1.0), ("2+3=5", 0.0),
    ("<<2+=2>>", 0.0), ("<<2+3=", 0.0),
])  # fmt: skip
def test_arithmetic_is_the_share_of_marks_that_hold(text, share):
    assert rewards.arithmetic(text) == share


@pytest.mark.parametrize(("text", "finished", "paid"), [
    ("So\n#### 5", True, 1), ("So\n#### 5", False, 0), ("#### 5\n#### 5", True, 0), ("#### 5\nBye", True, 0),
    ("So 5", True, 0),
])  # fmt: skip
def test_shape_is_one_marker_at_the_end(text, finished, paid):
    assert rewards.shape(text, finished) == paid


def test_a_reward_is_its_parts_by_their_weights():
    weights = Rewards(right=2, shape=0.5, arithmetic=0, length=1)
    assert rewards.total({"right": 1, "shape": 1, "arithmetic": 1, "length": 0.25}, weights) == 2.75
    assert rewards.length(300, 200) == 0
