"""`retrievo pretrain`: teach a backbone what documents are made of, before it sees any query.

A backbone without a Condenser head first gets a condenser stage, then coCondenser, in the same command: a fresh head
under the contrast would harm it (coCondenser, Gao & Callan 2022, section 3.2). Each stage has its own checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.mixing import UNIFORM, check_mix, shares
from retrievo.data.options import (
    OF_DATA,
    corpora_option,
    data_option,
    force_option,
    of_data,
    output_option,
    restart_option,
    threads_option,
    title_template_option,
)
from retrievo.models.options import bidirectional_option, device_option, model_option, revision_option
from retrievo.support import console
from retrievo.support.conditions import only_where, only_with
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import option, worked_out
from retrievo.support.values import Values
from retrievo.support.verbs import verb
from retrievo.training.engine.config import (
    CHECKPOINTS,
    DEVELOPMENT,
    MEMORY_OPTIONS,
    MODEL_FILES,
    WORKING_FILES,
    FitConfig,
)
from retrievo.training.engine.optimizers import OptimizerConfig
from retrievo.training.objectives.table import (
    CONTRASTIVE,
    LONGEST_QUEUE,
    OBJECTIVES,
    PRETRAINING,
    ContrieverConfig,
    PretrainingOptions,
    ViewsConfig,
    objective_class,
    recipe_defaults,
    with_objective,
)

if TYPE_CHECKING:
    import torch

    from retrievo.data.corpus import Corpus
    from retrievo.models.encoder import Encoder
    from retrievo.support.artifact import Manifest, Output
    from retrievo.training.engine.loop import Record

CONDENSER, COCONDENSER = "condenser", "cocondenser"
FIRST_STAGE = "condenser-stage"  # folder of its checkpoints and its log, inside the output
DEFAULT_EPOCHS = 8.0  # as the published recipe
COLLAPSED = 0.05  # standard deviation of vectors of unit length: a mean cosine of 0.9975 between documents
VALIDATION_TOKENS = 4_096  # of a chunk, where training measures its own
VALIDATED = {"loss", "mlm_loss", "head_mlm_loss", "late_mlm_loss", "contrastive_loss", "accuracy"}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(FitConfig, PretrainingOptions):
    """Options of `retrievo pretrain`; the defaults are the published recipe of the chosen objective."""

    objective: str = option(
        "Objective that pre-training minimizes.",
        default=COCONDENSER,
        choices=PRETRAINING,
        shown=True,
        group="Objective",
    )
    model: str = model_option(default="bert-base-uncased", affects_output=False, shown=True)
    revision: str | None = revision_option()
    data: Path | None = data_option("corpus")
    corpus: tuple[Path, ...] = corpora_option(default=None, hidden_default=OF_DATA, shown=True)
    mix: str = option(
        "How several corpora are mixed. uniform draws documents evenly, equal draws corpora evenly, alpha=0.5 lies "
        "between the two, and 3,1 gives weights.",
        default=UNIFORM,
        check=check_mix,
        group="Data",
    )
    held_out: int = option(
        "Number of documents that are held out of training for the validation loss.",
        default=0,
        minimum=0,
        group="Validation",
    )
    validate_every: int | None = option(
        "Number of steps between validation losses.",
        default=None,
        minimum=1,
        affects_output=False,
        hidden_default="a tenth of the steps",
        applies=only_where("with --held-out above 0", "held_out", holds=lambda documents: documents > 0),
        group="Validation",
    )
    show_views: int | None = option(
        "Print the training views of this number of documents and exit.",
        default=None,
        minimum=1,
        affects_output=False,
        group="Objective",
    )
    output: Path = output_option("Model folder to write.", default=Path("pretrained"), shown=True)
    title_template: str | None = title_template_option(default=None, hidden_default="the model's own")
    query_max_length: int | None = option(
        "Maximum number of tokens of a query, which the pre-trained model records.",
        default=None,
        minimum=3,
        hidden_default="the model's own",
        group="Model",
    )
    document_max_length: int | None = option(
        "Maximum number of tokens of a document, which the pre-trained model records.",
        default=None,
        minimum=3,
        hidden_default="the model's own",
        group="Model",
    )
    batch_size: int = option(
        "Documents per step, over all processes.",
        default=None,
        minimum=2,
        shown=True,
        hidden_default=recipe_defaults("batch_size"),
        group="Batch",
    )
    learning_rate: float = worked_out(OptimizerConfig, "learning_rate", recipe_defaults("learning_rate"))
    delete: float = worked_out(ViewsConfig, "delete", f"{recipe_defaults('delete')}, else 0")
    beta2: float = worked_out(OptimizerConfig, "beta2", recipe_defaults("beta2"))
    epsilon: float = worked_out(OptimizerConfig, "epsilon", recipe_defaults("epsilon"))
    epochs: float | None = option(
        "Number of passes over the corpus.",
        default=None,
        above=0,
        alternative="length",
        shown=True,
        hidden_default=f"{DEFAULT_EPOCHS:g}",
        group="Schedule",
    )
    bidirectional: bool = bidirectional_option(applies=with_objective(lambda: ViewsConfig))
    condenser_steps: int | None = option(
        "Number of steps of the condenser stage, which a model without a Condenser head gets first. 0 skips it.",
        default=None,
        minimum=0,
        hidden_default="as many as the steps of cocondenser",
        applies=only_with("objective", COCONDENSER),
        group="Schedule",
    )
    continue_: bool = option(
        "Continue from a finished output with a larger --max-steps. The learning rate warms up again.",
        default=False,
        affects_output=False,
        decides_output=True,
        group="Output",
    )
    device: str = device_option()
    threads: int | None = threads_option()
    force: bool = force_option()
    restart: bool = restart_option()

    def recipe(self) -> Mapping[str, Any]:
        corpus = {name: (path,) for name, path in of_data(self.data, "corpus").items()}
        return corpus | ({"delete": 0.0, **OBJECTIVES[self.objective].recipe} if self.objective in PRETRAINING else {})

    def check(self) -> None:
        super().check()
        if self.continue_ and self.max_steps is None:
            raise UsageError("--continue", "needs to know how long", None, "pass --max-steps N, counted from the start")
        for flag, given in (("--force", self.force), ("--restart", self.restart)):
            if self.continue_ and given:
                raise UsageError(flag, "is given together with --continue", "one of them")
        if not self.corpus:
            raise UsageError("--corpus", "is needed", None, "pass --corpus CORPUS")
        shares(self.mix, [1] * len(self.corpus))
        if self.queue_size is not None and self.queue_size < self.batch_size:
            raise UsageError("--queue-size", f"found {self.queue_size}", f"at least --batch-size ({self.batch_size})")


@dataclass(frozen=True)
class Stage:
    """One objective; `folder` gets its log and checkpoints."""

    objective: str
    folder: Path
    steps: int | None  # None: the number of epochs determines it
    restart: int = 0  # step at which the schedule starts over


@verb(PretrainConfig)
def pretrain(config: PretrainConfig) -> Manifest | None:
    """Pre-trains, resumes from the latest checkpoint of a killed run, or finds the output finished.

    With `show_views` it only prints views and returns None.

    Raises: RetrievoError for a corpus whose texts are too short for spans, a model that can't be loaded, and a backbone
    of an unknown family.
    """
    from retrievo.data.corpus import Corpus
    from retrievo.distributed.collectives import barrier, process_group, rank
    from retrievo.models.devices import prepare_cpu, resolve_device

    prepare_cpu(config.threads)
    corpora = [Corpus(path) for path in config.corpus]
    if config.show_views:
        _show_views(config, corpora)
        return None
    console.note(f"pre-training with {config.objective} into {config.output}")
    with process_group(resolve_device(config.device)) as device:
        restart = _restart(config.output, config.max_steps) if config.continue_ else 0
        output = _output(config, corpora, device, restart)
        finished = output.already_finished(lead=rank() == 0, barrier=barrier)
        return finished or _train(config, corpora, output, device, restart)


def _output(config: PretrainConfig, corpora: Sequence[Corpus], device: torch.device, restart: int) -> Output:
    from retrievo.models.dtypes import recorded_dtype
    from retrievo.models.model_reference import model_record
    from retrievo.support.artifact import Output

    model_config, model_inputs = model_record(config.model, config.revision)
    dtype = recorded_dtype(config.dtype, device)
    record = config.record() | model_config | {"computed_in": dtype} | ({"continued_from": restart} if restart else {})
    names = ["corpus", *(f"corpus {number}" for number in range(2, 1 + len(corpora)))]
    inputs = {name: corpus.input for name, corpus in zip(names, corpora, strict=True)}
    return Output(
        config.output,
        "model",
        record,
        model_inputs | inputs,
        force=config.force,
        restart=config.restart,
        in_place=True,
        beside=("embeddings",),
        volatile=(*WORKING_FILES, FIRST_STAGE),
        unfinished=MODEL_FILES,
        continues=("max_steps", "epochs", "continued_from") if restart else (),
        adjustable=MEMORY_OPTIONS,
    )


def _restart(folder: Path, max_steps: int | None) -> int:
    """The step from which a finished run continues.

    Raises: RetrievoError where there is no finished run; UsageError where --max-steps is not more than its steps.
    """
    from retrievo.support.artifact import recorded_work

    recorded, stats = recorded_work(folder, "model")
    if recorded.get("max_steps") == max_steps and "continued_from" in recorded:
        return int(recorded["continued_from"])  # this very continuation, killed or finished
    if "steps" not in stats:
        raise RetrievoError(folder, "is unfinished", "a finished run to continue", "leave --continue out")
    steps = int(stats["steps"])
    assert max_steps is not None
    if max_steps <= steps:
        raise UsageError("--max-steps", f"found {max_steps}", f"more than the {steps} steps that were made")
    console.note(f"{folder} continues from step {steps}; the learning rate warms up again")
    return steps


def _train(
    config: PretrainConfig, corpora: Sequence[Corpus], output: Output, device: torch.device, restart: int
) -> Manifest:
    """Trains in every process; the lead process begins the folder, exports the encoder and finishes the output."""
    from retrievo.distributed.collectives import barrier, rank
    from retrievo.training.engine.logs import Course

    with output.build_together(lead=rank() == 0, barrier=barrier) as folder:
        encoder = _load(config, corpora, restart)
        works = _works(config, corpora, encoder, folder, restart)
        for work in works:
            work.fit(device)
        steps = [work.steps for work in works]
        barrier()
        if rank() != 0:
            return output.manifest({})
        facts = {"pre-trained with": config.objective, "steps": " + ".join(map(str, steps))}
        encoder.save(folder, facts)
        stats: dict[str, float] = {"steps": steps[-1], "condenser_steps": sum(steps[:-1]), "dim": encoder.dim}
        stats |= {"documents": sum(map(len, corpora))}
        manifest = output.finish(stats | Course.of(folder).stats)
    _summary(config, manifest)
    return manifest


def _load(config: PretrainConfig, corpora: Sequence[Corpus], restart: int) -> Encoder:
    """The model to train; a continued run loads its own output, and the checkpoint then restores exact weights."""
    from retrievo.models.scratch import scratch_folder, scratch_size

    name, revision = config.model, config.revision
    if restart:
        name, revision = str(config.output), None
    elif scratch_size(name) is not None:
        name, revision = str(scratch_folder(name, corpora, config.seed)), None
    kept = ("title_template", "query_max_length", "document_max_length")
    options = {name: getattr(config, name) for name in kept}
    if config.objective in CONTRASTIVE:
        return _plain(config, name, revision, options)
    from retrievo.models.condenser import MaskedEncoder

    # a backbone with its heads; coCondenser trains [CLS] vectors compared by inner product (eq. 6)
    return MaskedEncoder.load(name, revision, pooling="cls", normalize=False, similarity="dot", **options)


def _plain(config: PretrainConfig, name: str, revision: str | None, options: Values) -> Encoder:
    """A backbone without heads, with the pooling and similarity that its folder states, else Contriever's."""
    from retrievo.models.bidirectional import attend_both_ways
    from retrievo.models.checkpoints import locate
    from retrievo.models.encoder import Encoder
    from retrievo.models.loading import read_folder

    chosen: Values = {"pooling": config.pooling}
    if config.normalize is not None:
        chosen |= {"normalize": config.normalize, "similarity": "cosine" if config.normalize else "dot"}
    stated = read_folder(locate(name, revision), name).stated
    if config.pooling is None and "pooling" not in stated:
        chosen["pooling"] = "mean"
    encoder = Encoder.load(name, revision, **options, **chosen)
    if config.bidirectional and name != str(config.output):  # a continued model has its config.json
        attend_both_ways(encoder)
    spec = encoder.spec
    console.note(f"vectors: {spec.pooling} of tokens, {'' if spec.normalize else 'not '}normalized, {spec.similarity}")
    return encoder


