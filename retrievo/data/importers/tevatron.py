"""Tevatron's JSON Lines: queries with positive and negative passages, and the corpus."""

from __future__ import annotations

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.examples import Example, Passage, write_examples
from retrievo.data.importers.records import Record, first_record, is_array, need, need_list, read_jsonl, read_records
from retrievo.data.importers.source import Member, Part, Source, split_of
from retrievo.support.errors import RetrievoError

_SOURCE = "tevatron"
_EXPECTED = "records with query_id, query, positive_passages, negative_passages; or with docid, title, text"


def find(source: Source) -> list[Part]:
    """Corpus files and query files, told apart by their first record.

    Raises: RetrievoError where there are none.
    """
    members = source.members if source.is_file else source.named("*.jsonl", "*.json")
    parts = [part for member in members if (part := _part(member)) is not None]
    if not parts:
        raise RetrievoError(source.path, "holds no Tevatron files", _EXPECTED, "check the files")
    return sorted(parts, key=lambda part: part.noun != "corpus")


def _part(member: Member) -> Part | None:
    if is_array(member):
        return None
    record = first_record(member)
    if "docid" in record:
        return Part(member, "corpus")
    return Part(member, "queries", split_of(member.name)) if "query_id" in record else None


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Copies the rows of each file; without a corpus file the documents are the passages beside the queries."""
    has_corpus = any(part.noun == "corpus" for part in parts)
    for part in store.each(parts):
        if part.noun == "corpus":
            for lines, (ids, texts, titles) in read_jsonl(part.member, ["docid", "text"], ["title"]):
                store.documents(lines, ids, titles, texts)
        else:
            has_answers = "answers" in first_record(part.member)
            for records in read_records(part):
                examples = [_example(record, line, part.place(line), has_answers) for line, record in records]
                write_examples(examples, part, store, documents=not has_corpus)


def _example(record: Record, line: int, where: str, has_answers: bool) -> Example:
    def passages(key: str, source: str = "") -> list[Passage]:
        found = need_list(record, key, where)
        return [Passage(need(p, "docid", where), p.get("title"), need(p, "text", where), source) for p in found]

    return Example(
        line,
        need(record, "query_id", where),
        need(record, "query", where),
        need_list(record, "answers", where) if has_answers else None,
        passages("positive_passages"),
        passages("negative_passages", _SOURCE),
    )
