"""A run: for each query a ranking of documents with scores."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.columns import table_of
from retrievo.data.finding import table_files
from retrievo.data.lines import first_line, read_field_blocks
from retrievo.data.ordering import flat_strings
from retrievo.data.run_files import MSMARCO_SUFFIXES, run_name, run_suffix
from retrievo.data.tables import RUN, Table, TableWriter
from retrievo.support.artifact import Input, Manifest
from retrievo.support.errors import RetrievoError
from retrievo.support.files import HashingFile, reads_as_parquet

_TREC = (
    ("query_id", pa.string()),
    ("q0", pa.string()),
    ("doc_id", pa.string()),
    ("rank", pa.string()),
    ("score", pa.float64()),
    ("tag", pa.string()),
)
_MSMARCO = (("query_id", pa.string()), ("doc_id", pa.string()), ("rank", pa.int32()))
_ROWS_PER_WRITE = 1 << 18
_ROWS_PER_READ = 1 << 18
_ROWS_PER_BLOCK = 1 << 18  # about 60 MB while a block is scored


@dataclass(frozen=True)
class Run:
    """Rankings: query_id, doc_id, score (float32) and the rank in the file (int32, from 1; 0 = the file has none).

    Rows stay on disk until they are read.
    """

    name: str
    path: Path
    input: Input
    _files: Sequence[Path] | Table

    @classmethod
    def open(cls, path: Path) -> Run:
        """Opens a run in Parquet, TREC (6 columns) or MS MARCO format (3 columns; score = -rank), detected by content.

        Raises: RetrievoError where there is no such file, or a Parquet file is not a run.
        """
        files = table_files(path, "run")
        if reads_as_parquet(files[0]):
            source = Table(path, RUN, repetitive=("query_id",))
            return cls(run_name(path), path, source.input, source)
        return cls(run_name(path), path, Input.of(path, files), files)

    def batches(self) -> Iterator[pa.Table]:
        """Yields the rows in file order, a few hundred thousand at a time.

        Raises: RetrievoError naming file and line or column.
        """
        if isinstance(self._files, Table):
            for batch in self._files.batches(RUN.arrow.names, _ROWS_PER_READ):
                yield pa.Table.from_batches([batch])
        else:
            for file in self._files:
                yield from _read_text(file)

    def blocks(self) -> Iterator[pa.Table]:
        """Yields the rows, a few hundred thousand at a time, never splitting contiguous rows of one query.

        Raises: RetrievoError naming file and line or column.
        """
        waiting: list[pa.Table] = []
        for batch in self.batches():
            waiting.append(batch)
            if sum(part.num_rows for part in waiting) < _ROWS_PER_BLOCK:
                continue
            joined = pa.concat_tables(waiting)
            end = _start_of_last_query(joined["query_id"])
            if end:
                yield joined.slice(0, end)
            waiting = [joined.slice(end)]
        if waiting:
            yield pa.concat_tables(waiting)

    def query_ids(self) -> Iterator[pa.LargeStringArray]:
        """The query id of every row, in the order of the file, some hundred thousand at a time."""
        if isinstance(self._files, Table):
            batches: Iterator[Any] = self._files.batches(["query_id"], _ROWS_PER_READ)
        else:
            batches = self.batches()
        yield from (flat_strings(batch.column("query_id")) for batch in batches)

    def whole_queries(self) -> Iterator[pa.Table]:
        """Yields the rows in tables that each hold all rows of their queries, wherever they are in the file.

        A run whose queries are scattered is read into memory as one table; otherwise memory is that of one block.
        Raises: RetrievoError naming file and line or column.
        """
        ids = pa.chunked_array(
            [pc.unique(flat_strings(block["query_id"])) for block in self.blocks()], pa.large_string()
        )
        scattered = pc.count_distinct(ids).as_py() < len(ids)
        yield from [self.table] if scattered else self.blocks()

    @functools.cached_property
    def table(self) -> pa.Table:
        """All rows in memory."""
        return pa.concat_tables([RUN.arrow.empty_table(), *self.batches()])


def _start_of_last_query(query_ids: pa.ChunkedArray) -> int:
    others = np.flatnonzero(pc.not_equal(query_ids, query_ids[-1]).to_numpy())
    return int(others[-1]) + 1 if len(others) else 0


def _read_text(path: Path) -> Iterator[pa.Table]:
    fields = first_line(path)
    if len(fields) == 6:
        wanted = ("query_id", "doc_id", "rank", "score")
        for table in read_field_blocks(path, _TREC, "query_id Q0 doc_id rank score tag", names=wanted):
            score = table["score"].cast(pa.float32(), safe=False)
            yield _table(table, score, _parsed_ranks(table["rank"]))
    elif len(fields) == 3:
        for table in read_field_blocks(path, _MSMARCO, "query_id<tab>doc_id<tab>rank"):
            yield _table(table, pc.negate(table["rank"]).cast(pa.float32()), table["rank"])
    elif fields:
        expected = "6 (TREC), 3 (MS MARCO) or Parquet"
        raise RetrievoError(path, f"its first line has {len(fields)} fields", expected, "check the file")


def _table(ids: pa.Table, score: pa.ChunkedArray, rank: pa.ChunkedArray) -> pa.Table:
    return pa.table([ids["query_id"], ids["doc_id"], score, rank], schema=RUN.arrow)


def _parsed_ranks(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ranks as numbers; 0 where a tool wrote something else, since trec_eval ignores the column."""
    try:
        return texts.cast(pa.int32())
    except pa.ArrowInvalid:
        numbers = pc.match_substring_regex(texts, r"^\d{1,9}$")
        return pc.if_else(numbers, texts, "0").cast(pa.int32())


