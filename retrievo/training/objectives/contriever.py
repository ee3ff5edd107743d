"""Contriever: momentum contrast of two crops of a document, with a queue of earlier keys as negatives."""

from __future__ import annotations

import copy
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
from retrievo.training.objectives.simclr import DOCUMENT, QUERY, InBatchContrast, figures
from retrievo.training.objectives.table import ContrieverConfig


class Seen(NamedTuple):
    """What the local loss needs of a chunk."""

    name: str
    rows: Tensor  # [n]
    vectors: Tensor  # [n, D]


class MomentumContrast(InBatchContrast):
    """-log exp(<q, k+> / T) / (exp(<q, k+> / T) + sum over the queue of exp(<q, k> / T)), the mean over q.

    Contriever (Izacard et al. 2021, sections 3.1 and 3.2) after MoCo (He et al. 2020, eq. 1 and 2): k+ and the queue
    come from a copy of the encoder that follows it as theta_k <- m theta_k + (1 - m) theta_q after each update. No
    vector of another row gets a gradient, so that the loss is a sum over rows and one pass suffices.

    The queue is a ring of the latest keys of all ranks in the order of the batch, the same on each of them. Only the
    part that was filled competes (the reference fills it with random vectors first, which are no negatives to learn
    from). Encoder, copy and queue are the state of the module, so that checkpoints hold them.

    Raises: RetrievoError for what `InBatchContrast` refuses, untied encoders, and a queue of unknown length.
    """

    Config = ContrieverConfig
    config: ContrieverConfig
    vector_names = ()
    roles = (DOCUMENT, QUERY)  # queries look up the keys of their rows
    queue: Tensor  # [K, D]
    queued: Tensor  # [] int64, keys that were ever put in

    def __init__(self, config: ContrieverConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if not encoder.spec.tied:
            raise RetrievoError("--model", "an encoder each for queries and documents", "one for both")
        if config.queue_size is None:
            raise RetrievoError("--queue-size", "is not set", "a number of keys")
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(config.queue_size, encoder.dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self._reset()

    def _reset(self) -> None:
        """Forgets what the chunks of a step left."""
        self._vectors: dict[str, Tensor] = {}
        self._hits = torch.zeros((), device=self.queue.device)

    @property
    def negatives(self) -> Tensor:
        """The part of the queue that is filled [at most K, D]."""
        return self.queue[: min(int(self.queued), len(self.queue))]

    def encode(self, chunk: Chunk) -> tuple[None, Seen]:
        if chunk.name == QUERY:
            return None, Seen(QUERY, chunk.rows, encoded(self.encoder, chunk))
        with torch.no_grad():
            return None, Seen(DOCUMENT, chunk.rows, encoded(self.key_encoder, chunk))

    def local_loss(self, rest: Seen, batch: Batch) -> Tensor:
        vectors = rest.vectors.float()
        self._keep(rest, batch, vectors.detach())
        if rest.name == DOCUMENT:
            return vectors.new_zeros(())
        keys = self._vectors[DOCUMENT][rest.rows]
        with torch.autocast(vectors.device.type, enabled=False):  # scores in the thousands need their last bits
            return self._loss(vectors / self.config.temperature, keys) / batch.counts["documents"]

    def _keep(self, rest: Seen, batch: Batch, vectors: Tensor) -> None:
        """Puts the vectors of a chunk where their rows stand in the batch."""
        if rest.name not in self._vectors:
            self._vectors[rest.name] = vectors.new_zeros(batch.rows[rest.name].size, vectors.shape[1])
        self._vectors[rest.name][rest.rows] = vectors

    def _loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The sum over queries [n, D], already divided by T, with their keys [n, D]."""
        negatives = self.negatives
        own = (queries * keys).sum(1)
        if not len(negatives):
            self._hits += len(own)  # no key could be mistaken for theirs
            return 0 * own.sum()
        others, highest = LogSumExp.apply(queries, negatives)
        self._hits += (own.detach() > highest).sum()
        loss = functional.softplus(others - own)
        if self.config.label_smoothing:
            mean = (own + queries @ negatives.sum(0)) / (1 + len(negatives))
            loss = loss + self.config.label_smoothing * (own - mean)
        return loss.sum()

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        self._reset()  # the first that a step calls
        return torch.zeros((), device=self.queue.device), {}

    def figures(self, batch: Batch) -> Stats:
        queries, keys = (self._of_step(name) for name in (QUERY, DOCUMENT))
        every = gather_rows(keys, gather_counts(len(keys), keys.device))
        documents = batch.counts["documents"]
        return {"accuracy": self._hits / documents} | figures(queries, keys, every, documents)

    def _of_step(self, name: str) -> Tensor:
        """The vectors of this rank [B, D]; none where it had no documents."""
        return self._vectors.get(name, self.queue[:0])

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the copy after the encoder, and puts the keys of all ranks in the place of the oldest."""
        follower: list[Tensor] = list(self.key_encoder.parameters())
        leader: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(follower, leader, 1 - self.config.momentum)
        keys = self._of_step(DOCUMENT)
        every = gather_rows(keys, gather_counts(len(keys), keys.device))[-len(self.queue) :]
        place = (self.queued + torch.arange(len(every), device=every.device)) % len(self.queue)
        self.queue[place] = every
        self.queued += len(every)
        self._reset()


class LogSumExp(torch.autograd.Function):
    """log sum over the rows of `every` [M, D] of exp<row, .>, and the highest <row, .>, of each row: [m], [m].

    `every` gets no gradient. That of a row, its softmax over `every`, is worked out beside the sum, tile by tile.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
        totals, highest, gradient = rows.new_empty(len(rows)), rows.new_empty(len(rows)), torch.empty_like(rows)
        tile = max(1, TILE // len(every))
        for start in range(0, len(rows), tile):
            part = slice(start, start + tile)
            scores = rows[part] @ every.T  # [t, M]
            highest[part] = scores.amax(1)
            totals[part] = total = scores.logsumexp(1)
            torch.mm(scores.sub_(total[:, None]).exp_(), every, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(highest)
        return totals, highest

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None
