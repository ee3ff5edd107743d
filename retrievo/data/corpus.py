"""The corpus and the queries: texts with ids, streamed in order or read by row."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.ids import IdMap
from retrievo.data.options import TITLE_TEMPLATE
from retrievo.data.ordering import flat_strings
from retrievo.data.tables import CORPUS, QUERIES, RowCache, Table
from retrievo.data.text_identity import Identities, identities, own_documents
from retrievo.support.artifact import Input
from retrievo.support.errors import RetrievoError


def fill_template(template: str, title: str, text: str) -> str:
    """Fills a title template; with an empty title, no leading or trailing space remains."""
    return template.format(title=title, text=text).strip()


class Document(NamedTuple):
    """A document's id, title and text."""

    id: str
    title: str
    text: str


class Corpus:
    """Documents with an id, an optional title and a text.

    titles: whether titles count; if not, documents with the same text are copies of each other.
    Raises: RetrievoError where the table is not a corpus.
    """

    def __init__(self, path: Path | str, *, titles: bool = True):
        self.path, self._titles = Path(path), titles
        self.table = Table(self.path, CORPUS)
        self._names = tuple(name for name in ("id", "title", "text") if self.table.has(name))
        self._cache = RowCache(self.table, self._names)

    def __len__(self) -> int:
        return self.table.rows

    @property
    def input(self) -> Input:
        return self.table.input

    @functools.cached_property
    def id_map(self) -> IdMap:
        """The map from document ids to rows; building it checks that no id occurs twice."""
        return IdMap(self.table)

    @functools.cached_property
    def identities(self) -> Identities:
        """The identity of each document: documents with equal identities are copies of each other."""
        found = Identities.of(self.table)
        return found if self._titles else found.without_titles()

    def that_are_queries(self, ids: Sequence[str] | pa.Array, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (query position, document row), [n] each, where the document is the query itself; sorted by query.

        A document is the query if it or its text has the query's identity, or if it has the query's id and its title
        has the query's identity. Equal ids alone are no evidence: many collections number both from 1. Of several
        copies of a document, only one is returned.
        """
        rows = self.id_map.rows(ids)
        return own_documents(self.identities, identities(texts), rows)

    def check_unique_ids(self) -> None:
        """Raises RetrievoError where an id occurs twice, naming it and both rows."""
        _ = self.id_map

    def batches(self, template: str = TITLE_TEMPLATE) -> Iterator[tuple[list[str], list[str]]]:
        """Yields ids and templated texts in table order, a few thousand at a time."""
        for batch in self.table.batches(self._names):
            ids, texts = batch.column("id").to_pylist(), batch.column("text").to_pylist()
            titles = batch.column("title").to_pylist() if "title" in self._names else [""] * len(ids)
            yield ids, [fill_template(template, title, text) for title, text in zip(titles, texts, strict=True)]

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """Returns the documents at these rows."""
        return [Document(found["id"], found.get("title", ""), found["text"]) for found in self._cache.rows(rows)]

    def find(self, ids: Iterable[str]) -> dict[str, Document]:
        """The documents with these ids; an id that the corpus lacks is left out.

        They are read in the order of the table, so that each row group is decoded once.
        """
        rows = self.id_map.rows(list(ids))
        return {document.id: document for document in self.documents(np.unique(rows[rows >= 0]).tolist())}


def first_found(corpora: Iterable[Corpus], ids: Collection[str]) -> dict[str, Document]:
    """The documents with these ids, each from the first corpus that has it; an id that all lack is left out."""
    found: dict[str, Document] = {}
    for corpus in corpora:
        found |= corpus.find(name for name in ids if name not in found)
    return found


class Queries:
    """Queries in memory: ids and texts in table order.

    Raises: RetrievoError where the file is not a query table or an id occurs twice.
    """

    def __init__(self, path: Path):
        self.path = path
        self.table = Table(path, QUERIES)
        columns = self.table.read(["id", "text"])
        self.ids: pa.ChunkedArray = columns.column("id")
        self.texts: list[str] = columns.column("text").to_pylist()
        self._check_unique()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def input(self) -> Input:
        return self.table.input

    def among(self, ids: pa.ChunkedArray) -> Queries:
        """The queries whose id is in `ids`, in table order.

        Raises: RetrievoError where there are none.
        """
        there = pc.is_in(flat_strings(self.ids), value_set=flat_strings(ids).unique())
        found = copy.copy(self)
        found.ids = self.ids.filter(there)
        found.texts = [text for text, kept in zip(self.texts, there.to_pylist(), strict=True) if kept]
        if not found.texts:
            raise RetrievoError(self.path, "holds none of the judged queries", None, "check --queries and --judged")
        return found

    def _check_unique(self) -> None:
        coded = flat_strings(self.ids).dictionary_encode()
        counts = np.bincount(coded.indices.to_numpy(), minlength=1) if len(coded) else np.zeros(1, int)
        if counts.max() > 1:
            twice = coded.dictionary[int(counts.argmax())].as_py()
            raise RetrievoError(self.path, f"query id '{twice}' occurs twice", "each id once", "remove one of them")
