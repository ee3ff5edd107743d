"""ANCE: hard negatives mined with the current model, by encoding the corpus and searching at regular steps.

Xiong et al. 2021 (Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval), in a
synchronous form: training waits for the search. In the paper, other processes encode with an earlier checkpoint while
training continues, so that negatives lag behind. Here they come from the latest refresh, and a run is reproducible.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrievo.data.columns import taken
from retrievo.data.negatives import Negatives
from retrievo.data.ordering import flat_strings
from retrievo.data.shards import shard_bounds
from retrievo.data.tables import NEGATIVES, TableWriter
from retrievo.data.token_cache import TokenCache
from retrievo.distributed.collectives import barrier, rank, world_size
from retrievo.mining.candidates import Judged, VectorMiner
from retrievo.mining.choice import Tally, Window, choose
from retrievo.mining.rules import Filters, Rules
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_tokens
from retrievo.retrieval.embeddings import (
    Vectors,
    embeddings_stats,
    shard_name,
    stored_vectors,
    write_shard,
)
from retrievo.support import console
from retrievo.support.files import remove
from retrievo.support.values import Values
from retrievo.training.batch import Batch
from retrievo.training.engine import checkpoints
from retrievo.training.engine.config import CHECKPOINTS, REFRESHED
from retrievo.training.feeds.finetune import GroupFeed
from retrievo.training.feeds.samplers import Ragged, share

_STORAGE = "float16"  # as `retrievo encode` stores vectors
_VECTORS = "vectors"


class RefreshingFeed:
    """A feed that mines its pool of hard negatives again every `refresh_every` steps; `fit(every=...)` calls it then.

    The pool of a step is that of the last refresh at or before it, or else the pool that the feed began with. Pools are
    files (`refreshed-negatives/step-000100/`, tables of negatives), so that a resumed run finds its pool; an unfinished
    refresh is done again. Each of several processes encodes its share of the corpus and searches for its share of the
    queries; all of them read the same files.

    steps: number of steps of the run; after the last one nothing is mined. dtype: number format of the encoder's
    computation.
    """

    def __init__(
        self,
        feed: GroupFeed,
        encoder: Encoder,
        *,
        every: int,
        depth: int,
        folder: Path,
        steps: int,
        dtype: str,
    ):
        self.every, self.depth = every, depth
        self.feed, self.encoder, self.data = feed, encoder, feed.data
        self.home, self.checkpoints, self.steps = folder / REFRESHED, folder / CHECKPOINTS, steps
        self.dtype = dtype
        self._used = 0  # the refresh whose pool the sampler draws from
        self._remove_unfinished()
        queries = feed.sampler.queries
        self._queries = queries[share(len(queries), rank(), world_size())]
        self._judged = self._relevant()

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        self._use(self._refresh_before(step))
        return self.feed.batch(step)

    def position(self, step: int) -> dict[str, int]:
        """The position of a step in the data."""
        return self.feed.position(step)

    def __call__(self, step: int) -> Values:
        """Mines the pool for the steps after the first `step` ones; returns values for the log."""
        if step >= self.steps:
            return {}
        start, partial = time.monotonic(), self.home / f".step-{step:06d}.partial"
        self._begin(partial)
        self._mine(self._encoded(partial / _VECTORS), partial / f"part-{rank():05d}.parquet")
        self._finish(partial, step)
        before = self.feed.sampler.negatives
        self._use(step)
        pool, seconds = self.feed.sampler.negatives, time.monotonic() - start
        if rank() != 0:
            return {}
        new = _share_new(pool, before, len(self.data.corpus))
        mined = f"{len(pool.values):,} negatives mined, {new:.0%} of them new"
        console.note(f"step {step:,}: {mined} ({console.seconds(seconds)})")
        return {"refresh_seconds": seconds, "refresh_negatives": len(pool.values), "refresh_new": new}

    # -- pools on disk ---------------------------------------------------------------------------------------------

    def _refresh_before(self, step: int) -> int:
        """The number of finished steps at the last refresh at or before a step; 0 = there was none."""
        return step // self.every * self.every

    def _use(self, refresh: int) -> None:
        """Makes the sampler draw from the pool of a refresh."""
        if refresh != self._used:
            pairs = Negatives(self._path(refresh)).read()
            self.feed.sampler.negatives, _ = self.data.by_query(pairs)
            self._used = refresh

    def _path(self, refresh: int) -> Path:
        return self.home / f"step-{refresh:06d}"

    def _begin(self, partial: Path) -> None:
        """Makes an empty work folder; removes what killed refreshes left."""
        self._remove_unfinished()
        if rank() == 0:
            (partial / _VECTORS).mkdir(parents=True)
        barrier()

    def _remove_unfinished(self) -> None:
        """Removes what killed refreshes left."""
        for left in self.home.glob(".*.partial") if rank() == 0 else ():
            remove(left)

    def _finish(self, partial: Path, step: int) -> None:
        """Publishes a pool once every process has written its part, and removes pools that no resumed run can need."""
        barrier()
        if rank() == 0:
            remove(partial / _VECTORS)
            remove(self._path(step))
            partial.rename(self._path(step))
            latest = checkpoints.latest(self.checkpoints)
            needed = self._refresh_before(int(latest.name.removeprefix("step-"))) if latest else 0
            for old in self.home.glob("step-*"):
                if old not in (self._path(step), self._path(needed)):
                    remove(old)
        barrier()

    # -- the search ------------------------------------------------------------------------------------------------

    def _relevant(self) -> Judged:
        """This rank's queries with their relevant documents."""
        positives, ids = self.data.positives, flat_strings(self.data.queries.ids)
        lists = [positives.list(int(query)) for query in self._queries]
        query = np.repeat(self._queries, [len(rows) for rows in lists])
        row = np.concatenate([np.empty(0, np.int64), *lists])
        documents = self.data.corpus.id_map.ids.column()
        pairs = {"query_id": ids.take(pa.array(query)), "doc_id": taken(documents, row)}
        texts = [self.data.queries.texts[query] for query in self._queries]
        return Judged(self.data.corpus, ids.take(pa.array(self._queries)), texts, pa.table(pairs))

    def _encoded(self, folder: Path) -> Vectors:
        """Encodes this rank's share of the shards; returns the vectors of all documents, on disk."""
        rows, ids = len(self.data.corpus), self.data.corpus.id_map.ids.column()
        for number, (first, end) in list(enumerate(shard_bounds(rows)))[rank() :: world_size()]:
            vectors = self._vectors("document", self.feed.document_tokens, np.arange(first, end))
            own = ids.slice(first, end - first).combine_chunks()
            write_shard(folder / shard_name(number), own, vectors.astype(_STORAGE))
        barrier()
        similarity = self.encoder.spec.similarity
        return stored_vectors(folder, embeddings_stats(rows, self.encoder.dim, _STORAGE, "document", similarity))

    def _vectors(self, role: str, texts: TokenCache, rows: np.ndarray) -> np.ndarray:
        return encode_tokens(self.encoder, role, *texts.rows(rows), ComputeOptions(self.dtype))

    def _mine(self, vectors: Vectors, part: Path) -> None:
        """Writes the negatives of this rank's queries: all documents that the search finds and no rule drops."""
        queries = self._vectors("query", self.feed.query_tokens, self._queries)
        device = str(self.encoder.backbone.device)
        miner = VectorMiner(self._judged, self.depth, queries, vectors, "refresh", device=device)
        window, rules = Window(0, self.depth, "top", 0), Rules(self._judged, Filters())
        with TableWriter(part, NEGATIVES.arrow) as writer:
            for found in choose(self._judged, [miner], window, rules, Tally()):
                writer.write(found.negatives.table(self._judged))
            writer.close()


def _share_new(pool: Ragged, before: Ragged, documents: int) -> float:
    """The share of the pairs (list number, value) of a pool that the previous pool did not have."""
    now, then = (
        np.repeat(np.arange(pairs.size), np.diff(pairs.offsets)) * documents + pairs.values for pairs in (pool, before)
    )
    return float(np.isin(now, then, invert=True).mean()) if len(now) else 0.0
