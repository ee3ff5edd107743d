"""`retrievo pseudo-label`: from a cross-encoder's run to judgments and negatives that `retrievo train` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import retrievo.data.run as run_module
from retrievo.support.artifact import Manifest

# (query, document, logit): q1 is judged, q2 sure of two, q3 sure of none, q4 sure of one and of no negative
ROWS = [
    ("q1", "d9", 5.0),
    ("q1", "d8", -5.0),
    ("q2", "d2", 2.3),
    ("q2", "d3", 4.0),
    ("q2", "d4", 0.0),
    ("q2", "d5", -2.3),
    ("q2", "d6", -2.1),
    ("q3", "d3", 2.1),
    ("q3", "d7", -6.0),
    ("q4", "d4", 9.0),
]
QRELS = [("q1", "d1", 2), ("q1", "d8", 0), ("q7", "d7", 1)]


def write_run(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    lines = [f"{query} Q0 {document} 0 {score!r} x\n" for query, document, score in rows]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_run(tmp_path / "reranked.trec", ROWS)
    (tmp_path / "qrels.txt").write_text("".join(f"{q} 0 {d} {grade}\n" for q, d, grade in QRELS))
    return tmp_path


def labeling(home: Path, *more: object, run: str = "reranked.trec", output: str = "labels") -> list[object]:
    return ["pseudo-label", "--run", home / run, "--qrels", home / "qrels.txt", "--output", home / output, *more]


def pairs(path: Path) -> list[tuple[Any, ...]]:
    return [tuple(row.values())[:3] for row in pq.read_table(path).to_pylist()]


def test_judgments_that_are_there_stay_and_the_others_get_labels(home: Path, retrievo: Callable) -> None:
    made = retrievo(*labeling(home))
    assert made.code == 0, made.err
    labels = [("q2", "d3", 1), ("q2", "d2", 1), ("q4", "d4", 1)]
    assert pairs(home / "labels" / "qrels.parquet") == [*QRELS, *labels]
    assert pairs(home / "labels" / "negatives.parquet") == [("q2", "d5", pytest.approx(-2.3))]
    manifest = Manifest.read(home / "labels", "labels")
    assert manifest.stats == {
        "queries": 4,
        "labeled": 2,
        "positives": 3,
        "negatives": 1,
        "without_negatives": 1,
        "judged": 1,
        "unsure": 1,
        "judgments": 3,
    }
    assert set(manifest.inputs) == {"run", "qrels"}
    assert Manifest.read(home / "labels" / "negatives.parquet", "negatives").config["positive_above"] == 0.9
    for told in ("2 of 4 queries labeled", "3 (1.5 for each", "1 judged queries, 1 without a document above 0.9"):
        assert told in made.err


def test_without_judgments_every_query_may_be_labeled(home: Path, retrievo: Callable) -> None:
    made = retrievo("pseudo-label", "--run", home / "reranked.trec", "--output", home / "labels")
    assert made.code == 0, made.err
    assert ("q1", "d9", 1) in pairs(home / "labels" / "qrels.parquet")
    assert "judgments of" not in made.err


def test_other_bounds_and_probabilities(home: Path, retrievo: Callable) -> None:
    sure = [(query, document, float(1 / (1 + np.exp(-score)))) for query, document, score in ROWS]
    write_run(home / "sure.trec", sure)
    for output, flags in (("logits", {}), ("sure", {"run": "sure.trec"})):
        more = ["--positive-above", 0.85, "--negative-below", 0.11]
        scale = ["--scores", "probabilities"] if flags else []
        made = retrievo(*labeling(home, *more, *scale, output=output, **flags))
        assert made.code == 0, made.err
    assert pairs(home / "logits" / "qrels.parquet") == pairs(home / "sure" / "qrels.parquet")
    assert ("q3", "d3", 1) in pairs(home / "sure" / "qrels.parquet")
    first, second = (pq.read_table(home / name / "negatives.parquet") for name in ("logits", "sure"))
    assert first["doc_id"].to_pylist() == second["doc_id"].to_pylist() == ["d6", "d5", "d7"]


@pytest.mark.parametrize("rows_at_once", [1 << 18, 2])
def test_the_order_of_the_run_changes_no_label(
    rows_at_once: int, home: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retrievo(*labeling(home)).code == 0
    rows = sorted(ROWS, key=lambda row: row[2])  # the queries are scattered, the worst documents come first
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    ranks = pa.array([0] * len(rows), pa.int32())
    names = ["query_id", "doc_id", "score", "rank"]
    pq.write_table(pa.table([*columns, ranks], names=names), home / "reranked.parquet")
    monkeypatch.setattr(run_module, "_ROWS_PER_READ", rows_at_once)
    monkeypatch.setattr(run_module, "_ROWS_PER_BLOCK", rows_at_once)
    assert retrievo(*labeling(home, run="reranked.parquet", output="shuffled")).code == 0
    for name in ("qrels.parquet", "negatives.parquet"):
        first, second = (pairs(home / folder / name) for folder in ("labels", "shuffled"))
        for query in ("q1", "q2", "q3", "q4", "q7"):
            assert [row for row in first if row[0] == query] == [row for row in second if row[0] == query]
        assert len(first) == len(second)


def test_finished_labels_are_recognized_and_others_refused(home: Path, retrievo: Callable) -> None:
    assert retrievo(*labeling(home)).code == 0
    before = (home / "labels" / "manifest.json").read_bytes()
    again = retrievo(*labeling(home))
    assert (again.code, "is already finished; nothing to do" in again.err) == (0, True)
    assert (home / "labels" / "manifest.json").read_bytes() == before
    other = retrievo(*labeling(home, "--positive-above", 0.8))
    assert (other.code, "positive_above was 0.9 and is now 0.8" in other.err) == (1, True)
    write_run(home / "reranked.trec", ROWS[2:])
    assert "its input 'run' has changed" in retrievo(*labeling(home)).err


def test_a_stopped_labeling_leaves_nothing_that_passes_for_labels(
    home: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "reranked.trec").write_text((home / "reranked.trec").read_text() + "q9 Q0 d1 0 nan x\n")
    assert retrievo(*labeling(home)).code == 1
    assert sorted(path.name for path in home.iterdir()) == ["qrels.txt", "reranked.trec"]


def test_labels_are_trained_on(tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> None:
    rows = [(f"q{n}", f"d{(n + k) % 240}", 5.0 if k == 0 else -5.0) for n in range(160, 240) for k in range(4)]
    judged = toy_dataset / "qrels" / "train.parquet"
    run = write_run(tmp_path / "reranked.trec", rows)
    made = retrievo("pseudo-label", "--run", run, "--qrels", judged, "--output", tmp_path / "labels")
    assert made.code == 0, made.err
    labels = tmp_path / "labels"
    trained = retrievo(
        *("train", "--model", tiny_model, "--corpus", toy_dataset, "--queries", toy_dataset),
        *("--qrels", labels / "qrels.parquet", "--negatives", labels / "negatives.parquet"),
        *("--negatives-per-query", 2, "--batch-size", 16, "--max-steps", 2, "--dtype", "fp32"),
        *("--output", tmp_path / "model"),
    )
    assert trained.code == 0, trained.err
    assert (
        "240 judged queries with 240 relevant documents; 80 of them have hard negatives (3 on average)" in trained.err
    )
    inputs = Manifest.read(tmp_path / "model", "model").inputs
    recorded = Manifest.read(labels, "labels").files
    assert inputs["qrels"]["fingerprint"] == recorded["qrels.parquet"]["blake2b"]
    assert inputs["negatives-1"]["fingerprint"] == recorded["negatives.parquet"]["blake2b"]


def reranked(home: Path, rows: list[tuple[str, str, float]], **stats: str) -> Path:
    """A run that says what its scores are, as `retrievo rerank` writes it."""
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    table = pa.table([*columns, pa.array([0] * len(rows), pa.int32())], names=["query_id", "doc_id", "score", "rank"])
    told = {
        "kind": "run",
        "format": 1,
        "created_by": "retrievo 0",
        "command": "x",
        "config": {},
        "inputs": {},
        "stats": stats,
    }
    pq.write_table(table.replace_schema_metadata({"retrievo": json.dumps(told)}), home / "told.parquet")
    return home / "told.parquet"


def test_the_unit_of_scores_is_what_the_run_says(home: Path, retrievo: Callable) -> None:
    young = [("q2", "d2", 0.9), ("q2", "d3", 0.2), ("q2", "d4", 0.1)]
    command = ["pseudo-label", "--run", reranked(home, young, scores="logits"), "--positive-above", 0.7]
    made = retrievo(*command, "--negative-below", 0.54, "--output", home / "labels")
    assert made.code == 0, made.err
    assert "taken for" not in made.err
    assert pairs(home / "labels" / "qrels.parquet") == [("q2", "d2", 1)]  # a probability of 0.71
    assert Manifest.read(home / "labels", "labels").config["scores"] == "logits"
    other = retrievo(*command, "--scores", "probabilities", "--output", home / "other")
    assert (other.code, "--scores: found probabilities; expected logits, as" in other.err) == (1, True)
    reranked(home, young, scores="similarities")
    assert "holds similarities; expected scores of a cross-encoder" in retrievo(*command, "--output", home / "no").err


def test_the_unit_of_a_foreign_run_is_guessed_and_said(home: Path, retrievo: Callable) -> None:
    made = retrievo(*labeling(home))
    assert "they lie between -6 and 9 and are taken for logits" in made.err
    write_run(home / "sure.trec", [("q2", "d2", 0.95), ("q2", "d3", 0.05)])
    assert "are taken for probabilities" in retrievo(*labeling(home, run="sure.trec", output="sure")).err


def test_a_document_that_is_the_query_gets_no_label(home: Path, retrievo: Callable) -> None:
    pq.write_table(pa.table({"id": ["d2", "d3"], "text": ["Is  it so?", "It is."]}), home / "corpus.parquet")
    pq.write_table(pa.table({"id": ["q2"], "text": ["is it so?"]}), home / "queries.parquet")
    write_run(home / "own.trec", [("q2", "d2", 9.0), ("q2", "d3", 8.0)])
    texts = ["--corpus", home / "corpus.parquet", "--queries", home / "queries.parquet"]
    assert retrievo("pseudo-label", "--run", home / "own.trec", "--output", home / "labels", *texts).code == 0
    assert pairs(home / "labels" / "qrels.parquet") == [("q2", "d3", 1)]
    assert Manifest.read(home / "labels", "labels").stats["query_text"] == 1
    assert "may become relevant" in retrievo("pseudo-label", "--run", home / "own.trec", "--output", home / "bare").err


@pytest.mark.slow
def test_labeling_killed_at_any_moment_and_run_again_ends_in_the_same_bytes(kill_harness: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 4, 400_000).astype(np.float32)
    query, document = (pa.array([f"{letter}{n}" for n in numbers]) for letter, numbers in (
        ("q", np.repeat(np.arange(8_000), 50)), ("d", np.tile(np.arange(50), 8_000)),
    ))  # fmt: skip
    names, ranks = ["query_id", "doc_id", "score", "rank"], pa.array(np.zeros(len(scores), np.int32))
    pq.write_table(pa.table([query, document, pa.array(scores), ranks], names=names), tmp_path / "run.parquet")
    kill_harness.check(
        lambda output: ["pseudo-label", "--run", str(tmp_path / "run.parquet"), "--output", str(output)], kills=3
    )


@pytest.mark.slow
def test_two_processes_label_as_one(home: Path, process: Callable) -> None:
    for processes in (1, 2):
        process([str(word) for word in labeling(home, output=str(processes))], processes=processes)
    for name in ("qrels.parquet", "negatives.parquet"):
        assert pq.read_table(home / "1" / name).equals(pq.read_table(home / "2" / name))
