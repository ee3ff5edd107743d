"""A snippet shows the densest matches, cut between words, with spans that stay true."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from retrievo.retrieval.snippets import snippet


def spans_of(word: str, text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(word, text)]


def test_a_short_text_is_shown_whole() -> None:
    assert snippet("wing in\na slipstream", [(0, 4)]) == ("wing in a slipstream", ((0, 4),))


def test_the_window_with_the_most_matches_is_chosen() -> None:
    text = "wing " + "filler " * 100 + "wing wing wing " + "filler " * 100
    shown = snippet(text, spans_of("wing", text), width=80)
    assert shown.text.count("wing") == 3
    assert shown.text.startswith("… ")
    assert shown.text.endswith(" …")


@given(st.text(alphabet="ab \n", min_size=0, max_size=400), st.integers(20, 120))
def test_spans_point_at_the_same_words_in_the_snippet(text: str, width: int) -> None:
    shown = snippet(text, spans_of("ab", text), width)
    assert all(shown.text[start:end] == "ab" for start, end in shown.spans)
    assert len(shown.text) <= width + 4
    assert "\n" not in shown.text
