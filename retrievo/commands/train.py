"""`retrievo train`: fine-tune an encoder, or a cross-encoder, on queries, their relevant documents, and negatives.

A stage is a folder that holds the model it becomes: `retrievo train stage-2` reads `stage-2/train.toml`, which
`retrievo mine-negatives stage-1 to stage-2` writes, and trains in that folder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.commands.train_build import data_sets, inputs_of, model_objective_feed
from retrievo.commands.train_config import DEFAULT_EPOCHS, STAGE_FILES, TrainConfig
from retrievo.distributed.environment import started_together
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.values import Values
from retrievo.support.verbs import verb
from retrievo.training.engine.config import (
    CHECKPOINTS,
    DEVELOPMENT,
    MEMORY_OPTIONS,
    MODEL_FILES,
    REFRESH_DEPTH,
    WORKING_FILES,
)
from retrievo.training.objectives.table import CROSS_ENCODER, DENSE

if TYPE_CHECKING:
    import torch

    from retrievo.support.artifact import Manifest, Output
    from retrievo.training.batch import Batch
    from retrievo.training.engine.loop import Record
    from retrievo.training.engine.validation import Pool, Validation
    from retrievo.training.feeds.finetune import TrainingData
    from retrievo.training.objectives.objective import Objective

_VERIFIED_QUERIES = 32  # queries of a batch that fits in memory in one piece


@verb(TrainConfig)
def train(config: TrainConfig) -> Manifest | None:
    """Trains, resumes from the latest checkpoint of a killed run, or finds the output finished.

    Returns None after --verify-gradients, which trains nothing.

    Raises: RetrievoError for a model or tables that can't be read or do not fit together.
    """
    from retrievo.distributed.collectives import barrier, process_group, rank
    from retrievo.models.devices import prepare_cpu, resolve_device

    if config.fsdp and started_together() == 1:
        fix = "start it with torchrun --nproc-per-node N -m retrievo train ..."
        raise UsageError(
            "--fsdp", "found one process", "several processes, each of which keeps a part of the model", fix
        )
    prepare_cpu(config.threads)
    if config.verify_gradients:
        _verify(config)
        return None
    data = data_sets(config)
    pool = _pool(config, data)
    with process_group(resolve_device(config.device)) as device:
        output = _output(config, data, pool, device)
        finished = output.already_finished(lead=rank() == 0, barrier=barrier)
        return finished or _fit(config, data, pool, output, device)


def _verify(config: TrainConfig) -> None:
    """Prints the differences between gradients of one batch that must be equal."""
    import torch

    from retrievo.models.devices import resolve_device
    from retrievo.training.engine.verify import verify

    if started_together() > 1:
        raise UsageError("--verify-gradients", "found several processes", "one; it starts two by itself")
    small = dataclasses.replace(config, batch_size=min(config.batch_size, _VERIFIED_QUERIES))
    checks = verify(functools.partial(_assemble, small), torch.device(resolve_device(config.device)), seed=config.seed)
    rows = [[check.name, f"{check.difference:.1e}"] for check in checks]
    console.print_table(["two ways to one gradient", "largest relative difference"], rows)


def _assemble(config: TrainConfig) -> tuple[Objective, Batch]:
    """Makes the objective and the first batch from the files."""
    _, objective, feed = model_objective_feed(config, data_sets(config))
    return objective, feed.batch(0)


def _pool(config: TrainConfig, data: Sequence[TrainingData]) -> Pool | None:
    """The candidates of the validation queries; None without --dev-qrels."""
    from retrievo.training.engine.validation import Pool

    if config.dev_qrels is None:
        return None
    return Pool(config, data[0].corpus, config.dev_queries or config.queries, config.min_relevance)


def _output(config: TrainConfig, data: Sequence[TrainingData], pool: Pool | None, device: torch.device) -> Output:
    from retrievo.models.dtypes import recorded_dtype
    from retrievo.models.model_reference import model_record
    from retrievo.support.artifact import Output

    assert config.folder is not None
    model_config, model_inputs = model_record(config.model, config.revision)
    dtype = recorded_dtype(config.dtype, device)
    return Output(
        config.folder,
        "model" if config.kind == DENSE else CROSS_ENCODER,
        config.record() | model_config | {"computed_in": dtype},
        model_inputs | inputs_of(data, config.extra_dataset) | (pool.inputs if pool else {}),
        force=config.force,
        restart=config.restart,
        in_place=True,
        beside=STAGE_FILES,
        volatile=WORKING_FILES,
        unfinished=MODEL_FILES,
        adjustable=MEMORY_OPTIONS,
    )


def _fit(
    config: TrainConfig, data: Sequence[TrainingData], pool: Pool | None, output: Output, device: torch.device
) -> Manifest:
    """Trains in every process; the lead process begins the folder, exports the model and finishes the output."""
    from retrievo.distributed.collectives import barrier, rank
    from retrievo.models.lora import merge_adapters
    from retrievo.training.engine.logs import Course

    if config.draws_from_pools:
        for data_set in data:
            data_set.check_contrast(config.loss)
    with output.build_together(lead=rank() == 0, barrier=barrier) as folder:
        model, objective, validation, steps = _trained(config, data, pool, folder, device)
        barrier()
        if rank() != 0:
            return output.manifest({})
        if config.fsdp:
            model, objective = _in_one_piece(config, data, folder)
        stats = {"steps": steps, "queries": sum(data_set.judged for data_set in data)} | _best(validation, objective)
        if config.lora_rank:
            merge_adapters(model)
        loss = config.pair_loss if config.kind == CROSS_ENCODER else ", ".join(config.loss)
        pairs = sum(data_set.pairs for data_set in data)
        model.save(folder, {"trained on": f"{pairs:,} judged pairs", "steps": steps, "loss": loss})
        dim = {"dim": model.dim} if config.kind == DENSE else {}
        manifest = output.finish(stats | dim | Course.of(folder).stats)
    _summary(config, manifest)
    return manifest


def _trained(
    config: TrainConfig, data: Sequence[TrainingData], pool: Pool | None, folder: Path, device: torch.device
) -> tuple[Any, Objective, Validation | None, int]:
    """The model with its objective after training, its validation if there is one, and the number of steps."""
    from retrievo.distributed.collectives import rank
    from retrievo.distributed.fsdp import shard
    from retrievo.training.engine.ance import RefreshingFeed
    from retrievo.training.engine.checkpoints import latest_step
    from retrievo.training.engine.logs import in_words
    from retrievo.training.engine.loop import every_n_steps, fit
    from retrievo.training.engine.validation import Validation

    model, objective, feed = model_objective_feed(config, data)
    planned = dataclasses.replace(
        config, epochs=None, max_steps=_steps(config.max_steps, config.epochs, feed.batches_per_epoch)
    )
    if rank() == 0:
        _say(data, objective)
    validation = None
    if pool:
        console.note(f"validation: {len(pool):,} candidates of {len(pool.query_ids):,} queries, {config.dev_metric}")
        tokens = feed.document_tokens
        validation = Validation(config, pool, model, objective, tokens, folder=folder, dtype=config.dtype)
    if config.fsdp:
        shard(objective, device)
    every = every_n_steps(validation, planned.steps, config.validate_every) if validation else []
    if config.refresh_every:
        often, depth = config.refresh_every, config.refresh_depth or REFRESH_DEPTH
        feed = RefreshingFeed(
            feed, model, every=often, depth=depth, folder=folder, steps=planned.steps, dtype=config.dtype
        )
        every = [*every, (often, feed)]
    enough = validation.is_enough if validation else lambda: False
    with console.progress("training", planned.steps, "steps", latest_step(folder / CHECKPOINTS)) as tick:

        def show(record: Record) -> None:
            tick(1, in_words(record))

        steps = fit(objective, feed, planned, folder=folder, device=device, progress=show, every=every, enough=enough)
    return model, objective, validation, steps


def _say(data: Sequence[TrainingData], objective: Objective) -> None:
    """Prints how much data training uses, and the dimensions that --matryoshka trains."""
    from retrievo.training.objectives.finetune import Finetune

    for data_set in data:
        data_set.say_counts()
    if isinstance(objective, Finetune) and objective.dims:
        *cut, last = map(str, objective.dims)
        console.note(f"vectors of {', '.join(cut)} and {last} dimensions are trained")


def _in_one_piece(config: TrainConfig, data: Sequence[TrainingData], folder: Path) -> tuple[Any, Objective]:
    """The model in main memory with the weights of the last checkpoint, since the trained one is sharded."""
    from retrievo.training.engine.checkpoints import load_last_weights

    model, objective, _ = model_objective_feed(config, data)
    load_last_weights(folder / CHECKPOINTS, objective)
    return model, objective


def _best(validation: Validation | None, objective: Objective) -> Values:
    """Restores the best weights; returns their step and value for the manifest."""
    if validation is None:
        return {}
    validation.restore_best(objective)
    step, value = validation.best()
    if validation.says_nothing():
        console.warn(
            f"every validation gave {validation.metric} {value:.4f}, so no step is better than another: check "
            "--dev-qrels, --dev-run and --dev-metric"
        )
    console.note(f"the model of step {step:,} is kept, with {validation.metric} {value:.4f}")
    return {"best_step": step, validation.key: value}


def _steps(max_steps: int | None, epochs: float | None, batches_per_epoch: int) -> int:
    return max_steps or max(1, round((epochs or DEFAULT_EPOCHS) * batches_per_epoch))


def _development(stats: Mapping[str, object]) -> dict[str, str]:
    """What validation found, for the summary: the best step is the one whose model is kept."""
    if "best_step" not in stats:
        return {}
    name, value = next((name, value) for name, value in stats.items() if name.startswith(DEVELOPMENT))
    return {"dev": f"{name.removeprefix(DEVELOPMENT)} {value:.4f}, of step {stats['best_step']:,}, which is kept"}


def _summary(config: TrainConfig, manifest: Manifest) -> None:
    from retrievo.training.engine.logs import Course

    assert config.folder is not None
    stats = manifest.stats
    split = f" of the {config.split} split" if config.data else ""
    facts = {
        "output": f"{config.folder} ({stats['steps']:,} steps, {stats['queries']:,} judged queries{split})",
        **Course.of(config.folder).facts,
        **_development(stats),
        "log": f"{config.folder}/metrics.jsonl",
        "took": console.seconds(manifest.seconds or 0.0),
    }
    following = [f"retrievo mine-negatives {config.folder} to NEXT-STAGE"]
    if config.data is not None:
        following.insert(0, f"retrievo evaluate --model {config.folder} --data {config.data}")
    if config.kind == CROSS_ENCODER:
        tables = f"--data {config.data}" if config.data else "--corpus C --queries Q"
        following = [f"retrievo rerank --run RUN --model {config.folder} {tables} --output reranked.parquet"]
    if config.document_embeddings is not None:
        following = [f"retrievo encode --model {config.folder} --queries QUERIES --output QUERY-EMBEDDINGS"]
    console.summary("trained", facts, *following)
