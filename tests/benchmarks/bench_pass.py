"""Do pass@k's 95 % intervals cover 95 %? `python tests/benchmarks/bench_pass.py` prints the table.

Simulated sets of samples: every question has the same chance p, or chances that differ from question to question;
each set has questions of its own. Reach: coverage from 93 to 97 % (a star marks a figure outside), and of the paired
difference as well. Above a pass@k of 99.5 % there is little to miss: a handful of rare questions make the whole error,
and the interval is either a little too narrow or, from there on, too wide.
"""

import math

import numpy as np
from scipy.special import betaln

from lib.grade import stats

KS, SAMPLES = (1, 2, 4, 8, 16), 16
SAME = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BETAS = ((0.5, 0.5), (0.3, 2.0), (1.0, 9.0), (2.0, 2.0), (2.0, 0.3))
SETS = 2000  # the simulation error of a 95 % coverage is then 0.5 points


def chances(kind, random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Each question's chance that a sample is right: `kind` is one for all, or a Beta distribution's two numbers."""
    if isinstance(kind, tuple):
        return random.beta(*kind, size=shape)
    return np.full(shape, kind)


def truth(kind, k: int) -> float:
    """The true pass@k."""
    if isinstance(kind, tuple):
        return 1 - math.exp(betaln(kind[0], kind[1] + k) - betaln(*kind))
    return 1 - (1 - kind) ** k


def coverage(kind, questions: int, k: int, sets: int, random: np.random.Generator, samples: int = SAMPLES) -> float:
    """The share of simulated sets whose interval holds the true pass@k."""
    right, covered = random.binomial(samples, chances(kind, random, (sets, questions))), 0
    values = np.array(stats.pass_at_k(range(samples + 1), samples, k))[right]
    for row in values:
        interval = stats.mean_share(row, tries=samples / k)
        covered += interval.low - 1e-12 <= truth(kind, k) <= interval.high + 1e-12
    return covered / sets


def paired_coverage(before: float, after: float, questions: int, k: int, sets: int,
                    random: np.random.Generator) -> float:  # fmt: skip
    """The same of the difference between two models; both find a question easy or hard alike."""
    table, covered = np.array(stats.pass_at_k(range(SAMPLES + 1), SAMPLES, k)), 0
    for _ in range(sets):
        ease = random.random(questions)
        chance = [ease ** (1 / share - 1) for share in (before, after)]  # whose mean is the share
        values = [table[random.binomial(SAMPLES, own)] for own in chance]
        interval = stats.paired_means(*values)
        covered += interval.low <= difference(before, after, k) <= interval.high
    return covered / sets


def difference(before: float, after: float, k: int) -> float:
    """The true difference of `paired_coverage`: the mean of 1 - (1 - ease^a)^k over ease from 0 to 1."""
    ease = (np.arange(200_000) + 0.5) / 200_000
    means = [np.mean(1 - (1 - ease ** (1 / share - 1)) ** k) for share in (before, after)]
    return float(means[1] - means[0])


def cell(covered: float) -> str:
    return f"{100 * covered:9.1f}" + (" " if 0.93 <= round(covered, 3) <= 0.97 else "*")


def main() -> None:
    random = np.random.default_rng(0)
    for questions in (200, 500):
        print(f"\ncoverage of pass@k's interval, {questions} questions, {SAMPLES} samples (in %; pass@k beside it)")
        print("p, or Beta(a, b)".ljust(18) + "".join(f"{f'k = {k}':>20}" for k in KS))
        for kind in (*SAME, *BETAS):
            cells = [f"{100 * truth(kind, k):9.2f} {cell(coverage(kind, questions, k, SETS, random))}" for k in KS]
            print(str(kind).ljust(18) + "".join(f"{text:>20}" for text in cells), flush=True)
    print(f"\ncoverage of the paired difference, 200 questions, {SAMPLES} samples")
    print("pass@1 of both".ljust(18) + "".join(f"{f'k = {k}':>10}" for k in KS))
    for shares in ((0.1, 0.1), (0.02, 0.1), (0.3, 0.5), (0.1, 0.8), (0.7, 0.8)):
        cells = [cell(paired_coverage(*shares, 200, k, SETS, random)) for k in KS]
        print(str(shares).ljust(18) + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
