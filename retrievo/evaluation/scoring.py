"""Measures runs against judgments, answers or another run: the value of every metric for every query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.columns import as_type
from retrievo.data.run import Run
from retrievo.evaluation.answers import Answers
from retrievo.evaluation.judged_run import JudgedRun, Judgments, positions
from retrievo.evaluation.metrics import METRICS, Hits, ranked_by, retrieved
from retrievo.evaluation.names import CONVENTIONS, DEFAULT_CONVENTION, Metric, Rules
from retrievo.support.errors import RetrievoError, UsageError


@dataclass(frozen=True)
class PerQuery:
    """The value of every metric for every query.

    query_ids: strings [Q]: the judged queries by first appearance in the qrels, then those with answers and, where a
               metric compares with a reference run, the other queries of the run.
    values:    float64 [Q] for each metric; NaN where a query is not part of the mean.
    judged:    number of queries with judgments or answers.
    missing:   number of those queries that the run lacks.
    unjudged:  number of queries of the run without judgments and answers.
    removed:   number of rows that were dropped because their document id equals the query id.
    unknown:   number of rows that were searched for an answer but whose document the corpus lacks.
    """

    query_ids: pa.LargeStringArray
    values: dict[Metric, np.ndarray]
    judged: int
    missing: int
    unjudged: int
    removed: int
    unknown: int

    def means(self) -> dict[Metric, float]:
        """The mean of each metric over the queries that have a value; NaN where none has one."""
        kept = {metric: values[~np.isnan(values)] for metric, values in self.values.items()}
        return {metric: float(values.mean()) if len(values) else float("nan") for metric, values in kept.items()}

    def table(self) -> pa.Table:
        """A table with one row per query: `query_id`, then a float64 column for each metric (null = no value)."""
        columns = {str(metric): pa.array(values, from_pandas=True) for metric, values in self.values.items()}
        return pa.table({"query_id": as_type(self.query_ids, pa.string()), **columns})


@dataclass(frozen=True)
class Standard:
    """The standard that runs are measured against, with the rules for doing so.

    metrics:       the metrics to compute.
    judgments:     grades of documents; empty where no metric needs them.
    rules:         the treatment of ties, missing queries and documents that are their own query.
    min_relevance: the lowest relevant grade.
    reference:     the run that nb-recall-n@k compares with.
    answers:       the strings that answer-recall@k searches for.
    """

    metrics: tuple[Metric, ...]
    judgments: Judgments
    rules: Rules = CONVENTIONS[DEFAULT_CONVENTION].rules
    min_relevance: int = 1
    reference: JudgedRun | None = None
    answers: Answers | None = None

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric.needs_reference and self.reference is None:
                raise UsageError(str(metric), "no reference run to compare with", None, "pass --reference-run")
            if metric.needs_answers and self.answers is None:
                raise UsageError(str(metric), "no answers to search for", None, "pass --answers")
            if metric.needs_qrels and not len(self.judgments.query_ids):
                raise UsageError(str(metric), "no judgments", None, "pass --qrels")
        if self.min_relevance < 1:
            raise UsageError("--min-relevance", f"found {self.min_relevance}", "at least 1")
        if self.rules.missing not in ("zero", "skip"):
            raise UsageError("--missing", f"found '{self.rules.missing}'", "zero or skip")

    @property
    def compares(self) -> bool:
        """Whether a metric compares with the reference run, which covers all queries of a run."""
        return any(metric.needs_reference for metric in self.metrics)

    @property
    def measures(self) -> bool:
        """Whether a metric covers only queries with judgments or answers."""
        return not all(metric.needs_reference for metric in self.metrics)

    def score(self, judged_run: JudgedRun, name: str = "run") -> PerQuery:
        """Computes the values of one run.

        Raises: RetrievoError for a run of other queries or of another corpus, or without valid ranks where the rules
                use the file's ranks.
        """
        self._check_ranks(judged_run, name)
        if self.compares and self.reference is not None:
            self._check_ranks(self.reference, "reference run")
        measured = self._measured_ids()
        others = judged_run.query_ids.filter(pc.invert(pc.is_in(judged_run.query_ids, value_set=measured)))
        if self.measures and 0 < len(others) == len(judged_run.query_ids):  # an empty run is one that found nothing
            found, fix = f"none of its {len(others)} queries is judged", "pass the qrels of its queries"
            raise RetrievoError(name, found, None, fix)
        query_ids = pa.concat_arrays([measured, others]) if self.compares else measured
        present = retrieved(judged_run, self.rules, query_ids) > 0
        first, unknown = self._first_answers(judged_run, name)
        values = self._values(judged_run, query_ids, present, first)
        absent = int((~present[: len(measured)]).sum())
        removed = len(judged_run.self_rows.query) if self.rules.exclude_self else 0
        return PerQuery(query_ids, values, len(measured), absent, len(others), removed, unknown)

    def _check_ranks(self, judged_run: JudgedRun, name: str) -> None:
        if self.rules.ties == "rank" and not judged_run.has_file_ranks:
            fix = "pass --convention trec_eval, which uses the scores"
            raise RetrievoError(name, "its rank column has no valid ranks", "ranks from 1, unique in a query", fix)

    def _measured_ids(self) -> pa.LargeStringArray:
        """The queries with judgments, then those with answers."""
        ids = [self.judgments.query_ids, *([self.answers.query_ids] if self.answers else [])]
        return pc.unique(pa.concat_arrays(ids))

    def _values(
        self, judged_run: JudgedRun, query_ids: pa.LargeStringArray, present: np.ndarray, first_answers: np.ndarray
    ) -> dict[Metric, np.ndarray]:
        hits = Hits.of(judged_run, self.judgments, self.rules, query_ids, self.min_relevance)
        judged = np.arange(len(query_ids)) < len(self.judgments.query_ids)
        values = {}
        for metric in self.metrics:
            if metric.needs_reference:
                value, enters = self._neighborhood_recall(metric, judged_run, query_ids), present
            elif metric.needs_answers:
                value, enters = self._answer_recall(metric, query_ids, first_answers)
            else:
                value, enters = METRICS[metric.name](hits, metric.cutoff), judged
            averaged = enters & present if self.rules.missing == "skip" else enters
            values[metric] = np.where(averaged, value, np.nan)
        return values

    def _neighborhood_recall(self, metric: Metric, judged_run: JudgedRun, query_ids: pa.LargeStringArray) -> np.ndarray:
        """|reference top k intersected with run top n| / n, also where the run is shorter (coCondenser, eq. 17)."""
        assert self.reference is not None
        assert metric.cutoff
        assert metric.depth
        query, doc_id, _ = top_rows(judged_run, self.rules, query_ids, metric.depth)
        first, first_doc, _ = top_rows(self.reference, self.rules, query_ids, metric.cutoff)
        docs = pc.unique(first_doc)
        known = np.isin(query * len(docs) + positions(doc_id, docs), first * len(docs) + positions(first_doc, docs))
        known &= positions(doc_id, docs) >= 0
        return np.bincount(query[known], minlength=len(query_ids)) / metric.depth

    def _first_answers(self, judged_run: JudgedRun, name: str) -> tuple[np.ndarray, int]:
        """As `Answers.first_ranks`, in the first documents of a run.

        Raises: RetrievoError where the corpus has none of them.
        """
        deepest = max((metric.cutoff or 0 for metric in self.metrics if metric.needs_answers), default=0)
        if self.answers is None or not deepest:
            return np.zeros(0, np.int32), 0
        query, doc_id, rank = top_rows(judged_run, self.rules, self.answers.query_ids, deepest)
        first, unknown = self.answers.first_ranks(query, doc_id, rank)
        if 0 < unknown == len(doc_id):
            found = f"{self.answers.corpus.path} has none of the documents that it found"
            raise RetrievoError(name, found, None, "pass --corpus with the one that it was made from")
        return first, unknown

    def _answer_recall(
        self, metric: Metric, query_ids: pa.LargeStringArray, first: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """1 where one of the top k texts holds an answer, and which queries have answers."""
        assert self.answers is not None
        assert metric.cutoff
        position = positions(self.answers.query_ids, query_ids)
        value, enters = np.zeros(len(query_ids)), np.zeros(len(query_ids), bool)
        enters[position] = True
        value[position] = first <= metric.cutoff
        return value, enters


def depth_needed(metrics: Sequence[Metric], *, of_reference: bool = False) -> int:
    """The number of first rows per query that these metrics need, plus one, since the query itself may be excluded."""
    depths = [(metric.cutoff if of_reference else metric.depth) or 0 for metric in metrics if metric.needs_reference]
    depths += [metric.cutoff or 0 for metric in metrics if metric.needs_answers and not of_reference]
    return max(depths) + 1 if depths else 0


def top_rows(
    judged_run: JudgedRun, rules: Rules, query_ids: pa.LargeStringArray, depth: int
) -> tuple[np.ndarray, pa.LargeStringArray, np.ndarray]:
    """The first rows of a run for these queries: position of the query, document id and rank, [t] each."""
    rank, kept = ranked_by(judged_run, judged_run.top, rules)
    query = positions(judged_run.query_ids, query_ids)[judged_run.top.query]
    rows = np.flatnonzero(kept & (rank <= depth) & (rank > 0) & (query >= 0))
    rows = rows[np.lexsort((rank[rows], query[rows]))]
    return query[rows], judged_run.top_doc.take(pa.array(rows)), rank[rows]


def evaluate(
    run: pa.Table | Run,
    qrels: pa.Table | None,
    metrics: Sequence[Metric],
    *,
    min_relevance: int = 1,
    rules: Rules = CONVENTIONS[DEFAULT_CONVENTION].rules,
    reference: pa.Table | Run | None = None,
    answers: Answers | None = None,
    run_name: str = "run",
) -> PerQuery:
    """Scores a run (query_id, doc_id, score; rows in any order) against qrels (query_id, doc_id, relevance).

    The numbers are trec_eval's: ranks by float32 score, ties by document id descending; relevant is a grade of at
    least `min_relevance`; an unjudged document is not relevant. A judged query without relevant documents counts as 0.

    qrels:    None is allowed where no metric needs them.
    rules:    what counts (`retrievo.evaluation.names`).
    run_name: what errors call the run.

    Raises: RetrievoError for a (query, document) pair that occurs twice, a score that is not finite, a run of other
            queries or of another corpus; UsageError where a metric lacks its qrels, its reference or its answers.
    """
    judgments = Judgments.of(qrels)
    first = None
    if reference is not None:
        depth = depth_needed(metrics, of_reference=True)
        first = JudgedRun.of(reference, Judgments.of(None), depth=depth, name="reference run")
    standard = Standard(tuple(metrics), judgments, rules, min_relevance, first, answers)
    return standard.score(JudgedRun.of(run, judgments, depth=depth_needed(metrics), name=run_name), run_name)
