"""The task generator, against golds recomputed here from the questions' own numbers, by other code."""

import json
import re
from collections import Counter
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from lib import splits, tasks
from lib.calculator import MARK, wrong_marks
from lib.scoring import grade

SEEDS = (0, 1, 20_261)
UNITS = {
    "compounding": "currency", "maximum drawdown": "percent", "Sharpe comparison": "choice",
    "volatility annualisation": "percent", "position sizing": "count", "risk-adjusted ranking": "choice",
}  # fmt: skip


# --- a second reading of the questions, which shares nothing with lib.tasks -------------------------------------------
def dollars(text):
    return [Decimal(found.replace(",", "")) for found in re.findall(r"\$(\d[\d,]*(?:\.\d+)?)", text)]


def percents(text):
    return [Decimal(found) for found in re.findall(r"(\d+(?:\.\d+)?)%", text)]


def names(text):
    """The funds in the order of their first mention."""
    return sorted((n for n in tasks.NAMES if re.search(rf"\b{n}\b", text)), key=text.index)


def read_compounding(text):
    word = re.search("semi-annually|half-year|quarter|month|annually|every year", text)[0]
    periods = {"semi-annually": 2, "half-year": 2, "quarter": 4, "month": 12, "annually": 1, "every year": 1}[word]
    (principal,), (rate,) = dollars(text), percents(text)
    years = Decimal(re.search(r"(\d+) years", text)[1])
    return {"principal": principal, "rate": rate, "years": years, "periods": periods}


def read_drawdown(text):
    return np.array([int(n) for n in re.search(r"\d+(?:, \d+)+", text)[0].split(", ")])


def read_funds(text, with_risk_free):
    """(risk-free rate, {name: (return, volatility)})."""
    risk_free = None
    if with_risk_free:
        pattern = r"(?:risk-free(?: rate)?(?: is| of)?|(?:Cash|Bills) yields?|bills pay|safe rate stands at) ([\d.]+)%"
        risk_free, text = Decimal(re.search(pattern, text)[1]), re.sub(pattern, "", text)
    values, funds = percents(text), names(text)
    assert len(values) == 2 * len(funds) == (4 if with_risk_free else 6)
    if "Their volatilities are" in text:
        pairs = list(zip(values[:3], values[3:]))
    else:
        pairs = list(zip(values[::2], values[1::2]))
    if " At a volatility of" in text:
        pairs = [(b, a) for a, b in pairs]
    return risk_free, dict(zip(funds, pairs))


def read_volatility(text):
    (period,) = {word.lower() for word in re.findall("(?i)daily|weekly|monthly", text)}
    (volatility,) = percents(text)
    return period, volatility


def read_position(text):
    stop, entry, account = sorted(dollars(text))  # the account is always the largest, the stop below the entry
    (risk,) = percents(text)
    return {"account": account, "risk": risk, "entry": entry, "stop": stop, "distance": entry - stop}


def by_ratio(funds, risk_free=Decimal(0)):
    """Names by (return - risk-free) / volatility, highest first, and the ratios in that order."""
    ratios = {name: Fraction(r - risk_free) / Fraction(v) for name, (r, v) in funds.items()}
    order = sorted(ratios, key=ratios.get, reverse=True)
    return order, [ratios[name] for name in order]


def own_answer(kind, text):
    with localcontext() as context:
        context.prec = 50
        if kind == "compounding":
            s = read_compounding(text)
            return s["principal"] * (1 + s["rate"] / 100 / s["periods"]) ** (s["periods"] * s["years"])
        if kind == "maximum drawdown":
            series = read_drawdown(text)
            return float(100 * np.max(1 - series / np.maximum.accumulate(series)))
        if kind == "volatility annualisation":
            period, volatility = read_volatility(text)
            return volatility * Decimal({"daily": 252, "weekly": 52, "monthly": 12}[period]).sqrt()
        if kind == "position sizing":
            s = read_position(text)
            return Fraction(s["account"]) * Fraction(s["risk"]) / 100 // Fraction(s["distance"])
        risk_free, funds = read_funds(text, with_risk_free=kind == "Sharpe comparison")
        order, _ = by_ratio(funds, risk_free or Decimal(0))
        return order[0] if kind == "Sharpe comparison" else ", ".join(order)


