"""Exact scores of an approximate search's candidates, at the price of float32 scores for most of them.

As in exact search: a float32 score is wrong by at most a known bound, so only candidates that reach the K-th best of
what is certain are scored exactly.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from retrievo.data.ordering import exact_similarities
from retrievo.retrieval.embeddings import Vectors, unit_length
from retrievo.retrieval.hits import Hits, joined
from retrievo.retrieval.roundoff import ErrorBound, norm_below

_BLOCK_ROWS = 1_024  # vectors copied at a time, which stay in a core's level-2 cache
_SHORTEST = 2.0**-50  # the norm of a vector whose squares are within float32's normal range


def rescored(
    queries: np.ndarray, vectors: Vectors, row: np.ndarray, depth: int, pool: ThreadPoolExecutor, threads: int
) -> Hits:
    """Of the candidates [Q, n] of queries [Q, D], those that may be among the first `depth`, with their exact scores.

    By query, in no order else. row: rows of the vectors, -1 where a query has no more candidates.
    """
    rescorer = _Rescorer(queries, vectors, depth)
    parts = [part for part in np.array_split(np.arange(len(queries)), threads) if len(part)]
    return joined(pool.map(lambda part: rescorer.part(row, part[0], part[-1] + 1), parts), vectors)


class _Rescorer:
    """The queries of a search and what their float32 scores may be wrong by."""

    def __init__(self, queries: np.ndarray, vectors: Vectors, depth: int):
        self.queries, self.vectors, self.depth = queries, vectors, depth
        self.cosine = vectors.similarity == "cosine"
        self.asked = unit_length(queries) if self.cosine else queries
        norms = np.linalg.norm(self.asked.astype(np.float64), axis=1)
        self.error = ErrorBound(norms, vectors.dim, vectors.similarity)

    def part(self, row: np.ndarray, first: int, end: int) -> Hits:
        """The hits of the queries from `first` to `end`, some of them at a time."""
        count = row.shape[1]
        step = min(end - first, max(1, _BLOCK_ROWS // max(1, count)))
        buffer = torch.empty(step * count, self.vectors.dim)
        starts = range(first, end, step)
        return joined((self._block(row[at : min(at + step, end)], at, buffer) for at in starts), self.vectors)

    def _block(self, row: np.ndarray, first: int, buffer: torch.Tensor) -> Hits:
        """The hits of the queries from `first` on, one for each row of candidates."""
        stored = torch.from_numpy(self.vectors.take(np.maximum(row, 0).ravel()))
        # torch widens float16 twenty times as fast as numpy
        vectors = buffer[: row.size].copy_(stored).numpy().reshape(*row.shape, self.vectors.dim)
        query, place = np.nonzero(self._reaching(vectors, row, slice(first, first + len(row))))
        score = exact_similarities(self.vectors.similarity, self.queries[first + query], vectors[query, place])
        return Hits(query + first, row[query, place], score, self.vectors)

    def _reaching(self, vectors: np.ndarray, row: np.ndarray, queries: slice) -> np.ndarray:
        """Whether the exact score of a candidate, [q, n], may reach the K-th best of its query."""
        exists = row >= 0
        if row.shape[1] <= self.depth:
            return exists
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            score = np.einsum("qnd,qd->qn", vectors, self.asked[queries])  # of one thread, unlike BLAS
            length = np.sqrt(np.einsum("qnd,qnd->qn", vectors, vectors))
            unsure = length < _SHORTEST
            if self.cosine:
                score, length = score / length, np.ones_like(length)
            error = self.error((length + norm_below(vectors.shape[2])).T, queries).T
        unsure |= ~np.isfinite(score) | ~np.isfinite(error)
        score[unsure], error[unsure] = 0, np.inf
        certain = np.where(exists, score - error, -np.inf)
        kth = np.partition(certain, row.shape[1] - self.depth, axis=1)[:, -self.depth]
        possible: np.ndarray = exists & (score + error >= kth[:, None])
        return possible
