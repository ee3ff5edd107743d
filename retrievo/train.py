"""`retrievo train`: fine-tune an encoder, or a cross-encoder, on queries, their relevant documents, and negatives.

A stage is a folder that holds the model it becomes: `retrievo train stage-2` reads `stage-2/train.toml`, which
`retrievo mine-negatives stage-1 to stage-2` writes, and trains in that folder.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.mixing import UNIFORM, check_mix, shares
from retrievo.data.options import force_option, output_option, threads_option, title_template_option
from retrievo.engine.settings import WORKING_FILES, FitConfig, RefreshConfig, ValidationConfig
from retrievo.learning.losses import BATCH_TAUGHT, GROUPED, TAUGHT
from retrievo.models.options import bidirectional_option, device_option, model_option, pooling_option, revision_option
from retrievo.models.source import FIXED_DOCUMENTS
from retrievo.models.spec import SIMILARITIES
from retrievo.objectives.choices import QUERIES_PER_TOPIC, AdoreConfig, CrossEncoderConfig, objective_class
from retrievo.objectives.data_set import STAGE_SETTINGS, DataSetConfig
from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to

if TYPE_CHECKING:
    import torch

    from retrievo.engine.loop import Record
    from retrievo.engine.refresh import RefreshingFeed
    from retrievo.engine.validation import Pool, Validation
    from retrievo.learning.batch import Batch
    from retrievo.models.encoder import Encoder
    from retrievo.objectives.mixed_feed import MixedFeed
    from retrievo.objectives.objective import Objective
    from retrievo.objectives.training_data import GroupFeed, TrainingData, TrainingFeed
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input, Manifest, Output

STAGE_NEGATIVES = "negatives.parquet"
STAGE_FILES = (  # what may lie in a stage before it is trained, and is not the model's
    STAGE_SETTINGS,
    STAGE_NEGATIVES,
    "negatives.dropped.parquet",
    "negatives.audit.md",
    "embeddings",
)
DEFAULT_EPOCHS = 1.0
_ENCODED_TOKENS = 4_096  # of a chunk while encoding, where those of training are measured
_VERIFIED_QUERIES = 32  # a batch that fits in one piece
_ROLE_OPTIONS = tuple(f"{role}_{what}" for role in ("query", "document") for what in ("prefix", "max_length"))
ENCODER, CROSS_ENCODER = "encoder", "cross-encoder"
_OF_THE_MODEL = ("pooling", "normalize", "similarity", "tied", "title_template", *_ROLE_OPTIONS)
_OF_THE_QUERY = ("query_prefix", "query_max_length")
_OF_FOUND_NEGATIVES = (
    "negatives",
    "negatives_per_query",
    "hard_share",
    "refresh_every",
    "teacher",
    "batch_teacher",
    "topics",
    "also",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig, AdoreConfig, CrossEncoderConfig, ValidationConfig, RefreshConfig, DataSetConfig):
    """Options of `retrievo train`."""

    stage: Path | None = option(
        f"Folder with a {STAGE_SETTINGS}; the model is written there.", default=None, positional=True
    )
    kind: str = option(
        "What is trained: an encoder for search, or a cross-encoder for reranking.",
        default=ENCODER,
        choices=(ENCODER, CROSS_ENCODER),
    )
    model: str = model_option(affects_output=False)
    revision: str | None = revision_option()
    also: tuple[Path, ...] = option(
        f"More data to train on: a dataset folder (its train split), a stage, or a TOML file as {STAGE_SETTINGS}.",
        default=(),
        several=True,
    )
    mix: str = option(
        "How many batches are of each data set: uniform (each query once an epoch), equal, alpha=0.5, or weights "
        "as in 3,1.",
        default=UNIFORM,
        check=check_mix,
    )
    fixed_documents: Path | None = option(
        "Embeddings of the corpus by the model: they stay, and the query encoder alone is trained, among the documents "
        "that it finds at each step (ADORE).",
        default=None,
    )
    output: Path | None = output_option("Model folder to make.", default=None, hidden_default="the stage")
    batch_size: int = option("Queries per step, over all processes.", default=64, minimum=1)
    negatives_per_query: int = option("Hard negatives drawn for each query and epoch.", default=7, minimum=0)
    hard_share: float | None = option(
        "Chance of a negative to be a hard one, the others being any documents (Contriever: 0.1).",
        default=None,
        minimum=0,
        maximum=1,
        hidden_default="all hard ones",
    )
    balanced_margins: int | None = option(
        "Draw hard negatives evenly over so many bins of the teacher's margins (TAS-Balanced: 10).",
        default=None,
        minimum=2,
        hidden_default="evenly over the pool",
        only={"loss": TAUGHT},
    )
    topic_count: int | None = option(
        "Clusters of the queries.",
        default=None,
        minimum=1,
        hidden_default=f"one for {QUERIES_PER_TOPIC} judged queries, at least 2",
    )
    epochs: float | None = option(
        "Passes over the judged queries.",
        default=None,
        above=0,
        alternative="length",
        hidden_default=f"{DEFAULT_EPOCHS:g}",
    )
    min_relevance: int = option("Lowest grade that counts as relevant.", default=1, minimum=1)
    max_length: int | None = option(
        "Tokens of a query and a document together.",
        default=None,
        minimum=5,
        hidden_default="as the model",
        only={"kind": (CROSS_ENCODER,)},
    )
    query_max_length: int | None = option("Tokens of a query.", default=None, minimum=3, hidden_default="as the model")
    document_max_length: int | None = option(
        "Tokens of a document.", default=None, minimum=3, hidden_default="as the model"
    )
    title_template: str | None = title_template_option(default=None, hidden_default="as the model")
    pooling: str | None = pooling_option()
    normalize: bool | None = option("Scale vectors to unit length.", default=None, hidden_default="as the model")
    similarity: str | None = option(
        "How vectors are compared.", default=None, choices=SIMILARITIES, hidden_default="as the model"
    )
    tied: bool | None = option(
        "One backbone for queries and documents, or one each.", default=None, hidden_default="as the model"
    )
    bidirectional: bool = bidirectional_option(only={"kind": (ENCODER,)})
    lora_rank: int | None = option(
        "Train adapters of this rank in all linear layers, and nothing else; merged when saved (retrievo[lora]).",
        default=None,
        minimum=1,
        hidden_default="all weights are trained",
        only={"kind": (ENCODER,)},
    )
    lora_alpha: int | None = option(
        "The adapters' part is scaled by this / rank.", default=None, minimum=1, hidden_default="twice the rank"
    )
    shard: bool = option(
        "Each process keeps a part of weights, gradients and optimizer state (FSDP2), for backbones that do not fit "
        "one device; under torchrun.",
        default=False,
        affects_output=False,
    )
    verify_gradients: bool = option(
        "Train nothing; compute one step in several ways, such as cached or not, in one process or two, and compare.",
        default=False,
        affects_output=False,
    )
    device: str = device_option()
    threads: int | None = threads_option()
    force: bool = force_option()

    def check(self) -> None:
        super().check()
        if self.folder is None and not self.verify_gradients:
            raise UsageError("--output", "is needed", None, "pass --output FOLDER, or a stage: retrievo train stage-2")
        if self.teacher is None and (taught := [loss for loss in self.loss if loss in TAUGHT]):
            raise UsageError(f"--loss {taught[0]}", "needs a teacher", None, "pass --teacher RUN")
        self._check_sampling()
        if self.hard_share and not self.negatives and not self.refresh_every:
            raise UsageError("--hard-share", f"is {self.hard_share:g} of no pool", None, "pass --negatives POOL")
        if self.also:
            shares(self.mix, [1] * (1 + len(self.also)))
        elif self.mix != UNIFORM:
            raise UsageError("--mix", f"is '{self.mix}' of one data set", None, "pass --also DATA too")
        if self.lora_alpha and not self.lora_rank:
            raise UsageError("--lora-alpha", "scales adapters", None, "pass --lora-rank too")
        if self.shard:
            self._check_shard()
        if self.kind == CROSS_ENCODER:
            self._check_cross_encoder()
        self._check_negatives_found()

    def _check_negatives_found(self) -> None:
        """Rules of the negatives that are found while training."""
        if self.fixed_documents is not None:
            self._refuse(_beside_fixed_documents(), "--fixed-documents")
        elif self.dynamic_negatives is not None:
            fix = "pass --fixed-documents EMBEDDINGS too"
            raise UsageError("--dynamic-negatives", "are found among fixed documents", None, fix)
        if self.refresh_every and not self.negatives_per_query:
            raise UsageError("--refresh-every", "mines negatives that are never drawn", "--negatives-per-query above 0")
        if self.refresh_every and self.also:
            fix = "leave --also out, or mine between rounds"
            raise UsageError("--refresh-every", "mines for one data set", None, fix)
        if self.refresh_every and self.teacher is not None:
            found = "finds documents that the teacher has not scored"
            raise UsageError("--refresh-every", found, None, "leave --refresh-every or --teacher out")

    def _refuse(self, names: set[str], beside: str) -> None:
        """Raises UsageError for the first of some options that was given."""
        for known in options_of(type(self)):
            if known.name in names and getattr(self, known.name) != known.default:
                raise UsageError(known.flag, f"does not apply to {beside}", None, f"leave {known.flag} out")

    def _check_sampling(self) -> None:
        """Refuses what lacks the vectors or the pool that it draws from."""
        if BATCH_TAUGHT[0] in self.loss and len(self.batch_teacher) != 2:
            fix = "pass --batch-teacher CORPUS-EMBEDDINGS QUERY-EMBEDDINGS"
            found = (
                f"needs a teacher's vectors of the corpus and of the queries, found {len(self.batch_teacher)} folders"
            )
            raise UsageError(f"--loss {BATCH_TAUGHT[0]}", found, None, fix)
        grouped = [loss for loss in self.loss if loss in GROUPED]
        has_pool = self.negatives or self.refresh_every or self.hard_share is not None
        has_own = self.fixed_documents is not None or (self.negatives_per_query and has_pool)
        if grouped and not has_own:
            fix = "pass --negatives POOL" if self.negatives_per_query else "leave --negatives-per-query 0 out"
            raise UsageError(
                f"--loss {grouped[0]}", "learns from each query's own negatives, of which there are none", None, fix
            )
        if self.balanced_margins and not self.negatives:
            raise UsageError("--balanced-margins", "draws from a pool", None, "pass --negatives POOL")
        if self.topic_count and self.topics is None:
            raise UsageError("--topic-count", "counts the clusters of vectors", None, "pass --topics EMBEDDINGS")

    def _check_shard(self) -> None:
        """Refuses what runs out of memory to learn something: processes that wait for each other can't."""
        if self.verify_gradients:
            raise UsageError("--verify-gradients", "looks at whole models", None, "leave --shard out")
        if self.tokens_of_chunks is None:
            raise UsageError("--chunk-tokens", "auto can't be found out with --shard", None, "pass --chunk-tokens N")
        self._refuse({"refresh_every", "fixed_documents"}, "--shard")

    def _check_cross_encoder(self) -> None:
        """Refuses what only an encoder has: vectors, and other documents of the batch as negatives."""
        self._refuse(_of_encoders(), "--kind cross-encoder")
        if not self.negatives_per_query:
            found = "is 0: a cross-encoder learns from a group, which has no other documents"
            raise UsageError("--negatives-per-query", found, "at least 1")

    def record(self) -> dict[str, Any]:
        """Without what says nothing: of encoders for a cross-encoder, of validation where there is none."""
        aside = _of_encoders() if self.kind == CROSS_ENCODER else set()
        aside |= _of_validation() if self.dev_qrels is None else set()
        aside |= set() if self.also else {"mix"}
        aside |= _beside_fixed_documents() if self.fixed_documents is not None else set()
        return {name: value for name, value in super().record().items() if name not in aside}

    @property
    def folder(self) -> Path | None:
        """Where the model goes."""
        return self.output or self.stage

    @classmethod
    def layers(cls, typed: Mapping[str, Any]) -> list[Layer]:
        """The settings of a stage stand between the flags and `retrievo.toml`."""
        stage = typed.get("stage")
        if stage is None:
            return []
        path = Path(stage) / STAGE_SETTINGS
        return [Layer(str(path), relative_to(path.parent, cls, read_toml(path).get("train", {})))]


