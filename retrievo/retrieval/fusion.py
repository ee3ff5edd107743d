"""Fusion: several runs of the same queries become one.

The table of names is standard library only, so that the command line can list it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from retrievo.support.errors import RetrievoError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.retrieval.hits import Hits, IdList

RRF_K = 60  # as in the paper


class Shares(NamedTuple):
    """What a run says of the documents that it has, and of a query's others."""

    present: np.ndarray  # float64 [H]
    absent: np.ndarray  # float64 [Q]


def reciprocal_ranks(run: Hits, queries: int) -> Shares:
    """1 / (k + rank) with k = 60, 0 for documents that the run lacks (Cormack, Clarke & Buettcher 2009, RRFscore)."""
    import numpy as np

    from retrievo.data.ordering import ranks

    return Shares(1 / (RRF_K + ranks(run.query).astype(np.float64)), np.zeros(queries))


def z_scores(run: Hits, queries: int) -> Shares:
    """(score - mean) / standard deviation over the run's documents of a query.

    A document that the run lacks gets the lowest value of the query: it scored no higher than the last one found.
    Where all documents score the same, as an only one does, there is no deviation; that they were found is all that the
    run says, so they get 1 and the others -1, the z-scores of two values.
    """
    import numpy as np

    score, (first, last) = run.score.astype(np.float64), _ends(run.query)
    size = np.maximum(np.bincount(run.query, minlength=queries), 1)
    mean = np.bincount(run.query, score, queries) / size
    centered = score - mean[run.query]
    deviation = np.sqrt(np.bincount(run.query, centered**2, queries) / size)
    flat = np.zeros(queries, bool)
    flat[run.query[first]] = score[first] == score[last]  # of which the deviation may be off from 0 by a rounding
    deviation[flat | (deviation == 0)] = 1
    normalized = np.where(flat[run.query], 1.0, centered / deviation[run.query])
    lowest = np.zeros(queries)
    lowest[run.query[last]] = np.where(flat[run.query[last]], -1.0, normalized[last])
    return Shares(normalized, lowest)


def min_max(run: Hits, queries: int) -> Shares:
    """(score - lowest) / (highest - lowest) of the run's documents of a query, 1 where all of them score the same.

    A document that the run lacks gets 0, as the lowest one found.
    """
    import numpy as np

    score, (first, last) = run.score.astype(np.float64), _ends(run.query)
    lowest, width = np.zeros(queries), np.zeros(queries)
    lowest[run.query[first]] = score[last]
    width[run.query[first]] = score[first] - score[last]
    flat = width[run.query] == 0
    scaled = (score - lowest[run.query]) / np.where(flat, 1, width[run.query])
    return Shares(np.where(flat, 1.0, scaled), np.zeros(queries))


