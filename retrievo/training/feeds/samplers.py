"""Sampling of the queries, positives and negatives of each step: pure functions of (seed, epoch, query) in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrievo.data.pair_scores import PairScores
from retrievo.support.errors import RetrievoError

_ORDER, _WALK, _FILL, _HARD, _BALANCE = range(5)  # one stream of random numbers for each purpose
_NONE = np.empty(0, np.int64)


class Ragged(NamedTuple):
    """Lists of integers of different lengths: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray  # [T] int64, or int32 in memory-mapped pools
    offsets: np.ndarray  # [n + 1] int64

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """Makes ragged lists from Python lists."""
        lengths = [len(values) for values in lists]
        flat = [value for values in lists for value in values]
        return cls(np.asarray(flat, dtype=np.int64), np.cumsum([0, *lengths], dtype=np.int64))

    def list(self, index: int) -> np.ndarray:
        """List number `index`."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def size(self) -> int:
        """Number of lists n."""
        return len(self.offsets) - 1


class Draw(NamedTuple):
    """A query and its documents in one epoch as row numbers, the positive first."""

    query: int
    documents: np.ndarray  # [1 + negatives]


def share(total: int, rank: int, ranks: int) -> slice:
    """The contiguous part of a global batch that one rank takes; the first ranks take one more if needed."""
    small, larger = divmod(total, ranks)
    start = rank * small + min(rank, larger)
    return slice(start, start + small + (rank < larger))


@dataclass(frozen=True)
class Drawing:
    """How groups of a query, one positive and some negatives are drawn: see `GroupSampler`."""

    batch_size: int
    negatives_per_query: int
    seed: int
    hard_negative_ratio: float | None = None
    balanced_margins: int | None = None


class GroupSampler:
    """Draws groups of a query, one positive and some negatives; an epoch is one pass over the queries with a positive.

    positives, negatives: documents of each query by row number. negatives_per_query: number of negatives in each epoch.
    hard_negative_ratio: probability that a negative is drawn from the pool and not from all documents; None = from the
    pool as far as it reaches (Contriever, Izacard et al. 2021, fine-tuning on MS MARCO: 0.1).
    empty: documents without text [e], which are never drawn as random negatives.
    query_clusters: cluster number of each query [n]; each batch then spans as few clusters as possible (`order`).
    balanced_margins: number of bins of the teacher's margin over which negatives are spread evenly (`_balanced`).
    Batches are global batches of `batch_size` queries; the last one of an epoch may be smaller.
    Raises: RetrievoError where no query has a positive.
    """

    def __init__(
        self,
        positives: Ragged,
        negatives: Ragged,
        *,
        documents: int,
        batch_size: int,
        negatives_per_query: int,
        seed: int,
        hard_negative_ratio: float | None = None,
        empty: np.ndarray = _NONE,
        query_clusters: np.ndarray | None = None,
        balanced_margins: int | None = None,
        teacher: PairScores | None = None,
    ):
        self.hard_negative_ratio, self.empty, self.query_clusters = hard_negative_ratio, empty, query_clusters
        self.balanced_margins, self.teacher = balanced_margins, teacher
        self.positives, self.negatives, self.documents = positives, negatives, documents
        self.batch_size, self.negatives_per_query, self.seed = batch_size, negatives_per_query, seed
        self.queries = np.flatnonzero(np.diff(positives.offsets))
        if not len(self.queries):
            raise RetrievoError("training queries", "none has a relevant document", "at least one", "check --qrels")
        self._latest = (0, self.order(0))

    @property
    def batches_per_epoch(self) -> int:
        """Number of steps of one pass over the queries."""
        return -(-len(self.queries) // self.batch_size)

    def position(self, step: int) -> dict[str, int]:
        """The position of step 0, 1, ... in the data."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return {"epoch": epoch, "batch": batch}

    def order(self, epoch: int) -> np.ndarray:
        """The queries in the order of one epoch; with query clusters, each batch spans as few clusters as possible.

        Topic-aware sampling (TAS, Hofstaetter et al. 2021, section 3.2) draws a cluster for each batch, with
        replacement. Here each query occurs once an epoch: the clusters are concatenated in a random order, with their
        queries shuffled, and cut into batches, which are shuffled. So n batches of k clusters have at most n + k - 1
        pairs of a batch and a cluster in it.
        """
        random = self._random(_ORDER, epoch)
        shuffled = random.permutation(self.queries)
        if self.query_clusters is None:
            return shuffled
        cluster = random.permutation(self.query_clusters.max() + 1)[self.query_clusters[shuffled]]
        by_cluster = shuffled[np.argsort(cluster, kind="stable")]
        whole = len(by_cluster) - len(by_cluster) % self.batch_size  # the smaller batch stays the last one
        batches = random.permutation(by_cluster[:whole].reshape(-1, self.batch_size))
        return np.concatenate([batches.reshape(-1), by_cluster[whole:]])

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
        """The groups of one rank in the global batch of one step."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        if self._latest[0] != epoch:
            self._latest = (epoch, self.order(epoch))
        queries = self._latest[1][batch * self.batch_size : (batch + 1) * self.batch_size]
        return [self.draw(epoch, query) for query in queries[share(len(queries), rank, ranks)]]

    def draw(self, epoch: int, query: int) -> Draw:
        """The group of one query in one epoch.

        Positives rotate, and negatives continue through one seeded permutation of the pool from epoch to epoch, so that
        all of them are used. A pool smaller than `negatives_per_query` is used whole and filled up with random
        documents. A query without a pool has in-batch negatives only, unless `hard_negative_ratio` is set.
        """
        positives = self.positives.list(query)
        pool = np.setdiff1d(self.negatives.list(query).astype(np.int64), positives)  # sorted and unique
        wanted = self.negatives_per_query if len(pool) or self.hard_negative_ratio is not None else 0
        random = self._random(_WALK, query)
        positive = random.permutation(positives)[epoch % len(positives)]
        walked = epoch * self._stride(wanted)
        places = np.arange(walked, walked + min(self._hard(epoch, query, wanted), len(pool)))
        if self.balanced_margins is None:
            chosen = random.permutation(pool)[places % max(1, len(pool))]
        else:
            chosen = self._balanced(epoch, query, pool)[: len(places)]
        fill = self._others(epoch, query, wanted - len(chosen), positives, pool, self.empty)
        return Draw(int(query), np.concatenate([[positive], chosen, fill]).astype(np.int64))

    def _balanced(self, epoch: int, query: int, pool: np.ndarray) -> np.ndarray:
        """Orders the pool so that every prefix of it is spread evenly over bins of the teacher's margin.

        TAS-Balanced (Hofstaetter et al. 2021, section 3.2) divides the range of t(q, p) - t(q, n) into equal bins,
        draws a bin uniformly, and then a document from it. Here empty bins are skipped, and every bin is drawn once
        before any is drawn again, so that several negatives of a group are spread too. Since t(q, p) shifts all margins
        of a group equally, the bins are those of t(q, n). Documents that the teacher did not score come last. Each
        epoch draws independently, so epochs need not cover the pool.
        """
        assert self.teacher is not None, "balanced margins need a teacher"
        assert self.balanced_margins is not None
        random = self._random(_BALANCE, epoch, query)
        shuffled = random.permutation(pool)
        scores = self.teacher.of(query, shuffled)
        known = np.isfinite(scores)
        bins = _bins(scores[known], self.balanced_margins)
        turn = random.permutation(self.balanced_margins)[bins]
        order = np.lexsort((turn, _occurrence(bins)))
        return np.concatenate([shuffled[known][order], shuffled[~known]])

    def _stride(self, wanted: int) -> int:
        """The number of places by which an epoch advances in the pool: as many as it uses on average."""
        return wanted if self.hard_negative_ratio is None else max(1, round(wanted * self.hard_negative_ratio))

    def _hard(self, epoch: int, query: int, wanted: int) -> int:
        """The number of a group's negatives that come from the pool."""
        if self.hard_negative_ratio is None:
            return wanted
        return int((self._random(_HARD, epoch, query).random(wanted) < self.hard_negative_ratio).sum())

    def _others(self, epoch: int, query: int, wanted: int, *excluded: np.ndarray) -> np.ndarray:
        """Draws distinct documents outside `excluded`, or all of them where the corpus has fewer."""
        if not wanted:
            return _NONE
        without = np.unique(np.concatenate(excluded))
        wanted = min(wanted, self.documents - len(without))
        if wanted <= 0:
            return _NONE
        # draws ranks among the remaining documents and shifts them past the excluded ones, without rejection or copies
        ranks = self._random(_FILL, epoch, query).choice(self.documents - len(without), wanted, replace=False)
        return ranks + np.searchsorted(without - np.arange(len(without)), ranks, side="right")

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *(int(part) for part in key)])


def _bins(values: np.ndarray, count: int) -> np.ndarray:
    """The bin of each value [n], of `count` equal bins of their range; the first bin where all values are equal."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    width = (high - low) / count or 1.0
    return np.minimum((values - low) / width, count - 1).astype(np.int64)


def _occurrence(values: np.ndarray) -> np.ndarray:
    """The number of equal values before each value [n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.arange(len(values)) - first
    return found
