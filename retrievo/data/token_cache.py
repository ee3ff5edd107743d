"""The token cache: a table is tokenized once into flat memory-mapped files, shared by processes and later runs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from retrievo.data.cache import GrowingArray, cached, is_cached
from retrievo.data.tables import Table
from retrievo.support import console

FORMAT = 1
_FILES = ("tokens.npy", "offsets.npy")


class Tokens(Protocol):
    """Token ids of n texts: text i is `tokens[offsets[i]:offsets[i + 1]]`."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...


class Tokenizes(Protocol):
    """A tokenizer with its settings, and a fingerprint of everything that determines the tokens."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def vocabulary_size(self) -> int: ...
    def tokenize(self, texts: list[str], titles: list[str] | None = None) -> Tokens:
        """Token ids of each text."""


class TokenCache:
    """Token ids of every row of a table, keyed by the fingerprints of the table and the tokenization.

    It takes 2 bytes per token (4 for vocabularies beyond 65,536) and 8 per row on disk, and almost no memory.
    """

    def __init__(self, table: Table, tokenization: Tokenizes):
        folder = cached(
            _name(table, tokenization), lambda building: _build(table, tokenization, building), [table.path]
        )
        # plain array views of the mapped files: slicing numpy.memmap is slower than reading the tokens
        self.tokens, self.offsets = (np.asarray(np.load(folder / name, mmap_mode="r")) for name in _FILES)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, position: int) -> np.ndarray:
        """The tokens of one row."""
        return self.tokens[self.offsets[position] : self.offsets[position + 1]]

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The flat tokens [T] and offsets [n + 1] of some rows, in this order."""
        parts = [self.row(int(position)) for position in positions]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return np.concatenate([self.tokens[:0], *parts]), offsets


class SomeTokens(TokenCache):
    """Token ids of some rows of a table, in memory: other rows have none. It takes 8 bytes a row of the table more."""

    def __init__(self, table: Table, tokenization: Tokenizes, needed: np.ndarray):
        dtype = _dtype(tokenization)
        parts, lengths, start = [np.zeros(0, dtype)], np.zeros(table.rows, np.int64), 0
        names = [name for name in ("title", "text") if table.has(name)]
        with console.progress(f"tokenizing {table.path}", len(needed), "texts") as tick:
            for batch in table.batches(names):
                first, end = np.searchsorted(needed, [start, start + batch.num_rows])
                if end > first:
                    texts = batch.take(pa.array(needed[first:end] - start))
                    titles = texts.column("title").to_pylist() if "title" in names else None
                    rows = tokenization.tokenize(texts.column("text").to_pylist(), titles)
                    parts.append(rows.tokens.astype(dtype))
                    lengths[needed[first:end]] = np.diff(rows.offsets)
                    tick(int(end - first))
                start += batch.num_rows
        self.tokens = np.concatenate(parts)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def tokens_of_rows(table: Table, tokenization: Tokenizes, needed: np.ndarray) -> TokenCache:
    """The tokens of these rows at least: from the token cache where it is there, or where half of the rows are needed.

    needed: row numbers, ascending, each once.
    """
    if 2 * len(needed) >= table.rows or is_cached(_name(table, tokenization)):
        return TokenCache(table, tokenization)
    return SomeTokens(table, tokenization, needed)


def _name(table: Table, tokenization: Tokenizes) -> str:
    return f"tokens-{FORMAT}/{table.input.fingerprint}-{tokenization.fingerprint}"


def _dtype(tokenization: Tokenizes) -> str:
    return "<u2" if tokenization.vocabulary_size <= 1 << 16 else "<u4"


def _build(table: Table, tokenization: Tokenizes, folder: Path) -> None:
    names = [name for name in ("title", "text") if table.has(name)]
    with (
        GrowingArray(folder / "tokens.npy", _dtype(tokenization)) as tokens,
        GrowingArray(folder / "offsets.npy", "<i8") as offsets,
        console.progress(f"tokenizing {table.path}", table.rows, "texts") as tick,
    ):
        end = 0
        offsets.append(np.zeros(1, np.int64))
        for batch in table.batches(names):
            titles = batch.column("title").to_pylist() if "title" in names else None
            rows = tokenization.tokenize(batch.column("text").to_pylist(), titles)
            tokens.append(rows.tokens)
            offsets.append(rows.offsets[1:] + end)
            end += int(rows.offsets[-1])
            tick(batch.num_rows)
