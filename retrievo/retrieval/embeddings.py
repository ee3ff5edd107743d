"""Vectors with ids: the embeddings folder of memory-mapped Arrow shards, and the import of foreign arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from retrievo.data.columns import taken
from retrievo.data.ordering import repeated
from retrievo.data.shards import shard_bounds
from retrievo.models.encoder_spec import ROLES, SIMILARITIES
from retrievo.support import console
from retrievo.support.artifact import Input, Manifest, Output
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.files import HashingFile, atomic_path
from retrievo.support.values import Values

TRUNCATED = "truncated"  # key of a shard's metadata: how many of its texts were cut at the maximal length
WITHOUT_TOKENS = "without-tokens"  # the same: how many of its texts have no token, whose vectors are zero
EMPTY = "empty"  # the same: how many of its texts have no word; absent where there are none
CHUNK_TOKENS = "chunk_tokens"  # the same: the budget that memory left, where it was not the one of the config
DTYPES = {"float16": pa.float16(), "float32": pa.float32()}

_IDS_PER_CHUNK = 1 << 16
_ROWS_CHECKED = 1 << 12  # a mask of some MB


ANY_SHARD = "shard-*.arrow"  # pattern of their names


def shard_name(number: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"shard-{number:05d}.arrow"


def embeddings_stats(rows: int, dim: int, dtype: str, role: str, similarity: str) -> Values:
    """The part of the manifest's `stats` that a reader of embeddings relies on.

    Raises: UsageError where role, similarity or dtype is not a known name.
    """
    for flag, value, known in (("--role", role, ROLES), ("--similarity", similarity, SIMILARITIES)):
        if value not in known:
            raise UsageError(flag, f"found '{value}'", None, did_you_mean(value, known))
    if dtype not in DTYPES:
        raise UsageError("--storage-dtype", f"found '{dtype}'", None, did_you_mean(dtype, DTYPES))
    shards = len(shard_bounds(rows))
    return {"rows": rows, "dim": dim, "dtype": dtype, "role": role, "similarity": similarity, "shards": shards}


def write_shard(path: Path, ids: pa.Array, vectors: np.ndarray, metadata: dict[str, str] | None = None) -> Values:
    """Writes one shard atomically and returns its record (bytes, content hash); equal rows give equal bytes.

    ids: strings [n]. vectors: float16 or float32 [n, D], finite. metadata: facts of this shard, kept in its schema.

    Raises: RetrievoError naming shard, row and id of the first vector that is not finite.
    """
    vectors = np.ascontiguousarray(vectors)
    _check_finite(vectors, lambda row: f"{path} row {row + 1} (id '{ids[row].as_py()}')")
    schema = _shard_schema(vectors.shape[1], vectors.dtype.name).with_metadata(metadata)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    with atomic_path(path) as temporary, HashingFile(temporary) as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.record_batch([ids.cast(pa.string()), column], schema=schema))
        return file.record()


def shard_metadata(path: Path) -> dict[str, str]:
    """The facts that a shard keeps in its schema."""
    found = pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata or {}
    return {name.decode(): value.decode() for name, value in found.items()}


def _shard_schema(dim: int, dtype: str) -> pa.Schema:
    return pa.schema([("id", pa.string()), ("vector", pa.list_(DTYPES[dtype], dim))])


def _check_finite(vectors: np.ndarray, name_row: Callable[[int], str]) -> None:
    """Raises RetrievoError for the first row that holds a NaN or an infinity."""
    for start in range(0, len(vectors), _ROWS_CHECKED):
        part = vectors[start : start + _ROWS_CHECKED]
        bad = np.argwhere(~np.isfinite(part))
        if len(bad):
            row, place = bad[0].tolist()
            raise RetrievoError(
                name_row(start + row), f"the vector holds {part[row, place]}", "finite numbers", "encode it again"
            )


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Float32 vectors [n, D] divided by their norms; zero vectors stay.

    Divided by the largest value first, so that no square leaves the range of float32.
    """
    peaks = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
    scaled = vectors / np.where(peaks > 0, peaks, 1)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return (scaled / np.where(norms > 0, norms, 1)).astype(np.float32)


