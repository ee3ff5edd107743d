"""Encodes many tokenized texts as vectors, for encoding, searching, mining and validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.support.console import Tick


def encode_tokens(
    encoder: Encoder,
    role: str,
    tokens: npt.ArrayLike,
    offsets: npt.ArrayLike,
    compute: ComputeOptions,
    tick: Tick | None = None,
) -> np.ndarray:
    """Vectors float32 `[n, D]` of n rows of flat tokens, in their order.

    Rows are cut into chunks by `cut_chunks`, a pure function of all lengths and the budget, because the last bits of a
    vector in bfloat16 depend on the other rows of its chunk. Pooling and normalization are float32.

    tokens, offsets, compute, tick: as in `compute_rows`.
    """
    return encoder.vectors(role, tokens, offsets, compute, tick)


def encode_texts(encoder: Encoder, role: str, texts: Sequence[str], compute: ComputeOptions) -> np.ndarray:
    """Vectors float32 `[n, D]` of texts without titles."""
    rows = encoder.tokenization(role).tokenize(texts)
    return encode_tokens(encoder, role, rows.tokens, rows.offsets, compute)
