"""A question that a person types: a table of one row for the pipeline, and texts for what it finds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from retrievo.commands.search.across import plain_id
from retrievo.commands.search.indexes import open_corpora
from retrievo.commands.search.queries import typed
from retrievo.data.corpus import first_found
from retrievo.retrieval.hits import joined
from retrievo.retrieval.search_results import Answer, Hit
from retrievo.retrieval.searcher import KINDS
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from pathlib import Path

    from retrievo.commands.search.indexes import Sources
    from retrievo.commands.search.pipeline import Pipeline
    from retrievo.data.corpus import Corpus, Document
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.retrieval.searcher import Searcher


class Asker:
    """Answers questions, one after another, from indexes that are open.

    corpus: the texts to show; None = those of the corpora that the indexes were made from.
    """

    def __init__(self, pipeline: Pipeline, sources: Sources, corpus: Path | None):
        self.pipeline, self.shelves = pipeline, sources.shelves
        self.texts = self.shelves.open() if self.shelves else None
        self.corpora = [] if self.shelves else _corpora(corpus, sources.indexes)
        self.names = _names(sources.indexes)

    def answer(self, question: str) -> Answer:
        """The best documents, with titles and snippets where the corpus is at hand, and where each was found.

        Words are found in them as the first index finds them.
        """
        question = _whole(question)
        search = self.pipeline.search(typed(question))
        with search.progress() as tick:
            blocks = list(search.found(tick))
            best = joined(search.reranked(search.fused(blocks), tick))
        ids = best.ids().to_pylist()
        places = [{doc_id: rank for rank, doc_id in enumerate(one.ids().to_pylist(), 1)} for one in blocks[0].found]
        texts = self.texts.find(ids) if self.texts is not None else first_found(self.corpora, ids)
        hits = []
        for rank, (doc_id, score) in enumerate(zip(ids, best.score.tolist(), strict=True), start=1):
            ranks = {name: place.get(doc_id) for name, place in zip(self.names, places, strict=True)}
            hit = Hit(rank, score, doc_id, "", ranks=ranks if len(places) > 1 else {})
            if self.shelves:
                hit = replace(hit, id=plain_id(doc_id), corpus=self.shelves.name(doc_id))
            if doc_id in texts:
                hit = _with_text(hit, texts[doc_id], question, self.pipeline.searchers[0])
            hits.append(hit)
        return Answer(question, tuple(hits))


def _with_text(hit: Hit, document: Document, question: str, searcher: Searcher) -> Hit:
    """A hit with its title and the part of its text that shows why it was found."""
    from retrievo.retrieval import snippets

    shown = snippets.snippet(document.text, searcher.matches(question, document.text[: snippets.LOOKED_AT]))
    return replace(hit, title=document.title, snippet=shown)


def _whole(question: str) -> str:
    """A question without halves of characters: bytes that the terminal's encoding did not know are read as UTF-8."""
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", question)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _corpora(given: Path | None, indexes: Sequence[IndexFolder]) -> list[Corpus]:
    """The corpus that was typed, else one that the indexes know and that is still there: texts are an extra."""
    try:
        return open_corpora(given, indexes)
    except RetrievoError:
        if given is not None:
            raise
        return []


def _names(indexes: Sequence[IndexFolder]) -> list[str]:
    """What a person calls the indexes: by kind, and by folder where two are of one kind."""
    kinds = [KINDS[index.manifest.kind].name for index in indexes]
    return [kind if kinds.count(kind) == 1 else str(one.path) for kind, one in zip(kinds, indexes, strict=True)]
