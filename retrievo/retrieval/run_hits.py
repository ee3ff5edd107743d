"""A run that was made before, as hits of one block of queries after another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.ordering import first_ranked, flat_strings
from retrievo.data.run import Run
from retrievo.retrieval.hits import Hits
from retrievo.support.errors import RetrievoError


class RunHits:
    """The rankings of a run for the queries of a table.

    A run whose queries come in the order of the table, as retrievo writes it, is read once, block by block; any other
    is held in memory and sorted.
    depth: documents of each query; some: whether the run may have queries that the table lacks, which are left out.

    Raises: RetrievoError for a query that is not in the table.
    """

    def __init__(self, run: Run, query_ids: pa.ChunkedArray, depth: int, *, some: bool = False):
        self._run, self._known, self._depth, self._some = run, flat_strings(query_ids), depth, some
        self._batches: Iterator[Hits] = self._in_order() if self._ascends() else iter([self._sorted()])
        self._waiting: list[Hits] = []

    def hits(self, first: int, end: int) -> Hits:
        """The hits of the queries from `first` to `end`, numbered from 0; blocks are asked for in their order."""
        while not self._waiting or self._waiting[-1].query[-1:].max(initial=-1) < end:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._waiting.append(batch)
        inside = [batch.at(np.flatnonzero((batch.query >= first) & (batch.query < end))) for batch in self._waiting]
        self._waiting = [batch for batch in self._waiting if batch.query[-1:].max(initial=-1) >= end]
        query = np.concatenate([np.empty(0, np.int64), *(batch.query for batch in inside)])
        score = np.concatenate([np.empty(0, np.float32), *(batch.score for batch in inside)])
        ids = pa.concat_arrays([pa.array([], pa.large_string()), *(batch.ids() for batch in inside)])
        return Hits.of_ids(query - first, ids, score)

    def _ascends(self) -> bool:
        """Whether the queries come in the order of the table; looks at all of them, so that no stranger comes late."""
        last, ascends = -1, True
        for ids in self._run.query_ids():
            numbers = self._numbers(ids)
            numbers = numbers[numbers >= 0]
            ascends = ascends and bool((np.diff(numbers, prepend=last) >= 0).all())
            last = int(numbers[-1]) if len(numbers) else last
        return ascends

    def _numbers(self, ids: pa.LargeStringArray) -> np.ndarray:
        """The rows int64 [n] of queries in the table, -1 for one that it lacks."""
        places = pc.index_in(ids, self._known)
        if places.null_count and not self._some:
            stranger = ids.filter(places.is_null())[0].as_py()
            raise RetrievoError(self._run.path, f"has a query '{stranger}' that is not in the table of queries")
        return np.asarray(places.fill_null(-1), np.int64)

    def _in_order(self) -> Iterator[Hits]:
        yield from (self._first(block) for block in self._run.blocks())

    def _sorted(self) -> Hits:
        return self._first(self._run.table)

    def _first(self, rows: pa.Table) -> Hits:
        """The first documents of each query of a table that holds all of their rows, in order."""
        query = self._numbers(flat_strings(rows["query_id"]))
        kept = np.flatnonzero(query >= 0)
        query, score = query[kept], rows["score"].to_numpy().astype(np.float32)[kept]
        doc_id = flat_strings(rows["doc_id"]).take(pa.array(kept))
        order = first_ranked(query, score, doc_id, self._depth)
        return Hits.of_ids(query[order], doc_id.take(pa.array(order)), score[order])
