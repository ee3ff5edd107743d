"""FAISS folders: shards that faiss opens, and the same results as the embeddings they were built from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from folders import built

from retrievo.retrieval.embeddings import Embeddings
from retrievo.retrieval.exact import search_exact
from retrievo.retrieval.faiss_index import FaissIndex, shard_name
from retrievo.support.artifact import MANIFEST
from retrievo.support.errors import RetrievoError, UsageError

faiss = pytest.importorskip("faiss")

Make = Callable[..., Embeddings]


def duplicated(dtype: str = "float32") -> np.ndarray:
    array = np.random.default_rng(0).standard_normal((300, 96), dtype=np.float32).repeat(20, axis=0)
    return np.random.default_rng(1).permutation(array).astype(dtype)


QUERIES = np.random.default_rng(2).standard_normal((12, 96), dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_an_index_of_any_number_of_shards_finds_what_its_embeddings_find(
    embeddings: Make, dtype: str, similarity: str
) -> None:
    source = embeddings(duplicated(dtype), similarity)
    expected = search_exact(QUERIES, source, 50)
    for shards in (None, 1, 2, 16):
        index = built(source, f"index-{shards}", shards=shards)
        for options in ({}, {"threads": 1, "batch_size": 5}):
            found = index.search(QUERIES, 50, **options)
            assert all(mine.tobytes() == theirs.tobytes() for mine, theirs in zip(found[:3], expected[:3], strict=True))
        assert index.ids(found.row).to_pylist() == source.ids(expected.row).to_pylist()


def test_faiss_opens_every_shard_with_the_inner_product_as_its_metric(embeddings: Make) -> None:
    array = duplicated()
    index = built(embeddings(array), shards=3)
    shards = [faiss.read_index(str(index.path / shard_name(number))) for number in range(3)]
    assert [shard.ntotal for shard in shards] == [2_000, 2_000, 2_000]
    assert {shard.metric_type for shard in shards} == {faiss.METRIC_INNER_PRODUCT}
    assert (np.concatenate([shard.reconstruct_n(0, 2_000) for shard in shards]) == array).all()


def test_the_folder_says_what_it_is(embeddings: Make) -> None:
    index = built(embeddings(duplicated("float16"), "cosine"), shards=2)
    assert sorted(path.name for path in index.path.iterdir()) == ["ids.arrow", MANIFEST, *map(shard_name, range(2))]
    assert (index.rows, index.dim, index.type, index.similarity, index.role) == (
        6_000,
        96,
        "flat",
        "cosine",
        "document",
    )
    assert index.manifest.input_path("embeddings", "--embeddings").name == "embeddings"


def test_the_same_embeddings_give_the_same_bytes(embeddings: Make) -> None:
    source = embeddings(duplicated())
    first, second = built(source, "a"), built(source, "b")
    assert first.manifest.files == second.manifest.files


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_padding_of_faiss_never_reaches_a_user(embeddings: Make, rows: int) -> None:
    index = built(embeddings(duplicated()[:rows]))
    found = index.search(QUERIES, 10)
    assert len(found.row) == rows * len(QUERIES)
    assert (found.row >= 0).all()


def test_vectors_live_as_long_as_they_are_used(embeddings: Make) -> None:
    source = embeddings(duplicated())
    vectors = built(source).vectors
    assert (vectors.take(np.arange(6_000)) == source.take(np.arange(6_000))).all()


def test_without_faiss_the_error_says_what_to_install(embeddings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = embeddings(duplicated())
    path = built(source).path
    monkeypatch.setitem(sys.modules, "faiss", None)
    for needs_faiss in (lambda: FaissIndex(path), lambda: built(source, "other")):
        with pytest.raises(RetrievoError, match=r"pip install 'retrievo\[cpu\]'"):
            needs_faiss()
    assert len(search_exact(QUERIES, source, 5).row) == 60


def test_names_of_index_types_need_the_standard_library_only() -> None:
    code = (
        "import sys, retrievo.retrieval.index_types; "
        "print({'numpy', 'pyarrow', 'torch', 'faiss'} & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unfit_types_and_shard_counts_are_refused(embeddings: Make) -> None:
    source = embeddings(duplicated())
    with pytest.raises(UsageError, match="--type: found 'flatt'; did you mean 'flat'"):
        built(source, index_type="flatt")
    for shards in (0, 6_001):
        with pytest.raises(UsageError, match=f"--shards: found {shards}; expected 1 to 6,000"):
            built(source, shards=shards)


def test_a_vector_that_is_not_finite_is_found_while_building(embeddings: Make) -> None:
    source = embeddings(duplicated())
    shard = source.path / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    place = content.index(source.take(np.array([4_100])).tobytes())
    content[place : place + 4] = np.float32(np.nan).tobytes()
    shard.write_bytes(content)
    spoilt = Embeddings(source.path)
    with pytest.raises(RetrievoError, match=r"shard-00001.arrow row 5 \(id .*the vector holds nan"):
        built(spoilt)
    with pytest.raises(RetrievoError, match=r"shard-00001.arrow row 5 \(id .*the vector holds nan"):
        search_exact(QUERIES, spoilt, 5)


def test_a_folder_that_does_not_agree_with_its_manifest_is_refused(embeddings: Make) -> None:
    path = built(embeddings(duplicated()), shards=2).path
    told = json.loads((path / MANIFEST).read_text())
    claims: list[tuple[dict[str, Any], str]] = [
        ({"dim": 97}, "shard-00000.faiss: is a IndexFlatIP of 96 dimensions; expected a flat one of 97"),
        ({"rows": 5}, "hold 6,000 rows; expected 5"),
        ({"shards": 3}, "shard-00002.faiss: is missing"),
        ({"type": "later"}, "is of type 'later'"),
    ]
    for stats, message in claims:
        (path / MANIFEST).write_text(json.dumps({**told, "stats": {**told["stats"], **stats}}))
        with pytest.raises(RetrievoError, match=message):
            FaissIndex(path)
    (path / MANIFEST).write_text(json.dumps(told))
    (path / shard_name(1)).write_bytes(b"spoilt")
    with pytest.raises(RetrievoError, match=r"shard-00001.faiss: is no readable FAISS index"):
        FaissIndex(path)
