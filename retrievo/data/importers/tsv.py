"""Tab-separated lines in which quotes are ordinary text, as in MS MARCO."""

from __future__ import annotations

from typing import Any

from retrievo.data.importers.columns import Choice, tables_of
from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.delimited import read_tsv
from retrievo.data.importers.input_files import ImportSource, Part


def find(source: ImportSource) -> list[Part]:
    """A file of any name, or the .tsv files of a folder."""
    return tables_of(source, ".tsv", ".tab")


def read(parts: list[Part], store: DatasetWriter, *, header: bool, **names: Any) -> None:
    """Copies the chosen columns."""
    for part in store.each(parts):
        for line, first in part.member.first_lines(1):
            columns = first.split("\t") if header else [str(number) for number in range(1, first.count("\t") + 2)]
            chosen = Choice(**names, header=header).among(part.member, columns)
            chosen.note(store, columns)
            for lines, values in read_tsv(part.member, len(columns), skip=line if header else 0):
                chosen.write(store, part, lines, dict(zip(columns, values, strict=True)))
