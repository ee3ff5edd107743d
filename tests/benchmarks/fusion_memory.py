"""Peak memory of fusing two runs and of feedback, at two numbers of queries: it must not grow with them.

    python tests/benchmarks/fusion_memory.py /tmp/fusion-memory --queries 50000 200000

Each search is a process of its own; what it tells is the largest part of it that was in memory (VmHWM), in MiB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTS, DIM, DEPTH, AT_ONCE = 100_000, 16, 200, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--feedback-queries", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        searched(given.one)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    for count in given.queries:
        home = given.folder / f"runs-{count}"
        made_runs(home, count)
        runs = ("--run", home / "a.parquet", "--run", home / "b.parquet")
        told(f"fusing 2 runs of {count:,} x {DEPTH}", given.folder, home, *runs)
    for count in given.feedback_queries:
        home = given.folder / f"vectors-{count}"
        made_vectors(home, count)
        flags = ("--index", home / "d", "--index", home / "e", "--feedback", "rocchio")
        told(f"feedback in 2 indexes, {count:,} queries", given.folder, home, *flags)


def told(name: str, folder: Path, home: Path, *flags: object) -> None:
    command = [sys.executable, __file__, str(folder), "--one", *map(str, flags), "--queries", str(home / "q")]
    more = ["--depth", str(DEPTH), "--output", str(home / "fused.parquet"), "--force"]
    start = time.monotonic()
    peak = subprocess.run([*command, *more], check=True, capture_output=True, text=True).stdout.split()[-1]
    print(f"{name}: {peak} MiB, {time.monotonic() - start:.0f} s", flush=True)


def searched(arguments: Sequence[str]) -> None:
    from retrievo.cli import app
    from retrievo.support.commandline import run_app

    try:
        run_app(app, ["search", *arguments])
    except SystemExit as end:
        if end.code:
            raise
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def made_runs(home: Path, count: int) -> None:
    """Two runs of retrievo's own form, and the queries of both."""
    if (home / "b.parquet").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    (home / "q").mkdir(exist_ok=True)
    ids = np.array([f"q{number}" for number in range(count)])
    pq.write_table(pa.table({"id": ids, "text": ids}), home / "q" / "queries.parquet")
    kinds = [("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.float32()), ("rank", pa.int32())]
    documents = np.array([f"d{number:06}" for number in range(DOCUMENTS)])
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        with pq.ParquetWriter(home / f"{name}.parquet", pa.schema(kinds)) as writer:
            for first in range(0, count, AT_ONCE):
                own = ids[first : first + AT_ONCE]
                start = rng.integers(0, DOCUMENTS - DEPTH, len(own))
                row = (start[:, None] + np.arange(DEPTH)).ravel()
                score = -np.sort(-rng.random((len(own), DEPTH), np.float32), axis=1).ravel()
                rank = np.tile(np.arange(1, DEPTH + 1, dtype=np.int32), len(own))
                writer.write_table(pa.table([np.repeat(own, DEPTH), documents[row], score, rank], pa.schema(kinds)))


def made_vectors(home: Path, count: int) -> None:
    """Two embeddings folders of documents, and one of queries."""
    from retrievo.retrieval.embeddings import import_vectors

    home.mkdir(parents=True, exist_ok=True)
    for name, rows, role in (("d", 2_000, "document"), ("e", 2_000, "document"), ("q", count, "query")):
        if not (home / name).exists():
            rng = np.random.default_rng(ord(name))
            np.save(home / f"{name}.npy", rng.standard_normal((rows, DIM)).astype(np.float16))
            (home / f"{name}.txt").write_text("".join(f"{role}{number}\n" for number in range(rows)))
            import_vectors(home / f"{name}.npy", home / f"{name}.txt", home / name, role=role)


if __name__ == "__main__":
    main()
