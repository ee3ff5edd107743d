"""Fusion of runs as people hand them to the library."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from retrievo.data.given import RunLike, run_table
from retrievo.retrieval import fusion


def fuse(
    runs: Sequence[RunLike], method: str = "rrf", weights: Sequence[float] | None = None, *, depth: int | None = None
) -> pa.Table:
    """One run of several of the same queries: `query_id`, `doc_id`, `score`, `rank`, as `retrievo search --run` fuses.

    runs:    paths, tables (results of `Index.search` too) or {query: {document: score}}.
    method:  rrf, minmax or zscore. weights: one for each run, more than 0; default 1 each.
    depth:   most documents of a query; default all.

    Raises: UsageError for an unknown method; RetrievoError for what is no run, a document that a run has twice for a
    query, and weights that are not one positive number for each run.
    """
    tables = [run_table(run, f"run {number}") for number, run in enumerate(runs, start=1)]
    return fusion.fuse(method, tables, weights, depth=depth)
