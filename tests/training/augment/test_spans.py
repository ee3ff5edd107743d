"""Spans of documents: apart, in range, everywhere equally likely, and whole sentences where asked."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data.sampling import random_keys
from retrievo.training.augment.spans import LEAST_SPAN, Spans, cut_pairs, cut_windows, gather, whole_sentences

lengths_of_documents = st.lists(st.integers(1, 400), min_size=1, max_size=30)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return random_keys(seed, np.arange(count))


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_of_documents, longest=st.integers(1, 200), seed=st.integers(0, 1000))
def test_two_spans_share_no_token_and_have_the_length_that_fits(lengths: list[int], longest: int, seed: int) -> None:
    tokens = np.array(lengths)
    spans = cut_pairs(tokens, longest, keys(len(tokens), seed))
    assert spans.lengths.tolist() == [min(longest, length // 2) for length in lengths]
    low, high = np.sort(spans.starts, axis=1).T
    assert (low >= 0).all()
    assert (low + spans.lengths <= high).all()
    assert (high + spans.lengths <= tokens).all()


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_of_documents, longest=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_window_is_as_long_as_it_can_be_and_lies_in_its_document(lengths: list[int], longest: int, seed: int) -> None:
    tokens = np.array(lengths)
    windows = cut_windows(tokens, longest, keys(len(tokens), seed))
    assert windows.lengths.tolist() == [min(longest, length) for length in lengths]
    assert (windows.starts[:, 0] >= 0).all()
    assert (windows.starts[:, 0] + windows.lengths <= tokens).all()


@settings(max_examples=50, deadline=None)
@given(lengths=lengths_of_documents, seed=st.integers(0, 1000))
def test_spans_depend_on_their_own_document_and_key_only(lengths: list[int], seed: int) -> None:
    tokens, drawn = np.array(lengths), keys(len(lengths), seed)
    for cut in (cut_pairs, cut_windows):
        together = cut(tokens, 20, drawn).starts
        apart = [cut(tokens[i : i + 1], 20, drawn[i : i + 1]).starts[0] for i in range(len(lengths))]
        assert np.array_equal(together, np.array(apart))


def assert_uniform(counts: Counter, kinds: int, draws: int) -> None:
    """Each kind is within 5 standard deviations of draws / kinds."""
    assert len(counts) == kinds
    expected = draws / kinds
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_all_pairs_of_places_are_equally_likely_in_both_orders() -> None:
    draws = 56_000
    spans = cut_pairs(np.full(draws, 12), 3, keys(draws))
    assert_uniform(Counter(map(tuple, spans.starts.tolist())), kinds=2 * 7 * 8 // 2, draws=draws)


def test_all_places_of_a_window_are_equally_likely() -> None:
    draws = 20_000
    windows = cut_windows(np.full(draws, 12), 3, keys(draws))
    assert_uniform(Counter(windows.starts[:, 0].tolist()), kinds=10, draws=draws)


def test_tokens_of_spans_are_gathered_document_after_document() -> None:
    texts = [np.arange(10, dtype=np.uint16), np.arange(100, 104, dtype=np.uint16)]
    tokens, offsets = gather(texts, Spans(np.array([[5, 0], [1, 3]]), np.array([3, 1])))
    assert tokens.tolist() == [5, 6, 7, 0, 1, 2, 101, 103]
    assert offsets.tolist() == [0, 3, 6, 7, 8]
    tokens, offsets = gather([], Spans(np.empty((0, 2), int), np.empty(0, int)))
    assert (len(tokens), offsets.tolist()) == (0, [0])


ENDS = np.array([False, True])  # token 1 ends a sentence


def kept_of(rows: list[str], opening: list[bool], closing: list[bool]) -> list[str]:
    """What stays of spans written as `..|..`, where | is the end of a sentence."""
    tokens = np.array([int(sign == "|") for row in rows for sign in row], np.int64)
    offsets = np.cumsum([0, *map(len, rows)])
    kept = whole_sentences(tokens, offsets, ENDS, np.array(opening, bool), np.array(closing, bool))
    signs = np.array(list("".join(rows)))
    return ["".join(signs[low:high][kept[low:high]]) for low, high in pairwise(offsets)]


def test_spans_are_trimmed_to_whole_sentences() -> None:
    rows = ["...|.........|...", "|........|", "....|.......|"]
    assert kept_of(rows, [False] * 3, [False] * 3) == [".........|", "........|", ".......|"]


def test_a_document_begins_and_ends_with_a_sentence() -> None:
    row = "....|......|......"
    assert kept_of([row] * 4, [False, True, False, True], [False, False, True, True]) == [
        row,  # seven tokens would be too few
        "....|......|",
        "......|......",
        row,
    ]


def test_too_little_is_not_left() -> None:
    exact = "." * (LEAST_SPAN - 1) + "|"
    assert kept_of(["|" + exact, "|" + exact[1:], "....", ""], [False] * 4, [False] * 4) == [
        exact,
        "|" + exact[1:],
        "....",
        "",
    ]
    assert kept_of([], [], []) == []
