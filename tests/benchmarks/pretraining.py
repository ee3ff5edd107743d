"""What the engine costs beside the passes that nothing can do without, in one run, and its memory.

    python tests/benchmarks/pretraining.py CORPUS [--model scratch:small] [--documents 512 8192] [--max-length 64]

CORPUS: a corpus table or dataset folder. Timed by turns on the same batches:

plain:  a loop over the same chunks without the engine: encode, loss, backward. For coCondenser, whose contrast needs
        all vectors first, that is a pass without graphs and one with graphs.
engine: `gradient_step`, which adds the contrast, the gradient cache, seeded dropout, counts over ranks and logging.

The ratio plain / engine is the share of its time in which the engine does what must be done. Then the peak resident
memory of `retrievo pretrain` processes, one step each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from memory import peak

from retrievo.data.corpus import Corpus
from retrievo.models.chunks import cut_chunks, pad
from retrievo.models.condenser import MaskedEncoder
from retrievo.models.devices import prepare_cpu
from retrievo.models.scratch import scratch_folder, scratch_size
from retrievo.training.batch import Batch, Chunk
from retrievo.training.engine.gradient_cache import gradient_step
from retrievo.training.feeds.pretrain import PretrainFeed
from retrievo.training.objectives.masked_lm import SPAN
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.table import OBJECTIVES, objective_class

CHUNK_TOKENS, DTYPE = 4_096, torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="scratch:small")
    parser.add_argument("--documents", type=int, nargs="+", default=[512, 8192])
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    prepare_cpu(None)
    for name in ("mlm", "condenser"):
        compare(given, name, given.documents[0], passes=1)
    for count in given.documents:
        compare(given, "cocondenser", count, passes=2)
    for count in given.documents:
        print(f"cocondenser, {count:>6,} documents: {peak_of_pretraining(given, count):8,.0f} MiB", flush=True)


def compare(given: argparse.Namespace, name: str, documents: int, *, passes: int) -> None:
    """Prints medians of the seconds of a step, plain and by the engine."""
    objective, batch = _setting(given, name, documents)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5, fused=True)

    def engine() -> None:
        gradient_step(objective, batch, step=0, seed=0, chunk_tokens=CHUNK_TOKENS, dtype=DTYPE, max_grad_norm=1.0)
        optimizer.step()

    def plain() -> None:
        objective.zero_grad(set_to_none=True)
        if passes == 2:
            with torch.no_grad():
                for chunk in _chunks(batch):
                    _encode(objective, chunk)
        for chunk in _chunks(batch):
            vectors, loss = _encode(objective, chunk, batch)
            (loss if vectors is None else loss + (vectors.float() * 1e-3).sum()).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()

    seconds = {"plain": [], "engine": []}
    warm = documents > given.documents[0]  # the smaller batch before has warmed up
    for turn in range(warm, given.rounds + 1):
        for contender, run in (("plain", plain), ("engine", engine)):
            took = _timed(run)
            if turn:
                seconds[contender].append(took)
    ratios = [own / other for own, other in zip(seconds["plain"], seconds["engine"], strict=True)]
    told = ", ".join(f"{contender} {statistics.median(took):7.2f} s" for contender, took in seconds.items())
    print(f"{name:12} {documents:>6,} documents: {told}, plain / engine {statistics.median(ratios):.3f}", flush=True)


def _setting(given: argparse.Namespace, name: str, documents: int) -> tuple[Objective, Batch]:
    corpus = Corpus(given.corpus)
    folder = given.model
    if scratch_size(given.model):
        folder = str(scratch_folder(given.model, [corpus], 0))
    encoder = MaskedEncoder.load(folder, pooling="cls", normalize=False, similarity="dot")
    if name == "cocondenser":
        objective_class("condenser")(OBJECTIVES["condenser"].config(max_length=given.max_length), encoder)
    objective = objective_class(name)(OBJECTIVES[name].config(max_length=given.max_length), encoder).train()
    batch = PretrainFeed([corpus], encoder, objective.collator(), batch_size=documents, seed=0).batch(0)
    assert batch.counts["documents"] == documents, "the corpus has fewer documents"
    return objective, batch


def _chunks(batch: Batch) -> Iterator[Chunk]:
    rows = batch.rows[SPAN]
    for chosen in cut_chunks(rows.lengths.numpy(), CHUNK_TOKENS):
        input_ids, mask = pad(*rows, chosen, batch.pad_ids[SPAN])
        yield Chunk(SPAN, *map(torch.from_numpy, (chosen, input_ids, mask)))


def _encode(objective: Objective, chunk: Chunk, batch: Batch | None = None) -> tuple[torch.Tensor | None, torch.Tensor]:
    with torch.autocast("cpu", DTYPE):
        vectors, rest = objective.encode(chunk)
        return vectors, torch.zeros(()) if batch is None else objective.local_loss(rest, batch)


def _timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_of_pretraining(given: argparse.Namespace, documents: int) -> float:
    """MiB that one step of coCondenser reached, with the corpus tokenized before."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", given.model, "--corpus", given.corpus, "--output", f"{folder}/out"]
        size = ["--batch-size", documents, "--max-length", given.max_length, "--max-steps", 1, "--condenser-steps", 0]
        return peak(["pretrain", *options, *size])


if __name__ == "__main__":
    main()
