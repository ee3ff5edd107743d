"""`retrievo rerank`: score the pairs of a run with a cross-encoder or an encoder; the run that comes out also teaches.

Scores are computed shard by shard beside the output. A shard is a pure function of its pairs, the model and the token
budget, in whichever process, so a killed run resumes with the missing shards and ends in the same bytes.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from retrievo.data.options import (
    OF_DATA,
    check_tables,
    corpus_option,
    data_option,
    force_option,
    min_relevance_option,
    of_data,
    output_option,
    qrels_option,
    queries_option,
    restart_option,
    threads_option,
)
from retrievo.data.run_files import check_run_suffix
from retrievo.data.shards import PAIRS_PER_SHARD
from retrievo.models.compute import Computes
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option, model_option, revision_option
from retrievo.models.splits import Splits, noted_splits
from retrievo.support import console
from retrievo.support.conditions import flag_of
from retrievo.support.options import Options, option
from retrievo.support.values import Values
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pyarrow as pa
    import torch

    from retrievo.data.corpus import Corpus, Queries
    from retrievo.data.run import Run
    from retrievo.data.token_cache import TokenCache
    from retrievo.support.artifact import Input, Manifest, Output

ACTIVATIONS = {"none": "Identity", "sigmoid": "Sigmoid"}
UNITS = {"Identity": "logits", "Sigmoid": "probabilities"}  # what a cross-encoder's scores are, by its activation


class ScorerKind(NamedTuple):
    """A kind of model that scores pairs.

    target:     "module:class" of its `Scorer`.
    recognizes: whether a model folder is of this kind.
    options:    the options of `RerankConfig` that only models of this kind have.
    """

    target: str
    recognizes: Callable[[Path], bool]
    options: tuple[str, ...] = ()


def _says_encoder(folder: Path) -> bool:
    from retrievo.models.loading import says_encoder

    return says_encoder(folder)


def _is_any_model(folder: Path) -> bool:
    return True


# by kind, of which the first that recognizes the folder counts
SCORERS = {
    "encoder": ScorerKind("retrievo.commands.rerank:EncoderScorer", _says_encoder),
    "cross-encoder": ScorerKind(
        "retrievo.commands.rerank:CrossEncoderScorer", _is_any_model, ("max_length", "activation")
    ),
}


@dataclass(frozen=True, kw_only=True)
class RerankConfig(Computes, Options):
    """Options of `retrievo rerank`."""

    run: Path = option("Run to rerank, or a table of negatives to score.", group="Data")
    model: str = model_option(
        more=f"The kinds of models that score pairs are {', '.join(SCORERS)}.", affects_output=False
    )
    revision: str | None = revision_option()
    data: Path | None = data_option("corpus", "queries")
    corpus: Path = corpus_option(default=None, hidden_default=OF_DATA)
    queries: Path = queries_option(default=None, hidden_default=OF_DATA)
    qrels: Path | None = qrels_option(
        default=None, help="Relevance judgments; relevant documents that the run lacks are scored too.", shown=True
    )
    output: Path = output_option(
        "Run file to write. The suffix sets the format: .parquet, .trec, .txt or .run (TREC), .tsv (MS MARCO)."
    )
    depth: int | None = option(
        "Number of documents per query to rerank.",
        default=None,
        minimum=1,
        shown=True,
        hidden_default="all documents of the run",
        group="Reranking",
    )
    min_relevance: int = min_relevance_option("Lowest grade of --qrels that counts as relevant.")
    max_length: int | None = option(
        "Maximum number of tokens of a query and a document together, for cross-encoders.",
        default=None,
        minimum=5,
        hidden_default="the model's own",
        group="Reranking",
    )
    activation: str | None = option(
        "Function that turns a cross-encoder's logits into scores.",
        default=None,
        choices=tuple(ACTIVATIONS),
        hidden_default="the model's own",
        group="Reranking",
    )
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option()
    device: str = device_option(shown=True)
    threads: int | None = threads_option()
    force: bool = force_option()
    restart: bool = restart_option()

    def recipe(self) -> Mapping[str, Any]:
        return of_data(self.data, "corpus", "queries")

    def check(self) -> None:
        check_tables(corpus=self.corpus, queries=self.queries)
        check_run_suffix(self.output)


class Pairs(NamedTuple):
    """The pairs to score, as row numbers of queries and of documents, [n] each."""

    query: np.ndarray
    document: np.ndarray

    def at(self, places: np.ndarray) -> Pairs:
        """The pairs at these positions."""
        return Pairs(self.query[places], self.document[places])


class Shard(NamedTuple):
    """Pairs that are scored together."""

    name: str
    places: np.ndarray  # positions among the pairs


class Scorer(Protocol):
    """What scores pairs; it is made once in each process.

    unit:   what the scores are, as in `logits`, for the manifest of the run.
    splits: chunks of queries that were halved for want of memory while it was made.
    """

    unit: str
    splits: Splits

    def __init__(self, config: RerankConfig, corpus: Corpus, queries: Queries, pairs: Pairs, device: torch.device): ...

    @staticmethod
    def shards(pairs: Pairs) -> list[Shard]:
        """The parts in which all pairs are scored, the same in every process."""

    def scores(self, pairs: Pairs, tick: console.Tick) -> np.ndarray:
        """Float32 scores, [n]: a function of these pairs alone, so that a killed run ends in the same bytes."""


@verb(RerankConfig)
def rerank(config: RerankConfig) -> Manifest:
    """Scores every pair, resumes a killed run, or finds the output finished.

    With qrels, relevant documents that the run lacks are scored too, since a teacher's run needs them.
    Raises: RetrievoError for a model or tables that can't be read, and for pairs whose texts the tables lack.
    """
    from retrievo.data.corpus import Corpus, Queries
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.distributed.collectives import barrier, process_group, rank
    from retrievo.models.devices import prepare_cpu, resolve_device
    from retrievo.support.publishing import discard

    prepare_cpu(config.threads)
    corpus, queries, run = Corpus(config.corpus), Queries(config.queries), Run.open(config.run)
    qrels = Qrels.read(config.qrels) if config.qrels else None
    _check_made_from(config.run, corpus, queries)
    inputs = {"run": run.input, "corpus": corpus.input, "queries": queries.input}
    inputs |= {"qrels": qrels.input} if qrels else {}
    with process_group(resolve_device(config.device)) as device:
        output, scores = _outputs(config, inputs, device)
        finished = output.already_finished(lead=rank() == 0, barrier=barrier)
        if finished:
            if rank() == 0 and scores.holds_same_work():  # a run that was killed when it had published its output
                discard(scores.path)
            return finished
        relevant = qrels.relevant(config.min_relevance) if qrels else None
        pairs = _pairs(run, config.depth, relevant, corpus, queries)
        return _rerank(config, corpus, queries, pairs, _scorer_of(config), output, scores, device)


def _check_made_from(run: Path, corpus: Corpus, queries: Queries) -> None:
    """Raises RetrievoError where the run ranks documents of another corpus, whose ids may mean other texts."""
    from retrievo.data.origin import CORPUS, Origin, mixes_corpora, named, origins, part_of, warn_of_others
    from retrievo.support.errors import RetrievoError

    ranked = origins(run, CORPUS)
    if mixes_corpora(run):
        found, fix = f"ranks documents of several corpora ({named(ranked)})", "search with --rerank --across-corpora"
        raise RetrievoError(run, found, "one corpus", fix)
    if ranked and not part_of(ranked, [Origin.of(CORPUS, corpus.input)]):
        found = f"was made from another corpus ({named(ranked)}) than {corpus.path}"
        raise RetrievoError(run, found, None, f"pass --corpus {ranked[0]}")
    warn_of_others(run, queries=queries.input)


def _scorer_of(config: RerankConfig) -> type[Scorer]:
    """What scores pairs with the model of this folder.

    Raises: UsageError for options that another kind of model has.
    """
    from retrievo.models.checkpoints import locate
    from retrievo.support.errors import UsageError

    folder = locate(config.model, config.revision)
    kind, row = next((kind, row) for kind, row in SCORERS.items() if row.recognizes(folder))
    for name in [name for other in SCORERS.values() for name in other.options if name not in row.options]:
        if getattr(config, name) is not None:
            flag, found = flag_of(name), f"does not apply to {config.model}, which is of kind '{kind}'"
            raise UsageError(flag, found, None, f"leave {flag} out")
    module, name = row.target.split(":")
    scorer: type[Scorer] = getattr(importlib.import_module(module), name)
    return scorer


def _outputs(config: RerankConfig, inputs: dict[str, Input], device: torch.device) -> tuple[Output, Output]:
    """The outputs: the run, and a folder of scores beside it, which is removed once the run is finished."""
    from retrievo.models.inference import compute_record
    from retrievo.models.model_reference import model_record
    from retrievo.support.artifact import Output

    model_config, model_inputs = model_record(config.model, config.revision)
    record = config.record() | model_config | compute_record(config.compute, device)
    inputs = model_inputs | inputs
    beside = config.output.with_name(config.output.name + ".scores")
    output = Output(config.output, "run", record, inputs, force=config.force, restart=config.restart, single_file=True)
    scores = Output(
        beside, "pair-scores", record, inputs, restart=config.restart, in_place=True, unfinished=("shard-*",)
    )
    scores.force = config.restart or (config.force and not scores.holds_same_work())
    return output, scores


def _pairs(run: Run, depth: int | None, relevant: pa.Table | None, corpus: Corpus, queries: Queries) -> Pairs:
    """The pairs in the order of the query table; within a query in the order of the run, then missing relevant ones."""
    import numpy as np

    from retrievo.data.ids import IdMap
    from retrievo.data.ordering import first_of_pairs, first_ranked

    known, table = IdMap(queries.table), run.table
    query, document = known.rows(table["query_id"]), corpus.id_map.rows(table["doc_id"])
    _check_known(run, "query_id", query, queries.path, "--queries")
    _check_known(run, "doc_id", document, corpus.path, "--corpus")
    order = first_ranked(query, table["score"].to_numpy(), table["doc_id"], depth or len(query))
    query, document = query[order], document[order]
    if relevant is not None:
        more = known.rows(relevant["query_id"]), corpus.id_map.rows(relevant["doc_id"])
        there = np.isin(more[0], query) & (more[1] >= 0)  # of the queries of the run
        query, document = np.concatenate([query, more[0][there]]), np.concatenate([document, more[1][there]])
    kept = np.sort(first_of_pairs(query, document))
    kept = kept[np.argsort(query[kept], kind="stable")]
    return Pairs(query[kept], document[kept])


def _check_known(run: Run, column: str, rows: np.ndarray, texts: Path, flag: str) -> None:
    """Raises RetrievoError where the table of texts lacks an id of a run; rows: those of the ids, -1 where it does."""
    import numpy as np

    from retrievo.support.errors import RetrievoError

    if len(missing := np.flatnonzero(rows < 0)):
        stranger = run.table[column][int(missing[0])]
        found = f"{len(missing):,} of its rows have a {column} that {texts} lacks ('{stranger}')"
        raise RetrievoError(run.path, found, None, f"check {flag}")


def _rerank(
    config: RerankConfig,
    corpus: Corpus,
    queries: Queries,
    pairs: Pairs,
    scorer: type[Scorer],
    output: Output,
    scores: Output,
    device: torch.device,
) -> Manifest:
    """Scores this process's share of the shards; the lead process joins all shards into a run."""
    import numpy as np

    from retrievo.distributed.collectives import barrier, rank, world_size
    from retrievo.support.publishing import discard

    scored, shards = scores.already_finished(lead=rank() == 0, barrier=barrier), scorer.shards(pairs)
    unit = scored.stats.get("scores") if scored else None
    if scored is None:
        with scores.build_together(lead=rank() == 0, barrier=barrier) as folder:
            own = shards[rank() :: world_size()]
            ready = scorer(config, corpus, queries, pairs, device)
            unit = ready.unit
            _score_missing(own, pairs, ready, folder)
            barrier()
            if rank() == 0:
                scores.finish({"pairs": len(pairs.query), "scores": unit})
    if rank() != 0:
        return output.manifest({})
    with output.build() as folder:
        values = np.empty(len(pairs.query), np.float32)
        for name, places in shards:
            values[places] = np.load(scores.path / name)
        more_stats = _splits(scores.path, shards) | ({"scores": unit} if unit else {})
        stats = _write_run(corpus, queries, pairs, values, folder / config.output.name, output, more_stats)
        manifest = output.finish(stats)
    discard(scores.path)
    _summary(config, manifest, output.elapsed)
    return manifest


