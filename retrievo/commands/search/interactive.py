"""A question that a person types: indexes, model and texts are opened once, for one question after another."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from retrievo.commands.search.across import plain_id
from retrievo.commands.search.config import DEFAULT_FUSION, FUSED_DEPTH, QUESTION_DEPTH
from retrievo.commands.search.indexes import (
    Dense,
    Source,
    bm25_options,
    encode,
    open_bm25,
    open_corpora,
    open_encoder,
    shelves_of,
)
from retrievo.commands.search.rerank import Reranker
from retrievo.retrieval.fusion import fuse
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from retrievo.commands.search.config import SearchConfig
    from retrievo.data.corpus import Corpus, Document
    from retrievo.retrieval.search_results import Answer


class _Asked(NamedTuple):
    """The best documents for a question, and how to find its words in a text."""

    ids: list[str]
    scores: list[float]
    matches: Callable[[str], list[tuple[int, int]]]


class Asker:
    """Answers questions from one index, or from several and their fusion.

    Raises: RetrievoError where an index can't be opened.
    """

    def __init__(self, config: SearchConfig, sources: Sequence[Source]):
        self.config = config
        self.shelves = shelves_of(config)
        self.texts = self.shelves.open() if self.shelves else None
        self.corpora = [] if self.shelves else _corpora(config, sources)
        self.marks = [self.shelves.mark[source.path] if self.shelves else "" for source in sources]
        self.ask = [(_texts_asker if source.lexical else _vectors_asker)(config, source) for source in sources]
        self.names = _names(sources)
        self.reranker = Reranker(config, sources) if config.rerank else None

    def answer(self, question: str) -> Answer:
        """The best documents, with titles and snippets where the corpus is at hand, and where each was found."""
        from retrievo.retrieval.search_results import Answer, Hit
        from retrievo.retrieval.snippets import LOOKED_AT, snippet

        question = _whole(question)
        wanted = self.config.depth or QUESTION_DEPTH
        first = self.config.rerank_depth if self.reranker else wanted
        depth = first if len(self.ask) == 1 else max(first, FUSED_DEPTH)
        asked = [_marked(mark, ask(question, depth)) for mark, ask in zip(self.marks, self.ask, strict=True)]
        best = asked[0] if len(asked) == 1 else self._fused(asked, first)
        best = self._reranked(question, best, wanted) if self.reranker else best
        places = [{doc_id: rank for rank, doc_id in enumerate(one.ids, start=1)} for one in asked]
        hits = []
        for rank, (doc_id, score, document) in enumerate(
            zip(best.ids, best.scores, self._find(best.ids), strict=True), start=1
        ):
            told = {name: place.get(doc_id) for name, place in zip(self.names, places, strict=True)}
            hit = Hit(rank, score, doc_id, "", ranks=told if len(asked) > 1 else {})
            if self.shelves:
                hit = replace(hit, id=plain_id(doc_id), corpus=self.shelves.name(doc_id))
            if document:
                shown = snippet(document.text, best.matches(document.text[:LOOKED_AT]))
                hit = replace(hit, title=document.title, snippet=shown)
            hits.append(hit)
        return Answer(question, tuple(hits))

    def _fused(self, asked: Sequence[_Asked], wanted: int) -> _Asked:
        """Words are found as the first index finds them."""
        import pyarrow as pa

        runs = [
            pa.table({"query_id": ["q"] * len(one.ids), "doc_id": one.ids, "score": pa.array(one.scores, pa.float32())})
            for one in asked
        ]
        run = fuse(self.config.fuse or DEFAULT_FUSION, runs, self.config.fuse_weights or None, depth=wanted)
        return _Asked(run["doc_id"].to_pylist(), run["score"].to_pylist(), asked[0].matches)

    def _reranked(self, question: str, found: _Asked, wanted: int) -> _Asked:
        """The best of them by a cross-encoder's score."""
        import numpy as np
        import pyarrow as pa

        from retrievo.data.ordering import ranked

        assert self.reranker is not None
        query = np.zeros(len(found.ids), np.int64)
        scores = self.reranker.scores([question], query, found.ids)
        order = ranked(query, scores, pa.array(found.ids, pa.string()))[:wanted]
        return _Asked([found.ids[place] for place in order], scores[order].tolist(), found.matches)

    def _find(self, ids: Sequence[str]) -> list[Document | None]:
        """The texts of documents, from the first corpus that has them; of several corpora each from its own."""
        if self.texts is not None:
            return self.texts.find(ids)
        found: list[Document | None] = [None] * len(ids)
        for corpus in self.corpora:
            found = [one or other for one, other in zip(found, corpus.find(ids), strict=True)]
        return found


def _whole(question: str) -> str:
    """A question without halves of characters: bytes that the terminal's encoding did not know are read as UTF-8."""
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", question)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _marked(mark: str, found: _Asked) -> _Asked:
    """The same with ids that say of which corpus they are."""
    return found._replace(ids=[mark + name for name in found.ids])


def _corpora(config: SearchConfig, sources: Sequence[Source]) -> list[Corpus]:
    """The corpus that was typed, else one that the indexes know and that is still there: texts are an extra."""
    try:
        return open_corpora(config, sources)
    except RetrievoError:
        if config.corpus is not None:
            raise
        return []


def _names(sources: Sequence[Source]) -> list[str]:
    """What a person calls the indexes: by kind, and by folder where two are of one kind."""
    kinds = ["bm25" if source.lexical else "dense" for source in sources]
    return [kind if kinds.count(kind) == 1 else str(one.path) for kind, one in zip(kinds, sources, strict=True)]


def _texts_asker(config: SearchConfig, source: Source) -> Callable[[str, int], _Asked]:
    index = open_bm25(config, source)

    def ask(question: str, depth: int) -> _Asked:
        hits = index.search([question], depth, threads=config.threads, **bm25_options(config))[0]
        return _Asked(hits.doc_ids.to_pylist(), hits.scores.tolist(), functools.partial(index.matches, question))

    return ask


def _vectors_asker(config: SearchConfig, source: Source) -> Callable[[str, int], _Asked]:
    from retrievo.retrieval.hits import joined
    from retrievo.retrieval.snippets import same_words

    encoder, dense = open_encoder(config, source), Dense(config, source)

    def ask(question: str, depth: int) -> _Asked:
        hits = joined(dense.batches(encode(config, encoder, [question]), depth), dense.vectors)
        matches = functools.partial(same_words, question)
        return _Asked(dense.ids(hits.row).to_pylist(), hits.score.tolist(), matches)

    return ask
