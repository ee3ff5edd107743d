"""Known-item data sets: queries made from the documents of a corpus without labels, which are their own answers.

As in known-item search (after Azzopardi, de Rijke & Balog 2007), a query is the title of a document, or a span of words
from it as in the inverse cloze task (Lee et al. 2019). The text of the query is removed from the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrievo.data.corpus import Corpus
from retrievo.data.sampling import random_keys
from retrievo.data.tables import CORPUS, TableWriter
from retrievo.data.text_identity import identities, is_empty
from retrievo.support.artifact import Output
from retrievo.support.errors import RetrievoError

SPAN_WORDS = 10
_LEAST_WORDS = 3 * SPAN_WORDS  # a document keeps at least two thirds of its words after a span is removed

WARNING = (
    "known-item queries are made of the documents themselves: they share their words, which flatters BM25, have one "
    "answer each, and are no questions of people. They tell whether a retriever finds its way in this corpus and which "
    "of two finds it better; they do not tell how well it answers what your users ask"
)


@dataclass(frozen=True)
class _Drawn:
    """The documents that were drawn to make queries from: row -> query."""

    rows: np.ndarray
    seed: int
    kind: str


def make_known_items(path: Path, corpus: Corpus, *, kind: str, count: int, seed: int, force: bool = False) -> None:
    """Writes a dataset folder: queries made from a corpus, one judgment each, and the corpus without their text.

    kind:  'title' uses titles as queries (all titles are removed); 'span' uses ten words from a text.
    count: the most queries to make, drawn among documents whose title or text is unique.
    Raises: RetrievoError where no query can be made from any document.
    """
    config = {"known_item": kind, "queries": count, "seed": seed}
    output = Output(path, "dataset", config, {"corpus": corpus.input}, force=force)
    if output.already_finished():
        return
    drawn = _Drawn(_draw(corpus, kind, count, seed), seed, kind)
    with output.build() as folder:
        (folder / "qrels").mkdir()
        asked: dict[str, list[str]] = {"id": [], "text": []}
        with TableWriter(folder / "corpus.parquet", CORPUS.arrow) as writer:
            for documents in _without_what_is_asked(corpus, drawn, asked):
                writer.write(documents)
            output.records["corpus.parquet"] = writer.close()
        ids = [f"known-{number}" for number in range(len(asked["id"]))]
        pq.write_table(pa.table({"id": ids, "text": asked["text"]}), folder / "queries.parquet")
        judged = {"query_id": ids, "doc_id": asked["id"], "relevance": np.ones(len(ids), np.int32)}
        pq.write_table(pa.table(judged), folder / "qrels" / "test.parquet")
        output.finish({"documents": len(corpus), "queries": len(ids)})


def _draw(corpus: Corpus, kind: str, count: int, seed: int) -> np.ndarray:
    """The rows of documents to make queries from, ascending [n]: a seeded draw among those that fit."""
    hashes, usable = [], []
    names = ["text"] if kind == "span" else ["title", "text"]
    if kind == "title" and not corpus.table.has("title"):
        raise RetrievoError(corpus.path, "has no titles", "titles to ask with", "pass --known-item span")
    for batch in corpus.table.batches(names):
        texts = batch.column("text").to_pylist()
        asked = batch.column("title").to_pylist() if kind == "title" else texts
        hashes.append(identities(asked))
        usable += [not is_empty(one) and _fits(kind, text) for one, text in zip(asked, texts, strict=True)]
    every = np.concatenate([np.zeros(0, np.uint64), *hashes])
    _, back, repeats = np.unique(every, return_inverse=True, return_counts=True)
    rows = np.flatnonzero((repeats[back] == 1) & np.array(usable, bool))
    if not len(rows):
        expected = f"texts of {_LEAST_WORDS} words" if kind == "span" else "titles that occur once, with a text"
        raise RetrievoError(corpus.path, "has no document to ask for", expected, "pass another --known-item")
    return np.sort(rows[np.argsort(random_keys(seed, rows), kind="stable")[:count]])


def _fits(kind: str, text: str) -> bool:
    return not is_empty(text) if kind == "title" else len(text.split()) >= _LEAST_WORDS


def _without_what_is_asked(corpus: Corpus, drawn: _Drawn, asked: dict[str, list[str]]) -> Iterator[pa.Table]:
    """Yields all documents in order; adds the ids and queries of the drawn ones to `asked`."""
    names = [name for name in ("id", "title", "text") if corpus.table.has(name)]
    wanted, start = set(drawn.rows.tolist()), 0
    for batch in corpus.table.batches(names):
        columns = batch.to_pydict()
        ids, texts = columns["id"], columns["text"]
        titles = columns.get("title") or [""] * len(ids)
        for at in sorted(wanted.intersection(range(start, start + len(ids)))):
            here = at - start
            query, texts[here] = (
                _cut(drawn.seed, at, texts[here]) if drawn.kind == "span" else (titles[here], texts[here])
            )
            asked["id"].append(ids[here])
            asked["text"].append(" ".join(query.split()))
        if drawn.kind == "span":  # titles are kept, in front of the text
            texts = [f"{title} {text}".strip() for title, text in zip(titles, texts, strict=True)]
        yield pa.table({"id": ids, "text": texts}, schema=CORPUS.arrow)
        start += len(ids)


def _cut(seed: int, row: int, text: str) -> tuple[str, str]:
    """Cuts ten words out of a text; returns them and the rest."""
    words = text.split()
    key = int(random_keys(seed + 1, np.array([row]))[0])
    first = key % (len(words) - SPAN_WORDS + 1)
    return " ".join(words[first : first + SPAN_WORDS]), " ".join(words[:first] + words[first + SPAN_WORDS :])
