"""What texts answer, in spellings collected by hand: each stands in four wrappings, and none is taken for another."""

import re
import subprocess
import sys

import pytest

from lib.grade.reading import parse
from lib.grade.scoring import grade

WRAPPINGS = ("#### {}", "Final answer: {}", "The answer is {}", r"so \boxed{{{}}}")
MINUSES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u207b\u208b\u02d7\u2796\ufe58\ufe63\uff0d"
NUMBERS = {
    "plain": {
        "42": 42, "42.0": 42, "42.": 42, "+42": 42, "042": 42, ".5": 0.5, "-.5": -0.5, "0": 0, "-0": 0, "42?": 42,
        "x = 42": 42, "21 + 21 = 42": 42, "42 = 21 + 21": 42, "approximately 42.5.": 42.5, "41.7 \u2248 42": 42,
        "41.7, rounded to 42": 42, "41.73, to 2 decimal places": 41.73, "41.73 (rounded to 2 decimal places)": 41.73,
        "41.73 (to the nearest cent)": 41.73, "41.73 rounded to two decimals": 41.73, "Q3 42": 42, "Year 3: 42": 42,
        "S&P 500: 42": 42, "After 5 years: 42": 42, "42 in 2019 and 2020": 42, "42 at 5% for 3 years": 42,
        "not 41 but 42": 42, "42, not 43": 42, "42 and 42": 42, "1/3 = 0.33 or 33%": 0.33, "\uff14\uff12": 42,
        "4\u200b2": 42, "\u202a42\u202c": 42, "\u00ad42": 42, "\u2192 42": 42, "> 42": 42, "42<|im_end|>": 42,
    },
    "minus": {
        **{f"{minus}42": -42 for minus in MINUSES},
        "minus 42": -42, "Negative 42": -42, "negative $42": -42, "(42)": -42, "( 42 )": -42, "($42)": -42,
        "$(42)": -42, "$ (42)": -42, "(42%)": -42, "(42)%": -42, "-(42)": -42, "-$42": -42, "$-42": -42, "$ -42": -42,
        "- $42": -42, "\u2212\u20ac42": -42, "\u20ac\u221242": -42, "USD -42": -42, "-USD 42": -42, "(USD 42)": -42,
        "USD (42)": -42, "(1,234.5)": -1234.5, "$(1.2) million": -1.2e6, "($1.2 million)": -1.2e6, "($1.2M)": -1.2e6,
        "-$1.2M": -1.2e6, r"-\$42": -42, r"\$-42": -42, r"\text{minus } 42": -42, r"\left(42\right)": -42,
        "{-}42": -42, "-3/4": -0.75, r"-\frac{3}{4}": -0.75, r"\frac{-3}{4}": -0.75, "-1 1/2": -1.5, "(3/4)": -0.75,
        "-1.5e-3": -0.0015, "-42%": -42,
    },
    "grouping": {
        "1,234,567": 1234567, "1 234 567": 1234567, "1\u2009234\u2009567.8": 1234567.8, "1\u00a0234": 1234,
        "1\u2019234\u2019567": 1234567, "1_234_567": 1234567, r"1\_234": 1234, "12,34,567": 1234567,
        "1,00,000": 100000, "1,23,45,678.90": 12345678.9, "1,234.": 1234, "1,234.5.": 1234.5, r"1{,}234": 1234,
        "1.234,56": 1234.56,
        "\u20ac1.234,56": 1234.56, "1.234.567": 1234567, "1 234,50 kr": 1234.5, "12\u202f345,67 \u20ac": 12345.67,
        "1\u2019234,5": 1234.5, "R$ 1.234.567,89": 1234567.89, "z\u0142 1 000 000,5": 1000000.5,
    },
    "powers": {
        "1.5e-3": 0.0015, "1.5E-3": 0.0015, "1.5e+3": 1500, "1.5e\u22123": 0.0015, "1.5 x 10^-3": 0.0015,
        "1.5 \u00d7 10^-3": 0.0015, "1.5\u00d710\u207b\u00b3": 0.0015, "1.5 * 10^-3": 0.0015, "1.5*10**-3": 0.0015,
        r"1.5 \times 10^{-3}": 0.0015, r"1.5\cdot10^{3}": 1500, "1.5 \u00b7 10^3": 1500, "1.5 \u22c5 10^3": 1500,
        "1.5 X 10^3": 1500, "1.5x10^3": 1500, "1.5 x 10^(-3)": 0.0015, "1.5 \u00d7 10\u2076 USD": 1.5e6,
        "$1.5 x 10^6": 1.5e6,
    },
    "fractions": {
        "3/4": 0.75, "3 / 4": 0.75, r"\frac{3}{4}": 0.75, r"\frac34": 0.75, r"\tfrac{3}{4}": 0.75, r"\frac 3 4": 0.75,
        "3\u20444": 0.75, "\u00be": 0.75, "\u2154": 2 / 3, "1 1/2": 1.5, "1\u00bd": 1.5, "1 \u00bd": 1.5,
        r"1\frac12": 1.5, r"1\tfrac{1}{2}": 1.5, "1,000/4": 250, "2 1/2 million": 2.5e6,
    },
    "scales": {
        "5k": 5e3, "5K": 5e3, "$5 k": 5e3, "5M": 5e6, "$5m": 5e6, "$5 M": 5e6, "5mm": 5e6, "$5MM": 5e6, "5mn": 5e6,
        "5 mn": 5e6, "5 mln": 5e6, "5bn": 5e9, "5 bn": 5e9, "5B": 5e9, "$5 B": 5e9, "5tn": 5e12, "$5T": 5e12,
        "5 hundred": 500, "5 thousand": 5e3, "5 thousands": 5e3, "5 million": 5e6, "5 millions": 5e6, "5-million": 5e6,
        "5 Billion": 5e9, "5 trillion": 5e12, "5 lakh": 5e5, "5 crore": 5e7, "1.2 million US dollars": 1.2e6,
        "5.2 million (5,200,000)": 5.2e6, "5.2 million or 5,200,000": 5.2e6, "\u20ac5bn": 5e9, "5 M\u20ac": 5e6,
        "EUR 5m": 5e6, "EUR5m": 5e6, "3.5 million shares": 3.5e6, r"5\text{ million}": 5e6, "5 kg": 5, "5 months": 5,
        "5 men": 5, "5 Bonds": 5, "5t": 5, "5 m": 5,
    },
    "currencies": dict.fromkeys([
        "$42", "42$", "42 $", "US$42", "US$ 42", "USD42", "USD 42", "42 USD", "42USD", "\u20ac42", "42\u20ac",
        "42 \u20ac", "\u20ac\u00a042", "\u00a342", "\u00a542", "\u20b942", "\uffe542", "\uffe142", "\uff0442", "Rs 42",
        "Rs.42", "INR 42", "42 rupees", "42 dollars", "42 euros", "HK$42", "A$42", "CA$42", "CHF 42", "\u20bf42",
        r"\$42", r"$\$42$", r"\text{\$}42", "~$42", "$42 per share", "$42/share",
    ], 42),
    "markup": dict.fromkeys([
        "**42**", "*42*", "_42_", "`42`", "***42***", "**$42**", "$**42**", "**$**42", "~~41~~ 42", "<b>42</b>", "[42]",
        '"42"', "\u201c42\u201d", "{42}", r"\textbf{42}", r"\mathbf{42}", r"\(42\)", r"\[42\]", "$$42$$", "$42$",
        r"\underline{42}", r"\color{red}{42}", r"\displaystyle 42", r"\approx 42", r"\sim 42", r"42\\", "42\u3002",
    ], 42),
    "units": {
        **dict.fromkeys([
            "42%", "42 %", "42\u00a0%", "42\uff05", "42 percent", "42 per cent", "42 pct", "42 percentage points",
            "42 percentage point", "42 pp", "42pp", "42 p.p.", r"42\%", r"42\,\%", "42 bps", "42bps", "42 bp",
            "42 basis points", "42% p.a.",
        ], 42),
        "2.5x": 2.5, "2.5 X": 2.5, "2.5\u00d7": 2.5, r"2.5\times": 2.5, "2.5 times": 2.5, "2.5-fold": 2.5,
    },
}  # fmt: skip
NOTHING = [
    "1,2", "1,23", "1,2345", "12,345,67", "1,234,56", "1234,567", "0,5", "3,5 %", "\u20ac3,50", "18,5", "3/0", "21*2",
    "3:4",
    "1-1/2", "1/2/3", "10^6", "42 or 43", "42 (or 43)", "42 and 43", "42 to 43", "42-43", "42\u201343", "42 \u00b1 1",
    "between 42 and 43", "not 42", "N/A", "NaN", "inf", "infinity", "none", "forty-two", "\u0664\u0662", "4 2", "$",
    "half a million", "x2.5", "e5", r"\sqrt{4}", "__import__('os')",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"), [case for table in NUMBERS.values() for case in table.items()], ids=lambda case: ascii(case)
)
def test_a_number_is_read_as_a_person_reads_it(text, value):
    for wrapping in WRAPPINGS:
        reading = parse(wrapping.format(text))
        assert reading and reading.value == pytest.approx(value, rel=1e-12, abs=0), wrapping.format(text)


