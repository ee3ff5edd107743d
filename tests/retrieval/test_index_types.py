"""Parameters follow from the size of the corpus, and a name is a row of the table or a factory string."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.retrieval.index_types import INDEX_TYPES, POINTS_PER_CENTROID, type_named
from retrievo.retrieval.searcher import check_type
from retrievo.support.errors import UsageError


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(0, 10**9), dim=st.integers(1, 4_096))
def test_recipes_can_be_trained_and_divide_the_dimension(rows: int, dim: int) -> None:
    for kind in INDEX_TYPES.values():
        factory, _ = kind.recipe(rows, dim)
        if lists := re.search(r"IVF(\d+)", factory):
            assert 1 <= int(lists[1]) <= max(1, rows // POINTS_PER_CENTROID)
        if codes := re.search(r",PQ(\d+)x(\d+)", factory):
            parts, bits = int(codes[1]), int(codes[2])
            assert dim % parts == 0
            assert 1 <= bits <= 8
            assert bits == 1 or 2**bits * POINTS_PER_CENTROID <= rows


def test_a_million_vectors_get_the_usual_numbers() -> None:
    assert INDEX_TYPES["ivfpq"].recipe(1_000_000, 384).factory == "IVF4096,PQ48x8"
    assert "OPQ" not in INDEX_TYPES["opq-ivfpq"].recipe(767, 768).factory
    assert INDEX_TYPES["opq-ivfpq"].recipe(1_000_000, 768).factory == "OPQ96,IVF4096,PQ96x8"
    assert "4,096 lists, the power of 2 nearest to" in INDEX_TYPES["ivf"].recipe(1_000_000, 384).reason
    assert INDEX_TYPES["ivf"].recipe(1_000, 384).reason == "25 lists, one for 39 vectors"


def test_a_factory_string_is_a_type_and_a_misspelt_name_is_not() -> None:
    assert type_named("IVF64,SQ8").recipe(10, 8).factory == "IVF64,SQ8"
    assert not type_named("IVF64,SQ8").exact
    check_type("bm25")
    with pytest.raises(UsageError, match="--type: found 'ivpq'; did you mean 'ivfpq'"):
        check_type("ivpq")
