"""Reads the source of an import (a file, a folder or a zip archive, gzipped or not) in blocks of whole lines."""

from __future__ import annotations

import codecs
import contextlib
import fnmatch
import gzip
import itertools
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from retrievo.data.foreign import columns_of, import_command, shown_columns
from retrievo.support import console
from retrievo.support.errors import RetrievoError

BLOCK = 4 << 20  # bytes: a few thousand documents, less than a row group
LONGEST = 256 << 20  # most bytes of one line or JSON value; a longer one means that the file has another format
MEGABYTE = 1_000_000
_NAMED = 5  # most files that an error names
BYTE_ORDER_MARK = codecs.BOM_UTF8

# first bytes of files that are not text, and what to do with such a file
_PACKED = {
    b"BZh": "bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ": "xz: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first (unzstd)",
    b"\x1f\x9d": "compress: unpack it first (uncompress)",
    b"7z\xbc\xaf": "7z: unpack it first",
    b"PAR1": "Parquet: nothing to import, pass it to --corpus or --queries",
}
_PACKED_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Block:
    """Whole lines of a member in unchecked UTF-8 with `\\n` line ends; `line` is the first one's number, from 1."""

    member: Member
    data: bytes
    line: int
    rows: int

    def text(self) -> str:
        """Decodes all lines.

        Raises: RetrievoError naming the first line that is not UTF-8.
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise self.member.not_text(self.line + self.data.count(b"\n", 0, error.start), error) from None

    def lines(self) -> Iterator[tuple[int, str]]:
        """Line numbers and texts."""
        return enumerate(self.text().removesuffix("\n").split("\n"), self.line)


@dataclass(frozen=True, eq=False)
class Member:
    """One file of a source; `path` is its path inside, `size` its bytes before any gunzip, as progress counts."""

    source: ImportSource
    path: str
    size: int
    open: Callable[[], IO[bytes]]

    def __str__(self) -> str:
        return str(self.source.path) if self.source.is_file else f"{self.source.path}/{self.path}"

    @property
    def name(self) -> str:
        """The file name in lower case, without `.gz`."""
        return PurePosixPath(self.path).name.lower().removesuffix(".gz")

    @property
    def stem(self) -> str:
        """The file name without `.gz` and without its suffix."""
        name = PurePosixPath(self.path).name
        return PurePosixPath(name[:-3] if name.lower().endswith(".gz") else name).stem

    def error(self, line: int, found: str, expected: str | None = None, fix: str = "mend that line") -> RetrievoError:
        """The error for a problem in one line."""
        return RetrievoError(f"{self}, line {line}", found, expected, fix)

    def not_text(self, line: int, error: UnicodeDecodeError) -> RetrievoError:
        """The error for bytes that are not valid in the encoding of this source."""
        bad = error.object[error.start : error.start + 1].hex()
        fix = "convert the file, or pass --encoding with what it is written in (latin-1, cp1252, utf-16)"
        return self.error(line, f"byte 0x{bad} is not {self.source.encoding}", f"{self.source.encoding} text", fix)

    def chunks(self, size: int | None = None) -> Iterator[bytes]:
        """Yields the decompressed content without a byte order mark, converted to UTF-8 from another encoding.

        Raises: RetrievoError where the file is damaged or has an unsupported compression.
        """
        raw = self._unpacked(size or BLOCK)
        return raw if self.source.is_utf8 else self._as_utf8(raw)

    def _unpacked(self, size: int) -> Iterator[bytes]:
        first = True
        with self._read_errors(), self.open() as raw, self._plain(raw) as plain:
            before = 0
            while chunk := plain.read(size):
                self.source.count(raw.tell() - before)
                before = raw.tell()
                yield chunk.removeprefix(BYTE_ORDER_MARK) if first else chunk
                first = False

    def _plain(self, raw: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
        start = raw.read(8)
        raw.seek(0)
        for magic, what in _PACKED.items():
            if start.startswith(magic):
                raise RetrievoError(self, f"is packed as {what}", "plain text or .gz")
        packed = start.startswith(b"\x1f\x8b")
        return gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw)  # type: ignore[return-value]

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
            raise RetrievoError(self, f"is damaged or cut short ({error})", None, "download or pack it again") from None
        except (OSError, RuntimeError) as error:  # zipfile: RuntimeError for an encrypted member
            raise RetrievoError(self, f"cannot be read ({error})", None, "check the file") from None

    def _as_utf8(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        decoder, line, mark = codecs.getincrementaldecoder(self.source.encoding)(), 1, "\ufeff"
        for chunk in itertools.chain(chunks, [b""]):
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise self.not_text(line + error.object.count(b"\n", 0, error.start), error) from None
            line += text.count("\n")
            yield text.removeprefix(mark).encode()
            mark = ""

    def blocks(self) -> Iterator[Block]:
        """Yields blocks of whole lines; block boundaries depend only on the bytes.

        Raises: RetrievoError for NUL bytes and for lines longer than `LONGEST`.
        """
        rest, line = b"", 1
        for chunk in self.chunks():
            cut = chunk.rfind(b"\n") + 1
            if cut:
                block = self._block(rest + chunk[:cut], line)
                yield block
                line += block.rows
            rest = chunk[cut:] if cut else rest + chunk
            if len(rest) > LONGEST:
                raise self.error(
                    line, f"a line of more than {LONGEST >> 20} MiB", "a file of lines", "check the format"
                )
        if rest:
            yield self._block(rest, line)

    def _block(self, data: bytes, line: int) -> Block:
        if b"\0" in data:
            at = line + data.count(b"\n", 0, data.index(b"\0"))
            fix = "check the file; if it is UTF-16, pass --encoding utf-16"
            raise self.error(at, "holds a NUL byte", f"{self.source.encoding} text", fix)
        data = data.replace(b"\r\n", b"\n") if b"\r" in data else data
        return Block(self, data, line, data.count(b"\n") + (not data.endswith(b"\n")))

    def is_parquet(self) -> bool:
        """Whether the file begins as Parquet does."""
        with self._read_errors(), self.open() as raw:
            return raw.read(4) == b"PAR1"

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yields all lines with their numbers."""
        for block in self.blocks():
            yield from block.lines()

    def first_lines(self, count: int) -> list[tuple[int, str]]:
        """The first lines that are not blank, with their numbers, without moving the progress bar."""
        with self.source.paused():
            return list(itertools.islice(((line, text) for line, text in self.lines() if text.strip()), count))

    def glance(self, count: int) -> list[str]:
        """The first lines that are not blank, to detect the format; empty for a binary file in a folder."""
        try:
            return [text for _, text in self.first_lines(count)]
        except RetrievoError:
            if self.source.is_file:
                raise
            return []


