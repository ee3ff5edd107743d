"""`retrievo train`: fine-tune an encoder, or a cross-encoder, on queries, their relevant documents, and negatives.

A stage is a folder that holds the model it becomes: `retrievo train stage-2` reads `stage-2/train.toml`, which
`retrievo mine-negatives stage-1 to stage-2` writes, and trains in that folder.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import (
    corpus_option,
    force_option,
    output_option,
    qrels_option,
    queries_option,
    threads_option,
    title_template_option,
)
from retrievo.engine.settings import WORKING_FILES, FitConfig, ValidationConfig
from retrievo.learning.losses import TAUGHT
from retrievo.models.options import device_option, model_option, pooling_option, revision_option
from retrievo.models.spec import SIMILARITIES
from retrievo.objectives.choices import CrossEncoderConfig, FinetuneConfig, objective_class
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to

if TYPE_CHECKING:
    import torch

    from retrievo.engine.loop import Record
    from retrievo.engine.validation import Pool, Validation
    from retrievo.learning.batch import Batch
    from retrievo.models.encoder import Encoder
    from retrievo.objectives.objective import Objective
    from retrievo.objectives.training_data import TrainingData
    from retrievo.support.artifact import Manifest, Output

STAGE_SETTINGS = "train.toml"
STAGE_NEGATIVES = "negatives.parquet"
STAGE_FILES = (  # what may lie in a stage before it is trained, and is not the model's
    STAGE_SETTINGS,
    STAGE_NEGATIVES,
    "negatives.dropped.parquet",
    "negatives.audit.md",
    "embeddings",
)
DEFAULT_EPOCHS = 1.0
_VERIFIED_QUERIES = 32  # a batch that fits in one piece
_ROLE_OPTIONS = tuple(f"{role}_{what}" for role in ("query", "document") for what in ("prefix", "max_length"))
ENCODER, CROSS_ENCODER = "encoder", "cross-encoder"
_OF_THE_MODEL = ("pooling", "normalize", "similarity", "tied", "title_template", *_ROLE_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig, FinetuneConfig, CrossEncoderConfig, ValidationConfig):
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
    corpus: Path = corpus_option()
    queries: Path = queries_option()
    qrels: Path = qrels_option()
    negatives: tuple[Path, ...] = option("Pools of hard negatives; several are joined.", default=(), several=True)
    teacher: Path | None = option(
        "Run whose scores teach, such as a cross-encoder's.", default=None, only={"loss": TAUGHT}
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
    query_prefix: str | None = option("Text put before each query.", default=None, hidden_default="as the model")
    document_prefix: str | None = option("Text put before each document.", default=None, hidden_default="as the model")
    title_template: str | None = title_template_option(default=None, hidden_default="as the model")
    pooling: str | None = pooling_option()
    normalize: bool | None = option("Scale vectors to unit length.", default=None, hidden_default="as the model")
    similarity: str | None = option(
        "How vectors are compared.", default=None, choices=SIMILARITIES, hidden_default="as the model"
    )
    tied: bool | None = option(
        "One backbone for queries and documents, or one each.", default=None, hidden_default="as the model"
    )
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
        if self.hard_share and not self.negatives:
            raise UsageError("--hard-share", f"is {self.hard_share:g} of no pool", None, "pass --negatives POOL")
        if self.lora_alpha and not self.lora_rank:
            raise UsageError("--lora-alpha", "scales adapters", None, "pass --lora-rank too")
        if self.shard:
            self._check_shard()
        if self.kind == CROSS_ENCODER:
            self._check_cross_encoder()

    def _check_shard(self) -> None:
        """Refuses what runs out of memory to learn something: processes that wait for each other can't."""
        if self.verify_gradients:
            raise UsageError("--verify-gradients", "looks at whole models", None, "leave --shard out")
        if self.tokens_of_chunks is None:
            raise UsageError("--chunk-tokens", "auto can't be found out with --shard", None, "pass --chunk-tokens N")

    def _check_cross_encoder(self) -> None:
        """Refuses what only an encoder has: vectors, and other documents of the batch as negatives."""
        for known in options_of(type(self)):
            if known.name in _of_encoders() and getattr(self, known.name) != known.default:
                raise UsageError(known.flag, "does not apply to --kind cross-encoder", None, f"leave {known.flag} out")
        if not self.negatives_per_query:
            found = "is 0: a cross-encoder learns from a group, which has no other documents"
            raise UsageError("--negatives-per-query", found, "at least 1")

    def record(self) -> dict[str, Any]:
        """Without what says nothing: of encoders for a cross-encoder, of validation where there is none."""
        aside = _of_encoders() if self.kind == CROSS_ENCODER else set()
        aside |= _of_validation() if self.dev_qrels is None else set()
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
    names = {*_OF_THE_MODEL, *_of_validation(), *(known.name for known in options_of(FinetuneConfig))}
    return names - {"title_template"}


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
    data = _data(config)
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
    _, objective, feed = _made(config, _data(config))
    return objective, feed.batch(0)


