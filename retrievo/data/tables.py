"""Parquet tables: the columns of each kind of table (noun), and how tables are read and written.

Readers accept any Arrow string type and dictionaries for ids and texts, integers for ids, and common aliases of column
names; they check the schema of every file before any work starts.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrievo.data.finding import table_files
from retrievo.data.foreign import are_pairs, import_command
from retrievo.support import console
from retrievo.support.artifact import METADATA_KEY, Input, Manifest
from retrievo.support.errors import RetrievoError
from retrievo.support.files import HashingFile
from retrievo.support.values import Values

ROWS_PER_GROUP = 8_192  # random access decodes one row group at a time: a few MB of text
BYTES_PER_GROUP = 16 << 20
TEXTS = pa.list_(pa.string())


@dataclass(frozen=True)
class Column:
    """A column of a noun; `aliases` are other names under which foreign files carry it."""

    name: str
    type: pa.DataType
    aliases: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Schema:
    """The columns of one kind of table."""

    noun: str
    columns: tuple[Column, ...]

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([(column.name, column.type) for column in self.columns if not column.optional])


_DOCUMENT_IDS = ("docid", "pid", "document_id", "passage_id", "corpus-id", "corpus_id")
_QUERY_IDS = ("qid", "query-id")
_QUERY_ID, _DOC_ID = Column("query_id", pa.string(), _QUERY_IDS), Column("doc_id", pa.string(), _DOCUMENT_IDS)
_SCORE, _RANK = Column("score", pa.float32()), Column("rank", pa.int32())

CORPUS = Schema(
    "corpus",
    (
        Column("id", pa.string(), ("_id", "doc_id", *_DOCUMENT_IDS)),
        Column("title", pa.string(), optional=True),
        Column("text", pa.string(), ("contents", "passage", "body")),
    ),
)
QUERIES = Schema(
    "queries",
    (
        Column("id", pa.string(), ("_id", "query_id", *_QUERY_IDS)),
        Column("text", pa.string(), ("query", "question")),
        Column("answers", TEXTS, optional=True),
    ),
)
ANSWERS = Schema("answers", (Column("query_id", pa.string(), (*_QUERY_IDS, "id", "_id")), Column("answers", TEXTS)))
QRELS = Schema("qrels", (_QUERY_ID, _DOC_ID, Column("relevance", pa.int32(), ("score", "label", "grade"))))
RUN = Schema("run", (_QUERY_ID, _DOC_ID, _SCORE, _RANK))
NEGATIVES = Schema("negatives", (_QUERY_ID, _DOC_ID, _SCORE, _RANK, Column("source", pa.string())))


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table: its footer stays in memory, while the file is open only when it is read.

    names: column of the schema -> its name in this file.
    coded: columns that are read as dictionaries.
    stamp: identifies the file, so that a replacement is noticed.
    """

    file: Path
    metadata: pq.FileMetaData
    schema: pa.Schema
    names: Mapping[str, str]
    coded: Sequence[str]
    stamp: tuple[int, ...]

    @contextlib.contextmanager
    def opened(self) -> Iterator[pq.ParquetFile]:
        """Opens the file and closes it afterwards: a table may have more files than a process may keep open.

        Raises: RetrievoError where it can no longer be opened, or was replaced since it was checked.
        """
        # pre_buffer would keep everything in memory that was ever read from the file
        options = {"metadata": self.metadata, "read_dictionary": list(self.coded), "pre_buffer": False}
        try:
            opened, stamp = pq.ParquetFile(self.file, **options), _stamp(self.file)
        except OSError as error:
            raise RetrievoError(self.file, _cannot_open(error)) from None
        with opened:
            if stamp != self.stamp:
                raise RetrievoError(self.file, "was changed while it was read", None, "run the command again")
            yield opened


def _stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _cannot_open(error: OSError) -> str:
    """The operating system's reason why a file cannot be opened."""
    return f"can't be opened: {os.strerror(error.errno) if error.errno else error}"


