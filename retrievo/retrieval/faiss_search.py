"""Search in approximate FAISS shards: candidates from the index, exact scores and the order from the embeddings.

The result is a function of index, queries, depth and effort. FAISS scores change in their last bits with the queries
that share a call and with the threads that share them, so every call has as many queries and one thread; threads take
calls. Their OpenMP pools stay at one thread too, so that faiss and torch do not wait for each other's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from retrievo.data.ordering import first_ranked, order_of_candidates
from retrievo.retrieval.embeddings import QueryVectors, Vectors, unit_length
from retrievo.retrieval.faiss_index import Faiss, FaissIndex, load_faiss
from retrievo.retrieval.hits import Hits, joined
from retrievo.retrieval.index_types import EF_SEARCH, PROBED_SHARE
from retrievo.retrieval.rescoring import rescored
from retrievo.support.console import Tick
from retrievo.support.errors import RetrievoError

_CALL, _LONGEST_CALL = 32, 1_024  # queries
_FAST_PRODUCT = 1 << 17  # queries x D: from there on the BLAS that faiss brings takes half the time for the centroids
_BATCH_CANDIDATES = 1 << 22  # queries x candidates held at a time, some 30 bytes each
_CANDIDATE_BYTES = 48  # with the copies of a merge
_SPARE = 8  # candidates beyond the depth, where FAISS's scores are those of the vectors but for roundings


@dataclass(frozen=True)
class Effort:
    """How hard an approximate search tries.

    knob:    lists read for a query (`nprobe`), or candidates followed in the graph (`ef_search`); 0 without either.
    rescore: candidates that get their exact scores from the embeddings; 0 keeps the scores of the index.
    """

    knob: int
    rescore: int

    def said(self, index: FaissIndex) -> str:
        """As flags."""
        flag = f"--{index.knob.replace('_', '-')} {self.knob} " if index.knob else ""
        return f"{flag}--rescore {self.rescore}"


def default_effort(index: FaissIndex, depth: int) -> Effort:
    """1 / 32 of the lists and at least 8; `ef_search` 128, or the candidates; rescored as many as the type needs."""
    rescore = index.kind.rescored * depth + _SPARE
    knobs = {"nprobe": min(index.lists, max(8, index.lists // PROBED_SHARE)), "ef_search": max(EF_SEARCH, rescore)}
    return Effort(knobs[index.knob] if index.knob else 0, rescore)


def search(
    index: FaissIndex, vectors: Vectors | None, queries: np.ndarray, depth: int, effort: Effort, **options: Any
) -> Hits:
    """The documents of all queries; see `search_batches`."""
    return joined(search_batches(index, vectors, queries, depth, effort, **options), index)


def search_batches(
    index: FaissIndex,
    vectors: Vectors | None,
    queries: QueryVectors,
    depth: int,
    effort: Effort,
    *,
    threads: int | None = None,
    memory: int | None = None,
    allowed: np.ndarray | None = None,
    shards: Shards | None = None,
    tick: Tick | None = None,
) -> Iterator[Hits]:
    """At most `depth` documents of every query [Q, D], under the ordering rule on exact scores, in batches of queries.

    vectors: those the index was built from, in its order; None where `effort.rescore` is 0: then the scores are the
             index's own (of `binary`: minus the Hamming distance).
    memory:  bytes for shards and candidates; shards that do not fit together are read one after another.
    allowed: bool [N], which documents may be found; default all.
    shards:  those of the index, opened with this effort before; default: they are opened for this search.
    tick:    called with the progress, in queries x shards.

    Raises: RetrievoError where dimensions differ, a vector of a query is not finite, a shard exceeds the memory, or
    this type of index can't search in some of its documents.
    """
    if queries.ndim != 2 or queries.shape[1] != index.dim:
        raise RetrievoError("queries", f"have shape {queries.shape}", f"[queries, {index.dim}], as the documents have")
    found = min(max(depth, effort.rescore), index.rows)
    shards = shards or Shards(index, effort, memory)
    size = queries_of_a_batch(index, found, memory)
    threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for first in range(0, len(queries), size):
            batch = np.ascontiguousarray(queries[first : first + size], np.float32)
            if not np.isfinite(batch).all():
                raise RetrievoError("queries", "hold a number that is not finite", None, "encode them again")
            score, row = _candidates(shards, batch, found, allowed, pool, tick)
            if effort.rescore:
                assert vectors is not None
                hits = rescored(batch, vectors, row, depth, pool, threads)
            else:
                query, place = np.nonzero(row >= 0)
                hits = Hits(query, row[query, place], score[query, place], index)
            order = first_ranked(hits.query, hits.score, index.ids(hits.row), depth)
            yield Hits(hits.query[order] + first, hits.row[order], hits.score[order], index)


def queries_of_a_call(index: FaissIndex) -> int:
    """The queries of each call of FAISS: more where there are lists, to make the product with their centroids fast."""
    if not index.lists:
        return _CALL
    enough = math.ceil(_FAST_PRODUCT / (index.dim * _CALL)) * _CALL
    return min(max(_CALL, enough), _LONGEST_CALL)


def queries_of_a_batch(index: FaissIndex, found: int, memory: int | None) -> int:
    """The number of queries, in whole calls, whose candidates fit in memory at a time."""
    room, call = _BATCH_CANDIDATES if memory is None else memory // 4 // _CANDIDATE_BYTES, queries_of_a_call(index)
    return max(call, room // max(1, found) // call * call)


def _is_streamed(index: FaissIndex, memory: int | None) -> bool:
    """Whether shards must take turns.

    Raises: RetrievoError where one of them alone is too large.
    """
    if memory is None:
        return False
    sizes = [file.stat().st_size for file in index.files]
    if max(sizes) > memory * 3 // 4:
        found = f"its largest shard takes {max(sizes) / 2**20:,.0f} MiB"
        fix = "pass more --memory, or build it with more --shards"
        raise RetrievoError(index.path, found, f"at most 3/4 of {memory / 2**20:,.0f} MiB", fix)
    return sum(sizes) > memory * 3 // 4


class Shards:
    """The shards of an index, opened once or, where memory is short, one at a time, with their knob set.

    Raises: RetrievoError where one of them alone exceeds the memory.
    """

    def __init__(self, index: FaissIndex, effort: Effort, memory: int | None = None):
        self.index, self.effort, self.kept = index, effort, not _is_streamed(index, memory)
        self._open: dict[int, Faiss] = {}

    def __iter__(self) -> Iterator[Faiss]:
        for number in range(len(self.index.files)):
            shard = self._open.get(number) or self._opened(number)
            if self.kept:
                self._open[number] = shard
            yield shard

    def _opened(self, number: int) -> Faiss:
        shard = self.index.open_shard(number, mapped=self.kept)
        if self.index.knob:
            name = {"nprobe": "nprobe", "ef_search": "efSearch"}[self.index.knob]
            load_faiss().ParameterSpace().set_index_parameter(shard, name, self.effort.knob)
        return shard


def _candidates(
    shards: Shards,
    queries: np.ndarray,
    count: int,
    allowed: np.ndarray | None,
    pool: ThreadPoolExecutor,
    tick: Tick | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [Q, count] of the best by the scores of the index over all shards; row -1 where there is none."""
    asked = unit_length(queries) if shards.index.similarity == "cosine" else queries
    best, origin = None, 0
    for shard in shards:
        own = None if allowed is None else allowed[origin : origin + shard.ntotal]
        score, row = _search_shard(shards, shard, asked, min(count, shard.ntotal), own, pool)
        row[row >= 0] += origin
        best = _merged(best, (score, row), count) if best else (score, row)
        origin += shard.ntotal
        if tick:
            tick(len(queries))
    return best or _nothing(len(queries))


