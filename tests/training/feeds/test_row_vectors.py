"""Vectors by row of a table: matched by id, whatever the order of their folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.corpus import Corpus
from retrievo.retrieval.embeddings import import_vectors
from retrievo.support.errors import RetrievoError
from retrievo.training.feeds.row_vectors import RowVectors

IDS = [f"d{number}" for number in range(9)]
ARRAY = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    pq.write_table(pa.table({"id": IDS, "text": IDS}), tmp_path / "corpus.parquet")
    return Corpus(tmp_path / "corpus.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes an embeddings folder of some of the documents, in this order."""

    def made(rows: list[int], more: tuple[str, ...] = (), **options: str) -> Path:
        names = [IDS[row] for row in rows] + list(more)
        np.save(tmp_path / "x.npy", np.concatenate([ARRAY[rows], np.zeros((len(more), 4), np.float32)]))
        (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in names))
        import_vectors(tmp_path / "x.npy", tmp_path / "ids.txt", tmp_path / "vectors", **options)
        return tmp_path / "vectors"

    return made


def test_vectors_come_by_row_in_any_order_and_repeated(corpus: Corpus, folder: Callable[..., Path]) -> None:
    vectors = RowVectors(folder([8, 3, 0, 1, 7, 6, 5, 4, 2], ("stranger",)), "document", corpus.id_map)
    rows = np.array([4, 0, 4, 8])
    assert np.array_equal(vectors.of(rows), ARRAY[rows])
    assert vectors.of(rows[:0]).shape == (0, 4)


def test_under_cosine_vectors_are_of_unit_length(corpus: Corpus, folder: Callable[..., Path]) -> None:
    found = RowVectors(folder(list(range(9)), similarity="cosine"), "document", corpus.id_map).of(np.arange(9))
    np.testing.assert_allclose(found, ARRAY / np.linalg.norm(ARRAY, axis=1, keepdims=True), rtol=1e-6)


def test_what_is_needed_must_have_a_vector(corpus: Corpus, folder: Callable[..., Path]) -> None:
    some = folder([0, 1, 2, 5])
    with pytest.raises(RetrievoError, match="has no vector of document 'd3', nor of 4 others"):
        RowVectors(some, "document", corpus.id_map)
    vectors = RowVectors(some, "document", corpus.id_map, needed=np.array([5, 1]))
    assert np.array_equal(vectors.of(np.array([5, 1])), ARRAY[[5, 1]])


def test_vectors_of_the_other_side_are_refused(corpus: Corpus, folder: Callable[..., Path]) -> None:
    with pytest.raises(RetrievoError, match="holds query vectors; expected document vectors"):
        RowVectors(folder(list(range(9)), role="query"), "document", corpus.id_map)
