"""From runs to hard negatives: what must never be one, which ranks are looked at, which of them are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from retrievo.data.ordering import flat_strings, ranked, ranks
from retrievo.data.pair_scores import PairScores
from retrievo.data.run import Run
from retrievo.data.sampling import random_keys
from retrievo.data.tables import NEGATIVES, RUN, Table
from retrievo.mining.near_duplicates import Shingles
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.hits import joined
from retrievo.support.errors import RetrievoError
from retrievo.support.files import reads_as_parquet

_ROWS_AT_ONCE, _BATCH_ROWS = 1 << 20, 1 << 16
_DOCUMENT, _TEXT = range(2)  # streams of keys: (query, row), (query, text of a row)
DROPPED = pa.schema([*NEGATIVES.arrow, ("rule", pa.string())])
# why a candidate is no negative, in the order in which the rules are asked; the first that holds is recorded
RULES = (
    "unknown",  # not in the corpus
    "relevant",
    "same-text",  # as a relevant document
    "query-text",  # the query itself, where queries are documents
    "near-duplicate",  # of a relevant document
    "below-min-score",
    "above-max-score",
    "margin",
    "relative-margin",
    "teacher",
)
JUDGED_BY_SCORE = ("near-duplicate", "margin", "relative-margin", "teacher")  # rules that a person should check


@dataclass(frozen=True)
class Window:
    """Ranks that become negatives: those after the best `skip`, up to `depth`.

    sampling: `random` is a pure function of (seed, query id, document id), without replacement; `top` takes the best.
    """

    skip: int
    depth: int
    sampling: str
    seed: int


@dataclass(frozen=True)
class Filters:
    """What makes a candidate a suspected relevant document; None = not asked.

    min_score, max_score: bounds of the miner's score. margin: how far below the positive's score a candidate must lie,
    in the miner's units; relative_margin: the same as a share of the positive's |score|. positive: the `lowest` or the
    `highest` scored relevant document of the query among those that the miner found; where it found none, margins
    have nothing to say. near_duplicate: Jaccard similarity with a relevant document, from which on a candidate goes.
    max_teacher_score: bound of the teacher's score.
    """

    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    positive: str = "lowest"
    near_duplicate: float | None = None
    max_teacher_score: float | None = None


class Judged:
    """The judged queries by number, in the order of their table, and the relevant documents of each.

    ids, texts: of the queries [Q]. pairs: relevant (query_id, doc_id); a document that the corpus lacks can't be found
    either.
    lost: how many pairs are of such documents. documents: how many queries are documents themselves, not relevant ones.
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
        self._documents = np.sort(self._keys(_DOCUMENT, self._query, self._rows))
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
        """Identities of documents by row; of unknown ones anything."""
        return self.corpus.identities.whole[rows]

    def relevant(self, query: int) -> np.ndarray:
        """Rows of the relevant documents of a query."""
        return self._rows[self._offsets[query] : self._offsets[query + 1]]

    def is_relevant(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each document is relevant to the query beside it, [n]."""
        return _among(self._keys(_DOCUMENT, query, rows), self._documents)

    def has_text_of_relevant(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each document reads as a relevant one of the query beside it, [n]."""
        return _among(self._keys(_TEXT, query, self.text(rows)), self._texts)

    def is_the_query(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each document is the query beside it, or reads as the document that is, [n]."""
        return _among(self._keys(_TEXT, query, self.text(rows)), self._itself)

    def _keys(self, stream: int, query: np.ndarray, values: np.ndarray) -> np.ndarray:
        return random_keys(stream, self.hashes[query], values)


def _among(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each key occurs in a sorted array."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


class Candidates(NamedTuple):
    """Documents that a miner puts forward, by query and rank."""

    query: np.ndarray  # [n] number of the query
    row: np.ndarray  # [n] row of the document in the corpus, -1 = not there
    doc_id: pa.LargeStringArray  # [n]
    score: np.ndarray  # [n] float32
    rank: np.ndarray  # [n] from 1
    source: pa.Array  # [n] what the table calls the miner

    def take(self, kept: np.ndarray) -> Candidates:
        """Those at some positions, or under a mask."""
        kept = np.flatnonzero(kept) if kept.dtype == bool else kept
        positions = pa.array(kept)
        columns = [self.doc_id.take(positions), self.score[kept], self.rank[kept], self.source.take(positions)]
        return Candidates(self.query[kept], self.row[kept], *columns)

    def table(self, judged: Judged) -> pa.Table:
        """Rows of a table of negatives."""
        columns = [taken(judged.ids, self.query), self.doc_id, self.score, self.rank, self.source]
        return table_of(columns, NEGATIVES.arrow)


# -------------------------------------------------------------------------------------------------------- the miners


class RandomMiner:
    """Documents drawn with equal chances: a pure function of (seed, query id, size of the corpus)."""

    name = "random"

    def __init__(self, judged: Judged, quota: int, seed: int):
        self.judged, self.quota, self.seed = judged, quota, seed

    def upto(self, first: int, end: int) -> Candidates:
        """Candidates of the queries numbered `first` to `end`: twice the quota and some, for what rules take away."""
        documents = len(self.judged.corpus)
        wanted = min(documents, 2 * self.quota + 16)
        query = np.repeat(np.arange(first, end), wanted)
        draw = np.tile(np.arange(wanted), end - first)
        hashes = self.judged.hashes[query]
        if wanted == documents:  # all of them, shuffled
            row = draw[np.lexsort((random_keys(self.seed, hashes, draw), query))]
        else:
            row = (random_keys(self.seed, hashes, draw) % np.uint64(documents)).astype(np.int64)
            _, once = np.unique(np.stack([query, row]), axis=1, return_index=True)
            query, row = query[np.sort(once)], row[np.sort(once)]
        doc_ids = taken(self.judged.corpus.id_map.ids.column(), row)
        sources = pa.array(["random"] * len(row), pa.string())
        return Candidates(query, row, doc_ids, np.zeros(len(row), np.float32), ranks(query), sources)


class RunMiner:
    """The documents of a run whose queries come in the order of the judged ones; see `in_order`."""

    def __init__(self, judged: Judged, quota: int, run: Path, name: str):
        self.judged, self.quota, self.name = judged, quota, name
        schema = NEGATIVES if "source" in pq.read_schema(run).names else RUN
        self._names = ["query_id", "doc_id", "score", *(["source"] if schema is NEGATIVES else [])]
        self._batches = Table(run, schema).batches(self._names, _BATCH_ROWS)
        self._waiting: list[pa.Table] = []
        self._last = -1  # highest query number read

    def upto(self, first: int, end: int) -> Candidates:
        """Candidates of the queries numbered `first` to `end`; each query is asked for once, in order."""
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
    """The first `depth` documents of an exact search in vectors of the whole corpus, which come in its order.

    queries: float32 [Q, D], in the order of the judged ones; quota: all that the search gives.
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
    """Writes the judged queries of any run (or table of negatives) in their order, to a depth; the run is in memory.

    Raises: RetrievoError where it holds no judged query.
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
    order = order[(ranks(query[order]) <= depth) | relevant]  # margins measure from relevant documents at any rank
    table = rows_of(run, order)
    pq.write_table(table.append_column("rank", pa.array(ranks(query[order]))), output)
    return output


# --------------------------------------------------------------------------------------------------------- the rules


def read_teacher(path: Path, judged: Judged) -> PairScores:
    """The scores of a run, by the rows of the judged queries and of the corpus."""
    run = Run.open(path).table
    query, row = judged.numbers(run["query_id"]), judged.corpus.id_map.rows(run["doc_id"])
    return PairScores(query, row, run["score"].to_numpy(), len(judged.corpus))


class Verdicts(NamedTuple):
    """What the rules say of candidates."""

    rule: np.ndarray  # [n] position in RULES, -1 = none holds
    surplus: np.ndarray  # [n] (score - best relevant score) / |that|, by the teacher if there is one; NaN = unknown
    teacher: np.ndarray  # [n] NaN where there is none


class Rules:
    """All reasons against a candidate, asked in the order of `RULES`."""

    def __init__(self, judged: Judged, filters: Filters, teacher: PairScores | None = None):
        self.judged, self.filters, self.teacher = judged, filters, teacher
        self.shingles = Shingles(judged.corpus.table) if filters.near_duplicate is not None else None

    def judge(self, found: Candidates) -> Verdicts:
        """Verdicts on all candidates of whole queries: margins need the relevant documents among them."""
        unknown = found.row < 0
        relevant = ~unknown & self.judged.is_relevant(found.query, found.row)
        same_text = ~unknown & self.judged.has_text_of_relevant(found.query, found.row)
        itself = ~unknown & self.judged.is_the_query(found.query, found.row)
        scores = found.score.astype(np.float64)
        taught = self.teacher.of(found.query, found.row) if self.teacher else np.full(len(scores), np.nan)
        masks = {"unknown": unknown, "relevant": relevant, "same-text": same_text, "query-text": itself}
        masks |= self._bounds(scores, taught) | self._margins(found.query, scores, relevant)
        decided = unknown | relevant | same_text | itself
        masks["near-duplicate"] = self._near_duplicates(found, ~decided)
        rule = np.full(len(scores), -1, np.int8)
        for number in reversed(range(len(RULES))):
            if RULES[number] in masks:
                rule[masks[RULES[number]]] = number
        surplus = taught if self.teacher else scores
        best = _positive_score(found.query, surplus, relevant, "highest")
        with np.errstate(invalid="ignore", divide="ignore"):
            return Verdicts(rule, (surplus - best) / np.abs(best), taught)

    def _bounds(self, scores: np.ndarray, taught: np.ndarray) -> dict[str, np.ndarray]:
        asked = self.filters
        found = {}
        if asked.min_score is not None:
            found["below-min-score"] = scores < asked.min_score
        if asked.max_score is not None:
            found["above-max-score"] = scores > asked.max_score
        if asked.max_teacher_score is not None:
            found["teacher"] = taught > asked.max_teacher_score  # False where there is no score
        return found

    def _margins(self, query: np.ndarray, scores: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
        """Candidates closer to the positive's score than a margin; |score| keeps the meaning where it is negative."""
        positive = _positive_score(query, scores, relevant, self.filters.positive)
        found = {}
        if self.filters.margin is not None:
            found["margin"] = scores > positive - self.filters.margin  # False where there is none (NaN)
        if self.filters.relative_margin is not None:
            found["relative-margin"] = scores > positive - self.filters.relative_margin * np.abs(positive)
        return found

    def _near_duplicates(self, found: Candidates, open_: np.ndarray) -> np.ndarray:
        mask = np.zeros(len(found.query), bool)
        if self.shingles is None:
            return mask
        positions = np.flatnonzero(open_)
        for part in np.split(positions, np.flatnonzero(np.diff(found.query[positions])) + 1):
            for relevant in self.judged.relevant(int(found.query[part[0]])) if len(part) else ():
                mask[part] |= self.shingles.similarity(relevant, found.row[part]) >= self.filters.near_duplicate
        return mask


def _positive_score(query: np.ndarray, scores: np.ndarray, relevant: np.ndarray, which: str) -> np.ndarray:
    """For each candidate the lowest or highest score of its query's relevant ones, [n]; NaN where there is none."""
    if not len(query):
        return scores
    known = relevant & ~np.isnan(scores)
    first, (worst, pick) = query[0], {"lowest": (np.inf, np.minimum), "highest": (-np.inf, np.maximum)}[which]
    best = np.full(int(query[-1] - first) + 1, worst)
    pick.at(best, query[known] - first, scores[known])
    best[np.isinf(best)] = np.nan
    return best[query - first]


# ---------------------------------------------------------------------------------------------------------- choosing


@dataclass
class Tally:
    """What mining met, for the manifest and the audit.

    dropped: (miner, rule) -> candidates. looked_at, kept: miner -> candidates of the window, negatives. shared: (miner,
    other) -> candidates of the window of one that the window of the other holds too.
    """

    queries: int = 0
    short: int = 0  # queries that end with fewer negatives than the quotas ask for
    without: int = 0  # with none
    unmeasured: int = 0  # queries of a miner whose relevant documents it did not find: margins say nothing
    unscored: int = 0  # candidates of the window without a teacher's score
    looked_at: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    shared: Counter[tuple[str, str]] = field(default_factory=Counter)

    def rule(self, name: str) -> int:
        """Candidates that one rule dropped, over all miners."""
        return sum(count for (_, rule), count in self.dropped.items() if rule == name)


class Part(NamedTuple):
    """The outcome of some thousand queries: negatives and dropped candidates by query, miner and rank."""

    negatives: Candidates
    dropped: Candidates
    rules: np.ndarray  # [dropped] position in RULES
    kept_surplus: np.ndarray  # [negatives] see Verdicts
    dropped_surplus: np.ndarray  # [dropped]


def choose(judged: Judged, miners: Sequence[Miner], window: Window, rules: Rules, tally: Tally) -> Iterator[Part]:
    """Each miner gives its quota, in their order; a document that one has given is passed over by the next."""
    size = max(1, _ROWS_AT_ONCE // (window.depth * len(miners)))
    for first in range(0, len(judged), size):
        end = min(first + size, len(judged))
        taken = np.zeros(0, np.uint64)
        seen: dict[str, np.ndarray] = {}  # keys of the windows of this part
        parts = []
        for miner in miners:
            found = miner.upto(first, end)
            verdicts = rules.judge(found)
            inside = _inside(miner, found, window)
            keys = random_keys(_DOCUMENT, judged.hashes[found.query], found.row)
            open_ = inside & (verdicts.rule < 0) & ~_among(keys, np.sort(taken))
            kept = _drawn(np.flatnonzero(open_), found, judged, miner, window)
            taken = np.concatenate([taken, keys[kept]])
            seen[miner.name] = keys[inside]
            _count(tally, miner.name, found, verdicts, inside, kept, rules)
            parts.append((found, verdicts, kept, np.flatnonzero(inside & (verdicts.rule >= 0))))
        _count_shared(tally, seen)
        yield _joined(parts, tally, first, end, sum(miner.quota for miner in miners))


def _inside(miner: Miner, found: Candidates, window: Window) -> np.ndarray:
    """Which candidates lie in the window; draws have no best ranks to pass over."""
    if isinstance(miner, RandomMiner):
        return np.ones(len(found.query), bool)
    return (found.rank > window.skip) & (found.rank <= window.depth)


def _drawn(open_: np.ndarray, found: Candidates, judged: Judged, miner: Miner, window: Window) -> np.ndarray:
    """Positions of the candidates that stay, in order."""
    query = found.query[open_]
    by_rank = window.sampling == "top" or isinstance(miner, RandomMiner)
    first = found.rank[open_] if by_rank else random_keys(window.seed, judged.hashes[query], found.row[open_])
    order = np.lexsort((first, query))
    return np.sort(open_[order[ranks(query[order]) <= miner.quota]]) if len(order) else open_


def _count(
    tally: Tally, name: str, found: Candidates, verdicts: Verdicts, inside: np.ndarray, kept: np.ndarray, rules: Rules
) -> None:
    tally.looked_at[name] += int(inside.sum())
    tally.kept[name] += len(kept)
    for number, count in enumerate(np.bincount(verdicts.rule[inside] + 1, minlength=len(RULES) + 1)[1:]):
        tally.dropped[name, RULES[number]] += int(count)
    relevant = verdicts.rule == RULES.index("relevant")
    if name != RandomMiner.name:
        tally.unmeasured += len(np.unique(found.query)) - len(np.unique(found.query[relevant]))
    if rules.teacher:
        tally.unscored += int((inside & (found.row >= 0) & np.isnan(verdicts.teacher)).sum())


def _count_shared(tally: Tally, seen: dict[str, np.ndarray]) -> None:
    for name, keys in seen.items():
        for other, theirs in seen.items():
            if other != name:
                tally.shared[name, other] += int(_among(keys, np.sort(theirs)).sum())


def _joined(
    parts: Sequence[tuple[Candidates, Verdicts, np.ndarray, np.ndarray]], tally: Tally, first: int, end: int, quota: int
) -> Part:
    """The choices of all miners, by query."""
    kept, kept_surplus = _concat([(found.take(at), verdicts.surplus[at]) for found, verdicts, at, _ in parts])
    lost, lost_values = _concat(
        [(found.take(at), np.stack([v.surplus[at], v.rule[at]], axis=1)) for found, v, _, at in parts]
    )
    sizes = np.bincount(kept.query - first, minlength=end - first)
    tally.queries += end - first
    tally.short += int((sizes < quota).sum())
    tally.without += int((sizes == 0).sum())
    return Part(kept, lost, lost_values[:, 1].astype(np.int8), kept_surplus, lost_values[:, 0])


def _concat(parts: Sequence[tuple[Candidates, np.ndarray]]) -> tuple[Candidates, np.ndarray]:
    """Candidates of several miners and what is said of them, by query; within a query miner by miner."""
    columns = [
        pa.concat_arrays(column) if isinstance(column[0], pa.Array) else np.concatenate(column)
        for column in zip(*(candidates for candidates, _ in parts), strict=True)
    ]
    joined = Candidates(*columns)
    order = np.argsort(joined.query, kind="stable")
    return joined.take(order), np.concatenate([values for _, values in parts])[order]
