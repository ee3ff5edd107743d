"""Many rows of tokens through a model, chunk by chunk and without gradients: encoding, and the scoring of pairs."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retrievo.distributed.collectives import is_shard
from retrievo.models.attention import PlainAttention
from retrievo.models.chunks import cut_chunks, pad
from retrievo.models.devices import prepare_cpu, resolve_device, return_freed_memory, sent
from retrievo.models.dtypes import recorded_dtype, resolve_dtype
from retrievo.models.splits import begin_call, say_halved
from retrievo.support.console import Tick
from retrievo.support.errors import RetrievoError, UsageError

_MANY = 16  # chunks, which are worth the milliseconds of giving their memory back

Module = TypeVar("Module", bound=nn.Module)


def computing(dtype: str, device: str | torch.device, chunk_tokens: int | str = "auto") -> dict[str, Any]:
    """`dtype` and `chunk_tokens` of `compute_rows`, with `auto` settled for a device.

    A core is quickest on chunks that its cache holds; an accelerator wants more at once.
    """
    auto = 1024 if torch.device(device).type == "cpu" else 4096
    tokens = chunk_tokens if isinstance(chunk_tokens, int) else auto
    return {"dtype": resolve_dtype(dtype, device), "chunk_tokens": tokens}


def prepared(module: Module, dtype: str, device: str | torch.device) -> Module:
    """A module that shall compute and not be trained: on its device, its weights in bfloat16 where it computes in that.

    They take half of the memory then, and nothing is cast between products. Buffers keep their precision, which rotary
    positions need. Of float16, which sums between layers may overflow, only products are made.
    Raises: RetrievoError where the device has no room for them.
    """
    if resolve_dtype(dtype, device) == torch.bfloat16:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    try:
        return module.to(device).eval()
    except torch.OutOfMemoryError:
        fix = "free the device, or choose a larger one or --dtype bfloat16"
        raise RetrievoError(device, "has no room for the weights of the model", None, fix) from None


class Computing(TypedDict, total=False):
    """How a model computes, as the options of the command line say it.

    dtype: `auto` (bfloat16 where the hardware multiplies it fast, else float32), `float32`, `bfloat16` or `float16`.
    device: `auto` (the accelerator where there is one), `cpu` or `cuda`. chunk_tokens: most tokens computed at once, or
    `auto`. threads: of a CPU; None leaves torch's own number.
    """

    dtype: str
    device: str
    chunk_tokens: int | str
    threads: int | None


def ready(module: nn.Module, chosen: Computing) -> dict[str, Any]:
    """Prepares a loaded model where it lies for computing, and returns the options of `compute_rows`.

    Raises: UsageError for a model that was rounded to bfloat16 before and shall compute in another format now.
    """
    prepare_cpu(chosen.get("threads"))
    dtype, device = chosen.get("dtype", "auto"), resolve_device(chosen.get("device", "auto"))
    rounded = next(module.parameters()).dtype == torch.bfloat16
    if rounded and resolve_dtype(dtype, device) != torch.bfloat16:
        raise UsageError("--dtype", f"found '{dtype}', but this model was rounded to bfloat16", None, "load it again")
    prepared(module, dtype, device)
    return computing(dtype, device, chosen.get("chunk_tokens", "auto"))


def computing_record(dtype: str, device: str | torch.device, chunk_tokens: int | str) -> dict[str, Any]:
    """The same for a manifest: vectors of another precision or of other chunks are not the same bytes."""
    tokens = computing(dtype, device, chunk_tokens)["chunk_tokens"]
    return {"chunk_tokens": tokens, "computed_in": recorded_dtype(dtype, device)}


def compute_rows(
    module: nn.Module,
    forward: Callable[[Tensor, Tensor], Tensor],
    tokens: npt.ArrayLike,
    offsets: npt.ArrayLike,
    out: Tensor,
    *,
    pad_id: int,
    chunk_tokens: int,
    dtype: torch.dtype = torch.float32,
    tick: Tick | None = None,
) -> None:
    """out[rows] = forward(input_ids [n, L], attention_mask [n, L]) for all rows, cut by `cut_chunks`; dropout is off.

    Where memory runs out, all rows are computed anew in chunks of half as many tokens, and `noted_splits` hears of it.

    On a CPU threads take chunks of their own, which is quicker than all threads on one chunk after the other: 1.2 x
    on two cores.

    module: what computes, on the device of `out` [N, ...]; tokens: flat token ids [T]; offsets: [N + 1]; chunk_tokens:
    most rows x longest row of a chunk; dtype: of the matrix products; tick: told how many rows were just computed, less
    those that are computed anew.
    Raises: RetrievoError where one row alone does not fit.
    """
    splits, budget = begin_call(), chunk_tokens
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
    """`compute_rows` once; the number of rows of each chunk for which there was no room, after which none is begun."""
    offsets, place = np.asarray(offsets), out.device
    waiting, telling = deque(cut_chunks(np.diff(offsets), chunk_tokens)), threading.Lock()
    chunks, cut = len(waiting), _is_cut(module)
    told, full = [0], list[int]()

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
                        told[0] += len(rows)
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
        tick(-told[0])
    return full


def _is_cut(module: nn.Module) -> bool:
    """Whether all ranks compute each chunk together, and so in one order."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and any(is_shard(parameter) for parameter in module.parameters())


@contextlib.contextmanager
def _emptied(waiting: deque[np.ndarray]) -> Iterator[None]:
    try:
        yield
    finally:
        waiting.clear()


def _until_empty(waiting: deque[np.ndarray]) -> Iterator[np.ndarray]:
    """The next one for whichever thread asks."""
    with contextlib.suppress(IndexError):
        while True:
            yield waiting.popleft()


def _side_by_side(work: Callable[[], None], waiting: deque[np.ndarray], workers: int) -> None:
    """Does the work in several threads, among which torch's are divided."""
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
    """Dropout off, then all as it was: validation runs in the middle of training."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        torch.clear_autocast_cache()  # weights cast here have no gradient; an autocast around this one would use them
