"""Training pairs: a query with relevant texts and, in triplets and lists, hard negatives; ids are optional."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrievo.data.foreign import POSITIVE_COLUMNS, QUERY_COLUMNS, shown_columns
from retrievo.data.ids import text_id
from retrievo.data.importers.columns import tables_of
from retrievo.data.importers.dataset import ColumnsRead, DatasetWriter
from retrievo.data.importers.delimited import delimiter_of, first_row, in_columns, read_csv, read_tsv
from retrievo.data.importers.examples import Example, Passage, write_examples
from retrievo.data.importers.input_files import ImportSource, Member, Part, split_of
from retrievo.data.importers.json_lines import Batch, Record, first_record, need, read_records, with_unit
from retrievo.data.importers.text_columns import json_kind
from retrievo.data.text_identity import identities, is_empty
from retrievo.support import console
from retrievo.support.errors import RetrievoError, did_you_mean

Records = Iterator[list[tuple[int, Record]]]
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet")
_SOURCE = "pairs"
_NEGATIVE = re.compile(r"(hard_?)?(neg|negative)s?(_?\d+)?|sentence3")
_QUERY_IDS = ("query_id", "qid", "anchor_id", "question_id")
_POSITIVE_IDS = ("doc_id", "docid", "document_id", "passage_id", "pid")
_GRADES = ("label", "labels", "score", "similarity", "similarity_score")  # not every pair with one is a positive
_ROWS = 1_024  # rows of Parquet that are in memory


def find(source: ImportSource) -> list[Part]:
    """A file of any name, whose pairs are for training; in a folder, a file's name may say another split.

    Raises: RetrievoError where there are none.
    """
    parts = tables_of(source, *_SUFFIXES)
    return [_part(part, "train" if source.is_file else split_of(part.member.name, "train")) for part in parts]


def _part(part: Part, split: str) -> Part:
    if part.member.is_parquet():
        return replace(part, noun="parquet", name=split, unit="row")
    if part.member.name.endswith((".csv", ".tsv", ".tab")):
        return replace(part, noun=part.member.name.rpartition(".")[2], name=split)
    start = part.member.glance(1)
    is_json = not start or start[0].lstrip()[:1] in ("{", "[")
    return with_unit(replace(part, noun="json", name=split)) if is_json else replace(part, noun="csv", name=split)


def read(
    parts: list[Part],
    store: DatasetWriter,
    *,
    query_column: str | None,
    positive_column: str | None,
    negative_column: str | None,
    dev_ratio: float | None,
) -> None:
    """Writes each text once, with a judgment of grade 1 for each positive; `dev_ratio` of the queries become dev."""
    without_text: list[str] = []
    for part in store.each(parts):
        names, batches = _READERS[part.noun](part)
        if not names:
            continue
        columns = _Columns.among(part, names, query_column, positive_column, negative_column)
        store.columns.append(columns.read(names))
        for records in batches:
            examples: dict[str, list[Example]] = {part.name: [], "dev": []}
            for position, record in records:
                example = columns.example(record, position, part.place(position))
                if is_empty(example.query) or not example.positives:
                    without_text.append(part.place(position))
                    continue
                held = part.name == "train" and dev_ratio is not None and is_held_out(example.query, dev_ratio)
                examples["dev" if held else part.name].append(example)
            for split, some in examples.items():
                write_examples(some, replace(part, name=split), store, documents=True, merge=True)
    if without_text:
        what = f"pairs without a query or a positive text: {len(without_text):,}"
        console.warn(f"{what}; left out (the first: {without_text[0]})")


def is_held_out(query: str, ratio: float) -> bool:
    """Whether a query belongs to the share that is not trained on; it depends on its text as a reader sees it alone."""
    return int(identities([query])[0]) < ratio * 2**64


# -- files as records -------------------------------------------------------------------------------------------------


def _of_json(part: Part) -> tuple[Sequence[str], Records]:
    return list(first_record(part)), read_records(part)


def _of_csv(part: Part) -> tuple[Sequence[str], Records]:
    sign = delimiter_of(part.member)
    names = first_row(part.member, sign)
    return names, _records(names, in_columns(part.member, read_csv(part.member, sign), len(names), skip=1))


def _of_tsv(part: Part) -> tuple[Sequence[str], Records]:
    first = part.member.first_lines(1)
    names = first[0][1].split("\t") if first else []
    return names, _records(names, read_tsv(part.member, len(names), skip=first[0][0] if first else 0))


def _records(names: Sequence[str], batches: Iterable[Batch]) -> Records:
    for positions, columns in batches:
        values = [column if isinstance(column, list) else column.to_pylist() for column in columns]
        rows = (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))
        yield list(zip(positions, rows, strict=True))


def _of_parquet(part: Part) -> tuple[Sequence[str], Records]:
    with _opened(part.member) as file:
        return file.schema_arrow.names, _rows(part.member)


@contextlib.contextmanager
def _opened(member: Member) -> Iterator[pq.ParquetFile]:
    with member.open() as raw:
        try:
            yield pq.ParquetFile(raw, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            found = f"is not a readable Parquet file ({' '.join(str(error).split())[:120]})"
            raise RetrievoError(member, found, None, "download or make it again") from None


def _rows(member: Member) -> Records:
    with _opened(member) as file:
        first = 1
        for batch in file.iter_batches(_ROWS, use_threads=False):
            yield list(enumerate(batch.to_pylist(), first))
            first += batch.num_rows
            member.source.count(member.size * batch.num_rows // file.metadata.num_rows)


_READERS = {"json": _of_json, "csv": _of_csv, "tsv": _of_tsv, "tab": _of_tsv, "parquet": _of_parquet}


# -- records as examples ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of one file; negatives may be absent from some records."""

    query: str
    positive: str
    negative: str | None

    @classmethod
    def among(
        cls, part: Part, names: Sequence[str], query: str | None, positive: str | None, negative: str | None
    ) -> _Columns:
        """Finds the columns by the names that the user gave, or by usual names.

        Raises: RetrievoError where one is missing, or where grades tell that some pairs are no positives.
        """
        found = cls(
            _one(part, names, "query", query, QUERY_COLUMNS),
            _one(part, names, "positive", positive, POSITIVE_COLUMNS),
            None if negative is None else _one(part, names, "negative", negative, ()),
        )
        grades = [name for name in names if name in _GRADES]
        if grades and positive is None:
            fix = f"leave out pairs that do not belong together, then pass --positive-column {found.positive}"
            raise RetrievoError(
                part.member, f"has a column '{grades[0]}' of grades", "pairs that are all relevant", fix
            )
        return found

    def read(self, names: Sequence[str]) -> ColumnsRead:
        """Which of the columns are read, for the summary."""
        negatives = self.negatives(names)
        keys = (self.positive, *negatives)
        usual = {*_QUERY_IDS, *_POSITIVE_IDS, *(name for key in keys for name in _own_ids(key))}
        ids = [name for name in names if name in usual]
        taken = {"query": self.query, "positive": self.positive, "negative": " ".join(negatives), "ids": " ".join(ids)}
        used = {self.query, *keys, *ids}
        return ColumnsRead({what: name for what, name in taken.items() if name}, [n for n in names if n not in used])

    def negatives(self, names: Iterable[str]) -> list[str]:
        """The columns of hard negatives that a file or a record has."""
        return [self.negative] if self.negative else [name for name in names if _NEGATIVE.fullmatch(name)]

    def example(self, record: Record, position: int, where: str) -> Example:
        """The query of a record with its passages."""
        query = need(record, self.query, where)
        if query is not None and not isinstance(query, str):
            raise RetrievoError(where, f"'{self.query}' is {json_kind(query)}", "text", "mend the file")
        need(record, self.positive, where)
        id = next((record[name] for name in _QUERY_IDS if record.get(name) is not None), None)
        return Example(
            position,
            text_id(query or "") if id is None else id,
            query or "",
            None,
            _passages(record, self.positive, _POSITIVE_IDS, where),
            [passage for name in self.negatives(record) for passage in _passages(record, name, (), where)],
        )


