"""The statistics, against published examples, hand-worked numbers and the reference libraries."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from lib.grade import stats


def pairs(right_to_wrong, wrong_to_right, n):
    both = n - right_to_wrong - wrong_to_right
    return [1] * right_to_wrong + [0] * wrong_to_right + [1] * both, [0] * right_to_wrong + [1] * (n - right_to_wrong)


def test_wilson_matches_a_published_example():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263, then 0 of 20 and 15 of 148.
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (15, 148, 0.0624, 0.1605)]:
        interval = stats.wilson(successes, n)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_stays_inside_zero_and_one():
    assert stats.wilson(0, 5).low == 0.0 and stats.wilson(5, 5).high == 1.0
    assert stats.wilson(3, 10, confidence=0.9).low > stats.wilson(3, 10, confidence=0.99).low


def test_wilson_covers_95_percent_by_exact_sum():
    for n, share in [(50, 0.3), (50, 0.95), (200, 0.02), (200, 0.3)]:
        covered = [stats.wilson(k, n).low <= share <= stats.wilson(k, n).high for k in range(n + 1)]
        assert 0.93 <= binom.pmf(np.arange(n + 1), n, share)[covered].sum() <= 0.97


def test_mcnemar_is_the_exact_test_of_statsmodels():
    assert stats.mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)  # by hand: 0 or 1 of 6, twice
    for b, c in [(7, 1), (10, 10), (0, 6), (40, 20)]:
        assert stats.mcnemar(b, c) == pytest.approx(min(1.0, reference_mcnemar([[9, b], [c, 9]], exact=True).pvalue))


def test_no_changed_verdict_is_no_evidence():
    assert stats.mcnemar(0, 0) == 1.0


def test_paired_interval_matches_published_tango_limits():
    # Airway reactivity (Bentur 2009; Fagerland, Lydersen and Laake 2014): 7 one way, 1 the other, of 21.
    interval = stats.paired_interval(*pairs(7, 1, 21))
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)
    # R's PropCIs::scoreci.mp(25, 28, 618, 0.90).
    interval = stats.paired_interval(*pairs(25, 28, 618), confidence=0.9)
    assert (round(interval.low, 4), round(interval.high, 4)) == (-0.0148, 0.0247)


def test_paired_interval_is_b_minus_a_and_mirrors_when_swapped():
    a, b = pairs(2, 9, 60)
    forward, backward = stats.paired_interval(a, b), stats.paired_interval(b, a)
    assert forward.estimate == pytest.approx(7 / 60) and forward.low < 7 / 60 < forward.high
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))


def test_identical_verdicts_still_have_an_interval():
    # By hand: with no change the score is n d / (1 - d), which equals z squared at d = z^2 / (n + z^2).
    interval = stats.paired_interval([1] * 30 + [0] * 20, [1] * 30 + [0] * 20)
    assert interval.high == pytest.approx(3.841459 / 53.841459, rel=1e-5) and interval.low == pytest.approx(
        -interval.high
    )


@pytest.mark.parametrize("flips", [(5, 0, 5), (0, 5, 5), (0, 1, 1), (1, 1, 2), (0, 1000, 1000), (3, 0, 1000)])
def test_paired_interval_stays_inside_its_range_at_the_edges(flips):
    interval = stats.paired_interval(*pairs(*flips))
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1 and interval.low < interval.high


def test_non_inferiority_agrees_with_its_interval():
    for flips, margin in [((5, 6, 300), 0.05), ((20, 5, 300), 0.05), ((12, 4, 300), 0.05), ((12, 4, 300), 0.06)]:
        result = stats.non_inferior(*pairs(*flips), margin)
        assert result.holds == (result.interval.low >= -margin) == (result.p_value <= 0.05)


def test_non_inferiority_at_the_margin_is_a_coin_toss():
    assert stats.non_inferior(*pairs(15, 5, 100), 0.1).p_value == pytest.approx(0.5)


def test_non_inferiority_needs_few_questions_only_for_wide_margins():
    assert not stats.non_inferior([1] * 20, [1] * 20, 0.02).holds and stats.non_inferior([1] * 20, [1] * 20, 0.2).holds


def test_clustered_mean_matches_statsmodels_and_the_t_test_of_group_means():
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 5)
    values = random.normal(size=12)[groups] + random.normal(size=60)
    interval = stats.clustered(values, groups)
    fit = OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert (interval.low, interval.high) == pytest.approx(tuple(fit.conf_int()[0]))
    # Groups of one size: the cluster-robust interval is the t interval of the group means.
    means = ttest_1samp(values.reshape(12, 5).mean(axis=1), 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((means.low, means.high))


def test_rows_that_repeat_their_group_add_no_information():
    rates = [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1]
    once = stats.clustered(rates, range(12))
    repeated = stats.clustered(np.repeat(rates, 50), np.repeat(np.arange(12), 50))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high)) and repeated.n == 600
    naive = stats.wilson(400, 600)
    assert repeated.high - repeated.low > 4 * (naive.high - naive.low)


def test_fewer_than_ten_clusters_warn():
    assert "9 groups" in stats.clustered([0, 1, 1] * 9, list("abcdefghi") * 3).warning
    assert stats.clustered([0, 1, 1] * 10, list("abcdefghij") * 3).warning is None


def test_perfect_scores_keep_a_width():
    interval = stats.clustered([1] * 40, [index // 4 for index in range(40)])
    assert interval.high == 1.0 and 0.5 < interval.low < 0.8


def test_the_detectable_difference_is_found_with_the_stated_power():
    # By hand: n = 6 and every pair differs, so only 6 : 0 is significant; 0.8 = p^6 + (1 - p)^6 at p = 0.9635.
    assert stats.detectable(6, 1.0) == pytest.approx(2 * 0.8 ** (1 / 6) - 1, abs=1e-4)
    # Connor's 1987 approximation: n = (1.96 sqrt(d) + 0.8416 sqrt(d - x^2))^2 / x^2, less what exactness costs.
    difference = stats.detectable(1000, 0.3)
    approximate_n = (1.95996 * math.sqrt(0.3) + 0.84162 * math.sqrt(0.3 - difference**2)) ** 2 / difference**2
    assert 930 < approximate_n < 1000


def test_more_questions_detect_less_and_too_few_detect_nothing():
    found = [stats.detectable(n, 0.2) for n in (100, 200, 600, 1000)]
    assert found == sorted(found, reverse=True) and stats.detectable(20, 0.05) == math.inf


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_seeds_give_a_t_interval():
    interval = stats.over_seeds([0.58, 0.60, 0.62])
    half = 4.302653 * 0.02 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((0.6 - half, 0.6, 0.6 + half))


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.wilson(0, 0),
        lambda: stats.wilson(6, 5),
        lambda: stats.mcnemar(-1, 0),
        lambda: stats.paired_interval([], []),
        lambda: stats.paired_interval([1], [1, 0]),
        lambda: stats.paired_interval([0.5], [1]),
        lambda: stats.non_inferior([], [], 0.1),
        lambda: stats.non_inferior([1], [1], 0),
        lambda: stats.clustered([], []),
        lambda: stats.clustered([1, 0], ["a"]),
        lambda: stats.clustered([1, 0], ["a", "a"]),
        lambda: stats.detectable(0, 0.3),
        lambda: stats.detectable(100, 0),
        lambda: stats.holm([]),
        lambda: stats.over_seeds([]),
        lambda: stats.over_seeds([0.5]),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_value(call):
    with pytest.raises(ValueError, match="got"):
        call()


def test_importing_the_module_loads_no_heavy_library():
    heavy = {"scipy", "statsmodels", "numpy", "torch"}
    check = f"import sys; from lib.grade import stats, scoring; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "set()"


# --- several samples a question ---------------------------------------------------------------------------------------
def drawn(votes, right, k) -> tuple[float, float]:
    """(pass@k, majority@k) over all sets of k, one after the other."""
    passed, won, sets = 0.0, 0.0, list(itertools.combinations(votes, k))
    for chosen in sets:
        passed += any(vote in right for vote in chosen)
        counts = {vote: chosen.count(vote) for vote in chosen if vote is not None}
        leading = [vote for vote, count in counts.items() if count == max(counts.values())]
        won += sum(vote in right for vote in leading) / max(1, len(leading))
    return passed / len(sets), won / len(sets)


def test_pass_and_majority_at_k_are_what_all_sets_of_k_give():
    random = np.random.default_rng(3)
    for _ in range(60):
        votes = [(None, "a", "b", "c", "d", "e")[draw] for draw in random.integers(0, random.integers(2, 7), 7)]
        right = {"a"} if random.random() < 0.7 else {"a", "c"}
        count = sum(vote in right for vote in votes)
        for k in range(1, 8):
            found = stats.pass_at_k([count], 7, k)[0], stats.majority_at_k(votes, right, k)
            assert found == pytest.approx(drawn(votes, right, k))


def test_pass_and_majority_at_k_are_refused_more_samples_than_there_are():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k={k}"):
            stats.pass_at_k([1], 3, k)
        with pytest.raises(ValueError, match=f"k={k}"):
            stats.majority_at_k(["a", "b", "a"], {"a"}, k)
    with pytest.raises(ValueError, match="0 <= right <= samples"):
        stats.pass_at_k([4], 3, 2)


@pytest.mark.parametrize(("kind", "k"), [(0.05, 1), (0.1, 16), (0.5, 4), (0.95, 2), ((0.3, 2.0), 8), ((2.0, 0.3), 2)])
def test_the_interval_of_pass_at_k_covers_95_percent(kind, k):
    from tests.benchmarks import bench_pass  # test_mutations copies the tests alone

    random = np.random.default_rng(7)
    assert 0.93 <= bench_pass.coverage(kind, 200, k, 1000, random) <= 0.97


def test_the_interval_of_shares_that_are_all_0_or_1_is_wilsons_and_has_width_where_all_are_alike():
    values = [1.0] * 60 + [0.0] * 140
    found, plain = stats.mean_share(values), stats.wilson(60, 200)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-3)
    for value in (0.0, 1.0):
        alike = stats.mean_share([value] * 100, tries=8)
        assert 0.03 < alike.high - alike.low < 0.04 and 0 <= alike.low <= value <= alike.high <= 1
    with pytest.raises(ValueError, match="each from 0 to 1"):
        stats.mean_share([0.5, 1.5])


def test_the_interval_of_shares_over_groups_has_the_cluster_robust_error_of_statsmodels():
    random = np.random.default_rng(1)
    values, groups = random.random(90), np.repeat(np.arange(30), 3)
    found = stats.mean_share(values, groups)
    error = OLS(values, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0]
    assert found.high - found.low == pytest.approx(2 * 2.045 * error, rel=0.02)  # t with 29 degrees of freedom
    assert stats.mean_share(values[:9], groups[:9]).warning == "only 3 groups: too few to trust the width"


def test_the_difference_of_means_is_bonett_and_prices_where_verdicts_are_right_or_wrong():
    before, after = pairs(4, 19, 100)
    to_wrong, to_right = 5 / 102, 20 / 102  # one more each way, of two more
    half = 1.984 * math.sqrt((to_wrong + to_right - (to_right - to_wrong) ** 2) / 102)
    found = stats.paired_means(before, after)
    assert (found.estimate, found.n) == (0.15, 100)
    assert (found.low, found.high) == pytest.approx((15 / 102 - half, 15 / 102 + half), abs=1e-4)
    back = stats.paired_means(after, before)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    same = stats.paired_means([0.5] * 50, [0.5] * 50)
    assert same.low == -same.high < 0


def test_cochrans_q_of_two_ways_is_mcnemars_chi_square():
    before, after = pairs(4, 19, 100)
    from scipy.stats import chi2

    assert stats.cochran(list(zip(before, after))) == pytest.approx(chi2.sf((19 - 4) ** 2 / (19 + 4), 1))
    assert stats.cochran([(1, 1, 1), (0, 0, 0)]) == 1.0
