"""Indexes of every type: the same bytes again, the size that was told, and documents that come later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from folders import built

from retrievo.retrieval import faiss_build, faiss_search
from retrievo.retrieval.embeddings import Embeddings, together
from retrievo.retrieval.exact import search_exact
from retrievo.retrieval.faiss_build import TRAINED, add, bytes_per_vector
from retrievo.retrieval.faiss_index import FaissIndex, shard_name
from retrievo.retrieval.faiss_search import Effort
from retrievo.retrieval.index_types import INDEX_TYPES
from retrievo.support.artifact import Input, Output
from retrievo.support.errors import RetrievoError, UsageError

faiss = pytest.importorskip("faiss")

Make = Callable[..., Embeddings]
DIM = 16


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def hashes(index: FaissIndex) -> dict[str, str]:
    return {name: record["blake2b"] for name, record in index.manifest.files.items()}


@pytest.mark.parametrize("name", [*INDEX_TYPES, "IVF4,SQ8"])
def test_every_type_gives_the_same_bytes_again_and_opens_with_faiss(embeddings: Make, name: str) -> None:
    source = embeddings(vectors(320))
    first, again = built(source, "first", index_type=name), built(source, "again", index_type=name, threads=1)
    assert hashes(first) == hashes(again)
    shard = faiss.read_index(str(first.path / shard_name(0)))
    assert (shard.ntotal, shard.d) == (320, DIM)
    trained = first.path / TRAINED
    assert trained.is_file() == (name in ("ivf", "ivfpq", "opq-ivfpq", "sq8", "IVF4,SQ8"))
    assert not trained.is_file() or faiss.read_index(str(trained)).ntotal == 0


@pytest.mark.parametrize("name", INDEX_TYPES)
def test_the_size_told_before_the_build_is_the_size_on_disk(embeddings: Make, name: str) -> None:
    index = built(embeddings(vectors(5_000)[:, :8]), index_type=name, shards=1)
    shard = index.open_shard(0)
    fixed = (index.path / TRAINED).stat().st_size if (index.path / TRAINED).is_file() else 0
    told = 5_000 * (bytes_per_vector(faiss, shard) or 0)
    assert told == pytest.approx((index.path / shard_name(0)).stat().st_size - fixed, rel=0.03, abs=2_000)


def test_a_graph_is_the_same_whatever_the_number_of_threads(embeddings: Make) -> None:
    source = embeddings(vectors(400))
    one, two = (built(source, f"threads-{n}", index_type="hnsw", threads=n) for n in (1, 2))
    faiss.omp_set_num_threads(1)
    assert hashes(one) == hashes(two)


def test_what_is_built_is_told_with_its_reason(embeddings: Make, said: Callable[[], str]) -> None:
    built(embeddings(vectors(320)), index_type="ivfpq")
    told = " ".join(said().split())
    assert "8 lists, one for 39 vectors; 2 codes of 3 bits, one for 8 dimensions" in told
    assert "IVF8,PQ2x3 of 320 vectors of 16 dimensions, trained on 320 vectors" in told
    assert "(9 bytes a vector)" in told


def test_a_build_that_does_not_fit_is_refused_before_it_begins(
    embeddings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_build, "_free_memory", lambda: 1_000)
    source = embeddings(vectors(320))
    with pytest.raises(RetrievoError, match=r"the build needs about .* of memory; expected at most .* \(--shards\)"):
        built(source, index_type="hnsw")
    assert not source.path.with_name("index.partial").exists()


def test_free_memory_is_what_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_build, "_MEMORY", tmp_path / "meminfo")
    assert faiss_build._free_memory() is None  # another system
    (tmp_path / "meminfo").write_text("MemTotal:       20 kB\nMemFree:        3 kB\nMemAvailable:       7 kB\n")
    assert faiss_build._free_memory() == 7 * 1024


@pytest.mark.parametrize("factory", ["IVF8,PQ7", "Nonsense9", "IVF8,Flat,"])
def test_a_factory_string_that_faiss_refuses_is_an_error_of_one_line(embeddings: Make, factory: str) -> None:
    with pytest.raises(UsageError, match=f"--type: FAISS makes no index of '{factory}' for 16 dimensions"):
        built(embeddings(vectors(320)), index_type=factory)


def test_nothing_can_be_trained_on_no_vectors(embeddings: Make) -> None:
    with pytest.raises(RetrievoError, match="hold no vectors"):
        built(embeddings(vectors(0)), index_type="ivf")
    with pytest.raises(RetrievoError, match="1 vectors do not train 'IVF1,PQ2x1'; expected more of them; choose"):
        built(embeddings(vectors(1), name="one"), index_type="ivfpq")
    with pytest.raises(RetrievoError, match="holds 15 vectors; expected as many as dimensions, 16, to train"):
        built(embeddings(vectors(15), name="few"), "few-index", index_type="OPQ2,IVF1,PQ2x1")


# ------------------------------------------------------------------------------------------------ documents added later


def added(index: FaissIndex, more: Embeddings) -> FaissIndex:
    inputs = {"embeddings": Input(index.path.with_name("vectors"), "a"), "embeddings-2": Input.of(more.path)}
    output = Output(index.path, "faiss-index", index.manifest.config, inputs, force=True)
    assert output.already_finished() is None
    add(index, more, output)
    return FaissIndex(index.path)


@pytest.mark.parametrize("name", INDEX_TYPES)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_documents_added_later_are_found_as_if_they_had_been_there(
    embeddings: Make, name: str, similarity: str
) -> None:
    old, new = embeddings(vectors(320), similarity), embeddings(vectors(90, 1), similarity, "more", 320)
    index = built(old, index_type=name)
    before = {path.name: path.stat().st_ino for path in index.path.glob("*.faiss")}
    grown, queries, all_vectors = added(index, new), vectors(7, 2), together([old, new])
    assert grown.rows == 410
    assert {path.name: path.stat().st_ino for path in grown.path.glob("*.faiss")}.items() >= before.items()
    expected = search_exact(queries, all_vectors, 10)
    if grown.kind.exact:
        found = grown.search(queries, 10)
    else:
        found = faiss_search.search(grown, all_vectors, queries, 10, Effort(grown.lists or 410, 410))
    assert found.score.tobytes() == expected.score.tobytes()
    assert grown.ids(found.row).to_pylist() == all_vectors.ids(expected.row).to_pylist()


def test_documents_that_are_there_already_and_unlike_vectors_are_refused(embeddings: Make) -> None:
    index = built(embeddings(vectors(320)), index_type="ivf")
    claims = [
        (embeddings(vectors(5), name="twice"), "holds document 'd0', which .* has already; expected new documents"),
        (embeddings(vectors(5)[:, :8], name="narrow", first=320), "has dim 8; expected 16"),
        (embeddings(vectors(5), "cosine", "cosine", 320), "has similarity cosine; expected dot"),
    ]
    for more, message in claims:
        with pytest.raises(RetrievoError, match=message):
            added(index, more)
    assert FaissIndex(index.path).rows == 320


def test_ids_of_an_index_that_grew_are_in_the_order_of_its_shards(embeddings: Make, tmp_path: Path) -> None:
    old, new = embeddings(vectors(320)), embeddings(vectors(90, 1), name="more", first=320)
    grown = added(built(old, index_type="hnsw"), new)
    assert grown.ids().to_pylist() == pa.chunked_array([*old.ids().chunks, *new.ids().chunks]).to_pylist()
