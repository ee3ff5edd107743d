"""Options of the training loop. Standard library only: the command line reads this before torch."""

from __future__ import annotations

from dataclasses import dataclass

from retrievo.learning.optimizers import OptimizerConfig
from retrievo.support.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FitConfig(OptimizerConfig):
    """How long training lasts, what it computes in, what it keeps."""

    max_steps: int
    seed: int = 0  # of the order of the data, of dropout and of everything else that is random
    dtype: str = "auto"  # what encoders compute in; parameters and losses stay float32
    chunk_tokens: int = 4096  # most tokens that are encoded at once, padding included
    keep_graphs: int = 0  # chunks that keep their graph, so that they are not encoded twice; costs memory
    max_gradient_norm: float | None = 1.0  # longer gradients are shortened to it; None = never
    checkpoint_every: int = 1000  # steps
    keep_checkpoints: int = 2
    prefetch: int = 2  # batches made ahead of time

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_steps", "chunk_tokens", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}", f"found {getattr(self, name)}", "at least 1")
        for name in ("seed", "keep_graphs", "prefetch"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')}", f"found {getattr(self, name)}", "at least 0")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise UsageError("--max-gradient-norm", f"found {self.max_gradient_norm}", "more than 0")
