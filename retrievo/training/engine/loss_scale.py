"""Loss scaling: float16 has no small numbers, so the loss is multiplied, and its gradient divided again."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_FIRST, _STEPS_TO_DOUBLE = 2.0**16, 2_000


class LossScale:
    """What a loss is multiplied by (Micikevicius et al. 2018, section 3.2): 1 except in float16.

    A gradient that overflows halves it, and the same step is computed again; 2,000 steps without double it.
    """

    def __init__(self, dtype: torch.dtype):
        self.value = _FIRST if dtype == torch.float16 else 1.0
        self._scales, self._steps = dtype == torch.float16, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": self.value, "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on as the run that was saved."""
        self.value, self._steps = state["value"], state["steps"]

    def accepts(self, gradient_norm: Tensor) -> bool:
        """Whether the gradient is finite, or will not become so; else the next try is with half of the scale."""
        if not self._scales or math.isfinite(gradient_norm.item()) or self.value < 1:
            return True
        self.value, self._steps = self.value / 2, 0
        return False

    def after_step(self) -> None:
        """One step more without overflow."""
        self._steps += 1
        if self._scales and self._steps % _STEPS_TO_DOUBLE == 0:
            self.value *= 2
