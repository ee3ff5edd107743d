"""Relevance judgments: which documents answer which query, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.finding import table_files
from retrievo.data.lines import first_line, is_number, read_fields
from retrievo.data.tables import QRELS, Table
from retrievo.support.artifact import Input
from retrievo.support.errors import RetrievoError
from retrievo.support.files import reads_as_parquet

_TREC = (("query_id", pa.string()), ("iteration", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32()))
_BEIR = (("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32()))


@dataclass(frozen=True)
class Qrels:
    """Judgments as a table of query_id, doc_id, relevance (int32); each pair occurs once."""

    path: Path
    table: pa.Table
    input: Input

    @classmethod
    def read(cls, path: Path) -> Qrels:
        """Reads judgments from Parquet or text; text with 4 columns is TREC or MS MARCO, with 3 it is BEIR.

        Raises: RetrievoError naming file and line or column.
        """
        files = table_files(path, "qrels")
        if reads_as_parquet(files[0]):
            source = Table(path, QRELS)
            qrels = cls(path, source.read(), source.input)
        else:
            qrels = cls(path, pa.concat_tables(_read_text(file) for file in files), Input.of(path, files))
        if not qrels.table.num_rows:
            raise RetrievoError(path, "holds no judgments", "at least one row", "check the file")
        qrels._check_pairs()
        return qrels

    def relevant(self, min_relevance: int) -> pa.Table:
        """The rows of at least this grade."""
        return self.table.filter(pc.greater_equal(self.table["relevance"], min_relevance))

    def _check_pairs(self) -> None:
        pairs = self.table.group_by(["query_id", "doc_id"]).aggregate([([], "count_all")])
        if pairs.num_rows < self.table.num_rows:
            first = pairs.filter(pc.greater(pairs["count_all"], 1)).slice(0, 1).to_pylist()[0]
            found = (
                f"query '{first['query_id']}' and document '{first['doc_id']}' are judged {first['count_all']} times"
            )
            raise RetrievoError(self.path, found, "one judgment for each pair", "remove the others")


def _read_text(path: Path) -> pa.Table:
    fields = first_line(path)
    if len(fields) == 4:
        return read_fields(path, _TREC, "query_id 0 doc_id relevance").select(["query_id", "doc_id", "relevance"])
    if len(fields) == 3:
        header = 0 if is_number(fields[2]) else 1
        return read_fields(path, _BEIR, "query-id<tab>corpus-id<tab>score", skip=header)
    expected = "4 columns (TREC, MS MARCO), 3 (BEIR) or Parquet"
    raise RetrievoError(path, f"its first line has {len(fields)} fields", expected, "check the file")
