"""Validation: the current model ranks a fixed pool of candidates during training, and a metric scores the ranking."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from retrievo.data.columns import rows_of, taken
from retrievo.data.corpus import Corpus, Queries
from retrievo.data.ordering import exact_similarities, first_ranked, flat_strings
from retrievo.data.origin import read_now, warn_of_other_judgments, warn_of_others
from retrievo.data.qrels import Qrels
from retrievo.data.run import Run
from retrievo.data.token_cache import TokenCache
from retrievo.distributed.collectives import as_rank_0_says, barrier, rank
from retrievo.distributed.fsdp import is_sharded
from retrievo.evaluation.names import Metric
from retrievo.evaluation.scoring import evaluate
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_tokens
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values
from retrievo.training.engine.checkpoints import latest_step, load_weights, save_weights
from retrievo.training.engine.config import CHECKPOINTS, DEVELOPMENT, METRICS, ValidationConfig


class Pool:
    """The candidates of each judged query: its relevant documents and the first documents of a run.

    qrels: judgments of these queries. query_ids, texts: ids and texts of the queries [Q].
    documents: rows of the corpus [P], ascending. doc_ids: ids of these documents [P].
    query, document: the pairs, as positions in query_ids and in documents [n], by query.
    """

    def __init__(self, config: ValidationConfig, corpus: Corpus, queries: Path, min_relevance: int):
        assert config.dev_qrels is not None
        assert config.dev_run is not None
        self._qrels = config.dev_qrels
        table, judged, run = Queries(queries), Qrels.read(config.dev_qrels), Run.open(config.dev_run)
        self.inputs = {"dev-qrels": judged.input, "dev-run": run.input}
        self.inputs |= {"dev-queries": table.input} if config.dev_queries else {}
        warn_of_others(config.dev_run, corpus=corpus.input, queries=table.input)
        warn_of_other_judgments(judged.input, queries, read_now("queries", table.input))
        relevant = judged.relevant(min_relevance)
        self.query_ids = pc.unique(flat_strings(relevant["query_id"]))
        rows = pc.index_in(self.query_ids, value_set=flat_strings(table.ids))
        if rows.null_count:
            missing = self.query_ids.filter(rows.is_null())[0]
            fix = "pass --dev-queries"
            raise RetrievoError(queries, f"lacks query '{missing}', which {config.dev_qrels} judges", None, fix)
        self.min_relevance = min_relevance
        self.texts = [table.texts[row] for row in rows.to_pylist()]
        self.qrels = judged.table.filter(pc.is_in(flat_strings(judged.table["query_id"]), value_set=self.query_ids))
        self._pair(corpus, _first(run.table, self.query_ids, config.dev_depth), relevant)

    def _pair(self, corpus: Corpus, found: pa.Table, relevant: pa.Table) -> None:
        """Collects the distinct pairs whose document is in the corpus."""
        query_id, doc_id = (
            pa.concat_arrays([flat_strings(found[name]), flat_strings(relevant[name])])
            for name in ("query_id", "doc_id")
        )
        query = pc.index_in(query_id, value_set=self.query_ids).to_numpy().astype(np.int64)
        row = corpus.id_map.rows(doc_id)
        self._check_relevant(corpus.path, relevant, row[found.num_rows :] >= 0)
        pairs = np.unique(np.stack([query, row], axis=1)[row >= 0], axis=0)
        self.documents, self.document = np.unique(pairs[:, 1], return_inverse=True)
        self.query = pairs[:, 0]
        self.doc_ids = taken(corpus.id_map.ids.column(), self.documents)

    def _check_relevant(self, corpus: Path, relevant: pa.Table, there: np.ndarray) -> None:
        """Warns of queries whose relevant documents are not in the corpus, since their metric is 0 whatever the model.

        there: whether the document of each relevant pair is in the corpus [r].
        Raises: RetrievoError where the corpus has no relevant document at all.
        """
        if not there.any():
            found = f"judges {len(there):,} documents relevant, and {corpus} has none of them"
            raise RetrievoError(self._qrels, found, "judgments of this corpus", "check --dev-qrels and --corpus")
        answered = pc.count_distinct(flat_strings(relevant["query_id"]).filter(pa.array(there))).as_py()
        if lost := len(self.query_ids) - answered:
            console.warn(
                f"{self._qrels}: {lost:,} of {len(self.query_ids):,} queries have no relevant document in {corpus}"
            )

    def __len__(self) -> int:
        return len(self.query)


def _first(run: pa.Table, query_ids: pa.Array, depth: int) -> pa.Table:
    """The first rows of these queries under the ordering rule."""
    run = run.filter(pc.is_in(flat_strings(run["query_id"]), value_set=query_ids))
    query = pc.index_in(flat_strings(run["query_id"]), value_set=query_ids).to_numpy()
    return rows_of(run, first_ranked(query, run["score"].to_numpy(), run["doc_id"], depth))


class Validation:
    """A callback of the training loop that measures the model, keeps the best weights, and decides on early stopping.

    It reads earlier values from `metrics.jsonl`, so that a resumed run continues as if it had not stopped. Rank 0
    measures while the others wait; with sharded weights all ranks encode.
    """

    def __init__(
        self,
        config: ValidationConfig,
        pool: Pool,
        encoder: Encoder,
        module: torch.nn.Module,
        document_tokens: TokenCache,
        *,
        folder: Path,
        dtype: str,
    ):
        self.metric, self.patience = config.dev_metric, config.patience
        self.pool, self.encoder, self.module, self.folder, self.dtype = pool, encoder, module, folder, dtype
        self._queries = encoder.tokenization("query").tokenize(pool.texts)
        self._documents = document_tokens.rows(pool.documents)

    @property
    def key(self) -> str:
        """The name of the value in the log."""
        return DEVELOPMENT + self.metric

    def __call__(self, step: int) -> Values:
        """The value of the metric after `step` steps."""
        lead, device = rank() == 0, next(self.module.parameters()).device
        value = self.measure() if lead or is_sharded(self.module) else -math.inf
        better = lead and value > max([earlier for _, earlier in self.history()], default=-math.inf)
        if as_rank_0_says(better, device):
            save_weights(self._weights(step), self.module)
            if lead:
                self._drop_all_but(step)
        barrier()
        return {self.key: value} if lead else {}

    def _weights(self, step: int) -> Path:
        """The file of the weights of a step, written if the step is the best so far."""
        return self.folder / CHECKPOINTS / f"best-{step:06d}.safetensors"

    def _drop_all_but(self, step: int) -> None:
        """Removes all weights except those of `step` and of the best step at the latest checkpoint."""
        saved = latest_step(self.folder / CHECKPOINTS)
        until_then, _ = _best([measure for measure in self.history() if measure[0] <= saved])
        kept = {self._weights(step), self._weights(until_then)}
        for path in (self.folder / CHECKPOINTS).glob("best-*.safetensors"):
            if path not in kept:
                path.unlink()

    def measure(self) -> float:
        """The mean of the metric over the queries of the pool."""
        pool, metric = self.pool, Metric.parse(self.metric)
        sides = (("query", self._queries.tokens, self._queries.offsets), ("document", *self._documents))
        queries, documents = (encode_tokens(self.encoder, *side, ComputeOptions(self.dtype)) for side in sides)
        bounds = np.searchsorted(pool.query, np.arange(len(queries) + 1))
        scores = [
            exact_similarities(self.encoder.spec.similarity, query, documents[pool.document[low:high]])
            for query, (low, high) in zip(queries, pairwise(bounds), strict=True)
        ]
        ids = [pool.query_ids.take(pa.array(pool.query)), pool.doc_ids.take(pa.array(pool.document))]
        run = pa.table([*ids, pa.array(np.concatenate(scores), pa.float32())], ["query_id", "doc_id", "score"])
        found = evaluate(run, pool.qrels, [metric], run_name="validation", min_relevance=pool.min_relevance)
        return found.means()[metric]

    def history(self) -> list[tuple[int, float]]:
        """The (step, value) pairs of all validations so far."""
        path = self.folder / METRICS
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        return [(line["step"], line[self.key]) for line in lines if self.key in line]

    def best(self) -> tuple[int, float]:
        """The step and value of the best validation, the first one in case of a tie; step 0 where there is none."""
        return _best(self.history())

    def says_nothing(self) -> bool:
        """Whether there are several validations and all have the same value."""
        values = [value for _, value in self.history()]
        return len(values) > 1 and len(set(values)) == 1

    def is_enough(self) -> bool:
        """Whether the last `patience` validations were no better than the best before them; the same on all ranks."""
        if self.patience is None:
            return False
        measures = self.history() if rank() == 0 else []
        best, _ = _best(measures)
        later = len([step for step, _ in measures if step > best])
        return as_rank_0_says(later >= self.patience, next(self.module.parameters()).device)

    def restore_best(self, module: torch.nn.Module) -> None:
        """Loads the best weights into a module like the trained one; called after training, on rank 0."""
        step, _ = self.best()
        if step:
            load_weights(self._weights(step), module)


def _best(measures: Sequence[tuple[int, float]]) -> tuple[int, float]:
    return max(measures, key=lambda measure: measure[1], default=(0, -math.inf))
