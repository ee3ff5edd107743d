"""Shingles against sets of words in a row, written out."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data.tables import CORPUS, Table
from retrievo.mining.near_duplicates import WORDS, Shingles, shingle_hashes

TEXTS = st.lists(st.text("ab Cé.\n-", max_size=25), max_size=6)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[place : place + WORDS]) for place in range(max(1, len(words) - WORDS + 1))} if words else set()


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_texts_share_hashes_as_they_share_words_in_a_row(texts: list[str]) -> None:
    values, offsets = shingle_hashes(texts)
    found = [set(values[low:high].tolist()) for low, high in itertools.pairwise(offsets)]
    expected = [shingles(text) for text in texts]
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, theirs in zip(found, expected, strict=True):
        for other, others in zip(found, expected, strict=True):
            assert len(one & other) == len(theirs & others)


def test_similarity_is_that_of_jaccard(tmp_path: Path) -> None:
    texts = ["a b c d e", "A, b. c d", "b c d e f", "", "a b", "x y z"]
    pq.write_table(pa.table({"id": list("012345"), "text": texts}), tmp_path / "corpus.parquet")
    found = Shingles(Table(tmp_path / "corpus.parquet", CORPUS))
    expected = []
    for other in texts:
        one, theirs = shingles(texts[0]), shingles(other)
        expected.append(len(one & theirs) / len(one | theirs))
    assert found.similarity(0, np.arange(6)).tolist() == pytest.approx(expected)
    assert found.similarity(3, np.arange(6)).tolist() == [0] * 6
