"""The data of fine-tuning: judged queries with their relevant documents and negatives, by row number, and feeds.

A feed gives the batch of a step, as a pure function of the step's number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrievo.data.corpus import Corpus, Queries
from retrievo.data.finding import training_split
from retrievo.data.ids import IdMap
from retrievo.data.negatives import Negatives
from retrievo.data.ordering import first_of_pairs
from retrievo.data.origin import read_now, warn_of_other_judgments, warn_of_others
from retrievo.data.pair_scores import PairScores
from retrievo.data.qrels import Qrels
from retrievo.data.run import Run
from retrievo.data.sampling import random_keys
from retrievo.data.text_identity import EMPTY, self_retrieval
from retrievo.data.token_cache import TokenCache
from retrievo.distributed.collectives import rank, world_size
from retrievo.models.encoder import Encoder
from retrievo.models.tokens import Tokenization
from retrievo.support import console
from retrievo.support.artifact import Input
from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Batch
from retrievo.training.feeds.dataset_config import DataSetConfig
from retrievo.training.feeds.dense_teacher import BatchTeacher
from retrievo.training.feeds.pools import mapped_pools
from retrievo.training.feeds.query_clusters import cluster_queries
from retrievo.training.feeds.row_vectors import RowVectors
from retrievo.training.feeds.samplers import Draw, Drawing, GroupSampler, Ragged
from retrievo.training.losses.losses import GROUPED
from retrievo.training.objectives.finetune import Example, FinetuneCollator
from retrievo.training.objectives.table import QUERIES_PER_TOPIC

_BLOCK = 1 << 20  # pairs in memory at a time


class TrainingData:
    """The tables of a training run, with ids replaced by row numbers.

    Judgments and negatives of unknown queries or documents are counted and left out. Documents without title and text
    are never used in training.

    titles: whether the model reads titles.
    Raises: RetrievoError for tables that can't be read, and where no relevant pair is left.
    """

    def __init__(self, config: DataSetConfig, min_relevance: int, *, titles: bool = True):
        self.prefixes = {"query": config.query_prefix, "document": config.document_prefix}
        self.corpus, self.queries = Corpus(config.corpus, titles=titles), Queries(config.queries)
        judged, pools = Qrels.read(training_split(config.qrels)), [Negatives(path) for path in config.negatives]
        self.inputs: dict[str, Input] = {
            "corpus": self.corpus.input,
            "queries": self.queries.input,
            "qrels": judged.input,
            **{f"negatives-{number}": pool.input for number, pool in enumerate(pools, start=1)},
        }
        warn_of_other_judgments(judged.input, config.queries, read_now("queries", self.queries.input))
        for path in config.negatives:
            self._warn_of_others(path)
        relevant = judged.relevant(min_relevance)
        self.positives, self.lost_judgments = self.by_query(relevant)
        tables = (self.queries.table, self._query_ids), (self.corpus.table, self.corpus.id_map)
        self.negatives, self.lost_negatives = mapped_pools([pool.source for pool in pools], *tables, self.empty)
        self.pairs = len(self.positives.values)
        self.judged = len(self._judged)
        if not self.pairs:
            found = f"none of its {relevant.num_rows:,} relevant pairs has its query and its document"
            raise RetrievoError(config.qrels, found, None, "check --queries, --corpus and --min-relevance")
        self._qrels = config.qrels
        self.teacher = None if config.teacher is None else self._teacher_scores(Run.open(config.teacher))
        self.query_vectors = (
            None if config.query_clusters is None else self._vectors("query-clusters", config.query_clusters, "query")
        )
        self.batch_teacher = BatchTeacher(config.batch_teacher, self._vectors) if config.batch_teacher else None

    def _warn_of_others(self, path: Path) -> None:
        """Warns where a table of pairs was made from another corpus or other queries than these."""
        warn_of_others(path, corpus=self.corpus.input, queries=self.queries.input)

    def _teacher_scores(self, run: Run) -> PairScores:
        """The scores of a run, by row of the query and of the document.

        Raises: RetrievoError where the run scores none of the relevant documents.
        """
        self.inputs["teacher"] = run.input
        self._warn_of_others(run.path)
        query, document = self._query_ids.rows(run.table["query_id"]), self.corpus.id_map.rows(run.table["doc_id"])
        teacher = PairScores(query, document, run.table["score"].to_numpy(), len(self.corpus))
        if not _share_known(teacher, self.positives):
            found = "it has a score for none of the relevant documents"
            raise RetrievoError(run.path, found, None, "score the positives too, as well as the negatives")
        return teacher

    def _vectors(self, name: str, path: Path, role: str) -> RowVectors:
        """Opens the vectors of all documents, or of the judged queries, and records them as the input `name`."""
        ids, needed = (self._query_ids, self._judged) if role == "query" else (self.corpus.id_map, None)
        tables = {"queries": self.queries.input} if role == "query" else {"corpus": self.corpus.input}
        warn_of_others(path, **tables)
        vectors = RowVectors(path, role, ids, needed)
        self.inputs[name] = vectors.input
        return vectors

    @cached_property
    def _judged(self) -> np.ndarray:
        """The rows of the queries that have a relevant document."""
        return np.flatnonzero(np.diff(self.positives.offsets))

    def clusters_of_queries(self, count: int | None, seed: int) -> np.ndarray | None:
        """The cluster of each query's vector [n], -1 for queries without judgments; None without vectors of queries.

        count: the number of clusters; by default one for every 200 judged queries, at least 2.
        Raises: RetrievoError where there are fewer judged queries than clusters.
        """
        if self.query_vectors is None:
            return None
        judged = self._judged
        count = count or min(len(judged), max(2, len(judged) // QUERIES_PER_TOPIC))
        if count > len(judged):
            asked = f"found {count:,} for {self.queries.path}"
            raise RetrievoError("--query-cluster-count", asked, f"at most {len(judged):,}, its judged queries")
        found = np.full(len(self.queries), -1)
        found[judged] = cluster_queries(self.query_vectors, judged, count, seed)
        sizes = np.bincount(found[judged], minlength=count)
        console.note(
            f"{count:,} query clusters of {sizes.min():,} to {sizes.max():,} queries, median {np.median(sizes):g}"
        )
        return found

    def by_query(self, pairs: pa.Table) -> tuple[Ragged, int]:
        """The document rows of each query row, in the order of the table, and the number of pairs left out."""
        query, document = self._query_ids.rows(pairs["query_id"]), self.corpus.id_map.rows(pairs["doc_id"])
        known = (query >= 0) & (document >= 0)
        known[known] = ~self.empty[document[known]]
        query, document = query[known], document[known]
        order = np.argsort(query, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(query, minlength=len(self.queries)))])
        return Ragged(document[order], offsets.astype(np.int64)), int((~known).sum())

    @cached_property
    def _query_ids(self) -> IdMap:
        return IdMap(self.queries.table)

    @cached_property
    def empty(self) -> np.ndarray:
        """Whether each document is empty for the model [N]."""
        empty: np.ndarray = self.corpus.identities.whole == EMPTY
        return empty

    @cached_property
    def themselves(self) -> Ragged:
        """Documents that are a judged query itself, by query row, unless they have the text of a relevant one."""
        ids = self.queries.ids.take(pa.array(self._judged))
        asked, row = self.corpus.that_are_queries(ids, [self.queries.texts[query] for query in self._judged])
        query, hashes = self._judged[asked], self.corpus.identities.whole
        relevant = [hashes[self.positives.list(at)] for at in query]
        kept = np.array([hashes[own] not in known for own, known in zip(row, relevant, strict=True)], bool)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(query[kept], minlength=len(self.queries)))])
        return Ragged(row[kept], offsets.astype(np.int64))

    def check_contrast(self, losses: Sequence[str]) -> None:
        """Raises RetrievoError where no query can have a negative in any batch.

        It assumes that groups are drawn from pools alone. Losses of `GROUPED` use a query's own pool only; the other
        losses use all documents of a batch.
        """
        hashes, pool = self.corpus.identities.whole, self.negatives
        if set(losses) == {"margin-mse"} and self.teacher and not _share_known(self.teacher, pool):
            found = "the teacher has a score for none of the negatives, which margin-mse learns from"
            raise RetrievoError(self.queries.path, found, None, "score the negatives too (retrievo rerank)")
        query = np.repeat(np.arange(self.positives.size), np.diff(self.positives.offsets))
        document = hashes[self.positives.values]
        once = first_of_pairs(query, document)
        relevant = query[once], document[once]
        fewest = np.bincount(relevant[0])[self._judged].min()
        if not set(losses) <= set(GROUPED) and fewest < len(np.unique(relevant[1])):
            return
        asked = np.repeat(np.arange(pool.size), np.diff(pool.offsets))
        known = np.sort(random_keys(0, *relevant))
        for start in range(0, len(asked), _BLOCK):
            part = slice(start, start + _BLOCK)
            keys = random_keys(0, asked[part], hashes[pool.values[part]])
            if (np.isin(asked[part], self._judged) & ~np.isin(keys, known)).any():
                return
        found = f"leaves none of its {self.judged:,} judged queries a negative: all that they meet is relevant to them"
        raise RetrievoError(self._qrels, found, None, "pass --negatives POOL, or judge more queries")

    def say_counts(self) -> None:
        """Prints how much data training uses, and warns of what was left out."""
        pool = np.diff(self.negatives.offsets)[np.diff(self.positives.offsets) > 0]
        with_pool = int(np.count_nonzero(pool))
        console.note(
            f"{self.judged:,} judged queries with {self.pairs:,} relevant documents; {with_pool:,} of them have "
            f"hard negatives ({pool.sum() / max(1, with_pool):.0f} on average)"
        )
        found = int(np.count_nonzero(np.diff(self.themselves.offsets)))
        for line in self_retrieval(found, self.judged).values():
            console.note(line)
        if self.teacher is not None:
            positives, negatives = (_share_known(self.teacher, pairs) for pairs in (self.positives, self.negatives))
            console.note(
                f"the teacher scored {positives:.1%} of the relevant documents and {negatives:.1%} of the negatives"
            )
        for what, lost in (("judgments", self.lost_judgments), ("negatives", self.lost_negatives)):
            if lost:
                console.warn(f"{what} left out, of unknown queries or documents or of empty ones: {lost:,}")


def _share_known(teacher: PairScores, pairs: Ragged) -> float:
    """The share of the pairs (list number, value) that have a score; 0 where there are no pairs."""
    queries = np.repeat(np.arange(pairs.size), np.diff(pairs.offsets))
    return float(np.isfinite(teacher.of(queries, pairs.values)).mean()) if len(queries) else 0.0


class GroupFeed:
    """Batches of tokenized groups; each batch is a pure function of (seed, step) and of this process's rank.

    tokenizations: those of queries and of documents. Subclasses define what the collator gets of a group (`example`).
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizations: tuple[Tokenization, Tokenization],
        collator: Callable[[Sequence[Any]], Batch],
        drawing: Drawing,
        query_clusters: np.ndarray | None = None,
    ):
        self.data, self.collator = data, collator
        self.query_tokens = TokenCache(data.queries.table, tokenizations[0])
        self.document_tokens = TokenCache(data.corpus.table, tokenizations[1])
        self.hashes = data.corpus.identities.whole
        no_query, no_document = (np.diff(cache.offsets) == 0 for cache in (self.query_tokens, self.document_tokens))
        positives, negatives = data.positives, data.negatives
        if no_query.any() or no_document.any():
            positives, negatives = (_with_tokens(pairs, no_query, no_document) for pairs in (positives, negatives))
            counts = f"{int(no_query.sum()):,} queries and {int(no_document.sum()):,} documents"
            console.warn(f"left out, because this model's tokenizer makes no token of their texts: {counts}")
        self.sampler = GroupSampler(
            positives,
            negatives,
            **dataclasses.asdict(drawing),
            documents=len(data.corpus),
            empty=np.flatnonzero(data.empty | no_document),
            query_clusters=query_clusters,
            teacher=data.teacher,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Number of steps of one pass over the judged queries."""
        return self.sampler.batches_per_epoch

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        return self.collated(self.sampler.batch(step, rank(), world_size()))

    def collated(self, draws: Sequence[Draw]) -> Batch:
        """Makes the batch of these groups."""
        return self.collator([self.example(draw) for draw in draws])

    def position(self, step: int) -> dict[str, int]:
        """The position of a step in the data."""
        return self.sampler.position(step)

    def example(self, draw: Draw) -> Any:
        """Makes the collator's input from one group."""
        raise NotImplementedError


def _with_tokens(pairs: Ragged, no_query: np.ndarray, no_document: np.ndarray) -> Ragged:
    """The pairs whose query and document both have tokens."""
    query = np.repeat(np.arange(pairs.size), np.diff(pairs.offsets))
    kept = ~no_query[query] & ~no_document[pairs.values]
    counts = np.bincount(query[kept], minlength=pairs.size)
    return Ragged(pairs.values[kept], np.cumsum([0, *counts], dtype=np.int64))


def _of(data: TrainingData, encoder: Encoder, role: str) -> Tokenization:
    """The tokenization of a role, with the data set's prefix where it states one."""
    prefix, usual = data.prefixes[role], encoder.tokenization(role)
    return usual if prefix is None else dataclasses.replace(usual, prefix=prefix)


class TrainingFeed(GroupFeed):
    """Groups for an encoder, with the identities from which false negatives are found."""

    def __init__(
        self,
        data: TrainingData,
        encoder: Encoder,
        collator: FinetuneCollator,
        drawing: Drawing,
        query_clusters: np.ndarray | None = None,
    ):
        tokenizations = _of(data, encoder, "query"), _of(data, encoder, "document")
        super().__init__(data, tokenizations, collator, drawing, query_clusters)

    def collated(self, draws: Sequence[Draw]) -> Batch:
        batch, teacher = super().collated(draws), self.data.batch_teacher
        return batch if teacher is None else dataclasses.replace(batch, teacher_vectors=teacher.vectors(draws))

    def example(self, draw: Draw) -> Example:
        themselves = self.data.themselves.list(draw.query)
        relevant = np.concatenate([self.data.positives.list(draw.query), themselves])
        return Example(
            query=self.query_tokens.row(draw.query),
            documents=[self.document_tokens.row(document) for document in draw.documents],
            document_ids=draw.documents,
            document_hashes=self.hashes[draw.documents],
            relevant_ids=relevant,
            relevant_hashes=self.hashes[relevant],
            teacher=None if self.data.teacher is None else self.data.teacher.of(draw.query, draw.documents),
            themselves=len(themselves),
        )
