"""Which number of a line is its answer, worked by hand; a line that states none, or two, has no answer."""

from collections import Counter

import pytest

from lib.grade.reading import parse
from tests.benchmarks import fuzz_numerals

ANSWERS = {
    "the answer comes later": {
        "The 3-year average of fees as a share of sales is 4.7%": 4.7,
        "The 2021 sales of Merlin (formerly Kite) were $4.1 billion": 4.1e9,
        "FY2021 cash, defined as money at banks less drafts, was $6.2 million": 6.2e6,
        "As of June 30, 2021, net debt was $84 million": 84e6,
        "For the 3 months ended 31 March 2020 the margin reached 1.8%": 1.8,
        "In 2019, the fund which grew most had assets of $9 million": 9e6,
        "After 4 years, the deposit will be worth $1,215.51.": 1215.51,
        "Between 2019 and 2021, sales grew by 12%": 12, "2024 revenue: $3.1 billion": 3.1e9, "2022: 12.5%": 12.5,
        "Net income (loss): (5.2) million": -5.2e6, "The S&P 500 fund returned 7%": 7, "1Q24 sales of $5M": 5e6,
        "3-year 5%": 5,
    },
    "an explanation follows": {
        "4.2 (n = 100)": 4.2, "12.5% (= $50 / $400)": 12.5, "$1,215.51 = $1,000 \u00d7 1.05^4": 1215.51,
        "$1,215.51 = $1,000(1.05)^4": 1215.51, "$640 (i.e., 20% of $3,200)": 640, "$640, i.e., $160 per share": 640,
        "$640 ($160 per share)": 640, "$640 is 20% of $3,200": 640, "20% of $3,200 = $640": 640,
        "$9 million, as sales doubled in 2022": 9e6, "4.2 for n = 100": 4.2, "42 is the sum of 40 and 2": 42,
        "$5M, up from $3M": 5e6, "12% from $50 to $56": 12, "42[1]": 42, "12.5%\u00b9": 12.5, "45% (0.45)": 45,
        "-200 + 150/1.1 + 120/1.21 = 35.54": 35.54, "5.0x (net debt / EBITDA)": 5, "42 (see Note 7)": 42,
        "$640, that is $160 per share": 640, "7.2%, where growth compounds over 5 years": 7.2,
    },
    "nothing but a date, a span or a name": {"2019": 2019, "In 2019": 2019, "5 years": 5, "Fund 2": 2, "3-fold": 3},
    "languages": {
        "1.2\u4ebf\u5143": 1.2e8, "150\u5104\u5186": 1.5e10, "1,500\ub9cc \uc6d0": 1.5e7,
        "1\u51042,000\u4e07\u5186": 1.2e8,
        "12.5\u4e2a\u767e\u5206\u70b9": 12.5, "35%\uff082022\u5e74\uff09": 35, "3.2 Mio. EUR": 3.2e6,
        "3.2 Mrd. EUR": 3.2e9, "1.5 Millionen Euro": 1.5e6, "2 milliards d'euros": 2e9, "3 mil millones de euros": 3e9,
        "Rs. 3 Cr": 3e7,
        "5 \u0442\u044b\u0441. \u0440\u0443\u0431.": 5e3, "2 dozen": 24, "5 hundred thousand": 5e5, "3 MEUR": 3e6,
        "5\u5343\u514b": 5, "12.5\u2030": 1.25, "1.5 lakh crore": 1.5e12, "1,234-": -1234, "%12.5": 12.5,
    },
}  # fmt: skip
NONE = [
    "between 3% and 5%", "from $50 to $60", "12% to 15%", "42, 43", "2018, 2019", "$640 and $160", "x = 3, y = 4",
    "x = 3 or x = 4",
    "rent: $5M, food: $3M", "18,5", "3,5 %", "\u20ac3,50", "1.234 \u20ac", "1.234 Mio. EUR", "1,234 Mio. EUR", "5 mil",
    "5T", "3 TEUR", "5 E Ft", "2 and a half million", "31.12.2021", "12/2021", "\u25b35", "20% of $3,200", "1:2.5",
    "3,5 of 7",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"), [case for table in ANSWERS.values() for case in table.items()], ids=lambda case: ascii(case)
)
def test_the_number_that_a_line_states_is_its_answer(text, value):
    for wrapping in ("#### {}", "Final answer: {}", "**Answer:** {}."):
        reading = parse(wrapping.format(text))
        assert reading and reading.value == pytest.approx(value, rel=1e-12), wrapping.format(text)


@pytest.mark.parametrize("text", NONE, ids=ascii)
def test_a_line_with_two_answers_or_an_ambiguous_one_has_none(text):
    assert parse(f"#### {text}") is None and parse(f"Answer: {text}.") is None


def test_money_is_no_mathematics():
    for text in ("$5M, up from $3M", "$5 m, up from $3 m", r"\$5M"):
        assert (parse(f"#### {text}").value, parse(f"#### {text}").unit) == (5e6, "currency")
    assert parse("#### $5$ and so $x = 5$").unit == "none"


def test_a_spelling_by_unicodes_tables_is_read_or_refused_and_never_misread():
    """2,000 of the 100,000 of the benchmark, which says what is ambiguous."""
    outcomes = Counter((one.ambiguous, fuzz_numerals.outcome(one)) for one in fuzz_numerals.spellings(2000, seed=1))
    assert not [outcome for outcome in outcomes if outcome[1] == "misread"]
    assert outcomes[False, "right"] > 1000 and outcomes[False, "no answer"] <= 0.01 * outcomes[False, "right"]
