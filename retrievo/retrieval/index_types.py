"""The FAISS index types that a user can choose. Standard library only, so that the command line can list them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IndexType:
    """How the shards of one type are built, and what a search in them promises.

    build: "module:function" that makes the index of one shard; see `retrievo.retrieval.faiss_index.Build`.
    exact: whether the shards hold the vectors themselves, so that a search is exact.
    """

    help: str
    build: str
    exact: bool


INDEX_TYPES = {
    "flat": IndexType("all vectors as float32; exact search", "retrievo.retrieval.faiss_index:build_flat", exact=True),
}
