"""Less memory: activations computed again."""

from __future__ import annotations

from torch import nn

from retrievo.support.errors import RetrievoError


def checkpoint_activations(module: nn.Module) -> None:
    """Makes the backbones keep the inputs of their layers alone (Chen et al. 2016, Training Deep Nets with Sublinear
    Memory Cost).

    Raises: RetrievoError where no backbone can.
    """
    from transformers import PreTrainedModel

    able = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    able = [part for part in able if part.supports_gradient_checkpointing]
    if not able:
        raise RetrievoError("--gradient-checkpointing", "the backbone of this model can't do it", None, "leave it out")
    for part in able:
        enable = getattr(part, "activation_checkpointing_enable", None)  # its newer name
        (enable or part.gradient_checkpointing_enable)({"use_reentrant": False})


def checkpoints_activations(module: nn.Module) -> bool:
    """Whether the backward pass will run parts of the forward pass again."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())
