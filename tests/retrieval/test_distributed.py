"""Searches by several processes: the run of one, whatever their number."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slow import slow_lead

from retrievo.distributed.launch import run_together


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """Embeddings with each vector some 40 times, and queries."""
    folder, rng = tmp_path_factory.mktemp("house"), np.random.default_rng(0)
    np.save(folder / "d.npy", rng.standard_normal((250, 48)).astype(np.float16)[rng.integers(0, 250, 10_000)])
    np.save(folder / "q.npy", rng.standard_normal((30, 48)).astype(np.float16))
    for name, count, role in (("d", 10_000, "document"), ("q", 30, "query")):
        (folder / f"{name}.txt").write_text("".join(f"{name}{number}\n" for number in rng.permutation(count)))
        paths = (folder / f"{name}.npy", folder / f"{name}.txt", "--output", folder / name, "--role", role)
        assert module_retrievo("import", "vectors", *paths).code == 0
    return folder


def under_torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "retrievo"]
    return subprocess.run([*launcher, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_three_processes_write_the_run_of_one(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    arguments = ("search", "--index", house / "d", "--queries", house / "q", "--depth", 100, "--batch-size", 7)
    more = ("--feedback", "average", "--device", "cpu")  # a second search with other queries
    (tmp_path / "one").mkdir()
    assert retrievo(*arguments, *more, "--output", tmp_path / "one" / "run.trec").code == 0
    ran = under_torchrun(3, *arguments, *more, "--output", tmp_path / "run.trec")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run.trec").read_bytes() == (tmp_path / "one" / "run.trec").read_bytes()
    assert ran.stderr.count("searched") == 1


def test_an_error_of_the_lead_process_ends_all_with_one_line(house: Path, tmp_path: Path) -> None:
    output = tmp_path / "run.trec"
    ran = under_torchrun(2, "search", "--index", house / "d", "--queries", house / "d", "--output", output)
    assert ran.returncode != 0
    assert ran.stderr.count("holds document vectors") == 1
    assert not output.exists()


@pytest.mark.slow
def test_a_batch_size_beyond_the_largest_loses_no_query(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    count = 70_000
    np.save(tmp_path / "many.npy", np.random.default_rng(1).standard_normal((count, 48)).astype(np.float16))
    (tmp_path / "many.txt").write_text("".join(f"m{number}\n" for number in range(count)))
    arrays = (tmp_path / "many.npy", tmp_path / "many.txt", "--role", "query")
    assert retrievo("import", "vectors", *arrays, "--output", tmp_path / "many").code == 0
    few = (house / "q.npy", house / "q.txt", "--output", tmp_path / "few")
    assert retrievo("import", "vectors", *few).code == 0
    flags = ("--depth", 1, "--batch-size", 100_000, "--device", "cpu", "--output", tmp_path / "run.trec")
    ran = under_torchrun(2, "search", "--index", tmp_path / "few", "--queries", tmp_path / "many", *flags)
    assert ran.returncode == 0, ran.stderr
    assert len((tmp_path / "run.trec").read_text().splitlines()) == count


@pytest.mark.slow
def test_the_others_wait_for_longer_than_a_collective_may_take(house: Path, tmp_path: Path) -> None:
    run_together(slow_lead, house, tmp_path, processes=2)
    assert (tmp_path / "found").read_text() == "150"
