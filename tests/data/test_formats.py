"""One row of each data set, worked by hand, and what makes a row bad."""

import json

import pytest

from lib.data import formats
from lib.data.formats import BadRow
from lib.grade import scoring


def content(row):
    return [(message["role"], message["content"]) for message in row["messages"]]


# --- fields -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [None, "", " \n", 5, True, ["a"], {"a": 1}])
def test_a_needed_text_that_is_missing_empty_or_no_text_is_named(value):
    with pytest.raises(BadRow, match="field 'answer' is missing, empty or no text"):
        formats.text_of({"answer": value}, "answer")


def test_half_a_character_that_no_file_can_hold_is_bad():
    fields = json.loads('{"question": "\\ud83d what?"}')
    with pytest.raises(BadRow, match="field 'question' is not UTF-8 at character 0"):
        formats.text_of(fields, "question")


@pytest.mark.parametrize("value", [None, True, "five", "", [1], float("nan"), float("inf"), "1e999", 10**400])
def test_a_number_that_is_none_or_not_finite_is_bad(value):
    with pytest.raises(BadRow, match="field 'answer' is (missing or )?no "):
        formats.number_of({"answer": value}, "answer")
    assert formats.number_of({"answer": " 1,234.5 "}, "answer") == 1234.5


@pytest.mark.parametrize(("text", "value", "unit", "decimals"), [
    ("$1,496.5", 1496.5, "currency", 1), ("(32)", -32, "none", 0), ("45 %", 45, "percent", 0),
    ("-0.60", -0.6, "none", 2), ("$14.7 million", 14.7e6, "currency", -5), ("2019", 2019, "none", 0),
    ("\u2212 3", -3, "none", 0),
])  # fmt: skip
def test_a_text_that_is_a_number_from_end_to_end_shows_its_decimals(text, value, unit, decimals):
    found = formats.numeral(text)
    assert (found.value, found.unit, formats.decimals_shown(found)) == (value, unit, decimals)


@pytest.mark.parametrize("text", ["over 50 countries", "1.1 and 2.2", "5 pens", "FY 2019", "12/2019", "", "$", "1,2,"])
def test_a_text_with_a_number_in_it_is_no_number(text):
    assert formats.numeral(text) is None


# --- rows -------------------------------------------------------------------------------------------------------------
def test_svamps_equation_is_the_working():
    fields = {"body": "Jo had 8 figs in 2 bags.", "question": "How many in each?", "equation": "( 8.0 / 2.0 )"}
    fields["answer"] = 4
    row = formats.svamp(fields, "test.jsonl:1")
    assert content(row) == [("user", "Jo had 8 figs in 2 bags. How many in each?"),
                            ("assistant", "(8/2) = <<(8/2)=4>>4\n#### 4")]  # fmt: skip
    assert row["gold"] == {"value": 4.0, "unit": "count"} and row["group"] == row["id"] == "svamp-test.jsonl:1"
    with pytest.raises(BadRow, match="field 'equation' gives 4, not 5"):
        formats.svamp(fields | {"answer": "5"}, "x")
    with pytest.raises(BadRow, match="field 'equation': .*cannot read"):
        formats.svamp(fields | {"equation": "import os"}, "x")


def test_an_investopedia_row_is_its_context_then_its_question_and_its_topic_is_its_group():
    fields = {"topic": "Bonds", "title": "t", "context": "A bond pays.", "question": "What pays?", "answer": "A bond."}
    row = formats.investopedia(fields, "train:7")
    assert content(row) == [("user", "A bond pays.\n\nWhat pays?"), ("assistant", "A bond.")]
    assert row["group"] == "investopedia-Bonds" and row["gold"] is None


def test_your_own_columns_are_mapped_and_their_golds_typed():
    columns = {"question": "prompt", "answer": "reply", "context": "page", "group": "filing"}
    fields = {"prompt": "Margin?", "page": "Sales 4, profit 1.", "filing": "A/2019"}
    cases = [  # the reply, the assistant's text, (value, unit, decimals) of the gold
        ("1/4 = 25%\n#### 25.0%", "1/4 = 25%\n#### 25.0%", (25, "percent", 1)),
        ("$1,250.50", "#### $1,250.50", (1250.5, "currency", 2)),
        (42, "#### 42", (42, "none", 0)), (0.5, "#### 0.5", (0.5, "none", 1)),
        ("About a quarter of sales, or 25 %.", "About a quarter of sales, or 25 %.", None),
    ]
    for reply, text, gold in cases:
        row = formats.own(fields | {"reply": reply}, "my.csv:2", columns)
        assert content(row) == [("user", "Sales 4, profit 1.\n\nMargin?"), ("assistant", text)]
        assert row["group"] == "own-A/2019"
        assert (row["gold"] and tuple(row["gold"][name] for name in ("value", "unit", "decimals"))) == gold
        assert not gold or scoring.grade(text, row["gold"]).correct
    assert formats.own({"question": "q", "answer": "a"}, "x:1", {})["group"] == "own-x:1"
    with pytest.raises(BadRow, match=r"no 'reply' \(but prompt, page, filing\); name yours: columns=question=NAME"):
        formats.own(fields, "x", columns)
    with pytest.raises(BadRow, match="field 'reply' is missing, empty"):
        formats.own(fields | {"reply": " "}, "x", columns)


def test_a_document_is_packed_into_blocks_of_whole_sentences_and_loses_nothing():
    text = "The fund rose. It fell later!\nWhy did it fall? " + "Nobody knew at that time, but many asked. " * 40
    blocks = [block["text"] for block in formats.corpus_blocks({"text": text}, 200)]
    assert "".join(blocks) == text.strip() and len(blocks) > 5
    assert all(len(block) <= 200 and block.endswith((".", "!", "?")) for block in blocks)
    assert formats.corpus_blocks({"text": "x" * 500}, 200) == [{"text": "x" * 500}], "a sentence is never cut"


def test_a_block_gives_its_first_sentence_and_asks_for_the_rest():
    row = formats.corpus({"text": "The committee met in July. Rates stayed. So it was."}, "document:3/2")
    assert content(row) == [("user", "The committee met in July."), ("assistant", "Rates stayed. So it was.")]
    assert (row["id"], row["group"]) == ("corpus-document:3/2", "corpus-document:3")
    row = formats.corpus({"text": "So the committee met in July 2021, as it does"}, "document:3/2")
    assert content(row) == [("user", "So the committee met in"), ("assistant", "July 2021, as it does")]
    with pytest.raises(BadRow, match="fewer than six words"):
        formats.corpus({"text": "The committee met in July."}, "document:3/2")
