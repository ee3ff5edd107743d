"""Options of the training loop. Standard library only: the command line reads this before torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retrievo.data.options import seed_option
from retrievo.evaluation.names import check_metric
from retrievo.models.options import chunk_tokens_option, dtype_option
from retrievo.support.conditions import only_where, only_with, only_without
from retrievo.support.options import Options, option
from retrievo.support.sizes import bytes_of
from retrievo.training.engine.optimizers import OptimizerConfig
from retrievo.training.objectives.table import DENSE

CHECKPOINTS, METRICS, PLOT, TENSORBOARD = "checkpoints", "metrics.jsonl", "metrics.png", "tensorboard"
REFRESHED = "refreshed-negatives"
REFRESH_DEPTH = 200  # as ANCE (Xiong et al. 2021) and mine-negatives search
DEVELOPMENT = "dev "  # what names of the log begin with that were measured on development data
# What a run may be given anew when it goes on. They change its memory and, as the number of processes does, the
# rounding of its gradient and which dropout is drawn.
MEMORY_OPTIONS = ("chunk_tokens", "activation_memory", "gradient_checkpointing")
WORKING_FILES = (CHECKPOINTS, METRICS, PLOT, TENSORBOARD, REFRESHED)  # what training leaves beside its result
MODEL_FILES = (  # patterns of what decides how a saved model is loaded, for the sake of one that was half saved
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
    "retrievo.json",
    "special_tokens_map.json",
    "tokenizer*",
    "router_config.json",
    "cross-encoder.json",
    ".saving",
    "1_Pooling",
    "2_Normalize",
    "query",
    "document",
)


def graph_bytes(text: str) -> int:
    """Bytes of `--activation-memory`."""
    return bytes_of("--activation-memory", text)


@dataclass(frozen=True, kw_only=True)
class FitConfig(OptimizerConfig):
    """How long training lasts, what it computes in, what it keeps."""

    max_steps: int | None = option(
        "Number of training steps. It replaces --epochs.",
        default=None,
        minimum=1,
        alternative="length",
        hidden_default="as many as --epochs takes",
        group="Schedule",
    )
    seed: int = seed_option("data order, dropout, sampling", group="Schedule")
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option(4096, auto="the fastest size, which is measured first")
    activation_memory: str = option(
        "Memory for activations kept between the two passes of gradient caching, as in 4GB. Chunks that fit in it are "
        "encoded once instead of twice; 0 keeps none.",
        default="1GB",
        check=graph_bytes,
        applies=only_without("gradient_checkpointing"),  # graphs of its chunks hold next to nothing
        group="Precision and memory",
    )
    gradient_checkpointing: bool = option(
        "Recompute activations in the backward pass instead of storing activations. Training takes a third longer, and "
        "longer texts and larger models fit in memory.",
        default=False,
        group="Precision and memory",
    )
    max_grad_norm: float = option(
        "Maximum norm of the gradient; longer gradients are clipped. 0 turns clipping off.",
        default=1.0,
        minimum=0,
        group="Schedule",
    )
    save_every: int | None = option(
        "Number of steps between checkpoints.",
        default=None,
        minimum=1,
        hidden_default="one about every 5 minutes",
        affects_output=False,
        group="Output",
    )
    keep_checkpoints: int = option(
        "Number of checkpoints to keep; older ones are deleted.",
        default=2,
        minimum=1,
        affects_output=False,
        group="Output",
    )
    tensorboard: bool = option(
        "Also write TensorBoard event files. This needs the extra retrievo[tensorboard].",
        default=False,
        affects_output=False,
        group="Output",
    )
    prefetch: int = option(
        "Number of batches to prepare ahead of time.", default=2, minimum=0, affects_output=False, group="Machine"
    )

    @property
    def tokens_of_chunks(self) -> int | None:
        """`chunk_tokens`; None where they are to be measured."""
        return self.chunk_tokens if isinstance(self.chunk_tokens, int) else None

    @property
    def steps(self) -> int:
        """The number of steps, once it is known."""
        assert self.max_steps is not None, "the number of steps is worked out before training starts"
        return self.max_steps


_DENSE = only_with("kind", DENSE)
# processes that wait for each other can't run out of memory to learn something
WITHOUT_FSDP = only_without("fsdp").otherwise("can't be combined with --fsdp", "leave one of them out")
_VALIDATED = _DENSE & only_with("dev_qrels")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Options):
    """Retrieval on development queries while training."""

    dev_qrels: Path | None = option(
        "Judgments for validation during training. The model of the best step is kept. The value is a Parquet file, a "
        "dataset folder, or a TREC or BEIR text file.",
        default=None,
        applies=_DENSE & only_with("dev_run").otherwise("needs candidates", "pass --dev-run RUN, such as one of BM25"),
        hidden_default="no validation",
        group="Validation",
    )
    dev_run: Path | None = option(
        "Run with the candidates for validation, such as one of BM25. The model ranks the first documents of each "
        "query and its relevant ones.",
        default=None,
        applies=_VALIDATED,
        group="Validation",
    )
    dev_queries: Path | None = option(
        "Query table of --dev-qrels.",
        default=None,
        hidden_default="the table of --queries",
        applies=_VALIDATED,
        group="Validation",
    )
    dev_depth: int = option(
        "Number of documents per query that are taken from --dev-run.",
        default=100,
        minimum=1,
        applies=_VALIDATED,
        group="Validation",
    )
    dev_metric: str = option(
        "Metric that is validated and that decides which step is the best.",
        default="mrr@10",
        check=check_metric,
        applies=_VALIDATED,
        group="Validation",
    )
    validate_every: int | None = option(
        "Number of steps between validations. The last step is always validated.",
        default=None,
        minimum=1,
        hidden_default="a tenth of all steps",
        applies=_VALIDATED,
        group="Validation",
    )
    patience: int | None = option(
        "Number of validations without improvement after which training stops.",
        default=None,
        minimum=1,
        hidden_default="no early stopping",
        applies=_VALIDATED,
        group="Validation",
    )


_MINES_WHILE_TRAINING = (
    WITHOUT_FSDP
    & only_without("extra_dataset").otherwise(
        "mines for one data set", "leave --extra-dataset out, or mine between rounds"
    )
    & only_without("teacher").otherwise(
        "finds documents that the teacher has not scored", "leave --refresh-every or --teacher out"
    )
    & only_where("with --negatives-per-query above 0", "negatives_per_query", holds=bool).otherwise(
        "mines negatives that are never drawn", "pass --negatives-per-query 1 or more"
    )
)


@dataclass(frozen=True, kw_only=True)
class RefreshConfig(Options):
    """Options of mining hard negatives again during training (ANCE)."""

    refresh_every: int | None = option(
        "Mine new hard negatives with the current model after this number of steps (ANCE).",
        default=None,
        minimum=1,
        hidden_default="never",
        applies=_DENSE & only_without("document_embeddings") & _MINES_WHILE_TRAINING,
        group="Negatives",
    )
    refresh_depth: int | None = option(
        "Number of documents retrieved per query when negatives are refreshed. Relevant documents are then left out.",
        default=None,
        minimum=1,
        hidden_default=f"{REFRESH_DEPTH}",
        applies=only_with("refresh_every"),
        group="Negatives",
    )
