"""Interrupted with --force or without, train, encode and rerank go on; --restart begins anew; full disks are told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.retrieval import embeddings
from retrievo.support.artifact import MANIFEST, Manifest
from retrievo.training.engine import checkpoints


@pytest.fixture
def training(tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> Callable[..., Any]:
    def train(*more: object, output: str = "out") -> Any:
        tables = ["--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", toy_dataset / "qrels" / "train.parquet"]
        flags = ["--dtype", "float32", "--pooling", "mean", "--batch-size", 8, "--negatives-per-query", 0]
        often = ["--max-steps", 4, "--save-every", 2, "--document-max-length", 8]
        return retrievo("train", "--model", tiny_model, *tables, *flags, *often, "--output", tmp_path / output, *more)

    return train


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose checkpoints were written; where it begins with 0, training is interrupted after the first."""
    steps: list[int] = []
    save = checkpoints.save

    def interrupted(folder: Path, step: int, *rest: Any) -> None:
        save(folder, step, *rest)
        steps.append(step)
        if steps[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", interrupted)
    return steps


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file() and "metrics" not in path.name}


@pytest.mark.slow
def test_training_with_force_is_gone_on_with_and_the_old_model_stays_until_then(
    training: Callable, saved: list[int], tmp_path: Path
) -> None:
    assert training().code == 0
    assert training("--seed", 1, output="reference").code == 0
    (tmp_path / "out" / "mine.txt").write_text("mine")
    before = files(tmp_path / "out")
    saved[:] = [0]
    stopped = training("--seed", 1, "--force")
    assert stopped.code == 130
    assert "partial work is kept in" in stopped.err
    assert files(tmp_path / "out") == before
    saved.clear()
    assert training("--seed", 1, "--force").code == 0
    assert saved == [4], "it goes on from step 2"
    after, reference = files(tmp_path / "out"), files(tmp_path / "reference")
    assert after.pop("mine.txt") == b"mine"
    assert {name: after[name] for name in after if name != MANIFEST} == {
        name: reference[name] for name in reference if name != MANIFEST
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "reference"]


def test_force_over_an_unfinished_model_of_other_options_begins_anew(
    training: Callable, saved: list[int], tmp_path: Path
) -> None:
    saved[:] = [0]
    assert training("--max-steps", 400, "--save-every", 3).code == 130
    (tmp_path / "out" / "mine.txt").write_text("mine")
    saved.clear()
    refused = training()
    assert (
        "is unfinished, but max_steps was 400 and is now 4; resume it with the same options, pass --restart"
        in refused.err
    )
    assert training("--force").code == 0
    assert saved == [2, 4]
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000004"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_restart_begins_anew_and_what_it_leaves_is_gone_on_with(
    training: Callable, saved: list[int], tmp_path: Path
) -> None:
    saved[:] = [0]
    assert training().code == 130
    stopped = training("--restart")
    assert "the same command without --restart resumes it" in stopped.err
    assert saved == [0, 2, 2]
    saved.clear()
    (tmp_path / "out" / "checkpoints" / ".step-000003.partial").mkdir()  # of a killed save
    (tmp_path / "out" / "checkpoints" / "step-000001").mkdir()  # that was being removed
    assert training().code == 0
    assert saved == [4]
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000004"]


@pytest.mark.slow
def test_killed_after_its_last_checkpoint_a_run_still_draws_its_picture(
    training: Callable, saved: list[int], tmp_path: Path
) -> None:
    saved[:] = [0]
    assert training("--save-every", 4).code == 130
    (tmp_path / "out" / "metrics.png").unlink(missing_ok=True)  # one is drawn now and then while training too
    assert training("--save-every", 4).code == 0
    assert (tmp_path / "out" / "metrics.png").exists()


def test_a_full_disk_while_training_is_one_line_and_leaves_no_half_checkpoint(
    training: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(tensors: Any, path: Path) -> None:
        if "step-000004" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write(tensors, path)

    write = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", full)
    outcome = training()
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "weights.safetensors: the disk is full (" in outcome.err
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    assert training().code == 0


@pytest.mark.slow
def test_encoding_with_force_is_gone_on_with_shard_by_shard(
    tiny_model: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"wing{n % 7} flow{n % 5}" for n in range(4_200)]
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts}), tmp_path / "corpus.parquet")

    def encode(*more: object, output: str = "out") -> Any:
        flags = ["--model", tiny_model, "--pooling", "mean", "--corpus", tmp_path / "corpus.parquet", "--dtype", "fp32"]
        return retrievo("encode", *flags, "--output", tmp_path / output, *more)

    written: list[str] = []
    write = embeddings.write_shard

    def writing(path: Path, *rest: Any) -> Any:
        if len(written) == 2 and written[0] == "":
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(embeddings, "write_shard", writing)
    assert encode().code == 0
    assert encode("--truncate-dim", 16, output="reference").code == 0
    before = files(tmp_path / "out")
    written[:] = [""]
    assert encode("--truncate-dim", 16, "--force").code == 130
    assert files(tmp_path / "out") == before
    written.clear()
    assert encode("--truncate-dim", 16, "--force").code == 0
    assert written == ["shard-00001.arrow"]
    for name in ("shard-00000.arrow", "shard-00001.arrow"):
        assert files(tmp_path / "out")[name] == files(tmp_path / "reference")[name]


@pytest.mark.slow
def test_reranking_with_force_is_gone_on_with_and_restart_is_not(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import retrievo.commands.rerank as verb
    from retrievo.models.encoder import Encoder

    Encoder.load(tiny_model, pooling="mean").save(tmp_path / "model")
    (tmp_path / "run.trec").write_text("".join(f"q{n} Q0 d{n + k} {k} {9 - k} x\n" for n in range(9) for k in (1, 2)))
    flags = ["--model", tmp_path / "model", "--corpus", toy_dataset, "--queries", toy_dataset, "--dtype", "fp32"]

    def rerank(*more: object) -> Any:
        return retrievo("rerank", "--run", tmp_path / "run.trec", *flags, "--output", tmp_path / "out.parquet", *more)

    scored: list[int] = []
    score = verb.EncoderScorer.scores

    def scoring(self: Any, pairs: Any, tick: Any) -> Any:
        if scored and scored[0] == 0 and len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(pairs.query))
        return score(self, pairs, tick)

    monkeypatch.setattr(verb, "PAIRS_PER_SHARD", 4)
    monkeypatch.setattr(verb.EncoderScorer, "scores", scoring)
    assert rerank("--depth", 1).code == 0
    before = (tmp_path / "out.parquet").read_bytes()
    shards = 5
    for more, again in (([], shards - 2), (["--restart"], shards)):
        scored[:] = [0]
        assert rerank("--force").code == 130
        assert (tmp_path / "out.parquet").read_bytes() == before
        scored.clear()
        assert rerank("--force", *more).code == 0
        assert len(scored) == again
        assert Manifest.read(tmp_path / "out.parquet").stats["rows"] == 18
        assert not (tmp_path / "out.parquet.scores").exists()
        before = (tmp_path / "out.parquet").read_bytes()
    scored[:] = [0]
    assert rerank("--force").code == 130
    scored.clear()
    assert rerank("--force", "--depth", 1).code == 0, "other scores are begun anew"
    assert sum(scored) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.parquet", "run.trec"]
    shutil.rmtree(tmp_path / "model")
