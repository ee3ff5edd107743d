"""Options of the training loop. Standard library only: the command line reads this before torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retrievo.evaluation.names import check_metric
from retrievo.models.options import chunk_tokens_option, dtype_option
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, flag_of, option, options_of
from retrievo.support.sizes import bytes_of
from retrievo.training.engine.optimizers import OptimizerConfig

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

    max_steps: int | None = option("Steps to train.", default=None, minimum=1, alternative="length")
    seed: int = option("Of the order of the data, of dropout and of all else that is random.", default=0, minimum=0)
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option(4096, auto="what proves fastest")
    activation_memory: str = option(
        "Memory for graphs of chunks that are kept, so that these are not encoded twice; 0 keeps none.",
        default="1GB",
        check=graph_bytes,
        unless={"gradient_checkpointing": ()},  # graphs of its chunks hold next to nothing
    )
    gradient_checkpointing: bool = option(
        "Keep only the inputs of the backbone's layers and compute the rest again on the way back: a third slower, for "
        "texts and models that do not fit; no graphs are kept then.",
        default=False,
    )
    max_grad_norm: float = option("Longer gradients are shortened to it; 0 shortens none.", default=1.0, minimum=0)
    save_every: int | None = option(
        "Steps between checkpoints.",
        default=None,
        minimum=1,
        hidden_default="about every 5 minutes",
        affects_output=False,
    )
    keep_checkpoints: int = option("Checkpoints kept, the latest ones.", default=2, minimum=1, affects_output=False)
    tensorboard: bool = option(
        "Write TensorBoard's files too (retrievo[tensorboard]).", default=False, affects_output=False
    )
    prefetch: int = option("Batches made ahead of time.", default=2, minimum=0, affects_output=False)

    @property
    def tokens_of_chunks(self) -> int | None:
        """`chunk_tokens`; None where they are to be measured."""
        return self.chunk_tokens if isinstance(self.chunk_tokens, int) else None

    @property
    def steps(self) -> int:
        """The number of steps, once it is known."""
        assert self.max_steps is not None, "the number of steps is worked out before training starts"
        return self.max_steps


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Options):
    """Retrieval on development queries while training."""

    dev_qrels: Path | None = option(
        "Judgments to validate on while training; the model of the best step is kept.", default=None
    )
    dev_run: Path | None = option(
        "Run of these queries, such as BM25's: its first documents and the relevant ones are ordered by the model.",
        default=None,
    )
    dev_queries: Path | None = option("Their texts.", default=None, hidden_default="the table of --queries")
    dev_depth: int = option("Documents of the run for each query.", default=100, minimum=1)
    dev_metric: str = option("What is measured, and what makes a step the best.", default="mrr@10", check=check_metric)
    validate_every: int | None = option(
        "Steps between validations; the last step is one.", default=None, minimum=1, hidden_default="a tenth of all"
    )
    patience: int | None = option(
        "Validations without a better one after which training ends.", default=None, minimum=1, hidden_default="none"
    )

    def check(self) -> None:
        super().check()
        if self.dev_qrels is not None and self.dev_run is None:
            raise UsageError("--dev-qrels", "needs candidates", None, "pass --dev-run RUN, such as one of BM25")
        for known in options_of(ValidationConfig):
            if self.dev_qrels is None and getattr(self, known.name) != known.default:
                raise UsageError(flag_of(known.name), "is for validation", None, "pass --dev-qrels too")


@dataclass(frozen=True, kw_only=True)
class RefreshConfig(Options):
    """Hard negatives that are mined anew while training."""

    refresh_every: int | None = option(
        "Steps after which hard negatives are mined anew, with the model as it then is (ANCE).",
        default=None,
        minimum=1,
        hidden_default="never",
    )
    refresh_depth: int | None = option(
        "Documents that this finds for each query, of which relevant ones are left out.",
        default=None,
        minimum=1,
        hidden_default=f"{REFRESH_DEPTH}",
    )

    def check(self) -> None:
        super().check()
        if self.refresh_depth is not None and self.refresh_every is None:
            raise UsageError("--refresh-depth", "is for refreshed negatives", None, "pass --refresh-every too")
