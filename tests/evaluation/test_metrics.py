"""Metrics are trec_eval's: small literal cases, random runs against pytrec_eval, and laws."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.evaluation.metrics import METRICS
from retrievo.evaluation.names import DEFAULT_METRICS, NAMES, Metric, Rules
from retrievo.evaluation.scoring import PerQuery, evaluate
from retrievo.support.errors import RetrievoError, UsageError

# ---------------------------------------------------------------- names


class TestNames:
    @pytest.mark.parametrize(
        ("canonical", "spellings"),
        [
            ("mrr", "rr RR MRR recip_rank"),
            ("mrr@10", "rr@10 RR@10 MRR@10 recip_rank_10"),
            ("ndcg", "nDCG NDCG"),
            ("ndcg@10", "nDCG@10 ndcg_cut_10 ndcg_cut.10 ndcg_10"),
            ("map", "AP ap MAP"),
            ("map@100", "AP@100 map_cut_100 map_cut.100"),
            ("p@5", "P@5 P_5 P.5 precision@5 Prec@5"),
            ("recall@1000", "R@1000 recall_1000 recall.1000 Recall@1000"),
            ("success@5", "success_5 Success@5 hit@5 hits@5 hit_rate@5"),
            ("rprec", "Rprec RPrec R-Prec"),
            ("judged@10", "Judged@10"),
            ("nb-recall-50@200", "nb_recall_50_200 NB-Recall-50@200"),
        ],
    )
    def test_aliases_of_ir_measures_and_trec_eval_are_understood(self, canonical, spellings):
        assert {str(Metric.parse(text)) for text in [canonical, *spellings.split()]} == {canonical}

    @given(st.sampled_from(sorted(NAMES)), st.integers(1, 10**6), st.integers(1, 10**6), st.booleans())
    def test_the_text_of_a_metric_round_trips(self, name, cutoff, depth, with_cutoff):
        rule = NAMES[name].cutoff
        has_cutoff = rule == "required" or (rule == "optional" and with_cutoff)
        metric = Metric(name, cutoff if has_cutoff else None, depth if name == "nb-recall" else None)
        assert Metric.parse(str(metric)) == metric

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("ndgc@10", "metric 'ndgc@10': unknown name; did you mean 'ndcg@10'?"),
            ("MRR10", "metric 'MRR10': unknown name; did you mean 'mrr@10'?"),
            ("r-precison", "metric 'r-precison': unknown name; did you mean 'rprec'?"),
            ("recall", "metric 'recall': lacks its cutoff; write it as recall@10"),
            ("rprec@5", "metric 'rprec@5': takes no cutoff; write it as rprec"),
            ("ndcg@0", "metric 'ndcg@0': its cutoff is 0; expected at least 1; write it as ndcg@10"),
            ("AP(rel=2)@100", "metric 'AP(rel=2)@100': holds a grade; write ap@100 and pass --min-relevance 2"),
            ("nb-recall@200", "metric 'nb-recall@200': lacks its depth or cutoff; write it as nb-recall-50@200"),
        ],
    )
    def test_a_name_that_does_not_fit_gets_the_nearest_one(self, text, message):
        with pytest.raises(UsageError) as error:
            Metric.parse(text)
        assert str(error.value) == message

    def test_nothing_near_lists_all_names(self):
        with pytest.raises(UsageError, match="known: mrr@7, recall@7, ndcg@7, map@7, p@7, rprec, success@7, judged@7"):
            Metric.parse("xxxxxxx@7")

    def test_every_name_has_a_function_and_the_defaults_parse(self):
        assert [*METRICS, "answer-recall", "nb-recall"] == list(NAMES)
        assert [str(Metric.parse(text)) for text in DEFAULT_METRICS] == list(DEFAULT_METRICS)

    def test_names_import_the_standard_library_only(self):
        code = "import sys, retrievo.evaluation.names; print({'numpy', 'pyarrow', 'scipy', 'torch'} & {*sys.modules})"
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


# ---------------------------------------------------------------- tables


def run_table(text: str) -> pa.Table:
    rows = [line.split() for line in text.strip().splitlines()]
    return table([(row[0], row[2], float(row[4])) for row in rows])


def qrels_table(text: str) -> pa.Table:
    rows = [line.split() for line in text.strip().splitlines()]
    return table([(row[0], row[2], int(row[3])) for row in rows], qrels=True)


def table(rows: Sequence[tuple[str, str, float]], *, qrels: bool = False) -> pa.Table:
    query_id, doc_id, value = zip(*rows, strict=True) if rows else ((), (), ())
    last = {"relevance": pa.array(value, pa.int32())} if qrels else {"score": pa.array(value, pa.float32())}
    return pa.table({"query_id": pa.array(query_id, pa.string()), "doc_id": pa.array(doc_id, pa.string()), **last})


def scores(result: PerQuery) -> dict[str, dict[str, float]]:
    """query -> metric -> value."""
    rows = result.table().to_pylist()
    return {row.pop("query_id"): row for row in rows}


def measure(
    run: pa.Table, qrels: pa.Table | None, metrics: str, *, missing: str = "zero", exclude_self: bool = False, **options
) -> PerQuery:
    rules = Rules(missing=missing, exclude_self=exclude_self)
    return evaluate(run, qrels, [Metric.parse(text) for text in metrics.split()], rules=rules, **options)


def mean(run: pa.Table, qrels: pa.Table | None, metric: str, **options) -> float:
    return measure(run, qrels, metric, **options).means()[Metric.parse(metric)]


# ---------------------------------------------------------------- literal cases

QRELS = qrels_table("""
    q1 0 d1 1
    q1 0 d2 2
    q1 0 d3 0
    q1 0 d9 1
    q2 0 d1 1
    q3 0 d5 1
    q4 0 d1 0
