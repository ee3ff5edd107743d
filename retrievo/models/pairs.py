"""Joins a query and a document into one row of tokens for a cross-encoder (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrievo.models.tokens import Tokenization
from retrievo.support.values import Values

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Frame(NamedTuple):
    """The special tokens around two texts, in BERT [CLS] query [SEP] document [SEP]."""

    special: tuple[np.ndarray, np.ndarray, np.ndarray]  # before, between and after the texts
    segments: tuple[np.ndarray | int, ...]  # of the five parts


@dataclass(frozen=True)
class PairTokenization:
    """How pairs become token ids; picklable, holds no model.

    tokenizer_json: content of a `tokenizer.json`. max_length: most tokens of a pair, special tokens included; the
    longer of the two texts is truncated, as transformers' `longest_first` does. title_template: of documents.
    type_stride: where segments count, a token of segment 1 is its id + type_stride, so that a row carries both; 0 =
    the model knows no segments. query_prefix: text put before each query.
    """

    tokenizer_json: str
    max_length: int
    title_template: str
    type_stride: int
    query_prefix: str = ""

    @cached_property
    def query(self) -> Tokenization:
        """Queries without special tokens."""
        return Tokenization(self.tokenizer_json, self.max_length, self.query_prefix, special_tokens=False)

    @cached_property
    def document(self) -> Tokenization:
        """Documents without special tokens, titles and texts joined."""
        return Tokenization(
            self.tokenizer_json, self.max_length, title_template=self.title_template, special_tokens=False
        )

    def row(self, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        """The tokens of one pair, int64 [L]."""
        frame, stride = self._frame, self.type_stride
        first, second = kept_lengths(len(query), len(document), self.room)
        before, between, after = frame.special
        parts = (before, query[:first], between, document[:second], after)
        return np.concatenate(
            [part.astype(np.int64) + stride * segment for part, segment in zip(parts, frame.segments, strict=True)]
        )

    def rows(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Flat tokens [T] and offsets [n + 1] of pairs."""
        rows = [self.row(query, document) for query, document in pairs]
        return np.concatenate([np.empty(0, np.int64), *rows]), np.cumsum([0, *map(len, rows)])

    @property
    def room(self) -> int:
        """The number of tokens left for both texts."""
        return self.max_length - sum(map(len, self._frame.special))

    @cached_property
    def _frame(self) -> Frame:
        from tokenizers import Tokenizer

        tokenizer: Tokenizer = Tokenizer.from_str(self.query.tokenizer_json)
        probe = tokenizer.encode("a", "a")
        ids, types = np.asarray(probe.ids), np.asarray(probe.type_ids)
        sequence = np.asarray([-1 if one is None else one for one in probe.sequence_ids])
        first, second = np.flatnonzero(sequence == 0), np.flatnonzero(sequence == 1)
        start, middle, end = slice(first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, None)
        segments = (types[start], int(types[first[0]]), types[middle], int(types[second[0]]), types[end])
        return Frame((ids[start], ids[middle], ids[end]), segments)

    def __getstate__(self) -> Values:
        return {field.name: vars(self)[field.name] for field in fields(self)}


def kept_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """The numbers of tokens kept of two texts in `room` tokens together: the longer text is truncated first.

    Where both are longer than half of the room, the shorter text keeps room // 2 tokens and the longer one the rest
    (`longest_first` of the `tokenizers` library).
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)
