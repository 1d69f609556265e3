"""What is asked: each kind of problem with its slots, phrasings, draw of parameters and worked
answer.

A phrasing's slots are typed: how a value is written, which text it may be, and how that text is
read back as plain numbers. `draw` gives the slots, or None where they would be degenerate. `answer`
sees only what was read from the text. The gold comes from the whole expression; a step that
continues from rounded values is never the last, unless they are exact, so that the worked answer
ends within its gold's tolerance.

A new kind is a draw function, an answer function, a line at the end of the table below, and its
phrasings in kinds.json.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from lib.grade.calculator import calculate, mark, show

HELD_OUT_PHRASINGS = 3  # of each kind's list, the last; the rest are trained
NAMES = (
    "Alpha", "Birch", "Cedar", "Delta", "Ember", "Falcon", "Granite", "Harbor", "Iris", "Juniper",
    "Kestrel", "Lotus", "Maple", "Nova", "Orion", "Pioneer", "Quartz", "River", "Summit", "Tiger",
)  # fmt: skip
PERIODS = {"annually": 1, "semi-annually": 2, "quarterly": 4, "monthly": 12}
EVERY = {"every year": 1, "every half-year": 2, "every quarter": 4, "every month": 12}
CALENDAR = {"daily": "252 trading days", "weekly": "52 weeks", "monthly": "12 months"}
INSTALMENTS = {"yearly": 1, "quarterly": 4, "monthly": 12}
QUANTILES = {"90%": 1.282, "95%": 1.645, "99%": 2.326}  # one-sided, of the normal distribution
UNSEEN_QUANTILES = {"97.5%": 1.96, "99.5%": 2.576}


@dataclass(frozen=True)
class Slot:
    """How a value is written into a question, the pattern of such text, and how it is read back for
    `answer`."""

    write: Callable
    pattern: str
    read: Callable


@dataclass(frozen=True)
class Draw:
    """One problem's random numbers: from the trained ranges, or where `unseen` from the held-out
    ones."""

    rng: np.random.Generator
    unseen: bool

    def pick(self, trained, held_out):
        """A short decimal of the range (low, high, step)."""
        low, high, step = trained
        if self.unseen:
            low, high, step = held_out
        return round(float(low + step * self.rng.integers(0, round((high - low) / step) + 1)), 2)

    def count(self, trained, held_out):
        """A whole number of the range (low, high), its end left out."""
        if self.unseen:
            trained = held_out
        return int(self.rng.integers(*trained))

    def one_of(self, options):
        return list(options)[self.rng.integers(len(options))]

    def returns(self, count, trained, held_out):
        """`count` returns in percent: rises and falls, their sizes of the range (low, high,
        step)."""
        returns = []
        for _ in range(count):
            size = self.pick(trained, held_out)
            if self.rng.random() >= 0.65:
                size = -size
            returns.append(size)
        return returns


@dataclass(frozen=True)
class Kind:
    name: str
    level: int  # calculator marks in the worked answer: 1 (one), 2 (two or three), 3 (more)
    phrasings: tuple[str, ...]
    draw: Callable  # Draw -> slots, or None where they are degenerate
    answer: Callable  # slots as read from the question -> (worked steps, final answer, gold)


def _decimal(value) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _money(value) -> str:
    return f"${value:,.2f}".removesuffix(".00")


def _percent(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def _list(write: Callable) -> Callable:
    return lambda values: ", ".join(map(write, values))


_DOLLARS = r"\$\d+(?:,\d{3})*(?:\.\d+)?"
_RETURN = r"-?\d+(?:\.\d+)?%"
MONEY = Slot(_money, _DOLLARS, lambda text: text.lstrip("$").replace(",", ""))
PERCENT = Slot(_percent, r"\d+(?:\.\d+)?%", lambda text: text.rstrip("%"))
DECIMAL = Slot(_decimal, r"-?\d+(?:\.\d+)?", str)
WORD = Slot(str, r"(?i:[a-z-]+(?: [a-z-]+)?)", str.lower)
COUNT = Slot(str, r"\d+", str)
SERIES = Slot(_list(str), r"(?:\d+, )+\d+", lambda text: text.split(", "))
RETURNS = Slot(_list(_percent), rf"(?:{_RETURN}, )+{_RETURN}", re.compile(r"[-.\d]+").findall)
FLOWS = Slot(
    _list(_money), rf"(?:{_DOLLARS}, )+{_DOLLARS}", lambda text: text[1:].replace(",", "").split(" $")
)  # fmt: skip
DATES = Slot(str, r"\d+ [a-z]+(?: [a-z]+)?", str)
NAME = Slot(str, r"[A-Z][a-z]+", str)
SLOTS = {slot: kind for kind, slots in (
    (MONEY, "principal account entry stop start finish face price coupon cost value fixed unit_cost"),
    (PERCENT, "rate risk risk_free volatility target probability confidence weight return benchmark"),
    (PERCENT, "tracking return_a return_b return_c volatility_a volatility_b volatility_c"),
    (PERCENT, "volatility_market coupon_rate"), (DECIMAL, "correlation covariance quantile odds"),
    (COUNT, "years count days"), (WORD, "frequency every period often"), (SERIES, "series"),
    (RETURNS, "returns"), (FLOWS, "flows"), (DATES, "calendar"), (NAME, "a b c"),
) for slot in slots.split()}  # fmt: skip


# --- what several kinds share ---------------------------------------------------------------------
def _value(expression: str) -> str:
    """What the calculator shows for an expression."""
    return show(calculate(expression))


def _gold(final: str, unit: str, exact: str | None = None) -> tuple[str, dict]:
    """(the answer as the calculator shows it, the gold to its last digit); `exact` where `final`
    holds rounded values."""
    answer, decimals, tolerance = _value(final), 2, 0.001
    if unit == "percent":
        answer += "%"
    if unit == "count":
        decimals, tolerance = 0, 0.0
    value = float(show(calculate(exact or final), decimals))
    return answer, {"value": value, "unit": unit, "decimals": decimals, "tolerance": tolerance}


def _worked(steps: dict[str, str], unit: str, exact: str | None = None) -> tuple[list[str], str, dict]:
    """`Value: <<2*3=6>>.` for each step of {name: expression}, with the answer and gold of the
    last."""
    *_, final = steps.values()
    lines = [f"{name}: {mark(expression)}." for name, expression in steps.items()]
    return lines, *_gold(final, unit, exact)


def _total(numbers: list[str]) -> str:
    """`["5", "-3"]` -> `5-3`."""
    return "+".join(numbers).replace("+-", "-")


# --- compounding ----------------------------------------------------------------------------------
def _draw_compounding(draw):
    frequency, every = draw.one_of([*zip(PERIODS, EVERY)])
    return {
        "principal": draw.pick((1_000, 20_000, 100), (25_000, 95_000, 500)),
        "rate": draw.pick((2, 8, 0.25), (8.25, 14, 0.25)),
        "years": draw.count((2, 11), (11, 21)),
        "frequency": frequency,
        "every": every,
    }


def _answer_compounding(s):
    periods = PERIODS[s["frequency"]] if "frequency" in s else EVERY[s["every"]]
    count = f"{periods}*{s['years']}"
    value = f"{s['principal']}*(1+{s['rate']}/100/{periods})^{_value(count)}"
    return _worked({"Periods": count, "Value": value}, "currency")


# --- maximum drawdown -----------------------------------------------------------------------------
def _draw_drawdown(draw):
    count, values = int(draw.rng.integers(5, 8)), []
    level = draw.count((60, 400), (500, 3000))
    for _ in range(count):
        values.append(int(level))
        level = max(10, level * (1 + draw.rng.uniform(-0.25, 0.25)))
    if values == sorted(values):
        return None  # never falls: a drawdown of zero is degenerate
    return {"series": values, "count": count}


def _answer_drawdown(s):
    peak, worst, falls, steps = s["series"][0], "0", [], []  # peak and worst are carried from line to line
    for value in s["series"][1:]:
        highest = f"max({peak},{value})"
        peak = _value(highest)
        falls.append(f"100*(1-{value}/{peak})")
        deepest = f"max({worst},{falls[-1]})"
        worst = _value(deepest)
        steps.append(f"{value}: peak {mark(highest)}, worst fall {mark(deepest)}.")
    return steps, *_gold(worst, "percent", f"max({','.join(falls)})")


# --- Sharpe ratio comparison and ranking ----------------------------------------------------------
def _draw_funds(draw, funds):
    slots = {"risk_free": draw.pick((1, 4, 0.25), (4.25, 6, 0.25))}
    for who, name in zip(funds, draw.rng.permutation(len(NAMES))):
        slots[who] = NAMES[name]
        slots[f"return_{who}"] = draw.pick((5, 15, 0.5), (15.5, 30, 0.5))
        slots[f"volatility_{who}"] = draw.pick((5, 20, 1), (21, 40, 1))
    return slots


def duel(a: tuple[str, str], b: tuple[str, str], up: bool = True) -> str:
    """`Iris or Maple: <<2.04-0.47=1.57>>, Iris.` from (name, number) pairs: the sign of the
    difference decides."""
    difference = f"{a[1]}-{b[1]}"
    winner = a[0] if (calculate(difference) >= 0) == up else b[0]
    return f"{a[0]} or {b[0]}: {mark(difference)}, {winner}."


def _ratio_steps(s: dict, ratios: dict[str, str]) -> list[str]:
    """`Iris: return 6, volatility 7, ratio <<6/7=0.8571>>.` a fund: what is read first is easier to
    compute with."""
    return [f"{s[w]}: return {s[f'return_{w}']}, volatility {s[f'volatility_{w}']}, ratio {mark(ratio)}."
            for w, ratio in ratios.items()]  # fmt: skip


def _draw_sharpe(draw):
    slots = _draw_funds(draw, "ab")
    a, b = ((slots[f"return_{w}"] - slots["risk_free"]) / slots[f"volatility_{w}"] for w in "ab")
    if abs(a - b) < 0.02:
        return None  # too close to say which is the better
    return slots


def _answer_sharpe(s):
    ratios = {w: f"({s[f'return_{w}']}-{s['risk_free']})/{s[f'volatility_{w}']}" for w in "ab"}
    higher = f"max({','.join(map(_value, ratios.values()))})"
    steps = [f"Risk-free: {s['risk_free']}.", *_ratio_steps(s, ratios), f"Higher: {mark(higher)}."]
    return steps, *_gold(higher, "ratio", f"max({','.join(ratios.values())})")


def _draw_ranking(draw):
    slots = _draw_funds(draw, "abc")
    ratios = sorted(slots[f"return_{w}"] / slots[f"volatility_{w}"] for w in "abc")
    if min(np.diff(ratios)) < 0.02:
        return None  # too close to call from rounded figures
    return slots


def _answer_ranking(s):
    expressions = {w: f"{s[f'return_{w}']}/{s[f'volatility_{w}']}" for w in "abc"}
    ratios = {s[w]: _value(text) for w, text in expressions.items()}
    duels = [duel(a, b) for a, b in combinations(ratios.items(), 2)]
    value = ", ".join(sorted(ratios, key=lambda name: -float(ratios[name])))
    gold = {"value": value, "unit": "choice", "tolerance": 0.0}
    return _ratio_steps(s, expressions) + duels, value, gold


# --- volatility annualisation ---------------------------------------------------------------------
_VOLATILITIES = {  # a period's trained range, and its held-out one
    "daily": ((0.3, 2, 0.01), (2.01, 4, 0.01)),
    "weekly": ((1, 4, 0.01), (4.01, 8, 0.01)),
    "monthly": ((2, 7, 0.01), (7.01, 14, 0.01)),
}


def _draw_volatility(draw):
    period = draw.one_of(CALENDAR)
    volatility = draw.pick(*_VOLATILITIES[period])
    return {"period": period, "calendar": CALENDAR[period], "volatility": volatility}


def _answer_volatility(s):
    value = f"{s['volatility']}*sqrt({s['calendar'].split()[0]})"
    return _worked({"Annual": value}, "percent")


# --- position sizing ------------------------------------------------------------------------------
def _draw_position(draw):
    entry = draw.pick((10, 100, 0.5), (120, 400, 0.5))
    account = draw.pick((5_000, 100_000, 500), (150_000, 900_000, 5_000))
    risk = draw.pick((0.5, 2, 0.25), (2.25, 4, 0.25))
    stop = round(entry - draw.pick((0.5, 10, 0.5), (10.5, 40, 0.5)), 2)
    if stop <= 0:
        return None
    return {"account": account, "risk": risk, "entry": entry, "stop": stop}


def _answer_position(s):
    risk, distance = f"{s['account']}*{s['risk']}/100", f"{s['entry']}-{s['stop']}"
    shares = f"floor({_value(risk)}/{_value(distance)})"
    steps = {"At risk": risk, "Per share": distance, "Shares": shares}
    return _worked(steps, "count", f"floor({risk}/({distance}))")


# --- growth: CAGR, geometric mean return ----------------------------------------------------------
def _draw_cagr(draw):
    start = draw.pick((1_000, 20_000, 100), (30_000, 90_000, 500))
    finish = round(start * draw.rng.uniform(1.2, 3), -2)
    return {"start": start, "finish": finish, "years": draw.count((2, 11), (11, 19))}


def _answer_cagr(s):
    growth = f"{s['finish']}/{s['start']}"
    rate = f"100*(({growth})^(1/{s['years']})-1)"
    return _worked({"Growth": growth, "Rate": rate}, "percent")


def _draw_means(draw):
    returns = draw.returns(draw.rng.integers(3, 5), (1, 20, 0.5), (20.5, 40, 0.5))
    if np.std(returns) < 8:
        return None  # near equal: the two means hardly differ
    return {"returns": returns}


def _answer_means(s):
    count = len(s["returns"])
    factors = "*".join(f"({_total(['1', number])}/100)" for number in s["returns"])
    arithmetic, geometric = f"({_total(s['returns'])})/{count}", f"100*(({factors})^(1/{count})-1)"
    difference = f"{arithmetic}-{geometric}"
    steps = {"Arithmetic": arithmetic, "Growth": factors, "Geometric": geometric, "Difference": difference}
    return _worked(steps, "percent")


# --- risk: Sortino, beta, value at risk, portfolio variance, information ratio --------------------
def _draw_sortino(draw):
    target = draw.pick((0.5, 2, 0.25), (2.25, 4, 0.25))
    returns = draw.returns(draw.rng.integers(4, 7), (1, 8.5, 0.5), (9, 18, 0.5))
    shortfalls = np.maximum(target - np.array(returns), 0)
    if not any(shortfalls) or (np.mean(returns) - target) / np.sqrt(np.mean(shortfalls**2)) < 0.2:
        return None  # a downside deviation of zero, or a ratio that two decimals hardly show
    return {"returns": returns, "target": target, "count": len(returns)}


def _answer_sortino(s):
    returns, target, count = s["returns"], s["target"], len(s["returns"])
    excess = f"({_total(returns)})/{count}-{target}"
    below = "+".join(f"({number}-{target})^2" for number in returns if float(number) < float(target))
    deviation = f"sqrt({_value(below)}/{count})"
    ratio = f"({excess})/sqrt(({below})/{count})"
    steps = {"Excess": excess, "Squared shortfalls": below, "Downside deviation": deviation, "Ratio": ratio}
    return _worked(steps, "ratio")


def _draw_beta(draw):
    name = draw.one_of(NAMES)
    fund = draw.pick((8, 30, 1), (31, 50, 1))
    market = draw.pick((8, 20, 1), (21, 40, 1))
    correlation = draw.pick((0.2, 0.7, 0.05), (0.75, 0.95, 0.05))
    covariance = correlation * fund * market / 10_000
    if covariance / (market / 100) ** 2 < 0.2:
        return None
    return {
        "a": name, "volatility_a": fund, "volatility_market": market, "correlation": correlation,
        "covariance": round(covariance, 4),  # up to 0.042, or from 0.0488 where unseen
    }  # fmt: skip


def _answer_beta(s):
    market = s["volatility_market"]
    if "covariance" in s:
        covariance, variance, steps = s["covariance"], f"({market}/100)^2", {}
    else:
        covariance, variance = f"{s['correlation']}*{s['volatility_a']}*{market}", f"{market}^2"
        steps = {"Covariance": covariance}  # twentieths of a whole number: exact
    beta = f"{_value(covariance)}/{_value(variance)}"
    return _worked(steps | {"Variance": variance, "Beta": beta}, "ratio", f"{covariance}/({variance})")


def _draw_var(draw):
    quantiles = UNSEEN_QUANTILES if draw.unseen else QUANTILES
    confidence = draw.one_of(quantiles)
    return {
        "value": draw.pick((100_000, 900_000, 10_000), (1_200_000, 9_000_000, 100_000)),
        "volatility": draw.pick((0.5, 2, 0.05), (2.25, 4, 0.05)),
        "days": draw.count((2, 11), (11, 26)),
        "confidence": float(confidence.rstrip("%")),
        "quantile": quantiles[confidence],
    }


def _answer_var(s):
    horizon = f"{s['volatility']}*sqrt({s['days']})"
    loss = f"{s['value']}*{s['quantile']}*{horizon}/100"
    return _worked({"Volatility": horizon, "Loss": loss}, "currency")


def _draw_portfolio(draw):
    a, b = draw.rng.permutation(len(NAMES))[:2]
    slots = {"a": NAMES[a], "b": NAMES[b], "weight": draw.pick((20, 80, 10), (20, 80, 10))}
    for who in "ab":
        slots[f"volatility_{who}"] = draw.pick((5, 20, 1), (21, 40, 1))
    slots["correlation"] = draw.pick((-0.4, 0.5, 0.1), (0.6, 0.9, 0.1))
    if slots["correlation"] == 0:
        return None  # with none of it a whole term would vanish
    return slots


def _answer_portfolio(s):
    rest = f"100-{s['weight']}"
    x, y = _value(f"{s['weight']}/100"), _value(f"({rest})/100")
    square_a, square_b = f"({x}*{s['volatility_a']})^2", f"({y}*{s['volatility_b']})^2"
    cross = f"2*{x}*{y}*{s['correlation']}*{s['volatility_a']}*{s['volatility_b']}"
    volatility = f"sqrt({_value(square_a)}+{_value(square_b)}+{cross})"  # tenths squared: exact
    steps = {f"Weight of {s['b']}": rest, s["a"]: square_a, s["b"]: square_b}
    return _worked(steps | {"Cross term": cross, "Volatility": volatility}, "percent")


def _draw_information(draw):
    benchmark = draw.pick((4, 12, 0.5), (13, 20, 0.5))
    active = draw.pick((0.5, 5, 0.25), (5.25, 9, 0.25))
    tracking = draw.pick((2, 8, 0.25), (8.25, 14, 0.25))
    slots = {"a": draw.one_of(NAMES), "benchmark": benchmark, "return": benchmark + active, "tracking": tracking}
    if active / tracking < 0.2:
        return None  # two decimals would hardly show it
    return slots


def _answer_information(s):
    active = f"{s['return']}-{s['benchmark']}"
    ratio = f"{_value(active)}/{s['tracking']}"
    return _worked({"Active return": active, "Ratio": ratio}, "ratio")


# --- present values: bond price, current yield, net present value, loan payment -------------------
def _draw_bond(draw):
    coupon, market = (draw.pick((2, 8, 0.25), (8.25, 12, 0.25)) for _ in range(2))
    years = draw.count((2, 5), (5, 7))
    face = draw.pick((1_000, 10_000, 500), (20_000, 90_000, 5_000))
    if coupon == market:
        return None  # at par
    return {"face": face, "coupon_rate": coupon, "rate": market, "years": years}


def _answer_bond(s):
    coupon, factor = f"{s['face']}*{s['coupon_rate']}/100", f"1+{s['rate']}/100"
    paid = _value(coupon)
    flows = [paid] * int(s["years"])
    flows[-1] = _value(f"{paid}+{s['face']}")
    years = _discounted(flows, factor)
    return _worked({"Coupon": coupon, "Factor": factor} | years | {"Price": "+".join(years.values())}, "currency")


def _discounted(flows: list[str], factor: str) -> dict[str, str]:
    """What each year's flow is worth today, as steps; the factor and the flows are exact."""
    growth = _value(factor)
    return {f"Year {year}": f"{flow}/{growth}^{year}" for year, flow in enumerate(flows, 1)}


