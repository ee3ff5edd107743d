"""An evaluation as one page: no script, nothing from the network, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
_SHOWN_CHARACTERS = 300

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.chart { width: 100%; max-width: 40rem; height: auto; } .chart text { font: 11px system-ui, sans-serif; fill: #333; }
.grid { stroke: #ddd; } .key { width: 1.5rem; height: 0.5rem; margin-right: 0.3rem; vertical-align: middle; }
.legend span { margin-right: 1rem; white-space: nowrap; }
.query { border-left: 4px solid #ddd; padding: 0.1rem 0 0.1rem 0.8rem; margin: 1rem 0; }
.query p { margin: 0.2rem 0; } .value { font-variant-numeric: tabular-nums; color: #444; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 0 1.5rem; }
ol, ul { padding-left: 1.3rem; margin: 0.2rem 0; font-size: 0.9rem; } .good { color: #00634a; font-weight: 600; }
.note { color: #444; font-size: 0.9rem; }
@media print { body { font-size: 10.5pt; max-width: none; padding: 0; } h2, h3 { break-after: avoid; }
  .query, svg, tr, figure { break-inside: avoid; } .wide { overflow: visible; } }
"""


def report(evaluation: Evaluation, title: str, notes: Sequence[str]) -> str:
    """The page of one evaluation as HTML."""
    said = [f'<p class="note">{escape(line)}</p>' for line in notes]
    return page(title, [f"<h1>{escape(title)}</h1>", *said, *sections(evaluation)])


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of HTML from its parts."""
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def sections(evaluation: Evaluation, *, level: int = 2) -> list[str]:
    """What there is to see of an evaluation, under headings of this level."""
    parts = [
        _rules(evaluation),
        "<h2>Means</h2>",
        _means(evaluation),
        *_comparison(evaluation),
        *_recall(evaluation),
        *_scores(evaluation),
        *_queries(evaluation),
    ]
    lower = {f"{end}h{n}>": f"{end}h{n + level - 2}>" for n in (3, 2) for end in ("<", "</")}
    for old, new in lower.items():
        parts = [part.replace(old, new) for part in parts]
    return parts


def _rules(evaluation: Evaluation) -> str:
    counts = next(iter(evaluation.runs.values()))
    rules = evaluation.standard.rules
    ties = "score, ties by document id descending" if rules.ties == "score" else "the rank in the file"
    missing = "counts as 0" if rules.missing == "zero" else "is left out"
    told = (
        f"{counts.judged:,} queries; relevant from grade {evaluation.standard.min_relevance}; ranked by {ties}; "
        f"a query that a run lacks {missing}."
    )
    return f"<p>{escape(told)}</p>"


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls on a narrow page; cells are HTML."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _means(evaluation: Evaluation) -> str:
    """The best value of each metric is bold."""
    means = evaluation.means()
    best = {typed: max((found[typed] for found in means.values()), default=0.0) for typed in evaluation.metrics}
    rows = [
        [
            escape(name),
            *(f"<b>{number(value)}</b>" if value == best[typed] else number(value) for typed, value in found.items()),
        ]
        for name, found in means.items()
    ]
    return html_table(["run", *evaluation.metrics], rows)


def _comparison(evaluation: Evaluation) -> list[str]:
    if not evaluation.tests:
        return []
    columns, rows = test_rows(evaluation)
    typed = evaluation.first_metric
    metric = evaluation.metrics[typed]
    charts = []
    for name in evaluation.tests:
        _, ours, theirs = paired(evaluation.runs[name], evaluation.runs[evaluation.baseline or ""], metric)
        chart = difference_chart(ours - theirs, f"{len(ours):,} queries, best first", f"difference in {typed}")
        charts.append(f"<figure><h3>{escape(name)}</h3>{chart}</figure>")
    told = (
        "Difference of means with its 95 % bootstrap interval; two-sided p-values of the paired t-test and of "
        "the paired randomization test; Holm's correction counts the runs that are compared."
    )
    return [
        f"<h2>Compared with {escape(evaluation.baseline or '')}</h2>",
        html_table(columns, ([escape(cell) for cell in row] for row in rows)),
        f'<p class="note">{told}</p><h2>Query by query</h2><div class="charts">{"".join(charts)}</div>',
    ]


def _recall(evaluation: Evaluation) -> list[str]:
    lines = {name: recall_by_depth(evaluation, name) for name in evaluation.runs}
    chart = line_chart(lines, "depth", "recall")
    told = "Share of the relevant documents among the first rows of a run, averaged over queries."
    return [f'<h2>Recall by depth</h2>{chart}<p class="note">{told}</p>'] if chart else []


def _scores(evaluation: Evaluation) -> list[str]:
    charts = []
    for name in evaluation.runs:
        relevant, other = scores(evaluation, name)
        chart = histogram({"relevant": relevant, "other documents of the first rows": other}, "score", "share")
        if chart:
            charts.append(f"<figure><h3>{escape(name)}</h3>{chart}</figure>")
    told = "Where the two overlap, no bound on the score tells relevant documents from others."
    title = "<h2>Scores</h2>"
    return [f'{title}<div class="charts">{"".join(charts)}</div><p class="note">{told}</p>'] if charts else []


def _queries(evaluation: Evaluation) -> list[str]:
    """Those that changed most, for each run that is compared; then the worst of every run."""
    typed, parts = evaluation.first_metric, []
    base = evaluation.baseline
    for name in evaluation.tests:
        found = changes(evaluation, name, SHOWN_QUERIES)
        told = {c.query_id: f"{base} {number(c.theirs)}, {name} {number(c.ours)}" for c in found}
        parts.append(f"<h2>Queries that changed most in {escape(typed)}: {escape(name)}</h2>")
        parts.append(_cards(evaluation, told, [base or "", name]))
    for name in evaluation.runs:
        lowest = {query: f"{typed} {number(value)}" for query, value in worst(evaluation, name, SHOWN_QUERIES)}
        parts.append(f"<h2>Worst queries: {escape(name)}</h2>")
        parts.append(_cards(evaluation, lowest, [name]))
    return parts


def _cards(evaluation: Evaluation, told: Mapping[str, str], runs: Sequence[str]) -> str:
    """For each query its text, its values, its relevant documents and the first ones of the runs."""
    ids = list(told)
    relevant = relevant_documents(evaluation, ids)
    first = {name: top_documents(evaluation, name, ids, SHOWN_DOCUMENTS) for name in runs}
    lists = [relevant, *first.values()]
    documents = evaluation.texts.of_documents(doc for one in lists for found in one for doc in found[:SHOWN_DOCUMENTS])
    texts = evaluation.texts.of_queries(ids)
    cards = []
    for at, query in enumerate(ids):
        columns = [_documents("relevant", relevant[at], relevant[at], documents, "ul")]
        columns += [_documents(name, first[name][at], relevant[at], documents, "ol") for name in runs]
        cards.append(
            f'<div class="query"><p><b>{escape(texts.get(query, query))}</b></p>'
            f'<p class="value">{escape(query)}: {escape(told[query])}</p>'
            f'<div class="lists">{"".join(columns)}</div></div>'
        )
    return "".join(cards)


def _documents(
    title: str, ids: Sequence[str], relevant: Sequence[str], documents: Mapping[str, Document], tag: str
) -> str:
    items = "".join(_item(doc, doc in relevant, documents.get(doc)) for doc in ids[:SHOWN_DOCUMENTS])
    more = f"<li>and {len(ids) - SHOWN_DOCUMENTS:,} more</li>" if len(ids) > SHOWN_DOCUMENTS else ""
    return f"<div>{escape(title)}<{tag}>{items or '<li>none</li>'}{more}</{tag}></div>"


def _item(doc_id: str, is_relevant: bool, document: Document | None) -> str:
    mark = ' class="good"' if is_relevant else ""
    label = f"<span{mark}>{escape(doc_id)}{' (relevant)' if is_relevant else ''}</span>"
    if document is None:
        return f"<li>{label}</li>"
    text = " ".join(document.text.split())
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    title = f" <b>{escape(document.title)}</b>" if document.title else ""
    return f"<li>{label}{title} {escape(shown)}</li>"
