"""Contrast of two views: what the crops are, what the loss is, and that chunks leave it alone."""

from __future__ import annotations

import dataclasses
import pickle
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining_ranks import VIEWS, batch, contrast, documents
from torch import Tensor
from torch.nn import functional

from retrievo.data.sampling import random_keys
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.training.augment.corruption import Corruption
from retrievo.training.augment.special_tokens import Document, Frame
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, Passes, gradient_step
from retrievo.training.losses import tiled
from retrievo.training.objectives.simclr import DOCUMENT, QUERY, ClozeCollator, CropCollator, vector_metrics
from retrievo.training.objectives.table import SimClrConfig

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = {QUERY: Frame((2,), (3,)), DOCUMENT: Frame((2,), (3,))}


def vectors(count: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, 16, generator=random, requires_grad=True) for name in (QUERY, DOCUMENT)}


def loss_of(given: dict[str, Tensor], **options: Any) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and metrics of vectors."""
    made = Batch(rows={}, counts={"documents": len(given[QUERY])})
    loss, stats = contrast("simclr", **options).contrast(given, made)
    loss.backward()
    return loss.item(), {name: vector.grad for name, vector in given.items()}, stats


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_queries_compete_for_their_keys_among_the_keys_of_the_batch(smoothing: float) -> None:
    loss, gradients, stats = loss_of(vectors(6), temperature=0.7, label_smoothing=smoothing)
    given = vectors(6)
    scores = given[QUERY] @ given[DOCUMENT].T / 0.7
    expected = functional.cross_entropy(scores, torch.arange(6), label_smoothing=smoothing)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients, {name: vector.grad for name, vector in given.items()})
    assert stats["accuracy"].item() == pytest.approx((scores.argmax(1) == torch.arange(6)).float().mean().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_symmetric_lets_each_view_compete_with_all_others(smoothing: float) -> None:
    loss, gradients, _ = loss_of(vectors(4), symmetric=True, temperature=0.7, label_smoothing=smoothing)
    given = vectors(4)
    every = torch.cat([given[QUERY], given[DOCUMENT]])
    others = (every @ every.T / 0.7)[~torch.eye(8, dtype=torch.bool)].view(8, 7)
    partners = torch.tensor([3, 4, 5, 6, 0, 1, 2, 3])  # of each row among the seven others
    expected = functional.cross_entropy(others, partners, label_smoothing=smoothing)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients, {name: vector.grad for name, vector in given.items()})


@pytest.mark.parametrize("symmetric", [False, True])
def test_tiles_change_nothing(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loss_of(vectors(9), symmetric=symmetric)
    monkeypatch.setattr(tiled, "TILE", 20)
    in_tiles = loss_of(vectors(9), symmetric=symmetric)
    assert in_tiles[0] == pytest.approx(whole[0], rel=1e-6)
    assert_same(in_tiles[1], whole[1])
    assert_same(in_tiles[2], whole[2])


def test_large_scores_lose_no_precision() -> None:
    """Vectors that are not normalized score in the thousands at T = 0.05."""
    large = {name: (8 * vector).detach().requires_grad_() for name, vector in vectors(5).items()}
    loss, _, _ = loss_of(large, temperature=0.05)
    scores = (64 * vectors(5)[QUERY] @ vectors(5)[DOCUMENT].T / 0.05).double()
    assert loss == pytest.approx(functional.cross_entropy(scores, torch.arange(5)).item(), rel=1e-5)


@pytest.mark.parametrize("name", list(VIEWS))
@settings(max_examples=10, deadline=None)
@given(
    count=st.integers(1, 5),
    chunk_tokens=st.integers(1, 200),
    keep_graphs=st.one_of(st.integers(0, 5), st.just(ALL_GRAPHS)),
)
def test_with_dropout_any_chunking_has_the_gradient_of_its_chunks_in_one_graph(
    name: str, count: int, chunk_tokens: int, keep_graphs: int
) -> None:
    trained = contrast(name, dropout=0.2)
    gradient_step(trained, batch(trained, 4, seed=1), step=9, seed=0, chunk_tokens=100)
    trained.after_step()  # fills a queue, where there is one
    trained.zero_grad(set_to_none=True)
    made = batch(trained, count)
    passes = Passes(trained, made, step=0, seed=0, chunk_tokens=chunk_tokens, dtype=torch.float32)
    parts, loss = defaultdict(list), torch.zeros(())
    for index, (of, _) in enumerate(passes.plan):
        found, rest = passes.encode(index)
        if found is not None:
            parts[of].append(found)
        loss = loss + passes.local_loss(index, rest)
    together = {of: passes._in_order(of, found) for of, found in parts.items()}
    loss = loss + trained.contrast(together, passes.batch)[0]
    loss.backward()
    expected = {key: p.grad.clone() for key, p in trained.named_parameters() if p.grad is not None}
    stats = gradient_step(trained, made, step=0, seed=0, chunk_tokens=chunk_tokens, keep_graphs=keep_graphs)
    assert stats["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    found = {key: p.grad for key, p in trained.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(VIEWS))
def test_training_learns_to_tell_documents_apart(name: str) -> None:
    trained = contrast(name, temperature=1.0)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    losses = []
    for number in range(45):
        made = batch(trained, 6, seed=number % 3)  # no document of the batch before is in it again
        losses.append(gradient_step(trained, made, step=number, seed=0, chunk_tokens=400)["loss"].item())
        optimizer.step()
        trained.after_step()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[2:7])  # a queue must fill first


@pytest.mark.parametrize(("similarity", "same"), [("cosine", True), ("dot", False)])
def test_what_is_trained_is_how_the_folder_compares(similarity: str, same: bool) -> None:
    trained = contrast("simclr")
    trained.encoder.spec = dataclasses.replace(trained.encoder.spec, similarity=similarity)
    seen = {}
    kept = trained.contrast
    trained.contrast = lambda found, made: seen.update(found) or kept(found, made)
    gradient_step(trained, batch(trained), step=0, seed=0, chunk_tokens=100)
    assert torch.allclose(seen[QUERY].norm(dim=1), torch.ones(5)) == same


# ---------------------------------------------------------------------------------------------------------- the crops


def crops(items: list[Document], **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    told = {"window": 40, "shortest": 0.05, "longest": 0.5, "corruption": Corruption(), "frames": FRAMES, "pad_id": 0}
    told |= options
    made = (ClozeCollator if "keep_query" in told else CropCollator)(**told)(items)
    assert made.counts == {"documents": len(items)}
    return tuple(
        [rows.tokens[low + 1 : high - 1].tolist() for low, high in pairwise(rows.offsets.tolist())]
        for rows in (made.rows[QUERY], made.rows[DOCUMENT])
    )  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(16, 300), min_size=1, max_size=20),
    window=st.integers(16, 120),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    seed=st.integers(0, 99),
)
def test_a_crop_lies_in_one_window_of_one_document_and_has_the_length_asked_for(
    lengths: list[int], window: int, shares: list[float], seed: int
) -> None:
    starts = np.cumsum([0, *lengths])  # token n stands at place n of all documents laid end to end
    keys = random_keys(seed, np.arange(len(lengths)))
    items = [
        Document(np.arange(low, high), key) for (low, high), key in zip(pairwise(starts.tolist()), keys, strict=True)
    ]
    found = crops(items, window=window, shortest=shares[0], longest=shares[1])
    for item, one, other in zip(items, *found, strict=True):
        size = min(len(item.tokens), window)
        for crop in (one, other):
            assert crop == list(range(crop[0], crop[-1] + 1))
            assert item.tokens[0] <= crop[0]
            assert crop[-1] <= item.tokens[-1]
            assert max(8, round(shares[0] * size)) <= len(crop) <= max(8, round(shares[1] * size))
        assert max(one[-1], other[-1]) - min(one[0], other[0]) < size


def test_crops_are_drawn_apart_everywhere_and_of_all_lengths() -> None:
    keys = random_keys(0, np.arange(4000))
    first, second = crops([Document(np.arange(40), key) for key in keys])
    lengths = np.bincount([len(crop) for crop in first])
    assert len(lengths) == 21
    assert lengths[8:].min() > 0.8 * 4000 / 13
    assert {crop[0] for crop in first} == set(range(33))
    assert abs(np.corrcoef([crop[0] for crop in first], [crop[0] for crop in second])[0, 1]) < 0.05
    assert abs(np.corrcoef([len(crop) for crop in first], [len(crop) for crop in second])[0, 1]) < 0.05


def test_a_cloze_takes_a_span_out_of_its_window_save_one_in_ten() -> None:
    keys = random_keys(0, np.arange(2000))
    lengths = 16 + np.arange(2000) % 60
    queries, rests = crops([Document(np.arange(n), key) for n, key in zip(lengths, keys, strict=True)], keep_query=0.1)
    kept = 0
    for size, query, rest in zip(np.minimum(lengths, 40), queries, rests, strict=True):
        assert query == list(range(query[0], query[-1] + 1))
        assert max(8, round(0.05 * size)) <= len(query) <= max(8, round(0.5 * size))
        if len(rest) == size:
            kept += 1
            assert set(query) <= set(rest)
        else:
            assert len(rest) == size - len(query) >= 8
            assert not set(query) & set(rest)
        window = sorted({*query, *rest})
        assert window == list(range(window[0], window[0] + size))
    assert 150 < kept < 250


def test_a_cloze_always_leaves_something() -> None:
    items = [Document(np.arange(16), key) for key in random_keys(0, np.arange(50))]
    queries, rests = crops(items, keep_query=0.0, shortest=1.0, longest=1.0)
    assert {len(query) for query in queries} == {len(rest) for rest in rests} == {8}


@pytest.mark.parametrize("name", ["simclr", "ict", "contriever"])
def test_what_is_foretold_of_lengths_is_what_comes(name: str) -> None:
    collator = contrast(name, delete=0.2).collator()
    lengths = np.arange(16, 80)
    keys = random_keys(0, np.arange(3200))
    made = collator([Document(np.full(lengths[n % 64], 6), key) for n, key in enumerate(keys)])
    seen = sum(rows.lengths.sum().item() - 2 * rows.size for rows in made.rows.values()) / 6400
    assert seen == pytest.approx(collator.expected_lengths(lengths).mean(), rel=0.05)


def test_crops_depend_on_their_document_and_key_only_and_travel_without_the_model() -> None:
    trained = contrast("simclr")
    collator = pickle.loads(pickle.dumps(trained.collator()))
    items = documents(trained, 6)
    together, apart = collator(items), [collator([item]) for item in items]
    for name in (QUERY, DOCUMENT):
        assert torch.equal(together.rows[name].tokens, torch.cat([made.rows[name].tokens for made in apart]))
    assert len(pickle.dumps(collator)) < 1000


def test_a_prefix_of_the_model_stands_before_every_crop_of_its_role() -> None:
    trained = contrast("simclr")
    trained.encoder.spec = dataclasses.replace(trained.encoder.spec, query_prefix="ba be: ")
    again = type(trained)(trained.config, trained.encoder)
    rows = batch(again).rows
    words = [trained.encoder.tokenizer.convert_ids_to_tokens(rows[name].tokens[:4].tolist()) for name in rows]
    assert words[0] == ["[CLS]", "ba", "be", "[UNK]"]
    assert words[1][0] == "[CLS]"
    assert words[1][1:3] != ["ba", "be"]


def test_views_longer_than_the_backbone_has_positions_for_are_refused() -> None:
    contrast("simclr", window=124)
    with pytest.raises(RetrievoError, match=r"--window: views of up to 66 tokens.*expected at most 64"):
        contrast("simclr", window=128)


def test_the_range_of_crops_must_be_one() -> None:
    with pytest.raises(UsageError, match=r"--crop-shortest: found 0.6; expected at most --crop-longest \(0.5\)"):
        SimClrConfig(crop_shortest=0.6)


# --------------------------------------------------------------------------------------------------------- the metrics


def test_metrics_tell_collapse_from_spread() -> None:
    random = torch.Generator().manual_seed(0)
    spread = torch.randn(400, 64, generator=random)
    collapsed = torch.ones(400, 64) + 1e-3 * spread
    good, bad = (vector_metrics(keys, keys, keys, 400) for keys in (spread, collapsed))
    assert good["vector_std"].item() == pytest.approx(1, abs=0.01)
    assert bad["vector_std"] < 0.01
    assert good["alignment"] == bad["alignment"] == 0
    assert good["uniformity"] < -3 < -1e-3 < bad["uniformity"]


def test_metrics_are_those_of_wang_and_isola() -> None:
    given = {name: functional.normalize(vector.detach(), dim=1) for name, vector in vectors(7).items()}
    found = vector_metrics(given[QUERY], 3 * given[DOCUMENT], 3 * given[DOCUMENT], 7)
    distances = torch.pdist(given[DOCUMENT]).square()
    assert found["alignment"].item() == pytest.approx(
        (given[QUERY] - given[DOCUMENT]).norm(dim=1).square().mean().item(), rel=1e-5
    )
    assert found["uniformity"].item() == pytest.approx(distances.mul(-2).exp().mean().log().item(), rel=1e-4)
