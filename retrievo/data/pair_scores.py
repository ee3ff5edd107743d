"""Scores of (query, document) pairs by row number, such as a teacher's scores."""

from __future__ import annotations

import numpy as np


class PairScores:
    """Scores of R pairs, in 12 bytes a pair; of a pair that occurs more than once, the first score counts.

    query, document: row numbers [R]; pairs with a negative row, which stands for an unknown id, are skipped.
    documents: number of documents in the corpus.
    """

    def __init__(self, query: np.ndarray, document: np.ndarray, score: np.ndarray, documents: int):
        self._documents = documents
        known = (query >= 0) & (document >= 0)
        self._pairs, first = np.unique(query[known].astype(np.int64) * documents + document[known], return_index=True)
        self._scores = score[known][first].astype(np.float32)

    def of(self, query: np.ndarray | int, document: np.ndarray) -> np.ndarray:
        """The float32 scores [n] of pairs; NaN where a pair has no score."""
        wanted = query * np.int64(self._documents) + document
        if not len(self._pairs):
            return np.full(wanted.shape, np.nan, np.float32)
        place = np.searchsorted(self._pairs, wanted).clip(max=len(self._pairs) - 1)
        return np.where((self._pairs[place] == wanted) & (document >= 0), self._scores[place], np.float32(np.nan))