class Table:
    """The Parquet files of one table; opening it checks the schema of each file, and reads or keeps open none.

    repetitive: columns whose values repeat so often that reading them as dictionaries is faster.
    Raises: RetrievoError naming file and column where a column is missing or has a type that does not fit.
    """

    def __init__(self, path: Path, schema: Schema, *, repetitive: Sequence[str] = ()):
        self.path, self.schema = path, schema
        self._repetitive = repetitive
        self.files = table_files(path, schema.noun)
        self.parts = [self._checked(file) for file in self.files]
        self.rows: int = sum(part.metadata.num_rows for part in self.parts)

    def _checked(self, file: Path) -> Part:
        metadata, stamp = self._footer(file)
        found, names = metadata.schema.to_arrow_schema(), {}
        for column in self.schema.columns:
            if name := _find_column(found, column, file, self.schema.noun):
                names[column.name] = name
                _check_type(found.field(name), column, file)
                _note_alias(str(file), name, column.name)
        coded = [names[name] for name in self._repetitive if _is_text(found.field(names[name]).type)]
        return Part(file, metadata, found, names, coded, stamp)

    def _footer(self, file: Path) -> tuple[pq.FileMetaData, tuple[int, ...]]:
        try:
            return pq.read_metadata(file), _stamp(file)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise RetrievoError(file, _cannot_open(error), f"the {self.schema.noun}") from None
            raise RetrievoError(
                file, "is not a readable Parquet file", f"the {self.schema.noun}", _import_hint(file, error)
            ) from None

    def check_not_empty(self) -> None:
        """Raises RetrievoError where it has no rows."""
        if not self.rows:
            raise RetrievoError(self.path, f"the {self.schema.noun} has no rows", None, "check the path")

    def has(self, name: str) -> bool:
        """Whether every file has an optional column."""
        return all(name in part.names for part in self.parts)

    @functools.cached_property
    def input(self) -> Input:
        """The path and fingerprint that the manifest of an output made from this table records."""
        return Input.of(self.path, self.files)

    def batches(self, names: Sequence[str] | None = None, rows: int = ROWS_PER_GROUP) -> Iterator[pa.RecordBatch]:
        """Yields batches of at most `rows` rows with the schema's names and types; null texts become empty texts."""
        names = [column.name for column in self.schema.columns if self.has(column.name)] if names is None else names
        for part in self.parts:
            start, wanted = 0, [part.names[name] for name in names]
            with part.opened() as opened:
                for batch in opened.iter_batches(rows, columns=wanted, use_threads=False):
                    yield self._canonical(batch, names, part, start)
                    start += batch.num_rows

    def _canonical(self, batch: pa.RecordBatch, names: Sequence[str], part: Part, start: int) -> pa.RecordBatch:
        columns = {column.name: column for column in self.schema.columns}
        arrays = [_cast(batch.column(part.names[name]), columns[name], part.file, start) for name in names]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([(name, columns[name].type) for name in names]))

    def slices(self, names: Sequence[str], bounds: Sequence[tuple[int, int]]) -> Iterator[pa.Table]:
        """Yields, for each half-open range (first row, end), its rows; ranges must ascend and not overlap."""
        waiting, parts, start = deque(bounds), [], 0
        for batch in self.batches(names):
            while waiting and waiting[0][0] < start + batch.num_rows:
                first, end = waiting[0]
                left = max(0, first - start)
                parts.append(batch.slice(left, end - start - left))
                if end > start + batch.num_rows:  # the range continues in the next batch
                    break
                waiting.popleft()
                yield pa.Table.from_batches(parts)
                parts = []
            start += batch.num_rows

    def read(self, names: Sequence[str] | None = None) -> pa.Table:
        """Reads all rows of the named columns into memory."""
        batches = list(self.batches(names))
        if batches:
            return pa.Table.from_batches(batches)
        kept = [column for column in self.schema.columns if (column.name in names if names else self.has(column.name))]
        return pa.schema([(column.name, column.type) for column in kept]).empty_table()


