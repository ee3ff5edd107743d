"""Speed and memory of reading and scoring a large run, beside ir_measures on the same files in the same session.

    python tests/benchmarks/evaluation.py [--queries 6980] [--depth 1000] [--repeat 3] [--without-peer]

The run is generated in MS MARCO dev's size: 6,980 queries x 1,000 documents of 8.8 million, one judged document a query
or, for one in sixteen, two. Every measurement is a process of its own, taken in turn; imports count. Prints seconds,
peak memory and the ratio of the peer's median to each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

DOCUMENTS = 8_841_823
OURS = ("mrr@10", "recall@1000", "ndcg@10", "map", "p@10")
THEIRS = ("RR@10", "R@1000", "nDCG@10", "AP", "P@10")

READ_AND_SCORE = """
import json, sys
from pathlib import Path
from typing import NamedTuple
from retrievo.commands.evaluate import EvaluateConfig, evaluate
run, qrels, metrics = sys.argv[1:]
found = evaluate(EvaluateConfig(run=(Path(run),), qrels=Path(qrels), metrics=tuple(metrics.split())))
print(json.dumps([*found.means()["run"].values()]))
"""
PEER = """
import json, sys
import ir_measures
run, qrels, metrics = sys.argv[1:]
chosen = [ir_measures.parse_measure(name) for name in metrics.split()]
found = ir_measures.calc_aggregate(chosen, ir_measures.read_trec_qrels(qrels), ir_measures.read_trec_run(run))
print(json.dumps([found[name] for name in chosen]))
"""


def generate(folder: Path, queries: int, depth: int) -> None:
    """Writes run.trec, run.parquet and qrels.txt; scores fall with the rank, and every tenth is tied with the next."""
    import pyarrow as pa

    from retrievo.data.run import RunWriter
    from retrievo.data.tables import RUN
    from retrievo.support.artifact import KINDS, Manifest

    rng = np.random.default_rng(0)
    query_ids = rng.choice(1_100_000, queries, replace=False).astype(str)
    writers = [RunWriter(folder / name, format_of=folder / name) for name in ("run.trec", "run.parquet")]
    with (folder / "qrels.txt").open("w") as qrels:
        for query in query_ids:
            documents = np.unique(rng.integers(DOCUMENTS, size=depth + 32))
            rng.shuffle(documents)
            scores = -np.sort(-rng.gumbel(10, 3, depth)).astype(np.float32)
            scores[1::10] = scores[0::10][: len(scores[1::10])]
            columns = (np.full(depth, query), documents[:depth].astype(str), scores)
            for writer in writers:
                ids = [pa.array(column, pa.string()) for column in columns[:2]]
                writer.write(*ids, columns[2], np.arange(1, depth + 1, dtype=np.int32))
            ranks = np.unique((rng.pareto(0.4, 1 + (rng.random() < 1 / 16)) * 3).clip(0, depth + 31).astype(int))
            qrels.writelines(f"{query} 0 {document} 1\n" for document in documents[ranks[ranks < len(documents)]])
    for writer in writers:
        writer.close(Manifest("run", KINDS["run"], "benchmark", "", {}, {}))
    assert RUN.arrow


class Taken(NamedTuple):
    """What one process took and found."""

    seconds: float
    cpu: float
    megabytes: float
    values: list[float]


def measure(code: str, *arguments: str) -> Taken:
    """Seconds, CPU seconds, peak memory in MB and what was found by a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    found = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("a measurement failed")
    seconds = time.perf_counter() - start
    return Taken(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=6_980)
    parser.add_argument("--depth", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the files here and use them again")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if not (folder / "qrels.txt").exists():
            folder.mkdir(exist_ok=True)
            generate(folder, options.queries, options.depth)
        compare(folder, options.repeat, not options.without_peer)


def compare(folder: Path, repeat: int, with_peer: bool) -> None:
    """Measures in turn and prints one line for each."""
    qrels = str(folder / "qrels.txt")
    work = {
        "retrievo, TREC text": (READ_AND_SCORE, str(folder / "run.trec"), qrels, " ".join(OURS)),
        "retrievo, Parquet": (READ_AND_SCORE, str(folder / "run.parquet"), qrels, " ".join(OURS)),
    }
    if with_peer:
        work["ir_measures, TREC text"] = (PEER, str(folder / "run.trec"), qrels, " ".join(THEIRS))
    taken: dict[str, list[Taken]] = {name: [] for name in work}
    for _ in range(repeat):
        for name, arguments in work.items():
            taken[name].append(measure(*arguments))
    values = [found[0].values for found in taken.values()]
    # The peer takes RR@10 from MS MARCO's script, which settles ties its own way; all else is trec_eval's.
    assert all(np.allclose(value[1:], values[0][1:], atol=1e-9, rtol=0) for value in values), values
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in taken.items()}
    cpu = {name: statistics.median(run.cpu for run in runs) for name, runs in taken.items()}
    peer = list(taken)[-1]
    print("what\tseconds\tCPU seconds\tpeak MB\tpeer's seconds / these\tpeer's CPU / this")
    for name, runs in taken.items():
        ratios = f"{seconds[peer] / seconds[name]:.1f}\t{cpu[peer] / cpu[name]:.1f}"
        peak = max(run.megabytes for run in runs)
        print(f"{name}\t{seconds[name]:.2f}\t{cpu[name]:.2f}\t{peak:.0f}\t{ratios}", flush=True)


if __name__ == "__main__":
    main()
