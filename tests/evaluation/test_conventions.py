"""Conventions: what each counts, and a footnote where they disagree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from retrievo.evaluation.names import CONVENTIONS, Metric
from retrievo.evaluation.notes import notes
from retrievo.evaluation.scoring import evaluate
from retrievo.support.errors import RetrievoError

# q1: the file ranks d1 first, the ordering rule d2 (tied scores). q2 is missing. a: its own document comes first.
RUN = "q1 Q0 d1 1 5 x\nq1 Q0 d2 2 5 x\na Q0 a 1 9 x\na Q0 d3 2 8 x\n"
QRELS = [("q1", "d1", 1), ("q2", "d1", 1), ("a", "d3", 1)]


@pytest.mark.parametrize(
    ("convention", "expected"),
    [("trec_eval", (1 / 2 + 0 + 1 / 2) / 3), ("msmarco", (1 + 0 + 1 / 2) / 3), ("beir", (1 / 2 + 1) / 2)],
)
def test_each_convention_has_its_own_mean(compare: Callable, convention: str, expected: float) -> None:
    found = compare({"r": RUN}, QRELS, "mrr@10", CONVENTIONS[convention].rules)
    assert found.means()["r"]["mrr@10"] == pytest.approx(expected)


def test_a_footnote_says_by_how_much_conventions_disagree_and_why(compare: Callable) -> None:
    lines = notes(compare({"r": RUN}, QRELS, "mrr@10"), "trec_eval")
    assert lines == [
        "r: 1 of 3 judged queries are missing, counted as 0",
        "r: the convention msmarco gives mrr@10 0.5000 (+0.1667): "
        "the file ranks 1 queries otherwise than their scores do",
        "r: the convention beir gives mrr@10 0.7500 (+0.4167): it leaves out 1 missing queries; "
        "it drops 1 rows whose document id is the query id",
    ]


def test_a_footnote_gives_only_the_reasons_that_there_are(compare: Callable, trec: Callable) -> None:
    (_, line) = notes(compare({"r": trec(q1="d1", a="d3")}, QRELS, "mrr@10"), "trec_eval")
    assert line == "r: the convention beir gives mrr@10 1.0000 (+0.3333): it leaves out 1 missing queries"


def test_where_they_agree_nothing_is_said(compare: Callable, trec: Callable) -> None:
    assert notes(compare({"r": trec(q1="d1", q2="d1", a="d3")}, QRELS, "mrr@10"), "trec_eval") == []


def test_ranks_that_are_none_are_refused_by_ms_marco_alone(compare: Callable) -> None:
    run = "q1 Q0 d1 1 5 x\nq1 Q0 d2 1 4 x\n"
    assert notes(compare({"r": run}, QRELS[:1], "mrr@10"), "trec_eval") == []
    with pytest.raises(RetrievoError, match="r: its rank column has no valid ranks"):
        compare({"r": run}, QRELS[:1], "mrr@10", CONVENTIONS["msmarco"].rules)


def test_a_reference_run_needs_ranks_as_much(compare: Callable, trec: Callable) -> None:
    rules, run = CONVENTIONS["msmarco"].rules, trec(q1="d1 d2")
    tied = "q1 Q0 d1 1 5 x\nq1 Q0 d2 1 4 x\n"
    with pytest.raises(RetrievoError, match="reference run: its rank column has no valid ranks"):
        compare({"r": run}, QRELS[:1], "nb-recall-1@2", rules, reference=tied)
    assert compare({"r": run}, QRELS[:1], "mrr@10", rules, reference=tied).means()["r"]["mrr@10"] == 1
    assert compare({"r": run}, QRELS[:1], "nb-recall-1@2", reference=tied).means()["r"]["nb-recall-1@2"] == 1


def test_what_is_left_out_is_told_of_metrics_that_leave_it_out(compare: Callable, trec: Callable) -> None:
    run = trec(q1="d1", q7="d1")

    def said(metrics: str) -> list[str]:
        return notes(compare({"r": run}, [*QRELS[:1], ("a", "d1", 1)], metrics, reference=run), "trec_eval")[:2]

    missing = "r: 1 of 2 judged queries are missing, counted as 0"
    assert said("mrr@10") == [missing, "r: 1 queries have no judgments and are left out"]
    assert said("mrr@10 nb-recall-1@1") == [missing, "r: 1 queries have no judgments and count for nb-recall alone"]
    assert said("nb-recall-1@1") == []


def ms_marco_mrr(rows: list[tuple[str, str, int]], relevant: dict[str, set[str]]) -> float:
    """The arithmetic of MS MARCO's passage ranking: ranks as told, first relevant one up to 10, over all judged."""
    total = 0.0
    for query, wanted in relevant.items():
        told = sorted(rank for asked, doc, rank in rows if asked == query and doc in wanted and rank <= 10)
        total += 1 / told[0] if told else 0
    return total / len(relevant)


@pytest.mark.parametrize("seed", range(20))
def test_mrr_is_ms_marcos(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        (f"q{query}", f"d{doc}", rank)
        for query in range(30)
        if rng.random() < 0.9
        for rank, doc in enumerate(rng.permutation(40)[:20].tolist(), start=1)
    ]
    relevant = {f"q{query}": {f"d{doc}" for doc in rng.choice(40, 1 + query % 3)} for query in range(35)}
    query_id, doc_id, rank = (list(column) for column in zip(*rows, strict=True))
    scores = rng.choice([1.0, 2.0], len(rows)).astype(np.float32)  # never looked at
    run = pa.table({"query_id": query_id, "doc_id": doc_id, "score": scores, "rank": pa.array(rank, pa.int32())})
    judged = [(query, doc) for query, docs in relevant.items() for doc in sorted(docs)]
    columns = {"query_id": [pair[0] for pair in judged], "doc_id": [pair[1] for pair in judged]}
    qrels = pa.table(columns | {"relevance": np.ones(len(judged), np.int32)})
    metric = Metric.parse("mrr@10")
    found = evaluate(run, qrels, [metric], rules=CONVENTIONS["msmarco"].rules)
    assert found.means()[metric] == pytest.approx(ms_marco_mrr(rows, relevant), abs=1e-15)
