"""Exact search obeys one law: the ordering rule on the exact scores of all documents, however it is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retrievo.data.ordering import exact_cosines, exact_scores, exact_similarities, ranks
from retrievo.retrieval import exact
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.exact import Hits, search_batches, search_exact
from retrievo.support.errors import RetrievoError, UsageError


def in_shards(array: np.ndarray, shards: int = 1, similarity: str = "dot", ids: Sequence[str] | None = None) -> Vectors:
    """An array cut into shards, with ids whose order is not the order of the rows."""
    ids = [f"d{(row * 7919) % 100_003}" for row in range(len(array))] if ids is None else ids
    cuts = [len(array) * shard // shards for shard in range(shards + 1)]
    pairs = list(pairwise(cuts))
    names = [pa.array(ids[first:end], pa.string()) for first, end in pairs]
    return Vectors([array[first:end] for first, end in pairs], names, similarity=similarity)


def brute_force(queries: np.ndarray, vectors: Vectors, depth: int) -> Hits:
    """The law, written down."""
    score = exact_cosines if vectors.similarity == "cosine" else exact_scores
    rows = np.arange(vectors.rows)
    array, ids = vectors.take(rows), [text.encode() for text in vectors.ids().to_pylist()]
    found = []
    for number, query in enumerate(queries.astype(np.float32)):
        scores = score(query, array)
        best = sorted(rows.tolist(), key=lambda row: (scores[row], ids[row]), reverse=True)[:depth]
        found += [(number, row, scores[row]) for row in best]
    query_column, row_column, score_column = zip(*found, strict=True) if found else ((), (), ())
    return Hits(
        np.array(query_column, np.int64), np.array(row_column, np.int64), np.array(score_column, np.float32), vectors
    )


def cut(hits: Hits, depth: int) -> Hits:
    """The first `depth` of every query."""
    return hits.at(np.flatnonzero(ranks(hits.query) <= depth))


def assert_same(found: Hits, expected: Hits) -> None:
    assert found.query.tolist() == expected.query.tolist()
    assert found.row.tolist() == expected.row.tolist()
    assert found.score.tobytes() == expected.score.tobytes()
    assert (found.query.dtype, found.row.dtype, found.score.dtype) == (np.int64, np.int64, np.float32)


def normal(rows: int, dim: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32).astype(dtype)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 256 documents, and room for few candidates, so that small cases take every road."""
    monkeypatch.setattr(exact, "_TILE_VALUES", 1)
    monkeypatch.setattr(exact, "_SPARE_CANDIDATES", 0)
    monkeypatch.setattr(exact, "_RESCORED_ROWS", 100)


# ------------------------------------------------------------------------------- the same result, however computed


@pytest.fixture(scope="module")
def duplicated() -> tuple[np.ndarray, np.ndarray]:
    """8 queries, and 80 documents of 768 dimensions, each 40 times, shuffled, as float16."""
    copies = np.random.default_rng(1).permutation(np.repeat(normal(80, 768), 40, axis=0)).astype(np.float16)
    return normal(8, 768, seed=2), copies


@pytest.fixture(scope="module", params=["dot-float16", "dot-float32", "cosine-float16"])
def duplicated_case(request: pytest.FixtureRequest, duplicated: tuple) -> tuple[np.ndarray, np.ndarray, str, Hits]:
    similarity, dtype = request.param.split("-")
    queries, array = duplicated[0], duplicated[1].astype(dtype)
    return queries, array, similarity, brute_force(queries, in_shards(array, 1, similarity), 50)


@pytest.mark.parametrize("shards", [1, 2, 16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 1_000])
def test_shards_threads_and_batches_change_nothing(
    duplicated_case: tuple, shards: int, threads: int, batch_size: int
) -> None:
    queries, array, similarity, expected = duplicated_case
    found = search_exact(
        queries, in_shards(array, shards, similarity), 50, threads=threads, batch_size=batch_size, device="cpu"
    )
    assert_same(found, expected)


def test_float16_and_float32_storage_of_the_same_values_give_the_same_result(duplicated: tuple) -> None:
    queries, array = duplicated
    half, single = (search_exact(queries, in_shards(array.astype(dtype)), 100) for dtype in ("float16", "float32"))
    assert_same(half, single)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_changes_nothing(duplicated_case: tuple) -> None:
    queries, array, similarity, expected = duplicated_case
    assert_same(search_exact(queries, in_shards(array, 3, similarity), 50, device="cuda"), expected)


