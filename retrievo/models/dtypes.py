"""The number formats that a model computes in; torch is imported only inside functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrievo.support.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

# every name that --dtype takes -> the name that is recorded
DTYPES = {
    "auto": "auto",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}


def resolve_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The compute dtype behind a name; `auto` is bfloat16 where the hardware multiplies it fast, else float32.

    Raises: UsageError for a name that is not in `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise UsageError("--dtype", f"'{name}'", fix=did_you_mean(name, DTYPES))
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(torch.device(device)) else torch.float32
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


def recorded_dtype(name: str, device: str | torch.device) -> str:
    """The name of the dtype for a manifest, such as `bfloat16`, with `auto` resolved."""
    return str(resolve_dtype(name, device)).removeprefix("torch.")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16 matrix products (emulated ones are slower than float32)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # newer than the oldest torch supported
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return False