@pytest.fixture(scope="module")
def drawn():
    """{(split, seed): problems}, 450 and more of each kind."""
    counts = {"train": 900, "validation": 60, "test": 300, "test_seen": 60}
    return {(split, seed): tasks.generate(split, n, seed) for seed in SEEDS for split, n in counts.items()}


def of_kind(drawn, kind, *names):
    return [p for (split, _), problems in drawn.items() if split in names for p in problems if p.kind == kind]


EVERY_SPLIT = ("train", "validation", "test", "test_seen")


# --- golds ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", UNITS)
def test_gold_is_what_the_questions_own_numbers_give(drawn, kind):
    problems = of_kind(drawn, kind, *EVERY_SPLIT)
    assert len(problems) > 600
    for problem in problems:
        gold, own = problem.gold, own_answer(kind, problem.question)
        assert gold["unit"] == UNITS[kind]
        if gold["unit"] in ("choice", "count"):
            assert gold["value"] == own, problem.question
        else:  # two decimals; a drawdown's gold is rounded from falls of four decimals
            assert gold["decimals"] == 2
            assert abs(float(own) - gold["value"]) <= 0.005 + 0.00005 + 1e-9 * float(own), problem.question


def test_drawdown_counts_the_months_that_it_shows(drawn):
    told = [p.question for p in of_kind(drawn, "maximum drawdown", "train") if "months at" in p.question]
    assert told
    for question in told:
        assert int(re.search(r"last (\d+) months", question)[1]) == len(read_drawdown(question))


def test_calendar_fits_the_period(drawn):
    calendars = {"daily": "252 trading days", "weekly": "52 weeks", "monthly": "12 months"}
    for problem in of_kind(drawn, "volatility annualisation", *EVERY_SPLIT):
        period, _ = read_volatility(problem.question)
        assert [c for c in calendars.values() if c in problem.question] == [calendars[period]]


def test_worked_answers_hold_only_right_marks_and_grade_as_correct(drawn):
    for problems in drawn.values():
        for problem in problems:
            assert MARK.search(problem.reasoning) and not wrong_marks(problem.reasoning)
            assert problem.reasoning.splitlines()[-1].startswith("#### ")
            verdict = grade(problem.reasoning, problem.gold)
            assert verdict.correct and verdict.reading == "marker", problem


def test_another_answer_does_not_grade_as_correct(drawn):
    for problem in drawn["test", 0]:
        if problem.gold["unit"] == "choice":  # the other fund; the order turned round
            right = problem.gold["value"].split(", ")
            wrong = ", ".join(right[::-1]) if right[1:] else next(n for n in names(problem.question) if n != right[0])
        else:
            wrong = f"{problem.gold['value'] * 1.01 + 1:.2f}"
        assert not grade(f"#### {wrong}", problem.gold).correct, problem


@pytest.mark.parametrize("kind", ["Sharpe comparison", "risk-adjusted ranking"])
def test_every_pair_is_compared_and_the_better_fund_named(drawn, kind):
    """`Iris or Maple: <<2.04-0.47=1.57>>, Iris.`: the names are not in the marks, so they are checked here."""
    for problem in of_kind(drawn, kind, *EVERY_SPLIT):
        risk_free, funds = read_funds(problem.question, kind == "Sharpe comparison")
        order, _ = by_ratio(funds, risk_free or Decimal(0))
        duels = re.findall(r"^(\w+) or (\w+): <<[^>]*>>, (\w+)\.$", problem.reasoning, re.MULTILINE)
        assert {frozenset(pair) for *pair, _ in duels} == {frozenset(pair) for pair in combinations(funds, 2)}
        assert all(winner == min(pair, key=order.index) for *pair, winner in duels), problem


