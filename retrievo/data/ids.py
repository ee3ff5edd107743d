"""Maps ids to rows: memory-mapped sorted hashes, built once per table and kept in the user's cache folder.

A Python dictionary of 1 M ids takes 115 MB; this map takes 12 bytes per id on disk besides the ids, and almost no
memory. Whether two texts are copies is decided in `data/text_identity.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrievo.data.cache import GrowingArray, cached
from retrievo.data.columns import taken
from retrievo.data.ordering import flat_strings
from retrievo.data.tables import Table
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.support.files import remove

FORMAT = 2


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit hash of each text, [n] uint64 (blake2b: the same on every machine and Python version)."""
    blake2b = hashlib.blake2b
    joined = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, dtype="<u8")


def text_id(text: str) -> str:
    """An id that is made of a text: its hash in 16 hexadecimal digits, so that equal texts have equal ids."""
    return f"{int(hash_texts([text])[0]):016x}"


class IdMap:
    """Maps ids to rows, and rows to ids, of a table with an `id` column.

    Raises: RetrievoError where an id occurs twice, naming it and both rows.
    """

    def __init__(self, table: Table):
        folder = cached(
            f"ids-{FORMAT}/{table.input.fingerprint}", lambda building: _build(table, building), [table.path]
        )
        self.ids = _IdColumn(folder / "ids.arrow")
        self._hashes = np.load(folder / "hashes.npy", mmap_mode="r")  # sorted
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")  # the row of each sorted hash

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """The row of each id, [n] int64; -1 where the table has no such id."""
        column = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids, pa.string())
        coded = flat_strings(column).dictionary_encode()
        found = self._find(coded.dictionary.to_pylist())
        return found[coded.indices.to_numpy()] if len(coded) else np.zeros(0, np.int64)

    def _find(self, ids: list[str]) -> np.ndarray:
        hashes = hash_texts(ids)
        if not len(self._hashes) or not len(hashes):
            return np.full(len(hashes), -1, np.int64)
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[place] == hashes, self._rows[place].astype(np.int64), -1)


class _IdColumn:
    """Ids by row from a memory-mapped Arrow file."""

    def __init__(self, path: Path):
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __getitem__(self, rows: np.ndarray) -> list[str]:
        ids: list[str] = taken(self.column(), rows).to_pylist()
        return ids

    def column(self) -> pa.ChunkedArray:
        """All ids in row order, memory-mapped."""
        return self._table.column(0)


def _build(table: Table, building: Path) -> None:
    _write_columns(table, building)
    _sort_hashes(table, building)


def _write_columns(table: Table, building: Path) -> None:
    """Writes the ids, and their hashes in row order, in one pass over the table."""
    schema = pa.schema([("id", pa.string())])
    with (
        pa.OSFile(str(building / "ids.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        GrowingArray(building / "unsorted.npy", "<u8") as unsorted,
        console.progress(f"reading ids of {table.path}", table.rows, "rows") as tick,
    ):
        for batch in table.batches(["id"]):
            writer.write_batch(batch)
            unsorted.append(hash_texts(batch.column("id").to_pylist()))
            tick(batch.num_rows)


def _sort_hashes(table: Table, building: Path) -> None:
    unsorted = np.load(building / "unsorted.npy", mmap_mode="r")
    order = np.argsort(unsorted, kind="stable").astype(np.uint32 if len(unsorted) < 2**32 else np.uint64)
    np.save(building / "hashes.npy", unsorted[order])
    np.save(building / "rows.npy", order)
    twice = np.flatnonzero(np.diff(np.load(building / "hashes.npy", mmap_mode="r")) == 0)
    if len(twice):
        first, second = sorted((int(order[twice[0]]), int(order[twice[0] + 1])))
        name = _IdColumn(building / "ids.arrow")[np.array([first])][0]
        where = f"rows {first + 1:,} and {second + 1:,}"
        raise RetrievoError(table.path, f"id '{name}' occurs twice ({where})", "each id once", "remove one of them")
    remove(building / "unsorted.npy")
