"""What is asked: each kind of problem as data, with its slots, phrasings, draw of parameters and worked answer.

A phrasing's slots are typed: how a value is written, which text it may be, and how that text is read back as plain
numbers. `draw` gives the slots, or None where they would be degenerate. `answer` sees only what was read from the text.
The gold comes from the whole expression; a step that continues from rounded values is never the last, unless they are
exact, so that the worked answer ends within its gold's tolerance.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lib.grade.calculator import calculate, mark, show

HELD_OUT_PHRASINGS = 3  # of each kind's list, the last; the rest are trained
NAMES = (
    "Alpha", "Birch", "Cedar", "Delta", "Ember", "Falcon", "Granite", "Harbor", "Iris", "Juniper", "Kestrel", "Lotus",
    "Maple", "Nova", "Orion", "Pioneer", "Quartz", "River", "Summit", "Tiger",
)  # fmt: skip
PERIODS = {"annually": 1, "semi-annually": 2, "quarterly": 4, "monthly": 12}
EVERY = {"every year": 1, "every half-year": 2, "every quarter": 4, "every month": 12}
CALENDAR = {"daily": "252 trading days", "weekly": "52 weeks", "monthly": "12 months"}
INSTALMENTS = {"yearly": 1, "quarterly": 4, "monthly": 12}
QUANTILES = {"90%": 1.282, "95%": 1.645, "99%": 2.326}  # one-sided, of the normal distribution
UNSEEN_QUANTILES = {"97.5%": 1.96, "99.5%": 2.576}


@dataclass(frozen=True)
class Slot:
    """How a value is written into a question, the pattern of such text, and how it is read back for `answer`."""

    write: Callable
    pattern: str
    read: Callable


@dataclass(frozen=True)
class Kind:
    name: str
    level: int  # calculator marks in the worked answer: 1 (one), 2 (two or three), 3 (more)
    phrasings: tuple[str, ...]
    draw: Callable  # (rng, unseen) -> slots, or None for a degenerate draw
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
MONEY = Slot(_money, _DOLLARS, lambda text: text.lstrip("$").replace(",", ""))
PERCENT = Slot(_percent, r"\d+(?:\.\d+)?%", lambda text: text.rstrip("%"))
DECIMAL = Slot(_decimal, r"-?\d+(?:\.\d+)?", str)
WORD = Slot(str, r"(?i:[a-z-]+(?: [a-z-]+)?)", str.lower)
COUNT = Slot(str, r"\d+", str)
SERIES = Slot(_list(str), r"(?:\d+, )+\d+", lambda text: text.split(", "))
RETURNS = Slot(_list(_percent), r"(?:-?\d+(?:\.\d+)?%, )+-?\d+(?:\.\d+)?%", lambda text: re.findall(r"[-.\d]+", text))
FLOWS = Slot(_list(_money), rf"(?:{_DOLLARS}, )+{_DOLLARS}", lambda text: text[1:].replace(",", "").split(" $"))
DATES = Slot(str, r"\d+ [a-z]+(?: [a-z]+)?", str)
NAME = Slot(str, r"[A-Z][a-z]+", str)
SLOTS = {slot: kind for kind, slots in (
    (MONEY, "principal account entry stop start finish face price coupon cost value fixed unit_cost"),
    (PERCENT, "rate risk risk_free volatility target probability confidence weight return benchmark tracking"),
    (PERCENT, "return_a return_b return_c volatility_a volatility_b volatility_c volatility_market coupon_rate"),
    (DECIMAL, "correlation covariance quantile odds"), (COUNT, "years count days"),
    (WORD, "frequency every period often"), (SERIES, "series"), (RETURNS, "returns"), (FLOWS, "flows"),
    (DATES, "calendar"), (NAME, "a b c"),
) for slot in slots.split()}  # fmt: skip


# --- what several kinds share -----------------------------------------------------------------------------------------
def _pick(rng, low, high, step):
    """A multiple of `step` from `low`, at most `high`, as a short decimal."""
    return round(float(low + step * rng.integers(0, round((high - low) / step) + 1)), 2)


def _gold(final: str, unit: str, decimals: int, exact: str | None = None) -> tuple[str, dict]:
    """(the answer as the calculator shows it, the gold rounded to `decimals`); `exact` where `final` holds rounded
    values."""
    value = float(show(calculate(exact or final), decimals))
    gold = {"value": value, "unit": unit, "decimals": decimals, "tolerance": 0.0 if unit == "count" else 0.001}
    return show(calculate(final)) + ("%" if unit == "percent" else ""), gold


def _choice(value: str) -> tuple[str, dict]:
    return value, {"value": value, "unit": "choice", "tolerance": 0.0}


def _signed_returns(rng, count, low, high):
    """`count` returns in percent, rises and falls by `low` to `high`."""
    return [_pick(rng, low, high, 0.5) * (1 if rng.random() < 0.65 else -1) for _ in range(count)]


def _total(numbers: list[str]) -> str:
    """`["5", "-3"]` -> `5-3`."""
    return "+".join(numbers).replace("+-", "-")


# --- compounding ------------------------------------------------------------------------------------------------------
def _draw_compounding(rng, unseen):
    frequency = int(rng.integers(len(PERIODS)))
    return {
        "principal": _pick(rng, *((25_000, 95_000, 500) if unseen else (1_000, 20_000, 100))),
        "rate": _pick(rng, *((8.25, 14, 0.25) if unseen else (2, 8, 0.25))),
        "years": int(rng.integers(*((11, 21) if unseen else (2, 11)))),
        "frequency": list(PERIODS)[frequency],
        "every": list(EVERY)[frequency],
    }


def _answer_compounding(s):
    periods = PERIODS[s["frequency"]] if "frequency" in s else EVERY[s["every"]]
    count = f"{periods}*{s['years']}"
    value = f"{s['principal']}*(1+{s['rate']}/100/{periods})^{show(calculate(count))}"
    return [f"Periods: {mark(count)}.", f"Value: {mark(value)}."], *_gold(value, "currency", 2)


# --- maximum drawdown -------------------------------------------------------------------------------------------------
def _draw_drawdown(rng, unseen):
    count = int(rng.integers(5, 8))
    level, values = rng.integers(*((500, 3000) if unseen else (60, 400))), []
    for _ in range(count):
        values.append(int(level))
        level = max(10, level * (1 + rng.uniform(-0.25, 0.25)))
    if all(b >= a for a, b in zip(values, values[1:])):
        return None  # never falls: a drawdown of zero is degenerate
    return {"series": values, "count": count}


def _answer_drawdown(s):
    peak, worst, falls, steps = s["series"][0], "0", [], []  # peak and worst are carried from line to line
    for value in s["series"][1:]:
        highest = f"max({peak},{value})"
        peak = show(calculate(highest))
        falls.append(f"100*(1-{value}/{peak})")
        deepest = f"max({worst},{falls[-1]})"
        worst = show(calculate(deepest))
        steps.append(f"{value}: peak {mark(highest)}, worst fall {mark(deepest)}.")
    return steps, *_gold(worst, "percent", 2, f"max({','.join(falls)})")


# --- Sharpe ratio comparison and ranking ------------------------------------------------------------------------------
def _draw_funds(rng, unseen, count):
    slots = {"risk_free": _pick(rng, *((4.25, 6, 0.25) if unseen else (1, 4, 0.25)))}
    for who, name in zip("abc"[:count], rng.permutation(len(NAMES))):
        slots[who] = NAMES[name]
        slots[f"return_{who}"] = _pick(rng, *((15.5, 30, 0.5) if unseen else (5, 15, 0.5)))
        slots[f"volatility_{who}"] = _pick(rng, *((21, 40, 1) if unseen else (5, 20, 1)))
    return slots


def duel(a: tuple[str, str], b: tuple[str, str], up: bool = True) -> str:
    """`Iris or Maple: <<2.04-0.47=1.57>>, Iris.` from (name, number) pairs: the sign of the difference decides."""
    difference = f"{a[1]}-{b[1]}"
    winner = a[0] if (calculate(difference) >= 0) == up else b[0]
    return f"{a[0]} or {b[0]}: {mark(difference)}, {winner}."


def _ratio_steps(s: dict, ratios: dict[str, str]) -> list[str]:
    """`Iris: return 6, volatility 7, ratio <<6/7=0.8571>>.` a name: what is read first is easier to compute with."""
    return [f"{s[w]}: return {s[f'return_{w}']}, volatility {s[f'volatility_{w}']}, ratio {mark(ratios[s[w]])}."
            for w in "abc" if w in s]  # fmt: skip


def _draw_sharpe(rng, unseen):
    slots = _draw_funds(rng, unseen, 2)
    a, b = ((slots[f"return_{w}"] - slots["risk_free"]) / slots[f"volatility_{w}"] for w in "ab")
    return slots if abs(a - b) >= 0.02 else None  # too close to say which is the better


def _answer_sharpe(s):
    ratios = {s[w]: f"({s[f'return_{w}']}-{s['risk_free']})/{s[f'volatility_{w}']}" for w in "ab"}
    higher = f"max({','.join(show(calculate(ratio)) for ratio in ratios.values())})"
    steps = [f"Risk-free: {s['risk_free']}.", *_ratio_steps(s, ratios), f"Higher: {mark(higher)}."]
    return steps, *_gold(higher, "ratio", 2, f"max({','.join(ratios.values())})")


def _draw_ranking(rng, unseen):
    slots = _draw_funds(rng, unseen, 3)
    ratios = sorted(slots[f"return_{w}"] / slots[f"volatility_{w}"] for w in "abc")
    return slots if min(np.diff(ratios)) >= 0.02 else None  # too close to call from rounded figures


def _answer_ranking(s):
    expressions = {s[w]: f"{s[f'return_{w}']}/{s[f'volatility_{w}']}" for w in "abc"}
    ratios = {name: show(calculate(text)) for name, text in expressions.items()}
    steps = _ratio_steps(s, expressions) + [duel(*pair) for pair in combinations(ratios.items(), 2)]
    return steps, *_choice(", ".join(sorted(ratios, key=lambda name: -float(ratios[name]))))


# --- volatility annualisation -----------------------------------------------------------------------------------------
def _draw_volatility(rng, unseen):
    period = list(CALENDAR)[int(rng.integers(3))]
    ranges = {"daily": ((0.3, 2), (2.01, 4)), "weekly": ((1, 4), (4.01, 8)), "monthly": ((2, 7), (7.01, 14))}
    return {
        "period": period, "calendar": CALENDAR[period], "volatility": _pick(rng, *ranges[period][unseen], 0.01)
    }  # fmt: skip


def _answer_volatility(s):
    value = f"{s['volatility']}*sqrt({s['calendar'].split()[0]})"
    return [f"Annual: {mark(value)}."], *_gold(value, "percent", 2)


# --- position sizing --------------------------------------------------------------------------------------------------
def _draw_position(rng, unseen):
    entry = _pick(rng, *((120, 400, 0.5) if unseen else (10, 100, 0.5)))
    slots = {
        "account": _pick(rng, *((150_000, 900_000, 5_000) if unseen else (5_000, 100_000, 500))),
        "risk": _pick(rng, *((2.25, 4, 0.25) if unseen else (0.5, 2, 0.25))),
        "entry": entry,
        "stop": round(entry - _pick(rng, *((10.5, 40, 0.5) if unseen else (0.5, 10, 0.5))), 2),
    }
    return slots if slots["stop"] > 0 else None


def _answer_position(s):
    risk, distance = f"{s['account']}*{s['risk']}/100", f"{s['entry']}-{s['stop']}"
    shares = f"floor({show(calculate(risk))}/{show(calculate(distance))})"
    steps = [f"At risk: {mark(risk)}.", f"Per share: {mark(distance)}.", f"Shares: {mark(shares)}."]
    return steps, *_gold(shares, "count", 0, f"floor({risk}/({distance}))")


# --- growth: CAGR, geometric mean return ------------------------------------------------------------------------------
def _draw_cagr(rng, unseen):
    start = _pick(rng, *((30_000, 90_000, 500) if unseen else (1_000, 20_000, 100)))
    finish = round(start * rng.uniform(1.2, 3), -2)
    return {"start": start, "finish": finish, "years": int(rng.integers(*((11, 19) if unseen else (2, 11))))}


def _answer_cagr(s):
    growth = f"{s['finish']}/{s['start']}"
    rate = f"100*(({growth})^(1/{s['years']})-1)"
    return [f"Growth: {mark(growth)}.", f"Rate: {mark(rate)}."], *_gold(rate, "percent", 2)


def _draw_means(rng, unseen):
    returns = _signed_returns(rng, int(rng.integers(3, 5)), *((20.5, 40) if unseen else (1, 20)))
    return {"returns": returns} if np.std(returns) >= 8 else None  # near equal: the two means hardly differ


def _answer_means(s):
    count = len(s["returns"])
    factors = "*".join(f"({_total(['1', number])}/100)" for number in s["returns"])
    arithmetic, geometric = f"({_total(s['returns'])})/{count}", f"100*(({factors})^(1/{count})-1)"
    steps = [f"Arithmetic: {mark(arithmetic)}.", f"Growth: {mark(factors)}.", f"Geometric: {mark(geometric)}."]
    difference = f"{arithmetic}-{geometric}"
    return [*steps, f"Difference: {mark(difference)}."], *_gold(difference, "percent", 2)


# --- risk: Sortino, beta, value at risk, portfolio variance, information ratio ----------------------------------------
def _draw_sortino(rng, unseen):
    target = _pick(rng, *((2.25, 4, 0.25) if unseen else (0.5, 2, 0.25)))
    returns = _signed_returns(rng, int(rng.integers(4, 7)), *((9, 18) if unseen else (1, 8.5)))
    shortfalls = np.maximum(target - np.array(returns), 0)
    if not any(shortfalls) or (np.mean(returns) - target) / np.sqrt(np.mean(shortfalls**2)) < 0.2:
        return None  # a downside deviation of zero, or a ratio that two decimals hardly show
    return {"returns": returns, "target": target, "count": len(returns)}


def _answer_sortino(s):
    returns, target, count = s["returns"], s["target"], len(s["returns"])
    excess = f"({_total(returns)})/{count}-{target}"
    below = "+".join(f"({number}-{target})^2" for number in returns if float(number) < float(target))
    squares = show(calculate(below))
    deviation = f"sqrt({squares}/{count})"
    ratio = f"({excess})/sqrt(({below})/{count})"
    steps = [f"Excess: {mark(excess)}.", f"Squared shortfalls: {mark(below)}.", f"Downside deviation: {mark(deviation)}."]
    return [*steps, f"Ratio: {mark(ratio)}."], *_gold(ratio, "ratio", 2)


def _draw_beta(rng, unseen):
    slots = {
        "a": NAMES[int(rng.integers(len(NAMES)))],
        "volatility_a": _pick(rng, *((31, 50, 1) if unseen else (8, 30, 1))),
        "volatility_market": _pick(rng, *((21, 40, 1) if unseen else (8, 20, 1))),
        "correlation": _pick(rng, *((0.75, 0.95, 0.05) if unseen else (0.2, 0.7, 0.05))),
    }
    covariance = slots["correlation"] * slots["volatility_a"] * slots["volatility_market"] / 10_000
    slots["covariance"] = round(covariance, 4)  # up to 0.042, or from 0.0488 where unseen
    return slots if covariance / (slots["volatility_market"] / 100) ** 2 >= 0.2 else None


def _answer_beta(s):
    volatility, steps = s["volatility_market"], []
    if "covariance" in s:
        covariance, variance = s["covariance"], f"({volatility}/100)^2"
    else:
        covariance, variance = f"{s['correlation']}*{s['volatility_a']}*{volatility}", f"{volatility}^2"
        steps = [f"Covariance: {mark(covariance)}."]  # twentieths of a whole number: exact
    beta = f"{covariance}/({variance})"
    exact = f"{show(calculate(covariance))}/{show(calculate(variance))}"
    return [*steps, f"Variance: {mark(variance)}.", f"Beta: {mark(exact)}."], *_gold(exact, "ratio", 2, beta)


def _draw_var(rng, unseen):
    quantiles = list((UNSEEN_QUANTILES if unseen else QUANTILES).items())
    confidence, quantile = quantiles[int(rng.integers(2 + (not unseen)))]
    return {
        "value": _pick(rng, *((1_200_000, 9_000_000, 100_000) if unseen else (100_000, 900_000, 10_000))),
        "volatility": _pick(rng, *((2.25, 4, 0.05) if unseen else (0.5, 2, 0.05))),
        "days": int(rng.integers(*((11, 26) if unseen else (2, 11)))),
        "confidence": float(confidence.rstrip("%")),
        "quantile": quantile,
    }


def _answer_var(s):
    horizon = f"{s['volatility']}*sqrt({s['days']})"
    loss = f"{s['value']}*{s['quantile']}*{horizon}/100"
    return [f"Volatility: {mark(horizon)}.", f"Loss: {mark(loss)}."], *_gold(loss, "currency", 2)


def _draw_portfolio(rng, unseen):
    a, b = rng.permutation(len(NAMES))[:2]
    slots = {"a": NAMES[a], "b": NAMES[b], "weight": _pick(rng, 20, 80, 10)}
    for who in "ab":
        slots[f"volatility_{who}"] = _pick(rng, *((21, 40, 1) if unseen else (5, 20, 1)))
    slots["correlation"] = _pick(rng, *((0.6, 0.9, 0.1) if unseen else (-0.4, 0.5, 0.1)))
    return slots if slots["correlation"] else None  # with none of it a whole term would vanish


def _answer_portfolio(s):
    weight = f"100-{s['weight']}"
    x, y = (show(calculate(f"{w}/100")) for w in (s["weight"], weight.join("()")))
    own = [f"({share}*{s[f'volatility_{w}']})^2" for share, w in ((x, "a"), (y, "b"))]
    cross = f"2*{x}*{y}*{s['correlation']}*{s['volatility_a']}*{s['volatility_b']}"
    variance = "+".join([*(show(calculate(square)) for square in own), cross])  # tenths squared: exact
    steps = [f"Weight of {s['b']}: {mark(weight)}.", *(f"{s[w]}: {mark(square)}." for w, square in zip("ab", own))]
    volatility = f"sqrt({variance})"
    return [*steps, f"Cross term: {mark(cross)}.", f"Volatility: {mark(volatility)}."], *_gold(volatility, "percent", 2)


def _draw_information(rng, unseen):
    benchmark = _pick(rng, *((13, 20, 0.5) if unseen else (4, 12, 0.5)))
    active = _pick(rng, *((5.25, 9, 0.25) if unseen else (0.5, 5, 0.25)))
    tracking = _pick(rng, *((8.25, 14, 0.25) if unseen else (2, 8, 0.25)))
    slots = {"a": NAMES[int(rng.integers(len(NAMES)))], "benchmark": benchmark, "return": benchmark + active}
    return slots | {"tracking": tracking} if active / tracking >= 0.2 else None  # two decimals would hardly show it


def _answer_information(s):
    active = f"{s['return']}-{s['benchmark']}"
    ratio = f"{show(calculate(active))}/{s['tracking']}"
    return [f"Active return: {mark(active)}.", f"Ratio: {mark(ratio)}."], *_gold(ratio, "ratio", 2)


# --- present values: bond price, current yield, net present value, loan payment ---------------------------------------
def _draw_bond(rng, unseen):
    coupon, market = (_pick(rng, *((8.25, 12, 0.25) if unseen else (2, 8, 0.25))) for _ in range(2))
    years = int(rng.integers(*((5, 7) if unseen else (2, 5))))
    face = _pick(rng, *((20_000, 90_000, 5_000) if unseen else (1_000, 10_000, 500)))
    return {"face": face, "coupon_rate": coupon, "rate": market, "years": years} if coupon != market else None  # at par


def _answer_bond(s):
    coupon, factor, years = f"{s['face']}*{s['coupon_rate']}/100", f"1+{s['rate']}/100", int(s["years"])
    paid, growth = show(calculate(coupon)), show(calculate(factor))  # exact, both
    flows = [paid] * (years - 1) + [show(calculate(f"{paid}+{s['face']}"))]
    return _present_value([f"Coupon: {mark(coupon)}.", f"Factor: {mark(factor)}."], "", flows, growth, "Price")


def _present_value(steps, outlay, flows, growth, name):
    parts = [f"{flow}/{growth}^{year}" for year, flow in enumerate(flows, 1)]
    steps += [f"Year {year}: {mark(part)}." for year, part in enumerate(parts, 1)]
    value = "+".join([*([f"-{outlay}"] if outlay else []), *parts])
    return [*steps, f"{name}: {mark(value)}."], *_gold(value, "currency", 2)


def _draw_current(rng, unseen):
    return {
        "coupon": _pick(rng, *((82, 140, 1) if unseen else (20, 80, 1))),
        "price": _pick(rng, *((1_205, 1_500, 5) if unseen else (800, 1_200, 5))),
    }


def _answer_current(s):
    value = f"100*{s['coupon']}/{s['price']}"
    return [f"Yield: {mark(value)}."], *_gold(value, "percent", 2)


def _draw_npv(rng, unseen):
    low, high, step = (25_000, 60_000, 500) if unseen else (1_000, 9_000, 100)
    flows = [_pick(rng, low, high, step) for _ in range(int(rng.integers(3, 5)))]
    slots = {"flows": flows, "rate": _pick(rng, *((10.5, 15, 0.5) if unseen else (3, 10, 0.5)))}
    worth = sum(flow / (1 + slots["rate"] / 100) ** year for year, flow in enumerate(flows, 1))
    slots["cost"] = round(worth * rng.uniform(0.7, 1.15), -2)
    return slots if abs(worth - slots["cost"]) >= 0.02 * worth else None  # next to nothing, compared with its terms


def _answer_npv(s):
    factor = f"1+{s['rate']}/100"
    return _present_value([f"Factor: {mark(factor)}."], s["cost"], s["flows"], show(calculate(factor)), "Net")


def _draw_loan(rng, unseen):
    return {
        "principal": _pick(rng, *((100_000, 500_000, 5_000) if unseen else (2_000, 60_000, 500))),
        "rate": _pick(rng, *((9.25, 14, 0.25) if unseen else (3, 9, 0.25))),
        "years": int(rng.integers(*((11, 26) if unseen else (2, 11)))),
        "often": list(INSTALMENTS)[int(rng.integers(3))],
    }


def _answer_loan(s):
    periods = INSTALMENTS[s["often"]]
    rate, count = f"{s['rate']}/100/{periods}", f"{periods}*{s['years']}"
    percent = f"{s['rate']}/{periods}"
    payment = f"{s['principal']}*({rate})/(1-(1+{rate})^-{show(calculate(count))})"
    steps = [f"Percent a period: {mark(percent)}.", f"Payments: {mark(count)}.", f"Payment: {mark(payment)}."]
    return steps, *_gold(payment, "currency", 2)


# --- sizes: Kelly fraction, break-even --------------------------------------------------------------------------------
def _draw_kelly(rng, unseen):
    slots = {
        "probability": _pick(rng, *((61, 75, 0.5) if unseen else (40, 60, 0.5))),
        "odds": _pick(rng, *((3.1, 6, 0.1) if unseen else (0.8, 3, 0.1))),
    }
    edge = slots["probability"] - (100 - slots["probability"]) / slots["odds"]
    return slots if edge >= 1 else None  # no edge, no bet


def _answer_kelly(s):
    loss = f"100-{s['probability']}"
    fraction = f"{s['probability']}-{show(calculate(loss))}/{s['odds']}"
    return [f"Chance of loss: {mark(loss)}.", f"Fraction: {mark(fraction)}."], *_gold(fraction, "percent", 2)


def _draw_breakeven(rng, unseen):
    unit_cost = _pick(rng, *((55, 120, 0.5) if unseen else (2, 50, 0.5)))
    margin = _pick(rng, *((32, 80, 0.5) if unseen else (3, 30, 0.5)))
    fixed = _pick(rng, *((200_000, 900_000, 5_000) if unseen else (5_000, 100_000, 500)))
    return {"fixed": fixed, "price": unit_cost + margin, "unit_cost": unit_cost}


def _answer_breakeven(s):
    margin = f"{s['price']}-{s['unit_cost']}"
    units = f"-floor(-{s['fixed']}/{show(calculate(margin))})"  # rounds up
    return [f"Margin: {mark(margin)}.", f"Units: {mark(units)}."], *_gold(units, "count", 0)


# The first six are numbered as they were: a kind's place in this table is its random stream. New kinds go to the end.
KINDS = {kind.name: kind for kind in (
    Kind("compounding", 2, (
        "You invest {principal} at {rate} a year, compounded {frequency}. How much is it worth after {years} years?",
        "A deposit of {principal} earns {rate} per year with interest added {every}. What is the balance after {years} years?",
        "An account pays {rate} annual interest, compounded {frequency}. If {principal} is put in today, what will the account hold in {years} years?",
        "What is the future value of {principal} after {years} years at an annual rate of {rate}, compounded {frequency}?",
        "Maria saves {principal} for {years} years. The bank credits interest {every} at {rate} a year. Find the final amount.",
        "Over {years} years a bond fund grows at a nominal {rate} a year with {frequency} compounding. Starting from {principal}, what is the final value?",
        "Interest of {rate} a year is credited {every} to a savings plan opened with {principal}. Compute its value at the end of {years} years.",
        "A trust places {principal} for a term of {years} years at {rate} per annum, compounded {frequency}. What sum does it receive at the end?",
        "What will {principal} grow to in {years} years if it earns {rate} a year, compounded {frequency}?",
        "Principal {principal}; rate {rate} a year; term {years} years; compounded {frequency}. Future value?",
        "Compute the future value. The term is {years} years, the annual rate is {rate}, interest is compounded {frequency} and the starting amount is {principal}.",
        "{every}, a savings account adds interest at a nominal annual rate of {rate}. If you pay in {principal} now and leave it alone, how much do you have after {years} years?",
        "Hi! I've got {principal} to put away for {years} years. My bank offers {rate} a year, compounded {frequency}. What will I end up with?",
        "At {rate} a year, paid {every} and reinvested, what does a sum of {principal} become in {years} years?",
        "A {years}-year deposit of {principal} carries a nominal rate of {rate} per year. Interest is added to the balance {every}. State the amount due at maturity.",
        "How much money is in an account {years} years after {principal} was deposited, when {rate} annual interest is compounded {frequency}?",
        "Suppose a client locks away {principal}. Interest is credited {every}, the yearly rate is {rate} and the money stays for {years} years. Find the closing balance.",
        "Compounded {frequency}, at {rate} per annum, for {years} years: what is {principal} worth at the end?",
        "Interest: {rate} a year, added {every}. Deposit: {principal}. Time: {years} years. Find the final balance.",
        "The yearly rate on a certificate is {rate}, and it is compounded {frequency}. Someone buys one for {principal}. Calculate what it pays back after {years} years.",
        "After {years} years, how large has a lump sum of {principal} become if a nominal {rate} a year is credited {every}?",
        "Ben lends {principal} to a firm, which adds interest to the debt {every} at a nominal rate of {rate} a year. Nothing is repaid before the end. How much does the firm owe after {years} years?",
        "Determine the value to which {principal} accumulates over {years} years, given a nominal yearly rate of {rate} that is compounded {frequency}.",
        "No withdrawals, {years} years, {rate} nominal a year, interest reinvested {every}. The opening balance is {principal}; give the closing one.",
        "After {years} years at {rate} per annum, with the interest paid {every} and left in the account, what has {principal} become?",
        "Someone puts aside {principal} and adds nothing more. The nominal rate is {rate} a year, compounding is done {frequency}, and the money stays for {years} years. State the value at the end.",
        "How large will a deposit be {years} years from now if it opens with {principal} and the bank compounds {frequency} at {rate} a year?",
    ), _draw_compounding, _answer_compounding),
    Kind("maximum drawdown", 3, (
        "A portfolio closed the last {count} months at {series}. What was its maximum drawdown in percent?",
        "Month-end values of a fund: {series}. Find the maximum drawdown as a percentage.",
        "An equity curve reads {series}. Calculate the largest peak-to-trough fall in percent.",
        "The value of an account over time was {series}. What is the worst percentage decline from a running peak?",
        "Given the index levels {series}, compute the maximum drawdown in percent.",
        "Quarter by quarter a strategy was worth {series}. By how many percent did it fall at most from an earlier high?",
        "Prices of a stock, oldest first: {series}. State the maximum drawdown in percent.",
        "Take the net asset values {series}. What is the deepest loss from a previous peak, in percent?",
        "How deep, in percent, was the worst drawdown of an account that went through {series}?",
        "{series}. Maximum drawdown in percent?",
        "Year-end values: {series}. By what percentage did the value drop in its worst slide from a high to a later low?",
        "Hi, my portfolio went {series} over the last {count} months. What's the biggest drop from a high, in percent?",
        "Compute the maximum drawdown, as a percentage of the peak, of the following daily closes: {series}.",
        "Someone buys once and sells once, later, at prices out of the row {series}. What is the largest loss possible, in percent of the price paid?",
        "A hedge fund reports its net asset value for {count} months as {series}. Determine the maximum drawdown in percent.",
        "For each value, take its distance below the highest value so far, as a percentage of that high. Over {series}, what is the largest such percentage?",
        "The record of a trading account, in time order, is {series}. What percentage was lost in the deepest drawdown?",
        "Let the wealth of an investor be {series} at successive dates. Find the greatest percentage drop from a peak to a trough that follows it.",
        "{count} closing levels of an index are {series}. Give the maximum drawdown, in percent.",
        "Drawdown check: values {series}; worst one in percent?",
        "Before a meeting you want to know the largest percentage drawdown of a fund whose unit price moved as follows: {series}. Calculate it.",
        "As time passed, a pension pot was valued at {series}. How many percent below its former peak was it at the worst point?",
        "The ups and downs of a strategy are in this list of month-end balances: {series}. Find the fall from a high to a subsequent low that is the largest in percent, and give that percentage.",
        "A token traded at {series}, one price a week. What maximum drawdown, in percent, did its holders suffer?",
        "How far below its highest earlier level, in percent, did a fund stand at worst? Its values in order: {series}.",
        "A trader's capital moved through {series}. Measured from the running peak, state the largest drop in percent.",
        "Report the maximum drawdown, as a percentage, of an investment worth {series} at successive dates.",
    ), _draw_drawdown, _answer_drawdown),
    Kind("Sharpe comparison", 2, (
        "{a} returned {return_a} with a volatility of {volatility_a}. {b} returned {return_b} with a volatility of {volatility_b}. The risk-free rate is {risk_free}. What is the higher of the two Sharpe ratios?",
        "With a risk-free rate of {risk_free}, compare two funds: {a} (return {return_a}, volatility {volatility_a}) and {b} (return {return_b}, volatility {volatility_b}). What is the better of their Sharpe ratios?",
        "{a} has an expected return of {return_a} and a standard deviation of {volatility_a}; {b} has {return_b} and {volatility_b}. Cash yields {risk_free}. How large is the higher Sharpe ratio?",
        "Treasury bills pay {risk_free}. {a} earned {return_a} at {volatility_a} volatility, {b} earned {return_b} at {volatility_b} volatility. Compute the higher Sharpe ratio.",
        "How large is the higher Sharpe ratio when the risk-free rate is {risk_free}: that of {a}, returning {return_a} with volatility {volatility_a}, or that of {b}, returning {return_b} with volatility {volatility_b}?",
        "An investor can hold {a} or {b}. {a} gained {return_a} and its volatility was {volatility_a}; {b} gained {return_b} and its volatility was {volatility_b}. Bills yield {risk_free}. What is the larger Sharpe ratio?",
        "Annual figures: {a} return {return_a}, standard deviation {volatility_a}; {b} return {return_b}, standard deviation {volatility_b}; risk-free {risk_free}. State the higher Sharpe ratio.",
        "The safe rate stands at {risk_free}. At a volatility of {volatility_a}, {a} delivered {return_a}. At a volatility of {volatility_b}, {b} delivered {return_b}. Find the higher of their Sharpe ratios.",
        "Which Sharpe ratio is higher, and how large is it? {a}: return {return_a}, sigma {volatility_a}. {b}: return {return_b}, sigma {volatility_b}. Risk-free rate {risk_free}.",
        "Risk-free {risk_free}; {a} {return_a} with sigma {volatility_a}; {b} {return_b} with sigma {volatility_b}; higher Sharpe ratio?",
        "{a} swings by {volatility_a} a year and earns {return_a}, while {b} swings by {volatility_b} and earns {return_b}. Money without risk brings {risk_free}. Give the larger of the two Sharpe ratios.",
        "Subtract {risk_free}, the yield of government paper, from each return and divide by the standard deviation: {a} made {return_a} with {volatility_a}, {b} made {return_b} with {volatility_b}. How large is the greater result?",
        "The standard deviations are {volatility_a} for {a} and {volatility_b} for {b}; the mean returns are {return_a} and {return_b}. If {risk_free} can be had without risk, what is the higher Sharpe ratio?",
        "Two managers are reviewed. The first, {a}, brought {return_a} at a risk of {volatility_a}; the second, {b}, brought {return_b} at a risk of {volatility_b}. A savings account would have paid {risk_free}. Work out the Sharpe ratio of the one that did better by that measure.",
        "Hi, quick one: {a} is up {return_a} (vol {volatility_a}), {b} is up {return_b} (vol {volatility_b}), and T-bills are at {risk_free}. What's the top Sharpe ratio?",
        "Return {return_a}, volatility {volatility_a} for {a}. Return {return_b}, volatility {volatility_b} for {b}. Riskless rate {risk_free}. Report the higher Sharpe ratio.",
        "Find the greater Sharpe ratio of these two: {a}, yielding {return_a} with swings of {volatility_a}, and {b}, yielding {return_b} with swings of {volatility_b}. Use {risk_free} as the rate without risk.",
        "Portfolios {a} and {b} are expected to earn {return_a} and {return_b}. Their standard deviations are expected to be {volatility_a} and {volatility_b}. The riskless asset earns {risk_free}. Determine the higher of the two Sharpe ratios.",
        "Volatility {volatility_a}, return {return_a}: that is {a}. Volatility {volatility_b}, return {return_b}: that is {b}. With a risk-free rate of {risk_free}, what does the better of the two score on the Sharpe ratio?",
        "An analyst reports that {a} has a sigma of {volatility_a} and a mean return of {return_a}, and that {b} has a sigma of {volatility_b} and a mean return of {return_b}. Deposits pay {risk_free}. What is the better Sharpe ratio?",
        "Sharpe ratio = (return - risk-free) / volatility. Take risk-free = {risk_free}; for {a}, return = {return_a} and volatility = {volatility_a}; for {b}, return = {return_b} and volatility = {volatility_b}. State the larger value.",
        "The return that one can get safely is {risk_free}. Over the same year {a} made its holders {return_a} and {b} made its holders {return_b}; the volatility was {volatility_a} for the former and {volatility_b} for the latter. Find the larger Sharpe ratio.",
        "Let the risk-free rate be {risk_free}. If {a} promises {return_a} and its returns deviate by {volatility_a}, and {b} promises {return_b} and its returns deviate by {volatility_b}, what is the maximum of their Sharpe ratios?",
        "Excess return per unit of volatility is to be computed for {a} (volatility {volatility_a}; return {return_a}) and {b} (volatility {volatility_b}; return {return_b}), the risk-free rate being {risk_free}. How large is the higher of the two?",
        "Two managers report. {a}: volatility {volatility_a}, return {return_a}. {b}: volatility {volatility_b}, return {return_b}. Over a risk-free rate of {risk_free}, how high a Sharpe ratio does the better of them reach?",
        "Suppose that cash earns {risk_free}. {a} runs {volatility_a} of risk for a return of {return_a}, and {b} runs {volatility_b} for {return_b}. Work out both Sharpe ratios and give the larger.",
        "How high is the best Sharpe ratio among {a} and {b}? Their returns were {return_a} and {return_b}, their volatilities {volatility_a} and {volatility_b}, and the risk-free rate was {risk_free}.",
    ), _draw_sharpe, _answer_sharpe),
    Kind("volatility annualisation", 1, (
        "A stock has a {period} volatility of {volatility}. With {calendar} in a year, what is its annualised volatility?",
        "The standard deviation of {period} returns is {volatility}. Annualise it, assuming {calendar} a year.",
        "Assume {calendar} per year. What annual volatility corresponds to a {period} volatility of {volatility}?",
        "{period} returns of a fund vary with a standard deviation of {volatility}. Convert this to an annual figure using {calendar}.",
        "Annualise a {period} volatility of {volatility} (one year has {calendar}).",
        "A trader measures {volatility} {period} volatility. Taking {calendar} as one year, state the annualised volatility.",
        "If {period} price changes have a standard deviation of {volatility} and a year counts {calendar}, how large is the yearly volatility?",
        "Scale a volatility of {volatility}, observed on {period} data, to one year of {calendar}.",
        "{period} volatility {volatility}, {calendar} a year: annual volatility?",
        "What is the annual standard deviation of a fund whose {period} standard deviation is {volatility}, given {calendar} per year?",
        "Volatility grows with the square root of time. A year has {calendar}; the {period} volatility is {volatility}. Find the volatility for a year.",
        "Hi, my spreadsheet shows a {period} sigma of {volatility}. What is that annualised if I count {calendar} in a year?",
        "The risk of a bond fund, measured as the standard deviation of its {period} returns, amounts to {volatility}. How much is that per year when the year is taken as {calendar}?",
        "Multiply by the root of the number of periods: turn {volatility}, a {period} volatility, into a yearly one. The year has {calendar}.",
        "Given: {calendar} a year, {period} standard deviation {volatility}. Wanted: annualised standard deviation.",
        "Returns on an index are independent from one period to the next and have a {period} volatility of {volatility}. Determine the annualised volatility on the basis of {calendar}.",
        "Sigma is {volatility} on a {period} basis. Express it on an annual basis; there are {calendar} in the year.",
        "Using {calendar} to the year, how high is the annualised volatility of a currency that moves with a {period} volatility of {volatility}?",
        "A risk report quotes {period} swings of {volatility} (one standard deviation). The board wants the annual number, with {calendar} in a year. Compute it.",
        "From {period} to annual: sigma {volatility}, {calendar}. Annualised sigma?",
        "On {period} data the volatility of a share was estimated at {volatility}. What should be quoted as its volatility per annum, if {calendar} make up a year?",
        "What is the standard deviation of a portfolio over a full year of {calendar} if its {period} returns, which are uncorrelated, have a standard deviation of {volatility}?",
        "There are {calendar} in one year. Annualise the {volatility} standard deviation that an analyst found in {period} returns.",
        "{period} returns have been calculated for a commodity, and their standard deviation is {volatility}. The annual volatility is sought, a year being {calendar}.",
        "There are {calendar} in a year. An index has {volatility} of {period} volatility; over the whole year, how much is that?",
        "What is the volatility per year of an asset whose {period} returns have a standard deviation of {volatility}, counting {calendar} to the year?",
        "From a {period} figure of {volatility}, find the yearly standard deviation. Use {calendar} per year.",
    ), _draw_volatility, _answer_volatility),
    Kind("position sizing", 2, (
        "A trader with a {account} account risks {risk} per trade. Entry is at {entry} and the stop at {stop}. How many whole shares can be bought?",
        "Account size {account}, risk per trade {risk}, entry {entry}, stop-loss {stop}. What is the position size in whole shares?",
        "You may lose {risk} of {account} on one trade. You buy at {entry} with a stop-loss at {stop}. How many whole shares do you take?",
        "Buying at {entry} with a stop at {stop}, how many whole shares keep the loss within {risk} of a {account} account?",
        "A fund of {account} limits the loss of each position to {risk}. The entry price is {entry}; the stop price is {stop}. Compute the number of whole shares.",
        "The plan: enter at {entry}, exit at {stop} if wrong, and lose no more than {risk} of the {account} capital. How many whole shares is that?",
        "Capital is {account}. The stop sits at {stop}, below an entry of {entry}. If at most {risk} may be lost, what is the largest whole number of shares?",
        "With {risk} of {account} at risk, a purchase price of {entry} and a protective stop of {stop}, find the whole number of shares.",
        "How many whole shares can I buy at {entry} if I get out at {stop} and may lose at most {risk} of my {account}?",
        "Entry {entry}; stop {stop}; account {account}; risk {risk}. Whole shares?",
        "The stop is placed at {stop} and the purchase is made at {entry}. No more than {risk} of the equity, which stands at {account}, may be lost. Determine the number of whole shares.",
        "Hi, I've {account} in my account and don't want to lose over {risk} of it on a trade. If I buy at {entry} and sell at {stop} when it goes wrong, how many whole shares should I take?",
        "Maximum loss: {risk} of {account}. Protective exit: {stop}. Purchase price: {entry}. Find the largest whole number of shares.",
        "A desk with a budget of {account} lets each trade lose {risk} of that budget. A share is bought at {entry}, with an exit at {stop}. What position, in whole shares, is allowed?",
        "Shares cost {entry} today and will be sold if they fall to {stop}. The investor owns {account} and accepts a loss of {risk} of it. How many shares, rounded down to a whole number, should be bought?",
        "Risking {risk} of {account}, with {stop} as the stop and {entry} as the entry, gives what position size in whole shares?",
        "Compute the whole number of shares to buy: the loss per share is the purchase price of {entry} less the exit price of {stop}, and the total loss must stay within {risk} of an equity of {account}.",
        "Downside is capped at {risk} of the portfolio. The portfolio is worth {account}. A long position is opened at {entry} and closed at {stop} if the price falls. What is the maximum number of whole shares?",
        "Long at {entry}, out at {stop}. Equity {account}, of which {risk} may go. Size in whole shares?",
        "If a stock bought for {entry} drops to {stop}, the position is sold. Size it in whole shares so that this costs at most {risk} of the {account} in the fund.",
        "Money management allows {risk} of the capital to be lost on any one idea. With capital of {account}, a sell order at {stop} and a buy order at {entry}, how many whole shares does the order cover?",
        "Anna's account holds {account}. She buys shares at {entry} each, sets her stop-loss at {stop} and is ready to lose {risk} of the account. How many whole shares does she buy?",
        "Given a stop of {stop}, an entry of {entry}, an equity of {account} and a risk limit of {risk} of equity, calculate how many whole shares fit.",
        "The largest acceptable loss is {risk} of a pot of {account}. Every share bought at {entry} loses the gap down to {stop} when the stop is hit. State how many whole shares the pot can carry.",
        "How many whole shares may be held if the fall from {entry} to the stop at {stop} is to cost at most {risk} of {account}?",
        "Shares are bought at {entry} each and sold if the price falls to {stop}. The account has {account}, and one trade may lose {risk} of it. State the size in whole shares.",
        "Size a trade in whole shares: stop {stop}, entry {entry}, {account} of capital, a loss of {risk} of that at most.",
    ), _draw_position, _answer_position),
    Kind("risk-adjusted ranking", 3, (
        "Rank by return per unit of risk, best first: {a} (return {return_a}, volatility {volatility_a}), {b} (return {return_b}, volatility {volatility_b}), {c} (return {return_c}, volatility {volatility_c}).",
        "{a} returned {return_a} with volatility {volatility_a}, {b} returned {return_b} with volatility {volatility_b} and {c} returned {return_c} with volatility {volatility_c}. Order them from the best to the worst ratio of return to volatility.",
        "Three assets: {a} with {return_a} return and {volatility_a} volatility; {b} with {return_b} return and {volatility_b} volatility; {c} with {return_c} return and {volatility_c} volatility. Rank them by risk-adjusted return from highest to lowest.",
        "Sort these by return divided by volatility, highest first. {a}: {return_a} and {volatility_a}. {b}: {return_b} and {volatility_b}. {c}: {return_c} and {volatility_c}.",
        "Expected returns are {return_a} for {a}, {return_b} for {b} and {return_c} for {c}. Their volatilities are {volatility_a}, {volatility_b} and {volatility_c}. Rank them by return-to-risk ratio, best first.",
        "A committee compares {a} (earning {return_a} at {volatility_a} risk), {b} (earning {return_b} at {volatility_b} risk) and {c} (earning {return_c} at {volatility_c} risk). List them by risk-adjusted return, the best first.",
        "Put in order of return per unit of volatility, starting with the highest: {a} at {return_a} and {volatility_a}, {b} at {return_b} and {volatility_b}, {c} at {return_c} and {volatility_c} (return, then volatility).",
        "For {a} the return is {return_a} and the volatility {volatility_a}. For {b} they are {return_b} and {volatility_b}; for {c}, {return_c} and {volatility_c}. Give the ranking by reward to risk from best to worst.",
        "Which of these pays best for its risk? {a}: return {return_a}, sigma {volatility_a}. {b}: return {return_b}, sigma {volatility_b}. {c}: return {return_c}, sigma {volatility_c}. Order all three by return over sigma, best first.",
        "{a} {return_a} / {volatility_a}; {b} {return_b} / {volatility_b}; {c} {return_c} / {volatility_c}. Figures are return / volatility. Rank by their ratio, best to worst.",
        "The volatilities of {a}, {b} and {c} come to {volatility_a}, {volatility_b} and {volatility_c}, and they earn {return_a}, {return_b} and {return_c}, in that order. Rank the three by return per unit of volatility, highest first.",
        "{a} swings by {volatility_a} and brings {return_a}; {b} swings by {volatility_b} and brings {return_b}; {c} swings by {volatility_c} and brings {return_c}. Sort them by what they bring per unit of swing, the best at the front.",
        "Divide each fund's return by its standard deviation and list the names from the largest quotient to the smallest: {a} ({return_a}, {volatility_a}), {b} ({return_b}, {volatility_b}), {c} ({return_c}, {volatility_c}). The return is given before the standard deviation.",
        "Our desk holds three books. {a} made {return_a} on a volatility of {volatility_a}, {b} made {return_b} on a volatility of {volatility_b}, and {c} made {return_c} on a volatility of {volatility_c}. Who comes first, second and third by return for each point of risk?",
        "Standard deviations: {volatility_a} for {a}, {volatility_b} for {b}, {volatility_c} for {c}. Mean returns: {return_a} for {a}, {return_b} for {b}, {return_c} for {c}. What is the order by mean return per unit of standard deviation, best first?",
        "Hey, can you rank {a}, {b} and {c} for me by return relative to volatility, best one first? Returns were {return_a}, {return_b} and {return_c}; vols were {volatility_a}, {volatility_b} and {volatility_c}.",
        "Return {return_a}, risk {volatility_a}: {a}. Return {return_b}, risk {volatility_b}: {b}. Return {return_c}, risk {volatility_c}: {c}. Ranking by return per unit of risk, best first?",
        "An investor who cares about the gain per unit of volatility may buy {a}, which has a volatility of {volatility_a} and gains {return_a}, {b}, which has a volatility of {volatility_b} and gains {return_b}, or {c}, which has a volatility of {volatility_c} and gains {return_c}. In which order should they be preferred, from best to worst?",
        "Three strategies are to be ordered from best to worst by mean return over standard deviation. The mean of {a} is {return_a} and its standard deviation {volatility_a}; the mean of {b} is {return_b} and its standard deviation {volatility_b}; the mean of {c} is {return_c} and its standard deviation {volatility_c}.",
        "Volatility first, then return: {a} {volatility_a} and {return_a}, {b} {volatility_b} and {return_b}, {c} {volatility_c} and {return_c}. List the three from the highest return per unit of volatility to the lowest.",
        "A pension plan may add {a}, {b} or {c}. It expects them to yield {return_a}, {return_b} and {return_c}, with standard deviations of {volatility_a}, {volatility_b} and {volatility_c} respectively. Arrange them by yield per unit of standard deviation, starting from the best.",
        "Ignoring the risk-free rate, order by efficiency (return divided by risk), the most efficient first: {a} yields {return_a} for a risk of {volatility_a}; {b} yields {return_b} for a risk of {volatility_b}; {c} yields {return_c} for a risk of {volatility_c}.",
        "To earn {return_a} with {a} one bears a volatility of {volatility_a}; to earn {return_b} with {b}, {volatility_b}; to earn {return_c} with {c}, {volatility_c}. Name the three in order of return per unit of volatility, best first.",
        "Fund, return, volatility: {a}, {return_a}, {volatility_a}; {b}, {return_b}, {volatility_b}; {c}, {return_c}, {volatility_c}. Rank the funds by return divided by volatility in descending order.",
        "In what order, best first, do {a}, {b} and {c} stand by return over volatility? Returns: {return_a}, {return_b}, {return_c}. Volatilities: {volatility_a}, {volatility_b}, {volatility_c}.",
        "The volatility of {a} is {volatility_a}, that of {b} is {volatility_b} and that of {c} is {volatility_c}. They return {return_a}, {return_b} and {return_c}, in the same order. Name them from the highest return per unit of risk to the lowest.",
        "List from best to worst by reward per unit of risk: {a}, volatility {volatility_a}, return {return_a}; {b}, volatility {volatility_b}, return {return_b}; {c}, volatility {volatility_c}, return {return_c}.",
    ), _draw_ranking, _answer_ranking),
    Kind("CAGR", 2, (
        "An investment grew from {start} to {finish} in {years} years. What was its compound annual growth rate in percent?",
        "Revenue rose from {start} to {finish} over {years} years. Compute the compound annual growth rate in percent.",
        "A fund was worth {start} at the beginning and {finish} after {years} years. Find its compound annual growth rate as a percentage.",
        "At what constant annual rate, in percent, does {start} become {finish} in {years} years with annual compounding?",
        "Beginning value {start}, final value {finish}, term {years} years. State the compound annual growth rate in percent.",
        "The profit of a company went from {start} to {finish}; this took {years} years. By what percentage did it grow per year, compounded annually?",
        "Given {years} years of growth and a rise from {start} to {finish}, calculate the compound annual growth rate in percent.",
        "You bought an asset for {start} and sold it for {finish} after {years} years. What compound annual return, in percent, did you earn?",
        "It took {years} years to turn {start} into {finish}. Express the growth as a compound annual rate, in percent.",
        "Had {start} grown by the same percentage in each of {years} years, to end at {finish}, what would that percentage be?",
        "A portfolio now stands at {finish}. It opened with {start} and has run for {years} years without any deposit. Give its compound growth per annum in percent.",
    ), _draw_cagr, _answer_cagr),
    Kind("geometric mean return", 3, (
        "A fund had annual returns of {returns}. By how many percentage points is the arithmetic mean return above the geometric mean return?",
        "Annual returns: {returns}. Compute the arithmetic mean minus the geometric mean, in percentage points.",
        "The returns of a stock in successive years were {returns}. What is the difference between its arithmetic and its geometric mean return, in percentage points?",
        "Given yearly returns of {returns}, find how far the geometric mean return lies below the arithmetic mean, in percentage points.",
        "Compare the simple average of the annual returns {returns} with their compound average (the geometric mean). State the gap in percentage points.",
        "An index returned {returns}, year by year. By how many percentage points does the arithmetic average overstate the geometric average?",
        "Volatility costs compound growth. For the annual returns {returns}, by how many percentage points does the geometric mean return fall short of the arithmetic mean?",
        "From the yearly returns {returns}, calculate both the arithmetic and the geometric mean and give the first minus the second, in percentage points.",
        "How many percentage points lie between the average return and the compound return per year of a strategy that made {returns} in its years?",
        "A manager quotes the arithmetic average of the annual results {returns}; an investor asks for the geometric one. How much lower, in percentage points, is the second?",
        "Subtract the geometric mean return from the arithmetic mean return of an account whose years brought {returns}. Answer in percentage points.",
    ), _draw_means, _answer_means),
    Kind("Sortino ratio", 3, (
        "Monthly returns of a fund: {returns}. The target is {target} a month. The downside deviation is the root of the mean squared shortfall below the target over all {count} months. What is the Sortino ratio?",
        "A strategy returned {returns} in {count} periods. With a target of {target} per period, and a downside deviation that divides the squared shortfalls by {count} before taking the root, compute the Sortino ratio.",
        "Compute the Sortino ratio of the returns {returns} against a target of {target}. Square the shortfalls below the target, divide their sum by all {count} returns and take the root.",
        "Given the target return {target} and the {count} returns {returns}, find the Sortino ratio: mean return above the target, divided by the root of the mean squared shortfall over all returns.",
        "Returns over {count} quarters were {returns}. The minimum acceptable return is {target} a quarter. With the root of the mean squared shortfall over all quarters as downside deviation, state the Sortino ratio.",
        "With {target} as the target, what is the Sortino ratio of {returns}? The downside deviation is the root of the mean squared shortfall; all {count} observations count, those above the target as zero.",
        "The Sortino ratio divides the mean excess over the target by the downside deviation (the root of the average squared shortfall, over all observations). Find it for {returns} and a target of {target}.",
        "A fund wants {target} in each month and made {returns} in {count} months. Calculate its Sortino ratio; the downside deviation takes the root after averaging the squared shortfalls over all months.",
        "How large is the Sortino ratio of an account that made {returns}? It aims at {target} per period, and its downside risk is the root of the squared shortfalls averaged over all {count} periods.",
        "Only falls below {target} count as risk: square them, average over all {count} months, take the root. With that below the line and the mean excess above it, what Sortino ratio do the monthly returns {returns} give?",
        "An investor asks for {target} a year. The years brought {returns}. Report the Sortino ratio, dividing by the root of the mean squared shortfall over all years, good and bad.",
    ), _draw_sortino, _answer_sortino),
    Kind("beta", 2, (
        "The covariance of {a} with the market is {covariance} (returns as decimals) and the volatility of the market is {volatility_market}. What is the beta of {a}?",
        "{a} has a volatility of {volatility_a} and a correlation of {correlation} with the market, whose volatility is {volatility_market}. Compute the beta of {a}.",
        "With a market volatility of {volatility_market} and a covariance of {covariance} between {a} and the market (returns as decimals), find the beta of {a}.",
        "The market has a standard deviation of {volatility_market}. {a} has one of {volatility_a} and a correlation with the market of {correlation}. State its beta.",
        "Find the beta of {a} from a covariance of {covariance} with the index, returns taken as decimals. The standard deviation of the index is {volatility_market}.",
        "What beta has {a}, given a correlation of {correlation} with the index and volatilities of {volatility_a} for {a} and {volatility_market} for the index?",
        "Returns of {a} and of the market, as decimals, have a covariance of {covariance}; the market's volatility is {volatility_market}. Calculate beta.",
        "Correlation with the market {correlation}, volatility of {a} {volatility_a}, volatility of the market {volatility_market}. How large is the beta of {a}?",
        "The index moves with a volatility of {volatility_market}; its covariance with {a}, from returns as decimals, comes to {covariance}. How strongly, in terms of beta, does {a} respond to the index?",
        "Suppose that {a} and its benchmark have a correlation of {correlation}. If {a} runs at {volatility_a} volatility and the benchmark at {volatility_market}, what is the beta of {a} to its benchmark?",
        "Measured against a market of {volatility_market} volatility, {a} shows {volatility_a} volatility and a correlation of {correlation}. Give its beta.",
    ), _draw_beta, _answer_beta),
    Kind("bond price", 3, (
        "A bond with a face value of {face} pays an annual coupon of {coupon_rate} and matures in {years} years. What is its price at a yield of {rate}?",
        "Compute the price of a {years}-year bond with face value {face}, an annual coupon rate of {coupon_rate} and a yield to maturity of {rate}, compounded annually.",
        "What is a bond worth that pays {coupon_rate} of its face value of {face} once a year and repays it after {years} years, if the market asks for {rate} a year?",
        "Face value {face}, coupon {coupon_rate} paid annually, {years} years to maturity, yield {rate}. Find the bond price.",
        "Investors require a yield of {rate}. A bond of {face} face value with {years} years left pays a yearly coupon of {coupon_rate}. Calculate its price.",
        "At an annual discount rate of {rate}, find the present value of a bond: {years} annual coupons of {coupon_rate} on a face value of {face}, and the face value with the last coupon.",
        "A company borrows {face} for {years} years and pays interest of {coupon_rate} at the end of each year. At what price does the bond yield {rate} a year?",
        "The yield to maturity of a bond is {rate}, its annual coupon {coupon_rate}, its face value {face} and its remaining life {years} years. State its price.",
        "How much should one pay today for {face} of a bond that matures {years} years from now, with a coupon of {coupon_rate} once a year, to earn {rate} per annum?",
        "Discount at {rate} per year: coupons of {coupon_rate} on {face}, paid yearly for {years} years, then the repayment of {face}. What is the sum of these present values?",
        "A desk values a bond that runs for {years} more years. The market yield is {rate}, the yearly coupon is {coupon_rate}, and {face} is repaid at the end. Report the price.",
    ), _draw_bond, _answer_bond),
    Kind("current yield", 1, (
        "A bond pays an annual coupon of {coupon} and trades at {price}. What is its current yield in percent?",
        "Compute the current yield, in percent, of a bond priced at {price} with a yearly coupon of {coupon}.",
        "The price of a bond is {price}; its coupons come to {coupon} a year. Find the current yield as a percentage.",
        "What current yield, in percent, does a bond offer that costs {price} and pays {coupon} of interest per year?",
        "Annual coupon {coupon}, market price {price}. State the current yield in percent.",
        "An investor buys a bond for {price} and receives {coupon} in coupons each year. Calculate the current yield in percent.",
        "Given a bond price of {price} and an annual interest payment of {coupon}, what is the current yield in percent?",
        "If {price} buys a bond with a coupon of {coupon} a year, how large is its current yield in percent?",
        "A bond brings in {coupon} every year. At a market price of {price}, what percentage of the price is that?",
        "Take a bond quoted at {price}. Its holder is paid {coupon} per annum. Give the current yield, in percent.",
        "How many percent of what it costs today, {price}, does a bond pay in a year if its yearly coupons are {coupon}?",
    ), _draw_current, _answer_current),
    Kind("net present value", 3, (
        "A project costs {cost} today and pays {flows} at the end of the following years. At a discount rate of {rate}, what is its net present value?",
        "Compute the net present value at {rate} a year of an outlay of {cost} now, followed by yearly cash flows of {flows}.",
        "With a required return of {rate}, find the net present value of an investment of {cost} that returns {flows}, one amount at the end of each year.",
        "Initial cost {cost}, year-end cash flows {flows}, discount rate {rate}. State the net present value.",
        "A machine is bought for {cost}. It earns {flows} in successive years, each paid at the end of the year. Discounting at {rate}, calculate the net present value.",
        "What is the net present value of the annual cash flows {flows}, the first one year from now, after paying {cost} today, at a rate of {rate}?",
        "The cost of capital is {rate}. A firm spends {cost} today to receive {flows} at the ends of the next years. How large is the net present value?",
        "Discount the cash flows {flows}, due at the end of each year from the first, at {rate} per annum and subtract the outlay of {cost}. What is the result?",
        "How much value does a project add today if it needs {cost} at once and then brings {flows}, year by year at each year's end, with money costing {rate} a year?",
        "Cash of {flows} will come in, one sum a year, the first in twelve months. It takes {cost} now to secure it. Report the net present value at {rate}.",
        "At {rate} per year, is it worth {cost} today? The plan pays {flows} at the end of year one and of each year after. Give the net present value.",
    ), _draw_npv, _answer_npv),
    Kind("loan payment", 2, (
        "A loan of {principal} runs for {years} years at a nominal {rate} a year, repaid in equal {often} payments. How large is each payment?",
        "Compute the level {often} payment on a loan of {principal} over {years} years at a nominal annual rate of {rate}, compounded at each payment.",
        "What {often} instalment repays {principal} in {years} years at a nominal {rate} per annum, with equal payments at the end of each period?",
        "A bank lends {principal} at a nominal annual rate of {rate}. It is repaid in {years} years by equal {often} instalments. Find the instalment.",
        "Principal {principal}, nominal rate {rate} a year, term {years} years, equal {often} payments. State the payment.",
        "You borrow {principal} for {years} years. Interest is a nominal {rate} a year, charged with each of the equal {often} payments. Calculate the payment.",
        "At a nominal rate of {rate} a year, how much must be paid in each {often} instalment to clear a debt of {principal} in {years} years?",
        "A mortgage of {principal} has a term of {years} years and a nominal rate of {rate} per year. Its {often} payments are all equal. What is each of them?",
        "How much does a borrower of {principal} pay at a time, if all {often} payments are the same, the nominal annual rate is {rate} and the debt ends after {years} years?",
        "In {years} years a debt of {principal} is to be paid off by level {often} amounts. The lender asks for a nominal {rate} per annum. Give the amount.",
        "Equal {often} payments over {years} years, nominal interest of {rate} a year on what is still owed, {principal} received today: report the payment.",
    ), _draw_loan, _answer_loan),
    Kind("value at risk", 2, (
        "A portfolio of {value} has a daily volatility of {volatility}. With a z-score of {quantile} for {confidence} confidence and a mean return of zero, what is its parametric value at risk over {days} days?",
        "Compute the {days}-day parametric value at risk at {confidence} confidence (z-score {quantile}) of a position of {value} with {volatility} daily volatility. The mean return is zero; volatility grows with the root of time.",
        "The daily standard deviation of a book of {value} is {volatility}. Taking normal returns with zero mean and a z-score of {quantile}, find the {confidence} value at risk for {days} days by the square root of time.",
        "Position {value}, daily volatility {volatility}, horizon {days} days, confidence {confidence}, z-score {quantile}, mean zero. State the parametric value at risk.",
        "At {confidence} confidence the z-score is {quantile}. A fund of {value} moves by {volatility} a day (standard deviation, mean zero). Calculate its parametric value at risk over {days} days.",
        "What loss over {days} days will not be exceeded with {confidence} confidence by {value} of shares with a daily volatility of {volatility}? Use a z-score of {quantile}, a mean of zero and the root of time.",
        "A bank holds {value} at {volatility} daily volatility. Scale it to {days} days by the square root of time, with zero mean; the z-score for {confidence} is {quantile}. How large is the value at risk?",
        "Given a z-score of {quantile} ({confidence} confidence), {volatility} volatility per day and {value} invested, what is the parametric value at risk for {days} days, with a mean return of zero?",
        "How much might {value} lose over {days} days, at {confidence} confidence? Returns are normal with mean zero and a standard deviation of {volatility} a day; the z-score is {quantile}.",
        "Risk report: z-score {quantile} at {confidence}, {days} trading days, {volatility} of volatility a day that scales with the root of time, no mean return, {value} held. Give the value at risk.",
        "For a horizon of {days} days a desk wants the parametric value at risk of {value}. Daily returns have a mean of zero and a volatility of {volatility}, and {confidence} confidence means a z-score of {quantile}. Report it.",
    ), _draw_var, _answer_var),
    Kind("Kelly fraction", 2, (
        "A bet wins with a probability of {probability} and pays {odds} to 1. What fraction of capital does the Kelly rule stake, in percent?",
        "Compute the Kelly fraction, in percent of capital, for a trade that gains {odds} times the stake with probability {probability} and loses the stake otherwise.",
        "With odds of {odds} to 1 and a chance of winning of {probability}, find the Kelly stake as a percentage of capital.",
        "Probability of a win {probability}, net odds {odds}, the whole stake lost otherwise. State the Kelly fraction in percent.",
        "A strategy wins {probability} of its trades. A win earns {odds} for each 1 at risk; a loss costs the 1. Calculate the Kelly fraction in percent.",
        "What percentage of the account does the Kelly rule put on a trade whose chance of success is {probability}, if success pays {odds} to 1?",
        "The ratio of gain to loss is {odds} and the chance of a gain is {probability}. How large, in percent, is the Kelly fraction?",
        "Given a payoff of {odds} times the amount at risk and a probability of {probability} of receiving it, what is the Kelly bet in percent of capital?",
        "How many percent of capital should a trader risk for the fastest growth (the Kelly rule), winning {odds} per 1 staked in {probability} of cases and losing the 1 in the others?",
        "Someone offers {odds} to 1 on an event that you expect with {probability} probability. By the Kelly rule, how much of your capital is the stake, in percent?",
        "A trade returns {odds} times what it may lose, and it works in {probability} of cases. Report the Kelly share of the account in percent.",
    ), _draw_kelly, _answer_kelly),
    Kind("portfolio variance", 3, (
        "A portfolio holds {weight} in {a} and the rest in {b}. Their volatilities are {volatility_a} and {volatility_b}, their correlation is {correlation}. What is the portfolio's volatility?",
        "Compute the volatility of a portfolio with {weight} of its capital in {a} (volatility {volatility_a}) and the rest in {b} (volatility {volatility_b}), with a correlation of {correlation}.",
        "{a} has a volatility of {volatility_a} and {b} of {volatility_b}; the correlation between them is {correlation}. Find the volatility of a mix of {weight} in {a} and the rest in {b}.",
        "Weight of {a} {weight}, the rest in {b}, volatilities {volatility_a} and {volatility_b}, correlation {correlation}. State the standard deviation of the portfolio.",
        "With a correlation of {correlation}, {a} at {volatility_a} and {b} at {volatility_b} volatility are combined. If {weight} goes to {a} and the remainder to {b}, calculate the portfolio volatility.",
        "An investor puts {weight} into {a} and the remainder into {b}. The standard deviations are {volatility_a} for {a} and {volatility_b} for {b}, and the correlation is {correlation}. How large is the volatility of the whole?",
        "What is the standard deviation of a fund that is {weight} {a} and otherwise {b}, given volatilities of {volatility_a} and {volatility_b} and a correlation of {correlation}?",
        "The correlation of {a} and {b} is {correlation}. {a} moves by {volatility_a} a year, {b} by {volatility_b} (standard deviations). What volatility has a portfolio of {weight} {a} and the rest {b}?",
        "How risky, as a standard deviation, is it to hold {weight} of an account in {a} and all else in {b}? The first has {volatility_a} volatility, the second {volatility_b}, and they have a correlation of {correlation}.",
        "Two assets, {a} with {volatility_a} and {b} with {volatility_b} of volatility, move together with a correlation of {correlation}. Take the square root of the variance of a mix that is {weight} the first and the rest the second.",
        "Between {a} and {b} the correlation is {correlation}. A plan gives {weight} to {a}, whose volatility is {volatility_a}, and what is left to {b}, whose volatility is {volatility_b}. Report the volatility of the plan.",
    ), _draw_portfolio, _answer_portfolio),
    Kind("information ratio", 2, (
        "{a} returned {return} while its benchmark returned {benchmark}. The tracking error was {tracking}. What is the information ratio?",
        "Compute the information ratio of {a}: return {return}, benchmark return {benchmark}, tracking error {tracking}.",
        "With a tracking error of {tracking}, {a} earned {return} against {benchmark} for its benchmark. Find its information ratio.",
        "The benchmark gained {benchmark} and {a} gained {return}. The active returns of {a} have a standard deviation of {tracking}. State the information ratio.",
        "What information ratio did {a} reach with a return of {return}, a benchmark return of {benchmark} and a tracking error of {tracking}?",
        "A manager runs {a} at a tracking error of {tracking}. It made {return} and the index made {benchmark}. Calculate the information ratio.",
        "Benchmark return {benchmark}, tracking error {tracking}, return of {a} {return}. How large is the information ratio?",
        "Given that {a} delivered {return}, its index {benchmark}, and the difference between them had a volatility of {tracking}, what is the information ratio?",
        "How much active return per unit of active risk did {a} earn? It made {return}, its benchmark {benchmark}, and the tracking error was {tracking}.",
        "The active risk of {a} (its tracking error) is {tracking}. Against an index at {benchmark} it shows a return of {return}. Give the information ratio.",
        "An index brought {benchmark} in a year in which {a} brought {return}. If the two part by {tracking} in standard deviation, report the information ratio of {a}.",
    ), _draw_information, _answer_information),
    Kind("break-even", 2, (
        "A company has fixed costs of {fixed}. It sells a product for {price} that costs {unit_cost} a unit to make. How many whole units must it sell to break even?",
        "Compute the break-even point in whole units: price {price}, variable cost {unit_cost} per unit, fixed costs {fixed}.",
        "Fixed costs are {fixed}, the price is {price} and the variable cost {unit_cost} per unit. What is the smallest whole number of units without a loss?",
        "With a variable cost of {unit_cost} and a price of {price} per unit, how many whole units cover fixed costs of {fixed}?",
        "A shop pays {fixed} a year whatever it sells. Each unit brings in {price} and costs {unit_cost}. Find the number of whole units at which it first makes no loss.",
        "Each unit is sold at {price} and made for {unit_cost}. Fixed costs come to {fixed}. State the break-even number of units, rounded up.",
        "Given fixed costs of {fixed}, a unit cost of {unit_cost} and a unit price of {price}, calculate the break-even volume, rounded up to whole units.",
        "How many whole units does a firm need to sell at {price}, with costs of {unit_cost} a unit and {fixed} of fixed costs, so as not to lose money?",
        "What is the least number of units, in whole units, that pays for {fixed} of fixed costs when {unit_cost} of each {price} sale is spent on the unit itself?",
        "A plan spends {fixed} before a unit is sold. After that every unit costs {unit_cost} and is sold for {price}. From how many whole units on is there no loss?",
        "Report the units needed to break even, rounded up to a whole number. Unit cost: {unit_cost}. Fixed costs: {fixed}. Price: {price}.",
    ), _draw_breakeven, _answer_breakeven),
)}  # fmt: skip
