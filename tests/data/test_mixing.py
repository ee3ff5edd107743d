"""How much of each of several corpora."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrievo.data.mixing import apportioned, check_mix, shares
from retrievo.support.errors import UsageError

SIZES = [900, 100]


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("uniform", [0.9, 0.1]),
        ("equal", [0.5, 0.5]),
        ("alpha=0.5", [0.75, 0.25]),  # roots: 30 and 10
        ("alpha=0", [0.5, 0.5]),
        ("alpha=1", [0.9, 0.1]),
        ("1,4", [0.2, 0.8]),
    ],
)
def test_a_mix_says_the_share_of_each_corpus(mix: str, expected: list[float]) -> None:
    assert shares(mix, SIZES) == pytest.approx(expected)


@pytest.mark.parametrize("mix", ["even", "alpha=", "beta=1", "alpha=x", "1,0", "1,nan", "-1,2", ""])
def test_what_is_no_mix_is_refused(mix: str) -> None:
    with pytest.raises(UsageError, match=r"--mix: found '.*'; expected uniform, equal"):
        check_mix(mix)


def test_there_are_as_many_weights_as_corpora() -> None:
    with pytest.raises(
        UsageError, match="--mix: found 3 weights for 2 corpora or data sets; expected one weight for each"
    ):
        shares("1,2,3", SIZES)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_what_is_apportioned_sums_up_and_is_off_by_less_than_one(total: int, weights: list[int]) -> None:
    parts = [weight / sum(weights) for weight in weights]
    counts = apportioned(total, parts)
    assert sum(counts) == total
    assert all(abs(count - total * part) < 1 + 1e-6 for count, part in zip(counts, parts, strict=True))


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_uniform_gives_each_corpus_its_own_number(sizes: list[int]) -> None:
    assert apportioned(sum(sizes), shares("uniform", sizes)) == sizes
