"""What is searched for: a table of queries, embeddings of queries, or the one row that a typed question is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from retrievo.support import console
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from retrievo.data.corpus import Queries
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input


class Asked(NamedTuple):
    """Queries in their order; input: where they were read, None for a typed question."""

    ids: pa.ChunkedArray
    given: Sequence[str] | Queries | Embeddings
    input: Input | None = None

    @property
    def texts(self) -> Sequence[str]:
        """The texts of the queries.

        Raises: RetrievoError where they are vectors.
        """
        from retrievo.data.corpus import Queries

        if isinstance(self.given, Queries):
            return self.given.texts
        if isinstance(self.given, Sequence):
            return self.given
        raise RetrievoError(self.given.path, "holds vectors", "texts with --rerank", "pass the table of queries")


def read_queries(path: Path, judged: Path | None) -> Asked:
    """The queries of a table or embeddings folder, or those of a table that these judgments are about.

    Raises: RetrievoError for what holds no queries.
    """
    from retrievo.data.corpus import Queries
    from retrievo.data.qrels import Qrels
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input, Manifest, has_manifest

    if has_manifest(path) and Manifest.read(path).kind == "embeddings":
        if judged:
            raise RetrievoError(path, "holds vectors", "texts with --judged", "pass the table of queries")
        vectors = Embeddings(path)
        return Asked(vectors.ids(), vectors, Input.of(path))
    queries = Queries(path)
    if empty := sum(not text.strip() for text in queries.texts):
        console.warn(f"{path}: {empty:,} queries have no text; they are kept")
    if judged:
        if judged == path and not any(path.glob("qrels*")):
            fix = f"pass --queries {path} instead of --data, to search for all of its queries"
            raise RetrievoError(path, "is a dataset without relevance judgments", None, fix)
        queries = queries.among(Qrels.read(judged).table["query_id"])
    return Asked(queries.ids, queries, queries.input)


def typed(question: str) -> Asked:
    """A question that a person types, as a table of one row."""
    import pyarrow as pa

    return Asked(pa.chunked_array([["question"]]), [question])
