"""Encoding beside sentence-transformers, in one run: documents per second, at equal precision and at its default.

    python tests/benchmarks/encode.py MODEL CORPUS [--documents 300] [--rounds 3]

MODEL: a sentence-transformers folder. Prints a median per contender, our ratio to each of theirs, and how near our
vectors are to those of float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from retrievo.data.corpus import Corpus
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.inference import prepared
from retrievo.models.vectors import encode_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-tokens", type=lambda given: given if given == "auto" else int(given), default="auto")
    given = parser.parse_args()
    texts = next(Corpus(given.corpus).batches())[1][: given.documents]
    contenders = _contenders(given.model, given.chunk_tokens)
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
    vectors = (contenders[f"retrievo {name}"](texts) for name in ("bfloat16", "float32"))
    cosines = functional.cosine_similarity(*(torch.as_tensor(found).double() for found in vectors))
    print(f"cosine of bfloat16 to float32      {cosines.min():.6f} at least, {cosines.mean():.6f} on average")


def _contenders(model: str, chunk_tokens: int | str) -> dict[str, Callable[[list[str]], object]]:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(model, device="cpu")
    theirs_bf16 = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.bfloat16})

    def encode(dtype: str) -> Callable[[list[str]], object]:
        ours, compute = prepared(Encoder.load(model), dtype, "cpu"), ComputeOptions(dtype, "cpu", chunk_tokens)
        return lambda batch: encode_texts(ours, "document", batch, compute)

    return {
        "retrievo bfloat16": encode("bfloat16"),
        "sentence-transformers bfloat16": lambda batch: theirs_bf16.encode(batch, convert_to_tensor=True),
        "retrievo float32": encode("float32"),
        "sentence-transformers float32": lambda batch: theirs.encode(batch),
    }


if __name__ == "__main__":
    main()