def _one(part: Part, names: Sequence[str], what: str, wanted: str | None, usual: Sequence[str]) -> str:
    found = [name for name in usual if name in names] if wanted is None else [name for name in names if name == wanted]
    if found:
        return found[0]
    if wanted is not None:
        raise RetrievoError(part.member, f"has no column '{wanted}'", None, did_you_mean(wanted, shown_columns(names)))
    told = f"has no column for the {what} under a usual name (it has: {', '.join(shown_columns(names))})"
    has_header = part.noun in ("csv", "tsv", "tab")
    fix = f"{'name the columns in the first line, or ' * has_header}pass --{what}-column"
    raise RetrievoError(part.member, told, ", ".join(usual), fix)


def _passages(record: Record, key: str, ids: Sequence[str], where: str) -> list[Passage]:
    """The texts under a key, each with its id; empty texts are left out."""
    texts = _listed(record.get(key))
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise RetrievoError(where, f"'{key}' holds {json_kind(text)}", "text or a list of texts", "mend the file")
    given = _ids(record, key, ids, len(texts), where)
    passages = zip(given, texts, strict=True)
    return [
        Passage(text_id(text) if id is None else id, None, text, _SOURCE)
        for id, text in passages
        if text is not None and not is_empty(text)
    ]


def _own_ids(key: str) -> tuple[str, str]:
    """Names of a column with the ids of the texts under a key."""
    return f"{key}_id", f"{key}_ids"


def _ids(record: Record, key: str, usual: Sequence[str], count: int, where: str) -> list[Any]:
    """The ids of the texts under a key; None for a text without one."""
    name = next((name for name in (*_own_ids(key), *usual) if record.get(name) is not None), None)
    if name is None:
        return [None] * count
    found = _listed(record[name])
    if len(found) != count:
        expected = f"{count}, one for each text of '{key}'"
        raise RetrievoError(where, f"'{name}' has {len(found)} ids", expected, "mend the file")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
