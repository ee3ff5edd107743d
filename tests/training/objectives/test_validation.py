"""The loss of held-out documents: that of training without dropout, and nothing moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretraining_ranks import CLASSES, VIEWS, batch, contrast, objective

from retrievo.training.engine.gradient_cache import gradient_step, validation_step

pytestmark = pytest.mark.usefixtures("one_thread")


def made(name: str, dropout: float = 0.0) -> Any:
    return objective(name, dropout=dropout) if name in CLASSES else contrast(name, dropout=dropout)


@pytest.mark.parametrize("name", [*CLASSES, *VIEWS])
def test_without_dropout_it_is_the_loss_of_training(name: str) -> None:
    trained = made(name)
    seen = batch(trained)
    if name == "contriever":  # fill the queue
        gradient_step(trained, batch(trained, seed=1), step=0, seed=0, chunk_tokens=100)
        trained.after_step()
    found = validation_step(trained, seen, chunk_tokens=50)
    expected = gradient_step(trained, seen, step=1, seed=0, chunk_tokens=100)
    for key in found.keys() - {"padded_tokens"}:  # of chunks of other sizes
        value = found[key]
        assert value.item() == pytest.approx(expected[key].item(), rel=1e-4, abs=1e-6), key
    assert {"loss", "documents"} <= found.keys()


@pytest.mark.parametrize("name", [*CLASSES, *VIEWS])
def test_it_draws_no_dropout_and_moves_nothing(name: str) -> None:
    trained = made(name, dropout=0.3)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    random = torch.get_rng_state()
    seen = batch(trained)
    losses = {validation_step(trained, seen, chunk_tokens=tokens)["loss"].item() for tokens in (50, 50)}
    assert len(losses) == 1
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in trained.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in trained.parameters())
