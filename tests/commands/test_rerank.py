"""Cross-encoders from the command line: trained, reranking, teaching; resumed; the scores of another library."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import retrievo.commands.rerank as verb
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError


def tables(dataset: Path) -> list[object]:
    return ["--corpus", dataset, "--queries", dataset]


def training(tiny_model: Path, dataset: Path, output: Path, *more: object) -> list[str]:
    qrels = ["--qrels", dataset / "qrels" / "train.parquet", "--dtype", "float32", "--batch-size", 16]
    start = ["train", "--kind", "cross-encoder", "--model", tiny_model, *tables(dataset), *qrels]
    return list(map(str, [*start, "--learning-rate", 3e-3, "--output", output, *more]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any, tiny_model: Path, toy_dataset: Path, module_retrievo: Callable) -> Path:
    """BM25 negatives, a cross-encoder trained on them, and BM25's run."""
    home = tmp_path_factory.mktemp("rerank")
    qrels = ["--qrels", toy_dataset / "qrels" / "train.parquet"]
    negatives = ["--depth", 30, "--samples", 8, "--output", home / "negatives.parquet"]
    pool = ["--negatives", home / "negatives.parquet", "--negatives-per-query", 4]
    for arguments in (
        ["mine-negatives", *tables(toy_dataset), *qrels, *negatives],
        training(tiny_model, toy_dataset, home / "ranker", *pool, "--epochs", 6, "--activation-memory", "4GB"),
        ["index", "--type", "bm25", "--corpus", toy_dataset, "--output", home / "bm25"],
        [
            "search",
            "--index",
            home / "bm25",
            "--queries",
            toy_dataset,
            "--depth",
            20,
            "--output",
            home / "bm25.parquet",
        ],
    ):
        made = module_retrievo(*arguments)
        assert made.code == 0, made.err
    return home


def reranking(home: Path, dataset: Path, output: Path, *more: object) -> list[str]:
    flags = ["--run", home / "bm25.parquet", "--model", home / "ranker", *tables(dataset), "--output", output]
    return list(map(str, ["rerank", *flags, "--dtype", "fp32", *more]))


