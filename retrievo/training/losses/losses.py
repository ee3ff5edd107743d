"""Contrastive losses of queries against the documents of the global batch, and the mask of false negatives.

The score matrix of a large batch does not fit in memory: 65,536 x 65,536 scores take 17 GB. Queries are therefore
processed in tiles (`tiled.py`), and the gradient with respect to the vectors is computed together with the loss, so
that memory is linear in the batch size. A loss is a function of one tile of scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from retrievo.training.batch import Relevant

TILE = 1 << 23  # scores computed at once (32 MiB for each copy)
SCOPES = ("batch", "group")


@dataclass(frozen=True)
class CandidateBatch:
    """The queries of one rank and their candidates: the documents of all ranks.

    false_negatives: (query, document) pairs that must not count as negatives. Pairs may repeat; a query's own positive
        is never among them.
    itself: the false negatives whose document is the query itself, and which therefore is not a positive either.
    own: columns of each query's own documents, its positive first. Rows shorter than G are padded with the positive.
    teacher: the teacher's scores of the own documents, NaN where a score is missing and in the padding.
    teacher_queries, teacher_documents: vectors of a second teacher, which scores every document of the batch.
    """

    queries: Tensor  # [B, D]
    documents: Tensor  # [P, D]
    positives: Tensor  # [B] column of each query's own positive
    false_negatives: Tensor  # [2, m]
    own: Tensor | None = None  # [B, G]
    teacher: Tensor | None = None  # [B, G]
    teacher_queries: Tensor | None = None  # [B, Dt]
    teacher_documents: Tensor | None = None  # [P, Dt]
    itself: Tensor | None = None  # [2, m]

    def truncated(self, dim: int) -> CandidateBatch:
        """The same batch with all vectors cut to their first `dim` dimensions."""
        return dataclasses.replace(self, queries=self.queries[:, :dim], documents=self.documents[:, :dim])


@dataclass(frozen=True)
class LossSettings:
    """The options of the losses.

    label_smoothing: share of the target that is spread evenly over all candidates. teacher_temperature: divides the
    teacher's scores. soft_label_scope: the documents that the model's distribution covers, one of `SCOPES`.
    """

    label_smoothing: float = 0.0
    teacher_temperature: float = 1.0
    soft_label_scope: str = "batch"


class Tile(NamedTuple):
    """Some queries of a `CandidateBatch` with their scores against all documents."""

    similarities: Tensor  # [t, P] inner products
    scores: Tensor  # [t, P] inner products / T; -inf at false negatives
    temperature: float | Tensor
    positives: Tensor  # [t]
    false_negatives: Tensor  # [t, P] bool
    own: Tensor | None  # [t, G]
    teacher: Tensor | None  # [t, G]
    batch_teacher: Tensor | None = None  # [t, P] scores of all documents by the teacher with vectors
    itself: Tensor | None = None  # [t, P] bool: the false negatives that are the query itself

    @property
    def best_negative(self) -> Tensor:
        """The highest score among each query's negatives [t]; -inf where a query has none."""
        return self.scores.detach().scatter(1, self.positives[:, None], float("-inf")).amax(1)

    @property
    def positive(self) -> Tensor:
        """The score of each query's own positive [t]."""
        return self.scores.gather(1, self.positives[:, None]).squeeze(1)


def info_nce(tile: Tile, settings: LossSettings) -> Tensor:
    """InfoNCE over in-batch and hard negatives: -log softmax(s(q, .) / T) at q's own positive.

    s is the inner product (van den Oord et al. 2018, eq. 4; coCondenser, Gao & Callan 2022, eq. 14, where T = 1).
    The candidates are all documents of the global batch except false negatives. With label smoothing e the target is
    (1 - e) at the positive plus e spread evenly over all candidates (Szegedy et al. 2016, section 7).
    """
    loss = tile.scores.logsumexp(1) - tile.positive
    if not settings.label_smoothing:
        return loss
    candidates = tile.scores.isfinite()
    mean = tile.scores.where(candidates, 0).sum(1) / candidates.sum(1)
    return loss + settings.label_smoothing * (tile.positive - mean)


def supcon(tile: Tile, settings: LossSettings) -> Tensor:
    """The mean over all relevant documents p of the batch of -log(exp s_p / (exp s_p + sum of exp s_n)).

    Positives do not compete with one another (Khosla et al. 2020, eq. 2, without the other positives in the
    denominator). The documents that InfoNCE masks are positives here, except the query itself. With one relevant
    document the loss equals InfoNCE.
    """
    import torch

    own = torch.zeros_like(tile.false_negatives).scatter_(1, tile.positives[:, None], True)
    negatives = tile.scores.masked_fill(own, NEVER).clamp_min(NEVER).logsumexp(1)  # finite: -inf has no gradient
    relevant = own | (tile.false_negatives if tile.itself is None else tile.false_negatives & ~tile.itself)
    query, document = relevant.nonzero(as_tuple=True)
    losses = torch.nn.functional.softplus(negatives[query] - tile.similarities[query, document] / tile.temperature)
    return torch.zeros_like(negatives).index_add(0, query, losses) / relevant.sum(1)


