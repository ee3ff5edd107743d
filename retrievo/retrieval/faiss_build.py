"""FAISS shards out of embeddings: parameters from the corpus, training on a sample, and more documents later."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrievo.data.ordering import repeated
from retrievo.data.shards import shard_bounds
from retrievo.retrieval.embeddings import Embeddings, unit_length
from retrievo.retrieval.faiss_index import IDS, Faiss, FaissIndex, load_faiss, shard_name
from retrievo.retrieval.index_types import IndexType, type_named
from retrievo.support import console
from retrievo.support.artifact import Manifest, Output
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.files import HashingFile
from retrievo.support.values import Values

TRAINED = "trained.faiss"  # an empty trained index, so that documents added later meet the same centroids
_BLOCK_VALUES = 1 << 24  # 64 MiB of float32 added at a time
_SHARD_ROWS = 1 << 20  # of approximate types, which find less per second in many small shards
_SAMPLE_ROWS, _SAMPLE_PER_LIST = 1 << 14, 64  # FAISS asks for 39 vectors or more for each centroid
_SAMPLE_VALUES = 1 << 28  # 1 GiB of float32
_OPQ_ROUNDS = 16  # FAISS's 50 take three times as long to train
_SEED = 0
_MEMORY = Path("/proc/meminfo")


def build(
    embeddings: Embeddings,
    output: Output,
    index_type: str = "flat",
    *,
    shards: int | None = None,
    threads: int | None = None,
) -> Manifest:
    """Builds an index folder from the embeddings and finishes the output; one shard is in memory at a time.

    index_type: a name in INDEX_TYPES or a FAISS factory string; a note gives the parameters and the memory that the
    build will take before it begins.
    shards: rows are split evenly, in order; default: as the embeddings are (exact types), or one for 1,048,576 rows.

    Raises: UsageError for an unknown type or a number of shards below 1 or above the rows; RetrievoError where faiss
    is missing, memory will not do, or a vector is not finite.
    """
    kind = type_named(index_type)
    bounds, faiss = _bounds(embeddings.rows, shards, kind), load_faiss(threads)
    largest = max(end - first for first, end in bounds)
    recipe = kind.recipe(largest, embeddings.dim)
    maker = _Maker(faiss, recipe.factory, embeddings.dim, kind.exact, embeddings.similarity)
    sample = maker.sample_rows(embeddings.rows)
    _announce(
        maker, f"{index_type} ({recipe.reason})" if recipe.reason else index_type, embeddings.rows, largest, sample
    )
    with output.build() as folder, console.progress("building the index", embeddings.rows, "vectors") as tick:
        if sample:
            maker.train(embeddings, sample, folder / TRAINED)
        for number, (first, end) in enumerate(bounds):
            maker.write(embeddings, first, end, folder / shard_name(number))
            tick(end - first)
        output.record(IDS, _write_ids(folder / IDS, [embeddings.ids()]))
        stats = {**embeddings.manifest.stats, "dtype": "float32", "shards": len(bounds), "type": index_type}
        metric = "hamming" if recipe.factory == "LSH" else "inner_product"
        return output.finish({**stats, **maker.facts(), "factory": recipe.factory, "metric": metric})


def add(index: FaissIndex, embeddings: Embeddings, output: Output, *, threads: int | None = None) -> Manifest:
    """Builds an index of all documents of `index` and of these embeddings, which become further shards.

    Old shards are linked, not copied. Centroids and codes are those that the first documents trained.

    Raises: RetrievoError where the embeddings are of another dimension, similarity or role, or an id is there already.
    """
    stats, faiss = index.manifest.stats, load_faiss(threads)
    kind = type_named(index.type)
    _check_alike(index, embeddings)
    bounds = _bounds(embeddings.rows, None, kind)
    maker = _Maker(faiss, stats["factory"], embeddings.dim, kind.exact, embeddings.similarity)
    with output.build() as folder, console.progress("adding to the index", embeddings.rows, "vectors") as tick:
        kept = [shard_name(number) for number in range(stats["shards"])]
        kept += [TRAINED] if TRAINED in index.manifest.files else []
        for name in kept:
            _link(index.path / name, folder / name)
            output.record(name, index.manifest.files[name])
        maker.trained = folder / TRAINED if TRAINED in kept else None
        for number, (first, end) in enumerate(bounds, start=stats["shards"]):
            maker.write(embeddings, first, end, folder / shard_name(number))
            tick(end - first)
        output.record(IDS, _write_ids(folder / IDS, [index.ids(), embeddings.ids()]))
        counts = {"rows": index.rows + embeddings.rows, "shards": stats["shards"] + len(bounds)}
        return output.finish({**stats, **counts})


@dataclass
class _Maker:
    """Makes the shards of one index, all with the same parameters and the same training.

    trained: file of the empty trained index, of types that are trained.
    """

    faiss: Faiss
    factory: str
    dim: int
    exact: bool
    similarity: str
    trained: Path | None = None

    def empty(self) -> Faiss:
        """An index without documents, trained where it has to be.

        Raises: UsageError where FAISS can't make one of the factory string.
        """
        if self.trained:
            return self.faiss.read_index(str(self.trained))
        if self.factory == "LSH":  # Hamming distances of sign bits; the factory would rotate the vectors first
            return self.faiss.IndexLSH(self.dim, self.dim, False, False)
        try:
            index = self.faiss.index_factory(self.dim, self.factory, self.faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            found = f"FAISS makes no index of '{self.factory}' for {self.dim} dimensions"
            fix = f"see the FAISS wiki on the index factory ({str(error).rpartition('Error: ')[2].strip() or error})"
            raise UsageError("--type", found, "a factory string that knows the inner product", fix) from None
        _prepare_rotation(self.faiss, index)
        return index

    def sample_rows(self, rows: int) -> int:
        """Vectors to train on; 0 for types that are not trained."""
        index = self.empty()
        if index.is_trained:
            return 0
        if not rows:
            raise RetrievoError("the embeddings", "hold no vectors", f"some to train '{self.factory}' on")
        wanted = max(_SAMPLE_ROWS, _SAMPLE_PER_LIST * _lists(self.faiss, index))
        return min(rows, wanted, max(1, _SAMPLE_VALUES // self.dim))

    def train(self, embeddings: Embeddings, count: int, path: Path) -> None:
        """Trains on a seeded sample of all vectors."""
        rows = np.sort(np.random.default_rng(_SEED).choice(embeddings.rows, count, replace=False))
        index = self.empty()
        if "OPQ" in self.factory and count < self.dim:  # FAISS crashes
            expected = f"as many as dimensions, {self.dim:,}, to train '{self.factory}'"
            raise RetrievoError(embeddings.path, f"holds {count:,} vectors", expected, "choose --type flat")
        with console.progress(f"training on {count:,} vectors", None, "vectors"):
            try:
                index.train(self._ready(embeddings.take(rows)))
            except RuntimeError as error:
                found = f"{count:,} vectors do not train '{self.factory}'"
                fix = f"choose --type flat ({str(error).rpartition('Error: ')[2]})"
                raise RetrievoError(embeddings.path, found, "more of them", fix) from None
        self.faiss.write_index(index, str(path))
        self.trained = path

    def write(self, embeddings: Embeddings, first: int, end: int, path: Path) -> None:
        """One shard; a graph is built on one thread, since it depends on the order in which vectors come."""
        index, threads = self.empty(), self.faiss.omp_get_max_threads()
        self.faiss.omp_set_num_threads(1 if _graph(self.faiss, index) else threads)
        for start, block in embeddings.blocks(max(1, _BLOCK_VALUES // self.dim), first, end):
            embeddings.check_finite(np.arange(start, start + len(block)), block)
            index.add(self._ready(block))
        self.faiss.omp_set_num_threads(threads)
        self.faiss.write_index(index, str(path))

    def _ready(self, vectors: np.ndarray) -> np.ndarray:
        """Float32; of length 1 where an index of inner products stands for cosines."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        return unit_length(vectors) if self.similarity == "cosine" and not self.exact else vectors

    def facts(self) -> Values:
        """What a search must know of the shards: which knob they have, and how far it turns."""
        index = self.empty()
        if lists := _lists(self.faiss, index):
            return {"knob": "nprobe", "lists": lists}
        return {"knob": "ef_search"} if _graph(self.faiss, index) else {}


