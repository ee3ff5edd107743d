"""AdamW's groups and updates, and schedules as pure functions of the step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from retrievo.support.errors import UsageError
from retrievo.training.engine.optimizers import OPTIMIZERS, SCHEDULES, OptimizerConfig, learning_rate


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.temperature = nn.Parameter(torch.tensor(1.0))


def test_matrices_decay_and_biases_norms_and_scalars_do_not() -> None:
    model = Model()
    optimizer = OPTIMIZERS["adamw"](OptimizerConfig(weight_decay=0.3), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert found == {
        "linear.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "temperature": 0.0,
        "frozen.weight": None,
        "frozen.bias": None,
    }


def test_adamw_moves_as_its_paper_says() -> None:
    model = nn.Linear(1, 1, bias=False)
    start, gradient = model.weight.item(), 0.5
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, epsilon=1e-3)
    optimizer = OPTIMIZERS["adamw"](config, model)
    model.weight.grad = torch.full_like(model.weight, gradient)
    optimizer.step()
    # after one step both moments, corrected for their start at 0, are the gradient and its square
    expected = start * (1 - 0.1 * 0.2) - 0.1 * gradient / (gradient + 1e-3)
    assert model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_asam_takes_the_gradient_uphill_and_moves_from_where_it_stood() -> None:
    """Of w^4 at two weights: e = rho T^2 g / |T g|, T = |w| + eta, then AdamW's step with the gradient at w + e."""
    model = nn.Linear(2, 1, bias=False)
    start, asked = model.weight.detach().clone(), []
    config = OptimizerConfig(optimizer="asam", learning_rate=0.1, weight_decay=0.0, asam_rho=0.3, asam_eta=0.2)
    optimizer = OPTIMIZERS["asam"](config, model)

    def gradient() -> float:
        asked.append(model.weight.detach().clone())
        model.weight.grad = 4 * model.weight.detach() ** 3
        return 0.0

    optimizer.step(gradient)
    scale, slope = start.abs() + 0.2, 4 * start**3
    torch.testing.assert_close(asked[1], start + 0.3 * scale**2 * slope / (scale * slope).norm())
    uphill = 4 * asked[1] ** 3
    torch.testing.assert_close(model.weight.detach(), start - 0.1 * uphill / (uphill.abs() + config.epsilon))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_warms_up_to_the_peak_and_no_step_is_spent_at_zero(name: str) -> None:
    config = OptimizerConfig(schedule=name, learning_rate=2.0, warmup_ratio=0.25)
    rates = [learning_rate(config, step, 40) for step in range(40)]
    assert rates[:11] == pytest.approx([2.0 * (step + 1) / 11 for step in range(11)])
    assert rates[10] == max(rates) == 2.0
    assert all(left >= right > 0 for left, right in itertools.pairwise(rates[10:]))


def test_schedules_follow_their_formulas() -> None:
    course = {
        name: [
            learning_rate(OptimizerConfig(schedule=name, learning_rate=1.0, warmup_ratio=0.0), step, 4)
            for step in range(4)
        ]
        for name in SCHEDULES
    }
    assert course["linear"] == [1.0, 0.75, 0.5, 0.25]
    assert course["cosine"] == pytest.approx([(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])
    assert course["constant"] == [1.0] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "--optimizer: found 'adam'; did you mean 'adamw'?"),
        ({"schedule": "liner"}, "--schedule: found 'liner'; did you mean 'linear'?"),
        ({"warmup_ratio": 1.0}, "--warmup-ratio: found 1.0; expected at most 0.99"),
    ],
)
def test_wrong_options_name_the_flag(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        OptimizerConfig(**options)
    assert str(error.value) == message
