"""The grader's claims. SHARPEN_DATA names a folder of public data sets whose golds are graded against themselves."""

import json
import math
import os
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.grade.scoring import TOLERANCES, UNITS, grade, parse


def gold(value, unit=None, **rest):
    return {"value": value, **({"unit": unit} if unit else {}), **rest}


def correct(completion, *arguments, **rest):
    return grade(completion, gold(*arguments, **rest)).correct


def error(completion, *arguments, **rest):
    return grade(completion, gold(*arguments, **rest)).error


# ---- markers


@pytest.mark.parametrize(
    "text",
    [
        "#### 42",
        "####42",
        "####\n42",
        "Final answer: 42",
        "**Final Answer:** 42",
        "**Final answer**: 42.",
        "## Final Answer\n42",
        "Final answer:\n- 42 apples",
        "The answer is 42.",
        "the answer is: **42**",
        "A: 42",
        "Answer: 42",
        r"so it is $\boxed{42}$.",
        r"The answer is $\boxed{\text{42}}$",
        r"\[ \boxed{42} \]",
        "The answer is 42. Check: 84 / 2 = 41",
        "The answer is 42, which is 6 more than 36",
        "#### 6*7 = 42",
        "#### 42 = 6*7",
        "#### x = 42",
        "#### $50 - $8 = $42",
        "#### After 5 years the value is 42",
        "#### 42 eggs per 2 days",
        "#### 41\nWait.\n#### 42",
        "Final answer: 42 (as in \\boxed{})",
        "\uff26inal answer\uff1a\uff14\uff12",
    ],
)
def test_an_answer_is_read_at_its_last_marker(text):
    verdict = grade(text, gold(42))
    assert verdict.correct and verdict.reading == "marker" and verdict.error is None


def test_an_earlier_marked_answer_does_not_count():
    verdict = grade("#### 42\nNo:\n#### 7", gold(42))
    assert not verdict.correct and verdict.value == 7 and verdict.error == "conflicting answers"


def test_a_fund_called_a_is_no_marker():
    assert grade("Fund A: 42", gold(42)).reading == "last number"


def test_the_last_number_is_a_separate_reading_that_is_never_correct():
    verdict = grade("There are 12 and then 42", gold(42))
    assert (verdict.correct, verdict.correct_lenient, verdict.value) == (False, True, 42.0)
    assert (verdict.reading, verdict.error) == ("last number", "no answer")
    assert not any(verdict.within.values())
    assert grade("#### 42", gold(42)).correct_lenient


def test_an_answer_cut_off_at_the_token_limit_is_truncated():
    assert grade("We multiply 6 by 7", gold(42), finished=False).error == "truncated"
    assert grade("We multiply ####", gold(42), finished=False).error == "truncated"
    assert grade("#### 42", gold(42), finished=False).correct


@pytest.mark.parametrize(
    "text", ["", "####", "#### none", "I cannot say.", "#### 6*7", "#### 10-15", "#### 5/0", "#### 2^10"]
)
def test_what_says_no_number_is_no_answer(text):
    assert grade(text, gold(42)).error == "no answer" and parse(text) is None


@pytest.mark.parametrize("text", ["12 or 15", "12, 15", "12 and 15", "12 / or 15", "12 15", "between 12 to 15"])
def test_two_answers_on_the_line_conflict(text):
    assert error("#### " + text, 12) == error("#### " + text, 15) == "conflicting answers"


def test_the_same_answer_twice_does_not_conflict():
    assert correct("#### 12.5% (0.125)", 12.5, "percent") and correct("#### $1,200 or 1.2 thousand dollars", 1200)


