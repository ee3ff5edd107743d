"""What is saved comes back exactly, and what is not whole is not taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from retrievo.support.errors import RetrievoError
from retrievo.training.engine import checkpoints
from retrievo.training.engine.optimizers import OPTIMIZERS, OptimizerConfig


class Model(nn.Module):
    """Shared weights, a buffer that persists (a queue), one that does not, and a part without gradient."""

    def __init__(self, seed: int = 0, width: int = 3):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(width, 3)
        self.again = self.first
        self.head = nn.Linear(3, 3).bfloat16()
        self.key = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("queue", torch.randn(4))
        self.register_buffer("position", torch.tensor(seed))
        self.register_buffer("scratch", torch.randn(2), persistent=False)


def trained(seed: int, steps: int = 3) -> tuple[Model, torch.optim.Optimizer]:
    model = Model(seed)
    optimizer = OPTIMIZERS["adamw"](OptimizerConfig(), model)
    for step in range(steps):
        update(model, optimizer, step)
    return model, optimizer


def update(model: Model, optimizer: torch.optim.Optimizer, step: int) -> None:
    random = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
    optimizer.step()


def test_weights_buffers_and_optimizer_come_back_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1)
    checkpoints.save(tmp_path, 3, model, optimizer, {"seed": 9}, keep=2)
    other, fresh = trained(seed=2, steps=0)
    scratch = other.scratch.clone()
    assert checkpoints.load(checkpoints.latest(tmp_path), other, fresh) == {"step": 3, "seed": 9}
    for step in (3, 4):
        update(model, optimizer, step)
        update(other, fresh, step)
    expected, found = model.state_dict(), other.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(other.scratch, scratch)
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_checkpoint_is_safetensors_and_json_with_the_manifest_naming_its_files(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 3, *trained(seed=1), {}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]
    files = sorted(path.name for path in (tmp_path / "step-000003").iterdir())
    names = ["manifest.json", "optimizer.json", "optimizer.safetensors", "state.json", "weights.safetensors"]
    assert files == names


def test_the_latest_are_kept_by_number_and_older_ones_removed(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1)
    for step in (9, 999_999, 1_000_000):
        checkpoints.save(tmp_path, step, model, optimizer, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert checkpoints.latest(tmp_path).name == "step-1000000"


def test_without_a_manifest_a_checkpoint_is_not_found_and_is_written_again(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1)
    assert checkpoints.latest(tmp_path / "absent") is None
    checkpoints.save(tmp_path, 1, model, optimizer, {}, keep=2)
    checkpoints.save(tmp_path, 2, model, optimizer, {}, keep=2)
    (tmp_path / "step-000002" / "manifest.json").unlink()
    (tmp_path / ".step-000002.partial").mkdir()
    assert checkpoints.latest(tmp_path).name == "step-000001"
    checkpoints.save(tmp_path, 2, model, optimizer, {}, keep=2)
    assert checkpoints.latest(tmp_path).name == "step-000002"
    assert not (tmp_path / ".step-000002.partial").exists()


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, *trained(seed=1), {}, keep=2)
    wide = Model(width=5)
    with pytest.raises(RetrievoError, match=r"is of another model: first.weight differs"):
        checkpoints.load(tmp_path / "step-000001", wide, OPTIMIZERS["adamw"](OptimizerConfig(), wide))


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, *trained(seed=1), {}, keep=2)
    model = Model()
    with pytest.raises(RetrievoError, match="is of another optimizer"):
        checkpoints.load(tmp_path / "step-000001", model, torch.optim.SGD(model.first.parameters()))


@pytest.mark.parametrize(("by", "fix"), [(1, "upgrade retrievo"), (-1, "pass --restart")])
def test_another_format_is_refused(by: int, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained(seed=1)
    with monkeypatch.context() as then:
        then.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + by)
        checkpoints.save(tmp_path, 1, model, optimizer, {}, keep=2)
    with pytest.raises(RetrievoError, match=fix):
        checkpoints.load(tmp_path / "step-000001", model, optimizer)
