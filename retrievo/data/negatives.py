"""Hard negatives: for each query, documents that a retriever ranks high and nobody judged relevant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from retrievo.data.tables import NEGATIVES, Table
from retrievo.support.artifact import Input
from retrievo.support.errors import RetrievoError


@dataclass(frozen=True)
class Negatives:
    """A pool of negatives as a table of query_id, doc_id, score, rank, source."""

    path: Path
    table: pa.Table
    input: Input

    @classmethod
    def read(cls, path: Path) -> Negatives:
        """Reads one Parquet file, a folder of them, or a glob.

        Raises: RetrievoError naming file and column of what does not fit.
        """
        source = Table(path, NEGATIVES)
        for part in source.parts:
            if "rule" in part.schema.names:
                raise RetrievoError(part.file, "holds dropped candidates", "negatives", "name the tables to train on")
        return cls(path, source.read(["query_id", "doc_id"]), source.input)


def pooled(pools: Sequence[Negatives]) -> pa.Table:
    """The pairs (query_id, doc_id) of several pools together; a pair may occur in more than one."""
    schema = pa.schema([("query_id", pa.string()), ("doc_id", pa.string())])
    return pa.concat_tables([pool.table for pool in pools]) if pools else schema.empty_table()