def _of_encoders() -> set[str]:
    """Options that only an encoder has."""
    configs = (AdoreConfig, ValidationConfig, RefreshConfig)
    names = {known.name for config in configs for known in options_of(config)}
    return {*_OF_THE_MODEL, *names, "fixed_documents", "topics", "topic_count"} - {"title_template"}


def _beside_fixed_documents() -> set[str]:
    """Options that have no meaning where document vectors stay and negatives are found among them."""
    return {*_OF_THE_MODEL, *_OF_FOUND_NEGATIVES, "matryoshka"} - set(_OF_THE_QUERY)


def _of_validation() -> set[str]:
    return {known.name for known in options_of(ValidationConfig)}


def train(config: TrainConfig) -> Manifest | None:
    """Trains, or goes on from the latest checkpoint of a killed run, or finds all finished; None after a verification.

    Raises: RetrievoError for a model or tables that can't be read or do not fit together.
    """
    from retrievo.learning.distributed import barrier, process_group
    from retrievo.models.devices import prepare_cpu, resolve_device

    if config.shard and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        fix = "start it with torchrun --nproc-per-node N -m retrievo train ..."
        raise UsageError("--shard", "found one process", "several, which keep a part of the model each", fix)
    prepare_cpu(config.threads)
    if config.verify_gradients:
        _verify(config)
        return None
    data = _data_sets(config)
    pool = _pool(config, data)
    with process_group(resolve_device(config.device)) as device:
        output = _output(config, data, pool, device)
        finished = output.already_finished()
        barrier()  # every process has looked before one begins
        return finished or _fit(config, data, pool, output, device)


