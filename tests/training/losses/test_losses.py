"""InfoNCE and the identity mask against their definitions written out pair by pair."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from retrievo.training.batch import Relevant
from retrievo.training.losses import tiled
from retrievo.training.losses.losses import LOSSES, SCOPES, TAUGHT, CandidateBatch, LossSettings, identity_mask
from retrievo.training.losses.tiled import Outcome, contrastive_loss

NOTHING = torch.zeros(2, 0, dtype=torch.int64)


def candidates(queries: int = 3, documents: int = 7, false_negatives: torch.Tensor = NOTHING) -> CandidateBatch:
    """Own positives at 0, 2, 5; groups 0-1, 2-4 and 5-6, of which the teacher does not know document 4."""
    torch.manual_seed(0)
    drawn = (torch.randn(count, 4, dtype=torch.float64).requires_grad_() for count in (queries, documents))
    own = torch.tensor([[0, 1, 0], [2, 3, 4], [5, 6, 5]])
    teacher = torch.tensor([[2.0, 1.0, math.nan], [3.0, 1.5, math.nan], [0.5, 0.7, math.nan]], dtype=torch.float64)
    vectors = (torch.randn(count, 2, dtype=torch.float64) for count in (queries, documents))
    return CandidateBatch(*list(drawn), torch.tensor([0, 2, 5]), false_negatives, own, teacher, *vectors)


def value(given_: CandidateBatch, name: str = "infonce", temperature: Any = 1.0, **settings: Any) -> Outcome:
    return contrastive_loss(given_, {name: 1.0}, temperature, LossSettings(**settings))


def scores_of(given_: CandidateBatch) -> np.ndarray:
    return (given_.queries @ given_.documents.T).detach().numpy()


def test_infonce_without_mask_is_cross_entropy_at_the_own_positive() -> None:
    given_ = candidates()
    expected = functional.cross_entropy(given_.queries @ given_.documents.T / 0.05, given_.positives, reduction="sum")
    torch.testing.assert_close(value(given_, temperature=0.05).total, expected)


def test_label_smoothing_is_that_of_cross_entropy() -> None:
    given_ = candidates()
    scores = given_.queries @ given_.documents.T
    expected = functional.cross_entropy(scores, given_.positives, reduction="sum", label_smoothing=0.3)
    torch.testing.assert_close(value(given_, label_smoothing=0.3).total, expected)


def test_label_smoothing_gives_masked_documents_nothing() -> None:
    given_ = candidates(false_negatives=torch.tensor([[0, 1, 2], [6, 6, 6]]))
    without = dataclasses.replace(given_, documents=given_.documents[:6], false_negatives=NOTHING)
    torch.testing.assert_close(value(given_, label_smoothing=0.3).total, value(without, label_smoothing=0.3).total)


def test_masked_documents_are_as_if_they_were_not_there() -> None:
    false_negatives = torch.tensor([[0, 0, 2], [3, 4, 1]])
    given_ = candidates(false_negatives=false_negatives)
    scores, expected = scores_of(given_), 0.0
    for query in range(3):
        out = {int(document) for of, document in false_negatives.T if of == query}
        kept = [math.exp(scores[query, document]) for document in range(7) if document not in out]
        expected += math.log(sum(kept)) - scores[query, given_.positives[query]]
    assert value(given_).total.item() == pytest.approx(expected)


def test_a_masked_duplicate_of_the_positive_gets_no_gradient() -> None:
    given_ = candidates(false_negatives=torch.tensor([[0, 1, 2], [6, 6, 6]]))
    value(given_).total.backward()
    assert given_.documents.grad is not None
    assert torch.equal(given_.documents.grad[6], torch.zeros(4, dtype=torch.float64))
    assert given_.documents.grad[:6].abs().sum(1).min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_repeated_pair_in_the_mask_changes_nothing(name: str) -> None:
    once, twice = torch.tensor([[0], [3]]), torch.tensor([[0, 0], [3, 3]])
    assert torch.equal(
        value(candidates(false_negatives=once), name).total, value(candidates(false_negatives=twice), name).total
    )


def test_a_query_with_no_other_candidate_has_loss_zero_and_counts_as_correct() -> None:
    alone = CandidateBatch(torch.ones(1, 4), torch.ones(1, 4), torch.tensor([0]), NOTHING)
    assert value(alone).total.item() == value(alone, "supcon").total.item() == 0
    assert value(alone).correct.item() == 1


def test_a_tie_with_a_negative_is_not_correct() -> None:
    tied = CandidateBatch(torch.ones(1, 4), torch.ones(2, 4), torch.tensor([0]), NOTHING)
    assert value(tied).correct.item() == 0


def test_no_queries_give_no_loss_and_still_a_gradient_for_the_documents() -> None:
    documents = torch.randn(3, 4, requires_grad=True)
    empty = CandidateBatch(torch.zeros(0, 4), documents, torch.zeros(0, dtype=torch.int64), NOTHING)
    value(empty).total.backward()
    assert torch.equal(documents.grad, torch.zeros(3, 4))


def test_without_other_positives_multi_positive_is_infonce() -> None:
    torch.testing.assert_close(value(candidates(), "supcon").total, value(candidates()).total)


def test_multi_positive_is_the_mean_over_positives_that_do_not_compete() -> None:
    given_ = candidates(false_negatives=torch.tensor([[0, 0], [3, 4]]))
    scores, expected = scores_of(given_), 0.0
    for query, positives in enumerate(((0, 3, 4), (2,), (5,))):
        negatives = sum(math.exp(scores[query, n]) for n in range(7) if n not in positives)
        each = [-math.log(math.exp(scores[query, p]) / (math.exp(scores[query, p]) + negatives)) for p in positives]
        expected += sum(each) / len(each)
    assert value(given_, "supcon").total.item() == pytest.approx(expected)


def test_margin_mse_is_the_mean_squared_difference_of_margins_that_the_teacher_knows() -> None:
    given_ = candidates()
    s = scores_of(given_)
    expected = ((s[0, 0] - s[0, 1]) - 1.0) ** 2 + ((s[1, 2] - s[1, 3]) - 1.5) ** 2 + ((s[2, 5] - s[2, 6]) + 0.2) ** 2
    assert value(given_, "margin-mse", temperature=0.1).total.item() == pytest.approx(expected)


def group_by_hand(given_: CandidateBatch, scores: torch.Tensor, negatives: list[list[int]]) -> torch.Tensor:
    lost = []
    for query, own in enumerate(negatives):
        positive = given_.positives[query].item()
        lost.append(functional.cross_entropy(scores[query, [positive, *own]], torch.tensor(0)))
    return torch.stack(lost).sum()


def pairwise_by_hand(given_: CandidateBatch, scores: torch.Tensor, negatives: list[list[int]]) -> torch.Tensor:
    each = [
        (1 + (scores[query, own] - scores[query, given_.positives[query]]).exp()).log().mean()
        for query, own in enumerate(negatives)
        if own
    ]
    return torch.stack(each).sum()


def batch_margins_by_hand(given_: CandidateBatch, scores: torch.Tensor, negatives: list[list[int]]) -> torch.Tensor:
    student = given_.queries @ given_.documents.T  # without temperature
    taught = given_.teacher_queries @ given_.teacher_documents.T
    false_negatives, each = set(map(tuple, given_.false_negatives.T.tolist())), []
    for query, positive in enumerate(given_.positives.tolist()):
        others = [n for n in range(7) if n != positive and (query, n) not in false_negatives]
        margins = [side[query, positive] - side[query, others] for side in (student, taught)]
        each.append((margins[0] - margins[1]).square().mean())
    return torch.stack(each).sum()


BY_HAND = {"listwise": group_by_hand, "ranknet": pairwise_by_hand, "batch-margin-mse": batch_margins_by_hand}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("tile", [1, 14, 1 << 20])
def test_losses_of_groups_and_of_batch_teachers_are_those_of_plain_autograd(
    name: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "TILE", tile)
    given_ = candidates(
        false_negatives=torch.tensor([[0, 1, 1], [6, 0, 3]])
    )  # document 3 is query 1's own, and no negative of it
    expected = BY_HAND[name](given_, given_.queries @ given_.documents.T / 0.3, [[1], [4], [6]])
    gradients = torch.autograd.grad(expected, (given_.queries, given_.documents))
    found = value(given_, name, 0.3).total
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (given_.queries, given_.documents)), gradients)


@pytest.mark.parametrize("name", ["listwise", "ranknet"])
def test_without_negatives_of_its_own_a_query_has_no_loss_in_its_group(name: str) -> None:
    given_ = candidates()
    alone = dataclasses.replace(given_, own=given_.own[:, :1])
    outcome = value(alone, name)
    outcome.total.backward()
    assert outcome.total.item() == 0
    assert torch.equal(given_.documents.grad, torch.zeros_like(given_.documents))


def test_a_group_that_is_the_whole_batch_has_the_loss_of_infonce() -> None:
    given_ = candidates()
    others = [[n for n in range(7) if n != positive] for positive in given_.positives.tolist()]
    own = torch.cat([given_.positives[:, None], torch.tensor(others)], dim=1)
    torch.testing.assert_close(value(dataclasses.replace(given_, own=own), "listwise").total, value(given_).total)


def test_a_student_that_is_its_batch_teacher_has_nothing_to_learn() -> None:
    given_ = candidates()
    same = dataclasses.replace(
        given_, teacher_queries=given_.queries.detach(), teacher_documents=given_.documents.detach()
    )
    assert value(same, "batch-margin-mse").total.item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("scope", SCOPES)
def test_soft_labels_are_the_divergence_from_the_teachers_distribution(scope: str) -> None:
    given_ = candidates(false_negatives=torch.tensor([[1], [6]]))
    scores, expected = scores_of(given_) / 0.5, 0.0
    for query, own in enumerate(((0, 1), (2, 3), (5, 6))):
        taught = np.exp(given_.teacher[query, :2].numpy() / 2.0)
        target = taught / taught.sum()
        everything = [n for n in range(7) if (query, n) != (1, 6)] if scope == "batch" else list(own)
        model = np.exp(scores[query, list(own)]) / np.exp(scores[query, everything]).sum()
        expected += float((target * np.log(target / model)).sum())
    found = value(given_, "kl", 0.5, teacher_temperature=2.0, soft_label_scope=scope).total
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", TAUGHT)
def test_queries_that_the_teacher_does_not_know_have_no_loss_and_no_gradient(name: str) -> None:
    given_ = candidates()
    silent = dataclasses.replace(given_, teacher=torch.full_like(given_.teacher, math.nan))
    outcome = value(silent, name)
    outcome.total.backward()
    assert outcome.total.item() == 0
    assert torch.equal(given_.queries.grad, torch.zeros_like(given_.queries))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tile", [1, 14, 1 << 20])
def test_gradients_are_those_of_finite_differences_whatever_the_tile(
    name: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "TILE", tile)
    given_ = candidates(false_negatives=torch.tensor([[0, 1, 1], [6, 0, 6]]))
    temperature = torch.tensor(0.7, requires_grad=True, dtype=torch.float64)

    def total(queries: torch.Tensor, documents: torch.Tensor, warmth: torch.Tensor) -> torch.Tensor:
        return value(dataclasses.replace(given_, queries=queries, documents=documents), name, warmth).total

    assert torch.autograd.gradcheck(total, (given_.queries, given_.documents, temperature))


def test_weights_multiply_each_loss_and_their_gradient() -> None:
    given_ = candidates()
    both = contrastive_loss(given_, {"infonce": 2.0, "kl": 0.5}, 1.0, LossSettings())
    alone = {name: value(given_, name).total for name in ("infonce", "kl")}
    torch.testing.assert_close(both.total, 2 * alone["infonce"] + 0.5 * alone["kl"])
    torch.testing.assert_close(both.losses, {name: loss.detach() for name, loss in alone.items()})


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_batch() -> None:
    """8,192 x 8,192 scores are 268 MB, and each copy of them as much again."""
    script = """if True:
        import resource, torch
        from retrievo.training.losses.losses import CandidateBatch, LossSettings
        from retrievo.training.losses.tiled import contrastive_loss
        sides = [torch.randn(8192, 8).requires_grad_() for _ in range(2)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = torch.stack([torch.arange(8191), torch.arange(1, 8192)])
        candidates = CandidateBatch(*sides, torch.arange(8192), pairs)
        contrastive_loss(candidates, {"infonce": 1.0}, 0.05, LossSettings()).total.backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 230_000, "KiB"


@given(data=st.data())
def test_the_identity_mask_is_every_pair_with_a_relevant_id_or_text_save_the_own_positive(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    texts = [document % 7 for document in ids]  # 7, 8, 9 read the same as 0, 1, 2
    positives = data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=5))
    others = [data.draw(st.lists(st.integers(0, 9), max_size=4)) for _ in positives]
    relevant = [{ids[positive], *more} for positive, more in zip(positives, others, strict=True)]
    expected = {
        (query, document)
        for query, documents in enumerate(relevant)
        for document in range(len(ids))
        if (ids[document] in documents or texts[document] in {of % 7 for of in documents})
        and document != positives[query]
    }
    flat = [document for documents in relevant for document in documents]
    known = Relevant(
        ids=torch.tensor(flat, dtype=torch.int64),
        hashes=torch.tensor([document % 7 for document in flat], dtype=torch.int64),
        offsets=torch.tensor([0, *(len(documents) for documents in relevant)]).cumsum(0),
    )
    own = torch.tensor(positives, dtype=torch.int64)
    found = identity_mask(known, torch.tensor(ids), torch.tensor(texts), own)
    assert set(map(tuple, found.T.tolist())) == expected
