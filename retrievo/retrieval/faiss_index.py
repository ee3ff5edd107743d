"""A folder of FAISS shards built from an embeddings folder; `faiss.read_index` opens each of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrievo.retrieval.embeddings import Embeddings, Vectors, shard_bounds
from retrievo.retrieval.exact import Hits, joined
from retrievo.retrieval.index_types import INDEX_TYPES
from retrievo.support import console
from retrievo.support.artifact import Manifest, Output
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.files import HashingFile

# Dimension D and the shard's vectors [n, D] in blocks -> faiss.Index with the inner product as its metric
Build = Callable[[int, Iterator[np.ndarray]], Any]

_IDS = "ids.arrow"
_BLOCK_VALUES = 1 << 24  # 64 MiB of float32 added at a time


def load_faiss(threads: int | None = None) -> Any:
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


def build_flat(dim: int, blocks: Iterator[np.ndarray]) -> Any:
    """An index that holds the vectors themselves, as float32; not normalized, whatever the similarity."""
    faiss = load_faiss()
    index = faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
    return index


def build(
    embeddings: Embeddings,
    output: Output,
    index_type: str = "flat",
    *,
    shards: int | None = None,
    threads: int | None = None,
) -> Manifest:
    """Builds an index folder from the embeddings and finishes the output; one shard is in memory at a time.

    shards: rows are split evenly, in order; default: as the embeddings are.

    Raises: UsageError for an unknown type or a number of shards below 1 or above the rows; RetrievoError where faiss
    is missing or a vector is not finite.
    """
    bounds, make = _bounds(embeddings.rows, shards), _builder(index_type)
    load_faiss(threads)
    with output.build() as folder, console.progress("building the index", embeddings.rows, "vectors") as tick:
        for number, (first, end) in enumerate(bounds):
            index = make(embeddings.dim, _checked_blocks(embeddings, first, end))
            load_faiss().write_index(index, str(folder / shard_name(number)))
            tick(end - first)
        output.record(_IDS, _write_ids(folder / _IDS, embeddings))
        stats = {**embeddings.manifest.stats, "dtype": "float32", "shards": len(bounds), "type": index_type}
        return output.finish({**stats, "metric": "inner_product"})


def _bounds(rows: int, shards: int | None) -> list[tuple[int, int]]:
    if shards is None:
        return shard_bounds(rows)
    if not 1 <= shards <= max(rows, 1):
        raise UsageError("--shards", f"found {shards}", f"1 to {max(rows, 1):,}, the number of vectors")
    return list(pairwise(rows * number // shards for number in range(shards + 1)))


def _builder(index_type: str) -> Build:
    if index_type not in INDEX_TYPES:
        raise UsageError("--type", f"found '{index_type}'", None, did_you_mean(index_type, INDEX_TYPES))
    module, name = INDEX_TYPES[index_type].build.split(":")
    return getattr(importlib.import_module(module), name)


def _checked_blocks(embeddings: Embeddings, first: int, end: int) -> Iterator[np.ndarray]:
    for start, block in embeddings.blocks(max(1, _BLOCK_VALUES // embeddings.dim), first, end):
        embeddings.check_finite(start, block)
        yield block


def _write_ids(path: Path, embeddings: Embeddings) -> dict[str, Any]:
    schema = pa.schema([("id", pa.string())])
    with HashingFile(path) as file:
        with pa.ipc.new_file(file, schema) as writer:
            for chunk in embeddings.ids().chunks:
                writer.write_batch(pa.record_batch([chunk], schema=schema))
        return file.record()


class FaissIndex:
    """An index folder, opened in the memory map and checked against its manifest.

    dim D, rows N, similarity, role, type (a name in INDEX_TYPES), vectors (`Vectors`, of an exact type).

    Raises: RetrievoError where the folder is no finished index, a shard can't be read, or faiss is missing.
    """

    def __init__(self, path: Path):
        self.path, self.manifest = path, Manifest.read(path, "faiss-index")
        told = self.manifest.stats
        self.dim, self.rows, self.type = told["dim"], told["rows"], told["type"]
        self.similarity, self.role = told["similarity"], told["role"]
        if self.type not in INDEX_TYPES:
            raise RetrievoError(path, f"is of type '{self.type}'", None, did_you_mean(self.type, INDEX_TYPES))
        files = [path / shard_name(number) for number in range(told["shards"])]
        indexes = [_open_shard(file, self.dim) for file in files]
        self.vectors = Vectors(
            [_flat_vectors(index) for index in indexes],
            _open_ids(path / _IDS),
            similarity=self.similarity,
            names=[str(file) for file in files],
            owner=indexes,
        )
        if self.vectors.rows != self.rows:
            raise RetrievoError(path, f"its shards hold {self.vectors.rows:,} rows", f"{self.rows:,}", "build it again")

    def ids(self, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The ids of these rows, or of all."""
        return self.vectors.ids(rows)

    def search(self, queries: np.ndarray, depth: int, **options: Any) -> Hits:
        """The first `depth` documents of every query [Q, D] with exact scores, under the ordering rule."""
        return joined(self.search_batches(queries, depth, **options))

    def search_batches(self, queries: np.ndarray, depth: int, **options: Any) -> Iterator[Hits]:
        """`search`, a batch of queries at a time; options and errors: see `retrievo.retrieval.exact.search_batches`."""
        return self.vectors.search_batches(queries, depth, **options)


def _open_shard(path: Path, dim: int) -> Any:
    faiss = load_faiss()
    if not path.is_file():
        raise RetrievoError(path, "is missing", "every shard that the manifest counts", "build it again")
    try:
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_READ_ONLY))
    except RuntimeError as error:
        raise RetrievoError(path, f"is no readable FAISS index: {error}", None, "build it again") from None
    if not isinstance(index, faiss.IndexFlat) or index.d != dim:
        raise RetrievoError(path, f"is a {type(index).__name__} of {index.d} dimensions", f"a flat one of {dim}")
    return index


def _flat_vectors(index: Any) -> np.ndarray:
    """The vectors [n, D] of a flat index as a view of its memory."""
    if not index.ntotal:
        return np.empty((0, index.d), np.float32)
    return load_faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def _open_ids(path: Path) -> list[pa.Array]:
    try:
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("id")
    except (FileNotFoundError, KeyError, pa.ArrowInvalid) as error:
        raise RetrievoError(path, f"can't be read: {error}", "the ids of the index", "build it again") from None
    return column.chunks