def _verify(config: TrainConfig) -> None:
    """Tells how far gradients of one batch are apart that must be the same."""
    import torch

    from retrievo.engine.verification import verify
    from retrievo.models.devices import resolve_device

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--verify-gradients", "found several processes", "one; it starts two by itself")
    small = dataclasses.replace(config, batch_size=min(config.batch_size, _VERIFIED_QUERIES))
    checks = verify(functools.partial(_assemble, small), torch.device(resolve_device(config.device)), seed=config.seed)
    rows = [[check.name, f"{check.difference:.1e}"] for check in checks]
    console.print_table(["two ways to one gradient", "largest relative difference"], rows)


def _assemble(config: TrainConfig) -> tuple[Objective, Batch]:
    """The objective and the first batch, from the files."""
    _, objective, feed = _made(config, _data_sets(config))
    return objective, feed.batch(0)


def _data_sets(config: TrainConfig) -> list[TrainingData]:
    """The tables, read: those of the options, then those of --also.

    Raises: UsageError for a data set without the teacher that a loss needs.
    """
    from retrievo.objectives.data_set import open_data_set
    from retrievo.objectives.training_data import TrainingData
    from retrievo.support.artifact import Input

    chosen = [config, *map(open_data_set, config.also)]
    for path, data_set in zip(config.also, chosen[1:], strict=True):
        for name in ("teacher", "batch_teacher"):
            if getattr(config, name) and not getattr(data_set, name):
                raise UsageError(f"--also {path}", f"has no {name}", None, f"give its {STAGE_SETTINGS} one too")
        if config.kind == CROSS_ENCODER and (data_set.query_prefix or data_set.document_prefix):
            raise UsageError(f"--also {path}", "has a prefix", None, "leave it out: cross-encoders read bare texts")
    data = [TrainingData(data_set, config.min_relevance) for data_set in chosen]
    if config.fixed_documents is not None:
        data[0].inputs[FIXED_DOCUMENTS] = Input.of(_fixed_documents(config, data[0]).path)
    return data


