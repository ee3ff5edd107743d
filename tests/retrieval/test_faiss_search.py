"""Approximate search promises exact scores, the order, and the same answer again; with full effort, exact search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pyarrow as pa
import pytest
from folders import built

from retrievo.data.ordering import exact_cosines, exact_scores, ranked, ranks
from retrievo.retrieval import faiss_search
from retrievo.retrieval.embeddings import Embeddings
from retrievo.retrieval.exact import search_exact
from retrievo.retrieval.faiss_search import Effort, default_effort, recall_of, search, tune
from retrievo.retrieval.hits import Hits, IdList
from retrievo.retrieval.index_types import INDEX_TYPES
from retrievo.support.errors import RetrievoError

pytest.importorskip("faiss")

Make = Callable[..., Embeddings]
DIM, ROWS = 16, 420
TYPES = [name for name, kind in INDEX_TYPES.items() if not kind.exact]
QUERIES = np.random.default_rng(2).standard_normal((70, DIM), dtype=np.float32)  # more than two calls of 32


def vectors(rows: int = ROWS) -> np.ndarray:
    """Each vector three times, of different lengths."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((-(-rows // 3), DIM), dtype=np.float32) * rng.uniform(0.2, 5, (-(-rows // 3), 1))
    return rng.permutation(array.repeat(3, axis=0)[:rows]).astype(np.float16)


