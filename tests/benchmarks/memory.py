"""Peak memory of training over batch sizes, and of encoding over corpus sizes: both should be flat.

    python tests/benchmarks/memory.py MODEL [--batches 64 256 1024] [--documents 5000 50000]
                                      [--activation-memory 256MB 0] [--loss 65536]

Each figure is the peak resident memory of one `retrievo` process on generated texts of 8 to 40 words; with --loss also
of the contrastive loss of so many pairs alone, forward and backward, D = 768, with identity masks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ("wing", "flow", "heat", "shock", "layer", "blade", "engine", "wave", "pressure", "velocity", "surface", "cone")

CHUNKS = ("--chunk-tokens", 1_024)  # which the smallest batch fills too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--documents", type=int, nargs="*", default=[5_000, 50_000])
    parser.add_argument("--activation-memory", nargs="+", default=["256MB", "0"])
    parser.add_argument("--loss", type=int, nargs="*", default=[])
    given = parser.parse_args()
    for pairs in given.loss:
        print(f"loss, {pairs:>6,} x {pairs:,}: {peak_of([__file__, 'loss', pairs]):8,.0f} MiB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        folder = Path(name)
        dataset = make_dataset(folder / "train", max(given.batches, default=1))
        tables = ["--corpus", dataset, "--queries", dataset, "--qrels", dataset / "qrels.txt"]
        for memory, size in itertools.product(given.activation_memory, given.batches):
            output = folder / f"batch-{size}-{memory}"
            flags = ["--max-steps", 1, "--batch-size", size, "--activation-memory", memory, *CHUNKS]
            train = ["train", "--model", given.model, *tables, "--output", output, *flags]
            print(f"train, batch {size:>6,}, --activation-memory {memory}: {peak(train):8,.0f} MiB", flush=True)
        for count in given.documents:
            corpus = make_dataset(folder / f"corpus-{count}", count)
            encode = ["encode", "--model", given.model, "--corpus", corpus, "--output", folder / f"embeddings-{count}"]
            print(f"encode, {count:>6,} documents: {peak(encode):8,.0f} MiB", flush=True)


def make_dataset(folder: Path, count: int) -> Path:
    """A corpus, as many queries, and a relevant document for each."""
    rng = random.Random(0)
    folder.mkdir()
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(8, 40))) for _ in range(count)]
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(count)], "text": texts}), folder / "corpus.parquet")
    queries = [" ".join(text.split()[:5]) for text in texts]
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(count)], "text": queries}), folder / "queries.parquet")
    (folder / "qrels.txt").write_text("".join(f"q{n} 0 d{n} 1\n" for n in range(count)))
    return folder


def peak(arguments: list[object]) -> float:
    """MiB of resident memory that one command reached."""
    return peak_of(["-m", "retrievo", *arguments])


def peak_of(arguments: list[object]) -> float:
    """The same of any Python process."""
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, error.decode()
    return usage.ru_maxrss / 1024


def take_loss(pairs: int) -> None:
    """InfoNCE of random vectors, each pair with a document that another query counts as relevant too."""
    import torch

    from retrievo.training.batch import Relevant
    from retrievo.training.losses.losses import CandidateBatch, LossSettings, identity_mask
    from retrievo.training.losses.tiled import contrastive_loss

    queries, documents = (torch.randn(pairs, 768, requires_grad=True) for _ in range(2))
    own = torch.arange(pairs)
    ids = torch.stack([own, (own + 1) % pairs], dim=1).flatten()
    relevant = Relevant(ids=ids, hashes=ids, offsets=torch.arange(pairs + 1) * 2)
    false_negatives = identity_mask(relevant, own, own, own)
    assert false_negatives.shape[1] >= pairs, "each query has one such document, by its id and by its text"
    candidates = CandidateBatch(queries, documents, own, false_negatives)
    contrastive_loss(candidates, {"infonce": 1.0}, 20.0, LossSettings()).total.backward()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


if __name__ == "__main__":
    if sys.argv[1:2] == ["loss"]:
        take_loss(int(sys.argv[2]))
    else:
        main()
