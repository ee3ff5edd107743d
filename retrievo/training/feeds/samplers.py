"""Which queries, positives and negatives a step trains on: pure functions of (seed, epoch, query), numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrievo.data.pair_scores import PairScores
from retrievo.support.errors import RetrievoError

_ORDER, _WALK, _FILL, _HARD, _BALANCE = range(5)  # one stream of random numbers for each purpose
_NONE = np.empty(0, np.int64)


class Ragged(NamedTuple):
    """Lists of integers of different lengths: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray  # [T] int64; of mapped pools int32
    offsets: np.ndarray  # [n + 1] int64

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """From Python lists."""
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
    """A query and its documents of one epoch, as row numbers; its own positive first."""

    query: int
    documents: np.ndarray  # [1 + negatives]


def share(total: int, rank: int, ranks: int) -> slice:
    """The part of a global batch that one rank takes: contiguous, the first ranks one more where it does not divide."""
    small, larger = divmod(total, ranks)
    start = rank * small + min(rank, larger)
    return slice(start, start + small + (rank < larger))


class GroupSampler:
    """Groups of a query, one positive and some negatives; an epoch is one pass over the queries with a positive.

    positives, negatives: documents of each query by row number. negatives_per_query: how many are drawn each epoch.
    hard_negative_ratio: probability that each of them comes from the pool, the others being any documents; None = as
    many as there are (Contriever, Izacard et al. 2021, fine-tuning on MS MARCO: 0.1).
    empty: documents without text [e], which are never filled up with.
    query_clusters: cluster number of each query [n]; batches are then of as few clusters as fill them (`order`).
    balanced_margins, teacher: into how many bins of the teacher's margins negatives fall evenly (`_balanced`).
    Batches are global: `batch_size` queries, the last one of an epoch smaller.
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
        """Steps of one pass over the queries."""
        return -(-len(self.queries) // self.batch_size)

    def position(self, step: int) -> dict[str, int]:
        """Where step 0, 1, ... stands in the data."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return {"epoch": epoch, "batch": batch}

    def order(self, epoch: int) -> np.ndarray:
        """The queries in the order of one epoch; with query clusters batch by batch of as few clusters as fill it.

        Topic-aware sampling (TAS, Hofstaetter et al. 2021, section 3.2) draws a cluster for each batch, with
        replacement. Here each query comes once an epoch: clusters lie one after the other in a random order, their
        queries shuffled, cut into batches, which come in a random order; so n batches of k clusters hold at most
        n + k - 1 pairs of a batch and a topic.
        """
        random = self._random(_ORDER, epoch)
        shuffled = random.permutation(self.queries)
        if self.query_clusters is None:
            return shuffled
        topic = random.permutation(self.query_clusters.max() + 1)[self.query_clusters[shuffled]]
        by_topic = shuffled[np.argsort(topic, kind="stable")]
        whole = len(by_topic) - len(by_topic) % self.batch_size  # the batch that is smaller stays the last one
        batches = random.permutation(by_topic[:whole].reshape(-1, self.batch_size))
        return np.concatenate([batches.reshape(-1), by_topic[whole:]])

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
        """The groups of one rank in the global batch of one step."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        if self._latest[0] != epoch:
            self._latest = (epoch, self.order(epoch))
        queries = self._latest[1][batch * self.batch_size : (batch + 1) * self.batch_size]
        return [self.draw(epoch, query) for query in queries[share(len(queries), rank, ranks)]]

    def draw(self, epoch: int, query: int) -> Draw:
        """The group of one query in one epoch.

        Positives rotate, and negatives follow one seeded permutation of the pool from epoch to epoch, so that epochs
        cover both. A pool smaller than `negatives_per_query` is used whole and filled up with other documents; a query
        without a pool has in-batch negatives only, unless a share says that most negatives are any documents.
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
        """The pool in an order whose every beginning is spread evenly over bins of the teacher's margin.

        TAS-Balanced (Hofstaetter et al. 2021, section 3.2) cuts the range from the smallest to the largest
        t(q, p) - t(q, n) into equal bins, draws a bin uniformly, then a document of it. Here empty bins are left out,
        and all bins have a turn before one has its second, so that a group of several negatives is spread too. t(q, p)
        moves all margins of a group alike, so the bins are those of t(q, n). What the teacher does not know comes last.
        Epochs draw anew: they need not cover the pool.
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
        """How far an epoch goes on in the pool: as many places as it takes, on average."""
        return wanted if self.hard_negative_ratio is None else max(1, round(wanted * self.hard_negative_ratio))

    def _hard(self, epoch: int, query: int, wanted: int) -> int:
        """How many of a group's negatives come from the pool."""
        if self.hard_negative_ratio is None:
            return wanted
        return int((self._random(_HARD, epoch, query).random(wanted) < self.hard_negative_ratio).sum())

    def _others(self, epoch: int, query: int, wanted: int, *excluded: np.ndarray) -> np.ndarray:
        """Distinct documents outside `excluded`; all there are where the corpus is too small."""
        if not wanted:
            return _NONE
        without = np.unique(np.concatenate(excluded))
        wanted = min(wanted, self.documents - len(without))
        if wanted <= 0:
            return _NONE
        # rank r among the documents left, moved past every excluded one below it: no rejection, no copy of the corpus
        ranks = self._random(_FILL, epoch, query).choice(self.documents - len(without), wanted, replace=False)
        return ranks + np.searchsorted(without - np.arange(len(without)), ranks, side="right")

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *(int(part) for part in key)])


def _bins(values: np.ndarray, count: int) -> np.ndarray:
    """Which of `count` equal parts of their range values fall into [n]; the first where all are one."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    width = (high - low) / count or 1.0
    return np.minimum((values - low) / width, count - 1).astype(np.int64)


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How many equal values come before each one [n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.arange(len(values)) - first
    return found
