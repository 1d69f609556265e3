"""Do 95 % intervals cover 95 %, and do 5 % tests err in 5 %? `python tests/benchmarks/bench_stats.py` prints the table.

Reach: coverage from 93 to 97 %, type-I error at most 5.5 %; a star marks a figure outside. The coverage of a share's
intervals is summed exactly, the rest simulated. Rare events leave few values that a coverage can take: at n = 50,
p = 0.02 an interval covers with 0 to 2 successes (92.2 %) or with 0 to 3 (98.2 %), and nothing lies between.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from lib.grade import stats

SIZES = (50, 200, 1000)
SHARES = (0.02, 0.3, 0.95)
DRAWS = 4000  # the simulation error of a 95 % coverage is then 0.35 points
CLUSTERED_DRAWS = 2000
ROWS_PER_GROUP, LIKENESS = 5, 0.1  # rows of one group, and their intra-class correlation


def newcombe(both: int, right_to_wrong: int, wrong_to_right: int, neither: int) -> tuple[float, float]:
    """Newcombe's method 10 for b - a (1998, Statistics in Medicine 17:2635), to set beside Tango's interval."""
    n = both + right_to_wrong + wrong_to_right + neither
    a_right, b_right = both + right_to_wrong, both + wrong_to_right
    a, b = stats.wilson(a_right, n), stats.wilson(b_right, n)
    margins = a_right * (n - a_right) * b_right * (n - b_right)
    cross = both * neither - right_to_wrong * wrong_to_right
    phi = 0.0 if margins == 0 else (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)
    below = (b.estimate - b.low, a.high - a.estimate)
    above = (b.high - b.estimate, a.estimate - a.low)
    spread = [math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)) for x, y in (below, above)]
    return b.estimate - a.estimate - spread[0], b.estimate - a.estimate + spread[1]


def mid_p(successes: int, n: int) -> tuple[float, float]:
    """Limits of the exact test that counts half the probability of the observed value."""

    def tail(share: float, above: bool) -> float:
        outside = binom.sf(successes, n, share) if above else binom.cdf(successes - 1, n, share)
        return outside + binom.pmf(successes, n, share) / 2 - 0.025

    return (
        0.0 if successes == 0 else brentq(tail, 0, successes / n, (True,)),
        1.0 if successes == n else brentq(tail, successes / n, 1, (False,)),
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    interval = stats.wilson(successes, n)
    return interval.low, interval.high


SHARE_INTERVALS = {
    "Wilson": wilson, "mid-p": mid_p, "Jeffreys": lambda k, n: proportion_confint(k, n, method="jeffreys"),
    "Agresti-Coull": lambda k, n: proportion_confint(k, n, method="agresti_coull"),
    "Clopper-P.": lambda k, n: proportion_confint(k, n, method="beta"),
}  # fmt: skip


def coverage(interval, n: int, share: float) -> float:
    """The exact probability that an interval of n answers holds the true share."""
    covered = [low <= share <= high for low, high in (interval(successes, n) for successes in range(n + 1))]
    return float(binom.pmf(np.arange(n + 1), n, share)[covered].sum())


def cell(value: float, low: float, high: float) -> str:
    return f"{100 * value:12.1f}" + (" " if low <= round(value, 3) <= high else "*")


def paired_table(n: int, share: float, difference: float, draws: int, random: np.random.Generator) -> np.ndarray:
    """Counts (both, right to wrong, wrong to right, neither): a is right on `share`, b on share + difference."""
    flips = 0.25 * share * (1 - share)  # a quarter of what two unrelated models would show
    to_wrong, to_right = flips + max(0.0, -difference), flips + max(0.0, difference)
    both = share - to_wrong
    return random.multinomial(n, [both, to_wrong, to_right, 1 - both - to_wrong - to_right], size=draws)


def main() -> None:
    random = np.random.default_rng(0)
    tango = lru_cache(None)(lambda *counts: stats._tango(*counts, 0.95))
    cached_newcombe, mcnemar = lru_cache(None)(newcombe), lru_cache(None)(stats.mcnemar)
    print("exact coverage of 95 % intervals of a share (in %)")
    print(" ".join(f"{name:>13}" for name in ["n", "p", *SHARE_INTERVALS]))
    for n in SIZES:
        for share in SHARES:
            cells = [cell(coverage(interval, n, share), 0.93, 0.97) for interval in SHARE_INTERVALS.values()]
            print(f"{n:>13} {share:>13} " + " ".join(cells))
    intervals = ["Tango d=0", "Newcombe d=0", "Tango d=.1", "Newcombe d=.1", "clustered"]
    print("\ncoverage of 95 % intervals, then type-I errors of 5 % tests (all in %)")
    print(" ".join(f"{name:>13}" for name in ["n", "p", *intervals, "McNemar", "non-inf."]))
    for n in SIZES:
        for share in SHARES:
            cells = []
            for shift in (0.0, 0.1 if share < 0.5 else -0.1):
                tables = [tuple(map(int, table)) for table in paired_table(n, share, shift, DRAWS, random)]
                intervals = [tango(table[1], table[2], n) for table in tables]
                cells.append(np.mean([interval.low <= shift <= interval.high for interval in intervals]))
                limits = [cached_newcombe(*table) for table in tables]
                cells.append(np.mean([low <= shift <= high for low, high in limits]))
                if shift == 0.0:
                    errors = [np.mean([mcnemar(table[1], table[2]) <= 0.05 for table in tables])]
            groups = np.repeat(np.arange(n // ROWS_PER_GROUP), ROWS_PER_GROUP)
            strength = 1 / LIKENESS - 1
            hits = 0
            for _ in range(CLUSTERED_DRAWS):
                rates = random.beta(share * strength, (1 - share) * strength, size=n // ROWS_PER_GROUP)
                interval = stats.clustered(random.random(n) < rates[groups], groups)
                hits += interval.low <= share <= interval.high
            cells.append(hits / CLUSTERED_DRAWS)
            margin = 0.1 if share > 0.1 else 0.01
            tables = paired_table(n, share, -margin, DRAWS, random)
            scores = [stats._tango_score(-margin, int(table[1]), int(table[2]), n) for table in tables]
            errors.append(np.mean(np.array(scores) >= 1.6449))
            shown = [cell(value, 0.93, 0.97) for value in cells] + [cell(value, 0, 0.055) for value in errors]
            print(f"{n:>13} {share:>13} " + " ".join(shown), flush=True)
    for seeds in (3, 5):
        scores = random.normal(0.6, 0.02, size=(DRAWS, seeds))
        intervals = [stats.over_seeds(row) for row in scores]
        share = np.mean([interval.low <= 0.6 <= interval.high for interval in intervals])
        print(f"over_seeds, {seeds} seeds: {100 * share:.1f} % covered")
    false_alarms = [min(stats.holm(row)) <= 0.05 for row in random.random((1000, 6))]
    print(f"holm, 6 true null hypotheses: {100 * np.mean(false_alarms):.1f} % with any rejection")
    for n, discordance in [(100, 0.3), (600, 0.3), (1000, 0.1)]:
        difference = stats.detectable(n, discordance)
        to_right = (discordance + difference) / 2
        counts = random.multinomial(n, [discordance - to_right, to_right, 1 - discordance], size=DRAWS)
        power = np.mean([mcnemar(int(table[0]), int(table[1])) <= 0.05 for table in counts])
        print(f"detectable({n}, {discordance}) = {difference:.4f}: found in {100 * power:.1f} % (asked: 80 %)")


if __name__ == "__main__":
    main()
