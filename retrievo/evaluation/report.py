"""An evaluation as one HTML page without scripts or network access, in which every text is escaped."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from html import escape

from retrievo.data.corpus import Document
from retrievo.evaluation.charts import difference_chart, histogram, line_chart
from retrievo.evaluation.comparison import Evaluation, paired
from retrievo.evaluation.details import (
    changes,
    recall_by_depth,
    relevant_documents,
    scores,
    top_documents,
    worst,
)
from retrievo.evaluation.formats import number, test_rows

SHOWN_QUERIES, SHOWN_DOCUMENTS = 10, 3
_SHOWN_CHARACTERS = 200

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 64rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; }
h2.part { font-size: 1.45rem; border-top: 2px solid #888; padding-top: 1.2rem; margin-top: 3rem; }
h3 { font-size: 1.1rem; margin: 1.8rem 0 0.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0; }
tr.total td { border-bottom: none; color: #444; } tr:not(.total) + tr.total td { border-top: 2px solid #888; }
figure { margin: 0; } figcaption { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
.chart { width: 100%; max-width: 32rem; height: auto; } .chart text { font: 11px system-ui, sans-serif; fill: #333; }
.grid { stroke: #ddd; } .key { width: 1.5rem; height: 0.5rem; margin-right: 0.3rem; vertical-align: middle; }
.legend { margin: 0.2rem 0; font-size: 0.9rem; } .legend span { display: inline-block; margin-right: 1.2rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; } .beside section { max-width: 100%; }
nav { margin-top: 2rem; } nav a { display: inline-block; padding: 0.3rem 0; margin-right: 1.2rem; color: #0059a0; }
.query { border-left: 4px solid #ddd; padding: 0.1rem 0 0.1rem 0.8rem; margin: 1.2rem 0; }
.query p { margin: 0.2rem 0; } .value { font-variant-numeric: tabular-nums; color: #444; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 0.4rem 1.5rem; }
.lists .of { font-size: 0.85rem; font-weight: 600; color: #444; margin: 0.3rem 0 0; }
ol, ul { padding-left: 1.3rem; margin: 0.2rem 0; font-size: 0.9rem; } li { margin-bottom: 0.3rem; }
.good { color: #00634a; font-weight: 600; } .id { color: #555; font-size: 0.85em; }
.note { color: #444; font-size: 0.9rem; max-width: 50rem; }
@media (max-width: 40rem) {
  h1 { font-size: 1.35rem; } table { font-size: 0.9rem; } th, td { padding: 0.25rem 0.45rem; }
}
@media print {
  @page { margin: 14mm; }
  html { font-size: 12px; } body { font-size: 1rem; max-width: none; padding: 0; }
  table { font-size: 0.9rem; } th, td { padding: 0.2rem 0.4rem; white-space: normal; }
  h1, h2, h3 { break-after: avoid; } h2.part { break-before: page; border-top: none; }
  .query, .chart, figure, tr { break-inside: avoid; } .wide { overflow: visible; } nav { display: none; }
  .charts { grid-template-columns: 1fr 1fr; } .lists { grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); }
}
"""


def report(evaluation: Evaluation, title: str) -> str:
    """The report of one evaluation as an HTML page."""
    return page(title, sections(evaluation, "h2"))


def page(title: str, parts: Sequence[str]) -> str:
    """A complete HTML page from its parts."""
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def paragraphs(notes: Sequence[str]) -> list[str]:
    """Notes as HTML paragraphs."""
    return [f'<p class="note">{escape(line)}</p>' for line in notes]


def sections(evaluation: Evaluation, heading: str) -> list[str]:
    """The sections of a report, with headings of this tag."""
    found = [
        ("Means", _rules(evaluation) + _means(evaluation) + "".join(paragraphs(evaluation.notes))),
        *_comparison(evaluation),
        ("Charts", _charts(evaluation)),
        *_queries(evaluation),
    ]
    return [f"<section><{heading}>{escape(title)}</{heading}>{body}</section>" for title, body in found if body]


def _rules(evaluation: Evaluation) -> str:
    counts = next(iter(evaluation.runs.values()))
    rules = evaluation.standard.rules
    ties = "score, ties by document id descending" if rules.ties == "score" else "the rank in the file"
    missing = "counts as 0" if rules.missing == "zero" else "is left out"
    rules_text = (
        f"{counts.judged:,} queries; relevant from grade {evaluation.standard.min_relevance}; ranked by {ties}; "
        f"a query that a run lacks {missing}."
    )
    return f"<p>{escape(rules_text)}</p>"


def html_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, best: Container[tuple[int, int]] = (), totals: int = 0
) -> str:
    """An HTML table of texts, which scrolls on a narrow page.

    best:   (row, column) of the cells to print in bold.
    totals: number of last rows that summarize the others.
    """
    head, body = "".join(f"<th>{escape(column)}</th>" for column in columns), list(rows)
    lines = []
    for row_number, row in enumerate(body):
        kind = ' class="total"' if row_number >= len(body) - totals else ""
        cells = (f"<b>{escape(cell)}</b>" if (row_number, at) in best else escape(cell) for at, cell in enumerate(row))
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def best_cells(rows: Iterable[Sequence[float]]) -> set[tuple[int, int]]:
    """The (row, column) of the largest value of each row, or of all that tie for it."""
    return {(at, column) for at, row in enumerate(rows) for column, value in enumerate(row) if value >= max(row)}


