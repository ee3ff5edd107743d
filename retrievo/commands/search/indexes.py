"""What a search draws on: an index with its vectors, the model that encodes for it, and the corpus behind it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.data.options import parse_memory
from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import flag_of, is_off

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.commands.search.across import Shelves
    from retrievo.commands.search.config import SearchConfig
    from retrievo.data.corpus import Corpus
    from retrievo.data.origin import Origin
    from retrievo.models.encoder import Encoder
    from retrievo.retrieval.bm25 import BM25Index
    from retrievo.retrieval.embeddings import Vectors
    from retrievo.retrieval.faiss_search import Effort
    from retrievo.retrieval.hits import Hits
    from retrievo.support.artifact import Manifest

BM25_KIND, FAISS_KIND, EMBEDDINGS_KIND = "bm25-index", "faiss-index", "embeddings"
_TUNING_QUERIES = 200


class Source(NamedTuple):
    """One index to search."""

    path: Path
    manifest: Manifest

    @property
    def lexical(self) -> bool:
        return self.manifest.kind == BM25_KIND

    def embeddings(self) -> list[Path]:
        """The embeddings folders of a dense index, in the order of its rows.

        Raises: RetrievoError where one is gone, or is another one than the index was made of.
        """
        if self.manifest.kind == EMBEDDINGS_KIND:
            return [self.path]
        return [self._embeddings(name) for name in self.manifest.inputs if name.startswith(EMBEDDINGS_KIND)]

    def _embeddings(self, name: str) -> Path:
        from retrievo.support.artifact import Input, Manifest

        path = self.manifest.input_path(name, "--index EMBEDDINGS")
        Manifest.read(path, EMBEDDINGS_KIND)
        if Input.of(path).fingerprint != self.manifest.inputs[name]["fingerprint"]:
            found = f"was made of other embeddings than those that lie at {path} now"
            raise RetrievoError(self.path, found, None, "build the index again")
        return path

    def embeddings_manifest(self) -> Manifest:
        """Of the first of them: all are of one model."""
        from retrievo.support.artifact import Manifest

        if self.manifest.kind == EMBEDDINGS_KIND:
            return self.manifest
        return Manifest.read(self.embeddings()[0], EMBEDDINGS_KIND)

    def corpora(self) -> list[Path]:
        """Where the texts are, as far as manifests know."""
        return [manifest.input_path("corpus", "--corpus") for manifest in self.made_of_texts()]

    def made_of_texts(self) -> list[Manifest]:
        """The manifests that know a corpus."""
        from retrievo.support.artifact import Manifest

        made_of = [self.manifest] if self.lexical else [Manifest.read(path) for path in self.embeddings()]
        return [manifest for manifest in made_of if "corpus" in manifest.inputs]


def open_source(path: Path) -> Source:
    """A source by its manifest; nothing heavy is loaded."""
    from retrievo.support.artifact import Manifest

    if (path / "corpus.parquet").is_file():
        fix = f"make one: retrievo index --type bm25 --corpus {path} --output {path}/bm25"
        raise RetrievoError(path, "is a dataset", "an index or an embeddings folder", fix)
    return Source(path, Manifest.read(path, BM25_KIND, FAISS_KIND, EMBEDDINGS_KIND))


def _is_approximate(manifest: Manifest) -> bool:
    from retrievo.retrieval.index_types import type_named

    return manifest.kind == FAISS_KIND and not type_named(manifest.stats["type"]).exact


def shelves_of(config: SearchConfig) -> Shelves | None:
    """The corpora that are ranked together, where that was asked for."""
    from retrievo.commands.search.across import Shelves

    return Shelves.of([*config.index, *config.run]) if config.across_corpora else None


def check_corpora(config: SearchConfig, sources: Sequence[Source]) -> None:
    """Refuses to put documents of different corpora into one ranking: their ids and their scores mean other things.

    Raises: RetrievoError that names both corpora.
    """
    from retrievo.data.origin import CORPUS, named, origins, same

    places = [*(source.path for source in sources), *config.run]
    if config.across_corpora:
        shelves_of(config)
        return
    known = [(place, found) for place in places if (found := origins(place, CORPUS))]
    for place, found in known[1:]:
        if not same(found, known[0][1]):
            told = f"was made from another corpus ({named(found)}) than {known[0][0]} ({named(known[0][1])})"
            raise RetrievoError(place, told, "one corpus", "search them apart, or pass --across-corpora")
    if len(places) > 1:
        for place in [place for place in places if place not in dict(known)]:
            console.note(f"{place} does not say of which corpus it is; that it is that of the others can't be checked")
    _check_given_corpus(config, known)


def _check_given_corpus(config: SearchConfig, known: Sequence[tuple[Path, Sequence[Origin]]]) -> None:
    """What --corpus gives texts to must have been made from it, where a cross-encoder reads them; a person is told.

    Raises: RetrievoError that names both corpora.
    """
    from retrievo.data.finding import table_files
    from retrievo.data.origin import CORPUS, Origin, named, part_of
    from retrievo.support.artifact import Input

    if config.corpus is None or not known:
        return
    given = Origin.of(CORPUS, Input.of(config.corpus, table_files(config.corpus, CORPUS)))
    place, found = known[0]
    if part_of([given], found) or config.corpus.resolve() in {one.path.resolve() for one in found}:
        return  # where it was and has changed since: who names it knows that
    told = f"is another corpus than {place} was made from ({named(found)})"
    if config.rerank is not None:
        raise RetrievoError(config.corpus, told, None, "pass that one to --corpus, or leave it out")
    console.warn(f"{config.corpus}: {told}; the texts may be those of other documents")


# option -> the kinds of index that it has a meaning for
_MEANING = {
    **dict.fromkeys(("k1", "b", "language", "heap", "rm3"), lambda manifest: manifest.kind == BM25_KIND),
    "batch_size": lambda manifest: manifest.kind != BM25_KIND and not _is_approximate(manifest),
    "memory": lambda manifest: manifest.kind != BM25_KIND,
    "feedback": lambda manifest: manifest.kind != BM25_KIND,
    "nprobe": lambda manifest: manifest.stats.get("knob") == "nprobe",
    "ef_search": lambda manifest: manifest.stats.get("knob") == "ef_search",
    "rescore": _is_approximate,
    "recall_target": _is_approximate,
}


def check_meaning(config: SearchConfig, sources: Sequence[Source]) -> None:
    """Refuses flags that have no meaning for any of the indexes."""
    for name, means_something in _MEANING.items():
        if not is_off(getattr(config, name)) and not any(means_something(source.manifest) for source in sources):
            flag = flag_of(name)
            if not sources:
                raise UsageError(flag, "does not apply to runs", "an --index")
            last = sources[-1]
            told = f" and type '{last.manifest.stats['type']}'" if last.manifest.kind == FAISS_KIND else ""
            raise UsageError(flag, f"does not apply to {last.path}, which is of kind '{last.manifest.kind}'{told}")


def warn_of_changed_texts(sources: Sequence[Source]) -> None:
    """Says which indexes were made of another content of their corpus: what they find is not what stands there now."""
    from retrievo.data.finding import table_files
    from retrievo.support.artifact import Input

    for source in sources:
        with contextlib.suppress(RetrievoError):  # what is gone can't be compared; who needs it says so
            now = [Input.of(path, table_files(path, "corpus")).fingerprint for path in source.corpora()]
            if now != [manifest.inputs["corpus"]["fingerprint"] for manifest in source.made_of_texts()]:
                console.warn(f"{source.path}: its corpus has changed since; build the index again")


# --------------------------------------------------------------------------------------------------------------- BM25


def open_bm25(config: SearchConfig, source: Source) -> BM25Index:
    """The index in a Java machine with the heap that was asked for."""
    from retrievo.retrieval import bm25, jvm

    jvm.start_jvm(config.heap)
    return bm25.BM25Index(source.path, config.language)


def bm25_options(config: SearchConfig) -> dict[str, Any]:
    """k1, b and RM3 where they were given; the index has its own defaults."""
    from retrievo.retrieval.bm25 import Rm3

    rm3 = Rm3(config.rm3_documents, config.rm3_words, config.rm3_weight) if config.rm3 else None
    return {name: value for name, value in (("k1", config.k1), ("b", config.b), ("rm3", rm3)) if value is not None}


# -------------------------------------------------------------------------------------------------------------- dense


def open_encoder(config: SearchConfig, source: Source) -> Encoder:
    """The model that made the embeddings of the documents."""
    from retrievo.models.devices import resolve_device
    from retrievo.models.encoder import Encoder
    from retrievo.models.inference import prepared
    from retrievo.models.model_reference import unchanged_model

    documents = source.embeddings_manifest()
    check_role(source.path, documents, "document")
    name, revision = unchanged_model(documents, "--queries EMBEDDINGS of queries by the same model")
    encoder = Encoder.load(name, revision, pooling=documents.config.get("pooling"))
    encoder.truncate(documents.config.get("truncate_dim"))
    return prepared(encoder, config.dtype, resolve_device(config.device))


def encode(config: SearchConfig, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Vectors [Q, D] of queries."""
    from retrievo.models.inference import computing
    from retrievo.models.tokens import warn_of_texts_without_tokens
    from retrievo.models.vectors import encode_tokens

    settled = computing(config.dtype, encoder.backbone.device, config.chunk_tokens)
    rows = encoder.tokenization("query").tokenize(texts)
    warn_of_texts_without_tokens("queries", rows.without_tokens, "query")
    return encode_tokens(encoder, "query", rows.tokens, rows.offsets, **settled)


