"""Errors that a user can act on: where, what was found, what was expected, what to do next; in one line."""

from __future__ import annotations

from collections.abc import Iterable

from retrievo.support.habits import advice


class RetrievoError(Exception):
    """A problem in the user's data, files or machine; the command line prints it as one line and exits 1.

    where:    the file, folder, column, row or flag that the problem sits in.
    found:    what was there.
    expected: what should have been there (optional).
    fix:      what to do next (optional).
    """

    exit_code = 1

    def __init__(self, where: object, found: str, expected: str | None = None, fix: str | None = None):
        self.where, self.found, self.expected, self.fix = str(where), found, expected, fix
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        super().__init__(" ".join(f"{where}: {'; '.join(parts)}".split()))

    def __reduce__(self) -> tuple[type[RetrievoError], tuple[str, str, str | None, str | None]]:
        """How another process gets it."""
        return type(self), (self.where, self.found, self.expected, self.fix)


class UsageError(RetrievoError):
    """A problem in what was typed or written in a TOML file (flag, key, combination); exits 2."""

    exit_code = 2


def told_by_system(problem: OSError) -> RetrievoError:
    """What the operating system refuses: a path through a file, a folder that can't be written to, a full disk."""
    return RetrievoError(problem.filename or type(problem).__name__, problem.strerror or str(problem))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known word that is meant, or all of them where none is close."""
    known = list(known)
    return advice(name, known) or f"known: {', '.join(known)}"
