"""The losses of a cross-encoder by hand, and their gradient through the engine whatever the chunks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, gradient_step
from retrievo.training.feeds.pairs import Group, PairCollator
from retrievo.training.objectives.table import CrossEncoderConfig, objective_class

GROUPS = [[[1, 2, 3], [4], [5, 6]], [[7, 8]], [[9], [10, 11, 12, 13]]]  # groups of 3, 1 and 2 pairs


class Table(nn.Module):
    """A score that is a sum over tokens, with dropout: worked out by hand where dropout is off."""

    pad_id = 0
    spec = SimpleNamespace()

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.values, self.dropout = nn.Embedding(20, 1), nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.dropout(self.values(input_ids))[..., 0] * attention_mask).sum(1)


def objective(loss: str, dropout: float = 0.0) -> Any:
    return objective_class(f"cross-encoder-{loss}")(CrossEncoderConfig(), Table(dropout))


def batch(groups: list[list[list[int]]] = GROUPS) -> Batch:
    return PairCollator(0)([Group([np.asarray(pair) for pair in group]) for group in groups])


def by_hand(loss: str, table: Table) -> Tensor:
    scores = [torch.stack([table.values.weight[pair, 0].sum() for pair in group]) for group in GROUPS]
    if loss == "group":
        return torch.stack([functional.cross_entropy(own, torch.tensor(0)) for own in scores]).mean()
    labels = torch.cat([torch.eye(len(own))[0] for own in scores])
    return functional.binary_cross_entropy_with_logits(torch.cat(scores), labels)


@pytest.mark.parametrize("loss", ["group", "binary"])
@pytest.mark.parametrize("keep_graphs", [0, 1, ALL_GRAPHS])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 99])
def test_the_loss_and_its_gradient_are_those_worked_out_by_hand(loss: str, keep_graphs: int, chunk_tokens: int) -> None:
    trained = objective(loss)
    stats = gradient_step(trained, batch(), step=0, seed=0, chunk_tokens=chunk_tokens, keep_graphs=keep_graphs)
    expected = by_hand(loss, trained.model)
    assert stats["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    gradient = torch.autograd.grad(expected, trained.model.values.weight)[0]
    torch.testing.assert_close(trained.model.values.weight.grad, gradient)


def test_with_dropout_the_cached_gradient_is_that_of_the_same_chunks_in_one_graph() -> None:
    gradients = []
    for keep_graphs in (0, ALL_GRAPHS):
        trained = objective("group", dropout=0.4).train()
        gradient_step(trained, batch(), step=3, seed=1, chunk_tokens=4, keep_graphs=keep_graphs)
        gradients.append(trained.model.values.weight.grad)
    torch.testing.assert_close(*gradients)


def test_accuracy_is_the_share_of_groups_whose_positive_wins() -> None:
    trained = objective("group")
    with torch.no_grad():
        trained.model.values.weight[:, 0] = torch.arange(20.0)
    stats = gradient_step(trained, batch(), step=0, seed=0, chunk_tokens=99)
    assert stats["accuracy"].item() == pytest.approx(1 / 3)  # 6 < 11, alone, 9 < 46
    assert (stats["pairs"].item(), stats["candidates"].item()) == (3, 6)


def test_a_rank_without_groups_has_no_loss() -> None:
    empty = batch([])
    loss, _ = objective("group").contrast({"pair": torch.zeros(0, 1, requires_grad=True)}, empty)
    loss.backward()
    assert loss.item() == 0