def test_selecting_where_the_scores_are_changes_nothing(
    duplicated_case: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, array, similarity, expected = duplicated_case
    monkeypatch.setattr(exact, "_on_cpu", lambda scores: False)  # the road of an accelerator
    assert_same(search_exact(queries, in_shards(array, 3, similarity), 50), expected)


def test_depth_10_is_the_first_10_of_depth_1000(duplicated: tuple) -> None:
    queries, array = duplicated
    deep, flat = (search_exact(queries, in_shards(array, 3), depth) for depth in (1_000, 10))
    assert_same(flat, cut(deep, 10))


def test_a_reduced_matrix_product_precision_chosen_elsewhere_changes_nothing(duplicated: tuple) -> None:
    queries, array = duplicated
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    expected = search_exact(queries, in_shards(array), 50)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(search_exact(queries, in_shards(array), 50, threads=1), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert torch.get_num_threads() == before[1]


# ----------------------------------------------------------------------------------------- the law, on hard cases

NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 2.0**-10, -(2.0**-10), 1 + 2.0**-10, 60_000.0, 6e-8]


def values(dtype: str) -> st.SearchStrategy[float]:
    return st.sampled_from(np.array(NUMBERS, dtype).astype(float).tolist())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_small_case_equals_brute_force(data: st.DataObject) -> None:
    dim, rows, queries = (data.draw(st.integers(*bounds)) for bounds in ((1, 5), (0, 40), (0, 4)))
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    array = data.draw(arrays.arrays(dtype, (rows, dim), elements=values(dtype)))
    wanted = data.draw(arrays.arrays(np.float32, (queries, dim), elements=values("float32")))
    ids = data.draw(st.lists(st.text(min_size=1, max_size=3), min_size=rows, max_size=rows, unique=True))
    vectors = in_shards(array, data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["dot", "cosine"])), ids)
    depth, batch_size = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 4))
    assert_same(search_exact(wanted, vectors, depth, batch_size=batch_size), brute_force(wanted, vectors, depth))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(
    "array",
    [
        normal(1_800, 24),
        -np.abs(normal(1_800, 24)),
        normal(1_800, 24) * np.geomspace(1e-3, 1e3, 1_800, dtype=np.float32)[:, None],
        normal(1_800, 24) * np.where(np.arange(1_800) % 599 == 0, 1e6, 1).astype(np.float32)[:, None],
        (1 + np.random.default_rng(3).integers(-3, 4, (1_800, 24)) * 2.0**-23).astype(np.float32),
        normal(1_800, 24).round(),
        normal(1_800, 1).round(1),
        np.repeat(normal(1, 24), 1_800, axis=0) * np.array([[1], [-1], [0]], np.float32).repeat(600, axis=0),
        normal(1_800, 24) * np.float32(1e-30),
        normal(1_800, 24) * np.float32(1e-41),
        normal(1_800, 24) * np.float32(1e17),
    ],
    ids=[
        "normal",
        "negative",
        "norms",
        "outliers",
        "last bits",
        "integers",
        "D=1",
        "ties",
        "tiny",
        "subnormal",
        "large",
    ],
)
def test_hard_cases_equal_brute_force(array: np.ndarray, similarity: str) -> None:
    queries = np.concatenate([np.abs(normal(3, array.shape[1], seed=5)), np.zeros((1, array.shape[1]), np.float32)])
    queries[1:] = np.concatenate([array[:1] / max(1, np.abs(array[0]).max()), queries[2:]])
    vectors = in_shards(array, 3, similarity)
    expected = brute_force(queries, vectors, 300)
    for depth in (1, 10, 300):
        assert_same(search_exact(queries, vectors, depth), cut(expected, depth))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_identical_documents_are_ordered_by_id_alone(similarity: str) -> None:
    vectors = in_shards(np.repeat(normal(1, 32), 5_000, axis=0), 2, similarity)
    found = search_exact(normal(20, 32, seed=1), vectors, 10)
    best = sorted(vectors.ids().to_pylist(), reverse=True)[:10]
    assert vectors.ids(found.row).to_pylist() == best * 20


def test_scores_are_correctly_rounded_sums() -> None:
    array, queries = normal(200, 9), normal(5, 9, seed=1)
    found = search_exact(queries, in_shards(array), 200)
    for query, row, score in zip(found.query, found.row, found.score, strict=True):
        products = [float(a) * float(b) for a, b in zip(queries[query], array[row], strict=True)]
        assert score == np.float32(math.fsum(products))


def test_depth_beyond_the_corpus_gives_all_documents_once() -> None:
    found = search_exact(normal(3, 4), in_shards(normal(70, 4), 4), 1_000)
    assert found.query.tolist() == np.repeat([0, 1, 2], 70).tolist()
    assert all(sorted(found.row[found.query == query].tolist()) == list(range(70)) for query in range(3))


@pytest.mark.parametrize(("rows", "queries"), [(0, 3), (1, 3), (5, 0), (0, 0)])
def test_nothing_and_one_are_numbers_too(rows: int, queries: int) -> None:
    found = search_exact(normal(queries, 4), in_shards(normal(rows, 4)), 10)
    assert len(found.query) == len(found.row) == len(found.score) == rows * queries


