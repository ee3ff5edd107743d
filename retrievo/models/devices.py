"""Resolves `--device`, moves tensors to devices, and sets the number of CPU threads."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resolve_device(name: str) -> str:
    """Resolves a device name; `auto` is the accelerator if there is one, else the CPU.

    Raises: RetrievoError where CUDA is requested but not available.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RetrievoError(
            "--device cuda", "torch sees no CUDA device", None, "pass --device cpu, or install a CUDA build"
        )
    return name


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to `device`, asynchronously from pinned memory if that is an accelerator."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def return_freed_memory() -> None:
    """Makes glibc return the pages of freed blocks to the system; does nothing with another C library.

    Chunks of ever-changing shapes fragment the heap. The alternative, mapping blocks one by one (a low mmap threshold),
    used more memory at half the speed.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def prepare_cpu(threads: int | None) -> None:
    """Sets torch's number of threads on a CPU; None keeps it."""
    import torch

    if threads:
        torch.set_num_threads(threads)
