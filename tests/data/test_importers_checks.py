"""What importers refuse, warn of and repair, and that the way of reading never shows in what is written."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import shutil
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrievo.commands.import_ import ImportConfig, import_dataset
from retrievo.data.importers import input_files, negatives
from retrievo.data.importers.dataset import settings_text
from retrievo.data.importers.delimited import read_tsv
from retrievo.data.importers.input_files import ImportSource, Member, Part, split_of
from retrievo.data.importers.json_lines import read_items, read_jsonl
from retrievo.data.importers.negatives import NegativesWriter
from retrievo.data.importers.seen_ids import Ledger, SeenHashes
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def run(format: str, path: Path, **options: Any) -> tuple[Path, Manifest]:
    output = path.with_name(f"{path.name}-imported")
    return output, import_dataset(ImportConfig(format=format, source=path, output=output, **options))


def texts(format: str, path: Path, **options: Any) -> list[str]:
    return pq.read_table(run(format, path, **options)[0] / "corpus.parquet").column("text").to_pylist()


def refused(format: str, path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(RetrievoError) as caught:
        run(format, path, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def document(**more: Any) -> str:
    return json.dumps({"_id": "1", "text": "x"} | more) + "\n"


# -- lines that do not fit ---------------------------------------------------------------------------------------------

GOOD = document()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"_id": "2", "text": "y"', "is not JSON"),
        ('{"_id": "2" "text": "y"}', "is not JSON"),
        ("null", "is null; expected one JSON object"),
        ('["2", "y"]', "is a list; expected one JSON object"),
        ('{"_id": "2"}', "has no 'text' (it has: _id)"),
        ('{"text": "y"}', "has no '_id' (it has: text)"),
        ('{"_id": null, "text": "y"}', "has no id"),
        ('{"_id": "", "text": "y"}', "has no id"),
        ('{"_id": 2.5, "text": "y"}', "id is a number; expected text"),
        ('{"_id": true, "text": "y"}', "id is true or false; expected text"),
        ('{"_id": "2", "text": 3}', "text is a number; expected text"),
    ],
)
def test_a_line_that_does_not_fit_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", f"{GOOD}\n{line}\n")
    refused("beir", path, "corpus.jsonl, line 3: ", words)
    assert not path.with_name("corpus.jsonl-imported").exists()


@pytest.mark.parametrize("format", ["beir", "tsv"])
def test_lines_are_counted_over_blocks(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "BLOCK", 64)
    good = [document(_id=str(n)) if format == "beir" else f"{n}\ttext {n}\n" for n in range(40)]
    bad = ["broken\n"]
    path = write(tmp_path / ("corpus.jsonl" if format == "beir" else "c.tsv"), "".join(good + bad + good))
    refused(format, path, ", line 41: ", **({} if format == "beir" else {"header": False}))


def test_bytes_that_are_not_utf8_are_named_and_can_be_read_with_their_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "1\tplain\n2\tcaf\xe9\n".encode("latin-1"))
    refused("tsv", path, "a.tsv, line 2: byte 0xe9 is not utf-8", "--encoding", header=False)
    assert texts("tsv", path, header=False, encoding="latin-1") == ["plain", "café"]


def test_utf16_is_named_and_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "1\tplain\n2\tcafé\n".encode("utf-16-le"))
    refused("tsv", path, "a.tsv, line 1: holds a NUL byte", "--encoding utf-16", header=False)
    path = write(tmp_path / "b.tsv", "1\tplain\n2\tcafé\n".encode("utf-16"))
    assert texts("tsv", path, header=False, encoding="utf-16") == ["plain", "café"]


@pytest.mark.parametrize("text", ["1\ta\n2\tb\tc\n", "1\ta\n2\n"])
def test_a_wrong_number_of_columns_is_named(text: str, tmp_path: Path) -> None:
    refused("tsv", write(tmp_path / "a.tsv", text), "a.tsv, line 2: has", "expected 2, as in the first", header=False)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "BLOCK", 1 << 10)
    monkeypatch.setattr(input_files, "LONGEST", 1 << 20)
    refused(
        "tsv", write(tmp_path / "a.tsv", "1\tx\n" + "y" * (1 << 21)), "line 2: a line of more than 1 MiB", header=False
    )


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl.gz", gzip.compress(GOOD.encode() * 100, mtime=0)[:-20], "damaged or cut short"),
        ("a.jsonl", b"BZh91AY", "packed as bzip2"),
        ("a.jsonl", b"PAR1....", "packed as Parquet: nothing to import"),
        ("a.tar.gz", b"x", "unpack it first: tar xf"),
        ("a.jsonl", b"", "holds no records"),
        ("a.jsonl", b"\n \n", "holds no records"),
    ],
)
def test_files_that_cannot_be_read_say_what_to_do(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    refused("jsonl", write(tmp_path / name, data), name, words)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused("beir", tmp_path / "nothing", "nothing: no such file or folder")
    (tmp_path / "empty").mkdir()
    refused("beir", tmp_path / "empty", "holds no files")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'[{"question": 1e, }]', "line 1: is not JSON"),
        (b'[\n{"question": "x", "positive_ctxs": []}\n{"a": 1}]', "line 3: found '{'; expected a comma or the end"),
        (b'[{"question": "x", "positive_ctxs": []}', "line 1: found the end"),
        (b"[\n\n7]", "item 1: is a number; expected an object"),
        (b'[{"question": "caf\xe9", "positive_ctxs": []}]', "line 1: byte 0xe9 is not utf-8"),
        (b'[{"question": "x", "positive_ctxs": "none"}]', "item 1: 'positive_ctxs' is text; expected a list"),
        (b'[{"question": "x"}]', "item 1: has no 'positive_ctxs'"),
        (b'[{"question": 3, "positive_ctxs": []}]', "item 1: text is a number; expected text"),
        (b'[{"question": "x", "positive_ctxs": [], "answers": [4]}]', "item 1: answer is a number; expected text"),
    ],
)
def test_a_json_array_that_does_not_fit_is_named(data: bytes, words: str, tmp_path: Path) -> None:
    refused("dpr", write(tmp_path / "train.json", data), "train.json, ", words)


def test_a_json_array_is_read_the_same_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"question": f"é{n}" * n, "positive_ctxs": [], "answers": ["\U0001f600"]} for n in range(60)]
    path = write(tmp_path / "a.json", json.dumps(records, ensure_ascii=False))
    part = Part(ImportSource(path, tmp_path / "out").members[0], "examples")
    for size in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr(Member, "chunks", lambda self, _, size=size: self._unpacked(size))
        assert [record for _, record in read_items(part)] == records


# -- repaired without a word -------------------------------------------------------------------------------------------


def test_byte_order_mark_and_line_ends_of_windows_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"\xef\xbb\xbfid\ttext\r\n1\tx\r\n2\ty")
    assert texts("tsv", path) == ["x", "y"]
    path = write(tmp_path / "corpus.jsonl", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert texts("beir", path) == ["x"]


def test_ids_may_be_json_numbers_among_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", document(_id=12) + document(_id="b") + document(_id=-3))
    assert pq.read_table(run("beir", path)[0] / "corpus.parquet").column("id").to_pylist() == ["12", "b", "-3"]


def test_missing_title_and_null_text_are_empty_and_empty_texts_are_counted(
    tmp_path: Path, said: Callable[[], str]
) -> None:
    records = [document(), document(_id="2", text=None, title=None), document(_id="3", text=" \n", title="T")]
    path = write(tmp_path / "corpus.jsonl", "".join(records))
    output, manifest = run("beir", path)
    rows = pq.read_table(output / "corpus.parquet").to_pylist()
    assert [(row["title"], row["text"]) for row in rows] == [("", "x"), ("", ""), ("T", " \n")]
    assert manifest.stats["blank_texts"] == {"corpus": 1}  # a title is something to read
    assert "documents without text: 1; kept" in said()


def test_escapes_in_json_are_resolved_and_other_separators_are_no_line_ends(tmp_path: Path) -> None:
    text = "tab\t newline\n emoji \U0001f600 separator\u2028 next\x85 nul\x00"
    assert texts("beir", write(tmp_path / "corpus.jsonl", document(text=text))) == [text]
    raw = "1\tseparator\u2028 next\x85 form\x0c"
    assert texts("tsv", write(tmp_path / "a.tsv", raw), header=False) == [raw[2:]]


# -- the way of reading does not show ----------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(anything.filter(bool), anything), min_size=1, max_size=8), escaped=st.booleans())
def test_json_lines_read_by_arrow_and_by_python_are_the_same(
    rows: list[tuple[str, str]], escaped: bool, tmp_path: Path
) -> None:
    text = "".join(json.dumps({"_id": i, "text": t}, ensure_ascii=escaped) + "\n" for i, t in rows)
    found = []
    for start in ("", "\n"):  # a blank line sends the block to Python
        member = ImportSource(write(tmp_path / "a.jsonl", start + text), tmp_path / "out").members[0]
        (batch,) = read_jsonl(member, ["_id", "text"])
        found.append([c if isinstance(c, list) else c.to_pylist() for c in batch.columns])
    assert found[0] == found[1] == [[i for i, _ in rows], [t for _, t in rows]]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(anything, anything), min_size=1, max_size=8))
def test_tab_separated_lines_read_by_arrow_and_by_python_are_the_same(
    rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows = [(f"i{a}", b) for a, b in rows if not set("\t\n\r\0\ufeff") & set(a + b)] or [("i", "")]
    text = "".join(f"{a}\t{b}\n" for a, b in rows)
    found = []
    for start in ("", "\n"):
        member = ImportSource(write(tmp_path / "a.tsv", start + text), tmp_path / "out").members[0]
        (batch,) = read_tsv(member, 2)
        found.append([c if isinstance(c, list) else c.to_pylist() for c in batch.columns])
    assert found[0] == found[1] == [[a for a, _ in rows], [b for _, b in rows]]


def test_folder_zip_and_gzip_give_the_same_bytes_at_every_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = "".join(document(_id=n, text=f"text {n} " * (n % 50), title="é" * (n % 3)) for n in range(9_000))
    write(tmp_path / "plain" / "corpus.jsonl", corpus)
    write(tmp_path / "packed" / "corpus.jsonl.gz", gzip.compress(corpus.encode(), 1))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "plain" / "corpus.jsonl", "set/corpus.jsonl")
    outputs = [run("beir", tmp_path / name)[0] for name in ("plain", "packed", "set.zip")]
    monkeypatch.setattr(input_files, "BLOCK", 10_000)
    shutil.move(tmp_path / "plain", tmp_path / "again")
    outputs.append(run("beir", tmp_path / "again")[0])
    assert len({(output / "corpus.parquet").read_bytes() for output in outputs}) == 1
    assert pq.ParquetFile(outputs[0] / "corpus.parquet").metadata.num_rows == 9_000


# -- across tables -----------------------------------------------------------------------------------------------------


def test_an_id_that_occurs_twice_is_named_with_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "BLOCK", 64)
    write(tmp_path / "set" / "a.jsonl", "".join(document(_id=n) for n in range(20)))
    write(tmp_path / "set" / "b.jsonl", "\n" + document(_id=100) + document(_id="7") + document(_id="3"))
    places = "document id '3' occurs twice (", "set/a.jsonl, line 4 and ", "set/b.jsonl, line 4)"
    refused("jsonl", tmp_path / "set", *places)


def test_judgments_of_unknown_documents_and_queries_are_counted_and_kept(
    tmp_path: Path, said: Callable[[], str]
) -> None:
    write(tmp_path / "set" / "corpus.jsonl", document(_id="d"))
    write(tmp_path / "set" / "queries.jsonl", document(_id="q"))
    write(tmp_path / "set" / "qrels" / "dev.tsv", "q d 1\nq e 1\nr d 1\nr f 1\n")
    output, manifest = run("beir", tmp_path / "set")
    assert pq.read_table(output / "qrels/dev.parquet").num_rows == 4
    assert manifest.stats["unknown_in_qrels"] == {"dev": {"queries": 2, "corpus": 2}}
    told = said()
    assert "judgments (dev) of a document that is not in the corpus: 2; kept" in told
    assert "judgments (dev) of a query that is not there: 2; kept" in told


def test_qrels_may_mix_tabs_and_spaces_and_a_pair_is_kept_once(tmp_path: Path, said: Callable[[], str]) -> None:
    path = write(tmp_path / "qrels.dev.tsv", "1\t0\td1\t1\n1 0 d2 2\n\n1\t0  d3 \t-1\r\n1 0 d2 2\n")
    rows = pq.read_table(run("msmarco", path)[0] / "qrels/dev.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == [("1", "d1", 1), ("1", "d2", 2), ("1", "d3", -1)]
    assert "judgments (dev) that came again with the same grade: 1; left out" in said()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 d 1\n1 0 d 2\n", "line 2: query '1' and document 'd' have got another grade before"),
        ("1 0 d 1\n1 d 2\n", "line 2: has 3 columns; expected 4"),
        ("1 0 d x\n", "line 1: its grade is 'x'; expected a whole number"),
        ("1 0 d 5000000000\n", "line 1: its grade is 5000000000; expected 32 bits"),
        ("1\n", "line 1: has 1 columns; expected query<tab>0<tab>document<tab>grade"),
        ("query-id\tcorpus-id\tscore\nq\td\t1.5\n", "line 2: its grade is '1.5'"),
    ],
)
def test_judgments_that_do_not_fit_are_named(text: str, words: str, tmp_path: Path) -> None:
    refused("msmarco", write(tmp_path / "qrels.tsv", text), words)


def test_settings_name_the_tables_that_are_there_and_test_before_dev() -> None:
    tables = {"corpus.parquet", "queries.parquet", "qrels/train.parquet", "qrels/dev.parquet", "qrels/test.parquet"}
    training = {"corpus": "corpus.parquet", "queries": "queries.parquet", "qrels": "qrels/train.parquet"}
    assert tomllib.loads(settings_text(tables)) == {
        "train": training,
        "mine-negatives": training,
        "index": {"corpus": "corpus.parquet"},
        "search": {"queries": "queries.parquet"},
        "evaluate": {"qrels": "qrels/test.parquet"},
    }
    assert tomllib.loads(settings_text(tables - {"qrels/test.parquet"}))["evaluate"] == {"qrels": "qrels/dev.parquet"}
    assert settings_text(tables | {"qrels/test-hard.parquet"}) == settings_text(tables)
    assert "evaluate" not in tomllib.loads(settings_text({"qrels/train.parquet"}))
    assert "train" not in tomllib.loads(settings_text(tables - {"qrels/train.parquet"}))


# -- ids and negatives in flat memory ----------------------------------------------------------------------------------

keys = st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=12), max_size=12)


@settings(max_examples=200, deadline=None)
@given(keys)
def test_seen_hashes_answer_like_a_dictionary(chunks: list[list[tuple[int, int]]]) -> None:
    seen = SeenHashes()
    known: dict[int, int] = {}
    for chunk in chunks:
        new, differs = seen.admit(*(np.array([row[at] for row in chunk], np.uint64) for at in (0, 1)))
        for row, (key, value) in enumerate(chunk):
            assert new[row] == (key not in known)
            assert differs[row] == (known.setdefault(key, value) != value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 40), max_size=40))
def test_a_ledger_finds_the_first_id_that_comes_again(ids: list[int], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ids")
    for start in range(0, len(ids), 7):
        part = np.array(ids[start : start + 7], np.uint64)
        ledger.add(part, np.arange(start, start + len(part), dtype=np.uint64))
    repeated = [row for row, id in enumerate(ids) if ids.count(id) > 1]
    expected = (repeated[0], ids.index(ids[repeated[0]], repeated[0] + 1)) if repeated else None
    assert ledger.first_repeated() == expected
    assert ledger.knows(np.arange(45, dtype=np.uint64)).tolist() == [id in ids for id in range(45)]
    (tmp_path / "ids.sorted").unlink()


@pytest.mark.parametrize("rows_per_pass", [1, 7, 1 << 21])
def test_negatives_are_sorted_the_same_in_one_pass_or_many(
    rows_per_pass: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negatives, "ROWS_PER_PASS", rows_per_pass)
    rng = np.random.default_rng(0)
    rows = [(f"q{q}", f"d{d}") for q, d in zip(rng.integers(0, 12, 200), rng.integers(0, 9, 200), strict=True)]
    (tmp_path / "work").mkdir()
    writer = NegativesWriter(tmp_path / "work" / "n")
    for start in range(0, 200, 33):
        queries, documents = zip(*rows[start : start + 33], strict=True)
        writer.add(pa.array(queries), pa.array(documents), "a" if start < 100 else "b")
    count, _ = writer.finish(tmp_path / "n.parquet")
    expected = []
    for query in sorted({query for query, _ in rows}):
        first = dict.fromkeys(document for q, document in rows if q == query)
        expected += [(query, document, -float(rank), rank) for rank, document in enumerate(first, start=1)]
    found = pq.read_table(tmp_path / "n.parquet")
    assert count == len(expected)
    assert [tuple(row.values()) for row in found.drop_columns("source").to_pylist()] == expected
    assert set(found.column("source").to_pylist()) == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-v2.0.json", "train"),
        ("biencoder-nq-dev.json", "dev"),
        ("validation.jsonl", "dev"),
        ("device-contest.json", "test"),
        ("nq_test.json", "test"),
        ("strained.json", "test"),
    ],
)
def test_the_split_is_a_word_of_the_file_name(name: str, split: str) -> None:
    assert split_of(name) == split


# -- ways of writing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# Wing", "Wing"),
        ("   ###### Wing  and more ##  ", "Wing  and more"),
        ("# C#", "C#"),
        ("# #", "t"),
        ("####### x", "t"),
        ("#x", "t"),
        ("# a" + " " * 2_000 + "b" + " " * 2_000 + "c", "a" + " " * 2_000 + "b" + " " * 2_000 + "c"),
    ],
)
def test_a_heading_ends_in_hashes_only_apart(tmp_path: Path, line: str, title: str) -> None:
    write(tmp_path / "in" / "t.md", f"{line}\nbody\n")
    table = pq.read_table(run("text", tmp_path / "in")[0] / "corpus.parquet")
    assert table["title"].to_pylist() == [title]


def queries(format: str, path: Path, **options: Any) -> list[tuple[str, str]]:
    table = pq.read_table(run(format, path, **options)[0] / "queries.parquet")
    return list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


SGML = "<top>\n<num> Number: {}\n<title> a wing\n</top>\n"


@pytest.mark.parametrize(
    ("numbers", "judged", "ids"),
    [
        (["001", "002"], ["001", "002"], ["001", "002"]),  # as the judgments keep them
        (["051", "100"], ["51", "100"], ["51", "100"]),  # TREC 1 to 3
        (["051", "052"], ["51"], ["51", "52"]),  # one that nobody judged
        (["1", "2"], ["001"], ["001", "2"]),
        (["MB01", "007"], ["MB01"], ["MB01", "007"]),
        (["051"], [], ["051"]),
    ],
)
def test_topics_have_the_ids_of_the_judgments_beside_them(
    numbers: list[str], judged: list[str], ids: list[str], tmp_path: Path, said: Callable[[], str]
) -> None:
    write(tmp_path / "in" / "topics", "".join(map(SGML.format, numbers)))
    if judged:
        write(tmp_path / "in" / "qrels", "".join(f"{id} 0 d 1\n" for id in judged))
    assert [id for id, _ in queries("trec", tmp_path / "in")] == ids
    assert ("ids such as 051 are kept; import the judgments too" in said()) == (not judged)


XML = """<?xml version="1.0" encoding="UTF-8"?>
<topics task="COVIDSearch">
  <!-- <topic number="0"> -->
  <topic number="1" type='x'>
    <query>corona &amp; <i>virus</i></query>
    <question>what is the
    origin</question><narrative>seeking</narrative>
  </topic>
  <topic number='02'><query><![CDATA[second]]></query><question/></topic>
