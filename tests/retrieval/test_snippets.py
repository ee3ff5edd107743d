"""A snippet shows the densest matches, cut between words, with spans that stay true."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from retrievo.retrieval import snippets
from retrievo.retrieval.snippets import Span, snippet


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


def densest_by_definition(spans: list[Span], width: int) -> int:
    """The first of the places whose window holds the most characters of matches that lie in it whole."""
    places = [0, *(max(0, start - width // 8) for start, _ in spans)]
    covered = [sum(end - start for start, end in spans if start >= left and end <= left + width) for left in places]
    return places[covered.index(max(covered))]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), max_size=30), st.integers(1, 120))
@example([], 10)
@example([(0, 60)], 20)  # a match that is wider than the window
def test_the_window_is_that_of_the_definition(steps: list[tuple[int, int]], width: int) -> None:
    spans: list[Span] = []
    for gap, length in steps:
        start = (spans[-1][1] if spans else 0) + gap
        spans.append((start, start + length))
    assert snippets._densest(spans, width) == densest_by_definition(spans, width)


def test_a_text_with_very_many_matches_is_looked_at_once() -> None:
    class Counted(list):  # type: ignore[type-arg]
        walks = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            type(self).walks += 1
            return super().__iter__()

    text = "wing and " * 20_000
    shown = snippet(text, Counted(spans_of("wing", text)))
    assert "wing" in shown.text
    assert Counted.walks < 10  # once for each match before
