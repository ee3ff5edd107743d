"""The vectors of an embeddings folder by row number of the encoded table, whatever order they are stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrievo.data.ids import IdMap
from retrievo.retrieval.embeddings import Embeddings, unit_length
from retrievo.support.artifact import Input
from retrievo.support.errors import RetrievoError


class RowVectors:
    """Memory-mapped vectors by row of a table of texts, matched by id; takes 4 bytes of memory for each row.

    role: 'document' or 'query', the role that the folder must have. needed: rows that must have a vector, None = all.
    Raises: RetrievoError for a folder of the other role, and where a needed row has no vector.
    """

    def __init__(self, path: Path, role: str, ids: IdMap, needed: np.ndarray | None = None):
        self.path, self.input, self.embeddings = path, Input.of(path), Embeddings(path)
        if self.embeddings.role != role:
            raise RetrievoError(path, f"holds {self.embeddings.role} vectors", f"{role} vectors", "check the paths")
        self._place = np.full(len(ids), -1, np.int32)
        first = 0
        for chunk in self.embeddings.ids().chunks:
            rows = ids.rows(chunk)
            known = np.flatnonzero(rows >= 0)
            self._place[rows[known]] = first + known
            first += len(chunk)
        self._check_whole(ids, np.arange(len(ids)) if needed is None else needed)

    def _check_whole(self, ids: IdMap, needed: np.ndarray) -> None:
        missing = needed[self._place[needed] < 0]
        if len(missing):
            first = ids.ids[missing[:1]][0]
            found = f"has no vector of {self.embeddings.role} '{first}', nor of {len(missing) - 1:,} others"
            raise RetrievoError(self.path, found, "one for each", "encode the same table: retrievo encode")

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Float32 vectors [n, D] of these rows, normalized where the folder's similarity is cosine.

        The inner product of two such vectors is their score under the model that made them.
        """
        vectors = self.embeddings.take(self._place[rows]).astype(np.float32)
        return unit_length(vectors) if self.embeddings.similarity == "cosine" else vectors
