"""A published protocol's verdicts beside ours: by hand."""

from dataclasses import asdict

import pytest

from lib.grade import scoring, stats
from lib.judge import beside

MILLIONS = {"protocol": "tatqa", "answer": 12.5, "answer_type": "arithmetic", "scale": "million"}
WORDS = {"protocol": "tatqa", "answer": ["rent", "wages"], "answer_type": "multi-span", "scale": ""}
RATIO = {"protocol": "finqa", "exe_ans": 0.14464}
SHARE = {"value": 0.14464, "unit": "ratio", "decimals": 5, "tolerance": 0.005}


def result(completion, published, gold, model="tuned"):
    """As `evaluate.graded` makes it."""
    row = {"published": published, "gold": gold}
    own = {"model": model, "split": "test", "calculator": True, "question": "How much?", "completion": completion}
    graded = asdict(scoring.grade(completion, gold)) if gold else {}
    return {"gold": gold, **own, **graded, **beside.verdict(row, completion)}


RESULTS = [
    result("#### 12.5 million", MILLIONS, {"value": 12.5e6}),
    result("#### 12.5", MILLIONS, {"value": 12.5e6}),
    result("#### about 12.5 million", MILLIONS, {"value": 12.5e6}),
    result("#### wages, rent", WORDS, None),
    result("#### wages", WORDS, None),
    result("#### 14.5%", RATIO, SHARE),
    result("#### 0.14464", RATIO, SHARE),
    result("#### 1", None, {"value": 1}),
]


def test_the_protocols_share_is_of_all_its_rows_and_ours_of_those_with_a_gold():
    assert "published" not in RESULTS[-1]
    finqa, tatqa = sorted(beside.summarise(RESULTS), key=lambda row: row["protocol"])
    two_of_five, two_of_three = stats.wilson(2, 5), stats.wilson(2, 3)
    assert tatqa["its"] == {"n": 5, "accuracy": 0.4, "low": two_of_five.low, "high": two_of_five.high}
    assert tatqa["f1"] == pytest.approx((1 + 0 + 0 + 1 + 0.67) / 5)  # of a computed answer F1 is the match
    assert tatqa["ours"]["accuracy"] == 2 / 3 and tatqa["ours"]["low"] == two_of_three.low
    assert tatqa["its_here"]["accuracy"] == 1 / 3 and (tatqa["ours_alone"], tatqa["its_alone"]) == (1, 0)
    assert finqa["its"]["n"] == 2 and finqa["f1"] is None and (finqa["ours_alone"], finqa["its_alone"]) == (1, 0)
    text = beside.table_text([finqa, tatqa])
    assert text[0]["protocol"] == "finqa: execution accuracy" and text[0]["F1"] == "-"
    assert (text[1]["n"], text[1]["it alone grades"], text[1]["both grade"]) == ("5", "2", "3")
    assert text[1]["F1"] == "53.4 %" and text[1]["right by ours alone"] == "1"
    ((name, line),) = beside.headline([tatqa], rehearse=True).items()
    assert name == "tatqa's own exact match, test, calculator on (rehearsal, no result)"
    assert line == "tuned 40.0 % [11.8, 76.9], n = 5"


def test_rows_that_the_protocol_alone_grades_have_no_share_of_ours():
    (row,) = beside.summarise(RESULTS[3:5])
    assert row["ours"] is None and beside.table_text([row])[0]["ours [95 %]"] == "-"
    assert beside.summarise([RESULTS[-1]]) == [] and beside.disagreements(RESULTS[3:5]) == []


def test_disagreements_say_what_was_compared_and_why():
    first, second = beside.disagreements(RESULTS)
    assert (first["ours"], first["protocol"], first["why"]) == ("right", "wrong", "words beside the answer")
    assert first["it compares"] == "about 12.5 million with 12500000.0"
    assert (second["gold"], second["it compares"], second["why"]) == ("0.14464", "0.145 with 0.14464", "rounded")
    assert len(beside.disagreements(RESULTS, most=1)) == 1


@pytest.mark.parametrize(("completion", "published", "gold", "why"), [
    ("#### 22.9", {"answer": ["22.9%"], "answer_type": "span"}, {"value": 22.9, "unit": "percent"}, "percent or ratio"),
    ("#### (12,632)", {"answer": ["12,632"], "answer_type": "span"}, {"value": 12632}, "sign"),
    ("It is\n12", {"answer": 12, "answer_type": "arithmetic"}, {"value": 12}, "no marker"),
    ("#### 5.1", {"answer": 5.1, "answer_type": "arithmetic"}, {"value": 5.123, "tolerance": 0}, "rounded"),
    ("#### Ann R Lee", {"answer": ["Ann R. Lee"], "answer_type": "span"}, {"value": "Ann R. Lee"}, "equal as words"),
    ("#### 85,123 thousand", {"answer": ["$85.1 million"], "answer_type": "span"},
     {"value": 85.1e6, "decimals": -5}, "rounded"),
])  # fmt: skip
def test_each_disagreement_has_a_reason(completion, published, gold, why):
    graded = result(completion, {"protocol": "tatqa", "scale": ""} | published, gold)
    assert beside.disagree(graded) and beside.reason(graded) == why
