"""Optimizers and learning-rate schedules by name. A schedule is a pure function of the step, so it has no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrievo.support.options import Options, option

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def adamw(config: OptimizerConfig, module: nn.Module) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused where the device has it."""
    import torch

    return torch.optim.AdamW(decay_groups(module, config.weight_decay), **_constants(config, module))


def asam(config: OptimizerConfig, module: nn.Module) -> Optimizer:
    """AdamW at the gradient of a sharper place nearby (Kwon et al. 2021): two gradients for each step."""
    from retrievo.training.engine.asam import Asam

    groups = decay_groups(module, config.weight_decay)
    return Asam(groups, rho=config.asam_rho, eta=config.asam_eta, **_constants(config, module))


def _constants(config: OptimizerConfig, module: nn.Module) -> dict[str, Any]:
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in module.parameters())
    betas = (config.beta1, config.beta2)
    return {"lr": config.learning_rate, "betas": betas, "eps": config.epsilon, "fused": fused}


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: matrices, with weight decay; biases, LayerNorm and scalars (at most one axis), without."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def linear(progress: float) -> float:
    """Falls linearly from 1 to 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Falls from 1 to 0 along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """Stays at 1."""
    return 1.0


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, nn.Module], Optimizer]] = {
    "adamw": adamw,
    "asam": asam,
}
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress after the warm-up, 0 ... 1 -> share of the peak
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
}


def learning_rate_option(default: float) -> float:
    """`--learning-rate`, whose default depends on what is trained."""
    declared: float = option("Peak, reached at the end of the warm-up.", default=default, above=0)
    return declared


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Options):
    """How parameters move: the optimizer, its constants, and the course of the learning rate over the steps."""

    optimizer: str = option("How parameters move along the gradient.", default="adamw", choices=tuple(OPTIMIZERS))
    learning_rate: float = learning_rate_option(5e-6)
    schedule: str = option("Course of the learning rate after the warm-up.", default="linear", choices=tuple(SCHEDULES))
    warmup_ratio: float = option(
        "Share of the steps in which the learning rate rises from 0.", default=0.1, minimum=0, maximum=0.99
    )
    weight_decay: float = option("Decay of matrices (not of biases and LayerNorm).", default=0.01, minimum=0)
    beta1: float = option("AdamW: decay of the mean gradient.", default=0.9, minimum=0, maximum=1)
    beta2: float = option("AdamW: decay of the mean squared gradient.", default=0.999, minimum=0, maximum=1)
    epsilon: float = option("AdamW: added to the root of the mean square.", default=1e-8, above=0)
    asam_rho: float = option(
        "How far uphill the second gradient is taken.", default=0.5, above=0, only={"optimizer": ("asam",)}
    )
    asam_eta: float = option(
        "Added to the size of each parameter, by which its way uphill is scaled.",
        default=0.01,
        minimum=0,
        only={"optimizer": ("asam",)},
    )


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The learning rate of step 0 ... max_steps - 1; neither the first nor the last step is spent at rate 0."""
    warmup = round(config.warmup_ratio * max_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * SCHEDULES[config.schedule]((step - warmup) / (max_steps - warmup))
