"""Attention by plain products is torch's own, for every mask it meets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from retrievo.models.attention import PlainAttention, attention

N, HEADS, LENGTH, WIDTH = 3, 2, 5, 8


def sides(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(N, LENGTH, HEADS, WIDTH, dtype=dtype).transpose(1, 2) for _ in range(3))
    return query, key, value


SEEN = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
MASKS = {
    "none": None,
    "padding": SEEN,
    "padding for each query": SEEN.expand(-1, -1, LENGTH, -1).contiguous(),
    "causal": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(N, 1, -1, -1),
    "added": torch.zeros(N, 1, 1, LENGTH).masked_fill(~SEEN, torch.finfo(torch.float32).min),
    "added for each head": torch.randn(1, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_and_gradients_are_those_of_torch(mask: str, scale: float | None) -> None:
    results = []
    for function in (attention, functional.scaled_dot_product_attention):
        leaves = [side.detach().clone().requires_grad_() for side in sides()]
        found = function(*leaves, MASKS[mask], scale=scale)
        found.square().sum().backward()
        results.append((found.detach(), *(leaf.grad for leaf in leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_keys_of_another_number_than_queries() -> None:
    query, key, value = sides()
    expected = functional.scaled_dot_product_attention(query[:, :, :2], key, value)
    torch.testing.assert_close(attention(query[:, :, :2], key, value, None), expected)


def test_the_block_takes_calls_in_bfloat16_and_leaves_others_alone() -> None:
    query, key, value = sides(torch.bfloat16)
    plain = functional.scaled_dot_product_attention(query, key, value, MASKS["padding"])
    with PlainAttention():
        taken = functional.scaled_dot_product_attention(query, key, value, MASKS["padding"])
        causal = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        exact = functional.scaled_dot_product_attention(*sides())
    torch.testing.assert_close(taken, plain, rtol=0.02, atol=0.02)
    assert torch.equal(taken, attention(query, key, value, MASKS["padding"]))
    assert torch.equal(causal, functional.scaled_dot_product_attention(query, key, value, is_causal=True))
    assert torch.equal(exact, functional.scaled_dot_product_attention(*sides()))
