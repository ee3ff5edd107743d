"""Speed and memory of `retrievo import jsonl` on a file of a given size, beside json.loads over the same lines.

    python tests/benchmarks/import_jsonl.py [MEGABYTES ...]

Prints MB/s, documents/s, the peak memory of the importing process, and the ratio to the standard library's parser,
which reads the lines and keeps nothing. Several sizes show whether the memory grows with the file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

MEGABYTE = 1_000_000
PARSED = 100 * MEGABYTE  # of the file, by the peer


def generate(path: Path, size: int) -> int:
    """Writes documents of 60-220 words (about 1 KB) until the file has `size` bytes; returns their number."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf, so that it compresses as text does
    bodies = [" ".join(rng.choices(words, weights, k=rng.randint(60, 220))) for _ in range(20_000)]
    count = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            body = bodies[rng.randrange(len(bodies))] + f" “number {count}”"
            written += file.write(json.dumps({"id": f"doc-{count}", "title": body[:40], "text": body}) + "\n")
            count += 1
    return count


def run_child(source: Path, output: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of an import in a process of its own."""
    child = (
        "import sys; from pathlib import Path; from retrievo.commands.import_ import ImportConfig, import_dataset; "
        "import_dataset(ImportConfig(format='jsonl', source=Path(sys.argv[1]), output=Path(sys.argv[2])))"
    )
    start = time.perf_counter()
    process = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", child, str(source), str(output)])
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit("the import failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / MEGABYTE


def parse_rate(source: Path) -> float:
    """MB/s of json.loads over the first lines of a file."""
    with source.open("rb") as file:
        lines = file.readlines(PARSED)
    start = time.perf_counter()
    for line in lines:
        json.loads(line)
    return sum(map(len, lines)) / MEGABYTE / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", nargs="*", type=int, default=[1000])
    print("MB\tdocuments\tMB/s\tdocuments/s\tpeak MB\tratio to json.loads")
    for megabytes in parser.parse_args().megabytes:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "corpus.jsonl"
            documents = generate(source, megabytes * MEGABYTE)
            seconds, peak = run_child(source, Path(folder) / "dataset")
            rate = source.stat().st_size / MEGABYTE / seconds
            ratio = rate / parse_rate(source)
        print(f"{megabytes}\t{documents}\t{rate:.0f}\t{documents / seconds:,.0f}\t{peak:.0f}\t{ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
