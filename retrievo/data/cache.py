"""The user's cache folder: data that can be rebuilt, built once, shared by processes and hosts, never half written.

An entry is the folder KIND/NAME. While an entry is built, `KIND/.NAME.lock` names the process that builds it, and other
processes that need it wait. While a process uses an entry, `KIND/.NAME.HOST.PID.use` exists, and
`retrievo cache --prune` does not remove it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrievo.support import console
from retrievo.support.files import remove, sync, write_json
from retrievo.support.locks import wait_for
from retrievo.support.sizes import format_size

if TYPE_CHECKING:
    from filelock import MarkerSoftFileLock

DONE, ABOUT = "done.json", "about.json"
LARGE = 1 << 30  # bytes; a note announces a new entry of this size or more


def cache_folder() -> Path:
    """The cache folder, `$XDG_CACHE_HOME/retrievo`; nothing is ever cached beside a corpus."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrievo"


def cached(name: str, build: Callable[[Path], None], made_of: Sequence[Path]) -> Path:
    """Returns the cache folder of this name, after `build` has filled it if it was absent.

    Other processes that need the same folder wait. An interrupted build is never mistaken for a complete one.

    made_of: the tables that the entry is built from, which `retrievo cache` lists.
    """
    folder = cache_folder() / name
    if not (folder / DONE).is_file():
        with making(folder):
            if not (folder / DONE).is_file():
                remove(folder)
                folder.mkdir()
                build(folder)
                write_json(folder / ABOUT, about(made_of))
                _sync_all(folder)
                write_json(folder / DONE, {})
                _announce(folder)
    use(folder, folder / DONE)
    return folder


def is_cached(name: str) -> bool:
    """Whether the cache has a whole folder of this name."""
    return (cache_folder() / name / DONE).is_file()


def about(made_of: Sequence[Path]) -> dict[str, object]:
    """The content of an entry's `about.json`: the tables it was built from, and when."""
    return {"made_of": [os.path.abspath(path) for path in made_of], "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Holds the lock for building this entry; waits, with a note, while another process builds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with wait_for(lock_of(folder), f"{folder.parent.name}/{folder.name} in {folder.parent.parent}"):
        yield


@contextlib.contextmanager
def made_by_verb(folder: Path, finished: str) -> Iterator[None]:
    """Holds the lock for an entry that a command builds as its output, then marks the entry as used.

    finished: the name of the file that the command writes last.
    """
    whole = (folder / finished).is_file()  # a complete entry needs no lock, so its folder may be read-only
    with contextlib.nullcontext() if whole else making(folder):
        yield
    if not whole:
        _announce(folder)
    use(folder, folder / finished)


def lock_of(folder: Path) -> Path:
    """The lock file that is held while an entry is built or removed; separate from the lock of a command's output."""
    return folder.with_name(f".{folder.name}.lock")


_USED: dict[Path, MarkerSoftFileLock] = {}  # this process's `.use` files, removed when it exits


def use(folder: Path, last: Path) -> None:
    """Marks an entry as in use by this process; a read-only cache needs no mark, since nobody can prune it."""
    from filelock import MarkerSoftFileLock, Timeout

    with contextlib.suppress(OSError):
        os.utime(last)
    if folder in _USED:
        return
    mark = MarkerSoftFileLock(folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.use"))
    with contextlib.suppress(OSError, Timeout):
        mark.acquire(timeout=0)
        if not _USED:
            atexit.register(_release_all, os.getpid())
        _USED[folder] = mark


def _release_all(process: int) -> None:
    """Removes the `.use` files of this process; a forked child leaves its parent's in place."""
    for mark in _USED.values() if process == os.getpid() else ():
        with contextlib.suppress(OSError):
            mark.release()


def _sync_all(folder: Path) -> None:
    """Flushes all files of an entry to disk, so that `done.json` can be trusted after a power failure."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _announce(folder: Path) -> None:
    if (size := folder_bytes(folder)) >= LARGE:
        console.note(
            f"cached in {folder} for later runs ({format_size(size)}); retrievo cache lists and prunes the cache"
        )


def folder_bytes(folder: Path) -> int:
    """The total size of all files in a folder, in bytes; files that disappear meanwhile count as 0."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


class GrowingArray:
    """A one-dimensional .npy file that values are appended to; closing it writes the length into the header."""

    def __init__(self, path: Path, dtype: str):
        self._file, self._dtype, self._count = path.open("wb"), np.dtype(dtype), 0
        self._header()

    def append(self, values: np.ndarray) -> None:
        """Appends values, converted to the type of the file."""
        self._count += len(values)
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        """Writes the header; numpy pads headers, so a larger count fits in the same bytes."""
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)
