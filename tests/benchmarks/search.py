"""Exact search against the raw FAISS call, every index type on real embeddings, and BM25 against Anserini.

    python tests/benchmarks/search.py exact --rows 1000000 [--dim 384] [--queries 1000] [--depth 1000] [--rounds 3]
    python tests/benchmarks/search.py types EMBEDDINGS QUERY_EMBEDDINGS [--only ivf hnsw] [--plot FILE.png]
    python tests/benchmarks/search.py bm25 DATASET [--queries 300] [--depth 1000] [--rounds 5]

`exact` makes float16 vectors, then takes turns: the whole of `retrievo search` from the embeddings folder to the run
file, and `IndexFlatIP.search` alone on the same vectors as float32 in memory. Then it searches once more with --memory,
in a process of its own, compares the run files byte by byte and prints the peak.

`types` builds each type on all cores, and searches on one with its default effort: recall against exact search, and
queries per second beside the same FAISS index driven by hand, in turn: opened in the memory map as here, all queries in
one call, the same knob, and for types that lose precision `IndexRefineFlat` over as many candidates, with the vectors
as float32 in memory. The plot has more efforts: the knob, or the number of candidates, times 1/4 to 4.

`bm25` takes turns with `SimpleSearcher.batch_search`, whose results stay in Java, on the same threads.

CPU seconds are of this process: on a shared machine trust ratios.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

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
    types.add_argument("--plot", type=Path)
    bm25 = verbs.add_parser("bm25")
    bm25.add_argument("dataset", type=Path)
    for name, default in (("queries", 300), ("depth", 1_000), ("rounds", 5), ("threads", 2)):
        bm25.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    {"exact": bench_exact, "types": bench_types, "bm25": bench_bm25}[given.verb](given)


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

    from retrievo.commands.search.config import SearchConfig
    from retrievo.commands.search.run import search

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
        same = (folder / "whole" / "run.trec").read_bytes() == (folder / "streamed" / "run.trec").read_bytes()
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
    line = [sys.executable, "-m", "retrievo", "search", "--index", folder / "documents"]
    line += ["--queries", folder / "queries", "--depth", str(given.depth)]
    for name in ("whole", "streamed"):
        (folder / name).mkdir()  # the name of the file is the tag of the run
    subprocess.run([*line, "--output", folder / "whole" / "run.trec"], check=True, capture_output=True)
    code = "import os, resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    limited = [*line, "--memory", given.memory, "--output", folder / "streamed" / "run.trec"]
    ran = subprocess.run([sys.executable, "-c", code, *limited], check=True, capture_output=True, text=True)
    return int(ran.stdout) / 1024


# -------------------------------------------------------------------------------------------------------- index types


class Row(NamedTuple):
    """What was measured of one type; curve: (recall@10, queries per second) at several efforts."""

    name: str
    parameters: str
    building: float
    size: float
    recall: dict[int, float]
    speed: float
    by_hand: float
    curve: list[tuple[float, float]]

    def __str__(self) -> str:
        cells = [self.name, self.parameters, f"{self.building:.1f} s", f"{self.size:,.0f}"]
        cells += [f"{value:.4f}" for value in self.recall.values()]
        cells += [f"{self.speed:,.0f}", f"{self.by_hand:,.0f}", f"{self.speed / self.by_hand:.2f}"]
        return f"| {' | '.join(cells)} |"


def bench_types(given: argparse.Namespace) -> None:
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.retrieval.exact import search_exact
    from retrievo.retrieval.index_types import INDEX_TYPES

    documents, queries = Embeddings(given.embeddings), Embeddings(given.queries)
    asked = queries.take(np.arange(queries.rows)).astype(np.float32)
    exact = {depth: search_exact(asked, documents, depth) for depth in (10, 100)}
    speeds = [took(lambda: search_exact(asked, documents, 10, threads=1))[1] for _ in range(given.rounds)]
    print(
        f"{documents.rows:,} vectors of {documents.dim}; exact search: {len(asked) / median(speeds):,.0f} queries/s\n"
    )
    print("| type | parameters | build | bytes/vector | recall@10 | recall@100 | queries/s | by hand | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in given.only or [name for name, kind in INDEX_TYPES.items() if not kind.exact]:
        rows.append(measured(name, documents, asked, exact, given.rounds))
        print(rows[-1], flush=True)
    if given.plot:
        plot(rows, len(asked) / median(speeds), documents.rows, given.plot)


def measured(name: str, documents: Any, asked: np.ndarray, exact: dict[int, Any], rounds: int) -> Row:
    import faiss

    from retrievo.retrieval.faiss_build import build
    from retrievo.retrieval.faiss_index import FaissIndex
    from retrievo.retrieval.faiss_search import default_effort, recall_of, search
    from retrievo.support.artifact import Output

    with tempfile.TemporaryDirectory() as home:
        output = Output(Path(home) / "index", "faiss-index", {}, {})
        faiss.omp_set_num_threads(os.cpu_count())
        building, _ = took(lambda: build(documents, output, name, shards=1))
        faiss.omp_set_num_threads(1)
        index = FaissIndex(output.path)

        def ours(depth: int, effort: Any) -> Any:
            return search(index, documents, asked, depth, effort, threads=1)

        recall = {depth: recall_of(ours(depth, default_effort(index, depth)), best) for depth, best in exact.items()}
        effort = default_effort(index, 10)
        kept = documents.take(np.arange(documents.rows)).astype(np.float32)

        def by_hand() -> None:
            found = index.open_shard(0)
            if index.knob:
                faiss.ParameterSpace().set_index_parameter(found, index.knob.replace("_s", "S"), effort.knob)
            if index.kind.rescored > 1:
                found = faiss.IndexRefineFlat(found, faiss.swig_ptr(kept))
                found.k_factor = effort.rescore / 10
            found.search(asked, 10)

        own, hand = [], []
        for _ in range(rounds):
            own.append(took(lambda: ours(10, effort))[1])
            hand.append(took(by_hand)[1])
        curve = []
        for other in efforts(index, effort):
            found: list[Any] = []
            _, seconds = took(lambda other=other, found=found: found.append(ours(10, other)))  # type: ignore[misc]
            curve.append((recall_of(found[0], exact[10]), len(asked) / seconds))
        knob = f"{index.knob} {effort.knob}, " if index.knob else ""
        parameters = f"{index.manifest.stats['factory']}; {knob}rescore {effort.rescore}"
        size = index.files[0].stat().st_size / documents.rows
        speed, by_hand = (len(asked) / median(turns) for turns in (own, hand))
        return Row(name, parameters, building, size, recall, speed, by_hand, curve)


def efforts(index: Any, effort: Any) -> list[Any]:
    """The knob, or the candidates of types without one, times 1/4 to 4."""
    factors = (0.25, 0.5, 1, 2, 4)
    if index.knob:
        most = index.lists or index.rows
        return [replace(effort, knob=max(1, min(most, int(effort.knob * factor)))) for factor in factors]
    return [replace(effort, rescore=max(10, int(effort.rescore * factor))) for factor in factors]


def plot(rows: list[Row], exact: float, count: int, path: Path) -> None:
    """Recall@10 against queries per second; the larger point is the default effort."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        recall, speed = zip(*sorted(row.curve), strict=True)
        (line,) = axes.plot(recall, speed, marker=".", label=f"{row.name} ({row.size:,.0f} bytes a vector)")
        axes.plot(row.recall[10], row.speed, "o", markersize=9, color=line.get_color())
    axes.plot(1, exact, "*", color="black", markersize=13, label="exact search of the embeddings", clip_on=False)
    axes.set(yscale="log", xlabel="recall@10 against exact search", ylabel="queries/s on one core")
    axes.set_title(f"{count:,} vectors of all-MiniLM-L6-v2; large points: default effort", fontsize=10)
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


