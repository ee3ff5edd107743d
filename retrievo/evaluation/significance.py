"""Significance tests of the difference between two runs, paired over queries, in a few array operations each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    """The p-value of one test of `randomization_tests`, on per-query values [Q]."""
    return randomization_tests([_differences(ours, theirs)], samples=samples, seed=seed)[0]


def randomization_tests(differences: Sequence[np.ndarray], *, samples: int = 100_000, seed: int = 0) -> list[float]:
    """Two-sided p-values of paired randomization (sign-flip) tests, each on the finite differences [Q] of two runs.

    Under the null hypothesis, each query's difference is equally likely to have either sign (Fisher 1935; Smucker et
    al. 2007): p is the fraction of sign patterns s with |sum(s_i d_i)| >= |sum(d_i)|. Where 2^n <= samples for the n
    queries that differ, all 2^n patterns are counted; otherwise p = (b + 1) / (samples + 1) for the b random patterns
    that reach |sum(d_i)|, counting the observed pattern too. NaN without queries. Tests on as many queries share the
    random patterns, so a p-value does not depend on which others are computed beside it.
    """
    p = [math.nan] * len(differences)
    drawn: dict[int, list[int]] = {}
    for number, difference in enumerate(differences):
        differing = difference[difference != 0]
        if len(difference) and 2 ** len(differing) <= samples:
            sums = _all_signed_sums(differing)
            p[number] = float((np.abs(sums) >= _reached_from(differing)).mean())
        elif len(difference):
            drawn.setdefault(len(difference), []).append(number)
    for numbers in drawn.values():
        together = np.stack([differences[number] for number in numbers], axis=1)
        bound = _reached_from(together)
        reached = sum((np.abs(sums) >= bound).sum(axis=0) for sums in _drawn_signed_sums(together, samples, seed))
        for number, count in zip(numbers, reached.tolist(), strict=True):
            p[number] = (count + 1) / (samples + 1)
    return p


def bootstrap_interval(
    ours: np.ndarray, theirs: np.ndarray, *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """One interval of `bootstrap_intervals`, on per-query values [Q]."""
    return bootstrap_intervals([_differences(ours, theirs)], level=level, samples=samples, seed=seed)[0]


def bootstrap_intervals(
    differences: Sequence[np.ndarray], *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> list[tuple[float, float]]:
    """Percentile bootstrap intervals of means of finite differences [Q] over queries (Efron 1979; Sakai 2006).

    level: the fraction of resampled means inside the interval, in (0, 1). NaN without queries. Intervals over as many
    queries share the samples.
    """
    found = [(math.nan, math.nan)] * len(differences)
    drawn: dict[int, list[int]] = {}
    for number, difference in enumerate(differences):
        if len(difference):
            drawn.setdefault(len(difference), []).append(number)
    for count, numbers in drawn.items():
        together = np.stack([differences[number] for number in numbers], axis=1)
        means = np.concatenate([times @ together for times in _resampled(count, samples, seed)]) / count
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        for number, bounds in zip(numbers, zip(low.tolist(), high.tolist(), strict=True), strict=True):
            found[number] = bounds
    return found


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


def _reached_from(differences: np.ndarray) -> np.ndarray:
    """|sum(d_i)| of differences [Q] or [Q, T], less what mathematically equal sums may differ by through rounding.

    Metrics tie often (0.5 - 0.5, 1/3 - 1/3).
    """
    bound: np.ndarray = np.abs(differences.sum(axis=0)) - 1e-12 * np.abs(differences).sum(axis=0)
    return bound


def _drawn_signed_sums(differences: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """The sums [n, T] of differences [Q, T] under random sign patterns, block by block: one random bit a sign."""
    rng = np.random.default_rng(seed)
    count = len(differences)
    for rows in _blocks(samples, count):
        bits = np.unpackbits(rng.integers(256, size=(rows, -(-count // 8)), dtype=np.uint8), axis=1, count=count)
        yield 2 * (bits.astype(np.float64) @ differences) - differences.sum(axis=0)


def _resampled(count: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `count` queries is in each sample with replacement, [n, Q], block by block."""
    rng = np.random.default_rng(seed)
    for rows in _blocks(samples, count):
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _blocks(samples: int, count: int) -> list[int]:
    """Numbers of samples that add up to `samples`, each a block that fits in memory."""
    rows = max(1, _VALUES_PER_BLOCK // max(1, count))
    return [min(rows, samples - start) for start in range(0, samples, rows)]
