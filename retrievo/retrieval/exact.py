"""Exact search: the ordering rule applied to the exact scores of all documents, at the price of a float32 scan.

A tile of float32 scores comes from one matrix product. Each of them is wrong by at most a known bound, so a document
whose score plus bound reaches the K-th best of what is certain so far stays a candidate, and no other does. Candidates
are rescored exactly, ordered and cut. Ties and duplicates need no case of their own: they are within the bound.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrievo.data.ordering import exact_similarities, first_ranked
from retrievo.retrieval.embeddings import QueryVectors, Vectors
from retrievo.retrieval.hits import Hits, joined
from retrievo.retrieval.roundoff import ErrorBound, norm_below
from retrievo.support.console import Tick
from retrievo.support.errors import RetrievoError, UsageError

_BATCH_QUERIES = 1_024  # beyond that a matrix product gains nothing
_LARGEST_BATCH = 1 << 16  # queries of a batch are numbered in 16 bits, which numpy sorts by radix
_BATCH_HITS = 1 << 23  # queries x depth held at a time
_CANDIDATE_BYTES = 2 * 3 * 18  # twice the depth is held, with the copies of thinning
_TILE_SCORES = 1 << 22  # queries x documents of one matrix product: 16 MiB, which glibc reuses instead of unmapping
_TILE_VALUES = 1 << 24  # documents x dimensions converted at a time: 64 MiB of float32
_SPARE_CANDIDATES = 64  # per query, beyond twice the depth, before they are thinned out
_RESCORED_ROWS = 4_096  # vectors copied at a time by each thread
_LONGEST = 2.0**63  # the product of two norms, which bounds every partial sum of a score, stays finite in float32


def search_exact(
    queries: np.ndarray,
    vectors: Vectors,
    depth: int,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    tick: Tick | None = None,
) -> Hits:
    """The first K = `depth` of all N documents under the ordering rule on exact scores, for every query [Q, D].

    All N where `depth` exceeds them. The result depends on queries, vectors, ids and `depth`; not on shards, threads,
    device or `batch_size`, and depth 10 is the first 10 of depth 1,000. Options and errors: see `search_batches`.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "device": device, "tick": tick}
    return joined(search_batches(queries, vectors, depth, **options), vectors)


