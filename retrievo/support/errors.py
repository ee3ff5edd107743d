"""Errors that a user can act on: one line that says where, what was found, what was expected and what to do next."""

from __future__ import annotations

from collections.abc import Iterable

from retrievo.support.habits import advice


class RetrievoError(Exception):
    """A problem with the user's data, files or machine; the command line prints it as one line and exits with 1.

    where:    the file, folder, column, row or flag with the problem.
    found:    what was found there.
    expected: what was expected instead (optional).
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
        """Makes the error picklable, for sending it to another process."""
        return type(self), (self.where, self.found, self.expected, self.fix)


class UsageError(RetrievoError):
    """A problem with the options on the command line or in a TOML file; the command line exits with 2."""

    exit_code = 2


def from_os_error(problem: OSError) -> RetrievoError:
    """Converts an error of the operating system, such as an unwritable folder or a full disk."""
    return RetrievoError(problem.filename or type(problem).__name__, problem.strerror or str(problem))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggests the closest known name, or lists all of them where none is close."""
    known = list(known)
    return advice(name, known) or f"known: {', '.join(known)}"
