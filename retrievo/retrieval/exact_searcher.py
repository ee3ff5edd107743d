"""Exact search in vectors as a searcher, by one process or by those that torchrun started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from retrievo.retrieval.dense import DenseSearcher
from retrievo.retrieval.distributed import search_batches
from retrievo.retrieval.embeddings import Embeddings, QueryVectors, Vectors
from retrievo.retrieval.exact import scan_size

if TYPE_CHECKING:
    import numpy as np

    from retrievo.retrieval.dense import Encoders
    from retrievo.retrieval.hits import Hits, Queries
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.support.console import Tick


def open_searcher(
    index: IndexFolder,
    encoders: Encoders,
    *,
    batch_size: int | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> ExactSearcher:
    """A searcher in an embeddings folder; memory in bytes."""
    return ExactSearcher(index, encoders, Embeddings(index.path), batch_size, memory, threads)


class ExactSearcher(DenseSearcher):
    """A scan of all vectors for every batch of queries."""

    documents: Vectors
    align, unit = 1, "documents"

    def __init__(
        self,
        index: IndexFolder,
        encoders: Encoders,
        vectors: Vectors,
        batch_size: int | None,
        memory: int | None,
        threads: int | None,
    ):
        super().__init__(index, encoders)
        self.documents, self._batch_size, self._memory, self._threads = vectors, batch_size, memory, threads
        vectors.sparing = memory is not None

    @property
    def vectors(self) -> Vectors:
        """The vectors of all documents."""
        return self.documents

    def prepare(self, queries: Queries, depth: int) -> None:
        """Nothing depends on all queries."""

    def search_batches(
        self, queries: Queries, depth: int, allowed: np.ndarray | None = None, tick: Tick | None = None
    ) -> Iterator[Hits]:
        """The first `depth` documents of every query; see `retrievo.retrieval.exact.search_batches`."""
        return search_batches(
            self.index.path,
            cast("QueryVectors", queries),
            self.vectors,
            depth,
            batch_size=self.batch(depth),
            device=self.encoders.place,
            threads=self._threads,
            allowed=allowed,
            tick=tick,
        )

    def work(self, queries: int, depth: int) -> int:
        """All documents in each scan."""
        return self.vectors.rows * -(-queries // self.batch(depth))

    def batch(self, depth: int) -> int:
        """The queries of a scan."""
        return scan_size(self._batch_size, min(depth, self.vectors.rows), self._memory)
