"""Searches that are ready to run, one for each index, and what becomes of their results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievo.commands.search.config import DEFAULT_FUSION, OWN
from retrievo.commands.search.indexes import (
    EMBEDDINGS_KIND,
    Dense,
    Source,
    bm25_options,
    check_comparable,
    check_role,
    encode,
    open_bm25,
    open_encoder,
    shelves_of,
)
from retrievo.retrieval.fusion import fuse, share
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.support.options import flag_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.commands.search.across import Shelves
    from retrievo.commands.search.config import SearchConfig
    from retrievo.data.corpus import Queries
    from retrievo.retrieval.bm25 import Ranking
    from retrievo.support.artifact import Input

HITS_AT_ONCE = 1 << 20  # of BM25, in memory before they are written


class Found(NamedTuple):
    """Results as flat columns [H]: by query, then in the order of the ordering rule."""

    query: np.ndarray  # int64, row of the query in its table
    doc_id: pa.Array
    score: np.ndarray  # float32


class Plan(NamedTuple):
    """A search that is ready to run; nothing heavy has started yet.

    again: the search once more, with its queries moved by the first documents of a run; None where there is no such.
    """

    query_ids: pa.ChunkedArray
    queries: Input
    batches: Callable[[], Iterator[Found]]
    again: Callable[[pa.Table], Iterator[Found]] | None = None


def plan(config: SearchConfig, sources: Sequence[Source]) -> Plan:
    """The search of one index or the reading of one run, or of several and their fusion; then a cross-encoder's order;
    then documents of passages.
    """
    shelves = shelves_of(config)
    whole = _searched(config, sources, shelves)
    if config.rerank is not None:
        whole = _reranked(config, sources, whole)
    whole = whole if config.doc_aggregate is None else _documents(config, whole)
    return whole if shelves is None else _unmarked(shelves, whole)


def _searched(config: SearchConfig, sources: Sequence[Source], shelves: Shelves | None) -> Plan:
    """All indexes and runs, as one; of several corpora their ids are marked."""
    plans = [(_plan_texts if source.lexical else _plan_vectors)(config, source) for source in sources]
    plans += [_plan_run(config, path) for path in config.run]
    if shelves is not None:
        places = [*config.index, *config.run]
        plans = [_marked(shelves.mark[place], plan) for place, plan in zip(places, plans, strict=True)]
    if config.feedback and config.feedback_from == OWN:
        plans = [_after_feedback(config, one) for one in plans]
    return plans[0] if len(plans) == 1 else _fused(config, plans)


def _marked(mark: str, plan: Plan) -> Plan:
    """A plan whose documents say of which corpus they are; documents of others never move its queries."""
    from retrievo.commands.search.across import own_rows, with_mark

    def marked(batches: Iterable[Found]) -> Iterator[Found]:
        yield from (found._replace(doc_id=with_mark(mark, found.doc_id)) for found in batches)

    def again(run: pa.Table) -> Iterator[Found]:
        assert plan.again is not None
        return marked(plan.again(own_rows(mark, run)))

    return plan._replace(batches=lambda: marked(plan.batches()), again=again if plan.again else None)


def _unmarked(shelves: Shelves, plan: Plan) -> Plan:
    """The results with plain ids, in the order that these have."""
    from retrievo.commands.search.across import check_told_apart, without_mark
    from retrievo.data.columns import taken
    from retrievo.data.ordering import ranked

    def batches() -> Iterator[Found]:
        for found in plan.batches():
            plain = without_mark(found.doc_id)
            check_told_apart(shelves, found.query, found.doc_id, plain)
            order = ranked(found.query, found.score, plain)
            yield Found(found.query[order], taken(plain, order), found.score[order])

    return plan._replace(batches=batches)


def _reranked(config: SearchConfig, sources: Sequence[Source], plan: Plan) -> Plan:
    """The results of a plan, held in memory, with the scores of a cross-encoder."""
    from retrievo.commands.search.rerank import Reranker

    if _holds_vectors(config):
        raise RetrievoError(config.queries, "holds vectors", "texts with --rerank", "pass the table of queries")
    texts = _texts(config).texts

    def batches() -> Iterator[Found]:
        from retrievo.data.ordering import first_ranked

        reranker = Reranker(config, sources)  # before the search, so that what is wrong with it is said at once
        found = _found(_table(plan), plan.query_ids)
        with console.progress("reranking", len(found.query), "pairs") as tick:
            scores = reranker.scores(texts, found.query, found.doc_id.to_pylist(), tick)
        order = first_ranked(found.query, scores, found.doc_id, config.run_depth)
        yield Found(found.query[order], found.doc_id.take(order), scores[order])

    return Plan(plan.query_ids, plan.queries, batches)


def _after_feedback(config: SearchConfig, plan: Plan) -> Plan:
    """A search after one with its own first documents; what has no such second search stays as it is."""
    again = plan.again
    if again is None:
        return plan
    return plan._replace(batches=lambda: again(_table(plan, config.feedback_depth)), again=None)


def _documents(config: SearchConfig, plan: Plan) -> Plan:
    """The documents that the passages of a plan belong to."""

    def batches() -> Iterator[Found]:
        from retrievo.retrieval.aggregation import documents_of

        for found in plan.batches():
            yield Found(*documents_of(config.doc_aggregate or "", config.doc_separator, *found))

    return plan._replace(batches=batches)


def _fused(config: SearchConfig, plans: Sequence[Plan]) -> Plan:
    """One run of several, which are held in memory."""

    def batches() -> Iterator[Found]:
        runs = [_table(plan) for plan in plans]
        if config.feedback:  # from the fusion
            first = _fusion(config, runs, plans[0].query_ids, config.feedback_depth, last=False)
            runs = [
                _as_table(plan, plan.again(first)) if plan.again else run for plan, run in zip(plans, runs, strict=True)
            ]
        yield _found(_fusion(config, runs, plans[0].query_ids, config.first_depth), plans[0].query_ids)

    return Plan(plans[0].query_ids, plans[0].queries, batches)


def _fusion(
    config: SearchConfig, runs: Sequence[pa.Table], query_ids: pa.ChunkedArray, depth: int, *, last: bool = True
) -> pa.Table:
    """The fused run, with the weights that were given, that are best on judgments, or 1 each.

    last: whether it is the result, whose weights are told.
    """
    from retrievo.commands.search.fusion_weights import advice, cross_validated

    method = config.fuse or DEFAULT_FUSION
    if config.tune_on is None:
        return fuse(method, runs, config.fuse_weights or None, queries=query_ids, depth=depth)
    from retrievo.data.qrels import Qrels

    shared = share(method, runs, queries=query_ids)
    tuned = cross_validated(shared, Qrels.read(config.tune_on).table, config.tune_metric)
    if last:
        best = advice([*config.index, *config.run], tuned.overall.tolist())
        console.note(f"weights by cross-validation on {config.tune_metric}; best on all: {best}")
    return shared.run(tuned.weights, depth)


def _plan_run(config: SearchConfig, path: Path) -> Plan:
    """A run that was made before."""
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings
    from retrievo.data.origin import warn_of_others
    from retrievo.data.run import Run
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input

    assert config.queries is not None
    given = Run.open(path)
    if _holds_vectors(config):
        ids, read = Embeddings(config.queries).ids(), Input.of(config.queries)
    else:
        queries = _texts(config)
        ids, read = queries.ids, queries.input

    warn_of_others(path, queries=read)
    table = given.table
    if config.judged is not None:
        table = table.filter(pc.is_in(flat_strings(table["query_id"]), value_set=flat_strings(ids)))
    return Plan(ids, read, lambda: iter([_ordered(given.path, table, ids, config.search_depth)]))


def _ordered(path: Path, run: pa.Table, query_ids: pa.ChunkedArray, depth: int) -> Found:
    """The first `depth` of every query of a run under the ordering rule, queries in the order of their table.

    Raises: RetrievoError for a query that is not in the table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrievo.data.ordering import first_ranked, flat_strings

    own = flat_strings(run["query_id"])
    places = pc.index_in(own, flat_strings(query_ids))
    if places.null_count:
        found = f"has a query '{own.filter(places.is_null())[0].as_py()}' that is not in the table of queries"
        raise RetrievoError(path, found)
    query, score = places.to_numpy().astype("int64"), run["score"].to_numpy().astype("float32")
    order = first_ranked(query, score, run["doc_id"], depth)
    doc_id = flat_strings(run["doc_id"]).take(pa.array(order))
    return Found(query[order], doc_id, score[order])


