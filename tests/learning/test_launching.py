"""Processes started together share a group, and end together."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from launched import add_up, one_dies, one_fails, one_finds_the_disk_full

from retrievo.learning.launching import run_together
from retrievo.support.errors import RetrievoError


def test_they_find_one_another(tmp_path: Path) -> None:
    run_together(add_up, tmp_path, processes=3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "6.0", "1": "6.0", "2": "6.0"}


def test_an_error_of_one_is_the_error_of_all(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RetrievoError, match="here: something is wrong; do otherwise"):
        run_together(one_fails, tmp_path, processes=2)
    assert time.monotonic() - start < 50, "the other one is not waited for"
    assert not (tmp_path / "late").exists()


def test_one_that_dies_ends_all(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="one of them died"):
        run_together(one_dies, tmp_path, processes=2)


def test_what_the_system_refuses_one_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match=f"{tmp_path.name}: No space left on device"):
        run_together(one_finds_the_disk_full, tmp_path, processes=2)
