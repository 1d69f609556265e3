"""FinQA's and TAT-QA's own protocols: cases worked by hand, their published programs and their sample predictions."""

import hashlib
import json
import math
from collections import Counter

import pytest

from lib.grade import protocols
from lib.grade.calculator import calculate, mark, show
from lib.run.paths import ROOT
from tests.benchmarks import bench_protocols

STEPS = "In 2018 <<637/5=127.4>>127.4, in 2017 <<610/7=87.14>>87.14: <<(127.4-87.14)/87.14=0.46>>\n#### "


def executed(completion, exe_ans, **rest):
    return protocols.finqa(completion, exe_ans, **rest).correct


def matched(answers, scale, answer, gold_scale="", kind="span"):
    score = protocols.tatqa(answers, scale, {"answer": answer, "scale": gold_scale, "answer_type": kind})
    return score.correct, score.f1


# ---- FinQA


def test_a_later_step_goes_on_with_the_exact_value_of_an_earlier_mark():
    exact = (637 / 5 - 610 / 7) / (610 / 7)
    assert round(exact, 5) == 0.46197 and math.isclose(protocols.finqa(STEPS + "0.46", 0.46197).read, exact)
    assert executed(STEPS + "0.46", 0.46197) and executed(STEPS + "46%", 0.46197), "whatever the answer rounds to"
    assert not executed(STEPS + "0.46", 0.46201), "which is what the shown values give"


def test_a_negative_step_keeps_its_sign_where_it_is_used():
    text = "<<2/7-1=-0.7143>> then <<100*(-0.7143)=-71.43>>\n#### -71.43%"
    assert executed(text, -0.71429) and not executed(text, 0.71429)


@pytest.mark.parametrize(("text", "exe_ans"), [
    ("<<100*((120-100)/100)=20>>20%\n#### 20%", 0.2),
    ("<<(120-100)/100=0.2>>\n#### 20%", 0.2),
    ("<<100*((120-100)/100)=20>>20\n#### 20", 0.2),
    ("<<100*(1+1/3)=133.33>>\n#### 133.33", 133.33333),
    ("#### 20%", 0.2),
    ("#### 0.2", 0.2),
    ("<<2+2=5>>\n#### 0.2", 0.2),
    ("<<2+2=$5>>\n#### $5", 4),  # the program is executed, not what the mark says of it
    ("no sum needed\n#### yes", "yes"),
    ("<<3*4=12>>12\n#### No.", "no"),
])  # fmt: skip
def test_percents_are_fractions_and_an_answer_without_a_mark_is_itself(text, exe_ans):
    assert executed(text, exe_ans)


@pytest.mark.parametrize(("text", "exe_ans"), [
    ("#### 14.46%", 0.14464),  # rounded, and no mark tells from what
    ("<<637/5=127.4>>127.4", 127.4),  # no answer is marked
    ("#### 20", 0.2),
    ("#### 20%", 20),
    ("#### no", "yes"),
    ("yes", "yes"),
    ("", 1.0),
    ("<<1/0=3>> #### <<", 3.0),
])  # fmt: skip
def test_execution_accuracy_knows_no_tolerance(text, exe_ans):
    assert not executed(text, exe_ans)


def test_an_exe_ans_in_percent_is_met_by_a_percent():
    assert executed("<<100*(1/8)=12.5>>\n#### 12.5%", 12.5, in_percent=True)
    assert protocols.grade("#### 12.5%", {"protocol": "finqa", "exe_ans": 12.5}, "percent").correct


def in_marks(program):
    """A published program as a model writes it: a mark a step, with the shown value of the step before."""
    operators = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
    text, shown = "", []
    for step in program.split("), "):
        name, arguments = step.rstrip(")").split("(")
        if name not in operators:
            return None
        left, right = (
            shown[int(side[1:])] if side.startswith("#") else side.removeprefix("const_").replace("m", "-")
            for side in arguments.split(", ")
        )
        expression = f"({left}){operators[name]}({right})"
        shown.append(show(calculate(expression)))
        text += mark(expression)
    return f"{text}\n#### {shown[-1]}"


