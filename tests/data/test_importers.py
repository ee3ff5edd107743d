"""Every format becomes the same tables: what each file says stands in the dataset folder, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retrievo.commands.import_ import ImportConfig, import_dataset
from retrievo.data.corpus import Corpus, Queries
from retrievo.data.tables import NEGATIVES, QRELS, Table
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError


class Dataset:
    """An imported dataset folder, read back as plain rows."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in pq.read_table(self.folder / f"{name}.parquet").to_pylist()]

    @property
    def names(self) -> list[str]:
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.parquet"))
        return sorted(name.removesuffix(".parquet") for name in found)


def imported(format: str, source: Path, **options: Any) -> Dataset:
    output = source.parent / f"{source.name}-imported"
    return Dataset(output, import_dataset(ImportConfig(format=format, source=source, output=output, **options)))


def lines(*records: object) -> str:
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def folder(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        (path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def refused(format: str, source: Path, *words: str, **options: Any) -> None:
    """The import fails with an error that says all of these words, and leaves no dataset behind."""
    with pytest.raises(RetrievoError) as caught:
        imported(format, source, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (source.parent / f"{source.name}-imported").exists()


# -- BEIR ------------------------------------------------------------------------------------------------------------

BEIR = {
    "corpus.jsonl": lines(
        {"_id": "d1", "title": "One", "text": "first text", "metadata": {"year": 1999}},
        {"_id": "d2", "title": "", "text": "second text"},
        {"_id": "d3", "text": "no title"},
    ),
    "queries.jsonl": lines({"_id": "q1", "text": "which?", "metadata": {}}),
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq1\td3\t1\r\n",
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\td2\t1\n",
}
BEIR_CORPUS = [("d1", "One", "first text"), ("d2", "", "second text"), ("d3", "", "no title")]


def check_beir(dataset: Dataset) -> None:
    assert dataset.names == ["corpus", "qrels/test", "qrels/train", "queries"]
    assert dataset.rows("corpus") == BEIR_CORPUS
    assert dataset.rows("queries") == [("q1", "which?")]
    assert dataset.rows("qrels/test") == [("q1", "d1", 2), ("q1", "d3", 1)]
    assert dataset.rows("qrels/train") == [("q1", "d2", 1)]


def test_beir_from_a_folder(tmp_path: Path) -> None:
    check_beir(imported("beir", folder(tmp_path / "set", BEIR)))


def test_beir_from_gzipped_files(tmp_path: Path) -> None:
    check_beir(imported("beir", folder(tmp_path / "set", {f"{name}.gz": text for name, text in BEIR.items()})))


def test_beir_from_a_zip_with_a_folder_inside_and_nothing_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in BEIR.items():
            archive.writestr(f"set/{name}", text)
        archive.writestr("__MACOSX/set/._corpus.jsonl", "junk")
    check_beir(imported("beir", tmp_path / "set.zip"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip", "set.zip-imported"]


def test_beir_takes_one_dataset_at_a_time(tmp_path: Path) -> None:
    both = {f"{name}/{file}": text for name in ("a", "b") for file, text in BEIR.items()}
    refused("beir", folder(tmp_path / "set", both), "2 datasets (a, b)", "import each by its own folder")


@pytest.mark.parametrize("name", ["scifact", "nfcorpus"])
def test_beir_files_of_a_real_collection_give_its_tables(name: str, real_data: Any, tmp_path: Path) -> None:
    home = real_data(name)
    output = tmp_path / name
    import_dataset(ImportConfig(format="beir", source=home / "raw", output=output))
    for table in ("corpus", "queries", *(f"qrels/{path.stem}" for path in (home / "qrels").glob("*.parquet"))):
        found, expected = (pq.read_table(where / f"{table}.parquet") for where in (output, home))
        assert found.equals(expected.cast(found.schema)), table


# -- MS MARCO --------------------------------------------------------------------------------------------------------

MSMARCO = {
    "collection.tsv": '0\tThe "presence" of\n1\t"Quoted" start\n7\tseven\n',
    "queries.train.tsv": "100\twhat is rba\n",
    "queries.dev.tsv": "200\t)what\n300\tanother\n",
    "queries.dev.small.tsv": "300\tanother\n",
    "qrels.train.tsv": "100\t0\t7\t1\n",
    "qrels.dev.small.tsv": "300\t0\t1\t1\n",
    "qidpidtriples.train.full.2.tsv.gz": "300\t1\t7\r\n100\t7\t1\r\n300\t1\t0\r\n100\t7\t0\r\n100\t0\t1\r\n",
    "top1000.dev.tsv": "1\t2\t3\t4\n",
}


def test_msmarco_passages_queries_qrels_and_triples(tmp_path: Path) -> None:
    dataset = imported("msmarco", folder(tmp_path / "marco", MSMARCO))
    assert dataset.names == [
        "corpus",
        "negatives/qidpidtriples.train.full.2",
        "qrels/dev.small",
        "qrels/train",
        "queries",
    ]
    assert dataset.rows("corpus") == [("0", "", 'The "presence" of'), ("1", "", '"Quoted" start'), ("7", "", "seven")]
    assert dataset.rows("queries") == [("300", "another"), ("200", ")what"), ("100", "what is rba")]
    assert dataset.rows("qrels/dev.small") == [("300", "1", 1)]
    negatives = dataset.rows("negatives/qidpidtriples.train.full.2")
    assert negatives == [  # by query, each pair once, ranked in the order of the file
        ("100", "1", -1.0, 1, "msmarco-triples"),
        ("100", "0", -2.0, 2, "msmarco-triples"),
        ("300", "7", -1.0, 1, "msmarco-triples"),
        ("300", "0", -2.0, 2, "msmarco-triples"),
    ]
    assert Table(dataset.folder / "negatives", NEGATIVES).rows == 4


def test_msmarco_small_qrels_become_the_default_of_evaluate(tmp_path: Path) -> None:
    dataset = imported("msmarco", folder(tmp_path / "marco", MSMARCO))
    settings = tomllib.loads((dataset.folder / "retrievo.toml").read_text())
    assert settings["evaluate"] == {"qrels": "qrels/dev.small.parquet"}


def test_msmarco_titles_come_from_three_columns_documents_or_their_own_file(tmp_path: Path) -> None:
    three = imported("msmarco", folder(tmp_path / "three", {"corpus.tsv": "1\tTitle\ttext\n2\t\tmore\n"}))
    assert three.rows("corpus") == [("1", "Title", "text"), ("2", "", "more")]
    docs = imported("msmarco", folder(tmp_path / "docs", {"msmarco-docs.tsv.gz": "D1\thttp://x\tTitle\tbody\n"}))
    assert docs.rows("corpus") == [("D1", "Title", "body")]
    files = {"para.txt": "1\ta\n2\tb\n3\tc\n", "para.title.txt": "1\tA\n3\tC\n"}
    joined = imported("msmarco", folder(tmp_path / "joined", files))
    assert joined.rows("corpus") == [("1", "A", "a"), ("2", "", "b"), ("3", "C", "c")]


def test_msmarco_titles_in_another_order_are_refused(tmp_path: Path) -> None:
    files = {"para.txt": "1\ta\n2\tb\n", "para.title.txt": "2\tB\n1\tA\n"}
    refused("msmarco", folder(tmp_path / "set", files), "para.title.txt, line 2", "'1'", "sort both files")


def test_msmarco_single_files(tmp_path: Path) -> None:
    home = folder(tmp_path, MSMARCO)
    assert imported("msmarco", home / "queries.dev.tsv").names == ["queries"]
    assert imported("msmarco", home / "qrels.train.tsv").names == ["qrels/train"]
    (home / "stuff.tsv").write_text("1\tx\n")
    refused("msmarco", home / "stuff.tsv", "no MS MARCO files", "collection.tsv")


def test_msmarco_a_query_with_two_texts_is_refused(tmp_path: Path) -> None:
    files = {"queries.dev.tsv": "1\tone\n2\ttwo\n", "queries.dev.small.tsv": "2\tzwei\n"}
    words = ("query id '2' has two texts", "queries.dev.small.tsv, line 1", "queries.dev.tsv, line 2")
    refused("msmarco", folder(tmp_path / "set", files), *words)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("qrels.dev.tsv", "dev"),
        ("2019qrels-pass.txt", "2019.pass"),
        ("msmarco-docdev-qrels.tsv.gz", "dev"),
        ("qrels.tsv", "test"),
    ],
)
def test_msmarco_split_of_a_qrels_file(name: str, split: str, tmp_path: Path) -> None:
    assert imported("msmarco", folder(tmp_path / "set", {name: "1 0 2 3\n"})).names == [f"qrels/{split}"]


# -- TREC ------------------------------------------------------------------------------------------------------------

TREC_DOCUMENTS = """<DOC>
<DOCNO> FT911-1 </DOCNO>
<DATE>910514</DATE>
<HEADLINE>
<P>FT  14 MAY 91 / Mergers &amp; more</P>
</HEADLINE>
<TEXT>
Shares rose 3 &lt; 4.
<!-- a comment -->
<P>Second paragraph</P>
</TEXT>
</DOC>
<DOC><DOCNO>WSJ-2</DOCNO>
<HL> Lead </HL>
<LP>Lead paragraph.</LP>
<TEXT>Body.</TEXT>
</DOC>
<doc>
<docno>plain-3</docno>
<title>A title</title>
No text element here.
</doc>
"""
TOPICS = """<top>
<num> Number: 051
<title> Topic: Airbus Subsidies

<desc> Description:
How much did
governments pay?

<narr> Narrative:
Sums only.
</top>
<top>
<num>MB02</num>
<title>closed tags</title>
</top>
"""


def test_trec_documents_topics_and_judgments_are_told_apart_by_content(tmp_path: Path) -> None:
    files = {
        "disks/ft/ft911_1.gz": TREC_DOCUMENTS,
        "topics.51-100": TOPICS,
        "qrels.51-100": "51 0 FT911-1 1\n51 0\tWSJ-2   0\n",
        "README": "about these files\n",
    }
    dataset = imported("trec", folder(tmp_path / "disks", files))
    assert dataset.rows("corpus") == [
        ("FT911-1", "FT 14 MAY 91 / Mergers & more", "Shares rose 3 < 4. Second paragraph"),
        ("WSJ-2", "Lead", "Lead paragraph. Body."),
        ("plain-3", "A title", "No text element here."),
    ]
    assert dataset.rows("queries") == [("51", "Airbus Subsidies"), ("MB02", "closed tags")]
    assert dataset.rows("qrels/test") == [("51", "FT911-1", 1), ("51", "WSJ-2", 0)]


@pytest.mark.parametrize(
    ("field", "text"), [("description", "How much did governments pay?"), ("narrative", "Sums only.")]
)
def test_trec_topic_field_chooses_the_query(field: str, text: str, tmp_path: Path) -> None:
    dataset = imported("trec", folder(tmp_path / "set", {"topics": TOPICS}), topic_field=field)
    assert dataset.rows("queries") == [("051", text), ("MB02", "")]


def test_trec_topics_as_tab_separated_lines(tmp_path: Path) -> None:
    dataset = imported("trec", folder(tmp_path, {"topics.tsv": "1\tfirst one\n2\tsecond\n"}) / "topics.tsv")
    assert dataset.rows("queries") == [("1", "first one"), ("2", "second")]


def test_trec_elements_may_begin_on_the_line_where_another_ends(tmp_path: Path) -> None:
    line = "<DOC><DOCNO>{}</DOCNO>one\ntwo</DOC>"
    documents = f"</DOC>{line.format('a')}{line.format('b')} between {line.format('c')}\n{line.format('d')}"
    topics = "<top><num>1<title>x</top><top><num>2<title>y\n</top><top><num>3<title>z</top>\n"
    dataset = imported("trec", folder(tmp_path / "set", {"docs": documents, "topics": topics}))
    assert dataset.rows("corpus") == [(name, "", "one two") for name in "abcd"]
    assert dataset.rows("queries") == [("1", "x"), ("2", "y"), ("3", "z")]


def test_trec_documents_without_end_or_number_are_named(tmp_path: Path) -> None:
    refused("trec", folder(tmp_path, {"a": "\n<DOC>\n<DOCNO>1</DOCNO>\n"}) / "a", "a, line 2", "<DOC> is not closed")
    refused("trec", folder(tmp_path, {"b": "<DOC>\n</DOC>\n"}) / "b", "b, line 1", "no <DOCNO>")


# -- SMART -----------------------------------------------------------------------------------------------------------

SMART = {
    "cran.all.1400": ".I 1\n.T\na title\nover lines .\n.A\nauthor\n.B\nsource\n.W\na title\nover lines .\n  the text\n"
    ".I 2\n.T\n.A\n.B\n.W\n",
    "cran.qry": ".I 001\n.W\nfirst\nquestion .\n.I 004\n.W\nsecond .\n",
    "cranqrel": "1 1 2 \n1 2 -1\n2 2 1\n2 1 5\n",
    "cranqrel.readme": "Here you will find\n",
}


def test_smart_query_ids_are_ordinals_where_the_judgments_say_so(tmp_path: Path) -> None:
    dataset = imported("smart", folder(tmp_path / "cran", SMART))
    assert dataset.rows("corpus") == [("1", "a title over lines .", "the text"), ("2", "", "")]
    assert dataset.rows("queries") == [("1", "first question ."), ("2", "second .")]


def test_smart_cleverdons_codes_become_grades_and_the_source_document_is_set_apart(tmp_path: Path) -> None:
    dataset = imported("smart", folder(tmp_path / "cran", SMART))
    assert dataset.rows("qrels/test") == [("1", "1", 3), ("1", "2", 0), ("2", "2", 4), ("2", "1", 0)]
    assert dataset.rows("qrels/test_with_source") == [("1", "1", 3), ("1", "2", 4), ("2", "2", 4), ("2", "1", 0)]


@pytest.mark.parametrize("judgments", ["01 3  0 0\n", "  1\t3\t0\t0.000000\n", "1 0 3 1\n"])
def test_smart_judgments_of_cacm_cisi_and_med(judgments: str, tmp_path: Path) -> None:
    files = {"cacm.all": ".I 3\n.T\nt\n.X\n1 2\n", "query.text": ".I 1\n.W\nq\n", "qrels.text": judgments}
    dataset = imported("smart", folder(tmp_path / "cacm", files))
    assert dataset.rows("qrels/test") == [("1", "3", 1)]


def test_smart_text_outside_a_field_is_named(tmp_path: Path) -> None:
    refused("smart", folder(tmp_path, {"x.all": ".I 1\nlost\n"}) / "x.all", "line 2", "'lost' stands in no field")


def test_smart_cranfield_as_it_came_gives_its_tables(real_data: Any, tmp_path: Path) -> None:
    home = real_data("cranfield")
    import_dataset(ImportConfig(format="smart", source=home / "raw", output=tmp_path / "cran"))
    for table in ("corpus", "queries", "qrels/test", "qrels/test_with_source"):
        assert pq.read_table(tmp_path / f"cran/{table}.parquet").equals(pq.read_table(home / f"{table}.parquet")), table


# -- SQuAD -----------------------------------------------------------------------------------------------------------


def squad(*paragraphs: tuple[str, str, list[dict]]) -> str:
    articles: dict[str, list] = {}
    for title, context, questions in paragraphs:
        articles.setdefault(title, []).append({"context": context, "qas": questions})
    data = [{"title": title, "paragraphs": found} for title, found in articles.items()]
    return json.dumps({"version": "v2.0", "data": data}, indent=1)


def asked(id: str, *answers: str, **more: Any) -> dict:
    found = [{"text": answer, "answer_start": 0} for answer in answers]
    return {"id": id, "question": f"{id}?", "answers": found, **more}


def test_squad_paragraphs_are_documents_once_per_title(tmp_path: Path) -> None:
    files = {
        "train-v2.0.json": squad(
            ("Some Title", "para", [asked("a", "x", "y", "x"), asked("b", is_impossible=True)]),
            ("Some Title", "para two", [asked("c", "z")]),
            ("Other", "para", [asked("d", "w")]),
        ),
        "dev-v2.0.json": squad(("Some Title", "para two", [asked("e", "v")])),
    }
    dataset = imported("squad", folder(tmp_path / "squad", files))
    assert dataset.rows("corpus") == [
        ("Some_Title#0", "Some Title", "para two"),
        ("Some_Title#1", "Some Title", "para"),
        ("Other#0", "Other", "para"),
    ]
    assert dataset.rows("queries")[1:4] == [("a", "a?", ["x", "y"]), ("b", "b?", []), ("c", "c?", ["z"])]
    assert dataset.rows("qrels/dev") == [("e", "Some_Title#0", 1)]
    assert dataset.rows("qrels/train") == [("a", "Some_Title#1", 1), ("c", "Some_Title#0", 1), ("d", "Other#0", 1)]


def test_squad_json_that_breaks_off_is_named_by_its_line(tmp_path: Path) -> None:
    text = squad(("T", "p", [asked("a", "x")]))
    broken = folder(tmp_path, {"dev.json": text[: text.rindex('"x"')]}) / "dev.json"
    refused("squad", broken, "dev.json, line", "is not JSON")
    refused("squad", folder(tmp_path, {"e.json": '{"version": 1}'}) / "e.json", "has no 'data'")


# -- DPR -------------------------------------------------------------------------------------------------------------


def context(id: str, text: str, **more: Any) -> dict:
    return {"title": f"T{id}", "text": text, "passage_id": id, **more}


EXAMPLES: list[dict[str, Any]] = [
    {
        "question": "who?",
        "answers": ["me", "you"],
        "positive_ctxs": [context("1", "one")],
        "hard_negative_ctxs": [context("2", "two", score=9.5), context("3", "three", score="8.25")],
        "negative_ctxs": [context("4", "four"), context("2", "two")],
    },
    {"question": "when?", "answers": ["now"], "positive_ctxs": [context("3", "three")], "hard_negative_ctxs": []},
]
PASSAGES = 'id\ttext\ttitle\n1\t"one with ""quotes"" inside"\tT1\n2\ttwo\tT2\n3\tthree\tT3\n4\tfour\tT4\n'


@pytest.mark.parametrize("text", [json.dumps(EXAMPLES, indent=4), lines(*EXAMPLES)], ids=["array", "lines"])
def test_dpr_contexts_become_corpus_qrels_and_negatives(text: str, tmp_path: Path) -> None:
    dataset = imported("dpr", folder(tmp_path / "dpr", {"biencoder-nq-train.json.gz": text}))
    assert dataset.rows("corpus") == [("1", "T1", "one"), ("2", "T2", "two"), ("3", "T3", "three"), ("4", "T4", "four")]
    assert dataset.rows("queries") == [
        ("biencoder-nq-train-0", "who?", ["me", "you"]),
        ("biencoder-nq-train-1", "when?", ["now"]),
    ]
    assert dataset.rows("qrels/train") == [("biencoder-nq-train-0", "1", 1), ("biencoder-nq-train-1", "3", 1)]
    assert dataset.rows("negatives/biencoder-nq-train") == [
        ("biencoder-nq-train-0", "2", 9.5, 1, "dpr-hard"),
        ("biencoder-nq-train-0", "3", 8.25, 2, "dpr-hard"),
        ("biencoder-nq-train-0", "4", -3.0, 3, "dpr-other"),
    ]


def test_dpr_documents_come_from_the_passages_file_where_there_is_one(tmp_path: Path) -> None:
    files = {
        "psgs_w100.tsv.gz": PASSAGES,
        "nq-dev.json": json.dumps(EXAMPLES[:1]),
        "nq-test.qa.csv": 'who?\t[\'a\', "it\'s"]\n"he said ""hi"""\t[\'b\']\n',
    }
    dataset = imported("dpr", folder(tmp_path / "dpr", files))
    assert dataset.rows("corpus")[0] == ("1", "T1", 'one with "quotes" inside')
    assert [row[0] for row in dataset.rows("corpus")] == ["1", "2", "3", "4"]
    assert dataset.rows("queries")[1:] == [("nq-test-0", "who?", ["a", "it's"]), ("nq-test-1", 'he said "hi"', ["b"])]


def test_dpr_contexts_without_ids_are_known_by_their_content(tmp_path: Path) -> None:
    bare = [{**EXAMPLES[1], "positive_ctxs": [{"title": "T", "text": "same"}]}] * 2
    dataset = imported("dpr", folder(tmp_path / "dpr", {"train.json": json.dumps(bare)}))
    ((id, *_),) = dataset.rows("corpus")
    assert dataset.rows("qrels/train") == [("train-0", id, 1), ("train-1", id, 1)]
    with_corpus = folder(tmp_path / "both", {"train.json": json.dumps(bare), "passages.tsv": PASSAGES})
    refused("dpr", with_corpus, "train.json, item 1", "no passage_id", "without the passages file")


def test_dpr_answers_that_are_no_list_are_named(tmp_path: Path) -> None:
    source = folder(tmp_path, {"test.csv": "q\t['a']\nr\t[b]\n"}) / "test.csv"
    refused("dpr", source, "line 2", "its answers are [b]")


# -- Tevatron --------------------------------------------------------------------------------------------------------

TEVATRON: list[dict[str, Any]] = [
    {
        "query_id": 12,
        "query": "which",
        "positive_passages": [{"docid": "1", "title": "T", "text": "one"}],
        "negative_passages": [{"docid": "3", "text": "three"}, {"docid": "2", "title": "", "text": "two"}],
    },
    {
        "query_id": "13",
        "query": "who",
        "positive_passages": [{"docid": "2", "title": "", "text": "two"}],
        "negative_passages": [{"docid": "1", "title": "T", "text": "one"}],
    },
]


def test_tevatron_passages_become_corpus_qrels_and_negatives(tmp_path: Path) -> None:
    dataset = imported("tevatron", folder(tmp_path / "set", {"train.jsonl.gz": lines(*TEVATRON)}))
    assert dataset.rows("corpus") == [("1", "T", "one"), ("3", "", "three"), ("2", "", "two")]
    assert dataset.rows("queries") == [("12", "which"), ("13", "who")]
    assert dataset.rows("qrels/train") == [("12", "1", 1), ("13", "2", 1)]
    negatives = [("12", "3", -1.0, 1, "tevatron"), ("12", "2", -2.0, 2, "tevatron"), ("13", "1", -1.0, 1, "tevatron")]
    assert dataset.rows("negatives/train") == negatives


def test_tevatron_documents_come_from_the_corpus_file_where_there_is_one(tmp_path: Path) -> None:
    corpus = lines(*({"docid": str(n), "title": f"t{n}", "text": f"text {n}"} for n in range(4)))
    dataset = imported("tevatron", folder(tmp_path / "set", {"corpus.jsonl": corpus, "dev.jsonl": lines(*TEVATRON)}))
    assert [row[0] for row in dataset.rows("corpus")] == ["0", "1", "2", "3"]
    assert dataset.rows("qrels/dev") == [("12", "1", 1), ("13", "2", 1)]


def test_tevatron_answers_are_kept(tmp_path: Path) -> None:
    source = folder(tmp_path, {"test.jsonl": lines({**TEVATRON[0], "answers": ["x"]}, {**TEVATRON[1]})}) / "test.jsonl"
    assert imported("tevatron", source).rows("queries") == [("12", "which", ["x"]), ("13", "who", [])]


def test_tevatron_a_passage_with_two_texts_is_refused(tmp_path: Path) -> None:
    other = {**TEVATRON[1], "positive_passages": [{"docid": "3", "title": "", "text": "drei"}]}
    source = folder(tmp_path, {"train.jsonl": lines(TEVATRON[0], other)}) / "train.jsonl"
    refused("tevatron", source, "document id '3' has two texts", "line 1", "line 2")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "p.jsonl",
            lines({"query": "q", "positive": "a"}),
            ["it has: query, positive", "retrievo import pairs {path}"],
        ),
        ("c.jsonl", lines({"id": "1", "text": "a"}), ["it has: id, text", "retrievo import jsonl {path}"]),
        ("c.txt", "\n", ["check the files"]),
        ("b.json", json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}), ["retrievo import squad {path}"]),
    ],
)
@pytest.mark.parametrize("format", ["tevatron", "dpr"])
def test_files_of_another_format_are_sent_to_its_importer(
    format: str, name: str, text: str, told: list[str], tmp_path: Path
) -> None:
    path = folder(tmp_path, {name: text}) / name
    refused(format, path, *(words.format(path=path) for words in told))


