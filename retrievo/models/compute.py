"""How a model computes: the options of every command that runs a model, as one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComputeOptions:
    """How a model computes, in the values of the command line's options.

    dtype:        `auto` (bfloat16 if the hardware multiplies it fast, else float32), `float32`, `bfloat16`, `float16`.
    device:       `auto` (the accelerator if there is one), `cpu` or `cuda`.
    chunk_tokens: the most tokens that are computed at once, or `auto`.
    threads:      the number of CPU threads; None keeps torch's.
    """

    dtype: str = "auto"
    device: str = "auto"
    chunk_tokens: int | str = "auto"
    threads: int | None = None


class Computes:
    """A Config with --dtype, --device, --chunk-tokens and --threads, which `compute` gives as one value."""

    dtype: str
    device: str
    chunk_tokens: int | str
    threads: int | None

    @property
    def compute(self) -> ComputeOptions:
        """How a model computes."""
        return ComputeOptions(self.dtype, self.device, self.chunk_tokens, self.threads)
