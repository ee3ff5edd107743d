"""Recognizes files of other formats by their first record, so that an error names the import that reads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

QUERY_COLUMNS = ("query", "anchor", "question", "sentence1", "sentence_1")
POSITIVE_COLUMNS = (
    "positive", "positives", "pos", "answer", "document", "passage", "response", "sentence2", "sentence_2",
)  # fmt: skip
_SHOWN = 40  # most characters of a column name in a message; a file without a header may give a whole record
_READ = 1 << 16  # bytes of a file that are looked at

# format -> columns, of each of which a record has one; the first format that fits counts
_COLUMNS = {
    "tevatron": (("query_id",), ("positive_passages", "negative_passages")),
    "dpr": (("question",), ("positive_ctxs",)),
    "squad": (("paragraphs",), ("qas",)),
    "pairs": (QUERY_COLUMNS, POSITIVE_COLUMNS),
}
_TABLES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".gz": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".zip": "beir",
}


def are_pairs(columns: Collection[str]) -> bool:
    """Whether columns are those of training pairs: a query and a text that is relevant to it."""
    return _format_of(columns) == "pairs"


def import_command(path: Path, columns: Collection[str] = ()) -> str | None:
    """The line that imports a file or folder of another format; None for what no importer reads.

    columns: its columns; empty = look into the file.
    """
    if path.is_dir():
        if (path / "corpus.jsonl").is_file():
            return f"retrievo import beir {path} --output DIR"
        files = sorted(file for file in path.glob("*") if file.suffix.lower() in _TABLES)
        return import_command(files[0]) if files else None
    format = _format_of(columns or columns_of(path)) or _TABLES.get(path.suffix.lower())
    return None if format is None else f"retrievo import {format} {path} --output DIR"


def _format_of(columns: Collection[str]) -> str | None:
    fitting = (name for name, needed in _COLUMNS.items() if all(any(c in columns for c in some) for some in needed))
    return next(fitting, None)


def shown_columns(columns: Sequence[str]) -> list[str]:
    """The first columns, as a message names them."""
    return [name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..." for name in columns][:20]


def columns_of(path: Path) -> Sequence[str]:
    """The columns of Parquet, keys of JSON at the beginning of a file, or the fields of its first line."""
    try:
        with path.open("rb") as file:
            start = file.read(_READ)
    except OSError:
        return ()
    if start.startswith(b"PAR1"):
        return _of_parquet(path)
    text = start.decode("utf-8-sig", "ignore").lstrip()
    if text[:1] in ("{", "["):
        return list(dict.fromkeys(re.findall(r'"(\w+)"\s*:', text)))
    return [field.strip().strip('"') for field in re.split(r"[,;\t|]", text.partition("\n")[0]) if field.strip()]


def _of_parquet(path: Path) -> Sequence[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError):
        return ()
    return names
