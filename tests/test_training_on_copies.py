"""What is no negative however it is written, and runs that have nothing to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retrievo.data.corpus import Corpus
from retrievo.data.tables import NEGATIVES, RUN
from retrievo.mining.candidates import Judged
from retrievo.models.encoder import Encoder
from retrievo.support.artifact import Manifest
from retrievo.training.feeds.dataset_config import DataSetConfig
from retrievo.training.feeds.finetune import TrainingData, TrainingFeed
from retrievo.training.feeds.samplers import Draw, Drawing
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.table import FinetuneConfig
from tests.copies import COPIES, PLAIN


def tables(
    home: Path, documents: dict[str, tuple[str, str]], queries: dict[str, str], pairs: list[tuple[str, str]]
) -> list[object]:
    """Writes a data set and gives the flags that name it."""
    home.mkdir(exist_ok=True)
    titles, texts = zip(*documents.values(), strict=True)
    pq.write_table(pa.table({"id": list(documents), "title": titles, "text": texts}), home / "corpus.parquet")
    pq.write_table(pa.table({"id": list(queries), "text": list(queries.values())}), home / "queries.parquet")
    names = {"query_id": [query for query, _ in pairs], "doc_id": [document for _, document in pairs]}
    pq.write_table(pa.table({**names, "relevance": pa.array([1] * len(pairs), pa.int32())}), home / "qrels.parquet")
    return [flag for name in ("corpus", "queries", "qrels") for flag in (f"--{name}", home / f"{name}.parquet")]


def pool(path: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [{"query_id": q, "doc_id": d, "score": 1.0, "rank": 1, "source": "x"} for q, d in pairs]
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES.arrow), path)
    return path


def run(path: Path, ranking: dict[str, list[str]]) -> Path:
    rows = [
        {"query_id": query, "doc_id": document, "score": -float(place), "rank": place + 1}
        for query, documents in ranking.items()
        for place, document in enumerate(documents)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RUN.arrow), path)
    return path


@pytest.fixture
def train(tiny_model: Path, tmp_path: Path, retrievo: Callable) -> Callable[..., Any]:
    def trained(*flags: object, model: Path = tiny_model, output: str = "model") -> Any:
        common = ["--dtype", "fp32", "--max-steps", 3, "--threads", 1, "--output", tmp_path / output]
        return retrievo("train", "--model", model, *common, *flags)

    return trained


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ copies, and queries


@pytest.mark.parametrize(("title", "text"), COPIES.values(), ids=COPIES)
def test_mining_takes_no_copy_of_a_relevant_document(title: str, text: str, tmp_path: Path, retrievo: Callable) -> None:
    documents = {"d1": ("", PLAIN), "copy": (title, text), "other": ("", "harbor tides")}
    flags = tables(tmp_path / "data", documents, {"q": "tea"}, [("q", "d1")])
    ranking = run(tmp_path / "run.parquet", {"q": ["copy", "d1", "other"]})
    made = retrievo("mine-negatives", "--source", "run", "--run", ranking, *flags, "--output", tmp_path / "n.parquet")
    assert made.code == 0, made.err
    assert pq.read_table(tmp_path / "n.parquet")["doc_id"].to_pylist() == ["other"]
    assert Manifest.read(tmp_path / "n.parquet", "negatives").stats["dropped"] == {"relevant": 1, "same-text": 1}


@pytest.mark.parametrize(("title", "text"), COPIES.values(), ids=COPIES)
def test_training_takes_no_copy_of_a_relevant_document(title: str, text: str, tmp_path: Path, tiny_model: Path) -> None:
    documents = {"d1": ("", PLAIN), "copy": (title, text)}
    tables(tmp_path / "data", documents, {"q": "tea"}, [("q", "d1")])
    told = DataSetConfig(**{name: tmp_path / "data" / f"{name}.parquet" for name in ("corpus", "queries", "qrels")})
    data, encoder = TrainingData(told, 1), Encoder.load(tiny_model, pooling="mean")
    objective = Finetune(FinetuneConfig(), encoder)
    feed = TrainingFeed(data, encoder, objective.collator(), Drawing(batch_size=1, negatives_per_query=1, seed=0))
    batch = feed.collated([Draw(0, np.array([0, 1]))])
    vectors = {"query": torch.ones(1, 4), "document": torch.ones(2, 4)}  # as good as the positive: log 2 were it one
    loss, stats = objective.contrast(vectors, batch)
    assert (loss.item(), stats["infonce_with_negative"].item()) == (0, 0)


def test_a_loss_of_groups_learns_nothing_from_copies_and_says_so(tmp_path: Path, train: Callable) -> None:
    documents = {"d1": ("", PLAIN), **COPIES, "d2": ("", "harbor")}
    flags = tables(tmp_path / "data", documents, {"q1": "tea", "q2": "ship"}, [("q1", "d1"), ("q2", "d2")])
    copies = pool(tmp_path / "pool.parquet", [("q1", name) for name in COPIES])
    made = train(*flags, "--negatives", copies, "--loss", "listwise")
    assert made.code == 1
    assert "leaves none of its 2 judged queries a negative" in made.err
    assert not (tmp_path / "model" / "model.safetensors").exists()


SELVES = {"a": ("A debate", "compass4 anchor1 rope"), "b": ("", "sail2 keel3"), "c": ("", "tide"), "d": ("", "reef")}
ASKED = {"a": "Compass4 anchor1  rope", "b": "sail2 keel3"}


def test_mining_takes_no_query_for_a_negative_of_itself_and_tells(tmp_path: Path, retrievo: Callable) -> None:
    flags = tables(tmp_path / "data", SELVES, ASKED, [("a", "c"), ("b", "d")])
    ranking = run(tmp_path / "run.parquet", {"a": ["a", "b", "c", "d"], "b": ["b", "a", "d", "c"]})
    made = retrievo("mine-negatives", "--source", "run", "--run", ranking, *flags, "--output", tmp_path / "n.parquet")
    assert made.code == 0, made.err
    found = pq.read_table(tmp_path / "n.parquet").select(["query_id", "doc_id"]).to_pylist()
    assert {(row["query_id"], row["doc_id"]) for row in found} == {("a", "b"), ("a", "d"), ("b", "a"), ("b", "c")}
    stats = Manifest.read(tmp_path / "n.parquet", "negatives").stats
    assert stats["dropped"] == {"relevant": 2, "query-text": 2}
    assert stats["queries_that_are_documents"] == 2
    assert "2 of 2 queries (100%) are documents of the corpus" in made.err


@pytest.mark.parametrize("loss", ["infonce", "supcon"])
def test_training_takes_no_query_for_a_negative_or_a_positive_of_itself(
    loss: str, tmp_path: Path, train: Callable
) -> None:
    flags = tables(tmp_path / "data", SELVES, ASKED, [("a", "c"), ("b", "d")])
    own = pool(tmp_path / "pool.parquet", [("a", "a"), ("b", "b")])
    other = pool(tmp_path / "other.parquet", [("a", "b"), ("b", "a")])
    made = train(*flags, "--negatives", own, "--batch-size", 2, "--similarity", "dot", "--loss", loss)
    assert made.code == 0, made.err
    assert "2 of 2 queries (100%) are documents of the corpus" in made.err
    swapped = train(
        *flags, "--negatives", other, "--batch-size", 2, "--similarity", "dot", "--loss", loss, output="other"
    )
    # each batch holds both documents either way: no query competes with itself, whoever brought it
    first, second = (lines(tmp_path / name)[0]["loss"] for name in ("model", "other"))
    assert swapped.code == 0
    assert first == pytest.approx(second, rel=1e-5)


def test_a_query_among_its_relevant_documents_stays_a_positive(tmp_path: Path) -> None:
    tables(tmp_path / "data", SELVES, ASKED, [("b", "b")])
    corpus = Corpus(tmp_path / "data" / "corpus.parquet")
    judged = Judged(corpus, pa.array(["b"]), ["sail2 keel3"], pa.table({"query_id": ["b"], "doc_id": ["b"]}))
    assert judged.documents == 0


# ------------------------------------------------------------------------------------------------- nothing to learn


DOCUMENTS = {f"d{n}": ("", f"anchor{n} sail{n}") for n in range(6)}
QUERIES = {f"q{n}": f"anchor{n}" for n in range(4)}
PAIRS = [(f"q{n}", f"d{n}") for n in range(4)]


@pytest.mark.parametrize(
    ("pairs", "flags", "code", "told"),
    [
        (PAIRS, ["--batch-size", 1], 2, "--batch-size: is 1, and a query has no negatives of its own"),
        (PAIRS[:1], [], 1, "leaves none of its 1 judged queries a negative"),
        ([(f"q{n}", "d0") for n in range(4)], [], 1, "leaves none of its 4 judged queries a negative"),
        ([(q, d) for q in QUERIES for d in DOCUMENTS], [], 1, "leaves none of its 4 judged queries a negative"),
    ],
    ids=["batch of one", "one query", "one document", "all relevant"],
)
def test_what_can_learn_nothing_is_refused_before_it_begins(
    pairs: list[tuple[str, str]], flags: list[object], code: int, told: str, tmp_path: Path, train: Callable
) -> None:
    made = train(*tables(tmp_path / "data", DOCUMENTS, QUERIES, pairs), *flags)
    assert (made.code, told in made.err) == (code, True), made.err
    assert not (tmp_path / "model" / "metrics.jsonl").exists()


@pytest.mark.parametrize("again", [False, True])
def test_what_learned_nothing_is_an_error_in_the_end_also_of_a_run_that_goes_on(
    again: bool, tmp_path: Path, train: Callable
) -> None:
    documents = {"d0": ("", "anchor0"), "d1": ("", "anchor1")}
    flags = tables(tmp_path / "data", documents, {"q0": "sail0"}, [("q0", "d0"), ("q0", "d1")])
    flags = [*flags, "--hard-negative-ratio", 0.5, "--negatives", pool(tmp_path / "p.parquet", [("q0", "d1")])]
    made = [train(*flags, "--save-every", 1) for _ in range(1 + again)][-1]
    assert (made.code, "nothing was learned in 3 steps: none of the queries had a negative" in made.err) == (1, True)
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_queries_that_met_no_negative_are_counted_once(tmp_path: Path, train: Callable) -> None:
    flags = tables(tmp_path / "data", DOCUMENTS, QUERIES, PAIRS[:3])
    made = train(*flags, "--batch-size", 2, "--max-steps", 4)  # of two and of one
    assert made.code == 0, made.err
    assert "the loss infonce learned nothing from 2 of 6 queries of all steps (33.3%)" in made.err
    assert [line["infonce_with_negative"] for line in lines(tmp_path / "model")] == [1, 0, 1, 0]


def test_a_teacher_that_knows_no_negative_is_refused(tmp_path: Path, train: Callable) -> None:
    flags = tables(tmp_path / "data", DOCUMENTS, QUERIES, PAIRS)
    teacher = run(tmp_path / "teacher.parquet", {query: [document] for query, document in PAIRS})
    negatives = pool(tmp_path / "pool.parquet", [(query, "d5") for query in QUERIES])
    made = train(*flags, "--negatives", negatives, "--teacher", teacher, "--loss", "margin-mse")
    assert (made.code, "has a score for none of the negatives" in made.err) == (1, True), made.err


def test_all_numbers_of_a_vector_are_trained_beside_those_that_do_alone(tmp_path: Path, train: Callable) -> None:
    made = train(*tables(tmp_path / "data", DOCUMENTS, QUERIES, PAIRS), "--matryoshka", "16,8")
    assert made.code == 0, made.err
    assert "vectors of 16, 8 and 32 dimensions are trained" in made.err


# ----------------------------------------------------------------------------------------------------- development


def test_development_judgments_of_another_corpus_are_refused(tmp_path: Path, train: Callable) -> None:
    flags = tables(tmp_path / "data", DOCUMENTS, QUERIES, PAIRS)
    tables(tmp_path / "dev", DOCUMENTS, QUERIES, [("q0", "x0"), ("q1", "x1")])
    ranking = run(tmp_path / "run.parquet", {"q0": ["d1", "d2"], "q1": ["d3"]})
    dev = ["--dev-qrels", tmp_path / "dev" / "qrels.parquet", "--dev-run", ranking]
    made = train(*flags, *dev)
    assert (made.code, "judges 2 documents relevant, and" in made.err) == (1, True), made.err


def test_development_queries_without_documents_and_measures_that_say_nothing_are_told(
    tmp_path: Path, train: Callable
) -> None:
    flags = tables(tmp_path / "data", DOCUMENTS, QUERIES, PAIRS)
    tables(tmp_path / "dev", DOCUMENTS, QUERIES, [("q0", "d0"), ("q1", "x1")])
    ranking = run(tmp_path / "run.parquet", {"q0": ["d0"], "q1": ["d3"]})
    dev = ["--dev-qrels", tmp_path / "dev" / "qrels.parquet", "--dev-run", ranking, "--validate-every", 1]
    made = train(*flags, *dev)
    assert made.code == 0, made.err
    assert "1 of 2 queries have no relevant document" in made.err
    assert "every validation gave mrr@10 0.5000, so no step is better than another" in made.err
