"""Runs a model over many rows of tokens, chunk by chunk and without gradients, to encode texts or score pairs."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retrievo.distributed.collectives import is_shard
from retrievo.models.attention import PlainAttention
from retrievo.models.chunks import cut_chunks, pad
from retrievo.models.compute import ComputeOptions
from retrievo.models.devices import prepare_cpu, resolve_device, return_freed_memory, sent
from retrievo.models.dtypes import recorded_dtype, resolve_dtype
from retrievo.models.splits import begin_call, say_halved
from retrievo.support.console import Tick
from retrievo.support.errors import RetrievoError, UsageError

_MANY = 16  # number of chunks from which returning freed memory to the system is worth its milliseconds

Module = TypeVar("Module", bound=nn.Module)


def resolve_chunk_tokens(chunk_tokens: int | str, device: str | torch.device) -> int:
    """The most tokens of a chunk, with `auto` resolved for a device.

    A core is fastest on chunks that fit its cache; an accelerator needs larger ones.
    """
    if isinstance(chunk_tokens, int):
        return chunk_tokens
    return 1024 if torch.device(device).type == "cpu" else 4096


def prepared(module: Module, dtype: str, device: str | torch.device) -> Module:
    """Prepares a module for inference: moves it to its device and converts weights to bfloat16 if that is its dtype.

    The weights then take half of the memory, and matrix products need no casts. Buffers keep their precision, which
    rotary positions need. With float16, weights stay float32, since sums between layers may overflow.
    Raises: RetrievoError where the device has too little memory.
    """
    if resolve_dtype(dtype, device) == torch.bfloat16:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    try:
        return module.to(device).eval()
    except torch.OutOfMemoryError:
        fix = "free the device, or choose a larger one or --dtype bfloat16"
        raise RetrievoError(device, "has no room for the weights of the model", None, fix) from None


class ComputeKeywords(TypedDict, total=False):
    """The fields of `ComputeOptions` as keywords of a call."""

    dtype: str
    device: str
    chunk_tokens: int | str
    threads: int | None


def prepare(module: nn.Module, compute: ComputeOptions) -> None:
    """Prepares a loaded model in place for inference.

    Raises: UsageError where a model that was already rounded to bfloat16 is to compute in another format.
    """
    prepare_cpu(compute.threads)
    device = resolve_device(compute.device)
    rounded = next(module.parameters()).dtype == torch.bfloat16
    if rounded and resolve_dtype(compute.dtype, device) != torch.bfloat16:
        found = f"found '{compute.dtype}', but this model was rounded to bfloat16"
        raise UsageError("--dtype", found, None, "load it again")
    prepared(module, compute.dtype, device)


def compute_record(compute: ComputeOptions, device: str | torch.device) -> dict[str, int | str]:
    """The dtype and chunk size for a manifest, since they affect the bytes of vectors."""
    tokens = resolve_chunk_tokens(compute.chunk_tokens, device)
    return {"chunk_tokens": tokens, "computed_in": recorded_dtype(compute.dtype, device)}


def compute_rows(
    module: nn.Module,
    forward: Callable[[Tensor, Tensor], Tensor],
    tokens: npt.ArrayLike,
    offsets: npt.ArrayLike,
    out: Tensor,
    compute: ComputeOptions,
    *,
    pad_id: int,
    tick: Tick | None = None,
) -> None:
    """out[rows] = forward(input_ids [n, L], attention_mask [n, L]) for all rows, cut by `cut_chunks`; dropout is off.

    Where memory runs out, all rows are recomputed in chunks of half as many tokens, and `noted_splits` records it.

    On a CPU, each thread computes chunks of its own: on two cores, 1.2 x as fast as all threads sharing a chunk.

    module:  the model, on the device of `out` [N, ...].
    tokens:  flat token ids [T], with offsets [N + 1].
    compute: the number format of matrix products, and the most rows x longest row of a chunk.
    tick:    called with the number of rows just computed; negative for rows that have to be recomputed.
    Raises: RetrievoError where one row alone does not fit.
    """
    splits, budget = begin_call(), resolve_chunk_tokens(compute.chunk_tokens, out.device)
    dtype = resolve_dtype(compute.dtype, out.device)
    while full := _compute(module, forward, tokens, offsets, out, pad_id, budget, dtype, tick):
        if min(full) == 1 or _is_cut(module):  # processes that compute each chunk together would have to agree
            found = "has no room for one text" if min(full) == 1 else f"has no room for chunks of {budget:,} tokens"
            fix = "free the device, or choose a larger one, a smaller model or a shorter maximal length"
            raise RetrievoError(out.device, found, None, fix)
        budget //= 2
        splits.tokens[splits.calls - 1] = budget
        say_halved(budget)


def _compute(
    module: nn.Module,
    forward: Callable[[Tensor, Tensor], Tensor],
    tokens: npt.ArrayLike,
    offsets: npt.ArrayLike,
    out: Tensor,
    pad_id: int,
    chunk_tokens: int,
    dtype: torch.dtype,
    tick: Tick | None,
) -> list[int]:
    """Runs `compute_rows` once; returns the sizes of the chunks that did not fit, after which no chunk is begun."""
    offsets, place = np.asarray(offsets), out.device
    waiting, telling = deque(cut_chunks(np.diff(offsets), chunk_tokens)), threading.Lock()
    chunks, cut = len(waiting), _is_cut(module)
    reported, full = [0], list[int]()

    @torch.no_grad()  # not inference_mode, under which autocast casts the weights again for every chunk
    def work() -> None:
        with (
            PlainAttention(),
            # the cache of cast weights would hold all layers of a model whose weights are whole for one at a time
            torch.autocast(place.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=not cut),
            _emptied(waiting),  # after a fault nobody begins another chunk
        ):
            for rows in _until_empty(waiting):
                padded = pad(tokens, offsets, rows, pad_id)
                try:
                    input_ids, mask = (sent(torch.from_numpy(array), place) for array in padded)
                    out[sent(torch.from_numpy(rows), place)] = forward(input_ids, mask)
                except torch.OutOfMemoryError:
                    full.append(len(rows))
                    return
                if tick:
                    with telling:
                        reported[0] += len(rows)
                        tick(len(rows))

    in_order = place.type != "cpu" or cut
    workers = 1 if in_order else min(torch.get_num_threads(), chunks)
    with evaluating(module):
        if workers > 1:
            _side_by_side(work, waiting, workers)
        else:
            work()
    if place.type == "cpu" and chunks > _MANY:
        return_freed_memory()
    if full and tick:
        tick(-reported[0])
    return full


def _is_cut(module: nn.Module) -> bool:
    """Whether the module is sharded, so that all ranks compute each chunk together, in the same order."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and any(is_shard(parameter) for parameter in module.parameters())


@contextlib.contextmanager
def _emptied(waiting: deque[np.ndarray]) -> Iterator[None]:
    try:
        yield
    finally:
        waiting.clear()


def _until_empty(waiting: deque[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields chunks to the calling thread until none is left."""
    with contextlib.suppress(IndexError):
        while True:
            yield waiting.popleft()


def _side_by_side(work: Callable[[], None], waiting: deque[np.ndarray], workers: int) -> None:
    """Does the work in several threads, which share torch's threads."""
    threads = torch.get_num_threads()
    try:
        with (
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool,
            _emptied(waiting),  # after Ctrl-C too
        ):
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switches dropout off and restores the previous mode afterwards, for validation during training."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        torch.clear_autocast_cache()  # weights cast here have no gradient; an autocast around this one would use them