def test_training_lowers_the_loss_and_the_folder_says_what_it_is(home: Path, retrievo: Callable) -> None:
    losses = [json.loads(line)["loss"] for line in (home / "ranker" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    manifest = Manifest.read(home / "ranker", "cross-encoder")
    assert manifest.config["pair_loss"] == "group"
    assert "temperature" not in manifest.config
    encoded = retrievo("encode", "--model", home / "ranker", "--corpus", home, "--output", home / "no")
    assert encoded.code == 1


def test_reranked_is_every_pair_of_the_run_by_the_scores_of_sentence_transformers(
    home: Path, toy_dataset: Path, retrievo: Callable
) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    made = retrievo(*reranking(home, toy_dataset, home / "reranked.parquet", "--depth", 5))
    assert made.code == 0, made.err
    assert not (home / "reranked.parquet.scores").exists()
    assert Manifest.read(home / "reranked.parquet", "run").stats["scores"] == "logits"
    rows, before = (pq.read_table(home / name).to_pylist() for name in ("reranked.parquet", "bm25.parquet"))
    assert {(row["query_id"], row["doc_id"]) for row in rows} == {
        (row["query_id"], row["doc_id"]) for row in before if row["rank"] <= 5
    }
    keys = [(int(row["query_id"][1:]), -row["score"]) for row in rows]
    assert keys == sorted(keys)
    corpus = {
        row["id"]: f"{row['title']} {row['text']}" for row in pq.read_table(toy_dataset / "corpus.parquet").to_pylist()
    }
    queries = {row["id"]: row["text"] for row in pq.read_table(toy_dataset / "queries.parquet").to_pylist()}
    theirs = library.CrossEncoder(str(home / "ranker"), device="cpu", local_files_only=True)
    expected = theirs.predict([(queries[row["query_id"]], corpus[row["doc_id"]]) for row in rows])
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-4)


def test_a_teacher_s_run_holds_negatives_and_relevant_documents(
    home: Path, toy_dataset: Path, retrievo: Callable
) -> None:
    qrels = toy_dataset / "qrels" / "train.parquet"
    made = retrievo(
        *reranking(home, toy_dataset, home / "teacher.trec", "--qrels", qrels, "--activation", "sigmoid"),
        *("--run", home / "negatives.parquet"),
    )
    assert made.code == 0, made.err
    lines = [line.split() for line in (home / "teacher.trec").read_text().splitlines()]
    negatives = pq.read_table(home / "negatives.parquet").to_pylist()
    pairs = {(row["query_id"], row["doc_id"]) for row in negatives} | {(f"q{n}", f"d{n}") for n in range(160)}
    assert {(line[0], line[2]) for line in lines} == pairs
    assert all(0 <= float(line[4]) <= 1 for line in lines)
    denoised = retrievo(
        *("mine-negatives", *tables(toy_dataset), "--qrels", qrels, "--source", "run"),
        *("--run", home / "negatives.parquet", "--teacher", home / "teacher.trec", "--max-teacher-score", 0.5),
        *("--output", home / "denoised.parquet"),
    )
    assert denoised.code == 0, denoised.err
    stats = Manifest.read(home / "denoised.parquet", "negatives").stats
    assert stats["dropped"]["teacher"] == sum(float(line[4]) > 0.5 for line in lines) - sum(
        float(line[4]) > 0.5 for line in lines if line[0][1:] == line[2][1:]
    )


def test_reranking_stopped_in_the_middle_goes_on_and_ends_in_the_same_bytes(
    home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "PAIRS_PER_SHARD", 1_000)
    (tmp_path / "whole").mkdir()
    assert retrievo(*reranking(home, toy_dataset, tmp_path / "whole" / "run.parquet")).code == 0
    from retrievo.models.cross_encoder import CrossEncoder

    scores, calls = CrossEncoder.scores, []

    def stop_at_third(self: CrossEncoder, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RetrievoError("power", "cut")
        return scores(self, *args, **options)

    monkeypatch.setattr(CrossEncoder, "scores", stop_at_third)
    assert retrievo(*reranking(home, toy_dataset, tmp_path / "run.parquet")).code == 1
    assert sorted(path.name for path in (tmp_path / "run.parquet.scores").glob("*.npy")) == [
        "shard-00000.npy",
        "shard-00001.npy",
    ]
    refused = retrievo(*reranking(home, toy_dataset, tmp_path / "run.parquet", "--depth", 3))
    assert (refused.code, "is unfinished, but depth was null and is now 3" in refused.err) == (1, True)
    assert retrievo(*reranking(home, toy_dataset, tmp_path / "run.parquet")).code == 0
    assert len(calls) == 3 + 3 - 1 + 1  # two shards were there; the third and those after it
    a, b = (pq.read_table(path) for path in (tmp_path / "whole" / "run.parquet", tmp_path / "run.parquet"))
    assert a.equals(b)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", 0.1], "--temperature: applies only with --kind dense"),
        (["--pooling", "mean"], "--pooling: applies only with --kind dense"),
        (["--matryoshka", 8], "--matryoshka: applies only with --kind dense"),
        (["--loss", "kl", "--teacher", "t.parquet"], "--loss: applies only with --kind dense"),
        (["--query-max-length", 8], "--query-max-length: applies only with --kind dense"),
        (["--negatives-per-query", 0], "--negatives-per-query: is 0: a cross-encoder learns from a group"),
        (["--max-length", 4_000], "--max-length: 4000 tokens; expected 2 to 64 for this model"),
    ],
)
def test_options_of_encoders_are_refused(
    flags: list[object], message: str, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*training(tiny_model, toy_dataset, tmp_path / "out", *flags))
    assert message in outcome.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_binary_training_runs_and_logs_no_accuracy(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = ["--pair-loss", "binary", "--max-steps", 3, "--negatives-per-query", 2]
    made = retrievo(*training(tiny_model, toy_dataset, tmp_path / "out", *flags))
    assert made.code == 0, made.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["candidates"] for line in lines] == [48, 48, 48]  # without a pool: random documents
    assert "accuracy" not in lines[0]


