"""Tevatron's JSON Lines: queries with positive and negative passages, and the corpus."""

from __future__ import annotations

from dataclasses import replace

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.examples import Example, Passage, write_examples
from retrievo.data.importers.input_files import ImportSource, Member, Part, split_of
from retrievo.data.importers.json_lines import (
    Record,
    first_record,
    need,
    need_list,
    not_an_object,
    read_columns,
    read_records,
    with_unit,
)

_SOURCE = "tevatron"
_EXPECTED = "records with query_id, query, positive_passages, negative_passages; or with docid, title, text"


def find(source: ImportSource) -> list[Part]:
    """Corpus files and query files, distinguished by their first record.

    Raises: RetrievoError where there are none.
    """
    members = source.members if source.is_file else source.named("*.jsonl", "*.json")
    parts = [part for member in members if (part := _part(member)) is not None]
    if not parts:
        raise source.lacks("Tevatron", _EXPECTED)
    return sorted(parts, key=lambda part: part.noun != "corpus")


def _part(member: Member) -> Part | None:
    part = with_unit(Part(member, "corpus"))
    record = first_record(part)
    if "docid" in record:
        return part
    return replace(part, noun="queries", name=split_of(member.name)) if "query_id" in record else None


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Copies the rows of each file; without a corpus file, the passages of the queries become the documents."""
    has_corpus = any(part.noun == "corpus" for part in parts)
    for part in store.each(parts):
        if part.noun == "corpus":
            for lines, (ids, texts, titles) in read_columns(part, ["docid", "text"], ["title"]):
                store.documents(lines, ids, titles, texts)
        else:
            given = ("answers" in first_record(part), has_corpus)
            for records in read_records(part):
                examples = [_example(record, line, part.place(line), *given) for line, record in records]
                write_examples(examples, part, store, documents=not has_corpus)


def _example(record: Record, line: int, where: str, has_answers: bool, has_corpus: bool) -> Example:
    def passages(key: str, source: str = "") -> list[Passage]:
        return [_passage(found, key, source, where, has_corpus) for found in need_list(record, key, where)]

    return Example(
        line,
        need(record, "query_id", where),
        need(record, "query", where),
        need_list(record, "answers", where) if has_answers else None,
        passages("positive_passages"),
        passages("negative_passages", _SOURCE),
    )


def _passage(found: object, key: str, source: str, where: str, has_corpus: bool) -> Passage:
    """Parses a passage: an object with id and text, or only an id if there is a corpus file."""
    if has_corpus and isinstance(found, (str, int)) and not isinstance(found, bool):
        return Passage(found, None, None, source)
    if not isinstance(found, dict):
        raise not_an_object(where, key, found)
    return Passage(need(found, "docid", where), found.get("title"), need(found, "text", where), source)
