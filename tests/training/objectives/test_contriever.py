"""Momentum contrast: its loss, its queue, and the copy of the encoder that follows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pretraining_ranks import batch, contrast
from torch import Tensor
from torch.nn import functional

from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import gradient_step
from retrievo.training.objectives import contriever
from retrievo.training.objectives.contriever import LogSumExp, MomentumContrast
from retrievo.training.objectives.simclr import DOCUMENT, QUERY
from retrievo.training.objectives.table import ContrieverConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def step(trained: Any, made: Batch, number: int = 0) -> dict[str, Tensor]:
    return gradient_step(trained, made, step=number, seed=0, chunk_tokens=60)


def vectors_of(encoder: Any, made: Batch, role: str) -> Tensor:
    tokens, offsets = made.rows[role]
    rows = [tokens[low:high][None] for low, high in pairwise(offsets)]
    return torch.cat([encoder.encode(role, row, torch.ones_like(row)) for row in rows])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("filled", [3, 7])
def test_the_loss_is_cross_entropy_of_the_key_among_itself_and_the_queue(smoothing: float, filled: int) -> None:
    trained = contrast("contriever", label_smoothing=smoothing)
    trained.queue.copy_(torch.randn(7, 16))
    trained.queued.fill_(filled)
    with torch.no_grad():
        trained.key_encoder.backbone.embeddings.word_embeddings.weight.mul_(1.1)  # no longer the encoder's twin
    made = batch(trained)
    queries, keys = vectors_of(trained.encoder, made, QUERY), vectors_of(trained.key_encoder, made, DOCUMENT).detach()
    scores = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ trained.queue[:filled].T], dim=1) / 4
    expected = functional.cross_entropy(scores, torch.zeros(5, dtype=torch.int64), label_smoothing=smoothing)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
    stats = step(trained, made)
    assert stats["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert stats["accuracy"].item() == pytest.approx((scores.argmax(1) == 0).float().mean().item())
    found = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_only_the_encoder_learns() -> None:
    trained = contrast("contriever")
    step(trained, batch(trained))
    assert {name.split(".")[0] for name, p in trained.named_parameters() if p.grad is not None} == {"encoder"}
    assert not any(p.requires_grad for p in trained.key_encoder.parameters())


def test_while_the_queue_is_empty_nothing_is_learned() -> None:
    trained = contrast("contriever")
    stats = step(trained, batch(trained))
    assert (stats["loss"].item(), stats["accuracy"].item()) == (0.0, 1.0)
    assert not any(p.grad.any() for p in trained.encoder.parameters() if p.grad is not None)


def test_the_queue_is_a_ring_of_the_latest_keys_in_the_order_of_the_batch() -> None:
    trained = contrast("contriever")  # of 7
    latest: list[Tensor] = []
    for number, count in enumerate([3, 2, 4, 5, 1]):
        made = batch(trained, count, seed=number)
        latest += vectors_of(trained.key_encoder, made, DOCUMENT).detach().unbind()
        step(trained, made)
        trained.after_step()
        assert len(trained.negatives) == min(7, len(latest))
        age = (int(trained.queued) - 1 - torch.arange(7)) % 7  # of each place: 0 = the latest
        for place, old in enumerate(age.tolist()):
            if old < len(latest):
                torch.testing.assert_close(trained.queue[place], latest[-1 - old], rtol=1e-4, atol=1e-5)


def test_more_keys_than_the_queue_holds_leave_the_latest() -> None:
    trained = contrast("contriever", queue_size=2)
    made = batch(trained, 5)
    step(trained, made)
    trained.after_step()
    expected = vectors_of(trained.key_encoder, made, DOCUMENT)[-2:]
    torch.testing.assert_close(trained.queue.sum(0), expected.sum(0), rtol=1e-4, atol=1e-5)


def test_the_copy_follows_the_encoder_by_the_share_that_it_does_not_keep() -> None:
    trained = contrast("contriever", momentum=0.8)
    before = [p.clone() for p in trained.key_encoder.parameters()]
    step(trained, batch(trained))
    with torch.no_grad():
        for parameter in trained.encoder.parameters():
            parameter.add_(1.0)
    trained.after_step()
    for old, now in zip(before, trained.key_encoder.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.2)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, every = torch.randn(9, 16, requires_grad=True), torch.randn(11, 16)
    expected = (queries @ every.T).logsumexp(1)
    (weights,) = torch.autograd.grad((expected * torch.arange(9)).sum(), queries)
    for tile in (1 << 21, 25):
        monkeypatch.setattr(contriever, "TILE", tile)
        found, highest = LogSumExp.apply(queries, every)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(highest, (queries @ every.T).amax(1))
        torch.testing.assert_close(torch.autograd.grad((found * torch.arange(9)).sum(), queries)[0], weights)


def test_a_checkpoint_holds_copy_and_queue() -> None:
    trained = contrast("contriever")
    step(trained, batch(trained))
    trained.after_step()
    names = trained.state_dict()
    assert {"queue", "queued"} <= names.keys()
    assert any(name.startswith("key_encoder.") for name in names)


def test_a_queue_needs_a_length_and_one_encoder() -> None:
    with pytest.raises(RetrievoError, match="--queue-size: is not set"):
        contrast("contriever", queue_size=None)
    untied = contrast("simclr").encoder
    untied.spec = type(untied.spec)(tied=False)
    with pytest.raises(RetrievoError, match="--model: separate encoders for queries and documents"):
        MomentumContrast(ContrieverConfig(queue_size=8, window=40), untied)
