"""A model beside BM25 on many datasets: one table a metric, with averages and best-on counts (Contriever, Table 1)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape

from retrievo.evaluation.comparison import Evaluation
from retrievo.evaluation.formats import TABLE_STYLES, number
from retrievo.evaluation.report import html_table, page, sections


@dataclass(frozen=True)
class Suite:
    """What a sweep found: dataset -> the evaluation of the same runs on it."""

    evaluations: dict[str, Evaluation]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        return list(next(iter(self.evaluations.values())).metrics)

    def values(self, typed: str) -> dict[str, dict[str, float]]:
        """Dataset -> run -> mean of one metric."""
        means = {dataset: found.means() for dataset, found in self.evaluations.items()}
        return {dataset: {run: row[typed] for run, row in found.items()} for dataset, found in means.items()}

    def averages(self, typed: str) -> dict[str, float]:
        """Run -> mean over datasets; every dataset counts the same."""
        values = list(self.values(typed).values())
        return {run: math.fsum(found[run] for found in values) / len(values) for run in values[0]}

    def best_on(self, typed: str) -> dict[str, int]:
        """Run -> datasets on which no other run is better; a tie counts for all."""
        values = list(self.values(typed).values())
        return {run: sum(found[run] >= max(found.values()) for found in values) for run in values[0]}

    def tables(self) -> list[tuple[str | None, list[str], list[list[str]]]]:
        """For each metric: title, columns and rows."""
        return [(typed, ["dataset", *self.averages(typed)], self._rows(typed)) for typed in self.metrics]

    def _rows(self, typed: str) -> list[list[str]]:
        rows = [[dataset, *map(number, found.values())] for dataset, found in self.values(typed).items()]
        rows.append(["average", *map(number, self.averages(typed).values())])
        return [*rows, ["best on", *map(str, self.best_on(typed).values())]]

    def as_text(self, style: str) -> str:
        """In one of the styles of `formats`; a table is printed at once and leaves no text."""
        if style == "json":
            return json.dumps(self._json(), ensure_ascii=False, indent=2)
        if style == "csv":
            rows = [
                f'"{dataset}","{run}",{typed},{value!r}'
                for typed in self.metrics
                for dataset, found in self.values(typed).items()
                for run, value in found.items()
            ]
            return "\n".join(["dataset,run,metric,mean", *rows])
        return TABLE_STYLES[style](self.tables())

    def _json(self) -> dict[str, dict[str, dict[str, float]]]:
        """Dataset -> run -> metric -> mean; then the averages and the best-on counts under names of their own."""
        found = {dataset: evaluation.means() for dataset, evaluation in self.evaluations.items()}
        runs = next(iter(found.values()))
        found["average"] = {run: {typed: self.averages(typed)[run] for typed in self.metrics} for run in runs}
        found["best on"] = {run: {typed: self.best_on(typed)[run] for typed in self.metrics} for run in runs}
        return found

    def report(self, title: str) -> str:
        """The tables, then a section for each dataset, as one page of HTML."""
        parts = [f"<h1>{escape(title)}</h1>"]
        parts += [f'<p class="note">{escape(line)}</p>' for line in self.notes]
        for typed, columns, rows in self.tables():
            cells = [[escape(cell) for cell in row] for row in rows]
            parts.append(f"<h2>{escape(typed or '')}</h2>{html_table(columns, cells)}")
        for dataset, evaluation in self.evaluations.items():
            parts += [f"<h2>{escape(dataset)}</h2>", *sections(evaluation, level=3)]
        return page(title, parts)


def print_suite(suite: Suite, style: str) -> None:
    """Prints to stdout in one of the styles of an evaluation."""
    if text := suite.as_text(style):
        print(text)
