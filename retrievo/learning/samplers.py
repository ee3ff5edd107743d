"""Which queries, positives and negatives a step trains on: pure functions of (seed, epoch, query), numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrievo.support.errors import RetrievoError

_ORDER, _WALK, _FILL, _HARD = range(4)  # one stream of random numbers for each purpose


class Ragged(NamedTuple):
    """Lists of integers of different lengths: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray  # [T] int64
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
    hard_share: chance of each of them to come from the pool, the others being any documents; None = as many as there
    are (Contriever, Izacard et al. 2021, fine-tuning on MS MARCO: 0.1).
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
        hard_share: float | None = None,
    ):
        self.hard_share = hard_share
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
        """The queries in the order of one epoch."""
        return self._random(_ORDER, epoch).permutation(self.queries)

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
        pool = np.setdiff1d(self.negatives.list(query), positives)  # sorted and unique
        wanted = self.negatives_per_query if len(pool) or self.hard_share is not None else 0
        random = self._random(_WALK, query)
        positive = random.permutation(positives)[epoch % len(positives)]
        places = np.arange(epoch * wanted, epoch * wanted + min(self._hard(epoch, query, wanted), len(pool)))
        chosen = random.permutation(pool)[places % max(1, len(pool))]
        fill = self._others(epoch, query, wanted - len(chosen), np.union1d(positives, pool))
        return Draw(int(query), np.concatenate([[positive], chosen, fill]).astype(np.int64))

    def _hard(self, epoch: int, query: int, wanted: int) -> int:
        """How many of a group's negatives come from the pool."""
        if self.hard_share is None:
            return wanted
        return int((self._random(_HARD, epoch, query).random(wanted) < self.hard_share).sum())

    def _others(self, epoch: int, query: int, wanted: int, without: np.ndarray) -> np.ndarray:
        """Distinct documents outside `without`; all there are where the corpus is too small."""
        wanted = min(wanted, self.documents - len(without))
        if wanted <= 0:
            return np.empty(0, dtype=np.int64)
        # rank r among the documents left, moved past every excluded one below it: no rejection, no copy of the corpus
        ranks = self._random(_FILL, epoch, query).choice(self.documents - len(without), wanted, replace=False)
        return ranks + np.searchsorted(without - np.arange(len(without)), ranks, side="right")

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *(int(part) for part in key)])
