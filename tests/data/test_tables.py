"""Tables are read from any Arrow text type, file, folder or glob; what does not fit is named."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.corpus import Corpus, Queries, first_found
from retrievo.data.qrels import Qrels
from retrievo.data.run import Run
from retrievo.data.tables import ANSWERS, CORPUS, QRELS, ROWS_PER_GROUP, RowCache, Table, TableWriter
from retrievo.support.errors import RetrievoError


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_any_arrow_text_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array(["a", "b"]).cast(kind)
    path = write(tmp_path / "corpus.parquet", id=ids, text=ids)
    assert Table(path, CORPUS).read().to_pydict() == {"id": ["a", "b"], "text": ["a", "b"]}


def test_integer_ids_become_text(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=pa.array([7, 8], pa.int64()), text=["x", "y"])
    assert Table(path, CORPUS).read().column("id").to_pylist() == ["7", "8"]


def test_aliases_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", _id=["a"], contents=["x"])
    assert Table(path, CORPUS).read().to_pydict() == {"id": ["a"], "text": ["x"]}


def test_a_folder_and_a_glob_are_one_table_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "b.parquet", id=["2"], text=["y"])
    write(tmp_path / "parts" / "a.parquet", id=["1"], text=["x"])
    for path in (tmp_path / "parts", tmp_path / "parts" / "*.parquet"):
        assert Table(path, CORPUS).read().column("id").to_pylist() == ["1", "2"]


def test_a_dataset_folder_stands_for_the_noun_that_is_asked(tmp_path: Path) -> None:
    write(tmp_path / "corpus.parquet", id=["1"], text=["x"])
    write(tmp_path / "queries.parquet", id=["q"], text=["x"])
    write(tmp_path / "qrels" / "dev.small.parquet", query_id=["q"], doc_id=["1"], relevance=[1])
    assert Table(tmp_path, QRELS).files == [tmp_path / "qrels" / "dev.small.parquet"]
    write(tmp_path / "qrels" / "dev.parquet", query_id=["q"], doc_id=["1"], relevance=[1])
    assert len(Corpus(tmp_path)) == 1
    assert Queries(tmp_path).texts == ["x"]
    assert Table(tmp_path, QRELS).files == [tmp_path / "qrels" / "dev.parquet"]
    write(tmp_path / "qrels" / "test.parquet", query_id=["q"], doc_id=["1"], relevance=[1])
    assert Table(tmp_path, QRELS).files == [tmp_path / "qrels" / "test.parquet"]
    write(tmp_path / "qrels" / "test-hard.parquet", query_id=["q"], doc_id=["1"], relevance=[1])
    assert Table(tmp_path, QRELS).files == [tmp_path / "qrels" / "test.parquet"]


def judged(path: Path, query: str = "q") -> Path:
    return write(path, query_id=[query], doc_id=["1"], relevance=[1])


@pytest.mark.parametrize(
    "names",
    [("test", "train"), ("dev", "test"), ("train-0", "train-1", "validation"), ("dl-2019", "dl-2020"), ("a", "b")],
    ids=" ".join,
)
def test_a_folder_of_several_sets_of_judgments_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        judged(tmp_path / "qrels" / f"{name}.parquet", query=name)
    told = ", ".join(f"{name}.parquet" for name in names)
    with pytest.raises(RetrievoError, match=f"holds several tables of qrels .{told}.; expected one of them; name it"):
        Table(tmp_path / "qrels", QRELS)
    assert len(Table(tmp_path / "qrels" / "*.parquet", QRELS).files) == len(names)  # which says so itself


@pytest.mark.parametrize(
    "names",
    [("part-0000", "part-0001"), ("test-00000-of-00002", "test-00001-of-00002"), ("1", "2", "3"), ("test",)],
    ids=" ".join,
)
def test_shards_of_one_table_of_judgments_are_one_table(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        judged(tmp_path / "any" / f"{name}.parquet", query=name)
        judged(tmp_path / "qrels" / f"{name}.parquet", query=name)
    assert Table(tmp_path / "any", QRELS).rows == Table(tmp_path / "qrels", QRELS).rows == len(names)


def test_a_split_in_shards_is_read_whole(tmp_path: Path) -> None:
    for name in ("test-00000-of-00002", "test-00001-of-00002", "test-hard", "dev"):
        judged(tmp_path / "qrels" / f"{name}.parquet", query=name)
    read = [file.stem for file in Table(tmp_path, QRELS).files]
    assert read == ["test-00000-of-00002", "test-00001-of-00002"]


def test_several_runs_in_a_folder_are_not_one_run(tmp_path: Path) -> None:
    for name in ("bm25", "dense"):
        write(tmp_path / "runs" / f"{name}.parquet", query_id=["q"], doc_id=[name], score=[1.0], rank=[1])
    with pytest.raises(RetrievoError, match=r"holds several tables of run .bm25.parquet, dense.parquet"):
        Run.open(tmp_path / "runs")


def test_a_folder_gives_the_files_of_the_noun_that_is_asked(tmp_path: Path) -> None:
    for name in ("corpus-0", "corpus-1", "queries", "qrels"):
        write(tmp_path / f"{name}.parquet", id=[name], text=["x"])
    assert [file.stem for file in Table(tmp_path, CORPUS).files] == ["corpus-0", "corpus-1"]
    assert Queries(tmp_path).ids.to_pylist() == ["queries"]
    write(tmp_path / "extra.parquet", id=["extra"], text=["x"])
    with pytest.raises(
        RetrievoError, match=r"holds corpus-0.parquet beside extra.parquet; expected files of one table"
    ):
        Table(tmp_path, CORPUS)


def test_files_of_another_noun_are_never_taken(tmp_path: Path) -> None:
    write(tmp_path / "part-0.parquet", id=["0"], text=["x"])
    write(tmp_path / "part-1.parquet", id=["1"], text=["x"])
    write(tmp_path / "queries-train.parquet", id=["q"], text=["x"])
    assert [file.stem for file in Table(tmp_path, CORPUS).files] == ["part-0", "part-1"]
    write(tmp_path / "splits" / "corpus.parquet", id=["d"], text=["x"])
    write(tmp_path / "splits" / "queries" / "test.parquet", id=["q"], text=["x"])
    with pytest.raises(RetrievoError, match=r"holds no Parquet file for the queries .it holds corpus.parquet") as found:
        Queries(tmp_path / "splits")
    assert f"pass --queries {tmp_path / 'splits' / 'queries' / 'test.parquet'}" in str(found.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "body_text": ["x"]}, r"corpus.parquet: has no column 'text' \(it has: id, body_text\)"),
        ({"id": ["a"], "text": [1.5]}, "column 'text' is of type double; expected string"),
        ({"id": [1.5], "text": ["x"]}, "column 'id' is of type double"),
    ],
)
def test_a_schema_that_does_not_fit_is_named_before_any_work(tmp_path: Path, columns: dict, message: str) -> None:
    path = write(tmp_path / "corpus.parquet", **columns)
    with pytest.raises(RetrievoError, match=message):
        Table(path, CORPUS)


def test_a_missing_id_is_named_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=["a", None], text=["x", None])
    with pytest.raises(RetrievoError, match="column 'id' is empty in row 2"):
        Table(path, CORPUS).read()


def test_a_missing_text_is_an_empty_text(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=["a"], text=pa.array([None], pa.string()))
    assert Table(path, CORPUS).read().column("text").to_pylist() == [""]


def test_a_column_without_any_value_is_a_column_of_missing_values(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", id=["a"], title=pa.nulls(1), text=pa.nulls(1))
    assert Table(path, CORPUS).read().to_pydict() == {"id": ["a"], "title": [""], "text": [""]}
    with pytest.raises(RetrievoError, match="column 'id' is empty in row 1"):
        Table(write(tmp_path / "d.parquet", id=pa.nulls(1), text=["x"]), CORPUS).read()


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([["x", None], None, [None]]), [["x"], None, []]),
        (pa.array([[], None, [None]], pa.list_(pa.null())), [[], None, []]),
        (pa.nulls(3), [None, None, None]),
    ],
)
def test_an_answer_that_is_missing_is_none(tmp_path: Path, column: pa.Array, found: list) -> None:
    path = write(tmp_path / "a.parquet", query_id=["a", "b", "c"], answers=column)
    assert Table(path, ANSWERS).read()["answers"].to_pylist() == found


def test_a_column_that_is_there_twice_is_refused_only_where_it_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["x"], ["y"]], names=["id", "text", "text"]), tmp_path / "c.parquet")
    with pytest.raises(RetrievoError, match="has two columns 'text'; expected one, for the corpus; rename one of them"):
        Table(tmp_path / "c.parquet", CORPUS)
    pq.write_table(pa.table([["a"], ["x"], [1], [2]], names=["id", "text", "more", "more"]), tmp_path / "d.parquet")
    assert Table(tmp_path / "d.parquet", CORPUS).read().to_pydict() == {"id": ["a"], "text": ["x"]}


def test_grades_may_be_whole_numbers_written_as_floats(tmp_path: Path) -> None:
    columns = {"query_id": ["q", "q"], "doc_id": ["a", "b"]}
    path = write(tmp_path / "q.parquet", **columns, relevance=[1.0, 0.0])
    assert Qrels.read(path).table["relevance"].to_pylist() == [1, 0]
    for more in ({"relevance": [1.5, 0.0]}, {"score": [1.0, 0.0]}):  # the second may be a run
        with pytest.raises(RetrievoError, match="expected int32"):
            Qrels.read(write(tmp_path / "r.parquet", **columns, **more))


@pytest.mark.parametrize(
    "text",
    ["q 0 a 1.0\nq 0 b 0.0\n", "q\ta\t1.0\nq\tb\t0\n", "query-id\tcorpus-id\tscore\nq\ta\t1.0\nq\tb\t0.0\n"],
)
def test_the_same_in_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.txt").write_text(text)
    assert Qrels.read(tmp_path / "q.txt").table["relevance"].to_pylist() == [1, 0]
    (tmp_path / "q.txt").write_text(text.replace("1.0", "0.5"))
    with pytest.raises(RetrievoError, match=r"relevance is '0\.5'; expected a whole number"):
        Qrels.read(tmp_path / "q.txt")


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    qrels = write(tmp_path / "q.pq", query_id=["q"], doc_id=["a"], relevance=[1])
    run = write(tmp_path / "r.dat", query_id=["q"], doc_id=["a"], score=[1.0], rank=[1])
    assert Qrels.read(qrels).table.num_rows == Run.open(run).table.num_rows == 1
    assert Run.open(write(tmp_path / "r.pq", **Run.open(run).table.to_pydict())).name == "r"


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=["a"], text=["x"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RetrievoError, match=r"corpus.parquet: is not a readable Parquet file; expected the corpus"):
        Table(path, CORPUS)


def test_a_foreign_format_is_told_how_to_be_imported(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(RetrievoError, match="import it first: retrievo import jsonl"):
        Table(tmp_path / "corpus.jsonl", CORPUS)


def test_duplicate_ids_are_named_with_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=["a", "b", "a"], text=["x", "y", "z"])
    with pytest.raises(RetrievoError, match=r"id 'a' occurs twice \(rows 1 and 3\)"):
        _ = Corpus(path).id_map
    with pytest.raises(RetrievoError, match="query id 'a' occurs twice"):
        Queries(path)


def test_the_id_map_finds_rows_and_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=["b", "a", "ü"], title=["B", "A", "U"], text=["x", "y", "x"])
    corpus = Corpus(path)
    assert corpus.id_map.rows(["ü", "nope", "b", "ü"]).tolist() == [2, -1, 0, 2]
    assert corpus.id_map.rows([]).tolist() == []
    assert corpus.find(["a", "nope", "a"]) == {"a": ("a", "A", "y")}
    hashes = corpus.identities.text
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_document_is_that_of_the_first_corpus_that_has_it(tmp_path: Path) -> None:
    first = write(tmp_path / "first.parquet", id=["a", "b"], text=["a of the first", "b of the first"])
    second = write(tmp_path / "second.parquet", id=["c", "b"], text=["c of the second", "b of the second"])
    found = first_found(map(Corpus, (first, second)), ["c", "b", "nope", "b"])
    assert {name: document.text for name, document in found.items()} == {"b": "b of the first", "c": "c of the second"}


def test_a_written_table_reads_back_whatever_the_batches(tmp_path: Path) -> None:
    ids = [str(number) for number in range(3 * ROWS_PER_GROUP + 5)]
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    files = []
    for step in (1_000, 7_777, len(ids)):
        files.append(tmp_path / f"{step}.parquet")
        with TableWriter(files[-1], schema) as writer:
            for start in range(0, len(ids), step):
                part = ids[start : start + step]
                writer.write({"id": part, "text": part})
            record = writer.close()
        assert record["bytes"] == files[-1].stat().st_size
    assert len({file.read_bytes() for file in files}) == 1, "the bytes depend on the rows, not on the batches"
    table = Table(files[0], CORPUS)
    assert table.read().column("id").to_pylist() == ids
    assert [row["id"] for row in RowCache(table, ("id",)).rows([0, 8_192, 24_580, 5])] == ["0", "8192", "24580", "5"]


def test_long_texts_make_smaller_row_groups(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with TableWriter(tmp_path / "long.parquet", schema) as writer:
        writer.write({"id": [str(n) for n in range(40)], "text": ["x" * (1 << 20)] * 40})
        writer.close()
    groups = pq.ParquetFile(tmp_path / "long.parquet").metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [15, 15, 10]


def test_work_that_ends_in_an_error_says_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)

    def work() -> None:
        with TableWriter(tmp_path / "out.parquet", QRELS.arrow) as writer:
            writer.write({"query_id": ["q"], "doc_id": ["d"], "relevance": [1]})
            raise RetrievoError("power", "cut")

    with pytest.raises(RetrievoError):
        work()
    gc.collect()
    assert heard == []


def test_random_access_holds_few_bytes_and_decodes_each_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(number) for number in range(400)]
    foreign = pa.table({"id": ids, "text": ["x" * 1_000] * 400})
    pq.write_table(foreign, tmp_path / "corpus.parquet", row_group_size=100)
    decoded: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **given: decoded.append(group) or read(self, group, **given),
    )
    for kept, groups in ((250_000, 2), (50_000, 1)):
        cache = RowCache(Table(tmp_path / "corpus.parquet", CORPUS), ("id", "text"), kept=kept)
        decoded.clear()
        wanted = [399, 0, 250, 399, 1, 150]
        assert [row["id"] for row in cache.rows(wanted)] == [str(row) for row in wanted]
        assert decoded == [0, 1, 2, 3]
        cache.rows([300])
        assert decoded == [0, 1, 2, 3]
        assert len(cache._cache) == groups


@pytest.mark.parametrize("repetitive", [(), ("id",)])
def test_what_was_read_of_a_file_leaves_memory(tmp_path: Path, repetitive: tuple[str, ...]) -> None:
    texts = [row.tobytes().hex() for row in np.random.default_rng(0).integers(0, 256, (8_000, 500), dtype=np.uint8)]
    ids = [str(number) for number in range(8_000)]
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "corpus.parquet", row_group_size=500)
    table, before = Table(tmp_path / "corpus.parquet", CORPUS, repetitive=repetitive), pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in table.batches(rows=500)]
    assert max(held) < (tmp_path / "corpus.parquet").stat().st_size / 2


def test_a_table_of_more_files_than_a_process_may_open_is_read(tmp_path: Path) -> None:
    for number in range(200):
        write(tmp_path / "parts" / f"{number:03d}.parquet", id=[str(number)], text=["x"])
    read = (
        "import resource, sys, pathlib\n"
        "from retrievo.data.tables import CORPUS, RowCache, Table\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "table = Table(pathlib.Path(sys.argv[1]), CORPUS)\n"
        "rows = [row for batch in table.batches(['id']) for row in batch.column('id').to_pylist()]\n"
        "assert rows == [str(number) for number in range(200)]\n"
        "assert [row['id'] for row in RowCache(table, ('id',)).rows(range(200))] == rows\n"
    )
    subprocess.run([sys.executable, "-c", read, str(tmp_path / "parts")], check=True)


def test_a_file_that_can_not_be_opened_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "corpus.parquet", id=["a"], text=["x"])
    table = Table(path, CORPUS)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Failed to open local file")

    monkeypatch.setattr(pq, "read_metadata", full)
    with pytest.raises(RetrievoError, match=r"corpus.parquet: can't be opened: Too many open files"):
        Table(path, CORPUS)
    monkeypatch.setattr(pq, "ParquetFile", full)
    with pytest.raises(RetrievoError, match=r"corpus.parquet: can't be opened: Too many open files"):
        table.read()


def test_a_file_that_another_one_replaced_is_not_read_as_the_one_that_was_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.parquet", id=["a"], text=["x"])
    table = Table(path, CORPUS)
    write(tmp_path / "other.parquet", id=["b"], text=["y"]).replace(path)
    with pytest.raises(RetrievoError, match="was changed while it was read"):
        table.read()


@pytest.mark.slow
def test_a_row_of_a_row_group_beyond_2_gib_is_found(tmp_path: Path) -> None:
    texts = ["x" * (1 << 20)] * 2_100
    path = write(tmp_path / "corpus.parquet", id=pa.array(range(2_100)), text=pa.array([*texts[1:], "y"]))
    assert pq.read_metadata(path).num_row_groups == 1
    assert RowCache(Table(path, CORPUS), ("id", "text")).rows([2_099]) == [{"id": "2099", "text": "y"}]
