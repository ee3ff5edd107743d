"""A pair has the score it was given first, and no other pair has one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrievo.data.pair_scores import PairScores

DOCUMENTS = 4
PAIRS = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, DOCUMENTS - 1)), max_size=30)


@given(PAIRS)
def test_every_known_pair_has_its_first_score_and_every_other_none(pairs: list[tuple[int, int]]) -> None:
    query, document = np.array(pairs, np.int64).reshape(-1, 2).T
    scores = PairScores(query, document, np.arange(len(pairs)), DOCUMENTS)
    wanted = [(q, d) for q in range(4) for d in range(-1, DOCUMENTS)]
    found = scores.of(*np.array(wanted).T)
    for pair, score in zip(wanted, found.tolist(), strict=True):
        if pair in pairs and pair[1] >= 0:
            assert score == pairs.index(pair)
        else:
            assert np.isnan(score)


def test_one_query_is_asked_for_several_documents() -> None:
    scores = PairScores(np.array([1, 2]), np.array([3, 0]), np.array([0.5, 2.0]), DOCUMENTS)
    assert scores.of(1, np.array([3, 0])).tolist()[0] == 0.5
    assert np.isnan(scores.of(1, np.array([3, 0]))[1])
