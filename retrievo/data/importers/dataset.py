"""Writes and checks a dataset folder while an importer fills it, in memory that hardly grows with the data."""

from __future__ import annotations

import functools
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrievo.data.ids import hash_texts
from retrievo.data.importers.input_files import Part
from retrievo.data.importers.negatives import NegativesWriter
from retrievo.data.importers.seen_ids import Ledger, SeenHashes
from retrievo.data.importers.text_columns import Column, answers_array, text_array
from retrievo.data.tables import CORPUS, QRELS, QUERIES, TEXTS, RowCache, Table, TableWriter
from retrievo.support import console
from retrievo.support.artifact import Output
from retrievo.support.errors import RetrievoError
from retrievo.support.settings import toml_string
from retrievo.support.values import Values

_CORPUS = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
_QUERIES = pa.schema([("id", pa.string()), ("text", pa.string())])
_SCHEMAS = {"corpus": CORPUS, "queries": QUERIES}
_SINGULAR = {"corpus": "document", "queries": "query"}
_SHOWN = ("title", "text")
_BLANK = r"^[\s\p{Z}\p{Cf}]*$"  # only white space and zero-width characters
_POSITION_BITS = 40  # a place is one integer: the part's number above these bits, the position in the part in them


class ColumnsRead(NamedTuple):
    """The columns of a file, for the summary.

    taken:       what was read -> the name of its column.
    ignored:     the other columns.
    lacks_title: whether the documents have no title, so that one of those may be meant.
    """

    taken: dict[str, str]
    ignored: list[str]
    lacks_title: bool = False