def _score_missing(own: Sequence[Shard], pairs: Pairs, scorer: Scorer, folder: Path) -> None:
    """Scores the shards of this process that are missing."""
    import numpy as np

    from retrievo.support.files import atomic_path, remove, write_json

    missing = [shard for shard in own if not (folder / shard.name).exists()]
    total, left = (sum(len(shard.places) for shard in shards) for shards in (own, missing))
    with console.progress("reranking", total, "pairs", total - left) as tick:
        for name, places in missing:
            with noted_splits() as splits:
                scores = scorer.scores(pairs.at(places), tick)
            if noted := splits.stats() | scorer.splits.stats("chunk_tokens_of_queries"):
                write_json(_beside(folder / name), noted)
            else:
                remove(_beside(folder / name))  # a killed run may have left it
            with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
                np.save(file, scores, allow_pickle=False)


def _beside(shard: Path) -> Path:
    """The file beside the scores of a shard that records chunks halved after memory ran out."""
    return shard.with_suffix(".json")


def _splits(folder: Path, shards: Sequence[Shard]) -> Values:
    """The shards whose chunks were halved, for the manifest; empty if there are none."""
    files = [_beside(folder / name) for name, _ in shards]
    halved = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()}
    return {"chunk_tokens_of_shards": halved} if halved else {}


