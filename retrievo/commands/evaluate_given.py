"""`retrievo.evaluate`: runs and judgments as people hand them to the library, or a Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from retrievo.commands import evaluate as runs_evaluated
from retrievo.commands.evaluate import EvaluateConfig
from retrievo.commands.evaluate_suite import evaluate_any
from retrievo.evaluation.names import DEFAULT_METRICS
from retrievo.support.errors import UsageError, did_you_mean
from retrievo.support.values import Values
from retrievo.support.verbs import config_of

if TYPE_CHECKING:
    import pyarrow as pa

    from retrievo.data.given import PathLike, QrelsLike, RunLike
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.evaluation.comparison import Evaluation
    from retrievo.evaluation.suite import Suite

ONLY_RUN = "run"  # what a run in memory is called that nobody named
_OF_FILES = ("per_query", "report")


@overload
def evaluate(run: EvaluateConfig) -> Evaluation | Suite: ...


@overload
def evaluate(
    run: RunLike | Mapping[str, RunLike],
    qrels: QrelsLike | None = None,
    metrics: Sequence[str] | str = DEFAULT_METRICS,
    *,
    baseline: str | None = None,
    **fields: Any,
) -> Evaluation: ...


def evaluate(
    run: object,
    qrels: QrelsLike | None = None,
    metrics: Sequence[str] | str = DEFAULT_METRICS,
    *,
    baseline: str | None = None,
    **fields: Any,
) -> Any:
    """Scores a run against judgments: `print` shows the means, `[metric]` is one, `per_query()` has every value.

    run:      a path, a table (results of `Index.search` too), {query: {document: score}}, or {name: run} for several.
              Or the Config of `retrievo evaluate`, alone: one with `suite` or `known_item` gives a Suite.
    qrels:    a path, a table, or {query: {document: grade}}.
    baseline: the name of the run that the others are tested against.
    fields:   other options of `retrievo evaluate` for runs that are there, such as `convention` or `min_relevance`.

    Raises: RetrievoError for what is no run and what are no judgments; UsageError for options that do not exist.
    """
    if isinstance(run, EvaluateConfig):
        return evaluate_any(run)
    given = {name: _run(one, name) for name, one in _by_name(run).items()}
    if baseline is not None and baseline not in given:
        raise UsageError("baseline", f"found '{baseline}'", None, did_you_mean(baseline, given))
    for name in fields:
        if name in _OF_FILES:
            raise UsageError(name, "is for runs and judgments that are files", None, "pass an EvaluateConfig")
    config = config_of(EvaluateConfig, "evaluate()", None, {**fields, "metrics": metrics})
    return runs_evaluated.measured(config, given, _qrels(qrels), baseline)


def _by_name(run: object) -> Values:
    """Runs by name, of one run too: documents have numbers, and runs have not."""
    from retrievo.data.given import is_path
    from retrievo.data.run_files import run_name

    if isinstance(run, Mapping) and run and not all(map(_is_ranking, run.values())):
        return dict(run)
    return {run_name(Path(run)) if is_path(run) else ONLY_RUN: run}


def _is_ranking(found: object) -> bool:
    """Whether this is {document: score}."""
    return isinstance(found, Mapping) and not any(isinstance(value, Mapping) for value in found.values())


def _run(given: PathLike | RunLike, name: str) -> Run | pa.Table:
    from retrievo.data.given import is_path, run_table
    from retrievo.data.run import Run

    return Run.open(Path(given)) if is_path(given) else run_table(given, name)


def _qrels(given: QrelsLike | None) -> Qrels | pa.Table | None:
    from retrievo.data.given import is_path, qrels_table
    from retrievo.data.qrels import Qrels

    if given is None:
        return None
    return Qrels.read(Path(given)) if is_path(given) else qrels_table(given)
