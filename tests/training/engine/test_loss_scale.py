"""Training in float16: gradients neither vanish nor overflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import Feed, config
from tiny import finetune, finetune_batch, gradients

from retrievo.training.engine import loss_scale
from retrievo.training.engine.gradient_cache import gradient_step
from retrievo.training.engine.loop import fit
from retrievo.training.engine.loss_scale import LossScale
from retrievo.training.objectives.finetune import Finetune


def trained(folder: Path, **options: Any) -> tuple[Finetune, list[dict[str, Any]]]:
    objective = finetune()
    fit(objective, Feed(), config(dtype="float16", **options), folder=folder, device=torch.device("cpu"))
    return objective, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def flat_gradient(**options: Any) -> torch.Tensor:
    """Of a loss so flat that its gradient is below float16's least number unless it is scaled."""
    objective = finetune(temperature=1e7)
    gradient_step(objective, finetune_batch([3, 1, 4, 2]), step=0, seed=0, chunk_tokens=16, **options)
    return torch.cat([gradient.flatten() for gradient in gradients(objective).values()])


def test_a_scaled_gradient_in_float16_is_that_of_float32() -> None:
    exact, half = flat_gradient(), flat_gradient(dtype=torch.float16, loss_scale=2.0**16)
    assert torch.cosine_similarity(exact, half, dim=0) > 0.999
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=0.01)
    lost = flat_gradient(dtype=torch.float16, loss_scale=1.0)
    assert lost.norm() < 0.5 * exact.norm(), "this test needs a gradient that float16 cannot hold unscaled"


def test_training_in_float16_begins_with_a_scaled_loss_and_no_other_type_has_one(tmp_path: Path) -> None:
    assert LossScale(torch.float16).value == 2.0**16
    assert [LossScale(dtype).value for dtype in (torch.float32, torch.bfloat16)] == [1.0, 1.0]
    norms = []
    for dtype in ("float32", "float16"):
        chosen = config(dtype=dtype, max_steps=1)
        fit(finetune(temperature=1e7), Feed(), chosen, folder=tmp_path / dtype, device=torch.device("cpu"))
        norms.append(json.loads((tmp_path / dtype / "metrics.jsonl").read_text())["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


@pytest.mark.slow
def test_an_overflow_halves_the_scale_and_no_step_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "_FIRST", 2.0**60)
    _, lines = trained(tmp_path, max_steps=4)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss_scale"] < 2.0**60 for line in lines)
    fit(finetune(), Feed(), config(max_steps=4), folder=tmp_path / "plain", device=torch.device("cpu"))
    exact = [json.loads(line)["loss"] for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(exact, rel=0.02)


def test_steps_without_overflow_double_the_scale_also_across_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "_STEPS_TO_DOUBLE", 3)
    monkeypatch.setattr(loss_scale, "_FIRST", 16.0)
    whole, lines = trained(tmp_path / "whole", max_steps=8)
    assert [line["loss_scale"] for line in lines] == [16, 16, 32, 32, 32, 64, 64, 64]

    class Cut(Exception):
        pass

    def cut(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Cut

    chosen = config(dtype="float16", max_steps=8, save_every=2)
    with pytest.raises(Cut):
        fit(finetune(), Feed(), chosen, folder=tmp_path / "cut", device=torch.device("cpu"), progress=cut)
    again, resumed = trained(tmp_path / "cut", max_steps=8, save_every=2)
    assert [line["loss_scale"] for line in resumed] == [line["loss_scale"] for line in lines]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
