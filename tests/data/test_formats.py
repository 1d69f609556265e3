"""One row of each data set, worked by hand, and what makes a row bad."""

import json

import pytest

from lib.data import formats
from lib.data.formats import BadRow
from lib.grade import numerals, scoring


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
    ("\u2212 3", -3, "none", 0), ("120 bps", 120, "basis points", 0), ("8.71x", 8.71, "multiple", 2),
    ("$ 14.04bn", 14.04e9, "currency", -7), ("EUR 137", 137, "currency", 0), ("42.", 42, "none", 0),
    ("1.40E+04", 14000, "none", -2), ("5e-05", 5e-5, "none", 5), ("1.234,56", 1234.56, "none", 2),
])  # fmt: skip
def test_a_text_that_is_a_number_from_end_to_end_shows_its_decimals(text, value, unit, decimals):
    found = numerals.numeral(text)
    assert (found.value, found.unit, formats.decimals_shown(found)) == (value, unit, decimals)


@pytest.mark.parametrize("text", ["over 50 countries", "1.1 and 2.2", "5 pens", "FY 2019", "12/2019", "", "$", "18,5"])
def test_a_text_with_a_number_in_it_is_no_number(text):
    assert numerals.numeral(text) is None


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
        (42, "#### 42", (42, "none", 0)), (0.5, "#### 0.5", (0.5, "none", 1)), (5e-05, "#### 5e-05", (5e-5, "none", 5)),
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


@pytest.mark.parametrize(("answer", "gold"), [
    ("The answer is no, because only 2 of 7 funds grew.", {"value": False, "unit": "bool"}),
    ("Answer: Yes, it rose 4% against 2016.", {"value": True, "unit": "bool"}),
    ("Answer: C (Bond 3)", {"value": "C", "unit": "choice"}), ("#### B. Buy 5", {"value": "B", "unit": "choice"}),
    ("Final answer: The 5-year growth is 3.2 %", formats.typed(3.2, "percent", 1)),
    ("<think>the answer is 9</think>\n#### 8", formats.typed(8, "none", 0)),
])  # fmt: skip
def test_a_gold_is_what_the_answer_states_and_no_number_of_its_explanation(answer, gold):
    row = formats.own({"question": "q", "answer": answer}, "x:1", {})
    assert row["gold"] == gold and scoring.grade(answer, row["gold"]).correct


def test_it_is_told_how_many_rows_have_a_gold_and_what_the_others_hold():
    answers = ["#### 5", "#### 18,5", "#### 3 or 4", "#### 5 and 6", "Answer: Kestrel, with 3 funds", "Rates rise.",
               "12 and then 15", "<think>5"]  # fmt: skip
    rows = [formats.own({"question": "q", "answer": answer}, f"x:{n}", {}) for n, answer in enumerate(answers)]
    assert formats.golds_told(rows) == (
        "1 of 8 rows have a gold; others: 2 hold several numbers, 2 hold only text, 1 hold an ambiguous number, "
        "1 hold a number among words, 1 hold no marker"
    )
    assert formats.golds_told(rows[:1]) == "1 of 1 rows have a gold"
    with pytest.raises(BadRow, match="field 'g' is no number, nor .* and one; it holds an ambiguous number"):
        formats.own({"question": "q", "g": "18,5"}, "x:1", {"gold": "g"})


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
