"""What evaluation keeps of a run: one pass over its rows, a block of whole queries at a time.

A run of millions of rows meets the judgments block by block; what stays are the judged rows with their ranks, the
first rows of every query and a few counts, so that memory depends on the number of queries and judgments alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.ordering import fingerprints, flat_strings, ranked, ranks, repeated
from retrievo.data.run import Run
from retrievo.support.errors import RetrievoError

NO_RANK = 0


@dataclass(frozen=True)
class Judgments:
    """Who judged what: m pairs of a query and a document with a grade.

    query_ids: strings [J], by first appearance.
    query:     int64 [m], positions in query_ids.
    doc_id:    strings [m].
    grade:     int32 [m].
    """

    query_ids: pa.LargeStringArray
    query: np.ndarray
    doc_id: pa.LargeStringArray
    grade: np.ndarray

    @classmethod
    def of(cls, qrels: pa.Table | None) -> Judgments:
        """From a table of query_id, doc_id, relevance; None = nothing is judged.

        Raises: RetrievoError for a pair that is judged twice.
        """
        if qrels is None:
            none = pa.array([], pa.large_string())
            return cls(none, np.zeros(0, np.int64), none, np.zeros(0, np.int32))
        query_id, doc_id = flat_strings(qrels["query_id"]), flat_strings(qrels["doc_id"])
        query_ids = pc.unique(query_id)
        found = cls(query_ids, positions(query_id, query_ids), doc_id, qrels["relevance"].to_numpy())
        if twice := repeated(found.query, doc_id):
            raise _twice("qrels", query_id[twice[0]], doc_id[twice[0]])
        return found

    @functools.cached_property
    def fingerprints(self) -> np.ndarray:
        """A 64-bit hash of each pair, [m]."""
        return fingerprints(self.query, self.doc_id)

    @functools.cached_property
    def _docs(self) -> pa.LargeStringArray:
        return pc.unique(self.doc_id)

    @functools.cached_property
    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Ascending numbers of the pairs, and where each stands among the judgments."""
        key = self.query * len(self._docs) + positions(self.doc_id, self._docs)
        order = np.argsort(key)
        return key[order], order

    def find(self, query: np.ndarray, doc_id: pa.LargeStringArray) -> np.ndarray:
        """The position of each (query, document) among the judgments, int64 [n]; -1 where it is not judged."""
        keys, order = self._keys
        doc = positions(doc_id, self._docs)
        if not len(keys):
            return np.full(len(doc), -1)
        key = query * len(self._docs) + doc
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        return np.where((query >= 0) & (doc >= 0) & (keys[at] == key), order[at], -1)


@dataclass(frozen=True)
class Rows:
    """Some rows of a run [h].

    query: positions in the run's query_ids, int64.
    rank:  by the ordering rule, int32, from 1.
    told:  the rank that the file tells, int32; 0 = none.
    score: float32.
    """

    query: np.ndarray
    rank: np.ndarray
    told: np.ndarray
    score: np.ndarray

    def take(self, chosen: np.ndarray) -> Rows:
        """Rows by position or by mask."""
        return Rows(*(getattr(self, spec.name)[chosen] for spec in fields(self)))

    @classmethod
    def joined(cls, parts: Iterable[Rows], offsets: Iterable[int]) -> Rows:
        """Rows of several blocks, whose queries begin at these positions."""
        moved = [(part.query + offset, part.rank, part.told, part.score) for part, offset in zip(parts, offsets)]  # noqa: B905
        return cls(*(np.concatenate(columns) for columns in zip(*moved, strict=True)))


@dataclass(frozen=True)
class Scan:
    """A run as evaluation sees it.

    query_ids:  strings [U], by first appearance.
    retrieved:  rows of each query, [U].
    hits:       the judged rows; hit: their positions among the judgments, [h].
    top:        the first rows of each query by either rank; top_doc: their documents.
    self_rows:  the rows whose document id is the query id.
    unlike:     queries with rows that the file ranks otherwise than their scores do, bool [U].
    told:       whether the file's ranks are ranks: from 1, each once in a query.
    """

    query_ids: pa.LargeStringArray
    retrieved: np.ndarray
    hits: Rows
    hit: np.ndarray
    top: Rows
    top_doc: pa.LargeStringArray
    self_rows: Rows
    unlike: np.ndarray
    told: bool

    @classmethod
    def of(cls, run: pa.Table | Run, judgments: Judgments, *, depth: int = 0, name: str = "run") -> Scan:
        """Reads a run: query_id, doc_id, score and perhaps rank, rows in any order.

        depth: how many first rows of every query to keep.
        Raises: RetrievoError for a pair that occurs twice or a score that is not finite, naming query and document.
        """
        blocks = [run] if isinstance(run, pa.Table) else run.blocks()
        scan = cls._joined([_scan(block, judgments, depth, name) for block in blocks], judgments)
        if isinstance(run, Run) and pc.count_distinct(scan.query_ids).as_py() < len(scan.query_ids):
            return cls._joined([_scan(run.table, judgments, depth, name)], judgments)  # its queries are scattered
        return scan

    @classmethod
    def _joined(cls, parts: list[Scan], judgments: Judgments) -> Scan:
        if not parts:
            return _scan(_NO_ROWS, judgments, 0, "run")
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0, *(len(part.query_ids) for part in parts)])[:-1].tolist()
        return cls(
            pa.concat_arrays([part.query_ids for part in parts]),
            np.concatenate([part.retrieved for part in parts]),
            Rows.joined((part.hits for part in parts), offsets),
            np.concatenate([part.hit for part in parts]),
            Rows.joined((part.top for part in parts), offsets),
            pa.concat_arrays([part.top_doc for part in parts]),
            Rows.joined((part.self_rows for part in parts), offsets),
            np.concatenate([part.unlike for part in parts]),
            all(part.told for part in parts),
        )

    @functools.cached_property
    def self_rank(self) -> np.ndarray:
        """The rank of the row whose document is the query, int32 [U]; beyond all ranks where there is none."""
        return self._of_self_rows(self.self_rows.rank)

    @functools.cached_property
    def self_told(self) -> np.ndarray:
        """The same by the file's ranks."""
        return self._of_self_rows(self.self_rows.told)

    def _of_self_rows(self, rank: np.ndarray) -> np.ndarray:
        found = np.full(len(self.query_ids), np.iinfo(np.int32).max, np.int32)
        found[self.self_rows.query] = rank
        return found


