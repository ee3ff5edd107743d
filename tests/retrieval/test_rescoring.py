"""Of the candidates, those of the result are kept, with exact scores; vectors of any length."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from retrievo.data.ordering import exact_cosines, exact_scores
from retrievo.retrieval import rescoring
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.rescoring import rescored

QUERIES, ROWS, DIM = 5, 400, 24
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((ROWS, DIM), np.float32)
LENGTHS = {
    "normal": np.ones(ROWS),
    "many lengths": np.geomspace(1e-3, 1e3, ROWS),
    "outliers": np.where(np.arange(ROWS) % 59 == 0, 1e6, 1),
    "tiny": np.full(ROWS, 1e-30),
    "subnormal": np.full(ROWS, 1e-41),
    "large": np.full(ROWS, 1e17),
    "zeros among them": np.arange(ROWS) % 3,
}


def as_vectors(array: np.ndarray, similarity: str) -> Vectors:
    ids = pa.array([f"d{row}" for row in range(len(array))])
    cut = len(array) // 3
    return Vectors([array[:cut], array[cut:]], [ids[:cut], ids[cut:]], similarity=similarity)


def candidates(count: int, missing: int) -> np.ndarray:
    """Rows of each query in any order, and -1 at the end where there are no more."""
    row = np.stack([RNG.permutation(ROWS)[:count] for _ in range(QUERIES)])
    row[1::2, count - missing :] = -1
    return row


def found_by(queries: np.ndarray, vectors: Vectors, row: np.ndarray, depth: int, threads: int = 1) -> list[dict]:
    """Row -> score, for each query."""
    with ThreadPoolExecutor(threads) as pool:
        hits = rescored(queries, vectors, row, depth, pool, threads)
    assert (np.diff(hits.query) >= 0).all()
    return [
        dict(zip(hits.row[own].tolist(), hits.score[own].tolist(), strict=True))
        for own in (hits.query == query for query in range(len(queries)))
    ]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("depth", [1, 7, 300])
def test_every_document_of_the_result_is_kept_with_its_exact_score(
    lengths: np.ndarray, similarity: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = NORMAL * lengths.astype(np.float32)[:, None]
    array[100:110] = array[100]  # ties
    vectors = as_vectors(array, similarity)
    queries = np.concatenate([NORMAL[: QUERIES - 1], np.zeros((1, DIM), np.float32)])
    row = candidates(250, 60)
    score = exact_cosines if similarity == "cosine" else exact_scores
    monkeypatch.setattr(rescoring, "_BLOCK_ROWS", 600)  # two queries at a time
    for query, kept in enumerate(found_by(queries, vectors, row, depth)):
        exact = dict(zip(row[query].tolist(), score(queries[query], array[row[query]]).tolist(), strict=True))
        exact.pop(-1, None)
        assert all(exact[at] == value for at, value in kept.items())
        best = sorted(exact.values(), reverse=True)[:depth]
        assert {at for at, value in exact.items() if value >= best[-1]} <= set(kept)


def test_most_candidates_need_no_exact_score() -> None:
    array = NORMAL.astype(np.float16)
    kept = found_by(NORMAL[:QUERIES], as_vectors(array, "cosine"), candidates(250, 0), 10)
    assert [len(found) for found in kept] == [10] * QUERIES


def test_threads_change_nothing() -> None:
    vectors, row = as_vectors(NORMAL, "dot"), candidates(100, 20)
    alone = found_by(NORMAL[:QUERIES], vectors, row, 10)
    assert found_by(NORMAL[:QUERIES], vectors, row, 10, threads=8) == alone


def test_no_candidates_and_no_queries_give_nothing() -> None:
    vectors = as_vectors(NORMAL, "dot")
    assert found_by(NORMAL[:2], vectors, np.empty((2, 0), np.int64), 10) == [{}, {}]
    assert found_by(NORMAL[:2], vectors, np.full((2, 3), -1), 10) == [{}, {}]
    assert found_by(NORMAL[:0], vectors, np.empty((0, 3), np.int64), 10) == []
