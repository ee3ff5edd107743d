"""The options of `retrievo train`, and which of them go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrievo.data.mixing import UNIFORM, check_mix, shares
from retrievo.data.options import (
    force_option,
    min_relevance_option,
    output_option,
    restart_option,
    threads_option,
    title_template_option,
)
from retrievo.models.encoder_spec import SIMILARITIES
from retrievo.models.options import bidirectional_option, device_option, model_option, pooling_option, revision_option
from retrievo.support.artifact import is_unfinished
from retrievo.support.conditions import only_where, only_with, only_without
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import option
from retrievo.support.settings import Layer, read_toml, relative_to
from retrievo.training.engine.config import WITHOUT_FSDP, FitConfig, RefreshConfig, ValidationConfig
from retrievo.training.feeds.dataset_config import STAGE_SETTINGS, DataSetConfig
from retrievo.training.losses.losses import BATCH_TAUGHT, GROUPED, TAUGHT
from retrievo.training.objectives.table import (
    CROSS_ENCODER,
    DENSE,
    QUERIES_PER_TOPIC,
    AdoreConfig,
    CrossEncoderConfig,
)

STAGE_NEGATIVES = "negatives.parquet"
STAGE_FILES = (  # files of a stage before training, which are not the model's
    STAGE_SETTINGS,
    STAGE_NEGATIVES,
    "negatives.dropped.parquet",
    "negatives.audit.md",
    "embeddings",
)
DEFAULT_EPOCHS = 1.0
_ROLE_OPTIONS = tuple(f"{role}_{what}" for role in ("query", "document") for what in ("prefix", "max_length"))
OF_THE_MODEL = ("pooling", "normalize", "similarity", "tied", "title_template", *_ROLE_OPTIONS)
OF_THE_QUERY = ("query_prefix", "query_max_length")
_DENSE, _CROSS_ENCODER = only_with("kind", DENSE), only_with("kind", CROSS_ENCODER)
_WITHOUT_FIXED = only_without("document_embeddings")
_MINED_THERE_ARE = only_where(
    "with --negatives or --refresh-every where it is above 0",
    *("hard_negative_ratio", "negatives", "refresh_every"),
    holds=lambda ratio, pools, refresh: not ratio or pools or refresh,
).otherwise("is a share of no pool", "pass --negatives POOL")
_OF_DOCUMENTS = _DENSE & _WITHOUT_FIXED  # for encoders whose document side is trained


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig, AdoreConfig, CrossEncoderConfig, ValidationConfig, RefreshConfig, DataSetConfig):
    """Options of `retrievo train`."""

    stage: Path | None = option(
        f"Folder with a {STAGE_SETTINGS}, as from mine-negatives. The model is written there.",
        default=None,
        positional=True,
        decides_output=True,
        shown=True,
        group="Data",
    )
    kind: str = option(
        "Dense encoder, or cross-encoder for reranking.",
        default=DENSE,
        choices=(DENSE, CROSS_ENCODER),
        shown=True,
        group="Model",
    )
    model: str = model_option(affects_output=False)
    revision: str | None = revision_option()
    extra_dataset: tuple[Path, ...] = option(
        "More data to train on. Each is a dataset folder (its training split), a stage, or a TOML file such as "
        f"{STAGE_SETTINGS}.",
        default=(),
        several=True,
        applies=_WITHOUT_FIXED,
        group="Data",
    )
    mix: str = option(
        "How batches are divided among datasets. uniform draws each query once per epoch, equal draws as many batches "
        "from each dataset, alpha=0.5 lies between the two, and 3,1 gives weights.",
        default=UNIFORM,
        check=check_mix,
        applies=only_with("extra_dataset"),
        group="Data",
    )
    document_embeddings: Path | None = option(
        "Embeddings of the corpus by --model. The embeddings stay fixed, and the query encoder alone is trained "
        "against documents retrieved at each step (ADORE).",
        default=None,
        applies=_DENSE & WITHOUT_FSDP,
        hidden_default="both sides are trained",
        group="Negatives",
    )
    output: Path | None = output_option("Model folder to write.", default=None, shown=True, hidden_default="the stage")
    batch_size: int = option("Queries per step, over all processes.", default=64, minimum=1, shown=True, group="Batch")
    negatives_per_query: int = option(
        "Number of hard negatives drawn per query and epoch.",
        default=7,
        minimum=0,
        applies=_WITHOUT_FIXED,
        group="Negatives",
    )
    hard_negative_ratio: float | None = option(
        "Probability that a negative is mined rather than random. Contriever uses 0.1.",
        default=None,
        minimum=0,
        maximum=1,
        hidden_default="1, with no random negatives",
        applies=_WITHOUT_FIXED & _MINED_THERE_ARE,
        group="Negatives",
    )
    balanced_margins: int | None = option(
        "Number of bins of the teacher's margins from which hard negatives are drawn evenly. TAS-Balanced uses 10.",
        default=None,
        minimum=2,
        hidden_default="uniform draws from the pool",
        applies=only_with("loss", *TAUGHT)
        & only_with("negatives").otherwise("draws from a pool", "pass --negatives POOL"),
        group="Negatives",
    )
    query_cluster_count: int | None = option(
        "Number of clusters of --query-clusters.",
        default=None,
        minimum=1,
        hidden_default=f"one per {QUERIES_PER_TOPIC} judged queries, at least 2",
        applies=only_with("query_clusters"),
        group="Batch",
    )
    epochs: float | None = option(
        "Number of passes over the judged queries.",
        default=None,
        above=0,
        alternative="length",
        shown=True,
        hidden_default=f"{DEFAULT_EPOCHS:g}",
        group="Schedule",
    )
    min_relevance: int = min_relevance_option()
    max_length: int | None = option(
        "Maximum number of tokens of a query and a document together.",
        default=None,
        minimum=5,
        hidden_default="the model's own",
        applies=_CROSS_ENCODER,
        group="Model",
    )
    query_max_length: int | None = option(
        "Maximum number of tokens of a query.",
        default=None,
        minimum=3,
        hidden_default="the model's own",
        applies=_DENSE,
        group="Model",
    )
    document_max_length: int | None = option(
        "Maximum number of tokens of a document.",
        default=None,
        minimum=3,
        hidden_default="the model's own",
        applies=_OF_DOCUMENTS,
        group="Model",
    )
    title_template: str | None = title_template_option(
        default=None, hidden_default="the model's own", applies=_WITHOUT_FIXED
    )
    pooling: str | None = pooling_option(applies=_OF_DOCUMENTS)
    normalize: bool | None = option(
        "Scale vectors to unit length.",
        default=None,
        hidden_default="the model's own",
        applies=_OF_DOCUMENTS,
        group="Model",
    )
    similarity: str | None = option(
        "Similarity between a query vector and a document vector.",
        default=None,
        choices=SIMILARITIES,
        hidden_default="the model's own",
        applies=_OF_DOCUMENTS,
        group="Model",
    )
    tied: bool | None = option(
        "Use one backbone for queries and documents instead of one for each.",
        default=None,
        hidden_default="the model's own",
        applies=_OF_DOCUMENTS,
        group="Model",
    )
    bidirectional: bool = bidirectional_option(applies=_OF_DOCUMENTS)
    lora_rank: int | None = option(
        "Rank of LoRA adapters, which are trained in all linear layers instead of the weights and merged when the "
        "model is saved. This needs the extra retrievo[lora].",
        default=None,
        minimum=1,
        hidden_default="all weights are trained",
        applies=_DENSE,
        group="Model",
    )
    lora_alpha: int | None = option(
        "LoRA alpha; the adapters' output is scaled by alpha / rank.",
        default=None,
        minimum=1,
        hidden_default="twice the rank",
        applies=only_with("lora_rank"),
        group="Model",
    )
    fsdp: bool = option(
        "Shard weights, gradients and optimizer state over processes (FSDP2), for backbones that do not fit on one "
        "device. The command must run under torchrun.",
        default=False,
        affects_output=False,
        group="Precision and memory",
    )
    verify_gradients: bool = option(
        "Train nothing; compute one step in several ways, such as cached and not, and compare the gradients.",
        default=False,
        affects_output=False,
        applies=only_without("fsdp").otherwise("looks at whole models", "leave --fsdp out"),
        group="Precision and memory",
    )
    device: str = device_option()
    threads: int | None = threads_option()
    force: bool = force_option()
    restart: bool = restart_option()

    def check(self) -> None:
        super().check()
        if self.folder is None and not self.verify_gradients:
            raise UsageError("--output", "is needed", None, "pass --output FOLDER, or a stage: retrievo train stage-2")
        self._check_losses()
        if self.extra_dataset:
            shares(self.mix, [1] * (1 + len(self.extra_dataset)))
        if self.fsdp and self.tokens_of_chunks is None:
            raise UsageError("--chunk-tokens", "auto can't be determined with --fsdp", None, "pass --chunk-tokens N")
        if self.kind == CROSS_ENCODER:
            self._check_cross_encoder()

    def _check_losses(self) -> None:
        """Refuses losses that lack the teacher or the negatives that they learn from."""
        if self.teacher is None and (taught := [loss for loss in self.loss if loss in TAUGHT]):
            raise UsageError(f"--loss {taught[0]}", "needs a teacher", None, "pass --teacher RUN")
        if BATCH_TAUGHT[0] in self.loss and len(self.batch_teacher) != 2:
            fix = "pass --batch-teacher CORPUS-EMBEDDINGS QUERY-EMBEDDINGS"
            found = (
                f"needs a teacher's vectors of the corpus and of the queries, found {len(self.batch_teacher)} folders"
            )
            raise UsageError(f"--loss {BATCH_TAUGHT[0]}", found, None, fix)
        grouped = [loss for loss in self.loss if loss in GROUPED]
        has_pool = self.negatives or self.refresh_every or self.hard_negative_ratio is not None
        has_own = self.document_embeddings is not None or (self.negatives_per_query and has_pool)
        if grouped and not has_own:
            fix = "pass --negatives POOL" if self.negatives_per_query else "leave --negatives-per-query 0 out"
            raise UsageError(
                f"--loss {grouped[0]}", "learns from each query's own negatives, of which there are none", None, fix
            )
        if self.batch_size == 1 and not has_own and self.kind == DENSE and not self.extra_dataset:
            found = "is 1, and a query has no negatives of its own: its document has nothing to be compared with"
            raise UsageError("--batch-size", found, "2 or more, or --negatives POOL")

    def _check_cross_encoder(self) -> None:
        """Refuses a cross-encoder without negatives in its groups, since it uses no other documents of the batch."""
        if not self.negatives_per_query:
            found = "is 0: a cross-encoder learns from a group, which has no other documents"
            raise UsageError("--negatives-per-query", found, "at least 1")

    @property
    def draws_from_pools(self) -> bool:
        """Whether all negatives come from the pools and the batch: none is mined or drawn at random during training."""
        fills = self.kind == CROSS_ENCODER or self.hard_negative_ratio is not None
        return not (fills or self.refresh_every or self.document_embeddings is not None)

    @property
    def folder(self) -> Path | None:
        """The folder that the model is written to."""
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
        settings = relative_to(path.parent, cls, read_toml(path).get("train", {}))
        _check_written_here(path, settings)
        return [Layer(str(path), settings)]


def _check_written_here(path: Path, settings: Mapping[str, object]) -> None:
    """Raises UsageError where the settings of a stage name another folder to write to than the stage."""
    for name in ("output", "stage"):
        if name in settings and Path(str(settings[name])).resolve() != path.parent.resolve():
            fix = f"leave {name} out, or pass --output yourself"
            raise UsageError(path, f"sets {name} = '{settings[name]}'", f"the stage itself, {path.parent}", fix)
