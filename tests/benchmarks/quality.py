"""Retrieval after the same number of training steps here and in sentence-transformers, from the same model and pairs.

    python tests/benchmarks/quality.py MODEL DATASET TRAIN_QRELS TEST_QRELS [--batch-size 32] [--epochs 1]

In-batch negatives only, AdamW with linear decay after 10 % warm-up, temperature 0.05, bfloat16 autocast. Prints a
table of both, and p-values of their difference.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from retrievo.training.engine.optimizers import OptimizerConfig, decay_groups, learning_rate
from retrievo.training.feeds.dataset_config import DataSetConfig
from retrievo.training.feeds.finetune import TrainingData

LENGTH, RATE = 128, 2e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("train_qrels", type=Path)
    parser.add_argument("test_qrels", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = ["--corpus", given.dataset, "--queries", given.dataset, "--qrels", given.train_qrels]
        lengths = ["--query-max-length", LENGTH, "--document-max-length", LENGTH]
        flags = [
            "--batch-size",
            given.batch_size,
            "--epochs",
            given.epochs,
            "--learning-rate",
            RATE,
            "--temperature",
            0.05,
        ]
        retrievo("train", "--model", given.model, *tables, *lengths, *flags, "--output", folder / "retrievo")
        train_theirs(given, folder / "sentence-transformers")
        runs, asked = [], ["--queries", given.dataset, "--judged", given.test_qrels]
        for name in ("retrievo", "sentence-transformers"):
            retrievo(
                "encode", "--model", folder / name, "--corpus", given.dataset, "--output", folder / f"{name}-vectors"
            )
            runs.append(folder / f"{name}.parquet")
            retrievo("search", "--index", folder / f"{name}-vectors", *asked, "--output", runs[-1])
        metrics = ("--metrics", "mrr@10", "ndcg@10", "recall@100")
        retrievo("evaluate", "--run", *runs, "--baseline", runs[-1], "--qrels", given.test_qrels, *metrics)


def retrievo(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "retrievo", *map(str, arguments)], check=True)


def train_theirs(given: argparse.Namespace, output: Path) -> None:
    """The same course of training by their model, their cached loss and the same optimizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    torch.manual_seed(0)
    model = SentenceTransformer(given.model, device="cpu")
    model.max_seq_length = LENGTH
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=32)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.01), lr=RATE)
    pairs = one_pair_per_query(given)
    steps = given.epochs * -(-len(pairs) // given.batch_size)
    for step in range(steps):
        first = step * given.batch_size % (-(-len(pairs) // given.batch_size) * given.batch_size)
        batch = pairs[first : first + given.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OptimizerConfig(learning_rate=RATE), step, steps)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            model.train()
            loss([model.preprocess([pair[side] for pair in batch]) for side in (0, 1)], None).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save(str(output))


def one_pair_per_query(given: argparse.Namespace) -> list[tuple[str, str]]:
    """A query and one of its relevant documents (title and text), queries in a random order."""
    data = TrainingData(DataSetConfig(corpus=given.dataset, queries=given.dataset, qrels=given.train_qrels), 1)
    order = torch.randperm(data.positives.size).tolist()
    judged = [query for query in order if len(data.positives.list(query))]
    found = [data.corpus.documents([int(data.positives.list(query)[0])])[0] for query in judged]
    texts = [f"{document.title} {document.text}".strip() for document in found]
    return [(data.queries.texts[query], text) for query, text in zip(judged, texts, strict=True)]


if __name__ == "__main__":
    main()
