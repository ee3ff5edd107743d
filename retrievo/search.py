"""`retrievo search`: rank documents for a table of queries, or for a question that a person types."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.data.options import (
    corpus_option,
    force_option,
    heap_option,
    json_option,
    output_option,
    queries_option,
    threads_option,
)
from retrievo.data.run_files import check_run_suffix
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option
from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import Options, option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.data.corpus import Document
    from retrievo.data.run import RunWriter
    from retrievo.retrieval.answer import Answer
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.retrieval.faiss_index import FaissIndex
    from retrievo.retrieval.lexical import BM25Index, Hits
    from retrievo.support.artifact import Input, Manifest

BM25_KIND, FAISS_KIND, EMBEDDINGS_KIND = "bm25-index", "faiss-index", "embeddings"
HITS_AT_ONCE = 1 << 20  # of BM25, in memory before they are written
TABLE_DEPTH, QUESTION_DEPTH = 1_000, 10


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Options):
    """Options of `retrievo search`."""

    question: str | None = option("A question to answer at once.", default=None, positional=True, alternative="queries")
    index: Path = option("FAISS or BM25 index folder, or an embeddings folder (exact search without a copy).")
    queries: Path | None = queries_option(default=None, alternative="queries")
    output: Path | None = output_option(
        "Run file: .parquet, .trec, .txt or .run (TREC), .tsv (MS MARCO).", default=None
    )
    depth: int | None = option(
        "Documents per query.",
        default=None,
        minimum=1,
        hidden_default=f"{TABLE_DEPTH:,} for a table, {QUESTION_DEPTH} for a question",
    )
    k1: float | None = option("BM25: saturation of the term frequency.", default=None, minimum=0, hidden_default="0.9")
    b: float | None = option("BM25: length normalization.", default=None, minimum=0, maximum=1, hidden_default="0.4")
    language: str | None = option("BM25: analyzer of the queries.", default=None, hidden_default="the index's own")
    heap: str | None = heap_option()
    batch_size: int | None = option(
        "Queries per scan.", default=None, minimum=1, affects_output=False, hidden_default="1,024"
    )
    dtype: str = dtype_option()
    chunk_tokens: int = chunk_tokens_option()
    device: str = device_option()
    threads: int | None = threads_option()
    corpus: Path | None = corpus_option(
        default=None, affects_output=False, hidden_default="the one the index was made from"
    )
    json: bool = json_option()
    force: bool = force_option()

    def check(self) -> None:
        if self.question is None and self.queries is None:
            raise UsageError("search", "nothing to search for", "a QUESTION in quotes, or --queries and --output")
        if self.question is None and self.output is None:
            raise UsageError("--queries", "no place for the run", None, "pass --output FILE.parquet")
        if self.question is not None and not self.question.strip():
            raise UsageError("QUESTION", "is empty", "words to search for")
        if self.question is None and self.output is not None:
            check_run_suffix(self.output)


class Found(NamedTuple):
    """Results as flat columns [H]: by query, then in the order of the ordering rule."""

    query: np.ndarray  # int64, row of the query in its table
    doc_id: pa.Array
    score: np.ndarray  # float32


class Plan(NamedTuple):
    """A search that is ready to run; nothing heavy has started yet."""

    query_ids: pa.ChunkedArray
    queries: Input
    batches: Callable[[], Iterator[Found]]


def search(config: SearchConfig) -> Answer | None:
    """Writes a run for a table of queries, or returns the answer to a question.

    Raises: RetrievoError where index and queries do not fit; UsageError for options of another kind of index.
    """
    from retrievo.support.artifact import Manifest

    manifest = Manifest.read(config.index, BM25_KIND, FAISS_KIND, EMBEDDINGS_KIND)
    _check_kind(config, manifest.kind)
    if config.question is not None:
        return _answer(config, manifest)
    _write_run(config, _plan_texts(config) if manifest.kind == BM25_KIND else _plan_vectors(config, manifest))
    return None


def _check_kind(config: SearchConfig, kind: str) -> None:
    """Refuses flags that have no meaning for this kind of index."""
    for name in ("batch_size",) if kind == BM25_KIND else ("k1", "b", "language", "heap"):
        if getattr(config, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(flag, f"does not apply to {config.index}, which is of kind '{kind}'")


# ---------------------------------------------------------------------------------------------- a table of queries


def _write_run(config: SearchConfig, plan: Plan) -> None:
    from retrievo.data.run import RunWriter
    from retrievo.support.artifact import Input, Output

    assert config.output is not None
    inputs = {"index": Input.of(config.index), "queries": plan.queries}
    record = config.record() | {"depth": config.depth or TABLE_DEPTH}
    output = Output(config.output, "run", record, inputs, force=config.force, single_file=True)
    if output.already_finished():
        return
    with output.build() as folder:
        writer = RunWriter(folder / config.output.name, format_of=config.output)
        stats = _write_batches(plan, writer)
        writer.close(output.manifest(stats))
        output.finish(stats)
    facts = {"made": f"{config.output} ({stats['rows']:,} rows for {stats['queries']:,} queries)"}
    if stats["without_results"]:
        facts["empty"] = f"{stats['without_results']:,} queries found nothing"
    facts["took"] = console.seconds(output.elapsed)
    console.summary("searched", facts, f"retrievo evaluate --run {config.output} --qrels QRELS")


def _write_batches(plan: Plan, writer: RunWriter) -> dict[str, int]:
    import numpy as np
    import pyarrow as pa

    from retrievo.data.ordering import ranks

    rows = answered = 0
    for found in plan.batches():
        writer.write(plan.query_ids.take(pa.array(found.query)), found.doc_id, found.score, ranks(found.query))
        rows, answered = rows + len(found.query), answered + len(np.unique(found.query))
    return {"queries": len(plan.query_ids), "without_results": len(plan.query_ids) - answered, "rows": rows}


def _plan_texts(config: SearchConfig) -> Plan:
    """BM25 over a table of queries."""
    from retrievo.data.corpus import Queries

    assert config.queries is not None
    queries = Queries(config.queries)

    def batches() -> Iterator[Found]:
        depth, options = config.depth or TABLE_DEPTH, _bm25_options(config)
        size = max(1, HITS_AT_ONCE // depth)
        with _open_bm25(config) as index, console.progress("searching", len(queries), "queries") as tick:
            for first in range(0, len(queries), size):
                texts = queries.texts[first : first + size]
                yield _flat(first, index.search(texts, depth, threads=config.threads, progress=tick, **options))

    return Plan(queries.ids, queries.input, batches)


def _open_bm25(config: SearchConfig) -> BM25Index:
    from retrievo.retrieval import lexical

    lexical.start_jvm(config.heap)
    return lexical.BM25Index(config.index, config.language)


def _bm25_options(config: SearchConfig) -> dict[str, Any]:
    """k1 and b where they were given; the index has its own defaults."""
    return {name: value for name, value in (("k1", config.k1), ("b", config.b)) if value is not None}


def _flat(first: int, hits: Sequence[Hits]) -> Found:
    """The rankings of consecutive queries as flat columns."""
    import numpy as np
    import pyarrow as pa

    query = np.repeat(np.arange(first, first + len(hits)), [len(found.doc_ids) for found in hits])
    doc_ids = pa.concat_arrays([found.doc_ids for found in hits])
    return Found(query, doc_ids, np.concatenate([found.scores for found in hits]))


def _plan_vectors(config: SearchConfig, manifest: Manifest) -> Plan:
    """Exact search over an embeddings folder, or a FAISS index."""
    query_ids, source, encode = _dense_queries(config, manifest)

    def batches() -> Iterator[Found]:
        queries, dense = encode(), _open_dense(config, manifest.kind)
        depth, options = config.depth or TABLE_DEPTH, _scan_options(config)
        with console.progress(
            "searching", dense.rows * _scans(config, len(queries), min(depth, dense.rows)), "documents"
        ) as tick:
            for hits in dense.search_batches(queries, depth=depth, tick=tick, **options):
                yield Found(hits.query, dense.ids(hits.row), hits.score)

    return Plan(query_ids, source, batches)


def _open_dense(config: SearchConfig, kind: str) -> Embeddings | FaissIndex:
    if kind == EMBEDDINGS_KIND:
        from retrievo.retrieval.embeddings import Embeddings

        return Embeddings(config.index)
    from retrievo.retrieval.faiss_index import FaissIndex

    return FaissIndex(config.index)


def _scans(config: SearchConfig, queries: int, depth: int) -> int:
    """How often all documents are scanned: once for each batch of queries."""
    from retrievo.retrieval.exact import default_batch

    return -(-queries // (config.batch_size or default_batch(depth)))


def _scan_options(config: SearchConfig) -> dict[str, Any]:
    from retrievo.models.devices import resolve_device

    return {"batch_size": config.batch_size, "threads": config.threads, "device": resolve_device(config.device)}


class _DenseQueries(NamedTuple):
    """Queries whose vectors [Q, D] are made when they are needed."""

    ids: pa.ChunkedArray
    input: Input
    encode: Callable[[], np.ndarray]


def _dense_queries(config: SearchConfig, manifest: Manifest) -> _DenseQueries:
    """An embeddings folder of queries, or a table of texts that the index's own model encodes."""
    import numpy as np

    from retrievo.data.corpus import Queries
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import MANIFEST, Input, Manifest

    assert config.queries is not None
    documents = _embeddings_manifest(manifest)
    if (config.queries / MANIFEST).is_file() and Manifest.read(config.queries).kind == EMBEDDINGS_KIND:
        vectors = Embeddings(config.queries)
        _check_comparable(config, documents, vectors.manifest)
        return _DenseQueries(vectors.ids(), Input.of(config.queries), lambda: vectors.take(np.arange(vectors.rows)))
    queries = Queries(config.queries)
    return _DenseQueries(queries.ids, queries.input, lambda: _encode(config, documents, queries.texts))


