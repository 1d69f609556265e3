"""ConvFinQA: conversations of our own worked by hand, in each published layout, and the sample recomputed."""

import json

import pytest

from lib.data import convfinqa, sources
from lib.data.formats import BadRow
from lib.grade import scoring
from lib.grade.calculator import MARK, wrong_marks
from lib.run import presets

TALK = {
    "id": "Single_ACME/2018/page_7.pdf-1", "pre_text": ["sales rose .", "costs too ."], "post_text": ["see note 2 ."],
    "table": [["in millions", "2018", "2017"], ["net sales", "$ 120", "100"]],
    "questions": ["what were sales in 2018?", "and in 2017?", "what, then, was the percent change?"],
    "programs": ["120", "100", "subtract(120, 100), divide(#0, 100)"], "exe_ans": [120.0, 100.0, 0.2],
}  # fmt: skip
PAGE = ("sales rose .\ncosts too .\n\n| in millions | 2018 | 2017 |\n| --- | --- | --- |\n"
        "| net sales | $ 120 | 100 |\n\nsee note 2 .\n\n")  # fmt: skip


def rows_of(record):
    return [convfinqa.convfinqa(turn, f"x/{number}") for number, turn in enumerate(convfinqa.turns(record), 1)]


def as_published(record):
    lists = {there: record[here] for here, there in convfinqa.NAMES.items()}
    return {name: record[name] for name in ("id", "pre_text", "post_text", "table")} | {"annotation": lists}


def test_a_row_is_the_conversation_up_to_its_turn_and_only_its_last_answer_is_learnt():
    rows = rows_of(TALK)
    first, _, last = rows
    assert first["messages"] == [{"role": "user", "content": f"{PAGE}what were sales in 2018?"},
                                 {"role": "assistant", "content": "#### 120"}]  # fmt: skip
    assert last["messages"][:2] == [first["messages"][0], {"role": "assistant", "content": "#### 120", "learn": False}]
    assert last["messages"][2:] == [
        {"role": "user", "content": "and in 2017?"},
        {"role": "assistant", "content": "#### 100", "learn": False},
        {"role": "user", "content": "what, then, was the percent change?"},
        {"role": "assistant", "content": "120-100 = <<120-100=20>>20\n100*20/100 = <<100*20/100=20>>20%\n#### 20%"},
    ]
    assert [(row["turn"], row["turns"], row["kind"]) for row in rows] == [
        (turn, 3, f"convfinqa turn {turn}") for turn in (1, 2, 3)
    ]
    assert last["gold"] == {"value": 0.2, "unit": "ratio", "decimals": 5, "tolerance": 0.005}
    assert last["published"] == {"protocol": "finqa", "exe_ans": 0.2}
    assert {row["conversation"] for row in rows} == {TALK["id"]} and len({row["group"] for row in rows}) == 1


def test_every_published_layout_gives_the_same_rows():
    rows = rows_of(TALK)
    assert rows_of(as_published(TALK)) == rows, "a file of conversations"
    by_turn = []
    for turn in range(3):
        record = as_published(TALK) | {"id": f"{TALK['id']}_{turn}"}
        more = {"turn_ind": turn, "cur_dial": TALK["questions"][: turn + 1], "exe_ans": TALK["exe_ans"][turn]}
        (found,) = convfinqa.turns(record | {"annotation": record["annotation"] | more})
        by_turn.append(convfinqa.convfinqa(found, f"x/{turn + 1}"))
    assert by_turn == rows, "a file of turns: each of them once"
    lines = "\n".join(" | ".join(row) for row in TALK["table"])
    flat = TALK | {"text": "sales rose .\nsee note 2 .", "table": lines, "pre_text": None, "post_text": None}
    (asked, *_) = rows_of(flat)[0]["messages"]
    assert asked["content"].startswith("sales rose .\nsee note 2 .\n\n| in millions |")


@pytest.mark.parametrize(("question", "program", "value", "shown", "unit", "answer"), [
    ("what is that divided by 100?", "divide(20, const_100)", 0.2, "20%", "ratio", "100*20/100 = 20%|#### 20%"),
    ("what is the share, in percentage?", "divide(20, 160)", 0.125, "0.125", "ratio", "100*20/160 = 12.5%|#### 12.5%"),
    ("what is the ratio?", "divide(20, 160)", 0.125, "0.125", "none", "20/160 = 0.125|#### 0.125"),
    ("what was the growth in sales?", "subtract(120, 100)", 20.0, "", "none", "120-100 = 20|#### 20"),
    ("what was the rate?", "25%", 0.25, "25%", "ratio", "#### 25%"),
    ("was it more?", "greater(2, 1)", "yes", "", "bool", "2-1 = 1 > 0|#### yes"),
])  # fmt: skip
def test_percent_is_asked_for_where_the_answer_shows_it_or_the_question_says_so(
    question, program, value, shown, unit, answer
):
    (row,) = rows_of(TALK | {"questions": [question], "programs": [program], "exe_ans": [value], "answers": [shown]})
    text = row["messages"][-1]["content"]
    assert row["gold"]["unit"] == unit and scoring.grade(text, row["gold"]).correct
    assert MARK.sub("", text).replace("\n", "|") == answer