def _works(
    config: PretrainConfig, corpora: Sequence[Corpus], encoder: Encoder, folder: Path, restart: int
) -> list[_Work]:
    """The work of all stages in order, made before the first begins, so that errors of a later one appear at once."""
    stages = [Stage(config.objective, folder, config.max_steps, restart)]
    has_head = getattr(encoder, "condenser", None) is not None
    if config.objective == COCONDENSER and not has_head and config.condenser_steps != 0:
        stages.insert(0, Stage(CONDENSER, folder / FIRST_STAGE, config.condenser_steps or config.max_steps))
    return [_Work(config, corpora, encoder, stage) for stage in stages]


class _Work:
    """A stage with its objective and its feed.

    Raises: RetrievoError for an objective that the encoder does not support, and for documents too short for its spans.
    """

    def __init__(self, config: PretrainConfig, corpora: Sequence[Corpus], encoder: Encoder, stage: Stage):
        from retrievo.training.feeds.pretrain import PretrainFeed

        if config.queue_size is None and issubclass(OBJECTIVES[stage.objective].config, ContrieverConfig):
            documents = sum(map(len, corpora))
            # short enough that queued keys are mostly of other documents
            most = max(config.batch_size, min(LONGEST_QUEUE, documents // 4))
            config = dataclasses.replace(config, queue_size=most)
        self.config, self.stage = config, stage
        self.objective = objective_class(stage.objective)(config, encoder)
        collator = self.objective.collator()
        options = {name: getattr(config, name) for name in ("batch_size", "seed", "mix", "held_out")}
        self.feed = PretrainFeed(corpora, encoder, collator, **options)
        epochs = config.epochs or DEFAULT_EPOCHS
        self.steps = stage.steps or max(1, round(epochs * self.feed.batches_per_epoch))

    def fit(self, device: torch.device) -> None:
        """Trains the encoder in place."""
        from retrievo.distributed.collectives import rank
        from retrievo.training.engine.checkpoints import latest_step
        from retrievo.training.engine.logs import in_words
        from retrievo.training.engine.loop import every_n_steps, fit

        if rank() == 0:
            self.feed.say_counts()
        planned = dataclasses.replace(self.config, epochs=None, continue_=False, max_steps=self.steps)
        left = self.steps - self.stage.restart
        watch = _CollapseWatch(self.stage.restart + round(self.config.warmup_ratio * left))
        held_out = self.config.held_out
        every = every_n_steps(self.validate, self.steps, self.config.validate_every) if held_out else []
        done = latest_step(self.stage.folder / CHECKPOINTS)
        with console.progress(self.stage.objective, self.steps, "steps", done) as tick:

            def progress(record: Record) -> None:
                tick(1, in_words(record))
                watch(record)

            fit(
                self.objective,
                self.feed,
                planned,
                folder=self.stage.folder,
                device=device,
                progress=progress,
                every=every,
                restart=self.stage.restart,
            )

    def validate(self, step: int) -> dict[str, float]:
        """Means of metrics over the held-out documents, by their names in the log."""
        from retrievo.models.dtypes import resolve_dtype
        from retrievo.training.engine.gradient_cache import validation_step

        sums: Counter[str] = Counter()
        dtype = resolve_dtype(self.config.dtype, next(self.objective.parameters()).device)
        for batch in self.feed.held_out_batches():
            tokens = self.config.tokens_of_chunks or VALIDATION_TOKENS
            stats = validation_step(self.objective, batch, chunk_tokens=tokens, dtype=dtype)
            documents = int(stats["documents"])
            sums.update({name: documents * stats[name].item() for name in stats.keys() & VALIDATED})
        found = {DEVELOPMENT + name: value / self.config.held_out for name, value in sorted(sums.items())}
        console.note(f"step {step:,}: loss of held-out documents {found[DEVELOPMENT + 'loss']:.4f}")
        return found


class _CollapseWatch:
    """Warns once if all vectors have become nearly equal, which the loss may not show.

    It ignores the steps up to `warm`, since the vectors of a random model are nearly equal too.
    """

    def __init__(self, warm: int):
        self.warm, self.warned = warm, False

    def __call__(self, record: Record) -> None:
        spread = record.get("vector_std", 1.0)
        if self.warned or record["step"] <= self.warm or spread >= COLLAPSED:
            return
        self.warned = True
        console.warn(
            f"step {record['step']:,}: the vectors are nearly all the same (standard deviation {spread:.3f}; spread "
            "evenly it is 1): they collapse; lower --learning-rate, raise --batch-size, or --normalize"
        )


def _show_views(config: PretrainConfig, corpora: Sequence[Corpus]) -> None:
    """Prints the views of the first documents of the first step."""
    from retrievo.training.feeds.preview import previews

    assert config.show_views is not None
    encoder = _load(config, corpora, 0)
    feed = _works(config, corpora, encoder, config.output, 0)[-1].feed
    items = feed.items(0)[: config.show_views]
    for number, views in enumerate(previews(feed.collator, encoder.tokenizer, items), start=1):
        print(f"document {number}")
        print("\n".join(f"  {name}: {text}" for name, text in views))


def _summary(config: PretrainConfig, manifest: Manifest) -> None:
    from retrievo.training.engine.logs import Course

    stats, output = manifest.stats, config.output
    before = f"{stats['condenser_steps']:,} steps of condenser, then " if stats["condenser_steps"] else ""
    facts = {
        "output": f"{output} ({before}{stats['steps']:,} steps of {config.objective})",
        **Course.of(output).facts,
        "log": f"{output}/metrics.jsonl",
        "took": console.seconds(manifest.seconds or 0.0),
    }
    tables = f"--data {config.data}" if config.data else f"--corpus {config.corpus[0]} --queries Q --qrels R"
    console.summary("pre-trained", facts, f"retrievo train --model {output} {tables} --output stage-1")
