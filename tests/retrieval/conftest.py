"""Embeddings that the tests of this folder make."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrievo.retrieval.embeddings import Embeddings, import_vectors

sys.path.insert(0, str(Path(__file__).parent))  # folders.py; slow.py, which processes import too


@pytest.fixture
def embeddings(tmp_path: Path) -> Callable[..., Embeddings]:
    """An array as an embeddings folder, with ids whose order is not that of the rows."""

    def make(array: np.ndarray, similarity: str = "dot", name: str = "embeddings", first: int = 0) -> Embeddings:
        rows = range(first, first + len(array))
        np.save(tmp_path / f"{name}.npy", array)
        (tmp_path / f"{name}.txt").write_text("".join(f"d{row * 31 % 9_973}\n" for row in rows))
        import_vectors(tmp_path / f"{name}.npy", tmp_path / f"{name}.txt", tmp_path / name, similarity=similarity)
        return Embeddings(tmp_path / name)

    return make
