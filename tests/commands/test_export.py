"""Vectors leave as files that NumPy reads, and come back as they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrievo.retrieval.embeddings import Embeddings
from retrievo.retrieval.exact import search_batches
from tests.conftest import CHECKOUT


@pytest.fixture(params=["float16", "float32"])
def imported(request: pytest.FixtureRequest, tmp_path: Path, retrievo: Callable) -> Path:
    """5,000 vectors in two shards."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((5_000, 16)).astype(request.param))
    (tmp_path / "ids.txt").write_text("".join(f"dökument {row}\n" for row in range(5_000)), encoding="utf-8")
    folder = tmp_path / "embeddings"
    flags = ("--output", folder, "--similarity", "cosine")
    assert retrievo("import", "vectors", tmp_path / "x.npy", tmp_path / "ids.txt", *flags).code == 0
    assert len(list(folder.glob("*.arrow"))) == 2
    return folder


def test_what_is_exported_is_what_was_imported(imported: Path, tmp_path: Path, retrievo: Callable) -> None:
    outcome = retrievo("export", imported, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "--role document --similarity cosine" in outcome.err
    array = np.load(tmp_path / "out" / "vectors.npy", mmap_mode="r")
    expected = np.load(tmp_path / "x.npy")
    assert array.dtype == expected.dtype
    assert (array == expected).all()
    assert (tmp_path / "out" / "ids.txt").read_bytes() == (tmp_path / "ids.txt").read_bytes()
    assert "already finished" in retrievo("export", imported, "--output", tmp_path / "out").err


def test_an_id_of_two_lines_is_refused(tmp_path: Path, retrievo: Callable) -> None:
    import pyarrow as pa

    from retrievo.retrieval.embeddings import embeddings_stats, shard_name, write_shard
    from retrievo.support.artifact import Output

    output = Output(tmp_path / "embeddings", "embeddings", {}, {})
    with output.build() as folder:
        output.record(
            shard_name(0), write_shard(folder / shard_name(0), pa.array(["a", "b\nc"]), np.eye(2, dtype=np.float32))
        )
        output.finish(embeddings_stats(2, 2, "float32", "document", "dot"))
    outcome = retrievo("export", tmp_path / "embeddings", "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "holds the end of a line" in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_example_fills_a_vector_database(imported: Path) -> None:
    """Qdrant in memory finds what exact search finds."""
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    script = CHECKOUT / "examples" / "to_vector_database.py"
    ran = subprocess.run(
        [sys.executable, script, imported, "--ask", imported], capture_output=True, text=True, check=True
    )
    first, *found = ran.stdout.splitlines()
    assert first.startswith("5,000 of 5,000 documents")
    source = Embeddings(imported)
    expected = next(search_batches(source.take(np.array([0])).astype(np.float32), source, 10))
    assert [line.split("\t")[1] for line in found] == source.ids(expected.row).to_pylist()


def test_without_the_database_the_example_says_what_to_install(imported: Path) -> None:
    code = "import runpy, sys; sys.modules['qdrant_client'] = None; sys.argv[1:] = sys.argv[2:]; "
    code += "runpy.run_path(sys.orig_argv[3], run_name='__main__')"
    script = CHECKOUT / "examples" / "to_vector_database.py"
    ran = subprocess.run([sys.executable, "-c", code, script, imported], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "qdrant-client is not installed: pip install qdrant-client"