def _prepare_rotation(faiss: Faiss, index: Faiss) -> None:
    """Trains the rotation of OPQ for codes of as many bits as the index has, in fewer rounds."""
    if not isinstance(index, faiss.IndexPreTransform):
        return
    inner = faiss.downcast_index(index.index)
    for number in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(number))
        if isinstance(step, faiss.OPQMatrix) and hasattr(inner, "pq"):
            codes = faiss.ProductQuantizer(inner.pq.d, inner.pq.M, inner.pq.nbits)
            step.niter, step.pq = _OPQ_ROUNDS, codes
            index.referenced_objects = [codes]  # they live as long as the rotation may use them


def _lists(faiss: Faiss, index: Faiss) -> int:
    """Inverted lists of an index; 0 where it has none."""
    inverted = faiss.try_extract_index_ivf(index)
    return inverted.nlist if inverted else 0


def _graph(faiss: Faiss, index: Faiss) -> Faiss:
    """The HNSW graph that an index is, or None."""
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        index = faiss.downcast_index(index.index)
    return index if isinstance(index, faiss.IndexHNSW) else None


def bytes_per_vector(faiss: Faiss, index: Faiss) -> int | None:
    """What FAISS keeps of each vector; None where it does not say.

    Lists: the code and an id of 8 bytes. HNSW with M neighbors: 2 M links of 4 bytes in the lowest layer, M in each
    higher one, which a vector reaches with probability 1 / M, and 12 bytes of bookkeeping.
    """
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return bytes_per_vector(faiss, faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexHNSW):
        links = index.hnsw.nb_neighbors(0)
        stored = bytes_per_vector(faiss, faiss.downcast_index(index.storage))
        return None if stored is None else stored + 4 * links + 4 + 12
    if isinstance(index, faiss.IndexIVF):
        return int(index.code_size) + 8
    size: int | None = getattr(index, "code_size", None)
    return size


