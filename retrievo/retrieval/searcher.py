"""One protocol for every kind of index, and the table of kinds.

A new kind of index is a module with a function `open_searcher(index, encoders, **settings) -> Searcher` and a row of
`KINDS`. The table is standard library only, so that the command line can read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from retrievo.retrieval.index_types import BM25, INDEX_TYPES, type_named
from retrievo.support.conditions import flag_of
from retrievo.support.errors import RetrievoError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from retrievo.data.corpus import Queries as QueryTable
    from retrievo.retrieval.dense import Encoders
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.retrieval.hits import DocumentSpace, Hits, Queries
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.support.artifact import Manifest
    from retrievo.support.console import Tick

FEEDBACK = "feedback"  # its documents have vectors, by which the option of this name moves a query: see `MovesQueries`
RESCORING = "rescoring"  # it finds candidates and rescores them itself, so it may find fewer documents than wanted


class Searcher(Protocol):
    """An index that is open for search.

    index:     the folder and its manifest.
    documents: what the bits of `allowed` number. The rows of hits number the `documents` of the hits, which are other
               ones where an engine tells ids rather than rows.
    align:     queries of a block: a multiple of them, but for the last, gives the result of all queries at once.
    unit:      what `tick` counts.
    """

    index: IndexFolder
    documents: DocumentSpace
    align: int
    unit: str

    def encode(self, given: Sequence[str] | QueryTable | Embeddings) -> Queries:
        """Texts, a table of queries or embeddings of queries, as this index searches for them.

        Raises: RetrievoError for what this index can't search for.
        """

    def prepare(self, queries: Queries, depth: int) -> None:
        """Settles, once, what depends on all queries and on the depth of the result; a search does it otherwise."""

    def search_batches(
        self, queries: Queries, depth: int, allowed: np.ndarray | None = None, tick: Tick | None = None
    ) -> Iterator[Hits]:
        """At most `depth` documents of every query under the ordering rule, some whole queries at a time, in order.

        allowed: bool [N], which documents may be found; default all. tick: called with the progress, `work` in all.
        Raises: RetrievoError where a vector is not finite, and for `allowed` where this index can't.
        """

    def work(self, queries: int, depth: int) -> int:
        """The sum of all progress that `tick` gets in a search for so many queries."""

    def batch(self, depth: int) -> int:
        """With how many queries at once a search is quick."""

    def matches(self, question: str, text: str) -> list[tuple[int, int]]:
        """Spans (start, end) of a text that show why it was found."""

    def close(self) -> None:
        """Lets go of files."""


class MovesQueries(Searcher, Protocol):
    """A searcher that has the capability `FEEDBACK`."""

    def moved(self, queries: Queries, first: Hits, method: str, weight: float) -> Queries:
        """The queries, moved by their first documents: hits whose query numbers begin at 0 and whose documents may be
        those of another index; the ones that this index lacks are left out.
        """


class IndexKind(NamedTuple):
    """A kind of index.

    name: what a person calls it; module: has `open_searcher`.
    settings: what `open_searcher` takes, and of which indexes of this kind each has a meaning.
    capabilities: what else a searcher can do, `FEEDBACK` or `RESCORING`, and in which indexes of this kind.
    type: the `--type` of `retrievo index` that makes it by `build(embeddings, folder) -> stats` of the module; None for
          BM25 and FAISS, whose builders have options of their own.
    """

    name: str
    module: str
    settings: Mapping[str, Callable[[Manifest], bool]]
    capabilities: Mapping[str, Callable[[Manifest], bool]] = {}
    type: str | None = None


def _always(manifest: Manifest) -> bool:
    return True


def _is_approximate(manifest: Manifest) -> bool:
    return not type_named(manifest.stats["type"]).exact


def _is_exact(manifest: Manifest) -> bool:
    return not _is_approximate(manifest)


KINDS = {
    "bm25-index": IndexKind(
        "bm25",
        "retrievo.retrieval.bm25_searcher",
        dict.fromkeys(("k1", "b", "language", "heap", "rm3", "threads"), _always),
    ),
    "faiss-index": IndexKind(
        "dense",
        "retrievo.retrieval.faiss_searcher",
        {
            "nprobe": lambda manifest: manifest.stats.get("knob") == "nprobe",
            "ef_search": lambda manifest: manifest.stats.get("knob") == "ef_search",
            "rescore": _is_approximate,
            "recall_target": _is_approximate,
            "batch_size": _is_exact,
            "memory": _always,
            "threads": _always,
        },
        {FEEDBACK: _always, RESCORING: _is_approximate},
    ),
    "embeddings": IndexKind(
        "dense",
        "retrievo.retrieval.exact_searcher",
        dict.fromkeys(("batch_size", "memory", "threads"), _always),
        {FEEDBACK: _always},
    ),
}

BUILT_BY_MODULE = {kind.type: name for name, kind in KINDS.items() if kind.type is not None}
TYPES = (*INDEX_TYPES, *BUILT_BY_MODULE)  # what `--type` names, beside bm25 and factory strings


def check_type(name: str) -> None:
    """Raises UsageError for a name that is no type of index, nor a FAISS factory string."""
    if name not in (BM25, *BUILT_BY_MODULE):
        type_named(name)


def index_folder(path: Path) -> IndexFolder:
    """An index or an embeddings folder by its manifest; nothing heavy is loaded.

    Raises: RetrievoError for any other folder.
    """
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.support.artifact import MANIFEST, Manifest, kind_of

    if (path / "corpus.parquet").is_file():
        inside = sorted(found.parent for found in path.glob(f"*/{MANIFEST}") if kind_of(found.parent) in KINDS)
        fix = f"make one: retrievo index --data {path} --output {path}/bm25"
        if inside:
            fix = f"name those inside it: {' '.join(f'--index {found}' for found in inside)}"
        raise RetrievoError(path, "is a dataset", "an index or an embeddings folder", fix)
    return IndexFolder(path, Manifest.read(path, *KINDS))


def takes(manifest: Manifest, setting: str) -> bool:
    """Whether a setting has a meaning for an index."""
    means_something = KINDS[manifest.kind].settings.get(setting)
    return means_something is not None and means_something(manifest)


def can(index: IndexFolder, capability: str) -> bool:
    """Whether the searcher of an index has a capability."""
    has_it = KINDS[index.manifest.kind].capabilities.get(capability)
    return has_it is not None and has_it(index.manifest)


def open_index(path: Path | str, encoders: Encoders | None = None, **settings: Any) -> Searcher:
    """Opens an index or an embeddings folder for search.

    encoders: the models that encode texts for dense indexes, shared by all indexes that are opened with them; default
              new ones.
    settings: of this kind of index, see `KINDS`; None and what is left out are the defaults of the index.

    Raises: RetrievoError for a folder that is no index; UsageError for a setting that has no meaning for this one.
    """
    return open_folder(index_folder(Path(path)), encoders, **settings)


def open_folder(index: IndexFolder, encoders: Encoders | None = None, **settings: Any) -> Searcher:
    """`open_index` where the manifest has been read already.

    Raises: UsageError for a setting that has no meaning for this index.
    """
    from retrievo.retrieval.dense import Encoders

    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if not takes(index.manifest, name):
            raise UsageError(flag_of(name), does_not_apply(index))
    module = importlib.import_module(KINDS[index.manifest.kind].module)
    searcher: Searcher = module.open_searcher(index, encoders or Encoders(), **given)
    return searcher


def does_not_apply(index: IndexFolder) -> str:
    """What is wrong with a setting that has no meaning for an index."""
    type = index.manifest.stats.get("type") if index.manifest.kind == "faiss-index" else None
    of_type = f" and type '{type}'" if type else ""
    return f"does not apply to {index.path}, which is of kind '{index.manifest.kind}'{of_type}"
