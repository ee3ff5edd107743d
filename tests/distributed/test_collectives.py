"""One process is the trivial case; two processes are held against it in tests/training/engine/test_ranks.py."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from retrievo.distributed import collectives
from retrievo.distributed.collectives import (
    _buckets,
    as_rank_0_says,
    barrier,
    gather_counts,
    gather_rows,
    process_group,
    rank,
    sum_gradients,
    sum_over_ranks,
    world_size,
)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
        assert (rank(), world_size()) == (0, 1)
        barrier()


def test_collectives_of_one_process_give_back_what_they_get() -> None:
    values = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(values, gather_counts(3, values.device)) is values
    assert sum_over_ranks(values) is values
    assert [as_rank_0_says(answer, values.device) for answer in (True, False)] == [True, False]
    layer = nn.Linear(2, 2)
    sum_gradients(layer.parameters())
    assert layer.weight.grad is None


def test_buckets_hold_every_parameter_once_one_dtype_each_and_no_more_than_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collectives, "BUCKET_BYTES", 40)
    sizes = [(3, torch.float32), (8, torch.float32), (1, torch.bfloat16), (2, torch.float32), (30, torch.float32)]
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    buckets = [[(len(p), p.dtype) for p in bucket] for bucket in _buckets(parameters)]
    assert sorted(str(entry) for bucket in buckets for entry in bucket) == sorted(map(str, sizes))
    assert [[size for size, _ in bucket] for bucket in buckets] == [[3], [8, 2], [30], [1]]
