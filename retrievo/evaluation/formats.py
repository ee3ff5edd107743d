"""Formats an evaluation as a table, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from retrievo.evaluation.comparison import Evaluation, Test
from retrievo.evaluation.details import changes, relevant_documents, top_documents
from retrievo.support import console

SIGNIFICANT = 0.05  # level of the Holm-corrected randomization test below which LaTeX marks a difference
Titled = tuple[str | None, list[str], list[list[str]]]  # title, columns and rows of a table
_PIPE = r"\|"
CHANGED = 10  # number of changed queries that are shown for a compared run
_TEXT_WIDTH = 60  # most characters of a query or document that are shown


def print_evaluation(evaluation: Evaluation, style: str, *, changed: int | None = 0) -> None:
    """Prints to stdout in one of FORMATS.

    changed: number of changed queries to show for each compared run; None = CHANGED where one run is compared, else 0,
             since the tests of several runs are read side by side.
    """
    if changed is None:
        changed = CHANGED if len(evaluation.tests) == 1 else 0
    text = FORMATS[style](evaluation, changed)
    if text:
        print(text)


def number(value: float) -> str:
    """Formats a value with four digits, or a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def p_value(p: float) -> str:
    """Formats a p-value with four digits, a dash for NaN, or a bound where it is tiny."""
    return "–" if math.isnan(p) else ("<0.0001" if p < 0.0001 else f"{p:.4f}")


TEST_COLUMNS = ("run", "metric", "difference", "95 % interval", "wins/ties/losses", "p (t-test)", "p (randomization)")


def test_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """The column names and rows of the tests, with Holm's correction where several runs are compared."""
    several = len(evaluation.tests) > 1
    columns = [*TEST_COLUMNS, *(["p (Holm)"] if several else [])]
    rows = [
        [
            name, typed, f"{test.difference:+.4f}", f"{test.low:+.4f} to {test.high:+.4f}",
            f"{test.wins}/{test.ties}/{test.losses}", p_value(test.p_t_test), p_value(test.p_randomization),
            *([p_value(test.p_holm)] if several else []),
        ]
        for name, tests in evaluation.tests.items()
        for typed, test in tests.items()
    ]  # fmt: skip
    return columns, rows


def change_rows(evaluation: Evaluation, count: int) -> tuple[list[str], list[list[str]]]:
    """The column names and rows of the queries that changed most, for each compared run, with top documents."""
    base = evaluation.baseline or ""
    columns = ["run", "query", base, "this run", "difference", "text", f"first of {base}", "first of this run"]
    return columns, [row for name in evaluation.tests for row in _change_rows(evaluation, base, name, count)]


def _change_rows(evaluation: Evaluation, base: str, name: str, count: int) -> Iterator[list[str]]:
    found = changes(evaluation, name, count)
    ids = [change.query_id for change in found]
    texts, first = evaluation.texts.of_queries(ids), [_first_documents(evaluation, run, ids) for run in (base, name)]
    for change, theirs, ours in zip(found, *first, strict=True):
        values = [number(change.theirs), number(change.ours), f"{change.ours - change.theirs:+.4f}"]
        yield [name, change.query_id, *values, _shortened(texts.get(change.query_id, "")), theirs, ours]


def _first_documents(evaluation: Evaluation, name: str, query_ids: Sequence[str]) -> list[str]:
    """The top document of a run for each query, with its title if known; a check mark marks a relevant one."""
    first = [docs[0] if docs else None for docs in top_documents(evaluation, name, query_ids, 1)]
    known = evaluation.texts.of_documents(doc for doc in first if doc is not None)
    shown = []
    for doc, relevant in zip(first, relevant_documents(evaluation, query_ids), strict=True):
        title = (known[doc].title or known[doc].text) if doc in known else ""
        shown.append("–" if doc is None else f"{'✓ ' if doc in relevant else ''}{_shortened(f'{doc} {title}')}")
    return shown


