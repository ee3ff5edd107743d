"""Runs and qrels are read by content, written by suffix, and name the line that does not fit."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import retrievo.data.run as run_module
from retrievo.data.qrels import Qrels
from retrievo.data.run import Run, RunWriter
from retrievo.data.run_files import check_run_suffix, run_name
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError, UsageError

MANIFEST = Manifest("run", 1, "retrievo", "", {}, {})
SCORES = np.array([2.5, 1.1000001, -3e-9, 0.0], np.float32)


def write(path: Path, query_ids: list[str], doc_ids: list[str]) -> Run:
    writer = RunWriter(path, format_of=path)
    writer.write(
        pa.array(query_ids), pa.array(doc_ids), SCORES[: len(doc_ids)], np.arange(1, len(doc_ids) + 1, dtype=np.int32)
    )
    writer.close(MANIFEST)
    return Run.open(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.trec"])
@pytest.mark.parametrize("ids", [["q2", "q2", "q1", "q3"], ["q1", "q2", "q3", "q1"]])
def test_tables_of_whole_queries_hold_every_row_once(
    tmp_path: Path, name: str, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_ROWS_PER_READ", 1)
    monkeypatch.setattr(run_module, "_ROWS_PER_BLOCK", 2)
    run = write(tmp_path / name, ids, ["d1", "d2", "d3", "d4"])
    parts = [part["query_id"].to_pylist() for part in run.whole_queries()]
    assert [id for part in parts for id in part] == ids
    assert sum(len(set(part)) for part in parts) == len(set(ids))
    if ids == sorted(ids, reverse=True) and name == "a.parquet":
        assert len(parts) > 1  # memory is that of a block


@pytest.mark.parametrize("name", ["a.parquet", "a.trec", "a.txt.gz", "a.run"])
def test_scores_survive_every_format_bit_for_bit(tmp_path: Path, name: str) -> None:
    run = write(tmp_path / name, ["q1", "q1", "q1", "q2"], ["d1", "dü", "d3", "d1"])
    assert run.name == "a"
    assert run.table.to_pydict() == {
        "query_id": ["q1", "q1", "q1", "q2"],
        "doc_id": ["d1", "dü", "d3", "d1"],
        "score": SCORES.tolist(),
        "rank": [1, 2, 3, 4],
    }


def test_a_parquet_run_carries_its_manifest(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["q1"], ["d1"])
    assert Manifest.read(tmp_path / "a.parquet", "run").created_by == "retrievo"


def test_ms_marco_keeps_ranks_for_scores(tmp_path: Path) -> None:
    run = write(tmp_path / "a.tsv", ["q1", "q1"], ["d1", "d2"])
    assert (tmp_path / "a.tsv").read_text() == "q1\td1\t1\nq1\td2\t2\n"
    assert run.table["score"].to_pylist() == [-1.0, -2.0]


def test_ids_with_spaces_are_refused_by_text_and_kept_by_parquet(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match=r"doc_id 'd 1' has white space.*write .parquet instead"):
        write(tmp_path / "a.trec", ["q1"], ["d 1"])
    assert write(tmp_path / "a.parquet", ["q1"], ["d 1"]).table["doc_id"].to_pylist() == ["d 1"]


@pytest.mark.parametrize("name", ["a.trec", "a.tsv"])
@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2003", "\u0085", "\x1c"])
def test_only_ascii_white_space_parts_fields(tmp_path: Path, name: str, blank: str) -> None:
    ids = [f"d{blank}1", "d2", f"d3{blank}"]
    assert write(tmp_path / name, ["q1"] * 3, ids).table["doc_id"].to_pylist() == ids
    (tmp_path / name).write_text("\n" + (tmp_path / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert Run.open(tmp_path / name).table["doc_id"].to_pylist() == ids  # line by line too


def test_ids_with_a_vertical_tab_are_refused_by_text(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="has white space"):
        write(tmp_path / "a.trec", ["q1"], ["d\v1"])


@pytest.mark.parametrize(
    "text", ["q1 Q0 d1 1 2.5 x\n", "q1\tQ0\td1\t1\t2.5\tx\r\n", "q1  Q0 \t d1 1   2.5 x\n\n", "\ufeffq1 Q0 d1 1 2.5 x"]
)
def test_trec_lines_with_any_white_space_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.trec").write_text(text, newline="")
    assert Run.open(tmp_path / "a.trec").table.to_pydict() == {
        "query_id": ["q1"],
        "doc_id": ["d1"],
        "score": [2.5],
        "rank": [1],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 d1 1 2.5 x\nq1 Q0 d2 2 high x\n", "a.trec line 2: score is 'high'; expected a number"),
        ("q1 Q0 d1 1 2.5 x\nq1 Q0 d2\n", "a.trec line 2: found 3 fields; expected query_id Q0 doc_id rank score tag"),
        ("q1 d1\n", "its first line has 2 fields"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.trec").write_text(text)
    with pytest.raises(RetrievoError, match=message):
        Run.open(tmp_path / "a.trec").table  # noqa: B018


@pytest.mark.parametrize("broken", ["cut", "bent"])
def test_a_packed_file_that_is_damaged_further_on_is_named(tmp_path: Path, broken: str) -> None:
    text = "".join(f"q1 Q0 {hash((1, number))} 1 2.5 x\n" for number in range(20_000)).encode()
    packed = gzip.compress(text, compresslevel=1)
    half = len(packed) // 2
    (tmp_path / "a.trec.gz").write_bytes(packed[:half] + (b"\xff" * 64 + packed[half + 64 :]) * (broken == "bent"))
    with pytest.raises(RetrievoError, match=r"a.trec.gz: is damaged or cut short .*; download or pack it again"):
        Run.open(tmp_path / "a.trec.gz").table  # noqa: B018


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.trec").write_text("")
    assert Run.open(tmp_path / "a.trec").table.num_rows == 0


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 d1 2\nq1 0 d2 0\n",
        "q1\t0\td1\t2\nq1\t0\td2\t0\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n",
        "\n \nquery-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n",
        "q1\td1\t2\nq1\td2\t0\n",
        "q1 0 d1 2\nq1\t0  d2 0\n",
    ],
)
def test_qrels_are_read_by_their_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "qrels.txt").write_text(text)
    expected = {"query_id": ["q1", "q1"], "doc_id": ["d1", "d2"], "relevance": [2, 0]}
    assert Qrels.read(tmp_path / "qrels.txt").table.to_pydict() == expected


@pytest.mark.parametrize("grade", [2**31, -(2**31) - 1])
def test_a_grade_beyond_32_bits_is_named(tmp_path: Path, grade: int) -> None:
    (tmp_path / "qrels.txt").write_text(f"q1 0 d1 1\nq1 0 d2 {grade}\n")
    with pytest.raises(RetrievoError, match=f"qrels.txt line 2: relevance is {grade}; expected 32 bits"):
        Qrels.read(tmp_path / "qrels.txt")
    (tmp_path / "a.tsv").write_text(f"q1\td1\t{grade}\n")
    with pytest.raises(RetrievoError, match=f"a.tsv line 1: rank is {grade}; expected 32 bits"):
        Run.open(tmp_path / "a.tsv").table  # noqa: B018


def test_a_pair_judged_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\nq1 0 d1 1\n")
    with pytest.raises(RetrievoError, match="query 'q1' and document 'd1' are judged 2 times"):
        Qrels.read(tmp_path / "qrels.txt")


def test_a_run_is_called_after_its_file() -> None:
    assert [run_name(Path(name)) for name in ("x/bm25.trec.gz", "a.b.parquet", "plain")] == ["bm25", "a.b", "plain"]


@pytest.mark.parametrize("name", ["a", "a.csv", "a.parquet.gz"])
def test_an_output_that_names_no_format_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected a file that ends in .parquet .trec"):
        check_run_suffix(Path(name))


@pytest.mark.parametrize("name", ["a.parquet", "a.trec", "a.tsv.gz"])
def test_a_run_is_on_the_disk_before_it_is_published(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    write(tmp_path / name, ["q1"], ["d1"])
    assert flushed == [(tmp_path / name).stat().st_ino]
