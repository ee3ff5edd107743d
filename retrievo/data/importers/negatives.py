"""Sorts hard negatives by query on disk, because MS MARCO's 400 M triples do not fit in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from retrievo.data.columns import rows_of, table_of, taken
from retrievo.data.ordering import flat_strings
from retrievo.data.tables import NEGATIVES, TableWriter
from retrievo.support import console
from retrievo.support.values import Values

ROWS_PER_PASS = 1 << 19  # rows that are sorted in memory at a time
MOST_FILES = 512  # most files open at a time: half of the usual limit of a process
_SPILL = pa.schema([("query", pa.int32()), ("doc_id", pa.string()), ("score", pa.float32()), ("source", pa.int8())])
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class NegativesWriter:
    """Collects (query, document) pairs on disk and writes them sorted by query id, each pair once.

    Within a query, pairs keep their order of arrival, which the rank (from 1) records. Query ids are kept in memory.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._spill = _spill(folder / "all.arrow")
        self._codes: dict[str, int] = {}  # query id -> number by order of arrival
        self._sources: list[str] = []
        self._counts = np.zeros(0, np.int64)  # rows of each query

    def add(self, query_ids: pa.Array, doc_ids: pa.Array, source: str, scores: object = None) -> None:
        """Adds pairs from one source; `scores` may be None or contain nulls."""
        coded = query_ids.dictionary_encode()
        numbers = [self._codes.setdefault(name, len(self._codes)) for name in coded.dictionary.to_pylist()]
        queries = np.array(numbers, np.int32)[coded.indices.to_numpy()] if len(coded) else np.zeros(0, np.int32)
        counts = np.bincount(queries, minlength=len(self._codes))
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        if source not in self._sources:
            self._sources.append(source)
        given = pa.nulls(len(doc_ids), pa.float32()) if scores is None else pa.array(scores, pa.float32())
        sources = pa.array(np.full(len(doc_ids), self._sources.index(source), np.int8))
        self._spill.write_batch(pa.record_batch([pa.array(queries), doc_ids, given, sources], schema=_SPILL))

    def finish(self, path: Path) -> tuple[int, Values]:
        """Writes the table; returns its number of rows and its record for the manifest."""
        self._spill.close()
        names = pa.array(sorted(self._codes), pa.string())
        place = np.empty(len(names), np.int64)  # of each number in the order of the ids
        place[[self._codes[name] for name in names.to_pylist()]] = np.arange(len(names))
        files = self._distribute(place)
        writer = TableWriter(path, NEGATIVES.arrow)
        with console.progress(f"sorting {path.name}", int(self._counts.sum()), "rows") as tick:
            for file in files:
                rows = _read(file)
                writer.write(self._sorted(rows, place, names))
                tick(rows.num_rows)
        return writer.rows, writer.close()

    def _distribute(self, place: np.ndarray) -> list[Path]:
        """Distributes the pairs over files of consecutive queries, each small enough to be sorted in memory."""
        size = max(ROWS_PER_PASS, -(-int(self._counts.sum()) // MOST_FILES))
        if self._counts.sum() <= size:
            return [self.folder / "all.arrow"]
        counts = np.empty_like(self._counts)
        counts[place] = self._counts
        part = ((np.cumsum(counts) - 1) // size)[place]  # of each query number
        files = [self.folder / f"part-{number}.arrow" for number in range(int(part.max()) + 1)]
        writers = [_spill(file) for file in files]
        spilled = pa.ipc.open_file(str(self.folder / "all.arrow"))
        for batch in map(spilled.get_batch, range(spilled.num_record_batches)):
            parts = part[batch.column("query").to_numpy()]
            for number in np.unique(parts):
                writers[number].write_batch(batch.filter(pa.array(parts == number)))
        for writer in writers:
            writer.close()
        return files

    def _sorted(self, rows: pa.Table, place: np.ndarray, names: pa.Array) -> pa.Table:
        """Rows by query, each pair once, with ranks from 1."""
        query = place[rows["query"].to_numpy()]
        order = np.argsort(query, kind="stable")
        document = flat_strings(rows["doc_id"]).dictionary_encode()
        pair = query * max(1, len(document.dictionary)) + document.indices.to_numpy()
        order = order[np.sort(np.unique(pair[order], return_index=True)[1])]
        query, rows = query[order], rows_of(rows, order)
        start = np.flatnonzero(np.diff(query, prepend=-1))
        rank = np.arange(len(query)) - np.repeat(start, np.diff(start, append=len(query))) + 1
        score = rows["score"].combine_chunks().fill_null(np.nan).to_numpy(zero_copy_only=False)
        columns = {
            "query_id": taken(names, query),
            "doc_id": rows["doc_id"],
            "score": np.where(np.isnan(score), -rank, score).astype(np.float32),
            "rank": rank.astype(np.int32),
            "source": pa.array(self._sources, pa.string()).take(rows["source"].combine_chunks()),
        }
        return table_of([columns[name] for name in NEGATIVES.arrow.names], NEGATIVES.arrow)


def _spill(path: Path) -> pa.RecordBatchFileWriter:
    return pa.ipc.new_file(str(path), _SPILL, options=_OPTIONS)


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
