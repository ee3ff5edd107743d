"""Training on several data sets: every batch comes from one of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from retrievo.data.mixing import apportioned, shares
from retrievo.data.token_cache import TokenCache
from retrievo.support.errors import UsageError
from retrievo.training.batch import Batch
from retrievo.training.feeds.finetune import GroupFeed


class MixedFeed:
    """The batches of several feeds in a seeded order; each batch is a pure function of (seed, step).

    A batch comes from one data set, because documents of another data set would be trivial negatives. An epoch has as
    many batches as the feeds have together. With the mix `uniform` it has each batch of each feed once; otherwise each
    feed gets its share of the batches and continues through its own epochs.

    Raises: UsageError for a mix that does not match the feeds, and for one that leaves a feed without any batch.
    """

    def __init__(self, feeds: Sequence[GroupFeed], mix: str, seed: int):
        self.feeds, self.seed = feeds, seed
        sizes = [feed.batches_per_epoch for feed in feeds]
        self.batches_per_epoch = sum(sizes)
        self.places = tuple(apportioned(self.batches_per_epoch, shares(mix, sizes)))
        if not all(self.places):
            found = f"'{mix}' leaves data set {self.places.index(0) + 1} no batch"
            raise UsageError("--mix", found, f"one at least of the {self.batches_per_epoch} of an epoch")

    @property
    def document_tokens(self) -> TokenCache:
        """The documents of the first data set, on which validation runs."""
        return self.feeds[0].document_tokens

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        number, own_step = self._place(step)
        return self.feeds[number].batch(own_step)

    def position(self, step: int) -> dict[str, int]:
        """The position of a step in the data; data sets are counted from 1."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return {"epoch": epoch, "batch": batch, "dataset": self._place(step)[0] + 1}

    def _place(self, step: int) -> tuple[int, int]:
        """The feed of a step, and the step of that feed."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        order = _order(self.places, self.seed, epoch)
        number = int(order[batch])
        return number, epoch * self.places[number] + int(np.count_nonzero(order[:batch] == number))


@functools.lru_cache(maxsize=2)  # one for the batch that is made ahead, one for the step that is logged
def _order(places: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """The number of the feed of each batch of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(np.repeat(np.arange(len(places)), places))
