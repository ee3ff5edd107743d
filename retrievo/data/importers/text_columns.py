"""Converts the values that importers read to Arrow strings; an error names the place of a value that is not text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.tables import TEXTS
from retrievo.support.errors import RetrievoError

Column: TypeAlias = list[Any] | pa.ChunkedArray
Place: TypeAlias = Callable[[int], str]  # from a row to its place, for messages
_NO_TEXT = (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError)


def text_array(values: Column, name: str, place: Place) -> pa.Array:
    """Converts a column to strings: null texts become empty, integers may be ids, and no id may be missing.

    Raises: RetrievoError naming the place of the first value that does not fit.
    """
    array = _array(values, name, place)
    if not name.endswith("id"):
        return array.fill_null("")
    missing = pc.index(pc.fill_null(pc.equal(array, ""), True), True).as_py()
    if missing >= 0:
        raise RetrievoError(place(missing), f"has no {name}", "an id in every record", "mend the file")
    return array


def _array(values: Column, name: str, place: Place) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return pa.concat_arrays(values.chunks) if values.num_chunks != 1 else values.chunk(0)
    try:
        return pa.array(values, pa.string())
    except _NO_TEXT:
        return pa.array([_text(value, name, place, row) for row, value in enumerate(values)], pa.string())


def _text(value: object, name: str, place: Place, row: int) -> str | None:
    """Converts one value to text or null."""
    if value is None or (type(value) is int and name.endswith("id")):
        return None if value is None else str(value)
    if not isinstance(value, str):
        raise RetrievoError(place(row), f"{name} is {json_kind(value)}", "text", "mend the file")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        found = f"{name} holds half a character ({half})"
        raise RetrievoError(place(row), found, "valid Unicode", "mend the file") from None
    return value


def answers_array(answers: list[list[Any]], place: Place) -> pa.Array:
    """Converts lists of answers to lists of strings; null answers are dropped.

    Raises: RetrievoError naming the place of the first answer that is not text.
    """
    answers = [[answer for answer in some if answer is not None] for some in answers]
    try:
        return pa.array(answers, TEXTS)
    except _NO_TEXT:
        return pa.array([[_text(a, "answer", place, row) for a in some] for row, some in enumerate(answers)], TEXTS)


def json_kind(value: object) -> str:
    """The kind of a JSON value, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
