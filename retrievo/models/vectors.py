"""Tokens to vectors, many at a time: what encoding, searching, mining and validation share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retrievo.models.attention import PlainAttention
from retrievo.models.chunks import cut_chunks, pad
from retrievo.models.devices import sent
from retrievo.models.encoder import Encoder
from retrievo.support.console import Tick


@torch.no_grad()  # not inference_mode, under which autocast casts the weights again for every chunk
def encode_tokens(
    encoder: Encoder,
    role: str,
    tokens: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    chunk_tokens: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    tick: Tick | None = None,
) -> np.ndarray:
    """Vectors float32 `[n, D]` of n rows of flat tokens, in their order.

    The rows are cut by `cut_chunks`, so that a vector is a pure function of all lengths and the budget: in bfloat16
    its last bits depend on what shares its chunk.

    tokens: flat token ids `[T]`; offsets: `[n + 1]`; chunk_tokens: most rows x longest row of a chunk; dtype: of the
    matrix products (pooling and normalization are float32); device: where the encoder is moved first, None = stays.
    tick: told how many rows were just encoded.
    """
    if device is not None:
        encoder.to(device)
    place = encoder.backbone.device
    offsets = np.asarray(offsets)
    vectors = torch.empty(len(offsets) - 1, encoder.dim, device=place)
    with (
        _evaluating(encoder),
        PlainAttention(),
        torch.autocast(place.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        for rows in cut_chunks(np.diff(offsets), chunk_tokens):
            padded = pad(tokens, offsets, rows, encoder.pad_id)
            input_ids, mask = (sent(torch.from_numpy(array), place) for array in padded)  # [n, L]
            vectors[sent(torch.from_numpy(rows), place)] = encoder.encode(role, input_ids, mask).float()
            if tick:
                tick(len(rows))
    return vectors.cpu().numpy()


def encode_texts(encoder: Encoder, role: str, texts: Sequence[str], **options: Any) -> np.ndarray:
    """Vectors float32 `[n, D]` of texts without titles; options as in `encode_tokens`."""
    rows = encoder.tokenization(role).tokenize(texts)
    return encode_tokens(encoder, role, rows.tokens, rows.offsets, **options)


@contextlib.contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    """Dropout off, then all as it was: validation runs in the middle of training."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)
        torch.clear_autocast_cache()  # weights cast here have no gradient; an autocast around this one would use them