def _announce(maker: _Maker, name: str, rows: int, largest: int, sample: int) -> None:
    """Says what will be built and what it takes; refuses what surely does not fit.

    Raises: RetrievoError where the largest shard needs more memory than there is.
    """
    size = bytes_per_vector(maker.faiss, maker.empty())
    needs = max(largest * (size or 0), sample * maker.dim * 4)
    disk = (
        f"about {_mib(rows * size)} on disk ({size:,} bytes a vector), {_mib(needs)} of memory"
        if size
        else "size unknown"
    )
    trained = f", trained on {sample:,} vectors" if sample else ""
    console.note(f"{name}: {maker.factory} of {rows:,} vectors of {maker.dim} dimensions{trained}: {disk}")
    free = _free_memory()
    if free and needs > free:
        found = f"the build needs about {_mib(needs)} of memory"
        fix = "cut it into more files (--shards) or choose a smaller type (ivfpq)"
        raise RetrievoError("index", found, f"at most {_mib(free)}, which is free", fix)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.0f} GiB"


def _free_memory() -> int | None:
    """Bytes that Linux can give without swapping; None on other systems, where a build is not checked beforehand."""
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable: +(\d+) kB$", _MEMORY.read_text(), re.M)
        return int(found[1]) * 1024 if found else None
    return None


def _bounds(rows: int, shards: int | None, kind: IndexType) -> list[tuple[int, int]]:
    if shards is None and kind.exact:
        return shard_bounds(rows)
    if shards is None:
        shards = max(1, -(-rows // _SHARD_ROWS))
    if not 1 <= shards <= max(rows, 1):
        raise UsageError("--shards", f"found {shards}", f"1 to {max(rows, 1):,}, the number of vectors")
    return list(pairwise(rows * number // shards for number in range(shards + 1)))


def _check_alike(index: FaissIndex, embeddings: Embeddings) -> None:
    for name in ("dim", "similarity", "role"):
        if getattr(index, name) != getattr(embeddings, name):
            found = f"has {name} {getattr(embeddings, name)}"
            raise RetrievoError(embeddings.path, found, f"{getattr(index, name)}, as {index.path} has")
    ids = pa.chunked_array([*index.ids().chunks, *embeddings.ids().chunks], pa.string())
    if twice := repeated(np.zeros(len(ids), np.int64), ids):
        found = f"holds document '{ids[twice[1]].as_py()}', which {index.path} has already"
        raise RetrievoError(embeddings.path, found, "new documents only", "encode those alone")


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        import shutil

        shutil.copyfile(source, target)


def _write_ids(path: Path, columns: Sequence[pa.ChunkedArray]) -> Values:
    schema = pa.schema([("id", pa.string())])
    with HashingFile(path) as file:
        with pa.ipc.new_file(file, schema) as writer:
            for chunk in _chunks(columns):
                writer.write_batch(pa.record_batch([chunk], schema=schema))
        return file.record()


def _chunks(columns: Sequence[pa.ChunkedArray]) -> Iterator[pa.Array]:
    for column in columns:
        yield from column.chunks
