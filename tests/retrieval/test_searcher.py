"""Every kind of index behind one protocol: the same search, in all of its documents or in some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.ordering import ranks
from retrievo.retrieval.embeddings import Embeddings
from retrievo.retrieval.hits import Hits, Queries, joined
from retrievo.retrieval.searcher import FEEDBACK, KINDS, RESCORING, Searcher, can, open_index
from retrievo.support.errors import RetrievoError, UsageError

WORDS = ("cat", "dog", "cow", "hen")
COUNT = 300
TYPES = ("bm25", "embeddings", "flat", "ivf", "ivfpq", "opq-ivfpq", "hnsw", "sq8", "fp16")
EXHAUSTIVE = {"ivf": {"nprobe": 4}, "ivfpq": {"nprobe": 4}, "opq-ivfpq": {"nprobe": 4}, "hnsw": {"ef_search": 1_000}}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """One index of each kind and type, of the same number of documents."""
    folder, rng = tmp_path_factory.mktemp("house"), np.random.default_rng(0)
    ids = [f"d{number}" for number in rng.permutation(COUNT)]
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in ids]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "corpus.parquet")
    np.save(folder / "d.npy", rng.standard_normal((COUNT, 16)).astype(np.float32))
    np.save(folder / "q.npy", rng.standard_normal((4, 16)).astype(np.float32))
    (folder / "d.txt").write_text("".join(f"{name}\n" for name in ids))
    (folder / "q.txt").write_text("q1\nq2\nq3\nq4\n")
    commands: list[tuple] = [
        ("index", "--type", "bm25", "--corpus", folder, "--output", folder / "bm25", "--term-vectors"),
        ("import", "vectors", folder / "d.npy", folder / "d.txt", "--output", folder / "embeddings"),
        ("import", "vectors", folder / "q.npy", folder / "q.txt", "--output", folder / "q", "--role", "query"),
    ]
    for name in (*TYPES[2:], "binary"):
        commands.append(("index", "--type", name, "--embeddings", folder / "embeddings", "--output", folder / name))
    for command in commands:
        assert module_retrievo(*command).code == 0
    return folder


def asked(house: Path, searcher: Searcher) -> Queries:
    return searcher.encode(list(WORDS) if searcher.index.manifest.kind == "bm25-index" else Embeddings(house / "q"))


def found(house: Path, searcher: Searcher, depth: int, allowed: np.ndarray | None = None) -> Hits:
    return joined(searcher.search_batches(asked(house, searcher), depth, allowed), searcher.documents)


def rows(hits: Hits) -> list[tuple[int, str, float]]:
    return list(zip(hits.query.tolist(), hits.ids().to_pylist(), hits.score.tolist(), strict=True))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.0])
@pytest.mark.parametrize("name", TYPES)
def test_a_search_in_some_documents_is_the_search_in_all_without_the_others(
    name: str, share: float, house: Path
) -> None:
    searcher = open_index(house / name, **EXHAUSTIVE.get(name, {}))
    allowed = np.random.default_rng(1).random(searcher.documents.rows) < share
    there = set(searcher.documents.ids(np.flatnonzero(allowed)).to_pylist())
    searcher.prepare(asked(house, searcher), COUNT)
    whole = found(house, searcher, COUNT)
    kept = whole.at(np.flatnonzero([name in there for name in whole.ids().to_pylist()]))
    first = kept.at(np.flatnonzero(ranks(kept.query) <= 10))
    assert rows(found(house, searcher, 10, allowed)) == rows(first)


def test_what_an_index_cannot_search_in_is_refused_by_name(house: Path) -> None:
    searcher = open_index(house / "binary")
    with pytest.raises(RetrievoError, match="type 'binary', which FAISS can't search in some of its documents"):
        found(house, searcher, 10, np.ones(COUNT, bool))
    from retrievo.retrieval.bm25 import Rm3

    with pytest.raises(RetrievoError, match="RM3: takes words of any document"):
        found(house, open_index(house / "bm25", rm3=Rm3()), 10, np.ones(COUNT, bool))


@pytest.mark.parametrize("name", TYPES)
def test_batches_are_whole_queries_in_order(name: str, house: Path) -> None:
    searcher = open_index(house / name)
    batches = list(searcher.search_batches(asked(house, searcher), 10))
    assert np.concatenate([hits.query for hits in batches]).tolist() == np.repeat(np.arange(4), 10).tolist()
    assert all(hits.score.dtype == np.float32 for hits in batches)


def test_a_setting_of_another_kind_of_index_is_refused(house: Path) -> None:
    for name, setting in (("embeddings", "k1"), ("bm25", "nprobe"), ("flat", "rescore"), ("ivf", "ef_search")):
        with pytest.raises(UsageError, match=f"--{setting.replace('_', '-')}: does not apply to .*{name}"):
            open_index(house / name, **{setting: 1})


def test_capabilities_are_told_by_kind_and_type(house: Path) -> None:
    told = {
        name: [word for word in (FEEDBACK, RESCORING) if can(open_index(house / name).index, word)] for name in TYPES
    }
    assert told["bm25"] == []
    assert told["embeddings"] == told["flat"] == [FEEDBACK]
    assert told["ivf"] == told["hnsw"] == [FEEDBACK, RESCORING]


def test_vectors_do_not_ask_texts_and_a_dataset_is_no_index(house: Path) -> None:
    with pytest.raises(RetrievoError, match="holds vectors; expected texts"):
        open_index(house / "bm25").encode(Embeddings(house / "q"))
    with pytest.raises(RetrievoError, match="is a dataset"):
        open_index(house)


def test_a_new_kind_of_index_is_one_module_and_one_row(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of this test stands for the new kind."""
    import sys
    from types import ModuleType

    from retrievo.retrieval.exact_searcher import open_searcher

    module = ModuleType("backwards")
    module.open_searcher = open_searcher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "backwards", module)
    monkeypatch.setitem(KINDS, "embeddings", KINDS["embeddings"]._replace(module="backwards"))
    assert len(found(house, open_index(house / "embeddings"), 5).query) == 20
