"""Training beside sentence-transformers' cached loss, in one run: pairs per second.

    python tests/benchmarks/train.py MODEL DATASET QRELS [--batch-size 64] [--steps 3] [--max-length 128]

MODEL: a sentence-transformers folder. Both take the gradient of in-batch InfoNCE through a gradient cache and one step
of AdamW, with the same kind of pairs, lengths and batch, dropout on. Prints medians and ratios, at equal precision
(bfloat16 autocast) and at their default (float32); and the matrix products of our step, 6 x parameters of linear layers
x tokens and 12 x layers x D x sum of squared lengths for attention (Chowdhery et al. 2022, appendix B), as a share of
the peak of a large matrix product in the same call. Work done twice does not count.
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
from retrievo.models.encoder import Encoder
from retrievo.support.sizes import bytes_of
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import GraphMemory, gradient_step
from retrievo.training.feeds.dataset_config import DataSetConfig
from retrievo.training.feeds.finetune import TrainingData, TrainingFeed
from retrievo.training.feeds.samplers import Drawing
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.table import FinetuneConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("qrels", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--chunk-tokens", type=int, default=4096)
    parser.add_argument("--activation-memory", default="1GB")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
            run(step, 16 if step == 0 else given.batch_size)  # the first one warms up
            _finish(given.device)
            if step:
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
    peak, done = _peak(given.device), statistics.median(WORK) / statistics.median(seconds["retrievo bfloat16"])
    print(f"matrix products                    {done / 1e12:8.3f} TFLOP/s, {done / peak:.0%} of {peak / 1e12:.3f}")


WORK: list[float] = []  # matrix products of each of our steps, in FLOP


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str) -> float:
    """FLOP/s of a bfloat16 matrix product of 4,096 x 4,096 (2,048 on a CPU), the best of 10."""
    size = 4096 if device == "cuda" else 2048
    one = torch.randn(size, size, device=device).bfloat16()
    took = []
    for _ in range(10):
        _finish(device)
        start = time.perf_counter()
        one @ one
        _finish(device)
        took.append(time.perf_counter() - start)
    return 2 * size**3 / min(took)


def _products(encoder: Encoder, batch: Batch) -> float:
    """FLOP of the forward and backward pass without padding."""
    linear = sum(part.weight.numel() for part in encoder.backbone.modules() if isinstance(part, torch.nn.Linear))
    config = encoder.backbone.config
    lengths = torch.cat([rows.lengths for rows in batch.rows.values()]).double()
    attention = 12 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
    return 6 * linear * float(lengths.sum()) + attention


def _ours(given: argparse.Namespace, dtype: torch.dtype) -> Callable[[int, int], None]:
    lengths = {"query_max_length": given.max_length, "document_max_length": given.max_length}
    encoder = Encoder.load(given.model, **lengths)
    objective = Finetune(FinetuneConfig(temperature=0.05), encoder).train().to(given.device)
    data = TrainingData(DataSetConfig(corpus=given.dataset, queries=given.dataset, qrels=given.qrels), 1)
    feeds = {
        size: TrainingFeed(data, encoder, objective.collator(), Drawing(batch_size=size, negatives_per_query=0, seed=0))
        for size in (16, given.batch_size)
    }
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5, fused=True)
    graphs = GraphMemory(bytes_of("--activation-memory", given.activation_memory))
    options = {"seed": 0, "chunk_tokens": given.chunk_tokens, "dtype": dtype, "keep_graphs": graphs}

    def run(step: int, size: int) -> None:
        batch = feeds[size].batch(step)
        gradient_step(objective, batch, step=step, **options)
        optimizer.step()
        if step:
            WORK.append(_products(encoder, batch))

    return run


def _theirs(given: argparse.Namespace, *, bf16: bool) -> Callable[[int, int], None]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import batch_to_device

    model = SentenceTransformer(given.model, device=given.device)
    model.max_seq_length = given.max_length
    model.train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    pairs = _pairs(given)

    def run(step: int, size: int) -> None:
        batch = pairs[step * size : (step + 1) * size]
        features = [batch_to_device(model.preprocess([pair[side] for pair in batch]), given.device) for side in (0, 1)]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(given.device, torch.bfloat16, enabled=bf16):
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
        for row in chosen
        if (document := found.get(row["doc_id"]))
    ]


if __name__ == "__main__":
    main()
