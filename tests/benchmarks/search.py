"""Exact search against the raw FAISS call, and every index type on real embeddings.

    python tests/benchmarks/search.py exact --rows 1000000 [--dim 384] [--queries 1000] [--depth 1000] [--rounds 3]
    python tests/benchmarks/search.py types EMBEDDINGS QUERY_EMBEDDINGS [--only ivf hnsw] [--rounds 3]

`exact` makes float16 vectors, then takes turns: the whole of `retrievo search` from the embeddings folder to the run
file, and `IndexFlatIP.search` alone on the same vectors as float32 in memory. Then it searches once more with --memory,
in a process of its own, compares the run files byte by byte and prints the peak. `types` builds each type, and searches
with its default effort: recall against exact search, queries per second beside the same FAISS index driven by hand with
the same knob and number of candidates, in turn. CPU seconds are of this process: on a shared machine trust ratios.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    exact = verbs.add_parser("exact")
    for name, default in (("rows", 1_000_000), ("dim", 384), ("queries", 1_000), ("depth", 1_000), ("rounds", 3)):
        exact.add_argument(f"--{name}", type=int, default=default)
    exact.add_argument("--memory", default="1GB")
    types = verbs.add_parser("types")
    types.add_argument("embeddings", type=Path)
    types.add_argument("queries", type=Path)
    types.add_argument("--only", nargs="*")
    types.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    {"exact": bench_exact, "types": bench_types}[given.verb](given)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def took(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    start, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - start, cpu() - used


# ------------------------------------------------------------------------------------------------------- exact search


def bench_exact(given: argparse.Namespace) -> None:
    import faiss

    from retrievo.search import SearchConfig, search

    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        documents = made(folder, "documents", given.rows, given.dim, "document")
        queries = made(folder, "queries", given.queries, given.dim, "query")
        index = faiss.IndexFlatIP(given.dim)
        for start in range(0, given.rows, 1 << 16):
            index.add(documents[start : start + (1 << 16)].astype(np.float32))
        asked = queries.astype(np.float32)

        def ours(name: str) -> None:
            options: Any = {"index": (folder / "documents",), "queries": folder / "queries", "depth": given.depth}
            search(SearchConfig(output=folder / name, **options))

        peer, own = [], []
        for turn in range(given.rounds):
            peer.append(took(lambda: index.search(asked, given.depth)))
            own.append(took(lambda turn=turn: ours(f"run-{turn}.parquet")))  # type: ignore[misc]
        index.reset()
        for unit, place in (("wall", 0), ("CPU", 1)):
            theirs, mine = (median(turn[place] for turn in turns) for turns in (peer, own))
            print(f"{unit}: FAISS {theirs:.1f} s, retrievo {mine:.1f} s, FAISS / retrievo {theirs / mine:.2f}")
        peak = streamed(folder, given)
        same = (folder / "run-0.trec").read_bytes() == (folder / "streamed.trec").read_bytes()
        print(f"--memory {given.memory}: peak {peak:,.0f} MiB of the whole process; the same run file: {same}")


def made(folder: Path, name: str, rows: int, dim: int, role: str) -> np.ndarray:
    """An embeddings folder of normal float16 vectors."""
    from retrievo.retrieval.embeddings import import_vectors

    rng = np.random.default_rng(len(name))
    array = np.concatenate(
        [
            rng.standard_normal((min(1 << 16, rows - start), dim), np.float32).astype(np.float16)
            for start in range(0, rows, 1 << 16)
        ]
    )
    np.save(folder / f"{name}.npy", array)
    (folder / f"{name}.txt").write_text("".join(f"{name[0]}{row}\n" for row in range(rows)))
    import_vectors(folder / f"{name}.npy", folder / f"{name}.txt", folder / name, role=role)
    return array


def streamed(folder: Path, given: argparse.Namespace) -> float:
    """Peak resident memory, in MiB, of a search in a process of its own with --memory; and the run without."""
    line = [
        sys.executable,
        "-m",
        "retrievo",
        "search",
        "--index",
        folder / "documents",
        "--queries",
        folder / "queries",
    ]
    line += ["--depth", str(given.depth)]
    subprocess.run([*line, "--output", folder / "run-0.trec"], check=True, capture_output=True)
    code = "import os, resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    limited = [*line, "--memory", given.memory, "--output", folder / "streamed.trec"]
    ran = subprocess.run([sys.executable, "-c", code, *limited], check=True, capture_output=True, text=True)
    return int(ran.stdout) / 1024


# -------------------------------------------------------------------------------------------------------- index types


def bench_types(given: argparse.Namespace) -> None:
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.retrieval.exact import search_exact
    from retrievo.retrieval.index_types import INDEX_TYPES

    documents, queries = Embeddings(given.embeddings), Embeddings(given.queries)
    asked = queries.take(np.arange(queries.rows)).astype(np.float32)
    exact = {depth: search_exact(asked, documents, depth) for depth in (10, 100)}
    print("| type | parameters | build | bytes/vector | recall@10 | recall@100 | queries/s | by hand | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.only or [name for name, kind in INDEX_TYPES.items() if not kind.exact]:
        print(row(name, documents, asked, exact, given.rounds), flush=True)


def row(name: str, documents: Any, asked: np.ndarray, exact: dict[int, Any], rounds: int) -> str:
    import faiss

    from retrievo.retrieval.approximate import default_effort, recall_of, search
    from retrievo.retrieval.faiss_build import build
    from retrievo.retrieval.faiss_index import FaissIndex
    from retrievo.support.artifact import Output

    with tempfile.TemporaryDirectory() as home:
        output = Output(Path(home) / "index", "faiss-index", {}, {})
        _, building = took(lambda: build(documents, output, name, shards=1, threads=1))
        index = FaissIndex(output.path)
        recall = {
            depth: recall_of(search(index, documents, asked, depth, default_effort(index, depth), threads=1), best)
            for depth, best in exact.items()
        }
        effort = default_effort(index, 10)
        raw = index.open_shard(0)
        if index.knob:
            faiss.ParameterSpace().set_index_parameter(raw, index.knob.replace("_s", "S"), effort.knob)
        faiss.omp_set_num_threads(1)
        own, hand = [], []
        for _ in range(rounds):
            own.append(took(lambda: search(index, documents, asked, 10, effort, threads=1))[1])
            hand.append(took(lambda: raw.search(asked, effort.rescore))[1])
        speed, by_hand = (len(asked) / median(turns) for turns in (own, hand))
        size = index.files[0].stat().st_size / documents.rows
        knob = f"{index.knob} {effort.knob}, " if index.knob else ""
        factory = index.manifest.stats["factory"]
        cells = [name, f"{factory}; {knob}rescore {effort.rescore}", f"{building:.1f} s", f"{size:,.0f}"]
        cells += [
            f"{recall[10]:.4f}",
            f"{recall[100]:.4f}",
            f"{speed:,.0f}",
            f"{by_hand:,.0f}",
            f"{speed / by_hand:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
