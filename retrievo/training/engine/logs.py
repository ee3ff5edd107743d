"""The log of training: `metrics.jsonl` with a line for each step, optional TensorBoard files, and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.distributed.collectives import rank
from retrievo.support.errors import RetrievoError
from retrievo.support.files import atomic_path
from retrievo.support.values import Values
from retrievo.training.engine.config import DEVELOPMENT, METRICS, PLOT, TENSORBOARD
from retrievo.training.engine.contrast import NegativeCounts

if TYPE_CHECKING:
    import torch

_PANELS = (  # title of a panel, and the columns of the log that it shows where they exist
    ("loss", ("loss", "local_loss")),
    ("share", ("accuracy",)),
    ("gradient norm", ("gradient_norm",)),
)
_SMOOTHED = 50  # points of the smoothed line; each is the mean of one of as many parts of the run


class Log:
    """`metrics.jsonl` of rank 0. Lines after the step from which training resumes are dropped.

    contrast: counts of the rows that met no negative.
    Raises: RetrievoError where TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path, start: int, *, tensorboard: bool = False):
        self.path, self.contrast = folder / METRICS, NegativeCounts()
        self._events: Any = None
        if rank() != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and self._keeps(json.loads(line), start)]
        with atomic_path(self.path) as temporary:  # so that a run killed here keeps its history
            temporary.write_text("".join(kept), encoding="utf-8")
        if tensorboard:
            self._events = _summary_writer()(str(folder / TENSORBOARD), purge_step=start + 1)

    def _keeps(self, record: Mapping[str, Any], start: int) -> bool:
        """Whether a line belongs to a step that is kept; counts such lines."""
        kept = bool(record["step"] <= start)
        if kept:
            self.contrast.add(record)
        return kept

    def write(self, record: Mapping[str, object]) -> None:
        """Adds a line, and its numbers as scalars to TensorBoard."""
        self.contrast.add(record)
        if rank() != 0:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._events:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._events.add_scalar(name, value, record["step"])
            self._events.flush()

    def close(self, device: torch.device) -> None:
        """Checks that something was learned, closes TensorBoard's file and draws the plot, from the log of rank 0."""
        self.contrast.check(self.path.parent, device)
        if rank() == 0:
            draw(self.path, self.path.with_name(PLOT))
        if self._events:
            self._events.close()


def in_words(record: Mapping[str, Any]) -> str:
    """The values of a step that a progress bar shows."""
    accuracy = [f"accuracy {record['accuracy']:.1%}"] if "accuracy" in record else []
    units = [unit for unit in ("pairs", "documents") if f"{unit}_per_second" in record]
    rates = [f"{record[f'{unit}_per_second']:,.0f} {unit}/s" for unit in (*units, "tokens")]
    rest = [f"padding {record['padding']:.0%}", f"{record['memory_bytes'] >> 20:,} MiB"]
    return ", ".join([f"loss {record['loss']:.4f}", *accuracy, *rates, *rest])


class Course(NamedTuple):
    """What the log of a run says of it as a whole.

    first, last: (step, loss) of the first step and of the last one. rates: units per second, by unit.
    held_out: the last loss of held-out documents; None where there are none.
    """

    first: tuple[int, float]
    last: tuple[int, float]
    rates: Mapping[str, float]
    held_out: float | None

    @classmethod
    def of(cls, folder: Path) -> Course:
        """Reads the log of a folder, which has a step at least."""
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        steps = [line for line in lines if "loss" in line]
        seconds = max(sum(step["seconds"] for step in steps), 1e-9)
        units = [unit for unit in ("pairs", "documents", "tokens") if unit in steps[0]]
        first, last = ((step["step"], step["loss"]) for step in (steps[0], steps[-1]))
        held_out = [line[DEVELOPMENT + "loss"] for line in lines if DEVELOPMENT + "loss" in line]
        rates = {unit: sum(step[unit] for step in steps) / seconds for unit in units}
        return cls(first, last, rates, held_out[-1] if held_out else None)

    @property
    def stats(self) -> dict[str, float]:
        """What a manifest keeps: the losses, but no rates, which are another machine's tomorrow."""
        return {"first_loss": self.first[1], "last_loss": self.last[1]}

    @property
    def facts(self) -> dict[str, str]:
        """What the summary of a command shows."""
        losses = [f"{loss:.4f} at step {step:,}" for step, loss in (self.first, self.last)]
        rates = [f"{rate:,.0f} {unit}/s" for unit, rate in self.rates.items()]
        held_out = {"held out": f"loss {self.held_out:.4f}"} if self.held_out is not None else {}
        return {"loss": ", ".join(losses), **held_out, "speed": ", ".join(rates)}


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fix = "pip install 'retrievo[tensorboard]'"
        raise RetrievoError("--tensorboard", "TensorBoard is not installed", None, fix) from None
    return SummaryWriter


def draw(log: Path, picture: Path) -> None:
    """Draws a log as a PNG: loss, accuracy and validation, and gradient norm by step."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    measured = sorted({name for line in lines for name in line if name.startswith(DEVELOPMENT)})
    own = {"loss": [name for name in measured if name.endswith("loss")]}
    own["share"] = [name for name in measured if name not in own["loss"]]
    wanted = {title: [*names, *own.get(title, ())] for title, names in _PANELS}
    found = {title: [name for name in names if _shown(lines, name)] for title, names in wanted.items()}
    panels = [(title, names) for title, names in found.items() if names]
    if not panels:
        return
    figure = Figure(figsize=(7, 2.2 * len(panels) + 0.4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for color, name in enumerate(names):
            _draw_line(axes, lines, name, f"C{color}")
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if names != [title.replace(" ", "_")]:
            axes.legend(frameon=False)
    axes.set_xlabel("step")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _shown(lines: list[Values], name: str) -> bool:
    """Whether a column exists and is not always 0."""
    return any(line.get(name) for line in lines)


def _draw_line(axes: Any, lines: list[Values], name: str, color: str) -> None:
    """Draws every value faintly and means of stretches in bold; values of validations as points."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    steps, values = [step for step, _ in points], [value for _, value in points]
    if name.startswith(DEVELOPMENT):
        axes.plot(steps, values, "o-", color=color, label=name)
        return
    width = math.ceil(len(points) / _SMOOTHED)
    if width > 1:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        stretches = [points[at : at + width] for at in range(0, len(points), width)]
        steps = [sum(step for step, _ in part) / len(part) for part in stretches]
        values = [sum(value for _, value in part) / len(part) for part in stretches]
    axes.plot(steps, values, color=color, label=name.replace("_", " "))
