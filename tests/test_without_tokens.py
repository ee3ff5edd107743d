"""Texts of which a tokenizer makes no token at all: counted, scored 0, left out of training; never a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.retrieval.embeddings import Embeddings

NOTHING = "¤¤"  # text all the same: neither empty nor blank


@pytest.fixture(scope="module")
def bare_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that adds no special tokens, and makes nothing of a sign."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(tiny_model, folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["post_processor"] = None
    strip = {"type": "Replace", "pattern": {"String": "¤"}, "content": ""}
    values["normalizer"] = {"type": "Sequence", "normalizers": [values["normalizer"], strip]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def dataset(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy with three documents and a query of that sign, one of each judged; no titles."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    shutil.copytree(toy_dataset, folder)
    for name, places in (("corpus", (3, 4, 200)), ("queries", (5,))):
        rows = pq.read_table(folder / f"{name}.parquet", columns=["id", "text"]).to_pylist()
        for place in places:
            rows[place]["text"] = NOTHING
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def test_they_are_encoded_searched_and_told(
    bare_model: Path, dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    model = ["--model", bare_model, "--pooling", "mean"]
    for role, count in (("corpus", 3), ("queries", 1)):
        made = retrievo("encode", *model, f"--{role}", dataset / f"{role}.parquet", "--output", tmp_path / role)
        assert made.code == 0, made.err
        assert f"{count} {'document' if role == 'corpus' else 'query'} texts have no token for this model" in made.err
    vectors = Embeddings(tmp_path / "corpus").take(np.arange(240))
    assert np.flatnonzero(~vectors.any(axis=1)).tolist() == [3, 4, 200]
    searched = ["--queries", dataset / "queries.parquet", "--depth", 240, "--output", tmp_path / "run.parquet"]
    found = retrievo("search", "--index", tmp_path / "corpus", *searched)
    assert found.code == 0, found.err
    assert "1 query texts have no token for this model; they score 0 with all" in found.err
    run = pq.read_table(tmp_path / "run.parquet").to_pylist()
    assert {row["score"] for row in run if row["query_id"] == "q5" or row["doc_id"] in ("d3", "d4", "d200")} == {0.0}
    assert retrievo("search", "--index", tmp_path / "corpus", NOTHING).code == 0


@pytest.mark.parametrize("kind", ["dense", "cross-encoder"])
def test_training_leaves_them_out_and_says_how_many(
    bare_model: Path, dataset: Path, tmp_path: Path, retrievo: Callable, kind: str
) -> None:
    data = ["--corpus", dataset, "--queries", dataset, "--qrels", dataset / "qrels" / "train.parquet"]
    steps = ["--max-steps", 3, "--batch-size", 8, "--dtype", "float32", "--negatives-per-query", 2]
    made = retrievo("train", "--kind", kind, "--model", bare_model, *data, *steps, "--output", tmp_path / "model")
    assert made.code == 0, made.err
    assert (
        "left out, because this model's tokenizer makes no token of their texts: 1 queries and 3 documents" in made.err
    )


def test_a_pair_without_any_token_has_the_logit_0(
    bare_model: Path, dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    from retrievo.models.cross_encoder import CrossEncoder

    CrossEncoder.load(bare_model, train=True).save(tmp_path / "ranker")
    rows = [(f"q{query}", f"d{document}") for query in (5, 6) for document in (3, 4, 7)]
    columns = dict(zip(("query_id", "doc_id"), map(list, zip(*rows, strict=True)), strict=True))
    scores = {"score": pa.array(range(6, 0, -1), pa.float32()), "rank": pa.array([1, 2, 3] * 2, pa.int32())}
    pq.write_table(pa.table({**columns, **scores}), tmp_path / "run.parquet")
    data = ["--corpus", dataset, "--queries", dataset, "--run", tmp_path / "run.parquet"]
    made = retrievo("rerank", "--model", tmp_path / "ranker", *data, "--output", tmp_path / "reranked.parquet")
    assert made.code == 0, made.err
    assert "2 pairs have no token for this model; their logit is 0" in made.err
    found = {
        (row["query_id"], row["doc_id"]): row["score"]
        for row in pq.read_table(tmp_path / "reranked.parquet").to_pylist()
    }
    assert [pair for pair, score in found.items() if score == 0] == [("q5", "d4"), ("q5", "d3")]
    assert found["q6", "d3"] == found["q6", "d4"] != 0
