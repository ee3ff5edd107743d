"""Two and four processes make the steps of one, with uneven rows, idle ranks, and parameters that nothing uses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CASES, STEPS, train

from retrievo.training.engine import checkpoints
from tests.conftest import CHECKOUT

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process left."""
    folder = tmp_path_factory.mktemp("one")
    torch.save(train(folder / "train"), folder / "weights-0.pt")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left; all checks share one start of processes."""
    return left_by(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and four processes left."""
    if request.param == 2:
        found: Path = request.getfixturevalue("two")
        return found
    return left_by(request.param, tmp_path_factory.mktemp("several"))


def left_by(processes: int, folder: Path) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **names, "PYTHONPATH": str(CHECKOUT)}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return folder


def weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"weights-{rank}.pt")
    return found


def log(folder: Path, case: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / case / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_several_processes_log_the_losses_of_one(one: Path, several: Path, case: str) -> None:
    expected, found = (log(folder, case) for folder in (one, several))
    assert len(found) == STEPS
    for name in ("loss", "local_loss", "gradient_norm"):
        wanted = [record[name] for record in expected]
        assert [record[name] for record in found] == pytest.approx(wanted, rel=1e-6, abs=1e-5)  # float32 has 6e-8
    for name in ("pairs", "tokens"):
        assert [record[name] for record in found] == [record[name] for record in expected]


@pytest.mark.parametrize("case", CASES)
def test_several_processes_end_with_the_weights_of_one_and_agree_to_the_bit(
    one: Path, several: Path, case: str
) -> None:
    expected, first = weights(one), weights(several)
    others = [weights(several, rank) for rank in range(1, len(list(several.glob("weights-*.pt"))))]
    assert others
    for name in (name for name in expected if name.startswith(case)):
        assert all(torch.equal(first[name], other[name]) for other in others)
        torch.testing.assert_close(first[name], expected[name], rtol=1e-5, atol=1e-5)


def test_parameters_that_no_rank_uses_are_not_even_decayed(two: Path) -> None:
    start, _ = CASES["tied"]()
    torch.testing.assert_close(
        weights(two)["tied/encoder.unused.weight"], start.encoder.unused.weight.detach(), rtol=0, atol=0
    )


def test_one_checkpoint_is_written_for_all(two: Path) -> None:
    assert checkpoints.latest(two / "train" / "tied" / "checkpoints").name == f"step-{STEPS:06d}"


@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoints_fall_where_the_clock_of_rank_0_says(one: Path, two: Path, processes: int) -> None:
    for case in CASES:  # 200 s a step: 300 s have passed after two of them
        folder = (one, two)[processes - 1] / "train" / case / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:06d}" for step in range(2, STEPS + 1, 2)]


def test_what_rank_0_says_is_told_to_all(two: Path) -> None:
    assert collectives(two, 0)["told"] == collectives(two, 1)["told"] == [True, False]


def collectives(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"collectives-{rank}.json").read_text())
    return found


def test_rows_of_unequal_counts_are_gathered_in_rank_order_with_the_gradient_of_all_ranks(
    two: Path,
) -> None:
    first, second = (collectives(two, rank) for rank in (0, 1))
    assert first["counts"] == second["counts"] == [0, 3]
    assert first["rows"] == second["rows"] == [[2.0, 2.0]] * 3
    assert first["gradient"] == []
    assert second["gradient"] == [[0.0, 3.0], [6.0, 9.0], [12.0, 15.0]]  # 0 ... 5, once from rank 0, twice from rank 1


def test_ranks_with_unequal_rows_find_one_size_of_chunks(two: Path) -> None:
    first, second = (collectives(two, rank)["chunk_tokens"] for rank in (0, 1))
    assert first == second >= 1024


def test_state_is_that_of_rank_0_and_gradients_are_summed_where_any_rank_has_one(two: Path) -> None:
    first, second = (collectives(two, rank) for rank in (0, 1))
    assert first["weight"] == second["weight"]
    assert first["queue"] == second["queue"] == [0.0]
    assert first["summed"] == second["summed"] == [[3.0, 3.0], [1.0, 1.0], None]


def test_no_thread_of_the_process_group_outlives_it(two: Path) -> None:
    """One that does aborts some exits."""
    for rank in (0, 1):
        assert not [name for name in collectives(two, rank)["threads"] if "gloo" in name or "tcpstore" in name]
