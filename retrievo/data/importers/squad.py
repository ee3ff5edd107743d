"""SQuAD 1 and 2: paragraphs are documents, questions with their answers are queries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from retrievo.data.ids import hash_texts
from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import ImportSource, Part, split_of
from retrievo.data.importers.json_lines import Record, need, need_list, need_objects, read_records, transposed
from retrievo.data.importers.text_columns import json_kind
from retrievo.support.errors import RetrievoError


def find(source: ImportSource) -> list[Part]:
    """A file of any name, or the .json files of a folder; the split is taken from the name.

    Raises: RetrievoError where there are none.
    """
    members = source.members if source.is_file else source.named("*.json")
    if not members:
        raise RetrievoError(source.path, "holds no .json file", "files such as train-v1.1.json", "check the path")
    return [Part(member, "articles", split_of(member.name), unit="article") for member in members]


class _Question(NamedTuple):
    """A question with the id of its paragraph; `article` is the number of its article in the file."""

    article: int
    id: Any
    text: Any
    answers: list[str]
    doc_id: str


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Writes each paragraph once, its questions, and a judgment for each question that the paragraph answers."""
    paragraphs = _Paragraphs()
    for part in store.each(parts):
        for articles in read_records(part, "data"):
            documents, questions = [], []
            for number, article in articles:
                for title, text, asked in _paragraphs(article, part.place(number)):
                    id, is_new = paragraphs.admit(title, text)
                    if is_new:
                        documents.append((number, id, title, text))
                    questions += [_question(number, question, id, part) for question in asked]
            store.documents(*transposed(documents, 4))
            _write_questions(questions, part, store)


def _paragraphs(article: Record, place: str) -> Iterator[tuple[str, str, list[Record]]]:
    """Yields title, text and questions of each paragraph."""
    need(article, "paragraphs", place)
    for paragraph in need_objects(article, "paragraphs", place):
        text = need(paragraph, "context", place)
        if not isinstance(text, str):
            raise RetrievoError(place, "a 'context' is not text", "text", "mend the file")
        yield str(article.get("title") or ""), text, need_objects(paragraph, "qas", place)


def _question(number: int, question: Record, doc_id: str, part: Part) -> _Question:
    place = part.place(number)
    answers = [_answer(answer, place) for answer in need_list(question, "answers", place)]
    if question.get("is_impossible"):
        answers = []
    return _Question(number, need(question, "id", place), need(question, "question", place), _once(answers), doc_id)


def _answer(answer: object, place: str) -> str:
    """The text of an answer, which may be an object with its position in the paragraph or plain text."""
    text = need(answer, "text", place) if isinstance(answer, dict) else answer
    if not isinstance(text, str):
        raise RetrievoError(place, f"an answer is {json_kind(text)}", "text", "mend the file")
    return text


def _once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _write_questions(questions: list[_Question], part: Part, store: DatasetWriter) -> None:
    places, ids, texts, answers, _ = transposed(questions, 5)
    store.queries(places, ids, texts, answers)
    judged = [(asked.article, asked.id, asked.doc_id, 1) for asked in questions if asked.answers]
    places, ids, documents, grades = transposed(judged, 4)
    store.qrels(places, part.name, ids, documents, grades)
    if len(judged) < len(questions):
        store.found[part]["of them unanswerable (not judged)"] += len(questions) - len(judged)


class _Paragraphs:
    """Assigns ids to paragraphs: `title#number`, equal for equal text under one title; 150 bytes of memory each."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, int], str] = {}
        self._counts: Counter[str] = Counter()

    def admit(self, title: str, text: str) -> tuple[str, bool]:
        """Returns the id of a paragraph and whether it is new."""
        slug = re.sub(r"\s+", "_", title) or "untitled"
        key = (slug, int(hash_texts([text])[0]))
        is_new = key not in self._ids
        if is_new:
            self._ids[key] = f"{slug}#{self._counts[slug]}"
            self._counts[slug] += 1
        return self._ids[key], is_new
