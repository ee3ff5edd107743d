"""Text tables read fast where they are regular and line by line where not: the same rows, or the line that is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrievo.data import lines
from retrievo.data.lines import first_line, is_number, read_field_blocks, read_fields, split_fields, whole_number
from retrievo.support.errors import RetrievoError

TYPES = [("query", pa.string()), ("doc", pa.string()), ("grade", pa.int32()), ("score", pa.float32())]
ROWS = st.lists(
    st.tuples(
        st.text("abé#-", min_size=1, max_size=5),
        st.text("xyz0", min_size=1, max_size=5),
        st.integers(-(2**31), 2**31 - 1),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=12,
)
REUSED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@REUSED
@given(rows=ROWS, separator=st.sampled_from([" ", "\t", "   ", " \t"]), ends=st.sampled_from(["\n", "\r\n"]))
def test_any_separators_and_line_ends_give_the_same_rows(rows: list, separator: str, ends: str, tmp_path: Path) -> None:
    text = "".join(separator.join(map(str, row)) + ends for row in rows)
    table = read_fields(written(tmp_path / "table.txt", text), TYPES, "four fields")
    assert [tuple(row.values()) for row in table.to_pylist()] == rows


@REUSED
@given(rows=ROWS, size=st.integers(1, 60))
def test_blocks_of_any_size_are_the_same_table(rows: list, size: int, tmp_path: Path) -> None:
    path = written(tmp_path / "table.txt", "".join(" ".join(map(str, row)) + "\n" for row in rows))
    whole = read_fields(path, TYPES, "four fields")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", size)
        assert pa.concat_tables(read_field_blocks(path, TYPES, "four fields")) == whole


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q d 1", "found 3 fields; expected four fields"),
        ("q d one 0.5", "grade is 'one'; expected a whole number"),
        ("q d 1.5 0.5", "grade is '1.5'; expected a whole number"),
        ("q d 1 high", "score is 'high'; expected a number"),
        ("q d 2147483648 0.5", "grade is 2147483648; expected 32 bits"),
    ],
)
def test_the_line_that_does_not_fit_is_named(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", 30)
    path = written(tmp_path / "table.txt", "q d 1 0.5\n" * 9 + line + "\nq d 1 0.5\n")
    with pytest.raises(RetrievoError) as caught:
        read_fields(path, TYPES, "four fields")
    assert str(caught.value).startswith(f"{path} line 10: {said}")


def test_empty_lines_are_none_and_header_lines_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path / "table.txt", "\nquery doc grade score\n\nq d 1 0.5\n\n")
    (row,) = read_fields(path, TYPES, "four fields", skip=1).to_pylist()
    assert row == {"query": "q", "doc": "d", "grade": 1, "score": 0.5}


def test_an_empty_file_is_an_empty_table_of_the_wanted_columns(tmp_path: Path) -> None:
    (table,) = read_field_blocks(written(tmp_path / "table.txt", ""), TYPES, "four fields", names=["doc"])
    assert table == pa.schema(TYPES).empty_table().select(["doc"])
    assert first_line(tmp_path / "table.txt") == []


def test_a_gzip_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    packed = gzip.compress("".join(f"q{row} d 1 0.5\n" for row in range(1000)).encode())
    path = tmp_path / "table.txt.gz"
    path.write_bytes(packed)
    assert read_fields(path, TYPES, "four fields").num_rows == 1000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RetrievoError, match="is damaged or cut short"):
        read_fields(path, TYPES, "four fields")


def test_fields_between_tabs_keep_their_spaces_where_none_is_empty() -> None:
    assert split_fields("one two\tthree\tfour\n") == ["one two", "three", "four"]
    assert split_fields("one two\tthree\n") == ["one", "two", "three"]
    assert split_fields("one\t\tthree four") == ["one", "three", "four"]


def test_what_only_unicode_counts_as_white_space_is_part_of_an_id() -> None:
    assert split_fields("a\u00a0b\u2003c 0") == ["a\u00a0b\u2003c", "0"]


@given(st.integers(-(2**53), 2**53))
def test_whole_numbers_may_be_written_as_floats(number: int) -> None:
    assert whole_number(str(number)) == whole_number(f"{number}.0") == number


@pytest.mark.parametrize("text", ["1.5", "one", "nan", ""])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        whole_number(text)


def test_only_finite_numbers_are_numbers() -> None:
    assert [is_number(text) for text in ("1", "-2.5e3", "nan", "inf", "score", "")] == [True, True, *[False] * 4]
