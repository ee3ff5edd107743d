"""`retrievo index`: an index over texts (BM25) or over embeddings (FAISS)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.data.options import (
    corpus_option,
    force_option,
    heap_option,
    output_option,
    threads_option,
    title_template_option,
)
from retrievo.retrieval.index_types import INDEX_TYPES
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option

if TYPE_CHECKING:
    from retrievo.data.corpus import Corpus
    from retrievo.support.artifact import Manifest

BM25 = "bm25"
_BM25_ONLY = {"type": (BM25,)}
_FAISS_ONLY = {"type": tuple(INDEX_TYPES)}


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Options):
    """Options of `retrievo index`."""

    type: str = option("What to build.", default="flat", choices=(*INDEX_TYPES, BM25))
    embeddings: Path | None = option("Embeddings folder.", default=None, only=_FAISS_ONLY)
    corpus: Path | None = corpus_option(default=None, only=_BM25_ONLY)
    output: Path = output_option("Index folder to make.")
    shards: int | None = option(
        "Files to cut the index into.",
        default=None,
        minimum=1,
        only=_FAISS_ONLY,
        hidden_default="as the embeddings",
    )
    language: str = option("Analyzer: stemming and stop words, as in en, de, zh.", default="en", only=_BM25_ONLY)
    title_template: str = title_template_option(only=_BM25_ONLY)
    heap: str | None = heap_option(only=_BM25_ONLY)
    threads: int | None = threads_option()
    force: bool = force_option()

    def check(self) -> None:
        if self.type == BM25 and self.corpus is None:
            raise UsageError("--type bm25", "needs texts", None, "pass --corpus CORPUS")
        if self.type != BM25 and self.embeddings is None:
            raise UsageError(f"--type {self.type}", "needs vectors", None, "pass --embeddings FOLDER, or --type bm25")


def index(config: IndexConfig) -> Manifest:
    """Builds the index, or finds it finished.

    Raises: RetrievoError for a corpus or embeddings that can't be read.
    """
    return index_texts(config) if config.type == BM25 else index_vectors(config)


def index_texts(config: IndexConfig) -> Manifest:
    """A Lucene index for BM25; a document without words is counted, kept, and never found."""
    from retrievo.data.corpus import Corpus
    from retrievo.retrieval import jvm, lexical
    from retrievo.support.artifact import Output

    assert config.corpus is not None
    corpus = Corpus(config.corpus)
    output = Output(config.output, "bm25-index", config.record(), {"corpus": corpus.input}, force=config.force)
    if finished := output.already_finished():
        return finished
    corpus.check_unique_ids()
    jvm.start_jvm(config.heap)
    with output.build() as folder, console.progress("indexing", len(corpus), "documents") as tick:
        documents = _documents(corpus, config.title_template, tick)
        stats = lexical.build(documents, folder, language=config.language, threads=config.threads)
        if stats["empty"]:
            console.warn(f"{config.corpus}: {stats['empty']:,} documents have no text; they are kept and never found")
        manifest = output.finish(stats)
    _summary(config, manifest, f"{stats['documents']:,} documents")
    return manifest


def _documents(corpus: Corpus, template: str, tick: console.Tick) -> Iterator[tuple[str, str]]:
    for ids, texts in corpus.batches(template):
        yield from zip(ids, texts, strict=True)
        tick(len(ids))


def index_vectors(config: IndexConfig) -> Manifest:
    """A FAISS index over an embeddings folder."""
    from retrievo.retrieval import faiss_index
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input, Output

    assert config.embeddings is not None
    embeddings = Embeddings(config.embeddings)
    inputs = {"embeddings": Input.of(config.embeddings)}
    output = Output(config.output, "faiss-index", config.record(), inputs, force=config.force)
    if finished := output.already_finished():
        return finished
    manifest = faiss_index.build(embeddings, output, config.type, shards=config.shards, threads=config.threads)
    _summary(config, manifest, f"{embeddings.rows:,} vectors of {embeddings.dim} dimensions")
    return manifest


def _summary(config: IndexConfig, manifest: Manifest, content: str) -> None:
    facts = {"made": f"{config.output} ({config.type}, {content})", "took": console.seconds(manifest.seconds or 0.0)}
    console.summary("indexed", facts, f'retrievo search "..." --index {config.output}')
