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
from scipy import optimize, stats

from lib.data import gate, kinds, tasks
from lib.grade.calculator import MARK, calculate, wrong_marks, wrong_sums
from lib.grade.scoring import grade
from lib.run.paths import ROOT

SEEDS = (0, 1, 20_261)
UNITS = {
    "compounding": "currency", "maximum drawdown": "percent", "Sharpe comparison": "ratio",
    "volatility annualisation": "percent", "position sizing": "count", "risk-adjusted ranking": "choice",
    "CAGR": "percent", "geometric mean return": "percent", "Sortino ratio": "ratio", "beta": "ratio",
    "bond price": "currency", "current yield": "percent", "net present value": "currency", "loan payment": "currency",
    "value at risk": "currency", "Kelly fraction": "percent", "portfolio variance": "percent",
    "information ratio": "ratio", "break-even": "count",
}  # fmt: skip
KINDS = tuple(UNITS)
DEMO = KINDS[:6]


# --- a second reading of the questions, which shares nothing with lib -------------------------------------------------
def dollars(text):
    return [Decimal(found.replace(",", "")) for found in re.findall(r"\$(\d[\d,]*(?:\.\d+)?)", text)]


def percents(text):
    return [Decimal(found) for found in re.findall(r"(-?\d+(?:\.\d+)?)%", text)]


def bare(text):
    """Numbers without a dollar or percent sign."""
    return [Decimal(found) for found in re.findall(r"(?<![\w$.,-])(-?\d+(?:\.\d+)?)(?![\d%]|[.,]\d)", text)]


def after(words, text):
    """The percentage that stands behind one of the words; it must be one."""
    (found,) = {number for number in re.findall(rf"\b(?:{words}) (\d+(?:\.\d+)?)%", text)}
    return Decimal(found)


def years(text):
    return int(re.search(r"(\d+)(?: annual| more)?[ -]year", text.replace("annual coupons", "years"))[1])


def listed(pattern, text):
    """(the numbers of the comma list, the text without it)."""
    found = re.search(rf"(?:{pattern}, )+{pattern}", text)[0]
    return [Decimal(re.sub(r"[$,%]", "", item)) for item in found.split(", ")], text.replace(found, "")


def names(text):
    """The funds in the order of their first mention."""
    return sorted((n for n in kinds.NAMES if re.search(rf"\b{n}\b", text)), key=text.index)


def read_compounding(text):
    word = re.search("(?i)semi-annually|half-year|quarter|month|annually|every year", text)[0].lower()
    periods = {"semi-annually": 2, "half-year": 2, "quarter": 4, "month": 12, "annually": 1, "every year": 1}[word]
    (principal,), (rate,) = dollars(text), percents(text)
    return {"principal": principal, "rate": rate, "years": years(text), "periods": periods}


def read_drawdown(text):
    series, _ = listed(r"\d+", text)
    return {"series": np.array([int(level) for level in series]), "first value": series[0]}


def read_funds(text):
    """{name: (return, volatility)}, and where there is one the risk-free rate."""
    pattern = (
        r"(?:[Rr]isk-free(?: rate)?(?: is| of| was)?|(?:[Cc]ash|Bills) (?:yields?|earns)|bills pay|safe rate stands at|"
        r"without risk brings|Subtract|If|would have paid|T-bills are at|Riskless rate|Use|riskless asset earns|"
        r"Deposits pay|risk-free =|safely is|rate be|rate being) ([\d.]+)%"
    )
    risk_free = re.search(pattern, text)
    values, funds = percents(re.sub(pattern, "", text)), names(text)
    assert len(values) == 2 * len(funds) == (4 if risk_free else 6)
    half = len(funds)
    together = re.search(
        r"[Vv]olatilities(?: are|:| of)|their volatilities|They return|[Ss]tandard deviations(?: are|:| of)|vols were|"
        r"for the former",
        text,
    )
    pairs = list(zip(values[:half], values[half:])) if together else list(zip(values[::2], values[1::2]))
    if re.search(
        r" At a volatility of|: volatility|% of risk for|, volatility [\d.]+%, return|^The volatility of|"
        r"swings by|^(?:The standard deviations are|Standard deviations:|The volatilities of|Volatility)|a sigma of|"
        r"\(volatility [\d.]+%; return|has a volatility of [\d.]+% and gains",
        text,
    ):
        pairs = [(b, a) for a, b in pairs]
    returns, volatilities = zip(*pairs)
    read = {"funds": dict(zip(funds, pairs)), "return": returns, "volatility": volatilities}
    return read | ({"risk-free": Decimal(risk_free[1])} if risk_free else {})


def read_volatility(text):
    (period,) = {word.lower() for word in re.findall("(?i)daily|weekly|monthly", text)}
    (volatility,) = percents(text)
    return {"period": period, f"{period} volatility": volatility, "volatility": volatility}


