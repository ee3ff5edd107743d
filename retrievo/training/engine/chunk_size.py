"""How many tokens a chunk may have: as given, as measured, or half of it once memory has run out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from retrievo.distributed.collectives import rank, sum_over_ranks, world_size
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import GraphMemory, Passes
from retrievo.training.objectives.objective import Objective

_FEWEST, _MOST = 1_024, 1 << 18  # candidates: powers of two between
_BETTER = 1.03  # a larger chunk must be so much faster to be worth its memory


class ChunkTokens:
    """The most tokens of a chunk, and the graphs that may be kept beside it.

    tokens: None until it is measured. asked: the options that say so, as they were given.
    """

    def __init__(self, tokens: int | None, graphs: GraphMemory, asked: Mapping[str, Any] | None = None):
        self.tokens, self.graphs, self.asked = tokens, graphs, dict(asked or {})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, since dropout depends on how a batch is cut."""
        return {"tokens": self.tokens, "graphs": self.graphs.budget, "asked": self.asked}

    def restore(self, state: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Goes on as the run that was saved, but for options that are given anew: [before, now] of each of these."""
        changed = {name: [state["asked"][name], now] for name, now in self.asked.items() if now != state["asked"][name]}
        if "chunk_tokens" not in changed:
            self.tokens = state["tokens"]
        if not changed.keys() - {"chunk_tokens"}:
            self.graphs.budget = state["graphs"]
        return changed

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
            raise RetrievoError("training", found, None, self._advice(longest))
        if self.graphs.budget:
            self.graphs.budget = 0
            console.warn("out of memory: no graphs are kept from here on (--activation-memory 0)")
            return
        self.tokens //= 2
        console.warn(f"out of memory: chunks have {self.tokens:,} tokens from here on (--chunk-tokens {self.tokens})")

    def _advice(self, longest: int) -> str:
        """What takes less memory; a run that is begun takes these options."""
        assert self.tokens is not None
        graphs = "--activation-memory 0 " if self.graphs.budget else ""
        if graphs or self.tokens > longest:
            tokens = max(longest, self.tokens // 2)
            return f"run it again with {graphs}--chunk-tokens {tokens}: it goes on from its latest checkpoint"
        more = "" if self.asked.get("gradient_checkpointing") else "--gradient-checkpointing, or "
        return f"one text is too long: pass {more}a shorter maximal length"


class _Probe(NamedTuple):
    """How fast chunks of some size are, and whether larger ones would be the same."""

    tokens_per_second: float
    whole: bool


def _fastest(objective: Objective, batch: Batch, dtype: torch.dtype) -> int:
    """The choice of rank 0 among sizes that fit on all ranks, which try the same ones: each is a collective."""
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
    """Of a chunk of middling length of the last set, with its gradient; None where it does not fit."""
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
