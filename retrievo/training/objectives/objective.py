"""The interface between objectives and the training engine: how rows become vectors, and how vectors become a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.models.encoder import Encoder
from retrievo.training.batch import Batch, Chunk, Stats

WITH_NEGATIVE = "_with_negative"  # ends the name of a metric: the share of the rows that a loss can learn from
Collator = Callable[[Sequence[Any]], Batch]


class Objective(nn.Module):
    """A loss to minimize. The engine owns chunks, gradient cache, ranks, precision and schedule. In each step it calls

    1. `encode` for each chunk of `vector_names`, then `contrast` once on all vectors of this rank in the order of the
    batch;
    2. in the pass that builds a graph, `encode` (with the same dropout) and `local_loss` for each chunk;
    3. `metrics`, and after the update of the parameters `after_step`.

    Chunks come named set by named set in the order of `batch.rows`, and the rows of a set in any order. In the pass
    that builds a graph, sets outside `vector_names` come first.

    Each loss is a sum over this rank's rows divided by a count of `batch.counts`, which counts the rows of all ranks:
    the loss of the global batch is the sum over ranks. Checkpoints hold parameters and buffers, and no other state.
    """

    Config: ClassVar[type]  # the class of the objective's options
    vector_names: ClassVar[tuple[str, ...]] = ()  # named sets whose vectors need a gradient from `contrast`
    encoder: Encoder  # the model that is exported at the end

    def collator(self) -> Collator:
        """A picklable function that makes a Batch from items and does not hold the model."""
        raise NotImplementedError

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Any]:
        """The vectors [n, D] of a chunk, or None, and what `local_loss` needs, including the chunk's row numbers.

        Only the backbone runs here: heads and vocabulary projections belong in `local_loss`, which the first pass
        skips.
        """
        raise NotImplementedError

    def local_loss(self, rest: Any, batch: Batch) -> Tensor:
        """The part of the loss that is a sum over the rows of one chunk."""
        return torch.zeros((), device=next(self.parameters()).device)

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        """The part of the loss that needs all vectors {name: [n, D] float32}, and metrics for the log.

        The only parameters that it may use are scalars, such as a temperature: only those get a gradient here.
        """
        return torch.zeros((), device=next(self.parameters()).device), {}

    def metrics(self, batch: Batch) -> Stats:
        """Metrics for the log, from what the chunks of this step accumulated; every rank calls this method."""
        return {}

    def after_step(self) -> None:
        """Updates state that follows the parameters, such as moving averages and queues."""


def encoded(encoder: Encoder, chunk: Chunk) -> Tensor:
    """Vectors of a chunk [n, D] to compare by inner product: normalized where the encoder's similarity is cosine."""
    vectors = encoder.encode(chunk.name, chunk.input_ids, chunk.attention_mask)
    return functional.normalize(vectors, dim=-1) if encoder.spec.similarity == "cosine" else vectors