# ---- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567", 1234567),
        ("1 234 567", 1234567),
        ("1\u202f234\u00a0567", 1234567),
        ("1'234'567", 1234567),
        ("12,34,567", 1234567),
        (r"1{,}234{,}567", 1234567),
        (r"1\,234\,567.25", 1234567.25),
        ("1,234.50", 1234.5),
        ("-5.2", -5.2),
        ("- 5.2", -5.2),
        ("\u22125.2", -5.2),
        ("\u20135.2", -5.2),
        ("\uff0d5.2", -5.2),
        ("minus 5.2", -5.2),
        ("(5.2)", -5.2),
        ("($5.20)", -5.2),
        ("$(5.2)", -5.2),
        ("-$5.20", -5.2),
        ("$-5.20", -5.2),
        ("(1,234) million", -1.234e9),
        ("1.5e-3", 0.0015),
        ("1.5E+3", 1500),
        ("1.5 x 10^-3", 0.0015),
        ("1.5 \u00d7 10\u207b\u00b3", 0.0015),
        (r"$1.5 \times 10^{-3}$", 0.0015),
        ("1.5*10**3", 1500),
        ("3/4", 0.75),
        ("-3/4", -0.75),
        (r"\frac{3}{4}", 0.75),
        (r"\dfrac34", 0.75),
        ("3 1/2", 3.5),
        ("-3 1/2", -3.5),
        ("3\u00bd", 3.5),
        (r"3\frac{1}{2}", 3.5),
        ("\u00be", 0.75),
        (".5", 0.5),
        ("5k", 5e3),
        ("5m", 5e6),
        ("5bn", 5e9),
        ("$5 m", 5e6),
        ("5 thousand", 5e3),
        ("5 million dollars", 5e6),
        ("USD 5 billion", 5e9),
        ("\u20ac1.5M", 1.5e6),
        ("5 \u20ac", 5),
        ("Rs. 500", 500),
        (r"\$18", 18),
        ("US$18.00", 18),
        ("**18**", 18),
        ("`18`", 18),
        ("+18", 18),
        ("approx. 18", 18),
        ("~18", 18),
        ("\u200b18", 18),
    ],
)
def test_numbers_are_read_as_they_are_written(text, value):
    assert parse("#### " + text).value == pytest.approx(value, rel=1e-12)
    assert parse(f"so we get \\boxed{{{text}}}").value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["1,2", "1,2345", "12,345,67", "1234,567", "0,123", "1.23.456", "1.234,56,7", r"\sqrt{4}", "\u00b15", "B12"]
)
def test_malformed_numbers_are_not_guessed_at(text):
    assert parse("#### " + text) is None


def test_a_group_of_a_malformed_number_is_not_read_alone():
    assert parse("#### 1 000 00,5") is None and parse("#### 1,234,5678") is None


def test_metres_are_not_millions():
    assert correct("#### 5 m", 5) and correct("#### $5 m", 5e6) and correct("#### (5) m", -5e6)


def test_thousands_separators_are_not_read_as_the_last_group():
    assert not correct("#### 1,243", 243) and correct("#### 1,243", 1243)
    assert not grade("in the end 1,243", gold(243)).correct_lenient


def test_the_exponent_is_not_read_as_the_number():
    assert not correct("#### 1.5e-3", -3) and not correct("#### 1.5e-3", 1.5)


def test_a_box_keeps_the_minus_before_it_and_the_unit_after_it():
    assert not correct(r"= -\boxed{5}", 5) and correct(r"= -\boxed{5}", -5)
    assert correct(r"$\boxed{12.5}\%$", 0.125, "ratio") and correct(r"\boxed{5} million", 5e6)


def test_absurd_exponents_neither_overflow_nor_take_long():
    for text in ("1e999999999", "5 x 10^999999999", "9" * 10_000, "1/0.0", "0 x 10^999999"):
        assert not grade("#### " + text, gold(5)).correct


# ---- units


