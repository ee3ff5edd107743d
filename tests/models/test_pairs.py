"""Which tokens of a query and a document stay where both do not fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retrievo.models.pairs import kept_lengths


@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 512))
def test_the_room_is_filled_and_no_text_grows(first: int, second: int, room: int) -> None:
    kept = kept_lengths(first, second, room)
    assert sum(kept) == min(first + second, room)
    assert kept[0] <= first
    assert kept[1] <= second


@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 512))
def test_the_shorter_text_is_cut_only_where_it_is_longer_than_half_of_the_room(
    first: int, second: int, room: int
) -> None:
    kept = kept_lengths(first, second, room)
    short = min(first, second)
    assert min(kept) >= min(short, room // 2)
