"""Refreshed negatives: the pool of the model as it stands, of no relevant document, the same after a kill."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from retrievo.commands.train import train
from retrievo.commands.train_config import TrainConfig
from retrievo.data.qrels import Qrels
from retrievo.models.encoder import Encoder
from retrievo.support.errors import UsageError
from retrievo.training.engine.ance import RefreshingFeed
from retrievo.training.engine.checkpoints import save
from retrievo.training.engine.config import REFRESHED
from retrievo.training.feeds.dataset_config import open_data_set
from retrievo.training.feeds.finetune import TrainingData, TrainingFeed
from retrievo.training.feeds.samplers import Drawing
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.table import FinetuneConfig

DEPTH = 20
# one thread: a fixture of the module would be made with more of them than what is compared with it
STEADY = {
    "threads": 1,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "dtype": "float32",
}
MODEL = {"temperature": 0.1, "similarity": "cosine", "pooling": "mean", "negatives_per_query": 2}


def options(tiny_model: Path, dataset: Path, output: Path, **more: Any) -> dict[str, Any]:
    tables = {"corpus": dataset, "queries": dataset, "qrels": dataset / "qrels" / "train.parquet"}
    return {**tables, **STEADY, **MODEL, "model": str(tiny_model), "output": output, "max_steps": 20, **more}


def refreshed(*given: Any, **more: Any) -> dict[str, Any]:
    return options(*given, **{"refresh_every": 7, "refresh_depth": DEPTH, "save_every": 3, **more})


def typed(given: dict[str, Any]) -> list[str]:
    return ["train", *(str(part) for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value))]


def pool(path: Path) -> set[tuple[str, str]]:
    return {(row["query_id"], row["doc_id"]) for row in pq.read_table(path).to_pylist()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_model: Path, toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps with refreshes after steps 7 and 14, never stopped."""
    output = tmp_path_factory.mktemp("refresh") / "whole"
    train(TrainConfig(**refreshed(tiny_model, toy_dataset, output)))
    return output


@pytest.fixture
def feed(tiny_model: Path, toy_dataset: Path, tmp_path: Path) -> Callable[[], RefreshingFeed]:
    """A feed that is refreshed every 2 of 8 steps, each time over the same folder, with a model that has not moved."""

    def made() -> RefreshingFeed:
        data = TrainingData(open_data_set(toy_dataset), 1)
        encoder = Encoder.load(str(tiny_model), pooling="mean")
        collator = Finetune(FinetuneConfig(), encoder).collator()
        plain = TrainingFeed(data, encoder, collator, Drawing(batch_size=16, negatives_per_query=3, seed=0))
        return RefreshingFeed(plain, encoder, every=2, depth=DEPTH, folder=tmp_path, steps=8, dtype="float32")

    return made


