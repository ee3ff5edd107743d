"""Embeddings and FAISS folders that tests of this folder make; tests/retrieval/conftest.py has the fixture."""

from __future__ import annotations

from typing import Any

from retrievo.retrieval.embeddings import Embeddings
from retrievo.retrieval.faiss_build import build
from retrievo.retrieval.faiss_index import FaissIndex
from retrievo.support.artifact import Input, Output


def built(source: Embeddings, name: str = "index", **options: Any) -> FaissIndex:
    """An index over embeddings, opened."""
    path = source.path.with_name(name)
    output = Output(path, "faiss-index", {"shards": options.get("shards")}, {"embeddings": Input.of(source.path)})
    assert not output.already_finished()
    build(source, output, **options)
    return FaissIndex(path)
