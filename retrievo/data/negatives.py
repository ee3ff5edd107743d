"""Hard negatives: for each query, documents that a retriever ranks high and that are not judged relevant."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from retrievo.data.tables import NEGATIVES, Table
from retrievo.support.artifact import Input
from retrievo.support.errors import RetrievoError


class Negatives:
    """A table of negatives, of which `read` loads query_id and doc_id.

    Raises: RetrievoError naming the file and the column that does not fit.
    """

    def __init__(self, path: Path):
        self.path, self.source = path, Table(path, NEGATIVES)
        for part in self.source.parts:
            if "rule" in part.schema.names:
                raise RetrievoError(part.file, "holds dropped candidates", "negatives", "name the tables to train on")

    @property
    def input(self) -> Input:
        return self.source.input

    def read(self) -> pa.Table:
        """All pairs in memory."""
        return self.source.read(["query_id", "doc_id"])