def _found(run: pa.Table, query_ids: pa.ChunkedArray) -> Found:
    """The columns of a run in order, its queries as rows of their table."""
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings

    numbers = pc.index_in(flat_strings(run["query_id"]), flat_strings(query_ids)).to_numpy().astype("int64")
    return Found(numbers, flat_strings(run["doc_id"]), run["score"].to_numpy())


def _table(plan: Plan, depth: int | None = None) -> pa.Table:
    """All results of a plan, or the first of each query."""
    table = _as_table(plan, plan.batches())
    return table if depth is None else _first(table, depth)


def _as_table(plan: Plan, batches: Iterable[Found]) -> pa.Table:
    import pyarrow as pa

    from retrievo.data.columns import taken
    from retrievo.data.tables import RUN

    names = ["query_id", "doc_id", "score"]
    parts = [pa.table([taken(plan.query_ids, found.query), found.doc_id, found.score], names) for found in batches]
    return pa.concat_tables(parts) if parts else RUN.arrow.empty_table().select(names)


def _first(table: pa.Table, depth: int) -> pa.Table:
    """The first rows of each query, of a table whose rows are in order."""
    import pyarrow as pa

    from retrievo.data.ordering import flat_strings, ranks

    numbers = flat_strings(table["query_id"]).dictionary_encode().indices.to_numpy()
    return table.filter(pa.array(ranks(numbers) <= depth))