</topics>
"""


@pytest.mark.parametrize(
    ("text", "field", "found"),
    [
        (XML, "title", [("1", "corona & virus"), ("02", "second")]),
        (XML, "description", [("1", "what is the origin"), ("02", "")]),
        ("<topics><topic><num>7</num><title>wing</title></topic></topics>", "title", [("7", "wing")]),
        ('<topic id="a">\n  a whole\n patient </topic>', "title", [("a", "a whole patient")]),
    ],
)
def test_topics_in_xml_are_read(text: str, field: str, found: list, tmp_path: Path, said: Callable[[], str]) -> None:
    path = write(tmp_path / "topics.xml", text)
    assert queries("trec", path, topic_field=field) == found
    if text is XML:
        told = {"title": "query", "description": "question"}[field]
        assert f"the query of a topic is its <{told}>" in said()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<topics></topics>", "holds no whole topic"),
        ("<topics><topic number='1'><gene>x</gene></topic></topics>", "no topic has the field 'title' (it has: gene)"),
        ("<topics><topic><query>x</query></topic></topics>", "a topic has no number"),
        ("<topics><topic number='1'><query>x</query>", "<topic> is not closed"),
    ],
)
def test_topics_in_xml_that_can_not_be_read_are_an_error(text: str, words: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "docs", "<DOC><DOCNO>d</DOCNO>x</DOC>")
    write(tmp_path / "in" / "topics.xml", text)
    refused("trec", tmp_path / "in", "topics.xml", words)


def test_tags_that_never_end_are_passed_over_once() -> None:
    from retrievo.data.importers.trec import _plain

    start = time.process_time()
    assert _plain("<a " * 30_000) == ("<a " * 30_000).strip()
    assert _plain("x <!-- no --> <b>y</b> <!-- " * 2) == "x y y <!--"
    assert time.process_time() - start < 0.5  # 2 s where each is followed to the end


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_is_read_whatever_separates_the_fields(sign: str, header: bool, tmp_path: Path) -> None:
    rows = ["id{0}text"] * header + ['1{0}"a, b; c\n| d\te"', "2{0}x"]
    path = write(tmp_path / "c.csv", "\n".join(rows).format(sign))
    assert texts("csv", path, header=header) == ["a, b; c\n| d\te", "x"]


def test_a_comma_separates_where_it_can(tmp_path: Path) -> None:
    assert texts("csv", write(tmp_path / "c.csv", "id,text;b\n1,x;y\n"), text_column="text;b") == ["x;y"]
    alone = write(tmp_path / "d.csv", "text\na; b\nc; d\n")
    assert texts("csv", alone, number_lines=True) == ["a; b", "c; d"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_as_lines_are(indent: int | None, tmp_path: Path) -> None:
    records = [{"id": "1", "text": "x"}, {"id": 2, "title": "t", "text": "y"}]
    path = write(tmp_path / "c.json", json.dumps(records, indent=indent))
    found = pq.read_table(run("jsonl", path)[0] / "corpus.parquet").to_pydict()
    assert found == {"id": ["1", "2"], "title": ["", "t"], "text": ["x", "y"]}
    assert texts("jsonl", write(tmp_path / "e.json", json.dumps(records[:1])), number_lines=True) == ["x"]
    refused("jsonl", write(tmp_path / "d.json", '[{"id": "1", "text": "x"}, {"id": "2"}]'), "item 2", "has no 'text'")


def test_tevatron_is_read_from_an_array_and_with_ids_alone(tmp_path: Path) -> None:
    asked = {"query_id": "q", "query": "x", "positive_passages": ["1"], "negative_passages": [2]}
    write(tmp_path / "in" / "train.json", json.dumps([asked]))
    refused("tevatron", tmp_path / "in", "train.json, item 1", "'positive_passages' holds text; expected objects")
    write(tmp_path / "in" / "corpus.json", json.dumps([{"docid": n, "text": "y"} for n in "12"]))
    folder, _ = run("tevatron", tmp_path / "in")
    assert pq.read_table(folder / "qrels" / "train.parquet")["doc_id"].to_pylist() == ["1"]
    assert pq.read_table(folder / "negatives" / "train.parquet")["doc_id"].to_pylist() == ["2"]


HALF = "\\ud83d"


@pytest.mark.parametrize(
    ("format", "name", "text", "count"),
    [
        ("beir", "corpus.jsonl", f'{{"_id": "1", "text": "a{HALF}b"}}\n{{"_id": "2", "text": "\\ud83d\\ude00"}}\n', 1),
        ("jsonl", "c.json", f'[{{"id": "1", "text": "a{HALF}b"}}]', 1),
        (
            "squad",
            "s.json",
            json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "a\ud83db", "qas": []}]}]}),
            1,
        ),
        (
            "dpr",
            "d.json",
            json.dumps([{"question": "\udead", "positive_ctxs": [{"title": "", "text": "a\ud83db"}]}]),
            2,
        ),
    ],
)
def test_halves_of_characters_are_replaced_and_counted(
    format: str, name: str, text: str, count: int, tmp_path: Path, said: Callable[[], str]
) -> None:
    assert texts(format, write(tmp_path / name, text))[0] == "a\ufffdb"
    assert f"texts that hold half of a character: {count}; it is replaced" in said()


@pytest.mark.parametrize(
    ("start", "encoding", "warns"),
    [
        (b'<meta charset="iso-8859-1">', "cp1252", False),
        (b'<META http-equiv="Content-Type" content="text/html; charset=windows-1251">', "cp1251", False),
        (b'<?xml version="1.0" encoding="koi8-r"?>', "koi8-r", False),
        (b"\xff\xfe", "utf-16-le", False),
        (b'<meta charset="gb2312">', "gb18030", False),
        (b"", "utf-8", False),
        (b'<meta charset="utf-8">', "cp1252", True),
        (b'<meta charset="iso-8859-1">', "utf-8", False),  # every byte is a letter there
        (b'<meta charset="shift_jis">', "utf-8", True),
        (b"", "cp1252", True),
        (b'<meta charset="x-unknown">', "utf-8", False),
        (b'<meta charset="base64">', "utf-8", False),
    ],
)
def test_a_page_is_read_as_it_declares(
    start: bytes, encoding: str, warns: bool, tmp_path: Path, said: Callable[[], str]
) -> None:
    word = {"cp1251": "крыло", "koi8-r": "крыло", "gb18030": "機翼"}.get(encoding, "Flügelß")
    write(tmp_path / "in" / "a.html", start + f"<title>{word}</title><p>{word} x".encode(encoding))
    write(tmp_path / "in" / "b.txt", "fine")
    found = pq.read_table(run("text", tmp_path / "in")[0] / "corpus.parquet").to_pylist()
    if b"iso-8859-1" in start and encoding == "utf-8":
        word = word.encode().decode("cp1252")
    assert [(row["title"], row["text"]) for row in found] == [(word, f"{word} x"), ("b", "fine")]
    assert ("HTML pages that are not in the encoding they declare: 1" in said()) == warns


# a whole record of each format; below each of its values is replaced by what does not belong there
WHOLE: dict[str, Any] = {
    "dpr": [{
        "question": "q", "answers": ["a"],
        "positive_ctxs": [{"title": "t", "text": "x", "passage_id": "1", "score": 1}],
        "hard_negative_ctxs": [{"title": "t", "text": "y", "psg_id": 2}], "negative_ctxs": [],
    }],
    "tevatron": [{
        "query_id": "q", "query": "x", "answers": ["a"],
        "positive_passages": [{"docid": "1", "title": "t", "text": "x"}],
        "negative_passages": [{"docid": "2", "title": "t", "text": "y"}],
    }],
    "squad": {"data": [{"title": "t", "paragraphs": [{
        "context": "x", "qas": [{"id": "1", "question": "q", "is_impossible": False, "answers": [{"text": "x"}]}],
    }]}]},
    "jsonl": [{"id": "1", "title": "t", "text": "x"}],
    "pairs": [{"query": "q", "query_id": "1", "pos": ["x"], "pos_id": [1], "negative_1": "y"}],
}  # fmt: skip
ODD = [None, "x", 1, 1.5, True, [], {}, ["x"], [None], [1], [["x"]], {"a": 1}, [{"text": ["x"]}], "\ud83d"]


def mutants(value: Any) -> Iterator[Any]:
    """The value with one of its parts, or all of it, replaced."""
    yield from ODD
    if isinstance(value, list):
        for at, item in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in mutants(item))
    if isinstance(value, dict):
        for key, item in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield from (value | {key: other} for other in mutants(item))


def told_or_read(format: str, value: Any, folder: Path) -> None:
    """Imports a file; what it can't read is an error in one line, never anything else."""
    path = write(folder / "train.json", json.dumps(value))
    with contextlib.suppress(RetrievoError):
        run(format, path)
    shutil.rmtree(folder)


@pytest.mark.parametrize("format", WHOLE)
def test_a_value_that_does_not_belong_there_is_told(format: str, tmp_path: Path) -> None:
    chosen = random.Random(0).sample(list(mutants(WHOLE[format])), 15)
    for value in [WHOLE[format], *chosen]:
        told_or_read(format, value, tmp_path / "in")


@pytest.mark.slow
@pytest.mark.parametrize("format", WHOLE)
def test_every_value_that_does_not_belong_there_is_told(format: str, tmp_path: Path) -> None:
    for value in mutants(WHOLE[format]):
        told_or_read(format, value, tmp_path / "in")
