"""The options of `retrievo train`, and which of them go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrievo.data.mixing import UNIFORM, check_mix, shares
from retrievo.data.options import (
    force_option,
    output_option,
    restart_option,
    threads_option,
    title_template_option,
)
from retrievo.models.encoder_spec import SIMILARITIES
from retrievo.models.options import bidirectional_option, device_option, model_option, pooling_option, revision_option
from retrievo.support.artifact import is_unfinished
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to
from retrievo.training.engine.config import FitConfig, RefreshConfig, ValidationConfig
from retrievo.training.feeds.dataset_config import STAGE_SETTINGS, DataSetConfig
from retrievo.training.losses.losses import BATCH_TAUGHT, GROUPED, TAUGHT
from retrievo.training.objectives.table import QUERIES_PER_TOPIC, AdoreConfig, CrossEncoderConfig

STAGE_NEGATIVES = "negatives.parquet"
STAGE_FILES = (  # what may lie in a stage before it is trained, and is not the model's
    STAGE_SETTINGS,
    STAGE_NEGATIVES,
    "negatives.dropped.parquet",
    "negatives.audit.md",
    "embeddings",
)
DEFAULT_EPOCHS = 1.0
_ROLE_OPTIONS = tuple(f"{role}_{what}" for role in ("query", "document") for what in ("prefix", "max_length"))
DENSE, CROSS_ENCODER = "dense", "cross-encoder"
OF_THE_MODEL = ("pooling", "normalize", "similarity", "tied", "title_template", *_ROLE_OPTIONS)
OF_THE_QUERY = ("query_prefix", "query_max_length")
_OF_FOUND_NEGATIVES = (
    "negatives",
    "negatives_per_query",
    "hard_negative_ratio",
    "refresh_every",
    "teacher",
    "batch_teacher",
    "query_clusters",
    "extra_dataset",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig, AdoreConfig, CrossEncoderConfig, ValidationConfig, RefreshConfig, DataSetConfig):
    """Options of `retrievo train`."""

    stage: Path | None = option(
        f"Folder with a {STAGE_SETTINGS}; the model is written there.",
        default=None,
        positional=True,
        decides_output=True,
    )
    kind: str = option(
        "What is trained: an encoder for search, or a cross-encoder for reranking.",
        default=DENSE,
        choices=(DENSE, CROSS_ENCODER),
    )
    model: str = model_option(affects_output=False)
    revision: str | None = revision_option()
    extra_dataset: tuple[Path, ...] = option(
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
    document_embeddings: Path | None = option(
        "Embeddings of the corpus by the model: they stay, and the query encoder alone is trained, among the documents "
        "that it finds at each step (ADORE).",
        default=None,
    )
    output: Path | None = output_option("Model folder to make.", default=None, hidden_default="the stage")
    batch_size: int = option("Queries per step, over all processes.", default=64, minimum=1)
    negatives_per_query: int = option("Hard negatives drawn for each query and epoch.", default=7, minimum=0)
    hard_negative_ratio: float | None = option(
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
    query_cluster_count: int | None = option(
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
    bidirectional: bool = bidirectional_option(only={"kind": (DENSE,)})
    lora_rank: int | None = option(
        "Train adapters of this rank in all linear layers, and nothing else; merged when saved (retrievo[lora]).",
        default=None,
        minimum=1,
        hidden_default="all weights are trained",
        only={"kind": (DENSE,)},
    )
    lora_alpha: int | None = option(
        "The adapters' part is scaled by this / rank.", default=None, minimum=1, hidden_default="twice the rank"
    )
    fsdp: bool = option(
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
    restart: bool = restart_option()

    def check(self) -> None:
        super().check()
        if self.folder is None and not self.verify_gradients:
            raise UsageError("--output", "is needed", None, "pass --output FOLDER, or a stage: retrievo train stage-2")
        if self.teacher is None and (taught := [loss for loss in self.loss if loss in TAUGHT]):
            raise UsageError(f"--loss {taught[0]}", "needs a teacher", None, "pass --teacher RUN")
        self._check_sampling()
        if self.hard_negative_ratio and not self.negatives and not self.refresh_every:
            raise UsageError(
                "--hard-negative-ratio", f"is {self.hard_negative_ratio:g} of no pool", None, "pass --negatives POOL"
            )
        if self.extra_dataset:
            shares(self.mix, [1] * (1 + len(self.extra_dataset)))
        elif self.mix != UNIFORM:
            raise UsageError("--mix", f"is '{self.mix}' of one data set", None, "pass --extra-dataset DATA too")
        if self.lora_alpha and not self.lora_rank:
            raise UsageError("--lora-alpha", "scales adapters", None, "pass --lora-rank too")
        if self.fsdp:
            self._check_shard()
        if self.kind == CROSS_ENCODER:
            self._check_cross_encoder()
        self._check_negatives_found()

    def _check_negatives_found(self) -> None:
        """Rules of the negatives that are found while training."""
        if self.document_embeddings is not None:
            self._refuse(_beside_fixed_documents(), "--document-embeddings")
        elif self.dynamic_negatives is not None:
            fix = "pass --document-embeddings EMBEDDINGS too"
            raise UsageError("--dynamic-negatives", "are found among fixed documents", None, fix)
        if self.refresh_every and not self.negatives_per_query:
            raise UsageError("--refresh-every", "mines negatives that are never drawn", "--negatives-per-query above 0")
        if self.refresh_every and self.extra_dataset:
            fix = "leave --extra-dataset out, or mine between rounds"
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
        if self.balanced_margins and not self.negatives:
            raise UsageError("--balanced-margins", "draws from a pool", None, "pass --negatives POOL")
        grouped = [loss for loss in self.loss if loss in GROUPED]
        has_pool = self.negatives or self.refresh_every or self.hard_negative_ratio is not None
        has_own = self.document_embeddings is not None or (self.negatives_per_query and has_pool)
        if grouped and not has_own:
            fix = "pass --negatives POOL" if self.negatives_per_query else "leave --negatives-per-query 0 out"
            raise UsageError(
                f"--loss {grouped[0]}", "learns from each query's own negatives, of which there are none", None, fix
            )
        if self.batch_size == 1 and not has_own and self.kind == DENSE and not self.extra_dataset:
            found = "is 1, and a query has no negatives of its own: there is nothing to tell its document from"
            raise UsageError("--batch-size", found, "2 or more, or --negatives POOL")
        if self.query_cluster_count and self.query_clusters is None:
            raise UsageError(
                "--query-cluster-count", "counts the clusters of vectors", None, "pass --query-clusters EMBEDDINGS"
            )

    def _check_shard(self) -> None:
        """Refuses what runs out of memory to learn something: processes that wait for each other can't."""
        if self.verify_gradients:
            raise UsageError("--verify-gradients", "looks at whole models", None, "leave --fsdp out")
        if self.tokens_of_chunks is None:
            raise UsageError("--chunk-tokens", "auto can't be found out with --fsdp", None, "pass --chunk-tokens N")
        self._refuse({"refresh_every", "document_embeddings"}, "--fsdp")

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
        aside |= set() if self.extra_dataset else {"mix"}
        aside |= _beside_fixed_documents() if self.document_embeddings is not None else set()
        return {name: value for name, value in super().record().items() if name not in aside}

    @property
    def draws_from_pools(self) -> bool:
        """Whether all negatives are those of the pools and of the batch: no others are found or drawn on the way."""
        fills = self.kind == CROSS_ENCODER or self.hard_negative_ratio is not None
        return not (fills or self.refresh_every or self.document_embeddings is not None)

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
        if not path.exists() and is_unfinished(Path(stage)):
            raise RetrievoError(stage, "is unfinished", None, "type the command that began it again")
        told = relative_to(path.parent, cls, read_toml(path).get("train", {}))
        _check_written_here(path, told)
        return [Layer(str(path), told)]


def _check_written_here(path: Path, told: Mapping[str, Any]) -> None:
    """Raises UsageError where the settings of a stage name another folder to write to than the stage."""
    for name in ("output", "stage"):
        if name in told and Path(str(told[name])).resolve() != path.parent.resolve():
            fix = f"leave {name} out, or pass --output yourself"
            raise UsageError(path, f"sets {name} = '{told[name]}'", f"the stage itself, {path.parent}", fix)


def _of_encoders() -> set[str]:
    """Options that only an encoder has."""
    configs = (AdoreConfig, ValidationConfig, RefreshConfig)
    names = {known.name for config in configs for known in options_of(config)}
    return {*OF_THE_MODEL, *names, "document_embeddings", "query_clusters", "query_cluster_count"} - {"title_template"}


def _beside_fixed_documents() -> set[str]:
    """Options that have no meaning where document vectors stay and negatives are found among them."""
    return {*OF_THE_MODEL, *_OF_FOUND_NEGATIVES, "bidirectional", "matryoshka"} - set(OF_THE_QUERY)


def _of_validation() -> set[str]:
    return {known.name for known in options_of(ValidationConfig)}
