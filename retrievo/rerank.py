"""`retrievo rerank`: score the pairs of a run with a cross-encoder; the run that comes out also teaches.

Scores are made shard by shard beside the output, each a pure function of its pairs, the model and the token budget,
whichever process makes it. So a killed run goes on with the shards that are missing and ends in the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievo.data.options import (
    corpus_option,
    force_option,
    output_option,
    qrels_option,
    queries_option,
    threads_option,
)
from retrievo.data.run_files import check_run_suffix
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option, model_option, revision_option
from retrievo.support import console
from retrievo.support.options import Options, option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from retrievo.data.corpus import Corpus, Queries
    from retrievo.models.cross_encoder import CrossEncoder
    from retrievo.support.artifact import Input, Manifest, Output

PAIRS_PER_SHARD = 8_192  # a minute or so of a small model on 2 cores: what a killed run loses at most
ACTIVATIONS = {"none": "Identity", "sigmoid": "Sigmoid"}


@dataclass(frozen=True, kw_only=True)
class RerankConfig(Options):
    """Options of `retrievo rerank`."""

    run: Path = option("Run to rerank, or a table of negatives to score.")
    model: str = model_option(affects_output=False)
    revision: str | None = revision_option()
    corpus: Path = corpus_option()
    queries: Path = queries_option()
    qrels: Path | None = qrels_option(default=None)
    output: Path = output_option("Run file to make: .parquet, .trec, .txt or .run (TREC), .tsv (MS MARCO).")
    depth: int | None = option("Best documents of each query that are scored.", default=None, minimum=1)
    min_relevance: int = option("Lowest grade of --qrels that counts as relevant.", default=1, minimum=1)
    max_length: int | None = option(
        "Tokens of a query and a document together.", default=None, minimum=5, hidden_default="as the model"
    )
    activation: str | None = option(
        "What turns logits into scores.", default=None, choices=tuple(ACTIVATIONS), hidden_default="as the model"
    )
    dtype: str = dtype_option()
    chunk_tokens: int = chunk_tokens_option()
    device: str = device_option()
    threads: int | None = threads_option()
    force: bool = force_option()

    def check(self) -> None:
        check_run_suffix(self.output)


class Pairs(NamedTuple):
    """What is scored: rows of queries and of documents, [n] each."""

    query: np.ndarray
    document: np.ndarray


def rerank(config: RerankConfig) -> Manifest:
    """Scores every pair, or goes on where a killed run stopped, or finds all finished.

    With qrels, relevant documents that the run lacks are scored too: a teacher's run holds them.
    Raises: RetrievoError for a model or tables that can't be read, and pairs that they do not hold.
    """
    from retrievo.data.corpus import Corpus, Queries
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.learning.distributed import barrier, process_group
    from retrievo.models.devices import prepare_cpu, resolve_device

    prepare_cpu(config.threads)
    corpus, queries, run = Corpus(config.corpus), Queries(config.queries), Run.open(config.run)
    qrels = Qrels.read(config.qrels) if config.qrels else None
    inputs = {"run": run.input, "corpus": corpus.input, "queries": queries.input}
    inputs |= {"qrels": qrels.input} if qrels else {}
    with process_group(resolve_device(config.device)) as device:
        output, scores = _outputs(config, inputs, device)
        finished = output.already_finished()
        barrier()  # every process has looked before one begins
        if finished:
            return finished
        pairs = _pairs(config, run.table, qrels.table if qrels else None, corpus, queries)
        return _rerank(config, corpus, queries, pairs, output, scores, device)


def _outputs(config: RerankConfig, inputs: dict[str, Input], device: torch.device) -> tuple[Output, Output]:
    """The run, and the folder of scores beside it, which goes when the run is there."""
    from retrievo.models.precision import resolve_dtype
    from retrievo.models.source import model_record
    from retrievo.support.artifact import Output

    model_config, model_inputs = model_record(config.model, config.revision)
    dtype = str(resolve_dtype(config.dtype, device)).removeprefix("torch.")
    record, inputs = config.record() | model_config | {"computed_in": dtype}, model_inputs | inputs
    beside = config.output.with_name(config.output.name + ".scores")
    return (
        Output(config.output, "run", record, inputs, force=config.force, single_file=True),
        Output(beside, "pair-scores", record, inputs, force=config.force, in_place=True),
    )


def _pairs(config: RerankConfig, run: pa.Table, qrels: pa.Table | None, corpus: Corpus, queries: Queries) -> Pairs:
    """The pairs in the order of the query table; within a query as the run ranks them, then relevant ones it lacks."""
    import numpy as np
    import pyarrow.compute as pc

    from retrievo.data.ids import IdMap
    from retrievo.data.ordering import first_ranked

    known = IdMap(queries.table)
    query, document = known.rows(run["query_id"]), corpus.id_map.rows(run["doc_id"])
    _check_known(config, run, query, document)
    order = first_ranked(query, run["score"].to_numpy(), run["doc_id"], config.depth or len(query))
    query, document = query[order], document[order]
    if qrels is not None:
        relevant = qrels.filter(pc.greater_equal(qrels["relevance"], config.min_relevance))
        more = known.rows(relevant["query_id"]), corpus.id_map.rows(relevant["doc_id"])
        there = np.isin(more[0], query) & (more[1] >= 0)  # of the queries of the run
        query, document = np.concatenate([query, more[0][there]]), np.concatenate([document, more[1][there]])
    _, first = np.unique(np.stack([query, document]), axis=1, return_index=True)
    kept = np.sort(first)
    kept = kept[np.argsort(query[kept], kind="stable")]
    return Pairs(query[kept], document[kept])


def _check_known(config: RerankConfig, run: pa.Table, query: np.ndarray, document: np.ndarray) -> None:
    """Raises RetrievoError where a pair has no text."""
    import numpy as np

    from retrievo.support.errors import RetrievoError

    for rows, column, path, flag in (
        (query, "query_id", config.queries, "--queries"),
        (document, "doc_id", config.corpus, "--corpus"),
    ):
        if len(missing := np.flatnonzero(rows < 0)):
            found = f"{len(missing):,} of its rows have a {column} that {path} lacks ('{run[column][int(missing[0])]}')"
            raise RetrievoError(config.run, found, None, f"check {flag}")


def _rerank(
    config: RerankConfig,
    corpus: Corpus,
    queries: Queries,
    pairs: Pairs,
    output: Output,
    scores: Output,
    device: torch.device,
) -> Manifest:
    """Every process makes its share of the shards; the lead one joins them to a run."""
    from retrievo.learning.distributed import barrier, rank
    from retrievo.support.files import remove

    scored = scores.already_finished()
    barrier()
    if scored is None:
        with scores.build_together(lead=rank() == 0, barrier=barrier) as folder:
            _score_missing(config, corpus, queries, pairs, device, folder)
            barrier()
            if rank() == 0:
                scores.finish({"pairs": len(pairs.query)})
    if rank() != 0:
        return output.manifest({})
    with output.build() as folder:
        stats = _write_run(config, corpus, queries, pairs, scores.path, folder / config.output.name, output)
        manifest = output.finish(stats)
    remove(scores.path)
    _summary(config, manifest, output.elapsed)
    return manifest


def _shards(pairs: Pairs) -> list[tuple[str, slice]]:
    """The name and the pairs of each shard."""
    starts = range(0, len(pairs.query), PAIRS_PER_SHARD)
    return [(f"shard-{number:05}.npy", slice(start, start + PAIRS_PER_SHARD)) for number, start in enumerate(starts)]


def _score_missing(
    config: RerankConfig, corpus: Corpus, queries: Queries, pairs: Pairs, device: torch.device, folder: Path
) -> None:
    """Scores the shards of this process that are not there yet."""
    import numpy as np

    from retrievo.learning.distributed import rank, world_size
    from retrievo.models.cross_encoder import CrossEncoder
    from retrievo.models.precision import resolve_dtype
    from retrievo.support.files import atomic_path

    activation = ACTIVATIONS[config.activation] if config.activation else None
    model = CrossEncoder.load(config.model, config.revision, max_length=config.max_length, activation=activation)
    tokens = _PairTokens(model.to(device).eval(), corpus, queries)
    own = _shards(pairs)[rank() :: world_size()]
    with console.progress("reranking", sum(len(pairs.query[part]) for _, part in own), "pairs") as tick:
        for name, part in own:
            if (folder / name).exists():
                tick(len(pairs.query[part]))
                continue
            rows = tokens.rows(pairs.query[part], pairs.document[part])
            dtype = resolve_dtype(config.dtype, device)
            scores = model.scores(*rows, chunk_tokens=config.chunk_tokens, dtype=dtype, tick=tick)
            with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
                np.save(file, scores, allow_pickle=False)


class _PairTokens:
    """Tokens of pairs out of two token caches."""

    def __init__(self, model: CrossEncoder, corpus: Corpus, queries: Queries):
        from retrievo.data.token_cache import TokenCache

        self.tokenization = model.tokenization
        self.queries = TokenCache(queries.table, self.tokenization.query)
        self.documents = TokenCache(corpus.table, self.tokenization.document)

    def rows(self, query: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat tokens and offsets."""
        return self.tokenization.rows(
            [(self.queries.row(q), self.documents.row(d)) for q, d in zip(query, document, strict=True)]
        )


