"""BM25, vectors, their fusion, and feedback, on whole collections, with significance.

    python tests/benchmarks/fusion.py SUITE SWEEP OUTPUT [--model NAME] [--only scifact ...]

SUITE is a folder of collections and SWEEP what `retrievo evaluate --suite SUITE --model NAME --output SWEEP` left: the
embeddings and the BM25 run of each. Queries are encoded once; OUTPUT keeps every run. p: randomization test on ndcg@10
against the better of BM25 and vectors, which the table names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

METRICS = ("ndcg@10", "recall@100")
TUNED = {"fuse": "zscore"}
WAYS: dict[str, dict[str, Any]] = {
    "rrf": {"fuse": "rrf"},
    "zscore": {"fuse": "zscore"},
    "minmax": {"fuse": "minmax"},
    "tuned": TUNED,
    "tuned, average of own": {**TUNED, "feedback": "average"},
    "tuned, rocchio of own": {**TUNED, "feedback": "rocchio"},
    "tuned, rocchio of fused": {**TUNED, "feedback": "rocchio", "feedback_from": "fused"},
}
ALONE: dict[str, dict[str, Any]] = {"average": {"feedback": "average"}, "rocchio": {"feedback": "rocchio"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    names = given.only or sorted(path.name for path in given.sweep.iterdir() if (path / "bm25").is_dir())
    tables = {
        name: measured(given.suite / name, given.sweep / name, given.output / name, given.model) for name in names
    }
    for metric in METRICS:
        print(f"\n{metric}\n")
        print(f"| | {' | '.join(names)} |")
        print("|---" * (len(names) + 1) + "|")
        for run in next(iter(tables.values())):
            print(f"| {run} | {' | '.join(tables[name][run][metric] for name in names)} |")


def measured(data: Path, made: Path, output: Path, model: str) -> dict[str, dict[str, str]]:
    """Run -> metric -> its mean, with the p-value of its difference from the better of the two."""
    from retrievo.commands.encode import EncodeConfig, encode
    from retrievo.commands.evaluate import EvaluateConfig, evaluate
    from retrievo.commands.index import IndexConfig, index
    from retrievo.commands.search.config import SearchConfig
    from retrievo.commands.search.run import search

    qrels, embeddings, judged = data / "qrels" / "test.parquet", made / f"embeddings-{model}", made / "queries.parquet"
    encode(EncodeConfig(model=model_of(embeddings), queries=judged, output=output / "queries"))
    index(IndexConfig(type="bm25", corpus=data, term_vectors=True, output=output / "bm25"))

    runs = {}

    def run(name: str, **options: Any) -> Path:
        runs[name] = output / f"{name.replace(', ', '-').replace(' ', '-')}.parquet"
        search(SearchConfig(output=runs[name], **options))
        return runs[name]

    vectors: dict[str, Any] = {"index": (embeddings,), "queries": output / "queries"}
    bm25 = run("bm25", index=(output / "bm25",), queries=judged)
    run("bm25, rm3", index=(output / "bm25",), queries=judged, rm3=True)
    run("dense", **vectors)
    for name, options in ALONE.items():
        run(f"dense, {name}", **vectors, **options)
    for name, options in WAYS.items():
        tuned = {"tune_on": qrels} if name.startswith("tuned") else {}
        run(name, **vectors, run=(bm25,), **options, **tuned)

    asked: dict[str, Any] = {"run": tuple(runs.values()), "qrels": qrels, "metrics": METRICS}
    means = evaluate(EvaluateConfig(**asked)).means()
    better = max(("bm25", "dense"), key=lambda name: means[runs[name].stem]["ndcg@10"])
    tests = evaluate(EvaluateConfig(**asked, baseline=runs[better])).tests
    return {
        name: {metric: told(means[path.stem][metric], tests.get(path.stem, {}).get(metric)) for metric in METRICS}
        for name, path in runs.items()
    }


def model_of(embeddings: Path) -> str:
    from retrievo.retrieval.embeddings import Embeddings

    return str(Embeddings(embeddings).manifest.input_path("model", "--model"))


def told(mean: float, test: Any) -> str:
    """A mean; bold for the baseline, else with the p-value."""
    return f"**{mean:.4f}**" if test is None else f"{mean:.4f} ({told_p(test.p_randomization)})"


def told_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    main()
