"""What a search is asked and what it finds: the one shape that a ranking has in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from retrievo.data.columns import taken
from retrievo.data.ordering import flat_strings


class Queries(Protocol):
    """Queries as one kind of index searches for them: texts, or vectors [Q, D] that may lie on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


class DocumentSpace(Protocol):
    """The documents that the rows of hits number: those of an index, or the few that a search has found."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def ids(self, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The ids of these rows, or of all."""


class IdList:
    """Documents known by their ids alone."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray):
        self._ids = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._ids)

    def ids(self, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The ids of these rows, or of all."""
        return self._ids if rows is None else pa.chunked_array([taken(self._ids, rows)])


class Hits(NamedTuple):
    """The hits of some whole queries as flat columns [H]: by query, then in the order of the ordering rule.

    query: int64, row of the query in its table; row: int64, row of the document in `documents`; score: float32.
    """

    query: np.ndarray
    row: np.ndarray
    score: np.ndarray
    documents: DocumentSpace

    @classmethod
    def of_ids(cls, query: np.ndarray, doc_id: pa.Array | pa.ChunkedArray, score: np.ndarray) -> Hits:
        """Hits whose documents are known by their ids [H] alone."""
        return cls(query, np.arange(len(query)), score, IdList(doc_id))

    def ids(self) -> pa.LargeStringArray:
        """The ids [H] of the documents, which are wanted where something is written, shown or joined."""
        whole = isinstance(self.documents, IdList) and self.documents.rows == len(self.row)
        if whole and (self.row == np.arange(len(self.row))).all():
            return flat_strings(self.documents.ids())
        return flat_strings(self.documents.ids(self.row))

    def at(self, places: np.ndarray) -> Hits:
        """The hits at these places."""
        return Hits(self.query[places], self.row[places], self.score[places], self.documents)


def joined(batches: Iterable[Hits], documents: DocumentSpace | None = None) -> Hits:
    """The hits of all batches as one, whose documents are those of the batches where these have the same, else ids.

    documents: those of the result where there are no batches; default none.
    """
    found = list(batches)
    if not found:
        space = IdList(pa.array([], pa.string())) if documents is None else documents
        return Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), space)
    query, row, score = (np.concatenate([hits[column] for hits in found]) for column in range(3))
    if all(hits.documents is found[0].documents for hits in found):
        return Hits(query, row, score, found[0].documents)
    return Hits.of_ids(query, pa.concat_arrays([hits.ids() for hits in found]), score)