def _write_run(
    config: RerankConfig, corpus: Corpus, queries: Queries, pairs: Pairs, scores: Path, path: Path, output: Output
) -> dict[str, int]:
    import numpy as np
    import pyarrow as pa

    from retrievo.data.ordering import ranked, ranks
    from retrievo.data.run import RunWriter

    values = np.concatenate([np.zeros(0, np.float32), *(np.load(scores / name) for name, _ in _shards(pairs))])
    doc_ids = corpus.id_map.ids.column().take(pa.array(pairs.document)).combine_chunks()
    order = ranked(pairs.query, values, doc_ids)
    query = pairs.query[order]
    writer = RunWriter(path, format_of=config.output)
    query_ids = queries.ids.take(pa.array(query)).combine_chunks()
    writer.write(query_ids, doc_ids.take(pa.array(order)), values[order], ranks(query))
    answered = len(np.unique(query))
    stats = {"queries": len(queries), "without_results": len(queries) - answered, "rows": len(query)}
    writer.close(output.manifest(stats))
    return stats


def _summary(config: RerankConfig, manifest: Manifest, seconds: float) -> None:
    rows = manifest.stats["rows"]
    facts = {
        "made": f"{config.output} ({rows:,} pairs)",
        "took": f"{console.seconds(seconds)} ({rows / max(seconds, 1e-9):,.0f} pairs/s)",
    }
    console.summary("reranked", facts, f"retrievo evaluate --run {config.output} --qrels QRELS")