class Dense:
    """A dense index open for search: exact over its vectors, or approximate with its knob set.

    rows N; index: the approximate index, None where the search is exact; effort: how hard it tries.
    """

    def __init__(self, config: SearchConfig, source: Source):
        from retrievo.retrieval.embeddings import Embeddings
        from retrievo.retrieval.faiss_index import FaissIndex

        self.config, self.source = config, source
        self.effort: Effort | None = None
        self.memory = parse_memory(config.memory) if config.memory else None
        opened = Embeddings(source.path) if source.manifest.kind == EMBEDDINGS_KIND else FaissIndex(source.path)
        self.index = opened if isinstance(opened, FaissIndex) and not opened.kind.exact else None
        self.rows, self._opened = opened.rows, opened

    @functools.cached_property
    def vectors(self) -> Vectors:
        """The vectors of all documents.

        Raises: RetrievoError where the embeddings are gone, or are not those of the index.
        """
        from retrievo.retrieval.embeddings import Embeddings, together

        if self.index is None:
            vectors = self._opened if isinstance(self._opened, Embeddings) else self._opened.vectors
        else:
            vectors = together([Embeddings(path) for path in self.source.embeddings()])
            if vectors.rows != self.rows:
                found = f"its embeddings hold {vectors.rows:,} vectors"
                raise RetrievoError(self.source.path, found, f"{self.rows:,}", "build it again")
        vectors.sparing = self.memory is not None
        return vectors

    def ids(self, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The ids of rows, or of all."""
        return self._opened.ids(rows)

    def batches(self, queries: np.ndarray, depth: int) -> Iterator[Hits]:
        """The first `depth` documents of every query [Q, D], a batch of queries at a time, with a progress bar."""
        if self.index is None:
            return self._exact_batches(queries, depth)
        return self._approximate_batches(queries, depth)

    def _exact_batches(self, queries: np.ndarray, depth: int) -> Iterator[Hits]:
        from retrievo.models.devices import resolve_device
        from retrievo.retrieval.distributed import search_batches
        from retrievo.retrieval.exact import scan_size

        config = self.config
        size = scan_size(config.batch_size, min(depth, self.rows), self.memory)
        options: dict[str, Any] = {"threads": config.threads, "device": resolve_device(config.device)}
        with console.progress("searching", self.rows * -(-len(queries) // size), "documents") as tick:
            yield from search_batches(
                self.source.path, queries, self.vectors, depth, batch_size=size, tick=tick, **options
            )

    def _approximate_batches(self, queries: np.ndarray, depth: int) -> Iterator[Hits]:
        from retrievo.retrieval.faiss_search import search_batches

        assert self.index is not None
        self.effort = effort = self.effort or self._effort(queries, depth)
        vectors = self.vectors if effort.rescore else None
        options: dict[str, Any] = {"threads": self.config.threads, "memory": self.memory}
        with console.progress("searching", len(queries) * len(self.index.files), "queries in shards") as tick:
            yield from search_batches(self.index, vectors, queries, depth, effort, tick=tick, **options)

    def _effort(self, queries: np.ndarray, depth: int) -> Effort:
        """As asked for, tuned on some of the queries, or the defaults of the type."""
        from dataclasses import replace

        from retrievo.retrieval.faiss_search import default_effort

        assert self.index is not None
        if self.config.recall_target is not None:
            return self._tuned(queries, depth)
        effort = default_effort(self.index, depth)
        knob = getattr(self.config, self.index.knob) if self.index.knob else None
        if self.index.knob == "nprobe" and knob is not None and knob > self.index.lists:
            raise UsageError("--nprobe", f"found {knob:,}", f"at most {self.index.lists:,}, the lists of the index")
        rescore = effort.rescore if self.config.rescore is None else self.config.rescore
        if 0 < rescore < depth:
            raise UsageError("--rescore", f"found {rescore:,}", f"0, or at least {depth:,}, the documents wanted")
        return replace(effort, knob=knob or effort.knob, rescore=rescore)

    def _tuned(self, queries: np.ndarray, depth: int) -> Effort:
        from retrievo.retrieval.faiss_search import tune
        from retrievo.retrieval.hits import joined

        target = self.config.recall_target
        assert self.index is not None
        assert target is not None
        sample = queries[:: -(-len(queries) // _TUNING_QUERIES) or 1]
        exact = joined(self._exact_batches(sample, depth), self.vectors)
        options: dict[str, Any] = {"threads": self.config.threads, "memory": self.memory}
        tuned = tune(self.index, self.vectors, sample, depth, target, exact, **options)
        measured = f"recall@{depth} {tuned.recall:.4f} on {len(sample):,} queries"
        told = f"{self.source.path}: {measured} with {tuned.effort.said(self.index)}"
        if tuned.reached:
            console.note(told)
        else:
            console.warn(f"{told}; {target:g} is out of reach of this index")
        return tuned.effort


def accompanied(config: SearchConfig, sources: Sequence[Source]) -> AbstractContextManager[bool]:
    """Whether this process leads, of those that torchrun started; the others scan their rows for it until it ends."""
    from retrievo.retrieval.distributed import company

    def device() -> str:
        from retrievo.models.devices import resolve_device

        return resolve_device(config.device)

    @functools.cache
    def vectors_of(index: Path) -> Vectors:
        return next(Dense(config, source) for source in sources if source.path == index).vectors

    return company(device, vectors_of, threads=config.threads)


def check_role(path: Path, manifest: Manifest, role: str) -> None:
    """Raises RetrievoError for vectors of queries that are searched, and for vectors of documents that ask."""
    if manifest.stats["role"] != role:
        raise RetrievoError(path, f"holds {manifest.stats['role']} vectors", f"{role} vectors", "check the paths")


def check_comparable(table: Path, queries: Manifest, source: Source) -> None:
    """Raises RetrievoError for vectors of one model that would be compared with vectors of another."""
    from retrievo.models.model_reference import check_same_model

    documents = source.embeddings_manifest()
    for manifest, path, role in ((documents, source.path, "document"), (queries, table, "query")):
        check_role(path, manifest, role)
    if not _trained_against(queries, source):
        check_same_model(table, queries, source.path, documents)
    if "model" not in queries.inputs:
        console.note(f"{table} and {source.path} were imported: that one model made both can't be checked")
    similarities = [manifest.stats["similarity"] for manifest in (queries, documents)]
    if similarities[0] != similarities[1]:
        told = f"was made for similarity {similarities[0]}, {source.path} for {similarities[1]}"
        console.warn(f"{table}: {told}, by which is searched")


def _trained_against(queries: Manifest, source: Source) -> bool:
    """Whether the model of the queries learned to search these very vectors (`train --document-embeddings`)."""
    from retrievo.models.model_reference import FIXED_DOCUMENTS, model_record
    from retrievo.support.artifact import Input, Manifest, has_manifest

    if "model" not in queries.inputs:
        return False
    try:
        model = queries.input_path("model", "--queries")
    except RetrievoError:  # it was moved, and with it went what it says
        return False
    if not has_manifest(model):
        return False
    if model_record(str(model), None)[1]["model"].fingerprint != queries.inputs["model"]["fingerprint"]:
        return False
    learned = Manifest.read(model).inputs.get(FIXED_DOCUMENTS, {}).get("fingerprint")
    return [Input.of(path).fingerprint for path in source.embeddings()] == [learned]


def open_corpora(config: SearchConfig, sources: Sequence[Source]) -> list[Corpus]:
    """The corpus of --corpus, else those that the first index which knows its own was made from."""
    from retrievo.data.corpus import Corpus

    if config.corpus is not None:
        return [Corpus(config.corpus)]
    for source in sources:
        if paths := source.corpora():
            return [Corpus(path) for path in paths]
    return []