@pytest.mark.parametrize("text", NOTHING, ids=ascii)
def test_what_is_no_single_number_is_not_guessed_at(text):
    assert [parse(wrapping.format(text)) for wrapping in WRAPPINGS] == [None] * 4


UNITS = {
    "percent": ["42%", "42\uff05", "42 percent", "42 per cent", "42 pct", "42 percentage points", "42 pp", r"42\%"],
    "basis points": ["42 bps", "42bp", "42 basis points", "42 basis point"],
    "multiple": ["42x", "42 x", "42\u00d7", "42 times", r"42\times"],
    "currency": ["$42", "42 EUR", "\u20b942", "42 dollars", r"\$42", "(\u00a342)", "-$42", "$42 million"],
    "none": ["42", "42 apples", "42 xylophones", "42 people", "42 million", "42 points", "42 beeps"],
}


@pytest.mark.parametrize(("unit", "text"), [(unit, text) for unit, texts in UNITS.items() for text in texts])
def test_the_unit_shown_is_kept(unit, text):
    assert parse("#### " + text).unit == unit


@pytest.mark.parametrize(
    "text",
    [
        "#### 42", "####42", "text #### 42\n", "##### 42", "####: 42", "#### Answer: 42", "#### 41\n#### 42",
        "#### 41 #### 42", "#### 42\n\nNext question: 17", "```\n#### 42\n```", "Final answer: 42",
        "FINAL ANSWER: 42", "Final answer = 42", "**Final answer: 42**", "__Final answer:__ 42", "Final answer:\n\n42",
        "### Final Answer:\n\n**42**", r"The final answer is: $\boxed{42}$", "Final answer (rounded): 42",
        "Final answer for Fund A: 42", "The final answer is 42. I hope it is correct.", "The answer is 42",
        "the answer is: 42", "The answer: 42", "So the answer is **42**.", "The correct answer is 42",
        "the answer would be 42", "My answer is 42", "The answer is\n\n$$42$$", "The answer is:\n- 42", "Answer: 42",
        "**Answer**: 42", "> Answer: 42", "- Answer: 42", "1. Answer: 42", "ANSWER: 42", "Answer = 42",
        "Answer (rounded): 42", "Q: how many?\nA: 42", "**A:** 42", "Answer: 41\nQuestion: 5?\nAnswer: 42",
        "<answer>42</answer>", r"\boxed{42}", r"\boxed {42}", r"\boxed{\boxed{42}}", r"\fbox{42}", r"\boxed{x=42}",
        r"\boxed{42\text{ dollars}}", r"\boxed{42", r"$$\boxed{42}$$", r"\boxed{42}\%",
        r"\boxed{42} \text{bps}", "The answer is 41.\n#### 42", "### Answer: 42", "## Answer\n\n42", "**Answer**\n42",
        "\\boxed{\n42\n}", "\\[\\boxed{\n\\text{42}\n}\\]", "Final answer:\n```\n42\n```", "Answer: the sum is\n42",
        "#### 42\nSo the answer is reasonable.", "Answer: 42\n(The answer is rounded to 2 decimals.)",
        "Answer: 42\nThe answer is based on 2021 data.", "<think>\nthe answer is 41\n</think>\n#### 42",
        "41</think>\nA: 42",
    ],
)  # fmt: skip
def test_a_marker_marks(text):
    reading = parse(text)
    assert reading and (reading.value, reading.reading) == (42, "marker")


