"""Near duplicates by Jaccard similarity of the texts' sets of word shingles (Broder 1997)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrievo.data.cache import GrowingArray, cached
from retrievo.data.sampling import random_keys
from retrievo.data.tables import Table
from retrievo.support import console

FORMAT = 1
WORDS = 3  # words in a shingle
_WORD = re.compile(r"\w+")


class Shingles:
    """The distinct shingles of every text of a table as sorted 32-bit hashes: `self[i]` are those of document i.

    A shingle is three consecutive words, without case and punctuation; a text of fewer words is one shingle. The hashes
    are kept in the cache, memory-mapped, at 4 bytes for each word. Two different shingles collide with probability
    2^-32.
    """

    def __init__(self, table: Table):
        folder = cached(
            f"shingles-{FORMAT}/{table.input.fingerprint}", lambda building: _build(table, building), [table.path]
        )
        self._values: np.ndarray = np.load(folder / "values.npy", mmap_mode="r")
        self._offsets: np.ndarray = np.load(folder / "offsets.npy", mmap_mode="r")

    def __getitem__(self, row: int) -> np.ndarray:
        own: np.ndarray = self._values[self._offsets[row] : self._offsets[row + 1]]
        return own

    def similarity(self, row: int, others: np.ndarray) -> np.ndarray:
        """Jaccard similarity |A and B| / |A or B| of one text with others, [n]; 0 where both are empty."""
        own = self[row]
        sizes = self._offsets[others + 1] - self._offsets[others]
        ends = np.cumsum(sizes)
        values = np.concatenate([self[other] for other in others]) if len(others) else np.zeros(0, np.uint32)
        if not len(own):
            return np.zeros(len(others))
        place = np.minimum(np.searchsorted(own, values), len(own) - 1)
        found = np.concatenate([[0], np.cumsum(own[place] == values)])
        shared = found[ends] - found[ends - sizes]
        similarity: np.ndarray = shared / (len(own) + sizes - shared)
        return similarity


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct shingles of all texts as flat uint32 hashes, ascending within a text, and offsets [n + 1]."""
    words = [_WORD.findall(text.lower()) for text in texts]
    counts = np.fromiter(map(len, words), np.int64, len(words))
    flat = np.fromiter((zlib.crc32(word.encode()) for one in words for word in one), np.uint64, int(counts.sum()))
    text = np.repeat(np.arange(len(words)), counts)
    left = np.repeat(np.cumsum(counts), counts) - np.arange(len(flat))  # words from here to the end of the text
    padded = np.concatenate([flat, np.zeros(WORDS - 1, np.uint64)])
    columns = [np.where(left > ahead, padded[ahead : ahead + len(flat)], np.uint64(0)) for ahead in range(WORDS)]
    begins = (left >= WORDS) | (left == np.repeat(counts, counts))
    keys = (text[begins].astype(np.uint64) << np.uint64(32)) | (random_keys(0, *columns)[begins] >> np.uint64(32))
    keys = np.unique(keys)
    sizes = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(words))
    return keys.astype(np.uint32), np.concatenate([[0], np.cumsum(sizes)])


def _build(table: Table, folder: Path) -> None:
    with (
        GrowingArray(folder / "values.npy", "<u4") as values,
        GrowingArray(folder / "offsets.npy", "<i8") as offsets,
        console.progress(f"shingling {table.path}", table.rows, "texts") as tick,
    ):
        end = 0
        offsets.append(np.zeros(1, np.int64))
        for batch in table.batches(["text"]):
            hashes, bounds = shingle_hashes(batch.column("text").to_pylist())
            values.append(hashes)
            offsets.append(bounds[1:] + end)
            end += int(bounds[-1])
            tick(batch.num_rows)