@pytest.mark.parametrize("format", ["tevatron", "dpr"])
def test_a_folder_of_another_format_is_sent_to_its_importer(format: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "set", BEIR)
    refused(format, source, "holds no", f"retrievo import beir {source} --output DIR")
    source = folder(tmp_path / "notes", {"a.bin": "words"})
    refused(format, source, "holds no", "(it holds: a.bin)", "check the files")


# -- tables of one's own ---------------------------------------------------------------------------------------------


def test_jsonl_usual_names_are_found_and_others_are_chosen(tmp_path: Path) -> None:
    usual = folder(tmp_path, {"a.jsonl": lines({"docid": 7, "contents": "x", "title": "T"})}) / "a.jsonl"
    assert imported("jsonl", usual).rows("corpus") == [("7", "T", "x")]
    odd = folder(tmp_path, {"b.jsonl": lines({"key": "k", "body text": "x", "head": None})}) / "b.jsonl"
    chosen = {"id_column": "key", "text_column": "body text", "title_column": "head"}
    assert imported("jsonl", odd, **chosen).rows("corpus") == [("k", "", "x")]
    refused("jsonl", odd.rename(tmp_path / "c.jsonl"), "no column for the id", "key, body text, head", "--id-column")


def test_jsonl_role_queries(tmp_path: Path) -> None:
    source = folder(tmp_path, {"q.jsonl": lines({"qid": "1", "question": "why"})}) / "q.jsonl"
    dataset = imported("jsonl", source, role="query")
    assert dataset.names == ["queries"]
    assert Queries(dataset.folder).texts == ["why"]


