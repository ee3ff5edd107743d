"""Weights that lie in parts on two processes learn what whole ones learn, in half of the memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shards import QUICK, SHARDED, SLOW, STEPS, STOP, STOPPED, WHOLE, compare, encoder, queries, train
from tiny import assert_same, finetune, gradients

from retrievo.distributed.fsdp import shard
from retrievo.distributed.launch import run_together
from retrievo.support.errors import RetrievoError
from retrievo.training.engine.checkpoints import WEIGHTS, latest
from retrievo.training.engine.gradient_cache import Passes

CASES = [*QUICK, *SLOW]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    run_together(compare, folder, tiny_model, list(QUICK), processes=2)
    return folder


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    run_together(compare, folder, tiny_model, list(SLOW), processes=2)
    return folder


@pytest.fixture
def both(case: str, request: pytest.FixtureRequest) -> Path:
    """What two processes left of a case."""
    found: Path = request.getfixturevalue("quick" if case in QUICK else "slow")
    return found


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path, name: str = WEIGHTS) -> Path:
    checkpoint = latest(folder / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"step-{STEPS:06d}"
    return checkpoint / name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_cut_weights_have_the_losses_of_whole_ones(case: str, both: Path) -> None:
    whole, sharded = (log(both / case / kind) for kind in (WHOLE, SHARDED))
    assert len(sharded) == STEPS
    for name in ("loss", "gradient_norm"):
        expected = [record[name] for record in whole]
        assert [record[name] for record in sharded] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert [record["padding"] for record in sharded] == [record["padding"] for record in whole]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_cut_weights_are_saved_whole_and_end_as_whole_ones(case: str, both: Path) -> None:
    assert_same(*(load_file(saved(both / case / kind)) for kind in (SHARDED, WHOLE)), tolerance=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half_of_the_weights(case: str, both: Path) -> None:
    parts = [json.loads(path.read_text()) for path in both.glob("held-*.json")]
    whole = parts[0][f"{case}/{WHOLE}"]
    held = [part[f"{case}/{SHARDED}"] for part in parts]
    assert len(held) == 2
    assert max(held) < 0.51 * whole
    assert sum(held) <= whole + 8  # a temperature is everywhere


@pytest.mark.slow
def test_nothing_keeps_the_process_group_past_its_end(quick: Path) -> None:
    """Its threads could abort the exit of a process, one in some dozens."""
    assert [json.loads(path.read_text())["group"] for path in quick.glob("held-*.json")] == [1, 1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(quick: Path) -> None:
    for name in (WEIGHTS, "optimizer.safetensors", "optimizer.json"):
        found, expected = (
            saved(folder, name).read_bytes() for folder in (quick / "stopped" / SHARDED, quick / STOPPED / SHARDED)
        )
        assert found == expected


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_whole_weights_and_in_one_process(
    quick: Path, tiny_model: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(quick / "stopped" / "alone", alone)
    assert [record["step"] for record in log(alone)][-1] == STOP
    train(STOPPED, tiny_model, alone, sharded=False)
    expected = load_file(saved(quick / STOPPED / WHOLE))
    for folder in (quick / "stopped" / WHOLE, alone):
        assert_same(load_file(saved(folder)), expected, tolerance=3e-5)


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_chunks_without_rows_change_no_gradient(tiny_model: Path, kept: int) -> None:
    objective = encoder(tiny_model, tied=False).train()

    def gradient(missing: list[str]) -> dict[str, torch.Tensor]:
        objective.zero_grad()
        passes = Passes(objective, queries(0, slice(None)), 0, 0, 20, torch.float32)
        for name in missing:
            passes.order.insert(0, len(passes.plan))
            passes.plan.append((name, np.empty(0, np.int64)))
        vectors, graphs = passes.first(kept)
        passes.second(passes.contrast(vectors)[2], graphs)
        return gradients(objective)

    expected = gradient([])
    assert_same(gradient(["query", "document", "query"]), expected, tolerance=1e-7)


def test_a_model_of_unknown_layers_is_refused() -> None:
    with pytest.raises(RetrievoError, match="--fsdp: the layers of this model's backbone are not known; leave it out"):
        shard(finetune(), torch.device("cpu"))
