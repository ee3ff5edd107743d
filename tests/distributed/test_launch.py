"""Processes started together share a group, and end together."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from launched import add_up, one_dies, one_fails, one_finds_the_disk_full
from tokenizing import tokenize
from waiting import waiting_when_imported

from retrievo.distributed.environment import WAITING
from retrievo.distributed.launch import run_together
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


@pytest.mark.parametrize("switch", [None, "false"])
def test_each_tokenizes_on_its_part_of_the_cores_unless_the_user_says_otherwise(
    switch: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(7))
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if switch:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", switch)
    run_together(tokenize, tmp_path, processes=2)
    found = [json.loads((tmp_path / rank).read_text()) for rank in ("0", "1")]
    assert [told["threads"] for told in found] == ([0, 0] if switch else [3, 3])


def test_their_environment_is_set_before_their_function_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    run_together(waiting_when_imported, tmp_path, processes=2)
    assert dict(os.environ) == before
    assert {path.read_text() for path in tmp_path.iterdir()} == {"1000"}
