"""What a search in vectors finds, before rows have ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Hits(NamedTuple):
    """Results of a search as flat columns [H]: by query, then in the order of the ordering rule."""

    query: np.ndarray  # int64, row of the query
    row: np.ndarray  # int64, row of the document
    score: np.ndarray  # float32


def joined(batches: Iterable[Hits]) -> Hits:
    """The hits of all batches as one."""
    none = Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return Hits(*(np.concatenate(columns) for columns in zip(none, *batches, strict=True)))
