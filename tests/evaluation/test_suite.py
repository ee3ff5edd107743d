"""Many datasets on one page: averages, best-on counts, and runs that found nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from retrievo.evaluation.names import STYLES, Rules
from retrievo.evaluation.suite import Suite, print_suite
from retrievo.support.errors import RetrievoError

QRELS = [(f"q{n}", "good", 1) for n in range(4)]


@pytest.fixture(params=["zero", "skip"])
def suite(request: pytest.FixtureRequest, compare: Callable, trec: Callable) -> Suite:
    """BM25 wins on `<a>`, the model on b, nobody on c; on d BM25 found nothing at all."""
    good, late, none = (trec(**{query: docs for query, _, _ in QRELS}) for docs in ("good x", "x good", "x y"))
    runs = {"<a>": (good, late), "b": (late, good), "c": (none, none), "d": ("", late)}
    rules = Rules(missing=request.param)
    found = {name: {"bm25": theirs, "model_1": ours} for name, (theirs, ours) in runs.items()}
    return Suite({name: compare(pair, QRELS, "mrr@10 p@1", rules) for name, pair in found.items()}, ("a note",))


def test_a_run_that_found_nothing_counts_as_zero_whatever_the_rules(suite: Suite) -> None:
    assert suite.values("mrr@10")["d"] == {"bm25": 0, "model_1": 0.5}
    assert suite.averages("mrr@10") == {"bm25": (1 + 0.5) / 4, "model_1": (0.5 + 1 + 0.5) / 4}
    assert suite.best_on("mrr@10") == {"bm25": 2, "model_1": 3}  # both are best on c


def test_a_suite_is_read_like_an_evaluation(suite: Suite) -> None:
    assert dict(suite) == suite.evaluations
    assert suite["d"] is suite.evaluations["d"]
    with pytest.raises(RetrievoError, match=r"suite: has no dataset 'x'; known: .*\bd\b"):
        suite["x"]
    rows = suite.table().to_pylist()
    assert rows[-1] == {"dataset": "d", "run": "model_1", **suite.means()["d"]["model_1"]}
    assert len(rows) == 2 * len(suite.evaluations)
    lines = repr(suite).splitlines()
    assert lines[0].split() == ["dataset", "run", "mrr@10", "p@1"]
    assert lines[-1].split()[:3] == ["d", "model_1", "0.5000"]
    assert str(suite["d"]) == repr(suite["d"])


def test_the_tables_end_in_averages_and_counts(suite: Suite) -> None:
    title, columns, rows = suite.tables()[0]
    assert (title, columns) == ("mrr@10", ["dataset", "bm25", "model_1", "p"])
    assert rows[0] == ["<a>", "1.0000", "0.5000", "0.1250"]  # 2 of 2^4 sign patterns reach it
    assert rows[-2:] == [["average", "0.3750", "0.5000", ""], ["best on", "2", "3", ""]]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_tells_every_dataset(suite: Suite, style: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_suite(suite, style)
    text = capsys.readouterr().out
    assert "nan" not in text.lower()
    assert all(name in text for name in ("<a>", "b", "c", "d"))
    assert all(typed in text for typed in ("mrr@10", "p@1")), "a table says what it is about"


def test_json_and_csv_read_back(suite: Suite) -> None:
    values = json.loads(suite.as_text("json"))
    assert list(values) == ["<a>", "b", "c", "d", "average", "best on"]
    assert values["average"]["model_1"] == {"mrr@10": 0.5, "p@1": 0.25}
    rows = list(csv.DictReader(io.StringIO(suite.as_text("csv"))))
    assert {(row["dataset"], row["run"], row["metric"]): float(row["mean"]) for row in rows} == {
        (name, run, typed): values[name][run][typed]
        for name in list(values)[:4]
        for run in ("bm25", "model_1")
        for typed in ("mrr@10", "p@1")
    }


def test_the_page_is_well_formed_and_links_to_each_dataset(suite: Suite) -> None:
    page = suite.report("t")
    body = ElementTree.fromstring(page[page.index("<body>") : page.index("</html>")])
    targets = [link.get("href") for link in body.findall(".//nav/a")]
    assert targets == [f"#{found.get('id')}" for found in body.findall(".//h2[@class='part']")]
    assert [link.text for link in body.findall(".//nav/a")] == ["<a>", "b", "c", "d"]
    assert body.find("./p").text == "a note"
    bold = [cell.text for cell in body.findall(".//div[@class='beside']/section[1]//b")]
    assert bold == ["1.0000", "1.0000", "0.0000", "0.0000", "0.5000", "0.5000", "3"]
    assert "4 of 4 judged queries" not in page, "notes are the work of evaluate"