@pytest.mark.parametrize(("change", "reason"), [
    ({"questions": []}, "'questions' is missing, empty"), ({"programs": ["1"]}, "do not have one entry a turn"),
    ({"questions": ["a", 5, "c"]}, "'questions' is missing, empty or no text"), ({"table": None}, "'table' is missing"),
    ({"exe_ans": [120.0, 100.0, 0.3]}, "gives 0.2, not 0.3"), ({"programs": ["120", "100", "f(1, 2)"]}, "unknown step"),
    ({"annotation": {name: ["1"] for name in convfinqa.NAMES.values()} | {"turn_ind": 1}}, "'turn_ind' is '1': not"),
])  # fmt: skip
def test_a_conversation_that_lacks_something_is_bad(change, reason):
    with pytest.raises(BadRow, match=reason):
        rows_of(TALK | change)


# --- splits -----------------------------------------------------------------------------------------------------------
def settings_for(path, **counts):
    local = {"source": "convfinqa", "data_dir": str(path), "base_model": "data/base", "chat_template": None}
    return presets.resolve("llama32_3b_gsm8k", local | {"train_rows": None} | counts).settings


def talk(number):
    return TALK | {"id": f"talk {number}", "table": [["page", str(number // 2)]]}


@pytest.fixture
def folder(tmp_path):
    """Twelve conversations of three turns, on six pages."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(talk(number)) + "\n" for number in range(12)))
    return tmp_path


def test_training_has_whole_conversations_and_the_test_a_row_a_turn(folder):
    loaded = sources.load(settings_for(folder / "train.jsonl", validation_rows=2, test_rows=4))
    rows = {split: loaded[split].rows for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 8, "validation": 2, "test": 6}, (
        "4 turns are one conversation and the first of the next, which is asked whole"
    )
    for split in ("train", "validation"):
        assert all(row["turn"] == row["turns"] == 3 for row in rows[split])
        assert not any("learn" in message for row in rows[split] for message in row["messages"])
    assert [row["turn"] for row in rows["test"]] == [1, 2, 3] * 2
    assert [sum(message.get("learn") is False for message in row["messages"]) for row in rows["test"]] == [0, 1, 2] * 2
    groups = [{row["group"] for row in found} for found in rows.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6, "no page is in two splits"


def test_counts_are_of_conversations_in_training_and_of_turns_in_the_test(folder):
    (folder / "test.jsonl").write_text("".join(json.dumps(talk(number)) + "\n" for number in range(20, 24)))
    loaded = sources.load(settings_for(folder, train_rows=5, skip_rows=2, validation_rows=0, test_rows=7))
    assert [row["conversation"] for row in loaded["train"].rows] == [f"talk {number}" for number in range(2, 7)]
    assert [row["conversation"] for row in loaded["test"].rows] == [f"talk {n}" for n in (20, 21, 22) for _ in range(3)]
    assert len(sources.load(settings_for(folder, validation_rows=0, test_rows=None), ["test"])["test"].rows) == 12


def test_the_published_sample_is_worked_whole(published_data):
    path, rejected = published_data / "convfinqa/sample.jsonl", []
    rows = list(sources.stream(settings_for(path), path, rejected))
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    turns = [(record, at) for record in records for at in range(len(record["questions"]))]
    assert len(rows) == len(turns) == 406 and rejected == [] and len({row["group"] for row in rows}) == 60
    for row, (record, at) in zip(rows, turns, strict=True):
        text, value = row["messages"][-1]["content"], record["exe_ans"][at]
        assert row["gold"]["value"] == ({"yes": True, "no": False}[value] if isinstance(value, str) else value)
        assert scoring.grade(text, row["gold"]).correct and wrong_marks(text) == []
        assert ("<<" in text) == ("(" in record["programs"][at]), "what is looked up is not computed"
        assert row["messages"][-2]["content"].endswith(record["questions"][at].strip())
