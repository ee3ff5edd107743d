"""Embeddings folders: what is written is what is read, nothing is copied, and nothing unfit gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrievo.data.shards import shard_bounds
from retrievo.retrieval.embeddings import Embeddings, Vectors, import_vectors, shard_name, write_shard
from retrievo.support.artifact import MANIFEST
from retrievo.support.errors import RetrievoError, UsageError

Import = Callable[..., Embeddings]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Imports an array with ids `d0`, `d1`, ... or the given text of the ids file."""

    def make(array: np.ndarray, ids: str | bytes | None = None, **options: Any) -> Embeddings:
        np.save(tmp_path / "X.npy", array)
        text = "".join(f"d{row}\n" for row in range(len(array))) if ids is None else ids
        (tmp_path / "IDS.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        import_vectors(tmp_path / "X.npy", tmp_path / "IDS.txt", tmp_path / "out", **options)
        return Embeddings(tmp_path / "out")

    return make


def random_array(rows: int, dim: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(rows * dim).standard_normal((rows, dim)).astype(dtype)


@given(st.integers(0, 40_000_000))
def test_shards_cover_all_rows_and_depend_on_their_number_alone(rows: int) -> None:
    bounds = shard_bounds(rows)
    assert [first for first, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == rows
    size = bounds[0][1] if len(bounds) > 1 else 4_096
    assert 4_096 <= size <= 131_072
    assert all(end - first == size for first, end in bounds[:-1])
    assert len(bounds) <= 64 or size == 131_072


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_and_ids_come_back_as_they_were(imported: Import, dtype: str) -> None:
    array = random_array(9_000, 5, dtype)
    found = imported(array, role="query", similarity="cosine")
    assert (found.rows, found.dim, found.dtype, found.role, found.similarity) == (9_000, 5, dtype, "query", "cosine")
    assert found.ids().to_pylist() == [f"d{row}" for row in range(9_000)]
    assert np.concatenate([block for _, block in found.blocks(1_000)]).tobytes() == array.tobytes()
    assert sorted(path.name for path in found.path.iterdir()) == [MANIFEST, *map(shard_name, range(3))]


def test_blocks_are_views_that_never_cross_a_shard(imported: Import) -> None:
    found = imported(random_array(9_000, 3))
    blocks = list(found.blocks(3_000))
    assert [(first, len(block)) for first, block in blocks] == [
        (0, 3_000),
        (3_000, 1_096),
        (4_096, 3_000),
        (7_096, 1_096),
        (8_192, 808),
    ]
    assert not any(block.flags.owndata or block.flags.writeable for _, block in blocks)


@given(st.data())
def test_blocks_of_a_range_are_that_range(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    array = np.arange(sum(sizes), dtype=np.float32)[:, None]
    vectors = Vectors(np.split(array, np.cumsum(sizes)[:-1]), [pa.array(["x"] * size, pa.string()) for size in sizes])
    first = data.draw(st.integers(0, len(array)))
    end = data.draw(st.integers(first, len(array)))
    blocks = list(vectors.blocks(data.draw(st.integers(1, 6)), first, end))
    assert [row for start, block in blocks for row in range(start, start + len(block))] == list(range(first, end))
    assert all(block[0, 0] == start for start, block in blocks)


def test_take_returns_any_rows_in_any_order(imported: Import) -> None:
    array = random_array(9_000, 4)
    rows = np.random.default_rng(0).integers(0, 9_000, 500)
    found = imported(array)
    assert (found.take(rows) == array[rows]).all()
    assert found.ids(rows).to_pylist() == [f"d{row}" for row in rows]
    assert found.take(rows[:0]).shape == (0, 4)


def test_a_folder_may_hold_no_vectors(imported: Import) -> None:
    found = imported(np.empty((0, 7), np.float16))
    assert (found.rows, found.dim, list(found.blocks(10)), len(found.ids())) == (0, 7, [], 0)


def test_float64_is_stored_as_float32_with_a_note(imported: Import, said: Callable[[], str]) -> None:
    array = np.random.default_rng(0).standard_normal((10, 3))
    found = imported(array)
    assert (found.take(np.arange(10)) == array.astype(np.float32)).all()
    assert "float64 is stored as float32" in said()


@pytest.mark.parametrize(
    "change", [np.asfortranarray, lambda array: array.astype(">f4")], ids=["fortran", "big-endian"]
)
def test_memory_order_and_byte_order_do_not_matter(imported: Import, change: Callable) -> None:
    array = random_array(50, 6)
    found = imported(change(array))
    assert (found.take(np.arange(50)) == array).all()


def test_ids_may_end_with_crlf_and_hold_any_unicode(imported: Import) -> None:
    found = imported(random_array(3, 2), "\ufeffeins\r\nzwei drei\r\n\u2028x")
    assert found.ids().to_pylist() == ["eins", "zwei drei", "\u2028x"]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    array, ids = random_array(300, 8, "float16"), pa.array([f"d{row}" for row in range(300)])
    first = write_shard(tmp_path / "a.arrow", ids, array)
    second = write_shard(tmp_path / "b.arrow", ids.slice(0), np.asfortranarray(array))
    assert first == second
    assert first["bytes"] == (tmp_path / "a.arrow").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "b.arrow"]


def test_a_finished_import_is_left_alone_and_another_one_refused(imported: Import) -> None:
    array = random_array(20, 2)
    path = imported(array).path
    before = (path / MANIFEST).stat().st_mtime_ns
    imported(array)
    assert (path / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(RetrievoError, match="similarity was"):
        imported(array, similarity="cosine")
    with pytest.raises(RetrievoError, match="its input 'vectors' has changed"):
        imported(array + 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_named(imported: Import, tmp_path: Path, value: float) -> None:
    array = random_array(5_000, 3)
    array[4_500, 1] = value
    with pytest.raises(RetrievoError, match=rf"X.npy row 4501 \(id 'd4500'\): the vector holds {value}"):
        imported(array)
    with pytest.raises(RetrievoError, match=rf"s.arrow row 501 \(id 'd500'\): the vector holds {value}"):
        write_shard(tmp_path / "s.arrow", pa.array([f"d{row}" for row in range(1_000)]), array[4_000:])
    assert not (tmp_path / "s.arrow").exists()


def test_a_float64_beyond_float32_is_not_finite(imported: Import) -> None:
    with pytest.raises(RetrievoError, match=r"row 2 .*inf"):
        imported(np.array([[1.0], [1e300]]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4, np.float32), r"shape \(4,\)"),
        (np.zeros((2, 2, 2), np.float32), "shape"),
        (np.zeros((4, 0), np.float32), r"shape \(4, 0\)"),
        (np.zeros((4, 2), np.int64), "holds int64; expected float16"),
        (np.zeros((4, 2), np.longdouble), "holds"),
        (np.array([[{}, None]]), "can't be read"),
    ],
    ids=["1-D", "3-D", "no dimensions", "integers", "longdouble", "pickled objects"],
)
def test_arrays_of_another_shape_or_type_are_refused(imported: Import, array: np.ndarray, message: str) -> None:
    with pytest.raises(RetrievoError, match=message):
        imported(array)


def test_files_that_are_no_array_are_refused(tmp_path: Path) -> None:
    (tmp_path / "IDS.txt").write_text("a\n")
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=np.zeros((1, 1)))
    for name, message in [
        ("text.npy", "can't be read"),
        ("empty.npy", "can't be read"),
        ("several.npz", "archive"),
    ]:
        with pytest.raises(RetrievoError, match=message):
            import_vectors(tmp_path / name, tmp_path / "IDS.txt", tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("a\nb\n", "has 2 lines; expected 3"),
        ("a\nb\nc\nd\n", "has 4 lines; expected 3"),
        ("a\nb\na\n", r"id 'a' occurs twice \(lines 1 and 3\)"),
        ("a\n\nc\n", "line 2: is empty"),
        (b"a\n\xff\nc\n", "line 2: is not UTF-8"),
    ],
)
def test_ids_that_do_not_fit_are_refused(imported: Import, ids: str | bytes, message: str) -> None:
    with pytest.raises(RetrievoError, match=message):
        imported(random_array(3, 2), ids)


def test_unknown_names_are_refused_with_a_suggestion(imported: Import) -> None:
    with pytest.raises(UsageError, match="--role: found 'queries'; did you mean 'query'"):
        imported(random_array(3, 2), role="queries")
    with pytest.raises(UsageError, match="--similarity: found 'cos'"):
        imported(random_array(3, 2), similarity="cos")


def test_a_folder_that_does_not_agree_with_its_manifest_is_refused(imported: Import) -> None:
    path = imported(random_array(9_000, 4)).path
    told = json.loads((path / MANIFEST).read_text())

    def claim(**stats: object) -> None:
        (path / MANIFEST).write_text(json.dumps({**told, "stats": {**told["stats"], **stats}}))

    claims: list[tuple[dict[str, Any], str]] = [
        ({"dim": 5}, r"shard-00000.arrow: holds .*\[4\].*; expected .*\[5\]"),
        ({"dtype": "float16"}, "expected .*halffloat"),
        ({"rows": 8_999}, "hold 9,000 rows; expected 8,999"),
        ({"shards": 4}, "shard-00003.arrow: is missing"),
    ]
    for stats, message in claims:
        claim(**stats)
        with pytest.raises(RetrievoError, match=message):
            Embeddings(path)
    claim()
    (path / shard_name(1)).write_bytes((path / shard_name(1)).read_bytes()[:-20])
    with pytest.raises(RetrievoError, match=r"shard-00001.arrow: is no readable Arrow file"):
        Embeddings(path)


def test_other_artifacts_are_no_embeddings(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="no such file or folder"):
        Embeddings(tmp_path / "absent")
    with pytest.raises(RetrievoError, match="not an artifact"):
        Embeddings(tmp_path)