def _cut(places: np.ndarray, starts: np.ndarray) -> list[Shard]:
    """Shards of the positions of pairs, split at `starts`."""
    import numpy as np

    parts = [part for part in np.split(places, starts) if len(part)]
    return [Shard(f"shard-{number:05}.npy", part) for number, part in enumerate(parts)]


class CrossEncoderScorer:
    """Scores pairs with a cross-encoder, which reads both texts together; tokens come from two token caches."""

    def __init__(self, config: RerankConfig, corpus: Corpus, queries: Queries, pairs: Pairs, device: torch.device):
        import numpy as np

        from retrievo.data.token_cache import tokens_of_rows
        from retrievo.models.cross_encoder import CrossEncoder
        from retrievo.models.inference import prepared

        activation = ACTIVATIONS[config.activation] if config.activation else None
        model = CrossEncoder.load(config.model, config.revision, max_length=config.max_length, activation=activation)
        self.model, self.tokenization = prepared(model, config.dtype, device), model.tokenization
        self.compute = config.compute
        self.queries = tokens_of_rows(queries.table, self.tokenization.query, np.unique(pairs.query))
        self.documents = tokens_of_rows(corpus.table, self.tokenization.document, np.unique(pairs.document))
        self.splits = Splits()  # of vectors of queries, which there are none
        self.unit = UNITS[model.spec.activation]

    @staticmethod
    def shards(pairs: Pairs) -> list[Shard]:
        """Shards of pairs in their order."""
        import numpy as np

        return _cut(np.arange(len(pairs.query)), np.arange(PAIRS_PER_SHARD, len(pairs.query), PAIRS_PER_SHARD))

    def scores(self, pairs: Pairs, tick: console.Tick) -> np.ndarray:
        """Float32 scores, [n]."""
        rows = [(self.queries.row(q), self.documents.row(d)) for q, d in zip(*pairs, strict=True)]
        tokens, offsets = self.tokenization.rows(rows)
        if lost := int((offsets[1:] == offsets[:-1]).sum()):
            console.warn(f"{lost:,} pairs have no token for this model; their logit is 0")
        return self.model.scores(tokens, offsets, self.compute, tick)


