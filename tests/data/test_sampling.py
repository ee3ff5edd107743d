"""Draws depend on the seed and on what is drawn: not on order, neighbors or how they are cut into calls."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data.sampling import random_keys, uniform

INTEGERS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)


@settings(max_examples=50)
@given(st.integers(0, 2**63 - 1), INTEGERS)
def test_a_row_draws_the_same_wherever_it_stands(seed: int, values: list[int]) -> None:
    column, other = np.array(values), np.arange(len(values))
    together = random_keys(seed, column, other)
    order = np.random.default_rng(seed).permutation(len(values))
    assert (random_keys(seed, column[order], other[order]) == together[order]).all()
    alone = [random_keys(seed, column[row : row + 1], other[row : row + 1])[0] for row in other]
    assert (together == alone).all()


def test_distinct_values_and_seeds_draw_distinct_keys() -> None:
    rows = np.arange(200_000)
    assert len(np.unique(random_keys(7, rows))) == len(rows)
    assert not (random_keys(7, rows) == random_keys(8, rows)).any()


def test_columns_are_not_interchangeable() -> None:
    one, other = np.array([1, 2, 3]), np.array([4, 5, 6])
    assert not (random_keys(0, one, other) == random_keys(0, other, one)).any()


def test_the_keys_of_a_seed_never_change() -> None:
    """Models, pools and views made before are drawn from them."""
    assert random_keys(3, np.array([0, 1, 2]), np.array([5, 5, 6])).tolist() == [
        6952929791491219762,
        11472391743668979442,
        4074044222096097516,
    ]


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    drawn = uniform(random_keys(1, np.arange(100_000)))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert np.abs(counts - 5_000).max() < 5 * 5_000**0.5  # five standard deviations
    assert uniform(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0, 1 - 2.0**-53]
