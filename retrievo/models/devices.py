"""Which device `--device` means, and how many threads compute on a CPU."""

from __future__ import annotations

from retrievo.support.errors import RetrievoError


def resolve_device(name: str) -> str:
    """`auto` is the accelerator where there is one.

    Raises: RetrievoError where CUDA is asked for and is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RetrievoError(
            "--device cuda", "torch sees no CUDA device", None, "pass --device cpu, or install a CUDA build"
        )
    return name


def set_threads(threads: int | None) -> None:
    """Sets the CPU threads of torch; None leaves torch's own number."""
    import torch

    if threads:
        torch.set_num_threads(threads)
