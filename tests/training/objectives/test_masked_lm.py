"""mlm, condenser and cocondenser: what a batch holds, what the losses are, and that the engine leaves them alone."""

from __future__ import annotations

import dataclasses
import os
import pickle
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining_ranks import (
    BATCH_SIZE,
    CLASSES,
    DOCUMENTS,
    VIEWS,
    gradients_of_an_epoch,
    model,
    objective,
    texts,
    write_corpus,
)
from torch import Tensor

from retrievo.data.sampling import random_keys
from retrievo.models.chunks import pad
from retrievo.models.condenser import MaskedEncoder
from retrievo.support.errors import RetrievoError
from retrievo.training.augment.masking import IGNORED
from retrievo.training.augment.special_tokens import Document, Frame
from retrievo.training.batch import Batch, Chunk
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, Passes, gradient_step
from retrievo.training.losses import tiled
from retrievo.training.objectives import masked_lm
from retrievo.training.objectives.masked_lm import CoCondenser, Condenser, MaskedLanguageModel, SpanCollator
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.table import CoCondenserConfig, CondenserConfig, MlmConfig
from tests.conftest import CHECKOUT

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = CHECKOUT / "tests" / "training" / "pretraining_ranks.py"
NAMES = list(CLASSES)


def documents(trained: Objective, count: int, seed: int = 0) -> list[Document]:
    rows = trained.encoder.tokenizer(texts(count, seed), add_special_tokens=False)["input_ids"]
    keys = random_keys(seed, np.arange(count))
    return [Document(np.array(row, np.uint16), key) for row, key in zip(rows, keys, strict=True)]


def batch(trained: Any, count: int = 4, seed: int = 0) -> Batch:
    made: Batch = trained.collator()(documents(trained, count, seed))
    return made


