"""Pseudo-labels: bounds are met exactly, judged queries get none, and the order of a run means nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrievo.data.tables import RUN
from retrievo.mining.pseudo_labels import Bounds, Labels, Tally, label
from retrievo.support.errors import RetrievoError

RUN_HERE: Any = SimpleNamespace(name="reranked", path=Path("reranked.parquet"))
BOUNDS = Bounds.of(0.9, 0.1, logits=False)


def table(rows: list[tuple[str, str, float]]) -> pa.Table:
    """A run whose file tells no ranks."""
    columns = list(zip(*rows, strict=True)) if rows else [[], [], []]
    arrays = [pa.array(column, kind) for column, kind in zip([*columns, [0] * len(rows)], RUN.arrow.types, strict=True)]
    return pa.table(arrays, schema=RUN.arrow)


def labels_of(
    rows: list[tuple[str, str, float]], judged: tuple[str, ...] = (), bounds: Bounds = BOUNDS
) -> tuple[Labels, Tally]:
    tally = Tally()
    return label(RUN_HERE, table(rows), bounds, pa.array(judged, pa.large_string()), tally), tally


@pytest.mark.parametrize("probability", [0.9, 0.5, 0.3, 0.1])
def test_a_score_at_a_bound_is_neither_relevant_nor_a_negative(probability: float) -> None:
    for at, logits in ((probability, False), (math.log(probability / (1 - probability)), True)):
        at = np.float32(at)
        higher, lower = np.nextafter(at, np.float32(99)), np.nextafter(at, np.float32(-99))
        rows = [("q", "at", at), ("q", "higher", higher), ("q", "lower", lower)]
        found, _ = labels_of(rows, bounds=Bounds.of(probability, probability, logits=logits))
        assert found.positives["doc_id"].to_pylist() == ["higher"]
        assert found.negatives["doc_id"].to_pylist() == ["lower"]


def test_probabilities_of_0_and_1_are_bounds_that_no_logit_passes() -> None:
    found, tally = labels_of([("q", "a", 80), ("q", "b", -80)], bounds=Bounds.of(1, 0, logits=True))
    assert (found.positives.num_rows, found.negatives.num_rows, tally.unsure) == (0, 0, 1)


def test_negatives_tell_their_score_their_rank_and_the_run() -> None:
    rows = [("q", "low", 0.05), ("q", "b", 0.01), ("q", "middle", 0.5), ("q", "a", 0.01), ("q", "high", 0.95)]
    found, _ = labels_of(rows)
    assert found.positives.to_pylist() == [{"query_id": "q", "doc_id": "high", "relevance": 1}]
    assert [tuple(row.values())[1:] for row in found.negatives.to_pylist()] == [
        ("low", pytest.approx(0.05), 3, "reranked"),
        ("b", pytest.approx(0.01), 4, "reranked"),  # of tied scores the higher id comes first
        ("a", pytest.approx(0.01), 5, "reranked"),
    ]


def test_queries_that_are_left_out_are_counted_by_reason() -> None:
    rows = [("judged", "a", 0.99), ("judged", "b", 0.01), ("unsure", "a", 0.5), ("unsure", "b", 0.01)]
    found, tally = labels_of([*rows, ("sure", "a", 0.95), ("sure", "b", 0.92)], judged=("judged", "elsewhere"))
    assert found.positives["query_id"].to_pylist() == ["sure", "sure"]
    assert found.negatives.num_rows == 0
    assert (tally.queries, tally.judged, tally.unsure, tally.labeled, tally.without_negatives) == (3, 1, 1, 1, 1)
    assert (tally.lowest, tally.highest) == (pytest.approx(0.01), pytest.approx(0.95))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("q", "a", 0.1), ("q", "a", 0.2)], "query 'q' and document 'a' occur twice"),
        ([("q", "a", math.nan)], "query 'q' and document 'a' have the score nan"),
    ],
)
def test_a_broken_run_is_told(rows: list[tuple[str, str, float]], message: str) -> None:
    with pytest.raises(RetrievoError, match=message):
        labels_of(rows)


PAIRS = st.dictionaries(
    st.tuples(st.sampled_from("pqrs"), st.sampled_from("abcdefg")),
    st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.9, 0.95, 1.0]),
    max_size=28,
)


@given(PAIRS, st.sets(st.sampled_from("pqrs")), st.randoms(use_true_random=False))
def test_labels_are_what_the_rule_says_in_any_order_of_the_run(
    scores: dict[tuple[str, str], float], judged: set[str], random: Any
) -> None:
    by_query: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (query, document), score in scores.items():
        by_query[query].append((score, document))
    expected: dict[str, tuple[list[str], list[str]]] = {}
    for query, ranking in by_query.items():
        ranking.sort(reverse=True)
        if query not in judged and ranking[0][0] > 0.9:
            high, low = (score > 0.9 for score, _ in ranking), (score < 0.1 for score, _ in ranking)
            documents = [document for _, document in ranking]
            expected[query] = (
                [d for d, yes in zip(documents, high, strict=True) if yes],
                [d for d, yes in zip(documents, low, strict=True) if yes],
            )
    rows = [(query, document, score) for (query, document), score in scores.items()]
    random.shuffle(rows)
    found, tally = labels_of(rows, tuple(judged))
    for query in by_query:
        own = [
            [row["doc_id"] for row in part.to_pylist() if row["query_id"] == query]
            for part in (found.positives, found.negatives)
        ]
        assert tuple(own) == expected.get(query, ([], []))
    assert (tally.labeled, tally.queries) == (len(expected), len(by_query))
    assert tally.judged + tally.unsure + tally.labeled == tally.queries
