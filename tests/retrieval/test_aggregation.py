"""Runs of passages become runs of documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from retrievo.retrieval.aggregation import AGGREGATIONS, documents_of
from retrievo.retrieval.hits import Hits

QUERY = np.array([0, 0, 0, 0, 1, 1])
IDS = ["b#2", "a#0", "b#0", "whole", "a#3", "c#00"]
SCORE = np.array([5, 4, 3, 2, 9, 8], np.float32)


def rows(method: str, separator: str = "#", ids: list[str] = IDS) -> list[tuple[int, str, float]]:
    found = documents_of(method, separator, Hits.of_ids(QUERY, pa.array(ids), SCORE))
    return list(zip(found.query.tolist(), found.ids().to_pylist(), found.score.tolist(), strict=True))


def test_max_gives_a_document_the_score_of_its_best_passage() -> None:
    assert rows("max") == [(0, "b", 5), (0, "a", 4), (0, "whole", 2), (1, "a", 9), (1, "c", 8)]


def test_first_looks_at_passage_0_alone_and_at_documents_that_are_whole() -> None:
    assert rows("first") == [(0, "a", 4), (0, "b", 3), (0, "whole", 2), (1, "c", 8)]


def test_the_separator_is_text_and_may_occur_in_ids() -> None:
    ids = ["x.y.1", "x.y.0", "x-y.1", "x", "1.2", "q.0"]
    assert rows("max", ".", ids) == [(0, "x.y", 5), (0, "x-y", 3), (0, "x", 2), (1, "1", 9), (1, "q", 8)]


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_nothing_becomes_nothing(method: str) -> None:
    empty = documents_of(method, "#", Hits.of_ids(QUERY[:0], pa.array([], pa.string()), SCORE[:0]))
    assert [len(column) for column in (empty.query, empty.ids(), empty.score)] == [0, 0, 0]


def test_documents_of_equal_scores_stand_in_the_order_of_the_rule() -> None:
    passages = Hits.of_ids(np.zeros(3, np.int64), pa.array(["a#0", "c#0", "b#0"]), np.ones(3, np.float32))
    tied = documents_of("max", "#", passages)
    assert tied.ids().to_pylist() == ["c", "b", "a"]
