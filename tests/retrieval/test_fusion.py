"""Fusion: the formulas as the papers and the docstrings say them, and the laws that any fusion of runs must keep."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data.tables import RUN
from retrievo.retrieval.fusion import FUSIONS, fuse
from retrievo.support.errors import RetrievoError, UsageError

Scores = dict[str, dict[str, float]]  # query -> document -> score

QUERIES, DOCUMENTS = ["q1", "q2", "q3"], [f"d{n}" for n in range(12)]
SCORES = st.integers(-40, 40).map(lambda number: number / 4)  # exact in float32, with ties
RUNS = st.dictionaries(
    st.sampled_from(QUERIES), st.dictionaries(st.sampled_from(DOCUMENTS), SCORES, min_size=1, max_size=8), max_size=3
)
methods = pytest.mark.parametrize("method", FUSIONS)


def table(run: Scores) -> pa.Table:
    rows = [(query, document, score) for query, scores in run.items() for document, score in scores.items()]
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    kinds = (pa.string(), pa.string(), pa.float32())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(arrays, names=["query_id", "doc_id", "score"])


def fused(method: str, *runs: Scores, **options: object) -> Scores:
    """The fused scores of each query in the order of the result."""
    result = fuse(method, [table(run) for run in runs], **options)  # type: ignore[arg-type]
    found: Scores = {}
    for row in result.to_pylist():
        found.setdefault(row["query_id"], {})[row["doc_id"]] = row["score"]
    return found


def in_order(scores: dict[str, float]) -> list[str]:
    return sorted(sorted(scores, reverse=True), key=lambda document: -scores[document])


def rrf_share(scores: dict[str, float], document: str) -> float:
    order = in_order(scores)
    return 1 / (60 + order.index(document) + 1) if document in scores else 0.0


def zscore_share(scores: dict[str, float], document: str) -> float:
    if not scores:
        return 0.0
    if len(set(scores.values())) < 2:
        return 1.0 if document in scores else -1.0
    value = scores.get(document, min(scores.values()))
    return (value - statistics.fmean(scores.values())) / statistics.pstdev(scores.values())


def minmax_share(scores: dict[str, float], document: str) -> float:
    lowest, highest = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if document not in scores:
        return 0.0
    return (scores[document] - lowest) / (highest - lowest) if lowest < highest else 1.0


SHARES = {"rrf": rrf_share, "minmax": minmax_share, "zscore": zscore_share}


@methods
@settings(deadline=None, max_examples=60)
@given(runs=st.lists(RUNS, min_size=1, max_size=4), weights=st.lists(st.floats(0.1, 9), min_size=4, max_size=4))
def test_scores_are_the_weighted_sums_of_the_definition(method: str, runs: list[Scores], weights: list[float]) -> None:
    found = fused(method, *runs, weights=weights[: len(runs)])
    assert set(found) == {query for run in runs for query in run}
    for query in found:
        assert set(found[query]) == {document for run in runs for document in run.get(query, {})}
        for document, score in found[query].items():
            shares = [SHARES[method](run.get(query, {}), document) for run in runs]
            expected = sum(weight * share for weight, share in zip(weights, shares, strict=False))
            assert score == pytest.approx(expected, rel=1e-5, abs=1e-5)


@methods
@settings(deadline=None, max_examples=60)
@given(run=RUNS, times=st.integers(1, 4))
def test_a_run_fused_with_itself_keeps_its_order(method: str, run: Scores, times: int) -> None:
    found = fused(method, *[run] * times)
    assert {query: list(scores) for query, scores in found.items()} == {q: in_order(run[q]) for q in found}


@methods
@settings(deadline=None, max_examples=60)
@given(runs=st.permutations(range(4)), source=st.lists(RUNS, min_size=4, max_size=4))
def test_the_order_of_runs_of_equal_weight_changes_no_bit(method: str, runs: list[int], source: list[Scores]) -> None:
    queries = pa.chunked_array([QUERIES])
    first = fuse(method, [table(run) for run in source], queries=queries)
    assert fuse(method, [table(source[number]) for number in runs], queries=queries).equals(first)


@settings(deadline=None, max_examples=60)
@given(run=RUNS, other=RUNS, factor=st.sampled_from([0.25, 2.0, 8.0]))
def test_the_scale_of_a_run_does_not_matter(run: Scores, other: Scores, factor: float) -> None:
    scaled = {query: {d: score * factor for d, score in scores.items()} for query, scores in run.items()}
    for method in FUSIONS:
        assert fused(method, scaled, other) == fused(method, run, other)


@methods
@settings(deadline=None, max_examples=60)
@given(runs=st.lists(RUNS, min_size=2, max_size=3), depth=st.integers(1, 6))
def test_a_result_of_some_depth_is_the_beginning_of_the_whole_in_order(
    method: str, runs: list[Scores], depth: int
) -> None:
    whole, cut = fused(method, *runs), fused(method, *runs, depth=depth)
    assert cut == {query: dict(list(scores.items())[:depth]) for query, scores in whole.items()}
    assert all(list(scores) == in_order(scores) for scores in whole.values())


@methods
def test_a_document_that_both_find_early_wins(method: str) -> None:
    one = {"q": {"a": 9.0, "both": 8.0, "x": 1.0, "y": 0.0}}
    two = {"q": {"b": 0.9, "both": 0.8, "v": 0.1, "w": 0.0}}
    assert next(iter(fused(method, one, two)["q"])) == "both"


@methods
def test_a_heavy_run_decides(method: str) -> None:
    one, two = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"c": 3.0, "b": 2.0, "a": 1.0}}
    assert list(fused(method, one, two, weights=[9, 1])["q"]) == ["a", "b", "c"]
    assert list(fused(method, one, two, weights=[1, 9])["q"]) == ["c", "b", "a"]


@methods
def test_the_result_is_a_run_and_the_ranks_of_its_sources_are_not_looked_at(method: str) -> None:
    source = table({"q": {"a": 1.0, "b": 2.0}}).append_column("rank", pa.array([1, 2], pa.int32()))
    result = fuse(method, [source, source])
    assert result.schema == RUN.arrow
    assert result.select(["doc_id", "rank"]).to_pydict() == {"doc_id": ["b", "a"], "rank": [1, 2]}


@methods
def test_queries_come_in_the_order_of_the_first_run_or_of_their_table(method: str) -> None:
    runs = [{"q2": {"a": 1.0}, "q1": {"a": 1.0}}, {"q3": {"a": 1.0}, "q1": {"b": 1.0}}]
    assert list(fused(method, *runs)) == ["q2", "q1", "q3"]
    assert list(fused(method, *runs, queries=pa.chunked_array([["q1", "none", "q2", "q3"]]))) == ["q1", "q2", "q3"]


@methods
def test_empty_runs_give_an_empty_run(method: str) -> None:
    assert fuse(method, [table({}), table({})]).num_rows == 0


def test_equal_scores_say_that_they_were_found_even_where_their_mean_is_rounded() -> None:
    assert fused("zscore", {"q": {"a": 0.1, "b": 0.1, "c": 0.1}}) == {"q": {"c": 1.0, "b": 1.0, "a": 1.0}}


def test_an_only_hit_has_weight() -> None:
    many = {"a": 3.0, "b": 2.0, "c": 1.0}
    found = fused("zscore", {"q": many}, {"q": {"b": 9.0}})["q"]
    assert next(iter(found)) == "b"
    assert found["b"] == pytest.approx(1.0)
    assert found["a"] == pytest.approx(zscore_share(many, "a") - 1)


def test_ids_of_any_arrow_type_are_fused() -> None:
    numbers = pa.table({"query_id": [1, 1], "doc_id": [10, 9], "score": [2.0, 1.0]})
    coded = table({"1": {"9": 1.0}}).set_column(1, "doc_id", pa.array(["9"]).dictionary_encode())
    assert fuse("rrf", [numbers, coded])["doc_id"].to_pylist() == ["9", "10"]


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ([], {}, "no runs"),
        ([{"q": {"a": 1.0}}], {"weights": [1, 2]}, "weights: found 1, 2; expected 1 numbers above 0"),
        ([{"q": {"a": 1.0}}], {"weights": [0]}, "weights: found 0"),
        ([{"q": {"a": 1.0}}], {"weights": [math.inf]}, "weights: found inf"),
        ([{"q": {"a": math.nan}}], {}, "document 'a': score nan; expected a finite number"),
        ([{}, {"q": {"a": 1.0}}], {"queries": pa.chunked_array([["p"]])}, "run 2: has a query 'q' that is not in"),
    ],
    ids=["no run", "weights", "weight 0", "weight inf", "not finite", "strange query"],
)
@methods
def test_what_does_not_fit_is_named(method: str, runs: list[Scores], options: dict, message: str) -> None:
    with pytest.raises(RetrievoError, match=message):
        fused(method, *runs, **options)


def test_a_document_twice_is_named_with_run_and_query() -> None:
    twice = pa.concat_tables([table({"q": {"a": 1.0}})] * 2)
    with pytest.raises(RetrievoError, match="run 2: has document 'a' twice for query 'q'"):
        fuse("rrf", [table({}), twice])


def test_an_unknown_name_is_told_the_closest_one() -> None:
    with pytest.raises(UsageError, match=r"found 'z-score'; did you mean 'zscore'\?"):
        fuse("z-score", [table({})])


def test_the_names_load_the_standard_library_only() -> None:
    probe = "import sys, retrievo.retrieval.fusion; print({'numpy', 'pyarrow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "set()\n"
