"""The audit of a mining run: shares of the rules, overlap of the miners, and doubtful pairs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retrievo.data.corpus import Corpus, Document
from retrievo.mining.candidates import Candidates, Judged
from retrievo.mining.choice import Part, Tally
from retrievo.mining.rules import JUDGED_BY_SCORE, RULES

SHOWN = 400  # characters of a text that the report shows


class Doubt(NamedTuple):
    """An unjudged pair that may be relevant."""

    surplus: float  # (score - best relevant score) / |best relevant score|, by the teacher where there is one
    query: int
    row: int
    source: str
    rank: int
    score: float


class Doubts:
    """Collects the most doubtful pairs among the negatives, and among the candidates that each score rule dropped."""

    def __init__(self, shown: int):
        self.shown = shown
        self.kept: list[Doubt] = []
        self.dropped: dict[str, list[Doubt]] = {rule: [] for rule in JUDGED_BY_SCORE}

    def add(self, part: Part) -> None:
        """Adds the doubtful pairs of a block of queries."""
        self.kept = self._best(self.kept, part.negatives, part.kept_surplus, np.arange(len(part.kept_surplus)))
        for rule, found in self.dropped.items():
            at = np.flatnonzero(part.rules == RULES.index(rule))
            self.dropped[rule] = self._best(found, part.dropped, part.dropped_surplus, at)

    def _best(self, before: list[Doubt], found: Candidates, surplus: np.ndarray, at: np.ndarray) -> list[Doubt]:
        """Each query's pair with the largest surplus; pairs without one come last, or are left out of the negatives."""
        at = at if before is not self.kept else at[~np.isnan(surplus[at])]
        values = np.nan_to_num(surplus[at], nan=-np.inf)
        best = at[np.argsort(-values, kind="stable")]
        best = best[np.sort(np.unique(found.query[best], return_index=True)[1])][: self.shown]
        added = [
            Doubt(*values)
            for values in zip(
                np.nan_to_num(surplus[best], nan=-np.inf).tolist(),
                found.query[best].tolist(),
                found.row[best].tolist(),
                found.source.take(best).to_pylist(),
                found.rank[best].tolist(),
                found.score[best].tolist(),
                strict=True,
            )
        ]
        return sorted([*before, *added], key=lambda doubt: -doubt.surplus)[: self.shown]


def report(title: str, tally: Tally, doubts: Doubts, judged: Judged, texts: Sequence[str], corpus: Corpus) -> str:
    """The audit as Markdown; `texts` are those of the judged queries."""
    reader = _Reader(judged, texts, corpus)
    lines = [f"# Audit of {title}", "", *_counts(tally), *_overlap(tally)]
    lines += _doubtful("Negatives most like the relevant documents", doubts.kept, reader)
    for rule, found in doubts.dropped.items():
        lines += _doubtful(f"Dropped by the rule {rule}", found, reader)
    return "\n".join(lines) + "\n"


def _counts(tally: Tally) -> Iterator[str]:
    short = f"{tally.short:,} have fewer negatives than requested, {tally.without:,} of them none"
    yield f"{tally.queries:,} queries; {short}."
    yield ""
    yield "| miner | candidates | kept | " + " | ".join(RULES) + " |"
    yield "|---" * (3 + len(RULES)) + "|"
    for name, looked_at in tally.looked_at.items():
        shares = [f"{tally.dropped[name, rule] / max(1, looked_at):.2%}" for rule in RULES]
        yield f"| {name} | {looked_at:,} | {tally.kept[name]:,} | " + " | ".join(shares) + " |"
    yield ""


def _overlap(tally: Tally) -> Iterator[str]:
    names = list(tally.looked_at)
    if len(names) < 2:
        return
    yield "Share of a miner's candidates (rows) that another miner (columns) found too:"
    yield ""
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (1 + len(names)) + "|"
    for name in names:
        shares = [
            "" if other == name else f"{tally.shared[name, other] / max(1, tally.looked_at[name]):.1%}"
            for other in names
        ]
        yield f"| {name} | " + " | ".join(shares) + " |"
    yield ""


def _doubtful(title: str, found: Sequence[Doubt], reader: _Reader) -> Iterator[str]:
    if not found:
        return
    yield f"## {title}"
    yield ""
    for doubt in found:
        query, relevant, document = reader.read(doubt)
        above = (
            f"{doubt.surplus:+.0%} of the best relevant score" if np.isfinite(doubt.surplus) else "no relevant score"
        )
        yield f"**{query}** ({doubt.source}, rank {doubt.rank}, score {doubt.score:.4g}, {above})"
        yield ""
        yield f"| relevant: {relevant.id} | candidate: {document.id} |"
        yield "|---|---|"
        yield f"| {_cell(relevant)} | {_cell(document)} |"
        yield ""


class _Reader:
    """Reads the texts of a doubtful pair and of the query's first relevant document."""

    def __init__(self, judged: Judged, texts: Sequence[str], corpus: Corpus):
        self.judged, self.texts, self.corpus = judged, texts, corpus

    def read(self, doubt: Doubt) -> tuple[str, Document, Document]:
        known = self.judged.relevant(doubt.query)
        rows = [int(known[0])] if len(known) else []
        *relevant, document = self.corpus.documents([*rows, doubt.row])
        return _plain(self.texts[doubt.query]), relevant[0] if relevant else Document("-", "", ""), document


def _cell(document: Document) -> str:
    text = f"{document.title}: {document.text}" if document.title else document.text
    return _plain(text if len(text) <= SHOWN else f"{text[:SHOWN]} ...")


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
