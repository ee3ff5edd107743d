"""`retrievo pretrain`: teach a backbone what documents are made of, before it sees any query.

A backbone without a Condenser head first gets a condenser stage, then coCondenser, in the same command: a fresh head
under the contrast would harm it (coCondenser, Gao & Callan 2022, section 3.2). Each stage has its own checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import corpus_option, force_option, output_option, threads_option, title_template_option
from retrievo.engine.settings import WORKING_FILES, FitConfig
from retrievo.learning.optimizers import OptimizerConfig
from retrievo.models.options import device_option, model_option, revision_option
from retrievo.objectives.choices import (
    CONTRASTIVE,
    LONGEST_QUEUE,
    OBJECTIVES,
    PRETRAINING,
    CoCondenserConfig,
    ContrieverConfig,
    IctConfig,
    SimClrConfig,
    ViewsConfig,
    objective_class,
    recipe_defaults,
)
from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import option, worked_out

if TYPE_CHECKING:
    import torch

    from retrievo.data.corpus import Corpus
    from retrievo.engine.loop import Record
    from retrievo.models.encoder import Encoder
    from retrievo.support.artifact import Manifest, Output

CONDENSER, COCONDENSER = "condenser", "cocondenser"
FIRST_STAGE = "condenser-stage"  # folder of its checkpoints and its log, inside the output
DEFAULT_EPOCHS = 8.0  # as the published recipe


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(FitConfig, CoCondenserConfig, SimClrConfig, IctConfig, ContrieverConfig):
    """Options of `retrievo pretrain`; the defaults are the published recipe of the chosen objective."""

    objective: str = option("What is learned from documents.", default=COCONDENSER, choices=PRETRAINING)
    model: str = model_option(default="bert-base-uncased", affects_output=False)
    revision: str | None = revision_option()
    corpus: Path = corpus_option()
    output: Path = output_option("Model folder to make.", default=Path("pretrained"))
    title_template: str | None = title_template_option(default=None, hidden_default="as the model")
    batch_size: int = option(
        "Documents per step, over all processes.",
        default=None,
        minimum=2,
        hidden_default=recipe_defaults("batch_size"),
    )
    learning_rate: float = worked_out(OptimizerConfig, "learning_rate", recipe_defaults("learning_rate"))
    delete: float = worked_out(ViewsConfig, "delete", f"{recipe_defaults('delete')}, else 0")
    beta2: float = worked_out(OptimizerConfig, "beta2", recipe_defaults("beta2"))
    epsilon: float = worked_out(OptimizerConfig, "epsilon", recipe_defaults("epsilon"))
    epochs: float | None = option(
        "Passes over the corpus.", default=None, above=0, alternative="length", hidden_default=f"{DEFAULT_EPOCHS:g}"
    )
    condenser_steps: int | None = option(
        "Steps of the condenser stage for a model without a Condenser head; 0 = none.",
        default=None,
        minimum=0,
        hidden_default="as many as cocondenser's",
        only={"objective": (COCONDENSER,)},
    )
    continue_: bool = option(
        "Go on from a finished output with more --max-steps: the learning rate warms up again.",
        default=False,
        affects_output=False,
    )
    device: str = device_option()
    threads: int | None = threads_option()
    force: bool = force_option()

    def recipe(self) -> Mapping[str, Any]:
        return {"delete": 0.0, **OBJECTIVES[self.objective].recipe} if self.objective in PRETRAINING else {}

    def check(self) -> None:
        super().check()
        if self.continue_ and self.max_steps is None:
            raise UsageError("--continue", "needs to know how long", None, "pass --max-steps N, counted from the start")
        if self.queue_size is not None and self.queue_size < self.batch_size:
            raise UsageError("--queue-size", f"found {self.queue_size}", f"at least --batch-size ({self.batch_size})")


@dataclass(frozen=True)
class Stage:
    """One objective; `folder` gets its log and checkpoints."""

    objective: str
    folder: Path
    steps: int | None  # None: the epochs say it
    restart: int = 0  # step at which the schedule begins anew


def pretrain(config: PretrainConfig) -> Manifest:
    """Pre-trains, or goes on from the latest checkpoint of a killed run, or finds all finished.

    Raises: RetrievoError for a corpus of texts too short for spans, a model that can't be had, and a backbone whose
    heads are not known.
    """
    from retrievo.data.corpus import Corpus
    from retrievo.learning.distributed import barrier, process_group
    from retrievo.models.devices import prepare_cpu, resolve_device

    prepare_cpu(config.threads)
    corpus = Corpus(config.corpus)
    console.note(f"pre-training with {config.objective} into {config.output}")
    with process_group(resolve_device(config.device)) as device:
        restart = _restart(config) if config.continue_ else 0
        output = _output(config, corpus, device, restart)
        finished = output.already_finished()
        barrier()  # every process has looked before one begins
        return finished or _train(config, corpus, output, device, restart)


def _output(config: PretrainConfig, corpus: Corpus, device: torch.device, restart: int) -> Output:
    from retrievo.models.precision import resolve_dtype
    from retrievo.models.source import model_record
    from retrievo.support.artifact import Output

    model_config, model_inputs = model_record(config.model, config.revision)
    dtype = str(resolve_dtype(config.dtype, device)).removeprefix("torch.")
    record = config.record() | model_config | {"computed_in": dtype} | ({"continued_from": restart} if restart else {})
    return Output(
        config.output,
        "model",
        record,
        model_inputs | {"corpus": corpus.input},
        force=config.force,
        in_place=True,
        beside=("embeddings",),
        volatile=(*WORKING_FILES, FIRST_STAGE),
        continues=("max_steps", "epochs", "continued_from") if restart else (),
    )


def _restart(config: PretrainConfig) -> int:
    """The step from which a finished run goes on.

    Raises: RetrievoError where there is no finished run, or one that is as long already.
    """
    from retrievo.support.artifact import recorded_work

    recorded, stats = recorded_work(config.output, "model")
    if recorded.get("max_steps") == config.max_steps and "continued_from" in recorded:
        return int(recorded["continued_from"])  # this very continuation, killed or finished
    if "steps" not in stats:
        raise RetrievoError(config.output, "is unfinished", "a finished run to continue", "leave --continue out")
    steps = int(stats["steps"])
    assert config.max_steps is not None
    if config.max_steps <= steps:
        raise UsageError("--max-steps", f"found {config.max_steps}", f"more than the {steps} steps that were made")
    console.note(f"{config.output} goes on from step {steps}; the learning rate warms up again")
    return steps


def _train(config: PretrainConfig, corpus: Corpus, output: Output, device: torch.device, restart: int) -> Manifest:
    """Every process trains; the lead one begins the folder, exports the encoder and finishes."""
    from retrievo.learning.distributed import barrier, rank

    with output.build_together(lead=rank() == 0, barrier=barrier) as folder:
        encoder = _load(config, corpus, restart)
        works = [_Work(config, corpus, encoder, stage) for stage in _stages(config, encoder, folder, restart)]
        for work in works:  # all were made before the first begins: what the last can't do is known now
            work.fit(device)
        steps = [work.steps for work in works]
        barrier()
        if rank() != 0:
            return output.manifest({})
        facts = {"pre-trained with": config.objective, "steps": " + ".join(map(str, steps))}
        encoder.save(folder, facts)
        stats = {"steps": steps[-1], "condenser_steps": sum(steps[:-1]), "documents": len(corpus), "dim": encoder.dim}
        manifest = output.finish(stats)
    _summary(config, manifest)
    return manifest


def _load(config: PretrainConfig, corpus: Corpus, restart: int) -> Encoder:
    """The model to train; what goes on is the output's own: its head is there, its checkpoint has the exact weights."""
    from retrievo.models.scratch import scratch_folder, scratch_size

    name, revision = config.model, config.revision
    if restart:
        name, revision = str(config.output), None
    elif scratch_size(name) is not None:
        name, revision = str(scratch_folder(name, corpus, config.seed)), None
    options = {"title_template": config.title_template}
    return (_plain if config.objective in CONTRASTIVE else _masked)(config, name, revision, options)


