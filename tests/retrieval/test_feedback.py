"""Feedback moves queries as its formulas say, and nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from retrievo.retrieval.embeddings import Vectors, unit_length
from retrievo.retrieval.feedback import FEEDBACKS, moved_queries
from retrievo.support.errors import UsageError

DOCUMENTS = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float16)
QUERIES = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
QUERY, ROW = np.array([0, 0, 0, 2]), np.array([7, 3, 11, 5])  # query 1 found nothing


def vectors(similarity: str = "dot") -> Vectors:
    ids = pa.array([str(row) for row in range(20)])
    return Vectors([DOCUMENTS], [ids], similarity=similarity)


def test_average_is_the_mean_of_the_query_and_its_documents() -> None:
    moved = moved_queries("average", QUERIES, vectors(), QUERY, ROW, 0.3)
    expected = np.vstack([QUERIES[:1], DOCUMENTS[[7, 3, 11]].astype(np.float32)]).mean(axis=0)
    np.testing.assert_allclose(moved[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved[2], (QUERIES[2] + DOCUMENTS[5]) / 2, rtol=1e-5, atol=1e-6)


def test_rocchio_weighs_the_query_against_the_mean_of_its_documents() -> None:
    moved = moved_queries("rocchio", QUERIES, vectors(), QUERY, ROW, 0.3)
    expected = 0.7 * QUERIES[0] + 0.3 * DOCUMENTS[[7, 3, 11]].astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(moved[0], expected, rtol=1e-5, atol=1e-6)
    assert moved_queries("rocchio", QUERIES, vectors(), QUERY, ROW, 0.0).tobytes() == QUERIES.tobytes()


@pytest.mark.parametrize("method", FEEDBACKS)
def test_a_query_without_documents_stays(method: str) -> None:
    assert moved_queries(method, QUERIES, vectors(), QUERY, ROW, 0.5)[1].tobytes() == QUERIES[1].tobytes()


@pytest.mark.parametrize("method", FEEDBACKS)
def test_where_cosines_compare_the_length_of_a_vector_does_not_matter(method: str) -> None:
    short = moved_queries(method, QUERIES, vectors("cosine"), QUERY, ROW, 0.5)
    long = moved_queries(method, 8 * QUERIES, vectors("cosine"), QUERY, ROW, 0.5)
    np.testing.assert_allclose(unit_length(short), unit_length(long), rtol=1e-5, atol=1e-6)


def test_an_unknown_name_is_told_the_closest_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'rocchio'"):
        moved_queries("rochio", QUERIES, vectors(), QUERY, ROW, 0.5)
