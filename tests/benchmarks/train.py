"""Training beside sentence-transformers' cached loss, in one run: pairs per second.

    python tests/benchmarks/train.py MODEL DATASET QRELS [--batch-size 64] [--steps 3] [--max-length 128]

MODEL: a sentence-transformers folder. Both take the gradient of in-batch InfoNCE through a gradient cache and one step
of AdamW, with the same kind of pairs, lengths and batch, dropout on. Prints medians and ratios, at equal precision
(bfloat16 autocast) and at their default (float32).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from retrievo.data.corpus import Corpus, Queries
from retrievo.data.qrels import Qrels
from retrievo.engine.step import gradient_step
from retrievo.models.encoder import Encoder
from retrievo.objectives.choices import FinetuneConfig
from retrievo.objectives.finetune import Finetune
from retrievo.objectives.training_data import TrainingData, TrainingFeed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("qrels", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--chunk-tokens", type=int, default=4096)
    given = parser.parse_args()
    contenders = {
        "retrievo bfloat16": _ours(given, torch.bfloat16),
        "sentence-transformers bfloat16": _theirs(given, bf16=True),
        "sentence-transformers float32": _theirs(given, bf16=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in range(given.steps + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(step)
            if step:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: given.batch_size / statistics.median(took) for name, took in seconds.items()}
    print(
        f"batch {given.batch_size}, {given.max_length} tokens, {torch.get_num_threads()} threads, {given.steps} steps"
    )
    for name, rate in rates.items():
        print(f"{name:34} {rate:8.2f} pairs/s")
    ours = rates["retrievo bfloat16"]
    print(f"ratio at equal precision           {ours / rates['sentence-transformers bfloat16']:8.2f}")
    print(f"ratio to their default precision   {ours / rates['sentence-transformers float32']:8.2f}")


def _ours(given: argparse.Namespace, dtype: torch.dtype) -> Callable[[int], None]:
    lengths = {"query_max_length": given.max_length, "document_max_length": given.max_length}
    encoder = Encoder.load(given.model, **lengths)
    objective = Finetune(FinetuneConfig(temperature=0.05), encoder).train()
    data = TrainingData(given.dataset, given.dataset, given.qrels, (), 1)
    options = {"batch_size": given.batch_size, "negatives_per_query": 0, "seed": 0}
    feed = TrainingFeed(data, encoder, objective.collator(), **options)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5, fused=True)

    def run(step: int) -> None:
        batch = feed.batch(step)
        gradient_step(objective, batch, step=step, seed=0, chunk_tokens=given.chunk_tokens, dtype=dtype)
        optimizer.step()

    return run


def _theirs(given: argparse.Namespace, *, bf16: bool) -> Callable[[int], None]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(given.model, device="cpu")
    model.max_seq_length = given.max_length
    model.train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    pairs = _pairs(given)

    def run(step: int) -> None:
        batch = pairs[step * given.batch_size : (step + 1) * given.batch_size]
        features = [model.preprocess([pair[side] for pair in batch]) for side in (0, 1)]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss(features, None).backward()
        optimizer.step()

    return run


def _pairs(given: argparse.Namespace) -> list[tuple[str, str]]:
    """The same kind of pairs: a query and a relevant document, title and text."""
    corpus, queries = Corpus(given.dataset), Queries(given.dataset)
    wanted = Qrels.read(given.qrels).table.slice(0, 100_000).to_pylist()
    step = max(1, len(wanted) // (given.batch_size * (given.steps + 1)))
    chosen = wanted[::step][: given.batch_size * (given.steps + 1)]
    texts = dict(zip(queries.ids.to_pylist(), queries.texts, strict=True))
    found = corpus.find([row["doc_id"] for row in chosen])
    return [
        (texts[row["query_id"]], f"{document.title} {document.text}".strip())
        for row, document in zip(chosen, found, strict=True)
        if document
    ]


if __name__ == "__main__":
    main()
