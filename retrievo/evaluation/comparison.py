"""Several runs side by side: their means, and whether their differences from a baseline are more than chance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrievo.evaluation.metrics import PerQuery
from retrievo.evaluation.names import Metric
from retrievo.evaluation.significance import randomization_test, t_test
from retrievo.support import console


@dataclass(frozen=True)
class Test:
    """One metric of one run against the baseline: mean difference and two-sided p-values over paired queries."""

    difference: float
    p_t_test: float
    p_randomization: float


@dataclass(frozen=True)
class Evaluation:
    """What `retrievo evaluate` found.

    metrics:  as typed -> the metric.
    runs:     name -> its values for every query, in the order given.
    baseline: the run that the others are compared with.
    tests:    run -> metric as typed -> the test of their difference.
    """

    metrics: dict[str, Metric]
    runs: dict[str, PerQuery]
    baseline: str | None = None
    tests: dict[str, dict[str, Test]] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: dict[str, Metric], runs: dict[str, PerQuery], baseline: str | None, seed: int) -> Evaluation:
        """Compares the runs; without a baseline there are no tests."""
        if baseline is None:
            return cls(metrics, runs)
        base = runs[baseline]
        tests = {
            name: {typed: _test(found, base, metric, seed) for typed, metric in metrics.items()}
            for name, found in runs.items()
            if name != baseline
        }
        return cls(metrics, runs, baseline, tests)

    def means(self) -> dict[str, dict[str, float]]:
        """Run name -> metric as typed -> mean, unrounded."""
        found = {name: per_query.means() for name, per_query in self.runs.items()}
        return {name: {typed: means[metric] for typed, metric in self.metrics.items()} for name, means in found.items()}

    def table(self) -> pa.Table:
        """One row per run and query: `run`, `query_id`, then a column for each metric as typed."""
        return pa.concat_tables(_named(name, found, self.metrics) for name, found in self.runs.items())

    def say_notes(self, missing: str) -> None:
        """Tells what the means are taken over, where that is not plain."""
        for name, found in self.runs.items():
            if found.missing:
                effect = "counted as 0" if missing == "zero" else "left out"
                console.note(f"{name}: {found.missing:,} of {found.judged:,} judged queries are missing, {effect}")
            if found.unjudged:
                console.note(f"{name}: {found.unjudged:,} queries have no judgements and are left out")
            if found.removed:
                console.note(f"{name}: {found.removed:,} rows removed whose document id is the query id")

    def print(self, *, as_json: bool = False) -> None:
        """The means as a table (and the tests as a second one), or all of it as JSON."""
        if as_json:
            print(json.dumps(self.as_json(), ensure_ascii=False, indent=2))
            return
        rows = [[name, *(_rounded(value) for value in means.values())] for name, means in self.means().items()]
        console.print_table(["run", *self.metrics], rows)
        if self.tests:
            console.print_table(
                ["run", "metric", "difference", "p (t-test)", "p (randomization)"],
                [_test_row(name, typed, test) for name, tests in self.tests.items() for typed, test in tests.items()],
                title=f"compared with {self.baseline}",
            )

    def as_json(self) -> dict[str, dict[str, float | None]]:
        """Run name -> metric as typed -> mean, unrounded; with a baseline also the difference and its p-values."""
        values: dict[str, dict[str, float | None]] = {
            name: {typed: None if math.isnan(mean) else mean for typed, mean in means.items()}
            for name, means in self.means().items()
        }
        for name, tests in self.tests.items():
            for typed, test in tests.items():
                values[name] |= {f"{typed} {key}": _finite(value) for key, value in vars(test).items()}
        return values


def run_names(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """The short name of each run, or its path where two runs share a name."""
    return [name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)]


def _named(name: str, found: PerQuery, metrics: dict[str, Metric]) -> pa.Table:
    queries = found.query_ids.cast(pa.string())
    columns = {typed: pa.array(found.values[metric], from_pandas=True) for typed, metric in metrics.items()}
    return pa.table({"run": pa.array([name] * len(queries), pa.string()), "query_id": queries, **columns})


def _test(found: PerQuery, base: PerQuery, metric: Metric, seed: int) -> Test:
    """Tests the queries that both runs have a value for."""
    if metric.needs_reference:
        shared = {query: row for row, query in enumerate(base.query_ids.to_pylist())}
        rows = np.array([shared.get(query, -1) for query in found.query_ids.to_pylist()])
        ours, theirs = found.values[metric][rows >= 0], base.values[metric][rows[rows >= 0]]
    else:
        ours, theirs = found.values[metric], base.values[metric]
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    ours, theirs = ours[both], theirs[both]
    difference = float((ours - theirs).mean()) if len(ours) else math.nan
    return Test(difference, t_test(ours, theirs), randomization_test(ours, theirs, seed=seed))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _test_row(name: str, typed: str, test: Test) -> list[str]:
    return [name, typed, f"{test.difference:+.4f}", _p_value(test.p_t_test), _p_value(test.p_randomization)]


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else ("<0.0001" if p < 0.0001 else f"{p:.4f}")