@pytest.mark.parametrize(
    ("text", "value", "unit", "flag"),
    [
        ("12.5%", 12.5, "percent", None),
        ("12.5 %", 12.5, "percent", None),
        ("12.5 percent", 12.5, "percent", None),
        ("12.5 percentage points", 12.5, "percent", None),
        ("12.5 pp", 12.5, "percent", None),
        ("12.5", 12.5, "percent", None),
        ("(12.5%)", -12.5, "percent", None),
        ("(12.5)%", -12.5, "percent", None),
        ("1250 bps", 12.5, "percent", "basis points as percent"),
        ("12.5%", 0.125, "ratio", "percent as ratio"),
        ("14 basis points", 0.0014, "ratio", "basis points as ratio"),
        ("0.5%", 50, "basis points", "percent as basis points"),
        ("2.5x", 2.5, "multiple", None),
        ("2.5 times", 2.5, "multiple", None),
        ("250%", 2.5, "multiple", "percent as multiple"),
        ("12.5%", 12.5, "none", "percent as none"),
        ("$12.50", 12.5, "none", None),
        ("$3", 3, "count", None),
        ("3 times", 3, "count", "multiple as count"),
    ],
)
def test_a_written_unit_is_converted_to_the_golds_and_flagged(text, value, unit, flag):
    verdict = grade("#### " + text, gold(value, unit))
    assert verdict.correct and verdict.flag == flag and verdict.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("12.5%", 12.5, "ratio"),
        ("12.5 bps", 12.5, "percent"),
        ("12.5%", 12.5, "currency"),
        ("$12.5", 12.5, "percent"),
        ("3%", 3, "count"),
    ],
)
def test_the_right_number_in_another_unit_is_a_unit_error(text, value, unit):
    assert error("#### " + text, value, unit) == "unit"


def test_a_bare_number_is_not_taken_for_a_percentage():
    assert error("#### 12.5", 0.125, "ratio") == error("#### 0.125", 12.5, "percent") == "off by 100"
    assert error("#### 12.5%", 0.125) == "off by 100"  # the gold has no unit: nothing allows the conversion


# ---- tolerance and error classes


def test_half_a_unit_of_the_last_shown_digit_passes_and_no_more():
    assert correct("#### 0.125", 0.13) and correct("#### 0.135", 0.13) and not correct("#### 0.1351", 0.13)
    assert correct("#### 12.4", 12, tolerance=0) and not correct("#### 12.4", 12, tolerance=0, decimals=2)
    assert correct("#### 1234.5", "1,234.50") and not correct("#### 1234.51", "1,234.50", tolerance=0)


def test_the_relative_tolerance_passes_and_no_more():
    assert correct("#### 100.1", 100.0, decimals=6) and not correct("#### 100.11", 100.0, decimals=6)
    assert correct("#### 104", 100.0, decimals=6, tolerance=0.05)
    assert correct("#### -99.9", -100.0, decimals=6)


def test_counts_are_exact():
    assert correct("#### 10,000", 10000, "count") and correct("#### 10000.0", 10000, "count")
    assert error("#### 10001", 10000, "count") == "wrong value"
    assert not correct("#### 10000.4", 10000, "count")


def test_three_tolerances_are_reported_at_once():
    assert list(grade("#### 103", gold(100.0)).within.items()) == [(0.001, False), (0.01, False), (0.05, True)]
    assert list(grade("#### 100.5", gold(100.0)).within.values()) == [False, True, True]
    assert set(grade("nothing", gold(1)).within) == set(grade("#### B", gold("B")).within) == set(TOLERANCES)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("-5.2", 5.2, "wrong sign"),
        ("5.2", -5.2, "wrong sign"),
        ("520", 5.2, "off by 100"),
        ("0.052", 5.2, "off by 100"),
        ("5200", 5.2, "off by a power of 1000"),
        ("5.2 million", 5.2, "off by a power of 1000"),
        ("5", 5000000, "off by a power of 1000"),
        ("12.6", 12.57, "rounding"),
        ("$1.2 million", 1234567, "rounding"),
        ("100.5", 100.0, "rounding"),
        ("52", 5.2, "wrong value"),
        ("7", 5.2, "wrong value"),
        ("1", 0, "wrong value"),
    ],
)
def test_each_wrong_number_has_a_class(text, value, expected):
    assert error("#### " + text, value) == expected