_NO_ROWS = pa.table(
    {name: pa.array([], pa.string()) for name in ("query_id", "doc_id")} | {"score": pa.array([], "f4")}
)


def positions(ids: pa.Array, among: pa.Array) -> np.ndarray:
    """The position of each id among others, int64 [n]; -1 where it is not there."""
    return pc.index_in(ids, value_set=among).fill_null(-1).to_numpy().astype(np.int64)


def _scan(block: pa.Table, judgments: Judgments, depth: int, name: str) -> Scan:
    """One block of whole queries."""
    query_ids, query = _coded(block["query_id"])
    doc_id, score = flat_strings(block["doc_id"]), block["score"].to_numpy()
    _check_finite(name, score, query_ids, query, doc_id)
    judged = positions(query_ids, judgments.query_ids)
    group = np.where(judged >= 0, judged, len(judgments.query_ids) + np.arange(len(query_ids)))
    prints = fingerprints(group[query], doc_id)
    if twice := repeated(query, doc_id, prints):
        raise _twice(name, query_ids[query[twice[0]]], doc_id[twice[0]])

    rank = np.empty(len(query), np.int32)
    order = ranked(query, score, doc_id)
    rank[order] = ranks(query[order])
    told = block["rank"].to_numpy() if "rank" in block.column_names else np.zeros(len(rank), np.int32)
    every = Rows(query, rank, told, score)
    # Few rows have the fingerprint of a judged pair or of a query as its own document; only those are compared as text.
    wanted = np.concatenate([judgments.fingerprints, fingerprints(group, query_ids)])
    rows = np.flatnonzero(pc.is_in(pa.array(prints), value_set=pa.array(wanted)).to_numpy(zero_copy_only=False))
    ids = doc_id.take(pa.array(rows))
    hit = judgments.find(judged[query[rows]], ids)
    own = pc.equal(ids, query_ids.take(pa.array(query[rows]))).to_numpy(zero_copy_only=False)
    first = np.flatnonzero((rank <= depth) | ((told <= depth) & (told > NO_RANK))) if depth else rows[:0]
    return Scan(
        query_ids, np.bincount(query, minlength=len(query_ids)),
        every.take(rows[hit >= 0]), hit[hit >= 0],
        every.take(first), doc_id.take(pa.array(first)), every.take(rows[own]),
        *_compare_ranks(every, len(query_ids)),
    )  # fmt: skip


def _coded(query_id: pa.ChunkedArray) -> tuple[pa.LargeStringArray, np.ndarray]:
    """The query ids by first appearance, and the position of each row's query among them, int64 [n]."""
    ids = flat_strings(query_id)
    if not len(ids):
        return ids, np.zeros(0, np.int64)
    first = np.flatnonzero(np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)))
    coded = ids.take(pa.array(first)).dictionary_encode()  # rows of a query mostly stand together
    return coded.dictionary, np.repeat(coded.indices.to_numpy(), np.diff(first, append=len(ids))).astype(np.int64)


def _compare_ranks(rows: Rows, queries: int) -> tuple[np.ndarray, bool]:
    """Which queries the file ranks otherwise than the ordering rule, and whether its ranks are ranks."""
    unlike = np.zeros(queries, bool)
    differs = rows.told != rows.rank
    unlike[rows.query[differs]] = True
    if not differs.any():
        return unlike, True
    chosen = rows.take(unlike[rows.query])
    pairs = np.sort(chosen.query << 32 | chosen.told)
    return unlike, bool(chosen.told.min() > NO_RANK and (pairs[1:] != pairs[:-1]).all())


def _check_finite(name: str, score: np.ndarray, query_ids: pa.Array, query: np.ndarray, doc_id: pa.Array) -> None:
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        pair = f"query '{query_ids[query[bad[0]]]}' and document '{doc_id[bad[0]]}'"
        raise RetrievoError(name, f"{pair} have the score {score[bad[0]]}", "a finite number")


def _twice(name: str, query_id: pa.Scalar, doc_id: pa.Scalar) -> RetrievoError:
    found = f"query '{query_id}' and document '{doc_id}' occur twice"
    return RetrievoError(name, found, "each pair once", "remove one of the rows")
