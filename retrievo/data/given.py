"""What people hand to the library, a path, an Arrow table, dicts or a list, made into the package's own tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import pyarrow as pa

from retrievo.data.ordering import flat_strings, ranked, ranks
from retrievo.data.qrels import Qrels
from retrievo.data.run import Run
from retrievo.data.tables import CORPUS, QRELS, QUERIES, RUN, Schema, Table, as_noun
from retrievo.support.errors import RetrievoError

PathLike: TypeAlias = "str | os.PathLike[str]"
# a table is Arrow's, or one that gives itself as such (pandas, Polars)
RunLike: TypeAlias = "PathLike | Mapping[str, Mapping[str, float]] | pa.Table"
QrelsLike: TypeAlias = "PathLike | Mapping[str, Mapping[str, int]] | pa.Table"
TextsLike: TypeAlias = "Iterable[str] | Mapping[str, str] | pa.Table"


def read_corpus(path: PathLike) -> pa.Table:
    """The documents of a Parquet file, folder or glob, or of a dataset folder: `id`, `title` if there is one, `text`.

    All of them are in memory at once; `retrievo.Corpus` reads documents that do not fit.
    Raises: RetrievoError naming file and column.
    """
    return Table(Path(path), CORPUS).read()


def read_queries(path: PathLike) -> pa.Table:
    """The queries of a Parquet file, folder or glob, or of a dataset folder: `id`, `text`, `answers` where there are.

    Raises: RetrievoError naming file and column.
    """
    return Table(Path(path), QUERIES).read()


def read_qrels(path: PathLike) -> pa.Table:
    """Judgments from Parquet, TREC or BEIR text, or of a dataset folder: `query_id`, `doc_id`, `relevance`.

    Raises: RetrievoError naming file and line or column.
    """
    return Qrels.read(Path(path)).table


def read_run(path: PathLike) -> pa.Table:
    """A run from Parquet, TREC or MS MARCO text: `query_id`, `doc_id`, `score` and the `rank` that the file tells.

    Raises: RetrievoError naming file and line or column.
    """
    return Run.open(Path(path)).table


def is_path(given: object) -> TypeGuard[PathLike]:
    """Whether this names a file or a folder."""
    return isinstance(given, (str, os.PathLike))


def run_table(given: RunLike, where: str = "run") -> pa.Table:
    """A run with the columns of one.

    Ranks are those of the file or the table; where there are none, those of the ordering rule.
    Raises: RetrievoError for what is no run, naming the column or the value.
    """
    if is_path(given):
        return read_run(given)
    if isinstance(given, Mapping):
        pairs = _pairs(given, where, "scores")
        table = pa.table([*pairs[:2], _numbers(pairs[2], pa.float32(), where)], names=["query_id", "doc_id", "score"])
    else:
        table = _named(_arrow(given, where), {"query": "query_id", "id": "doc_id"})
    return as_noun(table if "rank" in table.column_names else _ranked(table, where), RUN, where)


def qrels_table(given: QrelsLike, where: str = "qrels") -> pa.Table:
    """Judgments with the columns of such.

    Raises: RetrievoError for what are no judgments, naming the column or the value.
    """
    if is_path(given):
        return read_qrels(given)
    if isinstance(given, Mapping):
        pairs = _pairs(given, where, "grades")
        columns = [*pairs[:2], _numbers(pairs[2], pa.int32(), where)]
        return pa.table(columns, schema=QRELS.arrow)
    return as_noun(_arrow(given, where), QRELS, where)


def text_table(given: TextsLike, schema: Schema, where: str, titles: Iterable[str | None] | None = None) -> pa.Table:
    """Documents or queries with the columns of such, from a table, {id: text} or texts, whose ids count from 0.

    Raises: RetrievoError for what they are not, naming the column or the value.
    """
    if isinstance(given, Mapping):
        texts, ids = text_list(given.values(), where), list(map(str, given))
    elif has_ids(given):
        return as_noun(_arrow(given, where), schema, where)
    else:
        texts = text_list(given, where)
        ids = list(map(str, range(len(texts))))
    columns = {"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())}
    if titles is not None:
        columns["title"] = pa.array([title or "" for title in checked_titles(titles, len(texts), where)], pa.string())
    return as_noun(pa.table(columns), schema, where)


def has_ids(given: TextsLike) -> bool:
    """Whether texts come with ids: {id: text}, or a table of Arrow or of a data frame; a column of one has none."""
    return isinstance(given, Mapping) or hasattr(given, "column_names") or hasattr(given, "columns")


def text_list(given: Iterable[Any], where: str) -> list[str]:
    """Texts as a list, be they a list, an Arrow column, or a column of pandas or numpy.

    Raises: RetrievoError for one text that is no list of such, and for what is no text.
    """
    if isinstance(given, str):
        raise RetrievoError(where, "was given one text", "a list of texts", "put it in brackets")
    texts = given.to_pylist() if isinstance(given, (pa.Array, pa.ChunkedArray)) else list(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise RetrievoError(where, f"item {place} is {type(text).__name__}", "a text")
    return texts


def checked_titles(given: Iterable[str | None], texts: int, where: str) -> list[str | None]:
    """Titles as a list, one for each text; None = no title.

    Raises: RetrievoError for more or fewer of them.
    """
    titles = given.to_pylist() if isinstance(given, (pa.Array, pa.ChunkedArray)) else list(given)
    if len(titles) != texts:
        raise RetrievoError(where, f"was given {len(titles):,} titles for {texts:,} texts", "one for each")
    return titles


def _pairs(given: Mapping[Any, Any], where: str, numbers: str) -> tuple[pa.Array, pa.Array, list[Any]]:
    """Query, document and number of each pair of nested dicts."""
    for query, documents in given.items():
        if not isinstance(documents, Mapping):
            found = f"query '{query}' has {type(documents).__name__}"
            raise RetrievoError(where, found, f"a dict of documents and {numbers}")
    queries = [str(query) for query, documents in given.items() for _ in documents]
    documents = [str(document) for found in given.values() for document in found]
    values = [value for found in given.values() for value in found.values()]
    return pa.array(queries, pa.string()), pa.array(documents, pa.string()), values


def _numbers(values: Sequence[object], kind: pa.DataType, where: str) -> pa.Array:
    try:
        return pa.array(np.asarray(values)).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise RetrievoError(where, f"holds what is no number: {error}", str(kind)) from None


def _arrow(given: object, where: str) -> pa.Table:
    if isinstance(given, pa.Table):
        return given
    if not hasattr(given, "__arrow_c_stream__"):
        raise RetrievoError(where, f"was given {type(given).__name__}", "a path, an Arrow table or dicts")
    return pa.table(given)


def _named(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """A table with other names for some columns, such as those of search results."""
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def _ranked(table: pa.Table, where: str) -> pa.Table:
    """The same with ranks by the ordering rule."""
    table = as_noun(table, Schema(RUN.noun, tuple(c for c in RUN.columns if c.name != "rank")), where)
    query = flat_strings(table["query_id"]).dictionary_encode().indices.to_numpy()
    order = ranked(query, table["score"].to_numpy(), table["doc_id"])
    rank = np.empty(len(order), np.int32)
    rank[order] = ranks(query[order])
    return table.append_column("rank", pa.array(rank))