@pytest.mark.parametrize(
    "text", ["a: 42", "Fund A: 42", "A. 42", "A = 42", "### 42", "boxed{42}", "The answers differ: 42", "- A: 42"]
)
def test_what_is_no_marker_does_not_mark(text):
    assert grade(text, 42).reading != "marker"


@pytest.mark.parametrize(
    "text",
    [
        "#### 42\nThe answer is wrong.", "#### 42\n#### none", "<think>\n#### 42",
        "<think>#### 42</think>\nSo 41 are left.", "#### 41\n<think>42",
        "Final answer:\n\n| Year | NPV |\n|---|---|\n| 2024 | 42 |", '{"answer": 42}',
    ],
)  # fmt: skip
def test_an_answer_taken_back_thought_or_in_a_table_does_not_count(text):
    assert not grade(text, 42).correct
    assert "think" not in text or not grade(text, 42).correct_lenient


def test_a_remark_about_the_answer_hides_no_choice_or_truth_value():
    choice = {"value": "B", "unit": "choice"}
    assert grade("Answer: B\n(Note that the answer is rounded to one decimal.)", choice).correct
    assert not grade("Answer: A\nThe answer is rounded.", choice).correct
    assert grade("Answer: Yes\n\nThe answer is based on the 2022 filing.", True).correct