def listwise(tile: Tile, settings: LossSettings) -> Tensor:
    """InfoNCE among the query's own documents alone: -log softmax(s / T) at its positive, against its own negatives.

    This is the listwise form of training on static hard negatives. Added to `infonce` at a small weight, which
    contributes random negatives, it gives STAR (Zhan et al. 2021). The loss is 0 for a query without negatives of its
    own.
    """
    import torch

    return torch.nn.functional.softplus(_own_negatives(tile).logsumexp(1) - tile.positive)


def ranknet(tile: Tile, settings: LossSettings) -> Tensor:
    """RankNet: the mean over own negatives n of log(1 + exp((s_n - s_p) / T)).

    Burges et al. 2005, for a pair whose order is certain; STAR (Zhan et al. 2021) is stated with this loss. The loss is
    0 for a query without negatives of its own.
    """
    import torch

    negatives = _own_negatives(tile)
    losses = torch.nn.functional.softplus(negatives - tile.positive[:, None])  # 0 at NEVER
    return losses.sum(1) / (negatives > NEVER / 2).sum(1).clamp_min(1)


def margin_mse(tile: Tile, settings: LossSettings) -> Tensor:
    """The mean over own negatives n of ((s_p - s_n) - (t_p - t_n))^2, with teacher scores t and no temperature.

    Hofstaetter et al. 2020 (margin-MSE), eq. 6; TAS-B, Hofstaetter et al. 2021, eq. 3. The loss is 0 for a query whose
    positive, or all of whose negatives, the teacher did not score.
    """
    teacher, known, columns = _teacher_scores(tile)
    own = tile.similarities.gather(1, columns)  # [t, G]
    errors = (own[:, :1] - own[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    counted = known[:, 1:] & known[:, :1]
    return errors.square().where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)


def batch_margin_mse(tile: Tile, settings: LossSettings) -> Tensor:
    """The mean over all negatives n of the batch of ((s_p - s_n) - (t_p - t_n))^2, with the batch teacher's scores t.

    This is the in-batch half of the dual supervision of TAS-B (Hofstaetter et al. 2021, section 3.1), without
    temperature. The negatives are all documents except the own positive and false negatives; they include the query's
    own negatives. Every query has the same weight. The loss is 0 for a query without negatives.
    """
    assert tile.batch_teacher is not None, "a loss with a batch teacher needs its vectors"
    counted = tile.scores.isfinite().scatter(1, tile.positives[:, None], False)
    differences = tile.similarities - tile.batch_teacher  # [t, P]
    errors = differences.gather(1, tile.positives[:, None]) - differences
    return errors.square().where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)


def soft_labels(tile: Tile, settings: LossSettings) -> Tensor:
    """KL(T || S) of the teacher's distribution T over own documents and the model's S (coCondenser, eq. 15-16).

    T = softmax(t / teacher temperature), 0 for all other documents; S = softmax(s / temperature) over all candidates of
    the global batch, or over the own documents that the teacher scored (`soft_label_scope`). The paper writes eq. 16 as
    KL(S || T), which is infinite where T is 0. The loss is 0 for a query of which the teacher scored no document.
    """
    import torch

    teacher, known, columns = _teacher_scores(tile)
    own = tile.scores.gather(1, columns)  # [t, G]
    known = known & own.isfinite()
    target = (teacher / settings.teacher_temperature).masked_fill(~known, NEVER).log_softmax(1)
    in_scope = tile.scores if settings.soft_label_scope == "batch" else own.masked_fill(~known, NEVER)
    model = own - in_scope.logsumexp(1, keepdim=True)
    return torch.where(known, target.exp() * (target - model), 0).sum(1)


NEVER = -1e30  # stands for -inf: its exponential is 0 as well, but its gradient is 0 instead of NaN


def _own_negatives(tile: Tile) -> Tensor:
    """The scores of each query's own negatives [t, max(G - 1, 1)]; NEVER in the padding and at false negatives."""
    assert tile.own is not None, "a loss over own negatives needs each query's own documents"
    others = tile.own[:, 1:] if tile.own.shape[1] > 1 else tile.own
    real = others != tile.positives[:, None]
    return tile.scores.gather(1, others).masked_fill(~real, NEVER).clamp_min(NEVER)