class DatasetWriter:
    """Collects documents, queries, judgments and negatives from an importer and completes a dataset folder.

    Importers iterate over `each(parts)`, so that the file of every row is known; positions are line numbers, or item
    numbers of a JSON array. A repeated id is an error; with `merge`, an id whose text is the same is kept once.
    """

    def __init__(self, output: Output, parts: Sequence[Part]):
        self.output, self.parts = output, list(parts)
        self._numbers = {part: number for number, part in enumerate(self.parts)}
        self.found: dict[Part, Counter[str]] = {part: Counter() for part in self.parts}
        self.columns: list[ColumnsRead] = []
        self._part = self.parts[0]
        self._work = output.folder / "work"  # files that are needed only until `finish`
        self._work.mkdir()
        self._tables: dict[str, TableWriter] = {}
        self._negatives: dict[str, NegativesWriter] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._seen: defaultdict[str, SeenHashes] = defaultdict(SeenHashes)
        self._blank: Counter[str] = Counter()
        self._repeated: Counter[str] = Counter()

    def each(self, parts: Sequence[Part]) -> Iterator[Part]:
        """Yields the parts one by one; rows that are added meanwhile belong to the part yielded last."""
        for part in parts:
            self._part = part
            yield part

    # -- called by importers -------------------------------------------------------------------------------------------

    def documents(
        self, positions: Sequence[int], ids: Column, titles: Column | None, texts: Column, *, merge: bool = False
    ) -> None:
        """Adds documents; `titles=None` means empty titles.

        Raises: RetrievoError naming the place of a value that is missing or not text.
        """
        columns = {"id": ids, "title": [""] * len(ids) if titles is None else titles, "text": texts}
        self._add("corpus", _CORPUS, positions, columns, merge)

    def queries(
        self,
        positions: Sequence[int],
        ids: Column,
        texts: Column,
        answers: list[list[str]] | None = None,
        *,
        merge: bool = False,
    ) -> None:
        """Adds queries; either all queries of a dataset have answers, or none.

        Raises: RetrievoError naming the place of a value that is missing or not text.
        """
        columns: dict[str, Any] = {"id": ids, "text": texts}
        schema = _QUERIES
        if answers is not None:
            columns["answers"] = answers_array(answers, self._place(positions))
            schema = schema.append(pa.field("answers", TEXTS))
        self._add("queries", schema, positions, columns, merge)

    def qrels(
        self, positions: Sequence[int], split: str, query_ids: Column, doc_ids: Column, relevance: Sequence[int]
    ) -> None:
        """Adds judgments to a split; a pair that is repeated with the same grade is kept once.

        Raises: RetrievoError naming the place of a pair that has two grades.
        """
        if not len(positions):
            return
        place = self._place(positions)
        queries, documents = text_array(query_ids, "query_id", place), text_array(doc_ids, "doc_id", place)
        grades = np.asarray(relevance, np.int32)
        pairs = zip(queries.to_pylist(), documents.to_pylist(), strict=True)
        first, differs = self._seen[f"qrels/{split}"].admit(
            hash_texts("\0".join(pair) for pair in pairs), grades.astype(np.uint64)
        )
        if differs.any():
            row = int(differs.argmax())
            found = f"query '{queries[row]}' and document '{documents[row]}' have got another grade before"
            raise RetrievoError(place(row), found, "one grade for a pair", "remove one of them")
        self._repeated[split] += int((~first).sum())
        table = pa.table([queries, documents, pa.array(grades)], schema=QRELS.arrow).filter(pa.array(first))
        self._writer(f"qrels/{split}.parquet", QRELS.arrow).write(table)
        self.found[self._part][f"judgments ({split})"] += table.num_rows

    def negatives(
        self,
        positions: Sequence[int],
        name: str,
        source: str,
        query_ids: Column,
        doc_ids: Column,
        scores: object = None,
    ) -> None:
        """Adds hard negatives to `negatives/<name>.parquet`; without scores, the score is the negated rank."""
        if not len(positions):
            return
        if name not in self._negatives:
            self._negatives[name] = NegativesWriter(self._work / f"negatives-{len(self._negatives)}")
        place = self._place(positions)
        queries, documents = text_array(query_ids, "query_id", place), text_array(doc_ids, "doc_id", place)
        self._negatives[name].add(queries, documents, source, scores)
        self.found[self._part]["negatives (read)"] += len(documents)

    # -- texts with ids ------------------------------------------------------------------------------------------------

    def _add(
        self, noun: str, schema: pa.Schema, positions: Sequence[int], columns: dict[str, Any], merge: bool
    ) -> None:
        if not len(positions):
            return
        place = self._place(positions)
        texts = {name: text_array(columns[name], name, place) for name in columns if name != "answers"}
        table = pa.table({**columns, **texts})
        hashes = hash_texts(texts["id"].to_pylist())
        places = np.asarray(positions, np.uint64) + np.uint64(self._numbers[self._part] << _POSITION_BITS)
        if merge:
            first = self._first_of_each(noun, texts, hashes, places)
            table, hashes, places = table.filter(pa.array(first)), hashes[first], places[first]
        self._ledger(noun).add(hashes, places)
        writer = self._writer(f"{noun}.parquet", schema)
        if writer.schema.names != schema.names:
            raise RetrievoError(self._part.member, "some queries have answers and some have none", "one or the other")
        writer.write(table)
        shown = [pc.invert(pc.match_substring_regex(table[name], _BLANK)) for name in schema.names if name in _SHOWN]
        self._blank[noun] += table.num_rows - (pc.sum(functools.reduce(pc.or_, shown)).as_py() or 0)
        self.found[self._part]["documents" if noun == "corpus" else noun] += table.num_rows

    def _first_of_each(self, noun: str, texts: dict[str, Any], hashes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Whether each row has an id that did not occur before, [n] bool."""
        parts = [texts[name].to_pylist() for name in texts if name != "id"]
        whole = hash_texts("\0".join(row) for row in zip(*parts, strict=True))
        first, differs = self._seen[noun].admit(hashes, whole)
        if differs.any():
            row = int(differs.argmax())
            earlier = self._ledger(noun).places_of(hashes[row])
            both = [*earlier[:1], *places[hashes == hashes[row]][:1], places[row]]
            where = " and ".join(map(self._said, [both[0], both[-1]]))
            found = f"{_SINGULAR[noun]} id '{texts['id'][row]}' has two texts ({where})"
            raise RetrievoError(self._part.member, found, "one text for an id", "remove one of them")
        return first

    # -- places --------------------------------------------------------------------------------------------------------

    def _place(self, positions: Sequence[int]) -> Callable[[int], str]:
        """A function from a row of the current batch to its place in the current file."""
        return lambda row: self._part.place(int(positions[row]))

    def _said(self, place: np.uint64) -> str:
        number, position = divmod(int(place), 1 << _POSITION_BITS)
        return self.parts[number].place(position)

    def _ledger(self, noun: str) -> Ledger:
        if noun not in self._ledgers:
            self._ledgers[noun] = Ledger(self._work / noun)
        return self._ledgers[noun]

    def _writer(self, name: str, schema: pa.Schema) -> TableWriter:
        if name not in self._tables:
            path = self.output.folder / name
            path.parent.mkdir(exist_ok=True)
            self._tables[name] = TableWriter(path, schema)
        return self._tables[name]

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self) -> Values:
        """Completes the folder and returns the counts for its manifest.

        Raises: RetrievoError where an id occurs twice or nothing was found.
        """
        if not self._tables and not self._negatives:
            raise RetrievoError(self.parts[0].member, "holds no records", None, "check the file")
        for name, table in self._tables.items():
            self.output.record(name, table.close())
        for noun in self._ledgers:
            self._check_unique(noun)
        unknown = {split: self._unknown(split) for split in self._splits()}
        rows = {name: self._write_negatives(name) for name in self._negatives}
        (self.output.folder / "retrievo.toml").write_text(settings_text(set(self._tables)), encoding="utf-8")
        shutil.rmtree(self._work)
        self._warn(unknown)
        return self._stats(unknown, rows)

    def _splits(self) -> list[str]:
        return sorted(name.removeprefix("qrels/").removesuffix(".parquet") for name in self._tables if "qrels/" in name)

    def _check_unique(self, noun: str) -> None:
        twice = self._ledgers[noun].first_repeated()
        if twice is None:
            return
        path = self.output.folder / f"{noun}.parquet"
        name = RowCache(Table(path, _SCHEMAS[noun]), ("id",)).rows([twice[0]])[0]["id"]
        places = self._ledgers[noun].places
        where = " and ".join(self._said(places[row]) for row in twice)
        found = f"{_SINGULAR[noun]} id '{name}' occurs twice ({where})"
        raise RetrievoError(self.parts[0].member.source.path, found, "each id once", "remove one of them")

    def _unknown(self, split: str) -> dict[str, int]:
        """Counts the judgments of a split whose query or document is not in this dataset."""
        counts: Counter[str] = Counter()
        for batch in pq.ParquetFile(self.output.folder / f"qrels/{split}.parquet").iter_batches(use_threads=False):
            for column, noun in (("query_id", "queries"), ("doc_id", "corpus")):
                if noun in self._ledgers:
                    known = self._ledgers[noun].knows(hash_texts(batch.column(column).to_pylist()))
                    counts[noun] += int((~known).sum())
        return {noun: count for noun, count in counts.items() if count}

    def _write_negatives(self, name: str) -> int:
        path = self.output.folder / f"negatives/{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        rows, record = self._negatives[name].finish(path)
        self.output.record(f"negatives/{name}.parquet", record)
        return rows

    def _warn(self, unknown: dict[str, dict[str, int]]) -> None:
        found = {f"{'documents' if noun == 'corpus' else noun} without text": n for noun, n in self._blank.items()}
        for split, counts in unknown.items():
            found[f"judgments ({split}) of a query that is not there"] = counts.get("queries", 0)
            found[f"judgments ({split}) of a document that is not in the corpus"] = counts.get("corpus", 0)
        for what, count in found.items():
            if count:
                console.warn(f"{what}: {count:,}; kept")
        if halved := self.parts[0].member.source.halved:
            console.warn(f"texts that hold half of a character: {halved:,}; it is replaced by U+FFFD")
        for split, count in self._repeated.items():
            if count:
                console.warn(f"judgments ({split}) that came again with the same grade: {count:,}; left out")

    def _stats(self, unknown: dict[str, dict[str, int]], negatives: dict[str, int]) -> Values:
        rows = {name: table.rows for name, table in self._tables.items()}
        stats: Values = {
            "documents": rows.get("corpus.parquet", 0),
            "queries": rows.get("queries.parquet", 0),
            "qrels": {split: rows[f"qrels/{split}.parquet"] for split in self._splits()},
            "negatives": negatives,
            "blank_texts": {noun: count for noun, count in self._blank.items() if count},
            "unknown_in_qrels": {split: counts for split, counts in unknown.items() if counts},
        }
        return {name: value for name, value in stats.items() if value}


def settings_text(files: set[str]) -> str:
    """The content of a dataset folder's `retrievo.toml`: defaults for commands that are run in the folder.

    files: names of the tables in the folder.
    """
    splits = sorted(name.removesuffix(".parquet") for name in files if name.startswith("qrels/"))
    chosen = [name for wanted in ("qrels/test", "qrels/dev") for name in splits if name.startswith(wanted)]
    training = {"corpus": "corpus.parquet", "queries": "queries.parquet", "qrels": "qrels/train.parquet"}
    trains = files.issuperset(training.values())
    sections = {
        "train": training if trains else {},
        "mine-negatives": training if trains else {},
        "index": {"corpus": "corpus.parquet"} if "corpus.parquet" in files else {},
        "search": {"queries": "queries.parquet"} if "queries.parquet" in files else {},
        "evaluate": {"qrels": f"{chosen[0]}.parquet"} if chosen else {},
    }
    lines = ["# Defaults for commands that are typed in this folder; paths are relative to it."]
    for command, values in sections.items():
        if values:
            lines += ["", f"[{command}]", *(f"{key} = {toml_string(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"