CHOICES = {
    "B": ["B", "b", "(b)", "B)", "B.", "[B]", "Option B", "Choice B", "It is B", "B. Fund Beta", "(B) Fund Beta",
          r"\text{B}", r"\textbf{(B)}", "**B**: because", "B: 1.2", "Fund B, since A has more risk", "\uff22",
          "the best is B", "B: hold the bond", "B - Fund Beta", "B \u2014 Fund Beta", "Option B: hold", "B (Fund 2)"],
    "Alpha": ["alpha", "ALPHA.", "Fund Alpha", "Alpha Fund", "Alpha has the higher ratio", "Alpha (1.2 vs 1.1)"],
    "Alpha, Beta, Gamma": [
        "Alpha > Beta > Gamma", "Gamma < Beta < Alpha", "Alpha; Beta; Gamma", "Alpha / Beta / Gamma",
        "Alpha \u2265 Beta \u2265 Gamma", "Alpha \u2192 Beta \u2192 Gamma", "1) Alpha 2) Beta 3) Gamma",
        "Alpha first, then Beta, then Gamma", "Alpha, followed by Beta, followed by Gamma", "Alpha, Beta and Gamma",
    ],
    "USD": ["USD", "usd.", "**USD**"],
    "due to lower fees": ["due to lower fees", "Due to lower fees."],
    "the plan is closed": ["the plan is closed", "The plan is closed."],
}  # fmt: skip
OTHERS = {
    "B": ["A", "AB", "A or B", "B and C", "B/C", "B: 1.2, C: 1.3", "B: best, C: worst", "B - C", "Neither",
          "Both", "not B", "A. Fund Beta", "USD"],
    "Alpha": ["Alphabet", "Beta", "Alpha > Beta", "Alpha or Beta"],
    "Alpha, Beta, Gamma": ["Gamma, Beta, Alpha", "Alpha, Beta", "Alpha", "Alpha < Beta < Gamma"],
    "USD": ["EUR", "$", "dollars"],
}  # fmt: skip


@pytest.mark.parametrize(("gold", "text"), [(gold, text) for gold, texts in CHOICES.items() for text in texts])
def test_a_choice_is_recognised(gold, text):
    assert all(grade(wrapping.format(text), {"value": gold, "unit": "choice"}).correct for wrapping in WRAPPINGS)


@pytest.mark.parametrize(("gold", "text"), [(gold, text) for gold, texts in OTHERS.items() for text in texts])
def test_another_choice_is_not(gold, text):
    assert not any(grade(wrapping.format(text), {"value": gold, "unit": "choice"}).correct for wrapping in WRAPPINGS)


TRUTHS = {
    True: ["yes", "Yes.", "YES", "**yes**", "yes!", "true", "y", "Yes, it does not", "It is true", r"\text{Yes}",
           "\uff39es", "Yes (1.2 > 1.1)", "not false"],
    False: ["no", "No.", "false", "N", "not true", "No, it is not", "no, yes would be wrong", "It is not true",
            "It isn't true", "It isn\u2019t true", "It cannot be true", "not necessarily true", "It is false"],
    None: ["yes or no", "yes/no", "yes and no", "yes no", "1", "it does", "Noted", "nothing", "untrue", "cannot say"],
}  # fmt: skip


@pytest.mark.parametrize(("value", "text"), [(value, text) for value, texts in TRUTHS.items() for text in texts])
def test_a_truth_value_is_read_with_its_negation(value, text):
    for wrapping in WRAPPINGS:
        reading = parse(wrapping.format(text), "bool")
        assert (reading and reading.value) is value, wrapping.format(text)


def test_no_code_is_evaluated():
    """No source holds a call that could run a text, and a text that would leave a trace leaves none."""
    from lib.grade import numerals, reading, scoring, sentences, words

    for module in (words, numerals, sentences, reading, scoring):
        with open(module.__file__, encoding="utf-8") as file:
            source = file.read().replace("re.compile(", "")
        assert not re.search(r"\b(?:eval|exec|compile|literal_eval|__import__|sympify|loads)\(", source)
    probe = "import lib.grade.reading as r; r.parse('#### __import__(\"os\")._exit(7)'); r.parse('#### 9**9**9**9')"
    assert subprocess.run([sys.executable, "-c", probe], timeout=60).returncode == 0