def test_the_pool_is_what_mining_with_the_model_of_that_step_gives(
    whole: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    train(TrainConfig(**options(tiny_model, toy_dataset, tmp_path / "short", max_steps=7)))
    mined = ["mine-negatives", "--source", "dense", "--model", tmp_path / "short", "--output", tmp_path / "n.parquet"]
    judged = ["--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", toy_dataset / "qrels" / "train.parquet"]
    asked = ["--depth", DEPTH, "--samples", DEPTH, "--sampling", "top", "--dtype", "float32"]
    done = retrievo(*mined, *judged, *asked)
    assert done.code == 0, done.err
    assert pool(whole / REFRESHED / "step-000007") == pool(tmp_path / "n.parquet")


def test_no_relevant_document_and_no_text_of_one_enters_a_pool(whole: Path, toy_dataset: Path) -> None:
    corpus = pq.read_table(toy_dataset / "corpus.parquet")
    texts = dict(zip(corpus["id"].to_pylist(), corpus["text"].to_pylist(), strict=True))
    judged = Qrels.read(toy_dataset / "qrels" / "train.parquet").table.to_pylist()
    relevant = {(row["query_id"], texts[row["doc_id"]]) for row in judged}
    found = pool(whole / REFRESHED / "step-000014")
    assert len({query for query, _ in found}) == len(judged)
    assert not {(query, texts[doc]) for query, doc in found} & relevant


def test_the_log_tells_what_a_refresh_brought(whole: Path) -> None:
    told = {line["step"]: line for line in lines(whole) if "refresh_new" in line}
    assert list(told) == [7, 14]
    assert told[7]["refresh_new"] == 1.0
    assert 0 < told[14]["refresh_new"] < 1
    assert told[14]["refresh_negatives"] == len(pool(whole / REFRESHED / "step-000014"))
    assert told[7]["refresh_seconds"] > 0


def test_vectors_and_half_done_work_are_gone_at_the_end(whole: Path) -> None:
    assert {path.name for path in (whole / REFRESHED).iterdir()} == {"step-000007", "step-000014"}
    assert [path.suffix for path in (whole / REFRESHED).rglob("*") if path.is_file()] == [".parquet"] * 2


def test_training_is_with_documents_of_the_batch_until_the_first_refresh_and_with_the_pool_then(
    feed: Callable, tmp_path: Path
) -> None:
    made = feed()
    assert made.batch(1).groups.tolist() == [1] * 16
    made(2)
    ids = made.data.corpus.id_map.ids
    documents = made.batch(2).ids["document"].numpy().reshape(16, 4)  # positive first
    draws = made.feed.sampler.batch(2)
    drawn = {(f"q{draw.query}", *ids[own[1:]]) for draw, own in zip(draws, documents, strict=True)}
    allowed = pool(tmp_path / REFRESHED / "step-000002")
    assert {(query, doc) for query, *docs in drawn for doc in docs} <= allowed


def test_a_step_has_the_pool_of_its_refresh_whatever_the_model_is_now(feed: Callable) -> None:
    first = feed()
    first.batch(1)
    first(2)
    expected = first.batch(3)
    again = feed()
    with torch.no_grad():
        again.encoder.backbone.embeddings.word_embeddings.weight.normal_()
    found = again.batch(3)
    assert torch.equal(found.ids["document"], expected.ids["document"])
    again(4)
    assert not torch.equal(again.batch(4).ids["document"], first.feed.batch(4).ids["document"])


def test_after_the_last_step_nothing_is_mined(feed: Callable, tmp_path: Path) -> None:
    assert feed()(8) == {}
    assert not (tmp_path / REFRESHED).exists()


def test_pools_that_no_run_can_need_again_are_removed(feed: Callable, tmp_path: Path) -> None:
    made = feed()
    optimizer = torch.optim.SGD(made.encoder.parameters())
    for step in (2, 4, 6):
        made(step)
        if step == 4:
            save(tmp_path / "checkpoints", 5, made.encoder, optimizer, {}, 2)
    assert {path.name for path in (tmp_path / REFRESHED).iterdir()} == {"step-000004", "step-000006"}


@pytest.mark.parametrize("stopped", ["_encoded", "_mine", "_finish"])
def test_stopped_within_a_refresh_and_run_again_training_ends_in_the_same_bytes(
    stopped: str, whole: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoint of step 12, whose pool is that of step 7."""
    config = TrainConfig(**refreshed(tiny_model, toy_dataset, tmp_path / "stopped"))
    whole_work, calls = getattr(RefreshingFeed, stopped), []

    def stopping(self: RefreshingFeed, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise InterruptedError
        return whole_work(self, *given)

    monkeypatch.setattr(RefreshingFeed, stopped, stopping)
    with pytest.raises(InterruptedError):
        train(config)
    monkeypatch.undo()
    assert max(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()) == "step-000012"
    train(config)
    assert weights(tmp_path / "stopped") == weights(whole)
    assert losses(tmp_path / "stopped") == losses(whole)
    assert not list((tmp_path / "stopped" / REFRESHED).glob(".*"))


def test_any_documents_fill_up_a_share_of_hard_ones_until_there_are_some(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    config = TrainConfig(**refreshed(tiny_model, toy_dataset, tmp_path / "out", hard_negative_ratio=0.5, max_steps=8))
    train(config)
    assert len(losses(tmp_path / "out")) == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"refresh_every": None}, "--refresh-depth: applies only with --refresh-every"),
        ({"negatives_per_query": 0}, "--refresh-every: mines negatives that are never drawn"),
        ({"teacher": Path("t.parquet"), "loss": ("kl",), "temperature": None}, "that the teacher has not scored"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message.replace("(", ".")):
        TrainConfig(**refreshed(tmp_path, tmp_path, tmp_path / "out", **given))


def test_a_cross_encoder_has_no_vectors_to_search(tmp_path: Path) -> None:
    tables = dict.fromkeys(("corpus", "queries", "qrels"), tmp_path)
    with pytest.raises(UsageError, match="--refresh-every: applies only with --kind dense"):
        TrainConfig(**tables, model="m", output=tmp_path / "out", kind="cross-encoder", refresh_every=5)


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_training_ends_in_the_same_bytes(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    def command(output: Path) -> list[str]:
        return typed(refreshed(tiny_model, toy_dataset, output, refresh_every=2, save_every=3))

    took = process(command(tmp_path / "whole"))
    assert took is not None
    rng, kills = random.Random(0), 0
    for moment in range(4):
        output = tmp_path / f"killed-{moment}"
        lived = process(command(output), kill_after=rng.uniform(0.6, 0.98) * took)
        kills, took = kills + (lived is None), min(took, lived or took)  # a quieter machine is quicker
        process(command(output))
        assert weights(output) == weights(tmp_path / "whole")
        assert losses(output) == losses(tmp_path / "whole")
    assert kills >= 2


@pytest.mark.slow
def test_two_processes_mine_the_pool_of_one(
    whole: Path, tiny_model: Path, toy_dataset: Path, tmp_path: Path, process: Callable
) -> None:
    process(typed(refreshed(tiny_model, toy_dataset, tmp_path / "two")), processes=2)
    assert pool(tmp_path / "two" / REFRESHED / "step-000007") == pool(whole / REFRESHED / "step-000007")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(whole), rtol=1e-4)
