"""Comparisons and what is printed of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.evaluation.comparison import Evaluation
from retrievo.evaluation.details import changes, recall_by_depth, relevant_documents, scores, top_documents, worst
from retrievo.evaluation.formats import FORMATS
from retrievo.evaluation.names import STYLES
from retrievo.evaluation.report import report
from retrievo.evaluation.texts import Texts

QRELS = [(f"q{n}", "good", 1) for n in range(8)]


def ranking(ranks: list[int]) -> dict[str, str]:
    """For each query the good document at this rank among ten."""
    return {
        f"q{n}": " ".join([*(f"x{i}" for i in range(rank - 1)), "good", "y1", "y2"]) for n, rank in enumerate(ranks)
    }


@pytest.fixture
def three(compare: Callable, trec: Callable, tmp_path: Path) -> Evaluation:
    """A baseline, a run that gains on six queries and loses on one, and one that changes nothing."""
    hostile = "<script>alert('x')</script> & |pipes|"
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(8)], "text": [hostile] * 8}), tmp_path / "queries.parquet")
    documents = pa.table({"id": ["good", "x0"], "title": ["<b>Good</b>", "x"], "text": ["the good one", "the other"]})
    pq.write_table(documents, tmp_path / "corpus.parquet")
    base = trec(**ranking([4, 4, 4, 4, 4, 4, 1, 1]))
    better = trec(**ranking([1, 1, 1, 2, 2, 2, 2, 1]))
    texts = Texts(tmp_path / "queries.parquet", tmp_path / "corpus.parquet")
    return compare({"base": base, "better_one": better, "same": base}, QRELS, "mrr@10 recall@3", texts=texts)


def test_wins_ties_losses_interval_and_holm(three: Evaluation) -> None:
    test, same = three.tests["better_one"]["mrr@10"], three.tests["same"]["mrr@10"]
    assert (test.wins, test.ties, test.losses) == (6, 1, 1)
    assert test.difference == pytest.approx((3 * 0.75 + 3 * 0.25 - 0.5) / 8)
    assert test.low < test.difference < test.high
    assert test.p_holm == pytest.approx(2 * test.p_randomization)
    assert (same.wins, same.ties, same.losses, same.p_holm) == (0, 8, 0, 1)


def test_the_queries_that_changed_most_come_first_and_unchanged_ones_never(three: Evaluation) -> None:
    assert [change.query_id for change in changes(three, "better_one", 4)] == ["q0", "q1", "q2", "q6"]
    assert len(changes(three, "better_one", 100)) == 7
    assert changes(three, "same", 10) == []


def test_single_queries_are_known_with_their_documents(three: Evaluation) -> None:
    assert worst(three, "base", 2) == [("q0", 0.25), ("q1", 0.25)]
    assert top_documents(three, "base", ["q6", "q0"], 2) == [["good", "y1"], ["x0", "x1"]]
    assert relevant_documents(three, ["q0", "none"]) == [["good"], []]


def test_recall_by_depth_ends_at_the_whole_run(three: Evaluation) -> None:
    assert recall_by_depth(three, "base") == {1: 0.25, 2: 0.25, 5: 1.0, 6: 1.0}


def test_scores_are_told_apart_by_relevance(three: Evaluation) -> None:
    relevant, other = scores(three, "base")
    assert sorted(relevant.tolist()) == [96.0] * 6 + [99.0] * 2
    assert len(other) == 6 * 5 + 2 * 2


@pytest.mark.parametrize("style", [style for style in STYLES if style != "table"])
def test_every_style_holds_every_number(three: Evaluation, style: str) -> None:
    text = FORMATS[style](three, 3)
    for value in (0.4375, 0.75):
        assert f"{value:.4f}" in text or repr(value) in text


def test_styles_are_the_table_of_formats() -> None:
    assert list(FORMATS) == list(STYLES)


def test_csv_and_json_are_unrounded_and_read_back(three: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](three, 0))))
    means = three.means()
    assert {(row["run"], row["metric"]): float(row["mean"]) for row in rows} == {
        (name, typed): mean for name, found in means.items() for typed, mean in found.items()
    }
    assert [row["wins"] for row in rows[:3]] == ["", "", "6"]
    values = json.loads(FORMATS["json"](three, 0))
    assert values["better_one"]["mrr@10 p_holm"] == three.tests["better_one"]["mrr@10"].p_holm


def test_markdown_and_latex_escape_what_means_something_there(three: Evaluation) -> None:
    markdown = FORMATS["markdown"](three, 1)
    assert r"\|pipes\|" in markdown
    assert len({line.count(" | ") for line in markdown.splitlines()[:4]}) == 1
    latex = FORMATS["latex"](three, 0)
    assert r"better\_one & \textbf{0.7500} & \textbf{1.0000}" in latex
    assert latex.count(r"\\") == 4


class TestReport:
    def test_it_is_one_page_that_needs_nothing_else_and_runs_nothing(self, three: Evaluation) -> None:
        page = report(replace(three, notes=("a <note>",)), "a & b")
        assert "<script" not in page
        assert "http" not in page
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; |pipes|" in page
        assert "<title>a &amp; b</title>" in page
        assert "a &lt;note&gt;" in page
        assert "&lt;b&gt;Good&lt;/b&gt;" in page

    def test_it_is_well_formed(self, three: Evaluation) -> None:
        from xml.etree import ElementTree

        page = report(three, "t")
        body = page[page.index("<body>") : page.index("</html>")]
        found = ElementTree.fromstring(body)
        assert len(found.findall(".//svg[@class='chart']")) == 2 + 1 + 3  # differences, recall, scores of three runs
        assert len(found.findall(".//table")) == 2

    def test_a_run_without_texts_or_hits_still_has_a_page(self, compare: Callable, trec: Callable) -> None:
        page = report(compare({"r": trec(q0="x", q1="y")}, QRELS, "mrr@10"), "t")
        assert "Worst queries" in page
        assert "nan" not in page


def test_differences_of_many_queries_are_drawn_in_bounded_space() -> None:
    from retrievo.evaluation.charts import difference_chart

    drawn = difference_chart(np.random.default_rng(0).normal(size=50_000), "x", "y")
    assert drawn.count("L") <= 2 * 2 * 400 + 2  # gains and losses, two corners a bar


def test_a_histogram_takes_more_groups_than_there_are_dashes() -> None:
    from retrievo.evaluation.charts import histogram

    assert histogram({f"group {number}": np.arange(3) for number in range(8)}, "x", "y").count("<path") == 8


def test_texts_of_no_queries_need_no_table() -> None:
    assert Texts(queries=Path("nowhere.parquet")).of_queries([]) == {}
