"""The CPU's own dropout: the rate and the mean of torch's, and the same masks for the same key."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from retrievo.training.engine.dropout import SeededDropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_values_are_dropped_at_the_rate_and_the_mean_is_kept(p: float) -> None:
    with SeededDropout([0]):
        found = functional.dropout(torch.ones(1_000, 300), p)
    assert (found == 0).double().mean().item() == pytest.approx(p, abs=0.005)
    if p < 1:
        assert found.mean().item() == pytest.approx(1, abs=0.01)
        assert found[found > 0].unique().tolist() == [pytest.approx(1 / (1 - p), rel=1e-3)]


def test_the_same_key_drops_the_same_and_another_key_others() -> None:
    def drawn(key: list[int]) -> torch.Tensor:
        with SeededDropout(key):
            return torch.stack([functional.dropout(torch.ones(50, 7)) for _ in range(2)])

    assert torch.equal(drawn([1, 2]), drawn([1, 2]))
    assert not torch.equal(drawn([1, 2]), drawn([1, 3]))
    first, second = drawn([1, 2])
    assert not torch.equal(first, second)


def test_the_gradient_is_dropped_where_the_value_was() -> None:
    values = torch.ones(40, 5, requires_grad=True)
    with SeededDropout([0]):
        found = functional.dropout(values, 0.3)
    found.sum().backward()
    assert torch.equal(values.grad, found.detach())


def test_evaluation_and_rate_0_change_nothing() -> None:
    values = torch.randn(4, 5)
    with SeededDropout([0]):
        assert torch.equal(functional.dropout(values, 0.5, training=False), values)
        assert torch.equal(functional.dropout(values, 0.0), values)
        module = torch.nn.Dropout(0.5)
        assert not torch.equal(module(values), values)


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_attention_is_torchs_own_but_for_the_mask(kind: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, 6, 8) for _ in range(3))
    seen = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    allowed = seen[:, None, None, :]
    mask = {"none": None, "bool": allowed, "additive": torch.zeros(3, 1, 1, 6).masked_fill(~allowed, -1e30)}[kind]
    with SeededDropout([0]) as mode:
        mode._dropout = lambda weights, p: weights  # type: ignore[method-assign]
        found = functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=0.1)
    torch.testing.assert_close(found, functional.scaled_dot_product_attention(query, key, value, mask))
