"""Scores of (query, document) pairs by row number: what a teacher says."""

from __future__ import annotations

import numpy as np


class PairScores:
    """A score for some pairs, [R] each, at 12 bytes a pair; of a pair that occurs twice, the first.

    query, document: row numbers, below 0 for what is not in the tables; such pairs are left out. documents: how many
    there are.
    """

    def __init__(self, query: np.ndarray, document: np.ndarray, score: np.ndarray, documents: int):
        self._documents = documents
        known = (query >= 0) & (document >= 0)
        self._pairs, first = np.unique(query[known].astype(np.int64) * documents + document[known], return_index=True)
        self._scores = score[known][first].astype(np.float32)

    def of(self, query: np.ndarray | int, document: np.ndarray) -> np.ndarray:
        """Float32 scores of pairs [n]; NaN where there is none."""
        wanted = query * np.int64(self._documents) + document
        if not len(self._pairs):
            return np.full(wanted.shape, np.nan, np.float32)
        place = np.searchsorted(self._pairs, wanted).clip(max=len(self._pairs) - 1)
        return np.where((self._pairs[place] == wanted) & (document >= 0), self._scores[place], np.float32(np.nan))
