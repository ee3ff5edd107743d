"""The feed of pre-training: which documents, in which order, in whose batch, and what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pretraining_ranks import objective, texts, write_corpus

from retrievo.data.corpus import Corpus
from retrievo.support.errors import RetrievoError
from retrievo.training.augment.masking import IGNORED
from retrievo.training.feeds import pretrain
from retrievo.training.feeds.pretrain import PretrainFeed

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ["ba be bi", "", "ba be bi bo bu ba be", "da " * 15]  # the last has one token too few for two spans
STEP = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """10 documents long enough for two spans, and 4 too short."""
    documents = texts(10, seed=1, shortest=16)
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    return Corpus(write_corpus(path, [*documents[:5], *SHORT, *documents[5:]]))


def feed(corpus: Corpus, name: str = "cocondenser", **options: Any) -> PretrainFeed:
    trained = objective(name)
    options = {"batch_size": STEP, "seed": 0, **options}
    return PretrainFeed([corpus], trained.encoder, trained.collator(), **options)


def spans(made: PretrainFeed, step: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Masked tokens and labels of each span of a step."""
    batch = made.batch(step)
    rows, labels = batch.rows["span"], batch.labels["span"]
    bounds = list(pairwise(rows.offsets.tolist()))
    return [(tuple(rows.tokens[low:high].tolist()), tuple(labels[low:high].tolist())) for low, high in bounds]


def epoch(made: PretrainFeed, number: int = 0) -> list[Any]:
    first = number * made.batches_per_epoch
    return [span for step in range(first, first + made.batches_per_epoch) for span in spans(made, step)]


