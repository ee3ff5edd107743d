"""`retrievo evaluate` as it is typed: several runs, several metrics, a baseline, JSON, per-query values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

QRELS = """\
q1 0 d1 1
q1 0 d2 2
q2 0 d3 1
q3 0 d1 1
"""
FIRST = """\
q1 Q0 d2 1 3.0 first
q1 Q0 d9 2 2.0 first
q1 Q0 d1 3 1.0 first
q2 Q0 d9 1 2.0 first
q2 Q0 d3 2 1.0 first
"""
SECOND = """\
q1 Q0 d9 1 3.0 second
q1 Q0 d1 2 2.0 second
q2 Q0 d3 1 2.0 second
q3 Q0 d1 1 2.0 second
q7 Q0 d1 1 2.0 second
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "qrels.txt").write_text(QRELS)
    (tmp_path / "first.trec").write_text(FIRST)
    (tmp_path / "second.trec").write_text(SECOND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_several_runs_and_metrics_as_typed(folder: Path, retrievo: Callable) -> None:
    outcome = retrievo(
        "evaluate", "--run", "first.trec", "second.trec", "--qrels", "qrels.txt", "--metrics", "mrr@10", "recall@1"
    )
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert rows == [["run", "mrr@10", "recall@1"], ["first", "0.5000", "0.1667"], ["second", "0.8333", "0.6667"]]
    assert "first: 1 of 3 judged queries are missing, counted as 0" in outcome.err
    assert "second: 1 queries have no judgments" in outcome.err


def test_a_grade_that_no_judgment_reaches_is_told(folder: Path, retrievo: Callable) -> None:
    asked = ["evaluate", "--run", "first.trec", "--qrels", "qrels.txt", "--min-relevance"]
    assert "qrels.txt: no judgment reaches --min-relevance 3" in retrievo(*asked, 3).err
    assert "no judgment" not in retrievo(*asked, 2).err


def test_a_run_is_not_compared_with_itself(folder: Path, retrievo: Callable) -> None:
    asked = ["evaluate", "--run", "first.trec", "--qrels", "qrels.txt", "--baseline", "first.trec"]
    told = "--baseline: is the only run; nothing is compared"
    assert told in retrievo(*asked).err
    assert told not in retrievo(*asked, "--run", "second.trec").err


def test_json_has_unrounded_values_under_the_names_as_typed(folder: Path, retrievo: Callable) -> None:
    outcome = retrievo(
        "evaluate", "--run", "first.trec", "--qrels", "qrels.txt", "--metrics", "RR@10,nDCG@10", "--json"
    )
    values = json.loads(outcome.out)
    assert list(values) == ["first"]
    assert list(values["first"]) == ["RR@10", "nDCG@10"]
    assert values["first"]["RR@10"] == 0.5


def test_missing_queries_may_be_left_out(folder: Path, retrievo: Callable) -> None:
    arguments = (
        "evaluate",
        "--run",
        "first.trec",
        "--qrels",
        "qrels.txt",
        "--metrics",
        "mrr@10",
        "--json",
        "--missing",
        "skip",
    )
    assert json.loads(retrievo(*arguments).out)["first"]["mrr@10"] == 0.75


def test_a_baseline_adds_differences_and_p_values(folder: Path, retrievo: Callable) -> None:
    arguments = (
        "evaluate",
        "--run",
        "second.trec",
        "--qrels",
        "qrels.txt",
        "--baseline",
        "first.trec",
        "--metrics",
        "mrr@10",
    )
    table = retrievo(*arguments).out
    assert "second\tmrr@10\t+0.3333\t" in table
    values = json.loads(retrievo(*arguments, "--json").out)
    assert set(values) == {"first", "second"}
    assert values["second"]["mrr@10 difference"] == pytest.approx(1 / 3)
    assert 0 < values["second"]["mrr@10 p_randomization"] <= 1
    assert "mrr@10 p_t_test" not in values["first"]


def test_queries_that_changed_are_shown_of_one_run_and_of_several_where_asked(folder: Path, retrievo: Callable) -> None:
    shutil.copy("second.trec", "third.trec")
    arguments = ("evaluate", "--qrels", "qrels.txt", "--baseline", "first.trec", "--metrics", "mrr@10", "--run")
    title = "the queries that changed most in mrr@10"
    assert title in retrievo(*arguments, "second.trec").out
    several = retrievo(*arguments, "second.trec", "third.trec")
    assert "compared with first" in several.out
    assert title not in several.out
    asked = retrievo(*arguments, "second.trec", "third.trec", "--changed", 1).out.partition(title)[2]
    assert [line.split("\t")[0] for line in asked.splitlines()[2:]] == ["second", "third"]
    assert title not in retrievo(*arguments, "second.trec", "--changed", 0).out


def test_per_query_values_are_a_parquet_table(folder: Path, retrievo: Callable) -> None:
    outcome = retrievo(
        "evaluate", "--run", "first.trec", "--qrels", "qrels.txt", "--metrics", "mrr@10", "--per-query", "q.parquet"
    )
    assert outcome.code == 0, outcome.err
    assert pq.read_table("q.parquet").to_pylist() == [
        {"run": "first", "query_id": "q1", "mrr@10": 1.0},
        {"run": "first", "query_id": "q2", "mrr@10": 0.5},
        {"run": "first", "query_id": "q3", "mrr@10": 0.0},
    ]


def test_nb_recall_looks_into_the_reference_run(folder: Path, retrievo: Callable) -> None:
    arguments = ("evaluate", "--run", "second.trec", "--reference-run", "first.trec", "--qrels", "qrels.txt", "--json")
    assert json.loads(retrievo(*arguments, "--metrics", "nb-recall-1@2").out)["second"]["nb-recall-1@2"] == 0.5


def test_documents_that_the_corpus_of_the_answers_lacks_are_told(folder: Path, retrievo: Callable) -> None:
    pq.write_table(pa.table({"id": ["d1", "d2"], "text": ["heat", "wing"]}), "corpus.parquet")
    pq.write_table(pa.table({"query_id": ["q1", "q2"], "answers": [["heat"]] * 2}), "answers.parquet")
    flags = ("--answers", "answers.parquet", "--corpus", "corpus.parquet", "--metrics", "answer-recall@3")
    outcome = retrievo("evaluate", "--run", "first.trec", *flags, "--json")
    assert json.loads(outcome.out)["first"]["answer-recall@3"] == 0.5
    assert "first: 3 rows are of documents that the corpus lacks, taken for no answer" in outcome.err
    pq.write_table(pa.table({"id": ["x"], "text": ["heat"]}), "corpus.parquet")
    outcome = retrievo("evaluate", "--run", "first.trec", *flags)
    assert (outcome.code, outcome.out) == (1, "")
    assert "first: corpus.parquet has none of the documents that it found; pass --corpus" in outcome.err


def test_the_same_run_gives_the_same_numbers_from_every_format(folder: Path, retrievo: Callable) -> None:
    from retrievo.data.run import Run

    table = Run.open(folder / "first.trec").table
    pq.write_table(table, "same.parquet")
    Path("same.tsv").write_text(
        "".join(
            f"{q}\t{d}\t{r}\n"
            for q, d, r in zip(table["query_id"].to_pylist(), table["doc_id"].to_pylist(), [1, 2, 3, 1, 2], strict=True)
        )
    )
    arguments = ("evaluate", "--run", "first.trec", "same.parquet", "same.tsv", "--qrels", "qrels.txt", "--json")
    values = json.loads(
        retrievo(*arguments, "--metrics", "mrr", "map", "ndcg@3", "rprec", "judged@2", "success@1", "p@2").out
    )
    assert values["first"] == values["same.parquet"] == values["same.tsv"]


def test_settings_complete_the_line(folder: Path, retrievo: Callable) -> None:
    (folder / "retrievo.toml").write_text('[evaluate]\nrun = "first.trec"\nqrels = "qrels.txt"\n')
    outcome = retrievo("evaluate", "--metrics", "mrr@10", "recall@1000")
    assert outcome.out.splitlines()[1] == "first\t0.5000\t0.6667"
    assert "defaults from retrievo.toml [evaluate]" in outcome.err


def test_without_a_run_the_ones_that_lie_here_are_named(folder: Path, retrievo: Callable) -> None:
    outcome = retrievo("evaluate", "--metrics", "mrr@10", "recall@1000")
    assert outcome.code == 2
    assert "first.trec, second.trec" in outcome.err
    outcome = retrievo("evaluate", "--run", "first.trec")
    assert "--qrels: no judgments to score against; pass one of: qrels.txt" in outcome.err


def test_judgments_that_lie_here_are_named_by_file(folder: Path, retrievo: Callable) -> None:
    (folder / "data" / "qrels").mkdir(parents=True)
    for split in ("test", "train"):
        table = pa.table({"query_id": ["q1"], "doc_id": ["d1"], "relevance": [1]})
        pq.write_table(table, folder / "data" / "qrels" / f"{split}.parquet")
    outcome = retrievo("evaluate", "--run", "first.trec")
    files = ", ".join(f"data/qrels/{split}.parquet" for split in ("test", "train"))
    assert f"pass one of: {files}, qrels.txt" in outcome.err
