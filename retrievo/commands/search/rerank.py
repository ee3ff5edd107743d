"""The first documents of a search, read together with the query by a cross-encoder and put in its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from retrievo.commands.search.across import plain_id
from retrievo.data.corpus import Document, first_found
from retrievo.retrieval.hits import Hits, joined
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    import numpy as np

    from retrievo.commands.search.across import Shelves
    from retrievo.data.corpus import Corpus
    from retrievo.models.compute import ComputeOptions
    from retrievo.support.console import Tick

PAIRS_AT_ONCE = 8_192  # tokens of so many pairs are in memory


class Reranker:
    """A cross-encoder beside the texts of the documents: of corpora that are ranked together, else of some corpora.

    Raises: RetrievoError for a model that is no cross-encoder, and where no corpus is known.
    """

    def __init__(self, model: str, compute: ComputeOptions, shelves: Shelves | None, corpora: Sequence[Corpus]):
        from retrievo.models.cross_encoder import CrossEncoder
        from retrievo.models.devices import resolve_device
        from retrievo.models.inference import prepared

        self.texts, self.corpora, self.compute = shelves.open() if shelves else None, corpora, compute
        if not shelves and not corpora:
            raise RetrievoError("--rerank", "no texts to read: the index knows no corpus", None, "pass --corpus")
        self.model = prepared(CrossEncoder.load(model), compute.dtype, resolve_device(compute.device))

    def scores(
        self, queries: Sequence[str], query: np.ndarray, doc_ids: Sequence[str], tick: Tick | None = None
    ) -> np.ndarray:
        """Scores float32 [n] of pairs: the number of each query [n] and the id of each document [n].

        Each query and each document is tokenized once.
        Raises: RetrievoError for a document that no corpus holds.
        """
        import numpy as np

        asked, query_of = np.unique(query, return_inverse=True)
        known, document_of = np.unique(np.asarray(doc_ids, dtype=object), return_inverse=True)
        documents, pairs = self._documents(known.tolist()), self.model.tokenization
        first = pairs.query.tokenize([queries[number] for number in asked])
        second = pairs.document.tokenize([one.text for one in documents], [one.title for one in documents])
        rows = pairs.rows([(first.row(q), second.row(d)) for q, d in zip(query_of, document_of, strict=True)])
        return self.model.scores(*rows, self.compute, tick)

    def _documents(self, ids: Sequence[str]) -> list[Document]:
        """Documents by id, from the first corpus that has them; of several corpora each from its own."""
        found = self.texts.find(ids) if self.texts is not None else first_found(self.corpora, ids)
        if (missing := next((name for name in ids if name not in found), None)) is None:
            return [found[name] for name in ids]
        if self.texts is None:
            raise RetrievoError(self.corpora[0].path, f"has no document '{missing}'", None, "check --corpus")
        fix = "build its index again"
        raise RetrievoError("--across-corpora", f"no corpus has document '{plain_id(missing)}'", None, fix)


def reranked(
    hits: Iterator[Hits], reranker: Reranker, queries: Sequence[str], depth: int, tick: Tick | None = None
) -> Iterator[Hits]:
    """The first `depth` of each query by a cross-encoder's scores, in blocks of whole queries.

    Pairs are scored some thousands at a time, counted from the first on: what the pairs of one chunk are decides the
    last bits of their scores, so the blocks that they come in must not.
    """
    import numpy as np

    waiting, scores = joined([]), np.empty(0, np.float32)
    for part in hits:
        waiting = joined([waiting, part]) if len(waiting.query) else part
        while len(waiting.query) - len(scores) >= PAIRS_AT_ONCE:
            scores = np.append(scores, _scored(waiting, len(scores), reranker, queries, tick))
        if len(scores):
            end = _end_of_queries(waiting.query, len(scores))
            yield _in_order(waiting.at(np.arange(end)), scores[:end], depth)
            waiting, scores = waiting.at(np.arange(end, len(waiting.query))), scores[end:]
    scores = np.append(scores, _scored(waiting, len(scores), reranker, queries, tick))
    yield _in_order(waiting, scores, depth)


def _scored(hits: Hits, first: int, reranker: Reranker, queries: Sequence[str], tick: Tick | None) -> np.ndarray:
    """The scores of the next pairs from `first` on."""
    import numpy as np

    pairs = hits.at(np.arange(first, min(first + PAIRS_AT_ONCE, len(hits.query))))
    if not len(pairs.query):
        return np.empty(0, np.float32)
    return reranker.scores(queries, pairs.query, pairs.ids().to_pylist(), tick)


def _end_of_queries(query: np.ndarray, count: int) -> int:
    """How many of the first `count` hits are of queries whose hits are all among them."""
    import numpy as np

    return count if count == len(query) else int(np.searchsorted(query, query[count]))


def _in_order(hits: Hits, score: np.ndarray, depth: int) -> Hits:
    from retrievo.data.ordering import first_ranked

    return hits._replace(score=score).at(first_ranked(hits.query, score, hits.ids(), depth))