def as_noun(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """A table in memory with the noun's own names and types, checked as a file is; other columns are left out.

    where: what error messages call the table.
    Raises: RetrievoError where a column is missing, has a type that does not fit, or lacks a value.
    """
    columns = {}
    for column in schema.columns:
        if name := _find_column(table.schema, column, where, schema.noun):
            _check_type(table.schema.field(name), column, where)
            chunks, start = [], 0
            for chunk in table[name].chunks:
                chunks.append(_cast(chunk, column, where, start))
                start += len(chunk)
            columns[column.name] = pa.chunked_array(chunks, column.type)
    return pa.table(columns)


def _import_hint(file: Path, error: Exception) -> str:
    if command := import_command(file):
        return f"import it first: {command}"
    return f"make it again ({' '.join(str(error).split())[:120]})"


def _find_column(schema: pa.Schema, column: Column, file: Path | str, noun: str) -> str | None:
    for name in (column.name, *column.aliases):
        if schema.names.count(name) > 1:
            raise RetrievoError(file, f"has two columns '{name}'", f"one, for the {noun}", "rename one of them")
        if name in schema.names:
            return name
    if column.optional:
        return None
    fix = "rename a column"
    if isinstance(file, Path) and are_pairs(schema.names):
        fix = f"import the pairs first: {import_command(file, schema.names)}"
    raise RetrievoError(file, f"has no column '{column.name}' (it has: {', '.join(schema.names)})", f"the {noun}", fix)


@functools.cache
def _note_alias(file: str, found: str, name: str) -> None:
    if found != name:
        console.note(f"{file}: reading column '{found}' as {name}")


def _check_type(found: pa.Field, column: Column, file: Path | str) -> None:
    value = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
    if pa.types.is_null(value):  # a column without any value; reading it checks whether values are required
        fits = True
    elif pa.types.is_string(column.type):
        fits = _is_text(value) or (column.name.endswith("id") and pa.types.is_integer(value))
    elif pa.types.is_list(column.type):
        is_list = pa.types.is_list(value) or pa.types.is_large_list(value)
        fits = is_list and (_is_text(value.value_type) or pa.types.is_null(value.value_type))
    else:  # grades may be written as 1.0, but a float column named `score` means that the file is a run
        floats = pa.types.is_floating(column.type) or found.name != "score"
        fits = pa.types.is_integer(value) or (pa.types.is_floating(value) and floats)
    if not fits:
        raise RetrievoError(file, f"column '{column.name}' is of type {found.type}", str(column.type), "cast it")


def _is_text(found: pa.DataType) -> bool:
    return any(is_kind(found) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _cast(array: pa.Array, column: Column, file: Path | str, start: int) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = array.cast(column.type)
    if array.null_count:
        array = _without_nulls(array, column, file, start)
    try:
        array = array.cast(column.type)
    except pa.ArrowInvalid as error:
        raise RetrievoError(file, f"column '{column.name}': {error}", str(column.type), "mend the file") from None
    if column.name.endswith("id") and pc.any(empty := pc.equal(pc.binary_length(array), 0)).as_py():
        raise _empty(empty, column, file, start)
    if pa.types.is_list(array.type) and array.flatten().null_count:
        rows = array.to_pylist()
        return pa.array([row and [item for item in row if item is not None] for row in rows], array.type)
    return array


def _without_nulls(array: pa.Array, column: Column, file: Path | str, start: int) -> pa.Array:
    """Replaces null texts by empty texts; a null id, score or grade is an error that names the row."""
    if column.name in ("title", "text"):
        return array.fill_null("")
    if pa.types.is_list(column.type):
        return array
    raise _empty(array.is_null(), column, file, start)


def _empty(empty: pa.Array, column: Column, file: Path | str, start: int) -> RetrievoError:
    row = start + pc.index(empty, True).as_py()
    found = f"column '{column.name}' is empty in row {row + 1}"
    return RetrievoError(file, found, "a value in every row", "mend the file")


class TableWriter:
    """Writes a table as Parquet (zstd) while hashing its bytes; the caller publishes the file."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.schema, self.rows = schema, 0
        self._file = HashingFile(path)
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", write_page_index=True)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(self, columns: Mapping[str, Any] | pa.Table) -> None:
        """Adds rows; they leave memory as soon as a row group is full."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns), schema=self.schema)
        self.rows += table.num_rows
        self._waiting.append(table.select(self.schema.names).cast(self.schema))
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= ROWS_PER_GROUP:
            self._write_groups(last=False)

    def _write_groups(self, last: bool) -> None:
        """Writes full groups; their cut depends on the rows alone, so that the same rows give the same bytes."""
        waiting = pa.concat_tables(self._waiting) if self._waiting else self.schema.empty_table()
        start = 0
        while (count := _group_rows(waiting, start, last)) > 0:
            self._writer.write_table(waiting.slice(start, count).combine_chunks(), row_group_size=count)
            start += count
        rest = waiting.slice(start)
        self._waiting, self._waiting_rows = ([rest] if rest.num_rows else []), rest.num_rows

    def close(self, manifest: Manifest | None = None) -> Values:
        """Closes the file and returns its record (size, content hash) for the manifest of its folder.

        manifest: the manifest that a single-file table stores in its own metadata.
        """
        self._write_groups(last=True)
        if manifest is not None:
            text = json.dumps(manifest.as_json(), ensure_ascii=False, allow_nan=False)
            self._writer.add_key_value_metadata({METADATA_KEY.decode(): text})
        self._writer.close()
        self._file.close()
        return self._file.record()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()  # also after an error: garbage collection would make it write to a closed file
        self._file.close()


def _group_rows(table: pa.Table, start: int, last: bool) -> int:
    """The number of rows from `start` in the next group: 8,192, or as many as fit 16 MiB; 0 = wait for more."""
    window = table.slice(start, ROWS_PER_GROUP)
    fitting = int(np.searchsorted(np.cumsum(_row_bytes(window)), BYTES_PER_GROUP, side="right"))
    count = min(window.num_rows, max(1, fitting))
    full = count == ROWS_PER_GROUP or count < window.num_rows
    return count if full or last else 0


def _row_bytes(table: pa.Table) -> np.ndarray:
    """The size of each row [n] in bytes: the length of its texts, and 8 for every other value."""
    sizes = np.full(table.num_rows, 8 * table.num_columns, dtype=np.int64)
    for column in table.columns:
        if pa.types.is_string(column.type):
            sizes += pc.binary_length(column).to_numpy(zero_copy_only=False) if table.num_rows else 0
    return sizes


@dataclass
class RowCache:
    """Random access to rows of a table; caches the most recently decoded row groups, at least one.

    names: the columns to decode.
    kept:  the most bytes to cache; a single larger row group, as of another tool's file, is cached all the same.
    """

    table: Table
    names: tuple[str, ...]
    kept: int = 4 * BYTES_PER_GROUP
    _starts: list[tuple[int, int, int]] = field(default_factory=list)  # (first row, part, group)
    _cache: dict[int, pa.Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = 0
        for number, part in enumerate(self.table.parts):
            for group in range(part.metadata.num_row_groups):
                self._starts.append((first, number, group))
                first += part.metadata.row_group(group).num_rows

    def rows(self, positions: Sequence[int]) -> list[Values]:
        """Returns the rows at these positions, in this order."""
        found: dict[int, Values] = {}
        for position in sorted(positions):  # each row group is decoded once
            index = bisect.bisect_right(self._starts, (position, len(self._starts), 0)) - 1
            found[position] = self._group(index).slice(position - self._starts[index][0], 1).to_pylist()[0]
        return [found[position] for position in positions]

    def _group(self, index: int) -> pa.Table:
        if index not in self._cache:
            _, number, group = self._starts[index]
            part = self.table.parts[number]
            with part.opened() as opened:
                raw = opened.read_row_group(group, columns=[part.names[name] for name in self.names])
            # a row group with more than 2 GiB of text comes as several batches
            batches = [self.table._canonical(batch, self.names, part, 0) for batch in raw.to_batches()]
            self._cache[index] = pa.Table.from_batches(batches)
            while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > self.kept:
                del self._cache[next(iter(self._cache))]
        return self._cache[index]