def _teacher_scores(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's scores of own documents, 0 where missing; which are known; and their columns: [t, G] each."""
    assert tile.teacher is not None, "a loss with a teacher needs its scores"
    assert tile.own is not None
    known = tile.teacher.isfinite()
    return tile.teacher.nan_to_num(0), known, tile.own


PAIRS, VECTORS = "pairs", "vectors"  # kinds of teachers: scores of pairs, or vectors that score the whole batch


def _has_negative(tile: Tile, settings: LossSettings, best_negative: Tensor) -> Tensor:
    """Whether each query has a negative in the batch [t]."""
    return best_negative > float("-inf")


def _has_own_negative(tile: Tile, settings: LossSettings, best_negative: Tensor) -> Tensor:
    """Whether each query has a negative of its own that is not a false negative [t]."""
    return (_own_negatives(tile) > NEVER / 2).any(1)


def _has_teacher_margin(tile: Tile, settings: LossSettings, best_negative: Tensor) -> Tensor:
    """Whether the teacher scored the positive and at least one of the query's own negatives [t]."""
    _, known, _ = _teacher_scores(tile)
    return (known[:, 1:] & known[:, :1]).any(1)


def _has_teacher_distribution(tile: Tile, settings: LossSettings, best_negative: Tensor) -> Tensor:
    """Whether the teacher scored a document and the model's distribution covers at least one other [t]."""
    _, known, columns = _teacher_scores(tile)
    known = known & tile.scores.gather(1, columns).isfinite()
    return known.any(1) & (best_negative > float("-inf")) if settings.soft_label_scope == "batch" else known.sum(1) > 1


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`: a function of a tile that gives the loss of each query [t], and what it needs.

    teacher: the kind of teacher, if any. own_negatives: the loss uses a query's own negatives alone, not those of the
    batch. settings: the options that the loss reads, `temperature` where that divides its scores. learns: which queries
    have anything to learn from [t], given `Tile.best_negative` [t]; all others have loss and gradient 0, whatever the
    model.
    """

    function: Callable[[Tile, LossSettings], Tensor]
    teacher: str | None = None
    own_negatives: bool = False
    settings: tuple[str, ...] = ("temperature",)
    learns: Callable[[Tile, LossSettings, Tensor], Tensor] = _has_negative


_OF_KL = ("temperature", "teacher_temperature", "soft_label_scope")
LOSSES = {
    "infonce": Loss(info_nce, settings=("temperature", "label_smoothing")),
    "supcon": Loss(supcon),
    "margin-mse": Loss(margin_mse, teacher=PAIRS, own_negatives=True, settings=(), learns=_has_teacher_margin),
    "kl": Loss(soft_labels, teacher=PAIRS, settings=_OF_KL, learns=_has_teacher_distribution),
    "batch-margin-mse": Loss(batch_margin_mse, teacher=VECTORS, settings=()),
    "listwise": Loss(listwise, own_negatives=True, learns=_has_own_negative),
    "ranknet": Loss(ranknet, own_negatives=True, learns=_has_own_negative),
}
TAUGHT = tuple(name for name, loss in LOSSES.items() if loss.teacher == PAIRS)
BATCH_TAUGHT = tuple(name for name, loss in LOSSES.items() if loss.teacher == VECTORS)
GROUPED = tuple(name for name, loss in LOSSES.items() if loss.own_negatives)


def identity_mask(relevant: Relevant, ids: Tensor, hashes: Tensor, positives: Tensor) -> Tensor:
    """The false negatives: (query, document) pairs [2, m] whose document is relevant, is the query, or has such a text.

    Documents match by row number or by text identity. ids, hashes: row numbers and text identities of the candidates
    [P].
    positives: each query's own positive [B], which is never in the result. Duplicates of true negatives are kept as
    negatives. Memory grows with the number of pairs, not with B x P.
    """
    import torch

    queries = torch.arange(positives.numel(), device=positives.device)
    queries = queries.repeat_interleave(relevant.offsets.diff())  # [R]
    same_id = _equal_pairs(relevant.ids, ids)
    same_text = _equal_pairs(relevant.hashes, hashes)
    entry, document = torch.cat([same_id, same_text], dim=1)
    query = queries[entry]
    others = document != positives[query]
    return torch.stack([query[others], document[others]])


def _equal_pairs(left: Tensor, right: Tensor) -> Tensor:
    """All (i, j) [2, m] with left[i] == right[j], found by binary search in the sorted right side."""
    return pairs_in_order(left, *right.sort())


def pairs_in_order(left: Tensor, ordered: Tensor, order: Tensor) -> Tensor:
    """All (i, order[j]) [2, m] with left[i] == ordered[j], where `ordered` is ascending."""
    import torch

    first = torch.searchsorted(ordered, left)
    matches = torch.searchsorted(ordered, left, right=True) - first  # [len(left)]
    i = torch.arange(left.numel(), device=left.device).repeat_interleave(matches)
    before = (matches.cumsum(0) - matches).repeat_interleave(matches)  # pairs of earlier entries
    j = order[first[i] + torch.arange(i.numel(), device=left.device) - before]
    return torch.stack([i, j])