def same(one: Hits, other: Hits) -> bool:
    return all(mine.tobytes() == theirs.tobytes() for mine, theirs in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("name", TYPES)
def test_with_full_effort_every_type_finds_what_exact_search_finds(
    embeddings: Make, name: str, similarity: str
) -> None:
    source = embeddings(vectors(), similarity)
    expected = search_exact(QUERIES, source, 20)
    for shards in (1, 3):
        index = built(source, f"index-{shards}", index_type=name, shards=shards)
        assert same(search(index, source, QUERIES, 20, Effort(index.lists or ROWS, ROWS)), expected)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("name", [*TYPES, "IVF8,SQ4"])
def test_scores_are_exact_and_in_order_with_any_effort(embeddings: Make, name: str, similarity: str) -> None:
    source = embeddings(vectors(), similarity)
    index = built(source, index_type=name, shards=2)
    found = search(index, source, QUERIES, 10, default_effort(index, 10))
    score = exact_cosines if similarity == "cosine" else exact_scores
    for query in range(len(QUERIES)):
        own = found.query == query
        assert found.score[own].tobytes() == score(QUERIES[query], source.take(found.row[own])).tobytes()
    assert (ranked(found.query, found.score, source.ids(found.row)) == np.arange(len(found.row))).all()
    assert ranks(found.query).max() <= 10


@pytest.mark.parametrize("name", TYPES)
def test_threads_batches_and_streaming_change_nothing(
    embeddings: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = embeddings(vectors())
    index = built(source, index_type=name, shards=3)
    effort = Effort(4 if index.knob else 0, 40)
    monkeypatch.setattr(faiss_search, "_FAST_PRODUCT", 0)  # calls of 32
    expected = search(index, source, QUERIES, 10, effort, threads=1)
    assert same(search(index, source, QUERIES, 10, effort, threads=2), expected)
    monkeypatch.setattr(faiss_search, "_BATCH_CANDIDATES", 1)
    assert same(search(index, source, QUERIES, 10, effort), expected)
    monkeypatch.setattr(faiss_search, "_is_streamed", lambda index, memory: True)
    assert same(search(index, source, QUERIES, 10, effort, memory=64 << 20), expected)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("name", ["hnsw", "ivf", "ivfpq"])
def test_a_depth_beyond_the_candidates_of_a_shard_keeps_every_promise(
    embeddings: Make, name: str, similarity: str
) -> None:
    """Depth 1,000 of four shards of 300 rows, of which lists and graph give fewer, and FAISS pads the rest with -1."""
    source, depth = embeddings(vectors(1_200), similarity), 1_000
    index = built(source, index_type=name, shards=4)
    assert [index.open_shard(number).ntotal for number in range(4)] == [300] * 4
    effort = replace(default_effort(index, depth), knob=2)  # too little to reach all rows of a shard
    found = search(index, source, QUERIES, depth, effort, threads=1)
    assert same(search(index, source, QUERIES, depth, effort, threads=2), found)
    assert ((found.row >= 0) & (found.row < 1_200)).all()
    score = exact_cosines if similarity == "cosine" else exact_scores
    exact = search_exact(QUERIES, source, 1_200)
    for query in range(len(QUERIES)):
        row = found.row[found.query == query]
        assert len(np.unique(row)) == len(row) <= depth
        assert set(row // 300) == {0, 1, 2, 3}, "a shard gave nothing"
        assert found.score[found.query == query].tobytes() == score(QUERIES[query], source.take(row)).tobytes()
        ranking = exact.row[exact.query == query]
        assert (ranking[np.isin(ranking, row)] == row).all(), "not in the order of exact search"
    assert (np.bincount(found.query) < depth).all(), "nothing was missing, so that no padding was seen"
    whole = replace(effort, knob=max(1_200, index.lists))
    assert same(search(index, source, QUERIES, depth, whole), search_exact(QUERIES, source, depth))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("rows", [2, 5])
def test_padding_never_reaches_a_user(embeddings: Make, name: str, rows: int) -> None:
    source = embeddings(vectors(rows))
    index = built(source, index_type=name)
    found = search(index, source, QUERIES, 1_000, default_effort(index, 1_000))
    assert (found.row >= 0).all()
    assert len(found.row) == rows * len(QUERIES)


def test_without_rescoring_the_scores_are_those_of_the_index(embeddings: Make) -> None:
    source = embeddings(vectors(), "cosine")
    found = search(built(source, index_type="ivf"), None, QUERIES, 10, Effort(10, 0))
    exact = search_exact(QUERIES, source, 10)
    assert np.allclose(found.score, exact.score, atol=1e-5)
    binary = search(built(source, "binary", index_type="binary"), None, QUERIES, 10, Effort(0, 0))
    assert set(binary.score) <= {-float(bits) for bits in range(DIM + 1)}


def test_no_queries_find_nothing(embeddings: Make) -> None:
    source = embeddings(vectors())
    assert not len(search(built(source, index_type="hnsw"), source, QUERIES[:0], 10, Effort(128, 42)).row)


@pytest.mark.parametrize("name", TYPES)
def test_tuning_reaches_the_recall_that_was_asked_for(embeddings: Make, name: str) -> None:
    source = embeddings(vectors())
    index, exact = built(source, index_type=name), search_exact(QUERIES, source, 10)
    tuned = tune(index, source, QUERIES, 10, 0.9, exact)
    assert tuned.reached
    assert tuned.recall >= 0.9
    assert recall_of(search(index, source, QUERIES, 10, tuned.effort), exact) == tuned.recall


@pytest.mark.parametrize("name", TYPES)
def test_tuning_turns_down_the_knob_and_then_the_rescoring_to_the_least_that_reaches_the_target(
    embeddings: Make, name: str
) -> None:
    """To an eighth, as `_smallest` promises: with an eighth less of either, the target is missed."""
    source, target = embeddings(vectors()), 0.8
    index, exact = built(source, index_type=name), search_exact(QUERIES, source, 10)
    knob, rescore = tuned = astuple(tune(index, source, QUERIES, 10, target, exact).effort)

    def reached(knob: int, rescore: int) -> bool:
        return recall_of(search(index, source, QUERIES, 10, Effort(knob, rescore)), exact) >= target

    assert reached(*tuned)
    assert 10 <= rescore < ROWS / 2, "rescoring was left at the most that could be tried"
    assert rescore == 10 or not reached(knob, max(10, rescore - max(1, rescore // 8)))
    assert knob <= 1 or not reached(knob - max(1, knob // 8), ROWS)
    assert bool(knob) == bool(index.knob)


def test_tuning_says_where_the_target_is_out_of_reach(embeddings: Make) -> None:
    source = embeddings(vectors(420))
    index = built(source, index_type="binary")
    exact = search_exact(QUERIES, source, 1)
    tuned = tune(index, source, QUERIES, 1, 1.0, exact)  # 64 + 8 candidates of 420
    assert not tuned.reached
    assert tuned.effort.rescore == 72
    assert tuned.recall < 1


def test_recall_is_the_share_of_the_exact_results() -> None:
    none = np.zeros(0, np.float32)
    exact = Hits(np.array([0, 0, 1, 1]), np.array([5, 6, 5, 7]), none, IdList(pa.array([])))
    found = Hits(np.array([0, 1, 1]), np.array([6, 6, 7]), none, IdList(pa.array([])))
    assert recall_of(found, exact) == 0.5


def test_queries_and_memory_that_do_not_fit_are_refused(embeddings: Make) -> None:
    source = embeddings(vectors())
    index = built(source, index_type="ivf")
    with pytest.raises(RetrievoError, match=r"have shape \(70, 8\); expected \[queries, 16\]"):
        search(index, source, QUERIES[:, :8], 10, Effort(4, 42))
    with pytest.raises(RetrievoError, match="hold a number that is not finite"):
        search(index, source, QUERIES * np.nan, 10, Effort(4, 42))
    with pytest.raises(RetrievoError, match=r"largest shard takes .*; expected at most 3/4 of .*--shards"):
        search(index, source, QUERIES, 10, Effort(4, 42), memory=1_000)
