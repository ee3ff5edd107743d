"""`retrievo index`: an index over texts (BM25) or over embeddings (FAISS)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import (
    corpus_option,
    data_option,
    force_option,
    heap_option,
    of_data,
    output_option,
    threads_option,
    title_template_option,
)
from retrievo.retrieval.index_types import BM25
from retrievo.retrieval.searcher import BUILT_BY_MODULE, KINDS, TYPES, check_type
from retrievo.support import console
from retrievo.support.conditions import only_where, only_with, only_without
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import Options, option
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.data.corpus import Corpus
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input, Manifest, Output

EMBEDDINGS_INPUT = "embeddings"  # the first; `embeddings-2` and so on were added later
_BM25 = only_with("type", BM25)
_NOT_BM25 = only_where(f"without --type {BM25}", "type", holds=lambda name: name != BM25)
_FAISS = only_where("with a FAISS type", "type", holds=lambda name: name not in (BM25, *BUILT_BY_MODULE))


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Options):
    """Options of `retrievo index`."""

    type: str = option(
        f"Index type. The types are {', '.join(TYPES)}, {BM25}, or a FAISS factory string such as IVF1024,SQ8.",
        default=None,
        hidden_default="bm25 of a corpus, flat of embeddings",
        check=check_type,
        shown=True,
        group="Search",
    )
    embeddings: Path | None = option(
        "Embeddings folder to index.", default=None, alternative="content", applies=_NOT_BM25, shown=True, group="Data"
    )
    data: Path | None = data_option("corpus", applies=only_without("embeddings"))
    corpus: Path | None = corpus_option(default=None, alternative="content", applies=_BM25, shown=True)
    output: Path = output_option("Index folder to write.")
    shards: int | None = option(
        "Number of files to split the index into.",
        default=None,
        minimum=1,
        applies=_FAISS & only_without("add").otherwise("is given together with --add", "pass one of them"),
        hidden_default="as the embeddings; for approximate types, one per 1,048,576 vectors",
        group="FAISS",
    )
    add: bool = option(
        "Add the embeddings to the finished index at --output, whatever its type.",
        default=False,
        applies=_FAISS,
        affects_output=False,
        decides_output=True,
        group="Output",
    )
    language: str = option(
        "Language of the analyzer (stemming and stop words), as in en, de or zh.",
        default="en",
        applies=_BM25,
        shown=True,
        group="BM25",
    )
    title_template: str = title_template_option(applies=_BM25, group="BM25")
    term_vectors: bool = option(
        "Store the terms of each document, which search --rm3 needs.", default=False, applies=_BM25, group="BM25"
    )
    heap: str | None = heap_option(applies=_BM25)
    threads: int | None = threads_option()
    force: bool = force_option()

    def recipe(self) -> Mapping[str, Any]:
        corpus = of_data(self.data, "corpus") if self.embeddings is None else {}
        return {"type": BM25 if self.corpus or corpus else "flat", **corpus}

    def check(self) -> None:
        if self.type == BM25 and self.corpus is None:
            raise UsageError("--type bm25", "needs texts", None, "pass --corpus CORPUS")
        if self.corpus is None and self.embeddings is None:
            fix = "pass --data DATASET to index texts (BM25), or --embeddings FOLDER to index vectors"
            raise UsageError("index", "nothing to index", None, fix)
        if self.type != BM25 and self.embeddings is None:
            raise UsageError(f"--type {self.type}", "needs vectors", None, "pass --embeddings FOLDER, or --type bm25")


@verb(IndexConfig)
def index(config: IndexConfig) -> Manifest:
    """Builds the index, or finds it finished.

    Raises: RetrievoError for a corpus or embeddings that can't be read.
    """
    return index_texts(config) if config.type == BM25 else index_vectors(config)


def index_texts(config: IndexConfig) -> Manifest:
    """Builds a Lucene index for BM25; documents without words are counted and kept, but never found."""
    from retrievo.data.corpus import Corpus
    from retrievo.retrieval import bm25, jvm
    from retrievo.support.artifact import Output

    assert config.corpus is not None
    corpus = Corpus(config.corpus)
    corpus.table.check_not_empty()
    output = Output(config.output, "bm25-index", config.record(), {"corpus": corpus.input}, force=config.force)
    if finished := output.already_finished():
        return finished
    corpus.check_unique_ids()
    jvm.start_jvm(config.heap)
    with output.build() as folder, console.progress("indexing", len(corpus), "documents") as tick:
        documents = _documents(corpus, config.title_template, tick)
        options: dict[str, Any] = {"language": config.language, "term_vectors": config.term_vectors}
        stats = bm25.build(documents, folder, threads=config.threads, **options)
        if stats["empty"]:
            console.warn(f"{config.corpus}: {stats['empty']:,} documents have no text; they are kept and never found")
        manifest = output.finish(stats)
    _summary(config.output, manifest, f"{stats['documents']:,} documents")
    return manifest


def _documents(corpus: Corpus, template: str, tick: console.Tick) -> Iterator[tuple[str, str]]:
    for ids, texts in corpus.batches(template):
        yield from zip(ids, texts, strict=True)
        tick(len(ids))


def index_vectors(config: IndexConfig) -> Manifest:
    """Builds an index over an embeddings folder, or adds the folder to a FAISS index."""
    from retrievo.retrieval import faiss_build
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input, Output

    assert config.embeddings is not None
    embeddings, given = Embeddings(config.embeddings), Input.of(config.embeddings)
    if config.add:
        return _add_vectors(config, embeddings, given)
    kind = BUILT_BY_MODULE.get(config.type, "faiss-index")
    output = Output(config.output, kind, config.record(), {EMBEDDINGS_INPUT: given}, force=config.force)
    if finished := output.already_finished():
        return finished
    if kind in BUILT_BY_MODULE.values():
        manifest = _build_by_module(kind, embeddings, output)
    else:
        manifest = faiss_build.build(embeddings, output, config.type, shards=config.shards, threads=config.threads)
    _summary(config.output, manifest, f"{embeddings.rows:,} vectors of {embeddings.dim} dimensions")
    return manifest


def _build_by_module(kind: str, embeddings: Embeddings, output: Output) -> Manifest:
    """An index whose module says how it is built."""
    module = importlib.import_module(KINDS[kind].module)
    with output.build() as folder:
        return output.finish(module.build(embeddings, folder))


def _add_vectors(config: IndexConfig, embeddings: Embeddings, given: Input) -> Manifest:
    """Adds documents to the index at the output; readers see the old index until the new one is complete."""
    from retrievo.retrieval import faiss_build
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.retrieval.faiss_index import FaissIndex
    from retrievo.support.artifact import Input, Output, end_publication

    end_publication(config.output)
    index = FaissIndex(config.output)
    if config.type not in ("flat", index.type):
        raise UsageError("--type", f"found '{config.type}'", f"'{index.type}', which {config.output} is of")
    held = index.manifest.inputs
    if given.fingerprint in {recorded["fingerprint"] for recorded in held.values()}:
        console.note(f"{config.output} holds {config.embeddings} already; nothing to do")
        return index.manifest
    inputs = {
        name: Input(index.manifest.input_path(name, None), recorded["fingerprint"]) for name, recorded in held.items()
    }
    _check_alike(embeddings, Embeddings(next(iter(inputs.values())).path))
    inputs[f"{EMBEDDINGS_INPUT}-{len(held) + 1}"] = given
    output = Output(config.output, "faiss-index", index.manifest.config, inputs, force=True)
    if finished := output.already_finished():
        return finished
    manifest = faiss_build.add(index, embeddings, output, threads=config.threads)
    _summary(config.output, manifest, f"{index.rows:,} vectors and {embeddings.rows:,} new ones")
    return manifest


def _check_alike(new: Embeddings, old: Embeddings) -> None:
    """Raises RetrievoError for vectors of another model or number format than those of the index.

    Notes where they are of another corpus, and warns where they were computed in another precision.
    """
    from retrievo.data.origin import CORPUS, named, origins, same
    from retrievo.models.model_reference import check_same_model

    check_same_model(new.path, new.manifest, old.path, old.manifest)
    if new.dtype != old.dtype:
        found, fix = f"holds {new.dtype}", f"encode it again with --storage-dtype {old.dtype}"
        raise RetrievoError(new.path, found, f"{old.dtype}, as {old.path} holds", fix)
    computed = [one.manifest.config.get("computed_in") for one in (new, old)]
    if computed[0] != computed[1]:
        console.warn(f"{new.path}: was computed in {computed[0]}, {old.path} in {computed[1]}")
    corpora = [origins(one.path, CORPUS) for one in (new, old)]
    if all(corpora) and not same(*corpora):
        console.note(f"documents of another corpus are added: of {named(corpora[0])} to those of {named(corpora[1])}")


def _summary(output: Path, manifest: Manifest, content: str) -> None:
    facts = {
        "output": f"{output} ({manifest.config['type']}, {content})",
        "took": console.seconds(manifest.seconds or 0.0),
    }
    console.summary("indexed", facts, f'retrievo search "..." --index {output}')
