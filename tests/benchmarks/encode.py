"""Encoding beside sentence-transformers, in one run: documents per second, at equal precision and at its default.

    python tests/benchmarks/encode.py MODEL CORPUS [--documents 300] [--rounds 3]

MODEL: a sentence-transformers folder. Prints a median per contender and our ratio to each of theirs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from retrievo.data.corpus import Corpus
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    given = parser.parse_args()
    texts = next(Corpus(given.corpus).batches())[1][: given.documents]
    contenders = _contenders(given.model, texts, given.chunk_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(texts[:16])  # warm
    for _ in range(given.rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(texts)
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(texts) / statistics.median(took) for name, took in seconds.items()}
    print(f"{len(texts)} documents, {torch.get_num_threads()} threads, median of {given.rounds} rounds")
    for name, rate in rates.items():
        print(f"{name:34} {rate:8.1f} documents/s")
    ours = rates["retrievo bfloat16"]
    print(f"ratio to their default precision   {ours / rates['sentence-transformers float32']:8.2f}")
    print(f"ratio at equal precision           {ours / rates['sentence-transformers bfloat16']:8.2f}")
    print(
        f"ratio at float32                   {rates['retrievo float32'] / rates['sentence-transformers float32']:8.2f}"
    )


def _contenders(model: str, texts: list[str], chunk_tokens: int) -> dict[str, Callable[[list[str]], object]]:
    from sentence_transformers import SentenceTransformer

    ours = Encoder.load(model)
    theirs = SentenceTransformer(model, device="cpu")
    theirs_bf16 = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.bfloat16})

    def encode(dtype: torch.dtype) -> Callable[[list[str]], object]:
        return lambda batch: encode_texts(ours, "document", batch, chunk_tokens=chunk_tokens, dtype=dtype)

    return {
        "retrievo bfloat16": encode(torch.bfloat16),
        "sentence-transformers bfloat16": lambda batch: theirs_bf16.encode(batch, convert_to_tensor=True),
        "retrievo float32": encode(torch.float32),
        "sentence-transformers float32": lambda batch: theirs.encode(batch),
    }


if __name__ == "__main__":
    main()