def read_position(text):
    stop, entry, account = sorted(dollars(text))  # the account is always the largest, the stop below the entry
    (risk,) = percents(text)
    return {"account": account, "risk": risk, "entry": entry, "stop": stop, "distance": entry - stop}


def read_cagr(text):
    start, finish = sorted(dollars(text))  # it always grows
    return {"start": start, "finish": finish, "years": years(text)}


def read_means(text):
    returns, _ = listed(r"-?[\d.]+%", text)
    return {"returns": returns, "size": [abs(number) for number in returns]}


def read_sortino(text):
    returns, rest = listed(r"-?[\d.]+%", text)
    (target,) = percents(rest)
    counts = {int(number) for number in bare(rest)}
    return {"returns": returns, "size": [abs(number) for number in returns], "target": target, "counts": counts}


def read_beta(text):
    (number,), volatilities = bare(text), percents(text)
    if "ovariance" in text:
        (market,) = volatilities
        return {"covariance": number, "market": market}
    market, fund = volatilities if re.search("^The market has|^Measured against", text) else volatilities[::-1]
    return {"correlation": number, "market": market, "fund": fund}


def read_bond(text):
    (face,), (rate, coupon) = set(dollars(text)), ([], [])
    rate = after("yield(?: to maturity)?(?: of a bond)?(?: is| of)?|for|earn|rate of|Discount at", rate_text(text))
    values = percents(text)
    values.remove(rate)
    (coupon,) = values
    return {"face": face, "rate": rate, "coupon": coupon, "years": years(text)}


def rate_text(text):
    return text.replace("coupon rate of", "coupon of")


def read_current(text):
    coupon, price = sorted(dollars(text))
    return {"coupon": coupon, "price": price}


def read_npv(text):
    flows, rest = listed(r"\$\d[\d,]*(?:\.\d+)?", text)
    (cost,), (rate,) = dollars(rest), percents(rest)
    return {"flows": flows, "cost": cost, "rate": rate}


def read_loan(text):
    (principal,), (rate,) = dollars(text), percents(text)
    (periods,) = [n for word, n in {"yearly": 1, "quarterly": 4, "monthly": 12}.items() if word in text]
    return {"principal": principal, "rate": rate, "years": years(text), "periods": periods}


def read_var(text):
    (value,), (volatility, confidence) = dollars(text), sorted(percents(text))
    days = int(re.search(r"(\d+)[ -](?:trading )?day", text)[1])
    (quantile,) = [number for number in bare(text.replace(f"{days}-day", "")) if number != days]
    return {"value": value, "volatility": volatility, "confidence": confidence, "days": days, "quantile": quantile}


def read_kelly(text):
    (probability,) = percents(text)
    (odds,) = bare(re.sub(r"to 1\b|each 1\b|per 1\b|the 1\b", "", text))
    return {"probability": probability, "odds": odds}


def read_portfolio(text):
    words = "holds|portfolio with|mix of|Weight of|If|puts|fund that is|portfolio of|hold|mix that is|gives"
    weight = re.search(rf"\b(?:{words})(?: [A-Z][a-z]+)? ([\d.]+%)", text)
    (correlation,), volatilities = bare(text), percents(text[: weight.start(1)] + text[weight.end(1) :])
    return {"weight": percents(weight[1])[0], "volatility": volatilities, "correlation": correlation}


def read_information(text):
    tracking = after(r"tracking error(?: of| was|\) is)?|standard deviation of|volatility of|part by", text)
    values = percents(text)
    values.remove(tracking)
    benchmark, earned = sorted(values)  # it is always ahead
    return {"tracking": tracking, "benchmark": benchmark, "return": earned}


def read_breakeven(text):
    unit_cost, price, fixed = sorted(dollars(text))
    return {"fixed": fixed, "price": price, "unit cost": unit_cost}


READ = dict(zip(KINDS, (
    read_compounding, read_drawdown, read_funds, read_volatility, read_position, read_funds, read_cagr, read_means,
    read_sortino, read_beta, read_bond, read_current, read_npv, read_loan, read_var, read_kelly, read_portfolio,
    read_information, read_breakeven,
)))  # fmt: skip


# --- a second solution, by libraries and definitions ------------------------------------------------------------------
def by_ratio(s):
    """Names by (return - risk-free) / volatility, highest first, and the ratios in that order."""
    over = {name: Fraction(r - s.get("risk-free", 0)) / Fraction(v) for name, (r, v) in s["funds"].items()}
    order = sorted(over, key=over.get, reverse=True)
    return order, [over[name] for name in order]


def discounted(rate, flows):
    """Value today of flows now, in one year, in two ...: a polynomial in 1 / (1 + rate)."""
    return np.polynomial.polynomial.polyval(1 / (1 + float(rate) / 100), np.array(flows, dtype=float))


