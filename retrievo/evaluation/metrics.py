"""trec_eval's metrics over whole runs at once: every step is one array operation over all queries.

A run and its judgments meet once, in `Scan`; `Hits` are its judged rows under one convention. Each metric is a formula
over those few rows, so that a further metric costs next to nothing, however deep the run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from retrievo.data.ordering import ranks
from retrievo.evaluation.judged_run import Judgments, Rows, Scan, positions
from retrievo.evaluation.names import Rules


@dataclass(frozen=True)
class Hits:
    """The judged rows of a run [h], by query and rank, and what the judgments hold for each of Q queries.

    query:         [h], ascending positions among the Q queries.
    rank, grade:   [h].
    retrieved:     rows of the run for each query, [Q].
    relevant:      documents judged relevant for each query, [Q].
    judgments:    (query, grade), [m] each: everything judged.
    min_relevance: the lowest relevant grade.
    """

    query: np.ndarray
    rank: np.ndarray
    grade: np.ndarray
    retrieved: np.ndarray
    relevant: np.ndarray
    judgments: tuple[np.ndarray, np.ndarray]
    min_relevance: int

    @classmethod
    def of(cls, scan: Scan, judgments: Judgments, rules: Rules, query_ids: pa.Array, min_relevance: int) -> Hits:
        """The judged rows for the given queries, among which those of the judgments come first."""
        rank, kept = ranked_by(scan, scan.hits, rules)
        query, hit = positions(scan.query_ids, query_ids)[scan.hits.query[kept]], scan.hit[kept]
        by_rank = np.lexsort((rank[kept], query))
        relevant = np.bincount(judgments.query[judgments.grade >= min_relevance], minlength=len(query_ids))
        return cls(
            query[by_rank], rank[kept][by_rank], judgments.grade[hit[by_rank]],
            retrieved(scan, rules, query_ids), relevant, (judgments.query, judgments.grade), min_relevance,
        )  # fmt: skip

    def top(self, cutoff: int | None) -> np.ndarray:
        """Which hits are among the first `cutoff` rows, bool [h]."""
        return self.rank <= (np.inf if cutoff is None else cutoff)

    def relevant_top(self, cutoff: int | None) -> np.ndarray:
        """Which hits are relevant and among the first `cutoff` rows, bool [h]."""
        return (self.grade >= self.min_relevance) & self.top(cutoff)

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """How many of the chosen hits each query has, [Q]."""
        return np.bincount(self.query[chosen], minlength=len(self.relevant))

    @functools.cached_property
    def ideal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best ranking there could be, (query, rank, grade): everything judged, by grade descending."""
        query, grade = self.judgments
        order = np.lexsort((-grade.astype(np.int64), query))
        return query[order], ranks(query[order]), grade[order]


def ranked_by(scan: Scan, rows: Rows, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """The rank of some rows of a run under these rules, int32 [h], and which of them count, bool [h].

    Without the row whose document is the query, the rows below it move up by one.
    """
    rank, own = (rows.told, scan.self_told) if rules.ties == "rank" else (rows.rank, scan.self_rank)
    if not rules.exclude_self:
        return rank, np.ones(len(rank), bool)
    return rank - (rank > own[rows.query]), rank != own[rows.query]


def retrieved(scan: Scan, rules: Rules, query_ids: pa.Array) -> np.ndarray:
    """How many rows of a run count for each of these queries, [Q]."""
    counts = scan.retrieved.copy()
    if rules.exclude_self:
        counts[scan.self_rows.query] -= 1
    return np.append(counts, 0)[positions(query_ids, scan.query_ids)]  # -1 = the 0 at the end


def mrr(hits: Hits, cutoff: int | None) -> np.ndarray:
    """1 / rank of the first relevant document; 0 where none is among the top k."""
    at = np.flatnonzero(hits.relevant_top(cutoff))[::-1]  # the best rank is written last
    value = np.zeros(len(hits.relevant))
    value[hits.query[at]] = 1 / hits.rank[at]
    return value


def recall(hits: Hits, cutoff: int | None) -> np.ndarray:
    """|relevant in the top k| / |relevant|."""
    return _share(hits.count(hits.relevant_top(cutoff)), hits.relevant)


def ndcg(hits: Hits, cutoff: int | None) -> np.ndarray:
    """DCG / best DCG there could be, DCG = sum over ranks i <= k of max(grade_i, 0) / log2(i + 1).

    Jarvelin & Kekalainen 2002 with the linear gain and the discount of trec_eval; the lowest relevant grade plays no
    part in it.
    """
    queries = len(hits.relevant)
    return _share(_dcg(hits.query, hits.rank, hits.grade, cutoff, queries), _dcg(*hits.ideal, cutoff, queries))


def average_precision(hits: Hits, cutoff: int | None) -> np.ndarray:
    """Sum over the relevant documents in the top k of (|relevant up to its rank| / its rank), / |relevant|."""
    at = hits.relevant_top(cutoff)
    precision = ranks(hits.query[at]) / hits.rank[at]
    return _share(np.bincount(hits.query[at], precision, minlength=len(hits.relevant)), hits.relevant)


def precision(hits: Hits, cutoff: int) -> np.ndarray:
    """|relevant in the top k| / k, also where fewer than k documents were retrieved."""
    return hits.count(hits.relevant_top(cutoff)) / cutoff


def r_precision(hits: Hits, cutoff: None = None) -> np.ndarray:
    """|relevant in the top R| / R for R = |relevant|."""
    in_top = hits.rank <= hits.relevant[hits.query]
    return _share(hits.count(hits.relevant_top(None) & in_top), hits.relevant)


def success(hits: Hits, cutoff: int) -> np.ndarray:
    """1 where a relevant document is among the top k, else 0."""
    return (hits.count(hits.relevant_top(cutoff)) > 0).astype(np.float64)


def judged(hits: Hits, cutoff: int) -> np.ndarray:
    """|judged in the top k| / min(k, |retrieved|); a grade of 0 or below is a judgment too."""
    return _share(hits.count(hits.top(cutoff)), np.minimum(cutoff, hits.retrieved))


METRICS: dict[str, Callable[[Hits, Any], np.ndarray]] = {
    "mrr": mrr,
    "recall": recall,
    "ndcg": ndcg,
    "map": average_precision,
    "p": precision,
    "rprec": r_precision,
    "success": success,
    "judged": judged,
}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _dcg(query: np.ndarray, rank: np.ndarray, grade: np.ndarray, cutoff: int | None, queries: int) -> np.ndarray:
    gain = np.where(rank <= (cutoff or np.inf), np.maximum(grade, 0) / np.log2(rank + 1.0), 0)
    return np.bincount(query, gain, minlength=queries)