def gradients(trained: Objective) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def step(trained: Objective, made: Batch, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    stats = gradient_step(trained, made, **{"step": 0, "seed": 0, "chunk_tokens": 30, **options})
    return stats, gradients(trained)


def whole(trained: Objective, made: Batch) -> tuple[Tensor, Any]:
    """Vectors and rest of the whole batch as one padded chunk."""
    rows = made.rows["span"]
    everything = np.arange(rows.size)
    ids, mask = map(torch.from_numpy, pad(*rows, everything, made.pad_ids["span"]))
    return trained.encode(Chunk("span", torch.from_numpy(everything), ids, mask))


def reference(trained: Objective, made: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one padded batch in one graph: neither chunks nor cache."""
    trained.zero_grad(set_to_none=True)
    vectors, rest = whole(trained, made)
    loss = trained.local_loss(rest, made) + trained.contrast({"span": vectors}, made)[0]
    loss.backward()
    return loss.item(), gradients(trained)


# ------------------------------------------------------------------------------------------------------ the gradient


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 5),
    chunk_tokens=st.integers(1, 200),
    keep_graphs=st.one_of(st.integers(0, 5), st.just(ALL_GRAPHS)),
    seed=st.integers(0, 99),
)
def test_any_chunking_gives_the_gradient_of_one_padded_batch(
    name: str, count: int, chunk_tokens: int, keep_graphs: int, seed: int
) -> None:
    trained = objective(name)
    made = batch(trained, count, seed)
    loss, expected = reference(trained, made)
    stats, found = step(trained, made, chunk_tokens=chunk_tokens, keep_graphs=keep_graphs)
    assert stats["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert_same(found, expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("name", NAMES)
def test_with_dropout_the_cached_gradient_is_that_of_the_same_chunks_in_one_graph(name: str, family: str) -> None:
    trained = objective(name, family, dropout=0.2)
    made = batch(trained, 6)
    passes = Passes(trained, made, step=0, seed=0, chunk_tokens=30, dtype=torch.float32)
    parts, total = defaultdict(list), torch.zeros(())
    for index, (of, _) in enumerate(passes.plan):
        vectors, rest = passes.encode(index)
        if vectors is not None:
            parts[of].append(vectors)
        total = total + passes.local_loss(index, rest)
    together = {of: passes._in_order(of, vectors) for of, vectors in parts.items()}
    (total + trained.contrast(together, passes.batch)[0]).backward()
    expected = gradients(trained)
    assert len(passes.plan) > 2
    for keep_graphs in (0, 1, ALL_GRAPHS):
        _, found = step(trained, made, keep_graphs=keep_graphs)
        assert_same(found, expected)
    _, other = step(trained, made, step=1)
    assert any(not torch.allclose(other[key], value, atol=1e-3) for key, value in expected.items())  # dropout is on


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What one process finds, and each of two: gradients, losses and counts of the same epoch."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        write_corpus(folder / "corpus.parquet", texts(DOCUMENTS, seed=5))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **names, "PYTHONPATH": str(CHECKOUT), "XDG_CACHE_HOME": str(two / "cache")}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, two],
            env={**environment, "RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    found = [gradients_of_an_epoch(one)]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [*found, *(torch.load(two / f"found-{number}.pt") for number in (0, 1))]


@pytest.mark.slow
def test_two_processes_make_the_step_that_one_makes(ranks: list[dict[str, Tensor]]) -> None:
    """Batches do not divide by two, and one leaves a process without documents."""
    expected, first, second = ranks
    assert DOCUMENTS % BATCH_SIZE == 1
    assert {name: int(value) for name, value in expected.items() if name.endswith("documents")} == {
        f"{name}/{step}/documents": count for name in (*CLASSES, *VIEWS) for step, count in enumerate([5, 5, 1])
    }
    assert_same(first, expected)
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_bfloat16_stays_close() -> None:
    trained = objective("cocondenser")
    made = batch(trained)
    exact, found = (step(trained, made, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert found[0]["loss"].item() == pytest.approx(exact[0]["loss"].item(), rel=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in found[1].values())
    left, right = (torch.cat([gradient.flatten() for gradient in of[1].values()]) for of in (found, exact))
    assert torch.cosine_similarity(left, right, dim=0) > 0.97


# ---------------------------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_vocabulary_at_masked_positions_gives_the_loss_and_gradient_of_the_full_projection(family: str) -> None:
    trained = objective("mlm", family)
    made = batch(trained)
    stats, found = step(trained, made)
    rows = made.rows["span"]
    ids, mask = map(torch.from_numpy, pad(*rows, np.arange(rows.size), made.pad_ids["span"]))
    labels, _ = pad(made.labels["span"], rows.offsets, np.arange(rows.size), IGNORED)
    trained.zero_grad(set_to_none=True)
    theirs = trained.encoder.language_model(input_ids=ids, attention_mask=mask, labels=torch.from_numpy(labels))
    theirs.loss.backward()
    assert stats["loss"].item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert_same(found, gradients(trained))


def test_logits_are_worked_out_for_masked_tokens_only() -> None:
    trained = objective("cocondenser")
    made = batch(trained)
    seen: list[int] = []
    trained.encoder.mlm_head.register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
    step(trained, made)
    assert sum(seen) == 2 * made.counts["masked"]  # of the head, and late ones


def test_what_was_timed_or_did_not_fit_is_no_part_of_the_logged_terms() -> None:
    trained = objective("condenser")
    made = batch(trained)
    trained.local_loss(whole(trained, made)[1], made)  # of an attempt that ended there
    stats, _ = step(trained, made)
    terms = sum(value.item() for name, value in stats.items() if name.endswith("mlm_loss"))
    assert terms == pytest.approx(stats["loss"].item(), rel=1e-5)


def test_without_masked_tokens_nothing_is_learned_of_them() -> None:
    trained = objective("mlm")
    made = batch(trained)
    made.labels["span"][:] = IGNORED
    made.counts["masked"] = 0
    stats, found = step(trained, made)
    assert stats["loss"].item() == 0.0
    assert not any(gradient.any() for gradient in found.values())


def test_the_late_loss_is_added_unweighted_to_that_of_the_head() -> None:
    both, head_only = objective("condenser"), objective("condenser", late_mlm=False)
    made = batch(both)
    late = step(objective("mlm"), made)[0]["loss"].item()
    assert step(both, made)[0]["loss"].item() == pytest.approx(step(head_only, made)[0]["loss"].item() + late, rel=1e-5)


def test_late_layers_reach_the_head_through_the_first_token_only() -> None:
    trained = objective("condenser", late_mlm=False)
    made = batch(trained)
    _, rest = whole(trained, made)
    leaf = rest.late.detach().requires_grad_()
    trained.local_loss(rest._replace(late=leaf, early=rest.early.detach()), made).backward()
    assert leaf.grad[:, 0].abs().sum(1).min() > 0
    assert not leaf.grad[:, 1:].any()


@pytest.mark.parametrize("early_layer", [0, 1, 3])
def test_the_head_reads_the_layer_that_was_chosen(early_layer: int) -> None:
    trained = objective("condenser", early_layer=early_layer)
    made = batch(trained)
    _, rest = whole(trained, made)
    rows = made.rows["span"]
    ids, mask = map(torch.from_numpy, pad(*rows, np.arange(rows.size), 0))
    backbone = trained.encoder.backbone
    expected = backbone.embeddings(input_ids=ids)
    for layer in backbone.encoder.layer[:early_layer]:
        expected = layer(expected, mask[:, None, None, :].bool())
    inside = mask.bool()
    torch.testing.assert_close(rest.early[inside], expected[inside], rtol=1e-5, atol=1e-5)


def test_the_contrast_is_the_formula_of_the_paper() -> None:
    trained = objective("cocondenser")
    torch.manual_seed(1)
    spans = torch.randn(6, 16)
    made = Batch(rows={}, counts={"spans": 6})
    loss, stats = trained.contrast({"span": spans}, made)
    scores = (spans @ spans.T).double()
    terms = []
    for i in range(3):
        for own, partner in ((2 * i, 2 * i + 1), (2 * i + 1, 2 * i)):
            others = [scores[own, column].exp() for column in range(6) if column != own]
            terms.append(-(scores[own, partner].exp() / sum(others)).log())
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    nearest = [max((c for c in range(6) if c != own), key=lambda c, own=own: scores[own, c]) for own in range(6)]
    assert stats["accuracy"].item() == pytest.approx(sum(c == own ^ 1 for own, c in enumerate(nearest)) / 6)


def test_the_contrast_in_tiles_is_the_contrast_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = objective("cocondenser")
    made = Batch(rows={}, counts={"spans": 10})
    found = []
    for tile in (1 << 21, 30):
        monkeypatch.setattr(tiled, "TILE", tile)
        torch.manual_seed(1)
        spans = torch.randn(10, 16, requires_grad=True)
        loss, stats = trained.contrast({"span": spans}, made)
        loss.backward()
        found.append({"loss": loss.detach(), "gradient": spans.grad, **stats})
    assert_same(*found)


def test_the_only_document_of_a_batch_has_nothing_to_be_told_from() -> None:
    trained = objective("cocondenser")
    assert step(trained, batch(trained, 1))[0]["contrastive_loss"].item() == 0.0


def test_both_parts_of_cocondenser_are_means() -> None:
    trained = objective("cocondenser")
    made = batch(trained)
    vectors, rest = whole(trained, made)
    assert torch.equal(vectors, rest.late[:, 0])
    stats, _ = step(trained, made)
    assert stats["loss"].item() == pytest.approx((stats["local_loss"] + stats["contrastive_loss"]).item(), rel=1e-5)
    assert stats["local_loss"].item() == pytest.approx(step(objective("condenser"), made)[0]["loss"].item(), rel=1e-5)


def test_training_learns_to_tell_spans_apart_and_to_predict() -> None:
    trained = objective("cocondenser")
    made = batch(trained, 6)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    losses = []
    for number in range(40):
        losses.append(step(trained, made, step=number, chunk_tokens=400)[0])
        optimizer.step()
    assert losses[-1]["contrastive_loss"] < 0.5 * losses[0]["contrastive_loss"]
    assert losses[-1]["local_loss"] < 0.6 * losses[0]["local_loss"]


# ------------------------------------------------------------------------------------------------------------ batches


def unmasked(made: Batch) -> list[list[int]]:
    """The spans as they stood in their documents."""
    labels, rows = made.labels["span"], made.rows["span"]
    tokens = torch.where(labels == IGNORED, rows.tokens, labels)
    return [tokens[low + 1 : high - 1].tolist() for low, high in pairwise(rows.offsets)]


def places(span: list[int], text: list[int]) -> list[int]:
    return [start for start in range(len(text) - len(span) + 1) if text[start : start + len(span)] == span]


def test_spans_2i_and_2i_plus_1_are_distinct_parts_of_document_i() -> None:
    trained = objective("cocondenser")
    items = documents(trained, 20)
    spans = unmasked(trained.collator()(items))
    assert len(spans) == 40
    for item, first, second in zip(items, spans[::2], spans[1::2], strict=True):
        text = item.tokens.tolist()
        assert len(first) == len(second) == min(12, len(text) // 2)
        assert any(abs(a - b) >= len(first) for a in places(first, text) for b in places(second, text))


@pytest.mark.parametrize("name", ["mlm", "condenser"])
def test_without_contrast_a_document_gives_one_span(name: str) -> None:
    trained = objective(name)
    items = documents(trained, 20)
    spans = unmasked(trained.collator()(items))
    assert [len(span) for span in spans] == [min(12, len(item.tokens)) for item in items]
    assert all(places(span, item.tokens.tolist()) for item, span in zip(items, spans, strict=True))


@pytest.mark.parametrize(("family", "frame"), [("bert", (2, 3)), ("roberta", (0, 2))])
def test_spans_are_framed_padded_and_counted_and_the_frame_is_never_predicted(
    family: str, frame: tuple[int, int]
) -> None:
    trained = objective("cocondenser", family)
    made = batch(trained, 7)
    rows, labels = made.rows["span"], made.labels["span"]
    assert made.counts == {"documents": 7, "spans": 14, "masked": int((labels != IGNORED).sum())}
    assert made.pad_ids == {"span": trained.encoder.pad_id}
    for low, high in pairwise(rows.offsets):
        assert (rows.tokens[low], rows.tokens[high - 1]) == frame
        assert (labels[low], labels[high - 1]) == (IGNORED, IGNORED)
    inside = rows.lengths - 2
    budget = torch.clamp((inside * 0.3).round(), min=1).sum().item()
    assert 0.9 * budget < made.counts["masked"] <= budget


def test_a_collator_crosses_process_borders_without_the_model() -> None:
    trained = objective("cocondenser")
    collator = trained.collator()
    packed = pickle.dumps(collator)
    assert len(packed) < 10_000
    again: SpanCollator = pickle.loads(packed)
    items = documents(trained, 3)
    assert torch.equal(again(items).rows["span"].tokens, collator(items).rows["span"].tokens)


def test_what_becomes_of_a_document_depends_on_its_key_and_not_on_the_batch() -> None:
    trained = objective("cocondenser")
    items = documents(trained, 6)
    together, apart = trained.collator()(items), [trained.collator()([item]) for item in items]
    for field in ("rows", "labels"):
        tokens = [getattr(made, field)["span"] for made in (together, *apart)]
        whole, *parts = [of.tokens if field == "rows" else of for of in tokens]
        assert torch.equal(whole, torch.cat(parts))
    other = trained.collator()([item._replace(key=item.key + np.uint64(1)) for item in items])
    assert not torch.equal(other.labels["span"], together.labels["span"])


def test_the_two_spans_of_a_document_are_masked_apart() -> None:
    trained = objective("cocondenser")
    same = Document(np.tile(np.array([6, 7, 8, 9], np.uint16), 6), np.uint64(1))
    made = trained.collator()([same._replace(key=np.uint64(key)) for key in range(20)])
    labels = made.labels["span"].view(20, 2, -1)
    assert sum(not torch.equal(first != IGNORED, second != IGNORED) for first, second in labels) > 15


def test_sentence_boundaries_trim_spans_to_whole_sentences() -> None:
    trained = objective("cocondenser", sentence_boundaries=True, max_length=40)
    stop = trained.encoder.tokenizer.convert_tokens_to_ids(".")
    plain = objective("cocondenser", max_length=40)
    items = documents(trained, 40)
    trimmed, spans = (unmasked(of.collator()(items)) for of in (trained, plain))
    shorter = [(new, old) for new, old in zip(trimmed, spans, strict=True) if new != old]
    assert len(shorter) > 10
    for item, new in zip(np.repeat(np.arange(40), 2), trimmed, strict=True):
        text = items[item].tokens.tolist()
        assert len(new) >= 8
        assert places(new, text)
    for new, old in shorter:
        start = places(new, old)[0]
        assert start == 0 or old[start - 1] == stop
        assert new[-1] == stop or old[-len(new) :] == new


def test_a_rank_without_documents_has_an_empty_batch() -> None:
    for name in NAMES:
        made = objective(name).collator()([])
        assert (made.rows["span"].size, made.labels["span"].numel()) == (0, 0)
        assert made.counts == {"documents": 0, "spans": 0, "masked": 0}


# ------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("mlm", "max_length", 20),
        ("mlm", "mask_probability", 0.6),
        ("mlm", "whole_word", False),
        ("mlm", "sentence_boundaries", True),
        ("condenser", "early_layer", 0),
        ("condenser", "head_layers", 1),
        ("condenser", "late_mlm", False),
    ],
)
def test_every_option_changes_the_loss(name: str, option: str, value: Any) -> None:
    losses = []
    for options in ({}, {option: value}):
        trained = objective(name, **options)
        losses.append(step(trained, batch(trained, 10))[0]["loss"].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_head_goes_on_from_stage_to_stage_and_on_disk(tmp_path: Path, said: Callable[[], str]) -> None:
    first = objective("condenser", early_layer=0, head_layers=1)
    first.encoder.save(tmp_path)
    encoder = MaskedEncoder.load(tmp_path)
    second = CoCondenser(CoCondenserConfig(max_length=14), encoder)
    assert (second.head.early_layer, len(second.head.layers)) == (0, 1)
    own = dict(first.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in second.named_parameters())
    assert "no Condenser head" not in said()


def test_a_fresh_head_for_cocondenser_is_warned_of(said: Callable[[], str]) -> None:
    CoCondenser(CoCondenserConfig(max_length=14), model())
    assert "the model has no Condenser head" in said()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_layer": 1}, "--early-layer: found 1; expected 0, as the model's head has it; leave --early-layer out"),
        ({"head_layers": 2}, "--head-layers: found 2; expected 1, as the model's head has it; leave --head-layers out"),
    ],
)
def test_options_that_contradict_the_models_head_are_refused(options: dict[str, int], message: str) -> None:
    encoder = objective("condenser", early_layer=0, head_layers=1).encoder
    with pytest.raises(RetrievoError) as error:
        Condenser(CondenserConfig(max_length=14, **options), encoder)
    assert str(error.value) == message


def test_spans_longer_than_the_backbone_has_positions_for_are_refused() -> None:
    with pytest.raises(RetrievoError, match="--max-length: found 128; expected at most 64 for this backbone"):
        MaskedLanguageModel(MlmConfig(), model("roberta"))


def test_a_condenser_pools_its_first_token_and_masked_language_modeling_leaves_the_spec_alone() -> None:
    encoder = model()
    encoder.spec = dataclasses.replace(encoder.spec, pooling="mean", normalize=True, similarity="cosine")
    MaskedLanguageModel(MlmConfig(max_length=14), encoder)
    assert encoder.spec.pooling == "mean"
    Condenser(CondenserConfig(max_length=14), encoder)
    assert (encoder.spec.pooling, encoder.spec.normalize, encoder.spec.similarity) == ("cls", False, "dot")


def test_masked_language_modeling_lets_go_of_a_head_that_it_would_not_train() -> None:
    encoder = objective("condenser").encoder
    assert MaskedLanguageModel(MlmConfig(max_length=14), encoder).encoder.condenser is None


def test_a_condenser_needs_a_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_lm, "frame", lambda tokenization: Frame((), (3,)))
    with pytest.raises(RetrievoError, match="--model: a tokenizer that adds no token before a text"):
        Condenser(CondenserConfig(max_length=14), model())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_step_is_kept_once(name: str) -> None:
    """What shares its weights (backbone, output layer) is one parameter to the optimizer."""
    trained = objective(name)
    parameters = [id(parameter) for parameter in trained.parameters()]
    assert len(parameters) == len(set(parameters))
    step(trained, batch(trained))
    assert [key for key, parameter in trained.named_parameters() if parameter.grad is None] == []
