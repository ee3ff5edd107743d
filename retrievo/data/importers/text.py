"""Text, Markdown and HTML files, cut into passages of a number of words."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import ImportSource, Member, Part
from retrievo.data.importers.json_lines import batches
from retrievo.support import console
from retrievo.support.errors import RetrievoError

_PLAIN, _MARKDOWN, _HTML = (".txt",), (".md", ".markdown"), (".html", ".htm")
_SPACES_AND_BYTES = re.compile(r"[\s\udc80-\udcff]")  # in file names: white space, and bytes that are not UTF-8
_LOOKED_AT = 4_096  # first bytes of a page, in which it may declare its encoding
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


def find(source: ImportSource) -> list[Part]:
    """The files with a known suffix.

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
    """Writes the passages of each file; an id is the path and the passage's number from 0."""
    empty = guessed = 0
    for part in store.each(parts):
        page = _html_encoding(part.member) if part.member.name.endswith(_HTML) else None
        guessed += page is not None and page.guessed
        title, path = _title(part.member, page), _SPACES_AND_BYTES.sub(_quoted, part.member.path)
        passages = enumerate(windows(_words(part.member, page), passage_words, stride or passage_words))
        for batch in batches(passages, lambda passage: len(passage[1])):
            numbers, texts = [number for number, _ in batch], [text for _, text in batch]
            ids = [f"{path}#{number}" for number in numbers]
            store.documents([number + 1 for number in numbers], ids, [title] * len(ids), texts)
        empty += not store.found[part]
    if guessed:
        console.warn(f"HTML pages that are not in the encoding they declare: {guessed:,}; unknown bytes are replaced")
    if empty:
        console.warn(f"files without words: {empty:,}; no document is made of them")


def windows(words: Iterable[str], size: int, stride: int) -> Iterator[str]:
    """Yields passages of `size` words, starting every `stride` words; the last may be shorter but has new words."""
    window: list[str] = []
    fresh = 0  # number of words that are in no passage yet
    for word in words:
        window.append(word)
        fresh += 1
        if len(window) == size:
            yield " ".join(window)
            window, fresh = window[stride:], 0
    if fresh:
        yield " ".join(window)


class _Encoding(NamedTuple):
    """The encoding of an HTML page, and whether it differs from the one that the page declares."""

    name: str
    guessed: bool


def _html_encoding(member: Member) -> _Encoding:
    """The declared encoding, as browsers read it, or UTF-8, if the bytes fit it; otherwise windows-1252."""
    with member.source.paused():
        start = next(member.chunks(_LOOKED_AT), b"")
        declared = _declared(start) if member.source.is_utf8 else None
        for name in (declared, "utf-8"):
            if name and _fits(member, name):
                return _Encoding(name, guessed=declared is not None and name != declared)
    return _Encoding(declared if declared and declared != "utf-8" else "cp1252", guessed=True)


def _declared(start: bytes) -> str | None:
    """The encoding in a byte order mark, an XML declaration or a <meta> element; None if it is missing or unknown."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    found = re.search(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']?([\w.:-]+)", start, re.IGNORECASE)
    found = re.search(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]+)", start, re.IGNORECASE) or found
    try:
        name = codecs.lookup(found[1].decode("ascii", "replace")).name if found else None
        "".encode(name or "utf-8")  # rejects codecs that are not text encodings, such as base64
    except LookupError:
        return None
    return {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030"}.get(name, name) if name else None


def _fits(member: Member, encoding: str) -> bool:
    try:
        for _ in codecs.iterdecode(member.chunks(), encoding):
            pass
    except UnicodeError:
        return False
    return True


def _words(member: Member, page: _Encoding | None) -> Iterator[str]:
    pieces = (text for _, text in member.lines()) if page is None else _html_text(member, page)
    return (word for piece in pieces for word in piece.split())


def _title(member: Member, page: _Encoding | None) -> str:
    """The title of an HTML page or the first heading; else the file's name."""
    with member.source.paused():
        if member.name.endswith(_MARKDOWN):
            found = _first_heading(member)
        else:
            found = "" if page is None else _html_title(member, page)
    name = PurePosixPath(member.path).name.removesuffix(".gz").rpartition(".")[0]
    return found or name.encode(errors="surrogateescape").decode(errors="replace")


def _quoted(found: re.Match[str]) -> str:
    return quote(found[0].encode(errors="surrogateescape"))


def _first_heading(member: Member) -> str:
    fenced = False  # inside a code block (``` or ~~~), where # starts a comment
    for _, text in member.lines():
        if re.match(r"\s{0,3}(```|~~~)", text):
            fenced = not fenced
        elif not fenced and (match := re.match(r"\s{0,3}#{1,6}(?=\s)", text)):
            heading = text[match.end() :].strip()
            closed = heading.rstrip("#")  # a heading may end in further # signs, separated from its words
            heading = heading if closed and not closed[-1].isspace() else closed.rstrip()
            if heading:
                return heading
    return ""


def _decoded(member: Member, page: _Encoding) -> Iterator[str]:
    return (text.replace("\0", "") for text in codecs.iterdecode(member.chunks(), page.name, errors="replace"))


def _html_text(member: Member, encoding: _Encoding) -> Iterator[str]:
    page = _Page()
    for text in _decoded(member, encoding):
        page.feed(text)
        yield page.take()
    page.close()
    yield page.take()


def _html_title(member: Member, encoding: _Encoding) -> str:
    page = _Page()
    for text in _decoded(member, encoding):
        page.feed(text)
        if page.title:
            break
    return " ".join((page.title or page.heading).split())


class _Page(HTMLParser):
    """Extracts the visible text of an HTML page, its title and its first heading."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = self.heading = ""
        self._pieces: list[str] = []
        self._inside: str | None = None  # the current title, h1 or invisible element
        self._headings = 0

    def take(self) -> str:
        """Returns the text since the last call."""
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
