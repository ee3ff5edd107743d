"""What lies behind the means: single queries, ranks and scores of the runs of an evaluation."""

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
    """One query on which a run and the baseline differ."""

    query_id: str
    theirs: float
    ours: float


def changes(evaluation: Evaluation, name: str, count: int) -> list[Change]:
    """The queries whose value in the first metric differs most from the baseline's, largest difference first."""
    assert evaluation.baseline is not None
    metric = evaluation.metrics[evaluation.first_metric]
    ids, ours, theirs = paired(evaluation.runs[name], evaluation.runs[evaluation.baseline], metric)
    order = np.argsort(-np.abs(ours - theirs), kind="stable")[:count]
    return [Change(ids[at].as_py(), theirs[at], ours[at]) for at in order.tolist() if ours[at] != theirs[at]]


def worst(evaluation: Evaluation, name: str, count: int) -> list[tuple[str, float]]:
    """The queries with the lowest value in the first metric, and that value."""
    found = evaluation.runs[name]
    values = found.values[evaluation.metrics[evaluation.first_metric]]
    order = [at for at in np.argsort(values, kind="stable").tolist() if not math.isnan(values[at])][:count]
    return [(found.query_ids[at].as_py(), values[at]) for at in order]


def top_documents(evaluation: Evaluation, name: str, query_ids: Sequence[str], count: int) -> list[list[str]]:
    """The first documents that a run has for each of these queries."""
    ids = pa.array(query_ids, pa.large_string())
    query, doc_id, _ = top_rows(evaluation.scans[name], evaluation.standard.rules, ids, count)
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
    """Depth -> share of the relevant documents among so many first rows, averaged over judged queries."""
    scan, standard = evaluation.scans[name], evaluation.standard
    if not len(standard.judgments.query_ids):
        return {}
    deepest = int(scan.retrieved.max(initial=0))
    depths = sorted({int(step * 10**power) for power in range(7) for step in (1, 2, 5)} | {deepest})
    measured = replace(
        standard,
        metrics=tuple(Metric("recall", depth) for depth in depths if 0 < depth <= deepest),
        reference=None,
        answers=None,
    )
    return {metric.cutoff or 0: mean for metric, mean in measured.score(scan, name).means().items()}


def scores(evaluation: Evaluation, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the relevant documents that a run found, and of other documents among its first rows."""
    scan, standard = evaluation.scans[name], evaluation.standard
    relevant = standard.judgments.grade[scan.hit] >= standard.min_relevance
    _, kept = ranked_by(scan, scan.top, standard.rules)
    judged = positions(scan.query_ids, standard.judgments.query_ids)[scan.top.query]
    found = np.full(len(judged), -1)
    found[kept] = standard.judgments.find(judged[kept], scan.top_doc.filter(pa.array(kept)))
    good = np.zeros(len(judged), bool)
    good[found >= 0] = standard.judgments.grade[found[found >= 0]] >= standard.min_relevance
    return scan.hits.score[relevant], scan.top.score[kept & ~good & (judged >= 0)]