def search_batches(
    queries: QueryVectors,
    vectors: Vectors,
    depth: int,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    allowed: np.ndarray | None = None,
    tick: Tick | None = None,
) -> Iterator[Hits]:
    """`search_exact`, a batch of queries at a time; memory O(tile x (D + batch) + batch x K), whatever N and Q.

    batch_size: queries per scan of all documents, as `scan_size` settles it.
    threads:    CPU threads; default torch's own number.
    device:     where the matrix products run: 'cpu', 'cuda', 'cuda:1'; 'auto' takes CUDA where there is one.
    allowed:    bool [N], which documents may be found; default all.
    tick:       called with the number of documents scanned: N in each batch.

    Raises: RetrievoError where dimensions differ, `depth` is below 1, a vector is not finite or its norm is 2^63 or
    more, or there is no such device.
    """
    if depth < 1:
        raise RetrievoError("depth", f"found {depth}", "at least 1")
    if queries.ndim != 2 or queries.shape[1] != vectors.dim:
        raise RetrievoError(
            "queries", f"have shape {queries.shape}", f"[queries, {vectors.dim}], as the documents have"
        )
    place = _place(device)
    size = scan_size(batch_size, min(depth, vectors.rows))
    for first in range(0, len(queries), size):
        batch = np.ascontiguousarray(queries[first : first + size], np.float32)
        _check_queries(batch, first)
        # each worker thread runs torch on one thread
        with (
            _full_precision(place, threads) as count,
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            found = _BatchSearch(batch, vectors, depth, place, pool).run(allowed, tick)
        yield Hits(found.query.astype(np.int64) + first, found.row, found.score, vectors)


def scan_size(wanted: int | None, depth: int, memory: int | None = None) -> int:
    """Queries per scan: those wanted, else as many as a matrix product gains from and memory for their hits allows."""
    if wanted is not None:
        return min(wanted, _LARGEST_BATCH)
    hits = _BATCH_HITS if memory is None else memory // 4 // _CANDIDATE_BYTES
    return max(1, min(_BATCH_QUERIES, hits // max(1, depth)))


def _place(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device", f"found '{device}'", "a machine with CUDA", "choose cpu or auto")
    return torch.device(device)


def _check_queries(queries: np.ndarray, first: int) -> None:
    norms = _norms(queries)
    bad = np.flatnonzero(~(norms < _LONGEST))
    if len(bad):
        found = f"its norm is {norms[bad[0]]:g}"
        raise RetrievoError(f"query vector {first + bad[0] + 1}", found, "a finite one below 2^63", "encode it again")


def _norms(vectors: np.ndarray) -> np.ndarray:
    """Norms [n] in float64."""
    norms: np.ndarray = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return norms


@contextlib.contextmanager
def _full_precision(device: torch.device, threads: int | None) -> Iterator[int]:
    """Sets torch's threads, and true float32 in matrix products (no TF32, no autocast), as the error bound needs."""
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads or before)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.inference_mode():
            yield threads or before
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


class _Candidates(NamedTuple):
    """Documents that may belong to the result, as flat columns; |score - exact score| <= error, 0 where it is exact."""

    query: np.ndarray  # uint16, within the batch
    row: np.ndarray  # int64
    score: np.ndarray  # float32
    error: np.ndarray  # float32

    def at(self, places: np.ndarray) -> _Candidates:
        return _Candidates(*(column[places] for column in self))

    def reaching(self, floor: np.ndarray) -> _Candidates:
        """Those whose exact score may reach the floor [Q] of their query."""
        return self.at(np.flatnonzero(self.score + self.error >= floor[self.query]))


class _BatchSearch:
    """One batch of queries against all documents.

    floor: float32 [Q], a K-th best exact score that is certain so far; what is surely below it never belongs.
    """

    def __init__(
        self, queries: np.ndarray, vectors: Vectors, depth: int, device: torch.device, pool: ThreadPoolExecutor
    ):
        self.queries, self.vectors, self.depth, self.pool = queries, vectors, depth, pool
        self.scanner = _Scanner(queries, vectors, device)
        self.floor = np.full(len(queries), -np.inf, np.float32)
        self.found = [_Candidates(*(np.empty(0, kind) for kind in (np.uint16, np.int64, np.float32, np.float32)))]
        self.room = len(queries) * (2 * depth + _SPARE_CANDIDATES)

    def run(self, allowed: np.ndarray | None, tick: Tick | None) -> _Candidates:
        """The result, in order."""
        for first, block in self.vectors.blocks(self.scanner.tile_rows):
            rows = np.arange(first, first + len(block))
            if allowed is not None:
                rows = rows[allowed[rows]]
            searched = block if len(rows) == len(block) else block[rows - first]
            if len(searched):
                self.found.append(self._candidates(rows, *self.scanner.scan(rows, searched)))
            if sum(len(part.row) for part in self.found) > self.room:
                self._make_room()
            if tick:
                tick(len(block))
        found = self._thinned()
        return found.at(self._settle(found))

    def _candidates(self, rows: np.ndarray, scores: Tensor, lengths: np.ndarray) -> _Candidates:
        """The documents of a tile, rows [n], whose exact scores may reach the floor."""
        margin = self.scanner.error(lengths.max(initial=0))
        if scores.shape[1] >= self.depth and np.isneginf(self.floor).any():
            self.floor = np.maximum(self.floor, _kth_best(scores, self.depth) - margin)
        query, column, score = _reaching(scores, self.floor - margin)
        error = self.scanner.error(lengths[column], query)
        return _Candidates(query.astype(np.uint16), rows[column], score, error).reaching(self.floor)

    def _thinned(self) -> _Candidates:
        """All candidates by query, less those that a raised floor leaves behind."""
        found = _Candidates(*(np.concatenate(columns) for columns in zip(*self.found, strict=True)))
        found = found.at(np.argsort(found.query, kind="stable"))
        certain = found.score - found.error
        ends = np.searchsorted(found.query, np.arange(len(self.floor) + 1))
        for query in np.flatnonzero(np.diff(ends) >= self.depth):
            own = certain[ends[query] : ends[query + 1]]
            kth = np.partition(own, len(own) - self.depth)[len(own) - self.depth]
            self.floor[query] = max(self.floor[query], kth)
        return found.reaching(self.floor)

    def _make_room(self) -> None:
        """Thins the candidates; where ties keep too many within the bound, cuts them by exact scores and ids."""
        found = self._thinned()
        if len(found.row) > 3 * self.room // 4:
            found = found.at(self._settle(found))
        self.found = [found]

    def _settle(self, found: _Candidates) -> np.ndarray:
        """Gives candidates (sorted by query) their exact scores; returns those that stay, in order of the rule."""
        self._rescore(found)
        return first_ranked(found.query, found.score, self.vectors.ids(found.row), self.depth)

    def _rescore(self, found: _Candidates) -> None:
        def rescore(at: np.ndarray) -> None:
            query, vectors = self.queries[found.query[at[0]]], _widened(self.vectors.take(found.row[at]))
            scores = exact_similarities(self.vectors.similarity, query, vectors)
            if not (np.abs(scores - found.score[at]) <= found.error[at]).all():
                fix = "unset DNNL_DEFAULT_FPMATH_MODE and the like, or choose another --device"
                raise RetrievoError("search", "matrix products here are less exact than float32", None, fix)
            found.score[at] = scores

        for _ in self.pool.map(rescore, _parts_by_query(np.flatnonzero(found.error), found.query)):
            pass
        found.error[:] = 0


def _widened(vectors: np.ndarray) -> np.ndarray:
    """The same numbers as float32: torch widens float16 so fast that rescoring takes 0.6 of the time."""
    return vectors if vectors.dtype == np.float32 else torch.from_numpy(vectors).float().numpy()


def _parts_by_query(places: np.ndarray, query: np.ndarray) -> Iterator[np.ndarray]:
    """Places cut where the query changes and where a part would hold more rows than are copied at a time."""
    for own in np.split(places, np.flatnonzero(np.diff(query[places])) + 1):
        for start in range(0, len(own), _RESCORED_ROWS):
            yield own[start : start + _RESCORED_ROWS]


class _Scanner:
    """Float32 scores of tiles of documents against a batch of queries, and what they may be wrong by (`error`)."""

    def __init__(self, queries: np.ndarray, vectors: Vectors, device: torch.device):
        self.vectors = vectors
        self.cosine = vectors.similarity == "cosine"
        norms, dim = _norms(queries), vectors.dim
        if self.cosine:
            queries = (queries / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
            norms = np.ones(len(queries))
        self.queries = torch.from_numpy(queries).to(device)
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            self.queries = self.queries.to_mkldnn()  # oneDNN; on AMD processors MKL is half as fast
        self.tile_rows = max(256, min(_TILE_SCORES // max(1, len(queries)), _TILE_VALUES // dim))
        self.error = ErrorBound(norms, dim, vectors.similarity)
        self._tile = torch.empty(self.tile_rows * dim, device=device)

    def scan(self, rows: np.ndarray, block: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Scores [Q, n] of the vectors [n, D] of rows [n], and lengths [n] of these: their norms, or 1 for cosine."""
        tile = self._tile[: block.size].view(block.shape)
        tile.copy_(as_tensor(block).to(tile.device))  # converted there
        lengths = self._normalize(tile) if self.cosine else torch.linalg.vector_norm(tile, dim=1)
        lengths = lengths.cpu().numpy()
        if not lengths.max(initial=0) < _LONGEST:
            self._refuse(rows, block, lengths)
        scores = torch.nn.functional.linear(self.queries, tile)
        lengths += norm_below(block.shape[1])
        return scores.to_dense() if scores.is_mkldnn else scores, lengths

    def _normalize(self, tile: Tensor) -> Tensor:
        """Divides by the largest value, then by the norm, so that no square leaves the range of float32."""
        peaks = torch.linalg.vector_norm(tile, ord=float("inf"), dim=1)
        tile /= torch.where(peaks > 0, peaks, 1)[:, None]
        norms = torch.linalg.vector_norm(tile, dim=1)
        tile /= torch.where(norms > 0, norms, 1)[:, None]
        return torch.where(peaks.isfinite(), 1.0, peaks)

    def _refuse(self, rows: np.ndarray, block: np.ndarray, lengths: np.ndarray) -> None:
        self.vectors.check_finite(rows, block)
        row = int(rows[np.argmax(lengths)])
        raise RetrievoError(
            self.vectors.describe(row), "its norm exceeds 2^63", "scores within float32", "scale the vectors"
        )


def as_tensor(block: np.ndarray) -> Tensor:
    """A view for reading only; a copy where the memory map is not aligned to the values (FAISS files)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(block if block.flags.aligned else block.copy())


def _on_cpu(scores: Tensor) -> bool:
    """Whether numpy selects from the scores; torch's own selection is some 3 times as slow on a CPU."""
    return scores.device.type == "cpu"


def _kth_best(scores: Tensor, k: int) -> np.ndarray:
    """The k-th largest of each row of scores [Q, n]."""
    if _on_cpu(scores):
        place = scores.shape[1] - k
        return np.partition(scores.numpy(), place, axis=1)[:, place]
    return torch.topk(scores, k, dim=1, sorted=False).values.amin(dim=1).cpu().numpy()


def _reaching(scores: Tensor, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of the scores [Q, n] that are at least their row's limit, in order."""
    if _on_cpu(scores):
        flat = np.flatnonzero(scores.numpy() >= limit[:, None])
        values = scores.numpy().reshape(-1)[flat]
    else:
        reaching = scores >= torch.from_numpy(limit).to(scores.device)[:, None]
        place = torch.nonzero(reaching.view(-1)).view(-1)
        flat, values = place.cpu().numpy(), scores.view(-1)[place].cpu().numpy()
    row, column = np.divmod(flat, max(1, scores.shape[1]))
    return row, column, values
