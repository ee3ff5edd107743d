"""Output for a person: notes, warnings, progress and a final summary on stderr; data on stdout.

The command line calls `shown` for that. Elsewhere the same texts go to the logger `retrievo`, and nothing is printed.
"""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# control characters, which a terminal would execute instead of showing; line ends and tabs are kept
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd")

_inner: contextvars.ContextVar[bool] = contextvars.ContextVar("inner", default=False)
_shown = False  # for all threads, so no ContextVar

_log = logging.getLogger("retrievo")
_log.addHandler(logging.NullHandler())  # else Python prints warnings that nobody listens to


class Tick(Protocol):
    """Advances a progress bar by a number of units; `status` is shown in place of the rate, where nobody
    watches a terminal of the time left too."""

    def __call__(self, amount: int = 1, status: str | None = None) -> None: ...


@functools.cache
def _screen() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def plain(text: str, style: str = "") -> Text:
    """Text that is shown literally: rich would read markup and emoji codes in a bare string.

    Each control character is replaced by U+FFFD, so all characters keep their positions.
    """
    from rich.text import Text

    return Text(text.translate(_CONTROLS), style)


def prepare_streams() -> None:
    """Makes stdout escape characters that its encoding cannot represent, instead of ending the command."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # streams of tests and notebooks have no such method
            stream.reconfigure(errors=errors)


def json_text(value: object) -> str:
    """A value as indented JSON; ASCII only, where the encoding of standard output is not a Unicode one."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return json.dumps(value, ensure_ascii=not codecs.lookup(encoding).name.startswith("utf"), indent=2)


def is_lead() -> bool:
    """Whether this process prints for all: rank 0 of torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def shown(wanted: bool = True) -> Iterator[None]:
    """Shows on stderr what is otherwise logged; `wanted=False` changes nothing."""
    global _shown
    before, _shown = _shown, _shown or wanted
    try:
        yield
    finally:
        _shown = before


def is_shown() -> bool:
    """Whether notes and warnings are shown on stderr instead of logged; a child process has to be given this value."""
    return _shown


def note(text: str) -> None:
    """Shows one line of information."""
    if not is_lead():
        return
    if _shown:
        _screen().print(plain(text))
    else:
        _log.info("%s", text)


def warn(text: str) -> None:
    """Shows one line about something that the user may want to change."""
    if not is_lead():
        return
    if _shown:
        _screen().print(plain(f"warning: {text}", "yellow"))
    else:
        _log.warning("%s", text)


def error(text: str) -> None:
    """Shows the one line with which a failed command ends."""
    _screen().print(plain(f"error: {text}", "bold red"))


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str, done: int = 0) -> Iterator[Tick]:
    """A bar with rate and time left on a terminal; elsewhere a line after 5 seconds, then one every 30 seconds.

    done: units that were finished earlier, which say nothing about the rate.
    """
    if not is_lead():
        yield lambda amount=1, status=None: None
    elif _shown and _screen().is_terminal:
        with _bar(description, total, unit, done) as tick:
            yield tick
    else:
        yield _LogLines(description, total, unit, done)


@contextlib.contextmanager
def _bar(description: str, total: int | None, unit: str, done: int) -> Iterator[Tick]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn("{task.fields[rate]}", markup=False)
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), rate]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_screen(), transient=True) as bars:
        task = bars.add_task(description, total=total, completed=done, rate="")

        def tick(amount: int = 1, status: str | None = None) -> None:
            speed = bars.tasks[0].speed
            bars.update(task, advance=amount, rate=status or (f"{speed:,.0f} {unit}/s" if speed else ""))

        yield tick


class _LogLines:
    """Progress where nobody watches a terminal: units done, rate and time left, in lines that keep a log short."""

    FIRST, EVERY = 5.0, 30.0  # seconds until the first line, and between lines

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0):
        self.description, self.total, self.unit = description, total, unit
        self.done = self.before = done
        self.start = time.monotonic()
        self.due = self.start + self.FIRST

    def __call__(self, amount: int = 1, status: str | None = None) -> None:
        self.done += amount
        now = time.monotonic()
        if now >= self.due:
            self.due = now + self.EVERY
            note(self._line(now - self.start, status))

    def _line(self, elapsed: float, status: str | None) -> str:
        rate = (self.done - self.before) / max(elapsed, 1e-9)
        of = f" of {self.total:,}" if self.total else ""
        left = f", {seconds(max(0, self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        pace = f"{rate:,.{0 if rate >= 10 else 1}f}/s{left}"
        return f"{self.description}: {self.done:,}{of} {self.unit}, {status or pace}"


@contextlib.contextmanager
def inner_steps() -> Iterator[None]:
    """Suppresses summaries of the steps of a composite command, so that only the outer one prints a summary."""
    token = _inner.set(True)
    try:
        yield
    finally:
        _inner.reset(token)


def is_inner() -> bool:
    """Whether this is a step of a composite command."""
    return _inner.get()


def summary(title: str, facts: Mapping[str, object], *next_commands: str) -> None:
    """Shows what was made, where, how long it took, and which commands can be run next."""
    if not is_lead() or _inner.get():
        return
    if not _shown:
        _log.info("%s: %s", title, "; ".join(f"{name} {value}" for name, value in facts.items()))
        return
    _screen().print(plain(title, "bold green"))
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        _screen().print(plain(f"  {name:<{width}}  {value}"))
    for name, command in zip_longest(["next"], next_commands, fillvalue="or") if next_commands else ():
        _screen().print(plain(f"  {name:<{width}}  {command}"))


def typed_lines(prompt: str) -> Iterator[str]:
    """Yields lines that are typed or piped in, until an empty line or the end of the input."""
    while True:
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints a table to stdout: framed on a terminal; tab-separated, below its title, when piped."""
    if not sys.stdout.isatty():
        if title:
            print(title)
        for row in (columns, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=plain(title, "table.title") if title else None, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    Console(highlight=False).print(table)


def seconds(duration: float) -> str:
    """Formats a duration for a person: 0.8 s, 42 s, 3 min 05 s, 2 h 10 min."""
    if duration < 10:
        return f"{duration:.1f} s"
    if duration < 60:
        return f"{duration:.0f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
