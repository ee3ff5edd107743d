"""Whole datasets: a model and BM25 on each, resumed where a sweep stopped, and known items where nothing is judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, toy_dataset: Path) -> Path:
    """Two datasets, and a folder that is none."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("first", "second"):
        shutil.copytree(toy_dataset, folder / name)
    (folder / "notes").mkdir()
    judged = pq.read_table(folder / "second" / "qrels" / "test.parquet")
    pq.write_table(judged.slice(0, 20), folder / "second" / "qrels" / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def swept(suite: Path, tiny_model: Path, module_retrievo: Callable) -> Path:
    """The folder of a sweep that ended."""
    home = suite.parent / "swept"
    outcome = module_retrievo(*line(suite, tiny_model, home), "--report", home / "report.html")
    assert outcome.code == 0, outcome.err
    (home / "said.json").write_text(outcome.out)
    return home


def line(suite: Path, model: Path, home: Path) -> list[object]:
    metrics = ["--metrics", "ndcg@10", "recall@10", "--depth", 50, "--json"]
    return ["evaluate", "--suite", suite, "--model", model, "--output", home, *metrics]


def test_every_dataset_is_scored_with_bm25_beside_it_and_averages_below(swept: Path) -> None:
    values = json.loads((swept / "said.json").read_text())
    assert list(values) == ["first", "second", "average", "best on"]
    assert all(list(found) == ["bm25", "tiny"] for found in values.values())
    for typed in ("ndcg@10", "recall@10"):
        for run in ("bm25", "tiny"):
            mean = (values["first"][run][typed] + values["second"][run][typed]) / 2
            assert values["average"][run][typed] == pytest.approx(mean, abs=1e-15)
        best = [max(values[name], key=lambda run: values[name][run][typed]) for name in ("first", "second")]
        assert values["best on"]["bm25"][typed] == best.count("bm25")


def test_one_dataset_is_scored_as_it_is_in_a_suite(
    swept: Path, suite: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """`--model M --data D`, and `--suite` with a folder that is a dataset itself, on the split that is asked for."""
    flags = ["--model", tiny_model, "--output", tmp_path / "one", "--depth", 50, "--json", "--metrics", "ndcg@10"]
    values = json.loads((swept / "said.json").read_text())["first"]
    expected = {run: values[run]["ndcg@10"] for run in ("bm25", "tiny")}
    for given in (
        ("--data", suite / "first"),
        ("--suite", suite / "first"),
        ("--data", suite / "first", "--split", "test"),
    ):
        outcome = retrievo("evaluate", *given, *flags)
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)["first"]
        assert {run: found[run]["ndcg@10"] for run in expected} == expected
    outcome = retrievo("evaluate", "--data", suite / "first", "--split", "train", *flags)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["first"]["bm25"]["ndcg@10"] != expected["bm25"]
    missing = retrievo("evaluate", "--data", suite / "first", "--split", "val", *flags)
    assert (missing.code, "has the splits" in missing.err) == (1, True)


def test_the_numbers_are_those_of_the_runs(swept: Path, suite: Path, retrievo: Callable) -> None:
    run = swept / "first" / "runs" / "tiny.parquet"
    outcome = retrievo("evaluate", "--run", run, "--qrels", suite / "first", "--metrics", "ndcg@10", "--json")
    swept_values = json.loads((swept / "said.json").read_text())
    assert json.loads(outcome.out)["tiny"]["ndcg@10"] == swept_values["first"]["tiny"]["ndcg@10"]


def test_only_judged_queries_are_searched(swept: Path) -> None:
    for run in (swept / "second" / "runs").glob("*.parquet"):
        assert len(set(pq.read_table(run)["query_id"].to_pylist())) == 20


def test_a_sweep_that_is_typed_again_does_nothing_twice(
    swept: Path, suite: Path, tiny_model: Path, retrievo: Callable
) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*.parquet") if path.name != "queries.parquet"}
    shutil.rmtree(swept / "second" / "embeddings-tiny")  # as if it had been stopped there
    (swept / "second" / "runs" / "tiny.parquet").unlink()
    outcome = retrievo(*line(suite, tiny_model, swept))
    assert outcome.code == 0, outcome.err
    assert outcome.out == (swept / "said.json").read_text()
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["tiny.parquet"]


def test_the_report_has_a_section_for_each_dataset(swept: Path) -> None:
    page = (swept / "report.html").read_text()
    assert [page.count(f'<h2 class="part" id="{name}">{name}</h2>') for name in ("first", "second")] == [1, 1]
    assert "best on" in page


def test_self_exclusion_is_said_for_each_dataset(
    swept: Path, suite: Path, tiny_model: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*line(suite, tiny_model, swept), "--exclude-self-of", "third")
    assert (outcome.code, "found 'third'; expected one of first, second" in outcome.err) == (2, True)
    assert retrievo(*line(suite, tiny_model, swept), "--exclude-self-of", "first").code == 0


@pytest.mark.parametrize("convention", ["trec_eval", "beir"])
def test_a_retriever_that_finds_nothing_counts_as_zero(
    tmp_path: Path, suite: Path, tiny_model: Path, retrievo: Callable, convention: str
) -> None:
    for name in ("known", "strange"):
        shutil.copytree(suite / "second", tmp_path / "suite" / name)
    queries = pq.read_table(tmp_path / "suite" / "strange" / "queries.parquet")
    strange = ["zzyzx"] * queries.num_rows  # a word of no document: BM25 has no hits
    pq.write_table(queries.set_column(1, "text", [strange]), tmp_path / "suite" / "strange" / "queries.parquet")
    home, page = tmp_path / "swept", tmp_path / "report.html"
    outcome = retrievo(*line(tmp_path / "suite", tiny_model, home), "--convention", convention, "--report", page)
    assert outcome.code == 0, outcome.err
    assert "bm25: 20 of 20 judged queries are missing" in outcome.err
    values = json.loads(outcome.out)
    assert values["strange"]["bm25"] == {"ndcg@10": 0, "recall@10": 0}
    assert values["average"]["bm25"]["ndcg@10"] == values["known"]["bm25"]["ndcg@10"] / 2
    assert "bm25: 20 of 20 judged queries are missing" in page.read_text()


def test_known_items_by_title_and_by_span(tmp_path: Path, tiny_model: Path, retrievo: Callable) -> None:
    import pyarrow as pa

    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(words[start : start + 40]) for start in range(0, 200, 4)]
    table = {"id": [f"d{n}" for n in range(50)], "title": [f"title w{4 * n}" for n in range(50)], "text": texts}
    table["text"][7] = table["text"][8]  # neither of them can be meant by a span
    pq.write_table(pa.table(table), tmp_path / "corpus.parquet")
    for kind, count in (("title", 50), ("span", 48)):
        home = tmp_path / kind
        outcome = retrievo(
            "evaluate", "--known-item", kind, "--corpus", tmp_path / "corpus.parquet", "--model", tiny_model,
            "--output", home, "--metrics", "success@10", "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert "warning: known-item queries are made of the documents themselves" in outcome.err
        assert set(json.loads(outcome.out)) == {f"known-item-{kind}", "average", "best on"}
        made = home / f"known-item-{kind}" / "dataset"
        queries = pq.read_table(made / "queries.parquet")["text"].to_pylist()
        documents = pq.read_table(made / "corpus.parquet").to_pylist()
        assert len(queries) == count
        judged = pq.read_table(made / "qrels" / "test.parquet")["doc_id"].to_pylist()
        left = {document["id"]: document["text"] for document in documents}
        assert all(query not in left[doc] for query, doc in zip(queries, judged, strict=True))
