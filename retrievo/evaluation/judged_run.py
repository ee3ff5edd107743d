"""The judged rows of a run, collected in one pass, a block of whole queries at a time.

A run of millions of rows is matched with the judgments block by block. Only the judged rows with their ranks, the first
rows of every query and a few counts are kept, so memory depends only on the number of queries and judgments.
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
    """Relevance judgments: m pairs of a query and a document, each with a grade.

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
        """Reads a table of query_id, doc_id, relevance; None = no judgments.

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
        """The sorted keys of the pairs, and the position of each among the judgments."""
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

    query:     positions in the run's query_ids, int64.
    rank:      ranks by the ordering rule, int32, from 1.
    file_rank: ranks in the file, int32; 0 = none.
    score:     float32.
    """

    query: np.ndarray
    rank: np.ndarray
    file_rank: np.ndarray
    score: np.ndarray

    def take(self, chosen: np.ndarray) -> Rows:
        """Selects rows by positions or by a mask."""
        return Rows(*(getattr(self, spec.name)[chosen] for spec in fields(self)))

    @classmethod
    def joined(cls, parts: Iterable[Rows], offsets: Iterable[int]) -> Rows:
        """Joins the rows of several blocks, adding each block's offset to its query positions."""
        moved = [(part.query + offset, part.rank, part.file_rank, part.score) for part, offset in zip(parts, offsets)]  # noqa: B905
        return cls(*(np.concatenate(columns) for columns in zip(*moved, strict=True)))


@dataclass(frozen=True)
class JudgedRun:
    """The part of a run that evaluation needs.

    query_ids:      strings [U], by first appearance.
    retrieved:      number of rows of each query, [U].
    hits:           the judged rows.
    hit:            the positions of these rows among the judgments, [h].
    top:            the first rows of each query, by the ordering rule or by the file's ranks.
    top_doc:        the document ids of these rows.
    self_rows:      the rows whose document id is the query id.
    unlike:         whether the file's ranks of a query differ from those by score, bool [U].
    has_file_ranks: whether the file's ranks are valid: from 1, and unique within a query.
    """

    query_ids: pa.LargeStringArray
    retrieved: np.ndarray
    hits: Rows
    hit: np.ndarray
    top: Rows
    top_doc: pa.LargeStringArray
    self_rows: Rows
    unlike: np.ndarray
    has_file_ranks: bool

    @classmethod
    def of(cls, run: pa.Table | Run, judgments: Judgments, *, depth: int = 0, name: str = "run") -> JudgedRun:
        """Reads a run (query_id, doc_id, score and optionally rank) whose rows may be in any order.

        depth: number of first rows of every query to keep.
        Raises: RetrievoError for a pair that occurs twice or a score that is not finite, naming query and document.
        """
        blocks = [run] if isinstance(run, pa.Table) else run.blocks()
        judged_run = cls._joined([_judged_block(block, judgments, depth, name) for block in blocks], judgments)
        if isinstance(run, Run) and pc.count_distinct(judged_run.query_ids).as_py() < len(judged_run.query_ids):
            # the rows of a query are scattered over blocks, so the run is read as one block
            return cls._joined([_judged_block(run.table, judgments, depth, name)], judgments)
        return judged_run

    @classmethod
    def _joined(cls, parts: list[JudgedRun], judgments: Judgments) -> JudgedRun:
        if not parts:
            return _judged_block(_NO_ROWS, judgments, 0, "run")
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
            all(part.has_file_ranks for part in parts),
        )

    @functools.cached_property
    def self_rank(self) -> np.ndarray:
        """The rank of the row whose document id is the query id, int32 [U]; the largest int32 where there is none."""
        return self._of_self_rows(self.self_rows.rank)

    @functools.cached_property
    def self_file_rank(self) -> np.ndarray:
        """The rank in the file of the row whose document id is the query id; the largest int32 where there is none."""
        return self._of_self_rows(self.self_rows.file_rank)

    def _of_self_rows(self, rank: np.ndarray) -> np.ndarray:
        found = np.full(len(self.query_ids), np.iinfo(np.int32).max, np.int32)
        found[self.self_rows.query] = rank
        return found


_NO_ROWS = pa.table(
    {name: pa.array([], pa.string()) for name in ("query_id", "doc_id")} | {"score": pa.array([], "f4")}
)


def positions(ids: pa.Array, among: pa.Array) -> np.ndarray:
    """The position of each id in `among`, int64 [n]; -1 where it is missing."""
    return np.asarray(pc.index_in(ids, value_set=among).fill_null(-1), np.int64)


def _judged_block(block: pa.Table, judgments: Judgments, depth: int, name: str) -> JudgedRun:
    """Reads one block of whole queries."""
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
    file_rank = block["rank"].to_numpy() if "rank" in block.column_names else np.zeros(len(rank), np.int32)
    every = Rows(query, rank, file_rank, score)
    # Only the few rows whose fingerprint is that of a judged pair, or of a query as its own document, are compared.
    wanted = np.concatenate([judgments.fingerprints, fingerprints(group, query_ids)])
    rows = np.flatnonzero(pc.is_in(pa.array(prints), value_set=pa.array(wanted)).to_numpy(zero_copy_only=False))
    ids = doc_id.take(pa.array(rows))
    hit = judgments.find(judged[query[rows]], ids)
    own = pc.equal(ids, query_ids.take(pa.array(query[rows]))).to_numpy(zero_copy_only=False)
    first = np.flatnonzero((rank <= depth) | ((file_rank <= depth) & (file_rank > NO_RANK))) if depth else rows[:0]
    return JudgedRun(
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
    coded = ids.take(pa.array(first)).dictionary_encode()  # quick, since rows of a query are mostly contiguous
    return coded.dictionary, np.repeat(coded.indices.to_numpy(), np.diff(first, append=len(ids))).astype(np.int64)


def _compare_ranks(rows: Rows, queries: int) -> tuple[np.ndarray, bool]:
    """Whether the file's ranks of each query differ from the ordering rule's, and whether they are valid ranks."""
    unlike = np.zeros(queries, bool)
    differs = rows.file_rank != rows.rank
    unlike[rows.query[differs]] = True
    if not differs.any():
        return unlike, True
    chosen = rows.take(unlike[rows.query])
    pairs = np.sort(chosen.query << 32 | chosen.file_rank)
    return unlike, bool(chosen.file_rank.min() > NO_RANK and (pairs[1:] != pairs[:-1]).all())


def _check_finite(name: str, score: np.ndarray, query_ids: pa.Array, query: np.ndarray, doc_id: pa.Array) -> None:
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        pair = f"query '{query_ids[query[bad[0]]]}' and document '{doc_id[bad[0]]}'"
        raise RetrievoError(name, f"{pair} have the score {score[bad[0]]}", "a finite number")


def _twice(name: str, query_id: pa.Scalar, doc_id: pa.Scalar) -> RetrievoError:
    found = f"query '{query_id}' and document '{doc_id}' occur twice"
    return RetrievoError(name, found, "each pair once", "remove one of the rows")