# ------------------------------------------------------------------------------------------------- how it is done


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("dim", [1, 7, 384, 1_024])
def test_scan_scores_stay_within_their_bound(similarity: str, dim: int) -> None:
    spread = np.geomspace(1e-6, 1e6, 500, dtype=np.float32)[:, None]
    array, queries = np.abs(normal(500, dim)) * spread, np.abs(normal(20, dim, seed=1))
    vectors = in_shards(array, 1, similarity)
    scanner = exact._Scanner(queries, vectors, torch.device("cpu"))
    scores, lengths = scanner.scan(0, array)
    score = exact_cosines if similarity == "cosine" else exact_scores
    for number, query in enumerate(queries):
        distance = np.abs(scores[number].numpy().astype(np.float64) - score(query, array))
        assert (distance <= scanner.error(lengths, np.full(500, number))).all()


def test_few_documents_beyond_the_depth_are_rescored(monkeypatch: pytest.MonkeyPatch) -> None:
    rescored = 0

    def counting(similarity: str, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        nonlocal rescored
        rescored += len(vectors)
        return exact_similarities(similarity, query, vectors)

    monkeypatch.setattr(exact, "exact_similarities", counting)
    search_exact(normal(30, 128), in_shards(normal(20_000, 128, seed=1), 3), 100, threads=1)
    assert 30 * 100 <= rescored <= 30 * 110


def test_batches_come_one_by_one_with_progress() -> None:
    done = 0

    def tick(amount: int = 1, status: str | None = None) -> None:
        nonlocal done
        done += amount

    batches = search_batches(normal(5, 4), in_shards(normal(30, 4), 2), 3, batch_size=2, tick=tick)
    assert next(batches).query.tolist() == [0, 0, 0, 1, 1, 1]
    assert done == 30
    assert [sorted(set(hits.query.tolist())) for hits in batches] == [[2, 3], [4]]
    assert done == 90


def test_matrix_products_that_break_the_bound_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_precise(queries: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
        return (queries.to_dense().bfloat16() @ tile.bfloat16().T).float()

    monkeypatch.setattr(torch.nn.functional, "linear", half_precise)
    with pytest.raises(RetrievoError, match="less exact than float32"):
        search_exact(normal(5, 64), in_shards(normal(500, 64, seed=1)), 10)


def test_faiss_finds_the_same_documents() -> None:
    faiss = pytest.importorskip("faiss")
    array, queries = normal(5_000, 64), normal(20, 64, seed=1)
    index = faiss.IndexFlat(64, faiss.METRIC_INNER_PRODUCT)
    index.add(array)
    scores, rows = index.search(queries, 100)
    found = search_exact(queries, in_shards(array, 4), 100)
    assert np.mean([set(found.row[found.query == query]) == set(rows[query]) for query in range(20)]) >= 0.95
    assert np.allclose(found.score.reshape(20, 100), scores, rtol=1e-5)


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_document_vector_that_is_not_finite_is_named(similarity: str, value: float) -> None:
    array = normal(1_000, 4)
    array[700, 2] = value
    vectors = in_shards(array, 2, similarity, [f"d{row}" for row in range(1_000)])
    with pytest.raises(RetrievoError, match=rf"shard 1 row 201 \(id 'd700'\): the vector holds {value}"):
        search_exact(normal(2, 4), vectors, 5)


def test_vectors_too_long_for_float32_scores_are_named_unless_they_are_normalized() -> None:
    array = normal(10, 4)
    array[3] *= 1e20
    with pytest.raises(RetrievoError, match=r"row 4 .*norm"):
        search_exact(normal(2, 4), in_shards(array), 5)
    cosine = in_shards(array, 1, "cosine")
    assert_same(search_exact(normal(2, 4), cosine, 5), brute_force(normal(2, 4), cosine, 5))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_query_vector_that_is_not_finite_or_too_long_is_named(value: float) -> None:
    queries = normal(9, 4)
    queries[7, 0] = value
    with pytest.raises(RetrievoError, match="query vector 8: its norm is"):
        search_exact(queries, in_shards(normal(10, 4)), 5, batch_size=2)


def test_unfit_queries_depths_and_devices_are_refused() -> None:
    vectors = in_shards(normal(10, 4))
    with pytest.raises(RetrievoError, match=r"shape \(2, 5\); expected \[queries, 4\]"):
        search_exact(normal(2, 5), vectors, 5)
    with pytest.raises(RetrievoError, match="depth: found 0"):
        search_exact(normal(2, 4), vectors, 0)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device: found 'cuda'"):
            search_exact(normal(2, 4), vectors, 5, device="cuda")
