"""Contrastive losses of queries against the documents of the whole global batch, and what must not be a negative.

Every loss returns one value per query; the objective divides their sum by the number of queries over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from retrievo.learning.batch import Relevant


class Contest(NamedTuple):
    """The queries of one rank and the documents of all ranks, which are the candidates of each query."""

    queries: Tensor  # [B, D]
    documents: Tensor  # [P, D]
    positives: Tensor  # [B] column of each query's own positive
    masked: Tensor  # [2, m] (query, document) pairs that are no negatives; may repeat, never the own positive


class Outcome(NamedTuple):
    """What a loss says of each query."""

    loss: Tensor  # [B]
    correct: Tensor  # [B] whether the own positive scores above every other candidate


def info_nce(contest: Contest, temperature: float | Tensor) -> Outcome:
    """InfoNCE over in-batch and hard negatives: -log softmax(s(q, .) / T) at q's own positive.

    s is the inner product (van den Oord et al. 2018, eq. 4; coCondenser, Gao & Callan 2022, eq. 14, where T = 1).
    The own positive and every document of the global batch compete, save the masked pairs.
    """
    scores = contest.queries @ contest.documents.T / temperature  # [B, P]
    query, document = contest.masked
    scores[query, document] = float("-inf")
    own = contest.positives[:, None]  # [B, 1]
    positive = scores.gather(1, own).squeeze(1)  # [B]
    others = scores.detach().scatter(1, own, float("-inf"))
    return Outcome(scores.logsumexp(1) - positive, positive.detach() > others.amax(1))


LOSSES: dict[str, Callable[[Contest, float | Tensor], Outcome]] = {
    "infonce": info_nce,
}


def identity_mask(relevant: Relevant, ids: Tensor, hashes: Tensor, positives: Tensor) -> Tensor:
    """The (query, document) pairs [2, m] where a document is, or reads the same as, a relevant one of the query.

    ids, hashes: row numbers and text hashes of the candidates [P]. positives: each query's own positive [B], never in
    the result. Duplicates among true negatives are no pairs: they stay. Memory grows with the pairs, not with B x P.
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
    import torch

    ordered, order = right.sort()
    first = torch.searchsorted(ordered, left)
    matches = torch.searchsorted(ordered, left, right=True) - first  # [len(left)]
    i = torch.arange(left.numel(), device=left.device).repeat_interleave(matches)
    before = (matches.cumsum(0) - matches).repeat_interleave(matches)  # pairs of earlier entries
    j = order[first[i] + torch.arange(i.numel(), device=left.device) - before]
    return torch.stack([i, j])
