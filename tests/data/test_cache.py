"""The cache: an entry is built once, whole or absent, and whoever else wants it waits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrievo.data import cache
from retrievo.data.cache import DONE, GrowingArray, cache_folder, cached

BUILDS = """
import hashlib, os, sys, time
from pathlib import Path
import numpy as np
from retrievo.data.cache import GrowingArray, cached
from retrievo.support import console, locks

locks.QUIET = 0.05

def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()}\\n")
    with GrowingArray(folder / "values.npy", "<i8") as values:
        for part in range(10):
            values.append(np.arange(1000) + part)
            time.sleep(float(sys.argv[2]) / 10)

for name in sys.argv[3:]:
    with console.shown():
        folder = cached(f"numbers-1/{name}", build, [Path("table.parquet")])
    print(name, hashlib.sha256((folder / "values.npy").read_bytes()).hexdigest(), flush=True)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return cache_folder()


def wanting(log: Path, seconds: float, *names: str) -> subprocess.Popen:
    """A process that wants entries of the cache, each of which takes so long to build."""
    command = [sys.executable, "-c", BUILDS, str(log), str(seconds), *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds_an_entry_and_the_other_waits_and_says_for_whom(own: Path, tmp_path: Path) -> None:
    both = [wanting(tmp_path / "log", 0.5, "entry") for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0] == told[1][0] != ""
    builders = (tmp_path / "log").read_text().split()
    assert len(builders) == 1
    waiting = [error for _, error in told if error]
    assert len(waiting) == 1
    assert waiting[0].startswith(f"waiting for numbers-1/entry in {own}, which process {builders[0]} on ")
    assert [path.name for path in (own / "numbers-1").iterdir()] == ["entry"], "locks and marks go at the end"


def test_an_entry_is_on_the_disk_before_it_is_said_to_be_whole(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    real, whole = os.fsync, own / "numbers-1" / "entry" / DONE

    def fsync(descriptor: int) -> None:
        if not whole.exists():
            synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    def build(folder: Path) -> None:
        with GrowingArray(folder / "values.npy", "<i8") as values:
            values.append(np.arange(5))
        (folder / "below").mkdir()
        np.save(folder / "below" / "order.npy", np.arange(3))

    monkeypatch.setattr(os, "fsync", fsync)
    folder = cached("numbers-1/entry", build, [])
    written = {path: path.stat().st_ino for path in (folder, *folder.rglob("*"))}
    assert len(written) == 6
    assert [path for path, inode in written.items() if inode not in synced] == []


def test_an_entry_made_of_more_than_a_gigabyte_is_told_of(own: Path, said: Callable[[], str]) -> None:
    def build(folder: Path) -> None:
        with (folder / "large").open("wb") as file:
            file.truncate(3 << 29)

    for _ in range(2):
        cached("numbers-1/large", build, [])
    assert (
        said() == f"cached in {own}/numbers-1/large for later runs (1.5 GB); retrievo cache lists and prunes the cache"
    )


def test_in_a_cache_that_is_read_only_what_is_whole_is_used(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached("numbers-1/entry", lambda folder: None, [])
    cache._USED.pop(folder).release()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr("filelock.MarkerSoftFileLock.acquire", refuse)
    assert cached("numbers-1/entry", lambda folder: pytest.fail("it is whole"), []) == folder


@pytest.mark.slow
def test_processes_killed_while_they_build_leave_nothing_that_is_taken_for_whole(own: Path, tmp_path: Path) -> None:
    log, rng, kills = tmp_path / "log", random.Random(0), 0
    for moment in range(15):
        name = f"entry-{moment}"
        victim = wanting(log, 0.4, name)
        while not (own / "numbers-1" / name).exists() and victim.poll() is None:
            time.sleep(0.01)
        survivors = [wanting(log, 0.05, name) for _ in range(2)]
        time.sleep(rng.uniform(0, 0.39))
        kills += victim.poll() is None
        victim.kill()
        victim.communicate()
        told = [process.communicate() for process in survivors]
        assert [process.returncode for process in survivors] == [0, 0], told
        assert told[0][0] == told[1][0] != ""
        values = np.load(own / "numbers-1" / name / "values.npy")
        assert np.array_equal(values, np.concatenate([np.arange(1000) + part for part in range(10)]))
    builds = len(log.read_text().split())
    assert kills >= 10
    assert builds == 15 + kills, "each entry is built once more where its builder was killed, and once else"