class RunWriter:
    """Writes rankings to one file in the format of its suffix: .parquet, TREC (.trec .txt .run) or MS MARCO (.tsv).

    Rows must arrive in query-table order, then by rank.
    Raises: RetrievoError for an id with white space in a text format, which cannot represent it.
    """

    def __init__(self, path: Path, *, format_of: Path):
        self.path, self.suffix = format_of, run_suffix(format_of)
        self.tag = run_name(format_of).replace(" ", "-")
        self._text = self.suffix != ".parquet"
        self._writer = _open_sink(path, format_of) if self._text else TableWriter(path, RUN.arrow)

    def write(self, query_ids: pa.Array, doc_ids: pa.Array, scores: np.ndarray, ranks: np.ndarray) -> None:
        """Appends rows: ids as string arrays, float32 scores, ranks from 1."""
        columns = [query_ids, doc_ids, pa.array(scores, pa.float32()), pa.array(ranks, pa.int32())]
        table = table_of(columns, RUN.arrow)
        if not self._text:
            self._writer.write(table)
            return
        for start in range(0, table.num_rows, _ROWS_PER_WRITE):
            self._writer.write(_lines(table.slice(start, _ROWS_PER_WRITE), self.suffix, self.tag, self.path))

    def close(self, manifest: Manifest) -> None:
        """Closes the file; Parquet embeds the manifest, which a text format has no place for."""
        if self._text:
            self._writer.close()
        else:
            self._writer.close(manifest)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)


def _open_sink(path: Path, format_of: Path) -> pa.NativeFile:
    sink = pa.PythonFile(HashingFile(path), "w")  # HashingFile flushes to disk when it is closed
    return pa.CompressedOutputStream(sink, "gzip") if format_of.suffix == ".gz" else sink


def _lines(table: pa.Table, suffix: str, tag: str, path: Path) -> bytes:
    for name in ("query_id", "doc_id"):
        spaced = pc.match_substring_regex(table[name], r"[\s\v]|^$")  # \v too: `split_words` splits at it
        if pc.any(spaced).as_py():
            example = table[name].filter(spaced)[0].as_py()
            fix = "write .parquet instead, which holds any id"
            raise RetrievoError(path, f"{name} '{example}' has white space, which this format can't hold", None, fix)
    rank = table["rank"].cast(pa.string())
    if suffix in MSMARCO_SUFFIXES:
        joined = pc.binary_join_element_wise(table["query_id"], table["doc_id"], rank, "\t")
    else:
        score = table["score"].cast(pa.string())  # the shortest text that parses to the same float32
        joined = pc.binary_join_element_wise(table["query_id"], "Q0", table["doc_id"], rank, score, tag, " ")
    return ("\n".join(joined.to_pylist()) + "\n").encode() if table.num_rows else b""
