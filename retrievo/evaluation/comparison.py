"""Compares several runs: their means, and whether their differences from a baseline are significant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrievo.data.columns import as_type
from retrievo.data.run import Run
from retrievo.evaluation.judged_run import JudgedRun, positions
from retrievo.evaluation.names import Metric
from retrievo.evaluation.scoring import PerQuery, Standard, depth_needed
from retrievo.evaluation.significance import bootstrap_intervals, holm, randomization_tests, t_test
from retrievo.evaluation.texts import Texts
from retrievo.support.errors import RetrievoError, did_you_mean

SHOWN_DEPTH = 10  # number of first rows of every query that are kept for display


@dataclass(frozen=True)
class Test:
    """The comparison of one run with the baseline in one metric, over the queries for which both have a value.

    difference:      mean of ours - theirs.
    low, high:       its 95 % bootstrap interval.
    wins, ties, losses: number of queries on which ours is better, equal, worse.
    p_t_test, p_randomization: two-sided p-values.
    p_holm:          p_randomization after Holm's correction over the runs that are compared in this metric.
    """

    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    p_t_test: float
    p_randomization: float
    p_holm: float


@dataclass(frozen=True)
class Evaluation:
    """The result of `retrievo evaluate`.

    metrics:     spelling on the command line -> metric.
    standard:    what the runs were measured against.
    judged_runs: run name -> judged rows of the run, in the order given.
    runs:        run name -> values for every query.
    texts:       the texts of queries and documents, if the tables can be found.
    baseline:    name of the run that the others are compared with.
    tests:       run name -> spelling of the metric -> test of the difference from the baseline.
    notes:       remarks to show with the means.
    """

    metrics: dict[str, Metric]
    standard: Standard
    judged_runs: dict[str, JudgedRun]
    runs: dict[str, PerQuery]
    texts: Texts
    baseline: str | None = None
    tests: dict[str, dict[str, Test]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        metrics: dict[str, Metric],
        standard: Standard,
        runs: Mapping[str, Run | pa.Table],
        texts: Texts,
        baseline: str | None,
        seed: int,
    ) -> Evaluation:
        """Reads and scores each run, then compares them; without a baseline there are no tests."""
        depth = max(depth_needed(standard.metrics), SHOWN_DEPTH + 1)
        judged_runs, scored = {}, {}
        for name, run in runs.items():
            judged_runs[name] = JudgedRun.of(run, standard.judgments, depth=depth, name=name)
            scored[name] = standard.score(judged_runs[name], name)
        tests = {} if baseline is None else _tests(metrics, scored, baseline, seed)
        return cls(metrics, standard, judged_runs, scored, texts, baseline, tests)

    def __getitem__(self, metric: str) -> float:
        """The mean of a metric, as it was typed, where one run was evaluated; of several see `means`.

        Raises: RetrievoError for another metric, and for several runs.
        """
        if metric not in self.metrics:
            raise RetrievoError("evaluation", f"has no metric '{metric}'", None, did_you_mean(metric, self.metrics))
        means = list(self.means().values())
        if len(means) > 1:
            raise RetrievoError("evaluation", f"holds {len(means)} runs", "one", "ask means()[run][metric]")
        return means[0][metric]

    def keys(self) -> list[str]:
        """The metrics as typed: `dict(evaluation)` is {metric: mean} where one run was evaluated."""
        return list(self.metrics)

    def per_query(self) -> dict[str, dict[str, dict[str, float]]]:
        """Run -> query id -> metric as typed -> value; what has no value is left out. `table` has it as Arrow table."""
        found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in self.runs}
        for row in self.table().to_pylist():
            values = {typed: row[typed] for typed in self.metrics if row[typed] is not None}
            found[row["run"]][row["query_id"]] = values
        return found

    def __str__(self) -> str:
        """A table of the means, a line for each run."""
        rows = [[name, *(f"{mean:.4f}" for mean in found.values())] for name, found in self.means().items()]
        return text_table([["run", *self.metrics], *rows])

    def __repr__(self) -> str:
        return str(self)

    @property
    def first_metric(self) -> str:
        """The metric, as spelled on the command line, by which single queries are compared."""
        return next(iter(self.metrics))

    def means(self) -> dict[str, dict[str, float]]:
        """The unrounded means: run name -> spelling of the metric -> mean."""
        found = {name: per_query.means() for name, per_query in self.runs.items()}
        return {name: {typed: means[metric] for typed, metric in self.metrics.items()} for name, means in found.items()}

    def table(self) -> pa.Table:
        """A table with one row per run and query: `run`, `query_id`, then a column for each metric."""
        return pa.concat_tables(_named(name, found, self.metrics) for name, found in self.runs.items())


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns of equal width; the first line has their names."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def run_names(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """The short name of each run, or its path where two runs have the same name."""
    return [name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)]


def paired(ours: PerQuery, theirs: PerQuery, metric: Metric) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """The queries for which both runs have a value, and these values."""
    at = positions(ours.query_ids, theirs.query_ids)
    mine, other = ours.values[metric], np.append(theirs.values[metric], np.nan)[at]  # -1 = the NaN at the end
    both = ~np.isnan(mine) & ~np.isnan(other)
    return ours.query_ids.filter(pa.array(both)), mine[both], other[both]


def _named(name: str, found: PerQuery, metrics: dict[str, Metric]) -> pa.Table:
    queries = as_type(found.query_ids, pa.string())
    columns = {typed: pa.array(found.values[metric], from_pandas=True) for typed, metric in metrics.items()}
    return pa.table({"run": pa.array([name] * len(queries), pa.string()), "query_id": queries, **columns})


def _tests(
    metrics: dict[str, Metric], runs: dict[str, PerQuery], baseline: str, seed: int
) -> dict[str, dict[str, Test]]:
    others = [name for name in runs if name != baseline]
    pairs = [paired(runs[name], runs[baseline], metric)[1:] for metric in metrics.values() for name in others]
    tests = iter(_tested(pairs, seed))
    found: dict[str, dict[str, Test]] = {name: {} for name in others}
    for typed in metrics:
        of_metric = [next(tests) for _ in others]
        adjusted = holm(np.array([test.p_randomization for test in of_metric]))
        for name, test, p in zip(others, of_metric, adjusted.tolist(), strict=True):
            found[name][typed] = replace(test, p_holm=p)
    return found


def _tested(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> list[Test]:
    """Tests the differences of values [Q] over queries for which both runs have a value."""
    differences = [ours - theirs for ours, theirs in pairs]
    p_values = randomization_tests(differences, seed=seed)
    intervals = bootstrap_intervals(differences, seed=seed)
    return [_test(*pair, interval, p) for pair, interval, p in zip(pairs, intervals, p_values, strict=True)]


def _test(ours: np.ndarray, theirs: np.ndarray, interval: tuple[float, float], p: float) -> Test:
    difference = float((ours - theirs).mean()) if len(ours) else math.nan
    wins, ties, losses = (
        int(count) for count in ((ours > theirs).sum(), (ours == theirs).sum(), (ours < theirs).sum())
    )
    return Test(difference, *interval, wins, ties, losses, t_test(ours, theirs), p, p_holm=p)
