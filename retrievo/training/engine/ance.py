"""Hard negatives of the model as it stands: from time to time the corpus is encoded and the queries are searched.

ANCE (Xiong et al. 2021, Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval), in the
synchronous form: training waits for the search. The paper trains on while other processes encode with an earlier
checkpoint, so that its negatives are older than the last refresh; here they never are, and a run can be repeated.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from retrievo.models.encoder import Encoder
from retrievo.models.inference import computing
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
from retrievo.training.batch import Batch
from retrievo.training.engine import checkpoints
from retrievo.training.engine.config import CHECKPOINTS, REFRESH_DEPTH, REFRESHED, RefreshConfig
from retrievo.training.feeds.finetune import GroupFeed
from retrievo.training.feeds.samplers import Ragged, share

_STORAGE = "float16"  # as `retrievo encode` stores vectors
_VECTORS = "vectors"


class RefreshingFeed:
    """A feed whose pool of hard negatives is mined anew after every some steps; to be called then (`fit(every=...)`).

    The pool of a step is that of the last refresh at or before it, else the one that the feed began with. Pools are
    files (`refreshed-negatives/step-000100/`, tables of negatives), so that a run that goes on has the pool it had; a
    refresh that was not finished is done again. Of several processes each encodes its share of the corpus and searches
    for its share of the queries; all read the same files.

    steps: of the whole run; after the last one nothing is mined. dtype: what it computes in.
    """

    def __init__(
        self,
        config: RefreshConfig,
        feed: GroupFeed,
        encoder: Encoder,
        *,
        folder: Path,
        steps: int,
        dtype: str,
    ):
        assert config.refresh_every is not None
        self.every, self.depth = config.refresh_every, config.refresh_depth or REFRESH_DEPTH
        self.feed, self.encoder, self.data = feed, encoder, feed.data
        self.home, self.checkpoints, self.steps = folder / REFRESHED, folder / CHECKPOINTS, steps
        self.dtype = dtype
        self._used = 0  # the refresh whose pool the sampler has
        self._remove_unfinished()
        queries = feed.sampler.queries
        self._queries = queries[share(len(queries), rank(), world_size())]
        self._judged = self._relevant()

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        self._use(self._refresh_before(step))
        return self.feed.batch(step)

    def position(self, step: int) -> dict[str, int]:
        """Where a step stands in the data."""
        return self.feed.position(step)

    def __call__(self, step: int) -> dict[str, Any]:
        """Mines the pool from which steps after the first `step` draw; what the log tells of it."""
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
        told = f"{len(pool.values):,} negatives mined anew, {new:.0%} of them new"
        console.note(f"step {step:,}: {told} ({console.seconds(seconds)})")
        return {"refresh_seconds": seconds, "refresh_negatives": len(pool.values), "refresh_new": new}

    # -- pools on disk ---------------------------------------------------------------------------------------------

    def _refresh_before(self, step: int) -> int:
        """The steps that had been finished at the last refresh at or before a step; 0 = there was none."""
        return step // self.every * self.every

    def _use(self, refresh: int) -> None:
        """Lets the sampler draw from the pool of a refresh."""
        if refresh != self._used:
            pairs = Negatives(self._path(refresh)).read()
            self.feed.sampler.negatives, _ = self.data.by_query(pairs)
            self._used = refresh

    def _path(self, refresh: int) -> Path:
        return self.home / f"step-{refresh:06d}"

    def _begin(self, partial: Path) -> None:
        """An empty folder to work in; what killed refreshes left goes."""
        self._remove_unfinished()
        if rank() == 0:
            (partial / _VECTORS).mkdir(parents=True)
        barrier()

    def _remove_unfinished(self) -> None:
        """Removes what killed refreshes left."""
        for left in self.home.glob(".*.partial") if rank() == 0 else ():
            remove(left)

    def _finish(self, partial: Path, step: int) -> None:
        """Publishes a pool once every process has written its part, and removes those that no run can need again."""
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
        """The vectors of all documents, on disk; this rank encodes its share of the shards."""
        rows, ids = len(self.data.corpus), self.data.corpus.id_map.ids.column()
        for number, (first, end) in list(enumerate(shard_bounds(rows)))[rank() :: world_size()]:
            vectors = self._vectors("document", self.feed.document_tokens, np.arange(first, end))
            own = ids.slice(first, end - first).combine_chunks()
            write_shard(folder / shard_name(number), own, vectors.astype(_STORAGE))
        barrier()
        similarity = self.encoder.spec.similarity
        return stored_vectors(folder, embeddings_stats(rows, self.encoder.dim, _STORAGE, "document", similarity))

    def _vectors(self, role: str, texts: TokenCache, rows: np.ndarray) -> np.ndarray:
        device = self.encoder.backbone.device
        return encode_tokens(self.encoder, role, *texts.rows(rows), **computing(self.dtype, device))

    def _mine(self, vectors: Vectors, part: Path) -> None:
        """Writes the negatives of this rank's queries: all that the search finds and no rule drops."""
        queries = self._vectors("query", self.feed.query_tokens, self._queries)
        device = str(self.encoder.backbone.device)
        miner = VectorMiner(self._judged, self.depth, queries, vectors, "refresh", device=device)
        window, rules = Window(0, self.depth, "top", 0), Rules(self._judged, Filters())
        with TableWriter(part, NEGATIVES.arrow) as writer:
            for found in choose(self._judged, [miner], window, rules, Tally()):
                writer.write(found.negatives.table(self._judged))
            writer.close()


def _share_new(pool: Ragged, before: Ragged, documents: int) -> float:
    """Share of the pairs (list number, value) of a pool that the one before did not have."""
    now, then = (
        np.repeat(np.arange(pairs.size), np.diff(pairs.offsets)) * documents + pairs.values for pairs in (pool, before)
    )
    return float(np.isin(now, then, invert=True).mean()) if len(now) else 0.0
