"""A search from queries to the ranking that is written or shown, some queries at a time.

Every step is a function of hits of one block of queries, so that nothing holds a whole run; only --tune-on, whose
weights depend on all judged queries, keeps what the indexes found.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from retrievo.commands.search.across import check_distinct, own_hits, with_mark, without_mark
from retrievo.commands.search.config import DEFAULT_FUSION, FUSED, OWN
from retrievo.commands.search.indexes import Sources, open_corpora, open_indexes
from retrievo.commands.search.rerank import Reranker, reranked
from retrievo.data.ordering import first_ranked, flat_strings
from retrievo.retrieval.aggregation import documents_of
from retrievo.retrieval.fusion import Shared, share_hits
from retrievo.retrieval.hits import Hits, Queries, joined
from retrievo.retrieval.searcher import FEEDBACK, RESCORING, MovesQueries, Searcher, can
from retrievo.support import console
from retrievo.support.conditions import flag_of

if TYPE_CHECKING:
    import pyarrow as pa

    from retrievo.commands.search.config import SearchConfig
    from retrievo.commands.search.queries import Asked
    from retrievo.retrieval.run_hits import RunHits
    from retrievo.support.console import Tick

_HITS_AT_ONCE = 1 << 20  # of each index
_LARGEST_STEP = 1 << 13  # queries


class Block(NamedTuple):
    """What each index and each run has found for the queries from `first` to `end`, numbered from 0."""

    first: int
    end: int
    found: Sequence[Hits]


class Pipeline:
    """Indexes, runs and a cross-encoder, open for one table of queries after another.

    Raises: RetrievoError where one of them can't be opened.
    """

    def __init__(self, config: SearchConfig, sources: Sources):
        self.config, self.shelves = config, sources.shelves
        self.reranker = None
        if config.rerank is not None:
            corpora = [] if sources.shelves else open_corpora(config.corpus, sources.indexes)
            self.reranker = Reranker(config.rerank, config.compute, sources.shelves, corpora)
        self.searchers = open_indexes(config, sources.indexes)
        self.marks = [self.shelves.mark[place] if self.shelves else "" for place in config.places]

    def search(self, asked: Asked) -> Search:
        """A search for these queries."""
        return Search(self, asked)

    def close(self) -> None:
        """Closes the indexes."""
        for searcher in self.searchers:
            searcher.close()


class Search:
    """One search: what the indexes find, and what becomes of it.

    Raises: RetrievoError for queries that an index can't search for, or that are unknown to a run.
    """

    def __init__(self, pipeline: Pipeline, asked: Asked):
        self.pipeline, self.config, self.asked = pipeline, pipeline.config, asked
        self.depth = self.config.search_depth
        self.query_ids = flat_strings(asked.ids)
        self.runs = [self._open_run(number) for number in range(len(self.config.run))]
        self.queries = [searcher.encode(asked.given) for searcher in pipeline.searchers]
        self._short = [0] * len(pipeline.searchers)

    def _open_run(self, number: int) -> RunHits:
        from retrievo.data.origin import warn_of_others
        from retrievo.data.run import Run
        from retrievo.retrieval.run_hits import RunHits

        run = Run.open(self.config.run[number])
        if self.asked.input is not None:
            warn_of_others(run.path, queries=self.asked.input)
        return RunHits(run, self.asked.ids, self.depth, some=self.config.judged is not None)

    def hits(self) -> Iterator[Hits]:
        """The result for all queries, in blocks of whole ones, with plain ids."""
        with self.progress() as tick:
            hits = self.reranked(self.fused(self.found(tick)), tick)
            if self.config.doc_aggregate is not None:
                hits = map(self._documents, hits)
            yield from hits if self.pipeline.shelves is None else map(self._unmarked, hits)
        self._warn_of_short_rankings()

    # ------------------------------------------------------------------------------------------------ blocks of hits

    def found(self, tick: Tick | None = None) -> Iterator[Block]:
        """What is fused, or the hits of the only index, after feedback; tick: called with its progress."""
        tick = None if self.pipeline.reranker else tick
        for searcher, queries in zip(self.pipeline.searchers, self.queries, strict=True):
            searcher.prepare(queries, self.depth)
        size = self._block_size()
        starts = range(0, len(self.query_ids), size)
        blocks = (self._block(first, min(first + size, len(self.query_ids)), tick) for first in starts)
        if self.config.feedback and self.config.feedback_from == FUSED:
            return self._fed_back(blocks, tick)
        return blocks

    def _block_size(self) -> int:
        """Queries of a block: as many as all indexes are quick with, whose hits of each are about a million."""
        searchers = self.pipeline.searchers
        align = math.lcm(*(searcher.align for searcher in searchers))
        quick = [searcher.batch(self.depth) for searcher in searchers] or [1]
        step = math.lcm(align, *quick)
        if step > _LARGEST_STEP:
            step = align * -(-max(quick) // align)
        return step * max(1, _HITS_AT_ONCE // self.depth // step)

    def _block(self, first: int, end: int, tick: Tick | None) -> Block:
        found = [self._found(number, first, end, tick) for number in range(len(self.pipeline.searchers))]
        marks = self.pipeline.marks[len(found) :]
        found += [_marked(mark, run.hits(first, end)) for mark, run in zip(marks, self.runs, strict=True)]
        return Block(first, end, found)

    def _found(self, number: int, first: int, end: int, tick: Tick | None) -> Hits:
        """What an index finds for some queries, after feedback from its own first documents."""
        searcher, queries = self.pipeline.searchers[number], self.queries[number][first:end]
        if self.config.feedback and self.config.feedback_from == OWN and can(searcher.index, FEEDBACK):
            depth = min(self.config.feedback_depth, self.depth)
            best = joined(searcher.search_batches(queries, depth, tick=tick))
            queries = self._moved(searcher, queries, best)
        return self._searched(number, queries, tick)

    def _searched(self, number: int, queries: Queries, tick: Tick | None) -> Hits:
        searcher = self.pipeline.searchers[number]
        hits = joined(searcher.search_batches(queries, self.depth, tick=tick))
        if can(searcher.index, RESCORING):
            found = np.unique(hits.query, return_counts=True)[1]
            self._short[number] += int((found < min(self.depth, searcher.documents.rows)).sum())
        return _marked(self.pipeline.marks[number], hits)

    def _moved(self, searcher: Searcher, queries: Queries, best: Hits) -> Queries:
        config = self.config
        return cast(MovesQueries, searcher).moved(queries, best, config.feedback or "", config.feedback_weight)

    def _fed_back(self, blocks: Iterable[Block], tick: Tick | None) -> Iterator[Block]:
        """The blocks after a second search, with queries moved by the first documents of the fusion."""
        blocks, weights = self._weighted(blocks, last=False)
        for block in blocks:
            best = self._fusion(block, weights, self.config.feedback_depth)
            found = list(block.found)
            for number, searcher in enumerate(self.pipeline.searchers):
                if can(searcher.index, FEEDBACK):
                    own = _own(self.pipeline.marks[number], best)
                    queries = self._moved(searcher, self.queries[number][block.first : block.end], own)
                    found[number] = self._searched(number, queries, tick)
            yield block._replace(found=found)

    # ------------------------------------------------------------------------------------------------- one ranking

    def fused(self, blocks: Iterable[Block]) -> Iterator[Hits]:
        """One ranking of several, or that of the only one, with the queries numbered as in their table."""
        if self.config.sources == 1:
            yield from (block.found[0]._replace(query=block.found[0].query + block.first) for block in blocks)
            return
        blocks, weights = self._weighted(blocks, last=True)
        for block in blocks:
            hits = self._fusion(block, weights, self.config.first_depth)
            yield hits._replace(query=hits.query + block.first)

    def reranked(self, hits: Iterator[Hits], tick: Tick | None = None) -> Iterator[Hits]:
        """The same in the order of the cross-encoder, where there is one."""
        reranker = self.pipeline.reranker
        if reranker is None:
            return hits
        return reranked(hits, reranker, self.asked.texts, self.config.run_depth, tick)

    def _fusion(self, block: Block, weights: np.ndarray, depth: int) -> Hits:
        own = weights if weights.ndim == 1 else weights[:, block.first : block.end]
        return self._shared(block).hits(own, depth)

    def _shared(self, block: Block) -> Shared:
        ids = self.query_ids.slice(block.first, block.end - block.first)
        return share_hits(self.config.fuse or DEFAULT_FUSION, ids, block.found)

    def _weighted(self, blocks: Iterable[Block], *, last: bool) -> tuple[Iterable[Block], np.ndarray]:
        """The same blocks and the weights [R] that were given or are 1, or those [R, Q] that are best on judgments.

        last: whether the result is fused with them, so that a note gives them.
        """
        config = self.config
        if config.tune_on is None:
            return blocks, np.array(config.fuse_weights or [1.0] * config.sources)
        from retrievo.commands.search.fusion_weights import advice, cross_validated
        from retrievo.data.qrels import Qrels

        held = list(blocks)
        qrels = Qrels.read(config.tune_on).table
        tuned = cross_validated(self._judged(held, qrels), qrels, config.tune_metric)
        if last:
            best = advice(config.places, tuned.overall.tolist())
            console.note(f"weights by cross-validation on {config.tune_metric}; best on all: {best}")
        return held, tuned.weights

    def _judged(self, blocks: Iterable[Block], qrels: pa.Table) -> Shared:
        """What all indexes say of the documents of judged queries."""
        import pyarrow as pa
        import pyarrow.compute as pc

        judged = pc.is_in(self.query_ids, value_set=flat_strings(qrels["query_id"]).unique()).to_numpy(False)
        parts = []
        for block in blocks:
            own = judged[block.first : block.end]
            found = [hits.at(np.flatnonzero(own[hits.query])) for hits in block.found]
            parts.append((block.first, self._shared(block._replace(found=found))))
        query = np.concatenate([np.empty(0, np.int64), *(part.query + first for first, part in parts)])
        ids = pa.concat_arrays([pa.array([], pa.large_string()), *(part.doc_id for _, part in parts)])
        shares = np.concatenate([np.empty((self.config.sources, 0)), *(part.shares for _, part in parts)], axis=1)
        return Shared(self.query_ids, query, ids, shares)

    def _documents(self, hits: Hits) -> Hits:
        return documents_of(self.config.doc_aggregate or "", self.config.doc_separator, hits)

    def _unmarked(self, hits: Hits) -> Hits:
        """Hits with plain ids, in the order that these have."""
        assert self.pipeline.shelves is not None
        marked = hits.ids()
        plain = without_mark(marked)
        check_distinct(self.pipeline.shelves, hits.query, marked, plain)
        order = first_ranked(hits.query, hits.score, plain, max(1, len(plain)))
        return Hits.of_ids(hits.query, plain, hits.score).at(order)

    # --------------------------------------------------------------------------------------------------- what is shown

    def progress(self) -> contextlib.AbstractContextManager[Tick]:
        """A bar of pairs where a cross-encoder reads them, else of what the indexes do."""
        config, count = self.config, len(self.query_ids)
        if self.pipeline.reranker is not None:
            return console.progress("searching and reranking", count * config.first_depth, "pairs")
        searchers = self.pipeline.searchers
        twice = [1 + bool(config.feedback and can(searcher.index, FEEDBACK)) for searcher in searchers]
        work = [searcher.work(count, self.depth) * times for searcher, times in zip(searchers, twice, strict=True)]
        return console.progress("searching", sum(work), searchers[0].unit if len(searchers) == 1 else "steps")

    def _warn_of_short_rankings(self) -> None:
        """Names the option of an approximate index that found fewer documents than were asked for."""
        for searcher, short in zip(self.pipeline.searchers, self._short, strict=True):
            if short:
                path, flag = searcher.index.path, flag_of(searcher.index.manifest.stats.get("knob") or "rescore")
                found = f"{short:,} queries found fewer than {self.depth:,} documents"
                console.warn(f"{path}: {found}; pass a higher {flag}")


def _marked(mark: str, hits: Hits) -> Hits:
    """The same hits with ids that say of which corpus they are."""
    return Hits.of_ids(hits.query, with_mark(mark, hits.ids()), hits.score) if mark else hits


def _own(mark: str, hits: Hits) -> Hits:
    """The hits of one corpus of several, with plain ids: documents of others never move a query."""
    return own_hits(mark, hits) if mark else hits