def test_worked_answers_begin_from_the_questions_numbers(drawn):
    """Every number of the first mark stands in the question, in figures or as a word (quarterly: 4)."""
    for problem in drawn["train", 0]:
        shown = {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", problem.question)}
        first = {float(n) for n in re.findall(r"\d+\.?\d*", MARK.search(problem.reasoning)[1])}
        assert first <= shown | {1, 2, 4, 12, 100}, problem


# --- what is trained, and what is kept out ----------------------------------------------------------------------------
def test_900_training_rows_are_150_of_each_kind(drawn):
    assert Counter(p.kind for p in drawn["train", 0]) == dict.fromkeys(UNITS, 150)
    assert list(tasks.KINDS) == list(UNITS)


@pytest.mark.parametrize("kind", UNITS)
def test_at_least_8_phrasings_of_which_at_least_3_are_held_out(drawn, kind):
    phrasings = tasks.KINDS[kind].phrasings
    assert len(set(phrasings)) == len(phrasings) >= 8
    trained = {p.template for p in of_kind(drawn, kind, "train", "validation", "test_seen")}
    held_out = {p.template for p in of_kind(drawn, kind, "test")}
    assert len(trained) >= 5 and len(held_out) >= 3 and not trained & held_out
    assert trained | held_out == set(range(len(phrasings)))


def test_unseen_test_shares_no_group_with_training_and_test_seen_does(drawn):
    groups = {split: {p.row()["group"] for p in drawn[split, 0]} for split in EVERY_SPLIT}
    assert not groups["test"] & groups["train"]
    assert groups["test_seen"] <= groups["train"] and groups["validation"] <= groups["train"]


def test_no_phrasing_reads_as_another(drawn):
    """A question fits one phrasing only, so that its gold cannot depend on the order in which they are tried."""
    patterns = {(k.name, i): tasks._pattern(text) for k in tasks.KINDS.values() for i, text in enumerate(k.phrasings)}
    for split in ("train", "test"):
        for problem in drawn[split, 0]:
            fits = [key for key, pattern in patterns.items() if pattern.fullmatch(problem.question)]
            assert fits == [(problem.kind, problem.template)]


def parameters(kind, text):
    """{parameter: its numbers in one question}, for those that are drawn from a range."""
    if kind == "compounding":
        s = read_compounding(text)
        return {name: [s[name]] for name in ("principal", "rate", "years")}
    if kind == "maximum drawdown":
        return {"first value": [read_drawdown(text)[0]]}
    if kind == "volatility annualisation":
        period, volatility = read_volatility(text)
        return {f"{period} volatility": [volatility]}
    if kind == "position sizing":
        s = read_position(text)
        return {name: [s[name]] for name in ("account", "risk", "entry", "distance")}
    risk_free, funds = read_funds(text, with_risk_free=kind == "Sharpe comparison")
    returns, volatilities = zip(*funds.values())
    return {"return": returns, "volatility": volatilities} | ({"risk-free": [risk_free]} if risk_free else {})


@pytest.mark.parametrize("kind", UNITS)
def test_unseen_test_draws_its_parameters_from_other_ranges(drawn, kind):
    ranges = {}
    for side, names in {"trained": ("train", "validation", "test_seen"), "unseen": ("test",)}.items():
        for problem in of_kind(drawn, kind, *names):
            for name, values in parameters(kind, problem.question).items():
                low, high = ranges.get((side, name), (min(values), max(values)))
                ranges[side, name] = min(low, *values), max(high, *values)
    found = {name for _, name in ranges}
    assert found
    for name in found:
        (low, high), (other_low, other_high) = ranges["trained", name], ranges["unseen", name]
        assert high < other_low or other_high < low, (name, ranges["trained", name], ranges["unseen", name])


# --- draws ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", EVERY_SPLIT)
def test_more_rows_extend_a_data_set_and_never_reshuffle_it(split):
    longest = tasks.generate(split, 120, 5)
    for fewer in (0, 1, 7, 60, 119):
        assert tasks.generate(split, fewer, 5) == longest[:fewer]


def test_the_same_seed_gives_the_same_problems_and_another_seed_others(drawn):
    assert tasks.generate("train", 60, 0) == drawn["train", 0][:60]
    assert tasks.generate("train", 60, 2) != drawn["train", 0][:60]


def test_no_question_is_given_twice_in_a_split(drawn):
    for problems in drawn.values():
        assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems)


