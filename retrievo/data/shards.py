"""How rows are cut into shards, each of which is computed by itself (standard library only).

The last bits of a vector or a score may depend on what is computed beside it, so wherever the same rows are computed
they must be cut alike.
"""

from __future__ import annotations

PAIRS_PER_SHARD = 8_192  # a minute or so of a small model on 2 cores: what a killed `rerank` loses at most
_SMALLEST_SHARD, _LARGEST_SHARD, _SHARDS = 4_096, 131_072, 64


def shard_bounds(rows: int) -> list[tuple[int, int]]:
    """The first row and the row after the last of every shard: clamp(N / 64, 4,096, 131,072) rows, for N rows.

    A function of N alone, so that any number of processes cuts the same shards. No rows make one empty shard.
    """
    size = min(max(-(-rows // _SHARDS), _SMALLEST_SHARD), _LARGEST_SHARD)
    return [(first, min(first + size, rows)) for first in range(0, max(rows, 1), size)]
