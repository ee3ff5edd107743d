"""Batches for cross-encoders: pairs of a query with each document of its group."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from retrievo.models.cross_encoder import CrossEncoder
from retrievo.training.batch import Batch, Rows
from retrievo.training.feeds.finetune import GroupFeed, TrainingData
from retrievo.training.feeds.samplers import Draw, Drawing

PAIR = "pair"


class Group(NamedTuple):
    """The pairs of one query with its documents, the positive first."""

    pairs: Sequence[np.ndarray]  # [G] of [L] token ids


@dataclass(frozen=True)
class PairCollator:
    """Makes a Batch with the named set `pair` from groups."""

    pad_id: int

    def __call__(self, items: Sequence[Group]) -> Batch:
        pairs = [pair for item in items for pair in item.pairs]
        return Batch(
            rows={PAIR: Rows.of(pairs)},
            counts={"pairs": len(items), "candidates": len(pairs)},
            pad_ids={PAIR: self.pad_id},
            groups=torch.tensor([len(item.pairs) for item in items], dtype=torch.int64),
        )


class PairFeed(GroupFeed):
    """Groups for a cross-encoder.

    There are no in-batch negatives, so a query whose pool is too small gets random documents instead. Documents that
    have the text of a relevant one, or are the query itself, are left out of the group.
    """

    def __init__(
        self,
        data: TrainingData,
        model: CrossEncoder,
        collator: PairCollator,
        drawing: Drawing,
    ):
        self.tokenization = tokenization = model.tokenization
        if drawing.hard_negative_ratio is None:
            # with a ratio, a pool that is too small is filled up with random documents
            drawing = dataclasses.replace(drawing, hard_negative_ratio=1.0)
        super().__init__(data, (tokenization.query, tokenization.document), collator, drawing)

    def example(self, draw: Draw) -> Group:
        query, (positive, *others) = self.query_tokens.row(draw.query), draw.documents
        known = [*self.data.positives.list(draw.query), *self.data.themselves.list(draw.query)]
        no_negatives = self.hashes[known]
        documents = [positive, *(other for other in others if self.hashes[other] not in no_negatives)]
        return Group([self.tokenization.row(query, self.document_tokens.row(document)) for document in documents])
