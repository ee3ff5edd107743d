"""What pre-training reads: documents by row, tokenized once, in a seeded order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from retrievo.data.corpus import Corpus
from retrievo.data.sampling import random_keys
from retrievo.data.token_cache import TokenCache
from retrievo.learning.batch import Batch
from retrievo.learning.distributed import rank, world_size
from retrievo.learning.samplers import share
from retrievo.models.encoder import Encoder
from retrievo.objectives.framing import Document
from retrievo.objectives.views import LEAST_SPAN
from retrievo.support import console
from retrievo.support.errors import RetrievoError


class ViewCollator(Protocol):
    """What makes a Batch of documents, and says what it needs of them."""

    @property
    def spans(self) -> int:
        """Views of each document."""

    @property
    def least_tokens(self) -> int:
        """Tokens that a document needs."""

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of a view, on average, of documents of so many tokens [n]."""

    def __call__(self, items: Sequence[Document]) -> Batch:
        """The views as flat rows."""


class PretrainFeed:
    """Batches of documents, each once an epoch: pure functions of (seed, step) and of this process's rank.

    Documents too short for the collator's spans are left out and counted. The last batch of an epoch is smaller.
    batch_size: documents of the global batch.
    Raises: RetrievoError where more than half of the documents are too short.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, collator: ViewCollator, *, batch_size: int, seed: int):
        self.collator, self.batch_size, self.seed = collator, batch_size, seed
        # whole texts without prefixes: what is cut out of their middle gets its own [CLS] and [SEP]
        tokenization = dataclasses.replace(
            encoder.tokenization("document"), max_length=None, prefix="", special_tokens=False
        )
        self.tokens = TokenCache(corpus.table, tokenization)
        lengths = np.diff(self.tokens.offsets)
        self.documents = np.flatnonzero(lengths >= collator.least_tokens)
        self.left_out = len(lengths) - len(self.documents)
        if self.left_out > len(self.documents) or not len(self.documents):
            found = f"{self.left_out:,} of {len(lengths):,} documents have fewer than {collator.least_tokens} tokens"
            raise RetrievoError(corpus.path, found, f"room for {collator.spans} spans of {LEAST_SPAN} tokens in most")
        self._latest = (0, self._order(0))

    @property
    def batches_per_epoch(self) -> int:
        """Steps of one pass over the documents."""
        return -(-len(self.documents) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        if self._latest[0] != epoch:
            self._latest = (epoch, self._order(epoch))
        rows = self._latest[1][batch * self.batch_size : (batch + 1) * self.batch_size]
        rows = rows[share(len(rows), rank(), world_size())]
        keys = random_keys(self.seed, np.full(len(rows), epoch), rows)
        return self.collator([Document(self.tokens.row(row), key) for row, key in zip(rows, keys, strict=True)])

    def position(self, step: int) -> dict[str, int]:
        """Where a step stands in the data."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return {"epoch": epoch, "batch": batch}

    def say_counts(self) -> None:
        """What will be trained on, and what was left out."""
        lengths = np.diff(self.tokens.offsets)[self.documents]
        spans = self.collator.expected_lengths(lengths)
        console.note(
            f"{len(lengths):,} documents of {lengths.mean():,.0f} tokens on average; {self.collator.spans} x "
            f"{spans.mean():,.0f} of them are seen in an epoch"
        )
        if self.left_out:
            least = self.collator.least_tokens
            console.warn(f"documents left out, which have fewer than {least} tokens: {self.left_out:,}")

    def _order(self, epoch: int) -> np.ndarray:
        """The documents in the order of one epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.documents)
