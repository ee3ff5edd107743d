"""Identities of texts: a 64-bit hash of what a reader sees, so that differently encoded copies are recognized.

The identity of a text is the hash of its characters after NFKC normalization and case folding, without zero-width
characters and with white space collapsed to single spaces. The identity of a document is that of its title and text,
joined by a space.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrievo.data.cache import GrowingArray, cached
from retrievo.data.ordering import first_of_pairs
from retrievo.data.tables import Table
from retrievo.support import console

FORMAT = 1
# soft hyphen, grapheme joiner, Mongolian separators, zero-width space and joiners, direction marks, word joiner,
# invisible operators, variation selectors, byte order mark
_WITHOUT_WIDTH = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_SPACES = re.compile("[\x85\u1680\u2028\u2029]")  # white space that NFKC does not turn into spaces
_SPACES_OF_ASCII = b"\t\n\v\f\r\x1c\x1d\x1e\x1f"
_ASCII = bytes(range(128))
_FOLDED = bytes.maketrans(bytes(range(65, 91)) + _SPACES_OF_ASCII, bytes(range(97, 123)) + b" " * len(_SPACES_OF_ASCII))


def canonical(text: str) -> bytes:
    """The canonical form of a text, in UTF-8, whose hash is its identity; empty for a text without visible content."""
    return _collapsed(text.encode()) if text.isascii() else _canonical(text)


def _collapsed(text: bytes) -> bytes:
    """Lowercases ASCII letters and collapses ASCII white space."""
    folded = text.translate(_FOLDED).strip()
    return b" ".join(folded.split()) if b"  " in folded else folded


def _canonical(text: str) -> bytes:
    """The canonical form of a text that is not all ASCII; most texts need only their non-ASCII characters checked."""
    encoded = text.encode("utf-8", "surrogatepass")
    rest = encoded.translate(None, _ASCII).decode("utf-8", "surrogatepass")
    if _WITHOUT_WIDTH.search(rest):
        text = _WITHOUT_WIDTH.sub("", text)  # before NFKC, so that a letter and its accent are adjacent
    elif rest.casefold() == rest and not _SPACES.search(rest):
        folded = encoded.translate(_FOLDED)
        if unicodedata.is_normalized("NFKC", folded.decode("utf-8", "surrogatepass")):
            return _collapsed(folded)
    text = _SPACES.sub(" ", text) if _SPACES.search(rest) else text
    folded_text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", folded_text)  # again, because case folding decomposes some letters
    return _collapsed(text.encode("utf-8", "surrogatepass"))


def is_empty(text: str) -> bool:
    """Whether a text has no visible content; stops at the first visible character of a long text."""
    return not any(canonical(text[start : start + _LOOKED_AT]) for start in range(0, len(text), _LOOKED_AT))


def identities(texts: Iterable[str]) -> np.ndarray:
    """The identity of each text, [n] uint64 (blake2b: the same on every machine and Python version)."""
    return _hashes(map(canonical, texts))


def _hashes(texts: Iterable[bytes]) -> np.ndarray:
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(text, digest_size=8).digest() for text in texts]), "<u8")


_LOOKED_AT = 64  # characters
REPORTED_ABOVE = 0.01  # fraction of queries that are documents, above which a summary reports it
EMPTY = identities([""])[0]  # the identity of texts without visible content


class Identities(NamedTuple):
    """Identities of documents by row, memory-mapped [N] uint64 each: of title and text, of the text, of the title.

    In a corpus without titles all three are those of the text.
    """

    whole: np.ndarray
    text: np.ndarray
    title: np.ndarray

    @classmethod
    def of(cls, table: Table) -> Identities:
        """The identities of a corpus, computed once per table and kept in the user's cache: 8 to 24 bytes a row."""
        name = f"identities-{FORMAT}/{table.input.fingerprint}"
        folder = cached(name, lambda building: _build(table, building), [table.path])
        names = cls._fields if table.has("title") else ("text",) * 3
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))

    def without_titles(self) -> Identities:
        """The identities for a model that does not read titles."""
        return self._replace(whole=self.text)


def _build(table: Table, folder: Path) -> None:
    """Computes and writes all identities in one pass over the table."""
    names, arrays_of = (("title", "text"), ("title", "text", "whole")) if table.has("title") else (("text",), ("text",))
    with contextlib.ExitStack() as files:
        arrays = [files.enter_context(GrowingArray(folder / f"{name}.npy", "<u8")) for name in arrays_of]
        tick = files.enter_context(console.progress(f"comparing texts of {table.path}", table.rows, "rows"))
        for batch in table.batches(names):
            columns = [list(map(canonical, batch.column(name).to_pylist())) for name in names]
            if len(names) > 1:
                columns.append([b" ".join(filter(None, parts)) for parts in zip(*columns, strict=True)])
            for array, column in zip(arrays, columns, strict=True):
                array.append(_hashes(column))
            tick(batch.num_rows)


def own_documents(documents: Identities, asked: np.ndarray, same_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, document row), [n] each, where the document is the query itself; sorted by query, then row.

    A document is the query if it or its text has the query's identity, or if it has the query's id and its title has
    the query's identity. Of several copies of a document, one is returned.

    asked:   identities of the queries [Q].
    same_id: row of the document that has the query's id [Q]; -1 = none.
    """
    distinct = np.setdiff1d(asked, [EMPTY])
    pairs = [_reading(distinct, column) for column in {id(c): c for c in (documents.whole, documents.text)}.values()]
    known, row = (np.concatenate(parts) for parts in zip(*pairs, strict=True))  # place in `distinct`, row
    once = first_of_pairs(known, documents.whole[row])
    known, row = known[once], row[once]  # by place
    query = np.flatnonzero(asked != EMPTY)
    place = np.searchsorted(distinct, asked[query])
    first, end = np.searchsorted(known, place), np.searchsorted(known, place, side="right")
    of_query, of_row = np.repeat(query, end - first), row[_ranges(first, end)]
    titled = np.flatnonzero((same_id >= 0) & (asked != EMPTY))
    titled = titled[documents.title[same_id[titled]] == asked[titled]]
    query, row = np.concatenate([of_query, titled]), np.concatenate([of_row, same_id[titled]])
    found = first_of_pairs(query, row)
    return query[found], row[found]


def _reading(distinct: np.ndarray, column: np.ndarray, block: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (position in sorted `distinct`, row), [n] each, where `column` has one of these identities."""
    places, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(column) if len(distinct) else 0, block):
        part = column[start : start + block]
        place = np.minimum(np.searchsorted(distinct, part), len(distinct) - 1)
        there = np.flatnonzero(distinct[place] == part)
        places.append(place[there])
        rows.append(there + start)
    return np.concatenate(places), np.concatenate(rows)


def _ranges(first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Concatenates the integer ranges [first, end)."""
    sizes = end - first
    before = np.cumsum(sizes) - sizes
    values: np.ndarray = np.arange(int(sizes.sum())) + np.repeat(first - before, sizes)
    return values


def self_retrieval(found: int, queries: int) -> dict[str, str]:
    """The summary line that reports how many queries are documents themselves; empty where few are."""
    if found <= REPORTED_ABOVE * queries:
        return {}
    count = f"{found:,} of {queries:,} queries ({found / queries:.0%}) are documents of the corpus"
    return {"self-retrieval": f"{count}; no document is a negative of itself"}
