"""Fine-tuned from nothing, after MLM, after Condenser and after coCondenser, with equal budgets: does it help?

    python examples/compare_pretraining.py DATASET OUTPUT [--steps 400] [--rounds 300] [--seed 0]

DATASET is a dataset folder with train and test judgements. Each arm starts from the same random backbone (4 x 256,
vocabulary of the corpus), is pre-trained for the same number of steps (coCondenser: half of them in its condenser
stage), then fine-tuned in the same way with in-batch negatives. The table compares the arms with the first, query by
query. Every step is a retrievo command, so the script goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

MODEL = "scratch:small"
LENGTH = 64
TRAIN = (
    *("--batch-size", 128, "--learning-rate", 3e-4, "--similarity", "cosine", "--temperature", 0.05),
    *("--query-max-length", 32, "--document-max-length", LENGTH),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of pre-training")
    parser.add_argument("--rounds", type=int, default=300, help="steps of fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    runs = [
        evaluated(given, name, pretrained(given, name, steps))
        for name, steps in (
            ("nothing", None),
            ("mlm", ["--max-steps", given.steps]),
            ("condenser", ["--max-steps", given.steps]),
            ("cocondenser", ["--max-steps", given.steps // 2, "--condenser-steps", given.steps - given.steps // 2]),
        )
    ]
    metrics = ["--metrics", "mrr@10", "recall@100"]
    retrievo(
        "evaluate", "--run", *runs, "--baseline", runs[0], "--qrels", given.dataset / "qrels/test.parquet", *metrics
    )


def pretrained(given: argparse.Namespace, name: str, steps: list[object] | None) -> str | Path:
    """The model that an arm is fine-tuned from."""
    if steps is None:
        return MODEL
    output = given.output / f"pretrained-{name}"
    flags = ["--max-length", LENGTH, "--batch-size", 256, "--learning-rate", 5e-4, "--seed", given.seed]
    retrievo(
        "pretrain", "--objective", name, "--model", MODEL, "--corpus", given.dataset, *flags, *steps, "--output", output
    )
    return output


def evaluated(given: argparse.Namespace, name: str, model: str | Path) -> Path:
    """The run of an arm on the test queries."""
    stage, vectors, run = (given.output / f"{kind}-{name}" for kind in ("stage", "embeddings", "run"))
    tables = ["--corpus", given.dataset, "--queries", given.dataset, "--qrels", given.dataset / "qrels/train.parquet"]
    length = ["--max-steps", given.rounds, "--seed", given.seed]
    retrievo("train", "--model", model, *tables, *TRAIN, *length, "--output", stage)
    retrievo("encode", "--model", stage, "--corpus", given.dataset, "--output", vectors)
    queries = judged(given, given.output / "queries.parquet")
    retrievo(
        "search", "--index", vectors, "--queries", queries, "--depth", 100, "--output", run.with_suffix(".parquet")
    )
    return run.with_suffix(".parquet")


def judged(given: argparse.Namespace, path: Path) -> Path:
    """The queries of the test split."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        queries = pq.read_table(given.dataset / "queries.parquet")
        ids = pc.unique(pq.read_table(given.dataset / "qrels/test.parquet")["query_id"])
        pq.write_table(queries.filter(pc.is_in(queries["id"], value_set=ids)), path)
    return path


def retrievo(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "retrievo", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
