"""ASAM against its algorithm written out, element by element."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retrievo.training.engine.asam import Asam

OPTIONS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def quadratic(parameters: list[nn.Parameter]) -> torch.Tensor:
    return sum(
        (factor * (parameter - 1).pow(4).sum() for factor, parameter in enumerate(parameters, 1)), torch.zeros(())
    )


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([0.5, -2.0, 0.0])), nn.Parameter(torch.tensor([[3.0]]))]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int) -> list[float]:
    def closure() -> float:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = quadratic(parameters)
            loss.backward()
        return loss.item()

    return [optimizer.step(closure) for _ in range(count)]


def test_the_gradient_is_taken_uphill_and_moves_the_weights_where_they_were() -> None:
    parameters, rho, eta = weights(), 0.5, 0.01
    expected = weights()
    gradients = torch.autograd.grad(quadratic(expected), expected)
    scales = [parameter.detach().abs() + eta for parameter in expected]
    norm = torch.sqrt(sum((scale * slope).square().sum() for scale, slope in zip(scales, gradients, strict=True)))
    uphill = [
        nn.Parameter(parameter.detach() + rho * scale**2 * slope / norm)
        for parameter, scale, slope in zip(expected, scales, gradients, strict=True)
    ]
    for parameter, slope in zip(expected, torch.autograd.grad(quadratic(uphill), uphill), strict=True):
        parameter.grad = slope
    torch.optim.AdamW([{"params": expected}], **OPTIONS).step()
    steps(Asam([{"params": parameters}], rho=rho, eta=eta, **OPTIONS), parameters, 1)
    for found, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_without_a_step_uphill_it_is_adamw() -> None:
    parameters, expected = weights(), weights()
    steps(Asam([{"params": parameters}], rho=0.0, eta=0.01, **OPTIONS), parameters, 5)
    steps(torch.optim.AdamW([{"params": expected}], **OPTIONS), expected, 5)
    for found, wanted in zip(parameters, expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_step_returns_the_loss_where_the_weights_were() -> None:
    parameters = weights()
    before = quadratic(parameters).item()
    losses = steps(Asam([{"params": parameters}], rho=0.1, eta=0.01, **OPTIONS), parameters, 30)
    assert losses[0] == pytest.approx(before)
    assert losses[-1] < losses[0] / 2


def test_a_gradient_of_zero_moves_nothing_but_decay() -> None:
    parameter = nn.Parameter(torch.ones(3))
    steps(Asam([{"params": [parameter]}], rho=0.1, eta=0.01, **{**OPTIONS, "weight_decay": 0.0}), [parameter], 1)
    assert torch.equal(parameter, torch.ones(3))