def _plan_texts(config: SearchConfig, source: Source) -> Plan:
    """BM25 over a table of queries."""
    if _holds_vectors(config):
        raise RetrievoError(config.queries, "holds vectors", f"texts for {source.path}", "pass the table of queries")
    queries = _texts(config)

    def batches() -> Iterator[Found]:
        depth, options = config.search_depth, bm25_options(config)
        size = max(1, HITS_AT_ONCE // depth)
        with open_bm25(config, source) as index, console.progress("searching", len(queries), "queries") as tick:
            for first in range(0, len(queries), size):
                texts = queries.texts[first : first + size]
                yield _flat(first, index.search(texts, depth, threads=config.threads, progress=tick, **options))

    return Plan(queries.ids, queries.input, batches)


def _flat(first: int, hits: Sequence[Ranking]) -> Found:
    """The rankings of consecutive queries as flat columns."""
    import numpy as np
    import pyarrow as pa

    query = np.repeat(np.arange(first, first + len(hits)), [len(found.doc_ids) for found in hits])
    doc_ids = pa.concat_arrays([found.doc_ids for found in hits])
    return Found(query, doc_ids, np.concatenate([found.scores for found in hits]))


def _plan_vectors(config: SearchConfig, source: Source) -> Plan:
    """Search over an embeddings folder, or in a FAISS index."""
    queries, depth = _dense_queries(config, source), config.search_depth
    opened = functools.cache(lambda: Dense(config, source))
    encoded = functools.cache(queries.encode)

    def search(vectors: np.ndarray) -> Iterator[Found]:
        dense, short = opened(), 0
        for hits in dense.batches(vectors, depth):
            short += _count_short(hits.query, min(depth, dense.rows))
            yield Found(hits.query, dense.ids(hits.row), hits.score)
        if short:
            flag = flag_of(dense.index.knob if dense.index and dense.index.knob else "rescore")
            console.warn(f"{source.path}: {short:,} queries found fewer than {depth:,} documents; pass a higher {flag}")

    def again(run: pa.Table) -> Iterator[Found]:
        from retrievo.retrieval.feedback import moved_queries

        dense = opened()
        query, row = _rows(run, queries.ids, dense.ids())
        method, weight = config.feedback or "", config.feedback_weight
        yield from search(moved_queries(method, encoded(), dense.vectors, query, row, weight))

    return Plan(queries.ids, queries.input, lambda: search(encoded()), again)


def _rows(run: pa.Table, query_ids: pa.ChunkedArray, doc_ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of queries and documents [H] of a run, by query; documents that an index lacks are left out."""
    import numpy as np
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings

    wanted = flat_strings(run["doc_id"])
    known = wanted.unique()
    places = pc.index_in(flat_strings(doc_ids), known)  # a table of the few that are wanted, not of all documents
    there = places.is_valid().to_numpy(zero_copy_only=False)
    row_of = np.full(len(known), -1, np.int64)
    row_of[places.drop_null().to_numpy()] = np.flatnonzero(there)
    query = pc.index_in(flat_strings(run["query_id"]), flat_strings(query_ids)).to_numpy().astype(np.int64)
    row = row_of[pc.index_in(wanted, known).to_numpy()]
    kept = np.flatnonzero(row >= 0)
    kept = kept[np.argsort(query[kept], kind="stable")]
    return query[kept], row[kept]


def _count_short(query: np.ndarray, depth: int) -> int:
    """How many of the queries of a batch have fewer results than documents could be found."""
    import numpy as np

    return int((np.unique(query, return_counts=True)[1] < depth).sum())


class _DenseQueries(NamedTuple):
    """Queries whose vectors [Q, D] are made when they are needed."""

    ids: pa.ChunkedArray
    input: Input
    encode: Callable[[], np.ndarray]


def _texts(config: SearchConfig) -> Queries:
    """The table of queries, or those of them that are judged."""
    from retrievo.data.corpus import Queries
    from retrievo.data.qrels import Qrels

    assert config.queries is not None
    queries = Queries(config.queries)
    _say_without_text(config.queries, sum(not text.strip() for text in queries.texts))
    return queries.among(Qrels.read(config.judged).table["query_id"]) if config.judged else queries


@functools.cache
def _say_without_text(path: Path, count: int) -> None:
    """Once, however many indexes are searched."""
    if count:
        console.warn(f"{path}: {count:,} queries have no text; they are kept")


def _holds_vectors(config: SearchConfig) -> bool:
    """Whether queries come as an embeddings folder."""
    from retrievo.support.artifact import Manifest, has_manifest

    path = config.queries
    assert path is not None
    found = has_manifest(path) and Manifest.read(path).kind == EMBEDDINGS_KIND
    if found and config.judged:
        raise RetrievoError(path, "holds vectors", "texts with --judged", "pass the table of queries")
    return found


def _dense_queries(config: SearchConfig, source: Source) -> _DenseQueries:
    """An embeddings folder of queries, or a table of texts that the index's own model encodes."""
    import numpy as np

    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input

    assert config.queries is not None
    if _holds_vectors(config):
        vectors = Embeddings(config.queries)
        check_comparable(config.queries, vectors.manifest, source)
        return _DenseQueries(vectors.ids(), Input.of(config.queries), lambda: vectors.take(np.arange(vectors.rows)))
    queries = _texts(config)
    check_role(source.path, source.embeddings_manifest(), "document")

    def encoded() -> np.ndarray:
        return encode(config, open_encoder(config, source), queries.texts)

    return _DenseQueries(queries.ids, queries.input, encoded)
