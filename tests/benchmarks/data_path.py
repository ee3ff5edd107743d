"""How many tokens of views one core makes, and what memory a corpus takes that would not fit.

    python tests/benchmarks/data_path.py CORPUS [--model scratch:small] [--batch-size 2048] [--gigabytes 0.25 2]

First the feed of each objective on a real corpus, one thread: documents out of the token cache, views cut, masked,
framed. An accelerator takes a BERT-base through about 0.3 million tokens a second, and one core must be ahead of it.
Then simclr on made-up token caches of so many gigabytes: anonymous memory of the process (what cannot be given back)
after batches from all over the file.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from retrievo.data.corpus import Corpus
from retrievo.models.condenser import MaskedEncoder
from retrievo.models.scratch import scratch_folder, scratch_size
from retrievo.training.feeds.pretrain import PretrainFeed
from retrievo.training.objectives.table import OBJECTIVES, PRETRAINING, objective_class

LENGTH = 250  # tokens of a made-up document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="scratch:small")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.25, 2.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    corpus = Corpus(given.corpus)
    folder = str(scratch_folder(given.model, [corpus], 0)) if scratch_size(given.model) else given.model
    encoder = MaskedEncoder.load(folder, pooling="cls", normalize=False, similarity="dot")
    for name in PRETRAINING:
        collator = _collator(name, encoder)
        feed = PretrainFeed([corpus], encoder, collator, batch_size=given.batch_size, seed=0)
        tokens, seconds = _run(feed, given.batches)
        print(f"{name:12} {tokens / seconds / 1e6:6.2f} million tokens/s on one core", flush=True)
    for gigabytes in given.gigabytes:
        _beyond(gigabytes, encoder, given)


def _collator(name: str, encoder: MaskedEncoder) -> Any:
    options = {"queue_size": 8} if name == "contriever" else {}
    return objective_class(name)(OBJECTIVES[name].config(**options), encoder).collator()


def _run(feed: PretrainFeed, batches: int) -> tuple[int, float]:
    """Tokens of the views of some batches, and the seconds that they took; the first one warms up."""
    feed.batch(0)
    start = time.perf_counter()
    made = [feed.batch(step) for step in range(1, 1 + batches)]
    seconds = time.perf_counter() - start
    return sum(rows.tokens.numel() for batch in made for rows in batch.rows.values()), seconds


@dataclass(frozen=True)
class MadeUp:
    """Instead of a tokenizer: random tokens, as many for each text."""

    max_length: int | None = None
    prefix: str = ""
    special_tokens: bool = False
    size: float = 0.0
    vocabulary_size = 30_000

    @property
    def fingerprint(self) -> str:
        return f"made-up-{self.size}"

    def tokenize(self, texts: list[str], titles: list[str] | None = None) -> Any:
        tokens = np.random.default_rng(len(texts)).integers(1000, 30_000, LENGTH * len(texts), dtype=np.uint16)
        return type("Tokens", (), {"tokens": tokens, "offsets": LENGTH * np.arange(len(texts) + 1)})


def _beyond(gigabytes: float, encoder: MaskedEncoder, given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        rows = int(gigabytes * 1e9 / (2 * LENGTH))
        path = Path(folder) / "corpus.parquet"
        empty = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x"])
        pq.write_table(pa.table({"id": np.arange(rows), "text": empty}), path)
        stand_in: Any = type("Encoder", (), {"tokenization": lambda self, role: MadeUp(size=gigabytes)})()
        before = _memory()
        collator = _collator("simclr", encoder)
        feed = PretrainFeed([Corpus(path)], stand_in, collator, batch_size=given.batch_size, seed=0)
        tokens, seconds = _run(feed, 20 * given.batches)
        anonymous, mapped = _memory()
        print(
            f"{gigabytes:5.2f} GB of tokens, {rows:,} documents: {tokens / seconds / 1e6:.2f} million tokens/s, "
            f"anonymous memory {anonymous - before[0]:+,.0f} MiB, mapped {mapped - before[1]:+,.0f} MiB",
            flush=True,
        )


def _memory() -> tuple[float, float]:
    """MiB of this process that are its own, and that are pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return found["RssAnon"], found["RssFile"]


if __name__ == "__main__":
    main()
