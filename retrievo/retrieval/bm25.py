"""BM25 through Lucene and Anserini.

`pyserini.search` is never imported: it takes 6 s, loads torch, transformers, faiss and openai, and reads a ranking by
one Java call per hit. Here a whole batch is indexed and a whole ranking is found and packed inside the JVM.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievo.data.options import K1, B
from retrievo.retrieval.jvm import (
    ONE_PYTHON_THREAD,
    Java,
    JavaThreads,
    cast,
    chain,
    class_object,
    field,
    fill,
    java_class,
    java_errors,
    java_errors_ignored,
    method,
    method_type,
    start_jvm,
)
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.retrieval.hits import Hits

CONTENTS, ID = "contents", "id"  # Anserini's names of the fields of an index
_LANGUAGE = "retrievo.language"  # where an index keeps its language: in the user data of its Lucene commit

# Anserini's analyzers: AnalyzerMap, and white space where SimpleSearcher.set_language has no analyzer for a language.
LANGUAGES = {
    "en": "io.anserini.analysis.DefaultEnglishAnalyzer",
    "ar": "org.apache.lucene.analysis.ar.ArabicAnalyzer",
    "bn": "org.apache.lucene.analysis.bn.BengaliAnalyzer",
    "da": "org.apache.lucene.analysis.da.DanishAnalyzer",
    "de": "org.apache.lucene.analysis.de.GermanAnalyzer",
    "es": "org.apache.lucene.analysis.es.SpanishAnalyzer",
    "fa": "org.apache.lucene.analysis.fa.PersianAnalyzer",
    "fi": "org.apache.lucene.analysis.fi.FinnishAnalyzer",
    "fr": "org.apache.lucene.analysis.fr.FrenchAnalyzer",
    "ha": "org.apache.lucene.analysis.core.WhitespaceAnalyzer",
    "hi": "org.apache.lucene.analysis.hi.HindiAnalyzer",
    "hu": "org.apache.lucene.analysis.hu.HungarianAnalyzer",
    "id": "org.apache.lucene.analysis.id.IndonesianAnalyzer",
    "it": "org.apache.lucene.analysis.it.ItalianAnalyzer",
    "ja": "org.apache.lucene.analysis.ja.JapaneseAnalyzer",
    "ko": "org.apache.lucene.analysis.cjk.CJKAnalyzer",
    "nl": "org.apache.lucene.analysis.nl.DutchAnalyzer",
    "no": "org.apache.lucene.analysis.no.NorwegianAnalyzer",
    "pl": "org.apache.lucene.analysis.morfologik.MorfologikAnalyzer",
    "pt": "org.apache.lucene.analysis.pt.PortugueseAnalyzer",
    "ru": "org.apache.lucene.analysis.ru.RussianAnalyzer",
    "so": "org.apache.lucene.analysis.core.WhitespaceAnalyzer",
    "sv": "org.apache.lucene.analysis.sv.SwedishAnalyzer",
    "sw": "org.apache.lucene.analysis.core.WhitespaceAnalyzer",
    "te": "org.apache.lucene.analysis.te.TeluguAnalyzer",
    "th": "org.apache.lucene.analysis.th.ThaiAnalyzer",
    "tr": "org.apache.lucene.analysis.tr.TurkishAnalyzer",
    "uk": "org.apache.lucene.analysis.uk.UkrainianMorfologikAnalyzer",
    "yo": "org.apache.lucene.analysis.core.WhitespaceAnalyzer",
    "zh": "org.apache.lucene.analysis.cjk.CJKAnalyzer",
}

_BATCH_CHARACTERS = 1 << 18  # of documents handed to one Java thread at a time
_BATCH_DOCUMENTS = 256
_LONGEST_ID = 32_766  # bytes of a term in Lucene
_BATCH_QUERIES = 64  # ranked at once in Python, which then reports progress
_BATCH_HITS = 1 << 20
_SPARE_HITS = 32  # fetched beyond the depth, since ties at it must be seen to their end
_CONTROL = "".join(map(chr, range(33)))  # what Java's String.trim() removes: a text of these is empty to Anserini


# ------------------------------------------------------------------------------------------------------------ building


def check_language(language: str) -> None:
    """Raises UsageError for a language that has no analyzer here."""
    if language not in LANGUAGES:
        raise UsageError("--language", f"found '{language}'", None, did_you_mean(language, LANGUAGES))


def build(
    documents: Iterable[tuple[str, str]],
    folder: Path,
    *,
    language: str = "en",
    term_vectors: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, int]:
    """Builds a Lucene index of (doc_id, text) pairs as Anserini does, in memory that does not grow with their number.

    It holds doc_ids, term frequencies and lengths (no texts or positions), in one segment. A document without text
    counts but is never found. An index that is there already is replaced.

    term_vectors: keep the words of each document, which RM3 reads.
    threads:  Java threads; all cores where unset.
    progress: called with the number of documents just added.

    Returns: `documents`, `empty` (how many of them had no text) and `tokens` (after analysis).
    Raises: UsageError for an unknown language; RetrievoError for a doc_id that occurs twice or holds NUL, for a
    document that Lucene refuses, and where the index ends up with another number of documents.
    """
    check_language(language)
    start_jvm()
    with ONE_PYTHON_THREAD, java_errors(folder, "indexing"), JavaThreads(threads) as pool:
        with _writer(folder, language, pool) as writer:
            given, empty = _add_all(pool, writer, documents, term_vectors, progress or (lambda count: None))
        return {"documents": given, "empty": empty, "tokens": _checked_tokens(folder, given)}


@contextlib.contextmanager
def _writer(folder: Path, language: str, pool: JavaThreads) -> Iterator[Java]:
    """A Lucene index writer; merged to one segment and committed at the end, rolled back where the block fails."""
    folder.mkdir(parents=True, exist_ok=True)
    config = java_class("IndexWriterConfig")(_analyzer(language))
    config.setOpenMode(java_class("IndexWriterConfig$OpenMode").CREATE)
    config.setUseCompoundFile(False)
    heap = java_class("Runtime").getRuntime().maxMemory() / 2**20  # MiB; Anserini's buffer of 2,048 MiB may not fit
    config.setRAMBufferSizeMB(min(512.0, heap / 4))
    writer = java_class("IndexWriter")(_directory(folder), config)
    try:
        yield writer
        settings = java_class("HashMap")()
        settings.put(_LANGUAGE, language)
        writer.setLiveCommitData(settings.entrySet())
        pool.run(fill(method("void IndexWriter.forceMerge(int)").bindTo(writer), 0, 1))
        pool.run(method("void IndexWriter.close()").bindTo(writer))
    except BaseException:
        with java_errors_ignored():  # the first error is the one to tell
            writer.rollback()
        raise


def _add_all(
    pool: JavaThreads,
    writer: Java,
    documents: Iterable[tuple[str, str]],
    term_vectors: bool,
    progress: Callable[[int], object],
) -> tuple[int, int]:
    """Adds all documents; returns how many there were and how many of them were empty."""
    settings = java_class("IndexCollection$Args")()
    settings.storeDocvectors = term_vectors
    generator = java_class("DefaultLuceneDocumentGenerator")(settings)
    given = empty = 0

    def lists() -> Iterator[Java]:
        nonlocal given, empty
        for batch in _batches(documents):
            empties = [doc_id for doc_id, text in batch if not text.strip(_CONTROL)]
            for doc_id in empties:
                _add_empty(writer, generator, doc_id)
            given, empty = given + len(batch), empty + len(empties)
            raw = [json.dumps({ID: doc_id, CONTENTS: text}) for doc_id, text in batch if text.strip(_CONTROL)]
            yield java_class("Arrays").asList(*raw, pass_by_reference=False)  # True would read all texts back
            progress(len(batch))

    deque(pool.map(_add_function(writer, generator), lists()), maxlen=0)
    return given, empty


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Documents in batches of bounded number and size; checks their ids."""
    batch: list[tuple[str, str]] = []
    characters = 0
    for row, (doc_id, text) in enumerate(documents, start=1):
        if len(doc_id) > _LONGEST_ID // 4 and (size := len(doc_id.encode())) > _LONGEST_ID:
            found = f"its id has {size:,} bytes ('{doc_id[:40]}...')"
            raise RetrievoError(f"document {row:,}", found, f"at most {_LONGEST_ID:,}, as Lucene has it", "shorten it")
        if "\0" in doc_id:
            raise RetrievoError(f"document {doc_id!r}", "a NUL in its id", "an id of printable characters")
        batch.append((doc_id, text))
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _add_function(writer: Java, generator: Java) -> Java:
    """Java: a list of JSON documents -> the index, by Anserini's own reading of them."""
    generate = method("Document DefaultLuceneDocumentGenerator.createDocument(SourceDocument)").bindTo(generator)
    add = method("long IndexWriter.addDocument(Iterable)").bindTo(writer)
    read = method("static JsonCollection$Document JsonCollection$Document.fromString(String)")
    each = chain(read, generate, add).asType(method_type("void", "String"))
    return java_class("MethodHandles").iteratedLoop(None, None, each)


