"""Verdicts -> uncertainty: intervals, paired tests and what a sample of this size can detect.

Scores are shares from 0 to 1. Heavy imports live inside the functions.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

FEWEST_CLUSTERS = 10
FEWEST_EVENTS = 20  # questions off the nearer end (Kish's effective number), below which their spread says little


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits over `n` observations; `warning` says when to doubt it."""

    estimate: float
    low: float
    high: float
    n: int
    warning: str | None = None


@dataclass(frozen=True)
class NonInferiority:
    """Is b at most `margin` worse than a? `interval` is of b - a, with confidence 1 - 2 alpha."""

    holds: bool
    p_value: float
    margin: float
    interval: Interval


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson 1927).

    `tests/benchmarks/bench_stats.py` prints its exact coverage and that of others: none is better everywhere.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1; got {successes} of {n}")
    low, high = _score_limits(successes / n, n, NormalDist().inv_cdf((1 + confidence) / 2))
    return Interval(successes / n, low, high, n)


def _score_limits(share: float, n: float, critical: float) -> tuple[float, float]:
    """Wilson's limits; statsmodels takes a second to import, and whole numbers of successes only."""
    shrink = 1 + critical**2 / n
    centre = (share + critical**2 / (2 * n)) / shrink
    half = critical / shrink * math.sqrt(share * (1 - share) / n + critical**2 / (4 * n**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Exact two-sided p-value of McNemar's test on the verdicts that changed (1.0 when none did)."""
    from scipy.stats import binomtest

    if right_to_wrong < 0 or wrong_to_right < 0:
        raise ValueError(f"changed verdicts are counts; got {right_to_wrong} and {wrong_to_right}")
    changed = right_to_wrong + wrong_to_right
    if changed == 0:
        return 1.0
    return float(binomtest(right_to_wrong, changed).pvalue)


def _flips(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> tuple[int, int, int]:
    """(right to wrong, wrong to right, pairs) from a to b, on the same questions in the same order."""
    if len(a_correct) != len(b_correct) or not len(a_correct):
        raise ValueError(f"pairs need two equally long, non-empty lists; got {len(a_correct)} and {len(b_correct)}")
    pairs = Counter(zip(a_correct, b_correct))
    for pair in pairs:
        if not {0, 1}.issuperset(pair):
            raise ValueError(f"verdicts are true or false (1 or 0); got {pair}")
    return pairs[1, 0], pairs[0, 1], len(a_correct)


def _tango_score(difference: float, right_to_wrong: int, wrong_to_right: int, n: int) -> float:
    """Standard score of the observed b - a if `difference` were true (Tango 1998, Stat. in Medicine 17:891)."""
    # The likeliest share of right-to-wrong pairs then solves 2n q^2 + linear q + constant = 0.
    linear = -right_to_wrong - wrong_to_right + (2 * n - wrong_to_right + right_to_wrong) * difference
    constant = -right_to_wrong * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    distance = wrong_to_right - right_to_wrong - n * difference
    return distance / math.sqrt(variance) if distance else 0.0


def paired_interval(a_correct: Sequence[bool], b_correct: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Tango's score interval of the difference b - a between two shares on the same questions.

    It inverts the score test, so it never leaves [-1, 1] and has width where nothing changed.
    """
    return _tango(*_flips(a_correct, b_correct), confidence)


def _tango(right_to_wrong: int, wrong_to_right: int, n: int, confidence: float) -> Interval:
    from scipy.optimize import brentq

    critical = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (wrong_to_right - right_to_wrong) / n

    def limit(bound: float, score: float) -> float:
        def excess(difference: float) -> float:
            return _tango_score(difference, right_to_wrong, wrong_to_right, n) - score

        if estimate == bound:
            return bound
        return brentq(excess, bound * (1 - 1e-12), estimate, xtol=1e-10)

    return Interval(estimate, limit(-1.0, critical), limit(1.0, -critical), n)


def non_inferior(
    a_correct: Sequence[bool], b_correct: Sequence[bool], margin: float, alpha: float = 0.05
) -> NonInferiority:
    """One-sided score test that b is less than `margin` (such as 0.02) worse than a (Tango 1998)."""
    from scipy.special import ndtr

    if not 0 < margin < 1:
        raise ValueError(f"a margin is a share between 0 and 1, such as 0.02; got {margin}")
    flips = _flips(a_correct, b_correct)
    p_value = float(ndtr(-_tango_score(-margin, *flips)))
    return NonInferiority(p_value <= alpha, p_value, margin, _tango(*flips, 1 - 2 * alpha))


def clustered(values: Sequence[float], groups: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """Interval of a mean whose rows come in groups (a template, a page) that may rise and fall together.

    The error is cluster-robust, and its distribution Student's t with one degree of freedom less than groups.
    For shares (all 0 or 1) it enters Wilson's interval as an effective sample size, which keeps the coverage
    near 0 and 1 (Franco et al. 2019, Journal of Survey Statistics and Methodology 7:334).
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import t
    from statsmodels.regression.linear_model import OLS

    scores = np.asarray(values, dtype=float)
    n = len(scores)
    if n == 0 or n != len(groups):
        raise ValueError(f"clusters need one group per value and at least one value; got {n}, {len(groups)}")
    codes, names = pd.factorize(pd.Series(groups, dtype=object))
    clusters, mean = len(names), float(scores.mean())
    if clusters < 2:
        raise ValueError("one group shows nothing about the spread between groups; got 1, need at least 2")
    warning = None
    if clusters < FEWEST_CLUSTERS:
        warning = f"only {clusters} groups: too few to trust the width"
    critical = float(t.ppf((1 + confidence) / 2, clusters - 1))
    fit = OLS(scores, np.ones(n)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    error = float(fit.bse[0])
    if not np.isin(scores, (0.0, 1.0)).all():
        return Interval(mean, mean - critical * error, mean + critical * error, n, warning)
    effective = float(clusters)  # all rows alike: nothing shows whether groups move together
    if error > 1e-12:
        effective = min(float(n), mean * (1 - mean) / error**2)
    return Interval(mean, *_score_limits(mean, effective, critical), n, warning)


def pass_at_k(right: Sequence[int], samples: int, k: int) -> list[float]:
    """Each question's chance that k of its `samples`, drawn without replacement, hold a right one.

    1 - C(n - c, k) / C(n, k), the unbiased estimator (Chen et al. 2021, arXiv:2107.03374); `right`: c of each."""
    from scipy.stats import hypergeom

    if not 1 <= k <= samples or not all(0 <= count <= samples for count in right):
        raise ValueError(f"pass@k needs 1 <= k <= samples and 0 <= right <= samples; got k={k}, samples={samples}")
    return [1 - float(hypergeom.pmf(0, samples, count, k)) for count in right]


def majority_at_k(votes: Sequence[Hashable | None], right: Iterable[Hashable], k: int) -> float:
    """The chance that the most frequent answer among k of a question's samples is one of the `right` ones.

    Exact over all sets of k that can be drawn without replacement; answers that tie share the win. None is a
    sample without an answer: it is drawn, but has no vote, and where nobody votes nothing is right."""
    if not 1 <= k <= len(votes):
        raise ValueError(f"majority@k needs 1 <= k <= samples; got k={k}, samples={len(votes)}")
    counts = Counter(votes)
    silent = counts.pop(None, 0)
    wins = 0.0
    for answer in set(right) & counts.keys():
        others = [count for name, count in counts.items() if name != answer]
        for most in range(1, min(k, counts[answer]) + 1):
            below = sum(count for count in others if count < most)  # these can neither win nor tie
            ways = _ways([count for count in others if count >= most], silent + below, k - most, most)
            wins += math.comb(counts[answer], most) * sum(count / (1 + ties) for ties, count in ways.items())
    return wins / math.comb(len(votes), k)


def _ways(others: list[int], silent: int, drawn: int, most: int) -> Counter:
    """{ties: in how many ways `drawn` samples give no other answer more than `most`, and so many just as many}."""
    ways = Counter({(drawn - none, 0): math.comb(silent, none) for none in range(min(silent, drawn) + 1)})
    for count in others:
        grown: Counter = Counter()
        for (left, ties), before in ways.items():
            for taken in range(min(left, count, most) + 1):
                grown[left - taken, ties + (taken == most)] += before * math.comb(count, taken)
        ways = grown
    return Counter({ties: count for (left, ties), count in ways.items() if left == 0})


def mean_share(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, tries: float = 1.0, confidence: float = 0.95
) -> Interval:
    """Interval of a mean of values from 0 to 1, one a question, such as its pass@k.

    Wilson's, with the size that a share of this (cluster-robust) error would have, as in `clustered`. Where few
    questions are off the nearer end, their spread says little: the size is then at most `tries` a question
    (where none is, one a group). Of pass@k with n samples that is n / k: Hoeffding (1948) bounds its variance
    by k / n of a single try's. `tests/benchmarks/bench_pass.py` prints the coverage."""
    import numpy as np
    from scipy.stats import t

    scores = np.asarray(values, dtype=float)
    n = len(scores)
    if n < 2 or scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"an interval needs at least 2 values, each from 0 to 1; got {n} values")
    mean = float(scores.mean())
    sums = _sums(scores - mean, groups)
    clusters = len(sums)
    if clusters < 2:
        raise ValueError("one group shows nothing about the spread between groups; got 1, need at least 2")
    warning = None
    if clusters < FEWEST_CLUSTERS:
        warning = f"only {clusters} groups: too few to trust the width"
    error = math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / n
    far = np.where(mean <= 0.5, scores, 1 - scores)  # from the nearer end
    effective = float(clusters)  # all alike: nothing shows whether what belongs together moves together
    if error > 1e-12:
        effective = mean * (1 - mean) / error**2
        if far.sum() ** 2 < FEWEST_EVENTS * (far @ far):
            effective = min(effective, tries * n)
    critical = float(t.ppf((1 + confidence) / 2, clusters - 1))
    return Interval(mean, *_score_limits(mean, effective, critical), n, warning)


def _sums(values, groups: Sequence[Hashable] | None):
    """The sum of each group's values; without groups each value is its own."""
    import numpy as np
    import pandas as pd

    if groups is None:
        return values
    codes, _ = pd.factorize(pd.Series(groups, dtype=object))
    return np.bincount(codes, values)


def paired_means(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean difference b - a of two values from 0 to 1 on the same questions.

    Bonett and Price's (2012, J. Educ. Behav. Stat. 37:479): one more difference each way, as large as the largest
    (as 1 where none is), and then the usual interval, which so has width where nothing changed."""
    import numpy as np
    from scipy.stats import t

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"pairs need two equally long lists of at least 2; got {len(a)} and {len(b)}")
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    n, most = len(differences), float(np.abs(differences).max()) or 1.0
    padded = np.append(differences, [most, -most])
    centre, half = float(padded.mean()), float(padded.std()) / math.sqrt(n + 2) * float(t.ppf((1 + confidence) / 2, n))
    return Interval(float(differences.mean()), max(-1.0, centre - half), min(1.0, centre + half), n)


def cochran(verdicts: Sequence[Sequence[bool]]) -> float:
    """p-value of Cochran's Q: do several ways to ask the same questions differ in accuracy? (1.0 if none changed.)

    A row a question, a column a way; the large-sample chi-square form."""
    from statsmodels.stats.contingency_tables import cochrans_q

    if all(len(set(row)) == 1 for row in verdicts):
        return 1.0
    return float(cochrans_q([list(map(int, row)) for row in verdicts]).pvalue)


def detectable(n: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest difference that McNemar's exact test on n questions finds with this power, or math.inf.

    `discordance` is the share of questions on which the two models differ. Two unrelated models that are each
    right on a share p differ on 2 p (1 - p); a tuned model and its base often on less.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import binom

    if n < 1 or not 0 < discordance <= 1:
        raise ValueError(f"need n >= 1 and 0 < discordance <= 1; got n={n}, discordance={discordance}")
    changed = np.arange(n + 1)
    chance = binom.pmf(changed, n, discordance)
    cut = binom.ppf(alpha / 2, changed, 0.5)
    # rejected: at most this many one way
    cut = np.where(binom.cdf(cut, changed, 0.5) <= alpha / 2, cut, cut - 1)

    def missing_power(difference: float) -> float:
        tilt = (1 + difference / discordance) / 2
        rejected = binom.cdf(cut, changed, tilt) + binom.sf(changed - cut - 1, changed, tilt)
        return float(chance @ rejected) - power

    if missing_power(discordance) < 0:
        return math.inf
    return float(brentq(missing_power, 0.0, discordance, xtol=1e-6))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order, for a family of tests such as one per kind."""
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        raise ValueError("Holm's adjustment needs at least one p-value; got none")
    return multipletests(p_values, method="holm")[1].tolist()


def over_seeds(scores: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean score over runs that differ in their seed."""
    import numpy as np
    from scipy.stats import t

    if len(scores) < 2:
        raise ValueError(f"a spread over seeds needs at least two scores; got {len(scores)}")
    mean, error = float(np.mean(scores)), float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    half = float(t.ppf((1 + confidence) / 2, len(scores) - 1)) * error
    return Interval(mean, mean - half, mean + half, len(scores))
