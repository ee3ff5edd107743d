"""The training loop: one batch, one gradient, one update, one line in the log."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from retrievo.distributed.collectives import as_rank_0_says, broadcast_state, gather_counts
from retrievo.models.dtypes import resolve_dtype
from retrievo.support import console
from retrievo.support.conditions import flag_of
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values
from retrievo.training.batch import Batch, Stats
from retrievo.training.engine import checkpoints
from retrievo.training.engine.chunk_size import ChunkTokens
from retrievo.training.engine.config import CHECKPOINTS, MEMORY_OPTIONS, FitConfig, graph_bytes
from retrievo.training.engine.gradient_cache import GraphMemory, gradient_step
from retrievo.training.engine.gradient_checkpointing import checkpoint_activations
from retrievo.training.engine.logs import Log
from retrievo.training.engine.loss_scale import LossScale
from retrievo.training.engine.optimizers import OPTIMIZERS, learning_rate
from retrievo.training.objectives.objective import Objective

SAVE_SECONDS = 300.0  # between checkpoints, where --save-every is not given: a killed run loses no more than this

Record: TypeAlias = Values
Callback = Callable[[int], Mapping[str, Any] | None]  # number of finished steps -> values for the log


class Feed(Protocol):
    """A source of batches. A batch is a pure function of the step, so that training can resume at any step."""

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of step 0, 1, ...; called from another thread."""

    def position(self, step: int) -> dict[str, int]:
        """The position of a step in the data, such as epoch and batch."""


