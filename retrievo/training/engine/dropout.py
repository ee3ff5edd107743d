"""Dropout on a CPU at the speed of memory.

On a CPU, torch draws dropout masks one value at a time from a Mersenne twister, which with BERT's rates takes half of
the time of a forward pass. Here dropout calls are intercepted and get their masks from numpy, 16 random bits for each
value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from retrievo.models.attention import attention

_LEVELS = 1 << 16


class SeededDropout(TorchFunctionMode):
    """Within this block, dropout and attention dropout on a CPU are a pure function of the key and of the calls' order.

    A value is kept with probability 1 - round(2^16 p) / 2^16 and scaled by the inverse, which preserves its mean.
    """

    def __init__(self, key: Sequence[int]):
        super().__init__()
        self._bits = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.dropout:
            return self._dropout(*args, **kwargs)
        if function is functional.scaled_dot_product_attention and kwargs.get("dropout_p", 0.0) > 0:
            return self._attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0 or input.device.type != "cpu":
            return functional.dropout(input, p, training, inplace)
        dropped = round(p * _LEVELS)
        keep = self._bits.integers(_LEVELS, size=input.numel(), dtype=np.uint16) >= dropped
        scale = _LEVELS / (_LEVELS - dropped) if dropped < _LEVELS else 0.0
        mask = torch.from_numpy(keep).view(input.shape).to(input.dtype).mul_(scale)
        return input.mul_(mask) if inplace else input * mask

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention with dropout on its weights: [n, heads, L, d]."""
        if query.device.type != "cpu" or is_causal or enable_gqa:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        return attention(
            query, key, value, attn_mask, scale=scale, drop=lambda weights: self._dropout(weights, dropout_p)
        )