# ---- choices and truth values


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "Fund B",
        "the fund B.",
        "**B**",
        "(B)",
        "Option (B)",
        r"\boxed{\text{Fund B}}",
        "B (Sharpe 1.20)",
        "B: 1.2",
    ]
    + ["Portfolio B has the higher ratio", "B, because A is riskier", "B is best", "The best fund is B"],
)
def test_a_choice_ignores_case_decoration_and_generic_nouns(text):
    assert correct("#### " + text, "B", "choice") and correct("#### " + text, "Fund B")


@pytest.mark.parametrize("text", ["A", "A or B", "A, B", "A and B", "BB", "not B", "neither"])
def test_another_choice_or_two_at_once_is_wrong(text):
    assert not correct("#### " + text, "B", "choice")


@pytest.mark.parametrize(
    "text",
    [
        "B, A, C",
        "b,a,c",
        "B > A > C",
        r"$B \succ A \succ C$",
        "C < A < B",
        "B then A then C",
        "B, A and C",
        "B, then A, and C.",
        "Fund B, Fund A, Fund C",
        "from best to worst: B, A, C",
        "B (1.20), A (0.90), C (0.10)",
        "B: 1.20, A: 0.90, C: 0.10",
        "\n1. Fund B\n2. Fund A\n3. Fund C",
        "\n- B\n- A\n- C\nThis order follows the ratios.",
    ],
)
def test_an_ordering_is_compared_as_a_sequence_of_labels(text):
    assert correct("#### " + text, "B, A, C", "choice")
    assert not correct("#### " + text, "B, C, A", "choice")
    assert not correct("#### " + text.strip().replace("\n", ", "), "B", "choice")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes", True),
        ("yes.", True),
        ("**True**", True),
        ("No, it is not", False),
        ("false", False),
        ("not true", False),
    ],
)
def test_truth_values_are_read_as_words(text, value):
    assert correct("#### " + text, value) and not correct("#### " + text, not value)
    assert correct("#### " + text, "yes" if value else "no", "bool")


def test_a_number_or_both_words_are_no_truth_value():
    assert error("#### 1", True) == "no answer" and error("#### yes or no", True) == "conflicting answers"


def test_true_is_not_one():
    assert not correct("#### 1", True) and correct("#### 1", 1) and not correct("#### true", 1)


# ---- golds


def test_a_bare_number_is_a_gold_and_a_spelt_number_brings_its_unit_and_digits():
    assert grade("#### 5", 5).correct and grade("#### yes", True).correct and grade("#### 0.125", "12.5%").error
    assert grade("#### 1234.5", "1 234,50").correct and not grade("#### 1", "1 234,50").correct
    assert grade("#### 3,200,000", "3.2 Mio").correct and not grade("#### 3.2", "3.2 Mio").correct
    assert grade("#### 12.54%", "12.5%").correct and grade("#### $1.2 million", "$1,200,000").correct


@pytest.mark.parametrize(
    "bad",
    [
        gold(5, "furlong"), gold("B", "percent"), gold(math.nan), gold(math.inf), gold("5", "bool"), gold("x", "count"),
        gold(10**400), gold("18,5"), gold("5 mil"), gold("1.234 \u20ac", "currency"),
        gold(5, ["percent"]), gold(5, 5), gold(None), gold([5]), gold(""), gold(" ", "choice"), {}, [5],
        gold(5, tolerance="1%"), gold(5, tolerance=-1), gold(5, tolerance=True), gold(5, tolerance=math.nan),
        gold(5, decimals="2"), gold(5, decimals=1.5), gold(5, decimals=400), gold(5, decimals=True), None,
    ],
)  # fmt: skip
def test_a_gold_that_its_unit_does_not_fit_is_refused(bad):
    with pytest.raises(ValueError, match="unit|finite|true|give"):
        grade("#### 5", bad)


# ---- properties

