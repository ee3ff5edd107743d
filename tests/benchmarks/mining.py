"""Mining beside its floor: the bare search of the same queries to the same depth. Wall time, peak memory, same bytes.

    python tests/benchmarks/mining.py DATASET QRELS [--queries 20000] [--depth 200] [--rounds 2]

DATASET has a corpus and queries, QRELS are judgments of its training queries, of which the first so many are taken.
Both commands search one BM25 index with all cores, in turn; the last mining runs with one thread and must give the same
negatives.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("qrels", type=Path)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        home = Path(folder)
        qrels = home / "qrels.parquet"
        pq.write_table(pq.read_table(given.qrels).slice(0, given.queries), qrels)
        run("index", "--type", "bm25", "--corpus", given.dataset, "--output", home / "bm25")
        index = ["--index", home / "bm25", "--queries", given.dataset, "--depth", given.depth]
        mine = ["mine-negatives", "--source", "index", *index, "--corpus", given.dataset, "--qrels", qrels]
        for number in range(given.rounds):
            searched = run("search", *index, "--judged", qrels, "--output", home / f"run-{number}.parquet")
            mined = run(*mine, "--output", home / f"n-{number}.parquet")
            told("search", searched)
            told("mine-negatives", mined)
            print(f"mining / search: {mined[0] / searched[0]:.2f}")
        told("mine-negatives, one thread", run(*mine, "--threads", 1, "--output", home / "one" / "n.parquet"))
        same = pq.read_table(home / "n-0.parquet").equals(pq.read_table(home / "one" / "n.parquet"))
        print(f"{pq.read_metadata(home / 'n-0.parquet').num_rows:,} negatives; the same from one thread: {same}")


def run(*arguments: object) -> tuple[float, int]:
    """Seconds and peak memory in MiB of `retrievo ...`."""
    start = time.monotonic()
    command = [sys.executable, "-m", "retrievo", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(error.decode())
    return time.monotonic() - start, usage.ru_maxrss >> 10


def told(name: str, measured: tuple[float, int]) -> None:
    print(f"{name}: {measured[0]:.1f} s, {measured[1]:,} MiB", flush=True)


if __name__ == "__main__":
    main()
