"""InfoNCE and the identity mask against their definitions written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from retrievo.learning.batch import Relevant
from retrievo.learning.losses import LOSSES, Contest, identity_mask, info_nce

NOTHING = torch.zeros(2, 0, dtype=torch.int64)


def contest(queries: int = 3, documents: int = 7, masked: torch.Tensor = NOTHING) -> Contest:
    torch.manual_seed(0)
    drawn = torch.randn(queries, 4), torch.randn(documents, 4)
    return Contest(*(vectors.requires_grad_() for vectors in drawn), torch.tensor([0, 2, 5]), masked)


def test_infonce_without_mask_is_cross_entropy_at_the_own_positive() -> None:
    given_ = contest()
    outcome = info_nce(given_, 0.05)
    expected = functional.cross_entropy(given_.queries @ given_.documents.T / 0.05, given_.positives, reduction="none")
    torch.testing.assert_close(outcome.loss, expected)


def test_masked_documents_are_as_if_they_were_not_there() -> None:
    masked = torch.tensor([[0, 0, 2], [3, 4, 1]])
    given_ = contest(masked=masked)
    scores = (given_.queries @ given_.documents.T).detach()
    outcome = info_nce(given_, 1.0)
    for query in range(3):
        out = {int(document) for of, document in masked.T if of == query}
        kept = [math.exp(scores[query, document]) for document in range(7) if document not in out]
        expected = math.log(sum(kept)) - scores[query, given_.positives[query]]
        assert outcome.loss[query].item() == pytest.approx(float(expected), rel=1e-5)


def test_a_masked_duplicate_of_the_positive_gets_no_gradient() -> None:
    given_ = contest(masked=torch.tensor([[0, 1, 2], [6, 6, 6]]))
    info_nce(given_, 1.0).loss.sum().backward()
    assert given_.documents.grad is not None
    assert torch.equal(given_.documents.grad[6], torch.zeros(4))
    assert given_.documents.grad[:6].abs().sum(1).min() > 0


def test_a_repeated_pair_in_the_mask_changes_nothing() -> None:
    once, twice = torch.tensor([[0], [3]]), torch.tensor([[0, 0], [3, 3]])
    assert torch.equal(info_nce(contest(masked=once), 1.0).loss, info_nce(contest(masked=twice), 1.0).loss)


def test_a_query_with_no_other_candidate_has_loss_zero_and_counts_as_correct() -> None:
    alone = Contest(torch.ones(1, 4), torch.ones(1, 4), torch.tensor([0]), NOTHING)
    assert info_nce(alone, 1.0).loss.item() == 0
    assert info_nce(alone, 1.0).correct.tolist() == [True]


def test_a_tie_with_a_negative_is_not_correct() -> None:
    tied = Contest(torch.ones(1, 4), torch.ones(2, 4), torch.tensor([0]), NOTHING)
    assert info_nce(tied, 1.0).correct.tolist() == [False]


def test_a_learned_temperature_gets_the_gradient_of_finite_differences() -> None:
    temperature = torch.tensor(0.7, requires_grad=True, dtype=torch.float64)
    given_ = contest()
    doubled = given_._replace(queries=given_.queries.double(), documents=given_.documents.double())
    assert torch.autograd.gradcheck(lambda t: info_nce(doubled, t).loss.sum(), temperature)


def test_no_queries_give_no_loss_and_still_a_gradient_for_the_documents() -> None:
    documents = torch.randn(3, 4, requires_grad=True)
    empty = Contest(torch.zeros(0, 4), documents, torch.zeros(0, dtype=torch.int64), NOTHING)
    info_nce(empty, 1.0).loss.sum().backward()
    assert torch.equal(documents.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_one_value_for_each_query(name: str) -> None:
    outcome = LOSSES[name](contest(), 1.0)
    assert outcome.loss.shape == outcome.correct.shape == (3,)


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