def _masked(config: PretrainConfig, name: str, revision: str | None, options: dict[str, Any]) -> Encoder:
    """A backbone with its heads; [CLS] vectors under the inner product are what coCondenser shapes (eq. 6)."""
    from retrievo.models.condenser import MaskedEncoder

    return MaskedEncoder.load(name, revision, pooling="cls", normalize=False, similarity="dot", **options)


def _plain(config: PretrainConfig, name: str, revision: str | None, options: dict[str, Any]) -> Encoder:
    """A backbone without heads, pooled and compared as its folder says, else as Contriever is."""
    from retrievo.models.encoder import Encoder
    from retrievo.models.opening import locate, read_folder

    chosen: dict[str, Any] = {"pooling": config.pooling}
    if config.normalize is not None:
        chosen |= {"normalize": config.normalize, "similarity": "cosine" if config.normalize else "dot"}
    stated = read_folder(locate(name, revision), name).stated
    if config.pooling is None and "pooling" not in stated:
        chosen["pooling"] = "mean"
    encoder = Encoder.load(name, revision, **options, **chosen)
    spec = encoder.spec
    console.note(f"vectors: {spec.pooling} of tokens, {'' if spec.normalize else 'not '}normalized, {spec.similarity}")
    return encoder


def _stages(config: PretrainConfig, encoder: Encoder, folder: Path, restart: int) -> Sequence[Stage]:
    """What is learned one after the other."""
    last = Stage(config.objective, folder, config.max_steps, restart)
    has_head = getattr(encoder, "condenser", None) is not None
    if config.objective != COCONDENSER or has_head or config.condenser_steps == 0:
        return [last]
    return [Stage(CONDENSER, folder / FIRST_STAGE, config.condenser_steps or config.max_steps), last]


