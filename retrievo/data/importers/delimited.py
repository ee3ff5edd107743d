"""Reads TSV and CSV as columns: quickly where a block is regular, line by line where an error must name a line."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from retrievo.data.importers.input_files import LONGEST, Block, Member
from retrievo.data.importers.json_lines import Batch, batches, transposed
from retrievo.support.errors import RetrievoError

_DELIMITERS = (",", ";", "\t", "|")
_LOOKED_AT = 50  # first rows, from which the delimiter is detected


def read_tsv(member: Member, width: int, *, skip: int = 0) -> Iterator[Batch]:
    """Yields columns of tab-separated lines, in which quotes are ordinary text; skips the first `skip` lines.

    Raises: RetrievoError naming the line with another number of columns.
    """
    for block in member.blocks():
        if block.line <= skip:
            yield _tab_lines(block, width, skip)
        else:
            yield _tab_block(block, width) or _tab_lines(block, width, skip)


def _tab_block(block: Block, width: int) -> Batch | None:
    if b"\r" in block.data:  # Arrow would end a line there
        return None
    names = [str(number) for number in range(width)]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(block.data),
            pa.csv.ReadOptions(use_threads=False, block_size=len(block.data) + 1, column_names=names),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != block.rows or _has_empty(table.column(0)):  # blank lines
        return None
    return Batch(range(block.line, block.line + block.rows), table.columns)


def _has_empty(column: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.equal(pc.binary_length(column), 0)).as_py())


def _tab_lines(block: Block, width: int, skip: int) -> Batch:
    lines, rows = [], []
    for line, text in block.lines():
        if line <= skip or not text.strip():
            continue
        row = text.split("\t")
        if len(row) != width:
            raise wrong_width(block.member, line, len(row), width)
        lines.append(line)
        rows.append(row)
    return Batch(lines, transposed(rows, width))


def wrong_width(member: Member, line: int, found: int, expected: int) -> RetrievoError:
    """The error for a line with too few or too many columns."""
    return member.error(line, f"has {found} column{'s' * (found != 1)}", f"{expected}, as in the first line")


def read_csv(member: Member, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields rows of quoted values, whose fields may contain line breaks, each with the line that it starts on.

    Raises: RetrievoError naming the line with a quote that is not closed.
    """
    csv.field_size_limit(LONGEST)  # the default, 128 KiB, is too short for a long document
    reader = csv.reader((f"{text}\n" for _, text in member.lines()), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise member.error(start, f"is not quoted as CSV ({error})", 'fields as "with ""quotes"" inside"') from None
        if row is None:
            return
        if row:
            yield start, row
        start = reader.line_num + 1


def first_row(member: Member, delimiter: str = ",") -> list[str]:
    """The first row, without moving the progress bar; empty for an empty file."""
    with member.source.paused():
        return next(read_csv(member, delimiter), (0, []))[1]


def delimiter_of(member: Member) -> str:
    """Detects the delimiter of a file: a comma if it fits the first rows, else the one that gives the most columns.

    A delimiter fits if every row has the same number of columns, and more than one.
    """
    widths = {sign: _width(member, sign) for sign in _DELIMITERS}
    widest = max(_DELIMITERS, key=lambda sign: widths[sign])
    return widest if widths[","] < 2 <= widths[widest] else ","


def _width(member: Member, delimiter: str) -> int:
    """The number of columns that all of the first rows have; 0 where they differ."""
    with member.source.paused():
        try:
            widths = {len(row) for _, row in itertools.islice(read_csv(member, delimiter), _LOOKED_AT)}
        except RetrievoError:  # reading with the right delimiter reports what is wrong
            return 0
    return widths.pop() if len(widths) == 1 else 0


def in_columns(member: Member, rows: Iterable[tuple[int, list[str]]], width: int, *, skip: int = 0) -> Iterator[Batch]:
    """Turns rows of `read_csv` into batches of columns; skips the first `skip` rows.

    Raises: RetrievoError naming the row with another number of columns.
    """
    for batch in batches(itertools.islice(rows, skip, None), lambda row: sum(map(len, row[1]))):
        for line, row in batch:
            if len(row) != width:
                raise wrong_width(member, line, len(row), width)
        yield Batch([line for line, _ in batch], transposed([row for _, row in batch], width))