""")

# q1 in order: d4 (unjudged), d3 (grade 0; tied with d2, and d3 > d2), d2 (grade 2), d1 (grade 1). q3 is missing.
RUN = run_table("""
    q1 Q0 d2 9 2.0 x
    q1 Q0 d3 8 2.0 x
    q1 Q0 d1 1 0.5 x
    q1 Q0 d4 2 3.0 x
    q2 Q0 d1 1 9.0 x
    q4 Q0 d1 1 1.0 x
    q7 Q0 d1 1 1.0 x
""")

BEST = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)  # of q1's grades: 2, 1, 1
EXPECTED: dict[str, list[float]] = {  # q1, q2, q3 (missing), q4 (nothing relevant)
    "mrr": [1 / 3, 1, 0, 0],
    "mrr@2": [0, 1, 0, 0],
    "recall@3": [1 / 3, 1, 0, 0],
    "recall@10": [2 / 3, 1, 0, 0],
    "ndcg": [(2 / math.log2(4) + 1 / math.log2(5)) / BEST, 1, 0, 0],
    "ndcg@3": [2 / math.log2(4) / BEST, 1, 0, 0],
    "ndcg@1": [0, 1, 0, 0],
    "map": [(1 / 3 + 2 / 4) / 3, 1, 0, 0],
    "map@3": [(1 / 3) / 3, 1, 0, 0],
    "p@3": [1 / 3, 1 / 3, 0, 0],
    "p@10": [2 / 10, 1 / 10, 0, 0],
    "rprec": [1 / 3, 1, 0, 0],
    "success@2": [0, 1, 0, 0],
    "success@3": [1, 1, 0, 0],
    "judged@3": [2 / 3, 1, 0, 1],
    "judged@10": [3 / 4, 1, 0, 1],
}


class TestLiteralCases:
    @pytest.mark.parametrize("metric", EXPECTED)
    def test_values_of_a_run_that_fits_on_one_screen(self, metric):
        result = measure(RUN, QRELS, metric)
        assert result.query_ids.to_pylist() == ["q1", "q2", "q3", "q4"]
        assert result.values[Metric.parse(metric)] == pytest.approx(EXPECTED[metric], abs=1e-15)
        assert result.means()[Metric.parse(metric)] == pytest.approx(sum(EXPECTED[metric]) / 4, abs=1e-15)

    def test_missing_and_unjudged_queries_are_counted(self):
        result = measure(RUN, QRELS, "mrr")
        assert (result.judged, result.missing, result.unjudged, result.removed) == (4, 1, 1, 0)

    @pytest.mark.parametrize(("missing", "expected"), [("zero", (1 / 3 + 1) / 4), ("skip", (1 / 3 + 1) / 3)])
    def test_missing_queries_count_as_zero_or_are_left_out(self, missing, expected):
        assert mean(RUN, QRELS, "mrr", missing=missing) == pytest.approx(expected)
        assert scores(measure(RUN, QRELS, "mrr", missing=missing))["q3"]["mrr"] == (0 if missing == "zero" else None)

    def test_the_lowest_relevant_grade_moves_all_but_ndcg(self):
        strict = scores(measure(RUN, QRELS, "recall@3 map ndcg rprec judged@3", min_relevance=2))["q1"]
        assert strict == {
            "recall@3": 1,
            "map": pytest.approx(1 / 3),
            "ndcg": pytest.approx(EXPECTED["ndcg"][0]),  # trec_eval's -l does not reach ndcg either
            "rprec": 0,
            "judged@3": pytest.approx(2 / 3),
        }

    def test_negative_grades_are_judged_but_neither_relevant_nor_a_loss(self):
        qrels = qrels_table("q 0 a -1\nq 0 b -2\nq 0 c 2\nq 0 d 1\nn 0 a -1")
        run = run_table("q Q0 a 1 4 x\nq Q0 b 2 3 x\nq Q0 c 3 2 x\nq Q0 x 4 1 x\nq Q0 d 5 0.5 x\nn Q0 a 1 1 x")
        found = scores(measure(run, qrels, "map mrr recall@3 ndcg ndcg@3 judged@4"))
        assert found["q"] == pytest.approx(  # what trec_eval gives
            {"map": 11 / 30, "mrr": 1 / 3, "recall@3": 0.5, "ndcg": 0.5271341073823443, "ndcg@3": 0.38009376671593426}
            | {"judged@4": 0.75}
        )
        assert set(found["n"].values()) == {0, 1}
        assert found["n"]["judged@4"] == 1

    def test_scores_tie_as_float32(self):
        run = table([("q", "a", 1.0 + 1e-9), ("q", "b", 1.0)])
        assert mean(run, table([("q", "a", 1)], qrels=True), "mrr") == 0.5

    def test_exclude_self_drops_and_counts_rows_whose_document_is_the_query(self):
        run = table([("a", "a", 9), ("a", "b", 8), ("b", "b", 7)])
        qrels = table([("a", "b", 1), ("b", "c", 1)], qrels=True)
        assert mean(run, qrels, "mrr") == 0.25
        result = measure(run, qrels, "mrr", exclude_self=True)
        assert result.values[Metric("mrr")].tolist() == [1, 0]
        assert (result.removed, result.missing) == (2, 1)  # nothing is left of query b

    def test_ids_may_be_dictionaries_integers_and_come_in_chunks(self):
        chunked = pa.concat_tables([RUN.slice(0, 3), RUN.slice(3)])
        for column in (0, 1):
            chunked = chunked.set_column(column, chunked.column_names[column], chunked[column].dictionary_encode())
        assert measure(chunked, QRELS, "map").means() == measure(RUN, QRELS, "map").means()
        numbers = pa.table({"query_id": [1, 1], "doc_id": [20, 3], "score": pa.array([1, 1], pa.float32())})
        assert mean(numbers, table([("1", "20", 1)], qrels=True), "mrr") == 0.5  # "3" > "20"

    def test_the_table_has_a_row_per_query_and_null_where_there_is_no_value(self):
        found = measure(RUN, QRELS, "mrr p@3", missing="skip").table()
        assert found.column_names == ["query_id", "mrr", "p@3"]
        assert found["p@3"].to_pylist() == [pytest.approx(1 / 3), pytest.approx(1 / 3), None, 0]


class TestNeighborhoodRecall:
    FINAL = table([("a", f"d{i}", -i) for i in range(4)] + [("b", "d0", 1), ("c", "d0", 1)])
    FIRST = table([("a", "d9", 9), ("a", "d3", 8), ("a", "d1", 7), ("a", "d0", 6), ("b", "d0", 1), ("z", "d0", 1)])

    def test_share_of_the_final_top_n_that_the_first_stage_has_in_its_top_k(self):
        found = scores(measure(self.FINAL, None, "nb-recall-2@3 nb-recall-2@4 nb-recall-4@2", reference=self.FIRST))
        assert found == {
            "a": {"nb-recall-2@3": 0.5, "nb-recall-2@4": 1, "nb-recall-4@2": 0.25},
            "b": {
                "nb-recall-2@3": 0.5,
                "nb-recall-2@4": 0.5,
                "nb-recall-4@2": 0.25,
            },  # divided by n, also where shorter
            "c": {"nb-recall-2@3": 0, "nb-recall-2@4": 0, "nb-recall-4@2": 0},
        }

    def test_it_is_averaged_over_the_queries_of_the_final_run_whatever_is_judged(self):
        qrels = table([("j", "d0", 1), ("b", "d0", 1)], qrels=True)
        result = measure(self.FINAL, qrels, "mrr nb-recall-2@3", reference=self.FIRST)
        assert scores(result) == {
            "j": {"mrr": 0, "nb-recall-2@3": None},
            "b": {"mrr": 1, "nb-recall-2@3": 0.5},
            "a": {"mrr": None, "nb-recall-2@3": 0.5},
            "c": {"mrr": None, "nb-recall-2@3": 0},
        }
        assert list(result.means().values()) == [0.5, pytest.approx(1 / 3)]

    def test_a_run_against_itself_is_one(self):
        assert mean(self.FINAL.slice(0, 4), None, "nb-recall-4@4", reference=self.FINAL) == 1

    def test_an_empty_reference_has_nothing(self):
        assert mean(self.FINAL, None, "nb-recall-2@3", reference=table([])) == 0


class TestErrors:
    def test_a_pair_that_occurs_twice_is_named(self):
        run = table([("q1", "d1", 3), ("q1", "d7", 2), ("q2", "d7", 2), ("q1", "d7", 1)])
        with pytest.raises(
            RetrievoError, match=r"^run: query 'q1' and document 'd7' occur twice; expected each pair once"
        ):
            measure(run, QRELS, "mrr")

    @pytest.mark.parametrize("score", [math.nan, math.inf])
    def test_a_score_that_is_not_finite_is_named(self, score):
        with pytest.raises(RetrievoError, match=r"^bm25: query 'q1' and document 'd2' have the score (nan|inf)"):
            measure(table([("q1", "d1", 3), ("q1", "d2", score)]), QRELS, "mrr", run_name="bm25")

    def test_a_pair_that_is_judged_twice_is_named(self):
        qrels = table([("q1", "d1", 1), ("q1", "d2", 1), ("q1", "d1", 0)], qrels=True)
        with pytest.raises(RetrievoError, match=r"^qrels: query 'q1' and document 'd1' occur twice"):
            measure(RUN, qrels, "mrr")

    def test_a_run_of_other_queries_is_refused(self):
        with pytest.raises(RetrievoError, match=r"run: none of its 2 queries is judged"):
            measure(table([("x", "d1", 1), ("y", "d1", 1)]), QRELS, "mrr")

    def test_an_empty_run_is_a_retriever_that_found_nothing(self):
        result = measure(table([]), QRELS, "mrr ndcg@10 judged@5")
        assert (result.judged, result.missing, set(result.means().values())) == (4, 4, {0.0})
        assert math.isnan(mean(table([]), QRELS, "mrr", missing="skip"))

    def test_metrics_say_what_they_need(self):
        with pytest.raises(UsageError, match="pass --reference-run"):
            measure(RUN, QRELS, "nb-recall-5@5")
        with pytest.raises(UsageError, match="pass --qrels"):
            measure(RUN, None, "mrr", reference=RUN)

    @pytest.mark.parametrize("options", [{"missing": "drop"}, {"min_relevance": 0}])
    def test_options_out_of_range_are_refused(self, options):
        with pytest.raises(UsageError):
            measure(RUN, QRELS, "mrr", **options)


# ---------------------------------------------------------------- against trec_eval

TREC_NAMES = {
    "mrr": "recip_rank", "map": "map", "ndcg": "ndcg", "rprec": "Rprec", "map@2": "map_cut_2", "map@7": "map_cut_7",
    "ndcg@1": "ndcg_cut_1", "ndcg@5": "ndcg_cut_5", "ndcg@50": "ndcg_cut_50", "p@1": "P_1", "p@5": "P_5",
    "p@50": "P_50", "recall@1": "recall_1", "recall@5": "recall_5", "recall@50": "recall_50",
    "success@1": "success_1", "success@5": "success_5",
}  # fmt: skip
ALPHABET = ["a", "b", "Z", "9", "10", "é", "ß", "漢", "\uffff", "\U0001f600", "-", "_"]


Rows = list[tuple[str, str, float]]


def random_case(seed: int) -> tuple[Rows, Rows]:
    """Run and qrels over 8 queries (some absent from either) and up to 40 documents with ids from all over Unicode."""
    rng = np.random.default_rng(seed)
    made = ["".join(rng.choice(ALPHABET, size=rng.integers(1, 12))) for _ in range(40)]
    documents = [*dict.fromkeys(made)]
    values = [list(rng.normal(size=200)), [1.0, 2.0, 3.0], [0.0, -0.0, 1e-9, -7.5, 1.0, 1.0 + 1e-9]][seed % 3]
    run: Rows = []
    qrels: Rows = []
    for query in (f"ü{number}" for number in range(8)):
        if rng.random() < 0.85:
            chosen = rng.permutation(documents)[: rng.integers(1, 36)]
            run += [(query, str(document), float(rng.choice(values))) for document in chosen]
        if rng.random() < 0.85:
            chosen = rng.permutation(documents)[: rng.integers(1, 15)]
            grades = rng.integers(-2, 4, size=len(chosen))
            grades[0] = max(grades[0], 0)  # pytrec_eval hangs where all grades are negative
            qrels += [(query, str(document), int(grade)) for document, grade in zip(chosen, grades, strict=True)]
    shuffled = rng.permutation(len(run))
    return [run[row] for row in shuffled], qrels


def as_dicts(rows: Rows) -> dict[str, dict]:
    nested: dict[str, dict] = {}
    for query, document, value in rows:
        nested.setdefault(query, {})[document] = value
    return nested


SKIP = Rules(missing="skip")


def test_500_random_runs_equal_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    metrics = [Metric.parse(text) for text in TREC_NAMES]
    compared = []
    for seed in range(500):
        run, qrels = random_case(seed)
        level = seed % 4 or 1
        result = evaluate(table(run), table(qrels, qrels=True), metrics, min_relevance=level, rules=SKIP)
        ours = dict(zip(result.query_ids.to_pylist(), np.stack([*result.values.values()], axis=1), strict=True))
        trec_eval = pytrec_eval.RelevanceEvaluator(as_dicts(qrels), {*TREC_NAMES.values()}, relevance_level=level)
        theirs = trec_eval.evaluate(as_dicts(run))
        assert {query for query, values in ours.items() if not np.isnan(values).any()} == set(theirs)
        for query, expected in theirs.items():
            values = [expected[name] for name in TREC_NAMES.values()]
            np.testing.assert_allclose(ours[query], values, rtol=0, atol=1e-12, err_msg=f"seed {seed}, {query}")
            compared.append(values)
        means = [np.mean([found[name] for found in theirs.values()]) for name in TREC_NAMES.values()]
        np.testing.assert_allclose([*result.means().values()], means, rtol=0, atol=1e-12)
    assert len(compared) > 2500
    assert (np.mean(compared, axis=0) > 0.02).all()  # not zeros against zeros


# ---------------------------------------------------------------- against plain loops


def by_hand(run: Rows, qrels: Rows, cutoff: int) -> dict[str, tuple[float, float]]:
    """query -> (mrr@k, judged@k), said in plain Python."""
    judged, found = as_dicts(qrels), {}
    for query in judged:
        ranking = sorted(
            as_dicts(run).get(query, {}).items(), key=lambda row: (np.float32(row[1]), row[0].encode()), reverse=True
        )[:cutoff]
        ranks = [rank for rank, (document, _) in enumerate(ranking, 1) if judged[query].get(document, 0) >= 1]
        known = sum(document in judged[query] for document, _ in ranking)
        found[query] = (1 / ranks[0] if ranks else 0, known / len(ranking) if ranking else 0)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_mrr_and_judged_with_a_cutoff_equal_plain_loops(seed):
    run, qrels = random_case(seed)
    cutoff = 1 + seed % 6
    ours = scores(measure(table(run), table(qrels, qrels=True), f"mrr@{cutoff} judged@{cutoff}"))
    assert {query: tuple(row.values()) for query, row in ours.items()} == by_hand(run, qrels, cutoff)


# ---------------------------------------------------------------- laws

EVERY = "mrr mrr@3 recall@3 ndcg ndcg@3 map map@3 p@3 rprec success@3 judged@3"
CASE = st.integers(0, 10**6).map(random_case).filter(lambda case: {r[0] for r in case[0]} & {r[0] for r in case[1]})


class TestLaws:
    @settings(deadline=None, max_examples=50)
    @given(CASE, st.integers(0, 10**6))
    def test_the_order_of_rows_does_not_matter(self, case, seed):
        run, qrels = table(case[0]), table(case[1], qrels=True)
        expected = scores(measure(run, qrels, EVERY))
        run, qrels = (rows.take(np.random.default_rng(seed).permutation(len(rows))) for rows in (run, qrels))
        assert scores(measure(run, qrels, EVERY)) == expected

    @settings(deadline=None, max_examples=50)
    @given(CASE)
    def test_queries_come_in_order_of_first_appearance_in_the_qrels(self, case):
        found = measure(table(case[0]), table(case[1], qrels=True), "mrr").query_ids.to_pylist()
        assert found == list(as_dicts(case[1]))

    @settings(deadline=None, max_examples=50)
    @given(CASE)
    def test_values_lie_between_0_and_1_and_mrr_recall_success_and_map_grow_with_the_cutoff(self, case):
        run, qrels = table(case[0]), table(case[1], qrels=True)
        for name in ("mrr", "recall", "success", "map"):
            values = np.stack(
                [*measure(run, qrels, " ".join(f"{name}@{k}" for k in (1, 2, 5, 10, 99))).values.values()]
            )
            assert (np.diff(values, axis=0) >= -1e-15).all(), name
        values = np.stack([*measure(run, qrels, EVERY).values.values()])
        assert ((values >= 0) & (values <= 1 + 1e-15)).all()

    @settings(deadline=None, max_examples=50)
    @given(CASE)
    def test_the_judgments_as_a_run_are_the_best_run(self, case):
        qrels = table(case[1], qrels=True)
        result = measure(table([(q, d, float(grade)) for q, d, grade in case[1]]), qrels, "ndcg ndcg@3 map rprec mrr")
        has_relevant = [any(grade > 0 for grade in grades.values()) for grades in as_dicts(case[1]).values()]
        for metric, values in result.values.items():
            assert values == pytest.approx(np.array(has_relevant, float), abs=1e-12), metric

    @settings(deadline=None, max_examples=50)
    @given(CASE)
    def test_an_unjudged_query_changes_the_count_of_unjudged_queries_only(self, case):
        run, qrels = table(case[0]), table(case[1], qrels=True)
        before = measure(run, qrels, EVERY)
        after = measure(pa.concat_tables([table([("unjudged", "d", 1.0)]), run]), qrels, EVERY)
        assert scores(after) == scores(before)
        assert after.unjudged == before.unjudged + 1