def _add_empty(writer: Java, generator: Java, doc_id: str) -> None:
    """Adds a document that has an id only; Anserini would drop it."""
    document = generator.createDocument(java_class("JsonCollection$Document").fromFields(doc_id, "."))
    document.removeField(CONTENTS)
    writer.addDocument(document)


def _checked_tokens(folder: Path, given: int) -> int:
    """The number of tokens in an index, which must hold the number of documents given, each id once."""
    with contextlib.closing(_open(folder)) as reader:
        if reader.numDocs() != given:
            raise RetrievoError(
                folder, f"{reader.numDocs():,} documents in the index", f"the {given:,} that were given"
            )
        if not given:
            return 0
        twice = given - java_class("MultiTerms").getTerms(reader, ID).size()
        if twice:
            raise RetrievoError("documents", f"{twice:,} of {given:,} have the id of another", "each id once")
        return max(0, int(reader.getSumTotalTermFreq(CONTENTS)))


def _analyzer(language: str) -> Java:
    analyzer = java_class(LANGUAGES[language])
    return cast("Analyzer", analyzer.newDefaultInstance() if language == "en" else analyzer())


def _directory(folder: Path) -> Java:
    """A folder as Lucene opens it; Java stays in the working directory that it was started in."""
    return java_class("FSDirectory").open(java_class("Paths").get(os.path.abspath(folder)))


