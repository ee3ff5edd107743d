"""Views of documents: seeded spans, pairs of spans and crops, cut for many texts at once in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrievo.data.sampling import random_keys

LEAST_SPAN = 8  # tokens; shorter spans carry too little of their document
_FIRST, _SECOND = range(2)  # one stream of random numbers for each draw


class Spans(NamedTuple):
    """k spans of each of n documents; the spans of one document have the same length."""

    starts: np.ndarray  # [n, k]
    lengths: np.ndarray  # [n]


def cut_windows(lengths: np.ndarray, longest: int, keys: np.ndarray) -> Spans:
    """Cuts one span of min(longest, n) tokens from each document of n tokens, at a uniformly drawn position.

    lengths: number of tokens of each document [n]; keys: the keys of the random draws [n] uint64.
    """
    size = np.minimum(lengths, longest)
    return Spans(_below(lengths - size + 1, _FIRST, keys)[:, None], size)


def cut_pairs(lengths: np.ndarray, longest: int, keys: np.ndarray) -> Spans:
    """Cuts two disjoint spans of min(longest, n // 2) tokens from each document of n tokens, at random positions.

    All pairs of positions are equally likely, in both orders. The paper cuts spans of 128 tokens from web documents;
    passages are too short for two of those.
    """
    size = np.minimum(longest, lengths // 2)
    free = lengths - 2 * size  # tokens outside both spans
    # draws two of free + 2 marks: the tokens below the lower mark, and between the marks, are outside both spans
    first, second = _below(free + 2, _FIRST, keys), _below(free + 1, _SECOND, keys)
    second += second >= first
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    starts = np.stack([lower, upper - 1 + size], axis=1)
    return Spans(np.where((first < second)[:, None], starts, starts[:, ::-1]), size)


def cut_crops(windows: Spans, shortest: float, longest: float, keys: np.ndarray) -> Spans:
    """Cuts one crop from each window: first its length is drawn uniformly from a range, then its position.

    The range is `shortest` to `longest` as shares of the window, at least `LEAST_SPAN` tokens (Contriever, Izacard et
    al. 2021, appendix A). Crops with other keys are independent and may overlap.
    windows: one of each document, at least `LEAST_SPAN` tokens long.
    """
    low, high = crop_lengths(windows.lengths, shortest, longest)
    size = low + _below(high - low + 1, _FIRST, keys)
    return Spans(windows.starts + _below(windows.lengths - size + 1, _SECOND, keys)[:, None], size)


def crop_lengths(windows: np.ndarray, shortest: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest number of tokens of a crop, for windows of these lengths [n]: [n], [n]."""
    low, high = (np.rint(share * windows).astype(np.int64) for share in (shortest, longest))
    return np.maximum(low, LEAST_SPAN), np.maximum(high, LEAST_SPAN)


def cut_query(windows: Spans, shortest: float, longest: float, keys: np.ndarray) -> Spans:
    """Cuts crops as `cut_crops` does, but leaves at least `LEAST_SPAN` tokens of each window outside.

    windows: one of each document, at least 2 x `LEAST_SPAN` tokens long.
    """
    cut = cut_crops(windows, shortest, longest, keys)
    size = np.minimum(cut.lengths, windows.lengths - LEAST_SPAN)
    return Spans(np.minimum(cut.starts, (windows.starts[:, 0] + windows.lengths - size)[:, None]), size)


def without(tokens: np.ndarray, offsets: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat rows without the tokens that are `gone` [T] bool."""
    return tokens[~gone], np.concatenate([[0], np.cumsum(~gone)])[offsets]


def inside(offsets: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether each token of flat rows is in the span of its row [T] bool; starts [n] count within the row."""
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1] + starts, np.diff(offsets))
    within: np.ndarray = (position >= 0) & (position < np.repeat(lengths, np.diff(offsets)))
    return within


def _below(bounds: np.ndarray, stream: int, keys: np.ndarray) -> np.ndarray:
    """Draws a number in 0 ... bound - 1 for each document; the modulo bias is below bound / 2^64."""
    return (random_keys(stream, keys) % bounds.astype(np.uint64)).astype(np.int64)


def gather(texts: Sequence[np.ndarray], spans: Spans) -> tuple[np.ndarray, np.ndarray]:
    """Copies the tokens of all spans, document after document, into flat tokens [T] and offsets [n k + 1]."""
    pairs = zip(texts, spans.starts.tolist(), spans.lengths.tolist(), strict=True)
    parts = [text[start : start + size] for text, starts, size in pairs for start in starts]
    lengths = np.repeat(spans.lengths, spans.starts.shape[1])
    return np.concatenate([np.empty(0, np.int64), *parts]), np.concatenate([[0], np.cumsum(lengths)])


def whole_sentences(
    tokens: np.ndarray, offsets: np.ndarray, ends: np.ndarray, opening: np.ndarray, closing: np.ndarray
) -> np.ndarray:
    """Which tokens to keep [T] bool so that each span begins and ends at a sentence boundary.

    The tokens up to the first end of a sentence in the span are dropped, and the tokens after the last one. A span that
    would keep fewer than `LEAST_SPAN` tokens is kept whole.

    tokens [T], offsets [m + 1]: flat spans. ends: whether a token ends a sentence, by token id [V].
    opening, closing: whether a span begins or ends with its document, where a sentence does too [m] bool.
    """
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    final = np.flatnonzero(ends[tokens])
    first, last = np.full((2, len(offsets) - 1), -1)  # the last ends of sentences before and within the kept tokens
    last[rows[final]] = final
    first[rows[final[::-1]]] = final[::-1]
    first, last = np.where(opening, offsets[:-1] - 1, first), np.where(closing, offsets[1:] - 1, last)
    position = np.arange(len(tokens))
    kept: np.ndarray = (position > first[rows]) & (position <= last[rows])
    kept |= (last - first < LEAST_SPAN)[rows]
    return kept
