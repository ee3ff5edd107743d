"""Verification of the engine's gradient: one step computed in several ways that must give the same gradient."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrievo.distributed.collectives import process_group, rank
from retrievo.distributed.launch import run_together
from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, Passes, gradient_step
from retrievo.training.objectives.objective import Objective

Assemble = Callable[[], tuple[Objective, Batch]]  # makes the objective and this rank's part of one batch
Gradients = dict[str, Tensor]
LARGEST = 1e-3  # float32 on a CPU stays below 1e-4; TF32 products of an accelerator do not
_WHOLE = 1 << 40  # a chunk size that holds any batch


class Check(NamedTuple):
    """Two ways to compute one gradient, and max |g - g'| / max |g| over all parameters."""

    name: str
    difference: float


def verify(assemble: Assemble, device: torch.device, *, seed: int) -> list[Check]:
    """Computes one step in float32 in five ways: in one piece and in chunks by the gradient cache (without dropout),
    in chunks whose graphs are all kept and with none kept (with dropout), and by two processes on the CPU.

    assemble: picklable, since the two processes call it as well.
    Raises: RetrievoError where a relative difference exceeds 1e-3.
    """
    objective, batch = assemble()
    objective.to(device)
    chunk = _quarter(objective, batch)

    def step(chunk_tokens: int, keep_graphs: int, *, dropout: bool) -> Gradients:
        objective.train(dropout)
        gradient_step(objective, batch, step=0, seed=seed, chunk_tokens=chunk_tokens, keep_graphs=keep_graphs)
        return _gradients(objective)

    whole = step(_WHOLE, ALL_GRAPHS, dropout=False)
    return [
        _check(f"one piece, or chunks of {chunk:,} tokens by the gradient cache", whole, step(chunk, 0, dropout=False)),
        _check(
            "chunks with their graphs kept, or encoded twice with the same dropout",
            step(chunk, ALL_GRAPHS, dropout=True),
            step(chunk, 0, dropout=True),
        ),
        _check("one process, or two", whole, _by_two_processes(assemble, chunk, seed)),
    ]


def _check(name: str, one: Gradients, other: Gradients) -> Check:
    found = difference(one, other)
    if not found <= LARGEST:
        problem = f"relative difference {found:.1e} between {name}"
        raise RetrievoError("--verify-gradients", problem, f"at most {LARGEST:g}", "report this with the model's name")
    return Check(name, found)


def difference(one: Gradients, other: Gradients) -> float:
    """max |g - g'| / max |g| over all parameters; infinite where only one side has a gradient."""
    if one.keys() != other.keys():
        return float("inf")
    largest = max((gradient.abs().max().item() for gradient in one.values()), default=0.0)
    apart = max(((one[name].cpu() - other[name].cpu()).abs().max().item() for name in one), default=0.0)
    return apart / largest if largest else apart


def _quarter(objective: Objective, batch: Batch) -> int:
    """A chunk size in tokens that cuts the batch into about four chunks of each named set."""
    passes = Passes(objective, batch, 0, 0, _WHOLE, torch.float32)
    return max(1, max(passes.padded(index) for index in range(len(passes.plan))) // 4)


def _gradients(objective: Objective) -> Gradients:
    return {name: p.grad.detach().clone() for name, p in objective.named_parameters() if p.grad is not None}


def _by_two_processes(assemble: Assemble, chunk_tokens: int, seed: int) -> Gradients:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradients.safetensors"
        run_together(_one_of_two, assemble, chunk_tokens, seed, path, processes=2)
        return load_file(path)


def _one_of_two(assemble: Assemble, chunk_tokens: int, seed: int, path: Path) -> None:
    with process_group("cpu"):
        objective, batch = assemble()
        objective.eval()
        gradient_step(objective, batch, step=0, seed=seed, chunk_tokens=chunk_tokens)
        if rank() == 0:
            save_file({name: gradient.contiguous() for name, gradient in _gradients(objective).items()}, path)
