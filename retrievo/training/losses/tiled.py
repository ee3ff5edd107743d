"""The weighted sum of contrastive losses over tiles of queries, in memory that is linear in the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrievo.training.losses.losses import LOSSES, TILE, CandidateBatch, LossSettings, Tile


class Outcome(NamedTuple):
    """Sums over the queries of a `CandidateBatch`."""

    total: Tensor  # the weighted sum of all losses; differentiable
    losses: dict[str, Tensor]  # each loss alone, without its weight
    correct: Tensor  # how many queries score their own positive above every negative
    with_negative: dict[str, Tensor]  # for each loss, how many queries have anything to learn from


def contrastive_loss(
    candidates: CandidateBatch, weights: Mapping[str, float], temperature: float | Tensor, settings: LossSettings
) -> Outcome:
    """The weighted sum of the named losses over all queries, computed tile by tile.

    The gradient flows to the query vectors, the document vectors and a temperature that is a tensor.
    """
    total, sums, correct, learned = _tiled_loss(
        candidates.queries, candidates.documents, temperature, candidates, dict(weights), settings
    )
    by_name = (dict(zip(weights, values.unbind(), strict=True)) for values in (sums, learned))
    return Outcome(total, next(by_name), correct, next(by_name))


class TiledLoss(torch.autograd.Function):
    """(queries [B, D], documents [P, D], T) -> (weighted sum of losses, each loss alone [k], number of correct queries,
    number of queries that each loss learns from [k]).

    Scores exist for one tile at a time. Their gradient G [t, P] is computed in the forward pass, and only the gradients
    of the vectors, G documents and G^T queries, are kept: nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        temperature: float | Tensor,
        candidates: CandidateBatch,
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
        for rows, tile in _tiles(candidates, queries, documents, learned[0] if learned else temperature):
            with torch.enable_grad():
                values = torch.stack([LOSSES[name].function(tile, settings).sum() for name in weights])
                total = (values * values.new_tensor(list(weights.values()))).sum()
            slope, *rest = torch.autograd.grad(total, [tile.similarities, *learned], materialize_grads=True)
            torch.mm(slope, documents, out=of_queries[rows])
            of_documents.addmm_(slope.T, queries[rows])
            for gradient, of_tile in zip(of_learned, rest, strict=True):
                gradient += of_tile
            sums += values.detach()
            best_negative = tile.best_negative
            correct += (tile.positive.detach() > best_negative).sum()
            learned_from += torch.stack([LOSSES[name].learns(tile, settings, best_negative).sum() for name in weights])
        ctx.save_for_backward(of_queries, of_documents, of_learned[0] if of_learned else None)
        ctx.mark_non_differentiable(sums, correct, learned_from)
        return sums @ sums.new_tensor(list(weights.values())), sums, correct, learned_from

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors)
        return (*gradients, None, None, None)


_tiled_loss: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = TiledLoss.apply


def _tiles(
    candidates: CandidateBatch, queries: Tensor, documents: Tensor, temperature: float | Tensor
) -> Iterator[tuple[slice, Tile]]:
    """Slices of the queries with their tiles; the autograd graph of a tile begins at its similarities."""
    order = candidates.false_negatives[0].argsort()
    pairs = candidates.false_negatives[:, order]
    size = max(1, TILE // max(1, len(documents)))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        similarities = (queries[rows] @ documents.T).requires_grad_()
        first, last = torch.searchsorted(pairs[0], pairs.new_tensor([rows.start, rows.stop])).tolist()
        false_negatives = torch.zeros_like(similarities, dtype=torch.bool)
        false_negatives[pairs[0, first:last] - start, pairs[1, first:last]] = True
        with torch.enable_grad():
            scores = (similarities / temperature).masked_fill(false_negatives, float("-inf"))
        own, teacher = (None if tensor is None else tensor[rows] for tensor in (candidates.own, candidates.teacher))
        yield (
            rows,
            Tile(
                similarities,
                scores,
                temperature,
                candidates.positives[rows],
                false_negatives,
                own,
                teacher,
                _batch_teacher(candidates, rows),
                _itself(candidates, rows, false_negatives),
            ),
        )


def _batch_teacher(candidates: CandidateBatch, rows: slice) -> Tensor | None:
    """The batch teacher's scores of all documents [t, P]; None without such a teacher."""
    if candidates.teacher_queries is None or candidates.teacher_documents is None:
        return None
    return candidates.teacher_queries[rows] @ candidates.teacher_documents.T


def _itself(candidates: CandidateBatch, rows: slice, like: Tensor) -> Tensor | None:
    """Which documents are the query itself [t, P]; None where no document of the batch is."""
    if candidates.itself is None:
        return None
    query, document = candidates.itself[:, (candidates.itself[0] >= rows.start) & (candidates.itself[0] < rows.stop)]
    found = torch.zeros_like(like)
    found[query - rows.start, document] = True
    return found
