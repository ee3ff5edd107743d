"""The user's cache folder: what can be made again, built once, shared by processes and hosts, never half there.

An entry is the folder KIND/NAME. While it is made, `KIND/.NAME.lock` says by whom; others that want it wait. While a
process uses it, `KIND/.NAME.HOST.PID.use` says so, and `retrievo cache --prune` leaves it alone.
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
from retrievo.support.sizes import told_size

if TYPE_CHECKING:
    from filelock import MarkerSoftFileLock

DONE, ABOUT = "done.json", "about.json"
LARGE = 1 << 30  # bytes from which an entry is told of when it is made


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/retrievo`, never beside a corpus."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrievo"


def cached(name: str, build: Callable[[Path], None], made_of: Sequence[Path]) -> Path:
    """The folder of this name in the cache; `build` fills it where it is absent.

    Other processes that want the same folder wait. A build that is killed leaves nothing that is taken for whole.

    made_of: the tables that it is made of, for `retrievo cache`.
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
                _tell_of(folder)
    use(folder, folder / DONE)
    return folder


def about(made_of: Sequence[Path]) -> dict[str, object]:
    """What an entry says of itself: what it is made of, and when it was."""
    return {"made_of": [os.path.abspath(path) for path in made_of], "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Nobody else makes this entry meanwhile: waits for a process that does, and says so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with wait_for(lock_of(folder), f"{folder.parent.name}/{folder.name} in {folder.parent.parent}"):
        yield


@contextlib.contextmanager
def made_by_verb(folder: Path, finished: str) -> Iterator[None]:
    """The same for an entry that a command makes as its output, and from then on it is used.

    finished: the file of it that is written last.
    """
    whole = (folder / finished).is_file()  # then nothing is written, and its place may be read-only
    with contextlib.nullcontext() if whole else making(folder):
        yield
    if not whole:
        _tell_of(folder)
    use(folder, folder / finished)


def lock_of(folder: Path) -> Path:
    """What stands while an entry is made or removed; beside the lock of a command's own output."""
    return folder.with_name(f".{folder.name}.lock")


_USED: dict[Path, MarkerSoftFileLock] = {}  # marks of this process, which go at its end


def use(folder: Path, last: Path) -> None:
    """Marks an entry as used now and by this process; where the cache can't be written to, nobody prunes it either."""
    from filelock import MarkerSoftFileLock, Timeout

    with contextlib.suppress(OSError):
        os.utime(last)
    if folder in _USED:
        return
    mark = MarkerSoftFileLock(folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.use"))
    with contextlib.suppress(OSError, Timeout):
        mark.acquire(timeout=0)
        if not _USED:
            atexit.register(_let_go, os.getpid())
        _USED[folder] = mark


def _let_go(process: int) -> None:
    """Takes this process's marks away; a process that was forked from it leaves them."""
    for mark in _USED.values() if process == os.getpid() else ():
        with contextlib.suppress(OSError):
            mark.release()


def _sync_all(folder: Path) -> None:
    """Flushes to the disk what any writer left there, so that after a power cut `done.json` tells the truth."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _tell_of(folder: Path) -> None:
    if (size := folder_bytes(folder)) >= LARGE:
        console.note(f"kept for later in {folder} ({told_size(size)}); retrievo cache lists and prunes the cache")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; of those that go meanwhile none."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


class GrowingArray:
    """A one-dimensional .npy file that is appended to; its length goes into the header at the end."""

    def __init__(self, path: Path, dtype: str):
        self._file, self._dtype, self._count = path.open("wb"), np.dtype(dtype), 0
        self._header()

    def append(self, values: np.ndarray) -> None:
        """Adds values, converted to the type of the file."""
        self._count += len(values)
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        """numpy pads headers, so that a larger count fits the same place."""
        told = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, told)
