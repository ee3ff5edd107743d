"""String columns of any size.

Arrow's string type counts bytes in 32 bits, and `take` on a chunked column first joins all of its chunks: beyond 2 GiB
that fails, and below 2 GiB it copies the whole column to get a few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MOST_BYTES = (1 << 31) - 1  # the most text that one array of Arrow's string type can hold


def taken(column: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> pa.LargeStringArray:
    """The ids [n] at these rows of a column of any string, dictionary or integer type, chunk by chunk.

    Memory is that of the result and at most one chunk.
    Raises: IndexError for a row that does not exist.
    """
    rows = np.asarray(rows, dtype=np.int64)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(column)):
        raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(column)}")
    order = np.argsort(rows, kind="stable") if (rows[1:] < rows[:-1]).any() else None
    ascending = rows if order is None else rows[order]
    cuts = np.concatenate([[0], np.searchsorted(ascending, ends)])
    parts = [pa.array([], pa.large_string())]
    for number in np.flatnonzero(np.diff(cuts)):
        inside = ascending[cuts[number] : cuts[number + 1]] - (ends[number] - len(chunks[number]))
        parts.append(_large(chunks[number], inside))
    joined = pa.concat_arrays(parts) if len(parts) > 2 else parts[-1]
    return joined if order is None else joined.take(pa.array(np.argsort(order)))


def _large(chunk: pa.Array, rows: np.ndarray) -> pa.LargeStringArray:
    """Rows of one chunk of any type; the whole chunk is widened only where the result might exceed 32-bit offsets."""
    positions = pa.array(rows)
    if pa.types.is_string(chunk.type) and len(rows) * chunk.nbytes < MOST_BYTES:
        return chunk.take(positions).cast(pa.large_string())
    return chunk.cast(pa.large_string()).take(positions)


def rows_of(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows of a table at these positions; string columns become large_string columns."""
    columns = [taken(column, rows) if _is_text(column) else column.take(pa.array(rows)) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def table_of(columns: Sequence[object], schema: pa.Schema) -> pa.Table:
    """Columns of any size as a table of this schema; a string column may have several chunks."""
    return pa.table([as_type(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def as_type(column: Any, kind: pa.DataType) -> Any:
    """Casts a column; a large_string column becomes as many string chunks as it needs."""
    if isinstance(column, np.ndarray):
        return pa.array(column, kind)
    if not (pa.types.is_string(kind) and _is_large(column)):
        return column.cast(kind)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.chunked_array([part for chunk in chunks for part in _narrow(chunk)], pa.string())


def _narrow(array: pa.LargeStringArray) -> Iterator[pa.StringArray]:
    """The same strings in arrays that each hold at most 2 GiB of text."""
    size = np.concatenate([[0], np.cumsum(pc.binary_length(array).fill_null(0).to_numpy(), dtype=np.int64)])
    if size[-1] <= MOST_BYTES:
        yield _compact(array).cast(pa.string())
        return
    first = 0
    while first < len(array):
        end = max(first + 1, int(np.searchsorted(size, size[first] + MOST_BYTES, side="right")) - 1)
        yield _compact(array.slice(first, end - first)).cast(pa.string())
        first = end


def _compact(array: pa.LargeStringArray) -> pa.LargeStringArray:
    """A slice whose offsets start at its own text, so that they fit 32 bits."""
    offsets = array.buffers()[1]
    last = np.frombuffer(offsets, np.int64)[array.offset + len(array)] if offsets and len(array) else 0
    return array if last <= MOST_BYTES else array.take(pa.array(np.arange(len(array))))


def _is_large(column: pa.Array | pa.ChunkedArray) -> bool:
    return bool(pa.types.is_large_string(column.type))


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or _is_large(column)
