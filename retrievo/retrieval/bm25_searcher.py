"""BM25 as a searcher."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retrievo.data.corpus import Queries as QueryTable
from retrievo.retrieval.bm25 import BM25Index
from retrievo.retrieval.hits import Hits, IdList
from retrievo.retrieval.jvm import start_jvm
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from retrievo.retrieval.dense import Encoders
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.support.console import Tick

_HITS_AT_ONCE = 1 << 20


def open_searcher(
    index: IndexFolder, encoders: Encoders, *, heap: str | None = None, language: str | None = None, **options: Any
) -> Bm25Searcher:
    """A searcher in a Java machine with this heap; options: k1, b, rm3 and threads of `BM25Index.search`."""
    start_jvm(heap)
    return Bm25Searcher(index, BM25Index(index.path, language), options)


class Bm25Searcher:
    """A BM25 index: Lucene tells ids, so each batch of hits has a space of the documents that were found."""

    align, unit = 1, "queries"

    def __init__(self, index: IndexFolder, opened: BM25Index, options: dict[str, Any]):
        self.index, self._opened, self._options = index, opened, options

    @functools.cached_property
    def documents(self) -> IdList:
        """All documents, by id; they are read from the index when they are first asked for."""
        return IdList(self._opened.ids())

    def encode(self, given: Sequence[str] | QueryTable | Embeddings) -> Sequence[str]:
        """The texts as they are.

        Raises: RetrievoError for vectors.
        """
        if isinstance(given, QueryTable):
            return given.texts
        if isinstance(given, Sequence):
            return given
        raise RetrievoError(given.path, "holds vectors", f"texts for {self.index.path}", "pass the table of queries")

    def prepare(self, queries: Sequence[str], depth: int) -> None:
        """Nothing depends on all queries."""

    def search_batches(
        self, queries: Sequence[str], depth: int, allowed: np.ndarray | None = None, tick: Tick | None = None
    ) -> Iterator[Hits]:
        """At most `depth` documents of every query, in batches of queries; see `BM25Index.search`."""
        size = max(1, _HITS_AT_ONCE // depth)
        for first in range(0, len(queries), size):
            texts = queries[first : first + size]
            hits = self._opened.search(texts, depth, allowed=allowed, progress=tick, **self._options)
            yield hits._replace(query=hits.query + first)

    def work(self, queries: int, depth: int) -> int:
        """The queries."""
        return queries

    def batch(self, depth: int) -> int:
        """Each query is searched for by itself."""
        return 1

    def matches(self, question: str, text: str) -> list[tuple[int, int]]:
        """Spans of the words that match after analysis."""
        return self._opened.matches(question, text)

    def close(self) -> None:
        """Lets go of the files."""
        self._opened.close()