def test_jsonl_lines_can_be_numbered(tmp_path: Path) -> None:
    one = folder(tmp_path, {"a.jsonl": lines({"text": "x"}, "", {"text": "y", "title": "T"})}) / "a.jsonl"
    assert imported("jsonl", one, number_lines=True).rows("corpus") == [("1", "", "x"), ("3", "T", "y")]
    two = folder(tmp_path / "two", {"a.jsonl": lines({"text": "x"}), "b.jsonl": lines({"text": "y"})})
    assert [row[0] for row in imported("jsonl", two, number_lines=True).rows("corpus")] == ["a.jsonl:1", "b.jsonl:1"]


def test_tsv_quotes_are_text_and_columns_are_named_or_numbered(tmp_path: Path) -> None:
    named = folder(tmp_path, {"a.tsv": '\nid\ttitle\ttext\n1\tT "x"\t"a" b\n'}) / "a.tsv"
    assert imported("tsv", named).rows("corpus") == [("1", 'T "x"', '"a" b')]
    bare = folder(tmp_path, {"b.tsv": '1\t"a\n2\tb\n'}) / "b.tsv"
    assert imported("tsv", bare, header=False).rows("corpus") == [("1", "", '"a'), ("2", "", "b")]
    swapped = folder(tmp_path, {"c.tsv": "text one\tx\t1\n"}) / "c.tsv"
    chosen = {"id_column": "3", "text_column": "1", "title_column": "2", "header": False}
    assert imported("tsv", swapped, **chosen).rows("corpus") == [("1", "x", "text one")]


