"""Peak memory of training over batch sizes, and of encoding over corpus sizes: both should be flat.

    python tests/benchmarks/memory.py MODEL [--batches 64 256 1024] [--documents 5000 50000]

Each figure is the peak resident memory of one `retrievo` process on generated texts of 8 to 40 words.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ("wing", "flow", "heat", "shock", "layer", "blade", "engine", "wave", "pressure", "velocity", "surface", "cone")

CHUNKS = ("--chunk-tokens", 1_024)  # which the smallest batch fills too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--documents", type=int, nargs="+", default=[5_000, 50_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        folder = Path(name)
        dataset = make_dataset(folder / "train", max(given.batches))
        tables = ["--corpus", dataset, "--queries", dataset, "--qrels", dataset / "qrels.txt"]
        for size in given.batches:
            output = folder / f"batch-{size}"
            train = [
                "train",
                "--model",
                given.model,
                *tables,
                "--output",
                output,
                "--max-steps",
                1,
                "--batch-size",
                size,
                *CHUNKS,
            ]
            print(f"train, batch {size:>6,}: {peak(train):8,.0f} MiB", flush=True)
        for count in given.documents:
            corpus = make_dataset(folder / f"corpus-{count}", count)
            encode = ["encode", "--model", given.model, "--corpus", corpus, "--output", folder / f"embeddings-{count}"]
            print(f"encode, {count:>6,} documents: {peak(encode):8,.0f} MiB", flush=True)


def make_dataset(folder: Path, count: int) -> Path:
    """A corpus, as many queries, and a relevant document for each."""
    rng = random.Random(0)
    folder.mkdir()
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(8, 40))) for _ in range(count)]
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(count)], "text": texts}), folder / "corpus.parquet")
    queries = [" ".join(text.split()[:5]) for text in texts]
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(count)], "text": queries}), folder / "queries.parquet")
    (folder / "qrels.txt").write_text("".join(f"q{n} 0 d{n} 1\n" for n in range(count)))
    return folder


def peak(arguments: list[object]) -> float:
    """MiB of resident memory that one command reached."""
    process = subprocess.Popen([sys.executable, "-m", "retrievo", *map(str, arguments)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, error.decode()
    return usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
