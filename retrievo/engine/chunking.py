"""How many tokens a chunk may have: as given, as measured, or half of it once memory has run out."""

from __future__ import annotations

import time

import torch

from retrievo.engine.step import GraphMemory, Passes
from retrievo.learning.batch import Batch
from retrievo.learning.distributed import rank, sum_over_ranks, world_size
from retrievo.objectives.objective import Objective
from retrievo.support import console
from retrievo.support.errors import RetrievoError

_FEWEST, _MOST = 1_024, 1 << 18  # candidates: powers of two between
_BETTER = 1.03  # a larger chunk must be so much faster to be worth its memory


class ChunkTokens:
    """The most tokens of a chunk, and the graphs that may be kept beside it.

    tokens: None until it is measured.
    """

    def __init__(self, tokens: int | None, graphs: GraphMemory):
        self.tokens, self.graphs = tokens, graphs

    def state(self) -> dict[str, int | None]:
        """What a checkpoint keeps, since dropout depends on how a batch is cut."""
        return {"tokens": self.tokens, "graphs": self.graphs.budget}

    def restore(self, state: dict[str, int | None]) -> None:
        """Goes on as the run that was saved."""
        self.tokens, self.graphs.budget = state["tokens"], state["graphs"] or 0

    def measure(self, objective: Objective, batch: Batch, dtype: torch.dtype) -> int:
        """Chooses the number of tokens with which a batch takes least time for each; rank 0's choice on all ranks."""
        if self.tokens is None:
            self.tokens = _fastest(objective, batch, dtype)
            console.note(
                f"chunks of {self.tokens:,} tokens are the fastest here; --chunk-tokens {self.tokens} repeats it"
            )
        return self.tokens

    def shrink(self, batch: Batch) -> None:
        """After memory ran out: no graph is kept any more, or else chunks are half as large.

        Raises: RetrievoError where a chunk is one text already, and with several processes, which would have to agree.
        """
        assert self.tokens is not None
        longest = max(int(rows.lengths.max()) for rows in batch.rows.values() if rows.size)
        if world_size() > 1 or (not self.graphs.budget and self.tokens <= longest):
            found = f"{self.tokens:,} tokens at once do not fit into the memory of the device"
            fix = f"pass --graph-memory 0 --chunk-tokens {max(longest, self.tokens // 2)}, or shorter texts"
            raise RetrievoError("training", found, None, fix)
        if self.graphs.budget:
            self.graphs.budget = 0
            console.warn("out of memory: no graphs are kept from here on (--graph-memory 0)")
            return
        self.tokens //= 2
        console.warn(f"out of memory: chunks have {self.tokens:,} tokens from here on (--chunk-tokens {self.tokens})")


def _fastest(objective: Objective, batch: Batch, dtype: torch.dtype) -> int:
    best, speed, tokens = _FEWEST, 0.0, _FEWEST
    objective.train()
    while tokens <= _MOST:
        found = _tokens_per_second(objective, batch, tokens, dtype)
        if found is None:
            break
        if found[0] > _BETTER * speed:
            best, speed = tokens, found[0]
        if found[1]:  # the batch is a single chunk: larger ones would be the same
            break
        tokens *= 2
    objective.zero_grad(set_to_none=True)
    chosen = torch.tensor(best if rank() == 0 else 0, device=next(objective.parameters()).device)
    return int(sum_over_ranks(chosen).item())


def _tokens_per_second(
    objective: Objective, batch: Batch, tokens: int, dtype: torch.dtype
) -> tuple[float, bool] | None:
    """Of a chunk of middling length, with its gradient, and whether it is the only one; None where it does not fit."""
    passes = Passes(objective, batch, 0, 0, tokens, dtype)
    last = passes.plan[-1][0]
    index = (len(passes.plan) + sum(name != last for name, _ in passes.plan)) // 2  # in the middle of the last set
    try:
        with torch.random.fork_rng(devices=[passes.device] if passes.device.type == "cuda" else []):
            _look_up(passes, last)
            seconds = min(_seconds(passes, index) for _ in range(3))  # the first one also builds kernels
    except torch.OutOfMemoryError:
        return None
    return passes.padded(index) / seconds, len(passes.plan) == 1


@torch.no_grad()
def _look_up(passes: Passes, last: str) -> None:
    """Passes over the sets without vectors that need a gradient: the local loss of the last set may look them up."""
    for index, (name, _) in enumerate(passes.plan):
        if name != last and name not in passes.objective.vector_names:
            passes.local_loss(index, passes.encode(index)[1])


def _seconds(passes: Passes, index: int) -> float:
    start = time.perf_counter()
    vectors, rest = passes.encode(index)
    loss = passes.local_loss(index, rest)
    if vectors is not None:
        loss = loss + vectors.sum()
    loss.backward()
    if passes.device.type == "cuda":
        torch.cuda.synchronize(passes.device)
    return time.perf_counter() - start
