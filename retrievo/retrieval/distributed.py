"""Exact search by several processes that torchrun started: each scans its part of the rows, the lead one merges.

The lead process goes the usual way. The others wait for what it asks of them, until it has no more questions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.distributed.environment import started_together
from retrievo.support.console import is_lead
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch.distributed import ProcessGroup

    from retrievo.retrieval.embeddings import QueryVectors, Vectors
    from retrievo.retrieval.hits import Hits

_PATIENCE = timedelta(days=7)  # the lead process may rerank, or wait for a person, between two searches


class _Asked(NamedTuple):
    """One batch of queries that every process searches for in its own rows."""

    source: Path
    queries: np.ndarray  # [Q, D]
    depth: int
    allowed: np.ndarray | None


# The process group of a company: gloo everywhere, since NCCL ends ranks that wait for ten minutes, and messages are
# pickled on the CPU.
_group: ContextVar[ProcessGroup | None] = ContextVar("_group", default=None)


@contextlib.contextmanager
def company(device: Callable[[], str], vectors_of: Callable[[Path], Vectors], **options: Any) -> Iterator[bool]:
    """Whether this process leads; one that does not returns from here when it has served every request of the leader.

    Where torchrun started no others, it leads nobody.
    device: of this process; vectors_of: those of a source; options: of `retrievo.retrieval.exact.search_batches`.
    """
    if started_together() == 1:
        yield True
        return
    import torch.distributed as dist

    from retrievo.distributed.collectives import process_group, rank

    with process_group(device()) as place:
        token = _group.set(dist.new_group(backend="gloo", timeout=_PATIENCE))
        try:
            if rank():
                while asked := _told(None):
                    _searched(asked, vectors_of(asked.source), device=str(place), **options)
                yield False
            else:
                yield True
                _told(None)  # not after an error: the others may wait for something else, and torchrun ends them
        finally:
            _group.reset(token)


def search_batches(
    source: Path,
    queries: QueryVectors,
    vectors: Vectors,
    depth: int,
    *,
    batch_size: int,
    device: str,
    allowed: np.ndarray | None = None,
    **options: Any,
) -> Iterator[Hits]:
    """`retrievo.retrieval.exact.search_batches` over all rows, with whatever company the lead process has.

    Between two batches the others wait, so several searches of the lead process may take turns.
    """
    from retrievo.retrieval import exact

    if _group.get() is None:
        options |= {"batch_size": batch_size, "device": device, "allowed": allowed}
        yield from exact.search_batches(queries, vectors, depth, **options)
        return
    import torch

    place = f"cuda:{torch.cuda.current_device()}" if device.startswith("cuda") else device
    for first in range(0, len(queries), batch_size):
        _told(asked := _Asked(source, queries[first : first + batch_size], depth, allowed))
        found = _searched(asked, vectors, device=place, **options)
        assert found is not None  # on the lead process
        yield found._replace(query=found.query + first)


def _told(asked: _Asked | None) -> _Asked | None:
    """What the lead process asks, on every process; None where it has no more questions."""
    import torch.distributed as dist

    box = [asked]
    with _while_led():
        dist.broadcast_object_list(box, src=0, group=_group.get())
    return box[0]


@contextlib.contextmanager
def _while_led() -> Iterator[None]:
    """Ends this process quietly where the connection breaks: the lead process has ended, and has said why."""
    try:
        yield
    except RuntimeError:
        if is_lead():
            raise
        raise SystemExit(1) from None


def _searched(asked: _Asked, vectors: Vectors, **options: Any) -> Hits | None:
    """What all processes found for a batch, merged; None on the others than the lead one.

    Raises: RetrievoError, on the lead process, for what is wrong with the rows of any.
    """
    import torch.distributed as dist

    from retrievo.distributed.collectives import rank, world_size

    first, end = (vectors.rows * number // world_size() for number in (rank(), rank() + 1))
    own = _own(asked, vectors.part(first, end), first, end, **options)
    parts: list[Any] = [None] * world_size()
    with _while_led():
        dist.gather_object(own, parts if is_lead() else None, group=_group.get())
    return _merged(parts, asked.depth, vectors) if is_lead() else None


def _own(
    asked: _Asked, part: Vectors, first: int, end: int, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | RetrievoError:
    """Queries, rows of the whole and scores of what this process found in its part, or what is wrong with its rows."""
    from retrievo.retrieval import exact
    from retrievo.retrieval.hits import joined

    allowed = None if asked.allowed is None else asked.allowed[first:end]
    options |= {"batch_size": max(1, len(asked.queries)), "allowed": allowed}
    try:
        found = joined(exact.search_batches(asked.queries, part, asked.depth, **options), part)
    except RetrievoError as problem:
        return problem
    return found.query, found.row + first, found.score


def _merged(parts: list[Any], depth: int, vectors: Vectors) -> Hits:
    """The first `depth` documents of every query under the ordering rule, or the first error."""
    from retrievo.data.ordering import first_ranked
    from retrievo.retrieval.hits import Hits, joined

    for problem in parts:
        if isinstance(problem, RetrievoError):
            raise problem
    found = joined((Hits(query, row, score, vectors) for query, row, score in parts), vectors)
    return found.at(first_ranked(found.query, found.score, vectors.ids(found.row), depth))
