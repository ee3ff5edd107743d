"""JSON Lines with columns of the user's choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retrievo.data.importers.columns import Choice, tables_of
from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import ImportSource, Part
from retrievo.data.importers.json_lines import first_record, read_columns, with_unit


def find(source: ImportSource) -> list[Part]:
    """A file of any name, or the JSON files of a folder; a file may be one JSON array of objects."""
    return [with_unit(part) for part in tables_of(source, ".jsonl", ".ndjson", ".json")]


def read(parts: list[Part], store: DatasetWriter, **names: Any) -> None:
    """Copies the chosen columns; their names are looked up in the first record."""
    for part in store.each(parts):
        keys = list(first_record(part))
        if keys:
            chosen = Choice(**names).among(part.member, keys)
            chosen.note(store, keys)
            if chosen.role == "document" and chosen.title is None and chosen.text != "title":
                chosen = replace(chosen, title="title")  # later records may have one
            required = [name for name in (chosen.id, chosen.text) if name is not None]
            optional = [] if chosen.title is None else [chosen.title]
            for lines, columns in read_columns(part, required, optional):
                chosen.write(store, part, lines, dict(zip([*required, *optional], columns, strict=True)))