def _draw_current(draw):
    return {
        "coupon": draw.pick((20, 80, 1), (82, 140, 1)),
        "price": draw.pick((800, 1_200, 5), (1_205, 1_500, 5)),
    }


def _answer_current(s):
    value = f"100*{s['coupon']}/{s['price']}"
    return _worked({"Yield": value}, "percent")


def _draw_npv(draw):
    flows = [draw.pick((1_000, 9_000, 100), (25_000, 60_000, 500)) for _ in range(draw.rng.integers(3, 5))]
    rate = draw.pick((3, 10, 0.5), (10.5, 15, 0.5))
    worth = sum(flow / (1 + rate / 100) ** year for year, flow in enumerate(flows, 1))
    cost = round(worth * draw.rng.uniform(0.7, 1.15), -2)
    if abs(worth - cost) < 0.02 * worth:
        return None  # next to nothing, compared with its terms
    return {"flows": flows, "rate": rate, "cost": cost}


def _answer_npv(s):
    factor = f"1+{s['rate']}/100"
    years = _discounted(s["flows"], factor)
    net = "+".join([f"-{s['cost']}", *years.values()])
    return _worked({"Factor": factor} | years | {"Net": net}, "currency")


def _draw_loan(draw):
    return {
        "principal": draw.pick((2_000, 60_000, 500), (100_000, 500_000, 5_000)),
        "rate": draw.pick((3, 9, 0.25), (9.25, 14, 0.25)),
        "years": draw.count((2, 11), (11, 26)),
        "often": draw.one_of(INSTALMENTS),
    }


