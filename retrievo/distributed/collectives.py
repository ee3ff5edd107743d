"""The collectives of training; with a single process each is trivial, and there is no process group.

Conventions: a loss is the sum over this rank's rows divided by the count over all ranks, and gradients are summed over
ranks. Thus the number of processes appears in no loss, and ranks may hold different numbers of rows.
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
from torch.distributed.rendezvous import rendezvous

from retrievo.distributed.environment import started_together

BUCKET_BYTES = 64 << 20  # large enough for full bandwidth, small beside the gradient of a BERT-base (440 MB)

_MEETING = timedelta(minutes=10)  # timeout for joining: after that, another process or torchrun must have died
_PATIENCE = timedelta(days=1)  # one process may validate, merge or write for longer than NCCL's default, 10 minutes

_HOLDERS: list[Callable[[], object]] = []  # functions that release references to the process group


def at_the_end(let_go: Callable[[], object]) -> None:
    """Registers a function to call before the process group is destroyed; a lingering reference can abort the exit."""
    _HOLDERS.append(let_go)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Joins the processes that torchrun started (gloo on CPU, NCCL on CUDA) and yields this process's device."""
    world = started_together()
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield place
        return
    # The functions of this module, which torch's optimizers import, take the group that exists at import time as their
    # default argument. They would keep the group and its threads alive, and about one exit in ten would abort, so the
    # module is imported before the group exists.
    importlib.import_module("torch.distributed.nn.functional")
    store, own_rank, world = next(rendezvous("env://", timeout=_MEETING))
    joined: dict[str, Any] = {"store": store, "rank": own_rank, "world_size": world, "timeout": _PATIENCE}
    if place.type == "cuda":
        dist.init_process_group("nccl", device_id=place, **joined)
    else:
        dist.init_process_group("gloo", **joined)
    yield place
    for let_go in _HOLDERS:
        let_go()
    _HOLDERS.clear()
    dist.destroy_process_group()  # not after an error, when it could wait for ranks that wait for this one


def world_size() -> int:
    """The number of processes W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 to W - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits until every process has reached this call."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum over all processes; not differentiable."""
    if world_size() > 1:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def gather_counts(count: int, device: torch.device) -> list[int]:
    """The number of rows of each rank [W]."""
    if world_size() == 1:
        return [count]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    return sum_over_ranks(counts).tolist()


def as_rank_0_says(answer: bool, device: torch.device) -> bool:
    """Broadcasts rank 0's decision, where ranks on their own might disagree, such as by their clocks."""
    if world_size() == 1:
        return answer
    decision = torch.tensor(answer, dtype=torch.uint8, device=device)
    dist.broadcast(decision, src=0)
    return bool(decision.item())


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Gathers the rows of all ranks in rank order: [counts[rank], ...] -> [sum(counts), ...]; differentiable.

    The gradient of a row is the sum over the losses of all ranks. Every rank must call the backward pass.
    """
    if world_size() == 1:
        return rows
    return _gathered_rows(rows, list(counts))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # collectives need equal shapes
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        start = sum(ctx.counts[: rank()])
        return sum_over_ranks(gradient)[start : start + ctx.counts[rank()]], None


_gathered_rows: Callable[[Tensor, list[int]], Tensor] = _GatherRows.apply


def broadcast_state(module: nn.Module) -> None:
    """Copies the parameters and buffers of rank 0 to every rank, except sharded ones."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            if not is_shard(tensor):
                dist.broadcast(tensor.detach(), src=0)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its sum over ranks, in buckets.

    The gradient of a parameter that only some ranks used is zero on the others. A parameter that no rank used has no
    gradient, as in a single process, so that the optimizer skips it. Gradients of sharded parameters are already sums.
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
    """Splits parameters into runs of one dtype and at most BUCKET_BYTES; a larger parameter is a run of its own."""
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
    """Whether each rank holds only a part of a tensor (`distributed/fsdp.py`)."""
    from torch.distributed.tensor import DTensor  # 0.7 s, which a search need not wait for

    return isinstance(tensor, DTensor)