def _ends(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the first and of the last hit of each query that has any."""
    import numpy as np

    first = np.flatnonzero(np.diff(query, prepend=-1))
    return first, np.append(first[1:], len(query))[: len(first)] - 1


@dataclass(frozen=True)
class Fusion:
    """One way to fuse: what each run says of a document; this is weighted and summed over the runs.

    shares: of hits in the order of the ordering rule, and of the number of all queries, with hits or not.
    """

    help: str
    shares: Callable[[Hits, int], Shares]


FUSIONS = {
    "rrf": Fusion("sum of 1 / (60 + rank)", reciprocal_ranks),
    "minmax": Fusion("sum of scores, each run's stretched to 0 to 1 within a query", min_max),
    "zscore": Fusion("sum of scores, each run's normalized to mean 0 and deviation 1 within a query", z_scores),
}


def fuse(
    method: str,
    runs: Sequence[pa.Table],
    weights: Sequence[float] | None = None,
    *,
    queries: pa.ChunkedArray | None = None,
    depth: int | None = None,
) -> pa.Table:
    """One run of all documents that any run has: score = sum_r w_r share_r(document), rounded once to float32.

    weights: one for each run, more than 0; default 1 each. Other arguments and errors: see `share` and `Shared.hits`.
    """
    import numpy as np

    checked = _checked_weights(weights, len(runs))
    return share(method, runs, queries=queries).run(np.array(checked), depth)


class Shared(NamedTuple):
    """What every run says of every document that any of them has, P pairs of a query and a document."""

    query_ids: pa.Array  # [Q]
    query: np.ndarray  # int64 [P], ascending
    doc_id: pa.Array  # [P]
    shares: np.ndarray  # float64 [R, P]

    def hits(self, weights: np.ndarray, depth: int | None = None) -> Hits:
        """The documents by weighted sums, which do not depend on the order of the runs where their weights are equal.

        weights: [R], or [R, Q] for weights of each query's own; depth: most documents of a query, default all.
        """
        import numpy as np
        import pyarrow as pa

        from retrievo.data.ordering import first_ranked
        from retrievo.retrieval.hits import Hits

        weighted = self.shares * (weights[:, None] if weights.ndim == 1 else weights[:, self.query])
        # sorted: the last bits of a sum depend on the order of its terms
        score = np.sort(weighted, axis=0).sum(axis=0).astype(np.float32)
        order = first_ranked(self.query, score, self.doc_id, max(1, len(score)) if depth is None else depth)
        return Hits.of_ids(self.query[order], self.doc_id.take(pa.array(order)), score[order])

    def run(self, weights: np.ndarray, depth: int | None = None) -> pa.Table:
        """The same as a table with the columns of a run."""
        import pyarrow as pa

        from retrievo.data.columns import table_of
        from retrievo.data.ordering import ranks
        from retrievo.data.tables import RUN

        hits = self.hits(weights, depth)
        query_id = self.query_ids.take(pa.array(hits.query))
        return table_of([query_id, hits.ids(), hits.score, ranks(hits.query)], RUN.arrow)


def share(method: str, runs: Sequence[pa.Table], *, queries: pa.ChunkedArray | None = None) -> Shared:
    """What each of the runs says of all documents; ranks that a run carries are not looked at, the ordering rule
    gives them.

    runs:    tables with columns query_id, doc_id and score.
    queries: ids of all queries, whose order the result has; default: as they come in the first run, then in the next.

    Raises: as `share_hits`; RetrievoError for a query that is not in `queries`.
    """
    from retrievo.retrieval.hits import Hits

    numbers, query_ids = _numbered([run["query_id"] for run in runs], queries)
    scores = [run["score"].to_numpy().astype("float32") for run in runs]
    hits = [Hits.of_ids(own, run["doc_id"], score) for own, run, score in zip(numbers, runs, scores, strict=True)]
    return share_hits(method, query_ids, hits)


def share_hits(method: str, query_ids: pa.Array, runs: Sequence[Hits]) -> Shared:
    """What each of the runs says of all documents, of the queries with these ids.

    Raises: UsageError for a method that is not in `FUSIONS`; RetrievoError for a document that a run has twice for a
    query, and a score that is not finite.
    """
    import numpy as np

    from retrievo.data.ordering import flat_strings

    if method not in FUSIONS:
        raise UsageError("fusion", f"found '{method}'", None, did_you_mean(method, FUSIONS))
    documents, space = _one_space(runs)
    keys = [hits.query * space.rows + document for hits, document in zip(runs, documents, strict=True)]
    pairs = np.unique(np.concatenate(keys))  # [P] of a query and a document
    query, document = np.divmod(pairs, max(1, space.rows))
    shares = np.empty((len(runs), len(pairs)))  # [R, P]
    for row, hits in enumerate(runs):
        order = _order(hits, query_ids, f"run {row + 1}")
        present, absent = FUSIONS[method].shares(hits.at(order), len(query_ids))
        shares[row] = absent[query]
        shares[row, np.searchsorted(pairs, keys[row][order])] = present
    return Shared(query_ids, query, flat_strings(space.ids(document)), shares)


def _one_space(runs: Sequence[Hits]) -> tuple[list[np.ndarray], IdList]:
    """The documents of all runs as rows int64 [n] of one space: of the ids that occur."""
    from retrievo.retrieval.hits import IdList

    rows, ids = _numbered([hits.ids() for hits in runs])
    return rows, IdList(ids)


def _checked_weights(weights: Sequence[float] | None, runs: int) -> Sequence[float]:
    if not runs:
        raise RetrievoError("fusion", "no runs", "at least one")
    if weights is not None and (len(weights) != runs or not all(0 < weight < math.inf for weight in weights)):
        found = ", ".join(f"{weight:g}" for weight in weights)
        raise RetrievoError("weights", f"found {found or 'none'}", f"{runs} numbers above 0, one for each run")
    return weights or [1.0] * runs


def _numbered(
    columns: Sequence[pa.Array | pa.ChunkedArray], known: pa.ChunkedArray | None = None
) -> tuple[list[np.ndarray], pa.LargeStringArray]:
    """The number of each id, int64 [n] for each column, and the ids by number: those known, else as they come.

    Raises: RetrievoError for an id that is not among those known.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings

    flat = [flat_strings(column) for column in columns]
    ids = pa.concat_arrays(flat).unique() if known is None else flat_strings(known)
    places = [pc.index_in(column, ids) for column in flat]
    for row, (column, place) in enumerate(zip(flat, places, strict=True)):
        if place.null_count:
            stranger = column.filter(place.is_null())[0].as_py()
            raise RetrievoError(f"run {row + 1}", f"has a query '{stranger}' that is not in the table of queries")
    return [place.to_numpy().astype("int64") for place in places], ids


def _order(hits: Hits, query_ids: pa.Array, where: str) -> np.ndarray:
    """The permutation [H] that puts a run in the order of the ordering rule.

    Raises: RetrievoError for a document that a query has twice.
    """
    from retrievo.data.ordering import ranked, repeated

    ids = hits.ids()
    if twice := repeated(hits.query, ids):
        query_id, doc_id = query_ids[int(hits.query[twice[0]])].as_py(), ids[twice[0]].as_py()
        found = f"has document '{doc_id}' twice for query '{query_id}'"
        raise RetrievoError(where, found, "each document once for a query")
    return ranked(hits.query, hits.score, ids)
