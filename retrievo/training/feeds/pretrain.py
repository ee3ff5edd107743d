"""The data of pre-training: documents by row, tokenized once, in a seeded order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from retrievo.data.corpus import Corpus
from retrievo.data.mixing import UNIFORM, apportioned, shares
from retrievo.data.sampling import random_keys
from retrievo.data.token_cache import TokenCache
from retrievo.distributed.collectives import rank, world_size
from retrievo.models.encoder import Encoder
from retrievo.models.tokens import Tokenization
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.training.augment.spans import LEAST_SPAN
from retrievo.training.augment.special_tokens import Document
from retrievo.training.batch import Batch
from retrievo.training.feeds.samplers import share

_EPOCH, _TURN, _HELD_OUT, _VALIDATION = range(4)  # one stream of random numbers for each purpose
_ENOUGH_FOR_ALL = 2 * LEAST_SPAN  # number of tokens with which a document is long enough for every objective


class ViewCollator(Protocol):
    """Makes a Batch of views from documents, and states which documents are long enough."""

    @property
    def spans(self) -> int:
        """Number of views of each document."""

    @property
    def least_tokens(self) -> int:
        """Number of tokens that a document must have."""

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """The average number of tokens of a view, for documents of these lengths [n]."""

    def __call__(self, items: Sequence[Document]) -> Batch:
        """The views as flat rows."""


class PretrainingCorpus:
    """One corpus with the row numbers of its training documents [n] and of its held-out documents [h].

    It takes 4 bytes of memory for each document; tokens and offsets are memory-mapped.
    Raises: RetrievoError where more than half of the documents are too short for the collator.
    """

    def __init__(self, corpus: Corpus, tokenization: Tokenization, collator: ViewCollator):
        self.path, self.tokens = corpus.path, TokenCache(corpus.table, tokenization)
        self.rows = _long_enough(self.tokens.offsets, collator.least_tokens)
        self.held_out = self.rows[:0]
        self.left_out = len(self.tokens) - len(self.rows)
        if self.left_out > len(self.rows) or not len(self.rows):
            found = (
                f"{self.left_out:,} of {len(self.tokens):,} documents have fewer than {collator.least_tokens} tokens"
            )
            raise RetrievoError(self.path, found, f"room for {collator.spans} spans of {LEAST_SPAN} tokens in most")

    def hold_out(self, count: int, seed: Sequence[int]) -> None:
        """Holds out `count` randomly drawn documents from training.

        Raises: RetrievoError where that is more than half of the documents.
        """
        documents = self.long_enough_for_all()
        if 2 * count > len(documents):
            found = f"asks for {count:,} of the {len(documents):,} documents of {self.path}"
            raise RetrievoError("--held-out", f"{found} with {_ENOUGH_FOR_ALL} tokens or more", "at most half of them")
        drawn = np.random.default_rng(seed).choice(documents, count, replace=False)
        self.rows, self.held_out = np.setdiff1d(self.rows, drawn), np.sort(drawn)

    def long_enough_for_all(self) -> np.ndarray:
        """The documents long enough for every objective [m], so that all stages hold out the same documents."""
        return _long_enough(self.tokens.offsets, _ENOUGH_FOR_ALL)

    def lengths(self, most: int = 100_000) -> np.ndarray:
        """The number of tokens of each document; of at most `most` evenly spaced documents of a larger corpus."""
        some = self.rows[:: max(1, len(self.rows) // most)].astype(np.int64)
        lengths: np.ndarray = self.tokens.offsets[some + 1] - self.tokens.offsets[some]
        return lengths


class Epoch(NamedTuple):
    """The documents of an epoch in their order, as numbers of corpus, row, and pass over that corpus; [N] each."""

    number: int
    source: np.ndarray
    row: np.ndarray
    turn: np.ndarray


class PretrainFeed:
    """Batches of documents of one or several corpora; each is a pure function of (seed, step) and this process's rank.

    An epoch has as many documents as the corpora together. With the mix `uniform` it has each document once. Otherwise
    each corpus has its share of an epoch and is read in passes, each pass in a new order and with new views, so that
    the numbers of times that two documents of a corpus were seen never differ by more than one.

    Documents too short for the collator's spans are left out and counted. The last batch of an epoch may be smaller.
    batch_size: number of documents of the global batch. held_out: number of documents kept for `held_out_batches`.
    Raises: RetrievoError where more than half of the documents of a corpus are too short, or are to be held out;
    UsageError for a mix that does not fit the corpora.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        encoder: Encoder,
        collator: ViewCollator,
        *,
        batch_size: int,
        seed: int,
        mix: str = UNIFORM,
        held_out: int = 0,
    ):
        self.collator, self.batch_size, self.seed = collator, batch_size, seed
        # texts without prefix and special tokens, because each view gets its own [CLS] and [SEP]
        tokenization = dataclasses.replace(
            encoder.tokenization("document"), max_length=None, prefix="", special_tokens=False
        )
        self.corpora = [PretrainingCorpus(corpus, tokenization, collator) for corpus in corpora]
        sizes = [len(corpus.long_enough_for_all()) for corpus in self.corpora]
        counts = apportioned(held_out, shares(mix, sizes)) if held_out else [0] * len(sizes)
        for number, (corpus, count) in enumerate(zip(self.corpora, counts, strict=True)):
            corpus.hold_out(count, [seed, _HELD_OUT, number])
        self.documents = sum(self._sizes())
        self.places = apportioned(self.documents, shares(mix, self._sizes()))
        self._latest = self._epoch(0)

    def _sizes(self) -> list[int]:
        """The number of training documents of each corpus."""
        return [len(corpus.rows) for corpus in self.corpora]

    @property
    def batches_per_epoch(self) -> int:
        """Number of steps of an epoch."""
        return -(-self.documents // self.batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        return self.collator(self.items(step))

    def items(self, step: int) -> list[Document]:
        """This rank's documents of a step."""
        number, batch = divmod(step, self.batches_per_epoch)
        if self._latest.number != number:
            self._latest = self._epoch(number)
        chosen = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        return self._items(*(column[chosen] for column in self._latest[1:]))

    def held_out_batches(self) -> Iterator[Batch]:
        """This rank's part of the batches of held-out documents, with the same views in the same order every time."""
        sizes = [len(corpus.held_out) for corpus in self.corpora]
        number = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.concatenate([corpus.held_out for corpus in self.corpora])
        order = np.random.default_rng([self.seed, _VALIDATION]).permutation(len(rows))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield self.collator(self._items(number[chosen], rows[chosen], np.zeros(len(chosen), np.uint32)))

    def _items(self, source: np.ndarray, rows: np.ndarray, turns: np.ndarray) -> list[Document]:
        """This rank's share of these documents, each with the key of its random draws."""
        mine = share(len(rows), rank(), world_size())
        keys = random_keys(self.seed, source[mine], turns[mine], rows[mine])
        drawn = zip(source[mine].tolist(), rows[mine].tolist(), keys, strict=True)
        return [Document(self.corpora[number].tokens.row(row), key) for number, row, key in drawn]

    def position(self, step: int) -> dict[str, int]:
        """The position of a step in the data."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return {"epoch": epoch, "batch": batch}

    def say_counts(self) -> None:
        """Prints how much data training uses, and warns of what was left out."""
        several = len(self.corpora) > 1
        for corpus, places in zip(self.corpora, self.places, strict=True):
            lengths = corpus.lengths()
            spans = self.collator.expected_lengths(lengths)
            where, part = (f"{corpus.path}: ", f"; {places / self.documents:.1%} of an epoch") if several else ("", "")
            console.note(
                f"{where}{len(corpus.rows):,} documents of {lengths.mean():,.0f} tokens on average; "
                f"{self.collator.spans} x {spans.mean():,.0f} of them are seen in an epoch{part}"
            )
            if corpus.left_out:
                least = self.collator.least_tokens
                console.warn(f"left out {corpus.left_out:,} documents with fewer than {least} tokens")

    def _epoch(self, number: int) -> Epoch:
        """Draws the documents of an epoch in their order."""
        columns = [self._places(source, number) for source in range(len(self.corpora))]
        source, row, turn = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        order = np.random.default_rng([self.seed, _EPOCH, number]).permutation(len(row))
        return Epoch(number, source[order], row[order], turn[order])

    def _places(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corpus, row and pass of a corpus's documents in an epoch: the next part of its endless sequence of passes."""
        rows, count = self.corpora[source].rows, self.places[source]
        first, last = epoch * count, (epoch + 1) * count
        turns = range(first // len(rows), -(-last // len(rows)))
        parts = [self._turn(source, turn)[max(0, first - turn * len(rows)) : last - turn * len(rows)] for turn in turns]
        sizes = [len(part) for part in parts]
        row = np.concatenate([rows[:0], *parts])
        return np.full(count, source, np.uint16), row, np.repeat(np.array(turns, np.uint32), sizes)

    def _turn(self, source: int, turn: int) -> np.ndarray:
        """The rows of a corpus in the order of pass number `turn` over it."""
        return np.random.default_rng([self.seed, _TURN, source, turn]).permutation(self.corpora[source].rows)


def _long_enough(offsets: np.ndarray, least: int, block: int = 1 << 20) -> np.ndarray:
    """The documents with at least `least` tokens; `block` documents are checked at a time."""
    starts = range(0, len(offsets) - 1, block)
    parts = [start + np.flatnonzero(np.diff(offsets[start : start + block + 1]) >= least) for start in starts]
    return np.concatenate([np.empty(0, np.uint32), *(part.astype(np.uint32) for part in parts)])
