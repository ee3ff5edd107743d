"""Contrastive losses of queries against the documents of the whole global batch, and what must not be a negative.

All scores of a large batch do not fit: 65,536 x 65,536 of them take 17 GB. So queries are taken in tiles, and the
gradient with respect to the vectors is worked out beside the loss: memory is linear in the batch, and a loss need only
say what it makes of the scores of some queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from retrievo.training.batch import Relevant

TILE = 1 << 23  # scores worked out at once (32 MiB each time they are copied)
SCOPES = ("batch", "group")


@dataclass(frozen=True)
class CandidateBatch:
    """The queries of one rank and the documents of all ranks, which are the candidates of each query.

    masked: (query, document) pairs that are no negatives; may repeat, never the own positive.
    itself: those of them whose document is the query itself, and so no positive either.
    own: columns of each query's own documents, its positive first; the positive again where a query has fewer than G.
    teacher: what a teacher says of them; NaN where it says nothing, and where a query has fewer than G.
    teacher_queries, teacher_documents: vectors of another teacher, which scores every document of the batch.
    """

    queries: Tensor  # [B, D]
    documents: Tensor  # [P, D]
    positives: Tensor  # [B] column of each query's own positive
    masked: Tensor  # [2, m]
    own: Tensor | None = None  # [B, G]
    teacher: Tensor | None = None  # [B, G]
    teacher_queries: Tensor | None = None  # [B, Dt]
    teacher_documents: Tensor | None = None  # [P, Dt]
    itself: Tensor | None = None  # [2, m]

    def truncated(self, dim: int) -> CandidateBatch:
        """The same contest of the first `dim` dimensions."""
        return dataclasses.replace(self, queries=self.queries[:, :dim], documents=self.documents[:, :dim])


@dataclass(frozen=True)
class LossSettings:
    """What losses need to know beside the scores.

    label_smoothing: share of the target that all candidates have in common. teacher_temperature: divides the teacher's
    scores. soft_label_scope: what the model's distribution is over, one of `SCOPES`.
    """

    label_smoothing: float = 0.0
    teacher_temperature: float = 1.0
    soft_label_scope: str = "batch"


class Tile(NamedTuple):
    """Some queries with the scores of all documents."""

    similarities: Tensor  # [t, P] inner products
    scores: Tensor  # [t, P] the same / T; -inf for what is no candidate
    temperature: float | Tensor
    positives: Tensor  # [t]
    masked: Tensor  # [t, P] bool
    own: Tensor | None  # [t, G]
    teacher: Tensor | None  # [t, G]
    batch_teacher: Tensor | None = None  # [t, P] what the teacher with vectors says of all documents
    itself: Tensor | None = None  # [t, P] bool: what of the masked is the query itself

    @property
    def rival(self) -> Tensor:
        """The highest score of another candidate than the own positive [t]; -inf where there is none."""
        return self.scores.detach().scatter(1, self.positives[:, None], float("-inf")).amax(1)

    @property
    def positive(self) -> Tensor:
        """The score of each own positive [t]."""
        return self.scores.gather(1, self.positives[:, None]).squeeze(1)


def info_nce(tile: Tile, settings: LossSettings) -> Tensor:
    """InfoNCE over in-batch and hard negatives: -log softmax(s(q, .) / T) at q's own positive.

    s is the inner product (van den Oord et al. 2018, eq. 4; coCondenser, Gao & Callan 2022, eq. 14, where T = 1).
    The own positive and every document of the global batch compete, save the masked pairs. With label smoothing e the
    target is (1 - e) at the positive and e spread over all candidates (Szegedy et al. 2016, section 7).
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
    denominator); what InfoNCE masks is a positive here, save the query itself. InfoNCE where a query has one.
    """
    import torch

    own = torch.zeros_like(tile.masked).scatter_(1, tile.positives[:, None], True)
    negatives = tile.scores.masked_fill(own, NEVER).clamp_min(NEVER).logsumexp(1)  # finite: -inf has no gradient
    relevant = own | (tile.masked if tile.itself is None else tile.masked & ~tile.itself)
    query, document = relevant.nonzero(as_tuple=True)
    lost = torch.nn.functional.softplus(negatives[query] - tile.similarities[query, document] / tile.temperature)
    return torch.zeros_like(negatives).index_add(0, query, lost) / relevant.sum(1)


def listwise(tile: Tile, settings: LossSettings) -> Tensor:
    """InfoNCE among the query's own documents alone: -log softmax(s / T) at its positive, against its negatives.

    The listwise form of training on static hard negatives; beside `infonce` at a small weight, which brings random
    negatives, STAR (Zhan et al. 2021). 0 for a query without negatives.
    """
    import torch

    return torch.nn.functional.softplus(_own_negatives(tile).logsumexp(1) - tile.positive)


def ranknet(tile: Tile, settings: LossSettings) -> Tensor:
    """RankNet: the mean over own negatives n of log(1 + exp((s_n - s_p) / T)).

    Burges et al. 2005, for a pair whose order is certain; the loss that STAR is written with (Zhan et al. 2021).
    0 for a query without negatives.
    """
    import torch

    negatives = _own_negatives(tile)
    lost = torch.nn.functional.softplus(negatives - tile.positive[:, None])  # 0 at NEVER
    return lost.sum(1) / (negatives > NEVER / 2).sum(1).clamp_min(1)


def margin_mse(tile: Tile, settings: LossSettings) -> Tensor:
    """The mean over own negatives n of ((s_p - s_n) - (t_p - t_n))^2, t the teacher's scores, without temperature.

    Hofstaetter et al. 2020 (margin-MSE), eq. 6; TAS-B, Hofstaetter et al. 2021, eq. 3. A query has none where the
    teacher does not know its positive, or none of its negatives.
    """
    teacher, known, columns = _taught(tile)
    own = tile.similarities.gather(1, columns)  # [t, G]
    wrong = (own[:, :1] - own[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    counted = known[:, 1:] & known[:, :1]
    return wrong.square().where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)


def batch_margin_mse(tile: Tile, settings: LossSettings) -> Tensor:
    """The mean over negatives n of the whole batch of ((s_p - s_n) - (t_p - t_n))^2, t the batch teacher's scores.

    The in-batch half of the dual supervision of TAS-B (Hofstaetter et al. 2021, section 3.1), without temperature. All
    documents but the own positive and the masked ones are negatives, a query's own among them, and each query counts
    the same. 0 for a query without negatives.
    """
    assert tile.batch_teacher is not None, "a loss with a batch teacher needs its vectors"
    counted = tile.scores.isfinite().scatter(1, tile.positives[:, None], False)
    apart = tile.similarities - tile.batch_teacher  # [t, P]
    wrong = apart.gather(1, tile.positives[:, None]) - apart
    return wrong.square().where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)


def soft_labels(tile: Tile, settings: LossSettings) -> Tensor:
    """KL(T || S) of the teacher's distribution T over own documents and the model's S (coCondenser, eq. 15-16).

    T = softmax(t / teacher temperature), 0 for all other documents; S = softmax(s / T) over all candidates of the
    global batch, or over the own documents that T knows (`soft_label_scope`). Eq. 16 is written KL(S || T), which is
    infinite where T is 0. 0 for a query of which the teacher knows nothing.
    """
    import torch

    teacher, known, columns = _taught(tile)
    own = tile.scores.gather(1, columns)  # [t, G]
    known = known & own.isfinite()
    target = (teacher / settings.teacher_temperature).masked_fill(~known, NEVER).log_softmax(1)
    everything = tile.scores if settings.soft_label_scope == "batch" else own.masked_fill(~known, NEVER)
    model = own - everything.logsumexp(1, keepdim=True)
    return torch.where(known, target.exp() * (target - model), 0).sum(1)


NEVER = -1e30  # a score whose exponential is 0, and whose gradient is 0 instead of NaN


def _own_negatives(tile: Tile) -> Tensor:
    """The scores of each query's own negatives [t, G - 1], at least one; NEVER where it has fewer, and where masked."""
    assert tile.own is not None, "a loss of groups needs each query's own documents"
    others = tile.own[:, 1:] if tile.own.shape[1] > 1 else tile.own
    real = others != tile.positives[:, None]
    return tile.scores.gather(1, others).masked_fill(~real, NEVER).clamp_min(NEVER)


