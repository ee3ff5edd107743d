"""Judgments in text files, whose format is detected by the number of columns."""

from __future__ import annotations

from collections.abc import Iterator

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import Member, Part
from retrievo.data.importers.json_lines import batches, transposed
from retrievo.data.lines import is_number, split_fields, split_words, whole_number
from retrievo.data.tables import QRELS

_HEADER_WORDS = {name for column in QRELS.columns for name in (column.name, *column.aliases)} | {"query", "document"}
_EXPECTED = "query<tab>0<tab>document<tab>grade (TREC), or query<tab>document<tab>grade (BEIR)"


def copy_judgments(part: Part, store: DatasetWriter) -> None:
    """Copies a file of judgments: 4 columns are TREC's, 3 are BEIR's (header optional), 2 mean grade 1.

    Raises: RetrievoError naming the line that does not fit.
    """
    for batch in batches(_rows(part.member), lambda row: 0):
        lines, query_ids, doc_ids, relevance = transposed(batch, 4)
        store.qrels(lines, part.name, query_ids, doc_ids, relevance)


def _rows(member: Member) -> Iterator[tuple[int, str, str, int]]:
    """Yields line number, query id, document id and grade."""
    width = 0
    for line, text in member.lines():
        fields = split_fields(text)
        if not fields:
            continue
        if not width:
            width = _width(member, line, fields)
            if _is_header(fields):
                continue
        if len(fields) != width:
            fields = split_words(text)  # some lines use tabs, others spaces
        if len(fields) != width:
            raise member.error(line, f"has {len(fields)} columns", f"{width}, as in the first line")
        grade = 1 if width == 2 else _grade(member, line, fields[-1])
        yield line, fields[0], fields[2 if width == 4 else 1], grade


def _is_header(fields: list[str]) -> bool:
    return not is_number(fields[-1]) and not _HEADER_WORDS.isdisjoint(field.lower() for field in fields)


def _width(member: Member, line: int, fields: list[str]) -> int:
    if len(fields) not in (2, 3, 4):
        raise member.error(line, f"has {len(fields)} columns", _EXPECTED, "check the format")
    return len(fields)


def _grade(member: Member, line: int, text: str) -> int:
    try:
        grade = whole_number(text)
    except ValueError:
        raise member.error(line, f"its grade is '{text}'", f"a whole number: {_EXPECTED}") from None
    if not -(2**31) <= grade < 2**31:
        raise member.error(line, f"its grade is {grade}", "32 bits")
    return grade


def is_judgments(lines: list[str]) -> bool:
    """Whether the first lines of a file look like TREC judgments."""
    rows = [split_words(line) for line in lines]
    return bool(rows) and all(len(row) == 4 and is_number(row[3]) for row in rows)
