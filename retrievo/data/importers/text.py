"""Text, Markdown and HTML files, cut into passages of a number of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import quote

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.records import batches
from retrievo.data.importers.source import Member, Part, Source
from retrievo.support import console
from retrievo.support.errors import RetrievoError

_PLAIN, _MARKDOWN, _HTML = (".txt",), (".md", ".markdown"), (".html", ".htm")
_SPACES_AND_BYTES = re.compile(r"[\s\udc80-\udcff]")  # in names: what ids can't hold, and bytes that are no UTF-8
_HIDDEN = {"script", "style", "template", "noscript", "svg"}
_INLINE = {"a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd"}
_INLINE |= {
    "label",
    "mark",
    "q",
    "ruby",
    "s",
    "samp",
    "small",
    "span",
    "strong",
    "sub",
    "sup",
    "time",
    "tt",
    "u",
    "var",
}
_INLINE |= {"wbr"}


def find(source: Source) -> list[Part]:
    """Files by their suffix.

    Raises: RetrievoError where there are none.
    """
    suffixes = (*_PLAIN, *_MARKDOWN, *_HTML)
    members = [member for member in source.members if member.name.endswith(suffixes)]
    if not members:
        raise RetrievoError(
            source.path, "holds no text files", f"names that end in {' '.join(suffixes)}", "check the path"
        )
    return [Part(member, "text", unit="passage") for member in members]


def read(parts: list[Part], store: DatasetWriter, *, passage_words: int, stride: int | None) -> None:
    """Writes the passages of each file; the id is the path and the passage's number from 0."""
    empty = 0
    for part in store.each(parts):
        title, path = _title(part.member), _SPACES_AND_BYTES.sub(_quoted, part.member.path)
        passages = enumerate(windows(_words(part.member), passage_words, stride or passage_words))
        for batch in batches(passages, lambda passage: len(passage[1])):
            numbers, texts = [number for number, _ in batch], [text for _, text in batch]
            ids = [f"{path}#{number}" for number in numbers]
            store.documents([number + 1 for number in numbers], ids, [title] * len(ids), texts)
        empty += not store.found[part]
    if empty:
        console.warn(f"files without words: {empty:,}; they give no document")


def windows(words: Iterable[str], size: int, stride: int) -> Iterator[str]:
    """Passages of `size` words, one every `stride` words; the last is shorter, and none repeats the end of another."""
    window: list[str] = []
    fresh = 0  # words that stand in no passage yet
    for word in words:
        window.append(word)
        fresh += 1
        if len(window) == size:
            yield " ".join(window)
            window, fresh = window[stride:], 0
    if fresh:
        yield " ".join(window)


def _words(member: Member) -> Iterator[str]:
    pieces = _html_text(member) if member.name.endswith(_HTML) else (text for _, text in member.lines())
    return (word for piece in pieces for word in piece.split())


def _title(member: Member) -> str:
    """The first heading, or what HTML calls the title; else the file's name."""
    with member.source.paused():
        if member.name.endswith(_MARKDOWN):
            found = _first_heading(member)
        else:
            found = _html_title(member) if member.name.endswith(_HTML) else ""
    name = PurePosixPath(member.path).name.removesuffix(".gz").rpartition(".")[0]
    return found or name.encode(errors="surrogateescape").decode(errors="replace")


def _quoted(found: re.Match[str]) -> str:
    return quote(found[0].encode(errors="surrogateescape"))


def _first_heading(member: Member) -> str:
    fenced = False  # between ``` or ~~~, where # is a comment
    for _, text in member.lines():
        if re.match(r"\s{0,3}(```|~~~)", text):
            fenced = not fenced
        elif not fenced and (match := re.match(r"\s{0,3}#{1,6}(?=\s)", text)):
            heading = text[match.end() :].strip()
            closed = heading.rstrip("#")  # a heading may end in more of them, apart from its words
            heading = heading if closed and not closed[-1].isspace() else closed.rstrip()
            if heading:
                return heading
    return ""


def _html_text(member: Member) -> Iterator[str]:
    page = _Page()
    for block in member.blocks():
        page.feed(block.text())
        yield page.take()
    page.close()
    yield page.take()


def _html_title(member: Member) -> str:
    page = _Page()
    for block in member.blocks():
        page.feed(block.text())
        if page.title:
            break
    return " ".join((page.title or page.heading).split())


class _Page(HTMLParser):
    """The text of an HTML page that a reader sees, and its title and first heading."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = self.heading = ""
        self._pieces: list[str] = []
        self._inside: str | None = None  # title, h1 or an element that is not shown
        self._headings = 0

    def take(self) -> str:
        """The text since the last call."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self._pieces.append(" ")
        if self._inside is None and (tag in _HIDDEN or tag in ("title", "h1")):
            self._inside = tag
            self._headings += tag == "h1"

    def handle_endtag(self, tag: str) -> None:
        if tag not in _INLINE:
            self._pieces.append(" ")
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside not in _HIDDEN:
            self._pieces.append(data)
            if self._inside == "h1" and self._headings == 1:
                self.heading += data
