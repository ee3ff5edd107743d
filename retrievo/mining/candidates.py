"""The judged queries of a mining run, and the miners that put forward candidates for negatives by query and rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrievo.data.columns import rows_of, table_of, taken
from retrievo.data.corpus import Corpus
from retrievo.data.ids import hash_texts
from retrievo.data.ordering import first_of_pairs, flat_strings, ranked, ranks
from retrievo.data.run import Run
from retrievo.data.sampling import random_keys
from retrievo.data.tables import NEGATIVES, RUN, Table
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.hits import joined
from retrievo.support.errors import RetrievoError
from retrievo.support.files import reads_as_parquet

_BATCH_ROWS = 1 << 16  # rows of a run that are read at once
_DOCUMENT, _TEXT = range(2)  # streams of keys: (query, row), (query, text of a row)


class Judged:
    """The judged queries, numbered in the order of their table, and the relevant documents of each.

    ids, texts: ids and texts of the queries [Q]. pairs: relevant (query_id, doc_id). Pairs of documents that the corpus
    lacks are dropped, since no miner can find them; `lost` counts them. documents: how many queries are themselves
    documents of the corpus without being relevant.
    """

    def __init__(self, corpus: Corpus, ids: pa.Array, texts: Sequence[str], pairs: pa.Table):
        self.corpus, self.ids = corpus, ids
        self.hashes = hash_texts(ids.to_pylist())
        rows = corpus.id_map.rows(pairs["doc_id"])
        query = self.numbers(pairs["query_id"])
        there = (rows >= 0) & (query >= 0)
        self.lost = int(np.count_nonzero(rows < 0))
        order = np.lexsort((rows[there], query[there]))
        self._query, self._rows = query[there][order], rows[there][order]
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(self._query, minlength=len(ids)))])
        self._documents = np.sort(self.pair_keys(self._query, self._rows))
        self._texts = np.sort(self._keys(_TEXT, self._query, self.text(self._rows)))
        asked, itself = corpus.that_are_queries(ids, texts)
        self._itself = np.sort(self._keys(_TEXT, asked, self.text(itself)))
        self.documents = len(np.unique(asked[~self.has_text_of_relevant(asked, itself)]))

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self, query_ids: pa.ChunkedArray) -> np.ndarray:
        """The number of each query, [n] int64; -1 where it is not judged."""
        coded = flat_strings(query_ids).dictionary_encode()
        hashes, order = hash_texts(coded.dictionary.to_pylist()), self._order
        place = np.minimum(np.searchsorted(self.hashes[order], hashes), max(0, len(order) - 1))
        known = self.hashes[order][place] == hashes if len(order) else np.zeros(len(hashes), bool)
        return np.where(known, order[place], -1)[coded.indices.to_numpy()] if len(coded) else np.zeros(0, np.int64)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.hashes, kind="stable")

    def text(self, rows: np.ndarray) -> np.ndarray:
        """Text identities of documents by row; the values of unknown rows (-1) are arbitrary."""
        identities: np.ndarray = self.corpus.identities.whole[rows]
        return identities

    def relevant(self, query: int) -> np.ndarray:
        """Rows of the relevant documents of a query."""
        return self._rows[self._offsets[query] : self._offsets[query + 1]]

    def is_relevant(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each document is relevant to the query beside it, [n]."""
        return among(self.pair_keys(query, rows), self._documents)

    def has_text_of_relevant(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each document has the text of a document relevant to the query beside it, [n]."""
        return among(self._keys(_TEXT, query, self.text(rows)), self._texts)

    def is_the_query(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each document is the query beside it, or has the text of the document that is, [n]."""
        return among(self._keys(_TEXT, query, self.text(rows)), self._itself)

    def pair_keys(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A 64-bit key of each (query, document) pair, [n]."""
        return self._keys(_DOCUMENT, query, rows)

    def _keys(self, stream: int, query: np.ndarray, values: np.ndarray) -> np.ndarray:
        return random_keys(stream, self.hashes[query], values)


def among(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each key occurs in a sorted array."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    nearest = ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)]
    found: np.ndarray = nearest == keys
    return found


class Candidates(NamedTuple):
    """Documents that a miner proposes as negatives, by query and rank."""

    query: np.ndarray  # [n] number of the query
    row: np.ndarray  # [n] row of the document in the corpus, -1 = not in the corpus
    doc_id: pa.LargeStringArray  # [n]
    score: np.ndarray  # [n] float32
    rank: np.ndarray  # [n] from 1
    source: pa.Array  # [n] name of the miner in the table of negatives

    def take(self, kept: np.ndarray) -> Candidates:
        """The candidates at these positions, or where a mask holds."""
        kept = np.flatnonzero(kept) if kept.dtype == bool else kept
        positions = pa.array(kept)
        columns = [self.doc_id.take(positions), self.score[kept], self.rank[kept], self.source.take(positions)]
        return Candidates(self.query[kept], self.row[kept], *columns)

    def table(self, judged: Judged) -> pa.Table:
        """The candidates as rows of a table of negatives."""
        columns = [taken(judged.ids, self.query), self.doc_id, self.score, self.rank, self.source]
        return table_of(columns, NEGATIVES.arrow)


class RandomMiner:
    """Documents drawn uniformly at random; the draw is a pure function of (seed, query id, size of the corpus)."""

    name = "random"

    def __init__(self, judged: Judged, quota: int, seed: int):
        self.judged, self.quota, self.seed = judged, quota, seed

    def upto(self, first: int, end: int) -> Candidates:
        """Candidates of the queries numbered `first` to `end`: more than twice the quota, since rules drop some."""
        documents = len(self.judged.corpus)
        wanted = min(documents, 2 * self.quota + 16)
        query = np.repeat(np.arange(first, end), wanted)
        draw = np.tile(np.arange(wanted), end - first)
        hashes = self.judged.hashes[query]
        if wanted == documents:  # all of them, shuffled
            row = draw[np.lexsort((random_keys(self.seed, hashes, draw), query))]
        else:
            row = (random_keys(self.seed, hashes, draw) % np.uint64(documents)).astype(np.int64)
            once = np.sort(first_of_pairs(query, row))
            query, row = query[once], row[once]
        doc_ids = taken(self.judged.corpus.id_map.ids.column(), row)
        sources = pa.array(["random"] * len(row), pa.string())
        return Candidates(query, row, doc_ids, np.zeros(len(row), np.float32), ranks(query), sources)


class RunMiner:
    """The documents of a run whose queries are in the order of the judged queries; see `in_order`."""

    def __init__(self, judged: Judged, quota: int, run: Path, name: str):
        self.judged, self.quota, self.name = judged, quota, name
        schema = NEGATIVES if "source" in pq.read_schema(run).names else RUN
        self._names = ["query_id", "doc_id", "score", *(["source"] if schema is NEGATIVES else [])]
        self._batches = Table(run, schema).batches(self._names, _BATCH_ROWS)
        self._waiting: list[pa.Table] = []
        self._last = -1  # highest query number read

    def upto(self, first: int, end: int) -> Candidates:
        """Candidates of the queries numbered `first` to `end`; calls must cover the queries once and in order."""
        while self._last < end and (batch := next(self._batches, None)) is not None:
            table = pa.Table.from_batches([batch])
            numbers = self.judged.numbers(table["query_id"])
            self._waiting.append(table.append_column("query", pa.array(numbers)))
            self._last = int(numbers[-1])
        if not self._waiting:
            return self._candidates(pa.schema([("query", pa.int64()), *_EMPTY]).empty_table())
        table = pa.concat_tables(self._waiting)
        cut = int(np.searchsorted(table["query"].to_numpy(), end))
        self._waiting = [table.slice(cut)]
        return self._candidates(table.slice(0, cut))

    def _candidates(self, table: pa.Table) -> Candidates:
        query = table["query"].to_numpy()
        doc_ids = flat_strings(table["doc_id"])
        named = pa.array([self.name] * table.num_rows, pa.string())
        source = table["source"].combine_chunks() if "source" in table.column_names else named
        row = self.judged.corpus.id_map.rows(doc_ids)
        return Candidates(query, row, doc_ids, table["score"].to_numpy(), ranks(query), source)


_EMPTY = [("doc_id", pa.string()), ("score", pa.float32())]


class VectorMiner:
    """The `depth` highest-ranked documents of an exact search in vectors of the whole corpus.

    vectors: in the order of the corpus. queries: float32 [Q, D], in the order of the judged queries. The quota is the
    depth.
    """

    def __init__(
        self, judged: Judged, depth: int, queries: np.ndarray, vectors: Vectors, name: str, *, device: str = "auto"
    ):
        self.judged, self.quota, self.queries, self.vectors = judged, depth, queries, vectors
        self.name, self.device = name, device

    def upto(self, first: int, end: int) -> Candidates:
        """Candidates of the queries numbered `first` to `end`."""
        from retrievo.retrieval.exact import search_batches  # needs torch, which mining from runs does not

        batches = search_batches(self.queries[first:end], self.vectors, self.quota, device=self.device)
        found = joined(batches, self.vectors)
        query, sources = found.query + first, pa.array([self.name] * len(found.row), pa.string())
        doc_ids = flat_strings(self.vectors.ids(found.row))
        return Candidates(query, found.row, doc_ids, found.score, ranks(query), sources)


Miner = RandomMiner | RunMiner | VectorMiner


def in_order(path: Path, judged: Judged, depth: int, output: Path) -> Path:
    """Writes the judged queries of a run or table of negatives in their own order, down to `depth`; returns `output`.

    The run is read into memory.

    Raises: RetrievoError where the run holds none of the judged queries.
    """
    run = Run.open(path).table.select(["query_id", "doc_id", "score"])
    if path.is_file() and reads_as_parquet(path) and "source" in pq.read_schema(path).names:
        run = Table(path, NEGATIVES).read(["query_id", "doc_id", "score", "source"])
    run = run.filter(pc.is_in(run["query_id"], value_set=judged.ids))
    if not run.num_rows:
        raise RetrievoError(path, "holds none of the judged queries", None, "check --run, --queries and --qrels")
    query = judged.numbers(run["query_id"])
    order = ranked(query, run["score"].to_numpy(), run["doc_id"])
    relevant = judged.is_relevant(query[order], judged.corpus.id_map.rows(taken(run["doc_id"], order)))
    order = order[(ranks(query[order]) <= depth) | relevant]  # margins are measured from relevant documents at any rank
    table = rows_of(run, order)
    pq.write_table(table.append_column("rank", pa.array(ranks(query[order]))), output)
    return output