def _encode(config: SearchConfig, documents: Manifest, texts: Sequence[str]) -> np.ndarray:
    """Vectors [Q, D] of queries, by the model that made the embeddings of the documents."""
    from retrievo.models.devices import resolve_device
    from retrievo.models.encoder import Encoder
    from retrievo.models.precision import resolve_dtype
    from retrievo.models.source import recorded_model
    from retrievo.models.vectors import encode_texts

    device = resolve_device(config.device)
    name, revision = recorded_model(documents, "--queries EMBEDDINGS (these vectors were imported)")
    encoder = Encoder.load(name, revision, pooling=documents.config.get("pooling"))
    dtype = resolve_dtype(config.dtype, device)
    return encode_texts(encoder, "query", texts, chunk_tokens=config.chunk_tokens, dtype=dtype, device=device)


def _embeddings_manifest(manifest: Manifest) -> Manifest:
    """Of the embeddings themselves, or of those that an index was built from."""
    from retrievo.support.artifact import Manifest

    if manifest.kind == EMBEDDINGS_KIND:
        return manifest
    return Manifest.read(manifest.input_path("embeddings", "--index EMBEDDINGS"), EMBEDDINGS_KIND)


def _check_comparable(config: SearchConfig, documents: Manifest, queries: Manifest) -> None:
    """Vectors of one model compared with vectors of another mean nothing."""
    for manifest, path, role in ((documents, config.index, "document"), (queries, config.queries, "query")):
        if manifest.stats["role"] != role:
            raise RetrievoError(path, f"holds {manifest.stats['role']} vectors", f"{role} vectors", "check the paths")
    models = [manifest.inputs.get("model", {}).get("fingerprint") for manifest in (documents, queries)]
    if models[0] != models[1]:
        raise RetrievoError(
            config.queries, f"was encoded by another model than {config.index}", None, "encode it again"
        )