VALUES = st.decimals(min_value=-(10**9), max_value=10**9, places=2).filter(bool)
MARKERS = st.sampled_from(
    [
        "#### {}",
        "Final answer: {}",
        "**Final answer:** {}.",
        "The answer is {}.",
        "A: {}",
        r"$\boxed{{{}}}$",
        "####\n{}",
    ]
)


def spellings(value: Decimal) -> list[str]:
    plain, grouped, bare = f"{value}", f"{value:,}", f"{abs(value):,}"
    sign = "-" if value < 0 else ""
    return [
        plain,
        grouped,
        grouped.replace("-", "\u2212"),
        grouped.replace(",", "{,}"),
        grouped.replace(",", "\u202f"),
        f"**{plain}**",
        f"{sign}${bare}",
        f"USD {grouped}",
        f"{grouped} dollars",
        f"({bare})" if value < 0 else bare,
        f"{value:.15e}",
        f"{Decimal(value) * 1000}e-3",
        f"{value * 10} x 10^-1",
        f"x = {plain}",
        plain.translate({ord(digit): chr(0xFF10 + int(digit)) for digit in "0123456789"}),
    ]


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES, MARKERS, st.sampled_from(["none", "currency"]))
def test_formatting_never_flips_a_verdict(value, other, marker, unit):
    for answer in (value, other):
        expected = abs(answer - value) <= max(abs(value) * Decimal("0.001"), Decimal("0.005"))
        for text in spellings(answer):
            assert correct(marker.format(text), float(value), unit, decimals=2) == expected, text


@settings(max_examples=60, deadline=None)
@given(VALUES, MARKERS, st.sampled_from(UNITS[:7]))
def test_a_changed_sign_or_factor_of_ten_always_flips_a_verdict(value, marker, unit):
    for wrong in (-value, value * 10, value / 10):
        assert not correct(marker.format(wrong), float(value), unit, decimals=2)
        assert not correct(marker.format(f"{wrong:,}"), float(value), unit, decimals=2)


PIECES = st.sampled_from(
    [
        "####",
        "\\boxed{",
        "}",
        "Final answer:",
        "A:",
        "\n",
        " ",
        ",",
        ".",
        "-",
        "(",
        ")",
        "$",
        "%",
        "/",
        "e",
        "^",
        "x 10^",
    ]
    + [
        "1",
        "23",
        "456",
        "\u00bd",
        "\u2212",
        "\u00b2",
        "\\frac{",
        "{",
        "million",
        "k",
        "bps",
        "or",
        "B",
        ">",
        "yes",
        "\u0301",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join)), st.booleans())
def test_no_text_raises(text, finished):
    for value in (5, -0.125, "B, A, C", True):
        verdict = grade(text, gold(value), finished)
        assert verdict.correct == (verdict.error is None)
        json.dumps(verdict.value, allow_nan=False)


def test_lone_surrogates_and_control_characters_do_not_raise():
    assert not correct("\ud800#### \x00\udfff", 5) and correct("\x00\ud800\n#### 5", 5)


