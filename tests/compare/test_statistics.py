"""Statistics against SciPy, scikit-posthocs and small examples calculated by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats

from nnunet_unifiedloss.compare.statistics import (
    FEWEST_PAIRS,
    bootstrap_means,
    complete,
    friedman_test,
    holm,
    mean_interval,
    paired_test,
    rank_biserial,
    ranks,
    share_first,
)


def scores(cases=30, methods=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.beta(8, 2, (cases, 1)) + generator.normal(0, 0.05, (cases, methods))


def test_bootstrap_interval_agrees_with_scipy():
    values = scores()
    low, high = mean_interval(values, samples=20_000, seed=1)
    for index, column in enumerate(values.T):
        expected = stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="percentile", rng=2
        ).confidence_interval
        width = expected.high - expected.low
        assert low[index] == pytest.approx(expected.low, abs=0.05 * width)
        assert high[index] == pytest.approx(expected.high, abs=0.05 * width)


def test_bootstrap_leaves_missing_values_out():
    values = scores(methods=1)
    with_missing = np.vstack([values, np.full((20, 1), np.nan)])
    means = bootstrap_means(with_missing, samples=4000)[:, 0]
    assert np.isfinite(means).all()
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    # 30 of the values can be drawn, so the spread is that of 30
    assert means.std() == pytest.approx(values.std() / np.sqrt(30), rel=0.1)


def test_bootstrap_of_too_few_cases_says_nothing():
    low, high = mean_interval(np.arange(FEWEST_PAIRS - 1.0))
    assert np.isnan([low, high]).all()


def test_differences_are_bootstrapped_in_pairs():
    baseline = scores(methods=1)[:, 0]
    low, high = mean_interval((baseline + 0.1) - baseline)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_agrees_with_scipy(seed):
    first, second = scores(methods=2, seed=seed).T
    test = paired_test(first, second)
    assert test.p == stats.wilcoxon(first, second).pvalue
    assert test.difference == pytest.approx(np.mean(first - second))
    assert test.larger == np.sum(first > second)
    assert test.smaller == np.sum(first < second)


@pytest.mark.parametrize("cases", [6, 9, 13, 14])
def test_wilcoxon_with_ties_and_zeros_agrees_with_scipy(cases):
    generator = np.random.default_rng(cases)
    for _ in range(2):
        differences = generator.integers(-2, 4, cases).astype(float)
        expected = stats.wilcoxon(differences).pvalue if differences.any() else 1
        assert paired_test(differences, np.zeros(cases)).p == pytest.approx(expected)


def test_wilcoxon_agrees_with_counting_all_signs():
    differences = np.array([0.3, -0.1, 0.25, 0.5, 0.6, -0.2, 0.4])
    weights = stats.rankdata(np.abs(differences))
    observed = min(weights[differences > 0].sum(), weights[differences < 0].sum())
    sums = [np.dot(signs, weights) for signs in itertools.product((0, 1), repeat=7)]
    expected = 2 * np.mean(np.array(sums) <= observed)
    assert paired_test(differences, np.zeros(7)).p == pytest.approx(expected)


def test_a_pair_without_a_value_is_no_pair():
    first, second = scores(methods=2).T
    first[3], second[7] = np.nan, np.nan
    kept = np.delete(np.arange(30), [3, 7])
    test = paired_test(first, second)
    assert test.cases == 28
    assert test.p == stats.wilcoxon(first[kept], second[kept]).pvalue


def test_equal_methods_do_not_differ():
    values = scores(methods=1)[:, 0]
    # equal but for rounding
    test = paired_test(values, values * 3 / 3 + 1e-16)
    assert (test.p, test.effect, test.larger, test.smaller) == (1, 0, 0, 0)


def test_too_few_pairs_have_no_p_value():
    values = np.arange(FEWEST_PAIRS - 1.0)
    assert np.isnan(paired_test(values + 1, values).p)
    # the smallest p that so few can reach is above the level
    assert 2 * 0.5 ** (FEWEST_PAIRS - 1) > 0.05 > 2 * 0.5**FEWEST_PAIRS


def test_rank_biserial_by_hand():
    # ranks of 1, 2, 3, 4 are 1 to 4: positive 1 + 3 + 4, negative 2
    assert rank_biserial(np.array([1.0, -2.0, 3.0, 4.0])) == pytest.approx((8 - 2) / 10)
    assert rank_biserial(np.array([-1.0, -2.0])) == -1


def test_holm_by_hand():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    # sorted 0.005 × 4, 0.01 × 3, 0.03 × 2, and the last never below the one before it
    expected = [0.03, 0.06, np.nan, 0.06, 0.02]
    np.testing.assert_allclose(holm(p), expected)
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_friedman_by_hand():
    values = scores(cases=12, methods=3)
    mean_ranks = ranks(values, higher_is_better=False).mean(axis=0)
    expected = 12 * 12 / (3 * 4) * np.sum((mean_ranks - 2) ** 2)
    statistic, p = friedman_test(values)
    assert statistic == pytest.approx(expected)
    assert p == pytest.approx(stats.chi2.sf(expected, 2))


def test_friedman_agrees_with_posthocs_reading_of_it():
    values = scores(cases=20, methods=4)
    values[4, 2] = np.nan
    statistic, p = friedman_test(values)
    expected = stats.friedmanchisquare(*complete(values).T)
    assert (statistic, p) == (expected.statistic, expected.pvalue)
    # when all are equal nothing can differ
    assert friedman_test(np.ones((10, 3))) == (0, 1)
    assert np.isnan(friedman_test(values[:, :2])).all()
    assert np.isnan(friedman_test(values[: FEWEST_PAIRS - 1])).all()


def test_ranks_agree_with_posthocs():
    values = scores(cases=20, methods=4)
    # scikit-posthocs ranks within blocks before it compares mean ranks
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(values).to_numpy()
    mean_ranks = ranks(values, higher_is_better=True).mean(axis=0)
    distance = np.abs(mean_ranks[0] - mean_ranks[1]) / np.sqrt(4 * 5 / (6 * 20))
    expected = stats.studentized_range.sf(distance * np.sqrt(2), 4, np.inf)
    assert nemenyi[0, 1] == pytest.approx(expected, rel=1e-3)


def test_ranks_of_metrics_where_lower_is_better():
    assert ranks(np.array([[1.0, 3.0, 2.0]]), higher_is_better=False).tolist() == [[1, 3, 2]]
    assert ranks(np.array([[1.0, 3.0, 2.0]]), higher_is_better=True).tolist() == [[3, 1, 2]]


def test_share_of_first_places():
    # the first is better on two of three cases: first unless the third is drawn too often
    of_cases = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    samples = np.array(list(itertools.product(range(3), repeat=3)))
    exact = np.mean([of_cases[sample].mean(axis=0).argmin() == 0 for sample in samples])
    share = share_first(bootstrap_means(of_cases, samples=20_000))
    assert share[0] == pytest.approx(exact, abs=0.01)
    assert share.sum() == pytest.approx(1)
