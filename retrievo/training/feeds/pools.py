"""Pools of negatives by row number, built once in the cache and memory-mapped by all processes of a machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrievo.data import ids
from retrievo.data.cache import GrowingArray, cached
from retrievo.data.ids import IdMap
from retrievo.data.tables import Table
from retrievo.support import console
from retrievo.support.files import remove, write_json
from retrievo.training.feeds.samplers import Ragged

FORMAT = 1  # together with the format of id maps, which defines empty texts
_ROWS_AT_ONCE = 1 << 20


def mapped_pools(
    pools: Sequence[Table], queries: tuple[Table, IdMap], documents: tuple[Table, IdMap], empty: np.ndarray
) -> tuple[Ragged, int]:
    """The document rows (int32) of each query row, in the order of the pools, and the number of pairs left out.

    100 million pairs take 0.4 GB once for a machine, plus 8 bytes for each query.

    queries, documents: the tables with their ids. empty: which documents have no text [N]. Pairs of empty documents,
    and of unknown queries or documents, are left out.
    """
    if not pools:
        return Ragged(np.empty(0, np.int32), np.zeros(len(queries[1]) + 1, np.int64)), 0
    tables = [queries[0], documents[0], *pools]
    made_of = "".join(table.input.fingerprint for table in tables).encode() + np.packbits(empty).tobytes()
    name = hashlib.blake2b(made_of, digest_size=16).hexdigest()

    def build(folder: Path) -> None:
        _build(pools, queries[1], documents[1], empty, folder)

    folder = cached(f"pools-{FORMAT}-{ids.FORMAT}/{name}", build, [table.path for table in tables])
    values, offsets = (np.asarray(np.load(folder / f"{part}.npy", mmap_mode="r")) for part in ("values", "offsets"))
    return Ragged(values, offsets), int(json.loads((folder / "lost.json").read_text())["pairs"])


def _build(pools: Sequence[Table], queries: IdMap, documents: IdMap, empty: np.ndarray, folder: Path) -> None:
    lost, unsorted = 0, {name: folder / f"{name}.npy" for name in ("query", "document")}
    with (
        GrowingArray(unsorted["query"], "<i4") as query_rows,
        GrowingArray(unsorted["document"], "<i4") as document_rows,
        console.progress("reading negatives", sum(pool.rows for pool in pools), "rows") as tick,
    ):
        for pool in pools:
            for batch in pool.batches(["query_id", "doc_id"], _ROWS_AT_ONCE):
                query, document = queries.rows(batch.column("query_id")), documents.rows(batch.column("doc_id"))
                known = (query >= 0) & (document >= 0)
                known[known] = ~empty[document[known]]
                query_rows.append(query[known])
                document_rows.append(document[known])
                lost += int((~known).sum())
                tick(batch.num_rows)
    query, document = (np.load(path, mmap_mode="r") for path in unsorted.values())
    np.save(folder / "values.npy", document[np.argsort(query, kind="stable")])
    counts = np.bincount(query, minlength=len(queries))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    write_json(folder / "lost.json", {"pairs": lost})
    for path in unsorted.values():
        remove(path)
