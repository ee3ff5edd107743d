"""Weights of a fusion chosen by cross-validation, so that no query is fused with weights that it had a say in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from retrievo.support import console
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.retrieval.fusion import Shared

FOLDS = 5
_STEPS = {2: 10, 3: 5}  # of the grid of weights that sum to 1; 4 for more runs


class Tuned(NamedTuple):
    """Weights [R, Q] of each query, and those [R] that are best on all judged queries."""

    weights: np.ndarray
    overall: np.ndarray


def cross_validated(shared: Shared, qrels: pa.Table, metric: str) -> Tuned:
    """For each fifth of the judged queries the weights that are best on the other four; ties go to the most even.

    The fold of a query depends on its id alone. Queries without judgments get the weights that are best on all.

    Raises: UsageError for a metric that can't be read; RetrievoError where fewer than 10 queries are judged.
    """
    import numpy as np

    grid = _grid(len(shared.shares))  # [G, R]
    values, judged = _values(shared, qrels, metric, grid)  # [G, J], rows [J] of the queries
    if len(judged) < 2 * FOLDS:
        raise RetrievoError("--tune-on", f"judges {len(judged)} of the queries", f"at least {2 * FOLDS}")
    overall = grid[values.mean(axis=1).argmax()]
    weights = np.tile(overall[:, None], len(shared.query_ids))
    folds = _folds(shared.query_ids)[judged]
    for fold in range(FOLDS):
        others = values[:, folds != fold]
        if others.shape[1]:
            weights[:, judged[folds == fold]] = grid[others.mean(axis=1).argmax()][:, None]
    return Tuned(weights, overall)


def _grid(runs: int) -> np.ndarray:
    """Weights [G, R] on a grid that sum to 1, the most even first."""
    import numpy as np

    steps = _STEPS.get(runs, 4)
    shared_out = itertools.combinations_with_replacement(range(runs), steps)  # which run has each step of the weight
    parts = [tuple(has.count(run) for run in range(runs)) for has in shared_out]
    parts.sort(key=lambda part: (max(part) - min(part), part))
    return np.array(parts) / steps


def _values(shared: Shared, qrels: pa.Table, metric: str, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The metric [G, J] of each judged query under each weighting, and the rows [J] of those queries."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings
    from retrievo.evaluation.names import Metric
    from retrievo.evaluation.scoring import evaluate

    wanted = Metric.parse(metric)
    ours = pc.is_in(flat_strings(qrels["query_id"]), value_set=flat_strings(pa.chunked_array([shared.query_ids])))
    qrels = qrels.filter(ours)
    if not qrels.num_rows:
        raise RetrievoError("--tune-on", "judges none of the queries", None, "pass the judgments of these queries")
    values = []
    with console.progress("tuning the weights", len(grid), "weightings") as tick:
        for weights in grid:
            scored = evaluate(shared.run(weights, wanted.cutoff), qrels, [wanted])
            values.append(scored.values[wanted])
            tick(1)
    rows = pc.index_in(flat_strings(scored.query_ids), flat_strings(shared.query_ids)).to_numpy()
    return np.stack(values), rows.astype(np.int64)


def _folds(query_ids: pa.Array) -> np.ndarray:
    """The fold [Q] of each query: a function of its id."""
    import numpy as np

    from retrievo.data.ids import hash_texts

    return (np.array(hash_texts(query_ids.to_pylist())) % np.uint64(FOLDS)).astype(np.int64)


def advice(places: Sequence[object], weights: Sequence[float]) -> str:
    """What to type for weights that were found, of indexes and runs: the flag takes no 0."""
    unused = [f"leave out {place}, which is of no use" for place, own in zip(places, weights, strict=True) if not own]
    used = [f"{own:g}" for own in weights if own]
    return "; ".join([*unused, *([f"--fuse-weights {','.join(used)}"] if len(used) > 1 else [])])
