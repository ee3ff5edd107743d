"""Weights of a fusion by cross-validation: the best ones are found, and no query has a say in its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrievo.commands.search.fusion_weights import advice, cross_validated
from retrievo.retrieval.fusion import Shared, share
from retrievo.support.errors import RetrievoError

QUERIES = [f"q{number}" for number in range(40)]
RELEVANT = "d5"


def run(good: bool, seed: int) -> pa.Table:
    """20 documents of each query at random, the relevant one first where the run is good."""
    rng = np.random.default_rng(seed)
    rows = []
    for query in QUERIES:
        score = rng.uniform(0, 1, 20)
        score[5] = 2 if good else score[5]
        rows += [(query, f"d{number}", value) for number, value in enumerate(score)]
    return pa.table([list(column) for column in zip(*rows, strict=True)], ["query_id", "doc_id", "score"])


def judged(relevant: dict[str, str]) -> pa.Table:
    return pa.table({"query_id": list(relevant), "doc_id": list(relevant.values()), "relevance": [1] * len(relevant)})


@pytest.fixture(scope="module")
def shared() -> Shared:
    return share("minmax", [run(good=True, seed=0), run(good=False, seed=1)])


def test_the_better_run_gets_the_weight_and_even_weights_win_ties(shared: Shared) -> None:
    tuned = cross_validated(shared, judged(dict.fromkeys(QUERIES, RELEVANT)), "mrr@10")
    assert tuned.overall[0] > tuned.overall[1]
    assert tuned.overall.sum() == pytest.approx(1)
    ranked = shared.run(tuned.weights, 1)
    assert set(ranked["doc_id"].to_pylist()) == {RELEVANT}
    same = share("minmax", [run(good=True, seed=0)] * 2)
    assert cross_validated(same, judged(dict.fromkeys(QUERIES, RELEVANT)), "mrr@10").overall.tolist() == [0.5, 0.5]


def test_no_query_has_a_say_in_its_own_weights(shared: Shared) -> None:
    before = judged(dict.fromkeys(QUERIES, RELEVANT))
    weights = cross_validated(shared, before, "mrr@10").weights
    for number, query in enumerate(QUERIES[:8]):
        other = judged(dict.fromkeys(QUERIES, RELEVANT) | {query: "d9"})
        assert cross_validated(shared, other, "mrr@10").weights[:, number].tolist() == weights[:, number].tolist()


def test_queries_without_judgments_get_the_weights_that_are_best_on_all(shared: Shared) -> None:
    tuned = cross_validated(shared, judged(dict.fromkeys(QUERIES[:12], RELEVANT)), "mrr@10")
    assert (tuned.weights[:, 12:] == tuned.overall[:, None]).all()


@pytest.mark.parametrize(("relevant", "told"), [(QUERIES[:9], "judges 9 of"), (["other"], "judges none")])
def test_too_few_judgments_are_refused(shared: Shared, relevant: list[str], told: str) -> None:
    with pytest.raises(RetrievoError, match=told):
        cross_validated(shared, judged(dict.fromkeys(relevant, RELEVANT)), "mrr@10")


def test_what_is_of_no_use_is_left_out_of_the_flag_that_takes_no_0() -> None:
    places = ["bm25", "embeddings", "run.trec"]
    assert advice(places, [0.25, 0.25, 0.5]) == "--fuse-weights 0.25,0.25,0.5"
    assert advice(places, [0.25, 0.0, 0.75]) == "leave out embeddings, which is of no use; --fuse-weights 0.25,0.75"
    assert advice(places[:2], [0.0, 1.0]) == "leave out bm25, which is of no use"


def test_weights_are_told_once_where_a_fusion_moves_the_queries(
    tmp_path: Path, toy_dataset: Path, retrievo: Callable
) -> None:
    """The fusion that moves the queries is tuned too, but its weights are not those of the result."""
    rng = np.random.default_rng(0)
    for name, role in (("d", "document"), ("q", "query")):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((240, 8)).astype(np.float16))
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{number}\n" for number in range(240)))
        arrays = (tmp_path / f"{name}.npy", tmp_path / f"{name}.txt", "--role", role)
        assert retrievo("import", "vectors", *arrays, "--output", tmp_path / name).code == 0
    first = ("search", "--index", tmp_path / "d", "--queries", tmp_path / "q")
    assert retrievo(*first, "--output", tmp_path / "run.trec").code == 0
    flags = ("--tune-on", toy_dataset, "--feedback", "average", "--feedback-from", "fused")
    tuned = retrievo(*first, "--run", tmp_path / "run.trec", *flags, "--output", tmp_path / "tuned.trec")
    assert tuned.code == 0, tuned.err
    assert tuned.err.count("best on all") == 1
