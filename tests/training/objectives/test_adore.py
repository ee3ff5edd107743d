"""Training against fixed documents: exact negatives, the gradient of plain autograd, documents that stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.commands.train import train
from retrievo.commands.train_config import TrainConfig
from retrievo.models.encoder import Encoder
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.exact import search_exact
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.training.batch import Relevant
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, gradient_step
from retrievo.training.objectives import adore
from retrievo.training.objectives.adore import Adore, FixedDocuments
from retrievo.training.objectives.finetune import Example
from retrievo.training.objectives.table import AdoreConfig

DIM, ROWS = 8, 300
RELEVANT = Relevant(torch.tensor([3, 250, 7]), torch.tensor([3, 250, 7]), torch.tensor([0, 2, 2, 3]))
EMPTY = np.array([11, 12])


def stored(similarity: str = "dot") -> Vectors:
    """Vectors of 300 documents in three shards of float16."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float16)
    ids = [pa.array([f"d{row}" for row in part]) for part in np.array_split(np.arange(ROWS), 3)]
    return Vectors(np.array_split(vectors, 3), ids, similarity=similarity)


def fixed(similarity: str = "dot") -> FixedDocuments:
    """Documents 290 to 299 read as documents 0 to 9."""
    hashes = np.where(np.arange(ROWS) < 290, np.arange(ROWS), np.arange(ROWS) - 290).astype(np.uint64)
    return FixedDocuments(stored(similarity), hashes, EMPTY)


