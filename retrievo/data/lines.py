"""Whitespace- or tab-separated text tables (TREC, MS MARCO, BEIR): fast where regular, with line numbers where not."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import re
import string
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from retrievo.support.errors import RetrievoError

_BLOCK = 16 << 20  # bytes of text in memory at a time
_NEWLINE = ord("\n")
_WORD = re.compile(r"\S+", re.ASCII)  # trec_eval splits at ASCII white space only; ids may hold Unicode white space


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Opens a text file as bytes, decompressed where its name ends in .gz.

    Raises: RetrievoError where it is absent, damaged or cut short.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except FileNotFoundError:
        raise RetrievoError(path, "no such file", None, "check the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RetrievoError(path, f"is damaged or cut short ({error})", None, "download or pack it again") from None


def first_line(path: Path) -> list[str]:
    """The fields of the first line that is not empty; none for an empty file.

    Raises: RetrievoError where the file is not UTF-8 text.
    """
    try:
        with open_text(path) as file:
            return next((split_fields(line.decode("utf-8-sig")) for line in file if line.strip()), [])
    except UnicodeDecodeError as error:
        raise RetrievoError(path, f"can't be read as text: {error}", "UTF-8 text", None) from None


def split_fields(line: str) -> list[str]:
    """Splits at tabs where that gives at least three fields and none is empty, else as `split_words` does."""
    tabbed = [field.strip(string.whitespace) for field in line.split("\t")]
    return tabbed if len(tabbed) > 2 and all(tabbed) else split_words(line)


def split_words(line: str) -> list[str]:
    """Splits at runs of ASCII white space."""
    return _WORD.findall(line)


def whole_number(text: str) -> int:
    """Parses a whole number, which may be written as 1.0.

    Raises: ValueError where the text is not a number, or not a whole one.
    """
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise ValueError(text) from None
        return int(value)


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_fields(path: Path, types: Sequence[tuple[str, pa.DataType]], expected: str, *, skip: int = 0) -> pa.Table:
    """Reads a text file with one field per entry of `types` on each line, as a table.

    expected: what a line should look like, for the error message.
    skip:     number of header lines to skip; empty lines do not count.
    Raises: RetrievoError naming the line that does not fit.
    """
    return pa.concat_tables(read_field_blocks(path, types, expected, skip=skip))


def read_field_blocks(
    path: Path,
    types: Sequence[tuple[str, pa.DataType]],
    expected: str,
    *,
    names: Sequence[str] | None = None,
    skip: int = 0,
) -> Iterator[pa.Table]:
    """Yields the table of `read_fields` in blocks of 16 MiB of text; an empty file yields one empty table.

    names: the columns to return; the others must be present but are dropped.
    Raises: RetrievoError naming the line that does not fit.
    """
    names = [name for name, _ in types] if names is None else names
    done, delimiter = 0, ""
    with open_text(path) as file:
        for block in _whole_lines(file):
            delimiter = delimiter or ("\t" if b"\t" in block.split(b"\n", 1)[0] else " ")
            table = _read_regular(block, types, names, delimiter, skip) if _is_regular(block) else None
            if table is None:
                table = _read_line_by_line(block, path, done, types, expected, skip).select(names)
            yield table
            done += int(np.count_nonzero(np.frombuffer(block, np.uint8) == _NEWLINE))
            skip = 0
    if not delimiter:
        yield pa.schema(types).empty_table().select(names)


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while read := file.read(_BLOCK):
        end = read.rfind(b"\n") + 1
        if end:
            yield rest + read[:end]
            rest = read[end:]
        else:
            rest += read
    if rest:
        yield rest


def _is_regular(block: bytes) -> bool:
    """Whether fields have single separators and lines no outer blanks, as nearly every tool writes them (4 GB/s)."""
    blank = np.frombuffer(block, np.uint8) <= ord(" ")
    if blank[0]:
        return False
    doubled = blank[1:] & blank[:-1]
    if doubled.any():
        doubled &= np.frombuffer(block, np.uint8)[:-1] != ord("\r")
    return not doubled.any()


def _read_regular(
    block: bytes, types: Sequence[tuple[str, pa.DataType]], names: Sequence[str], delimiter: str, skip: int
) -> pa.Table | None:
    """Parses a regular block with Arrow (7 M rows in about a second); returns None where a line does not fit."""
    try:
        return csv.read_csv(
            pa.py_buffer(block),
            read_options=csv.ReadOptions(column_names=[name for name, _ in types], skip_rows=skip, block_size=4 << 20),
            parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False, newlines_in_values=False),
            convert_options=csv.ConvertOptions(
                column_types=dict(types), include_columns=names, null_values=[], strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowException):
        return None


def _read_line_by_line(
    block: bytes, path: Path, done: int, types: Sequence[tuple[str, pa.DataType]], expected: str, skip: int
) -> pa.Table:
    """Parses a block in Python, with mixed white space, naming the line that does not fit.

    done: number of lines in the file before this block.
    """
    columns: list[list[object]] = [[] for _ in types]
    filled = ((number, raw) for number, raw in enumerate(block.split(b"\n"), start=done + 1) if raw.strip())
    for number, raw in itertools.islice(filled, skip, None):
        where = f"{path} line {number}"
        fields = _decode(raw, where)
        if len(fields) != len(types):
            fields = split_words(raw.decode("utf-8-sig"))  # tabs and spaces mixed
        if len(fields) != len(types):
            raise RetrievoError(where, f"found {len(fields)} fields", expected, "mend that line")
        for column, (name, kind), value in zip(columns, types, fields, strict=True):
            column.append(_value(value, kind, name, where))
    return pa.table({name: pa.array(column, kind) for column, (name, kind) in zip(columns, types, strict=True)})


def _decode(raw: bytes, where: str) -> list[str]:
    try:
        return split_fields(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RetrievoError(where, "is not UTF-8", "UTF-8 text", "convert the file") from None


def _value(text: str, kind: pa.DataType, name: str, where: str) -> object:
    if pa.types.is_string(kind):
        return text
    whole = pa.types.is_integer(kind)
    try:
        value = whole_number(text) if whole else float(text)
    except ValueError:
        wanted = "a whole number" if whole else "a number"
        raise RetrievoError(where, f"{name} is '{text}'", wanted, "mend that line") from None
    if whole and not -(2**31) <= value < 2**31:
        raise RetrievoError(where, f"{name} is {value}", "32 bits", "mend that line")
    return value
