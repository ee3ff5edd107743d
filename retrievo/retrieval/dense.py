"""What searchers in vectors have in common: models that encode queries, and feedback."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from retrievo.data.corpus import Queries as QueryTable
from retrievo.data.ordering import flat_strings
from retrievo.models.compute import ComputeOptions
from retrievo.models.model_reference import FIXED_DOCUMENTS, check_same_model, model_record, unchanged_model
from retrievo.retrieval.embeddings import Embeddings, StoredQueries, Vectors, together
from retrievo.retrieval.snippets import same_words
from retrievo.support import console
from retrievo.support.artifact import Input, Manifest, has_manifest
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from pathlib import Path

    from retrievo.models.encoder import Encoder
    from retrievo.retrieval.hits import DocumentSpace, Hits, Queries
    from retrievo.retrieval.index_folder import IndexFolder


class Encoders:
    """The models behind some indexes: each is opened once, and encodes the same texts once."""

    def __init__(self, compute: ComputeOptions | None = None):
        self.compute = compute or ComputeOptions()
        self._opened: dict[Hashable, Encoder] = {}
        self._encoded: dict[Hashable, tuple[Sequence[str], np.ndarray]] = {}  # the last texts of each model

    @property
    def place(self) -> str:
        """The device, with `auto` settled."""
        from retrievo.models.devices import resolve_device

        return resolve_device(self.compute.device)

    def encode(self, index: IndexFolder, texts: Sequence[str]) -> np.ndarray:
        """Vectors [Q, D] of queries by the model that made the embeddings of an index.

        Raises: RetrievoError where that model is gone, or is another one by now.
        """
        documents = index.embeddings_manifest()
        check_role(index.path, documents, "document")
        name, revision = unchanged_model(documents, "--queries EMBEDDINGS of queries by the same model")
        key = (name, revision, documents.config.get("pooling"), documents.config.get("truncate_dim"))
        if key in self._encoded and self._encoded[key][0] is texts:
            return self._encoded[key][1]
        if key not in self._opened:
            self._opened[key] = self._open(*key)
        self._encoded[key] = (texts, self._encode(self._opened[key], texts))
        return self._encoded[key][1]

    def _open(self, name: str, revision: str | None, pooling: str | None, dim: int | None) -> Encoder:
        from retrievo.models.encoder import Encoder
        from retrievo.models.inference import prepared

        encoder = Encoder.load(name, revision, pooling=pooling)
        encoder.truncate(dim)
        return prepared(encoder, self.compute.dtype, self.place)

    def _encode(self, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
        from retrievo.models.tokens import warn_of_texts_without_tokens
        from retrievo.models.vectors import encode_tokens

        rows = encoder.tokenization("query").tokenize(texts)
        warn_of_texts_without_tokens("queries", rows.without_tokens, "query")
        return encode_tokens(encoder, "query", rows.tokens, rows.offsets, self.compute)


class DenseSearcher:
    """The half of a searcher in vectors that does not search.

    documents: the vectors of all documents, or the index that knows their ids; vectors: those of all documents.
    """

    documents: DocumentSpace

    def __init__(self, index: IndexFolder, encoders: Encoders):
        self.index, self.encoders = index, encoders

    @property
    def vectors(self) -> Vectors:
        """The vectors of all documents."""
        raise NotImplementedError

    def encode(self, given: Sequence[str] | QueryTable | Embeddings) -> Queries:
        """Texts by the model of the documents; embeddings as they are, where the same model made them.

        Raises: RetrievoError where the model is gone, or made one of both and not the other.
        """
        if isinstance(given, Embeddings):
            check_comparable(given.path, given.manifest, self.index)
            return StoredQueries(given)
        return self.encoders.encode(self.index, given.texts if isinstance(given, QueryTable) else given)

    def moved(self, queries: Queries, first: Hits, method: str, weight: float) -> np.ndarray:
        """The queries [Q, D], moved by their first documents; those that this index lacks are left out."""
        from retrievo.retrieval.feedback import moved_queries

        query, row = self._own(first)
        return moved_queries(method, queries[:], self.vectors, query, row, weight)

    def _own(self, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
        """Queries and rows [n] of the hits that are documents of this index, by query."""
        if hits.documents is self.documents:
            return hits.query, hits.row
        wanted = hits.ids()
        known = wanted.unique()
        places = pc.index_in(flat_strings(self.documents.ids()), known)  # a table of the few that are wanted
        row_of = np.full(len(known), -1, np.int64)
        row_of[places.drop_null().to_numpy()] = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        row = row_of[pc.index_in(wanted, known).to_numpy()]
        return hits.query[row >= 0], row[row >= 0]

    def matches(self, question: str, text: str) -> list[tuple[int, int]]:
        """Spans of the words of the question: a guide to the eye, since vectors do not tell."""
        return same_words(question, text)

    def close(self) -> None:
        """Memory maps close with the last view of them."""


def check_role(path: Path, manifest: Manifest, role: str) -> None:
    """Raises RetrievoError for vectors of queries that are searched, and for vectors of documents that ask."""
    if manifest.stats["role"] != role:
        raise RetrievoError(path, f"holds {manifest.stats['role']} vectors", f"{role} vectors", "check the paths")


def check_comparable(table: Path, queries: Manifest, index: IndexFolder) -> None:
    """Raises RetrievoError for vectors of one model that would be compared with vectors of another."""
    documents = index.embeddings_manifest()
    for manifest, path, role in ((documents, index.path, "document"), (queries, table, "query")):
        check_role(path, manifest, role)
    if not _trained_against(queries, index):
        check_same_model(table, queries, index.path, documents)
    if "model" not in queries.inputs:
        console.note(f"{table} and {index.path} were imported: that one model made both can't be checked")
    similarities = [manifest.stats["similarity"] for manifest in (queries, documents)]
    if similarities[0] != similarities[1]:
        problem = f"was made for similarity {similarities[0]}, {index.path} for {similarities[1]}"
        console.warn(f"{table}: {problem}, by which is searched")


def _trained_against(queries: Manifest, index: IndexFolder) -> bool:
    """Whether the model of the queries learned to search these very vectors (`train --document-embeddings`)."""
    if "model" not in queries.inputs:
        return False
    try:
        model = queries.input_path("model", "--queries")
    except RetrievoError:  # it was moved, and with it went what it says
        return False
    if not has_manifest(model):
        return False
    if model_record(str(model), None)[1]["model"].fingerprint != queries.inputs["model"]["fingerprint"]:
        return False
    learned = Manifest.read(model).inputs.get(FIXED_DOCUMENTS, {}).get("fingerprint")
    return [Input.of(path).fingerprint for path in index.embeddings()] == [learned]


def vectors_of(index: IndexFolder, rows: int) -> Vectors:
    """The vectors that an approximate index was built of.

    Raises: RetrievoError where the embeddings are gone, or are not those of the index.
    """
    vectors = together([Embeddings(path) for path in index.embeddings()])
    if vectors.rows != rows:
        found = f"its embeddings hold {vectors.rows:,} vectors"
        raise RetrievoError(index.path, found, f"{rows:,}", "build it again")
    return vectors
