"""The gradient cache changes memory, never the gradient."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    SpanPairs,
    assert_same,
    finetune,
    finetune_batch,
    gradients,
    reference_gradient,
    span_batch,
)
from torch import Tensor

from retrievo.training.batch import Batch, Chunk, Rows
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, GraphMemory, Passes, gradient_step
from retrievo.training.objectives.objective import Objective

FOUR_GROUPS = [3, 1, 4, 2]


def step_gradient(objective: Objective, batch: Batch, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    stats = gradient_step(objective, batch, **{"step": 3, "seed": 1, "chunk_tokens": 16, **options})
    return stats, gradients(objective)


@pytest.mark.parametrize("tied", [True, False])
def test_cached_gradient_equals_one_big_batch(tied: bool, device: torch.device) -> None:
    objective = finetune(tied, temperature=0.5, learn_temperature=True).to(device)
    batch = finetune_batch(FOUR_GROUPS)
    loss, expected = reference_gradient(objective, batch)
    stats, found = step_gradient(objective, batch)
    assert stats["loss"].item() == pytest.approx(loss, abs=1e-5)
    assert "log_temperature" in found
    assert_same(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    chunk_tokens=st.integers(1, 200),
    keep_graphs=st.one_of(st.integers(0, 5), st.just(ALL_GRAPHS)),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chunking_and_any_number_of_kept_graphs_give_the_same_gradient(
    groups: list[int], chunk_tokens: int, keep_graphs: int, tied: bool, seed: int
) -> None:
    objective = finetune(tied)
    batch = finetune_batch(groups, seed)
    loss, expected = reference_gradient(objective, batch)
    stats, found = step_gradient(objective, batch, chunk_tokens=chunk_tokens, keep_graphs=keep_graphs)
    assert stats["loss"].item() == pytest.approx(loss, abs=1e-5)
    assert_same(found, expected)


@settings(max_examples=30, deadline=None)
@given(pairs=st.integers(1, 5), chunk_tokens=st.integers(1, 80), keep_graphs=st.integers(0, 6), seed=st.integers(0, 99))
def test_a_local_loss_sums_right_over_unequal_chunks(
    pairs: int, chunk_tokens: int, keep_graphs: int, seed: int
) -> None:
    objective = SpanPairs()
    batch = span_batch(2 * pairs, seed)
    loss, expected = reference_gradient(objective, batch)
    stats, found = step_gradient(objective, batch, chunk_tokens=chunk_tokens, keep_graphs=keep_graphs)
    assert stats["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert stats["loss"].item() == pytest.approx((stats["pairs_loss"] + stats["local_loss"]).item())
    assert_same(found, expected)


def objectives_with_dropout() -> list[tuple[Objective, Batch]]:
    finetuning = [(finetune(tied, dropout=0.3), finetune_batch(FOUR_GROUPS)) for tied in (True, False)]
    return [*finetuning, (SpanPairs(dropout=0.3), span_batch(8))]


@pytest.mark.parametrize("case", [0, 1, 2], ids=["tied", "untied", "local loss"])
@pytest.mark.parametrize("keep_graphs", [0, 1, 2, ALL_GRAPHS])
def test_with_dropout_the_gradient_is_that_of_the_same_chunks_in_one_graph(
    case: int, keep_graphs: int, device: torch.device
) -> None:
    objective, batch = objectives_with_dropout()[case]
    objective.to(device)
    passes = Passes(objective, batch, step=3, seed=1, chunk_tokens=16, dtype=torch.float32)
    parts, total = defaultdict(list), torch.zeros((), device=device)
    for index, (name, _) in enumerate(passes.plan):
        vectors, rest = passes.encode(index)
        parts[name].append(vectors)
        total = total + passes.local_loss(index, rest)
    together = {name: passes._in_order(name, vectors) for name, vectors in parts.items()}
    (total + objective.contrast(together, passes.batch)[0]).backward()
    expected = gradients(objective)
    _, found = step_gradient(objective, batch, keep_graphs=keep_graphs)
    assert_same(found, expected)


def test_dropout_is_on_and_depends_on_step_and_seed() -> None:
    objective, batch = objectives_with_dropout()[0]
    losses = {
        step_gradient(objective, batch, step=step, seed=seed)[0]["loss"].item() for step in (0, 1) for seed in (0, 1)
    }
    assert len(losses) == 4


def test_a_step_leaves_the_random_state_of_its_caller_alone(device: torch.device) -> None:
    objective, batch = objectives_with_dropout()[0]
    objective.to(device)
    torch.manual_seed(5)
    expected = torch.rand(3, device=device)
    torch.manual_seed(5)
    step_gradient(objective, batch)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_a_step_asked_for_where_no_graphs_are_built_gives_the_same() -> None:
    objective, batch = finetune(), finetune_batch(FOUR_GROUPS)
    _, expected = step_gradient(objective, batch)
    with torch.no_grad():
        _, found = step_gradient(objective, batch)
    assert_same(found, expected)


def test_a_step_replaces_gradients_left_by_an_earlier_one() -> None:
    objective, batch = finetune(), finetune_batch(FOUR_GROUPS)
    _, first = step_gradient(objective, batch)
    _, second = step_gradient(objective, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Counting(Objective):
    """Counts the passes over each named set; `key` is a constant that the loss of `text` is measured against."""

    def __init__(self, vector_names: tuple[str, ...]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.vector_names = vector_names
        self.calls: list[tuple[str, bool]] = []
        self.key = 0.0

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Any]:
        self.calls.append((chunk.name, torch.is_grad_enabled()))
        if chunk.name == "key":
            self.key += float(chunk.input_ids.sum())
            return None, None
        values = chunk.input_ids.float() * chunk.attention_mask * self.weight
        return (values if chunk.name in self.vector_names else None), values

    def local_loss(self, rest: Any, batch: Batch) -> Tensor:
        return torch.zeros(()) if rest is None else rest.sum() * self.key / batch.counts["pairs"]

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return sum((vector.square().sum() for vector in vectors.values()), torch.zeros(())), {}


def ones(count: int) -> Rows:
    return Rows(torch.ones(count, dtype=torch.int64), torch.arange(count + 1))


def test_graphs_that_are_kept_take_no_more_than_their_memory() -> None:
    objective, batch = finetune(), finetune_batch(FOUR_GROUPS)
    passes = Passes(objective, batch, 0, 0, 8, torch.float32)
    everything = GraphMemory(1 << 40)
    assert everything.chunks(passes) == len(passes.encoded())
    tokens = [passes.padded(index) for index in passes.encoded()]
    assert everything.per_token is not None
    for count in range(len(tokens) + 1):
        fits = GraphMemory(math.ceil(sum(tokens[len(tokens) - count :]) * everything.per_token))
        assert fits.chunks(passes) == count
    assert GraphMemory(0).chunks(passes) == 0


@pytest.mark.parametrize(("keep_graphs", "without", "within"), [(0, 4, 4), (1, 3, 4), (3, 1, 4), (ALL_GRAPHS, 0, 4)])
def test_a_kept_graph_saves_one_encoding(keep_graphs: int, without: int, within: int) -> None:
    objective = Counting(("text",))
    batch = Batch(rows={"text": ones(4)}, counts={"pairs": 4})
    step_gradient(objective, batch, chunk_tokens=1, keep_graphs=keep_graphs)
    assert (objective.calls.count(("text", False)), objective.calls.count(("text", True))) == (without, within)


def test_without_vectors_one_pass_is_made_and_constants_come_before_what_is_measured_against_them() -> None:
    objective = Counting(())
    batch = Batch(rows={"key": ones(3), "text": ones(4)}, counts={"pairs": 4})
    stats, found = step_gradient(objective, batch, chunk_tokens=2)
    assert objective.calls == [("key", True)] * 2 + [("text", True)] * 2
    assert found["weight"].item() == stats["loss"].item() == stats["local_loss"].item() == 4 * 3 / 4


def test_sets_without_vectors_are_encoded_once_beside_sets_with_vectors() -> None:
    objective = Counting(("text",))
    batch = Batch(rows={"text": ones(2), "key": ones(1)}, counts={"pairs": 2})
    step_gradient(objective, batch, chunk_tokens=1)
    assert objective.calls == [("text", False)] * 2 + [("key", True)] + [("text", True)] * 2


def test_what_a_chunk_draws_for_its_local_loss_is_not_what_it_drew_while_it_was_encoded() -> None:
    class Drawing(Counting):
        drawn: set[float] = set()

        def encode(self, chunk: Chunk) -> tuple[Tensor | None, Any]:
            self.drawn.add(torch.rand(()).item())
            return super().encode(chunk)

        def local_loss(self, rest: Any, batch: Batch) -> Tensor:
            self.drawn.add(torch.rand(()).item())
            return super().local_loss(rest, batch)

    step_gradient(Drawing(()), Batch(rows={"text": ones(3)}, counts={"pairs": 3}), chunk_tokens=1)
    assert len(Drawing.drawn) == 2 * 3


def test_clipping_shortens_the_whole_gradient_and_reports_its_norm_before(device: torch.device) -> None:
    objective, batch = finetune().to(device), finetune_batch(FOUR_GROUPS)
    _, free = step_gradient(objective, batch)
    norm = torch.cat([gradient.flatten() for gradient in free.values()]).norm().item()
    stats, clipped = step_gradient(objective, batch, max_grad_norm=norm / 2)
    assert stats["gradient_norm"].item() == pytest.approx(norm, rel=1e-5)
    assert_same(clipped, {name: gradient / 2 for name, gradient in free.items()})


def test_bfloat16_stays_close_and_leaves_float32_gradients(device: torch.device) -> None:
    objective, batch = finetune().to(device), finetune_batch(FOUR_GROUPS)
    exact, expected = step_gradient(objective, batch)
    stats, found = step_gradient(objective, batch, dtype=torch.bfloat16)
    assert stats["loss"].item() != exact["loss"].item()
    assert stats["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.05)
    left, right = (torch.cat([gradient.flatten() for gradient in of.values()]) for of in (found, expected))
    assert left.dtype == torch.float32
    assert torch.cosine_similarity(left, right, dim=0) > 0.98


def test_in_bfloat16_the_cached_gradient_is_that_of_kept_graphs() -> None:
    objective, batch = objectives_with_dropout()[2]
    _, expected = step_gradient(objective, batch, dtype=torch.bfloat16, keep_graphs=ALL_GRAPHS)
    _, found = step_gradient(objective, batch, dtype=torch.bfloat16)
    assert_same(found, expected, tolerance=1e-4)


@pytest.mark.parametrize("scale", [2.0**-8, 2.0**12])
def test_a_loss_scale_leaves_loss_and_gradient_as_they_are(scale: float) -> None:
    objective, batch = objectives_with_dropout()[2]
    plain, expected = step_gradient(objective, batch)
    stats, found = step_gradient(objective, batch, loss_scale=scale)
    assert stats["loss"] == plain["loss"]
    assert_same(found, expected)


def test_tokens_and_padding_are_counted() -> None:
    lengths = [5, 2, 2, 1]
    batch = Batch(
        rows={"text": Rows(torch.ones(10, dtype=torch.int64), torch.tensor([0, *np.cumsum(lengths)]))},
        counts={"pairs": 4},
    )
    stats, _ = step_gradient(Counting(()), batch, chunk_tokens=6)
    assert (stats["tokens"], stats["padded_tokens"], stats["pairs"]) == (10, 5 + 3 * 2, 4)