def _search_shard(
    shards: Shards, shard: Faiss, queries: np.ndarray, count: int, allowed: np.ndarray | None, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [Q, count], higher is better, and rows [Q, count] of one shard; -1 where it has no more."""
    faiss, at_once = load_faiss(), queries_of_a_call(shards.index)
    chosen = {} if allowed is None else {"params": _only(shards, shard, allowed)}

    def call(first: int) -> tuple[np.ndarray, np.ndarray]:
        faiss.omp_set_num_threads(1)  # of this thread
        score, row = shard.search(queries[first : first + at_once], count, **chosen)
        return score, row

    if not count:
        return _nothing(len(queries))
    parts = list(pool.map(call, range(0, len(queries), at_once)))
    score, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    return (score if shard.metric_type == faiss.METRIC_INNER_PRODUCT else -score), row


def _only(shards: Shards, shard: Faiss, allowed: np.ndarray) -> Faiss:
    """FAISS's parameters of a search in the allowed [n] documents of a shard, with the knob where it stands.

    Raises: RetrievoError for a type of index that has none.
    """
    faiss, knob = load_faiss(), shards.effort.knob
    inner = faiss.downcast_index(shard.index) if isinstance(shard, faiss.IndexPreTransform) else shard
    chosen = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if isinstance(inner, faiss.IndexIVF):
        found = faiss.SearchParametersIVF(sel=chosen, nprobe=knob)
    elif isinstance(inner, faiss.IndexHNSW):
        found = faiss.SearchParametersHNSW(sel=chosen, efSearch=knob)
    elif isinstance(inner, faiss.IndexScalarQuantizer | faiss.IndexFlat):
        found = faiss.SearchParameters(sel=chosen)
    else:
        problem = f"is of type '{shards.index.type}', which FAISS can't search in some of its documents only"
        raise RetrievoError(shards.index.path, problem, "another type of index, or the embeddings themselves")
    return found if inner is shard else faiss.SearchParametersPreTransform(index_params=found)


def _nothing(queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of no candidates."""
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def _merged(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best of two lists of scores and rows, in order."""
    score, row = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    score = np.where(row < 0, np.float32(-np.inf), score)
    order = order_of_candidates(score, row)[:, :count]
    return np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1)


@dataclass(frozen=True)
class Tuned:
    """The least effort that reached the target on a sample, or the most that could be tried."""

    effort: Effort
    recall: float
    reached: bool


def tune(
    index: FaissIndex, vectors: Vectors, queries: np.ndarray, depth: int, target: float, exact: Hits, **options: Any
) -> Tuned:
    """Turns the knob up until recall@depth reaches the target with many candidates rescored, then rescores fewer.

    recall@K = |found and exact| / |exact|, averaged over the queries [Q, D]; exact: their exact results.
    """
    most = min(index.rows, 64 * depth + _SPARE)
    knobs = {"nprobe": index.lists, "ef_search": max(most, EF_SEARCH)}
    limit = knobs[index.knob] if index.knob else 0

    def recall(effort: Effort) -> float:
        return recall_of(search(index, vectors, queries, depth, effort, **options), exact)

    effort = Effort(_smallest(lambda knob: recall(Effort(knob, most)) >= target, limit), most)
    reached = recall(effort) >= target
    if reached:
        rescore = _smallest(lambda count: recall(replace(effort, rescore=count)) >= target, most, least=depth)
        effort = replace(effort, rescore=rescore)
    return Tuned(effort, recall(effort), reached)


def _smallest(good: Callable[[int], bool], limit: int, least: int = 1) -> int:
    """The least value that is good, to an eighth of it, where larger ones are too; the limit where none below it is."""
    value, bad = min(least, limit), min(least, limit) - 1
    while value < limit and not good(value):
        value, bad = min(2 * value, limit), value
    while value - bad > max(1, value // 8):
        middle = (value + bad) // 2
        value, bad = (middle, bad) if good(middle) else (value, middle)
    return value


def recall_of(found: Hits, exact: Hits) -> float:
    """The share of the exact results that was found; 1 where there are none."""
    pairs = [hits.query.astype(np.int64) << 32 | hits.row for hits in (found, exact)]
    return float(np.isin(pairs[1], pairs[0]).mean()) if len(pairs[1]) else 1.0
