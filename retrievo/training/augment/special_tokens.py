"""The input of document collators, and the tokenizer's frame of special tokens around each view."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch

from retrievo.models.tokens import Tokenization
from retrievo.training.batch import Rows


class Document(NamedTuple):
    """A document from which a collator cuts views."""

    tokens: np.ndarray  # [n] token ids without the tokenizer's frame ([CLS] ... [SEP])
    key: np.uint64  # the key of the random draws of its views and masks


class Frame(NamedTuple):
    """The tokens before and after a text: special tokens, and the model's prefix if it has one."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of tokens that the frame adds to a text."""
        return len(self.before) + len(self.after)


def frame(tokenization: Tokenization) -> Frame:
    """The frame that a tokenization puts around a text, including its prefix."""

    def tokens(text: str, special: bool) -> list[int]:
        plain = dataclasses.replace(tokenization, max_length=None, prefix="", special_tokens=special)
        return list(map(int, plain.tokenize([text]).tokens))

    bare, whole = tokens("a", False), tokens("a", True)
    first = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    # without the space at its end, which belongs to the word that follows
    prefix = tokens(tokenization.prefix.rstrip(), False)
    return Frame((*whole[:first], *prefix), tuple(whole[first + len(bare) :]))


def framed(flat: np.ndarray, offsets: np.ndarray, frame: Frame) -> Rows:
    """Puts the frame around each of the flat rows (tokens [T], offsets [n + 1])."""
    (before, after), more = frame, frame.size
    place = offsets + more * np.arange(len(offsets))
    result = np.empty(place[-1], np.int64)
    result[np.arange(len(flat)) + np.repeat(place[:-1] + len(before) - offsets[:-1], np.diff(offsets))] = flat
    result[place[:-1, None] + np.arange(len(before))] = before
    result[place[1:, None] - len(after) + np.arange(len(after))] = after
    return Rows(torch.from_numpy(result), torch.from_numpy(place))
