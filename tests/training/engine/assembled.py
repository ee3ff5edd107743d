"""Objectives with a batch, as every process of a verification assembles them."""

from __future__ import annotations

from typing import Any

from tiny import finetune, finetune_batch
from torch import Tensor

from retrievo.distributed.collectives import rank, world_size
from retrievo.training.batch import Batch
from retrievo.training.objectives.objective import Objective

GROUPS = [3, 1, 4, 2, 2]


def right() -> tuple[Objective, Batch]:
    own = slice(None) if world_size() == 1 else (slice(0, 2), slice(2, None))[rank()]
    return finetune(False, dropout=0.2, temperature=0.5, learn_temperature=True), finetune_batch(GROUPS, of=own)


def wrong() -> tuple[Objective, Batch]:
    """An objective whose vectors depend on what shares their chunk, as with batch normalization."""
    objective, batch = right()
    encode = objective.encode

    def normalized(chunk: Any) -> tuple[Tensor, Any]:
        vectors, rest = encode(chunk)
        return vectors - vectors.mean(dim=0), rest

    objective.encode = normalized  # type: ignore[method-assign]
    return objective, batch
