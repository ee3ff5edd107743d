"""Training examples in the style of DPR and Tevatron: a query with positive and negative passages."""

from __future__ import annotations

from typing import Any, NamedTuple

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import Part
from retrievo.data.importers.json_lines import transposed


class Passage(NamedTuple):
    """A passage of a training example; its values are unchecked until they are written.

    source: the name of the retriever that found a negative.
    """

    id: Any
    title: Any
    text: Any
    source: str = ""
    score: float | None = None


class Example(NamedTuple):
    """A query with passages; `place` is its line number or item number in the file."""

    place: int
    query_id: Any
    query: Any
    answers: list[str] | None
    positives: list[Passage]
    negatives: list[Passage]


def write_examples(
    examples: list[Example], part: Part, store: DatasetWriter, *, documents: bool, merge: bool = False
) -> None:
    """Writes queries, judgments of grade 1 and negatives; with `documents`, also writes each passage once.

    merge: a query may come again with the same text; it is written once.
    """
    places, ids, texts, answers, _, _ = transposed(examples, 6)
    store.queries(places, ids, texts, None if None in answers else answers, merge=merge)
    if documents:
        passages = [(e.place, p.id, p.title, p.text) for e in examples for p in (*e.positives, *e.negatives)]
        store.documents(*transposed(passages, 4), merge=True)
    positives = [(e.place, e.query_id, p.id, 1) for e in examples for p in e.positives]
    places, queries, found, grades = transposed(positives, 4)
    store.qrels(places, part.name, queries, found, grades)
    for source in dict.fromkeys(p.source for e in examples for p in e.negatives):
        negatives = [(e.place, e.query_id, p.id, p.score) for e in examples for p in e.negatives if p.source == source]
        places, queries, found, scores = transposed(negatives, 4)
        store.negatives(places, part.member.stem, source, queries, found, scores)