def _open(folder: Path) -> Java:
    """A Lucene reader of an index folder."""
    expected = "the folder of a BM25 index", "build one: retrievo index --type bm25"
    if not folder.is_dir():  # FSDirectory.open would make it
        raise RetrievoError(folder, "no such folder", *expected)
    directory = _directory(folder)
    if not java_class("DirectoryReader").indexExists(directory):
        raise RetrievoError(folder, "no Lucene index in it", *expected)
    return cast("IndexReader", java_class("DirectoryReader").open(directory))


# ----------------------------------------------------------------------------------------------------------- searching


class Rm3(NamedTuple):
    """How a query grows: weight x its own words + (1 - weight) x the best words of its first documents.

    RM3 (Abdul-Jaleel et al. 2004, "UMass at TREC 2004"), as Anserini estimates it and with its defaults.
    """

    documents: int = 10
    words: int = 10
    weight: float = 0.5


class BM25Index:
    """An index folder that `build`, Pyserini or Anserini made, open for search.

    language: of its analyzer, for indexes of other tools; an index of `build` knows its own.
    Raises: RetrievoError where the folder holds no index; UsageError for a language that the index was not built with.
    """

    def __init__(self, folder: Path, language: str | None = None):
        start_jvm()
        self.folder = folder
        with ONE_PYTHON_THREAD, java_errors(folder, "opening the index"):
            self._reader = _open(folder)
            self._documents: int = self._reader.numDocs()
            self._searcher = java_class("IndexSearcher")(self._reader)
            self.language = self._language(language)
            self._analyzer = _analyzer(self.language)

    def _language(self, asked: str | None) -> str:
        built = cast("DirectoryReader", self._reader).getIndexCommit().getUserData().get(_LANGUAGE)
        if asked and built and asked != built:
            raise UsageError("--language", f"found '{asked}'", f"'{built}', which {self.folder} was built with")
        language = asked or built or "en"
        check_language(language)
        return language

    def __len__(self) -> int:
        return self._documents

    def __enter__(self) -> BM25Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        with ONE_PYTHON_THREAD:
            self._reader.close()

    def ids(self) -> pa.Array:
        """The ids of all documents, ascending by their UTF-8 bytes; Java holds all of them for a moment."""
        import pyarrow as pa

        if not len(self):
            return pa.array([], pa.string())
        with ONE_PYTHON_THREAD, java_errors(self.folder, "reading the ids"), JavaThreads(1) as pool:
            find = _search_function(self._searcher, None, len(self))  # of equal scores: by id
            every = cast("Query", java_class("MatchAllDocsQuery")())
            return pa.array(_read_top(pool.run(find, every))[0], pa.string())

    def search(
        self,
        queries: Sequence[str],
        depth: int,
        *,
        k1: float = K1,
        b: float = B,
        rm3: Rm3 | None = None,
        allowed: np.ndarray | None = None,
        threads: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Hits:
        """The `depth` best documents of each query, by score descending, doc_id descending; fewer where fewer match.

        sum over the words t of the query of idf_t tf / (tf + k1 (1 - b + b length / mean length)), the idf being
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) (Robertson & Zaragoza 2009, eq. 3.15; Lucene keeps lengths in 8 bits),
        then Anserini's lowering of ties. The first 10 are the same at any depth, number of threads and batch.

        rm3:      search twice, the second time with words of the first documents.
        allowed:  bool [N], which of the documents (in the order of `ids`) may be found; default all. Scores are those
                  of a search in all of them.
        threads:  Java threads; all cores where unset.
        progress: called with the number of queries just finished.

        Raises: RetrievoError where RM3 finds no term vectors in the index, and for RM3 with `allowed`: its words would
        come from documents that are not.
        """
        if rm3 and allowed is not None:
            problem = "takes words of any document, but only some of them may be found"
            raise RetrievoError("RM3", problem, None, "search without RM3, or in all documents")
        kept = None if allowed is None else _Kept(self.ids(), allowed)
        texts = [_java_text(query) for query in queries]
        with ONE_PYTHON_THREAD, java_errors(self.folder, "searching"), JavaThreads(threads) as pool:
            self._searcher.setSimilarity(java_class("BM25Similarity")(float(k1), float(b)))
            own = _query_function(self._analyzer)
            asked = self._grown(pool, texts, own, rm3, k1, b) if rm3 else texts
            find = functools.partial(_search_function, self._searcher, None if rm3 else own)
            return self._search(pool, find, asked, depth, depth + _SPARE_HITS, progress or (lambda count: None), kept)

    def _grown(self, pool: JavaThreads, texts: Sequence[str], own: Java, rm3: Rm3, k1: float, b: float) -> list[Java]:
        """The Lucene query of each text after RM3; its own where the first search finds nothing."""
        words = java_class("FieldInfos").getMergedFieldInfos(self._reader).fieldInfo(CONTENTS)
        if words is not None and not words.hasVectors():
            fix = "build the index with --term-vectors"
            raise RetrievoError(self.folder, "keeps no term vectors", "those of its documents, for RM3", fix)
        searcher = java_class("SimpleSearcher")(str(self.folder.absolute()), self._analyzer)
        with contextlib.closing(searcher):
            searcher.set_bm25(float(k1), float(b))
            searcher.set_rm3(rm3.words, rm3.documents, float(rm3.weight))
            words_of = method("Map SimpleSearcher.get_feedback_terms(String)").bindTo(searcher)
            grown = map(_weighted_query, pool.map(words_of, texts))
            return [query or pool.run(own, text) for query, text in zip(grown, texts, strict=True)]

    def _search(
        self,
        pool: JavaThreads,
        find: Callable[[int], Java],
        queries: Sequence[object],
        depth: int,
        fetch: int,
        progress: Callable[[int], object],
        kept: _Kept | None,
    ) -> Hits:
        import numpy as np

        from retrievo.retrieval.hits import joined

        fetch = min(fetch, max(1, len(self)))
        tops = map(_read_top, pool.map(find(fetch), queries))
        found: list[Hits] = []
        deeper: list[int] = []  # queries whose rankings may go on beyond the hits that were fetched
        done = 0
        while batch := list(islice(tops, max(1, min(_BATCH_QUERIES, _BATCH_HITS // fetch)))):
            hits, cut_short = _ranked(batch, depth, fetch if fetch < len(self) else None, kept)
            found.append(hits._replace(query=hits.query + done))
            deeper += (cut_short + done).tolist()
            done += len(batch)
            progress(len(batch))
        if not deeper:
            return joined(found)
        own = [queries[row] for row in deeper]
        again = self._search(pool, find, own, depth, 4 * fetch, lambda count: None, kept)
        every = joined([*found, again._replace(query=np.array(deeper)[again.query])])
        return every.at(np.argsort(every.query, kind="stable"))

    def matches(self, query: str, text: str) -> list[tuple[int, int]]:
        """Spans (start, end) of `text`, in order and apart, whose words match a word of the query after analysis."""
        with ONE_PYTHON_THREAD, java_errors(self.folder, "analyzing"):
            wanted = set(java_class("AnalyzerUtils").analyze(self._analyzer, _java_text(query)))
            tokens = list(_tokens(self._analyzer, _java_text(text)))
        place = [i for i, letter in enumerate(text) for _ in range(1 + (letter > "\uffff"))] + [len(text)]  # UTF-16
        spans: list[tuple[int, int]] = []
        for start, end in sorted((place[start], place[end]) for word, start, end in tokens if word in wanted):
            if spans and start < spans[-1][1]:  # bigrams of Chinese, Japanese and Korean overlap
                before = spans.pop()
                start, end = before[0], max(end, before[1])
            spans.append((start, end))
        return spans


def _java_text(text: str) -> str:
    """The text without lone surrogates (undecodable bytes of a command line), which Java's UTF-16 can't hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _query_function(analyzer: Java) -> Java:
    """Java: the text of a query -> Lucene's query for any of its words."""
    query = method("Query BagOfWordsQueryGenerator.buildQuery(String, Analyzer, String)")
    return fill(query.bindTo(java_class("BagOfWordsQueryGenerator")()).bindTo(CONTENTS), 0, analyzer)


def _weighted_query(weights: Java) -> Java:
    """Lucene's query for any of the words of a Java map, each with its weight; None without words."""
    if weights is None or weights.isEmpty():
        return None
    builder, should = java_class("BooleanQuery$Builder")(), java_class("BooleanClause$Occur").SHOULD
    for word in sorted(weights.keySet().toArray()):
        one = java_class("TermQuery")(java_class("Term")(CONTENTS, word))
        builder.add(cast("Query", java_class("BoostQuery")(cast("Query", one), weights.get(word))), should)
    return builder.build()


def _search_function(searcher: Java, to_query: Java, count: int) -> Java:
    """Java: a query, or what `to_query` makes one of -> its `count` best hits in Anserini's order: score descending,
    doc_id ascending.
    """
    search = method("TopFieldDocs IndexSearcher.search(Query, int, Sort)").bindTo(searcher)
    search = fill(fill(search, 2, java_class("SearchCollection").BREAK_SCORE_TIES_BY_DOCID), 1, count)
    hits = chain(field("ScoreDoc[] TopDocs.scoreDocs"), method("static List Arrays.asList(Object[])"))
    return chain(*([to_query] if to_query else []), search, hits, _pack_function(count))


def _pack_function(count: int) -> Java:
    """Java: hits -> [their ids, each after a NUL; their scores as big-endian float32 in a buffer of `count`].

    Ids and scores are the sort values that Lucene gives with each hit. Reading stored documents, as Anserini does to
    get the ids, takes three quarters of its search time at depth 1,000.
    """
    handles = java_class("MethodHandles")
    fields, element = field("Object[] FieldDoc.fields"), handles.arrayElementGetter(class_object("Object[]"))
    score = chain(fields, fill(element, 1, 0)).asType(method_type("float", "FieldDoc"))
    doc_id = chain(fields, fill(element, 1, 1), method("String BytesRef.utf8ToString()"))

    append = method("StringBuilder StringBuilder.append(String)")
    add_id = handles.filterArguments(append, 0, fill(append, 1, "\0"), doc_id)
    builder = handles.publicLookup().findConstructor(class_object("StringBuilder"), method_type("void"))
    ids = chain(handles.iteratedLoop(None, builder, add_id), method("String StringBuilder.toString()"))

    buffer = fill(method("static ByteBuffer ByteBuffer.allocate(int)"), 0, 4 * count)
    add_score = handles.filterArguments(method("ByteBuffer ByteBuffer.putFloat(float)"), 1, score)
    scores = chain(handles.iteratedLoop(None, buffer, add_score), method("byte[] ByteBuffer.array()"))

    both = method("static List List.of(Object, Object)").asType(method_type("List", "String", "byte[]"))
    both = handles.filterArguments(both, 0, ids, scores)
    return handles.permuteArguments(both, method_type("List", "Iterable"), 0, 0)


def _read_top(packed: Java) -> tuple[list[str], np.ndarray]:
    """Ids and scores of one ranking from the JVM."""
    import numpy as np

    ids = packed.get(0).split("\0")[1:]
    return ids, np.frombuffer(packed.get(1).tostring(), ">f4", count=len(ids)).astype(np.float32)


class _Kept:
    """Which documents may be found, known by hashes of their ids."""

    def __init__(self, ids: pa.Array, allowed: np.ndarray):
        import numpy as np
        import pyarrow as pa

        self._hashes = np.sort(_hashes(ids.take(pa.array(np.flatnonzero(allowed)))))

    def __call__(self, ids: pa.Array) -> np.ndarray:
        """Whether each of these [n] may be found."""
        import numpy as np

        if not len(self._hashes):
            return np.zeros(len(ids), bool)
        hashes = _hashes(ids)
        place = np.searchsorted(self._hashes, hashes)
        found: np.ndarray = self._hashes[np.minimum(place, len(self._hashes) - 1)] == hashes
        return found


def _hashes(ids: pa.Array) -> np.ndarray:
    import numpy as np

    from retrievo.data.ordering import fingerprints, flat_strings

    return fingerprints(np.zeros(len(ids), np.int64), flat_strings(ids))


def _ranked(
    tops: Sequence[tuple[list[str], np.ndarray]], depth: int, fetched: int | None, kept: _Kept | None
) -> tuple[Hits, np.ndarray]:
    """Hits as Anserini scores them, ordered and cut at `depth`; and the queries, whose hits are left out, that may have
    more beyond those fetched: with ties, or of documents that may be found.

    fetched: how many hits were asked for; None where that is all documents.
    """
    import numpy as np
    import pyarrow as pa

    from retrievo.data.ordering import ranked, ranks
    from retrievo.retrieval.hits import Hits

    sizes = np.array([len(ids) for ids, _ in tops])
    query = np.repeat(np.arange(len(tops)), sizes)
    ids = pa.array([doc_id for top, _ in tops for doc_id in top], pa.string())
    scores = _lower_ties(np.concatenate([top for _, top in tops]), query)
    order = ranked(query, scores, ids)
    lowest = np.append(scores[order], 0)[np.cumsum(sizes) - 1]  # of each query that has any
    if kept is not None:
        order = order[kept(ids)[order]]
    order = order[ranks(query[order]) <= depth]
    found = np.bincount(query[order], minlength=len(tops))
    last = np.append(scores[order], 0)[np.cumsum(found) - 1]
    cut_short = (sizes == (fetched or -1)) & ((found < depth) | (lowest == last))
    order = order[~cut_short[query[order]]]
    return Hits.of_ids(query[order], ids.take(pa.array(order)), scores[order]), np.flatnonzero(cut_short)


def _lower_ties(scores: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Scores [n] of hits in Lucene's order as Anserini returns them (its ScoreTiesAdjusterReranker), float32.

    Each is rounded to 4 decimals; where that is no more than 1e-4 below the hit before, as returned, the hit continues
    a run of ties and is lowered by 1e-6 times its place in the run, all in float32. From 32 on, where float32 steps
    are 3.8e-6, scores stay tied.
    """
    import numpy as np

    rounded = (np.floor(scores.astype(np.float64) * 1e4 + 0.5) / 1e4).astype(np.float32)  # Math.round
    row = np.arange(len(scores))
    begins = np.ones(len(scores), dtype=bool)
    place = np.zeros(len(scores), dtype=np.int64)
    while True:
        # Lowering may bring a hit within 1e-4 of the next: runs only grow, and end where Anserini's one pass does.
        lowered = rounded - np.float32(1e-6) * place.astype(np.float32)
        begins[1:] = (query[1:] != query[:-1]) | (lowered[:-1] - rounded[1:] > np.float32(1e-4))
        before, place = place, row - np.maximum.accumulate(np.where(begins, row, 0))
        if (place == before).all():
            return lowered


def _tokens(analyzer: Java, text: str) -> Iterator[tuple[str, int, int]]:
    """Analyzed words with their places (start, end) in the text, in UTF-16 units."""
    stream = analyzer.tokenStream(CONTENTS, text)
    try:
        word = cast("CharTermAttribute", stream.addAttribute(class_object("CharTermAttribute")))
        offset = cast("OffsetAttribute", stream.addAttribute(class_object("OffsetAttribute")))
        stream.reset()
        while stream.incrementToken():
            yield word.toString(), offset.startOffset(), offset.endOffset()
        stream.end()
    finally:
        stream.close()  # the analyzer uses it again