def _answer_loan(s):
    periods = INSTALMENTS[s["often"]]
    rate, count = f"{s['rate']}/100/{periods}", f"{periods}*{s['years']}"
    percent = f"{s['rate']}/{periods}"
    payment = f"{s['principal']}*({rate})/(1-(1+{rate})^-{_value(count)})"
    steps = {"Percent a period": percent, "Payments": count, "Payment": payment}
    return _worked(steps, "currency")


# --- sizes: Kelly fraction, break-even ------------------------------------------------------------
def _draw_kelly(draw):
    probability = draw.pick((40, 60, 0.5), (61, 75, 0.5))
    odds = draw.pick((0.8, 3, 0.1), (3.1, 6, 0.1))
    if probability - (100 - probability) / odds < 1:
        return None  # no edge, no bet
    return {"probability": probability, "odds": odds}


def _answer_kelly(s):
    loss = f"100-{s['probability']}"
    fraction = f"{s['probability']}-{_value(loss)}/{s['odds']}"
    return _worked({"Chance of loss": loss, "Fraction": fraction}, "percent")


def _draw_breakeven(draw):
    unit_cost = draw.pick((2, 50, 0.5), (55, 120, 0.5))
    margin = draw.pick((3, 30, 0.5), (32, 80, 0.5))
    fixed = draw.pick((5_000, 100_000, 500), (200_000, 900_000, 5_000))
    return {"fixed": fixed, "price": unit_cost + margin, "unit_cost": unit_cost}