class EncoderScorer:
    """Scores pairs with an encoder: each text of the run is encoded once, and pairs are scored as in exact search."""

    unit = "similarities"

    def __init__(self, config: RerankConfig, corpus: Corpus, queries: Queries, pairs: Pairs, device: torch.device):
        import numpy as np

        from retrievo.data.token_cache import tokens_of_rows
        from retrievo.models.encoder import Encoder
        from retrievo.models.inference import prepared

        self.encoder = prepared(Encoder.load(config.model, config.revision, as_stated=True), config.dtype, device)
        self.compute = config.compute
        self.asked, wanted = np.unique(pairs.query), np.unique(pairs.document)
        self.documents = tokens_of_rows(corpus.table, self.encoder.tokenization("document"), wanted)
        own = tokens_of_rows(queries.table, self.encoder.tokenization("query"), self.asked)
        with noted_splits() as self.splits:
            self.queries = self._vectors("query", own, self.asked)

    @staticmethod
    def shards(pairs: Pairs) -> list[Shard]:
        """Shards of all pairs of some documents, so that no document is encoded twice."""
        import numpy as np

        places = np.argsort(pairs.document, kind="stable")
        documents = pairs.document[places]
        starts = np.unique(np.searchsorted(documents, documents[PAIRS_PER_SHARD::PAIRS_PER_SHARD]))
        return _cut(places, starts)

    def scores(self, pairs: Pairs, tick: console.Tick) -> np.ndarray:
        """Float32 scores, [n]."""
        import numpy as np

        from retrievo.data.ordering import exact_similarities

        rows, document = np.unique(pairs.document, return_inverse=True)
        vectors = self._vectors("document", self.documents, rows, _in_pairs(tick, len(rows), len(document)))
        query = np.searchsorted(self.asked, pairs.query)
        return exact_similarities(self.encoder.spec.similarity, self.queries[query], vectors[document])

    def _vectors(self, role: str, cache: TokenCache, rows: np.ndarray, tick: console.Tick | None = None) -> np.ndarray:
        """Float32 vectors [n, D] of these rows of a table."""
        from retrievo.models.tokens import warn_of_texts_without_tokens
        from retrievo.models.vectors import encode_tokens

        tokens, offsets = cache.rows(rows)
        lost = int((offsets[1:] == offsets[:-1]).sum())
        warn_of_texts_without_tokens("--model", lost, role)
        return encode_tokens(self.encoder, role, tokens, offsets, self.compute, tick)