def test_a_file_of_one_text_per_line_is_a_corpus_with_numbered_lines(tmp_path: Path) -> None:
    source = folder(tmp_path, {"a.txt": "first text\n\nthird\n"}) / "a.txt"
    dataset = imported("tsv", source, header=False, number_lines=True)
    assert dataset.rows("corpus") == [("1", "", "first text"), ("3", "", "third")]


def test_tsv_without_header_is_not_taken_for_one_with(tmp_path: Path) -> None:
    source = folder(tmp_path, {"b.tsv": "1\ta\n2\tb\n"}) / "b.tsv"
    refused("tsv", source, "no column for the id", "it has: 1, a", "pass --no-header where")
    long = folder(tmp_path, {"c.tsv": f"1\t{'word ' * 99}\n2\tb\n"}) / "c.tsv"
    refused("tsv", long, f"it has: 1, {('word ' * 99)[:40]}...); pass --no-header")


def test_csv_fields_may_hold_line_ends_quotes_and_commas(tmp_path: Path) -> None:
    text = 'id,text\r\n1,"two\r\nlines, and ""quotes"""\r\n\r\n2,plain\r\n'
    source = folder(tmp_path, {"a.csv": text}) / "a.csv"
    assert imported("csv", source).rows("corpus") == [("1", "", 'two\nlines, and "quotes"'), ("2", "", "plain")]


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path: Path) -> None:
    ragged = folder(tmp_path, {"a.csv": 'id,text\n1,"two\nlines"\n2,a,b\n'}) / "a.csv"
    refused("csv", ragged, "a.csv, line 4", "has 3 columns", "expected 2")
    unclosed = folder(tmp_path, {"b.csv": 'id,text\n1,x\n2,"never\nclosed\n'}) / "b.csv"
    refused("csv", unclosed, "b.csv, line 3", "not quoted")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("txet", "did you mean 'text'?"), ("9", "has no column '9'; known: id, text")],
)
def test_a_column_that_is_not_there_is_named(wanted: str, words: str, tmp_path: Path) -> None:
    source = folder(tmp_path, {"a.csv": "id,text\n1,x\n"}) / "a.csv"
    refused("csv", source, words, text_column=wanted)