def _answer_breakeven(s):
    margin = f"{s['price']}-{s['unit_cost']}"
    units = f"-floor(-{s['fixed']}/{_value(margin)})"  # rounds up
    return _worked({"Margin": margin, "Units": units}, "count")


# --- the kinds ------------------------------------------------------------------------------------
_FUNCTIONS = {  # a kind's place in this table is its random stream: new kinds go to the end
    "compounding": (_draw_compounding, _answer_compounding),
    "maximum drawdown": (_draw_drawdown, _answer_drawdown),
    "Sharpe comparison": (_draw_sharpe, _answer_sharpe),
    "volatility annualisation": (_draw_volatility, _answer_volatility),
    "position sizing": (_draw_position, _answer_position),
    "risk-adjusted ranking": (_draw_ranking, _answer_ranking),
    "CAGR": (_draw_cagr, _answer_cagr),
    "geometric mean return": (_draw_means, _answer_means),
    "Sortino ratio": (_draw_sortino, _answer_sortino),
    "beta": (_draw_beta, _answer_beta),
    "bond price": (_draw_bond, _answer_bond),
    "current yield": (_draw_current, _answer_current),
    "net present value": (_draw_npv, _answer_npv),
    "loan payment": (_draw_loan, _answer_loan),
    "value at risk": (_draw_var, _answer_var),
    "Kelly fraction": (_draw_kelly, _answer_kelly),
    "portfolio variance": (_draw_portfolio, _answer_portfolio),
    "information ratio": (_draw_information, _answer_information),
    "break-even": (_draw_breakeven, _answer_breakeven),
}
_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
KINDS = {
    name: Kind(name, _TEXTS[name]["level"], tuple(_TEXTS[name]["phrasings"]), draw, answer)
    for name, (draw, answer) in _FUNCTIONS.items()
}