class Vectors:
    """Vectors [N, D] in shards with the id of every row; shards may lie in a memory map, nothing is copied.

    shards: float16 or float32 arrays [n, D] of one dtype, at least one; ids: strings [n] for each of them.
    names:  what error messages call each shard; owner: what must live as long as the shards.
    mapped: whether the shards lie in a memory map of files, whose pages can be read again.
    sparing: whether pages leave memory as soon as they were read (`--memory`).
    """

    sparing = False

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        ids: Sequence[pa.Array],
        *,
        similarity: str = "dot",
        names: Sequence[str] | None = None,
        owner: object = None,
        mapped: bool = False,
    ):
        self._shards, self._names = list(shards), list(names or [f"shard {n}" for n in range(len(shards))])
        if {shard.dtype.name for shard in self._shards} - set(DTYPES):
            raise ValueError(f"vectors of type {self._shards[0].dtype}; expected {' or '.join(DTYPES)}")
        self.starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self.rows, self.dim, self.dtype = int(self.starts[-1]), self._shards[0].shape[1], self._shards[0].dtype
        self.similarity, self._owner, self.mapped = similarity, owner, mapped
        self._ids = pa.chunked_array(ids, pa.string())

    def __len__(self) -> int:
        return self.rows

    def blocks(self, rows: int, first: int = 0, end: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The vectors from `first` to `end` in order, as (row, view [at most `rows`, D]) that never cross a shard."""
        for origin, shard in zip(self.starts.tolist(), self._shards, strict=False):
            stop = min(len(shard), (self.rows if end is None else end) - origin)
            for start in range(max(0, first - origin), stop, rows):
                block = shard[start : min(start + rows, stop)]
                yield origin + start, block
                self._let_go(block)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the vectors [n, D] of these rows, quickest where the rows ascend."""
        order = np.argsort(rows) if (rows[1:] < rows[:-1]).any() else None
        ascending = rows if order is None else rows[order]
        found = np.empty((len(rows), self.dim), self.dtype)
        cuts = np.searchsorted(ascending, self.starts)
        for shard in np.flatnonzero(np.diff(cuts)):
            inside = slice(cuts[shard], cuts[shard + 1])
            place = inside if order is None else order[inside]
            found[place] = self._shards[shard][ascending[inside] - self.starts[shard]]
            self._let_go(self._shards[shard])
        return found

    def _let_go(self, block: np.ndarray) -> None:
        """Gives the whole pages of a block back to the system where memory is to be spared."""
        if self.sparing and self.mapped:
            release_pages(block)

    def part(self, first: int, end: int) -> Vectors:
        """The rows from `first` to `end` by themselves; nothing is copied."""
        shards, names = [self._shards[0][:0]], [self._names[0]]
        for name, origin, shard in zip(self._names, self.starts.tolist(), self._shards, strict=False):
            before = max(0, first - origin)
            if len(inside := shard[before : max(0, end - origin)]):
                shards.append(inside)
                names.append(f"{name}, {before:,} rows on," if before else name)
        ids = self._ids.slice(first, max(0, end - first)).chunks
        part = Vectors(shards, ids, similarity=self.similarity, names=names, owner=self, mapped=self.mapped)
        part.sparing = self.sparing
        return part

    def ids(self, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The ids of these rows, or of all."""
        return self._ids if rows is None else pa.chunked_array([taken(self._ids, rows)])

    def describe(self, row: int) -> str:
        """Where a row lies, for error messages: shard, row in it, id."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self._names[shard]} row {row - self.starts[shard] + 1} (id '{self._ids[row].as_py()}')"

    def check_finite(self, rows: np.ndarray, block: np.ndarray) -> None:
        """Raises RetrievoError for the first vector [n, D] of rows [n] that is not finite, naming shard, row and id."""
        _check_finite(block, lambda row: self.describe(int(rows[row])))


def release_pages(block: np.ndarray) -> None:
    """Takes the pages inside a block of a file's memory map out of this process; a later access reads them again."""
    import ctypes
    import mmap

    page, start = mmap.PAGESIZE, block.ctypes.data
    first, end = -(-start // page) * page, (start + block.nbytes) // page * page
    if end > first and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


def together(parts: Sequence[Vectors]) -> Vectors:
    """The vectors of several folders as one, in their order.

    Raises: RetrievoError where their dimensions or types differ.
    """
    if len(parts) == 1:
        return parts[0]
    if len({(part.dim, part.dtype) for part in parts}) > 1:
        found = ", ".join(f"{part.dim} dimensions of {part.dtype}" for part in parts)
        raise RetrievoError("embeddings", f"are of {found}", "one kind", "encode them with the same options")
    return Vectors(
        [shard for part in parts for shard in part._shards],
        [chunk for part in parts for chunk in part.ids().chunks],
        similarity=parts[0].similarity,
        names=[name for part in parts for name in part._names],
        owner=list(parts),
        mapped=all(part.mapped for part in parts),
    )


class Embeddings(Vectors):
    """An embeddings folder, opened in the memory map and checked against its manifest.

    dim D, dtype, rows N, similarity ('dot' or 'cosine'), role ('document' or 'query'), manifest.

    Raises: RetrievoError where the folder is no finished embeddings folder or its shards do not agree with it.
    """

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        self.manifest = Manifest.read(path, "embeddings")
        stats = self.manifest.stats
        super().__init__(**_opened(path, stats))
        self.role: str = stats["role"]
        if self.rows != stats["rows"]:
            raise RetrievoError(path, f"its shards hold {self.rows:,} rows", f"{stats['rows']:,}", "make it again")

    def write_array(self, path: Path, tick: console.Tick | None = None) -> Values:
        """Writes all vectors as one `.npy` [N, D], a block at a time; returns the record of the file."""
        header = {"descr": self.dtype.newbyteorder("<").str, "fortran_order": False, "shape": (self.rows, self.dim)}
        with HashingFile(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _, block in self.blocks(_IDS_PER_CHUNK):
                file.write(np.ascontiguousarray(block).data)
                if tick:
                    tick(len(block))
            return file.record()

    def write_ids(self, path: Path) -> Values:
        """Writes all ids, one per line; returns the record of the file.

        Raises: RetrievoError for an id that holds the end of a line.
        """
        with HashingFile(path) as file:
            for chunk in self.ids().chunks:
                ids = chunk.to_pylist()
                if broken := [name for name in ids if "\n" in name or "\r" in name]:
                    found = f"id {broken[0]!r} holds the end of a line"
                    raise RetrievoError(self.path, found, "ids of one line", "give the documents other ids")
                file.write("".join(f"{name}\n" for name in ids).encode())
            return file.record()


class QueryVectors(Protocol):
    """Vectors of queries [Q, D] that are read by slices: an array, or `StoredQueries`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class StoredQueries:
    """Queries as rows of an embeddings folder, read a block at a time; slices are arrays [n, D]."""

    def __init__(self, vectors: Vectors):
        self.vectors, self.shape, self.ndim = vectors, (vectors.rows, vectors.dim), 2

    def __len__(self) -> int:
        return self.vectors.rows

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.vectors.take(np.arange(*part.indices(self.vectors.rows)))


def stored_vectors(folder: Path, stats: Mapping[str, object]) -> Vectors:
    """The shards of a folder without a manifest, memory-mapped; stats: as `embeddings_stats` returns them."""
    return Vectors(**_opened(folder, stats))


def _opened(folder: Path, stats: Mapping[str, Any]) -> Values:
    """The shards of a folder as `Vectors` takes them."""
    files = [folder / shard_name(number) for number in range(stats["shards"])]
    opened = [_open_shard(file, stats["dim"], stats["dtype"]) for file in files]
    names = [str(file) for file in files]
    ids, shards = [ids for ids, _ in opened], [vectors for _, vectors in opened]
    return {"shards": shards, "ids": ids, "similarity": stats["similarity"], "names": names, "mapped": True}


def _open_shard(path: Path, dim: int, dtype: str) -> tuple[pa.Array, np.ndarray]:
    """Ids [n] and vectors [n, D] of a shard as views of the memory map."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = file.get_batch(0)
    except FileNotFoundError:
        raise RetrievoError(path, "is missing", "every shard that the manifest counts", "make it again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise RetrievoError(path, f"is no readable Arrow file: {error}", None, "make it again") from None
    expected = _shard_schema(dim, dtype)
    if batch.schema != expected or file.num_record_batches != 1 or sum(column.null_count for column in batch.columns):
        fields = ", ".join(f"{field.name}: {field.type}" for field in batch.schema)
        wanted = ", ".join(f"{field.name}: {field.type}" for field in expected)
        raise RetrievoError(path, f"holds ({fields})", f"({wanted}) without nulls in one batch", "make it again")
    return batch.column(0), batch.column(1).flatten().to_numpy(zero_copy_only=True).reshape(-1, dim)


def import_vectors(
    array: Path, ids: Path, output: Path, *, role: str = "document", similarity: str = "dot", force: bool = False
) -> Manifest:
    """Makes an embeddings folder from a NumPy array `X.npy` [N, D] and a text file with one id per line.

    float16 and float32 are kept; float64 is stored as float32, with a note.

    Raises: RetrievoError for arrays of another shape or type, ids that are too few, too many, empty or repeated, and
    vectors that are not finite.
    """
    inputs = {"vectors": Input.of(array), "ids": Input.of(ids)}
    result = Output(output, "embeddings", {"role": role, "similarity": similarity}, inputs, force=force)
    if finished := result.already_finished():
        return finished
    source = ForeignVectors(array, ids)
    with result.build():
        return result.finish(source.write(result, role=role, similarity=similarity))


class ForeignVectors:
    """A NumPy array [N, D] in the memory map and its ids, checked but for values that are not finite.

    Raises: RetrievoError for everything that `import_vectors` names.
    """

    def __init__(self, array: Path, ids: Path):
        self.array, self.vectors = array, _open_array(array)
        self.ids = _read_ids(ids, len(self.vectors), array)
        self.dtype = "float16" if self.vectors.dtype.itemsize == 2 else "float32"

    def write(self, output: Output, *, role: str, similarity: str) -> Values:
        """Writes the shards into an output that is being built, and returns the stats for its manifest."""
        rows, dim = self.vectors.shape
        stats = embeddings_stats(rows, dim, self.dtype, role, similarity)
        with console.progress("importing vectors", rows, "vectors") as tick:
            for number, (first, end) in enumerate(shard_bounds(rows)):
                part = _as_stored(self.vectors[first:end], self.dtype)
                _check_finite(part, lambda row, first=first: self._describe(first + row))  # type: ignore[misc]
                ids = self.ids.slice(first, end - first).combine_chunks()
                output.record(shard_name(number), write_shard(output.folder / shard_name(number), ids, part))
                tick(end - first)
        return stats

    def _describe(self, row: int) -> str:
        return f"{self.array} row {row + 1} (id '{self.ids[row].as_py()}')"


def _as_stored(vectors: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the check for that reports
        return np.ascontiguousarray(vectors, dtype)


def _open_array(path: Path) -> np.ndarray:
    """A floating-point array [N, D] in the memory map."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise RetrievoError(path, "no such file", "an array X.npy", "check the path") from None
    except (ValueError, OSError, EOFError) as error:
        fix = "write it with numpy.save, without Python objects"
        raise RetrievoError(path, f"can't be read: {error}", "a .npy array of numbers", fix) from None
    if not isinstance(array, np.ndarray):
        raise RetrievoError(path, "is an archive of arrays (.npz)", "one array", "save it with numpy.save")
    if array.ndim != 2 or array.shape[1] == 0:
        raise RetrievoError(path, f"has shape {array.shape}", "[rows, dimensions]", "save one vector per row")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise RetrievoError(path, f"holds {array.dtype}", "float16, float32 or float64", "convert it with astype")
    if array.dtype.itemsize == 8:
        console.note(f"{path}: float64 is stored as float32")
    return array


def _read_ids(path: Path, rows: int, array: Path) -> pa.ChunkedArray:
    """One id per line, as many as the array has rows, none empty, none twice."""
    try:
        chunks = list(_id_chunks(path))
    except FileNotFoundError:
        raise RetrievoError(path, "no such file", "one id per line", "check the path") from None
    ids = pa.chunked_array(chunks, pa.string())
    if len(ids) != rows:
        raise RetrievoError(path, f"has {len(ids):,} lines", f"{rows:,}, one for each row of {array}", "check both")
    twice = repeated(np.zeros(rows, np.int64), ids)
    if twice:
        lines = f"lines {twice[0] + 1:,} and {twice[1] + 1:,}"
        raise RetrievoError(path, f"id '{ids[twice[0]]}' occurs twice ({lines})", "each id once", "remove one of them")
    return ids


def _id_chunks(path: Path) -> Iterator[pa.Array]:
    chunk: list[str] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            chunk.append(_decode(raw, f"{path} line {number}"))
            if len(chunk) == _IDS_PER_CHUNK:
                yield pa.array(chunk, pa.string())
                chunk = []
    yield pa.array(chunk, pa.string())


def _decode(raw: bytes, where: str) -> str:
    try:
        found = raw.rstrip(b"\r\n").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RetrievoError(where, "is not UTF-8", "UTF-8 text", "convert the file") from None
    if not found:
        raise RetrievoError(where, "is empty", "one id per line", "remove the line, or give the row an id")
    return found
