"""Tokens of a table: cached for all rows, or made for those that are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.tables import CORPUS, Table
from retrievo.data.token_cache import SomeTokens, TokenCache, tokens_of_rows
from retrievo.models.tokens import Tokenized


class Words:
    """A token for each word, its length; counts the texts."""

    fingerprint, vocabulary_size = "words", 100

    def __init__(self) -> None:
        self.texts = 0

    def tokenize(self, texts: list[str], titles: list[str] | None = None) -> Tokenized:
        self.texts += len(texts)
        rows = [[len(word) for word in text.split()] for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return Tokenized(np.array([word for row in rows for word in row], np.int32), offsets, 0)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = ["a bb " * (n % 4) + "c" * (n + 1) for n in range(60)]
    content = pa.table({"id": [f"d{n}" for n in range(60)], "text": texts})
    pq.write_table(content, tmp_path / "corpus.parquet", row_group_size=7)
    return Table(tmp_path / "corpus.parquet", CORPUS)


def test_only_the_texts_that_are_needed_are_tokenized_and_to_the_same_tokens(table: Table) -> None:
    needed = np.array([0, 6, 7, 30, 59])
    words = Words()
    some = tokens_of_rows(table, words, needed)
    assert isinstance(some, SomeTokens)
    assert words.texts == len(needed)
    whole = TokenCache(table, Words())
    assert len(some) == len(whole) == 60
    assert some.tokens.dtype == whole.tokens.dtype
    for found, expected in zip(some.rows(needed), whole.rows(needed), strict=True):
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("cached", [False, True])
def test_the_cache_serves_many_rows_and_all_once_it_is_there(table: Table, cached: bool) -> None:
    if cached:
        TokenCache(table, Words())
    words = Words()
    found = tokens_of_rows(table, words, np.arange(3 if cached else 30))
    assert type(found) is TokenCache
    assert words.texts == (0 if cached else 60)
