"""A FAISS index as a searcher."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from retrievo.data.ordering import ranks
from retrievo.retrieval.dense import DenseSearcher, vectors_of
from retrievo.retrieval.exact_searcher import ExactSearcher
from retrievo.retrieval.faiss_index import FaissIndex
from retrievo.retrieval.faiss_search import (
    Effort,
    Shards,
    default_effort,
    queries_of_a_batch,
    queries_of_a_call,
    search_batches,
    tune,
)
from retrievo.retrieval.hits import joined
from retrievo.support import console
from retrievo.support.errors import UsageError

if TYPE_CHECKING:
    from retrievo.retrieval.dense import Encoders
    from retrievo.retrieval.embeddings import QueryVectors, Vectors
    from retrievo.retrieval.hits import Hits, Queries
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.support.console import Tick

_TUNING_QUERIES = 200
_ENOUGH_QUERIES = 1 << 12  # at once: more make no search quicker


class Wanted(NamedTuple):
    """The requested effort of a search, None where it was not given, and the resources that it may use."""

    nprobe: int | None = None
    ef_search: int | None = None
    rescore: int | None = None
    recall_target: float | None = None
    memory: int | None = None
    threads: int | None = None


def open_searcher(
    index: IndexFolder, encoders: Encoders, *, batch_size: int | None = None, **wanted: float | None
) -> FaissSearcher | ExactSearcher:
    """A searcher in an index: an approximate one, or an exact one where the type is exact; wanted: see `Wanted`."""
    opened, given = FaissIndex(index.path), Wanted(**wanted)  # type: ignore[arg-type]
    if opened.kind.exact:
        return ExactSearcher(index, encoders, opened.vectors, batch_size, given.memory, given.threads)
    return FaissSearcher(index, encoders, opened, given)


class FaissSearcher(DenseSearcher):
    """Candidates from an approximate index, exact scores from the embeddings."""

    documents: FaissIndex
    unit = "queries in shards"

    def __init__(self, index: IndexFolder, encoders: Encoders, opened: FaissIndex, wanted: Wanted):
        super().__init__(index, encoders)
        self.documents, self._wanted, self.align = opened, wanted, queries_of_a_call(opened)
        self._effort: Effort | None = None
        self._depth = 0

    @functools.cached_property
    def vectors(self) -> Vectors:
        """The vectors of all documents.

        Raises: RetrievoError where the embeddings are gone, or are not those of the index.
        """
        vectors = vectors_of(self.index, self.documents.rows)
        vectors.sparing = self._wanted.memory is not None
        return vectors

    def prepare(self, queries: Queries, depth: int) -> None:
        """Settles how hard searches try: as asked for, tuned on some of the queries, or the defaults of the type.

        Raises: UsageError for numbers that this index or this depth does not admit.
        """
        if self._effort is not None and self._depth == depth:
            return
        wanted, self._depth = self._wanted, depth
        self._effort = self._asked_for(depth) if wanted.recall_target is None else self._tuned(queries, depth)
        self._shards = Shards(self.documents, self._effort, wanted.memory)

    def search_batches(
        self, queries: Queries, depth: int, allowed: np.ndarray | None = None, tick: Tick | None = None
    ) -> Iterator[Hits]:
        """At most `depth` documents of every query: the first of those that the depth of `prepare` finds.

        See `retrievo.retrieval.faiss_search.search_batches`.
        """
        if self._effort is None or self._depth < depth:
            self.prepare(queries, depth)
        assert self._effort is not None
        deep = depth if self._effort.rescore else max(depth, self._depth)  # FAISS's own scores depend on the depth
        batches = search_batches(
            self.documents,
            self.vectors if self._effort.rescore else None,
            cast("QueryVectors", queries),
            deep,
            self._effort,
            threads=self._wanted.threads,
            memory=self._wanted.memory,
            allowed=allowed,
            shards=self._shards,
            tick=tick,
        )
        return (hits if deep == depth else hits.at(np.flatnonzero(ranks(hits.query) <= depth)) for hits in batches)

    def work(self, queries: int, depth: int) -> int:
        """All queries in each shard."""
        return queries * len(self.documents.files)

    def batch(self, depth: int) -> int:
        """The queries whose candidates memory holds at a time; where shards stay open, not more than it takes."""
        found = max(depth, self._effort.rescore) if self._effort else depth
        most = queries_of_a_batch(self.documents, min(found, self.documents.rows), self._wanted.memory)
        return most if self._wanted.memory else min(most, self.align * -(-_ENOUGH_QUERIES // self.align))

    def _asked_for(self, depth: int) -> Effort:
        wanted, index = self._wanted, self.documents
        effort = default_effort(index, depth)
        knob = getattr(wanted, index.knob) if index.knob else None
        if index.knob == "nprobe" and knob is not None and knob > index.lists:
            raise UsageError("--nprobe", f"found {knob:,}", f"at most {index.lists:,}, the lists of the index")
        rescore = effort.rescore if wanted.rescore is None else wanted.rescore
        if 0 < rescore < depth:
            raise UsageError("--rescore", f"found {rescore:,}", f"0, or at least {depth:,}, the documents wanted")
        return replace(effort, knob=knob or effort.knob, rescore=rescore)

    def _tuned(self, queries: Queries, depth: int) -> Effort:
        target = self._wanted.recall_target
        assert target is not None
        sample = queries[:: -(-len(queries) // _TUNING_QUERIES) or 1]
        exact = ExactSearcher(self.index, self.encoders, self.vectors, None, self._wanted.memory, self._wanted.threads)
        with console.progress("searching exactly", exact.work(len(sample), depth), exact.unit) as tick:
            best = joined(exact.search_batches(sample, depth, tick=tick), self.vectors)
        options = {"threads": self._wanted.threads, "memory": self._wanted.memory}
        tuned = tune(self.documents, self.vectors, sample, depth, target, best, **options)
        measured = f"recall@{depth} {tuned.recall:.4f} on {len(sample):,} queries"
        outcome = f"{self.index.path}: {measured} with {tuned.effort.said(self.documents)}"
        if tuned.reached:
            console.note(outcome)
        else:
            console.warn(f"{outcome}; {target:g} is out of reach of this index")
        return tuned.effort
