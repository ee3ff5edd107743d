"""Two checkouts of retrievo beside each other: wall time, CPU seconds and peak memory of the same commands, in turn.

    git worktree add OTHER COMMIT
    python tests/benchmarks/commits.py OTHER DATASET MODEL [--rounds 5] [--only bm25 exact ...]

DATASET is a folder with a corpus, queries and judgments of a split `train` and of one that is searched (`test`, else
dev); MODEL is a sentence-transformers folder. Every measurement is a process of its own, imports and JVM included.
The checkouts take turns, so that a change of the machine's speed meets both; each ratio is the median of the ratios of
neighboring runs (this checkout / OTHER). What a command needs is made once, by OTHER.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[2]
Command = tuple[object, ...]


class Measured(NamedTuple):
    """What one process took."""

    seconds: float
    cpu: float
    peak: int  # MiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        home = Path(folder)
        commands = commands_on(home, given.dataset, given.model, given.steps)
        chosen = {name: command for name, command in commands.items() if name in (given.only or commands)}
        prepare(given.other, home, given.dataset, given.model, given.rows)
        for name, command in chosen.items():
            compare(name, command, given.other, home, given.rounds)


def commands_on(home: Path, dataset: Path, model: Path, steps: int) -> Mapping[str, Command]:
    """The commands that are compared, by name; each writes `home / "out"`."""
    out, train = home / "out", dataset / "qrels" / "train.parquet"
    tables = ("--corpus", home / "documents", "--queries", dataset, "--qrels", train)
    bm25 = ("--index", home / "bm25", "--queries", dataset)
    steps_of = ("--max-steps", steps, "--output", out)
    short = ("--batch-size", 32, "--seed", 1, "--learning-rate", 1e-5)
    return {
        "start": ("--version",),
        "index bm25": ("index", "--type", "bm25", "--corpus", dataset, "--output", out),
        "search bm25": ("search", *bm25, "--depth", 1000, "--output", out / "run.parquet"),
        "search exact": (
            "search", "--index", home / "vectors", "--queries", home / "questions", "--depth", 1000,
            "--output", out / "run.parquet",
        ),
        "search ivf": (
            "search", "--index", home / "ivf", "--queries", home / "questions", "--depth", 100,
            "--output", out / "run.parquet",
        ),
        "mine-negatives bm25": (
            "mine-negatives", "--source", "bm25", *tables, "--output", out / "negatives.parquet",
        ),
        "evaluate": (
            "evaluate", "--run", home / "run.parquet", "--qrels", dataset, "--metrics", "ndcg@10", "recall@1000", "map",
        ),
        "encode": ("encode", "--model", model, "--corpus", home / "documents", "--output", out),
        "train": ("train", "--model", model, *tables, *short, "--document-max-length", 64, *steps_of),
        "pretrain cocondenser": (
            "pretrain", "--model", model, "--corpus", home / "documents", *short, "--max-length", 64, *steps_of,
        ),
    }  # fmt: skip


def prepare(other: Path, home: Path, dataset: Path, model: Path, rows: int) -> None:
    """Indexes, a run, a smaller corpus and random vectors under `home`, made by the other checkout."""
    run(other, "index", "--type", "bm25", "--corpus", dataset, "--output", home / "bm25")
    run(
        other,
        "search",
        "--index",
        home / "bm25",
        "--queries",
        dataset,
        "--depth",
        1000,
        "--output",
        home / "run.parquet",
    )
    cut = f"""
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from retrievo.data.corpus import Corpus
home, rng = Path({str(home)!r}), np.random.default_rng(0)
ids, texts = next(Corpus(Path({str(dataset)!r})).batches())
(home / "documents").mkdir()
pq.write_table(pa.table({{"id": ids[:600], "text": texts[:600]}}), home / "documents" / "corpus.parquet")
for name, rows in (("v", {rows}), ("q", 1000)):
    vectors = rng.standard_normal((rows, 384), dtype=np.float32).astype(np.float16)
    np.save(home / f"{{name}}.npy", vectors)
    (home / f"{{name}}.txt").write_text("".join(f"{{name}}{{row}}\\n" for row in range(rows)))
"""
    process(other, (sys.executable, "-c", cut))
    for name, target in (("v", "vectors"), ("q", "questions")):
        role = "document" if name == "v" else "query"
        files = (home / f"{name}.npy", home / f"{name}.txt")
        run(other, "import", "vectors", *files, "--role", role, "--output", home / target)
    run(other, "index", "--embeddings", home / "vectors", "--type", "ivf", "--output", home / "ivf")


def compare(name: str, command: Command, other: Path, home: Path, rounds: int) -> None:
    """Prints the medians of both checkouts, and the median of the ratios of neighboring runs."""
    pairs = []
    for number in range(rounds + 1):
        pair = []
        for checkout in (HERE, other) if number % 2 else (other, HERE):
            shutil.rmtree(home / "out", ignore_errors=True)
            pair.append((checkout, run(checkout, *command)))
        taken = dict(pair)
        if number:  # the first is to warm the page cache
            pairs.append((taken[HERE], taken[other]))
    columns = [f"{label} {figures(pairs, field)}" for label, field in (("wall", "seconds"), ("CPU", "cpu"))]
    peaks = " / ".join(f"{max(side.peak for side in sides):,}" for sides in zip(*pairs, strict=True))
    print(f"{name:22} {'; '.join(columns)}; peak {peaks} MiB", flush=True)


def figures(pairs: list[tuple[Measured, Measured]], field: str) -> str:
    """The medians of this checkout and of the other, and the median of the ratios of neighboring runs."""
    taken = [(getattr(now, field), getattr(then, field)) for now, then in pairs]
    now, then = (median(side) for side in zip(*taken, strict=True))
    return f"{now:6.2f} / {then:6.2f} s, ratio {median(ours / theirs for ours, theirs in taken):.2f}"


def run(checkout: Path, *arguments: object) -> Measured:
    """What `retrievo ...` of a checkout takes."""
    return process(checkout, (sys.executable, "-m", "retrievo", *arguments))


def process(checkout: Path, command: Command) -> Measured:
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    started = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert started.stderr is not None
    error = started.stderr.read()
    _, status, usage = os.wait4(started.pid, 0)
    if status:
        sys.exit(error.decode())
    return Measured(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10)


if __name__ == "__main__":
    main()