def _means(evaluation: Evaluation) -> str:
    """The table of means, with the best value of each metric in bold."""
    means = evaluation.means()
    by_metric = [[found[typed] for found in means.values()] for typed in evaluation.metrics]
    best = {(run, typed + 1) for typed, run in best_cells(by_metric)}
    rows = [[name, *map(number, found.values())] for name, found in means.items()]
    return html_table(["run", *evaluation.metrics], rows, best=best)


def _comparison(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    if not evaluation.tests:
        return
    columns, rows = test_rows(evaluation)
    base = evaluation.baseline or ""
    explanation = (
        "Difference of means with its 95 % bootstrap interval; two-sided p-values of the paired t-test and of "
        "the paired randomization test; Holm's correction counts the runs that are compared."
    )
    yield f"Compared with {base}", f'{html_table(columns, rows)}<p class="note">{explanation}</p>'


def _charts(evaluation: Evaluation) -> str:
    typed, base = evaluation.first_metric, evaluation.baseline
    recall = {name: recall_by_depth(evaluation, name) for name in evaluation.runs}
    figures = [_figure("Recall by depth", line_chart(recall, "depth", "recall"))]
    for name in evaluation.tests:
        _, ours, theirs = paired(evaluation.runs[name], evaluation.runs[base or ""], evaluation.metrics[typed])
        chart = difference_chart(ours - theirs, f"{len(ours):,} queries, best first", f"difference in {typed}")
        figures.append(_figure(f"{name} compared with {base}, query by query", chart))
    for name in evaluation.runs:
        relevant, other = scores(evaluation, name)
        groups = {"relevant": relevant, "other documents of the first rows": other}
        figures.append(_figure(f"Scores of {name}", histogram(groups, "score", "share")))
    inside = "".join(figures)
    note = "Where the two distributions of scores overlap, no threshold separates relevant documents from others."
    return f'<div class="charts">{inside}</div><p class="note">{note}</p>' if inside else ""


def _figure(title: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>" if chart else ""


def _queries(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Yields the queries that changed most for each compared run, then the worst queries of every run."""
    typed, base = evaluation.first_metric, evaluation.baseline or ""
    for name in evaluation.tests:
        found = changes(evaluation, name, SHOWN_QUERIES)
        values = {c.query_id: f"{typed}: {base} {number(c.theirs)}, {name} {number(c.ours)}" for c in found}
        yield f"Queries that changed most: {name}", _cards(evaluation, values, [base, name])
    for name in evaluation.runs:
        lowest = {query: f"{typed} {number(value)}" for query, value in worst(evaluation, name, SHOWN_QUERIES)}
        yield f"Worst queries: {name}", _cards(evaluation, lowest, [name])


def _cards(evaluation: Evaluation, values: Mapping[str, str], runs: Sequence[str]) -> str:
    """A card for each query with its text, its values, its relevant documents and the top documents of the runs."""
    ids = list(values)
    relevant = relevant_documents(evaluation, ids)
    first = {name: top_documents(evaluation, name, ids, SHOWN_DOCUMENTS) for name in runs}
    lists = [relevant, *first.values()]
    documents = evaluation.texts.of_documents(doc for one in lists for found in one for doc in found[:SHOWN_DOCUMENTS])
    texts = evaluation.texts.of_queries(ids)
    cards = []
    for at, query in enumerate(ids):
        columns = [_documents("relevant", relevant[at], [], documents, "ul")]
        columns += [_documents(name, first[name][at], relevant[at], documents, "ol") for name in runs]
        cards.append(
            f'<div class="query"><p><b>{escape(texts.get(query, query))}</b></p>'
            f'<p class="value"><span class="id">{escape(query)}</span> · {escape(values[query])}</p>'
            f'<div class="lists">{"".join(columns)}</div></div>'
        )
    return "".join(cards)


def _documents(
    title: str, ids: Sequence[str], relevant: Sequence[str], documents: Mapping[str, Document], tag: str
) -> str:
    items = "".join(_item(doc, doc in relevant, documents.get(doc)) for doc in ids[:SHOWN_DOCUMENTS])
    more = f"<p>and {len(ids) - SHOWN_DOCUMENTS:,} more</p>" if len(ids) > SHOWN_DOCUMENTS else ""
    listed = f"<{tag}>{items}</{tag}>" if items else "<p>none</p>"
    return f'<div><p class="of">{escape(title)}</p>{listed}{more}</div>'


def _item(doc_id: str, is_relevant: bool, document: Document | None) -> str:
    mark = '<span class="good">✓ relevant</span> ' if is_relevant else ""
    label = f'{mark}<span class="id">{escape(doc_id)}</span>'
    if document is None:
        return f"<li>{label}</li>"
    text = " ".join(document.text.split())
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    title = f" <b>{escape(document.title)}</b>" if document.title else ""
    return f"<li>{label}{title} {escape(shown)}</li>"