def test_each_document_that_is_long_enough_comes_once_an_epoch_in_a_new_order(corpus: Corpus) -> None:
    made = feed(corpus)
    rows = made.corpora[0].rows.tolist()
    assert rows == [0, 1, 2, 3, 4, 9, 10, 11, 12, 13]
    orders = [made._epoch(number).row.tolist() for number in range(3)]
    assert all(sorted(order) == rows for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert feed(corpus, seed=1)._epoch(0).row.tolist() != orders[0]


def test_the_last_batch_of_an_epoch_is_smaller_and_the_next_epoch_goes_on(corpus: Corpus) -> None:
    made = feed(corpus)
    assert [made.batch(step).counts["documents"] for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [made.position(step) for step in (0, 2, 3)] == [
        {"epoch": 0, "batch": 0},
        {"epoch": 0, "batch": 2},
        {"epoch": 1, "batch": 0},
    ]


def test_what_is_left_out_depends_on_the_spans_and_is_said(corpus: Corpus, said: Callable[[], str]) -> None:
    pairs, single = feed(corpus), feed(corpus, "mlm")
    assert (pairs.corpora[0].left_out, single.corpora[0].left_out) == (4, 3)
    assert 8 in single.corpora[0].rows  # 15 tokens
    pairs.say_counts()
    told = " ".join(said().split())
    assert "10 documents of" in told
    assert "2 x 12 of them are seen in an epoch" in told
    assert "left out 4 documents with fewer than 16 tokens" in told


def test_a_corpus_of_short_documents_is_used_whole(tmp_path: Path) -> None:
    """Passages are shorter than two full spans; each gives two of half its length."""
    trained = objective("cocondenser", max_length=64)
    short = Corpus(write_corpus(tmp_path / "corpus.parquet", ["ba be bi bo bu " * 4] * 6))
    made = PretrainFeed([short], trained.encoder, trained.collator(), batch_size=6, seed=0)
    assert made.corpora[0].left_out == 0
    assert made.batch(0).rows["span"].lengths.tolist() == [10 + 2] * 12


def test_a_corpus_most_of_whose_documents_are_too_short_is_refused(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus.parquet", [*SHORT[:3], *texts(2, shortest=16)])
    message = "3 of 5 documents have fewer than 16 tokens; expected room for 2 spans of 8 tokens in most"
    with pytest.raises(RetrievoError, match=message):
        feed(Corpus(path))


def test_a_batch_is_a_function_of_seed_and_step(corpus: Corpus) -> None:
    forward, backward = feed(corpus), feed(corpus)
    steps = list(range(5))
    expected = [spans(forward, step) for step in steps]
    assert [spans(backward, step) for step in reversed(steps)] == expected[::-1]
    assert spans(feed(corpus, seed=1), 0) != expected[0]


def test_spans_and_masks_of_a_document_depend_on_the_epoch_and_not_on_the_batch(corpus: Corpus) -> None:
    small, large = feed(corpus), feed(corpus, batch_size=10)
    first = epoch(large)
    assert sorted(epoch(small)) == sorted(first)
    assert not set(first) & set(epoch(large, 1))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_a_batch_document_by_document(corpus: Corpus, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = feed(corpus)
    expected = [spans(made, step) for step in range(3)]
    monkeypatch.setattr(pretrain, "world_size", lambda: ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(pretrain, "rank", lambda rank=rank: rank)
        parts.append([spans(made, step) for step in range(3)])
    for step, whole in enumerate(expected):
        assert [span for part in parts for span in part[step]] == whole
        assert all(len(part[step]) % 2 == 0 for part in parts)


def test_titles_are_read_prefixes_are_not_and_texts_are_not_truncated(tmp_path: Path) -> None:
    trained = objective("mlm", max_length=64)
    table = {"id": ["a"], "title": ["ga gi"], "text": ["ba " * 100]}
    pq.write_table(pa.table(table), tmp_path / "corpus.parquet")
    trained.encoder.spec = dataclasses.replace(trained.encoder.spec, document_prefix="bu bu ")
    made = PretrainFeed(
        [Corpus(tmp_path / "corpus.parquet")], trained.encoder, trained.collator(), batch_size=1, seed=0
    )
    words = trained.encoder.tokenizer.convert_ids_to_tokens(made.corpora[0].tokens.row(0).tolist())
    assert words == ["ga", "gi", *["ba"] * 100]


def test_labels_hold_what_the_mask_hides(corpus: Corpus) -> None:
    made = feed(corpus)
    batch = made.batch(0)
    labels, seen = batch.labels["span"], batch.rows["span"].tokens
    hidden = seen == 4
    assert 0 < hidden.sum() < (labels != IGNORED).sum()
    assert torch.all(labels[hidden] >= 5)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    """Corpora of 30 and 6 documents."""
    folder = tmp_path_factory.mktemp("corpora")
    return [
        Corpus(write_corpus(folder / f"{count}.parquet", texts(count, seed=count, shortest=16))) for count in (30, 6)
    ]


def mixed(corpora: list[Corpus], **options: Any) -> PretrainFeed:
    trained = objective("cocondenser")
    return PretrainFeed(corpora, trained.encoder, trained.collator(), **{"batch_size": 8, "seed": 0, **options})


@pytest.mark.parametrize(("mix", "expected"), [("uniform", [30, 6]), ("equal", [18, 18]), ("1,8", [4, 32])])
def test_each_corpus_has_its_share_of_every_epoch(corpora: list[Corpus], mix: str, expected: list[int]) -> None:
    made = mixed(corpora, mix=mix)
    assert made.places == expected
    for number in range(3):
        assert np.bincount(made._epoch(number).source).tolist() == expected
    drawn = made._epoch(0).source.tolist()
    assert drawn not in (sorted(drawn), sorted(drawn, reverse=True))  # shuffled, not one corpus after the other


def test_documents_of_a_corpus_come_equally_often_with_other_views_each_time(corpora: list[Corpus]) -> None:
    made = mixed(corpora, mix="equal")
    seen = np.zeros((2, 30), int)
    for number in range(5):
        found = made._epoch(number)
        np.add.at(seen, (found.source, found.row), 1)
        assert np.ptp(seen[0]) <= 1
        assert np.ptp(seen[1, :6]) == 0  # 18 places, 6 documents: each three times
    first = made._epoch(0)
    turns = sorted(zip(first.row[first.source == 1], first.turn[first.source == 1], strict=True))
    assert turns == [(row, turn) for row in range(6) for turn in range(3)]
    items = [item for step in range(made.batches_per_epoch) for item in made.items(step)]
    assert len({int(item.key) for item in items}) == 36


def test_a_mixed_batch_is_a_function_of_seed_and_step(corpora: list[Corpus]) -> None:
    forward, backward = mixed(corpora, mix="alpha=0.5"), mixed(corpora, mix="alpha=0.5")
    expected = [spans(forward, step) for step in range(12)]
    assert [spans(backward, step) for step in reversed(range(12))] == expected[::-1]


def test_held_out_documents_are_never_trained_on_and_always_seen_alike(corpora: list[Corpus]) -> None:
    made = mixed(corpora, held_out=12)
    kept = [set(source.held_out.tolist()) for source in made.corpora]
    assert [len(rows) for rows in kept] == [10, 2]
    for number in range(3):
        found = made._epoch(number)
        trained = [set(found.row[found.source == source].tolist()) for source in range(2)]
        assert trained == [set(range(30)) - kept[0], set(range(6)) - kept[1]]
        assert len(found.row) == 24
    once, again = ([batch.rows["span"].tokens for batch in made.held_out_batches()] for _ in range(2))
    assert len(once) == 2  # of 8 and of 4 documents
    assert all(torch.equal(left, right) for left, right in zip(once, again, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_each_objective_of_a_road_holds_the_same_documents_out(corpus: Corpus, seed: int) -> None:
    made = [feed(corpus, name, held_out=4, seed=seed) for name in ("condenser", "cocondenser")]
    first, second = (feed.corpora[0].held_out.tolist() for feed in made)
    assert first == second
    assert len(first) == 4


def test_at_most_half_of_a_corpus_can_be_held_out(corpora: list[Corpus]) -> None:
    with pytest.raises(RetrievoError, match=r"--held-out: asks for 6 of the 6 documents of .*6.parquet"):
        mixed(corpora, held_out=12, mix="equal")


def test_blocks_of_offsets_find_the_same_documents() -> None:
    offsets = np.cumsum([0, *np.random.default_rng(0).integers(0, 30, 100)])
    expected = np.flatnonzero(np.diff(offsets) >= 16)
    for block in (1, 7, 1000):
        assert pretrain._long_enough(offsets, 16, block).tolist() == expected.tolist()