@dataclass(frozen=True, eq=False)
class Part:
    """A member with what it holds: `noun` (corpus, queries, ...), `name` of the split, `unit` of its positions."""

    member: Member
    noun: str
    name: str = ""
    unit: str = "line"

    def place(self, position: int) -> str:
        """The place of a row, for messages."""
        return f"{self.member}, {self.unit} {position}"


class ImportSource:
    """The files behind SOURCE, sorted by path; hidden files and files under `output` are ignored.

    Raises: RetrievoError where there is nothing to read.
    """

    def __init__(self, path: Path, output: Path, encoding: str = "utf-8"):
        self.path, self.encoding = path, encoding
        self.is_utf8 = codecs.lookup(encoding).name == "utf-8"
        self.is_file = path.is_file() and not zipfile.is_zipfile(path)
        self.halved = 0  # number of texts in which half of a surrogate pair was replaced
        self._tick: Callable[[int], None] | None = None
        self._bytes = 0
        self.members = self._members(Path(os.path.abspath(output)))
        if not self.members:
            raise RetrievoError(path, "holds no files", None, "check the path")

    def _members(self, output: Path) -> list[Member]:
        if self.path.name.lower().endswith(_PACKED_SUFFIXES):
            raise RetrievoError(self.path, "is a tar archive", "a file, a folder or a .zip", "unpack it first: tar xf")
        if self.path.is_dir():
            return [self._of_file(path) for path in _files(self.path, output)]
        if self.is_file:
            return [self._of_file(self.path)]
        if not self.path.exists():
            raise RetrievoError(self.path, "no such file or folder", None, "check the path")
        archive = zipfile.ZipFile(self.path)
        found = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        return [self._of_zip(archive, info) for info in sorted(found, key=lambda info: info.filename)]

    def _of_file(self, path: Path) -> Member:
        inside = path.name if self.is_file else path.relative_to(self.path).as_posix()
        return Member(self, inside, path.stat().st_size, lambda: path.open("rb"))

    def _of_zip(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        return Member(self, info.filename, info.file_size, lambda: archive.open(info))

    def named(self, *patterns: str) -> list[Member]:
        """Members whose file name, in lower case and without `.gz`, matches one of these patterns."""
        return [m for m in self.members if any(fnmatch.fnmatchcase(m.name, pattern) for pattern in patterns)]

    def lacks(self, format: str, expected: str) -> RetrievoError:
        """The error for a source without files of a format: it tells what there is, and the import that reads it."""
        if self.is_file:
            columns = shown_columns(columns_of(self.path))
            has = f" (it has: {', '.join(columns)})" if columns else ""
        else:
            has = f" (it holds: {', '.join(member.path for member in self.members[:_NAMED])})"
        command = import_command(self.path)
        fix = f"import another format: {command}" if command else "check the files"
        return RetrievoError(self.path, f"holds no {format} files{has}", expected, fix)

    def files(self, parts: Sequence[Part]) -> list[Path]:
        """The files on disk behind these parts, from which the input's fingerprint is computed."""
        return [self.path / part.member.path for part in parts] if self.path.is_dir() else [self.path]

    @contextlib.contextmanager
    def progress(self, parts: Sequence[Part]) -> Iterator[None]:
        """Shows a progress bar over the bytes of these parts."""
        total = -(-sum(part.member.size for part in parts) // MEGABYTE)
        with console.progress(f"importing {self.path}", total, "MB") as tick:
            self._tick = tick
            yield
            self._tick = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Reading within this block moves no progress bar and counts nothing."""
        tick, self._tick, halved = self._tick, None, self.halved
        try:
            yield
        finally:
            self._tick, self.halved = tick, halved

    def count(self, amount: int) -> None:
        """Advances the progress bar by a number of bytes."""
        if self._tick is not None:
            whole, self._bytes = divmod(self._bytes + amount, MEGABYTE)
            self._tick(whole)


def _files(folder: Path, output: Path) -> list[Path]:
    """Files below a folder, except hidden ones and those that the import itself writes there."""
    own = {output.with_name(output.name + suffix) for suffix in ("", ".partial", ".old")}
    found = []
    for home, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [path for path in (Path(home, name) for name in names if not _is_hidden(name)) if path.is_file()]
    kept = [path for path in found if own.isdisjoint(Path(os.path.abspath(path)).parents)]
    return sorted(kept, key=lambda path: path.relative_to(folder).as_posix())


def _unreadable(error: OSError) -> None:
    """Raises RetrievoError for an unreadable folder, whose files would otherwise be silently missing."""
    raise RetrievoError(error.filename, f"cannot be read ({error.strerror})", None, "check the folder's permissions")


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def split_of(name: str, default: str = "test") -> str:
    """The split that a file name indicates: train, dev or test; `default` if it indicates none."""
    found = re.search(r"(?<![a-z])(train|dev|valid|test)(ing|ation)?(?![a-z])", name.lower())
    return found[1].replace("valid", "dev") if found else default
