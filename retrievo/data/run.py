"""A run: for each query a ranking of documents with scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.lines import first_line, read_fields
from retrievo.data.run_files import MSMARCO_SUFFIXES, run_name, run_suffix
from retrievo.data.tables import RUN, Table, TableWriter, table_files
from retrievo.support.artifact import Input, Manifest
from retrievo.support.errors import RetrievoError

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


@dataclass(frozen=True)
class Run:
    """Rankings as a table of query_id, doc_id, score (float32) and, from our own searches, rank (int32, from 1)."""

    name: str
    path: Path
    table: pa.Table
    input: Input

    @classmethod
    def read(cls, path: Path) -> Run:
        """Reads Parquet, TREC (6 columns) or MS MARCO (3 columns; score = -rank), by content.

        Raises: RetrievoError naming file and line or column.
        """
        files = table_files(path, "run")
        if files[0].suffix == ".parquet":
            source = Table(path, RUN)
            return cls(run_name(path), path, source.read(["query_id", "doc_id", "score"]), source.input)
        return cls(run_name(path), path, pa.concat_tables(_read_text(file) for file in files), Input.of(path, files))


def _read_text(path: Path) -> pa.Table:
    fields = first_line(path)
    if not fields:
        return RUN.arrow.empty_table().select(["query_id", "doc_id", "score"])
    if len(fields) == 6:
        table = read_fields(path, _TREC, "query_id Q0 doc_id rank score tag")
        return table.select(["query_id", "doc_id"]).append_column(
            "score", table["score"].cast(pa.float32(), safe=False)
        )
    if len(fields) == 3:
        table = read_fields(path, _MSMARCO, "query_id<tab>doc_id<tab>rank")
        return table.select(["query_id", "doc_id"]).append_column("score", pc.negate(table["rank"]).cast(pa.float32()))
    raise RetrievoError(
        path, f"its first line has {len(fields)} fields", "6 (TREC), 3 (MS MARCO) or Parquet", "check the file"
    )


class RunWriter:
    """Writes rankings to one file in the format of its suffix: .parquet, TREC (.trec .txt .run) or MS MARCO (.tsv).

    Rows must come in the order of the query table, then rank.
    Raises: RetrievoError for ids with white space in the text formats, which have no way to hold them.
    """

    def __init__(self, path: Path, *, format_of: Path):
        self.path, self.suffix = format_of, run_suffix(format_of)
        self.tag = run_name(format_of).replace(" ", "-")
        self._text = self.suffix != ".parquet"
        self._writer = _open_sink(path, format_of) if self._text else TableWriter(path, RUN.arrow)

    def write(self, query_ids: pa.Array, doc_ids: pa.Array, scores: np.ndarray, ranks: np.ndarray) -> None:
        """Adds rows: ids as string arrays, scores float32, ranks from 1."""
        columns = [query_ids, doc_ids, pa.array(scores, pa.float32()), pa.array(ranks, pa.int32())]
        table = pa.table(columns, schema=RUN.arrow)
        if not self._text:
            self._writer.write(table)
            return
        for start in range(0, table.num_rows, _ROWS_PER_WRITE):
            self._writer.write(_lines(table.slice(start, _ROWS_PER_WRITE), self.suffix, self.tag, self.path))

    def close(self, manifest: Manifest) -> None:
        """Ends the file; Parquet carries the manifest, text has no place for it."""
        if self._text:
            self._writer.close()
        else:
            self._writer.close(manifest)


def _open_sink(path: Path, format_of: Path) -> pa.NativeFile:
    sink = pa.OSFile(str(path), "wb")
    return pa.CompressedOutputStream(sink, "gzip") if format_of.suffix == ".gz" else sink


def _lines(table: pa.Table, suffix: str, tag: str, path: Path) -> bytes:
    for name in ("query_id", "doc_id"):
        spaced = pc.match_substring_regex(table[name], r"\s|^$")
        if pc.any(spaced).as_py():
            example = table[name].filter(spaced)[0].as_py()
            fix = "write .parquet instead, which holds any id"
            raise RetrievoError(path, f"{name} '{example}' has white space, which this format can't hold", None, fix)
    rank = table["rank"].cast(pa.string())
    if suffix in MSMARCO_SUFFIXES:
        joined = pc.binary_join_element_wise(table["query_id"], table["doc_id"], rank, "\t")
    else:
        score = table["score"].cast(pa.string())  # shortest text that reads back as the same float32
        joined = pc.binary_join_element_wise(table["query_id"], "Q0", table["doc_id"], rank, score, tag, " ")
    return ("\n".join(joined.to_pylist()) + "\n").encode() if table.num_rows else b""
