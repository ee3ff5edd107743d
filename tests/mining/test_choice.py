"""Mining: never a relevant document or its text, rules that say why, quotas, and draws that depend on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data.corpus import Corpus
from retrievo.data.tables import NEGATIVES, RUN
from retrievo.mining import candidates, choice
from retrievo.mining.candidates import Judged, RandomMiner, RunMiner, VectorMiner, in_order
from retrievo.mining.choice import Tally, Window, choose
from retrievo.mining.rules import RULES, Filters, Rules, read_teacher
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.exact import search_batches
from retrievo.retrieval.hits import joined
from retrievo.support.errors import RetrievoError

WORDS = ["wing", "flow", "heat", "shock", "layer", "blade", "engine", "wave"]
WORDS += ["drag", "lift", "nose", "tail", "jet", "plate", "cone", "rib"]


def texts() -> list[str]:
    found = [f"text {n}" for n in range(40)]
    found[7] = found[3]  # d7 has the text of d3
    found[10], found[11] = " ".join(WORDS), " ".join([*WORDS[:-1], "rudder"])  # 13 shingles of 15 in both
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(40)], "text": texts()}), tmp_path / "corpus.parquet")
    return Corpus(tmp_path / "corpus.parquet")


def write_run(path: Path, rankings: dict[str, list[str]], scores: dict[str, float] | None = None) -> Path:
    """Documents of each query, best first; the score is -place unless it is given by document."""
    rows = [
        {"query_id": query, "doc_id": doc_id, "score": (scores or {}).get(doc_id, -float(place)), "rank": place + 1}
        for query, documents in rankings.items()
        for place, doc_id in enumerate(documents)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RUN.arrow), path)
    return path


def everything(queries: list[str], depth: int = 40) -> dict[str, list[str]]:
    return {query: [f"d{n}" for n in range(depth)] for query in queries}


def judged_by(corpus: Corpus, pairs: dict[str, list[str]], asked: list[str] | None = None) -> Judged:
    flat = [(query, document) for query, documents in pairs.items() for document in documents]
    table = pa.table({"query_id": [query for query, _ in flat], "doc_id": [document for _, document in flat]})
    return Judged(corpus, pa.array(list(pairs)), asked or [f"question {n}" for n in range(len(pairs))], table)


class Mined:
    """What `choose` gives, as rows."""

    def __init__(self, judged: Judged, miners: list[Any], filters: Filters, teacher: Path | None, **window: Any):
        self.tally = Tally()
        chosen = Window(**{"skip": 0, "depth": 40, "sampling": "random", "seed": 0, **window})
        rules = Rules(judged, filters, read_teacher(teacher, judged) if teacher else None)
        self.rows: list[dict[str, Any]] = []
        self.dropped: dict[tuple[str, str], str] = {}
        for part in choose(judged, miners, chosen, rules, self.tally):
            self.rows += part.negatives.table(judged).to_pylist()
            lost = part.dropped.table(judged).to_pylist()
            names = [RULES[number] for number in part.rules]
            self.dropped |= {(row["query_id"], row["doc_id"]): name for row, name in zip(lost, names, strict=True)}

    def of(self, query: str, source: str | None = None) -> list[str]:
        return [row["doc_id"] for row in self.rows if row["query_id"] == query and source in (None, row["source"])]


def mined(
    corpus: Corpus,
    run: Path,
    pairs: dict[str, list[str]],
    samples: int = 5,
    filters: Filters | None = None,
    teacher: Path | None = None,
    **window: Any,
) -> Mined:
    judged = judged_by(corpus, pairs)
    return Mined(judged, [RunMiner(judged, samples, run, "bm25")], filters or Filters(), teacher, **window)


def test_relevant_documents_and_their_texts_are_left_out_and_recorded(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1", "q2"]))
    found = mined(corpus, run, {"q1": ["d3"], "q2": ["d5"]}, samples=40)
    assert set(found.of("q1")) == {f"d{n}" for n in range(40)} - {"d3", "d7"}
    assert set(found.of("q2")) == {f"d{n}" for n in range(40)} - {"d5"}
    assert found.dropped == {("q1", "d3"): "relevant", ("q1", "d7"): "same-text", ("q2", "d5"): "relevant"}
    assert (found.tally.queries, found.tally.short, found.tally.without) == (2, 2, 0)


def test_only_ranks_of_the_window_and_the_best_of_them_with_top(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1"]))
    found = mined(corpus, run, {"q1": ["d30"]}, skip=10, depth=20, samples=4, sampling="top")
    assert [(row["doc_id"], row["rank"]) for row in found.rows] == [("d10", 11), ("d11", 12), ("d12", 13), ("d13", 14)]
    assert (found.tally.short, found.tally.without) == (0, 0)
    one = mined(corpus, run, {"q1": ["d30"]}, skip=10, depth=20, samples=1)
    assert (len(one.rows), one.tally.short, one.tally.without) == (1, 0, 0)
    found = mined(corpus, run, {"q1": ["d30"]}, skip=10, depth=20, samples=40)
    assert [row["rank"] for row in found.rows] == list(range(11, 21))


def test_a_draw_depends_on_seed_query_and_document_alone(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {query: ["d30"] for query in ("q1", "q2", "q3")}
    together = mined(corpus, write_run(tmp_path / "a.parquet", everything(["q1", "q2", "q3"])), pairs).rows
    alone = mined(corpus, write_run(tmp_path / "b.parquet", everything(["q2"])), {"q2": ["d30"]}).rows
    assert alone == [row for row in together if row["query_id"] == "q2"]
    monkeypatch.setattr(choice, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(candidates, "_BATCH_ROWS", 13)
    assert mined(corpus, tmp_path / "a.parquet", pairs).rows == together
    assert mined(corpus, tmp_path / "a.parquet", pairs, seed=1).rows != together
    assert [row["rank"] for row in alone] == sorted(row["rank"] for row in alone)


def test_queries_that_end_short_keep_what_they_have_and_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1", "q2"], depth=2))
    found = mined(corpus, run, {"q1": ["d0", "d1"], "q2": ["d0"], "q3": ["d0"]})  # q3 is not in the run at all
    assert [(row["query_id"], row["doc_id"]) for row in found.rows] == [("q2", "d1")]
    assert (found.tally.queries, found.tally.short, found.tally.without) == (3, 3, 2)


# ------------------------------------------------------------------------------------------------------------ filters

SCORES = {"d0": 10.0, "d1": 9.0, "d2": 8.0, "d3": 6.0, "d4": 5.0, "d5": 4.0}  # relevant: d1 and d3


@pytest.mark.parametrize(
    ("filters", "dropped"),
    [
        (Filters(margin=0.5), {"d0": "margin", "d2": "margin"}),  # more than 6 - 0.5
        (Filters(margin=1.5), {"d0": "margin", "d2": "margin", "d4": "margin"}),
        (Filters(margin=0.5, positive="highest"), {"d0": "margin"}),  # more than 9 - 0.5
        (Filters(relative_margin=0.25, positive="highest"), {"d0": "relative-margin", "d2": "relative-margin"}),  # 6.75
        (Filters(min_score=5), {"d5": "below-min-score"}),
        (Filters(max_score=8, min_score=5), {"d0": "above-max-score", "d5": "below-min-score"}),
        (Filters(margin=0.5, max_score=9), {"d0": "above-max-score", "d2": "margin"}),  # the first rule is recorded
    ],
)
def test_scores_too_close_to_a_relevant_one_are_dropped(
    filters: Filters, dropped: dict[str, str], corpus: Corpus, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run.parquet", {"q": list(SCORES)}, SCORES)
    found = mined(corpus, run, {"q": ["d1", "d3"]}, samples=9, filters=filters)
    assert found.dropped == {("q", doc_id): rule for doc_id, rule in dropped.items()} | {
        ("q", "d1"): "relevant",
        ("q", "d3"): "relevant",
    }
    assert set(found.of("q")) == set(SCORES) - {"d1", "d3"} - dropped.keys()


def test_a_relative_margin_of_negative_scores_still_means_below(corpus: Corpus, tmp_path: Path) -> None:
    scores = {"d0": -1.0, "d1": -10.0, "d2": -10.5, "d3": -12.0}
    run = write_run(tmp_path / "run.parquet", {"q": list(scores)}, scores)
    found = mined(corpus, run, {"q": ["d1"]}, filters=Filters(relative_margin=0.1))  # at most -11
    assert found.of("q") == ["d3"]


def test_margins_say_nothing_where_no_relevant_document_was_found_and_it_is_counted(
    corpus: Corpus, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run.parquet", {"q1": ["d0", "d1"], "q2": ["d0", "d1"]})
    found = mined(corpus, run, {"q1": ["d1"], "q2": ["d30"]}, filters=Filters(margin=0.1))
    assert (found.of("q1"), found.of("q2")) == ([], ["d0", "d1"])
    assert found.tally.unmeasured == 1


def test_a_margin_measures_from_relevant_documents_outside_the_window(corpus: Corpus, tmp_path: Path) -> None:
    path = write_run(tmp_path / "given.parquet", everything(["q"]))  # d3, the relevant one, has rank 4
    judged = judged_by(corpus, {"q": ["d3"]})
    run = in_order(path, judged, 2, tmp_path / "run.parquet")
    found = Mined(judged, [RunMiner(judged, 9, run, "a")], Filters(margin=1), None, depth=2)
    assert found.dropped == {("q", "d0"): "margin", ("q", "d1"): "margin"}


def test_near_duplicates_of_a_relevant_document_are_dropped_from_a_similarity_on(
    corpus: Corpus, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1", "q2"]))
    pairs = {"q1": ["d10"], "q2": ["d20"]}  # d10 and d11 share 13 shingles of 15: Jaccard 0.867
    at_086 = mined(corpus, run, pairs, samples=40, filters=Filters(near_duplicate=0.86))
    assert at_086.dropped["q1", "d11"] == "near-duplicate"
    assert "d11" in at_086.of("q2")
    assert "d11" in mined(corpus, run, pairs, samples=40, filters=Filters(near_duplicate=0.87)).of("q1")


def test_a_teacher_drops_what_it_scores_high_and_leaves_what_it_did_not_see(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", {"q": ["d0", "d1", "d2", "d3"]})
    teacher = write_run(tmp_path / "teacher.parquet", {"q": ["d0", "d1", "d2"]}, {"d0": 0.9, "d1": 0.1, "d2": 0.8})
    found = mined(corpus, run, {"q": ["d2"]}, filters=Filters(max_teacher_score=0.5), teacher=teacher)
    assert found.dropped == {("q", "d0"): "teacher", ("q", "d2"): "relevant"}
    assert found.of("q") == ["d1", "d3"]
    assert found.tally.unscored == 1


# ------------------------------------------------------------------------------------------------------------- miners


def test_several_miners_give_their_quotas_and_no_document_twice(corpus: Corpus, tmp_path: Path) -> None:
    judged = judged_by(corpus, {"q1": ["d39"], "q2": ["d39"]})
    miners = [
        RunMiner(judged, 5, write_run(tmp_path / "a.parquet", everything(["q1", "q2"], 10)), "a"),
        RunMiner(judged, 8, write_run(tmp_path / "b.parquet", everything(["q1", "q2"], 12)), "b"),
        RandomMiner(judged, 4, seed=0),
    ]
    found = Mined(judged, miners, Filters(), None)
    for query in ("q1", "q2"):
        assert [len(found.of(query, source)) for source in ("a", "b", "random")] == [5, 7, 4]  # b: 12 less a's 5
        assert len(set(found.of(query))) == 16
    assert found.tally.shared["a", "b"] == 20
    assert found.tally.shared["b", "a"] == 20
    assert found.tally.short == 2
    assert [row["query_id"] for row in found.rows] == ["q1"] * 16 + ["q2"] * 16


def test_random_negatives_are_never_relevant_and_depend_on_seed_and_query_alone(corpus: Corpus) -> None:
    pairs = {f"q{n}": [f"d{n % 40}", "d3"] for n in range(200)}
    judged = judged_by(corpus, pairs)
    found = Mined(judged, [RandomMiner(judged, 6, seed=5)], Filters(), None)
    assert all(len(set(found.of(query))) == 6 for query in pairs)
    assert not {(row["query_id"], row["doc_id"]) for row in found.rows} & {(q, d) for q in pairs for d in pairs[q]}
    counts = np.unique([row["doc_id"] for row in found.rows], return_counts=True)[1]
    assert len(counts) == 38  # all but d3 and d7, which reads as d3
    assert counts.max() < 3 * counts.min()
    alone = judged_by(corpus, {"q7": pairs["q7"]})
    assert Mined(alone, [RandomMiner(alone, 6, seed=5)], Filters(), None).of("q7") == found.of("q7")
    assert Mined(judged, [RandomMiner(judged, 6, seed=6)], Filters(), None).of("q7") != found.of("q7")


def test_random_negatives_of_a_tiny_corpus_are_all_there_are(corpus: Corpus) -> None:
    judged = judged_by(corpus, {"q": ["d0"]})
    assert len(Mined(judged, [RandomMiner(judged, 99, seed=0)], Filters(), None).of("q")) == 39


def test_any_run_is_put_in_order_and_documents_that_are_not_there_are_dropped(corpus: Corpus, tmp_path: Path) -> None:
    given = tmp_path / "run.trec"
    given.write_text("q2 Q0 d1 1 1.0 x\nq1 Q0 d4 9 2.0 x\nother Q0 d1 1 3 x\nq1 Q0 ghost 1 7.0 x\nq1 Q0 d5 1 3.0 x\n")
    judged = judged_by(corpus, {"q1": ["d0"], "q2": ["d0"]})
    run = in_order(given, judged, 10, tmp_path / "ordered.parquet")
    found = Mined(judged, [RunMiner(judged, 5, run, "run")], Filters(), None, sampling="top")
    assert [(row["query_id"], row["doc_id"], row["rank"]) for row in found.rows] == [
        ("q1", "d5", 2),
        ("q1", "d4", 3),
        ("q2", "d1", 1),
    ]
    assert found.dropped == {("q1", "ghost"): "unknown"}
    with pytest.raises(RetrievoError, match="none of the judged queries"):
        in_order(given, judged_by(corpus, {"q9": ["d0"]}), 10, tmp_path / "ordered.parquet")


def test_a_table_of_negatives_mined_again_keeps_who_found_them(corpus: Corpus, tmp_path: Path) -> None:
    rows = [
        {"query_id": "q", "doc_id": f"d{n}", "score": -n, "rank": n, "source": "bm25" if n % 2 else "dense"}
        for n in (1, 2)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES.arrow), tmp_path / "negatives.parquet")
    judged = judged_by(corpus, {"q": ["d0"]})
    run = in_order(tmp_path / "negatives.parquet", judged, 10, tmp_path / "ordered.parquet")
    found = Mined(judged, [RunMiner(judged, 5, run, "negatives")], Filters(), None)
    assert [(row["doc_id"], row["source"]) for row in found.rows] == [("d1", "bm25"), ("d2", "dense")]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_runs_hold_negatives_obey_the_rules(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("law")
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(40)], "text": texts()}), folder / "corpus.parquet")
    corpus = Corpus(folder / "corpus.parquet")
    documents = st.lists(st.sampled_from([f"d{n}" for n in range(40)]), unique=True)
    pairs = {f"q{n}": data.draw(documents.filter(bool)) for n in range(3)}
    judged, miners = judged_by(corpus, pairs), []
    for name in ("a", "b"):
        rankings = {query: found for query in pairs if (found := data.draw(documents))}
        if rankings:
            path = write_run(folder / f"{name}.parquet", rankings)
            miners.append(RunMiner(judged, data.draw(st.integers(1, 9)), path, name))
    miners.append(RandomMiner(judged, 2, seed=0))
    skip = data.draw(st.integers(0, 5))
    found = Mined(judged, miners, Filters(), None, skip=skip, depth=data.draw(st.integers(skip + 1, 45)))
    by_id = dict(zip((f"d{n}" for n in range(40)), texts(), strict=True))
    for query, relevant in pairs.items():
        chosen = found.of(query)
        assert len(chosen) == len(set(chosen))
        assert not {by_id[doc_id] for doc_id in chosen} & {by_id[doc_id] for doc_id in relevant}
        for miner in miners:
            assert len(found.of(query, miner.name)) <= miner.quota
    assert sum(found.tally.kept.values()) == len(found.rows)
    assert sum(found.tally.dropped.values()) >= len(found.dropped)


# ----------------------------------------------------------- the edge cases that made other tools crash, one by one


def test_a_depth_larger_than_the_corpus_gives_all_there_is(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1"]))
    found = mined(corpus, run, {"q1": ["d3"]}, samples=1_000, depth=10_000)
    assert set(found.of("q1")) == {f"d{n}" for n in range(40)} - {"d3", "d7"}
    assert (found.tally.short, found.tally.without) == (1, 0)


def test_a_window_smaller_than_the_samples_is_kept_whole(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1"]))
    found = mined(corpus, run, {"q1": ["d39"]}, samples=30, skip=5, depth=8)
    assert found.of("q1") == ["d5", "d6", "d7"]
    assert found.tally.short == 1


def test_a_query_whose_every_document_is_relevant_keeps_nothing(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1"]))
    found = mined(corpus, run, {"q1": [f"d{n}" for n in range(40)]}, samples=3)
    assert found.rows == []
    assert (found.tally.short, found.tally.without) == (1, 1)


def test_a_relevant_document_that_the_corpus_lacks_stops_nothing(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1"]))
    found = mined(corpus, run, {"q1": ["elsewhere"]}, samples=40, filters=Filters(margin=1.0, relative_margin=0.1))
    assert len(found.of("q1")) == 40
    assert found.tally.unmeasured == 1


def test_absolute_and_relative_margins_to_a_negative_score_hold_together(corpus: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.parquet", everything(["q1"]), {f"d{n}": -10.0 - n for n in range(40)})
    both = Filters(margin=3.0, relative_margin=0.5)  # the relevant d2 scores -12: below -15, and below -18
    found = mined(corpus, run, {"q1": ["d2"]}, samples=40, filters=both)
    assert found.of("q1") == [f"d{n}" for n in range(8, 40)]
    assert {found.dropped["q1", f"d{n}"] for n in (0, 1, 3, 4)} == {"margin"}
    assert {found.dropped["q1", f"d{n}"] for n in (5, 6, 7)} == {"relative-margin"}


def test_a_search_in_vectors_mines_what_its_run_would(corpus: Corpus, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = Vectors([rng.standard_normal((40, 4)).astype(np.float32)], [pa.array([f"d{n}" for n in range(40)])])
    queries, names = rng.standard_normal((3, 4)).astype(np.float32), ["q1", "q2", "q3"]
    judged = judged_by(corpus, {name: ["d3"] for name in names})
    found = [joined(search_batches(query[None], vectors, 20), vectors) for query in queries]
    rankings = {name: [f"d{row}" for row in hits.row] for name, hits in zip(names, found, strict=True)}
    run = in_order(write_run(tmp_path / "run.parquet", rankings), judged, 20, tmp_path / "ordered.parquet")
    miners = (VectorMiner(judged, 20, queries, vectors, "run", device="cpu"), RunMiner(judged, 20, run, "run"))
    mined = [Mined(judged, [miner], Filters(), None, sampling="top") for miner in miners]
    pairs = [[(row["query_id"], row["doc_id"], row["rank"]) for row in one.rows] for one in mined]
    assert pairs[0] == pairs[1]
    assert not {doc for _, doc, _ in pairs[0]} & {"d3", "d7"}
    assert mined[0].dropped == mined[1].dropped != {}
