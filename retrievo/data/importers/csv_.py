"""Quoted CSV, whose fields may contain line breaks; commas, semicolons, tabs and bars are detected as delimiters."""

from __future__ import annotations

from typing import Any

from retrievo.data.importers.columns import Choice, tables_of
from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.delimited import delimiter_of, first_row, in_columns, read_csv
from retrievo.data.importers.input_files import ImportSource, Part
from retrievo.support import console


def find(source: ImportSource) -> list[Part]:
    """A file of any name, or the .csv files of a folder."""
    return tables_of(source, ".csv")


def read(parts: list[Part], store: DatasetWriter, *, header: bool, **names: Any) -> None:
    """Copies the chosen columns."""
    for part in store.each(parts):
        sign = delimiter_of(part.member)
        first = first_row(part.member, sign)
        if sign != ",":
            shown = {"\t": "a tab"}.get(sign, f"'{sign}'")
            console.note(f"{part.member}: fields are separated by {shown}")
        if first:
            columns = first if header else [str(number + 1) for number in range(len(first))]
            chosen = Choice(**names, header=header).among(part.member, columns)
            chosen.note(store, columns)
            for lines, values in in_columns(part.member, read_csv(part.member, sign), len(columns), skip=int(header)):
                chosen.write(store, part, lines, dict(zip(columns, values, strict=True)))
