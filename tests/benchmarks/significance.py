"""Significance tests of many runs and metrics: seconds of all of them together, and of one alone.

python tests/benchmarks/significance.py [--queries 6980] [--runs 20] [--metrics 5]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from retrievo.evaluation.significance import (
    bootstrap_interval,
    bootstrap_intervals,
    randomization_test,
    randomization_tests,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=6_980)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--metrics", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    base = rng.random((given.metrics, given.queries))
    values = [metric + rng.normal(0, 0.1, given.queries) for metric in base for _ in range(given.runs - 1)]
    theirs = [metric for metric in base for _ in range(given.runs - 1)]
    start = time.perf_counter()
    randomization_test(values[0], theirs[0])
    bootstrap_interval(values[0], theirs[0])
    alone = time.perf_counter() - start
    print(f"one test and interval: {alone:.2f} s; {len(values)} of them alone: {alone * len(values):.0f} s", flush=True)
    differences = [ours - other for ours, other in zip(values, theirs, strict=True)]
    start = time.perf_counter()
    randomization_tests(differences)
    bootstrap_intervals(differences)
    print(f"{len(values)} tests and intervals together: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