@pytest.mark.parametrize(
    "piece",
    [
        "####",
        "#### ",
        "\\boxed{",
        "1",
        "1,",
        " 234",
        " (1",
        "(",
        "a\u0300\u0316",
        "\u0300\u0316",
        "1 ",
        "- ",
        "$",
        "\n",
        "\\frac{1}",
    ]
    + [
        "A:\n",
        "final answer ",
        "the answer is ",
        " is 5",
        "=",
        "1/",
        "1e",
        "x 10^",
        "\u00bd",
        "\u00b2",
        "yes no ",
        "_*",
        "B > ",
    ],
)
def test_pathological_text_takes_at_most_a_millisecond_a_kilobyte(piece):
    for start in ("", "#### "):
        text = start + piece * (50_000 // len(piece))
        for value in (5, "B, A", True):
            begin = time.process_time()
            grade(text, gold(value))
            assert time.process_time() - begin < 0.050 * 5, "50 kB; five times the promise, for a busy machine"


# ---- public golds


def rows_of(*path):
    folder = os.environ.get("SHARPEN_DATA")
    if not folder or not Path(folder, *path).is_file():
        pytest.skip(f"SHARPEN_DATA names no folder with {'/'.join(path)}")
    return [json.loads(line) for line in Path(folder, *path).read_text(encoding="utf-8").splitlines()]


def gsm8k():
    return [gold(row["answer"].rpartition("####")[2].strip()) for row in rows_of("gsm8k", "test.jsonl")]


def svamp():
    return [gold(row["answer"]) for row in rows_of("svamp", "test.jsonl")]


def finance_reasoning():
    return [gold(row["ground_truth"]) for row in rows_of("finance_reasoning", "easy.jsonl")]


def finqa():
    return [gold(row["exe_ans"]) for row in rows_of("finqa", "dev.jsonl")]


def tatqa():
    questions = [question for row in rows_of("tatqa", "dev.jsonl") for question in row["questions"]]
    scales = {"thousand": 1e3, "million": 1e6, "billion": 1e9}
    return [
        gold(
            float(question["answer"]) * scales.get(question["scale"], 1),
            "percent" if question["scale"] == "percent" else "none",
        )
        for question in questions
        if question["answer_type"] in ("arithmetic", "count")
    ]


def tatqa_spans():
    """The text answers of TAT-QA, alone or several: a number in words, or a passage that must be named."""
    questions = [question for row in rows_of("tatqa", "dev.jsonl") for question in row["questions"]]
    answers = [", ".join(filter(None, one["answer"])) for one in questions if isinstance(one["answer"], list)]
    answers = [answer for answer in answers if len(answer) < 290]  # two longer passages are no short answers
    return [gold(answer, None if parse("#### " + answer) else "choice") for answer in answers]


def test_text_answers_graded_against_themselves_are_right_in_five_wrappings():
    every, wrappings = tatqa_spans(), ["#### {}", "Final answer: {}", "The answer is {}", r"\boxed{{{}}}", "**A:** {}"]
    assert len(every) > 900
    assert not [(w, one) for one in every for w in wrappings if not grade(w.format(one["value"]), one).correct]


def five_spellings(value):
    if isinstance(value, bool) or value in ("yes", "no"):
        word = {True: "yes", False: "no"}.get(value, value)
        return [
            f"#### {word}",
            f"Final answer: **{word.title()}**.",
            f"The answer is {word}",
            rf"\boxed{{{word}}}",
            f"A: {word}, so",
        ]
    number = float(value.replace(",", "")) if isinstance(value, str) else value
    grouped = f"{number:,}"
    return [
        f"#### {value}",
        f"**Final answer:** {grouped}",
        "The answer is ${}.".format(grouped.replace(",", "{,}").replace("-", "\u2212")),
        rf"\boxed{{{number:.16e}}}",
        f"A: ({grouped[1:]})" if number < 0 else f"A: {grouped.replace(',', ' ')}",
    ]


@pytest.mark.parametrize("golds", [gsm8k, svamp, finance_reasoning, finqa, tatqa])
def test_public_golds_graded_against_themselves_are_right_in_five_spellings(golds):
    every = golds()
    assert len(every) > 700
    wrong = [
        (text, one) for one in every for text in five_spellings(one["value"])
        if not grade(text.replace("$", "") if one.get("unit") == "percent" else text, one).correct
    ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("golds", [gsm8k, svamp, finance_reasoning, finqa, tatqa])
def test_public_golds_with_another_sign_or_size_are_wrong(golds):
    numbers = [one for one in golds() if not isinstance(one["value"], bool) and one["value"] not in ("yes", "no")]
    for one in numbers:
        number = float(str(one["value"]).replace(",", ""))
        for other in (-number, number * 10, number / 10) if number else (1.0,):
            assert not grade(f"#### {other!r}", one).correct, (other, one)
