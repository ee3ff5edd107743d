"""`search --across-corpora`: documents of several corpora in one ranking, each with its own text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.retrieval.fusion import fuse
from retrievo.support.artifact import Manifest

PLAIN = ("--dtype", "float32", "--chunk-tokens", 512, "--threads", 1)
ONE = {"a": "wing1 data", "b": "flow2 data", "c": "heat3 data"}
TWO = {"a": "shock5 data", "x": "wing1 plot", "y": "layer6 data"}  # with an id of the other corpus


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, module_retrievo: Callable) -> Path:
    """Two corpora with an id in common, embeddings of each, and of a third without."""
    home = tmp_path_factory.mktemp("across")
    three = {"p": "wing1 test", "q": "wave0 data", "r": "shock5 test"}
    for name, texts in (("one", ONE), ("two", TWO), ("three", three)):
        table = pa.table({"id": list(texts), "title": [f"{name} {id}" for id in texts], "text": list(texts.values())})
        (home / name).mkdir()
        pq.write_table(table, home / name / "corpus.parquet")
        asked = ("--model", tiny_model, "--corpus", home / name, "--pooling", "mean", *PLAIN)
        done = module_retrievo("encode", *asked, "--output", home / f"v-{name}")
        assert done.code == 0, done.err
    pq.write_table(pa.table({"id": ["q1", "q2"], "text": ["wing1", "shock5"]}), home / "queries.parquet")
    return home


def searched(retrievo: Callable, home: Path, out: Path, *flags: object, code: int = 0) -> str:
    asked = ("--queries", home / "queries.parquet", "--output", out, *PLAIN)
    done = retrievo("search", *asked, *flags)
    assert done.code == code, done.err
    return done.err


def indexes(home: Path, *names: str) -> list[object]:
    return [word for name in names for word in ("--index", home / f"v-{name}")]


def test_each_hit_tells_its_corpus_and_has_its_own_text(home: Path, retrievo: Callable) -> None:
    asked = ("search", "wing1", *indexes(home, "one", "two"), *PLAIN, "--across-corpora")
    done = retrievo(*asked, "--json")
    assert done.code == 0, done.err
    hits = json.loads(done.out)["hits"]
    found = {(Path(hit["corpus"]).name, hit["id"]): (hit["title"], hit["snippet"]) for hit in hits}
    texts = {
        (name, id): (f"{name} {id}", text) for name, own in (("one", ONE), ("two", TWO)) for id, text in own.items()
    }
    assert found == texts, "`a` of both corpora, each with its own text"
    told = [line.split("\t") for line in retrievo(*asked).out.splitlines()]
    assert {(Path(fields[-1]).name, fields[2]): (fields[3], fields[4]) for fields in told} == texts
    plain = json.loads(retrievo("search", "wing1", *indexes(home, "one"), *PLAIN, "--json").out)["hits"]
    assert all("corpus" not in hit for hit in plain)


def test_a_run_over_corpora_is_the_fusion_of_their_runs(home: Path, tmp_path: Path, retrievo: Callable) -> None:
    for name in ("one", "three"):
        searched(retrievo, home, tmp_path / f"{name}.parquet", *indexes(home, name), "--depth", 100)
    searched(retrievo, home, tmp_path / "both.parquet", *indexes(home, "one", "three"), "--across-corpora")
    parts = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "three")]
    assert pq.read_table(tmp_path / "both.parquet").to_pylist() == fuse("rrf", parts).to_pylist()
    manifest = Manifest.read(tmp_path / "both.parquet", "run")
    assert [Path(manifest.inputs[name]["path"]).name for name in ("corpus", "corpus-2")] == ["one", "three"]


def test_a_run_can_not_hold_two_documents_with_one_id(home: Path, tmp_path: Path, retrievo: Callable) -> None:
    told = searched(retrievo, home, tmp_path / "out.parquet", *indexes(home, "one", "two"), "--across-corpora", code=1)
    assert "a query has two documents 'a', of " in told
    assert not (tmp_path / "out.parquet").exists()


def test_feedback_moves_queries_by_documents_of_their_own_corpus(
    home: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """The three documents that the fusion begins with are of both corpora; each index knows its own."""
    runs = {}
    for name, flags in (("none", ()), ("moved", ("--feedback", "rocchio", "--feedback-from", "fused"))):
        both = (*indexes(home, "one", "three"), "--across-corpora", "--fuse", "minmax")
        searched(retrievo, home, tmp_path / f"{name}.parquet", *both, *flags)
        runs[name] = pq.read_table(tmp_path / f"{name}.parquet").to_pydict()
    assert sorted(runs["moved"]["doc_id"]) == sorted(runs["none"]["doc_id"])
    assert runs["moved"]["score"] != runs["none"]["score"]


def test_what_can_not_be_told_apart_is_refused(home: Path, tmp_path: Path, retrievo: Callable) -> None:
    (tmp_path / "foreign.trec").write_text("q1 Q0 a 1 1.0 x\n")
    both = (*indexes(home, "one"), "--across-corpora")
    out = tmp_path / "out.parquet"
    assert "does not say of which corpus" in searched(
        retrievo, home, out, *both, "--run", tmp_path / "foreign.trec", code=1
    )
    assert "--across-corpora: applies only with several indexes or runs" in searched(retrievo, home, out, *both, code=2)
    told = searched(retrievo, home, out, *both, *indexes(home, "three"), "--corpus", home / "one", code=2)
    assert "--across-corpora" in told


def test_texts_of_a_run_over_corpora_are_never_looked_for_in_one(
    home: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    run = tmp_path / "both.parquet"
    searched(retrievo, home, run, *indexes(home, "one", "three"), "--across-corpora")
    answers = pa.table({"query_id": ["q1"], "answers": [["wing1"]]})
    pq.write_table(answers, tmp_path / "answers.parquet")
    asked = ("evaluate", "--run", run, "--metrics", "answer-recall@3", "--answers", tmp_path / "answers.parquet")
    assert "is another corpus than" in retrievo(*asked, "--corpus", home / "one").err
    tables = ("--corpus", home / "one", "--queries", home / "queries.parquet")
    refused = retrievo("rerank", "--run", run, "--model", tiny_model, *tables, "--output", tmp_path / "r.parquet")
    assert (refused.code, "ranks documents of several corpora" in refused.err) == (1, True), refused.err
