"""ASAM: AdamW with the gradient taken at a nearby point where the loss is higher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from retrievo.distributed.fsdp import whole


class Asam(AdamW):
    """Adaptive sharpness-aware minimization (Kwon et al. 2021, algorithm 1) around AdamW.

    The gradient g at w gives the ascent step e = rho T^2 g / |T g| with T = |w| + eta elementwise; the gradient at w +
    e updates w. `step` calls its closure twice.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, rho: float, eta: float, **options: Any):
        super().__init__(groups, **options)
        self.rho, self.eta = rho, eta

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        loss = closure()
        before = [(parameter, parameter.clone()) for parameter, _ in self._moved()]
        self._climb()
        closure()
        for parameter, value in before:
            parameter.copy_(value)
        super().step()
        return loss

    def _moved(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self.param_groups:
            yield from ((parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None)

    def _climb(self) -> None:
        scaled = [(parameter, gradient, parameter.abs() + self.eta) for parameter, gradient in self._moved()]
        norms = [whole(torch.linalg.vector_norm(scale * gradient)) for _, gradient, scale in scaled]
        norm = torch.linalg.vector_norm(torch.stack(norms)).clamp_min(1e-12)
        for parameter, gradient, scale in scaled:
            parameter.addcdiv_(scale.square_().mul_(gradient), norm, value=self.rho)
