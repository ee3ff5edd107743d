"""Mining: never a relevant document or its text, only ranks of the window, and draws that depend on nothing else."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.corpus import Corpus
from retrievo.data.tables import RUN
from retrievo.retrieval import mining
from retrievo.retrieval.mining import Relevant, Window, choose


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    texts = [f"text {n}" for n in range(40)]
    texts[7] = texts[3]  # d7 has the text of d3
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(40)], "text": texts}), tmp_path / "corpus.parquet")
    return Corpus(tmp_path / "corpus.parquet")


def write_run(path: Path, queries: list[str], depth: int) -> Path:
    rows = [(query, f"d{n}", float(-n), n + 1) for query in queries for n in range(depth)]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), RUN.arrow.types, strict=True)]
    pq.write_table(pa.table(columns, schema=RUN.arrow), path)
    return path


def mined(
    corpus: Corpus, run: Path, pairs: dict[str, list[str]], **window: object
) -> tuple[list[dict], dict[str, int]]:
    defaults = {"skip": 0, "depth": 40, "samples": 5, "sampling": "random", "seed": 0}
    flat = [(query, document) for query, documents in pairs.items() for document in documents]
    table = pa.table({"query_id": [query for query, _ in flat], "doc_id": [document for _, document in flat]})
    parts = list(choose(run, Relevant(corpus, table), Window(**{**defaults, **window}), "bm25"))  # type: ignore[arg-type]
    rows = [row for negatives, _ in parts for row in negatives.to_pylist()]
    return rows, {name: sum(counts[name] for _, counts in parts) for name in parts[0][1]}


def test_relevant_documents_and_their_texts_are_left_out(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", ["q1", "q2"], 40)
    rows, counts = mined(corpus, run, {"q1": ["d3"], "q2": ["d5"]}, samples=40)
    found = {query: {row["doc_id"] for row in rows if row["query_id"] == query} for query in ("q1", "q2")}
    assert found["q1"] == {f"d{n}" for n in range(40)} - {"d3", "d7"}
    assert found["q2"] == {f"d{n}" for n in range(40)} - {"d5"}
    assert counts == {"queries": 2, "relevant": 2, "same_text": 1, "short": 2, "without": 0}


def test_only_ranks_of_the_window_and_the_best_of_them_with_top(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", ["q1"], 40)
    rows, _ = mined(corpus, run, {"q1": ["d30"]}, skip=10, depth=20, samples=4, sampling="top")
    assert [(row["doc_id"], row["rank"]) for row in rows] == [("d10", 11), ("d11", 12), ("d12", 13), ("d13", 14)]
    rows, _ = mined(corpus, run, {"q1": ["d30"]}, skip=10, depth=20, samples=40)
    assert [row["rank"] for row in rows] == list(range(11, 21))


def test_a_draw_depends_on_seed_query_and_document_alone(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {query: ["d30"] for query in ("q1", "q2", "q3")}
    together, _ = mined(corpus, write_run(tmp_path / "a.parquet", ["q1", "q2", "q3"], 40), pairs)
    alone, _ = mined(corpus, write_run(tmp_path / "b.parquet", ["q2"], 40), pairs)
    assert alone == [row for row in together if row["query_id"] == "q2"]
    monkeypatch.setattr(mining, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(mining, "_BATCH_ROWS", 13)
    assert mined(corpus, tmp_path / "a.parquet", pairs)[0] == together
    assert mined(corpus, tmp_path / "a.parquet", pairs, seed=1)[0] != together
    assert [row["rank"] for row in alone] == sorted(row["rank"] for row in alone)


def test_queries_that_end_short_keep_what_they_have_and_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    rows, counts = mined(
        corpus, write_run(tmp_path / "run.parquet", ["q1", "q2"], 2), {"q1": ["d0", "d1"], "q2": ["d0"]}
    )
    assert [(row["query_id"], row["doc_id"]) for row in rows] == [("q2", "d1")]
    assert (counts["short"], counts["without"]) == (2, 1)
