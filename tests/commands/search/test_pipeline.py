"""Queries are read and encoded once, however many indexes search for them, and results do not depend on blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.commands.search import pipeline
from retrievo.commands.search import rerank as reranking
from retrievo.data.corpus import Queries
from retrievo.models.encoder import Encoder
from retrievo.retrieval.dense import Encoders
from retrievo.retrieval.hits import Hits, joined

PLAIN = ("--dtype", "float32", "--chunk-tokens", 512, "--threads", 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, module_retrievo: Callable) -> Path:
    """A corpus with a BM25 index, and two dense indexes of one model."""
    home = tmp_path_factory.mktemp("pipeline")
    texts = [f"{one}{number} {other}" for number in range(8) for one in ("wing", "flow") for other in ("data", "plot")]
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts}), home / "corpus.parquet")
    asked = [f"wing{number}" for number in range(7)]
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(7)], "text": asked}), home / "queries.parquet")
    for command in (
        ("encode", "--model", tiny_model, "--corpus", home, "--pooling", "mean", *PLAIN, "--output", home / "v"),
        ("index", "--type", "bm25", "--corpus", home, "--output", home / "bm25"),
        ("index", "--type", "sq8", "--embeddings", home / "v", "--output", home / "sq8"),
    ):
        done = module_retrievo(*command)
        assert done.code == 0, done.err
    return home


def flags(home: Path, *indexes: str) -> list[object]:
    named = [word for name in indexes for word in ("--index", home / name)]
    return ["search", *named, "--queries", home / "queries.parquet", *PLAIN]


def test_a_model_is_opened_once_and_encodes_once_for_all_indexes(
    home: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, int] = dict.fromkeys(("read", "opened", "encoded"), 0)

    def counted(name: str, done: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            counts[name] += 1
            return done(*arguments, **options)

        return call

    monkeypatch.setattr(Encoder, "load", counted("opened", Encoder.load))
    monkeypatch.setattr(Encoders, "_encode", counted("encoded", Encoders._encode))
    monkeypatch.setattr(Queries, "__init__", counted("read", Queries.__init__))
    done = retrievo(*flags(home, "v", "sq8", "bm25"), "--output", tmp_path / "run.trec")
    assert done.code == 0, done.err
    assert counts == {"read": 1, "opened": 1, "encoded": 1}


@pytest.mark.parametrize(
    "more",
    [
        ("bm25",),
        ("v", "bm25"),
        ("v", "sq8", "bm25", "--fuse", "zscore", "--feedback", "average", "--feedback-from", "fused"),
        ("v", "sq8", "--feedback", "rocchio"),
    ],
    ids=["one", "two", "fused-feedback", "own-feedback"],
)
def test_a_run_does_not_depend_on_the_blocks_that_it_was_found_in(
    more: Sequence[str], home: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes = [name for name in more if (home / name).exists()]
    command = [*flags(home, *indexes), *more[len(indexes) :], "--depth", 5]
    (tmp_path / "one").mkdir()
    assert retrievo(*command, "--output", tmp_path / "one" / "run.trec").code == 0
    monkeypatch.setattr(pipeline.Search, "_block_size", lambda search: 2)
    monkeypatch.setattr("retrievo.retrieval.faiss_search._CALL", 2)
    assert retrievo(*command, "--output", tmp_path / "run.trec").code == 0
    assert (tmp_path / "run.trec").read_bytes() == (tmp_path / "one" / "run.trec").read_bytes()


class Scorer:
    """Scores that tell which pairs were scored together."""

    def scores(self, queries: Sequence[str], query: np.ndarray, ids: Sequence[str], tick: object) -> np.ndarray:
        own = [hash((int(number), name)) % 997 for number, name in zip(query, ids, strict=True)]
        return np.array(own, np.float32) + 1_000 * len(ids)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_pairs_are_scored_in_the_same_chunks_whatever_the_blocks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", 10)
    counts = np.array([3, 0, 11, 1, 4, 10, 0, 2, 25, 1, 0, 6])
    query = np.repeat(np.arange(12), counts)
    whole = Hits.of_ids(query, pa.array([f"d{n}" for n in range(len(query))]), np.zeros(len(query), np.float32))
    blocks = (whole.at(np.flatnonzero((query >= at) & (query < at + size))) for at in range(0, 12, size))
    found = joined(reranking.reranked(blocks, Scorer(), [""] * 12, 7))  # type: ignore[arg-type]
    alone = joined(reranking.reranked(iter([whole]), Scorer(), [""] * 12, 7))  # type: ignore[arg-type]
    assert found.query.tolist() == np.repeat(np.arange(12), np.minimum(counts, 7)).tolist()
    assert found.ids().equals(alone.ids())
    assert found.score.tolist() == alone.score.tolist()
