"""Compares a model with BM25 on many datasets: a table per metric with averages and best-on counts, as Contriever's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import pyarrow as pa

from retrievo.evaluation.comparison import Evaluation, text_table
from retrievo.evaluation.formats import TABLE_STYLES, Titled, csv_text, number, p_value
from retrievo.evaluation.report import best_cells, html_table, page, paragraphs, sections
from retrievo.support import console
from retrievo.support.errors import RetrievoError, did_you_mean

LEGEND = (
    "Bold: the best of a row. Every dataset counts the same in the average. p: two-sided, of the paired randomization "
    "test over the queries of a dataset."
)


@dataclass(frozen=True)
class Suite:
    """The result of an evaluation suite: dataset -> the evaluation of the same runs on it."""

    evaluations: dict[str, Evaluation]
    notes: tuple[str, ...] = ()

    def __getitem__(self, dataset: str) -> Evaluation:
        """The evaluation of one dataset.

        Raises: RetrievoError for a dataset that the suite does not have.
        """
        if dataset not in self.evaluations:
            raise RetrievoError("suite", f"has no dataset '{dataset}'", None, did_you_mean(dataset, self.evaluations))
        return self.evaluations[dataset]

    def keys(self) -> list[str]:
        """The names of the datasets: `dict(suite)` is {dataset: evaluation}."""
        return list(self.evaluations)

    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """The unrounded means: dataset -> run -> metric as typed -> mean; of a run without results 0."""
        by_metric = {typed: self.values(typed) for typed in self.metrics}
        runs = list(self.averages(self.metrics[0]))
        return {
            dataset: {run: {typed: found[dataset][run] for typed, found in by_metric.items()} for run in runs}
            for dataset in self.evaluations
        }

    def table(self) -> pa.Table:
        """A table with one row per dataset and run: `dataset`, `run`, then the mean of each metric."""
        rows = [
            {"dataset": dataset, "run": run, **values}
            for dataset, runs in self.means().items()
            for run, values in runs.items()
        ]
        return pa.Table.from_pylist(rows)

    def __str__(self) -> str:
        """A table of the means, a line for each dataset and run."""
        rows = [
            [dataset, run, *map(number, values.values())]
            for dataset, runs in self.means().items()
            for run, values in runs.items()
        ]
        return text_table([["dataset", "run", *self.metrics], *rows])

    def __repr__(self) -> str:
        return str(self)

    @property
    def metrics(self) -> list[str]:
        """The metrics as typed."""
        return list(next(iter(self.evaluations.values())).metrics)

    def values(self, typed: str) -> dict[str, dict[str, float]]:
        """The means of one metric: dataset -> run -> mean.

        A run without any results counts as 0, even where the rules skip missing queries, because averaging it over
        fewer datasets would reward it.
        """
        means = {dataset: found.means() for dataset, found in self.evaluations.items()}
        return {
            dataset: {run: 0.0 if math.isnan(row[typed]) else row[typed] for run, row in found.items()}
            for dataset, found in means.items()
        }

    def averages(self, typed: str) -> dict[str, float]:
        """The mean over datasets, each with the same weight: run -> mean."""
        values = list(self.values(typed).values())
        return {run: math.fsum(found[run] for found in values) / len(values) for run in values[0]}

    def best_on(self, typed: str) -> dict[str, int]:
        """The number of datasets on which no other run is better: run -> count; a tie counts for all tied runs."""
        values = list(self.values(typed).values())
        return {run: sum(found[run] >= max(found.values()) for found in values) for run in values[0]}

    def tables(self) -> list[Titled]:
        """Title, columns and rows of each metric's table; the p-value compares the model with BM25."""
        return [(typed, ["dataset", *self.averages(typed), "p"], self._rows(typed)) for typed in self.metrics]

    def _rows(self, typed: str) -> list[list[str]]:
        rows = [
            [dataset, *map(number, found.values()), self._p(dataset, typed)]
            for dataset, found in self.values(typed).items()
        ]
        rows.append(["average", *map(number, self.averages(typed).values()), ""])
        return [*rows, ["best on", *map(str, self.best_on(typed).values()), ""]]

    def _p(self, dataset: str, typed: str) -> str:
        """The p-value of the paired randomization test on one dataset."""
        tests = self.evaluations[dataset].tests.values()
        return ", ".join(p_value(found[typed].p_randomization) for found in tests)

    def as_text(self, style: str) -> str:
        """The suite in one of the styles of `formats`; the style `table` is printed directly and returns no text."""
        if style == "json":
            return console.json_text(self._json())
        if style == "csv":
            return csv_text(["dataset", "run", "metric", "mean"], self._long())
        return TABLE_STYLES[style](self.tables())

    def _long(self) -> Iterator[list[object]]:
        """Yields one row per metric, dataset and run, unrounded."""
        for typed in self.metrics:
            for dataset, found in self.values(typed).items():
                yield from ([dataset, run, typed, value] for run, value in found.items())

    def _json(self) -> dict[str, dict[str, dict[str, float]]]:
        """The means, the averages and the best-on counts as nested dictionaries."""
        by_metric: dict[str, dict[str, dict[str, float]]] = {
            typed: self.values(typed) | {"average": self.averages(typed), "best on": dict(self.best_on(typed))}
            for typed in self.metrics
        }
        first = next(iter(by_metric.values()))
        return {
            name: {run: {typed: found[name][run] for typed, found in by_metric.items()} for run in runs}
            for name, runs in first.items()
        }

    def report(self, title: str) -> str:
        """The tables and a section for each dataset, as one HTML page."""
        tables = "".join(
            f"<section><h2>{escape(typed or '')}</h2>"
            f"{html_table(columns, rows, best=self._best(typed or ''), totals=2)}</section>"
            for typed, columns, rows in self.tables()
        )
        links = "".join(f'<a href="#{escape(name, quote=True)}">{escape(name)}</a>' for name in self.evaluations)
        parts = [
            *paragraphs(self.notes),
            f'<div class="beside">{tables}</div>',
            *paragraphs([LEGEND]),
            f"<nav>{links}</nav>",
        ]
        for dataset, evaluation in self.evaluations.items():
            parts += [f'<h2 class="part" id="{escape(dataset, quote=True)}">{escape(dataset)}</h2>']
            parts += sections(evaluation, "h3")
        return page(title, parts)

    def _best(self, typed: str) -> set[tuple[int, int]]:
        """The cells of a table with the best value of their row."""
        rows: list[Mapping[str, float]] = [*self.values(typed).values(), self.averages(typed), self.best_on(typed)]
        return {(at, run + 1) for at, run in best_cells([[*row.values()] for row in rows])}


def print_suite(suite: Suite, style: str) -> None:
    """Prints to stdout in one of the styles of an evaluation."""
    if text := suite.as_text(style):
        print(text)
