"""A folder of FAISS shards; `faiss.read_index` opens each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from retrievo.data.columns import taken
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.hits import Hits, joined
from retrievo.retrieval.index_types import IndexType, type_named
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError, UsageError

Faiss: TypeAlias = Any  # the library, or an index of it: SWIG makes both without types
IDS = "ids.arrow"


def load_faiss(threads: int | None = None) -> Faiss:
    """The faiss module, set to this number of CPU threads.

    Raises: RetrievoError where neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ImportError:
        fix = "pip install 'retrievo[cpu]' (or 'retrievo[gpu]'), or search the embeddings folder itself, which is exact"
        raise RetrievoError("faiss", "is not installed", "faiss-cpu or faiss-gpu", fix) from None
    if threads:
        faiss.omp_set_num_threads(threads)
    return faiss


def shard_name(number: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"shard-{number:05d}.faiss"


class FaissIndex:
    """An index folder, opened in the memory map and checked against its manifest.

    dim D, rows N, similarity, role, type (a name in INDEX_TYPES or a factory string), kind (its row),
    knob ('nprobe', 'ef_search' or None), lists, and vectors (`Vectors`, of an exact type only).

    Raises: RetrievoError where the folder is no finished index, a shard can't be read, or faiss is missing.
    """

    def __init__(self, path: Path):
        self.path, self.manifest = path, Manifest.read(path, "faiss-index")
        stats = self.manifest.stats
        self.dim: int = stats["dim"]
        self.rows, self.type = stats["rows"], stats["type"]
        self.similarity, self.role = stats["similarity"], stats["role"]
        self.knob: str | None = stats.get("knob")
        self.lists: int = stats.get("lists", 0)
        self.kind = _known_type(path, self.type)
        self.files = [path / shard_name(number) for number in range(stats["shards"])]
        self._ids = pa.chunked_array(_open_ids(path / IDS), pa.string())
        if self.kind.exact:
            self.vectors = self._open_vectors()
        rows = self.vectors.rows if self.kind.exact else len(self._ids)
        if rows != self.rows:
            raise RetrievoError(path, f"its shards hold {rows:,} rows", f"{self.rows:,}", "build it again")

    def _open_vectors(self) -> Vectors:
        indexes = [self.open_shard(number) for number in range(len(self.files))]
        return Vectors(
            [_flat_vectors(index) for index in indexes],
            self._ids.chunks,
            similarity=self.similarity,
            names=[str(file) for file in self.files],
            owner=indexes,
            mapped=hasattr(load_faiss(), "IO_FLAG_MMAP_IFC"),
        )

    def ids(self, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The ids of these rows, or of all."""
        return self._ids if rows is None else pa.chunked_array([taken(self._ids, rows)])

    def open_shard(self, number: int, *, mapped: bool = True) -> Faiss:
        """A shard as a faiss index, in the memory map or in memory of its own.

        Raises: RetrievoError where the file is missing, spoilt, or not of this index.
        """
        path, faiss = self.files[number], load_faiss()
        if not path.is_file():
            raise RetrievoError(path, "is missing", "every shard that the manifest counts", "build it again")
        flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_READ_ONLY) if mapped else 0
        try:
            index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise RetrievoError(path, f"is no readable FAISS index: {error}", None, "build it again") from None
        if index.d != self.dim or (self.kind.exact and not isinstance(index, faiss.IndexFlat)):
            expected = f"a flat one of {self.dim}" if self.kind.exact else f"{self.dim}"
            raise RetrievoError(path, f"is a {type(index).__name__} of {index.d} dimensions", expected)
        return index

    def search(self, queries: np.ndarray, depth: int, **options: Any) -> Hits:
        """The first `depth` documents of every query [Q, D] of an exact type, under the ordering rule."""
        return joined(self.search_batches(queries, depth, **options), self.vectors)

    def search_batches(self, queries: np.ndarray, depth: int, **options: Any) -> Iterator[Hits]:
        """`search`, a batch of queries at a time; options and errors: see `retrievo.retrieval.exact.search_batches`."""
        from retrievo.retrieval.exact import search_batches  # needs torch, which reading an index does not

        return search_batches(queries, self.vectors, depth, **options)


def _known_type(path: Path, name: str) -> IndexType:
    try:
        return type_named(name)
    except UsageError as error:
        raise RetrievoError(path, f"is of type '{name}'", None, error.fix) from None


def _flat_vectors(index: Faiss) -> np.ndarray:
    """The vectors [n, D] of a flat index as a view of its memory."""
    if not index.ntotal:
        return np.empty((0, index.d), np.float32)
    values: np.ndarray = load_faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return values.reshape(index.ntotal, index.d)


def _open_ids(path: Path) -> list[pa.Array]:
    try:
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("id")
    except (FileNotFoundError, KeyError, pa.ArrowInvalid) as error:
        raise RetrievoError(path, f"can't be read: {error}", "the ids of the index", "build it again") from None
    return list(column.chunks)
