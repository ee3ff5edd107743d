"""The sum of contrastive losses over tiles of queries, with its gradient, in memory that is linear in the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrievo.training.losses.losses import LOSSES, TILE, CandidateBatch, LossSettings, Tile


class Outcome(NamedTuple):
    """Sums over the queries of a contest."""

    total: Tensor  # the weighted sum of all losses; differentiable
    losses: dict[str, Tensor]  # each loss alone, without its weight
    correct: Tensor  # how many own positives score above every other candidate
    contested: dict[str, Tensor]  # of each loss, how many queries it can learn from


def weighed(
    contest: CandidateBatch, weights: Mapping[str, float], temperature: float | Tensor, settings: LossSettings
) -> Outcome:
    """The weighted sum of losses of `LOSSES` over all queries, tile by tile.

    The gradient reaches queries, documents and a temperature that is a tensor.
    """
    total, sums, correct, learned = TiledLoss.apply(
        contest.queries, contest.documents, temperature, contest, dict(weights), settings
    )
    by_name = (dict(zip(weights, values.unbind(), strict=True)) for values in (sums, learned))
    return Outcome(total, next(by_name), correct, next(by_name))


class TiledLoss(torch.autograd.Function):
    """(queries [B, D], documents [P, D], T) -> the weighted sum of losses, each loss alone [k], correct queries, and
    how many each loss learns from [k].

    Scores live for one tile only. Their gradient G [t, P] is worked out at once, and what it means for the vectors,
    G documents and G^T queries, is kept: nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        temperature: float | Tensor,
        contest: CandidateBatch,
        weights: Mapping[str, float],
        settings: LossSettings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        of_queries, of_documents = torch.zeros_like(queries), torch.zeros_like(documents)
        learned = [temperature.detach().requires_grad_()] if isinstance(temperature, Tensor) else []
        of_learned = [torch.zeros_like(scalar) for scalar in learned]
        sums, correct, learned_from = (
            queries.new_zeros(len(weights)),
            queries.new_zeros(()),
            queries.new_zeros(len(weights)),
        )
        for rows, tile in _tiles(contest, queries, documents, learned[0] if learned else temperature):
            with torch.enable_grad():
                values = torch.stack([LOSSES[name].function(tile, settings).sum() for name in weights])
                total = (values * values.new_tensor(list(weights.values()))).sum()
            slope, *rest = torch.autograd.grad(total, [tile.similarities, *learned], materialize_grads=True)
            torch.mm(slope, documents, out=of_queries[rows])
            of_documents.addmm_(slope.T, queries[rows])
            for gradient, of_tile in zip(of_learned, rest, strict=True):
                gradient += of_tile
            sums += values.detach()
            rival = tile.rival
            correct += (tile.positive.detach() > rival).sum()
            learned_from += torch.stack([LOSSES[name].learns(tile, settings, rival).sum() for name in weights])
        ctx.save_for_backward(of_queries, of_documents, of_learned[0] if of_learned else None)
        ctx.mark_non_differentiable(sums, correct, learned_from)
        return sums @ sums.new_tensor(list(weights.values())), sums, correct, learned_from

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors)
        return (*gradients, None, None, None)


def _tiles(
    contest: CandidateBatch, queries: Tensor, documents: Tensor, temperature: float | Tensor
) -> Iterator[tuple[slice, Tile]]:
    """Rows of the queries with their scores, whose graph begins at the similarities."""
    order = contest.masked[0].argsort()
    masked = contest.masked[:, order]
    size = max(1, TILE // max(1, len(documents)))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        similarities = (queries[rows] @ documents.T).requires_grad_()
        first, last = torch.searchsorted(masked[0], masked.new_tensor([rows.start, rows.stop])).tolist()
        out = torch.zeros_like(similarities, dtype=torch.bool)
        out[masked[0, first:last] - start, masked[1, first:last]] = True
        with torch.enable_grad():
            scores = (similarities / temperature).masked_fill(out, float("-inf"))
        own, teacher = (None if tensor is None else tensor[rows] for tensor in (contest.own, contest.teacher))
        taught, itself = _batch_teacher(contest, rows), _itself(contest, rows, out)
        yield rows, Tile(similarities, scores, temperature, contest.positives[rows], out, own, teacher, taught, itself)


def _batch_teacher(contest: CandidateBatch, rows: slice) -> Tensor | None:
    """What the teacher with vectors says of all documents [t, P]."""
    if contest.teacher_queries is None or contest.teacher_documents is None:
        return None
    return contest.teacher_queries[rows] @ contest.teacher_documents.T


def _itself(contest: CandidateBatch, rows: slice, masked: Tensor) -> Tensor | None:
    """Which documents are the query itself [t, P]; None where no document of the contest is."""
    if contest.itself is None:
        return None
    query, document = contest.itself[:, (contest.itself[0] >= rows.start) & (contest.itself[0] < rows.stop)]
    found = torch.zeros_like(masked)
    found[query - rows.start, document] = True
    return found
