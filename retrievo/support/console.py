"""What a person sees: notes, warnings, progress and a closing summary on stderr; data on stdout."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


_inner: contextvars.ContextVar[bool] = contextvars.ContextVar("inner", default=False)


class Tick(Protocol):
    """Moves a progress bar on by a number of units; `told` replaces the rate at its end."""

    def __call__(self, amount: int = 1, told: str | None = None) -> None: ...


@functools.cache
def _screen() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def is_lead() -> bool:
    """Whether this process speaks for all: rank 0 of torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """One line that tells what is going on."""
    if is_lead():
        _screen().print(text, markup=False)


def warn(text: str) -> None:
    """One line about something that the user may want to change."""
    if is_lead():
        _screen().print(f"warning: {text}", style="yellow", markup=False)


def error(text: str) -> None:
    """The one line that a failed command leaves."""
    _screen().print(f"error: {text}", style="bold red", markup=False)


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Tick]:
    """A bar with rate and time left on a terminal; elsewhere one line every 30 seconds, so that logs stay short."""
    if not is_lead():
        yield lambda amount=1, told=None: None
    elif _screen().is_terminal:
        with _bar(description, total, unit) as tick:
            yield tick
    else:
        yield _LogLines(description, total, unit)


@contextlib.contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Tick]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn("{task.fields[rate]}")
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_screen(), transient=True) as bars:
        task = bars.add_task(description, total=total, rate="")

        def tick(amount: int = 1, told: str | None = None) -> None:
            speed = bars.tasks[0].speed
            bars.update(task, advance=amount, rate=told or (f"{speed:,.0f} {unit}/s" if speed else ""))

        yield tick


class _LogLines:
    """Progress where nobody watches a terminal."""

    EVERY = 30.0  # seconds

    def __init__(self, description: str, total: int | None, unit: str):
        self.description, self.total, self.unit = description, total, unit
        self.done, self.start = 0, time.monotonic()
        self.last = self.start

    def __call__(self, amount: int = 1, told: str | None = None) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last >= self.EVERY:
            self.last = now
            of = f" of {self.total:,}" if self.total else ""
            rate = told or f"{self.done / (now - self.start):,.0f}/s"
            note(f"{self.description}: {self.done:,}{of} {self.unit}, {rate}")


@contextlib.contextmanager
def inner_steps() -> Iterator[None]:
    """Within a command made of other commands, only the outer one closes with a summary."""
    token = _inner.set(True)
    try:
        yield
    finally:
        _inner.reset(token)


def is_inner() -> bool:
    """Whether this is a step of a command made of other commands."""
    return _inner.get()


def summary(title: str, facts: Mapping[str, object], next_command: str | None = None) -> None:
    """What was made, where, how long it took, and the next command to type."""
    if not is_lead() or _inner.get():
        return
    from rich.text import Text

    _screen().print(Text(title, style="bold green"))
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        _screen().print(f"  {name:<{width}}  {value}", markup=False)
    if next_command:
        _screen().print(f"  {'next':<{width}}  {next_command}", markup=False)


def typed_lines(prompt: str) -> Iterator[str]:
    """Lines that a person types (or that are piped in), until an empty one or the end of the input."""
    while True:
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout: framed for a person at a terminal, tab-separated below its title when piped."""
    if not sys.stdout.isatty():
        if title:
            print(title)
        for row in (columns, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def seconds(duration: float) -> str:
    """A duration as a person says it: 0.8 s, 42 s, 3 min 05 s, 2 h 10 min."""
    if duration < 10:
        return f"{duration:.1f} s"
    if duration < 60:
        return f"{duration:.0f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