def fit(
    objective: Objective,
    feed: Feed,
    config: FitConfig,
    *,
    folder: Path,
    device: torch.device,
    progress: Callable[[Record], None] = lambda record: None,
    every: Sequence[tuple[int, Callback]] = (),
    enough: Callable[[], bool] = lambda: False,
    restart: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Trains an objective in place until `max_steps`, from the latest checkpoint under `folder` if there is one.

    objective: whole, or sharded by `distributed/fsdp.py`; it stays sharded.
    folder: gets `metrics.jsonl` with a line for each step, its plot `metrics.png`, and `checkpoints/`.
    progress: called with each line. every: (n, callback) pairs, called on all ranks after each n-th step; a callback
    may change the batches that `feed` gives from the next step on, and its return value is logged.
    enough: tells whether to stop early; called after the callbacks, and before the first step of a resumed run.
    restart: number of finished steps after which the learning-rate schedule starts over.
    clock: seconds, by which checkpoints are written where `save_every` is None. Returns the number of finished steps.
    Raises: RetrievoError where the loss is not finite, nothing was learned, or the checkpoint belongs to another run.
    """
    run = _Run(objective, feed, config, folder, device, restart, clock)
    if run.start >= config.steps or (run.start and enough()):
        run.log.close(device)  # a run killed after its last checkpoint has not drawn its plot
        return run.start
    pauses = [n for n, _ in every]
    for step, batch in prefetched(feed.batch, range(run.start, config.steps), config.prefetch, pauses):
        progress(run.update(step, batch))
        called = run.call_back(every, step + 1)  # before the checkpoint, so that a run killed there calls them again
        ends = step + 1 == config.steps or (called and enough())
        run.keep(step + 1, ends=ends)
        if ends:
            return step + 1
    return run.start


def every_n_steps(callback: Callback, steps: int, often: int | None = None) -> list[tuple[int, Callback]]:
    """The argument `every` of `fit` for a callback every `often` steps (default: a tenth) and after the last step."""
    often = min(steps, often or -(-steps // 10))
    return [(often, callback)] + ([(steps, callback)] if steps % often else [])


def prefetched(
    make: Callable[[int], Batch], steps: range, ahead: int, pauses: Sequence[int] = ()
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, make(step)) in order, with up to `ahead` batches made early in a thread.

    pauses: after each n-th step no batch is made early, since the consumer may change what `make` gives.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        pending: deque[Future[Batch]] = deque()
        for step in steps:
            pause = min([(step // n + 1) * n for n in pauses], default=steps.stop)  # first step that has to wait
            for early in range(step + len(pending), min(step + ahead + 1, pause, steps.stop)):
                pending.append(thread.submit(make, early))
            yield step, pending.popleft().result()


class _Means(NamedTuple):
    """The part of the computation of gradients that may change during training."""

    dtype: torch.dtype
    chunks: ChunkTokens
    scale: LossScale

    @classmethod
    def of(cls, config: FitConfig, device: torch.device) -> _Means:
        """Reads the options; with gradient checkpointing no graph is kept, since that would save almost nothing."""
        graphs = GraphMemory(0 if config.gradient_checkpointing else graph_bytes(config.activation_memory))
        dtype = resolve_dtype(config.dtype, device)
        asked = {name: getattr(config, name) for name in MEMORY_OPTIONS}
        asked |= {"activation_memory": "0"} if config.gradient_checkpointing else {}
        return cls(dtype, ChunkTokens(config.tokens_of_chunks, graphs, asked), LossScale(dtype))

    def record(self) -> Record:
        """Values for the log."""
        scale = {"loss_scale": self.scale.value} if self.dtype == torch.float16 else {}
        return {"chunk_tokens": self.chunks.tokens, "graph_bytes": self.chunks.graphs.budget, **scale}

    def state(self) -> Values:
        """The state that a checkpoint keeps."""
        return {"chunks": self.chunks.state(), "loss_scale": self.scale.state()}

    def restore(self, saved: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Restores a saved state; returns [before, now] of each option with a new value."""
        self.scale.restore(saved["loss_scale"])
        return self.chunks.restore(saved["chunks"])


class _Run:
    """One call of `fit`: what is trained, with which means, and where its state is kept."""

    def __init__(
        self,
        objective: Objective,
        feed: Feed,
        config: FitConfig,
        folder: Path,
        device: torch.device,
        restart: int,
        clock: Callable[[], float],
    ):
        objective.to(device)
        broadcast_state(objective)
        self.objective, self.feed, self.config, self.device = objective, feed, config, device
        self.checkpoints, self.restart, self.clock = folder / CHECKPOINTS, restart, clock
        self.optimizer = OPTIMIZERS[config.optimizer](config, objective)
        if config.gradient_checkpointing:
            checkpoint_activations(objective)
        self.means = _Means.of(config, device)
        self.start, changed = self._resume()
        self.log = Log(folder, self.start, tensorboard=config.tensorboard)
        if changed and self.start != config.steps:
            _note_changes(self.log, self.start, changed)
        self._tick, self._saved = time.perf_counter(), clock()

    def update(self, step: int, batch: Batch) -> Record:
        """Makes a step of the optimizer; returns the line of the log."""
        waited = time.perf_counter() - self._tick
        rate = learning_rate(self.config, step - self.restart, self.config.steps - self.restart)
        stats = self._optimize(step, batch, rate)
        record = _record(step, self.feed, stats, rate, waited, time.perf_counter() - self._tick, self.device)
        record |= self.means.record()
        self.log.write(record)
        return record

    def _optimize(self, step: int, batch: Batch, rate: float) -> Stats:
        """One step of the optimizer, which may ask for several gradients; returns the metrics of the first one."""
        metrics: list[Stats] = []

        def gradient() -> float:
            stats = self._gradient(step, batch)
            _check_finite(stats, step)  # before the optimizer moves any weight by it
            metrics.append(stats)
            return 0.0  # torch expects a number, which is not used

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.train()  # a callback may have left it in another mode
        self.optimizer.step(gradient)
        self.objective.after_step()
        self.means.scale.after_step()
        return metrics[0]

    def _gradient(self, step: int, batch: Batch) -> Stats:
        """The gradient of a batch, again in smaller chunks where memory runs out, and again where float16 overflows."""
        while (stats := self._attempt(step, batch)) is None or not self.means.scale.accepts(stats["gradient_norm"]):
            if stats is None:
                self.means.chunks.shrink(batch)
        return stats

    def _attempt(self, step: int, batch: Batch) -> Stats | None:
        dtype, chunks, scale = self.means
        try:
            return gradient_step(
                self.objective,
                batch,
                step=step,
                seed=self.config.seed,
                chunk_tokens=chunks.measure(self.objective, batch, dtype),
                keep_graphs=chunks.graphs,
                dtype=dtype,
                max_grad_norm=self.config.max_grad_norm,
                loss_scale=scale.value,
            )
        except torch.OutOfMemoryError:
            return None  # leaving the handler frees what the step holds, before another try

    def call_back(self, every: Sequence[tuple[int, Callback]], finished: int) -> bool:
        """Calls what is due after `finished` steps, and logs what it returns; returns whether anything was due."""
        due = [callback for n, callback in every if finished % n == 0]
        feed: object = self.feed  # one that is a callback itself will bring other batches
        if due and all(callback is not feed for _, callback in every):
            self.log.contrast.check(self.log.path.parent, self.device, ends=False)
        for callback in due:
            if values := callback(finished):
                self.log.write({"step": finished, **values})
        return bool(due)

    def keep(self, finished: int, *, ends: bool) -> None:
        """Writes a checkpoint after `finished` steps where it is due, and closes the log at the end."""
        if ends:
            self.log.close(self.device)
        if ends or self._is_due(finished):
            state = self._state(finished) | self.means.state()
            limit = self.config.keep_checkpoints
            checkpoints.save(self.checkpoints, finished, self.objective, self.optimizer, state, limit)
            self._saved = self.clock()
        self._tick = time.perf_counter()

    def _is_due(self, finished: int) -> bool:
        """Whether to write a checkpoint after `finished` steps; the same on all ranks."""
        if self.config.save_every is not None:
            return finished % self.config.save_every == 0
        return as_rank_0_says(self.clock() - self._saved >= SAVE_SECONDS, self.device)

    def _state(self, finished: int) -> Values:
        """The state that must be the same for a run to resume from a checkpoint exactly."""
        config = self.config
        schedule = {"name": config.schedule, "warmup": config.warmup_ratio, "max_steps": config.steps}
        schedule["restart"] = self.restart
        return {"seed": config.seed, "schedule": schedule, "data": self.feed.position(finished)}

    def _resume(self) -> tuple[int, dict[str, list[Any]]]:
        """Restores all state from the latest checkpoint; returns the number of finished steps and changed options."""
        folder = self.checkpoints
        checkpoints.remove_unfinished(folder)
        checkpoint = checkpoints.latest(folder)
        saved: Values = {"step": 0}
        if checkpoint:
            saved = checkpoints.load(checkpoint, self.objective, self.optimizer)
        step: int = saved["step"]
        found = gather_counts(step, next(self.objective.parameters()).device)
        if len(set(found)) > 1:
            raise RetrievoError(
                folder, f"ranks see checkpoints of steps {found}", "the same on all", "share the folder"
            )
        if step < self.restart:
            expected = f"step {self.restart}, from which training should continue"
            raise RetrievoError(folder, f"reaches step {step}", expected)
        for name, value in self._state(step).items():
            starts_over = name == "schedule" and step == self.restart
            if checkpoint and saved[name] != value and not starts_over:
                fix = "give the same options, or choose another --output"
                raise RetrievoError(checkpoint, f"{name} was {saved[name]}, now it is {value}", None, fix)
        return step, self.means.restore(saved) if checkpoint else {}


def _note_changes(log: Log, start: int, changed: Mapping[str, list[Any]]) -> None:
    """The log and the console state the options of memory that changed when the run was resumed."""
    for name, (before, now) in changed.items():
        console.note(f"from step {start + 1:,} on, {flag_of(name)} is {now}; it was {before}")
    if changed.keys() & {"chunk_tokens", "gradient_checkpointing"}:
        console.note("from there on, dropout draws other numbers than in a run without the change")
    log.write({"step": start, "changed": changed})


def _check_finite(stats: Stats, step: int) -> None:
    for name in ("loss", "gradient_norm"):
        value = stats[name].item()
        if not math.isfinite(value):
            fix = "lower --learning-rate, or use --dtype float32"
            raise RetrievoError(f"step {step + 1}", f"the {name.replace('_', ' ')} is {value}", None, fix)


def _record(
    step: int, feed: Feed, stats: Stats, rate: float, waited: float, seconds: float, device: torch.device
) -> Record:
    """The line of a step in the log. Rates are over all ranks; memory is the peak of this process."""
    values = {name: value.item() for name, value in stats.items()}
    tokens, padded = values.pop("tokens"), values.pop("padded_tokens")
    return {
        "step": step + 1,
        **feed.position(step),
        **values,
        "learning_rate": rate,
        "tokens": tokens,
        "padding": 1 - tokens / padded,
        **{f"{name}_per_second": values[name] / seconds for name in ("pairs", "documents") if name in values},
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "seconds_waiting_for_data": waited,
        "memory_bytes": _peak_memory(device),
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
