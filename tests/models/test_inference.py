"""Chunks through a model, side by side."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.inference import compute_record, compute_rows, prepared, resolve_chunk_tokens
from retrievo.models.splits import noted_splits, say_halved
from retrievo.models.vectors import encode_tokens
from retrievo.support.errors import RetrievoError


def flat(rows):
    return np.array([token for row in rows for token in row], dtype=np.int32), np.cumsum([0, *map(len, rows)])


ROWS = flat([[5 + (length * step) % 90 for step in range(length)] for length in (7, 40, 1, 13, 13, 28, 2, 30, 30)])


class Sums(nn.Module):
    """Sums of the token ids of each row; remembers what computed them."""

    def __init__(self, fault_at=None, seconds=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls, self.fault_at, self.seconds = [], fault_at, seconds

    def forward(self, input_ids, mask):
        self.calls.append((threading.get_ident(), torch.get_num_threads()))
        if len(self.calls) == self.fault_at:
            raise ZeroDivisionError("a fault in a chunk")
        time.sleep(self.seconds)
        return (input_ids * mask).sum(1).float() * self.weight


def sums(module, chunk_tokens=1, tick=None):
    out = torch.full((len(ROWS[1]) - 1,), -1.0)
    compute_rows(module, module, *ROWS, out, ComputeOptions("float32", chunk_tokens=chunk_tokens), pad_id=0, tick=tick)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_threads_gives_the_same_bytes(bert_folder, threads, dtype):
    encoder, found = Encoder.load(bert_folder, pooling="mean", normalize=True), []
    for count in (1, 2, 5):
        threads(count)
        found.append(encode_tokens(encoder, "document", *ROWS, ComputeOptions(dtype, chunk_tokens=60)).tobytes())
    assert found[0] == found[1] == found[2]


def test_threads_share_the_chunks_and_torchs_threads_and_leave_all_as_it_was(threads):
    threads(4)
    module, told = Sums().train(), []
    out = sums(module, tick=told.append)
    tokens, offsets = ROWS
    assert out.tolist() == [tokens[first:end].sum() for first, end in itertools.pairwise(offsets)]
    assert (len(module.calls), sum(told)) == (9, 9)
    assert {inside for _, inside in module.calls} == {1}
    assert threading.get_ident() not in {thread for thread, _ in module.calls}
    assert (torch.get_num_threads(), module.training, out.requires_grad) == (4, True, False)


def test_one_chunk_has_all_threads(threads):
    threads(4)
    module = Sums()
    sums(module, chunk_tokens=1000)
    assert module.calls == [(threading.get_ident(), 4)]


def test_two_chunks_have_half_of_the_threads_each(threads):
    threads(4)
    module = Sums()
    sums(module, chunk_tokens=200)
    assert [inside for _, inside in module.calls] == [2, 2]


def test_a_fault_in_a_chunk_is_raised_and_no_other_chunk_begun(threads):
    threads(2)
    module = Sums(fault_at=3, seconds=0.05)
    with pytest.raises(ZeroDivisionError, match="a fault in a chunk"):
        sums(module)
    assert len(module.calls) <= 4  # the other thread may be at one
    assert torch.get_num_threads() == 2


def test_weights_that_are_cut_among_ranks_see_the_chunks_in_order(threads, monkeypatch):
    threads(4)
    module = Sums()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("retrievo.models.inference.is_shard", lambda tensor: tensor is module.weight)
    sums(module)
    assert module.calls == [(threading.get_ident(), 4)] * 9


class Crowded(Sums):
    """Of a device that has no room for so many tokens."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def forward(self, input_ids, mask):
        if input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().forward(input_ids, mask)


@pytest.mark.parametrize("count", [1, 2])
def test_where_memory_runs_out_chunks_are_halved_and_that_is_noted(threads, count, said):
    say_halved.cache_clear()
    threads(count)
    told = []
    with noted_splits() as splits:
        expected = sums(Sums(), chunk_tokens=50)
        assert sums(Crowded(50), chunk_tokens=200, tick=told.append).tolist() == expected.tolist()
        sums(Crowded(50), chunk_tokens=100)
    assert sum(told) == len(ROWS[1]) - 1, "what is computed anew does not count twice"
    assert splits.stats() == {"chunk_tokens_of_calls": {"1": 50, "2": 50}}
    warned = said()
    assert warned.count("out of memory: recomputed in chunks of 50 tokens; pass --chunk-tokens 50 to avoid this") == 1


def test_a_text_for_which_there_is_no_room_is_an_error_with_what_to_do():
    with pytest.raises(RetrievoError, match=r"^cpu: has no room for one text; free the device, or choose a larger one"):
        sums(Crowded(39), chunk_tokens=200)


def test_processes_that_share_each_chunk_do_not_halve_it_alone(monkeypatch):
    module = Crowded(50)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("retrievo.models.inference.is_shard", lambda tensor: tensor is module.weight)
    with pytest.raises(RetrievoError, match="has no room for chunks of 200 tokens"):
        sums(module, chunk_tokens=200)


def test_weights_for_which_there_is_no_room_are_told(monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Sums, "to", full)
    with pytest.raises(RetrievoError, match="has no room for the weights of the model"):
        prepared(Sums(), "float32", "cpu")


def test_auto_is_settled_for_the_device_and_recorded():
    assert resolve_chunk_tokens("auto", "cpu") == 1024
    assert resolve_chunk_tokens("auto", torch.device("cuda", 1)) == 4096
    recorded = compute_record(ComputeOptions("bf16", chunk_tokens=77), "cpu")
    assert recorded == {"chunk_tokens": 77, "computed_in": "bfloat16"}


def test_prepared_weights_are_in_bfloat16_and_buffers_keep_their_precision(bert_folder):
    encoder = Encoder.load(bert_folder)
    encoder.register_buffer("frequencies", torch.ones(2))
    prepared(encoder.train(), "bfloat16", "cpu")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert (encoder.frequencies.dtype, encoder.training) == (torch.float32, False)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_prepared_weights_stay_float32_in_other_precisions(bert_folder, dtype):
    encoder = prepared(Encoder.load(bert_folder), dtype, "cpu")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_weights_in_bfloat16_give_float32_vectors_close_to_those_of_float32_weights(bert_folder):
    found = []
    encoder = Encoder.load(bert_folder, pooling="mean", normalize=True)
    for weights in (encoder, prepared(Encoder.load(bert_folder, pooling="mean", normalize=True), "bfloat16", "cpu")):
        found.append(encode_tokens(weights, "document", *ROWS, ComputeOptions("bfloat16")))
    exact = encode_tokens(encoder, "document", *ROWS, ComputeOptions("float32", chunk_tokens=100))
    assert {vectors.dtype for vectors in found} == {np.dtype(np.float32)}
    assert all((vectors * exact).sum(axis=1).min() > 0.999 for vectors in found)
    np.testing.assert_allclose(np.linalg.norm(found[1], axis=1), 1, atol=1e-6)
