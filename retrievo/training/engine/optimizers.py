"""Optimizers and learning-rate schedules by name. A schedule is a pure function of the step and has no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrievo.support.conditions import only_with
from retrievo.support.options import Options, option
from retrievo.support.values import Values

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def adamw(config: OptimizerConfig, module: nn.Module) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), with the fused implementation where the device has one."""
    import torch

    return torch.optim.AdamW(decay_groups(module, config.weight_decay), **_constants(config, module))


def asam(config: OptimizerConfig, module: nn.Module) -> Optimizer:
    """AdamW with adaptive sharpness-aware minimization (Kwon et al. 2021): two gradients for each step."""
    from retrievo.training.engine.asam import Asam

    groups = decay_groups(module, config.weight_decay)
    return Asam(groups, rho=config.asam_rho, eta=config.asam_eta, **_constants(config, module))


def _constants(config: OptimizerConfig, module: nn.Module) -> Values:
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
    declared: float = option("Learning rate at its peak.", default=default, above=0, shown=True, group="Schedule")
    return declared


_WITH_ASAM = only_with("optimizer", "asam")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Options):
    """How parameters move: the optimizer, its constants, and the course of the learning rate over the steps."""

    optimizer: str = option(
        "Optimizer. asam is AdamW on a sharpness-aware gradient, which takes two gradients per step.",
        default="adamw",
        choices=tuple(OPTIMIZERS),
        group="Schedule",
    )
    learning_rate: float = learning_rate_option(5e-6)
    schedule: str = option(
        "Learning-rate schedule after the warmup.", default="linear", choices=tuple(SCHEDULES), group="Schedule"
    )
    warmup_ratio: float = option(
        "Fraction of the steps over which the learning rate rises from 0 to its peak.",
        default=0.1,
        minimum=0,
        maximum=0.99,
        group="Schedule",
    )
    weight_decay: float = option(
        "Weight decay of matrices. Biases and LayerNorm parameters have none.",
        default=0.01,
        minimum=0,
        group="Schedule",
    )
    beta1: float = option(
        "AdamW beta1 (decay of the mean gradient).", default=0.9, minimum=0, maximum=1, group="Schedule"
    )
    beta2: float = option(
        "AdamW beta2 (decay of the mean squared gradient).", default=0.999, minimum=0, maximum=1, group="Schedule"
    )
    epsilon: float = option(
        "AdamW epsilon (added to the denominator of the update).", default=1e-8, above=0, group="Schedule"
    )
    asam_rho: float = option(
        "ASAM rho (radius of the neighborhood in which the second gradient is taken).",
        default=0.5,
        above=0,
        applies=_WITH_ASAM,
        group="Schedule",
    )
    asam_eta: float = option(
        "ASAM eta (added to the magnitude of each parameter when the neighborhood is scaled).",
        default=0.01,
        minimum=0,
        applies=_WITH_ASAM,
        group="Schedule",
    )


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The learning rate of step 0 ... max_steps - 1; it is above 0 in the first and the last step."""
    warmup = round(config.warmup_ratio * max_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * SCHEDULES[config.schedule]((step - warmup) / (max_steps - warmup))
