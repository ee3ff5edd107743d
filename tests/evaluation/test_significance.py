"""p-values are scipy's, or those of counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.evaluation import significance
from retrievo.evaluation.significance import bootstrap_interval, holm, randomization_test, t_test

# Reciprocal ranks: the values that differences of mrr are made of, with their many exact ties.
VALUES = st.sampled_from([0, 1, 1 / 2, 1 / 3, 1 / 7, 0.1, 0.2, 0.3])
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=10)


def pair(seed: int, queries: int, gain: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theirs = rng.random(queries)
    return theirs + rng.normal(gain, 0.1, queries), theirs


def permutation_test(ours: np.ndarray, theirs: np.ndarray, samples: float, seed: int | None = None) -> float:
    from scipy import stats

    result = stats.permutation_test(
        (ours, theirs),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=samples,
        rng=seed,
    )
    return float(result.pvalue)


class TestTTest:
    @pytest.mark.parametrize("seed", range(10))
    def test_p_value_is_scipys(self, seed):
        from scipy import stats

        ours, theirs = pair(seed, 5 + 20 * seed)
        assert t_test(ours, theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-12)

    def test_equal_runs_have_p_1_and_a_constant_gain_has_p_0(self):
        values = np.array([0.25, 0.5, 1.0])
        assert t_test(values, values) == 1
        assert t_test(values + 0.25, values) == 0

    def test_one_query_has_no_p_value(self):
        assert math.isnan(t_test(np.ones(1), np.zeros(1)))


class TestRandomizationTest:
    @settings(deadline=None)
    @given(PAIRS)
    def test_exact_p_value_is_the_share_of_sign_patterns(self, pairs):
        ours, theirs = np.array(pairs, float).T
        difference = ours - theirs
        sums = [abs(math.fsum(signs * difference)) for signs in itertools.product([1, -1], repeat=len(pairs))]
        reached = [total >= abs(math.fsum(difference)) - 1e-9 for total in sums]
        assert randomization_test(ours, theirs) == pytest.approx(np.mean(reached), abs=1e-15)

    @pytest.mark.parametrize("seed", range(5))
    def test_exact_p_value_is_scipys(self, seed):
        ours, theirs = pair(seed, 10)
        assert randomization_test(ours, theirs) == pytest.approx(permutation_test(ours, theirs, np.inf), abs=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_sampled_p_value_agrees_with_scipys(self, seed):
        ours, theirs = pair(seed, 60)
        p = permutation_test(ours, theirs, 20_000, seed)
        error = math.sqrt(p * (1 - p) * 2 / 20_000)  # of the difference of two such estimates
        assert abs(randomization_test(ours, theirs, samples=20_000) - p) < 5 * error + 1e-4

    def test_sampled_p_value_approaches_the_exact_one(self):
        ours, theirs = pair(3, 14)
        exact = randomization_test(ours, theirs, samples=2**14)
        sampled = randomization_test(ours, theirs, samples=10_000)  # fewer than 2^14: drawn
        assert sampled == round(sampled * 10_001) / 10_001
        assert sampled == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 10_000))

    def test_the_observed_sample_counts(self):
        ours, theirs = pair(0, 200, gain=5.0)  # no drawn pattern comes near
        assert randomization_test(ours, theirs, samples=999) == 1 / 1000

    def test_queries_that_do_not_differ_do_not_matter(self):
        ours, theirs = pair(1, 12)
        same = np.full(5000, 0.5)
        assert randomization_test(np.r_[ours, same], np.r_[theirs, same]) == randomization_test(ours, theirs)

    def test_equal_runs_have_p_1_and_no_queries_no_p_value(self):
        assert randomization_test(np.ones(50), np.ones(50)) == 1
        assert math.isnan(randomization_test(np.zeros(0), np.zeros(0)))

    def test_it_is_two_sided_and_seeded(self):
        ours, theirs = pair(2, 100)
        first = randomization_test(ours, theirs, samples=5000, seed=1)
        assert first == randomization_test(ours, theirs, samples=5000, seed=1)
        assert first == randomization_test(theirs, ours, samples=5000, seed=1)
        assert first != randomization_test(ours, theirs, samples=5000, seed=2)

    def test_samples_are_drawn_in_blocks_that_fit_in_memory(self, monkeypatch):
        monkeypatch.setattr(significance, "_VALUES_PER_BLOCK", 1000)
        ours, theirs = pair(4, 90)
        sums = list(significance._drawn_signed_sums(ours - theirs, 105, seed=0))
        assert [len(block) for block in sums] == [11] * 9 + [6]


class TestBootstrap:
    def test_the_interval_agrees_with_scipys(self):
        from scipy import stats

        ours, theirs = pair(0, 80)
        expected = stats.bootstrap(
            (ours - theirs,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
        ).confidence_interval
        assert bootstrap_interval(ours, theirs, level=0.9, samples=20_000) == pytest.approx(tuple(expected), abs=5e-4)

    def test_the_interval_is_seeded_and_narrows_with_the_level(self):
        ours, theirs = pair(1, 50)
        wide, narrow = (bootstrap_interval(ours, theirs, level=level, samples=2000) for level in (0.99, 0.5))
        assert wide[0] < narrow[0] < (ours - theirs).mean() < narrow[1] < wide[1]
        assert wide == bootstrap_interval(ours, theirs, level=0.99, samples=2000)
        assert wide != bootstrap_interval(ours, theirs, level=0.99, samples=2000, seed=1)

    def test_no_queries_have_no_interval(self):
        assert all(map(math.isnan, bootstrap_interval(np.zeros(0), np.zeros(0))))


class TestHolm:
    def test_a_worked_case(self):
        # 4 * 0.005, then 3 * 0.01; 2 * 0.03 = 0.06 stays below nothing; 1 * 0.04 is lifted to 0.06.
        assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), max_size=12))
    def test_adjusted_values_keep_their_order_and_lie_between_p_and_bonferroni(self, p_values):
        p = np.array(p_values)
        adjusted = holm(p)
        assert ((adjusted >= p) & (adjusted <= np.minimum(1, p * len(p)) + 1e-15)).all()
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize("test", [t_test, randomization_test, bootstrap_interval])
@pytest.mark.parametrize(("ours", "theirs"), [([1, 2], [1]), ([1, math.nan], [1, 2])])
def test_values_that_are_not_pairs_of_numbers_are_refused(test, ours, theirs):
    with pytest.raises(ValueError, match=r"not paired|not finite"):
        test(np.array(ours, float), np.array(theirs, float))


def test_what_is_tested_together_is_what_is_tested_alone() -> None:
    """Tests over as many queries, over others, with ties, exact ones, and one without queries."""
    pairs = [pair(seed, queries) for seed, queries in ((1, 60), (2, 60), (3, 45), (4, 8))]
    pairs += [(np.where(np.arange(60) < 20, pairs[0][1], pairs[0][0]), pairs[0][1]), (np.empty(0), np.empty(0))]
    differences = [ours - theirs for ours, theirs in pairs]
    p = significance.randomization_tests(differences, samples=2_000, seed=3)
    intervals = significance.bootstrap_intervals(differences, samples=500, seed=3)
    for found, interval, (ours, theirs) in zip(p, intervals, pairs, strict=True):
        alone = randomization_test(ours, theirs, samples=2_000, seed=3)
        assert found == alone or (math.isnan(found) and math.isnan(alone))
        assert interval == pytest.approx(bootstrap_interval(ours, theirs, samples=500, seed=3), rel=1e-12, nan_ok=True)
    assert math.isnan(p[-1])
    assert len(set(p)) == len(p)
