"""Many tokens to vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_tokens


@pytest.fixture(scope="module")
def encoder(bert_folder):
    return Encoder.load(bert_folder, pooling="mean", normalize=True).eval()


def flat(rows):
    return np.array([token for row in rows for token in row], dtype=np.int32), np.cumsum([0, *map(len, rows)])


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_a_vector_does_not_depend_on_its_neighbors_nor_on_the_budget(encoder, budget):
    rows = [[5 + (length * step) % 90 for step in range(length)] for length in (7, 40, 1, 13, 13, 28, 2)]
    together = encode_tokens(encoder, "document", *flat(rows), ComputeOptions("float32", chunk_tokens=budget))
    assert together.dtype == np.float32
    assert together.shape == (len(rows), encoder.dim)
    for row, vector in zip(rows, together, strict=True):
        alone = encode_tokens(encoder, "document", *flat([row]), ComputeOptions("float32", chunk_tokens=1))
        np.testing.assert_allclose(vector, alone[0], atol=2e-6)


def test_the_same_rows_and_budget_give_the_same_bytes(encoder):
    rows = [list(range(5, 5 + length)) for length in (3, 30, 7, 7, 12, 30, 1)]
    first, second = (
        encode_tokens(encoder, "document", *flat(rows), ComputeOptions("bfloat16", chunk_tokens=64)) for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()


def test_no_rows_give_no_vectors(encoder):
    assert encode_tokens(encoder, "query", [], [0], ComputeOptions("float32")).shape == (
        0,
        encoder.dim,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_stays_close_and_pools_in_float32(encoder, dtype):
    rows = [list(range(5, 5 + length)) for length in range(1, 40)]
    exact = encode_tokens(encoder, "document", *flat(rows), ComputeOptions("float32", chunk_tokens=128))
    low = encode_tokens(encoder, "document", *flat(rows), ComputeOptions(dtype, chunk_tokens=128))
    assert low.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(low, axis=1), 1, atol=1e-6)  # bfloat16 would be off by 1e-3
    assert not np.array_equal(low, exact)
    assert (low * exact).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_encoding_and_the_mode_comes_back(bert_folder, training):
    encoder = Encoder.load(bert_folder, pooling="cls").train(training)
    rows = flat([[5, 6, 7, 8]])
    first, second = (encode_tokens(encoder, "query", *rows, ComputeOptions("float32")) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert encoder.training is training


def test_encoding_leaves_the_parameters_ready_for_training(encoder):
    encode_tokens(encoder, "query", *flat([[5, 6]]), ComputeOptions("bfloat16", chunk_tokens=8))
    ids = torch.tensor([[5, 6]])
    encoder.encode("query", ids, torch.ones_like(ids)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    encoder.zero_grad()


def test_encoding_within_an_autocast_leaves_no_weights_without_gradient(encoder):
    ids = torch.tensor([[5, 6]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encode_tokens(encoder, "query", *flat([[5, 6]]), ComputeOptions("bfloat16", chunk_tokens=8))
        encoder.encode("query", ids, torch.ones_like(ids)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    encoder.zero_grad()


def test_weights_are_cast_once_and_not_for_every_chunk(encoder, threads):
    threads(1)

    def casts(budget):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            encode_tokens(encoder, "query", *rows, ComputeOptions("bfloat16", chunk_tokens=budget))
        events = profile.key_averages(group_by_input_shape=True)
        return sum(e.count for e in events if e.key == "aten::_to_copy" and e.input_shapes[0] == [64, 32])

    rows = flat([[5, 6, 7]] * 8)
    assert casts(6) == casts(24) == 2  # the layers' inner weights [64, 32]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_text_without_tokens_has_the_zero_vector_whatever_shares_its_chunk(bert_folder, pooling, training):
    encoder = Encoder.load(bert_folder, pooling=pooling, normalize=True, notify=lambda text: None)
    rows = [[], [5, 6, 7], [], [8], []]
    for budget in (1, 4096):
        vectors = encode_tokens(encoder, "query", *flat(rows), ComputeOptions("float32", chunk_tokens=budget))
        assert not vectors[[0, 2, 4]].any()
        np.testing.assert_allclose(np.linalg.norm(vectors[[1, 3]], axis=1), 1, atol=1e-6)
    alone = encode_tokens(encoder, "query", *flat([[], []]), ComputeOptions("float32"))
    assert not alone.any()
    ids, mask = torch.tensor([[5, 6], [0, 0]]), torch.tensor([[1, 1], [0, 0]])
    encoder.train(training).encode("query", ids, mask)[1].sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)
