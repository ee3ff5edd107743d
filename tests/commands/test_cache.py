"""`retrievo cache`: what is kept, what it is made of, and room again; never what is in use."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import MarkerSoftFileLock

from retrievo.data import cache
from retrievo.data.cache import DONE, cache_folder, cached, lock_of

SIZES = {"old": 3_000, "middle": 2_000, "new": 1_000}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of three entries, used 10, 5 and 0 days ago by processes that ended, and an index that a command made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for (name, size), days in zip(SIZES.items(), (10, 5, 0), strict=True):
        cached(f"tokens-1/{name}", lambda folder, size=size: fill(folder, size), [tmp_path / "corpus.parquet"])
        aged(cache_folder() / "tokens-1" / name / DONE, days)
    index = cache_folder() / "bm25" / "index"
    index.mkdir(parents=True)
    manifest = {"inputs": {"corpus": {"path": "../../corpus", "fingerprint": "f"}}}
    (index / "manifest.json").write_text(json.dumps(manifest))
    aged(index / "manifest.json", 20)
    let_go()
    return cache_folder()


def fill(folder: Path, size: int) -> None:
    (folder / "tokens.npy").write_bytes(bytes(size))


def aged(path: Path, days: int) -> None:
    os.utime(path, (time.time() - days * 86_400,) * 2)


def let_go() -> None:
    """As at the end of a process."""
    for mark in cache._USED.values():
        mark.release()
    cache._USED.clear()


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [Path(entry["path"]).name for entry in entries]


def test_entries_are_listed_last_used_first_with_what_they_are_made_of(
    kept: Path, tmp_path: Path, retrievo: Callable
) -> None:
    told = json.loads(retrievo("cache", "--json").out)
    assert told["folder"] == str(kept)
    assert names(told["entries"]) == ["new", "middle", "old", "index"]
    first, last = told["entries"][0], told["entries"][-1]
    assert (first["kind"], first["made_of"], first["whole"]) == ("tokens", [str(tmp_path / "corpus.parquet")], True)
    assert (last["kind"], last["made_of"]) == ("BM25 index", [str(kept.parent / "corpus")])
    assert SIZES["new"] < first["bytes"] < SIZES["new"] + 500
    assert told["bytes"] == sum(entry["bytes"] for entry in told["entries"])
    lines = retrievo("cache").out.splitlines()
    assert lines[0].split("\t") == ["kind", "size", "last used", "made of", "path"]
    assert lines[1].split("\t")[-1] == str(kept / "tokens-1" / "new")
    assert lines[-1].startswith("total\t")


def test_use_makes_an_entry_young_again(kept: Path, retrievo: Callable) -> None:
    cached("tokens-1/old", lambda folder: pytest.fail("it is there"), [])
    let_go()
    assert names(json.loads(retrievo("cache", "--json").out)["entries"])[0] == "old"


@pytest.mark.parametrize(
    ("flags", "stay"),
    [
        (["--older-than", 5], ["new"]),
        (["--older-than", 11], ["new", "middle", "old"]),
        (["--max-size", "4k"], ["new", "middle"]),
        (["--max-size", "4k", "--older-than", 4], ["new"]),
        (["--max-size", "0"], []),
        ([], []),
    ],
)
def test_pruning_removes_what_was_used_longest_ago(
    flags: list[object], stay: list[str], kept: Path, retrievo: Callable
) -> None:
    told = json.loads(retrievo("cache", "--prune", *flags, "--json").out)
    assert names(told["entries"]) == stay
    assert names(told["removed"]) == [name for name in ("index", "old", "middle", "new") if name not in stay]
    there = sorted(path.name for path in kept.glob("*/*"))
    assert there == sorted(stay), "neither entries nor locks are left"


def test_what_is_made_or_used_stays_and_is_told_of(kept: Path, retrievo: Callable) -> None:
    cached("tokens-1/old", lambda folder: pytest.fail("it is there"), [])
    lock_of(kept / "tokens-1" / "new").write_text("filelock/2\npid=7\nhost=node-7\nmode=exclusive\nstart=1\n")
    with (mark := MarkerSoftFileLock(kept / "tokens-1" / ".middle.here.4194301.use")):
        left = Path(mark.lock_file).read_text().replace(f"pid={os.getpid()}", "pid=4194301")
    Path(mark.lock_file).write_text(left)  # of a process of this host that was killed
    pruned = retrievo("cache", "--prune")
    assert [path.name for path in sorted((kept / "tokens-1").glob("[!.]*"))] == ["new", "old"]
    assert (kept / "tokens-1" / "old" / "tokens.npy").is_file()
    assert f"tokens-1/old is in use by process {os.getpid()} on " in pruned.err
    assert "tokens-1/new is in use by process 7 on node-7, since " in pruned.err
    assert f"delete {lock_of(kept / 'tokens-1' / 'new')} if that process is gone" in pruned.err
    assert "2 entries remain" in pruned.err
    let_go()


def test_bounds_go_with_pruning_only(kept: Path, retrievo: Callable) -> None:
    for flags in (["--older-than", 3], ["--max-size", "1GB"]):
        assert retrievo("cache", *flags).code == 2
    assert "--max-size: found 'much'" in retrievo("cache", "--prune", "--max-size", "much").err
    assert len(list(kept.glob("*/[!.]*"))) == 4
