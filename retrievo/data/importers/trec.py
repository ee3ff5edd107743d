"""TREC collections: SGML documents, topics and judgments, distinguished by content."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.delimited import read_tsv
from retrievo.data.importers.input_files import LONGEST, ImportSource, Member, Part, split_of
from retrievo.data.importers.json_lines import batches
from retrievo.data.importers.judgments import copy_judgments, is_judgments
from retrievo.data.lines import split_fields
from retrievo.support import console
from retrievo.support.errors import RetrievoError

_LOOKED_AT = 20  # first lines, from which the kind of a file is detected
_TITLES = "TITLE|HEADLINE|HEAD|TTL|HL|TI"
_TEXTS = "TEXT|LP|LEADPARA"  # the Wall Street Journal has its first paragraph in <LP>
_LABELS = {  # field of a topic: its tag, and the word that may stand before its text
    "title": ("title", "Topic:"),
    "description": ("desc", "Description:"),
    "narrative": ("narr", "Narrative:"),
}
_XML_TAGS = {  # field of a topic: its tags in XML, which tracks use since 2009; the first that occurs is read
    "title": ("query", "title"),
    "description": ("description", "desc", "question", "summary"),
    "narrative": ("narrative", "narr", "note"),
}
_XML_NUMBERS = ("number", "num", "id")  # names of the attribute or element with a topic's number


class _Element(NamedTuple):
    """The text between two tags, with the line and the attributes of the opening tag."""

    line: int
    text: str
    attributes: str


def find(source: ImportSource) -> list[Part]:
    """The files with documents, topics and judgments; other files are ignored.

    Raises: RetrievoError where there are none.
    """
    parts = [Part(member, noun, split_of(member.name)) for member in source.members if (noun := _noun(member))]
    if not parts:
        expected = "<DOC> documents, <top> or <topic> topics, or 4-column judgments"
        raise RetrievoError(source.path, "holds no TREC files", expected, "check the path and --encoding")
    nouns = ["corpus", "topics", "XML topics", "queries", "qrels"]
    return sorted(parts, key=lambda part: nouns.index(part.noun))


def _noun(member: Member) -> str:
    lines = member.glance(_LOOKED_AT)
    start = " ".join(lines)
    if re.search(r"<DOC>", start, re.IGNORECASE):
        return "corpus"
    if re.search(r"<top>", start, re.IGNORECASE):
        return "topics"
    if re.search(r"<topics?[\s>]", start, re.IGNORECASE):
        return "XML topics"
    if is_judgments(lines):
        return "qrels"
    tabbed = lines and all(line.count("\t") == 1 for line in lines)
    return "queries" if tabbed and (member.source.is_file or re.search(r"topic|quer", member.name)) else ""


def read(parts: list[Part], store: DatasetWriter, *, topic_field: str) -> None:
    """Copies documents, the chosen field of the topics, and judgments."""
    judged = _judged(parts)
    for part in store.each(parts):
        if part.noun == "corpus":
            _read_documents(part.member, store)
        elif part.noun == "topics":
            _write_topics(part.member, store, judged, _topics(part.member, *_LABELS[topic_field]))
        elif part.noun == "XML topics":
            _write_topics(part.member, store, judged, _xml_topics(part.member, topic_field))
        elif part.noun == "queries":
            for lines, (ids, texts) in read_tsv(part.member, 2):
                store.queries(lines, ids, texts)
        else:
            copy_judgments(part, store)


def _elements(member: Member, tag: str, lines: Iterable[tuple[int, str]] | None = None) -> Iterator[_Element]:
    """Yields the elements `<tag>` ... `</tag>` in the lines of a file.

    Raises: RetrievoError where an element is not closed.
    """
    opened, closed = re.compile(rf"<{tag}(\s[^>]*)?>", re.IGNORECASE), re.compile(rf"</{tag}>", re.IGNORECASE)
    kept: list[str] = []
    start, size, attributes = 0, 0, ""
    for line, text in member.lines() if lines is None else lines:
        at = 0
        while found := (closed if start else opened).search(text, at):
            if start:
                yield _Element(start, "\n".join([*kept, text[at : found.start()]]), attributes)
                start = 0
            else:
                start, size, kept, attributes = line, 0, [], found[1] or ""
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
    """The text of these elements, without markup; empty where there are none."""
    found = re.finditer(rf"<({tags})>(.*?)</\1>", text, re.IGNORECASE | re.DOTALL)
    return _plain(" ".join(match[2] for match in found))


def _body(text: str) -> str:
    """The text elements of a document; if it has none, everything except its header and title."""
    if re.search(rf"<({_TEXTS})>", text, re.IGNORECASE):
        return _between(_TEXTS, text)
    hidden = rf"<(DOCNO|DOCID|DOCHDR|SCRIPT|STYLE|{_TITLES})\b[^>]*>.*?</\1>"
    return _plain(re.sub(hidden, " ", text, flags=re.IGNORECASE | re.DOTALL))


def _plain(text: str) -> str:
    """Removes tags and comments, resolves entities and collapses white space."""
    text = _without_comments(text)
    last = text.rfind(">") + 1  # no tag ends after this: the pattern would scan to the end from each < there
    bare = re.sub(r"</?[A-Za-z][^>]*>", " ", text[:last]) + text[last:]
    return " ".join(html.unescape(bare).split())


def _without_comments(text: str) -> str:
    """Replaces each comment by a space and its line breaks; a comment that is not closed is text."""
    pieces, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        pieces.append(text[at:start] + "\n" * text.count("\n", start, end))
        at = end + 3
    return " ".join([*pieces, text[at:]])


def _judged(parts: list[Part]) -> set[str]:
    """The query ids in the judgments, if the import has topics."""
    if not any(part.noun.endswith("topics") for part in parts):
        return set()
    found: set[str] = set()
    for part in parts:
        if part.noun == "qrels":
            with part.member.source.paused():
                found.update(words[0] for _, text in part.member.lines() if (words := split_fields(text)))
    return found


def _write_topics(member: Member, store: DatasetWriter, judged: set[str], topics: list[tuple[int, str, str]]) -> None:
    """Adds the topics of a file (line, number and text of each) as queries.

    Raises: RetrievoError where there are none.
    """
    if not topics:
        raise RetrievoError(
            member, "holds no whole topic", "<top> ... </top> or <topic> ... </topic>", "check the file"
        )
    lines, numbers, texts = map(list, zip(*topics, strict=True))
    ids = _as_judged(numbers, judged)
    changed = [(number, id) for number, id in zip(numbers, ids, strict=True) if number != id]
    if changed:
        console.note(
            f"{member}: {len(changed):,} topics have their ids as in the judgments ({' is '.join(changed[0])})"
        )
    if not judged and (padded := [number for number in numbers if number.isdecimal() and number[0] == "0"]):
        console.warn(
            f"{member}: ids such as {padded[0]} are kept; import the judgments too, which may write them otherwise"
        )
    store.queries(lines, ids, texts)


def _as_judged(numbers: list[str], judged: set[str]) -> list[str]:
    """The ids of topics in the spelling of the judgments, since trec_eval compares ids as strings.

    A topic without judgments keeps its number, without leading zeros if those of other topics were dropped.
    """
    by_value = {int(id): id for id in judged if id.isdecimal()}
    known = [id if id in judged or not id.isdecimal() else by_value.get(int(id)) for id in numbers]
    shorter = any(id is not None and len(id) < len(number) for number, id in zip(numbers, known, strict=True))
    return [
        (str(int(number)) if shorter else number) if id is None else id
        for number, id in zip(numbers, known, strict=True)
    ]


def _topics(member: Member, tag: str, label: str) -> list[tuple[int, str, str]]:
    """The line, number and text of each SGML topic."""
    return [
        (element.line, _topic_number(member, element), _field(element.text, tag, label))
        for element in _elements(member, "top")
    ]


def _field(topic: str, tag: str, label: str) -> str:
    """The text from a tag, which is often not closed, to the next tag."""
    match = re.search(rf"<{tag}>(.*?)(?=<[a-z/]|\Z)", topic, re.IGNORECASE | re.DOTALL)
    return " ".join(match[1].split()).removeprefix(label).strip() if match else ""


def _topic_number(member: Member, element: _Element) -> str:
    """The number of an SGML topic, which follows `Number:`."""
    number = _field(element.text, "num", "Number:")
    if not number:
        raise member.error(element.line, "a topic has no <num>", "<num> Number: 301", "mend the file")
    return number


def _xml_topics(member: Member, field: str) -> list[tuple[int, str, str]]:
    """The line, number and text of each XML topic; a topic without elements is read as plain text.

    Raises: RetrievoError where no topic has the field.
    """
    whole = _without_comments("\n".join(text for _, text in member.lines()))
    elements = list(_elements(member, "topic", enumerate(whole.split("\n"), start=1)))
    tags = [name for name in _XML_TAGS[field] if any(_element(element.text, name) for element in elements)]
    bare = [element for element in elements if not re.search(r"</[a-z]", element.text, re.IGNORECASE)]
    if elements and not tags and len(bare) < len(elements):
        has = ", ".join(dict.fromkeys(re.findall(r"</([a-z_:-]+)>", elements[0].text, re.IGNORECASE)))
        expected = " or ".join(f"<{name}>" for name in _XML_TAGS[field])
        fix = "pass another --topic-field"
        raise member.error(elements[0].line, f"no topic has the field '{field}' (it has: {has})", expected, fix)
    if tags:
        console.note(f"{member}: the query of a topic is its <{tags[0]}>")
    text = (lambda topic: _element(topic, tags[0])) if tags else _plain
    return [(element.line, _xml_number(member, element), text(element.text)) for element in elements]


def _element(topic: str, tag: str) -> str:
    """The text of an XML element, without markup; empty where there is none."""
    match = re.search(rf"<{tag}(?:\s[^>]*)?>(.*?)</{tag}>", topic, re.IGNORECASE | re.DOTALL)
    return _plain(match[1].replace("<![CDATA[", "").replace("]]>", "")) if match else ""


def _xml_number(member: Member, element: _Element) -> str:
    for name in _XML_NUMBERS:
        match = re.search(rf"\b{name}\s*=\s*[\"']([^\"']*)", element.attributes, re.IGNORECASE)
        found = match[1].strip() if match else _element(element.text, name).removeprefix("Number:").strip()
        if found:
            return found
    raise member.error(element.line, "a topic has no number", '<topic number="1">', "mend the file")
