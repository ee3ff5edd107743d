"""Clusters of queries by k-means, with the same result on any number of threads, and without FAISS.

As in exact search, float32 scores with an error bound give the centers that may be nearest; where there are several,
exact scores decide. The means are float64 sums in a fixed order. A resumed run, or one with another number of
processes, therefore finds exactly the same clusters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retrievo.data.cache import cached
from retrievo.data.ordering import exact_scores
from retrievo.retrieval.roundoff import ErrorBound
from retrievo.support import console
from retrievo.training.feeds.row_vectors import RowVectors

FORMAT = 1
ROUNDS = 20
_ROWS = 1 << 13  # vectors in memory at a time

Read = Callable[[np.ndarray], np.ndarray]


def cluster_queries(vectors: RowVectors, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each of these rows [n], from 0; computed once for all processes and kept in the user's cache."""

    def build(folder: Path) -> None:
        with console.progress("clustering queries", ROUNDS, "rounds") as tick:
            found = k_means(lambda numbers: vectors.of(rows[numbers]), len(rows), count, seed=seed, tick=tick)
        np.save(folder / "query_clusters.npy", found)

    key = hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()
    folder = cached(
        f"query-clusters-{FORMAT}/{vectors.input.fingerprint}-{key}-{count}-{seed}", build, [vectors.input.path]
    )
    clusters: np.ndarray = np.load(folder / "query_clusters.npy")
    return clusters


def k_means(read: Read, rows: int, clusters: int, *, seed: int, tick: console.Tick | None = None) -> np.ndarray:
    """The cluster of each of N vectors [N] int64, from 0, by Lloyd's algorithm, which minimizes sum |x - c|^2.

    The algorithm starts from `clusters` vectors drawn with the seed and ends when no assignment changes, after at most
    20 rounds (FAISS: 25). A cluster that loses its last vector keeps its center. TAS (Hofstaetter et al. 2021, section
    3.2) clusters queries this way.

    read: gives the float32 vectors [n, D] of given numbers 0 ... N - 1. tick: called after each round.
    Raises: ValueError where there are more clusters than vectors.
    """
    start = np.random.default_rng(seed).choice(rows, clusters, replace=False)
    centers, found = read(np.sort(start)), np.full(rows, -1)
    for _ in range(ROUNDS):
        before, found = found, np.empty(rows, np.int64)
        sums, counts = np.zeros(centers.shape), np.zeros(clusters, np.int64)
        for first in range(0, rows, _ROWS):
            vectors = read(np.arange(first, min(first + _ROWS, rows)))
            found[first : first + len(vectors)] = nearest = _nearest(vectors, centers)
            _add(sums, counts, nearest, vectors)
        if tick:
            tick()
        if np.array_equal(found, before):
            break
        centers = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers).astype(np.float32)
    return found


def _nearest(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """The nearest center of each vector [n]: argmax (x . c - |c|^2 / 2), the first one in case of a tie."""
    halves = np.square(centers, dtype=np.float64).sum(axis=1, keepdims=True) / 2
    longer = np.hstack([centers, -halves]).astype(np.float32)  # [K, D + 1]
    queries = np.hstack([vectors, np.ones((len(vectors), 1), np.float32)])  # [n, D + 1]
    norms, lengths = (np.linalg.norm(side.astype(np.float64), axis=1) for side in (queries, longer))
    scores = _products(queries, longer)  # [n, K]
    unsure = 2 * ErrorBound(norms, longer.shape[1], "dot")(lengths.max(keepdims=True))  # [n]
    reaching = scores >= (scores.max(axis=1) - unsure)[:, None]
    nearest: np.ndarray = scores.argmax(axis=1)
    for row in np.flatnonzero(reaching.sum(axis=1) > 1):
        candidates = np.flatnonzero(reaching[row])
        nearest[row] = candidates[exact_scores(queries[row], longer[candidates]).argmax()]
    return nearest


def _products(queries: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Float32 inner products [n, K]; their last bits depend on the number of threads."""
    products: np.ndarray = queries @ centers.T
    return products


def _add(sums: np.ndarray, counts: np.ndarray, nearest: np.ndarray, vectors: np.ndarray) -> None:
    """Adds vectors to the sums [K, D] and counts [K] of their clusters, in a fixed order."""
    order = np.argsort(nearest, kind="stable")
    present, starts = np.unique(nearest[order], return_index=True)
    sums[present] += np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    counts += np.bincount(nearest, minlength=len(counts))
