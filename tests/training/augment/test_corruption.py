"""Deleted, replaced and masked tokens: how many, which, and that every token has a lot of its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining_ranks import syllables

from retrievo.data.sampling import random_keys
from retrievo.training.augment.corruption import Corruption
from retrievo.training.augment.masking import Vocabulary

WORDS = Vocabulary.of(syllables(), whole_word=False)
ROWS = 400


def corrupted(length: int = 50, **shares: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens before, and tokens and offsets after."""
    tokens = np.tile(np.arange(5, 5 + length) % 60, ROWS)
    offsets = np.arange(0, ROWS * length + 1, length)
    return tokens, *Corruption(**shares, vocabulary=WORDS)(tokens, offsets, random_keys(0, np.arange(ROWS)))


def test_without_shares_nothing_changes() -> None:
    before, tokens, offsets = corrupted()
    assert np.array_equal(before, tokens)
    assert np.array_equal(np.diff(offsets), np.full(ROWS, 50))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_shares_are_what_was_asked_for(share: float) -> None:
    before, tokens, offsets = corrupted(delete=share)
    assert offsets[-1] == len(tokens) == pytest.approx((1 - share) * len(before), rel=0.03)
    _, tokens, _ = corrupted(mask=share)
    assert (tokens == WORDS.mask_id).mean() == pytest.approx(share, rel=0.05)
    _, tokens, _ = corrupted(replace=share)
    assert (tokens != before).mean() == pytest.approx(share * (1 - 1 / len(WORDS.drawn)), rel=0.05)
    assert set(tokens) <= {*WORDS.drawn, *before}
    _, tokens, _ = corrupted(replace=share / 2, mask=share / 2)
    assert (tokens == WORDS.mask_id).mean() == pytest.approx(share / 2, rel=0.1)
    assert (tokens != before).mean() == pytest.approx(share, rel=0.05)


def test_deletion_keeps_the_order_and_never_empties_a_row() -> None:
    tokens, offsets = np.arange(900), np.arange(0, 901, 3)
    left, bounds = Corruption(delete=0.9)(tokens, offsets, random_keys(0, np.arange(300)))
    assert np.all(np.diff(left) > 0)
    assert np.diff(bounds).min() >= 1
    assert all(3 * row <= token < 3 * row + 3 for row, token in enumerate(left[bounds[:-1]]))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_a_row_depends_on_its_own_key_only(lengths: list[int], seed: int) -> None:
    corruption = Corruption(delete=0.3, replace=0.2, mask=0.2, vocabulary=WORDS)
    offsets, keys = np.cumsum([0, *lengths]), random_keys(seed, np.arange(len(lengths)))
    tokens = random_keys(1, np.arange(offsets[-1])).astype(np.int64) % 30 + 6
    together, bounds = corruption(tokens, offsets, keys)
    for row, (low, high) in enumerate(pairwise(offsets)):
        alone, _ = corruption(tokens[low:high], np.array([0, high - low]), keys[row : row + 1])
        assert np.array_equal(together[bounds[row] : bounds[row + 1]], alone)