def own_compounding(s):
    with localcontext() as context:
        context.prec = 50
        return s["principal"] * (1 + s["rate"] / 100 / s["periods"]) ** (s["periods"] * s["years"])


def own_drawdown(s):
    return 100 * np.max(1 - s["series"] / np.maximum.accumulate(s["series"]))


def own_annual(s):
    return float(s["volatility"]) * {"daily": 252, "weekly": 52, "monthly": 12}[s["period"]] ** 0.5


def own_gap(s):
    wealth = np.array(s["returns"], dtype=float) + 100
    return wealth.mean() - stats.gmean(wealth)


def own_sortino(s):
    excess = np.array(s["returns"], dtype=float) - float(s["target"])
    return excess.mean() / np.linalg.norm(np.minimum(excess, 0)) * np.sqrt(len(excess))


def own_beta(s):
    if "covariance" in s:
        return s["covariance"] / (s["market"] / 100) ** 2
    return s["correlation"] * s["fund"] / s["market"]


def own_loan(s):
    """The payment that leaves nothing owed, by running the account (its end balance is linear in the payment)."""
    rate = float(s["rate"]) / 100 / s["periods"]

    def owed(payment):
        balance = float(s["principal"])
        for _ in range(s["periods"] * s["years"]):
            balance = balance * (1 + rate) - payment
        return balance

    return owed(0) / (owed(0) - owed(1))


def own_kelly(s):
    """Where the expected logarithm of wealth, p log(1 + b f) + (1 - p) log(1 - f), stops to grow."""
    p, b = float(s["probability"]) / 100, float(s["odds"])
    return 100 * optimize.brentq(lambda f: p * b / (1 + b * f) - (1 - p) / (1 - f), 0, 0.9999, xtol=1e-14)


def own_portfolio(s):
    weights = np.array([s["weight"], 100 - s["weight"]], dtype=float) / 100
    correlations = np.array([[1, s["correlation"]], [s["correlation"], 1]], dtype=float)
    volatilities = np.diag(np.array(s["volatility"], dtype=float))
    return np.sqrt(weights @ volatilities @ correlations @ volatilities @ weights)


