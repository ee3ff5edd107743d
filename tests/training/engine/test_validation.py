"""Validation on a fixed pool: what a search of the pool would measure, the best weights, and an early end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retrievo.data.corpus import Corpus
from retrievo.data.token_cache import TokenCache
from retrievo.evaluation.names import Metric
from retrievo.evaluation.scoring import evaluate
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_texts
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.training.engine.config import ValidationConfig
from retrievo.training.engine.validation import Pool, Validation


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., tuple[ValidationConfig, Corpus, Path]]:
    """Twenty documents, four queries of which three are judged, a run of ten documents for each."""

    def made(**options: object) -> tuple[ValidationConfig, Corpus, Path]:
        texts = [f"alpha{n} beta{n % 3} gamma{n % 5}" for n in range(20)]
        pq.write_table(pa.table({"id": [f"d{n}" for n in range(20)], "text": texts}), tmp_path / "corpus.parquet")
        queries = {"id": ["q0", "q1", "q2", "q3"], "text": ["alpha1 beta1", "gamma2", "beta2 alpha5", "gamma4"]}
        pq.write_table(pa.table(queries), tmp_path / "queries.parquet")
        judged = {"query_id": ["q0", "q1", "q3", "q3"], "doc_id": ["d1", "d12", "d19", "d0"]}
        relevance = pa.array([1, 2, 1, 0], pa.int32())
        pq.write_table(pa.table(judged | {"relevance": relevance}), tmp_path / "qrels.parquet")
        rows = [(f"q{q}", f"d{(3 * q + rank) % 20}", 10.0 - rank, rank + 1) for q in range(4) for rank in range(10)]
        run = dict(zip(("query_id", "doc_id", "score", "rank"), map(list, zip(*rows, strict=True)), strict=True))
        schema = pa.schema([("query_id", "string"), ("doc_id", "string"), ("score", "float"), ("rank", "int32")])
        pq.write_table(pa.table(run, schema=schema), tmp_path / "run.parquet")
        paths = {"dev_qrels": tmp_path / "qrels.parquet", "dev_run": tmp_path / "run.parquet"}
        config = ValidationConfig(**{**paths, **options})
        return config, Corpus(tmp_path / "corpus.parquet"), tmp_path / "queries.parquet"

    return made


def test_the_pool_is_the_first_of_the_run_and_the_relevant_ones(given: Callable) -> None:
    pool = Pool(*given(dev_depth=4), min_relevance=1)
    ids = pool.doc_ids.take(pa.array(pool.document)).to_pylist()
    found = {query: set() for query in pool.query_ids.to_pylist()}
    for query, doc in zip(pool.query_ids.take(pa.array(pool.query)).to_pylist(), ids, strict=True):
        assert doc not in found[query]
        found[query].add(doc)
    assert found == {
        "q0": {"d0", "d1", "d2", "d3"},
        "q1": {"d3", "d4", "d5", "d6", "d12"},
        "q3": {"d9", "d10", "d11", "d12", "d19"},
    }


def test_the_value_is_that_of_a_ranking_of_the_pool(given: Callable, tiny_model: Path, tmp_path: Path) -> None:
    config, corpus, queries = given()
    encoder = Encoder.load(str(tiny_model), pooling="mean").train()
    pool = Pool(config, corpus, queries, 1)
    tokens = TokenCache(corpus.table, encoder.tokenization("document"))
    measured = Validation(config, pool, encoder, encoder, tokens, folder=tmp_path, dtype="float32").measure()
    assert encoder.training, "training goes on as it was"
    documents = [document.text for document in corpus.documents(pool.documents.tolist())]
    vectors = [
        encode_texts(encoder, role, texts, ComputeOptions("float32", chunk_tokens=64))
        for role, texts in (("query", pool.texts), ("document", documents))
    ]
    scores = (vectors[0][pool.query] * vectors[1][pool.document]).sum(axis=1)
    ids = [pool.query_ids.take(pa.array(pool.query)), pool.doc_ids.take(pa.array(pool.document))]
    run = pa.table([*ids, pa.array(scores.astype(np.float32))], ["query_id", "doc_id", "score"])
    metric = Metric.parse("mrr@10")
    assert measured == pytest.approx(evaluate(run, pool.qrels, [metric]).means()[metric])


def test_patience_counts_measures_since_the_best(given: Callable, tiny_model: Path, tmp_path: Path) -> None:
    config, corpus, queries = given(patience=2)
    encoder = Encoder.load(str(tiny_model), pooling="mean")
    tokens = TokenCache(corpus.table, encoder.tokenization("document"))
    pool = Pool(config, corpus, queries, 1)
    validation = Validation(config, pool, encoder, encoder, tokens, folder=tmp_path, dtype="float32")
    ends = []
    with (tmp_path / "metrics.jsonl").open("w") as log:
        for step, value in enumerate([0.1, 0.3, 0.3, 0.2, 0.5], start=1):
            log.write(json.dumps({"step": step, "loss": 1.0}) + "\n" + json.dumps({"step": step, "dev mrr@10": value}))
            log.write("\n")
            log.flush()
            ends.append(validation.is_enough())
    assert ends == [False, False, False, True, False]
    assert validation.best() == (5, 0.5)


def test_the_best_weights_are_kept_and_put_back(given: Callable, tiny_model: Path, tmp_path: Path) -> None:
    config, corpus, queries = given()
    encoder = Encoder.load(str(tiny_model), pooling="mean")
    tokens = TokenCache(corpus.table, encoder.tokenization("document"))
    folder = tmp_path / "model"
    folder.mkdir()
    validation = Validation(
        config, Pool(config, corpus, queries, 1), encoder, encoder, tokens, folder=folder, dtype="fp32"
    )
    first = {name: value.clone() for name, value in encoder.state_dict().items()}
    values = iter([0.4, 0.2])
    validation.measure = lambda: next(values)  # type: ignore[method-assign]
    for step in (1, 2):
        line = {"step": step} | validation(step)
        with (folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(1.0)
    validation.restore_best(validation.module)
    assert all(torch.equal(value, first[name]) for name, value in encoder.state_dict().items())


def test_the_value_counts_as_relevant_what_the_pool_does(given: Callable, tiny_model: Path, tmp_path: Path) -> None:
    config, corpus, queries = given()
    encoder = Encoder.load(str(tiny_model), pooling="mean")
    tokens = TokenCache(corpus.table, encoder.tokenization("document"))
    pool = Pool(config, corpus, queries, 1)
    pool.min_relevance = 9  # more than any judgment says
    assert Validation(config, pool, encoder, encoder, tokens, folder=tmp_path, dtype="fp32").measure() == 0


def test_weights_that_a_killed_run_would_go_on_with_are_kept_beside_the_best(
    given: Callable, tiny_model: Path, tmp_path: Path
) -> None:
    config, corpus, queries = given()
    encoder = Encoder.load(str(tiny_model), pooling="mean")
    tokens = TokenCache(corpus.table, encoder.tokenization("document"))
    validation = Validation(
        config, Pool(config, corpus, queries, 1), encoder, encoder, tokens, folder=tmp_path, dtype="fp32"
    )
    kept = []
    for step, value in enumerate([0.1, 0.2, 0.3, 0.4], start=1):
        validation.measure = lambda value=value: value  # type: ignore[method-assign]
        line = {"step": step} | validation(step)
        with (tmp_path / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if step == 2:
            checkpoint = tmp_path / "checkpoints" / "step-000002"
            checkpoint.mkdir()
            (checkpoint / "manifest.json").write_text("{}")
        kept.append(sorted(int(path.stem[5:]) for path in (tmp_path / "checkpoints").glob("best-*")))
    assert kept == [[1], [2], [2, 3], [2, 4]]


def test_what_does_not_fit_is_refused(given: Callable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dev-qrels: needs candidates"):
        ValidationConfig(dev_qrels=tmp_path).check()
    for flag, options in (("--patience", {"patience": 3}), ("--dev-depth", {"dev_depth": 5})):
        with pytest.raises(UsageError, match=f"{flag}: applies only with --dev-qrels"):
            ValidationConfig(**options).check()
    config, corpus, _ = given()
    pq.write_table(pa.table({"id": ["q0"], "text": ["one"]}), tmp_path / "few.parquet")
    with pytest.raises(RetrievoError, match="lacks query 'q1'"):
        Pool(config, corpus, tmp_path / "few.parquet", 1)
