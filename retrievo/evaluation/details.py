"""Details behind the means of an evaluation: single queries, ranks and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from retrievo.evaluation.comparison import Evaluation, paired
from retrievo.evaluation.judged_run import positions
from retrievo.evaluation.metrics import ranked_by
from retrievo.evaluation.names import Metric
from retrievo.evaluation.scoring import top_rows


@dataclass(frozen=True)
class Change:
    """The values of a run and the baseline for one query on which they differ."""

    query_id: str
    theirs: float
    ours: float


def changes(evaluation: Evaluation, name: str, count: int) -> list[Change]:
    """The queries that differ most from the baseline in the first metric, largest difference first."""
    assert evaluation.baseline is not None
    metric = evaluation.metrics[evaluation.first_metric]
    ids, ours, theirs = paired(evaluation.runs[name], evaluation.runs[evaluation.baseline], metric)
    order = np.argsort(-np.abs(ours - theirs), kind="stable")[:count]
    return [Change(ids[at].as_py(), theirs[at], ours[at]) for at in order.tolist() if ours[at] != theirs[at]]


def worst(evaluation: Evaluation, name: str, count: int) -> list[tuple[str, float]]:
    """The queries with the lowest values in the first metric, and these values."""
    found = evaluation.runs[name]
    values = found.values[evaluation.metrics[evaluation.first_metric]]
    order = [at for at in np.argsort(values, kind="stable").tolist() if not math.isnan(values[at])][:count]
    return [(found.query_ids[at].as_py(), values[at]) for at in order]


def top_documents(evaluation: Evaluation, name: str, query_ids: Sequence[str], count: int) -> list[list[str]]:
    """The top documents of a run for each of these queries."""
    ids = pa.array(query_ids, pa.large_string())
    query, doc_id, _ = top_rows(evaluation.judged_runs[name], evaluation.standard.rules, ids, count)
    found: list[list[str]] = [[] for _ in query_ids]
    for at, doc in zip(query.tolist(), doc_id.to_pylist(), strict=True):
        found[at].append(doc)
    return found


def relevant_documents(evaluation: Evaluation, query_ids: Sequence[str]) -> list[list[str]]:
    """The documents judged relevant for each of these queries."""
    judgments = evaluation.standard.judgments
    at = positions(judgments.query_ids, pa.array(query_ids, pa.large_string()))[judgments.query]
    found: list[list[str]] = [[] for _ in query_ids]
    for row in np.flatnonzero((at >= 0) & (judgments.grade >= evaluation.standard.min_relevance)).tolist():
        found[at[row]].append(judgments.doc_id[row].as_py())
    return found


def recall_by_depth(evaluation: Evaluation, name: str) -> dict[int, float]:
    """Recall at several depths, averaged over judged queries: depth -> recall."""
    judged_run, standard = evaluation.judged_runs[name], evaluation.standard
    if not len(standard.judgments.query_ids):
        return {}
    deepest = int(judged_run.retrieved.max(initial=0))
    depths = sorted({int(step * 10**power) for power in range(7) for step in (1, 2, 5)} | {deepest})
    measured = replace(
        standard,
        metrics=tuple(Metric("recall", depth) for depth in depths if 0 < depth <= deepest),
        reference=None,
        answers=None,
    )
    return {metric.cutoff or 0: mean for metric, mean in measured.score(judged_run, name).means().items()}


def scores(evaluation: Evaluation, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the relevant documents that a run found, and of the other documents among its first rows."""
    judged_run, standard = evaluation.judged_runs[name], evaluation.standard
    relevant = standard.judgments.grade[judged_run.hit] >= standard.min_relevance
    _, kept = ranked_by(judged_run, judged_run.top, standard.rules)
    judged = positions(judged_run.query_ids, standard.judgments.query_ids)[judged_run.top.query]
    found = np.full(len(judged), -1)
    found[kept] = standard.judgments.find(judged[kept], judged_run.top_doc.filter(pa.array(kept)))
    good = np.zeros(len(judged), bool)
    good[found >= 0] = standard.judgments.grade[found[found >= 0]] >= standard.min_relevance
    return judged_run.hits.score[relevant], judged_run.top.score[kept & ~good & (judged >= 0)]
