"""The collectives of training; with one process each is the trivial case and no process group exists.

Conventions: a loss is a sum over this rank's rows / the count over all ranks, and gradients are summed over ranks.
So no number of processes appears in any loss, and ranks may hold different numbers of rows.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retrievo.distributed.environment import started_together

BUCKET_BYTES = 64 << 20  # large enough for full bandwidth, small beside the gradient of a BERT-base (440 MB)

_MEETING = timedelta(minutes=10)  # processes that have not met by then never will: one of them, or torchrun, has died
_PATIENCE = timedelta(days=1)  # one process may validate, merge or write for longer than the 10 minutes of NCCL

_HOLDERS: list[Callable[[], object]] = []  # what lets go of the group, for those who would keep it past its end


def at_the_end(let_go: Callable[[], object]) -> None:
    """Has this called before the process group ends: a group that outlives its end can abort the exit."""
    _HOLDERS.append(let_go)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """The device of this process; joins the other processes that torchrun started (gloo on CPU, NCCL on CUDA)."""
    world = started_together()
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield place
        return
    # Its functions take the group that exists when they are imported (torch's optimizers do that) as their default and
    # would keep it, with its threads, past its end: one exit in some ten then aborts. So they are imported before.
    importlib.import_module("torch.distributed.nn.functional")
    store, own_rank, world = next(dist.rendezvous("env://", timeout=_MEETING))
    joined: dict[str, Any] = {"store": store, "rank": own_rank, "world_size": world, "timeout": _PATIENCE}
    if place.type == "cuda":
        dist.init_process_group("nccl", device_id=place, **joined)
    else:
        dist.init_process_group("gloo", **joined)
    yield place
    for let_go in _HOLDERS:
        let_go()
    _HOLDERS.clear()
    dist.destroy_process_group()  # not after an error: this could wait for ranks that wait for this one


def world_size() -> int:
    """Number of processes W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of the W processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits for every process."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum over all processes; without gradient."""
    if world_size() > 1:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def gather_counts(count: int, device: torch.device) -> list[int]:
    """How many rows each rank has [W]."""
    if world_size() == 1:
        return [count]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    return sum_over_ranks(counts).tolist()


def as_rank_0_says(answer: bool, device: torch.device) -> bool:
    """The answer of rank 0, on every rank: for what each would decide for itself, such as by a clock."""
    if world_size() == 1:
        return answer
    told = torch.tensor(answer, dtype=torch.uint8, device=device)
    dist.broadcast(told, src=0)
    return bool(told.item())


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks in rank order: [counts[rank], ...] -> [sum(counts), ...]; differentiable.

    The gradient of a row is the sum of what the losses of all ranks say of it. Each rank must reach the backward.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows, list(counts))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # collectives want equal shapes
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        start = sum(ctx.counts[: rank()])
        return sum_over_ranks(gradient)[start : start + ctx.counts[rank()]], None


def broadcast_state(module: nn.Module) -> None:
    """Gives every rank the parameters and buffers of rank 0, except those that are cut."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            if not is_shard(tensor):
                dist.broadcast(tensor.detach(), src=0)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its sum over ranks, in buckets.

    A parameter that only some ranks used counts as zero on the others; one that no rank used keeps no gradient, as in
    one process, so that the optimizer leaves it alone. Gradients of cut parameters are sums already.
    """
    if world_size() == 1:
        return
    for bucket in _buckets([p for p in parameters if p.requires_grad and not is_shard(p)]):
        gradients = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in bucket]
        used = bucket[0].new_tensor([p.grad is not None for p in bucket])  # travels with the gradients
        flat = torch.cat([gradient.flatten() for gradient in (*gradients, used)])
        dist.all_reduce(flat)
        *summed, used = flat.split([p.numel() for p in bucket] + [len(bucket)])
        for parameter, gradient, anywhere in zip(bucket, summed, used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if anywhere else None


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters of one dtype and at most BUCKET_BYTES (a larger one stands alone)."""
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        bucket: list[nn.Parameter] = []
        size = 0
        for parameter in (parameter for parameter in parameters if parameter.dtype == dtype):
            if bucket and size + parameter.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(parameter)
            size += parameter.nbytes
        if bucket:
            yield bucket


def is_shard(tensor: Tensor) -> bool:
    """Whether each rank holds a part of a tensor, and not all of it (`distributed/fsdp.py`)."""
    from torch.distributed.tensor import DTensor  # 0.7 s, which a search need not wait for

    return isinstance(tensor, DTensor)