class _Work:
    """A stage with its objective and its batches.

    Raises: RetrievoError for an objective that the encoder has no place for, and documents too short for its spans.
    """

    def __init__(self, config: PretrainConfig, corpus: Corpus, encoder: Encoder, stage: Stage):
        from retrievo.objectives.pretraining_data import PretrainFeed

        if config.queue_size is None:
            most = max(config.batch_size, min(LONGEST_QUEUE, len(corpus) // 4))  # older keys are of this very epoch
            config = dataclasses.replace(config, queue_size=most)
        self.config, self.stage = config, stage
        self.objective = objective_class(stage.objective)(config, encoder)
        collator = self.objective.collator()
        self.feed = PretrainFeed(corpus, encoder, collator, batch_size=config.batch_size, seed=config.seed)
        epochs = config.epochs or DEFAULT_EPOCHS
        self.steps = stage.steps or max(1, round(epochs * self.feed.batches_per_epoch))

    def fit(self, device: torch.device) -> None:
        """Trains the encoder in place."""
        from retrievo.engine.loop import fit
        from retrievo.learning.distributed import rank

        if rank() == 0:
            self.feed.say_counts()
        planned = dataclasses.replace(self.config, epochs=None, continue_=False, max_steps=self.steps)
        with console.progress(self.stage.objective, self.steps, "steps") as tick:
            fit(
                self.objective,
                self.feed,
                planned,
                folder=self.stage.folder,
                device=device,
                progress=lambda record: _show(tick, record),
                restart=self.stage.restart,
            )


def _show(tick: console.Tick, record: Record) -> None:
    """The bar moves one step and shows what a person watches."""
    words = [f"loss {record['loss']:.4f}"]
    if "accuracy" in record:
        words.append(f"accuracy {record['accuracy']:.1%}")
    words += [
        f"{record['documents_per_second']:,.0f} documents/s",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"padding {record['padding']:.0%}",
        f"{record['memory_bytes'] >> 20:,} MiB",
    ]
    tick(1, ", ".join(words))


def _summary(config: PretrainConfig, manifest: Manifest) -> None:
    told = manifest.stats
    before = f"{told['condenser_steps']:,} steps of condenser, then " if told["condenser_steps"] else ""
    facts = {
        "made": f"{config.output} ({before}{told['steps']:,} steps of {config.objective})",
        "log": f"{config.output}/metrics.jsonl",
        "took": console.seconds(manifest.seconds or 0.0),
    }
    following = (
        f"retrievo train --model {config.output} --corpus {config.corpus} --queries Q --qrels R --output stage-1"
    )
    console.summary("pre-trained", facts, following)
