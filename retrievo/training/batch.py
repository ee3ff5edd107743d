"""The input of one training step: flat token ids of named sets of sequences, with what the losses need to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrievo.models.devices import sent

Stats = dict[str, Tensor]
"""Metrics of a step by name, as 0-dim tensors. Like a loss, each is this rank's share (a sum over its rows / the count
over all ranks), so that the sum over ranks is the value for the global batch."""


def flat(arrays: Sequence[np.ndarray]) -> Tensor:
    """The concatenation of arrays as one int64 tensor; unsigned 64-bit hashes keep their bits."""
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *(array.astype(np.int64) for array in arrays)]))


class Rows(NamedTuple):
    """One named set of n sequences without padding: row i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: Tensor  # [T] token ids
    offsets: Tensor  # [n + 1] int64

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Rows:
        """Makes rows from n arrays of token ids."""
        return cls(flat(sequences), torch.tensor([0, *map(len, sequences)]).cumsum(0))

    @property
    def size(self) -> int:
        """Number of sequences n."""
        return self.offsets.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row [n]."""
        return self.offsets.diff()


class Chunk(NamedTuple):
    """A part of one named set, padded to its longest row. An objective encodes one chunk at a time."""

    name: str
    rows: Tensor  # [n] row numbers in the named set
    input_ids: Tensor  # [n, L]
    attention_mask: Tensor  # [n, L]


class Relevant(NamedTuple):
    """The documents that must not be negatives of each query, by row number in the corpus and by text identity."""

    ids: Tensor  # [R]
    hashes: Tensor  # [R]
    offsets: Tensor  # [B + 1]; query i: offsets[i]:offsets[i + 1]
    itself: Tensor | None = (
        None  # [R] bool: entries that are the query itself, and so not positives either; None = none
    )

    def to(self, device: torch.device) -> Relevant:
        """The same documents on a device."""
        ids, hashes, offsets = (sent(tensor, device) for tensor in (self.ids, self.hashes, self.offsets))
        return Relevant(ids, hashes, offsets, None if self.itself is None else sent(self.itself, device))

    def themselves(self) -> Relevant | None:
        """Only the entries that are the query itself; None where there are none."""
        if self.itself is None or not self.itself.any():
            return None
        before = torch.cat([self.offsets[:1], self.itself.cumsum(0)])  # [R + 1]
        return Relevant(self.ids[self.itself], self.hashes[self.itself], before[self.offsets])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's part of one step, as a collator makes it: without padding, independent of the model, picklable.

    rows:     the named sets of sequences; the engine encodes them in the order of this dictionary.
    pad_ids:  token id that pads each named set.
    counts:   the divisors of sums (`pairs`, masked tokens ...). A collator counts its own part; the engine replaces the
              counts by their sums over all ranks before an objective sees the batch.
    ids:      row number of each sequence of a named set in its table [n] int64.
    hashes:   text identity of each sequence of a named set [n] int64.
    groups:   documents of each query, its positive first [B]; sums to the number of documents.
    relevant: the documents that must not be negatives of each query.
    teacher:  a teacher's score of each document of a group [n], NaN where a score is missing.
    teacher_vectors: a second teacher's vectors of the queries [B, Dt] and of the documents [n, Dt], float32.
    labels:   a label for each token of a named set [T], -100 where a token is not predicted.
    """

    rows: dict[str, Rows]
    counts: dict[str, int]
    pad_ids: dict[str, int] = field(default_factory=dict)
    ids: dict[str, Tensor] = field(default_factory=dict)
    hashes: dict[str, Tensor] = field(default_factory=dict)
    groups: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    relevant: Relevant | None = None
    teacher: Tensor | None = None
    teacher_vectors: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch with the tensors that losses read on `device`; token ids stay in main memory."""
        if device.type == "cpu":
            return self

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: sent(tensor, device) for name, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            ids=moved(self.ids),
            hashes=moved(self.hashes),
            groups=sent(self.groups, device),
            relevant=self.relevant and self.relevant.to(device),
            teacher=None if self.teacher is None else sent(self.teacher, device),
            teacher_vectors=moved(self.teacher_vectors),
            labels=moved(self.labels),
        )
