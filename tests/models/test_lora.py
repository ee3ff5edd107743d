"""Adapters change nothing at first, are all that is trained, and leave a plain model with the same vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retrievo.models.encoder import Encoder
from retrievo.models.lora import add_adapters, merge_adapters

pytest.importorskip("peft")


def encoder_with_ids(tiny_model: Path, tied: bool) -> tuple[Encoder, torch.Tensor]:
    encoder = Encoder.load(tiny_model, tied=tied, pooling="mean", notify=lambda text: None).eval()
    return encoder, torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))


def vectors(encoder: Encoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([encoder.encode(role, ids, torch.ones_like(ids)) for role in ("query", "document")])


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_start_from_the_same_vectors_and_merge_into_a_plain_model(tiny_model: Path, tied: bool) -> None:
    encoder, ids = encoder_with_ids(tiny_model, tied)
    before, names = vectors(encoder, ids), [name for name, _ in encoder.named_parameters()]
    add_adapters(encoder, rank=2, alpha=4, seed=0)
    assert torch.equal(vectors(encoder, ids), before)
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == (1 if tied else 2) * 2 * 6 * 2  # backbones, layers, linear maps of each, A and B
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    adapted = vectors(encoder, ids)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_adapters(encoder)
    torch.testing.assert_close(vectors(encoder, ids), adapted, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in encoder.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_what_is_drawn_is_a_function_of_the_seed(tiny_model: Path) -> None:
    state, drawn = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        encoder, _ = encoder_with_ids(tiny_model, tied=True)
        add_adapters(encoder, rank=2, alpha=4, seed=seed)
        drawn.append(torch.cat([p.flatten() for name, p in encoder.named_parameters() if "lora_A" in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), state)
