"""Significance tests of the difference between two runs, paired over queries, in a few array operations each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VALUES_PER_BLOCK = 1 << 21  # 16 MiB of float64 at a time, whatever the number of samples


def t_test(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p-value of the paired t-test on per-query values [Q].

    t = mean(d) / (std(d) / sqrt(Q)) with d = ours - theirs and Q - 1 degrees of freedom (Student 1908). 1 where no
    query differs; NaN for fewer than two queries.
    """
    from scipy import stats  # 0.8 s

    difference = _differences(ours, theirs)
    if len(difference) < 2:
        return float("nan")
    if not difference.any():
        return 1.0
    if np.ptp(difference) == 0:  # no spread: t is infinite
        return 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def randomization_test(ours: np.ndarray, theirs: np.ndarray, *, samples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired randomization (sign-flip) test on per-query values [Q].

    Under the null hypothesis, each query's difference is equally likely to have either sign (Fisher 1935; Smucker et
    al. 2007): p is the fraction of sign patterns s with |sum(s_i d_i)| >= |sum(d_i)|. Where 2^n <= samples for the n
    queries that differ, all 2^n patterns are counted; otherwise p = (b + 1) / (samples + 1) for the b random patterns
    that reach |sum(d_i)|, counting the observed pattern too. NaN without queries.
    """
    difference = _differences(ours, theirs)
    if not len(difference):
        return float("nan")
    difference = difference[difference != 0]
    # Sums that are mathematically equal may differ by rounding, and metrics tie often (0.5 - 0.5, 1/3 - 1/3).
    bound = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()
    if 2 ** len(difference) <= samples:
        sums = _all_signed_sums(difference)
        return float((np.abs(sums) >= bound).mean())
    reached = sum(int((np.abs(sums) >= bound).sum()) for sums in _drawn_signed_sums(difference, samples, seed))
    return (reached + 1) / (samples + 1)


def bootstrap_interval(
    ours: np.ndarray, theirs: np.ndarray, *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean difference ours - theirs over queries [Q] (Efron 1979; Sakai 2006).

    level: the fraction of resampled means inside the interval, in (0, 1). NaN without queries.
    """
    difference = _differences(ours, theirs)
    if not len(difference):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [
        difference[rng.integers(len(difference), size=(rows, len(difference)))].mean(axis=1)
        for rows in _blocks(samples, len(difference))
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values [m] after Holm's correction for m comparisons, in the order given.

    The i-th smallest p-value becomes min(1, max over j <= i of (m - j + 1) p_j) (Holm 1979).
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1.0)
    return adjusted


def _differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"values of shapes {ours.shape} and {theirs.shape} are not paired")
    difference: np.ndarray = np.asarray(ours, dtype=np.float64) - theirs
    if not np.isfinite(difference).all():
        raise ValueError("a value is not finite; leave such queries out first")
    return difference


def _all_signed_sums(difference: np.ndarray) -> np.ndarray:
    """The sums under all sign patterns, [2^n]."""
    sums = np.zeros(1)
    for value in difference:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _drawn_signed_sums(difference: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """The sums under random sign patterns, block by block: one random bit a sign."""
    rng = np.random.default_rng(seed)
    count = len(difference)
    for rows in _blocks(samples, count):
        bits = np.unpackbits(rng.integers(256, size=(rows, -(-count // 8)), dtype=np.uint8), axis=1, count=count)
        yield 2 * (bits.astype(np.float64) @ difference) - difference.sum()


def _blocks(samples: int, count: int) -> list[int]:
    """Numbers of samples that add up to `samples`, each a block that fits in memory."""
    rows = max(1, _VALUES_PER_BLOCK // max(1, count))
    return [min(rows, samples - start) for start in range(0, samples, rows)]
