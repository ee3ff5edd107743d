"""MS MARCO's passage and document collections, also in RocketQA's version with titles.

Files are recognized by their names: `collection.tsv`, `msmarco-docs.tsv`, `para.txt` with `para.title.txt`;
`queries.dev.tsv`, `dev.query.txt`; `qrels.dev.tsv`; `qidpidtriples.train.full.2.tsv.gz`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.delimited import read_tsv
from retrievo.data.importers.input_files import ImportSource, Member, Part
from retrievo.data.importers.judgments import copy_judgments
from retrievo.data.importers.text_columns import Column
from retrievo.support.errors import RetrievoError

_NAMES = {  # in this order: "msmarco-docdev-queries.tsv" has "doc" in it too
    "negatives": r"qidpid",
    "": r"lookup|top100|triples",
    "qrels": r"qrel",
    "queries": r"quer",
    "titles": r"para\.title",
    "corpus": r"collection|corpus|docs|^para\.",
}
_SUFFIXES = ("*.tsv", "*.txt")
_TRIPLES = "msmarco-triples"
_EXPECTED = "names such as collection.tsv, queries.dev.tsv, qrels.dev.tsv, qidpidtriples.train.tsv"


def find(source: ImportSource) -> list[Part]:
    """The files that are recognized by their names, titles before the corpus.

    Raises: RetrievoError where there are none.
    """
    parts = [part for member in source.named(*_SUFFIXES) if (part := _part(member)) is not None]
    if not parts:
        raise RetrievoError(source.path, "holds no MS MARCO files", _EXPECTED, "rename them")
    nouns = ["titles", "corpus", "queries", "qrels", "negatives"]
    return sorted(parts, key=lambda part: nouns.index(part.noun))


def _part(member: Member) -> Part | None:
    noun = next((noun for noun, pattern in _NAMES.items() if re.search(pattern, member.name)), "")
    names = {"qrels": _split(member.stem), "negatives": member.stem}
    return Part(member, noun, names.get(noun, "")) if noun else None


def _split(stem: str) -> str:
    """`qrels.dev.small` is dev.small, `msmarco-docdev-qrels` is dev, `2019qrels-pass` is 2019.pass; else test."""
    words = re.split(r"[._-]+", re.sub(r"qrels?|msmarco", ".", stem.lower()))
    kept = [re.sub(r"^doc(?=train|dev|test)", "", word) for word in words if word not in ("", "doc", "passage")]
    return ".".join(kept) or "test"


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Copies the rows of each file; queries that occur in several files are kept once."""
    titles = [part for part in parts if part.noun == "titles"]
    for part in store.each(parts):
        if part.noun == "corpus":
            _read_corpus(part, titles, store)
        elif part.noun == "queries":
            for lines, (ids, texts) in read_tsv(part.member, 2):
                store.queries(lines, ids, texts, merge=True)
        elif part.noun == "qrels":
            copy_judgments(part, store)
        elif part.noun == "negatives":
            for lines, (queries, _, negatives) in read_tsv(part.member, 3):
                store.negatives(lines, part.name, _TRIPLES, queries, negatives)


def _read_corpus(part: Part, titles: list[Part], store: DatasetWriter) -> None:
    """2 columns are id and text, 3 are id, title and text, 4 are id, URL, title and text."""
    first = part.member.first_lines(1)
    width = first[0][1].count("\t") + 1 if first else 2
    if width not in (2, 3, 4):
        raise part.member.error(
            first[0][0], f"has {width} columns", "id, text; id, title, text; or id, URL, title, text"
        )
    joined = _TitlesInOrder(titles[0], store) if titles and width == 2 else None
    for lines, columns in read_tsv(part.member, width):
        given = columns[-2] if width > 2 else None
        store.documents(lines, columns[0], joined.of(columns[0]) if joined else given, columns[-1])
    if joined:
        joined.check_end()


class _TitlesInOrder:
    """Titles from a file of their own, in the order of the corpus; a passage may have none."""

    def __init__(self, part: Part, store: DatasetWriter):
        self.part, self.store = part, store
        self._rows = self._read()
        self._next = next(self._rows, None)

    def _read(self) -> Iterator[tuple[int, str, str]]:
        for lines, (ids, titles) in read_tsv(self.part.member, 2):
            yield from zip(lines, _list(ids), _list(titles), strict=True)

    def of(self, ids: Column) -> list[str]:
        """The titles of the next passages; empty where there is none."""
        found = []
        for id in _list(ids):
            title = ""
            if self._next is not None and self._next[1] == id:
                title = self._next[2]
                self._next = next(self._rows, None)
                self.store.found[self.part]["titles"] += 1
            found.append(title)
        return found

    def check_end(self) -> None:
        """Raises RetrievoError where a title is left without its passage."""
        if self._next is not None:
            line, id, _ = self._next
            found = f"the title of '{id}' has no passage after that of the title before"
            raise self.part.member.error(line, found, "titles in the order of the passages", "sort both files by id")


def _list(column: Column) -> list[str]:
    return column if isinstance(column, list) else column.to_pylist()
