"""Cuts many sequences into chunks of about equal cost, and pads a chunk (numpy only)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def cut_chunks(lengths: npt.ArrayLike, chunk_tokens: int) -> list[np.ndarray]:
    """Row numbers of each chunk, longest rows first; rows x longest length <= `chunk_tokens`, but at least one row.

    It is a pure function of lengths and budget: rows of equal length keep their order, so the same rows always share a
    chunk. Rows of a chunk have similar lengths and so almost no padding, and the largest chunk comes first, so that
    insufficient memory shows at once.

    lengths: tokens of each row `[n]`. Returns: int64 arrays that together hold 0 .. n-1 once each.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        rows = max(1, chunk_tokens // max(1, int(lengths[order[start]])))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks


def pad(
    tokens: npt.ArrayLike, offsets: npt.ArrayLike, rows: npt.ArrayLike, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Padded rows out of flat tokens: `input_ids`, `attention_mask`, int64 `[n, L]`, L >= 1 the longest of `rows`.

    tokens: flat token ids `[T]`; offsets: row i is `tokens[offsets[i]:offsets[i + 1]]`, `[N + 1]`; rows: `[n]`.
    Padding stands on the right. Tensors on the CPU are taken as they are, without a copy.
    """
    tokens, offsets, rows = np.asarray(tokens), np.asarray(offsets), np.asarray(rows)
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    positions = np.arange(lengths.max(initial=1))
    mask = positions < lengths[:, None]  # [n, L]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = tokens[(starts[:, None] + positions)[mask]]
    return input_ids, mask.astype(np.int64)
