"""Seeded random draws that depend only on the item drawn, not on the order, batches or number of processes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_keys(seed: int, *columns: np.ndarray) -> np.ndarray:
    """A pseudorandom uint64 for each row of integer columns [n]: a pure function of the seed and the row's values.

    Each column is mixed in by the finalizer of splitmix64 (Steele, Lea & Flood 2014, fig. 19), which maps distinct
    inputs to distinct outputs.
    """
    state = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        state = _mixed(state ^ _mixed(column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)))
    return state


def uniform(keys: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), each from 64 random bits."""
    return (keys >> np.uint64(11)) * 2.0**-53


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
