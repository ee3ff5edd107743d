"""Views of documents: which parts of a text an objective sees, seeded and at once for many texts (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrievo.data.sampling import random_keys

LEAST_SPAN = 8  # tokens; shorter spans say too little of their document
_FIRST, _SECOND = range(2)  # one stream of random numbers for each place


class Spans(NamedTuple):
    """k spans of each of n documents, all spans of a document of one length."""

    starts: np.ndarray  # [n, k]
    lengths: np.ndarray  # [n]


def cut_windows(lengths: np.ndarray, longest: int, keys: np.ndarray) -> Spans:
    """One span of each document, as long as `longest` allows, its place drawn uniformly.

    lengths: tokens of each document [n]; keys: what the draw comes from [n] uint64.
    """
    size = np.minimum(lengths, longest)
    return Spans(_below(lengths - size + 1, _FIRST, keys)[:, None], size)


def cut_pairs(lengths: np.ndarray, longest: int, keys: np.ndarray) -> Spans:
    """Two spans of each document that share no token: of min(longest, n // 2) tokens, their places drawn uniformly.

    All pairs of places are equally likely, in both orders. (The paper's spans have 128 tokens, from documents of the
    web; passages are shorter than two of those.)
    """
    size = np.minimum(longest, lengths // 2)
    free = lengths - 2 * size  # tokens outside both spans
    # two of free + 2 marks in a row: what is left of the lower one, and between them, is free
    first, second = _below(free + 2, _FIRST, keys), _below(free + 1, _SECOND, keys)
    second += second >= first
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    starts = np.stack([lower, upper - 1 + size], axis=1)
    return Spans(np.where((first < second)[:, None], starts, starts[:, ::-1]), size)


def cut_crops(windows: Spans, shortest: float, longest: float, keys: np.ndarray) -> Spans:
    """One crop of each window: its length drawn uniformly from a range, then its place from where it fits.

    The range is `shortest` to `longest` as shares of the window, at least `LEAST_SPAN` tokens (Contriever, Izacard et
    al. 2021, appendix A). Crops with other keys are independent and may overlap.
    windows: one of each document, at least `LEAST_SPAN` tokens long.
    """
    low, high = crop_lengths(windows.lengths, shortest, longest)
    size = low + _below(high - low + 1, _FIRST, keys)
    return Spans(windows.starts + _below(windows.lengths - size + 1, _SECOND, keys)[:, None], size)


def crop_lengths(windows: np.ndarray, shortest: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Fewest and most tokens of a crop of windows of so many tokens [n]: [n], [n]."""
    low, high = (np.rint(share * windows).astype(np.int64) for share in (shortest, longest))
    return np.maximum(low, LEAST_SPAN), np.maximum(high, LEAST_SPAN)


def cut_query(windows: Spans, shortest: float, longest: float, keys: np.ndarray) -> Spans:
    """As `cut_crops`, but never so long that fewer than `LEAST_SPAN` tokens of the window are left.

    windows: one of each document, at least 2 x `LEAST_SPAN` tokens long.
    """
    cut = cut_crops(windows, shortest, longest, keys)
    size = np.minimum(cut.lengths, windows.lengths - LEAST_SPAN)
    return Spans(np.minimum(cut.starts, (windows.starts[:, 0] + windows.lengths - size)[:, None]), size)


def without(tokens: np.ndarray, offsets: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat rows without the tokens that are `gone` [T] bool."""
    return tokens[~gone], np.concatenate([[0], np.cumsum(~gone)])[offsets]


def inside(offsets: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether each token of flat rows lies in the span of its row [T] bool; starts [n] count from the row's first."""
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1] + starts, np.diff(offsets))
    return (position >= 0) & (position < np.repeat(lengths, np.diff(offsets)))


def _below(bounds: np.ndarray, stream: int, keys: np.ndarray) -> np.ndarray:
    """A number in 0 ... bound - 1 for each document; the bias of the remainder is below n / 2^64."""
    return (random_keys(stream, keys) % bounds.astype(np.uint64)).astype(np.int64)


def gather(texts: Sequence[np.ndarray], spans: Spans) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of all spans, document after document: flat tokens [T] and offsets [n k + 1]."""
    pairs = zip(texts, spans.starts.tolist(), spans.lengths.tolist(), strict=True)
    parts = [text[start : start + size] for text, starts, size in pairs for start in starts]
    lengths = np.repeat(spans.lengths, spans.starts.shape[1])
    return np.concatenate([np.empty(0, np.int64), *parts]), np.concatenate([[0], np.cumsum(lengths)])


def whole_sentences(
    tokens: np.ndarray, offsets: np.ndarray, ends: np.ndarray, opening: np.ndarray, closing: np.ndarray
) -> np.ndarray:
    """Which tokens stay [T] bool when each span begins and ends with a sentence.

    What comes before the first end of a sentence in the span goes, and what comes after the last one; a span of which
    fewer than `LEAST_SPAN` tokens would stay stays whole.

    tokens [T], offsets [m + 1]: flat spans. ends: whether a token ends a sentence, by token id [V].
    opening, closing: whether a span begins or ends with its document, where a sentence does too [m] bool.
    """
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    final = np.flatnonzero(ends[tokens])
    first, last = np.full((2, len(offsets) - 1), -1)  # the ends of sentences before and in what stays
    last[rows[final]] = final
    first[rows[final[::-1]]] = final[::-1]
    first, last = np.where(opening, offsets[:-1] - 1, first), np.where(closing, offsets[1:] - 1, last)
    position = np.arange(len(tokens))
    kept = (position > first[rows]) & (position <= last[rows])
    return kept | (last - first < LEAST_SPAN)[rows]
