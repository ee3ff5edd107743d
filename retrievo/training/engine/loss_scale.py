"""Loss scaling: small gradients underflow in float16, so the loss is multiplied and its gradient divided again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retrievo.support.values import Values

_FIRST, _STEPS_TO_DOUBLE = 2.0**16, 2_000


class LossScale:
    """The factor by which a loss is multiplied (Micikevicius et al. 2018, section 3.2): 1 except in float16.

    A gradient that overflows halves the scale, and the same step is computed again; 2,000 steps without overflow double
    it.
    """

    def __init__(self, dtype: torch.dtype):
        self.value = _FIRST if dtype == torch.float16 else 1.0
        self._scales, self._steps = dtype == torch.float16, 0

    def state(self) -> Values:
        """The state that a checkpoint keeps."""
        return {"value": self.value, "steps": self._steps}

    def restore(self, state: Values) -> None:
        """Restores a saved state."""
        self.value, self._steps = state["value"], state["steps"]

    def accepts(self, gradient_norm: Tensor) -> bool:
        """Whether to use the gradient: it is finite, or a lower scale cannot help. Otherwise halves the scale."""
        if not self._scales or math.isfinite(gradient_norm.item()) or self.value < 1:
            return True
        self.value, self._steps = self.value / 2, 0
        return False

    def after_step(self) -> None:
        """Counts a step without overflow."""
        self._steps += 1
        if self._scales and self._steps % _STEPS_TO_DOUBLE == 0:
            self.value *= 2
