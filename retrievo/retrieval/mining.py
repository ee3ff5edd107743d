"""From a run to hard negatives: what must never be one, which ranks are looked at, which of them are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.corpus import Corpus
from retrievo.data.ids import hash_texts
from retrievo.data.ordering import flat_strings, ranks
from retrievo.data.sampling import random_keys
from retrievo.data.tables import NEGATIVES, RUN, Table

_ROWS_AT_ONCE, _BATCH_ROWS = 1 << 20, 1 << 16


@dataclass(frozen=True)
class Window:
    """Ranks that become negatives: those after the best `skip`, up to `depth`; `samples` of them for each query.

    sampling: `random` is a pure function of (seed, query id, document id), without replacement; `top` takes the best.
    """

    skip: int
    depth: int
    samples: int
    sampling: str
    seed: int


class Relevant:
    """The relevant documents of each query, by row in the corpus and by text."""

    def __init__(self, corpus: Corpus, pairs: pa.Table):
        rows = corpus.id_map.rows(pairs["doc_id"])
        queries = hash_texts(pairs["query_id"].to_pylist())
        there = rows >= 0  # a relevant document that the corpus lacks can't be found either
        self.corpus = corpus
        self._documents = np.sort(random_keys(0, queries[there], rows[there]))
        self._texts = np.sort(random_keys(1, queries[there], corpus.id_map.text_hashes[rows[there]]))

    def masks(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of pairs (hash of query id, row of document) [n]: which are relevant; which only have the text of one."""
        is_relevant = _among(random_keys(0, queries, rows), self._documents)
        same_text = _among(random_keys(1, queries, self.corpus.id_map.text_hashes[rows]), self._texts)
        return is_relevant, same_text & ~is_relevant


def _among(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each key occurs in a sorted array."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def choose(run: Path, relevant: Relevant, window: Window, source: str) -> Iterator[tuple[pa.Table, dict[str, int]]]:
    """Negatives and counts of some thousand queries at a time; rows by query as in the run, then rank.

    Counts: `relevant` and `same_text` were dropped by that rule inside the window, `short` queries keep fewer than
    `samples`, `without` keep none.
    """
    for part in _whole_queries(run):
        query = _codes(part["query_id"])
        rank = ranks(query)
        rows = relevant.corpus.id_map.rows(part["doc_id"])
        inside = (rank > window.skip) & (rank <= window.depth)
        hashes = hash_texts(flat_strings(part["query_id"]).unique().to_pylist())[query]
        is_relevant, same_text = relevant.masks(hashes, rows)
        candidates = np.flatnonzero(inside & ~is_relevant & ~same_text)
        kept = candidates[_kept(query[candidates], rank[candidates], hashes[candidates], rows[candidates], window)]
        sizes = np.bincount(query[kept], minlength=int(query[-1]) + 1)
        counts = {
            "queries": len(sizes),
            "relevant": int((inside & is_relevant).sum()),
            "same_text": int((inside & same_text).sum()),
            "short": int((sizes < window.samples).sum()),
            "without": int((sizes == 0).sum()),
        }
        yield _negatives(part.take(pa.array(kept)), rank[kept], source), counts


def _codes(query_ids: pa.ChunkedArray) -> np.ndarray:
    """0, 1, ... for each run of equal ids [n]."""
    ids = flat_strings(query_ids)
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False) if len(ids) else np.zeros(0, bool)
    return np.concatenate([[0], np.cumsum(changes)]).astype(np.int64)[: len(ids)]


def _kept(query: np.ndarray, rank: np.ndarray, hashes: np.ndarray, rows: np.ndarray, window: Window) -> np.ndarray:
    """Positions of the candidates that stay, in order."""
    first = rank if window.sampling == "top" else random_keys(window.seed, hashes, rows)
    order = np.lexsort((first, query))
    return np.sort(order[ranks(query[order]) <= window.samples]) if len(order) else order


def _negatives(chosen: pa.Table, rank: np.ndarray, source: str) -> pa.Table:
    columns = [chosen["query_id"], chosen["doc_id"], chosen["score"], pa.array(rank, pa.int32())]
    return pa.table([*columns, pa.array([source] * len(rank), pa.string())], schema=NEGATIVES.arrow)


def _whole_queries(run: Path) -> Iterator[pa.Table]:
    """The rows of a run in large parts that never cut a query in two."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in Table(run, RUN).batches(["query_id", "doc_id", "score"], _BATCH_ROWS):
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _ROWS_AT_ONCE:
            table = pa.Table.from_batches(waiting)
            last = pc.index(table["query_id"], table["query_id"][-1]).as_py()
            if last:
                yield table.slice(0, last)
            waiting, rows = table.slice(last).to_batches(), table.num_rows - last
    if rows:
        yield pa.Table.from_batches(waiting)
