"""Training from the command line: two rounds, resumed runs, several processes, and what a stage remembers."""

from __future__ import annotations

import json
import random
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from retrievo.data.qrels import Qrels
from retrievo.models.compute import ComputeOptions
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError
from retrievo.training.engine.chunk_size import ChunkTokens
from retrievo.training.engine.gradient_cache import gradient_step

FLAGS = [
    "--batch-size",
    16,
    "--learning-rate",
    1e-3,
    "--temperature",
    0.1,
    "--dtype",
    "float32",
    "--similarity",
    "cosine",
    "--pooling",
    "mean",
]

ROUNDS = ["--negatives-per-query", 2, "--epochs", 6]

MEAN = ["--dtype", "fp32", "--pooling", "mean"]

FLOAT32 = ComputeOptions("float32")


def tables(dataset: Path) -> list[object]:
    return ["--corpus", dataset, "--queries", dataset, "--qrels", dataset / "qrels" / "train.parquet"]


def start(tiny_model: Path, dataset: Path, output: Path, *more: object) -> list[str]:
    return list(map(str, ["train", "--model", tiny_model, *tables(dataset), "--output", output, *FLAGS, *more]))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: Any, tiny_model: Path, toy_dataset: Path, module_retrievo: Callable) -> Path:
    """BM25 negatives, stage 1, mined negatives, stage 2."""
    home = tmp_path_factory.mktemp("rounds")
    bm25 = ["mine-negatives", "--source", "bm25", *tables(toy_dataset), "--depth", 40, "--samples", 10]
    for arguments in (
        [*bm25, "--output", home / "bm25.parquet"],
        start(tiny_model, toy_dataset, home / "stage-1", "--negatives", home / "bm25.parquet", *ROUNDS),
        ["mine-negatives", home / "stage-1", "to", home / "stage-2", "--depth", 40, "--samples", 8],
        ["train", home / "stage-2"],
    ):
        made = module_retrievo(*arguments)
        assert made.code == 0, made.err
    return home


def test_the_model_of_a_stage_is_found_beside_it_wherever_the_command_is_typed(
    two_rounds: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tmp_path / "home" / "stage"
    stage.mkdir(parents=True)
    shutil.copytree(two_rounds / "stage-1", tmp_path / "home" / "start", ignore=shutil.ignore_patterns("checkpoints"))
    (stage / "train.toml").write_text('[train]\nmodel = "../start"\nmax_steps = 1\n')
    monkeypatch.chdir(tmp_path)
    trained = retrievo("train", "home/stage", *tables(toy_dataset), "--batch-size", 16)
    assert trained.code == 0, trained.err


def test_validation_keeps_the_best_step_ends_early_and_goes_on_after_a_stop(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    found = ["--index", tmp_path / "bm25", "--queries", toy_dataset, "--output", tmp_path / "bm25.parquet"]
    assert retrievo("index", "--type", "bm25", "--corpus", toy_dataset, "--output", tmp_path / "bm25").code == 0
    assert retrievo("search", *found, "--depth", 30).code == 0
    judged = ["--dev-qrels", toy_dataset / "qrels" / "test.parquet", "--dev-run", tmp_path / "bm25.parquet"]
    flags = [*judged, "--validate-every", 4, "--patience", 2, "--learning-rate", 0.05, "--max-steps", 60]
    done = retrievo(*start(tiny_model, toy_dataset, tmp_path / "model", *flags))
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["dev mrr@10"] for line in lines if "dev mrr@10" in line}
    best = max(values, key=values.__getitem__)
    stats = Manifest.read(tmp_path / "model", "model").stats
    assert (stats["best_step"], stats["dev mrr@10"]) == (best, values[best])
    assert f"mrr@10 {values[best]:.4f}, of step {best:,}, which is kept" in done.err
    assert f"{stats['first_loss']:.4f} at step 1, {stats['last_loss']:.4f} at step {stats['steps']:,}" in done.err
    assert re.search(r"speed +[\d,]+ pairs/s", done.err)
    assert stats["steps"] == best + 8 < 60, "two measures after the best one"

    mined = retrievo("mine-negatives", tmp_path / "model", "to", tmp_path / "next", "--depth", 20)
    assert mined.code == 0, mined.err
    settings = tomllib.loads((tmp_path / "next" / "train.toml").read_text())["train"]
    assert settings["patience"] == 2
    assert (tmp_path / "next" / settings["dev_run"]).resolve() == (tmp_path / "bm25.parquet").resolve()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "cross-encoder"])