def _fixed_documents(config: TrainConfig, data: TrainingData) -> Embeddings:
    """The vectors of the documents.

    Raises: RetrievoError where they are not those of this corpus by this model, or were cut.
    """
    from retrievo.models.source import model_record
    from retrievo.retrieval.embeddings import Embeddings

    assert config.fixed_documents is not None
    found = Embeddings(config.fixed_documents)
    named, folder = model_record(config.model, config.revision)
    prints = {name: told["fingerprint"] for name, told in found.manifest.inputs.items()}
    fix = f"retrievo encode --model {config.model} --corpus {config.corpus} --output EMBEDDINGS"
    if found.role != "document" or prints.get("corpus") != data.corpus.input.fingerprint:
        raise RetrievoError(found.path, "does not hold the documents of this corpus", str(config.corpus), fix)
    same_name = all(found.manifest.config.get(name) == value for name, value in named.items())
    if not same_name or (folder and prints.get("model") != folder["model"].fingerprint):
        raise RetrievoError(found.path, "was not made by the model that is trained", config.model, fix)
    if found.manifest.config.get("truncate_dim") is not None:
        raise RetrievoError(found.path, f"has vectors cut to {found.dim} numbers", "whole ones", fix)
    return found


def _inputs(config: TrainConfig, data: Sequence[TrainingData]) -> dict[str, Input]:
    """What is read, by name; settings of data sets too, for they say what stands before texts."""
    from retrievo.support.artifact import Input

    inputs = dict(data[0].inputs)
    for number, (path, data_set) in enumerate(zip(config.also, data[1:], strict=True), start=1):
        inputs |= {f"also-{number}-{name}": found for name, found in data_set.inputs.items()}
        settings = path / STAGE_SETTINGS if path.is_dir() else path
        inputs |= {f"also-{number}": Input.of(settings)} if settings.is_file() else {}
    return inputs


