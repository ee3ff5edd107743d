"""When two texts are one: copies however they are written, emptiness, and documents that are queries themselves."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data import text_identity
from retrievo.data.corpus import Corpus, fill_template
from retrievo.data.text_identity import EMPTY, canonical, identities, is_empty, self_retrieval
from tests.copies import COPIES, PLAIN


def slowly(text: str) -> bytes:
    """The definition, step by step."""
    folded = unicodedata.normalize("NFKC", text_identity._WITHOUT_WIDTH.sub("", text)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split()).encode()


def test_the_short_cuts_give_what_the_definition_gives() -> None:
    draw = random.Random(0)
    blocks = [(0, 0x250), (0x300, 0x350), (0x370, 0x400), (0x1E00, 0x2100), (0x3000, 0x3010), (0xFB00, 0xFB10)]
    pool = [chr(code) for first, end in blocks for code in range(first, end)] + list("\u1680\u0130\u2028\ufeff\u200b")
    for _ in range(20_000):
        text = "".join(draw.choice(pool) if draw.random() < 0.5 else draw.choice("aAhHtTiI  ") for _ in range(6))
        assert canonical(text) == slowly(text), ascii(text)


@pytest.mark.parametrize(("title", "text"), COPIES.values(), ids=COPIES)
def test_a_copy_has_the_identity_of_the_document(title: str, text: str, tmp_path: Path) -> None:
    columns = {"id": ["a", "b", "c"], "title": ["", title, "another"], "text": [PLAIN, text, PLAIN]}
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet")
    whole = Corpus(tmp_path / "corpus.parquet").identities.whole
    assert whole[0] == whole[1] != whole[2]


def test_a_reader_without_titles_knows_texts_alone(tmp_path: Path) -> None:
    columns = {"id": ["a", "b", "c"], "title": ["one", "two", "three"], "text": ["same", "same", ""]}
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet")
    assert len(set(Corpus(tmp_path / "corpus.parquet").identities.whole.tolist())) == 3
    whole = Corpus(tmp_path / "corpus.parquet", titles=False).identities.whole
    assert (whole[0] == whole[1], whole[2] == EMPTY) == (True, True)


def test_what_shows_nothing_is_empty_and_a_title_is_something() -> None:
    assert identities(["", " \t\u00a0", "\u200b\ufeff", "\u2028"]).tolist() == [EMPTY] * 4
    assert [is_empty(text) for text in ("", "\u200b" * 200, " " * 100 + "x", "\u3000")] == [True, True, False, True]


def test_braces_in_a_title_are_no_place_for_the_text() -> None:
    assert fill_template("{title} {text}", "the {text} tag", "body") == "the {text} tag body"


def test_documents_that_are_queries_are_found_by_what_they_read_as_and_not_by_their_id(tmp_path: Path) -> None:
    rows = {
        "as a whole": ("", "Is it  so?"),
        "its text": ("A debate", "is it so?"),
        "q3": ("A paper", "of which nothing is the query but the title"),
        "d4": ("A paper", "with that title and another id"),
        "q5": ("", "the same id and nothing else"),
        "empty": ("", ""),
        "copy": ("", "is it so?"),
    }
    titles, texts = zip(*rows.values(), strict=True)
    pq.write_table(pa.table({"id": list(rows), "title": titles, "text": texts}), tmp_path / "corpus.parquet")
    corpus = Corpus(tmp_path / "corpus.parquet")
    asked = ["IS IT SO?", "is it so?", "a paper", "something else", ""]
    query, row = corpus.that_are_queries(["q1", "q2", "q3", "q5", "q6"], asked)
    assert list(zip(query.tolist(), row.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]


def test_a_summary_tells_of_queries_that_are_documents_where_they_are_more_than_one_in_a_hundred() -> None:
    assert self_retrieval(10, 1_000) == {}
    assert "11 of 1,000 queries (1%) are documents" in self_retrieval(11, 1_000)["self-retrieval"]


def test_identities_are_kept_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    column, distinct = np.arange(100, dtype=np.uint64) % 7, np.array([2, 3, 200], np.uint64)
    whole = text_identity._reading(distinct, column)
    parts = text_identity._reading(distinct, column, block=9)
    assert [side.tolist() for side in whole] == [side.tolist() for side in parts]
    assert column[whole[1]].tolist() == distinct[whole[0]].tolist()