def test_gradients_are_verified_on_the_users_own_data(
    kind: str, two_rounds: Path, tiny_model: Path, toy_dataset: Path, retrievo: Callable
) -> None:
    flags = ["--negatives", two_rounds / "bm25.parquet", "--kind", kind, "--verify-gradients"]
    done = retrievo("train", "--model", tiny_model, *tables(toy_dataset), *flags)
    assert done.code == 0, done.err
    differences = [float(line.split()[-1]) for line in done.out.splitlines()[1:]]
    assert len(differences) == 3
    assert max(differences) < 1e-4


@pytest.mark.parametrize("loss", ["kl", "margin-mse"])
def test_what_a_teacher_says_is_learned(
    loss: str, two_rounds: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    pool = pq.read_table(two_rounds / "bm25.parquet").select(["query_id", "doc_id"])
    relevant = Qrels.read(toy_dataset / "qrels" / "train.parquet").table.select(["query_id", "doc_id"])
    scores = [pa.array([score] * table.num_rows, pa.float32()) for score, table in ((1.0, relevant), (0.0, pool))]
    run = pa.concat_tables([relevant.cast(pool.schema), pool]).append_column("score", pa.chunked_array(scores))
    pq.write_table(run.append_column("rank", pa.array([1] * len(run), pa.int32())), tmp_path / "teacher.parquet")
    taught = ["--loss", loss, "--teacher", tmp_path / "teacher.parquet", "--negatives", two_rounds / "bm25.parquet"]
    arguments = start(tiny_model, toy_dataset, tmp_path / "student", *taught, *ROUNDS)
    if loss == "margin-mse":  # margins have no temperature
        at = arguments.index("--temperature")
        arguments = [*arguments[:at], *arguments[at + 2 :]]
    done = retrievo(*arguments)
    assert done.code == 0, done.err
    assert "the teacher scored 100.0% of the relevant documents and 100.0% of the negatives" in done.err
    first, last = losses(tmp_path / "student")[0], losses(tmp_path / "student")[-1]
    assert last < 0.8 * first
    stages = ["mine-negatives", tmp_path / "student", "to", tmp_path / "next", "--depth", 20]
    assert retrievo(*stages, "--dtype", "fp32").code == 0
    following = tomllib.loads((tmp_path / "next" / "train.toml").read_text())["train"]
    assert (following["loss"], following["teacher"]) == ([loss], "../teacher.parquet")


@pytest.fixture(scope="module")
def taught(two_rounds: Path, toy_dataset: Path, module_retrievo: Callable) -> list[object]:
    """The flags of TAS-Balanced and STAR; stage 2 is every teacher."""
    made = {name: two_rounds / f"teacher-{name}" for name in ("corpus", "queries")}
    run = two_rounds / "teacher.parquet"
    judged = toy_dataset / "qrels" / "train.parquet"
    for arguments in (
        *(["encode", "--model", two_rounds / "stage-2", f"--{of}", toy_dataset, "--output", made[of]] for of in made),
        ["search", "--index", made["corpus"], "--queries", toy_dataset, "--judged", judged, "--output", run],
    ):
        done = module_retrievo(*arguments)
        assert done.code == 0, done.err
    return [
        *("--loss", "listwise,margin-mse,batch-margin-mse", "--loss-weight", "1,1,0.75", "--teacher", run),
        *(
            "--batch-teacher",
            made["queries"],
            made["corpus"],
            "--query-clusters",
            made["queries"],
            "--query-cluster-count",
            8,
        ),
        *("--balanced-margins", 10, "--negatives", two_rounds / "bm25.parquet", "--negatives-per-query", 2),
    ]


def test_query_clusters_balanced_margins_and_two_teachers_go_together_and_on_to_the_next_stage(
    taught: list[object], tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    done = retrievo(*start(tiny_model, toy_dataset, tmp_path / "student", *taught, "--epochs", 6))
    assert done.code == 0, done.err
    assert "8 query clusters of " in done.err
    found = losses(tmp_path / "student")
    assert np.mean(found[-10:]) < 0.8 * np.mean(
        found[:10]
    )  # an epoch each: a batch of one topic is harder than another
    record = json.loads((tmp_path / "student" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["loss"] == pytest.approx(
        record["listwise"] + record["margin-mse"] + 0.75 * record["batch-margin-mse"], rel=1e-4
    )
    mined = retrievo("mine-negatives", tmp_path / "student", "to", tmp_path / "next", "--depth", 20, "--dtype", "fp32")
    assert mined.code == 0, mined.err
    settings = tomllib.loads((tmp_path / "next" / "train.toml").read_text())["train"]
    assert settings["query_cluster_count"] == 8
    assert settings["balanced_margins"] == 10
    assert Path(settings["query_clusters"]).name == "teacher-queries"
    assert {Path(path).name for path in settings["batch_teacher"]} == {"teacher-queries", "teacher-corpus"}
    again = retrievo("train", tmp_path / "next", "--epochs", 0.2)
    assert again.code == 0, again.err


def test_vectors_that_do_not_fit_are_told(
    taught: list[object], two_rounds: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    corpus, queries = two_rounds / "teacher-corpus", two_rounds / "teacher-queries"
    few, other = tmp_path / "few", tmp_path / "other"
    (tmp_path / "some").mkdir()
    pq.write_table(pq.read_table(toy_dataset / "queries.parquet").slice(0, 100), tmp_path / "some" / "queries.parquet")
    for model, table, output in (
        (two_rounds / "stage-2", tmp_path / "some", few),
        (two_rounds / "stage-1", toy_dataset, other),
    ):
        assert retrievo("encode", "--model", model, "--queries", table, "--output", output).code == 0
    for flags, message in (
        (["--query-clusters", corpus], "holds document vectors; expected query vectors"),
        (["--query-clusters", few], "has no vector of query 'q100', nor of 59 others"),
        (
            ["--query-clusters", queries, "--query-cluster-count", 161],
            f"--query-cluster-count: found 161 for {toy_dataset}; expected at most 160, its judged queries",
        ),
        (["--loss", "batch-margin-mse", "--batch-teacher", corpus, corpus], "vectors of document and document"),
        (["--loss", "batch-margin-mse", "--batch-teacher", corpus, other], "was encoded by another model than"),
    ):
        arguments = start(tiny_model, toy_dataset, tmp_path / "out", *flags, "--max-steps", 1)
        if "--loss" in flags:
            at = arguments.index("--temperature")
            arguments = [*arguments[:at], *arguments[at + 2 :]]
        outcome = retrievo(*arguments)
        assert outcome.code in (1, 2)
        assert message in outcome.err


@pytest.fixture
def quality(tmp_path: Path, toy_dataset: Path, retrievo: Callable) -> Callable[..., float]:
    """mrr@10 of the test queries with a model's vectors, encoded with these flags."""

    def measured(name: str, model: Path, *encode: object) -> float:
        vectors, run = tmp_path / f"vectors-{name}", tmp_path / f"{name}.parquet"
        for arguments in (
            ["encode", "--model", model, "--corpus", toy_dataset, "--output", vectors, *encode],
            ["search", "--index", vectors, "--queries", toy_dataset, "--output", run, "--dtype", "fp32"],
        ):
            done = retrievo(*arguments)
            assert done.code == 0, done.err
        outcome = retrievo("evaluate", "--run", run, "--qrels", toy_dataset, "--metrics", "mrr@10", "--json")
        return float(json.loads(outcome.out)[name]["mrr@10"])

    return measured


def test_a_matryoshka_model_is_searched_by_the_first_numbers_of_its_vectors(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, quality: Callable
) -> None:
    made = retrievo(*start(tiny_model, toy_dataset, tmp_path / "model", "--matryoshka", "32,8", "--epochs", 6))
    assert made.code == 0, made.err
    short = [*MEAN, "--truncate-dim", 8]
    before, after = quality("before", tiny_model, *short), quality("after", tmp_path / "model", *short)
    assert Manifest.read(tmp_path / "vectors-after", "embeddings").stats["dim"] == 8
    assert after > before + 0.1


def test_training_lowers_the_loss_and_raises_retrieval(two_rounds: Path, tiny_model: Path, quality: Callable) -> None:
    found = losses(two_rounds / "stage-1")
    assert len(found) == 60  # 6 epochs of 160 judged queries by 16
    assert sum(found[-3:]) < sum(found[:3])
    assert quality("after", two_rounds / "stage-1", *MEAN) > quality("before", tiny_model, *MEAN) + 0.1


def test_stage_2_starts_from_where_stage_1_started_and_pools_both_negatives(two_rounds: Path, tiny_model: Path) -> None:
    first, second = Manifest.read(two_rounds / "stage-1", "model"), Manifest.read(two_rounds / "stage-2", "model")
    assert second.inputs["model"] == first.inputs["model"]
    assert second.input_path("model", "--model") == tiny_model
    pools = {name: recorded for name, recorded in second.inputs.items() if name.startswith("negatives-")}
    assert [Path(recorded["path"]).name for recorded in pools.values()] == ["bm25.parquet", "negatives.parquet"]
    settings = tomllib.loads((two_rounds / "stage-2" / "train.toml").read_text())["train"]
    assert settings["temperature"] == 0.1
    assert settings["negatives"][-1] == "negatives.parquet"
    assert "seed" not in settings, "only what stage 1 was given"
    assert {key: value for key, value in second.config.items() if first.config[key] != value} == {}


def test_no_relevant_document_is_ever_a_negative(two_rounds: Path, toy_dataset: Path) -> None:
    texts = dict(
        zip(*pq.read_table(toy_dataset / "corpus.parquet", columns=["id", "text"]).to_pydict().values(), strict=True)
    )
    relevant = {
        (row["query_id"], texts[row["doc_id"]])
        for row in Qrels.read(toy_dataset / "qrels" / "train.parquet").table.to_pylist()
    }
    for pool, source in (
        (two_rounds / "bm25.parquet", "bm25"),
        (two_rounds / "stage-2" / "negatives.parquet", "dense"),
    ):
        rows = pq.read_table(pool).to_pylist()
        assert len(rows) > 500
        assert {row["source"] for row in rows} == {source}
        assert not {(row["query_id"], texts[row["doc_id"]]) for row in rows} & relevant
        assert Manifest.read(pool, "negatives").stats["dropped"]["same-text"] > 0, "documents that occur twice were met"


def test_a_dataset_folder_of_judgments_is_its_training_split(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """In train and in mine-negatives: never the test split, which evaluation takes of the same folder."""
    tables = ("--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", toy_dataset)
    outcome = retrievo("train", "--model", tiny_model, *tables, "--output", tmp_path / "model", *FLAGS)
    assert outcome.code == 0, outcome.err
    outcome = retrievo("mine-negatives", *tables, "--source", "random", "--output", tmp_path / "negatives.parquet")
    assert outcome.code == 0, outcome.err
    train = toy_dataset / "qrels" / "train.parquet"
    for made in ("model", "negatives.parquet"):
        assert Manifest.read(tmp_path / made).input_path("qrels", "--qrels") == train
    mined = set(pq.read_table(tmp_path / "negatives.parquet")["query_id"].to_pylist())
    assert mined == set(pq.read_table(train)["query_id"].to_pylist())


def test_a_finished_stage_is_left_alone_and_another_option_refused(two_rounds: Path, retrievo: Callable) -> None:
    before = weights(two_rounds / "stage-2")
    again = retrievo("train", two_rounds / "stage-2")
    assert (again.code, "is already finished" in again.err) == (0, True)
    assert (
        retrievo(
            "mine-negatives", two_rounds / "stage-1", "to", two_rounds / "stage-2", "--depth", 40, "--samples", 8
        ).code
        == 0
    )
    other = retrievo("train", two_rounds / "stage-2", "--seed", 1)
    assert other.code == 1
    assert "is finished, but seed was 0 and is now 1" in other.err
    assert weights(two_rounds / "stage-2") == before


def test_the_model_opens_in_sentence_transformers_with_the_same_vectors(two_rounds: Path, toy_dataset: Path) -> None:

    from retrievo.models.encoder import Encoder
    from retrievo.models.vectors import encode_texts

    library = pytest.importorskip("sentence_transformers", minversion="6")
    texts = pq.read_table(toy_dataset / "queries.parquet")["text"].to_pylist()[:20]
    theirs = library.SentenceTransformer(str(two_rounds / "stage-2"), device="cpu", local_files_only=True).encode_query(
        texts
    )
    ours = encode_texts(Encoder.load(two_rounds / "stage-2"), "query", texts, FLOAT32)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("attention", [[], pytest.param(["--bidirectional"], marks=pytest.mark.slow)])
def test_a_decoder_learns_from_its_last_token_and_opens_in_sentence_transformers(
    attention: list[str], tiny_decoder: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    from retrievo.models.encoder import Encoder
    from retrievo.models.vectors import encode_texts

    flags = ["--epochs", 4, "--batch-size", 16, "--learning-rate", 1e-2, "--temperature", 0.1, "--normalize"]
    flags += ["--query-prefix", "test case data ", "--dtype", "fp32", "--chunk-tokens", 128, *attention]
    done = retrievo("train", "--model", tiny_decoder, *tables(toy_dataset), *flags, "--output", tmp_path / "m")
    assert done.code == 0, done.err
    assert "'last' is assumed" in done.err
    assert np.mean(losses(tmp_path / "m")[-5:]) < 0.5 * losses(tmp_path / "m")[0]

    encoder = Encoder.load(tmp_path / "m")
    assert (encoder.spec.pooling, encoder.backbone.config.model_type) == ("last", "mistral")
    library = pytest.importorskip("sentence_transformers", minversion="6")
    texts = pq.read_table(toy_dataset / "queries.parquet")["text"].to_pylist()[:20]
    theirs = library.SentenceTransformer(str(tmp_path / "m"), device="cpu", local_files_only=True).encode_query(texts)
    np.testing.assert_allclose(theirs, encode_texts(encoder, "query", texts, FLOAT32), atol=1e-5)


def test_adapters_learn_and_leave_a_plain_model(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    pytest.importorskip("peft")
    flags = ["--epochs", 4, "--lora-rank", 8, "--learning-rate", 1e-2, "--negatives-per-query", 0]
    done = retrievo(*start(tiny_model, toy_dataset, tmp_path / "adapted", *flags))
    assert done.code == 0, done.err
    assert np.mean(losses(tmp_path / "adapted")[-5:]) < 0.7 * losses(tmp_path / "adapted")[0]
    kept, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "adapted", tiny_model))
    assert not [name for name in kept if "lora" in name or "base_layer" in name]
    unchanged = {name for name in kept if torch.equal(kept[name], before[name])}
    assert {name for name in kept if ".weight" in name and "dense" in name}.isdisjoint(unchanged)
    assert "embeddings.word_embeddings.weight" in unchanged, "adapters are in linear layers only"


def test_a_typed_question_over_vectors_finds_its_model_and_texts_through_the_manifests(
    two_rounds: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    made = retrievo(
        "encode", "--model", two_rounds / "stage-2", "--corpus", toy_dataset, "--output", tmp_path / "vectors"
    )
    assert made.code == 0, made.err
    assert retrievo("index", "--embeddings", tmp_path / "vectors", "--output", tmp_path / "index").code == 0
    question = pq.read_table(toy_dataset / "queries.parquet")["text"][0].as_py()
    answers = [
        retrievo("search", question, "--index", tmp_path / name, "--depth", 5, "--json")
        for name in ("vectors", "index")
    ]
    hits = [json.loads(answer.out)["hits"] for answer in answers]
    assert hits[0] == hits[1]
    assert [hit["rank"] for hit in hits[0]] == [1, 2, 3, 4, 5]
    assert hits[0][0]["title"] == "data"
    assert any(word in hit["snippet"] for hit in hits[0] for word in question.split())


def test_the_same_command_gives_the_same_bytes(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    for name in ("a", "b"):
        outcome = retrievo(*start(tiny_model, toy_dataset, tmp_path / name, "--max-steps", 4))
        assert outcome.code == 0, outcome.err
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_model_can_start_from_nothing(toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> None:
    arguments = [
        "train",
        "--model",
        "scratch:tiny",
        *tables(toy_dataset),
        "--output",
        tmp_path / "out",
        "--max-steps",
        2,
    ]
    outcome = retrievo(*arguments, "--batch-size", 8)
    assert outcome.code == 0, outcome.err
    manifest = Manifest.read(tmp_path / "out", "model")
    assert manifest.config["model"] == "scratch:tiny"
    assert manifest.stats["dim"] == 128
    unknown = retrievo(
        *[str(argument).replace("tiny", "tinny") for argument in arguments[:-4]], "--output", tmp_path / "no"
    )
    assert "did you mean 'scratch:tiny'?" in unknown.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-steps", 3, "--epochs", 2], "--epochs"),
        (["--loss", "infonec"], "--loss: found 'infonec'; did you mean 'infonce'?"),
        (["--document-max-length", 4_000], "--document-max-length: 4000 tokens; expected 3 to 64 for this backbone"),
        (["--negatives", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["--loss", "infonce,infonce", "--loss-weight", "1,1"], "--loss: found infonce, infonce; expected each once"),
        (["--loss-weight", 0], "--loss-weight: is 0 for every loss: nothing is learned; expected one above 0"),
        (["--loss", "infonce,kl", "--teacher", "t.parquet"], "--loss-weight: found 1 weights for 2 losses"),
        (["--hard-negative-ratio", 0.1], "--hard-negative-ratio: is a share of no pool; pass --negatives POOL"),
        (
            ["--loss", "margin-mse", "--teacher", "t.parquet", "--temperature", 0.1],
            "--temperature: applies only with --loss infonce, supcon,",
        ),
        (["--label-smoothing", 0.1, "--loss", "kl", "--teacher", "t.parquet"], "--label-smoothing: applies only with"),
        (["--pair-loss", "binary"], "--pair-loss: applies only with --kind cross-encoder"),
        (["--max-length", 99], "--max-length: applies only with --kind cross-encoder"),
        (
            ["--gradient-checkpointing", "--activation-memory", "2GB"],
            "--activation-memory: applies only without --gradient-checkpointing",
        ),
        (["--matryoshka", 64], "--matryoshka: found 64; expected at most 32, the dimension of the model's vectors"),
        (["--min-relevance", 5], "none of its 0 relevant pairs has its query and its document"),
    ],
)
def test_wrong_options_are_named(
    flags: list[object], message: str, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*start(tiny_model, toy_dataset, tmp_path / "out", *flags))
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_run_that_memory_ended_goes_on_with_options_that_take_less(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = start(tiny_model, toy_dataset, tmp_path / "out", "--max-steps", 2, "--save-every", 1)

    def full(self: ChunkTokens, batch: object) -> None:
        raise RetrievoError("training", "does not fit", None, self._advice(1))

    monkeypatch.setattr(ChunkTokens, "shrink", full)
    monkeypatch.setattr("retrievo.training.engine.loop.gradient_step", _fitting_once(gradient_step))
    outcome = retrievo(*flags)
    assert (outcome.code, "with --activation-memory 0 --chunk-tokens 2048: it resumes" in outcome.err) == (1, True)
    outcome = retrievo(*flags, "--gradient-checkpointing", "--chunk-tokens", 64)
    assert outcome.code == 0, outcome.err
    assert "from step 2 on, --chunk-tokens is 64; it was 4096" in outcome.err
    changed = {"chunk_tokens": [4096, 64], "activation_memory": ["1GB", "0"], "gradient_checkpointing": [False, True]}
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("changed") for line in lines] == [None, changed, None]
    recorded = Manifest.read(tmp_path / "out").config
    assert (recorded["chunk_tokens"], recorded["gradient_checkpointing"]) == (64, True)


def _fitting_once(step: Callable) -> Callable:
    """A step of training for whose first large one there is room, and for no other."""
    calls: list[int] = []

    def attempt(*given: Any, **options: Any) -> Any:
        calls.append(options["chunk_tokens"])
        if calls.count(4096) > 1 and options["chunk_tokens"] == 4096:
            raise torch.OutOfMemoryError("no room")
        return step(*given, **options)

    return attempt


@pytest.mark.slow
@pytest.mark.parametrize("sampled", ["plainly", "by clusters"])
def test_killed_at_any_moment_and_run_again_training_ends_in_the_same_bytes(
    sampled: str, taught: list[object], tiny_model: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    flags = ("--max-steps", 20, "--save-every", 3, *(taught if sampled == "by clusters" else ()))
    took = process(start(tiny_model, toy_dataset, tmp_path / "whole", *flags))
    assert took is not None
    rng, kills = random.Random(0), 0
    for moment in range(4):
        output = tmp_path / f"killed-{moment}"
        lived = process(start(tiny_model, toy_dataset, output, *flags), kill_after=rng.uniform(0.6, 0.98) * took)
        kills, took = kills + (lived is None), min(took, lived or took)  # a quieter machine is quicker
        process(start(tiny_model, toy_dataset, output, *flags))
        assert weights(output) == weights(tmp_path / "whole")
        assert losses(output) == losses(tmp_path / "whole")
    assert kills >= 2


@pytest.mark.slow
@pytest.mark.parametrize("sampled", ["plainly", "by clusters"])
def test_two_processes_log_the_losses_of_one(
    sampled: str, taught: list[object], tiny_model: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    uneven = ("--max-steps", 12, "--batch-size", 15)  # 8 and 7 queries; the last batch of an epoch has 10
    flags = (*uneven, *(taught if sampled == "by clusters" else ()))
    process(start(tiny_model, toy_dataset, tmp_path / "one", *flags))
    process(start(tiny_model, toy_dataset, tmp_path / "two", *flags), processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--lora-rank", 2)])
def test_sharded_processes_leave_the_files_of_whole_ones(
    more: tuple[object, ...], tiny_model: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    judged = toy_dataset / "qrels" / "test.parquet"
    documents = pq.read_table(toy_dataset / "corpus.parquet")["id"].to_pylist()[:20]
    pairs = [(query, document) for query in Qrels.read(judged).table["query_id"].unique() for document in documents]
    columns = {"query_id": [str(query) for query, _ in pairs], "doc_id": [document for _, document in pairs]}
    ranked = {"score": pa.array([1.0] * len(pairs), pa.float32()), "rank": pa.array([1] * len(pairs), pa.int32())}
    pq.write_table(pa.table(columns | ranked), tmp_path / "run.parquet")
    judging = ("--dev-qrels", judged, "--dev-run", tmp_path / "run.parquet")
    flags = ("--max-steps", 6, "--batch-size", 15, "--chunk-tokens", 100, "--validate-every", 2, *judging, *more)
    flags += ("--epsilon", 1e-3)  # AdamW would blow up what is nothing but rounding, such as gradients of key biases
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    process(start(tiny_model, toy_dataset, whole, *flags), processes=2)
    process(start(tiny_model, toy_dataset, sharded, *flags, "--fsdp"), processes=2)
    logs = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, sharded)
    ]
    for name in ("loss", "dev mrr@10"):
        found, expected = ([record[name] for record in log if name in record] for log in logs)
        assert found == pytest.approx(expected, rel=1e-5)
        assert len(found) == (6 if name == "loss" else 3)
    files = [{path.name for path in folder.iterdir()} for folder in (whole, sharded)]
    assert files[0] == files[1]
    for name in files[0] - {"model.safetensors", "manifest.json", "begin.json", "metrics.jsonl", "metrics.png"}:
        if (whole / name).is_file():
            assert (sharded / name).read_bytes() == (whole / name).read_bytes(), name
    made, wanted = (load_file(folder / "model.safetensors") for folder in (sharded, whole))
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value, rtol=1e-4, atol=1e-5)
    stats = [Manifest.read(folder, "model").stats for folder in (whole, sharded)]
    assert stats[0]["best_step"] == stats[1]["best_step"]


@pytest.mark.slow
def test_encode_killed_and_resumed_with_other_processes_ends_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, toy_dataset: Path, process: Callable
) -> None:
    import pyarrow as pa

    texts = pq.read_table(toy_dataset / "corpus.parquet")["text"].to_pylist() * 100  # 24,000 texts: 6 shards
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts}), tmp_path / "corpus.parquet")

    def encode(output: Path) -> list[str]:
        return list(map(str, ["encode", "--model", tiny_model, "--corpus", tmp_path, "--output", output]))

    took = process(encode(tmp_path / "whole"))
    assert took is not None
    rng, kills = random.Random(0), 0
    for moment, (first, then) in enumerate([(1, 2), (2, 1), (1, 1), (2, 2)]):
        output = tmp_path / f"killed-{moment}"
        lived = process(encode(output), processes=first, kill_after=rng.uniform(0.6, 0.95) * took)
        kills, took = kills + (lived is None), min(took, lived or took)  # a quieter machine is quicker
        process(encode(output), processes=then)
        for shard in sorted((tmp_path / "whole").glob("*.arrow")):
            assert (output / shard.name).read_bytes() == shard.read_bytes()
    assert kills >= 2


@pytest.fixture(scope="module")
def other_dataset(tmp_path_factory: Any) -> Path:
    """Another data set with the ids of the first one; a TOML file says what stands before its texts."""
    folder = tmp_path_factory.mktemp("other")
    numbers, topics = range(40), ["wing", "flow", "heat", "shock", "layer", "blade", "engine", "wave"]
    words = [f"{topics[n % 8]}{n // 8}" for n in numbers]
    documents = {"id": [f"d{n}" for n in numbers], "text": [f"plot {word}" for word in words]}
    pq.write_table(pa.table(documents), folder / "corpus.parquet")
    pq.write_table(pa.table({"id": [f"q{n}" for n in numbers], "text": words}), folder / "queries.parquet")
    (folder / "qrels").mkdir()
    pairs = {"query_id": [f"q{n}" for n in numbers], "doc_id": [f"d{n}" for n in numbers]}
    judged = pa.table(pairs | {"relevance": pa.array([1] * 40, pa.int32())})
    pq.write_table(judged, folder / "qrels" / "train.parquet")
    tables = {name: str(folder) for name in ("corpus", "queries")} | {"qrels": str(folder / "qrels" / "train.parquet")}
    lines = [f'{name} = "{value}"' for name, value in tables.items()]
    (folder.parent / "prefixed.toml").write_text("\n".join(["[train]", *lines, 'query_prefix = "hot "']))
    return folder


def test_two_data_sets_are_learned_from_in_batches_of_one_each(
    tiny_model: Path, toy_dataset: Path, other_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = ["--extra-dataset", other_dataset, "--mix", "equal", "--negatives-per-query", 0, "--max-steps", 24]
    done = retrievo(*start(tiny_model, toy_dataset, tmp_path / "both", *flags))
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    assert {line["dataset"] for line in lines} == {1, 2}
    for number in (1, 2):
        of_one = [line["loss"] for line in lines if line["dataset"] == number]
        assert np.mean(of_one[-3:]) < 0.8 * of_one[0]
    inputs = json.loads((tmp_path / "both" / "manifest.json").read_text())["inputs"]
    assert {"corpus", "extra-dataset-1-corpus", "extra-dataset-1-queries", "extra-dataset-1-qrels"} <= set(inputs)


def test_a_data_set_has_the_prefix_of_its_file(
    tiny_model: Path, toy_dataset: Path, other_dataset: Path, retrievo: Callable, tmp_path: Path
) -> None:
    from retrievo.commands.train_build import data_sets, model_objective_feed
    from retrievo.commands.train_config import TrainConfig
    from retrievo.models.encoder import Encoder

    def queries(extra: Path) -> set[int]:
        config = TrainConfig(
            model=str(tiny_model),
            corpus=toy_dataset,
            queries=toy_dataset,
            qrels=toy_dataset / "qrels" / "train.parquet",
            output=tmp_path / "m",
            extra_dataset=(extra,),
            pooling="mean",
        )
        _, _, feed = model_objective_feed(config, data_sets(config))
        assert not {feed.feeds[0].query_tokens.row(row)[1] for row in range(160)} & {hot}
        return {int(feed.feeds[1].query_tokens.row(row)[1]) for row in range(40)}

    hot = Encoder.load(tiny_model, pooling="mean").tokenizer.convert_tokens_to_ids("hot")
    assert queries(other_dataset.parent / "prefixed.toml") == {hot}
    assert hot not in queries(other_dataset)


def test_each_data_set_is_mined_for_into_a_stage_of_its_own(
    tiny_model: Path, toy_dataset: Path, other_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    both, more = (
        tmp_path / "both",
        ["--extra-dataset", other_dataset.parent / "prefixed.toml", "--query-prefix", "the "],
    )
    trained = retrievo(*start(tiny_model, toy_dataset, both, *more, "--max-steps", 4))
    assert trained.code == 0, trained.err
    for name, dataset, prefix in (("first", toy_dataset, "the "), ("second", other_dataset, "hot ")):
        mined = retrievo("mine-negatives", both, "to", tmp_path / name, *tables(dataset), "--depth", 20)
        assert mined.code == 0, mined.err
        settings = tomllib.loads((tmp_path / name / "train.toml").read_text())["train"]
        places = [Path(tmp_path / name / settings[table]).resolve() for table in ("corpus", "queries", "qrels")]
        assert places == [dataset, dataset, dataset / "qrels" / "train.parquet"]
        assert settings["query_prefix"] == prefix
    second = retrievo(
        *start(tiny_model, toy_dataset, tmp_path / "m", "--extra-dataset", tmp_path / "second", "--max-steps", 2)
    )
    assert second.code == 0, second.err
    assert "of unknown queries or documents" not in second.err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            'corpus = "c"\nqueries = "q"\nqrels = "r"\nnegativs = "n"',
            "unknown key 'negativs'; did you mean 'negatives'",
        ),
        ('queries = "q"\nqrels = "r"', "has no corpus in a section [train]"),
        ('corpus = "c"\nqueries = "q"\nqrels = "r"\nbatch_size = 8', "c: no such file"),
    ],
)
def test_mistakes_in_the_file_of_a_data_set_are_named(
    lines: str, message: str, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    (tmp_path / "more.toml").write_text(f"[train]\n{lines}\n")
    done = retrievo(*start(tiny_model, toy_dataset, tmp_path / "m", "--extra-dataset", tmp_path / "more.toml"))
    assert done.code
    assert message in done.err.replace("\n", " ")
    assert str(tmp_path) in done.err.replace("\n", "")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--extra-dataset", "nowhere"], 1, "nowhere: is no data set to train on"),
        (["--mix", "equal"], 2, "--mix: applies only with --extra-dataset"),
        (["--extra-dataset", ".", "--mix", "1,2,3"], 2, "found 3 weights for 2 corpora or data sets"),
    ],
)
def test_what_is_no_further_data_set_is_refused(
    flags: list[str], code: int, message: str, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    done = retrievo(*start(tiny_model, toy_dataset, tmp_path / "m", *flags))
    assert done.code == code
    assert message in done.err.replace("\n", " ")
    assert not (tmp_path / "m").exists()