# ------------------------------------------------------------------------------------------------- a typed question


class _Asked(NamedTuple):
    """The best documents for a question, and how to find its words in a text."""

    ids: list[str]
    scores: list[float]
    matches: Callable[[str], list[tuple[int, int]]]


def _answer(config: SearchConfig, manifest: Manifest) -> Answer:
    """The best documents, with titles and snippets where the corpus is at hand."""
    from retrievo.retrieval.answer import Answer, Hit
    from retrievo.retrieval.snippets import snippet

    question = config.question or ""
    asked = _ask_texts(config, question) if manifest.kind == BM25_KIND else _ask_vectors(config, manifest, question)
    documents = _find_documents(config, manifest, asked.ids)
    hits = [
        Hit(rank, score, doc_id, document.title, snippet(document.text, asked.matches(document.text)))
        if document
        else Hit(rank, score, doc_id, "")
        for rank, (doc_id, score, document) in enumerate(zip(asked.ids, asked.scores, documents, strict=True), start=1)
    ]
    return Answer(question, tuple(hits))


def _ask_texts(config: SearchConfig, question: str) -> _Asked:
    index = _open_bm25(config)
    hits = index.search([question], config.depth or QUESTION_DEPTH, threads=config.threads, **_bm25_options(config))[0]
    return _Asked(hits.doc_ids.to_pylist(), hits.scores.tolist(), functools.partial(index.matches, question))


def _ask_vectors(config: SearchConfig, manifest: Manifest, question: str) -> _Asked:
    from retrievo.retrieval.snippets import same_words

    queries, dense = _encode(config, _embeddings_manifest(manifest), [question]), _open_dense(config, manifest.kind)
    hits = next(dense.search_batches(queries, depth=config.depth or QUESTION_DEPTH, **_scan_options(config)))
    return _Asked(dense.ids(hits.row).to_pylist(), hits.score.tolist(), functools.partial(same_words, question))


def _find_documents(config: SearchConfig, manifest: Manifest, ids: Sequence[str]) -> list[Document | None]:
    """The texts of documents from --corpus, else from the corpus that the index was made from."""
    from retrievo.data.corpus import Corpus

    if config.corpus is None:
        source = manifest if manifest.kind == BM25_KIND else _embeddings_manifest(manifest)
        if "corpus" not in source.inputs:
            return [None] * len(ids)
    return Corpus(config.corpus or source.input_path("corpus", "--corpus")).find(ids)
