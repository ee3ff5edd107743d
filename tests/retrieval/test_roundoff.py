"""The bound on float32 scores holds for every order of summation, near underflow too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.retrieval.roundoff import ErrorBound, norm_below


def off(query: np.ndarray, document: np.ndarray, order: np.ndarray) -> tuple[float, float]:
    """|float32 inner product - exact one|, summed one by one in an order, and the norm of the document."""
    score = np.float32(0)
    for place in order:
        score = np.float32(score + np.float32(query[place] * document[place]))
    exact = math.fsum(float(one) * float(other) for one, other in zip(query, document, strict=True))
    return abs(float(score) - exact), math.sqrt(math.fsum(float(value) ** 2 for value in document))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(-30, 30), st.integers(-30, 30), st.integers(0, 2**32 - 1))
def test_no_inner_product_is_further_off(dim: int, one: int, other: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, document = (np.float32(rng.standard_normal(dim) * 2.0**power) for power in (one, other))
    error, length = off(query, document, rng.permutation(dim))
    norms = np.array([np.linalg.norm(query.astype(np.float64))])
    assert error <= ErrorBound(norms, dim, "dot")(np.array([length]))[0]


@pytest.mark.parametrize("dim", [1, 8, 100])
def test_products_below_the_normal_range_are_within_the_bound(dim: int) -> None:
    query = document = np.full(dim, 2.0**-70, np.float32)  # each product, 2^-140, is subnormal
    error, length = off(query, document, np.arange(dim))
    assert error <= ErrorBound(np.array([length]), dim, "dot")(np.array([length]))[0]


def test_the_bound_is_of_use() -> None:
    """Less than 0.0001 of a cosine for vectors as models make them: else most documents would be scored again."""
    assert 0 < ErrorBound(np.ones(1), 768, "cosine")(np.ones(1))[0] < 1e-4


def test_it_is_asked_for_some_queries_alone() -> None:
    bound = ErrorBound(np.array([1.0, 2.0, 4.0]), 16, "dot")
    assert (bound(np.ones(2), np.array([2, 0])) == bound(np.ones(3))[[2, 0]]).all()


@pytest.mark.parametrize("dim", [1, 64, 1024])
def test_squares_that_vanish_take_no_more_than_norm_below(dim: int) -> None:
    tiny = np.full(dim, 2.0**-64, np.float32)  # its square is below the normal range
    assert np.linalg.norm(tiny.astype(np.float64)) <= norm_below(dim)
