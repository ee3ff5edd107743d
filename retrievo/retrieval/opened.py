"""An index open for people who write Python: texts in, an Arrow table out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrievo.data.columns import as_type, taken
from retrievo.data.corpus import Corpus, first_found
from retrievo.data.given import PathLike, TextsLike, has_ids, text_list, text_table
from retrievo.data.ordering import ranks
from retrievo.data.tables import QUERIES
from retrievo.models.compute import ComputeOptions
from retrievo.retrieval import searcher
from retrievo.retrieval.dense import Encoders
from retrievo.retrieval.hits import Hits, Queries, joined
from retrievo.support.errors import RetrievoError, UsageError


class Index:
    """An index that is open for search: `open_index` and `build_index` give it.

    opened: what searches. home: a temporary folder that lives as long as this object.
    """

    def __init__(self, opened: searcher.Searcher, home: tempfile.TemporaryDirectory[str] | None = None):
        self.searcher, self._home = opened, home

    @property
    def path(self) -> Path:
        """The folder of the index."""
        return self.searcher.index.path

    def __len__(self) -> int:
        """The number of documents."""
        return self.searcher.documents.rows

    def search(self, queries: TextsLike | np.ndarray, depth: int = 10, *, text: bool = False) -> pa.Table:
        """The first `depth` documents of every query: `query`, `rank` (from 1), `id`, `score`, by query, then rank.

        queries: a list of texts, which `query` repeats; {id: text} or a table of `id` and `text`, whose ids `query`
                 has; or vectors [Q, D] for a dense index, whose row numbers `query` has.
        text:    adds the columns `title` and `text`, from the corpus that the index was made from.

        Raises: RetrievoError for queries that the index can't search for, and where texts are wanted and are gone.
        """
        if depth < 1:
            raise UsageError("depth", f"found {depth}", "at least 1")
        names, asked = self._asked(queries)
        self.searcher.prepare(asked, depth)
        hits = joined(self.searcher.search_batches(asked, depth), self.searcher.documents)
        columns: dict[str, Any] = {
            "query": as_type(taken(names, hits.query), pa.string()),
            "rank": pa.array(ranks(hits.query), pa.int32()),
            "id": as_type(hits.ids(), pa.string()),
            "score": pa.array(hits.score, pa.float32()),
        }
        return pa.table(columns | (self._texts(hits) if text else {}))

    def _asked(self, queries: TextsLike | np.ndarray) -> tuple[pa.Array | pa.ChunkedArray, Queries]:
        """What queries are called, and how this index searches for them."""
        if isinstance(queries, np.ndarray) and queries.dtype.kind == "f":
            return pa.array(map(str, range(len(queries))), pa.string()), self._vectors(queries)
        table = text_table(queries, QUERIES, "search()")
        texts = text_list(table["text"], "search()")
        return table["id" if has_ids(queries) else "text"], self.searcher.encode(texts)

    def _vectors(self, queries: np.ndarray) -> np.ndarray:
        """Raises RetrievoError for vectors that this index can't be searched with."""
        vectors = getattr(self.searcher, "vectors", None)
        if vectors is None:
            raise RetrievoError(self.path, "can't be searched with vectors", "texts, for an index of texts")
        if queries.ndim != 2 or queries.shape[1] != vectors.dim:
            raise RetrievoError("search()", f"found vectors of shape {queries.shape}", f"[queries, {vectors.dim}]")
        return np.ascontiguousarray(queries, np.float32)

    def _texts(self, hits: Hits) -> dict[str, pa.Array]:
        """Titles and texts of the hits.

        Raises: RetrievoError where the corpus is gone or lacks one of them.
        """
        ids = hits.ids().to_pylist()
        found = first_found(map(Corpus, self.searcher.index.corpora()), ids)
        if lost := next((one for one in ids if one not in found), None):
            fix = "search without text=True"
            raise RetrievoError(self.path, f"the text of document '{lost}' is not at hand", None, fix)
        documents = [found[one] for one in ids]
        return {name: pa.array([getattr(one, name) for one in documents], pa.string()) for name in ("title", "text")}

    def close(self) -> None:
        """Lets go of files, and removes a temporary folder."""
        self.searcher.close()
        if self._home is not None:
            self._home.cleanup()


def open_index(
    path: PathLike, *, dtype: str = "auto", device: str = "auto", chunk_tokens: int | str = "auto", **settings: Any
) -> Index:
    """Opens an index or an embeddings folder for search; the model of a dense index is loaded with the first texts.

    dtype, device, chunk_tokens: how queries are encoded, as `retrievo search` has them. settings: of the kind of index:
    k1, b, language, rm3, heap (BM25); nprobe, ef_search, rescore (approximate); batch_size, memory, threads.

    Raises: RetrievoError for a folder that is no index; UsageError for a setting that has no meaning for this one.
    """
    return Index(searcher.open_index(Path(path), Encoders(ComputeOptions(dtype, device, chunk_tokens)), **settings))
