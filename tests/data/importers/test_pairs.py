"""Training pairs and triplets become a dataset folder: each text once, judgments of a train split, and negatives."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.commands.import_ import ImportConfig, import_dataset
from retrievo.data.importers.pairs import is_held_out
from retrievo.support.errors import RetrievoError

TRIPLETS = [
    {"anchor": "which wing?", "positive": "the left one", "negative": "no bird"},
    {"anchor": "which wing?", "positive": "the right one", "negative": "the left one"},
    {"anchor": 'who "flew"?', "positive": "a bird,\tsmall", "negative": "no bird"},
]
EXPECTED = (
    {"which wing?", 'who "flew"?'},
    {"the left one", "the right one", "a bird,\tsmall", "no bird"},
    {("which wing?", "the left one"), ("which wing?", "the right one"), ('who "flew"?', "a bird,\tsmall")},
    {("which wing?", "no bird"), ("which wing?", "the left one"), ('who "flew"?', "no bird")},
)


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist() if path.exists() else []


def imported(source: Path, **options: Any) -> Path:
    output = source.with_name("out")
    import_dataset(ImportConfig(format="pairs", source=source, output=output, **options))
    return output


def as_texts(folder: Path, split: str = "train") -> tuple[set, ...]:
    """Queries, documents, judgments and negatives, with texts in the place of ids."""
    queries = {row["id"]: row["text"] for row in rows(folder / "queries.parquet")}
    documents = {row["id"]: row["text"] for row in rows(folder / "corpus.parquet")}
    assert len(queries) == len(set(queries.values()))
    assert len(documents) == len(set(documents.values()))
    judged = {(queries[r["query_id"]], documents[r["doc_id"]]) for r in rows(folder / f"qrels/{split}.parquet")}
    negatives = [row for path in (folder / "negatives").glob("*.parquet") for row in rows(path)]
    return (
        set(queries.values()),
        set(documents.values()),
        judged,
        {(queries[r["query_id"]], documents[r["doc_id"]]) for r in negatives},
    )


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def delimited(sign: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(TRIPLETS[0]), delimiter=sign)
    writer.writeheader()
    writer.writerows(TRIPLETS)
    return text.getvalue()


def as_file(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(TRIPLETS), path)
    elif path.suffix == ".zip":
        inside = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(TRIPLETS), inside)
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inside, "data/inside.parquet")
    elif path.suffix == ".csv":
        path.write_text(delimited(","))
    elif path.suffix == ".json":
        path.write_text(json.dumps(TRIPLETS, indent=2))
    else:
        jsonl(path, *TRIPLETS)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet", "t.zip", "triplets"])
def test_every_kind_of_file_gives_the_same_tables(name: str, tmp_path: Path) -> None:
    assert as_texts(imported(as_file(tmp_path / name))) == EXPECTED


def test_a_tsv_has_a_header_and_its_quotes_are_text(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text('question\tanswer\nwho "flew"?\ta bird\nwhich?\t"left"\n')
    queries, documents, *_ = as_texts(imported(tmp_path / "p.tsv"))
    assert (queries, documents) == ({'who "flew"?', "which?"}, {"a bird", '"left"'})


def test_lists_of_positives_and_negatives_as_flagembedding_has_them(tmp_path: Path) -> None:
    record = {"query": "q", "pos": ["a", "b"], "neg": ["c", "d", ""], "pos_scores": [1.0, 0.5], "prompt": "x"}
    queries, documents, judged, negatives = as_texts(imported(jsonl(tmp_path / "bge.jsonl", record)))
    assert (queries, documents) == ({"q"}, set("abcd"))
    assert judged == {("q", "a"), ("q", "b")}
    assert negatives == {("q", "c"), ("q", "d")}


def test_numbered_negatives_and_missing_ones(tmp_path: Path) -> None:
    first = {"query": "q", "document": "a", "negative_1": "c", "negative_2": "d"}
    source = jsonl(tmp_path / "p.jsonl", first, {"query": "r", "document": "b", "negative_1": None})
    assert as_texts(imported(source))[3] == {("q", "c"), ("q", "d")}


def test_ids_that_are_there_are_kept_and_others_depend_on_the_text_alone(tmp_path: Path) -> None:
    record = {"query_id": 7, "query": "q", "doc_id": "d1", "positive": "a", "neg": ["b", "c"], "neg_id": ["n1", None]}
    folder = imported(jsonl(tmp_path / "p.jsonl", record, {"query": "q", "positive": "c"}))
    ids = {row["text"]: row["id"] for row in rows(folder / "corpus.parquet")}
    assert (ids["a"], ids["b"]) == ("d1", "n1")
    assert ids["c"] == "1b2c07cd64633f37"
    assert {row["id"] for row in rows(folder / "queries.parquet")} == {"7", "3514bd29fb70352b"}


def test_columns_of_other_names(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", {"ask": "q", "hit": "a", "miss": "b", "query": "no"})
    folder = imported(source, query_column="ask", positive_column="hit", negative_column="miss")
    assert as_texts(folder) == ({"q"}, {"a", "b"}, {("q", "a")}, {("q", "b")})


def test_whole_queries_are_held_out_by_their_text(tmp_path: Path) -> None:
    pairs = [{"query": f"Query {n % 200}", "positive": f"text {n}"} for n in range(400)]
    folder = imported(jsonl(tmp_path / "p.jsonl", *pairs), dev_ratio=0.2)
    train, dev = as_texts(folder)[2], as_texts(folder, "dev")[2]
    assert len(train | dev) == 400
    held = {query for query, _ in dev}
    assert not held & {query for query, _ in train}
    assert held == {f"Query {n}" for n in range(200) if is_held_out(f" query  {n}", 0.2)}
    assert 25 <= len(held) <= 55


def test_files_of_a_folder_keep_their_splits(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "part-0.jsonl", {"query": "q", "positive": "a"})
    jsonl(tmp_path / "set" / "dev.jsonl", {"query": "r", "positive": "b"})
    folder = imported(tmp_path / "set")
    assert (as_texts(folder)[2], as_texts(folder, "dev")[2]) == ({("q", "a")}, {("r", "b")})


def test_rows_without_text_are_left_out_and_counted(tmp_path: Path, said: Callable[[], str]) -> None:
    source = jsonl(
        tmp_path / "p.jsonl",
        {"query": "q", "positive": "a"},
        {"query": "r", "positive": " "},
        {"query": None, "positive": "b"},
    )
    assert as_texts(imported(source))[:2] == ({"q"}, {"a"})
    assert f"pairs without a query or a positive text: 2; left out (the first: {source}, line 2)" in said()


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"id": 1, "text": "x"}], ["has no column for the query", "it has: id, text", "query, anchor", "--query-col"]),
        ([{"query": "q", "text": "x"}], ["has no column for the positive", "answer", "--positive-column"]),
        ([{"query": "q", "positive": "x"}, {"query": "r"}], ["line 2", "has no 'positive'"]),
        ([{"query": "q", "positive": 3}], ["line 1", "'positive' holds a number", "text or a list of texts"]),
        ([{"query": ["q"], "positive": "a"}], ["line 1", "'query' is a list", "text"]),
        ([{"query": "q", "pos": ["a"], "pos_id": ["1", "2"]}], ["'pos_id' has 2 ids", "1, one for each text of 'pos'"]),
        ([{"sentence1": "a", "sentence2": "b", "score": 0.1}], ["'score'", "--positive-column sentence2"]),
    ],
)
def test_what_does_not_fit_is_named(records: list, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(RetrievoError) as caught:
        imported(jsonl(tmp_path / "p.jsonl", *records))
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_first_line_without_names_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("which wing?\tthe left one\n")
    with pytest.raises(
        RetrievoError, match=r"it has: which wing\?, the left one.*; name the columns in the first line, or"
    ):
        imported(tmp_path / "p.tsv")


def test_parquet_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = as_file(tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RetrievoError, match=r"t\.parquet: is not a readable Parquet file"):
        imported(path)


def test_pairs_with_scores_are_positives_where_the_column_is_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", {"sentence1": "a", "sentence2": "b", "score": 0.9})
    assert as_texts(imported(source, positive_column="sentence2"))[2] == {("a", "b")}


def test_the_next_step_is_training(retrievo: Callable[..., Any], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", *TRIPLETS)
    outcome = retrievo("import", "pairs", source, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.err.replace("\\\n", "").split())
    out = tmp_path / "out"
    assert f"retrievo train --model MODEL --data {out} --negatives {out}/negatives/p.parquet" in said
    assert "retrievo index" not in said


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train --model m --output o --data", "pairs.jsonl"),
        ("train --model m --output o --data", "pairs.csv"),
        ("train --model m --output o --data", "pairs.parquet"),
        ("train --model m --output o --queries q --qrels r --corpus", "pairs.json"),
        ("train --model m --output o --queries q --qrels r --corpus", "pairs.parquet"),
        ("import jsonl --output o", "pairs.jsonl"),
        ("import csv --output o", "pairs.csv"),
        ("import tevatron --output o", "pairs.jsonl"),
        ("import tevatron --output o", "pairs.json"),
    ],
)
def test_a_file_of_pairs_given_elsewhere_is_sent_to_this_importer(
    command: str, name: str, retrievo: Callable[..., Any], tmp_path: Path
) -> None:
    path = as_file(tmp_path / name)
    outcome = retrievo(*command.split(), path)
    assert outcome.code == (2 if "--data" in command else 1)
    assert f"retrievo import pairs {path} --output DIR" in outcome.err