def questions(count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("block", [256, 1 << 24])
def test_the_best_are_those_of_exact_search_less_relevant_ones_their_texts_and_empty_ones(
    similarity: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adore, "_BLOCK_VALUES", block)
    monkeypatch.setattr(adore, "_BLOCK_SCORES", block)
    queries = questions() if similarity == "dot" else functional.normalize(questions())
    found = fixed(similarity).best(queries, RELEVANT, 20)
    never = [{3, 293, 250, *EMPTY}, set(EMPTY), {7, 297, *EMPTY}]
    hits = search_exact(queries.numpy(), stored(similarity), ROWS)
    for query in range(3):
        ranking = [row for row in hits.row[hits.query == query].tolist() if row not in never[query]]
        assert found[query].tolist() == ranking[:20]
    assert {3, 293} & set(hits.row[hits.query == 0][:ROWS].tolist()), "what is left out would have been found"


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_vectors_that_lie_on_the_device_give_what_mapped_ones_give(similarity: str) -> None:
    mapped, resident = fixed(similarity), fixed(similarity)
    resident._resident, resident._settled = torch.from_numpy(stored().take(np.arange(ROWS))), True
    expected = mapped.best(questions(), RELEVANT, 20)
    assert torch.equal(resident.best(questions(), RELEVANT, 20), expected)
    assert mapped._resident is None
    assert torch.equal(resident.take(expected[0]), mapped.take(expected[0]))


def test_where_the_corpus_is_smaller_than_what_is_asked_for_all_of_it_is_found() -> None:
    found = fixed().best(questions(), RELEVANT, 1_000)
    assert (found >= 0).sum(1).tolist() == [ROWS - 5, ROWS - 2, ROWS - 4]


def test_a_rank_without_queries_finds_nothing() -> None:
    nothing = Relevant(*(torch.zeros(size, dtype=torch.int64) for size in (0, 0, 1)))
    assert fixed().best(questions(0), nothing, 5).shape == (0, 5)


class Table(nn.Module):
    """One vector for each token id of a query; a backbone of documents that is never asked."""

    pad_id = 0

    def __init__(self, similarity: str):
        super().__init__()
        self.spec = SimpleNamespace(similarity=similarity, normalize=False)
        torch.manual_seed(0)
        self.vectors, self.backbone = nn.Embedding(20, DIM), nn.Linear(DIM, DIM)

    def encode(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert role == "query"
        return self.vectors(input_ids[:, 0])


def examples() -> list[Example]:
    """Three queries with own positives 3, 40 and 7."""
    relevant = [[3, 250], [40], [7]]
    rows = [np.array(own) for own in relevant]
    return [
        Example(np.array([token]), [np.array([1])], own[:1], own[:1], own, own)
        for token, own in zip((1, 2, 3), rows, strict=True)
    ]


def candidates(queries: Tensor, relevant: list[set[int]], depth: int, loss: str) -> list[list[int]]:
    """Of each query the own positive first, and what any query found (`listwise`: what it found itself), save what is
    relevant to it or reads so.
    """
    hits = search_exact(queries.numpy(), stored(), ROWS)
    found = []
    for query in range(3):
        never = relevant[query] | {row + 290 for row in relevant[query]} | set(EMPTY)
        found.append([row for row in hits.row[hits.query == query].tolist() if row not in never][:depth])
    if loss == "listwise":
        return [[first, *own] for first, own in zip((3, 40, 7), found, strict=True)]
    union = {3, 40, 7}.union(*found)
    return [
        [first, *(row for row in sorted(union) if row not in own and row - 290 not in own)]
        for first, own in zip((3, 40, 7), relevant, strict=True)
    ]


@pytest.mark.parametrize("loss", ["infonce", "listwise"])
def test_the_gradient_is_that_of_plain_autograd_over_the_same_candidates(loss: str) -> None:
    trained = Adore(AdoreConfig(loss=(loss,), temperature=0.5, dynamic_negatives=6), Table("dot"), fixed())
    stats = gradient_step(trained, trained.collator()(examples()), step=0, seed=0, chunk_tokens=2)
    vectors, documents = trained.encoder.vectors.weight, torch.from_numpy(stored().take(np.arange(ROWS))).float()
    queries = vectors[1:4]
    expected = torch.stack(
        [
            functional.cross_entropy(documents[rows] @ query / 0.5, torch.tensor(0))
            for query, rows in zip(queries, candidates(queries.detach(), [{3, 250}, {40}, {7}], 6, loss), strict=True)
        ]
    ).mean()
    assert stats["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(vectors.grad, torch.autograd.grad(expected, vectors)[0])
    assert trained.encoder.backbone.weight.grad is None
    assert not trained.encoder.backbone.weight.requires_grad


def test_a_batch_holds_no_text_of_a_document() -> None:
    made = Adore(AdoreConfig(), Table("dot"), fixed()).collator()(examples())
    assert list(made.rows) == ["query"]
    assert made.ids["document"].tolist() == [3, 40, 7]


# --------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def vectors(
    tiny_model: Path, toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable
) -> Path:
    """The documents by the model that training starts from."""
    output = tmp_path_factory.mktemp("adore") / "documents"
    encoded(module_retrievo, tiny_model, ["--corpus", toy_dataset], output, "--pooling", "mean")
    return output


def encoded(retrievo: Callable, model: Path, texts: list[object], output: Path, *more: object) -> None:
    done = retrievo("encode", "--model", model, *texts, "--output", output, "--dtype", "float32", *more)
    assert done.code == 0, done.err


def given(tiny_model: Path, dataset: Path, documents: Path, output: Path, **more: Any) -> TrainConfig:
    tables = {"corpus": dataset, "queries": dataset, "qrels": dataset / "qrels" / "train.parquet"}
    steps = {"batch_size": 16, "learning_rate": 1e-3, "temperature": 0.2, "dtype": "float32", "epochs": 6.0}
    fixed = {"document_embeddings": documents, "dynamic_negatives": 20, "model": str(tiny_model), "output": output}
    return TrainConfig(**{**tables, **steps, **fixed, **more})


@pytest.fixture(scope="module")
def trained(tiny_model: Path, toy_dataset: Path, vectors: Path) -> Path:
    output = vectors.with_name("model")
    train(given(tiny_model, toy_dataset, vectors, output))
    return output


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_and_raises_retrieval_in_the_same_vectors(
    trained: Path, vectors: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    found = losses(trained)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    measures = []
    for name, model in (("before", tiny_model), ("after", trained)):
        pooling = ["--pooling", "mean"] if model == tiny_model else []
        encoded(retrievo, model, ["--queries", toy_dataset], tmp_path / name, *pooling)
        asked = ["--index", vectors, "--queries", tmp_path / name, "--output", tmp_path / f"{name}.parquet"]
        searched = retrievo("search", *asked)
        assert searched.code == 0, searched.err
        qrels = ["--qrels", toy_dataset / "qrels" / "train.parquet", "--metrics", "mrr@10", "--json"]
        measured = retrievo("evaluate", "--run", tmp_path / f"{name}.parquet", *qrels)
        measures.append(json.loads(measured.out)[name]["mrr@10"])
    assert measures[1] > measures[0] + 0.1


def test_the_folder_that_is_made_encodes_documents_to_the_same_bytes(
    trained: Path, vectors: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    encoded(retrievo, trained, ["--corpus", toy_dataset], tmp_path / "again")
    assert (tmp_path / "again" / "shard-00000.arrow").read_bytes() == (vectors / "shard-00000.arrow").read_bytes()
    encoder = Encoder.load(trained)
    assert not encoder.spec.tied
    pairs = zip(encoder.backbone.parameters(), encoder.query_backbone.parameters(), strict=True)
    assert any(not torch.equal(document, query) for document, query in pairs)


def test_queries_of_a_model_that_is_no_longer_there_are_told_from_its_own(
    trained: Path, vectors: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    model, queries = tmp_path / "model", tmp_path / "queries"
    shutil.copytree(tiny_model, model)
    (model / "notes.json").write_text("{}")  # so it is another one than the model of the vectors
    encoded(retrievo, model, ["--queries", toy_dataset], queries, "--pooling", "mean")
    shutil.rmtree(model)
    for follower in (None, trained):  # nothing is there any more, then another model that knows the vectors
        if follower:
            shutil.copytree(follower, model)
        asked = ["--index", vectors, "--queries", queries, "--output", tmp_path / "run.parquet"]
        done = retrievo("search", *asked)
        assert done.code == 1
        assert "was encoded by another model" in done.err


def test_vectors_of_a_third_model_are_still_refused(
    trained: Path, vectors: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    other = tmp_path / "other"
    encoded(retrievo, tiny_model, ["--corpus", toy_dataset], other, "--pooling", "cls")
    encoded(retrievo, trained, ["--queries", toy_dataset], tmp_path / "queries")
    done = retrievo("search", "--index", other, "--queries", tmp_path / "queries", "--output", tmp_path / "run.parquet")
    assert done.code == 1
    assert "was encoded by another model" in done.err


def test_stopped_and_run_again_training_ends_in_the_same_bytes(
    trained: Path, tiny_model: Path, toy_dataset: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = given(tiny_model, toy_dataset, vectors, tmp_path / "stopped", save_every=20)
    candidates, calls = Adore._candidates, []

    def stopping(self: Adore, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 30:
            raise InterruptedError
        return candidates(self, *arguments)

    monkeypatch.setattr(Adore, "_candidates", stopping)
    with pytest.raises(InterruptedError):
        train(config)
    monkeypatch.undo()
    train(config)
    for role in ("query", "document"):
        path = Path(role) / "model.safetensors"
        assert (tmp_path / "stopped" / path).read_bytes() == (trained / path).read_bytes()


def test_cached_equals_uncached_with_a_real_encoder_and_dropout(
    tiny_model: Path, toy_dataset: Path, vectors: Path, tmp_path: Path
) -> None:
    from retrievo.commands.train import _assemble

    objective, batch = _assemble(given(tiny_model, toy_dataset, vectors, tmp_path))
    for module in objective.encoder.query_backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    found = []
    for keep_graphs in (0, ALL_GRAPHS):
        gradient_step(objective, batch, step=0, seed=0, chunk_tokens=16, keep_graphs=keep_graphs)
        found.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(name.startswith("encoder.query_backbone.") for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-6)


def test_the_stage_after_it_is_trained_on_what_it_confuses(
    trained: Path, tmp_path: Path, retrievo: Callable, tiny_model: Path
) -> None:
    mined = retrievo("mine-negatives", trained, "to", tmp_path / "next", "--depth", 20, "--samples", 5)
    assert mined.code == 0, mined.err
    done = retrievo("train", tmp_path / "next", "--pooling", "mean", "--max-steps", 1, "--negatives-per-query", 1)
    assert done.code == 0, done.err


def test_vectors_of_another_model_corpus_role_or_length_are_refused(
    trained: Path, tiny_model: Path, toy_dataset: Path, vectors: Path, tmp_path: Path, retrievo: Callable
) -> None:
    shutil.copytree(toy_dataset, tmp_path / "data")
    other = pq.read_table(toy_dataset / "corpus.parquet").slice(0, 100)
    pq.write_table(other, tmp_path / "data" / "corpus.parquet")
    encoded(retrievo, tiny_model, ["--queries", toy_dataset], tmp_path / "queries", "--pooling", "mean")
    encoded(retrievo, tiny_model, ["--corpus", toy_dataset], tmp_path / "cut", "--pooling", "mean", "--truncate-dim", 8)
    cases = [
        (trained, toy_dataset, vectors, "was not made by the model that is trained"),
        (tiny_model, tmp_path / "data", vectors, "does not hold the documents of this corpus"),
        (tiny_model, toy_dataset, tmp_path / "queries", "does not hold the documents of this corpus"),
        (tiny_model, toy_dataset, tmp_path / "cut", "has vectors truncated to 8 dimensions"),
    ]
    for model, dataset, documents, message in cases:
        with pytest.raises(RetrievoError, match=message):
            train(given(model, dataset, documents, tmp_path / "out"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    [
        {"negatives": (Path("n.parquet"),)},
        {"negatives_per_query": 3},
        {"hard_negative_ratio": 0.1, "negatives": (Path("n.parquet"),)},
        {"refresh_every": 5},
        {"teacher": Path("t.parquet")},
        {"matryoshka": (8,)},
        {"pooling": "mean"},
        {"normalize": True},
        {"similarity": "cosine"},
        {"tied": True},
        {"bidirectional": True},
        {"title_template": "{text}"},
        {"document_prefix": "d: "},
        {"document_max_length": 32},
    ],
    ids=str,
)
def test_what_would_move_documents_or_draw_negatives_is_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"applies only .*without --document-embeddings"):
        given(tmp_path, tmp_path, tmp_path, tmp_path / "out", **option)


def test_dynamic_negatives_are_found_among_fixed_documents_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dynamic-negatives: applies only with --document-embeddings"):
        given(tmp_path, tmp_path, tmp_path, tmp_path / "out", document_embeddings=None)


def test_the_manifest_names_the_vectors(trained: Path, vectors: Path) -> None:
    manifest = Manifest.read(trained, "model")
    assert manifest.input_path("fixed-documents", "--document-embeddings") == vectors
    assert "negatives_per_query" not in manifest.config


@pytest.mark.slow
def test_two_processes_make_the_gradient_of_one(
    tiny_model: Path, toy_dataset: Path, vectors: Path, tmp_path: Path, process: Callable, retrievo: Callable
) -> None:
    tables = ["--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", toy_dataset / "qrels" / "train.parquet"]
    flags = ["train", "--model", tiny_model, *tables, "--document-embeddings", vectors, "--dynamic-negatives", 20]
    done = retrievo(*flags, "--verify-gradients")
    assert done.code == 0, done.err
    assert max(float(line.split()[-1]) for line in done.out.splitlines()[1:]) < 1e-4
    steps = ["--max-steps", 12, "--batch-size", 15, "--learning-rate", 1e-3, "--dtype", "float32"]
    for name, processes in (("one", 1), ("two", 2)):
        process(list(map(str, [*flags, *steps, "--output", tmp_path / name])), processes=processes)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