def _taught(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's scores [t, G], 0 where it has none; where it has one [t, G]; and their columns [t, G]."""
    assert tile.teacher is not None, "a loss with a teacher needs its scores"
    assert tile.own is not None
    known = tile.teacher.isfinite()
    return tile.teacher.nan_to_num(0), known, tile.own


PAIRS, VECTORS = "pairs", "vectors"  # what a teacher gives: scores of pairs, or vectors that score the whole batch


def _has_rival(tile: Tile, settings: LossSettings, rival: Tensor) -> Tensor:
    """Where another candidate than the own positive competes [t]."""
    return rival > float("-inf")


def _has_own_negative(tile: Tile, settings: LossSettings, rival: Tensor) -> Tensor:
    """Where the query has a negative of its own that is not masked [t]."""
    return (_own_negatives(tile) > NEVER / 2).any(1)


def _has_taught_margin(tile: Tile, settings: LossSettings, rival: Tensor) -> Tensor:
    """Where the teacher knows the positive and one of the own negatives [t]."""
    _, known, _ = _taught(tile)
    return (known[:, 1:] & known[:, :1]).any(1)


def _has_taught_distribution(tile: Tile, settings: LossSettings, rival: Tensor) -> Tensor:
    """Where the teacher knows a document, and the model's distribution is over another one too [t]."""
    _, known, columns = _taught(tile)
    known = known & tile.scores.gather(1, columns).isfinite()
    return known.any(1) & (rival > float("-inf")) if settings.soft_label_scope == "batch" else known.sum(1) > 1


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`: what a loss makes of each query of a tile [t], and what it needs.

    teacher: the kind of teacher, if any. own_negatives: it learns from a query's own negatives alone, not from those of
    the batch. temperature: whether scores are divided by one. learns: from which queries it can learn [t], given the
    highest score of another candidate [t] (`Tile.rival`); all others have loss and gradient 0, whatever the model.
    """

    function: Callable[[Tile, LossSettings], Tensor]
    teacher: str | None = None
    own_negatives: bool = False
    temperature: bool = True
    learns: Callable[[Tile, LossSettings, Tensor], Tensor] = _has_rival


LOSSES = {
    "infonce": Loss(info_nce),
    "supcon": Loss(supcon),
    "margin-mse": Loss(margin_mse, teacher=PAIRS, own_negatives=True, temperature=False, learns=_has_taught_margin),
    "kl": Loss(soft_labels, teacher=PAIRS, learns=_has_taught_distribution),
    "batch-margin-mse": Loss(batch_margin_mse, teacher=VECTORS, temperature=False),
    "listwise": Loss(listwise, own_negatives=True, learns=_has_own_negative),
    "ranknet": Loss(ranknet, own_negatives=True, learns=_has_own_negative),
}
TAUGHT = tuple(name for name, loss in LOSSES.items() if loss.teacher == PAIRS)
BATCH_TAUGHT = tuple(name for name, loss in LOSSES.items() if loss.teacher == VECTORS)
GROUPED = tuple(name for name, loss in LOSSES.items() if loss.own_negatives)
WITHOUT_TEMPERATURE = tuple(name for name, loss in LOSSES.items() if not loss.temperature)


def identity_mask(relevant: Relevant, ids: Tensor, hashes: Tensor, positives: Tensor) -> Tensor:
    """The (query, document) pairs [2, m] where a document is, or reads the same as, a relevant one or the query itself.

    ids, hashes: row numbers and text identities of the candidates [P]. positives: each query's own positive [B], never
    in the result. Duplicates among true negatives are no pairs: they stay. Memory grows with the pairs, not with B x P.
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
    """All (i, j) [2, m] with left[i] == right[j], by binary search in the sorted right side."""
    return pairs_in_order(left, *right.sort())


def pairs_in_order(left: Tensor, ordered: Tensor, order: Tensor) -> Tensor:
    """All (i, order[j]) [2, m] with left[i] == ordered[j], of ascending `ordered`."""
    import torch

    first = torch.searchsorted(ordered, left)
    matches = torch.searchsorted(ordered, left, right=True) - first  # [len(left)]
    i = torch.arange(left.numel(), device=left.device).repeat_interleave(matches)
    before = (matches.cumsum(0) - matches).repeat_interleave(matches)  # pairs of earlier entries
    j = order[first[i] + torch.arange(i.numel(), device=left.device) - before]
    return torch.stack([i, j])
