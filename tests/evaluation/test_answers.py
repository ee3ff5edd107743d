"""Answer recall: a text holds an answer where the answer's tokens stand in it one after another."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.corpus import Corpus
from retrievo.data.tables import ANSWERS, Table
from retrievo.evaluation.answers import Answers, tokens
from retrievo.evaluation.judged_run import Judgments
from retrievo.evaluation.names import CONVENTIONS, DEFAULT_CONVENTION, Metric
from retrievo.evaluation.notes import _answer_notes
from retrievo.evaluation.scoring import PerQuery, Standard, evaluate
from retrievo.support.errors import RetrievoError, UsageError


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("Paris", "in PARIS.", True),
        ("Paris", "Parisian", False),
        ("New York", "new  york\u00a0city", True),
        ("New York", "new-york", False),  # the hyphen is a token
        ("U.S.", "the U.S. army", True),
        ("U.S.", "the US army", False),
        ("café", "cafe\u0301", True),  # composed and decomposed
        ("cafe", "café", False),  # marks count
        ("3", "3,000", True),  # the comma is a token
        ("a b", "a c b", False),
        ("北京", "在 北京 市", True),
        ("x\u200by", "xy", False),  # a control sign separates
        ("$5", "cost $5.", True),
    ],
)
def test_an_answer_is_found_by_its_tokens(answer: str, text: str, found: bool) -> None:
    assert (tokens(answer) in tokens(text)) == found


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    texts = ["nothing here", "Paris is a city", "the capital: Paris!", "London"]
    titles = ["Paris", "", "", ""]  # titles do not count
    ids = ["d0", "d1", "d2", "d3"]
    pq.write_table(pa.table({"id": ids, "title": titles, "text": texts}), tmp_path / "corpus.parquet")
    return Corpus(tmp_path / "corpus.parquet")


def answers(corpus: Corpus, judged: list[str] | None = None, **found: list[str]) -> Answers:
    path = corpus.path.with_name("answers.parquet")
    pq.write_table(pa.table({"query_id": list(found), "answers": list(found.values())}), path)
    return Answers.read(Table(path, ANSWERS), corpus, pa.array(judged or [], pa.large_string()))


RUN = pa.table(
    {
        "query_id": ["q1"] * 4 + ["q2"] * 2,
        "doc_id": ["d0", "d3", "d2", "d1", "d1", "gone"],
        "score": pa.array([9, 8, 7, 6, 9, 8], pa.float32()),
    }
)


def measure(found: Answers, metrics: str) -> PerQuery:
    return evaluate(RUN, None, [Metric.parse(text) for text in metrics.split()], answers=found)


def test_the_first_text_with_an_answer_counts(corpus: Corpus) -> None:
    found = measure(answers(corpus, q1=["Lyon", "Paris"], q2=["London"]), "answer-recall@2 answer-recall@3")
    assert found.table().to_pylist() == [
        {"query_id": "q1", "answer-recall@2": 0.0, "answer-recall@3": 1.0},
        {"query_id": "q2", "answer-recall@2": 0.0, "answer-recall@3": 0.0},
    ]


def test_a_query_that_the_run_lacks_counts_as_0(corpus: Corpus) -> None:
    found = measure(answers(corpus, q2=["city"], q9=["Paris"]), "answer-recall@1")
    assert list(found.means().values()) == [0.5]
    assert found.missing == 1


def test_only_judged_queries_count_where_there_are_judgments(corpus: Corpus) -> None:
    asked = answers(corpus, ["q2"], q1=["Paris"], q2=["city"])
    assert asked.query_ids.to_pylist() == ["q2"]
    with pytest.raises(RetrievoError, match="has no answers for the judged queries"):
        answers(corpus, ["other"], q1=["Paris"])


def test_documents_that_the_corpus_lacks_are_counted_and_refused_where_it_lacks_all(corpus: Corpus) -> None:
    found = measure(answers(corpus, q1=["Paris"], q2=["city"]), "answer-recall@1 answer-recall@3")
    assert found.unknown == 1
    assert measure(answers(corpus, q1=["Paris"]), "answer-recall@3").unknown == 0  # q2 has no answers
    other = RUN.set_column(1, "doc_id", [[f"other-{number}" for number in range(6)]])
    with pytest.raises(RetrievoError, match=r"run: .*corpus.parquet has none of the documents that it found"):
        evaluate(other, None, [Metric.parse("answer-recall@3")], answers=answers(corpus, q1=["Paris"]))
    empty = evaluate(RUN.slice(0, 0), None, [Metric.parse("answer-recall@3")], answers=answers(corpus, q1=["Paris"]))
    assert empty.unknown == 0


def test_without_answers_the_metric_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="pass --answers"):
        evaluate(RUN, None, [Metric.parse("answer-recall@1")])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"q1": [r"2\s?,?000"], "q2": ["(Paris|Lyon)"]}, 2),
        ({"q1": ["plain", r"Mt\. Everest"]}, 1),
        ({"q1": [r"Mt\. Everest"], "q2": ["plain"]}, 0),  # not most of them
        ({"q1": [r"a.*b"], "q2": ["Who is it? (a song)"], "q3": ["$5.00 [1]"]}, 0),
    ],
)
def test_answers_written_as_regular_expressions_are_told(corpus: Corpus, given: dict, told: int) -> None:
    rules = CONVENTIONS[DEFAULT_CONVENTION].rules
    lines = _answer_notes(Standard((), Judgments.of(None), rules, 1, None, answers(corpus, **given)))
    assert len(lines) == (told > 0)
    assert not told or f"those of {told} queries look like regular expressions" in lines[0]
