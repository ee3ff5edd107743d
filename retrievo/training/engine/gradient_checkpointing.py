"""Gradient checkpointing: activations are recomputed in the backward pass to save memory."""

from __future__ import annotations

from torch import nn

from retrievo.support.errors import RetrievoError


def checkpoint_activations(module: nn.Module) -> None:
    """Makes the backbones keep only the inputs of their layers.

    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.

    Raises: RetrievoError where no backbone supports it.
    """
    from transformers import PreTrainedModel

    able = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    able = [part for part in able if part.supports_gradient_checkpointing]
    if not able:
        raise RetrievoError(
            "--gradient-checkpointing", "the backbone of this model does not support it", None, "leave it out"
        )
    for part in able:
        enable = getattr(part, "activation_checkpointing_enable", None)  # its newer name
        (enable or part.gradient_checkpointing_enable)({"use_reentrant": False})


def checkpoints_activations(module: nn.Module) -> bool:
    """Whether the backward pass recomputes parts of the forward pass."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())
