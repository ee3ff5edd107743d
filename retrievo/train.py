"""`retrievo train`: fine-tune an encoder on queries, their relevant documents, and negatives.

A stage is a folder that holds the model it becomes: `retrievo train stage-2` reads `stage-2/train.toml`, which
`retrievo mine-negatives stage-1 to stage-2` writes, and trains in that folder.
"""

from __future__ import annotations

import dataclasses
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
from retrievo.engine.settings import FitConfig
from retrievo.models.options import device_option, model_option, pooling_option, revision_option
from retrievo.models.spec import SIMILARITIES
from retrievo.objectives.choices import FinetuneConfig
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import option
from retrievo.support.settings import Layer, read_toml, relative_to

if TYPE_CHECKING:
    import torch

    from retrievo.engine.loop import Record
    from retrievo.models.encoder import Encoder
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
_ROLE_OPTIONS = tuple(f"{role}_{what}" for role in ("query", "document") for what in ("prefix", "max_length"))
_OF_THE_MODEL = ("pooling", "normalize", "similarity", "tied", "title_template", *_ROLE_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig, FinetuneConfig):
    """Options of `retrievo train`."""

    stage: Path | None = option(
        f"Folder with a {STAGE_SETTINGS}; the model is written there.", default=None, positional=True
    )
    model: str = model_option(affects_output=False)
    revision: str | None = revision_option()
    corpus: Path = corpus_option()
    queries: Path = queries_option()
    qrels: Path = qrels_option()
    negatives: tuple[Path, ...] = option("Pools of hard negatives; several are joined.", default=(), several=True)
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
    device: str = device_option()
    threads: int | None = threads_option()
    force: bool = force_option()

    def check(self) -> None:
        super().check()
        if self.folder is None:
            raise UsageError("--output", "is needed", None, "pass --output FOLDER, or a stage: retrievo train stage-2")

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


def train(config: TrainConfig) -> Manifest:
    """Trains, or goes on from the latest checkpoint of a killed run, or finds all finished.

    Raises: RetrievoError for a model or tables that can't be read or do not fit together.
    """
    from retrievo.learning.distributed import barrier, process_group
    from retrievo.models.devices import prepare_cpu, resolve_device
    from retrievo.objectives.training_data import TrainingData

    prepare_cpu(config.threads)
    data = TrainingData(config.corpus, config.queries, config.qrels, config.negatives, config.min_relevance)
    with process_group(resolve_device(config.device)) as device:
        output = _output(config, data, device)
        finished = output.already_finished()
        barrier()  # every process has looked before one begins
        return finished or _fit(config, data, output, device)


def _output(config: TrainConfig, data: TrainingData, device: torch.device) -> Output:
    from retrievo.models.precision import resolve_dtype
    from retrievo.models.source import model_record
    from retrievo.support.artifact import Output

    assert config.folder is not None
    model_config, model_inputs = model_record(config.model, config.revision)
    dtype = str(resolve_dtype(config.dtype, device)).removeprefix("torch.")
    return Output(
        config.folder,
        "model",
        config.record() | model_config | {"computed_in": dtype},
        model_inputs | data.inputs,
        force=config.force,
        in_place=True,
        beside=STAGE_FILES,
        volatile=("checkpoints", "metrics.jsonl"),
    )


def _fit(config: TrainConfig, data: TrainingData, output: Output, device: torch.device) -> Manifest:
    """Every process trains; the lead one begins the folder, exports the encoder and finishes."""
    from retrievo.engine.loop import fit
    from retrievo.learning.distributed import barrier, rank
    from retrievo.objectives.finetune import Finetune
    from retrievo.objectives.training_data import TrainingFeed

    with output.build_together(lead=rank() == 0, barrier=barrier) as folder:
        encoder = _load(config, data)
        objective = Finetune(config, encoder)
        feed = TrainingFeed(
            data,
            encoder,
            objective.collator(),
            batch_size=config.batch_size,
            negatives_per_query=config.negatives_per_query,
            seed=config.seed,
            hard_share=config.hard_share,
        )
        planned = dataclasses.replace(config, epochs=None, max_steps=_steps(config, feed.batches_per_epoch))
        if rank() == 0:
            data.say_counts()
        with console.progress("training", planned.steps, "steps") as tick:
            fit(objective, feed, planned, folder=folder, device=device, progress=lambda record: _show(tick, record))
        barrier()
        if rank() != 0:
            return output.manifest({})
        facts = {"trained on": f"{data.pairs:,} judged pairs", "steps": planned.steps, "loss": ", ".join(config.loss)}
        encoder.save(folder, facts)
        manifest = output.finish({"steps": planned.steps, "queries": data.judged, "dim": encoder.dim})
    _summary(config, manifest)
    return manifest


def _load(config: TrainConfig, data: TrainingData) -> Encoder:
    """The encoder that training starts from: a model that exists, or a random one with a vocabulary of this corpus."""
    from retrievo.models.encoder import Encoder
    from retrievo.models.scratch import scratch_folder, scratch_size

    options = {name: getattr(config, name) for name in _OF_THE_MODEL}
    if scratch_size(config.model) is None:
        return Encoder.load(config.model, config.revision, **options)
    options["pooling"] = config.pooling or "cls"
    return Encoder.load(scratch_folder(config.model, data.corpus, config.seed), **options)


def _steps(config: TrainConfig, batches_per_epoch: int) -> int:
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round((config.epochs or DEFAULT_EPOCHS) * batches_per_epoch))


def _show(tick: console.Tick, record: Record) -> None:
    """The bar moves one step and shows what a person watches."""
    words = (
        f"loss {record['loss']:.4f}",
        f"accuracy {record['accuracy']:.1%}",
        f"{record['pairs_per_second']:,.0f} pairs/s",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"padding {record['padding']:.0%}",
        f"{record['memory_bytes'] >> 20:,} MiB",
    )
    tick(1, ", ".join(words))


def _summary(config: TrainConfig, manifest: Manifest) -> None:
    facts = {
        "made": f"{config.folder} ({manifest.stats['steps']:,} steps, {manifest.stats['queries']:,} judged queries)",
        "log": f"{config.folder}/metrics.jsonl",
        "took": console.seconds(manifest.seconds or 0.0),
    }
    console.summary("trained", facts, f"retrievo mine-negatives {config.folder} to NEXT-STAGE")