def _in_pairs(tick: console.Tick, documents: int, pairs: int) -> console.Tick:
    """A tick of documents for a bar of pairs: all documents are all pairs."""
    done = 0

    def step(amount: int = 1, status: str | None = None) -> None:
        nonlocal done
        before, done = done, done + amount
        tick(done * pairs // documents - before * pairs // documents, status)

    return step


def _write_run(
    corpus: Corpus,
    queries: Queries,
    pairs: Pairs,
    values: np.ndarray,
    path: Path,
    output: Output,
    more_stats: Mapping[str, object],
) -> Values:
    import numpy as np
    import pyarrow as pa

    from retrievo.data.columns import taken
    from retrievo.data.ordering import ranked, ranks
    from retrievo.data.run import RunWriter

    doc_ids = taken(corpus.id_map.ids.column(), pairs.document)
    order = ranked(pairs.query, values, doc_ids)
    query = pairs.query[order]
    query_ids = taken(queries.ids, query)
    answered = len(np.unique(query))
    stats = {"queries": len(queries), "without_results": len(queries) - answered, "rows": len(query), **more_stats}
    with RunWriter(path, format_of=output.path) as writer:
        writer.write(query_ids, doc_ids.take(pa.array(order)), values[order], ranks(query))
        writer.close(output.manifest(stats))
    return stats


def _summary(config: RerankConfig, manifest: Manifest, seconds: float) -> None:
    rows = manifest.stats["rows"]
    facts = {
        "output": f"{config.output} ({rows:,} pairs)",
        "took": f"{console.seconds(seconds)} ({rows / max(seconds, 1e-9):,.0f} pairs/s)",
    }
    judgments = f"--data {config.data}" if config.data else f"--qrels {config.qrels or 'QRELS'}"
    console.summary("reranked", facts, f"retrievo evaluate --run {config.output} {judgments}")
