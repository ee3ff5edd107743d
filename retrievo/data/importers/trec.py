"""TREC collections: SGML documents, topics and judgements, told apart by their content."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.judgements import copy_judgements, is_judgements
from retrievo.data.importers.records import batches
from retrievo.data.importers.separated import read_tsv
from retrievo.data.importers.source import LONGEST, Member, Part, Source, split_of
from retrievo.support.errors import RetrievoError

_LOOKED_AT = 20  # lines that tell what a file is
_TITLES = "TITLE|HEADLINE|HEAD|TTL|HL|TI"
_TEXTS = "TEXT|LP|LEADPARA"  # the Wall Street Journal has its first paragraph in <LP>
_LABELS = {  # field of a topic: its tag, and the word that may stand before its text
    "title": ("title", "Topic:"),
    "description": ("desc", "Description:"),
    "narrative": ("narr", "Narrative:"),
}


class _Element(NamedTuple):
    """What stands between two tags, with the line of the first."""

    line: int
    text: str


def find(source: Source) -> list[Part]:
    """Documents, topics and judgements; other files are left.

    Raises: RetrievoError where there are none.
    """
    parts = [Part(member, noun, split_of(member.name)) for member in source.members if (noun := _noun(member))]
    if not parts:
        expected = "<DOC> documents, <top> topics, or 4-column judgements"
        raise RetrievoError(source.path, "holds no TREC files", expected, "check the path and --encoding")
    nouns = ["corpus", "topics", "queries", "qrels"]
    return sorted(parts, key=lambda part: nouns.index(part.noun))


def _noun(member: Member) -> str:
    lines = member.glance(_LOOKED_AT)
    start = " ".join(lines)
    if re.search(r"<DOC>", start, re.IGNORECASE):
        return "corpus"
    if re.search(r"<top>", start, re.IGNORECASE):
        return "topics"
    if is_judgements(lines):
        return "qrels"
    tabbed = lines and all(line.count("\t") == 1 for line in lines)
    return "queries" if tabbed and (member.source.is_file or re.search(r"topic|quer", member.name)) else ""


def read(parts: list[Part], store: DatasetWriter, *, topic_field: str) -> None:
    """Copies documents, the chosen field of the topics, and judgements."""
    for part in store.each(parts):
        if part.noun == "corpus":
            _read_documents(part.member, store)
        elif part.noun == "topics":
            _read_topics(part.member, store, *_LABELS[topic_field])
        elif part.noun == "queries":
            for lines, (ids, texts) in read_tsv(part.member, 2):
                store.queries(lines, ids, texts)
        else:
            copy_judgements(part, store)


def _elements(member: Member, tag: str) -> Iterator[_Element]:
    """The contents of `<tag>` ... `</tag>`, one at a time.

    Raises: RetrievoError where one is not closed.
    """
    opened, closed = re.compile(rf"<{tag}>", re.IGNORECASE), re.compile(rf"</{tag}>", re.IGNORECASE)
    kept: list[str] = []
    start, size = 0, 0
    for line, text in member.lines():
        at = 0
        while found := (closed if start else opened).search(text, at):
            if start:
                yield _Element(start, "\n".join([*kept, text[at : found.start()]]))
                start = 0
            else:
                start, size, kept = line, 0, []
            at = found.end()
        if start:
            kept.append(text[at:])
            size += len(kept[-1])
            if size > LONGEST:
                break
    if start:
        raise member.error(start, f"<{tag}> is not closed", f"</{tag}> before the end of the file")


def _read_documents(member: Member, store: DatasetWriter) -> None:
    for batch in batches(_elements(member, "DOC"), lambda element: len(element.text)):
        ids = [_document_id(member, element) for element in batch]
        titles = [_between(_TITLES, element.text) for element in batch]
        store.documents([element.line for element in batch], ids, titles, [_body(element.text) for element in batch])


def _document_id(member: Member, element: _Element) -> str:
    match = re.search(r"<DOCNO>\s*(\S+?)\s*</DOCNO>", element.text, re.IGNORECASE)
    if match is None:
        raise member.error(element.line, "a document has no <DOCNO>", "<DOCNO> id </DOCNO>", "mend the file")
    return match[1]


def _between(tags: str, text: str) -> str:
    """What stands in these elements, without markup; empty where there are none."""
    found = re.finditer(rf"<({tags})>(.*?)</\1>", text, re.IGNORECASE | re.DOTALL)
    return _plain(" ".join(match[2] for match in found))


def _body(text: str) -> str:
    """The text elements, or where a document has none all but its header and title."""
    if re.search(rf"<({_TEXTS})>", text, re.IGNORECASE):
        return _between(_TEXTS, text)
    hidden = rf"<(DOCNO|DOCID|DOCHDR|SCRIPT|STYLE|{_TITLES})\b[^>]*>.*?</\1>"
    return _plain(re.sub(hidden, " ", text, flags=re.IGNORECASE | re.DOTALL))


def _plain(text: str) -> str:
    """Without tags and comments, entities resolved, white space single."""
    bare = re.sub(r"<!--.*?-->|</?[A-Za-z][^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


def _read_topics(member: Member, store: DatasetWriter, tag: str, label: str) -> None:
    for batch in batches(_elements(member, "top"), lambda element: len(element.text)):
        lines = [element.line for element in batch]
        ids = [_topic_number(member, element) for element in batch]
        store.queries(lines, ids, [_field(element.text, tag, label) for element in batch])


def _field(topic: str, tag: str, label: str) -> str:
    """The text after a tag that is often not closed, up to the next tag."""
    match = re.search(rf"<{tag}>(.*?)(?=<[a-z/]|\Z)", topic, re.IGNORECASE | re.DOTALL)
    return " ".join(match[1].split()).removeprefix(label).strip() if match else ""


def _topic_number(member: Member, element: _Element) -> str:
    """`Number: 051` is 51: TREC's judgements have no leading zeros."""
    number = _field(element.text, "num", "Number:")
    if not number:
        raise member.error(element.line, "a topic has no <num>", "<num> Number: 301", "mend the file")
    return str(int(number)) if number.isdigit() else number
