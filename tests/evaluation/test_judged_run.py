"""One pass over a run keeps what evaluation needs, however its rows are cut into blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data import lines, run
from retrievo.data.run import Run
from retrievo.evaluation.names import Metric
from retrievo.evaluation.scoring import PerQuery, evaluate
from retrievo.support.errors import RetrievoError

METRICS = [Metric.parse(text) for text in ("mrr@3", "ndcg@5", "map", "recall@5", "judged@5", "nb-recall-3@5")]


def random_run(seed: int, queries: int = 30, depth: int = 20) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = [(f"q{q}", f"d{d}") for q in range(queries) for d in rng.choice(60, depth, replace=False)]
    columns = {"query_id": [row[0] for row in rows], "doc_id": [row[1] for row in rows]}
    scores = rng.choice([0.5, 1.5, 2.5, 3.5], len(rows)).astype(np.float32)
    return pa.table(columns | {"score": scores, "rank": np.tile(np.arange(1, depth + 1, dtype=np.int32), queries)})


def random_qrels(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = [(f"q{q}", f"d{d}") for q in range(0, 40, 2) for d in rng.choice(60, 8, replace=False)]
    columns = {"query_id": [row[0] for row in rows], "doc_id": [row[1] for row in rows]}
    return pa.table(columns | {"relevance": rng.integers(-1, 3, len(rows)).astype(np.int32)})


def same(found: PerQuery, expected: PerQuery) -> None:
    assert found.query_ids.to_pylist() == expected.query_ids.to_pylist()
    for metric in METRICS:
        np.testing.assert_array_equal(found.values[metric], expected.values[metric])
    assert (found.missing, found.unjudged) == (expected.missing, expected.unjudged)


@pytest.mark.parametrize("rows_per_block", [1, 7, 20, 33, 1000])
@pytest.mark.parametrize("scattered", [False, True], ids=["contiguous", "scattered"])
def test_the_cut_into_blocks_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_block: int, scattered: bool
) -> None:
    table, qrels = random_run(0), random_qrels(1)
    expected = evaluate(table, qrels, METRICS, reference=random_run(2))
    if scattered:
        table = table.take(np.random.default_rng(3).permutation(len(table)))
    pq.write_table(table, tmp_path / "run.parquet", row_group_size=13)
    text = zip(*(table[name].to_pylist() for name in ("query_id", "doc_id", "rank", "score")), strict=True)
    (tmp_path / "run.trec").write_text("".join(f"{q} Q0 {d} {r} {s} x\n" for q, d, r, s in text))
    monkeypatch.setattr(run, "_ROWS_PER_BLOCK", rows_per_block)
    monkeypatch.setattr(lines, "_BLOCK", 11 * rows_per_block)
    for name in ("run.parquet", "run.trec"):
        found = evaluate(Run.open(tmp_path / name), qrels, METRICS, reference=random_run(2))
        # a scattered run has its own order of unjudged queries
        same(found, expected if not scattered else evaluate(table, qrels, METRICS, reference=random_run(2)))


def test_a_pair_that_occurs_twice_is_found_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK", 16)
    monkeypatch.setattr(run, "_ROWS_PER_BLOCK", 1)
    (tmp_path / "run.trec").write_text("q1 Q0 d1 1 3 x\nq2 Q0 d1 1 3 x\nq1 Q0 d1 2 1 x\n")
    qrels = pa.table({"query_id": ["q1"], "doc_id": ["d1"], "relevance": pa.array([1], pa.int32())})
    with pytest.raises(RetrievoError, match="query 'q1' and document 'd1' occur twice"):
        evaluate(Run.open(tmp_path / "run.trec"), qrels, METRICS[:1])


def test_a_line_of_a_later_block_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK", 40)
    (tmp_path / "run.trec").write_text("q1 Q0 d1 1 3 x\n\n" + "q1 Q0 d2 2 2 x\n" * 9 + "q1 Q0 d3 3 high x\n")
    with pytest.raises(RetrievoError, match="line 12: score is 'high'"):
        Run.open(tmp_path / "run.trec").table  # noqa: B018


def test_ranks_that_are_no_numbers_are_none(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q1 Q0 d1 NA 3 x\nq1 Q0 d2 2 2 x\n")
    assert Run.open(tmp_path / "run.trec").table["rank"].to_pylist() == [0, 2]
