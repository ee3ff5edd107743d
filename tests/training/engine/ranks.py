"""What each process of test_ranks.py does: `python ranks.py FOLDER`, with the environment that torchrun sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import SpanPairs, finetune, finetune_batch, span_batch, taught_by_vectors
from torch import Tensor, nn

from retrievo.distributed.collectives import (
    as_rank_0_says,
    broadcast_state,
    gather_counts,
    gather_rows,
    process_group,
    rank,
    sum_gradients,
    world_size,
)
from retrievo.training.batch import Batch
from retrievo.training.engine.chunk_size import ChunkTokens
from retrievo.training.engine.config import FitConfig
from retrievo.training.engine.gradient_cache import GraphMemory
from retrievo.training.engine.loop import fit
from retrievo.training.feeds.samplers import share
from retrievo.training.objectives.objective import Objective

STEPS = 20
_GROUPED = ("listwise", "ranknet", "batch-margin-mse")
GROUPS = [[3, 1, 4, 2, 2], [2, 2, 2], [1], [4, 4], [1, 3, 1, 3], [2]]  # of six steps; two have a single query


class Feed:
    """This rank's part of batches that do not divide by the number of ranks, or leave a rank without rows."""

    def __init__(self, make: Callable[[int, slice], Batch], sizes: list[int]):
        self.make, self.sizes = make, sizes

    def batch(self, step: int) -> Batch:
        return self.make(step, share(self.sizes[step], rank(), world_size()))

    def position(self, step: int) -> dict[str, int]:
        return {"epoch": 0, "batch": step}


class Clock:
    """Seconds that pass in steps of training only."""

    def __init__(self, seconds_per_step: float):
        self.now, self.seconds_per_step = 0.0, seconds_per_step

    def advance(self, record: Any) -> None:
        self.now += self.seconds_per_step


def queries() -> Feed:
    groups = [GROUPS[step % len(GROUPS)] for step in range(STEPS)]
    return Feed(lambda step, of: finetune_batch(groups[step], step, of), [len(group) for group in groups])


def taught_queries() -> Feed:
    groups = [GROUPS[step % len(GROUPS)] for step in range(STEPS)]

    def make(step: int, of: slice) -> Batch:
        return taught_by_vectors(finetune_batch(groups[step], step, of), step, of, len(groups[step]))

    return Feed(make, [len(group) for group in groups])


def spans() -> Feed:
    sizes = [step % 6 + 1 for step in range(STEPS)]

    def make(step: int, of: slice) -> Batch:
        return span_batch(2 * sizes[step], step, slice(2 * of.start, 2 * of.stop))

    return Feed(make, sizes)


CASES: dict[str, Callable[[], tuple[Objective, Feed]]] = {
    "tied": lambda: (finetune(), queries()),
    "untied": lambda: (finetune(tied=False), queries()),
    "learned temperature": lambda: (finetune(temperature=0.5, learn_temperature=True), queries()),
    "groups and a batch teacher": lambda: (finetune(loss=_GROUPED, loss_weight=(1.0, 0.5, 0.1)), taught_queries()),
    "local loss": lambda: (SpanPairs(), spans()),
}


def train(folder: Path) -> dict[str, Tensor]:
    """Trains every case under `folder` and returns its parameters at the end."""
    found = {}
    for name, make in CASES.items():
        objective, feed = make()
        if rank():  # what other ranks start from must not matter
            nn.init.zeros_(objective.encoder.document.tokens.weight)
        # clipping keeps early steps alike; plain AdamW would blow up differences where a gradient is nearly zero
        config = FitConfig(
            max_steps=STEPS, learning_rate=1e-2, epsilon=1e-3, chunk_tokens=20, dtype="float32", keep_checkpoints=STEPS
        )
        clock = Clock(200.0 if rank() == 0 else 1_000.0)  # by its own, rank 1 would save after each step
        fit(
            objective,
            feed,
            config,
            folder=folder / name,
            device=torch.device("cpu"),
            progress=clock.advance,
            clock=lambda clock=clock: clock.now,
        )
        found |= {f"{name}/{key}": value.detach() for key, value in objective.named_parameters()}
    return found


def collectives() -> dict[str, Any]:
    """What the collectives of two ranks give, to be looked at by the test."""
    mine = torch.full((3 * rank(), 2), float(rank() + 1)).requires_grad_()  # rank 0 has no rows, rank 1 three
    counts = gather_counts(len(mine), mine.device)
    rows = gather_rows(mine, counts)
    upstream = torch.arange(6.0).view(3, 2) * (rank() + 1)
    rows.backward(upstream.T.contiguous().T if rank() == 0 else upstream)  # the same shape, laid out otherwise
    layer = nn.Linear(2, 2)  # each rank draws its own weights
    layer.register_buffer("queue", torch.full((1,), float(rank())))
    torch.manual_seed(rank())
    nn.init.normal_(layer.weight)
    broadcast_state(layer)
    used, partly, unused = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    several = span_batch(800, 0, slice(0, 20) if rank() == 0 else slice(20, 800))  # one chunk here, several there
    used.grad = torch.full((2,), float(rank() + 1))
    partly.grad = torch.ones(2) if rank() == 1 else None
    sum_gradients([used, partly, unused])
    return {
        "counts": counts,
        "rows": rows.tolist(),
        "gradient": mine.grad.tolist(),
        "weight": layer.weight.tolist(),
        "queue": layer.queue.tolist(),
        "chunk_tokens": ChunkTokens(None, GraphMemory(0)).measure(SpanPairs(), several, torch.float32),
        "told": [as_rank_0_says(answer, torch.device("cpu")) for answer in (rank() == 0, rank() == 1)],
        "summed": [None if p.grad is None else p.grad.tolist() for p in (used, partly, unused)],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group("cpu"):
        me = rank()
        torch.save(train(folder / "train"), folder / f"weights-{me}.pt")
        found = collectives() if world_size() == 2 else {}
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    (folder / f"collectives-{me}.json").write_text(json.dumps(found | {"threads": threads}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
