"""Whitespace- or tab-separated text tables (TREC, MS MARCO, BEIR): fast where regular, with line numbers where not."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from retrievo.support.errors import RetrievoError


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def first_line(path: Path) -> list[str]:
    """The fields of the first line that is not empty; none for an empty file.

    Raises: RetrievoError where the file is not UTF-8 text.
    """
    try:
        with open_text(path) as file:
            for line in file:
                if line.strip():
                    return split_fields(line.decode("utf-8-sig"))
    except FileNotFoundError:
        raise RetrievoError(path, "no such file", None, "check the path") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise RetrievoError(path, f"can't be read as text: {error}", "UTF-8 text", None) from None
    return []


def split_fields(line: str) -> list[str]:
    """Fields between single tabs where there are at least two and none is empty, else between runs of white space."""
    tabbed = [field.strip() for field in line.rstrip("\r\n").split("\t")]
    return tabbed if len(tabbed) > 2 and all(tabbed) else line.split()


def read_fields(path: Path, types: Sequence[tuple[str, pa.DataType]], expected: str, *, skip: int = 0) -> pa.Table:
    """A table of `types` from a text file whose lines have that many fields; `skip` header lines are passed over.

    expected: how a line should look, for the error message.
    Raises: RetrievoError naming the line that does not fit.
    """
    line = _first_raw_line(path)
    delimiter = "\t" if "\t" in line else " "
    try:
        with open_text(path) as file:
            table = _read_regular(file, types, delimiter, skip)
        if not any(_has_empty(column) for column in table.columns):  # a separator doubled here may be missing there
            return table
    except (pa.ArrowInvalid, pa.ArrowException, UnicodeDecodeError):
        pass
    return _read_line_by_line(path, types, expected, skip)


def _has_empty(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) and bool(pc.any(pc.equal(pc.binary_length(column), 0)).as_py())


def _first_raw_line(path: Path) -> str:
    with open_text(path) as file:
        return file.readline().decode("utf-8", errors="replace")


def _read_regular(file: IO[bytes], types: Sequence[tuple[str, pa.DataType]], delimiter: str, skip: int) -> pa.Table:
    """One separator, never doubled: what nearly every tool writes; 7 M rows take about a second."""
    names = [name for name, _ in types]
    return csv.read_csv(
        file,
        read_options=csv.ReadOptions(column_names=names, skip_rows=skip, block_size=4 << 20),
        parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False, newlines_in_values=False),
        convert_options=csv.ConvertOptions(column_types=dict(types), null_values=[], strings_can_be_null=False),
    )


def _read_line_by_line(path: Path, types: Sequence[tuple[str, pa.DataType]], expected: str, skip: int) -> pa.Table:
    """Mixed white space is fine here; what does not fit is named with its line."""
    columns: list[list] = [[] for _ in types]
    with open_text(path) as file:
        for number, raw in enumerate(file, start=1):
            if number <= skip or not raw.strip():
                continue
            fields = _decode(raw, path, number)
            if len(fields) != len(types):
                fields = raw.decode("utf-8").split()  # tabs and spaces mixed
            if len(fields) != len(types):
                raise RetrievoError(f"{path} line {number}", f"found {len(fields)} fields", expected, "mend that line")
            for column, (name, kind), value in zip(columns, types, fields, strict=True):
                column.append(_value(value, kind, name, f"{path} line {number}"))
    return pa.table({name: pa.array(column, kind) for column, (name, kind) in zip(columns, types, strict=True)})


def _decode(raw: bytes, path: Path, number: int) -> list[str]:
    try:
        return split_fields(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RetrievoError(f"{path} line {number}", "is not UTF-8", "UTF-8 text", "convert the file") from None


def _value(text: str, kind: pa.DataType, name: str, where: str) -> object:
    if pa.types.is_string(kind):
        return text
    try:
        return int(text) if pa.types.is_integer(kind) else float(text)
    except ValueError:
        wanted = "a whole number" if pa.types.is_integer(kind) else "a number"
        raise RetrievoError(where, f"{name} is '{text}'", wanted, "mend that line") from None