def test_degenerate_items_are_left_out(drawn):
    for kind, with_risk_free in (("Sharpe comparison", True), ("risk-adjusted ranking", False)):
        for problem in of_kind(drawn, kind, *EVERY_SPLIT):
            risk_free, funds = read_funds(problem.question, with_risk_free)
            _, ratios = by_ratio(funds, risk_free or Decimal(0))
            assert all(a - b > Fraction(19, 1000) for a, b in zip(ratios, ratios[1:])), problem.question
    for problem in of_kind(drawn, "maximum drawdown", *EVERY_SPLIT):
        assert np.any(np.diff(read_drawdown(problem.question)) < 0) and 0 < problem.gold["value"] < 100
    for problem in of_kind(drawn, "position sizing", *EVERY_SPLIT):
        assert problem.gold["value"] >= 1 and read_position(problem.question)["stop"] > 0


def test_either_fund_can_be_the_better_one_and_every_order_occurs(drawn):
    winners = Counter(names(p.question).index(p.gold["value"]) for p in of_kind(drawn, "Sharpe comparison", "train"))
    assert min(winners[0], winners[1]) > 0.4 * winners.total()
    orders = Counter(tuple(names(p.question).index(n) for n in p.gold["value"].split(", "))
                     for p in of_kind(drawn, "risk-adjusted ranking", "train"))  # fmt: skip
    assert len(orders) == 6 and min(orders.values()) > 0.1 * orders.total()


# --- the boundary -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [
    "", "What is 2 + 2?", "What is the Sharpe ratio?", "Annualise a volatility.",
    "What is the future value of 1,000 after 5 years at an annual rate of 5%, compounded monthly?",  # no $
    "Annualise a weekly volatility of 2% (one year has 52 weeks). And then?",
    "Please annualise a weekly volatility of 2% (one year has 52 weeks).",
    "An equity curve reads . Calculate the largest peak-to-trough fall in percent.",
])  # fmt: skip
def test_solve_refuses_text_that_it_does_not_know(text):
    with pytest.raises(ValueError, match="no kind of task reads"):
        tasks.solve(text)


def test_solve_reads_a_hand_written_question():
    answer, gold = tasks.solve("Given the index levels 100, 120, 90, 150, 60, compute the maximum drawdown in percent.")
    assert gold["value"] == 60.0 and answer.endswith("#### 60%")
    _, gold = tasks.solve("Annualise a monthly volatility of 5% (one year has 12 months).")
    assert gold["value"] == 17.32  # 5 * 3.4641


def test_an_unknown_split_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'trian'; choose from train, validation, test, test_seen"):
        tasks.generate("trian", 1, 0)


def test_rows_follow_the_row_schema(drawn):
    for problems in drawn.values():
        for problem in problems:
            row = problem.row()
            assert json.loads(json.dumps(row)) == row
            assert row.keys() == {"id", "source", "kind", "level", "messages", "gold", "group"}
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
            assert [m["content"] for m in row["messages"]] == [problem.question, problem.reasoning]
            assert row["source"] == "quant_tasks" and row["kind"] in tasks.KINDS and row["level"] in (1, 2, 3)
            assert {"value", "unit", "tolerance"} <= row["gold"].keys() and row["group"].startswith(row["kind"])
    ids = [p.id for problems in drawn.values() for p in problems]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("seed", range(6))
def test_splits_share_no_question(seed):
    counts = {"train": 900, "validation": 60, "test": 300, "test_seen": 60}
    rows = {split: [p.row() for p in tasks.generate(split, n, seed)] for split, n in counts.items()}
    assert splits.check(rows) == []

@pytest.mark.parametrize("split", ["train", "test"])
def test_neighbouring_seeds_share_hardly_a_question(split):
    asked = [{p.question for p in tasks.generate(split, 900, seed)} for seed in (0, 1, 2)]
    for a, b in combinations(asked, 2):
        assert len(a & b) <= 18  # by chance alone, of 900; streams that overlap would share hundreds


def test_more_questions_than_there_are_end_with_an_error(monkeypatch):
    always = {"principal": 1000.0, "rate": 5.0, "frequency": "annually", "every": "every year"}
    few = replace(tasks.KINDS["compounding"], draw=lambda rng, unseen: always | {"years": int(rng.integers(2, 5))})
    monkeypatch.setattr(tasks, "KINDS", {"compounding": few})
    with pytest.raises(ValueError, match="different questions of 'compounding' for train: ask for fewer rows"):
        tasks.generate("train", 100, 0)

