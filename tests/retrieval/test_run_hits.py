"""A run read block by block gives the same hits as a run that is sorted in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data import run as run_module
from retrievo.data.run import Run
from retrievo.data.tables import RUN
from retrievo.retrieval.hits import Hits, joined
from retrievo.retrieval.run_hits import RunHits
from retrievo.support.errors import RetrievoError

QUERIES = pa.chunked_array([[f"q{number}" for number in range(20)]])


def table(rng: np.random.Generator) -> pa.Table:
    """Rows for most of the queries, in their order, with ties and without any order of the documents of a query."""
    query = np.sort(rng.choice(np.flatnonzero(rng.random(20) < 0.8), 300))
    documents = [f"d{number}" for number in rng.permutation(300)]
    score = rng.integers(0, 9, 300).astype(np.float32)
    return pa.table([[f"q{number}" for number in query], documents, score, np.zeros(300, np.int32)], schema=RUN.arrow)


def found(path: Path, size: int) -> list[tuple[int, str, float]]:
    reader = RunHits(Run.open(path), QUERIES, 7)
    parts = []
    for first in range(0, 20, size):
        hits = reader.hits(first, min(first + size, 20))
        parts.append(hits._replace(query=hits.query + first))
    whole: Hits = joined(parts)
    return list(zip(whole.query.tolist(), whole.ids().to_pylist(), whole.score.tolist(), strict=True))


@pytest.mark.parametrize("size", [1, 3, 20])
def test_blocks_of_a_run_in_order_are_those_of_the_run_in_any_order(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_ROWS_PER_READ", 16)
    monkeypatch.setattr(run_module, "_ROWS_PER_BLOCK", 16)
    rng = np.random.default_rng(size)
    rows = table(rng)
    pq.write_table(rows, tmp_path / "sorted.parquet")
    pq.write_table(rows.take(rng.permutation(300)), tmp_path / "shuffled.parquet")
    expected: dict[str, list[tuple[float, str]]] = {}
    for row in rows.to_pylist():
        expected.setdefault(row["query_id"], []).append((row["score"], row["doc_id"]))
    law = [
        (number, document, score)
        for number, query in enumerate(QUERIES.to_pylist())
        for score, document in sorted(expected.get(query, []), reverse=True)[:7]
    ]
    assert found(tmp_path / "sorted.parquet", size) == found(tmp_path / "shuffled.parquet", size) == law


def test_a_run_in_order_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(np.random.default_rng(0)), tmp_path / "sorted.parquet")
    monkeypatch.setattr(Run, "table", property(lambda run: pytest.fail("the whole run is read")))
    assert len(found(tmp_path / "sorted.parquet", 4)) > 50


def test_a_query_that_the_table_lacks_is_refused_before_anything_is_searched(tmp_path: Path) -> None:
    rows = table(np.random.default_rng(0))
    pq.write_table(rows, tmp_path / "run.parquet")
    last = rows["query_id"][-1].as_py()
    others = pa.chunked_array([[name for name in QUERIES.to_pylist() if name != last]])
    with pytest.raises(RetrievoError, match=f"has a query '{last}' that is not in the table of queries"):
        RunHits(Run.open(tmp_path / "run.parquet"), others, 7)
    some = RunHits(Run.open(tmp_path / "run.parquet"), QUERIES.slice(0, 5), 7, some=True)
    assert set(some.hits(0, 5).query.tolist()) <= set(range(5))
