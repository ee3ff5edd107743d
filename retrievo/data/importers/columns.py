"""Generic tables (JSON Lines, TSV, CSV): which files they are, and which columns are ids, texts and titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrievo.data.foreign import are_pairs, import_command, shown_columns
from retrievo.data.importers.dataset import ColumnsRead, DatasetWriter
from retrievo.data.importers.input_files import ImportSource, Member, Part
from retrievo.data.importers.text_columns import Column
from retrievo.data.tables import CORPUS, QUERIES
from retrievo.support.errors import RetrievoError, did_you_mean

_TITLES = ("headline", "subject", "name")  # of foreign tables; the summary says which column was read
_SCHEMAS = {"document": CORPUS, "query": QUERIES}


def tables_of(source: ImportSource, *suffixes: str) -> list[Part]:
    """The source itself if it is a file, whatever its name; else its files with one of these suffixes.

    Raises: RetrievoError where there are none.
    """
    members = source.members if source.is_file else source.named(*(f"*{suffix}" for suffix in suffixes))
    if not members:
        raise RetrievoError(source.path, f"holds no {' or '.join(suffixes)} file", None, "check the path")
    return [Part(member, "rows") for member in members]


@dataclass(frozen=True)
class Choice:
    """The columns that the user named; a column that is not set is found by its usual names.

    header: False where columns have only numbers (the id is 1 and the text 2, or the text is 1 with --number-lines);
            None where columns always have names (JSON).
    """

    role: str
    id_column: str | None
    text_column: str | None
    title_column: str | None
    number_lines: bool
    header: bool | None = None

    def among(self, member: Member, columns: Sequence[str]) -> Chosen:
        """Finds the columns in one file.

        Raises: RetrievoError where a column is missing.
        """
        usual = {column.name: [column.name, *column.aliases] for column in _SCHEMAS[self.role].columns}
        if self.header is False:
            usual = {"id": ["1"], "text": ["1" if self.number_lines else "2"]}
        usual["title"] = [*usual.get("title", []), *_TITLES]
        id = None if self.number_lines else self._one(member, columns, "id", self.id_column, usual["id"])
        text = self._one(member, columns, "text", self.text_column, usual["text"])
        title = None
        there = [name for name in usual["title"] if name in columns and name != text]
        if self.role == "document" and (self.title_column is not None or there):
            title = self._one(member, columns, "title", self.title_column, there)
        return Chosen(self.role, id, text, title)

    def _one(self, member: Member, columns: Sequence[str], what: str, wanted: str | None, usual: Sequence[str]) -> str:
        found = [name for name in usual if name in columns] if wanted is None else _named(wanted, columns)
        has = shown_columns(columns)
        if not found and wanted is not None:
            raise RetrievoError(member, f"has no column '{wanted}'", None, did_you_mean(wanted, has))
        if not found and wanted is None and are_pairs(columns):
            fix = f"import them as training pairs: {import_command(member.source.path, columns)}"
            raise RetrievoError(member, f"holds pairs of texts ({', '.join(has)})", f"a {self.role} in each row", fix)
        if not found:
            fix = "pass --no-header where the first line is a record, or " if self.header else "pass "
            fix += f"--{what}-column" + (", or --number-lines where there are no ids" if what == "id" else "")
            found_none = f"has no column for the {what} under a usual name (it has: {', '.join(has)})"
            raise RetrievoError(member, found_none, None, fix)
        if list(columns).count(found[0]) > 1:
            raise RetrievoError(member, f"has two columns '{found[0]}'", "names that tell them apart", "rename one")
        return found[0]


def _named(wanted: str, columns: Sequence[str]) -> list[str]:
    """The column with this name or number, as a list that is empty where there is none."""
    if wanted in columns:
        return [wanted]
    return [columns[int(wanted) - 1]] if wanted.isdigit() and 0 < int(wanted) <= len(columns) else []


@dataclass(frozen=True)
class Chosen:
    """Names of the chosen columns of one file."""

    role: str
    id: str | None
    text: str
    title: str | None

    def note(self, store: DatasetWriter, columns: Sequence[str]) -> None:
        """Tells the dataset which of the columns are read, for the summary."""
        named = {"id": self.id or "line number", "title": self.title, "text": self.text}
        taken = {what: name for what, name in named.items() if name is not None}
        ignored = [name for name in columns if name not in (self.id, self.title, self.text)]
        store.columns.append(ColumnsRead(taken, ignored, self.role == "document" and self.title is None))

    def write(self, store: DatasetWriter, part: Part, positions: Sequence[int], columns: Mapping[str, Column]) -> None:
        """Adds rows to the dataset as documents or queries."""
        ids = _line_ids(store, part, positions) if self.id is None else columns[self.id]
        if self.role == "document":
            store.documents(positions, ids, None if self.title is None else columns[self.title], columns[self.text])
        else:
            store.queries(positions, ids, columns[self.text])


def _line_ids(store: DatasetWriter, part: Part, lines: Sequence[int]) -> list[str]:
    """Line numbers as ids, prefixed with the file's path where there are several files."""
    prefix = f"{part.member.path}:" if len(store.parts) > 1 else ""
    return [f"{prefix}{line}" for line in lines]
