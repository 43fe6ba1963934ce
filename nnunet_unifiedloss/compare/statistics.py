"""Statistics of paired cases: intervals, tests, effect sizes, ranks. Pure functions of arrays.

A case is the unit: scores are arrays of shape (cases, methods), and a missing value is NaN.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "FEWEST_PAIRS",
    "PairedTest",
    "bootstrap_means",
    "friedman_test",
    "holm",
    "mean_interval",
    "paired_test",
    "rank_biserial",
    "ranks",
]

Array = npt.NDArray[np.float64]

LEVEL = 0.05
# with five pairs the exact two-sided Wilcoxon test cannot go below 2 · 2⁻⁵ = 0.0625
FEWEST_PAIRS = 6
MOST_ENUMERATED = 13


def bootstrap_means(values: Array, *, samples: int = 10_000, seed: int = 0) -> Array:
    """Mean over the cases of each bootstrap sample, without missing values.

    The samples are the same for every quantity of the same cases, so that differences stay paired.
    They are drawn only once: ``scipy.stats.bootstrap`` draws for every quantity, which takes about
    ten times as long for a whole comparison.

    Args:
        values: Shape (cases, …).
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.

    Returns:
        Shape (samples, …); NaN for a sample of missing values only.
    """
    counts, missing = _counts(len(values), samples, seed), np.isnan(values)
    total = np.tensordot(counts, np.where(missing, 0, values), axes=1)  # in float64
    if not missing.any():
        return np.asarray(total / max(len(values), 1))
    known = np.tensordot(counts, (~missing).astype(np.float64), axes=1)
    return np.asarray(np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0))


@functools.lru_cache(maxsize=2)  # the counts of 1,000 cases take 40 MB
def _counts(cases: int, samples: int, seed: int) -> npt.NDArray[np.float32]:
    """Number of times that each case is drawn in each bootstrap sample."""
    share = np.full(cases, 1 / max(cases, 1))
    counts = np.random.default_rng(seed).multinomial(cases, share, size=samples)
    return counts.astype(np.float32)


def mean_interval(
    values: Array, *, samples: int = 10_000, seed: int = 0, fewest: int = FEWEST_PAIRS
) -> tuple[Array, Array]:
    """95 % percentile bootstrap interval of the mean over the cases.

    Args:
        values: Shape (cases, …); missing ones are NaN.
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.
        fewest: Number of values from which on there is an interval.

    Returns:
        Lower and upper limits of shape (…); NaN with fewer values, because resampling a few cases
        says little about others.

    Example:
        >>> low, high = mean_interval(np.arange(50.0), samples=2000)
        >>> bool(low < 24.5 < high)
        True
    """
    few = np.count_nonzero(~np.isnan(values), axis=0) < fewest
    means = np.where(few, 0, bootstrap_means(values, samples=samples, seed=seed))
    low, high = np.nanpercentile(means, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)], axis=0)
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


@dataclass(frozen=True)
class PairedTest:
    """A method beside the baseline on the same cases.

    Attributes:
        cases: Number of cases that both have a value for.
        difference: Mean of method − baseline.
        p: Wilcoxon signed-rank test, two-sided; NaN with fewer than ``FEWEST_PAIRS`` cases.
        effect: Matched-pairs rank-biserial correlation.
        larger: Number of cases where the method's value is the larger one.
        smaller: Number of cases where it is the smaller one.
    """

    cases: int
    difference: float
    p: float
    effect: float
    larger: int
    smaller: int


def paired_test(method: Array, baseline: Array) -> PairedTest:
    """Compare two methods on the same cases.

    Args:
        method: Values of the method, shape (cases,).
        baseline: Values of the baseline.

    Example:
        >>> test = paired_test(np.arange(8.0) + 1, np.arange(8.0))
        >>> test.cases, test.difference, test.p, test.effect
        (8, 1.0, 0.0078125, 1.0)
    """
    differences = method - baseline
    differences = differences[~np.isnan(differences)]
    # differences by rounding count as none: they must not become ranks
    differences[np.abs(differences) < 1e-12] = 0
    return PairedTest(
        cases=len(differences),
        difference=float(differences.mean()) if len(differences) else math.nan,
        p=_wilcoxon(differences),
        effect=rank_biserial(differences),
        larger=int(np.count_nonzero(differences > 0)),
        smaller=int(np.count_nonzero(differences < 0)),
    )


def _wilcoxon(differences: Array) -> float:
    if len(differences) < FEWEST_PAIRS:
        return math.nan
    if np.count_nonzero(differences) < 2:
        return 1.0
    if len(differences) > MOST_ENUMERATED:
        return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)
    differences = differences[differences != 0]
    # all signs of the ranks, as SciPy does for so few pairs with ties, but vectorised
    signed_ranks = stats.rankdata(np.abs(differences)) * np.sign(differences)
    result = stats.permutation_test(
        (signed_ranks,), np.sum, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    return float(result.pvalue)


def rank_biserial(differences: Array) -> float:
    r"""Matched-pairs rank-biserial correlation :math:`(W_+ - W_-) / (W_+ + W_-)`.

    :math:`W_\pm` are the rank sums of Wilcoxon's test: 1 if every difference is positive, −1 if
    every one is negative, 0 without any (Kerby 2014, The simple difference formula).

    Example:
        >>> rank_biserial(np.array([1.0, 2.0, -3.0, 0.0]))
        0.0
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0
    weights = stats.rankdata(np.abs(differences))
    return float(np.sum(weights * np.sign(differences)) / weights.sum())


def holm(p: Array) -> Array:
    """Holm's adjustment of p values over all comparisons made; missing ones (NaN) stay missing.

    Example:
        >>> holm(np.array([0.01, np.nan, 0.04])).tolist()
        [0.02, nan, 0.04]
    """
    from statsmodels.stats.multitest import multipletests

    adjusted = np.full(len(p), np.nan)
    made = ~np.isnan(p)
    if made.any():
        adjusted[made] = multipletests(p[made], method="holm")[1]
    return adjusted


def friedman_test(scores: Array) -> tuple[float, float]:
    """Friedman's test of more than two methods: (statistic, p) over cases without missing values.

    NaN with fewer than three methods or ``FEWEST_PAIRS`` cases.
    """
    scores = complete(scores)
    if scores.shape[1] < 3 or len(scores) < FEWEST_PAIRS:
        return math.nan, math.nan
    if np.all(scores == scores[:, :1]):
        return 0.0, 1.0
    result = stats.friedmanchisquare(*scores.T)
    return float(result.statistic), float(result.pvalue)


def complete(scores: Array) -> Array:
    """The cases for which every method has a value."""
    return scores[~np.isnan(scores).any(axis=1)]


def ranks(scores: Array, higher_is_better: bool) -> Array:
    """Rank of each method on each case, 1 the best; equal values share their mean rank.

    Example:
        >>> ranks(np.array([[0.9, 0.5, 0.9]]), higher_is_better=True).tolist()
        [[1.5, 3.0, 1.5]]
    """
    return np.asarray(stats.rankdata(-scores if higher_is_better else scores, axis=1))


def share_first(mean_ranks: Array) -> Array:
    """Share of bootstrap samples in which each method has the smallest mean rank; ties share.

    Args:
        mean_ranks: Shape (bootstrap samples, methods).

    Example:
        >>> share_first(np.array([[1.0, 2.0], [1.5, 1.5]])).tolist()
        [0.75, 0.25]
    """
    first = np.isclose(mean_ranks, mean_ranks.min(axis=1, keepdims=True))
    return np.asarray((first / first.sum(axis=1, keepdims=True)).mean(axis=0))
