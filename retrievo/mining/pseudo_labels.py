"""Pseudo-labels: judgments from confident scores of a cross-encoder, for retrieved documents of unjudged queries.

Qu et al. 2021 (RocketQA), data augmentation: documents that score above 0.9 are relevant, documents that score below
0.1 are negatives, and all others get no label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.columns import rows_of, table_of
from retrievo.data.ordering import flat_strings, ranked, ranks, repeated
from retrievo.data.run import Run
from retrievo.data.tables import NEGATIVES, QRELS
from retrievo.mining.candidates import Judged
from retrievo.support.errors import RetrievoError


class Bounds(NamedTuple):
    """A document is relevant above the first score and negative below the second; at a bound it gets no label."""

    positive_above: np.float32
    negative_below: np.float32

    @classmethod
    def of(cls, positive_above: float, negative_below: float, *, logits: bool) -> Bounds:
        """Bounds from probabilities p; for logits they become ln(p / (1 - p)), so that scores need no conversion."""
        values = [_logit(p) if logits else p for p in (positive_above, negative_below)]
        return cls(*map(np.float32, values))


def _logit(p: float) -> float:
    return math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)


@dataclass
class Tally:
    """Counts of labeling: the queries of the run, their labels, and the reasons why queries have none."""

    queries: int = 0
    labeled: int = 0
    positives: int = 0
    negatives: int = 0
    without_negatives: int = 0  # queries with a positive and without negatives
    judged: int = 0  # queries left out because they have judgments
    unsure: int = 0  # queries left out because no document scores above the bound for positives
    query_text: int = 0  # documents left out because they are the query itself
    lowest: float = math.inf  # lowest score among queries without judgments
    highest: float = -math.inf  # highest score among queries without judgments


class Labels(NamedTuple):
    """Labels, ordered by query and then by rank."""

    positives: pa.Table  # judgments with relevance 1
    negatives: pa.Table


def label(
    run: Run, block: pa.Table, bounds: Bounds, judged: pa.Array, tally: Tally, texts: Judged | None = None
) -> Labels:
    """Labels a block of whole queries; the labels do not depend on the order of the rows.

    judged: ids of queries that have judgments and get no labels. texts: queries and corpus; with them, a document that
    is the query itself gets no label.
    Raises: RetrievoError for a pair that occurs twice, and for a score that is not finite.
    """
    query_ids = flat_strings(block["query_id"])
    left_out = pc.is_in(query_ids, value_set=judged)
    judged_here = pc.count_distinct(query_ids.filter(left_out)).as_py()
    tally.queries, tally.judged = tally.queries + judged_here, tally.judged + judged_here
    block = block.filter(pc.invert(left_out))
    if texts is not None:
        itself = _themselves(block, texts)
        tally.query_text += int(itself.sum())
        block = block.filter(pa.array(~itself))
    coded, doc_id = flat_strings(block["query_id"]).dictionary_encode(), flat_strings(block["doc_id"])
    query, score = coded.indices.to_numpy().astype(np.int64), block["score"].to_numpy()
    _check_rows(run, coded, query, doc_id, score)
    order = ranked(query, score, doc_id)
    query, score, block = query[order], score[order], rows_of(block, order)
    above = score > bounds.positive_above
    positives = np.bincount(query[above], minlength=len(coded.dictionary))
    below = (score < bounds.negative_below) & (positives > 0)[query]
    _count(tally, positives, np.bincount(query[below], minlength=len(positives)), score)
    block = block.drop_columns("rank").append_column("rank", pa.array(ranks(query)))
    return Labels(_judgments(block.filter(pa.array(above))), _negatives(block.filter(pa.array(below)), run.name))


def _themselves(block: pa.Table, texts: Judged) -> np.ndarray:
    """Which rows pair a query with the document that is the query itself, [n]."""
    query, row = texts.numbers(block["query_id"]), texts.corpus.id_map.rows(block["doc_id"])
    known = np.flatnonzero((query >= 0) & (row >= 0))
    found = np.zeros(block.num_rows, bool)
    found[known] = texts.is_the_query(query[known], row[known])
    return found


def _check_rows(
    run: Run, query_id: pa.DictionaryArray, query: np.ndarray, doc_id: pa.LargeStringArray, score: np.ndarray
) -> None:
    def pair(row: int) -> str:
        return f"query '{query_id[row].as_py()}' and document '{doc_id[row].as_py()}'"

    if len(bad := np.flatnonzero(~np.isfinite(score))):
        raise RetrievoError(run.path, f"{pair(int(bad[0]))} have the score {score[bad[0]]}", "a finite number")
    if twice := repeated(query, doc_id):
        raise RetrievoError(run.path, f"{pair(twice[0])} occur twice", "each pair once", "remove one of the rows")


def _count(tally: Tally, positives: np.ndarray, negatives: np.ndarray, score: np.ndarray) -> None:
    """Adds a block to the counts, given the number of positives and negatives of each query [q], and all scores."""
    sure = positives > 0
    tally.queries += len(positives)
    tally.labeled += int(sure.sum())
    tally.unsure += int((~sure).sum())
    tally.without_negatives += int((sure & (negatives == 0)).sum())
    tally.positives += int(positives.sum())
    tally.negatives += int(negatives.sum())
    tally.lowest = min(tally.lowest, float(score.min(initial=math.inf)))
    tally.highest = max(tally.highest, float(score.max(initial=-math.inf)))


def _judgments(rows: pa.Table) -> pa.Table:
    ones = pa.array(np.ones(rows.num_rows, np.int32))
    return table_of([rows["query_id"], rows["doc_id"], ones], QRELS.arrow)


def _negatives(rows: pa.Table, source: str) -> pa.Table:
    named = pa.array([source] * rows.num_rows, pa.string())
    return table_of([*(rows[name] for name in ("query_id", "doc_id", "score", "rank")), named], NEGATIVES.arrow)