# -- text ------------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title>Page &amp; title</title><style>p { color: red }</style></head>
<body><h1>Head<em>ing</em></h1><p>One<br>two <b>th</b>ree &lt;four&gt;</p>
<script>no()</script><div>five</div></body></html>
"""


def test_text_passages_with_titles_and_paths_as_ids(tmp_path: Path) -> None:
    files = {
        "notes/a b.txt": "one two\nthree four five",
        "guide.md": "```\n# not this\n```\nintro\n\n## The *guide* ##\nwords",
        "page.html": PAGE,
        "picture.png": "",
    }
    dataset = imported("text", folder(tmp_path / "home", files), passage_words=4)
    assert dataset.rows("corpus") == [
        ("guide.md#0", "The *guide*", "``` # not this"),
        ("guide.md#1", "The *guide*", "``` intro ## The"),
        ("guide.md#2", "The *guide*", "*guide* ## words"),
        ("notes/a%20b.txt#0", "a b", "one two three four"),
        ("notes/a%20b.txt#1", "a b", "five"),
        ("page.html#0", "Page & title", "Heading One two three"),
        ("page.html#1", "Page & title", "<four> five"),
    ]


def test_text_passages_overlap_by_the_stride(tmp_path: Path) -> None:
    source = folder(tmp_path, {"a.txt": "1 2 3 4 5 6 7"}) / "a.txt"
    dataset = imported("text", source, passage_words=4, stride=3)
    assert [row[2] for row in dataset.rows("corpus")] == ["1 2 3 4", "4 5 6 7"]


def test_a_file_name_that_is_not_utf8_is_kept_in_the_id_and_readable_in_the_title(tmp_path: Path) -> None:
    home = folder(tmp_path / "home", {"a.txt": "word"})
    (home / os.fsdecode(b"caf\xe9.txt")).write_text("bar")
    assert imported("text", home).rows("corpus") == [("a.txt#0", "a", "word"), ("caf%E9.txt#0", "caf\ufffd", "bar")]


def test_a_folder_that_can_not_be_looked_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder(tmp_path / "home", {"a.txt": "word", "locked/b.txt": "word", ".hidden/c.txt": "word"})
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name in ("locked", ".hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused("text", home, "locked: cannot be read (Permission denied)")


def test_text_files_without_words_give_no_document(tmp_path: Path, said: Callable[[], str]) -> None:
    dataset = imported("text", folder(tmp_path / "home", {"a.txt": "word", "b.txt": " \n"}))
    assert [row[0] for row in dataset.rows("corpus")] == ["a.txt#0"]
    assert "files without words: 1" in said()


def test_every_imported_dataset_opens_as_its_nouns(tmp_path: Path) -> None:
    dataset = imported("beir", folder(tmp_path / "set", BEIR))
    assert len(Corpus(dataset.folder)) == 3
    assert len(Queries(dataset.folder)) == 1
    assert Table(dataset.folder, QRELS).rows == 2
