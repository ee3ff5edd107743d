"""Columns of strings beyond the 2 GiB that Arrow's own string type can count."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import retrievo
from retrievo.data.columns import as_type, rows_of, table_of, taken
from retrievo.data.corpus import Corpus
from retrievo.data.tables import RUN
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.fusion import fuse

_CHUNKS = 33
_LARGE = 1 << 26  # 33 times this is more than 2 GiB


@pytest.fixture(scope="module")
def large_column() -> pa.ChunkedArray:
    """Over 2 GiB of ids that take 64 MiB: two short ones and a long one, again and again."""
    chunk = pa.array(["a", "x" * _LARGE, "b"])
    return pa.chunked_array([chunk] * _CHUNKS)


def test_rows_of_a_column_beyond_2_gib_can_be_taken(large_column: pa.ChunkedArray) -> None:
    with pytest.raises(pa.ArrowInvalid, match="overflow"):  # what this module is for
        large_column.take(pa.array([0, 5]))
    assert taken(large_column, np.array([98, 0, 5, 0, 96])).to_pylist() == ["b", "a", "b", "a", "a"]


def test_rows_of_a_table_with_a_column_beyond_2_gib_can_be_taken(large_column: pa.ChunkedArray) -> None:
    table = pa.table({"id": large_column, "number": pa.array(range(99))})
    assert rows_of(table, np.array([95, 3])).to_pydict() == {"id": ["b", "a"], "number": [95, 3]}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_what_is_taken_is_what_stands_in_these_rows(kind: pa.DataType) -> None:
    values = [f"id-{number}" for number in range(100)]
    cuts = [0, 0, 7, 40, 40, 99, 100, 100]
    chunks = [pa.array(values[first:end], kind) for first, end in pairwise(cuts)]
    chunks[2] = pa.array(values[:50], kind).slice(7, 33)  # of a larger array
    column, rows = pa.chunked_array(chunks, kind), np.random.default_rng(0).integers(0, 100, 300)
    for wanted in (rows, np.sort(rows), rows[:0], np.arange(100)):
        assert taken(column, wanted).to_pylist() == [values[row] for row in wanted]
    assert taken(pa.chunked_array([], kind), rows[:0]).to_pylist() == []


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_is_not_there_is_refused(row: int) -> None:
    with pytest.raises(IndexError):
        taken(pa.chunked_array([["a", "b"], ["c"]]), np.array([row]))


def test_large_strings_fit_a_schema_of_strings() -> None:
    schema = pa.schema([("id", pa.string()), ("score", pa.float32())])
    found = table_of([pa.array(["a", "b"], pa.large_string()), np.array([1, 2])], schema)
    assert found.schema == schema
    assert found.to_pydict() == {"id": ["a", "b"], "score": [1, 2]}


@pytest.mark.parametrize("most", [1, 3, 4, 100])
def test_strings_are_cut_where_they_would_not_fit(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrievo.data.columns.MOST_BYTES", most)
    values = ["aa", "b", "", "cc", "d", "eee"]
    for column in (pa.array(values, pa.large_string()), pa.array(["zz", *values], pa.large_string()).slice(1)):
        found = as_type(column, pa.string())
        assert found.to_pylist() == values
        assert found.type == pa.string()
        assert all(len(chunk) == 1 or sum(map(len, chunk.to_pylist())) <= most for chunk in found.chunks)


@pytest.mark.slow
def test_strings_beyond_2_gib_become_chunks(large_column: pa.ChunkedArray) -> None:
    every = taken(large_column, np.arange(len(large_column)))
    assert every.nbytes > 1 << 31
    found = as_type(every.slice(1), pa.string())
    assert found.num_chunks == 2
    assert found.slice(95).to_pylist()[-1] == "b"


def test_rows_of_embeddings_with_ids_beyond_2_gib_have_ids(large_column: pa.ChunkedArray) -> None:
    vectors = Vectors([np.zeros((3, 1), np.float32)] * _CHUNKS, large_column.chunks)
    assert vectors.ids(np.array([98, 3])).to_pylist() == ["b", "a"]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"]}), tmp_path / "corpus.parquet")
    return Corpus(tmp_path / "corpus.parquet")


def test_an_id_map_beyond_2_gib_tells_the_ids_of_rows(corpus: Corpus, large_column: pa.ChunkedArray) -> None:
    corpus.id_map.ids._table = pa.table({"id": large_column})
    assert corpus.id_map.ids[np.array([98, 3])] == ["b", "a"]


@pytest.mark.slow
def test_an_id_map_finds_the_rows_of_ids_beyond_2_gib(corpus: Corpus, large_column: pa.ChunkedArray) -> None:
    assert corpus.id_map.rows(large_column).tolist() == [0, -1, 1] * _CHUNKS


def test_a_fused_run_may_have_more_ids_than_one_array_of_strings_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    run = pa.table({"query_id": ["q"] * 3, "doc_id": ["d1", "d2", "d3"], "score": pa.array([3, 2, 1], pa.float32())})
    whole = fuse("rrf", [run, run])
    monkeypatch.setattr("retrievo.data.columns.MOST_BYTES", 4)
    found = fuse("rrf", [run, run])
    assert found["doc_id"].num_chunks > 1
    assert found.schema == RUN.arrow
    assert found.equals(whole)


# where chunks are joined that are no strings, or those of one row group or one shard
_JOINED = {"data/ordering.py": 1, "data/tables.py": 1, "data/importers/negatives.py": 2}
_JOINED |= {
    "commands/build_index.py": 1,
    "commands/encode.py": 1,
    "mining/candidates.py": 1,
    "retrieval/embeddings.py": 1,
    "training/engine/ance.py": 1,
}


def test_nothing_else_joins_the_chunks_of_strings() -> None:
    """`combine_chunks` of strings fails beyond 2 GiB: `flat_strings` and `taken` do not."""
    home = Path(retrievo.__file__).parent
    sources = {path.relative_to(home).as_posix(): path.read_text(encoding="utf-8") for path in home.rglob("*.py")}
    found = Counter({name: source.count("combine_chunks()") for name, source in sources.items()})
    assert +found == Counter(_JOINED)
    assert not [name for name, source in sources.items() if ".column().take(" in source]
