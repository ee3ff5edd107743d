"""Every batch is of one data set; which one, and which batch of it, is a pure function of (seed, step)."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrievo.support.errors import UsageError
from retrievo.training.feeds.mixed import MixedFeed

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
mixes = st.sampled_from(["uniform", "equal", "alpha=0.5"])


class Counted:
    """A feed of so many batches an epoch, each of which is its name and its step."""

    def __init__(self, name: int, batches_per_epoch: int):
        self.name, self.batches_per_epoch = name, batches_per_epoch

    def batch(self, step: int) -> Any:
        return self.name, step


def mixed(sizes: list[int], mix: str = "uniform", seed: int = 0) -> MixedFeed:
    return MixedFeed(cast(Any, [Counted(name, size) for name, size in enumerate(sizes, start=1)]), mix, seed)


@given(sizes, st.integers(0, 100), st.integers(0, 3))
def test_a_uniform_mix_has_every_batch_of_each_data_set_once_an_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    feed, total = mixed(sizes, seed=seed), sum(sizes)
    found = [cast(Any, feed.batch(step)) for step in range(epoch * total, (epoch + 1) * total)]
    expected = [(name, epoch * size + n) for name, size in enumerate(sizes, start=1) for n in range(size)]
    assert sorted(found) == expected


@given(sizes, mixes, st.integers(0, 100))
def test_each_data_set_goes_through_its_own_steps_without_a_gap(sizes: list[int], mix: str, seed: int) -> None:
    feed = mixed(sizes, mix, seed)
    found = [cast(Any, feed.batch(step)) for step in range(3 * sum(sizes))]
    for name in range(1, len(sizes) + 1):
        steps = [step for of, step in found if of == name]
        assert steps == list(range(len(steps)))


def test_a_mix_says_how_many_batches_are_of_each() -> None:
    for mix, counts in (("equal", [6, 6]), ("3,1", [9, 3]), ("uniform", [10, 2])):
        feed = mixed([10, 2], mix)
        assert Counter(cast(Any, feed.batch(step))[0] for step in range(12)) == Counter({1: counts[0], 2: counts[1]})


def test_the_log_says_whose_batch_it_was() -> None:
    feed = mixed([3, 2], seed=5)
    for step in range(10):
        position = feed.position(step)
        assert (position["epoch"], position["batch"]) == divmod(step, 5)
        assert position["dataset"] == cast(Any, feed.batch(step))[0]


def test_a_mix_that_leaves_a_data_set_without_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves data set 2 no batch"):
        mixed([3, 2], "1000,1")