# --------------------------------------------------------------------------------------------------------------- BM25


def bench_bm25(given: argparse.Namespace) -> None:
    from retrievo.data.corpus import Corpus, Queries
    from retrievo.retrieval.bm25 import BM25Index, build
    from retrievo.retrieval.jvm import java_class

    corpus, texts = Corpus(given.dataset), Queries(given.dataset).texts[: given.queries]
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        documents = (pair for ids, texts in corpus.batches("{title} {text}") for pair in zip(ids, texts, strict=True))
        build(documents, folder)
        searcher = java_class("SimpleSearcher")(str(folder))
        searcher.set_bm25(0.9, 0.4)
        asked, names = java_class("ArrayList")(), java_class("ArrayList")()
        for number, text in enumerate(texts):
            asked.add(text)
            names.add(str(number))
        own, peer = [], []
        with BM25Index(folder) as index:
            for turn in range(given.rounds + 2):
                ours = took(lambda: index.search(texts, given.depth, threads=given.threads))
                theirs = took(lambda: searcher.batch_search(asked, names, given.depth, given.threads))
                if turn > 1:  # the JVM is warm
                    own.append(ours)
                    peer.append(theirs)
    for unit, place in (("wall", 0), ("CPU", 1)):
        mine, other = (len(texts) / median(turn[place] for turn in turns) for turns in (own, peer))
        print(f"{unit}: retrievo {mine:,.0f} queries/s, Anserini {other:,.0f}, ratio {mine / other:.2f}")


if __name__ == "__main__":
    main()