def _made(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """The model of the kind that was chosen, its objective and its batches."""
    if config.kind == CROSS_ENCODER:
        return _cross_encoder(config, data)
    return (_encoder if config.fixed_documents is None else _query_encoder)(config, data)


def _pool(config: TrainConfig, data: Sequence[TrainingData]) -> Pool | None:
    """The candidates of the queries to validate on."""
    from retrievo.engine.validation import Pool

    if config.dev_qrels is None:
        return None
    return Pool(config, data[0].corpus, config.dev_queries or config.queries, config.min_relevance)


def _output(config: TrainConfig, data: Sequence[TrainingData], pool: Pool | None, device: torch.device) -> Output:
    from retrievo.models.precision import resolve_dtype
    from retrievo.models.source import model_record
    from retrievo.support.artifact import Output

    assert config.folder is not None
    model_config, model_inputs = model_record(config.model, config.revision)
    dtype = str(resolve_dtype(config.dtype, device)).removeprefix("torch.")
    return Output(
        config.folder,
        "model" if config.kind == ENCODER else CROSS_ENCODER,
        config.record() | model_config | {"computed_in": dtype},
        model_inputs | _inputs(config, data) | (pool.inputs if pool else {}),
        force=config.force,
        in_place=True,
        beside=STAGE_FILES,
        volatile=WORKING_FILES,
    )


def _fit(
    config: TrainConfig, data: Sequence[TrainingData], pool: Pool | None, output: Output, device: torch.device
) -> Manifest:
    """Every process trains; the lead one begins the folder, exports the encoder and finishes."""
    from retrievo.engine.logs import in_words
    from retrievo.engine.loop import fit, now_and_then
    from retrievo.learning.distributed import barrier, rank
    from retrievo.learning.sharding import shard
    from retrievo.models.adapters import merge_adapters

    with output.build_together(lead=rank() == 0, barrier=barrier) as folder:
        model, objective, feed = _made(config, data)
        planned = dataclasses.replace(config, epochs=None, max_steps=_steps(config, feed.batches_per_epoch))
        if rank() == 0:
            for data_set in data:
                data_set.say_counts()
        validation = _validation(config, pool, model, objective, feed, folder) if pool else None
        if config.shard:
            shard(objective, device)
        every = now_and_then(validation, planned.steps, config.validate_every) if validation else []
        if config.refresh_every:
            feed = _refreshing(planned, feed, model, folder)
            every = [*every, (config.refresh_every, feed)]
        enough = validation.is_enough if validation else lambda: False
        with console.progress("training", planned.steps, "steps") as tick:

            def show(record: Record) -> None:
                tick(1, in_words(record))

            steps = fit(
                objective, feed, planned, folder=folder, device=device, progress=show, every=every, enough=enough
            )
        barrier()
        if rank() != 0:
            return output.manifest({})
        if config.shard:
            model, objective = _in_one_piece(config, data, folder)
        stats = {"steps": steps, "queries": sum(data_set.judged for data_set in data)} | _best(validation, objective)
        if config.lora_rank:
            merge_adapters(model)
        loss = config.pair_loss if config.kind == CROSS_ENCODER else ", ".join(config.loss)
        pairs = sum(data_set.pairs for data_set in data)
        model.save(folder, {"trained on": f"{pairs:,} judged pairs", "steps": steps, "loss": loss})
        dim = {"dim": model.dim} if config.kind == ENCODER else {}
        manifest = output.finish(stats | dim)
    _summary(config, manifest)
    return manifest


def _validation(
    config: TrainConfig, pool: Pool, encoder: Encoder, objective: Objective, feed: Any, folder: Path
) -> Validation:
    from retrievo.engine.validation import Validation

    console.note(f"validation: {len(pool):,} candidates of {len(pool.query_ids):,} queries, {config.dev_metric}")
    return Validation(config, pool, encoder, objective, feed.document_tokens, folder=folder, dtype=config.dtype)


def _refreshing(config: TrainConfig, feed: Any, encoder: Encoder, folder: Path) -> RefreshingFeed:
    from retrievo.engine.refresh import RefreshingFeed

    tokens = config.tokens_of_chunks or _ENCODED_TOKENS
    return RefreshingFeed(
        config, feed, encoder, folder=folder, steps=config.steps, chunk_tokens=tokens, dtype=config.dtype
    )


def _in_one_piece(config: TrainConfig, data: Sequence[TrainingData], folder: Path) -> tuple[Any, Objective]:
    """The model anew in main memory with the weights of the last checkpoint: the one that was trained is cut."""
    from retrievo.engine.checkpoints import load_last_weights
    from retrievo.engine.settings import CHECKPOINTS

    model, objective, _ = _made(config, data)
    load_last_weights(folder / CHECKPOINTS, objective)
    return model, objective


def _best(validation: Validation | None, objective: Objective) -> dict[str, Any]:
    """Puts the best weights back; which they are."""
    if validation is None:
        return {}
    validation.restore_best(objective)
    step, value = validation.best()
    console.note(f"the model of step {step:,} is kept, with {validation.metric} {value:.4f}")
    return {"best_step": step, validation.key: value}


def _encoder(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """An encoder, its objective and its batches."""
    from retrievo.models.adapters import add_adapters
    from retrievo.models.decoders import attend_both_ways
    from retrievo.models.encoder import Encoder
    from retrievo.objectives.finetune import Finetune

    name, options = _start(config, data), {name: getattr(config, name) for name in _OF_THE_MODEL}
    if name != config.model:
        options["pooling"] = config.pooling or "cls"
    encoder = Encoder.load(name, config.revision, **options)
    if config.bidirectional:
        attend_both_ways(encoder)
    if config.lora_rank:
        add_adapters(encoder, config.lora_rank, config.lora_alpha or 2 * config.lora_rank, config.seed)
    objective = Finetune(config, encoder)
    feeds = [_feed(config, data_set, encoder, objective) for data_set in data]
    return encoder, objective, _mixed(config, feeds)


def _feed(config: TrainConfig, data: TrainingData, encoder: Encoder, objective: Any) -> TrainingFeed:
    """The batches of one data set."""
    from retrievo.objectives.training_data import TrainingFeed

    topics = data.topics_of_queries(config.topic_count, config.seed)
    return TrainingFeed(data, encoder, objective.collator(), topics=topics, **_drawing(config))


def _query_encoder(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """An untied encoder of which the side of queries is trained against fixed document vectors, and its batches."""
    from retrievo.models.adapters import add_adapters
    from retrievo.models.encoder import Encoder
    from retrievo.objectives.adore import FixedDocuments
    from retrievo.objectives.training_data import TrainingFeed

    vectors = _fixed_documents(config, data[0])
    options = {name: getattr(config, name) for name in _OF_THE_QUERY} | {"tied": False}
    encoder = Encoder.load(config.model, config.revision, **options, pooling=vectors.manifest.config.get("pooling"))
    if config.lora_rank:
        add_adapters(encoder, config.lora_rank, config.lora_alpha or 2 * config.lora_rank, config.seed)
    documents = FixedDocuments(vectors, data[0].corpus.id_map.text_hashes, data[0].empty.nonzero()[0])
    objective = objective_class("adore")(config, encoder, documents)
    drawing = _drawing(config) | {"negatives_per_query": 0}
    return encoder, objective, TrainingFeed(data[0], encoder, objective.collator(), **drawing)


def _cross_encoder(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """A cross-encoder, its objective and its batches."""
    from retrievo.models.cross_encoder import CrossEncoder
    from retrievo.objectives.cross_encoder import PairFeed

    options = {"max_length": config.max_length, "title_template": config.title_template}
    model = CrossEncoder.load(_start(config, data), config.revision, train=True, **options)
    objective = objective_class(f"{CROSS_ENCODER}-{config.pair_loss}")(config, model)
    feeds = [PairFeed(data_set, model, objective.collator(), **_drawing(config)) for data_set in data]
    return model, objective, _mixed(config, feeds)


def _mixed(config: TrainConfig, feeds: Sequence[GroupFeed]) -> GroupFeed | MixedFeed:
    """The only feed, or batches of one feed each."""
    from retrievo.objectives.mixed_feed import MixedFeed

    return MixedFeed(feeds, config.mix, config.seed) if len(feeds) > 1 else feeds[0]


def _start(config: TrainConfig, data: Sequence[TrainingData]) -> str:
    """The model that training starts from: one that exists, or a random one with a vocabulary of this corpus."""
    from retrievo.models.scratch import scratch_folder, scratch_size

    if scratch_size(config.model) is None:
        return config.model
    return str(scratch_folder(config.model, [data_set.corpus for data_set in data], config.seed))


def _drawing(config: TrainConfig) -> dict[str, Any]:
    """The options that say which groups a step trains on."""
    names = ("batch_size", "negatives_per_query", "seed", "hard_share", "balanced_margins")
    return {name: getattr(config, name) for name in names}


def _steps(config: TrainConfig, batches_per_epoch: int) -> int:
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round((config.epochs or DEFAULT_EPOCHS) * batches_per_epoch))


def _summary(config: TrainConfig, manifest: Manifest) -> None:
    facts = {
        "made": f"{config.folder} ({manifest.stats['steps']:,} steps, {manifest.stats['queries']:,} judged queries)",
        "log": f"{config.folder}/metrics.jsonl",
        "took": console.seconds(manifest.seconds or 0.0),
    }
    following = f"retrievo mine-negatives {config.folder} to NEXT-STAGE"
    if config.kind == CROSS_ENCODER:
        following = (
            f"retrievo rerank --run RUN --model {config.folder} --corpus C --queries Q --output reranked.parquet"
        )
    if config.fixed_documents is not None:
        following = f"retrievo encode --model {config.folder} --queries QUERIES --output QUERY-EMBEDDINGS"
    console.summary("trained", facts, following)
