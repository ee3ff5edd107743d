"""Contriever: momentum contrast of two crops of a document, with a queue of earlier keys as negatives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from retrievo.distributed.collectives import gather_counts, gather_rows
from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Batch, Chunk, Stats
from retrievo.training.losses.losses import TILE
from retrievo.training.objectives.objective import encoded
from retrievo.training.objectives.simclr import DOCUMENT, QUERY, InBatchContrast, vector_metrics
from retrievo.training.objectives.table import ContrieverConfig


class Encoded(NamedTuple):
    """The vectors of a chunk, for the local loss."""

    name: str
    rows: Tensor  # [n]
    vectors: Tensor  # [n, D]


class MomentumContrast(InBatchContrast):
    """The mean over queries q of -log exp(<q, k+> / T) / (exp(<q, k+> / T) + sum over the queue of exp(<q, k> / T)).

    Contriever (Izacard et al. 2021, sections 3.1 and 3.2) after MoCo (He et al. 2020, eq. 1 and 2): k+ and the queue
    come from a momentum copy of the encoder, updated as theta_k <- m theta_k + (1 - m) theta_q after each step. A
    query's loss sends no gradient to vectors of other rows, so the loss is a sum over rows and one pass suffices.

    The queue is a ring buffer of the latest keys of all ranks in the order of the batch, identical on every rank. Only
    its filled part provides negatives; the reference implementation fills it with random vectors first, from which
    there is nothing to learn. Encoder, momentum copy and queue are the state of the module, so that checkpoints hold
    them.

    Raises: RetrievoError where `InBatchContrast` does, for untied encoders, and where --queue-size is not set.
    """

    Config = ContrieverConfig
    config: ContrieverConfig
    vector_names = ()
    roles = (DOCUMENT, QUERY)  # keys first: the loss of a query needs the key of its row
    queue: Tensor  # [K, D]
    queued: Tensor  # [] int64, number of keys added since the beginning

    def __init__(self, config: ContrieverConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if not encoder.spec.tied:
            raise RetrievoError("--model", "separate encoders for queries and documents", "one encoder for both")
        if config.queue_size is None:
            raise RetrievoError("--queue-size", "is not set", "a number of keys")
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(config.queue_size, encoder.dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self._reset()

    def _reset(self) -> None:
        """Drops the vectors and counts that the chunks of a step accumulated."""
        self._vectors: dict[str, Tensor] = {}
        self._hits = torch.zeros((), device=self.queue.device)

    @property
    def negatives(self) -> Tensor:
        """The filled part of the queue [at most K, D]."""
        return self.queue[: min(int(self.queued), len(self.queue))]

    def encode(self, chunk: Chunk) -> tuple[None, Encoded]:
        if chunk.name == QUERY:
            return None, Encoded(QUERY, chunk.rows, encoded(self.encoder, chunk))
        with torch.no_grad():
            return None, Encoded(DOCUMENT, chunk.rows, encoded(self.key_encoder, chunk))

    def local_loss(self, rest: Encoded, batch: Batch) -> Tensor:
        vectors = rest.vectors.float()
        self._keep(rest, batch, vectors.detach())
        if rest.name == DOCUMENT:
            return vectors.new_zeros(())
        keys = self._vectors[DOCUMENT][rest.rows]
        with torch.autocast(vectors.device.type, enabled=False):  # scores in the thousands need float32
            return self._loss(vectors / self.config.temperature, keys) / batch.counts["documents"]

    def _keep(self, rest: Encoded, batch: Batch, vectors: Tensor) -> None:
        """Stores the vectors of a chunk at the positions of their rows in the batch."""
        if rest.name not in self._vectors:
            self._vectors[rest.name] = vectors.new_zeros(batch.rows[rest.name].size, vectors.shape[1])
        self._vectors[rest.name][rest.rows] = vectors

    def _loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The sum of the losses of queries [n, D], already divided by T, with their keys [n, D]."""
        negatives = self.negatives
        own = (queries * keys).sum(1)
        if not len(negatives):
            self._hits += len(own)  # without negatives every query counts as correct
            return 0 * own.sum()
        others, highest = _log_sum_exp(queries, negatives)
        self._hits += (own.detach() > highest).sum()
        loss = functional.softplus(others - own)
        if self.config.label_smoothing:
            mean = (own + queries @ negatives.sum(0)) / (1 + len(negatives))
            loss = loss + self.config.label_smoothing * (own - mean)
        return loss.sum()

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        self._reset()  # `contrast` is the first method that a step calls
        return torch.zeros((), device=self.queue.device), {}

    def metrics(self, batch: Batch) -> Stats:
        queries, keys = (self._of_step(name) for name in (QUERY, DOCUMENT))
        every = gather_rows(keys, gather_counts(len(keys), keys.device))
        documents = batch.counts["documents"]
        return {"accuracy": self._hits / documents} | vector_metrics(queries, keys, every, documents)

    def _of_step(self, name: str) -> Tensor:
        """The vectors of this rank [B, D]; [0, D] where it had no documents."""
        return self._vectors.get(name, self.queue[:0])

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the momentum copy towards the encoder, and replaces the queue's oldest keys by those of this step."""
        of_keys: list[Tensor] = list(self.key_encoder.parameters())
        of_queries: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(of_keys, of_queries, 1 - self.config.momentum)
        keys = self._of_step(DOCUMENT)
        every = gather_rows(keys, gather_counts(len(keys), keys.device))[-len(self.queue) :]
        place = (self.queued + torch.arange(len(every), device=every.device)) % len(self.queue)
        self.queue[place] = every
        self.queued += len(every)
        self._reset()


class LogSumExp(torch.autograd.Function):
    """For rows [m, D], log of the sum of exp<row, key> over all keys [M, D], and the highest <row, key>: [m] each.

    Keys get no gradient. The gradient of a row, the keys averaged by its softmax, is computed together with the sum,
    tile by tile.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        totals, highest, gradient = rows.new_empty(len(rows)), rows.new_empty(len(rows)), torch.empty_like(rows)
        tile = max(1, TILE // len(keys))
        for start in range(0, len(rows), tile):
            part = slice(start, start + tile)
            scores = rows[part] @ keys.T  # [t, M]
            highest[part] = scores.amax(1)
            totals[part] = total = scores.logsumexp(1)
            torch.mm(scores.sub_(total[:, None]).exp_(), keys, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(highest)
        return totals, highest

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None


_log_sum_exp: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = LogSumExp.apply
