"""The part of a text that a person should see: the window with the most matches."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

LOOKED_AT = 100_000  # characters of a document in which matches are looked for: a book would take seconds
Span = tuple[int, int]


class Snippet(NamedTuple):
    """A window of a text, on one line, and the spans of its matches inside it."""

    text: str
    spans: tuple[Span, ...]


def snippet(text: str, spans: Sequence[Span], width: int = 240) -> Snippet:
    """The window of about `width` characters that covers the most match characters; the earliest where several do.

    spans: (start, end) of the matches in `text`, in order and apart. Cuts fall between words and are marked by an
           ellipsis.
    """
    if len(text) <= width:
        return _on_one_line(text, 0, len(text), spans)
    left = min(_densest(spans, width), len(text) - width)
    return _on_one_line(text, _word_start(text, left), _word_end(text, left + width), spans)


def _densest(spans: Sequence[Span], width: int) -> int:
    """Where the window begins that covers the most match characters: at 0, or an eighth of it before a match."""
    begins, ends = [start for start, _ in spans], [end for _, end in spans]
    before = [0, *accumulate(end - start for start, end in spans)]  # match characters before each span
    best, most = 0, -1
    for left in (0, *(max(0, start - width // 8) for start in begins)):
        first, last = bisect_left(begins, left), bisect_right(ends, left + width)
        covered = before[max(first, last)] - before[first]
        if covered > most:
            best, most = left, covered
    return best


def _word_start(text: str, position: int) -> int:
    """The first position from here that begins a word."""
    if position == 0 or text[position - 1].isspace():
        return position
    space = next((place for place in range(position, min(position + 30, len(text))) if text[place].isspace()), position)
    return space + (space != position)


def _word_end(text: str, position: int) -> int:
    """The last position up to here that ends a word."""
    if position >= len(text) or text[position].isspace():
        return min(position, len(text))
    return next((place for place in range(position, max(position - 30, 0), -1) if text[place].isspace()), position)


def _on_one_line(text: str, left: int, right: int, spans: Sequence[Span]) -> Snippet:
    """White space keeps its length when line ends become spaces, so that the spans stay true."""
    before, after = "… " if left > 0 else "", " …" if right < len(text) else ""
    window = "".join(" " if letter.isspace() else letter for letter in text[left:right])
    shift = len(before) - left
    inside = tuple((start + shift, end + shift) for start, end in spans if start >= left and end <= right)
    return Snippet(before + window + after, inside)


def same_words(question: str, text: str) -> list[Span]:
    """Spans of the words in `text` that occur in the question, case aside; words of one or two letters are passed over.

    For dense search, which has no analyzer: what matched is not known, so this only guides the eye.
    """
    wanted = set(re.findall(r"\w{3,}", question.lower()))
    return [found.span() for found in re.finditer(r"\w{3,}", text) if found.group().lower() in wanted]
