"""trec_eval's metrics for whole runs: every step is one array operation over all queries.

`JudgedRun` matches a run with its judgments once; `Hits` are its judged rows under one convention. Each metric is a
formula over those few rows, so another metric costs almost nothing, however deep the run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from retrievo.data.ordering import ranks
from retrievo.evaluation.judged_run import JudgedRun, Judgments, Rows, positions
from retrievo.evaluation.names import Rules


@dataclass(frozen=True)
class Hits:
    """The judged rows of a run [h], sorted by query and rank, and totals for each of Q queries.

    query:         ascending positions among the Q queries, [h].
    rank, grade:   of each judged row, [h].
    retrieved:     number of rows of the run for each query, [Q].
    relevant:      number of documents judged relevant for each query, [Q].
    judgments:     (query, grade) of all judgments, [m] each.
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
    def of(
        cls, judged_run: JudgedRun, judgments: Judgments, rules: Rules, query_ids: pa.Array, min_relevance: int
    ) -> Hits:
        """Selects the judged rows for the given queries, of which the judged queries come first."""
        rank, kept = ranked_by(judged_run, judged_run.hits, rules)
        query, hit = positions(judged_run.query_ids, query_ids)[judged_run.hits.query[kept]], judged_run.hit[kept]
        by_rank = np.lexsort((rank[kept], query))
        relevant = np.bincount(judgments.query[judgments.grade >= min_relevance], minlength=len(query_ids))
        return cls(
            query[by_rank], rank[kept][by_rank], judgments.grade[hit[by_rank]],
            retrieved(judged_run, rules, query_ids), relevant, (judgments.query, judgments.grade), min_relevance,
        )  # fmt: skip

    def top(self, cutoff: int | None) -> np.ndarray:
        """Whether each hit is among the first `cutoff` rows, bool [h]."""
        near: np.ndarray = self.rank <= (np.inf if cutoff is None else cutoff)
        return near

    def relevant_top(self, cutoff: int | None) -> np.ndarray:
        """Whether each hit is relevant and among the first `cutoff` rows, bool [h]."""
        relevant: np.ndarray = (self.grade >= self.min_relevance) & self.top(cutoff)
        return relevant

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """The number of chosen hits of each query, [Q]."""
        return np.bincount(self.query[chosen], minlength=len(self.relevant))

    @functools.cached_property
    def ideal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ideal ranking (query, rank, grade): all judged documents by descending grade."""
        query, grade = self.judgments
        order = np.lexsort((-grade.astype(np.int64), query))
        return query[order], ranks(query[order]), grade[order]


def ranked_by(judged_run: JudgedRun, rows: Rows, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """The rank of some rows of a run under these rules, int32 [h], and whether each row counts, bool [h].

    Where the row whose document is the query is excluded, the rows below it move up by one.
    """
    rank, own = (
        (rows.file_rank, judged_run.self_file_rank) if rules.ties == "rank" else (rows.rank, judged_run.self_rank)
    )
    if not rules.exclude_self:
        return rank, np.ones(len(rank), bool)
    return rank - (rank > own[rows.query]), rank != own[rows.query]


def retrieved(judged_run: JudgedRun, rules: Rules, query_ids: pa.Array) -> np.ndarray:
    """The number of rows of a run that count for each of these queries, [Q]."""
    counts = judged_run.retrieved.copy()
    if rules.exclude_self:
        counts[judged_run.self_rows.query] -= 1
    found: np.ndarray = np.append(counts, 0)[positions(query_ids, judged_run.query_ids)]  # -1 = the 0 at the end
    return found


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
    """DCG / ideal DCG, where DCG = sum over ranks i <= k of max(grade_i, 0) / log2(i + 1).

    Jarvelin & Kekalainen 2002 with trec_eval's linear gain and discount; `min_relevance` does not matter.
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
    """|judged in the top k| / min(k, |retrieved|); documents of grade 0 or below count as judged."""
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
    """part / whole in float64; 0 where the whole is 0."""
    share = np.zeros(len(part))
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def _dcg(query: np.ndarray, rank: np.ndarray, grade: np.ndarray, cutoff: int | None, queries: int) -> np.ndarray:
    gain = np.where(rank <= (cutoff or np.inf), np.maximum(grade, 0) / np.log2(rank + 1.0), 0)
    return np.bincount(query, gain, minlength=queries)
