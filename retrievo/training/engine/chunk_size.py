"""The chunk size in tokens: as given, as measured, and halved when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from retrievo.distributed.collectives import rank, sum_over_ranks, world_size
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import GraphMemory, Passes
from retrievo.training.objectives.objective import Objective

_FEWEST, _MOST = 1_024, 1 << 18  # the powers of two between are measured
_BETTER = 1.03  # a larger chunk must be faster by this factor to be worth its memory


class ChunkTokens:
    """The maximal number of tokens of a chunk, and the memory for graphs that are kept.

    tokens: None until it is measured. asked: the options of memory as they were given.
    """

    def __init__(self, tokens: int | None, graphs: GraphMemory, asked: Mapping[str, Any] | None = None):
        self.tokens, self.graphs, self.asked = tokens, graphs, dict(asked or {})

    def state(self) -> Values:
        """The state that a checkpoint keeps, since dropout depends on how a batch is cut."""
        return {"tokens": self.tokens, "graphs": self.graphs.budget, "asked": self.asked}

    def restore(self, state: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Restores the saved state except for options with a new value; returns [before, now] of each of these."""
        changed = {name: [state["asked"][name], now] for name, now in self.asked.items() if now != state["asked"][name]}
        if "chunk_tokens" not in changed:
            self.tokens = state["tokens"]
        if not changed.keys() - {"chunk_tokens"}:
            self.graphs.budget = state["graphs"]
        return changed

    def measure(self, objective: Objective, batch: Batch, dtype: torch.dtype) -> int:
        """Chooses the chunk size with the most tokens per second; all ranks take the choice of rank 0."""
        if self.tokens is None:
            self.tokens = _fastest(objective, batch, dtype)
            console.note(
                f"chunks of {self.tokens:,} tokens are the fastest here; --chunk-tokens {self.tokens} repeats it"
            )
        return self.tokens

    def shrink(self, batch: Batch) -> None:
        """Reduces memory after it ran out: stops keeping graphs, or else halves the chunk size.

        Raises: RetrievoError where a chunk is a single text already, and with several processes, which would have to
        agree.
        """
        assert self.tokens is not None
        longest = max(int(rows.lengths.max()) for rows in batch.rows.values() if rows.size)
        if world_size() > 1 or (not self.graphs.budget and self.tokens <= longest):
            found = f"{self.tokens:,} tokens at once do not fit into the memory of the device"
            raise RetrievoError("training", found, None, self._advice(longest))
        if self.graphs.budget:
            self.graphs.budget = 0
            console.warn("out of memory: no graphs are kept from here on (--activation-memory 0)")
            return
        self.tokens //= 2
        console.warn(f"out of memory: chunks have {self.tokens:,} tokens from here on (--chunk-tokens {self.tokens})")

    def _advice(self, longest: int) -> str:
        """The options that take less memory; a run that has begun accepts them when it is resumed."""
        assert self.tokens is not None
        graphs = "--activation-memory 0 " if self.graphs.budget else ""
        if graphs or self.tokens > longest:
            tokens = max(longest, self.tokens // 2)
            return f"run it again with {graphs}--chunk-tokens {tokens}: it resumes from its latest checkpoint"
        more = "" if self.asked.get("gradient_checkpointing") else "--gradient-checkpointing, or "
        return f"one text is too long: pass {more}a shorter maximal length"


class _Probe(NamedTuple):
    """The speed of chunks of some size."""

    tokens_per_second: float
    whole: bool  # whether one chunk holds the whole set, so that larger chunks would be the same


def _fastest(objective: Objective, batch: Batch, dtype: torch.dtype) -> int:
    """Rank 0's choice among the sizes that fit on all ranks, which try the same sizes: each is a collective."""
    device = next(objective.parameters()).device
    best, speed, tokens = _FEWEST, 0.0, _FEWEST
    objective.train()
    while tokens <= _MOST:
        probe = _probe(objective, batch, tokens, dtype)
        outcome = torch.tensor([probe is None, probe is not None and not probe.whole], dtype=torch.int64, device=device)
        full, cut = sum_over_ranks(outcome).tolist()
        if full or probe is None:
            break
        if probe.tokens_per_second > _BETTER * speed:
            best, speed = tokens, probe.tokens_per_second
        if not cut:
            break
        tokens *= 2
    objective.zero_grad(set_to_none=True)
    return int(sum_over_ranks(torch.tensor(best if rank() == 0 else 0, device=device)).item())


def _probe(objective: Objective, batch: Batch, tokens: int, dtype: torch.dtype) -> _Probe | None:
    """Measures a chunk of medium row length of the last set with its gradient; None where it does not fit."""
    passes = Passes(objective, batch, 0, 0, tokens, dtype)
    if not passes.plan:  # a rank without rows
        return _Probe(0.0, True)
    last = passes.plan[-1][0]
    chunks = [index for index, (name, _) in enumerate(passes.plan) if name == last]
    middle = chunks[len(chunks) // 2]
    try:
        with passes.own_random_state():
            _look_up(passes, last)
            seconds = min(_seconds(passes, middle) for _ in range(3))  # the first one also builds kernels
    except torch.OutOfMemoryError:
        return None
    return _Probe(passes.padded(middle) / seconds, len(chunks) == 1)


@torch.no_grad()
def _look_up(passes: Passes, last: str) -> None:
    """Computes the sets whose vectors need no gradient, since the local loss of the last set may look them up."""
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
