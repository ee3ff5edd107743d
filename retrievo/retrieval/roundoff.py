"""How far a float32 score may be from the exact one."""

from __future__ import annotations

import numpy as np

_ROUNDOFF = 2.0**-24  # unit roundoff u of float32


class ErrorBound:
    """A bound on |float32 score - exact score|, for any order of summation, with or without fused multiply-add.

    |fl(q.d) - q.d| <= n u / (1 - n u) |q| |d| with n = D, u = 2^-24 (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., eq. 3.5). n is enlarged by 16 for the rounding of the exact score and of the bound's own
    arithmetic, and for cosine by D / 2 for the document's norm; 1.01 covers 1 / (1 - n u) up to D = 100,000; results
    below float32's normal range add D 2^-125.

    norms: |q| of the queries [Q], float64; for cosine they must be 1.
    """

    def __init__(self, norms: np.ndarray, dim: int, similarity: str):
        n = dim + 16 + (dim // 2 if similarity == "cosine" else 0)
        self._relative = (1.01 * n * _ROUNDOFF * norms).astype(np.float32)  # for a document of norm 1
        self._underflow = np.float32(dim * 2.0**-125)

    def __call__(self, length: np.ndarray, query: np.ndarray | slice = slice(None)) -> np.ndarray:
        """For queries and documents of these lengths: their norms, or 1 for cosine."""
        bound: np.ndarray = self._relative[query] * length + self._underflow
        return bound


def norm_below(dim: int) -> np.float32:
    """sqrt(D 2^-126), the most that a float32 norm may lack: squares below the normal range add nothing to it."""
    return np.float32(dim**0.5 * 2.0**-63)