@pytest.mark.slow
def test_training_killed_and_two_processes(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    flags = ("--max-steps", 8, "--batch-size", 15, "--negatives-per-query", 2, "--save-every", 2)

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    took = process(training(tiny_model, toy_dataset, tmp_path / "one", *flags))
    process(training(tiny_model, toy_dataset, tmp_path / "two", *flags), processes=2)
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)
    rng = random.Random(0)
    for moment in range(2):
        name = f"killed-{moment}"
        process(training(tiny_model, toy_dataset, tmp_path / name, *flags), kill_after=rng.uniform(0.6, 0.98) * took)
        process(training(tiny_model, toy_dataset, tmp_path / name, *flags))
        assert losses(name) == losses("one")


def searching(home: Path, dataset: Path, output: Path, *more: object) -> list[str]:
    flags = ["--index", home / "bm25", "--queries", dataset, "--output", output, "--dtype", "fp32"]
    return list(map(str, ["search", *flags, "--rerank", home / "ranker", *more]))


def test_a_search_reranks_as_rerank_does(home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> None:
    assert retrievo(*reranking(home, toy_dataset, tmp_path / "two.parquet")).code == 0
    made = retrievo(*searching(home, toy_dataset, tmp_path / "one.parquet", "--rerank-depth", 20))
    assert made.code == 0, made.err
    one, two = (pq.read_table(tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert one["query_id"].equals(two["query_id"])
    np.testing.assert_allclose(one["score"].to_numpy(), two["score"].to_numpy(), atol=1e-5)
    manifest = Manifest.read(tmp_path / "one.parquet", "run")
    assert (manifest.config["depth"], manifest.config["rerank_depth"], "ranker" in manifest.inputs) == (20, 20, True)
    short = retrievo(*searching(home, toy_dataset, tmp_path / "short.parquet", "--rerank-depth", 20, "--depth", 3))
    assert short.code == 0, short.err
    first = one.filter(pc.less_equal(one["rank"], 3))
    assert pq.read_table(tmp_path / "short.parquet")["doc_id"].equals(first["doc_id"])


def test_a_finished_search_loads_no_cross_encoder(
    home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = searching(home, toy_dataset, tmp_path / "run.parquet", "--rerank-depth", 2)
    assert retrievo(*asked).code == 0
    monkeypatch.setattr("retrievo.models.cross_encoder.CrossEncoder.load", None)
    again = retrievo(*asked)
    assert (again.code, "already finished" in again.err) == (0, True)


def test_a_judged_part_of_the_queries_is_searched_and_reranked(
    home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = ["--judged", toy_dataset, "--rerank-depth", 5]
    assert retrievo(*searching(home, toy_dataset, tmp_path / "run.parquet", *flags)).code == 0
    found = pq.read_table(tmp_path / "run.parquet")["query_id"].to_pylist()
    assert list(dict.fromkeys(found)) == [f"q{n}" for n in range(160, 240)]


def test_a_typed_question_is_answered_in_the_order_of_the_cross_encoder(
    home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    assert retrievo(*searching(home, toy_dataset, tmp_path / "run.parquet", "--rerank-depth", 8)).code == 0
    rows = [row for row in pq.read_table(tmp_path / "run.parquet").to_pylist() if row["query_id"] == "q3"]
    question = pq.read_table(toy_dataset / "queries.parquet")["text"][3].as_py()
    flags = ["--rerank", home / "ranker", "--rerank-depth", 8, "--depth", 4, "--dtype", "fp32", "--json"]
    asked = retrievo("search", question, "--index", home / "bm25", *flags)
    assert asked.code == 0, asked.err
    hits = json.loads(asked.out)["hits"]
    assert [hit["id"] for hit in hits] == [row["doc_id"] for row in rows[:4]]
    assert hits[0]["snippet"]


def test_where_memory_runs_out_pairs_are_scored_in_smaller_chunks_and_the_run_says_so(
    home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrievo.models.cross_encoder import CrossEncoder

    forward = CrossEncoder.forward

    def crowded(self: CrossEncoder, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if input_ids.numel() > 600:
            raise torch.OutOfMemoryError("no room")
        return forward(self, input_ids, mask)

    with monkeypatch.context() as patched:
        patched.setattr(CrossEncoder, "forward", crowded)
        assert retrievo(*reranking(home, toy_dataset, tmp_path / "crowded.parquet")).code == 0
        assert retrievo(*searching(home, toy_dataset, tmp_path / "searched.parquet", "--rerank-depth", 5)).code == 0
    assert retrievo(*reranking(home, toy_dataset, tmp_path / "small.parquet", "--chunk-tokens", 512)).code == 0
    crowded_, small, searched = (
        Manifest.read(tmp_path / f"{name}.parquet").stats for name in ("crowded", "small", "searched")
    )
    halved = {"chunk_tokens_of_calls": {"0": 512}}
    assert crowded_ == small | {"chunk_tokens_of_shards": {"shard-00000": halved}}
    assert searched["chunk_tokens_of_calls"] == {"0": 512}
    assert pq.read_table(tmp_path / "crowded.parquet").equals(pq.read_table(tmp_path / "small.parquet"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--depth", 30, "--rerank-depth", 20], "--depth: found 30; expected at most --rerank-depth (20)"),
        (["--rerank", "EMBEDDER"], "is no cross-encoder"),
        (["--judged", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_wrong_reranking_is_told(
    flags: list[object],
    message: str,
    home: Path,
    toy_dataset: Path,
    tiny_model: Path,
    tmp_path: Path,
    retrievo: Callable,
) -> None:
    flags = [str(tiny_model) if flag == "EMBEDDER" else flag for flag in flags]
    outcome = retrievo(*searching(home, toy_dataset, tmp_path / "no.parquet", *flags))
    assert (outcome.code in (1, 2), message in outcome.err) == (True, True), outcome.err
    assert not (tmp_path / "no.parquet").exists()


@pytest.mark.slow
def test_two_processes_rerank_as_one(home: Path, toy_dataset: Path, tmp_path: Path, process: Callable) -> None:
    for processes in (1, 2):
        process(reranking(home, toy_dataset, tmp_path / f"{processes}.parquet"), processes=processes)
    assert pq.read_table(tmp_path / "1.parquet").equals(pq.read_table(tmp_path / "2.parquet"))


# ------------------------------------------------------------------------------------------ scored by an encoder


@pytest.fixture(scope="module", params=["dot", "cosine", "untied"])
def encoder(request: Any, home: Path, tiny_model: Path, toy_dataset: Path, module_retrievo: Callable) -> Path:
    """A trained encoder's folder."""
    folder, qrels = home / request.param, toy_dataset / "qrels" / "train.parquet"
    kinds = {"dot": ["--similarity", "dot"], "cosine": ["--similarity", "cosine"], "untied": ["--no-tied"]}
    flags = ["--batch-size", 16, "--max-steps", 2, "--learning-rate", 3e-3, "--dtype", "fp32", *kinds[request.param]]
    made = module_retrievo(
        "train", "--model", tiny_model, *tables(toy_dataset), "--qrels", qrels, *flags, "--output", folder
    )
    assert made.code == 0, made.err
    return folder


ONE_ENCODER = pytest.mark.parametrize("encoder", ["dot"], indirect=True)


def scores_of(path: Path) -> dict[tuple[str, str], float]:
    return {(row["query_id"], row["doc_id"]): row["score"] for row in pq.read_table(path).to_pylist()}


def test_an_encoder_gives_pairs_the_scores_of_exact_search(
    encoder: Path, home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "PAIRS_PER_SHARD", 300)
    alone = ["--chunk-tokens", 1, "--dtype", "fp32"]  # each text by itself, so that vectors are the same to the bit
    vectors, every, scored = (tmp_path / name for name in ("vectors", "all.parquet", "scored.parquet"))
    run = ["--run", home / "bm25.parquet", "--qrels", toy_dataset / "qrels" / "train.parquet"]
    for arguments in (
        ["encode", "--model", encoder, "--corpus", toy_dataset, "--output", vectors, "--storage-dtype", "float32"],
        ["search", "--index", vectors, "--queries", toy_dataset, "--depth", 240, "--output", every],
        ["rerank", *run, "--model", encoder, *tables(toy_dataset), "--output", scored],
    ):
        made = retrievo(*arguments, *alone)
        assert made.code == 0, made.err
    assert Manifest.read(scored, "run").stats["scores"] == "similarities"
    searched, found = scores_of(every), scores_of(scored)
    wanted = {*scores_of(home / "bm25.parquet"), *((f"q{n}", f"d{n}") for n in range(160))}
    assert found == {pair: searched[pair] for pair in wanted}
    ranked = [(int(query[1:]), -score) for (query, _), score in found.items()]
    assert ranked == sorted(ranked)


def test_an_encoder_s_shards_hold_each_document_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "PAIRS_PER_SHARD", 3)
    documents = np.array([5, 1, 5, 2, 1, 5, 9, 5, 5, 0])
    shards = verb.EncoderScorer.shards(verb.Pairs(np.arange(10), documents))
    assert sorted(np.concatenate([shard.places for shard in shards]).tolist()) == list(range(10))
    held = [set(documents[shard.places].tolist()) for shard in shards]
    assert len(shards) > 1
    assert sum(map(len, held)) == len(set().union(*held))


@ONE_ENCODER
def test_an_encoder_reads_each_text_once(
    encoder: Path, home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import retrievo.models.vectors as vectors

    monkeypatch.setattr(verb, "PAIRS_PER_SHARD", 300)
    encode, texts = vectors.encode_tokens, {"query": 0, "document": 0}

    def counting(model: Any, role: str, tokens: Any, offsets: Any, *options: Any) -> Any:
        texts[role] += len(offsets) - 1
        return encode(model, role, tokens, offsets, *options)

    monkeypatch.setattr(vectors, "encode_tokens", counting)
    assert retrievo(*reranking(home, toy_dataset, tmp_path / "run.parquet", "--model", encoder)).code == 0
    pairs = scores_of(tmp_path / "run.parquet")
    assert texts == {"query": len({query for query, _ in pairs}), "document": len({document for _, document in pairs})}


@ONE_ENCODER
def test_a_run_scored_by_an_encoder_teaches(
    home: Path, toy_dataset: Path, tiny_model: Path, tmp_path: Path, encoder: Path, retrievo: Callable
) -> None:
    qrels, pool = ["--qrels", toy_dataset / "qrels" / "train.parquet"], home / "negatives.parquet"
    scoring = ["rerank", "--run", pool, "--model", encoder, *tables(toy_dataset), *qrels]
    assert retrievo(*scoring, "--output", tmp_path / "teacher.parquet").code == 0
    flags = ["--loss", "kl", "--teacher", tmp_path / "teacher.parquet", "--negatives", pool, "--max-steps", 1]
    start = ["train", "--model", tiny_model, *tables(toy_dataset), *qrels, "--batch-size", 16]
    made = retrievo(*start, *flags, "--output", tmp_path / "student")
    assert made.code == 0, made.err
    assert "the teacher scored 100.0% of the relevant documents and 100.0% of the negatives" in made.err


@ONE_ENCODER
@pytest.mark.parametrize("flags", [("--max-length", 32), ("--activation", "sigmoid")])
def test_options_of_cross_encoders_are_refused(
    flags: tuple[object, ...], encoder: Path, home: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*reranking(home, toy_dataset, tmp_path / "no.parquet", "--model", encoder, *flags))
    assert (outcome.code, f"{flags[0]}: does not apply to {encoder}, which is of kind 'encoder'" in outcome.err) == (
        2,
        True,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_says_nothing_is_taken_for_a_cross_encoder_and_refused(
    home: Path, toy_dataset: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*reranking(home, toy_dataset, tmp_path / "no.parquet", "--model", tiny_model))
    assert (outcome.code, "is no cross-encoder" in outcome.err) == (1, True)


@pytest.mark.slow
@ONE_ENCODER
def test_pairs_scored_by_an_encoder_are_the_same_of_two_processes_and_after_a_kill(
    encoder: Path, home: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    def command(name: str) -> list[str]:
        return reranking(home, toy_dataset, tmp_path / name, "--model", encoder)

    took = process(command("1.parquet"))
    process(command("2.parquet"), processes=2)
    rng = random.Random(0)
    killed = [f"killed-{moment}.parquet" for moment in range(2)]
    for name in killed:
        process(command(name), kill_after=rng.uniform(0.5, 0.98) * took)
        process(command(name))
    made = sorted(path for path in tmp_path.iterdir() if path.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.parquet", "2.parquet", *killed]
    assert all(pq.read_table(path).equals(pq.read_table(made[0])) for path in made)
