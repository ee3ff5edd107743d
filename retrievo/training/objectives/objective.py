"""The seam of learning: an objective says how rows become vectors and how all vectors become a loss, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.models.encoder import Encoder
from retrievo.training.batch import Batch, Chunk, Stats

CONTESTED = "_contested"  # what figures end with that say which share of the rows a loss has anything to learn from
Collator = Callable[[Sequence[Any]], Batch]


class Objective(nn.Module):
    """What is minimized. The engine owns chunks, gradient cache, ranks, precision and schedule, and calls, per step:

    `encode` for each chunk of `vector_names` and `contrast` once on all vectors of this rank in the order of the batch;
    then, in the pass that builds a graph, `encode` (with the same dropout) and `local_loss` for each chunk; `figures`;
    `after_step` after the update. Chunks come name by name in the order of `batch.rows`, rows of a name in any order;
    where a graph is built, names outside `vector_names` come first.

    Each loss is a sum over this rank's rows / a count of `batch.counts`, which counts all ranks: the loss of the global
    batch is the sum over ranks. State outside parameters and buffers is not kept in checkpoints.
    """

    Config: ClassVar[type]  # its options
    vector_names: ClassVar[tuple[str, ...]] = ()  # named sets whose vectors need a gradient from `contrast`
    encoder: Encoder  # what is exported at the end

    def collator(self) -> Collator:
        """A picklable object, without the module, that makes a Batch of items."""
        raise NotImplementedError

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Any]:
        """Vectors [n, D] of a chunk, or None, and what `local_loss` needs of it, which includes its rows.

        Only the backbone: heads and vocabulary projections belong in `local_loss`, which the first pass skips.
        """
        raise NotImplementedError

    def local_loss(self, rest: Any, batch: Batch) -> Tensor:
        """The part of the loss that is a sum over the rows of one chunk."""
        return torch.zeros((), device=next(self.parameters()).device)

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        """The part of the loss that needs all vectors {name: [n, D] float32}, and figures to log.

        It may use no parameters but named scalars, such as a temperature: only those get a gradient here.
        """
        return torch.zeros((), device=next(self.parameters()).device), {}

    def figures(self, batch: Batch) -> Stats:
        """Figures to log of what the chunks of this step left; every rank calls it."""
        return {}

    def after_step(self) -> None:
        """What follows the update of the parameters (moving averages, queues)."""


def encoded(encoder: Encoder, chunk: Chunk) -> Tensor:
    """Vectors of a chunk [n, D] as they are compared by inner product: of unit length where the folder says cosine."""
    vectors = encoder.encode(chunk.name, chunk.input_ids, chunk.attention_mask)
    return functional.normalize(vectors, dim=-1) if encoder.spec.similarity == "cosine" else vectors
