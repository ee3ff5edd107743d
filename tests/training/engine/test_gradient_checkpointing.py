"""Gradient checkpointing computes again what it does not keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same, finetune, finetune_batch, gradients
from torch import Tensor

from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, gradient_step
from retrievo.training.engine.gradient_checkpointing import checkpoint_activations
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.table import FinetuneConfig


def gradient(model: Path, *, checkpointing: bool, **options: Any) -> dict[str, Tensor]:
    objective = Finetune(FinetuneConfig(), Encoder.load(str(model), pooling="mean")).train()
    for part in objective.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = options.get("dropout", 0.0)
    if checkpointing:
        checkpoint_activations(objective)
    kept = options.get("keep_graphs", 0)
    gradient_step(objective, finetune_batch([3, 1, 4, 2]), step=0, seed=0, chunk_tokens=40, keep_graphs=kept)
    return gradients(objective)


def test_the_gradient_is_that_of_kept_activations(tiny_model: Path) -> None:
    assert_same(gradient(tiny_model, checkpointing=True), gradient(tiny_model, checkpointing=False))


def test_what_is_computed_again_has_the_same_dropout(tiny_model: Path) -> None:
    twice = gradient(tiny_model, checkpointing=True, dropout=0.3)
    once = gradient(tiny_model, checkpointing=True, dropout=0.3, keep_graphs=ALL_GRAPHS)
    assert_same(twice, once)
    free = gradient(tiny_model, checkpointing=True)
    assert any(not torch.allclose(twice[name], free[name]) for name in free)


def test_layers_keep_less_for_the_way_back(tiny_model: Path) -> None:
    held = []
    for checkpointing in (False, True):
        objective = Finetune(FinetuneConfig(), Encoder.load(str(tiny_model), pooling="mean")).train()
        if checkpointing:
            checkpoint_activations(objective)
        sizes: list[int] = []
        ones = torch.ones(4, 16, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.nbytes), t)[1], lambda t: t):
            objective.encoder.encode("document", ones, ones)
        held.append(sum(sizes))
    assert held[1] < held[0] / 2


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(RetrievoError, match="--gradient-checkpointing: the backbone of this model does not support it"):
        checkpoint_activations(finetune())
