"""`retrievo encode` by several processes that it starts itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retrievo.models.encoder import Encoder
from retrievo.retrieval.embeddings import Embeddings
from retrievo.support.artifact import Manifest


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """5,000 short texts: two shards."""
    texts = [f"alpha{n % 7} beta{n % 11}" for n in range(5_000)]
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts}), tmp_path / "corpus.parquet")
    return tmp_path / "corpus.parquet"


def test_processes_of_one_command_write_the_same_bytes(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    def encode(output: Path, *flags: object) -> str:
        shared = ["--model", tiny_model, "--corpus", corpus, "--pooling", "mean", "--dtype", "fp32", "--threads", 1]
        done = retrievo("encode", *shared, "--output", output, *flags)
        assert done.code == 0, done.err
        return done.err

    encode(tmp_path / "one")
    encode(tmp_path / "two", "--processes", 2)
    shards = sorted(path.name for path in (tmp_path / "one").glob("*.arrow"))
    assert len(shards) == 2
    for shard in shards:
        assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()
    assert "already finished" in encode(tmp_path / "two", "--processes", 3)


def test_more_processes_than_gpus_are_refused(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    asked = ("encode", "--model", tiny_model, "--corpus", corpus, "--output", tmp_path / "out", "--processes", 3)
    outcome = retrievo(*asked)
    assert (outcome.code, "--processes: found 3; expected at most 2, one for each GPU" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_texts_without_a_word_are_counted(tiny_model: Path, tmp_path: Path, retrievo: Callable) -> None:
    columns = {"id": ["a", "b", "c", "d"], "title": ["", "", "wing", ""], "text": ["flow", " ", "", None]}
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": ["q", "r"], "text": ["flow", ""]}), tmp_path / "queries.parquet")
    model = ["--model", tiny_model, "--pooling", "mean", "--dtype", "fp32"]
    done = retrievo("encode", *model, "--corpus", tmp_path, "--output", tmp_path / "vectors")
    assert "2 document texts are empty; they are encoded all the same" in done.err
    done = retrievo("encode", *model, "--queries", tmp_path, "--output", tmp_path / "q")
    assert "1 query texts are empty" in done.err
    found = retrievo("search", "--index", tmp_path / "vectors", "--queries", tmp_path, "--output", tmp_path / "r.trec")
    assert (found.code, "1 queries have no text; they are kept" in found.err) == (0, True)


def test_a_shard_whose_chunks_do_not_fit_is_encoded_in_smaller_ones_and_says_so(
    tiny_model: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["wing " * 12] * 40 + ["flow"] * 4_960  # two shards, of which the first one has the long texts
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(5_000)], "text": texts}), tmp_path / "corpus.parquet")
    encode, short = Encoder.encode, []

    def crowded(self: Encoder, role: str, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > 8 and input_ids.numel() > 256:
            raise torch.OutOfMemoryError("no room")
        short.append(input_ids.numel())
        return encode(self, role, input_ids, mask)

    monkeypatch.setattr(Encoder, "encode", crowded)
    shared = ["--model", tiny_model, "--corpus", tmp_path / "corpus.parquet", "--pooling", "mean", "--dtype", "fp32"]
    done = retrievo("encode", *shared, "--chunk-tokens", 1024, "--output", tmp_path / "crowded")
    assert (done.code, "out of memory: recomputed in chunks of 256 tokens" in done.err) == (0, True)
    assert Manifest.read(tmp_path / "crowded").stats["chunk_tokens_of_shards"] == {"0": 256}
    assert max(short) > 256, "the second shard begins with the budget that was given"
    assert retrievo("encode", *shared, "--chunk-tokens", 256, "--output", tmp_path / "small").code == 0
    assert "chunk_tokens_of_shards" not in Manifest.read(tmp_path / "small").stats
    found, expected = (Embeddings(tmp_path / name).take(np.arange(5_000)) for name in ("crowded", "small"))
    np.testing.assert_array_equal(found, expected)


def test_queries_are_pooled_as_the_documents_were_where_nobody_said_how(
    tiny_decoder: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """A decoder's folder states no pooling: the last token is taken, and the record must not say otherwise."""
    shared = ["--model", tiny_decoder, "--dtype", "fp32", "--storage-dtype", "float32"]
    done = retrievo("encode", *shared, "--corpus", toy_dataset, "--output", tmp_path / "documents")
    assert done.code == 0, done.err
    assert Manifest.read(tmp_path / "documents").config["pooling"] == "last"
    said = retrievo("encode", *shared, "--queries", toy_dataset, "--pooling", "last", "--output", tmp_path / "queries")
    assert said.code == 0, said.err
    runs = []
    for queries in (toy_dataset, tmp_path / "queries"):
        runs.append(tmp_path / f"{len(runs)}" / "run.trec")
        asked = ["search", "--index", tmp_path / "documents", "--queries", queries, "--depth", 5, "--dtype", "fp32"]
        found = retrievo(*asked, "--output", runs[-1])
        assert found.code == 0, found.err
    assert runs[0].read_text() == runs[1].read_text()