def _data(config: TrainConfig) -> TrainingData:
    """The tables, read."""
    from retrievo.objectives.training_data import TrainingData

    tables = (config.corpus, config.queries, config.qrels, config.negatives)
    return TrainingData(*tables, config.min_relevance, config.teacher)


def _made(config: TrainConfig, data: TrainingData) -> tuple[Any, Objective, Any]:
    """The model of the kind that was chosen, its objective and its batches."""
    return (_cross_encoder if config.kind == CROSS_ENCODER else _encoder)(config, data)


def _pool(config: TrainConfig, data: TrainingData) -> Pool | None:
    """The candidates of the queries to validate on."""
    from retrievo.engine.validation import Pool

    if config.dev_qrels is None:
        return None
    return Pool(config, data.corpus, config.dev_queries or config.queries, config.min_relevance)


def _output(config: TrainConfig, data: TrainingData, pool: Pool | None, device: torch.device) -> Output:
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
        model_inputs | data.inputs | (pool.inputs if pool else {}),
        force=config.force,
        in_place=True,
        beside=STAGE_FILES,
        volatile=WORKING_FILES,
    )


def _fit(config: TrainConfig, data: TrainingData, pool: Pool | None, output: Output, device: torch.device) -> Manifest:
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
            data.say_counts()
        validation = _validation(config, pool, model, objective, feed, folder) if pool else None
        if config.shard:
            shard(objective, device)
        every = now_and_then(validation, planned.steps, config.validate_every) if validation else []
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
        stats = {"steps": steps, "queries": data.judged} | _best(validation, objective)
        if config.lora_rank:
            merge_adapters(model)
        loss = config.pair_loss if config.kind == CROSS_ENCODER else ", ".join(config.loss)
        model.save(folder, {"trained on": f"{data.pairs:,} judged pairs", "steps": steps, "loss": loss})
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


def _in_one_piece(config: TrainConfig, data: TrainingData, folder: Path) -> tuple[Any, Objective]:
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


def _encoder(config: TrainConfig, data: TrainingData) -> tuple[Any, Objective, Any]:
    """An encoder, its objective and its batches."""
    from retrievo.models.adapters import add_adapters
    from retrievo.models.encoder import Encoder
    from retrievo.objectives.finetune import Finetune
    from retrievo.objectives.training_data import TrainingFeed

    name, options = _start(config, data), {name: getattr(config, name) for name in _OF_THE_MODEL}
    if name != config.model:
        options["pooling"] = config.pooling or "cls"
    encoder = Encoder.load(name, config.revision, **options)
    if config.lora_rank:
        add_adapters(encoder, config.lora_rank, config.lora_alpha or 2 * config.lora_rank, config.seed)
    objective = Finetune(config, encoder)
    return encoder, objective, TrainingFeed(data, encoder, objective.collator(), **_drawing(config))


def _cross_encoder(config: TrainConfig, data: TrainingData) -> tuple[Any, Objective, Any]:
    """A cross-encoder, its objective and its batches."""
    from retrievo.models.cross_encoder import CrossEncoder
    from retrievo.objectives.cross_encoder import PairFeed

    options = {"max_length": config.max_length, "title_template": config.title_template}
    model = CrossEncoder.load(_start(config, data), config.revision, train=True, **options)
    objective = objective_class(f"{CROSS_ENCODER}-{config.pair_loss}")(config, model)
    return model, objective, PairFeed(data, model, objective.collator(), **_drawing(config))


def _start(config: TrainConfig, data: TrainingData) -> str:
    """The model that training starts from: one that exists, or a random one with a vocabulary of this corpus."""
    from retrievo.models.scratch import scratch_folder, scratch_size

    if scratch_size(config.model) is None:
        return config.model
    return str(scratch_folder(config.model, [data.corpus], config.seed))


def _drawing(config: TrainConfig) -> dict[str, Any]:
    """The options that say which groups a step trains on."""
    return {name: getattr(config, name) for name in ("batch_size", "negatives_per_query", "seed", "hard_share")}


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
    console.summary("trained", facts, following)