def _shortened(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _TEXT_WIDTH else plain[: _TEXT_WIDTH - 1] + "…"


def _tables(evaluation: Evaluation, changed: int) -> list[Titled]:
    """All tables of an evaluation."""
    means = [[name, *map(number, found.values())] for name, found in evaluation.means().items()]
    tables: list[Titled] = [(None, ["run", *evaluation.metrics], means)]
    if evaluation.tests:
        tables.append((f"compared with {evaluation.baseline}", *test_rows(evaluation)))
    columns, rows = change_rows(evaluation, changed)
    if rows:
        tables.append((f"the queries that changed most in {evaluation.first_metric}", columns, rows))
    return tables


def _holds_text(column: str) -> bool:
    return column == "text" or column.startswith("first of")


def _print_tables(tables: Sequence[Titled]) -> str:
    for position, (title, columns, rows) in enumerate(tables):
        if position:
            print()
        console.print_table(columns, rows, title=title)
    return ""


def _markdown_tables(tables: Sequence[Titled]) -> str:
    parts = []
    for title, columns, rows in tables:
        aligned = ["---", *("---" if _holds_text(column) else "---:" for column in columns[1:])]
        lines = [f"| {' | '.join(cell.replace('|', _PIPE) for cell in row)} |" for row in (columns, aligned, *rows)]
        parts.append("\n".join([*([f"{title}:", ""] if title else []), *lines]))
    return "\n\n".join(parts)


def _latex_tables(tables: Sequence[Titled]) -> str:
    parts = []
    for title, columns, rows in tables:
        body = [" & ".join(cell.translate(_LATEX) for cell in row) for row in rows]
        head = " & ".join(cell.translate(_LATEX) for cell in columns)
        parts.append((f"% {title}\n" if title else "") + _tabular(head, body, len(columns)))
    return "\n\n".join(parts)


def _tabular(head: str, rows: Sequence[str], columns: int) -> str:
    """A LaTeX tabular in the style of booktabs."""
    lines = [f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}", r"\toprule", rf"{head} \\", r"\midrule"]
    return "\n".join([*lines, *(rf"{row} \\" for row in rows), r"\bottomrule", r"\end{tabular}"])


TABLE_STYLES: Mapping[str, Callable[[Sequence[Titled]], str]] = {
    "table": _print_tables,
    "markdown": _markdown_tables,
    "latex": _latex_tables,
}


def _as_table(evaluation: Evaluation, changed: int) -> str:
    return _print_tables(_tables(evaluation, changed))


def _as_markdown(evaluation: Evaluation, changed: int) -> str:
    return _markdown_tables(_tables(evaluation, changed))


_LATEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
})  # fmt: skip


def _as_latex(evaluation: Evaluation, changed: int) -> str:
    """A booktabs tabular: the best value of each metric is bold, and a dagger marks a significant difference."""
    means = evaluation.means()
    known = {typed: [found[typed] for found in means.values()] for typed in evaluation.metrics}
    best = {typed: max((value for value in values if value == value), default=0) for typed, values in known.items()}
    rows = []
    for name, found in means.items():
        tests = evaluation.tests.get(name, {})
        cells = [_latex_cell(value, best[typed], tests.get(typed)) for typed, value in found.items()]
        rows.append(" & ".join([name.translate(_LATEX), *cells]))
    head = " & ".join(["run", *(typed.translate(_LATEX) for typed in best)])
    lines = [_tabular(head, rows, len(best) + 1)]
    if evaluation.baseline:
        bound = f"p < {SIGNIFICANT} against {evaluation.baseline}".translate(_LATEX)
        lines.append(f"% $^\\dagger$ {bound}, paired randomization test, Holm-corrected over runs")
    return "\n".join(lines)


def _latex_cell(value: float, best: float, test: Test | None) -> str:
    text = number(value).translate(_LATEX)
    bold = f"\\textbf{{{text}}}" if value == best else text
    return f"{bold}$^\\dagger$" if test and test.p_holm < SIGNIFICANT else bold


def _as_csv(evaluation: Evaluation, changed: int) -> str:
    """CSV with one row per run and metric, unrounded; columns of the comparison are empty where there is none."""
    keys = list(Test.__dataclass_fields__)
    rows = []
    for name, found in evaluation.means().items():
        for typed, mean in found.items():
            test = evaluation.tests.get(name, {}).get(typed)
            compared = [getattr(test, key) for key in keys] if test else [""] * len(keys)
            rows.append([name, typed, mean, *compared])
    return csv_text(["run", "metric", "mean", *keys], rows)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats rows as CSV; NaN becomes an empty field."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value != value else value for value in row] for row in rows)
    return lines.getvalue().rstrip("\n")


def _as_json(evaluation: Evaluation, changed: int) -> str:
    """JSON of run name -> metric -> unrounded value; a compared run also has `METRIC difference` and so on."""
    values: dict[str, dict[str, float | None]] = {}
    for name, found in evaluation.means().items():
        values[name] = {typed: _finite(mean) for typed, mean in found.items()}
        for typed, test in evaluation.tests.get(name, {}).items():
            values[name] |= {f"{typed} {key}": _finite(value) for key, value in vars(test).items()}
    return console.json_text(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


FORMATS: Mapping[str, Callable[[Evaluation, int], str]] = {
    "table": _as_table,
    "markdown": _as_markdown,
    "latex": _as_latex,
    "csv": _as_csv,
    "json": _as_json,
}