def own_breakeven(s):
    units = int(s["fixed"] // (s["price"] - s["unit cost"]))
    return next(n for n in (units - 1, units, units + 1, units + 2) if n * (s["price"] - s["unit cost"]) >= s["fixed"])


OWN = {
    "compounding": own_compounding,
    "maximum drawdown": own_drawdown,
    "Sharpe comparison": lambda s: by_ratio(s)[1][0],
    "volatility annualisation": own_annual,
    "position sizing": lambda s: Fraction(s["account"]) * Fraction(s["risk"]) / 100 // Fraction(s["distance"]),
    "risk-adjusted ranking": lambda s: ", ".join(by_ratio(s)[0]),
    "CAGR": lambda s: 100 * np.expm1(np.log(float(s["finish"] / s["start"])) / s["years"]),
    "geometric mean return": own_gap,
    "Sortino ratio": own_sortino,
    "beta": own_beta,
    "bond price": lambda s: discounted(s["rate"], [0] + [s["face"] * s["coupon"] / 100] * s["years"])
                            + float(s["face"]) / (1 + float(s["rate"]) / 100) ** s["years"],
    "current yield": lambda s: s["coupon"] / s["price"] * 100,
    "net present value": lambda s: discounted(s["rate"], [-s["cost"], *s["flows"]]),
    "loan payment": own_loan,
    "value at risk": lambda s: float(s["value"] * s["quantile"] * s["volatility"] / 100) * s["days"] ** 0.5,
    "Kelly fraction": own_kelly,
    "portfolio variance": own_portfolio,
    "information ratio": lambda s: (s["return"] - s["benchmark"]) / s["tracking"],
    "break-even": own_breakeven,
}  # fmt: skip
RANGED = {  # parameters of which the unseen test has a range of its own
    "compounding": ("principal", "rate", "years"), "maximum drawdown": ("first value",),
    "Sharpe comparison": ("return", "volatility", "risk-free"), "risk-adjusted ranking": ("return", "volatility"),
    "volatility annualisation": ("daily volatility", "weekly volatility", "monthly volatility"),
    "position sizing": ("account", "risk", "entry", "distance"), "CAGR": ("start", "years"),
    "geometric mean return": ("size",), "Sortino ratio": ("size", "target"),
    "beta": ("market", "fund", "correlation", "covariance"), "bond price": ("face", "rate", "coupon", "years"),
    "current yield": ("coupon", "price"), "net present value": ("flows", "cost", "rate"),
    "loan payment": ("principal", "rate", "years"), "value at risk": ("value", "volatility", "days"),
    "Kelly fraction": ("probability", "odds"), "portfolio variance": ("volatility", "correlation"),
    "information ratio": ("return", "benchmark", "tracking"), "break-even": ("fixed", "price", "unit cost"),
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    """{(split, seed): problems}: 10,260 of them, 540 of each kind."""
    counts = {"train": 2166, "validation": 228, "test": 855, "test_seen": 171}
    return {(split, seed): tasks.generate(split, n, seed, KINDS) for seed in SEEDS for split, n in counts.items()}


@pytest.fixture(scope="module")
def every(drawn):
    return [problem for problems in drawn.values() for problem in problems]


def of_kind(drawn, kind, *names):
    return [p for (split, _), problems in drawn.items() if split in names for p in problems if p.kind == kind]


EVERY_SPLIT = ("train", "validation", "test", "test_seen")
TRAINED = ("train", "validation", "test_seen")


# --- golds ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_oracle_agrees_with_all_of_10_000_golds(every):
    assert len(every) >= 10_000
    assert not [p for p in every if tasks.solve(p.question) != (p.reasoning, p.gold)]


@pytest.mark.parametrize("kind", KINDS)
def test_gold_is_what_the_questions_own_numbers_give(drawn, kind):
    problems = of_kind(drawn, kind, *EVERY_SPLIT)
    assert len(problems) > 500
    for problem in problems:
        gold, own = problem.gold, OWN[kind](READ[kind](problem.question))
        assert gold["unit"] == UNITS[kind]
        if gold["unit"] in ("choice", "count"):
            assert gold["value"] == own, problem.question
        else:
            assert gold["decimals"] == 2
            assert abs(float(own) - gold["value"]) <= 0.005 + 1e-9 * abs(float(own)), problem.question


def test_drawdown_counts_the_months_that_it_shows(drawn):
    told = Counter()
    for problem in of_kind(drawn, "maximum drawdown", "train"):
        series, rest = listed(r"\d+", problem.question)
        assert bare(rest) in ([], [len(series)]), problem.question
        told[problem.template] += bool(bare(rest))
    assert len(+told) > 1


def test_sortino_counts_the_returns_that_it_shows(drawn):
    counts = [read_sortino(p.question) for p in of_kind(drawn, "Sortino ratio", *EVERY_SPLIT)]
    assert any(s["counts"] for s in counts)
    assert all(s["counts"] <= {len(s["returns"])} for s in counts)


def test_calendar_fits_the_period(drawn):
    calendars = {"daily": "252 trading days", "weekly": "52 weeks", "monthly": "12 months"}
    for problem in of_kind(drawn, "volatility annualisation", *EVERY_SPLIT):
        period = read_volatility(problem.question)["period"]
        assert [c for c in calendars.values() if c in problem.question] == [calendars[period]]


def test_z_scores_are_the_normal_quantiles_of_their_confidence(drawn):
    for problem in of_kind(drawn, "value at risk", *EVERY_SPLIT):
        s = read_var(problem.question)
        assert abs(stats.norm.ppf(float(s["confidence"]) / 100) - float(s["quantile"])) <= 0.0005


# --- worked answers ---------------------------------------------------------------------------------------------------
def test_worked_answers_grade_as_correct(every):
    for problem in every:
        assert problem.reasoning.splitlines()[-1].startswith("#### ")
        verdict = grade(problem.reasoning, problem.gold)
        assert verdict.correct and verdict.reading == "marker", problem


def test_worked_answers_end_at_the_gold_to_its_last_digit(every):
    """Also where they continue from rounded steps: not only within the gold's relative tolerance."""
    for problem in every:
        if problem.gold["unit"] != "choice":
            final = Decimal(problem.reasoning.rpartition("#### ")[2].rstrip("%"))
            assert abs(final - Decimal(str(problem.gold["value"]))) <= Decimal("0.005"), problem


def test_the_linter_finds_nothing_in_worked_answers_marked_or_plain(every):
    assert all(MARK.search(p.reasoning) and not wrong_marks(p.reasoning) for p in every)
    assert not [p for p in every if wrong_sums(p.reasoning) or wrong_sums(MARK.sub(r"\1 = \2", p.reasoning))]


def test_the_linter_finds_each_planted_error(every):
    """The value of every mark moved by two of its last digits, as a mark and as a plain sum."""
    plain = re.compile(r"[\d.]+(?:[-+*/][\d.]+)+")
    planted = 0
    for problem in every[::14]:
        for mark in MARK.finditer(problem.reasoning):
            expression, value = mark.groups()
            wrong = str(Decimal(value) + 2 * Decimal(1).scaleb(Decimal(value).as_tuple().exponent))
            found = f"<<{expression}={wrong}>>"
            text = problem.reasoning[: mark.start()] + found + problem.reasoning[mark.end() :]
            assert wrong_marks(text) == [found]
            if plain.fullmatch(expression):
                sums = wrong_sums(MARK.sub(r"\1 = \2", text))
                assert sums == [f"{expression} = {wrong}"], text
                planted += 1
    assert planted > 500


def test_level_is_the_number_of_calculator_marks(every):
    for problem in every:
        marks = len(MARK.findall(problem.reasoning))
        level = 1 if marks == 1 else 2 if marks <= 3 else 3
        assert problem.level == tasks.KINDS[problem.kind].level == level, problem
    assert {problem.level for problem in every} == {1, 2, 3}


def test_every_mark_is_short_enough_for_the_mark_pattern(every):
    assert all(p.reasoning.count("<<") == len(MARK.findall(p.reasoning)) for p in every)


def test_another_answer_does_not_grade_as_correct(drawn):
    for problem in drawn["test", 0]:
        if problem.gold["unit"] == "choice":
            wrong = ", ".join(problem.gold["value"].split(", ")[::-1])
        else:
            wrong = f"{problem.gold['value'] * 1.01 + 1:.2f}"
        assert not grade(f"#### {wrong}", problem.gold).correct, problem


def test_the_lower_sharpe_ratio_does_not_grade_as_correct(drawn):
    for problem in of_kind(drawn, "Sharpe comparison", *EVERY_SPLIT):
        _, (_, lower) = by_ratio(read_funds(problem.question))
        assert not grade(f"#### {float(lower):.4f}", problem.gold).correct, problem


def test_every_pair_is_compared_and_the_better_fund_named(drawn):
    """`Iris or Maple: <<2.04-0.47=1.57>>, Iris.`: the names are not in the marks, so they are checked here."""
    for problem in of_kind(drawn, "risk-adjusted ranking", *EVERY_SPLIT):
        order, _ = by_ratio(s := read_funds(problem.question))
        duels = re.findall(r"^(\w+) or (\w+): <<[^>]*>>, (\w+)\.$", problem.reasoning, re.MULTILINE)
        assert {frozenset(pair) for *pair, _ in duels} == {frozenset(pair) for pair in combinations(s["funds"], 2)}
        assert all(winner == min(pair, key=order.index) for *pair, winner in duels), problem


def test_named_ratios_belong_to_their_funds(drawn):
    for kind in ("Sharpe comparison", "risk-adjusted ranking"):
        for problem in of_kind(drawn, kind, *EVERY_SPLIT):
            order, ratios = by_ratio(read_funds(problem.question))
            lines = re.findall(r"^(\w+): (?:return .*, ratio )?<<([^=]+)=[^>]*>>\.$", problem.reasoning, re.MULTILINE)
            told = dict(lines)
            assert all(calculate(told[name]) == ratio for name, ratio in zip(order, ratios)), problem


def test_worked_answers_begin_from_the_questions_numbers(drawn):
    """Every number of the first mark stands in the question, in figures or as a word (quarterly: 4)."""
    for problem in drawn["train", 0]:
        shown = {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", problem.question)}
        first = {float(n) for n in re.findall(r"\d+\.?\d*", MARK.search(problem.reasoning)[1])}
        if problem.kind == "geometric mean return":  # divided by the number of returns
            first.discard(len(read_means(problem.question)["returns"]))
        elif problem.kind == "Sortino ratio":
            first.discard(len(read_sortino(problem.question)["returns"]))
        assert first <= shown | {1, 2, 4, 12, 100}, problem


# --- golds that cannot be guessed or copied ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_no_fixed_answer_is_right_more_often_than_one_time_in_twelve(drawn, kind):
    """A ranking is a choice of one in six orders of the names shown; every other gold is open."""
    problems = of_kind(drawn, kind, "train", "test")
    if UNITS[kind] == "choice":
        golds = [tuple(names(p.question).index(n) for n in p.gold["value"].split(", ")) for p in problems]
        orders = Counter(golds)
        assert len(orders) == 6 and max(orders.values()) < 0.25 * len(golds)
        return
    best = max(sum(grade(f"#### {guess}", p.gold).correct for p in problems[::2])
               for guess, _ in Counter(p.gold["value"] for p in problems).most_common(5))  # fmt: skip
    assert best <= len(problems[::2]) / 12


def test_the_gold_is_not_in_the_question(every):
    for problem in every:
        value, text = problem.gold["value"], problem.question
        if problem.gold["unit"] == "choice":
            assert value not in text
        else:
            assert value not in [float(n) for n in dollars(text) + percents(text) + bare(text)], problem


def test_either_fund_can_be_the_better_one_and_every_order_occurs(drawn):
    winners = Counter()
    for problem in of_kind(drawn, "Sharpe comparison", "train"):
        winners[names(problem.question).index(by_ratio(read_funds(problem.question))[0][0])] += 1
    assert min(winners[0], winners[1]) > 0.4 * winners.total()
    orders = Counter(tuple(names(p.question).index(n) for n in p.gold["value"].split(", "))
                     for p in of_kind(drawn, "risk-adjusted ranking", "train"))  # fmt: skip
    assert len(orders) == 6 and min(orders.values()) > 0.1 * orders.total()


# --- what is trained, and what is kept out ----------------------------------------------------------------------------
def test_the_demo_asks_the_six_first_kinds_150_of_each():
    assert tasks.DEMO_KINDS == DEMO and tuple(tasks.KINDS) == KINDS
    assert Counter(p.kind for p in tasks.generate("train", 900, 0)) == dict.fromkeys(DEMO, 150)


def test_every_kind_has_its_phrasings_in_the_file_and_the_file_no_other():
    texts = json.loads((ROOT / "lib/data/kinds.json").read_text(encoding="utf-8"))
    assert tuple(texts) == tuple(tasks.KINDS) and all(set(text) == {"level", "phrasings"} for text in texts.values())
    assert [kind.name for kind in tasks.KINDS.values()] == list(tasks.KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_3_phrasings_are_trained_and_each_occurs(drawn, kind):
    phrasings, trained = tasks.KINDS[kind].phrasings, 24 if kind in DEMO else 8
    assert len(set(phrasings)) == len(phrasings) == trained + 3
    assert {p.template for p in of_kind(drawn, kind, "train")} == set(range(trained))
    assert {p.template for p in of_kind(drawn, kind, "test")} == set(range(trained, trained + 3))
    assert {p.template for p in of_kind(drawn, kind, "validation", "test_seen")} <= set(range(trained))


def test_held_out_phrasings_are_no_shuffled_copies():
    """Of a held-out phrasing's runs of four words (slots as one), at most a third stand in one trained phrasing."""
    for kind in tasks.KINDS.values():
        runs = [_runs(text) for text in kind.phrasings]
        for held_out in runs[-3:]:
            for trained in runs[:-3]:
                assert len(held_out & trained) <= len(held_out) / 3, (kind.name, held_out & trained)


def _runs(text, size=4):
    words = re.findall(r"[a-z0-9-]+", re.sub(r"{\w+}", " 0 ", text.lower()))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def test_the_unseen_test_has_held_out_phrasings_and_every_other_split_trained_ones(drawn):
    groups = {split: {p.row()["group"] for p in drawn[split, 0]} for split in EVERY_SPLIT}
    trained = {f"{kind.name}/{i}" for kind in tasks.KINDS.values()
               for i in range(len(kind.phrasings) - tasks.HELD_OUT_PHRASINGS)}  # fmt: skip
    assert not groups["test"] & trained
    assert groups["train"] | groups["test_seen"] | groups["validation"] <= trained


def test_no_phrasing_reads_as_another(drawn):
    """A question fits one phrasing only, so that its gold cannot depend on the order in which they are tried."""
    patterns = {(k.name, i): tasks._pattern(text) for k in tasks.KINDS.values() for i, text in enumerate(k.phrasings)}
    for split in ("train", "test"):
        for problem in drawn[split, 0]:
            fits = [key for key, pattern in patterns.items() if pattern.fullmatch(problem.question)]
            assert fits == [(problem.kind, problem.template)]


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_test_draws_its_parameters_from_other_ranges(drawn, kind):
    ranges = {}
    for side, names in {"trained": TRAINED, "unseen": ("test",)}.items():
        for problem in of_kind(drawn, kind, *names):
            read = READ[kind](problem.question)
            for name in read.keys() & set(RANGED[kind]):
                values = read[name] if isinstance(read[name], list | tuple) else [read[name]]
                low, high = ranges.get((side, name), (min(values), max(values)))
                ranges[side, name] = min(low, *values), max(high, *values)
    for name in RANGED[kind]:
        (low, high), (other_low, other_high) = ranges["trained", name], ranges["unseen", name]
        assert high < other_low or other_high < low, (name, ranges["trained", name], ranges["unseen", name])


def test_unseen_test_has_other_z_scores(drawn):
    scores = [{read_var(p.question)["quantile"] for p in of_kind(drawn, "value at risk", *names)}
              for names in (TRAINED, ("test",))]  # fmt: skip
    assert len(scores[0]) == 3 and len(scores[1]) == 2 and not scores[0] & scores[1]


# --- draws ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", EVERY_SPLIT)
def test_more_rows_extend_a_data_set_and_never_reshuffle_it(split):
    longest = tasks.generate(split, 120, 5)
    for fewer in (0, 1, 7, 60, 119):
        assert tasks.generate(split, fewer, 5) == longest[:fewer]


@pytest.mark.parametrize("split", EVERY_SPLIT)
def test_more_kinds_leave_the_problems_of_the_others_as_they_were(split):
    """The random stream belongs to the kind, whichever others are asked for and in whatever order."""
    by_id = {p.id: p for p in tasks.generate(split, 4 * len(KINDS), 3, KINDS)}
    for selection in (DEMO, ("beta",), KINDS[::-1], ("CAGR", "compounding")):
        some = tasks.generate(split, 4 * len(selection), 3, selection)
        assert [p.kind for p in some] == list(selection) * 4
        assert all(by_id[p.id] == p for p in some)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others(drawn):
    assert tasks.generate("train", 57, 0, KINDS) == drawn["train", 0][:57]
    assert tasks.generate("train", 57, 2, KINDS) != drawn["train", 0][:57]


def test_streams_of_split_kind_seed_and_index_differ(monkeypatch):
    """Every problem draws from a stream of its own: no two begin with the same number."""
    first = {}

    def draw(given):
        state = given.rng.bit_generator.seed_seq.generate_state(4).tobytes()
        first.setdefault(id(given.rng), (given.rng, state))
        return plain(given)

    for name in ("compounding", "CAGR"):
        plain = tasks.KINDS[name].draw
        patched = dict(tasks.KINDS) | {name: replace(tasks.KINDS[name], draw=draw)}
        monkeypatch.setattr(tasks, "KINDS", patched)
        for split in EVERY_SPLIT:
            for seed in range(4):
                tasks.generate(split, 20, seed, (name,))
        monkeypatch.undo()
    assert len(first) == len({state for _, state in first.values()}) == 2 * 4 * 4 * 20


def test_no_question_is_given_twice_in_a_split(drawn):
    for problems in drawn.values():
        assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems)


def test_degenerate_items_are_left_out(drawn):
    for kind in ("Sharpe comparison", "risk-adjusted ranking"):
        for problem in of_kind(drawn, kind, *EVERY_SPLIT):
            _, ratios = by_ratio(read_funds(problem.question))
            assert all(a - b > Fraction(19, 1000) for a, b in zip(ratios, ratios[1:])) and ratios[-1] > 0, problem
    for problem in of_kind(drawn, "maximum drawdown", *EVERY_SPLIT):
        series = read_drawdown(problem.question)["series"]
        assert np.any(np.diff(series) < 0) and 0 < problem.gold["value"] < 100
    for problem in of_kind(drawn, "position sizing", *EVERY_SPLIT):
        assert problem.gold["value"] >= 1 and read_position(problem.question)["stop"] > 0
    for problem in of_kind(drawn, "geometric mean return", *EVERY_SPLIT):
        assert problem.gold["value"] >= 0.2 and min(read_means(problem.question)["returns"]) > -100
    for problem in of_kind(drawn, "Sortino ratio", *EVERY_SPLIT):
        s = read_sortino(problem.question)
        assert min(s["returns"]) < s["target"] and problem.gold["value"] >= 0.2  # a deviation, and an excess
    for problem in of_kind(drawn, "beta", *EVERY_SPLIT):
        assert read_beta(problem.question)["market"] > 0 and problem.gold["value"] >= 0.2
    for problem in of_kind(drawn, "bond price", *EVERY_SPLIT):
        s = read_bond(problem.question)
        assert s["rate"] != s["coupon"] and abs(problem.gold["value"] - float(s["face"])) > 1  # not at par
    for problem in of_kind(drawn, "net present value", *EVERY_SPLIT):
        assert abs(problem.gold["value"]) > 0.015 * float(read_npv(problem.question)["cost"])
    for problem in of_kind(drawn, "Kelly fraction", *EVERY_SPLIT):
        assert 1 <= problem.gold["value"] < 100
    for problem in of_kind(drawn, "information ratio", *EVERY_SPLIT):
        assert problem.gold["value"] >= 0.2
    for problem in of_kind(drawn, "portfolio variance", *EVERY_SPLIT):
        assert read_portfolio(problem.question)["correlation"] != 0
    for problem in of_kind(drawn, "break-even", *EVERY_SPLIT):
        s = read_breakeven(problem.question)
        assert s["price"] > s["unit cost"] and problem.gold["value"] >= 2
    for problem in of_kind(drawn, "CAGR", *EVERY_SPLIT):
        s = read_cagr(problem.question)
        assert s["finish"] > s["start"] * Decimal("1.1")


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


@pytest.mark.parametrize("question, value", [
    ("Given the index levels 100, 120, 90, 150, 60, compute the maximum drawdown in percent.", 60.0),
    ("Given the index levels 100, 120, 60, 150, 120, compute the maximum drawdown in percent.", 50.0),
    ("Annualise a monthly volatility of 5% (one year has 12 months).", 17.32),  # 5 * 3.4641
    ("Treasury bills pay 3%. Iris earned 12% at 15% volatility, Maple earned 9% at 15% volatility. "
     "Compute the higher Sharpe ratio.", 0.6),
    ("Beginning value $10,000, final value $12,100, term 2 years. State the compound annual growth rate in percent.",
     10.0),
    # mean of 50 and -50 is 0, growth 1.5 * 0.5 = 0.75, its root 0.8660: 13.40 points below
    ("Annual returns: 50%, -50%. Compute the arithmetic mean minus the geometric mean, in percentage points.", 13.4),
    # mean 2, shortfalls below 0 of 0, 4, 0, 0: root of 16 / 4 = 2
    ("Compute the Sortino ratio of the returns 6%, -4%, 2%, 4% against a target of 0%. Square the shortfalls below the "
     "target, divide their sum by all 4 returns and take the root.", 1.0),
    ("Find the beta of Iris from a covariance of 0.06 with the index, returns taken as decimals. The standard "
     "deviation of the index is 20%.", 1.5),
    ("Face value $1,000, coupon 10% paid annually, 2 years to maturity, yield 5%. Find the bond price.", 1092.97),
    ("Annual coupon $60, market price $960. State the current yield in percent.", 6.25),
    ("Initial cost $1,000, year-end cash flows $600, $600, discount rate 10%. State the net present value.", 41.32),
    ("Principal $1,200, nominal rate 12% a year, term 1 years, equal monthly payments. State the payment.", 106.62),
    ("Position $1,000,000, daily volatility 1%, horizon 4 days, confidence 95%, z-score 1.645, mean zero. State the "
     "parametric value at risk.", 32900.0),
    ("Probability of a win 60%, net odds 1, the whole stake lost otherwise. State the Kelly fraction in percent.",
     20.0),
    ("Weight of Iris 50%, the rest in Maple, volatilities 20% and 20%, correlation -1. State the standard deviation of "
     "the portfolio.", 0.0),
    ("Benchmark return 8%, tracking error 4%, return of Iris 11%. How large is the information ratio?", 0.75),
    ("Compute the break-even point in whole units: price $15, variable cost $12 per unit, fixed costs $100.", 34.0),
])  # fmt: skip
def test_solve_reads_hand_worked_questions(question, value):
    answer, gold = tasks.solve(question)
    assert gold["value"] == value and grade(answer, gold).correct


def test_an_unknown_split_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'trian'; choose from train, validation, test, test_seen"):
        tasks.generate("trian", 1, 0)


def test_an_unknown_kind_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown kind 'Sortino'; did you mean 'Sortino ratio'"):
        tasks.generate("train", 1, 0, ("beta", "Sortino"))
    with pytest.raises(ValueError, match="unknown kind 'zzz'; choose from compounding, .*, break-even"):
        tasks.generate("train", 1, 0, ("zzz",))


@pytest.mark.parametrize("kinds", [(), ("beta", "beta")])
def test_kinds_are_named_and_each_once(kinds):
    with pytest.raises(ValueError, match="name at least one kind, and each once"):
        tasks.generate("train", 1, 0, kinds)


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


@pytest.mark.parametrize("kinds, seed", [(DEMO, 0), (DEMO, 1), (KINDS, 2)])
def test_splits_share_no_problem_in_any_phrasing(kinds, seed):
    counts = {"train": 900, "validation": 60, "test": 300, "test_seen": 60}
    rows = {split: [p.row() for p in tasks.generate(split, n, seed, kinds)] for split, n in counts.items()}
    found = gate.duplicates(rows)
    assert "exact duplicate" not in {finding.check for finding in found}
    assert not [finding for finding in found if finding.split != finding.other_split and kinds == DEMO]
    answers = [{row["messages"][1]["content"] for row in split} for split in rows.values()]
    assert sum(map(len, answers)) == len(set().union(*answers))


@pytest.mark.parametrize("split", ["train", "test"])
def test_neighbouring_seeds_share_hardly_a_question(split):
    asked = [{p.question for p in tasks.generate(split, 475, seed, KINDS)} for seed in (0, 1, 2)]
    for a, b in combinations(asked, 2):
        assert len(a & b) <= 10  # by chance alone, of 475; streams that overlap would share hundreds


def test_more_questions_than_there_are_end_with_an_error(monkeypatch):
    always = {"principal": 1000.0, "rate": 5.0, "frequency": "annually", "every": "every year"}
    few = replace(tasks.KINDS["compounding"], draw=lambda given: always | {"years": int(given.rng.integers(2, 5))})
    monkeypatch.setattr(tasks, "KINDS", {"compounding": few})
    with pytest.raises(ValueError, match="different questions of 'compounding' for train: ask for fewer rows"):
        tasks.generate("train", 100, 0, ("compounding",))
