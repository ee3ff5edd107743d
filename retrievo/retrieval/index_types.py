"""The FAISS index types that a user can choose, and how the size of a corpus sets their parameters.

Standard library only, so that the command line can list them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from retrievo.support.errors import UsageError, did_you_mean

BM25 = "bm25"  # a choice of `--type` that FAISS has no part in
POINTS_PER_CENTROID = 39  # FAISS warns of k-means on fewer (Clustering.h, min_points_per_centroid)
PROBED_SHARE = 32  # 1 / 32 of the lists is searched by default, at least 8
EF_SEARCH = 128


class Recipe(NamedTuple):
    """A FAISS factory string, and why these numbers."""

    factory: str
    reason: str = ""


@dataclass(frozen=True)
class IndexType:
    """How the shards of one type are built, and what a search in them promises.

    recipe:  rows of the largest shard, dimension D -> what FAISS builds.
    exact:   whether a search scans the vectors themselves; other types find candidates, which are rescored exactly.
    rescored: candidates for each document asked for.
    """

    help: str
    recipe: Callable[[int, int], Recipe]
    exact: bool = False
    rescored: int = 1


def _lists(rows: int) -> tuple[int, str]:
    """Inverted lists: the power of two nearest to 4 sqrt(rows), with enough rows to train each; and why."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(max(1, rows))))
    enough = max(1, rows // POINTS_PER_CENTROID)
    if enough < wanted:
        return enough, f"{enough:,} lists, one for {POINTS_PER_CENTROID} vectors"
    return wanted, f"{wanted:,} lists, the power of 2 nearest to 4 x the square root of {rows:,}"


def _ivf(rows: int, dim: int) -> Recipe:
    lists, reason = _lists(rows)
    return Recipe(f"IVF{lists},Flat", reason)


def _codes(rows: int, dim: int) -> tuple[int, int]:
    """Sub-vectors of a product quantizer (of 8 dimensions, or the next that divides D), and bits of each code."""
    width = next(width for width in (8, *range(7, 0, -1)) if dim % width == 0)
    bits = int(math.log2(max(2, rows // POINTS_PER_CENTROID)))
    return dim // width, min(8, bits)


def _ivfpq(rows: int, dim: int) -> Recipe:
    (lists, reason), (parts, bits) = _lists(rows), _codes(rows, dim)
    codes = f"{parts} codes of {bits} bits, one for {dim // parts} dimensions"
    return Recipe(f"IVF{lists},PQ{parts}x{bits}", f"{reason}; {codes}")


def _opq_ivfpq(rows: int, dim: int) -> Recipe:
    inner, (parts, _) = _ivfpq(rows, dim), _codes(rows, dim)
    if rows < dim:  # FAISS crashes
        return Recipe(inner.factory, f"{inner.reason}; too few vectors to train a rotation of {dim} dimensions")
    return Recipe(f"OPQ{parts},{inner.factory}", f"{inner.reason}, after a trained rotation")


INDEX_TYPES = {
    "flat": IndexType("all vectors as float32; exact search", lambda rows, dim: Recipe("Flat"), exact=True),
    "ivf": IndexType("float32 vectors in lists around centroids, of which a search reads a few", _ivf),
    "ivfpq": IndexType("lists of product-quantized vectors, D / 8 bytes each", _ivfpq, rescored=10),
    "opq-ivfpq": IndexType("the same after a rotation that makes codes more exact", _opq_ivfpq, rescored=10),
    "hnsw": IndexType(
        "float32 vectors in a graph of neighbors: the quickest search, the most memory",
        lambda rows, dim: Recipe("HNSW32", "32 neighbors of each vector"),
    ),
    "sq8": IndexType("all vectors in 8 bits a dimension", lambda rows, dim: Recipe("SQ8"), rescored=2),
    "fp16": IndexType("all vectors as float16", lambda rows, dim: Recipe("SQfp16"), rescored=2),
    "binary": IndexType(
        "one bit a dimension, its sign", lambda rows, dim: Recipe("LSH", f"{dim} sign bits"), rescored=20
    ),
}
_FACTORY_RESCORED = 10  # nothing is known of how exact a type of the user's own is


def type_named(name: str) -> IndexType:
    """A row of the table, or a type made from a FAISS factory string, which has a capital letter somewhere.

    Raises: UsageError for a name that is neither.
    """
    if name in INDEX_TYPES:
        return INDEX_TYPES[name]
    if name.lower() == name:
        raise UsageError("--type", f"found '{name}'", None, did_you_mean(name, (*INDEX_TYPES, BM25)))
    return IndexType("a FAISS factory string", lambda rows, dim: Recipe(name), rescored=_FACTORY_RESCORED)