def test_published_programs_written_step_by_step_have_their_published_results(published_data):
    verdicts = Counter()
    for line in (published_data / "finqa/dev.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if text := in_marks(record["program"]):
            verdicts[executed(text, record["exe_ans"])] += 1
    assert verdicts == {True: 837}, "all but those of rows' functions and comparisons"


# ---- TAT-QA


@pytest.mark.parametrize(("answers", "scale", "answer", "gold_scale"), [
    (["12.5"], "million", 12.5, "million"),
    (["12,500,000"], "", 12.5, "million"),
    (["12.501"], "million", 12.5, "million"),  # two decimals
    (["$12.50 million"], "", 12.5, "million"),
    (["23.42"], "percent", 23.42, "percent"),
    (["23.42%"], "", 23.42, "percent"),
    (["0.2342"], "", 23.42, "percent"),
    (["(5)"], "", -5, ""),
    (-5.0, "", -5, ""),
])  # fmt: skip
def test_a_number_is_compared_at_two_decimals_times_its_scale(answers, scale, answer, gold_scale):
    assert matched(answers, scale, answer, gold_scale, "arithmetic") == (True, 1.0)


@pytest.mark.parametrize(("answers", "scale"), [
    (["12.5"], "thousand"), (["12.5"], ""), (["12.52"], "million"), (["-12.5"], "million"), ([], ""), (None, None),
    (0, "million"), (["12.5 or 13"], "million"), (["9" * 5000], ""), ([".5"], "million"),
])  # fmt: skip
def test_another_number_or_scale_has_neither_match_nor_f1(answers, scale):
    assert matched(answers, scale, 12.5, "million", "arithmetic") == (False, 0.0)


def test_texts_are_compared_as_words_without_case_articles_and_punctuation():
    assert matched(["The fixed-price type."], "", ["fixed price type"]) == (False, 0.4)  # fixedprice, type
    assert matched(["The Fixed-Price type."], "", ["fixed-price type"]) == (True, 1.0)
    assert matched(["type of fixed-price"], "", ["fixed-price type"]) == (False, 0.8)  # 2 of 3, 2 of 2
    assert matched(["type, fixed-price"], "", ["fixed-price type"]) == (False, 1.0), "another order"
    assert matched(["2018", "2019"], "", ["2019", "2018"], "", "multi-span") == (True, 1.0), "answers are a set"
    assert matched(["4"], "", "4", "", "count") == (True, 1.0)


@pytest.mark.parametrize(("line", "prediction"), [
    ("#### 12.5 million", (["12.5"], "million")),
    ("#### $1,496.5 million.", (["$1,496.5"], "million")),
    ("#### -22.22%", (["-22.22"], "percent")),
    ("#### \u221222.22 percent", (["-22.22"], "percent")),
    ("#### 795, 772 thousand", (["795", "772"], "thousand")),
    ("#### 4.6%, 4.5%", (["4.6", "4.5"], "percent")),
    ("#### 4.6%, 12 million", (["4.6%", "12 million"], "")),
    ("#### fixed-price type, cost-plus type", (["fixed-price type", "cost-plus type"], "")),
    ("#### growth of 5 percent", (["growth of 5 percent"], "")),
    ("It fell.\nthe cost of sales", (["the cost of sales"], "")),
    ("", ([], "")),
    ("#### ", ([], "")),
])  # fmt: skip
def test_a_completions_marker_line_is_a_prediction(line, prediction):
    assert protocols.tatqa_prediction(line) == prediction


def test_a_comma_may_stand_between_answers_or_in_one():
    sentence = ["labor, materials and overhead"]
    for answer, kind in ((sentence, "span"), (["overhead", "labor"], "multi-span")):
        published = {"protocol": "tatqa", "answer": answer, "answer_type": kind, "scale": ""}
        assert protocols.grade(f"#### {', '.join(answer)}", published).correct
    sentence = "sales of $3 million, $5 million, and \u2013 lately \u2013 $7 million, respectively"
    published = {"protocol": "tatqa", "answer": [sentence], "answer_type": "span", "scale": ""}
    assert protocols.grade(f"#### {sentence}", published).correct, "its scales and dashes stay"
    tenths = {"protocol": "tatqa", "answer": ["$2.375 million"], "answer_type": "span", "scale": ""}
    assert protocols.grade("#### $2.375 million", tenths).correct, "two decimals are of numbers with a scale apart"


def test_a_long_text_is_compared_to_its_end():
    text = " ".join(f"word{number}" for number in range(100))
    published = {"protocol": "tatqa", "answer": [text], "answer_type": "span", "scale": ""}
    score = protocols.grade(f"As the notes say:\n#### {text}\n", published)
    assert len(text) > 600 and score.correct and score.f1 == 1.0
    assert protocols.grade(text, published).correct, "as rows of long texts answer: without a marker"


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="unknown protocol 'squad' in 'published'; choose from finqa, tatqa"):
        protocols.grade("#### 1", {"protocol": "squad"})


OFFICIAL = "5d66c03a11c9c573641baf4b68ed53288d59aed01aa7b48d04089d354adbc836"


def test_the_sample_predictions_score_as_the_official_script_says(published_data):
    """45.92 and 58.88 are what TAT-QA's own tatqa_eval.py prints for these two files, and the digest is of its verdicts
    on each question, in the file's order: a line `exact match F1`, as `1 0.67`."""
    sample = bench_protocols.sample(published_data)
    scores = [protocols.tatqa(*prediction, published) for _, published, prediction in sample]
    lines = "".join(f"{score.correct:d} {score.f1:.2f}\n" for score in scores)
    assert len(scores) == 1668 and hashlib.sha256(lines.encode()).hexdigest() == OFFICIAL
    first, reread, *_ = table = bench_protocols.table(published_data)
    assert first == "1,668 predictions: exact match 45.92 %, F1 58.88 %"
    assert reread.endswith(": 1,667 of 1,668 verdicts are equal")
    assert "\n".join(table) in (ROOT / "docs/numbers.md").read_text(encoding="utf-8"), "what the page says"
