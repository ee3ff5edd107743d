"""Pseudo-relevance feedback on vectors: the best documents of a first search move the query.

The table of names is standard library only, so that the command line can list it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrievo.support.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from retrievo.retrieval.embeddings import Vectors


def average(query: np.ndarray, documents: np.ndarray, weight: float) -> np.ndarray:
    """(q + d_1 + ... + d_n) / (n + 1) (Li et al. 2023, "Pseudo Relevance Feedback with Deep Language Models and Dense
    Retrievers", section 3.2, vector PRF, average); the weight is not looked at.
    """
    mean: np.ndarray = (query + documents.sum(axis=0)) / (len(documents) + 1)
    return mean


def rocchio(query: np.ndarray, documents: np.ndarray, weight: float) -> np.ndarray:
    """(1 - w) q + w (d_1 + ... + d_n) / n (Rocchio 1971 without its negative part; Li et al. 2023, section 3.2)."""
    moved: np.ndarray = (1 - weight) * query + weight * documents.mean(axis=0)
    return moved


@dataclass(frozen=True)
class Feedback:
    """A way to move one query [D] towards the documents [n, D] that were found first."""

    help: str
    moved: Callable[[np.ndarray, np.ndarray, float], np.ndarray]


FEEDBACKS = {
    "average": Feedback("mean of the query and its first documents", average),
    "rocchio": Feedback("(1 - w) x query + w x mean of its first documents", rocchio),
}


def moved_queries(
    method: str, queries: np.ndarray, vectors: Vectors, query: np.ndarray, row: np.ndarray, weight: float
) -> np.ndarray:
    """Queries float32 [Q, D] after feedback; one without documents stays.

    query, row: [H], which documents a query is moved by, by query. Where cosines compare, all vectors have length 1
    first, so that long documents pull no harder.

    Raises: UsageError for a method that is not in `FEEDBACKS`.
    """
    import numpy as np

    from retrievo.retrieval.embeddings import unit_length

    if method not in FEEDBACKS:
        raise UsageError("--feedback", f"found '{method}'", None, did_you_mean(method, FEEDBACKS))
    ready = unit_length if vectors.similarity == "cosine" else lambda given: given.astype(np.float32)
    moved = ready(queries).copy()
    ends = np.searchsorted(query, np.arange(len(queries) + 1))
    for number in np.flatnonzero(np.diff(ends)):
        documents = ready(vectors.take(row[ends[number] : ends[number + 1]]))
        moved[number] = FEEDBACKS[method].moved(moved[number], documents, weight)
    return moved
