"""Reads JSON Lines and JSON documents as columns and records.

Arrow parses JSON Lines a block at a time; a block that it rejects, or that has not one record per line, is parsed again
in Python, which can name the line of an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.json

from retrievo.data.importers.input_files import BLOCK, LONGEST, Block, Member, Part
from retrievo.data.importers.text_columns import Column, json_kind
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values

Record: TypeAlias = Values
Item = TypeVar("Item")
ROWS = 8_192  # most rows of a batch, as of a row group
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Batch(NamedTuple):
    """Rows with their positions in a member: line numbers, or item numbers of a JSON array."""

    positions: Sequence[int]
    columns: list[Column]


def batches(rows: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Groups rows into lists of at most 8,192 rows and about 4 MiB by `size`, so that long rows do not fill memory."""
    batch: list[Item] = []
    total = 0
    for row in rows:
        batch.append(row)
        total += size(row)
        if total >= BLOCK or len(batch) >= ROWS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def transposed(rows: Sequence[object], width: int) -> list[list[Any]]:
    """Turns rows into columns."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


# -- JSON Lines -------------------------------------------------------------------------------------------------------


def read_jsonl(member: Member, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Batch]:
    """Yields the values of `keys`, then of `optional`, from one JSON object per line; other keys are ignored.

    Raises: RetrievoError naming the line that is not JSON or lacks a key.
    """
    for block in member.blocks():
        yield _json_block(block, keys, optional) or _json_lines(block, keys, optional)


def _json_block(block: Block, keys: Sequence[str], optional: Sequence[str]) -> Batch | None:
    """Parses a block whose lines are all `{...}` with every key; None where Python must parse it instead."""
    if not _is_objects(block.data):
        return None
    wanted = [*keys, *optional]
    parse = pa.json.ParseOptions(
        explicit_schema=pa.schema([(key, pa.string()) for key in dict.fromkeys(wanted)]),
        unexpected_field_behavior="ignore",
    )
    read = pa.json.ReadOptions(use_threads=False, block_size=len(block.data) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(block.data), read_options=read, parse_options=parse)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != block.rows or any(table[key].null_count for key in keys):
        return None
    return Batch(range(block.line, block.line + block.rows), [table[key] for key in wanted])


def _is_objects(data: bytes) -> bool:
    """Whether every line starts with { and ends with }.

    Only then is each of Arrow's rows a line; also, a first line `null` crashes its parser (pyarrow 26).
    """
    values = np.frombuffer(data.removesuffix(b"\n"), np.uint8)
    ends = np.flatnonzero(values == ord("\n"))
    starts, ends = np.r_[0, ends + 1], np.r_[ends, len(values)] - 1
    return bool(len(values)) and bool((values[starts] == ord("{")).all() and (values[ends] == ord("}")).all())


def _json_lines(block: Block, keys: Sequence[str], optional: Sequence[str]) -> Batch:
    lines, records = [], []
    for line, record in parse_lines(block):
        for key in keys:
            if key not in record:
                raise _missing(block.member.error(line, ""), key, record)
        lines.append(line)
        records.append(record)
    return Batch(lines, [[record.get(key) for record in records] for key in (*keys, *optional)])


def parse_lines(block: Block) -> Iterator[tuple[int, Record]]:
    """Yields line numbers and objects of a block of JSON Lines; skips blank lines.

    Raises: RetrievoError naming the line that is not a JSON object.
    """
    for line, text in block.lines():
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
            raise block.member.error(line, f"is not JSON ({error})", "one JSON object") from None
        if not isinstance(record, dict):
            raise block.member.error(line, f"is {json_kind(record)}", "one JSON object")
        yield line, whole(record, block.member) if _ESCAPED_HALF.search(text) else record


def whole(value: object, member: Member) -> Any:
    """Replaces lone surrogates (halves of characters) in a JSON value by U+FFFD; the source counts such texts."""
    if isinstance(value, str):
        text, halves = _HALF.subn("\ufffd", value)
        member.source.halved += halves > 0
        return text
    if isinstance(value, list):
        return [whole(item, member) for item in value]
    return {key: whole(item, member) for key, item in value.items()} if isinstance(value, dict) else value


def with_unit(part: Part) -> Part:
    """Sets the unit of a JSON part: `item` if the file is one array, else `line`."""
    return replace(part, unit="item") if is_array(part.member) else part


def first_record(part: Part) -> Record:
    """The first object of a JSON Lines file or an array; an empty one where there is none."""
    with part.member.source.paused():
        return next((record for records in read_records(part) for _, record in records), {})


def read_columns(part: Part, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Batch]:
    """Yields the values of `keys`, then of `optional`, from the objects of a JSON Lines file or an array.

    Raises: RetrievoError naming the place of a record that is not JSON or lacks a key.
    """
    if part.unit == "line":
        yield from read_jsonl(part.member, keys, optional)
        return
    for records in read_records(part):
        rows = [[need(record, key, part.place(item)) for key in keys] for item, record in records]
        more = [[record.get(key) for key in optional] for _, record in records]
        columns = transposed([row + rest for row, rest in zip(rows, more, strict=True)], len(keys) + len(optional))
        yield Batch([item for item, _ in records], columns)


def need(record: Record, key: str, where: str) -> Any:
    """The value of a key that every record must have.

    Raises: RetrievoError where it is missing.
    """
    if key not in record:
        raise _missing(RetrievoError(where, ""), key, record)
    return record[key]


def need_list(record: Record, key: str, where: str) -> list[Any]:
    """The list under a key; empty where the key is absent or null.

    Raises: RetrievoError where the value is not a list.
    """
    value = record.get(key) or []
    if not isinstance(value, list):
        raise RetrievoError(where, f"'{key}' is {json_kind(value)}", "a list", "mend the file")
    return value


def need_objects(record: Record, key: str, where: str) -> list[Record]:
    """The list of objects under a key; empty where the key is absent or null.

    Raises: RetrievoError where the value is not a list of objects.
    """
    found = need_list(record, key, where)
    for item in found:
        if not isinstance(item, dict):
            raise not_an_object(where, key, item)
    return found


def not_an_object(where: str, key: str, item: object) -> RetrievoError:
    """The error for a list that should contain only objects."""
    return RetrievoError(where, f"'{key}' holds {json_kind(item)}", "objects", "mend the file")


def _missing(at: RetrievoError, key: str, record: Record) -> RetrievoError:
    has = ", ".join(list(record)[:10]) or "nothing"
    return RetrievoError(at.where, f"has no '{key}' (it has: {has})", f"'{key}' in every record", "mend the file")


# -- JSON documents ---------------------------------------------------------------------------------------------------


def read_records(part: Part, key: str | None = None) -> Iterator[list[tuple[int, Record]]]:
    """Yields batches of numbered records of a JSON Lines file or a JSON array (see `read_items`)."""
    if part.unit == "line":
        for block in part.member.blocks():
            yield list(parse_lines(block))
    else:
        yield from batches(read_items(part, key), lambda item: BLOCK // 64)


def is_array(member: Member) -> bool:
    """Whether a JSON file is one array rather than JSON Lines."""
    with member.source.paused():
        start = next(member.chunks(1024), b"")
    return start.lstrip()[:1] == b"["


def read_items(part: Part, key: str | None = None) -> Iterator[tuple[int, Record]]:
    """Yields the objects of one JSON array with their numbers from 1, keeping one object in memory.

    key: the key of the array in a top-level object; None: the document is the array.
    Raises: RetrievoError naming the line that is not JSON.
    """
    stream = _JsonStream(part.member)
    if key is not None:
        stream.skip_to(key)
    stream.take("[", "a list")
    number = 0
    while not stream.has("]"):
        number += 1
        value = stream.value()
        if not isinstance(value, dict):
            raise RetrievoError(part.place(number), f"is {json_kind(value)}", "an object", "mend the file")
        yield number, whole(value, part.member)
        if not stream.has("]"):
            stream.take(",", "a comma or the end of the list")


class _JsonStream:
    """Reads a JSON document value by value; the buffer grows to the longest value."""

    def __init__(self, member: Member):
        self.member = member
        self._pieces = self._decode()
        self._text, self._at, self._line = "", 0, 1
        self._decoder = json.JSONDecoder()

    def _decode(self) -> Iterator[str]:
        """Yields decoded text; a character that is split between two chunks of bytes goes into the later one."""
        rest, line = b"", 1
        for chunk in self.member.chunks(1 << 20):
            data = rest + chunk
            try:
                text, rest = data.decode(), b""
            except UnicodeDecodeError as error:
                if error.start < len(data) - 3:
                    raise self.member.not_text(line + data.count(b"\n", 0, error.start), error) from None
                text, rest = data[: error.start].decode(), data[error.start :]
            line += text.count("\n")
            yield text
        if rest:
            raise self._error("ends in half of a character", "whole UTF-8 text")

    def _more(self) -> bool:
        """Drops consumed text and reads until the rest has doubled; False at the end of the document."""
        self._line += self._text.count("\n", 0, self._at)
        pieces, size = [self._text[self._at :]], len(self._text) - self._at
        self._at, wanted = 0, 2 * size
        for piece in self._pieces:
            pieces.append(piece)
            size += len(piece)
            if size >= wanted:
                break
        self._text = "".join(pieces)
        return len(pieces) > 1

    def _error(self, found: str, expected: str, at: int | None = None) -> RetrievoError:
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return self.member.error(line, found, expected)

    def _next(self) -> str:
        """The next character that is not white space; an empty string at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def has(self, character: str) -> bool:
        return self._next() == character

    def take(self, character: str, what: str) -> None:
        found = self._next()
        if found != character:
            raise self._error(f"found '{found}'" if found else "found the end", what)
        self._at += 1

    def value(self) -> Any:
        """Reads the next complete value."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                offset = error.pos - self._at  # relative to the start of the value, which `_more` moves
                if len(self._text) > LONGEST or not self._more():
                    at = self._at + offset
                    raise self._error(f"is not JSON ({error.msg})", "a JSON document", at) from None
                continue
            except (ValueError, RecursionError) as error:
                raise self._error(f"cannot be read ({error})", "a JSON document") from None
            length = end - self._at
            if end < len(self._text) or not self._more():  # a number may continue in the next chunk
                self._at += length
                return value

    def skip_to(self, key: str) -> None:
        """Moves to the value of `key` in a top-level object."""
        self.take("{", "an object")
        while not self.has("}"):
            name = self.value()
            self.take(":", "a colon")
            if name == key:
                return
            self.value()
            if not self.has("}"):
                self.take(",", "a comma or the end of the object")
        raise self._error(f"has no '{key}'", f"'{key}' in the object", self._at)
