"""SMART collections (Cranfield, CACM, CISI, MED): `.I .T .A .B .W` records and their judgments.

There are two traps. In `cran.qry` the `.I` numbers (1, 2, 4, 8, ...) are not the query ids of `cranqrel`, which
numbers the queries from 1 to 225. And `cranqrel` uses Cleverdon's codes, in which 1 is best: 1 (a complete answer) to 4
(of minimum interest) become the grades 4 to 1, and 5 (no interest) becomes 0. The code -1, once for every query, marks
the paper that prompted the question: grade 0 in the split `test`, 4 in `test_with_source`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import ImportSource, Member, Part
from retrievo.data.importers.json_lines import batches
from retrievo.support import console
from retrievo.support.errors import RetrievoError

_SOURCE, _WORST = -1, 5  # codes of cranqrel
_EXPECTED = "query document code (Cranfield), query document 0 0 (CACM, CISI), or query 0 document grade (MED)"


class _Record(NamedTuple):
    """One `.I` record: the line that it starts on, its number, and its fields by letter."""

    line: int
    id: str
    fields: dict[str, list[str]]

    def text(self, letter: str) -> str:
        """The text of a field with white space collapsed; empty where the field is missing."""
        return " ".join(" ".join(self.fields.get(letter, [])).split())


class _Judged(NamedTuple):
    """One judgment as the file has it."""

    line: int
    query_id: str
    doc_id: str
    code: int
    is_cranfield: bool


def find(source: ImportSource) -> list[Part]:
    """Documents, queries (`qry` or `quer` in the name) and judgments (`rel` in the name).

    Raises: RetrievoError where there are none.
    """
    parts = [Part(member, noun) for member in source.members if (noun := _noun(member))]
    if not parts:
        raise RetrievoError(source.path, "holds no SMART files", "records that start with .I", "check the path")
    nouns = ["corpus", "queries", "qrels"]
    return sorted(parts, key=lambda part: nouns.index(part.noun))


def _noun(member: Member) -> str:
    first = next(iter(member.glance(1)), "")
    if re.match(r"\.I\s+\d", first):
        return "queries" if re.search(r"qry|quer", member.name) else "corpus"
    return "qrels" if "rel" in member.name and re.fullmatch(r"[\d\s.-]+", first) else ""


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Copies documents and queries, and converts the codes of judgments to grades."""
    judged = {part: list(_judgments(part.member)) for part in parts if part.noun == "qrels"}
    wanted = {row.query_id for rows in judged.values() for row in rows}
    for part in store.each(parts):
        if part.noun == "corpus":
            for batch in batches(_records(part.member), lambda record: len(str(record.fields))):
                titles, texts = [record.text("T") for record in batch], [record.text("W") for record in batch]
                texts = [text.removeprefix(title).strip() for title, text in zip(titles, texts, strict=True)]
                store.documents([record.line for record in batch], [record.id for record in batch], titles, texts)
        elif part.noun == "queries":
            _read_queries(part.member, wanted, store)
        else:
            _write_judgments(judged[part], store)


def _records(member: Member) -> Iterator[_Record]:
    """Yields records in file order; a repeated field continues the first one.

    Raises: RetrievoError for a line before the first record.
    """
    record, field = None, None
    for line, text in member.lines():
        if match := re.match(r"\.I\s+(\d+)\s*$", text):
            if record is not None:
                yield record
            record, field = _Record(line, str(int(match[1])), {}), None
        elif record is not None and (match := re.match(r"\.([A-Z])\s*$", text)):
            field = record.fields.setdefault(match[1], [])
        elif field is not None:
            field.append(text)
        elif text.strip():
            raise member.error(line, f"'{text[:40]}' stands in no field", ".I, a number, and then .T, .W, ...")
    if record is not None:
        yield record


def _read_queries(member: Member, wanted: set[str], store: DatasetWriter) -> None:
    """Writes queries; ids are their `.I` numbers, or their positions if only those fit the judgments."""
    records = list(_records(member))
    ids = [record.id for record in records]
    ordinals = [str(number) for number in range(1, len(records) + 1)]
    if not wanted.issubset(ids) and wanted.issubset(ordinals):
        ids = ordinals
        console.note(f"{member}: the judgments count the queries from 1, so their ids are 1 to {len(ids)}, not .I")
    texts = [record.text("W") or record.text("T") for record in records]
    store.queries([record.line for record in records], ids, texts)


def _judgments(member: Member) -> Iterator[_Judged]:
    for line, text in member.lines():
        row = text.split()
        if not row:
            continue
        try:
            numbers = [int(float(value)) for value in row]
        except ValueError:
            raise member.error(line, f"'{text.strip()[:40]}' is not numbers", _EXPECTED) from None
        yield _judged(member, line, numbers)


def _judged(member: Member, line: int, row: list[int]) -> _Judged:
    if len(row) == 3 and (row[2] == _SOURCE or 1 <= row[2] <= _WORST):
        return _Judged(line, str(row[0]), str(row[1]), row[2], True)
    if len(row) == 4 and row[1] == 0:
        return _Judged(line, str(row[0]), str(row[2]), row[3], False)
    if len(row) == 4 and row[2] == row[3] == 0:
        return _Judged(line, str(row[0]), str(row[1]), 1, False)
    raise member.error(line, f"found {len(row)} numbers: {' '.join(map(str, row))}", _EXPECTED)


def _write_judgments(rows: list[_Judged], store: DatasetWriter) -> None:
    if any(row.is_cranfield for row in rows):
        console.note("cranqrel: codes 1 (best) to 4 are grades 4 to 1; -1, a question's source, is 0 in test")
        _write(rows, "test", 0, store)
        _write(rows, "test_with_source", _WORST - 1, store)
    else:
        _write(rows, "test", 0, store)


def _write(rows: list[_Judged], split: str, source_grade: int, store: DatasetWriter) -> None:
    grades = [row.code if not row.is_cranfield else _grade(row.code, source_grade) for row in rows]
    queries, documents = [row.query_id for row in rows], [row.doc_id for row in rows]
    store.qrels([row.line for row in rows], split, queries, documents, grades)


def _grade(code: int, source_grade: int) -> int:
    return source_grade if code == _SOURCE else _WORST - code
