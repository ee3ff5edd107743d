"""Killed with SIGKILL at random moments and run again, a command ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WORDS = [f"{stem}{ending}" for stem in ("wing", "flow", "heat", "shock", "layer") for ending in ("", "s", "ing", "ed")]


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 30)) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": [str(n) for n in range(4_000)], "text": texts(4_000)}), tmp_path / "corpus.parquet")
    pq.write_table(
        pa.table({"id": ["q1", "q2"], "text": ["wings heated", "shock layers"]}), tmp_path / "queries.parquet"
    )
    return tmp_path


def retrievo(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "retrievo", *map(str, arguments)], check=True, capture_output=True)


@pytest.mark.slow
def test_import_killed_at_any_moment_ends_in_the_same_bytes(kill_harness: Any, tmp_path: Path) -> None:
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(f'{{"id": "{n}", "text": "{text}"}}\n' for n, text in enumerate(texts(20_000))))
    kill_harness.check(lambda output: ["import", "jsonl", str(source), "--output", str(output)], kills=5)


@pytest.mark.slow
def test_bm25_index_killed_at_any_moment_gives_the_same_run(kill_harness: Any, corpus: Path) -> None:
    @functools.cache
    def run_of(index: Path) -> bytes:
        run = index.with_name("run.trec")
        retrievo("search", "--index", index, "--queries", corpus, "--output", run)
        return run.read_bytes()

    def same(reference: Path, other: Path) -> None:
        assert run_of(reference) == run_of(other)
        for index in (reference, other):
            with contextlib.suppress(FileNotFoundError):
                index.with_name("run.trec").unlink()

    def command(output: Path) -> list[str]:
        return ["index", "--type", "bm25", "--corpus", str(corpus), "--output", str(output)]

    kill_harness.check(command, kills=4, same=same)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat", "ivf"])
def test_faiss_index_killed_at_any_moment_ends_in_the_same_bytes(name: str, kill_harness: Any, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((50_000, 64)).astype(np.float16))
    (tmp_path / "ids.txt").write_text("".join(f"d{n}\n" for n in range(50_000)))
    retrievo("import", "vectors", tmp_path / "x.npy", tmp_path / "ids.txt", "--output", tmp_path / "embeddings")

    def command(output: Path) -> list[str]:
        return ["index", "--type", name, "--embeddings", str(tmp_path / "embeddings"), "--output", str(output)]

    kill_harness.check(command, kills=4)


@pytest.mark.slow
@pytest.mark.parametrize(("commands", "points", "kills"), [(["import", "index", "train"], 2, 6), (["run"], 2, 2)])
def test_killed_while_they_replace_a_finished_output_commands_lose_nothing(
    commands: list[str], points: int, kills: int, tmp_path: Path
) -> None:
    """The large campaign is `python tests/kill_campaign.py FOLDER`; `KILLS` multiplies the points here."""
    if "index" in commands:
        pytest.importorskip("faiss")
    script = Path(__file__).with_name("kill_campaign.py")
    wanted = ["--points", str(points * int(os.environ.get("KILLS", "1"))), "--moments", "1", "--only", *commands]
    made = subprocess.run([sys.executable, script, tmp_path / "campaign", *wanted], check=True, capture_output=True)
    found = json.loads(made.stdout)
    assert {name: told["lost"] for name, told in found.items()} == {name: [] for name in commands}
    assert sum(told["kills"] for told in found.values()) >= kills
