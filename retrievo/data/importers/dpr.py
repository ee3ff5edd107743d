"""DPR's files: the passages TSV, questions with contexts in JSON, and question-answer CSV."""

from __future__ import annotations

import ast
import re
from typing import Any

from retrievo.data.foreign import are_pairs
from retrievo.data.ids import text_id
from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.delimited import first_row, in_columns, read_csv
from retrievo.data.importers.examples import Example, Passage, write_examples
from retrievo.data.importers.input_files import ImportSource, Member, Part, split_of
from retrievo.data.importers.json_lines import (
    Record,
    first_record,
    need,
    need_list,
    need_objects,
    read_records,
    whole,
    with_unit,
)
from retrievo.support.errors import RetrievoError

_HEADER = ["id", "text", "title"]
_NEGATIVES = {"hard_negative_ctxs": "dpr-hard", "negative_ctxs": "dpr-other"}  # key -> source
_EXPECTED = "a TSV with the header id, text, title; JSON with positive_ctxs; or question<tab>['answer']"


def find(source: ImportSource) -> list[Part]:
    """Passages, questions with contexts, and questions with answers, distinguished by content.

    Raises: RetrievoError where there are none.
    """
    members = source.members if source.is_file else source.named("*.tsv", "*.json", "*.jsonl", "*.csv")
    parts = [part for member in members if (part := _part(member)) is not None]
    if not parts:
        raise source.lacks("DPR", _EXPECTED)
    nouns = ["corpus", "examples", "questions"]
    return sorted(parts, key=lambda part: nouns.index(part.noun))


def _part(member: Member) -> Part | None:
    if re.search(r"\.jsonl?$", member.name):
        part = with_unit(Part(member, "examples", split_of(member.name)))
        record = first_record(part)
        return part if {"question", "positive_ctxs"} & record.keys() and not are_pairs(record) else None
    row = first_row(member, "\t")
    if row == _HEADER:
        return Part(member, "corpus")
    return Part(member, "questions") if len(row) == 2 and row[1].startswith("[") else None


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Copies the rows of each file; without a passages file, the contexts become the documents."""
    has_corpus = any(part.noun == "corpus" for part in parts)
    for part in store.each(parts):
        if part.noun == "corpus":
            for lines, (ids, texts, titles) in in_columns(part.member, read_csv(part.member, "\t"), 3, skip=1):
                store.documents(lines, ids, titles, texts)
        elif part.noun == "questions":
            _read_questions(part.member, store)
        else:
            _read_examples(part, store, has_corpus)


def _query_id(member: Member, number: int) -> str:
    """An id for a question, since DPR's have none: the name of its file and its number from 0."""
    return f"{member.stem.removesuffix('.qa')}-{number}"


def _read_questions(member: Member, store: DatasetWriter) -> None:
    number = 0
    for lines, (questions, lists) in in_columns(member, read_csv(member, "\t"), 2):
        ids = [_query_id(member, number + row) for row in range(len(lines))]
        answers = [_literal(member, line, text) for line, text in zip(lines, lists, strict=True)]
        store.queries(lines, ids, questions, answers)
        number += len(lines)


def _literal(member: Member, line: int, text: str) -> list[str]:
    """Parses answers as DPR writes them: a Python list literal."""
    try:
        answers = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        answers = None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise member.error(line, f"its answers are {text[:60]}", "a list such as ['Paris', 'the city of Paris']")
    parsed: list[str] = whole(answers, member)
    return parsed


def _read_examples(part: Part, store: DatasetWriter, has_corpus: bool) -> None:
    number = 0
    for records in read_records(part):
        examples = []
        for place, record in records:
            examples.append(_example(record, place, _query_id(part.member, number), part, has_corpus))
            number += 1
        write_examples(examples, part, store, documents=not has_corpus)


def _example(record: Record, place: int, query_id: str, part: Part, has_corpus: bool) -> Example:
    where = part.place(place)

    def passages(key: str, source: str = "") -> list[Passage]:
        return [_passage(found, source, where, has_corpus) for found in need_objects(record, key, where)]

    negatives = [passage for key, source in _NEGATIVES.items() for passage in passages(key, source)]
    need(record, "positive_ctxs", where)
    answers = need_list(record, "answers", where)
    return Example(place, query_id, need(record, "question", where), answers, passages("positive_ctxs"), negatives)


def _passage(found: Record, source: str, where: str, has_corpus: bool) -> Passage:
    title, text = found.get("title"), need(found, "text", where)
    id = next((found[key] for key in ("passage_id", "psg_id") if found.get(key) is not None), None)
    if id is None:
        if has_corpus:
            fix = "import the questions without the passages file: the contexts become the corpus"
            raise RetrievoError(where, "a context has no passage_id", "the id of a passage", fix)
        id = text_id(f"{title}\0{text}")
    return Passage(id, title, text, source, _score(found.get("score")))


def _score(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
