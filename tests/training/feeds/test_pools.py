"""Pools of negatives lie in the cache by row, whatever the number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.training.feeds import pools
from retrievo.training.feeds.dataset_config import DataSetConfig
from retrievo.training.feeds.finetune import TrainingData


@pytest.fixture
def told(tmp_path: Path) -> DataSetConfig:
    """Three queries and forty documents, the last one empty; two pools with unknown ids, out of order, overlapping."""
    texts = [f"t{number}" for number in range(39)] + [""]
    documents = [f"d{number}" for number in range(40)]
    tables = {
        "corpus": {"id": documents, "text": texts},
        "queries": {"id": ["q0", "q1", "q2"], "text": ["a", "b", "c"]},
        "qrels": {"query_id": ["q0", "q2"], "doc_id": ["d0", "d1"], "relevance": [1, 1]},
    }
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        query = [f"q{number}" for number in random.integers(0, 4, 200)]
        found = {"query_id": query, "doc_id": [f"d{number}" for number in random.integers(0, 45, 200)]}
        found |= {"score": pa.array([0.0] * 200, pa.float32()), "rank": pa.array([1] * 200, pa.int32())}
        tables[name] = found | {"source": ["x"] * 200}
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    paths = {name: tmp_path / f"{name}.parquet" for name in tables}
    own = {name: paths[name] for name in ("corpus", "queries", "qrels")}
    return DataSetConfig(**own, negatives=(paths["one"], paths["two"]))


def test_a_mapped_pool_is_what_the_tables_say(told: DataSetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_ROWS_AT_ONCE", 64)
    data = TrainingData(told, 1)
    expected, lost = data.by_query(pa.concat_tables(pq.read_table(path) for path in told.negatives))
    assert data.lost_negatives == lost > 0
    assert [data.negatives.list(query).tolist() for query in range(3)] == [
        expected.list(query).tolist() for query in range(3)
    ]
    assert data.negatives.values.dtype == np.int32


def test_a_pool_is_built_once_and_stays_on_disk(told: DataSetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TrainingData(told, 1)
    monkeypatch.setattr(pools, "_build", None)
    second = TrainingData(told, 1)
    assert (second.negatives.values == first.negatives.values).all()
    assert isinstance(second.negatives.values.base, np.memmap)


def test_without_pools_there_are_none(told: DataSetConfig) -> None:
    data = TrainingData(DataSetConfig(corpus=told.corpus, queries=told.queries, qrels=told.qrels), 1)
    assert (data.lost_negatives, [len(data.negatives.list(query)) for query in range(3)]) == (0, [0, 0, 0])
