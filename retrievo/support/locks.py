"""Lock files: beside what a process works on lies a file that says which process, on which host, and since when.

`flock` is local to a host on many network file systems, and nobody can tell from it who holds a lock. A file that is
created exclusively is seen by every host (NFS 3 and newer). So these are the markers of `filelock`, which name host,
process and the start of that process. A marker of this host whose process is gone is taken over. Whether a process of
another host is gone, nobody can tell here, so the message names the file to delete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.support import console
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from filelock import MarkerSoftFileLock

LOCK_INSIDE = ".lock"  # in a folder whose parent can't be written to
QUIET = 1.0  # seconds that are waited without a word
_OFTEN, _SELDOM = 0.05, 0.5  # seconds between two looks: at first, and once it takes long


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file tells."""

    file: Path
    pid: int | None
    host: str | None
    since: float  # seconds since 1970, by the clock of the file's host

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        if self.pid is None:
            return f"an unknown process, since {since}"
        return f"process {self.pid} on {self.host}, since {since}"

    @property
    def is_gone(self) -> bool:
        """Whether no process has that number here; says nothing of another host."""
        try:
            os.kill(self.pid or 0, 0)
        except OSError as problem:
            return problem.errno == errno.ESRCH
        return False

    @property
    def way_out(self) -> str:
        """What to do where that process is gone and this host can't tell."""
        return f"delete {self.file} if that process is gone"


@contextlib.contextmanager
def hold(output: Path) -> Iterator[None]:
    """Holds an output against a second retrievo, on this host or on another.

    Raises: RetrievoError where another process holds it.
    """
    lock = _lock(lock_file(output))
    if (held := take(lock)) is not None:
        raise RetrievoError(
            output,
            f"another retrievo is writing it ({held})",
            None,
            f"wait for it, choose another --output, or {held.way_out}",
        )
    with _held(lock):
        yield


@contextlib.contextmanager
def wait_for(file: Path, what: str) -> Iterator[None]:
    """Holds a lock file that another process may hold: waits for it, and says for what and for whom."""
    lock, start, told = _lock(file), time.monotonic(), False
    while (held := take(lock)) is not None:
        waited = time.monotonic() - start
        if waited >= QUIET and not told:
            console.note(f"waiting for {what}, which {held} is making; {held.way_out}")
            told = True
        time.sleep(_SELDOM if told else _OFTEN)
    with _held(lock):
        yield


def take(lock: MarkerSoftFileLock, *, quietly: bool = False) -> Holder | None:
    """Takes a lock, or says who holds it; what a process of this host left behind that is gone is taken over."""
    from filelock import Timeout

    left = holder(lock)
    if left is not None and not left.is_gone:
        left = None
    for _ in range(3):  # it may be let go between two looks
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            if left is not None and not quietly:
                console.note(f"{left.file} was left behind by {left}, which is gone; taken over")
            return None
        held = holder(lock)
        if held is not None and not (held.is_gone and _broken(lock)):
            return held
    return held or Holder(Path(lock.lock_file), None, None, time.time())


def holder(lock: MarkerSoftFileLock) -> Holder | None:
    """Who holds a lock; None where nobody does."""
    file = Path(lock.lock_file)
    try:
        since = file.stat().st_mtime
    except OSError:
        return None
    owner = lock.owner
    return Holder(file, owner.pid, owner.hostname, since) if owner else Holder(file, None, None, since)


def lock_file(output: Path) -> Path:
    """`OUTPUT.lock`; inside a folder whose parent can't be written to, which is all that work in place needs."""
    if output.is_dir() and not os.access(output.parent, os.W_OK):
        return output / LOCK_INSIDE
    return output.with_name(f"{output.name}.lock")


def _lock(file: Path) -> MarkerSoftFileLock:
    from filelock import MarkerSoftFileLock

    return MarkerSoftFileLock(file)


@contextlib.contextmanager
def _held(lock: MarkerSoftFileLock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


def _broken(lock: MarkerSoftFileLock) -> bool:
    """Removes what a process of this host left behind; whether it did.

    `filelock` does so while acquiring where the file system can exchange two names, which NFS can't. Here those of one
    host who want the same lock do it one after the other; those of another host never do.
    """
    from filelock import MarkerSoftFileLock

    name = hashlib.blake2b(os.path.abspath(lock.lock_file).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    guard = MarkerSoftFileLock(Path(tempfile.gettempdir()) / f"retrievo-{os.getuid()}-{name}.lock", timeout=10)
    with guard:
        left, here = holder(lock), guard.owner
        if left is None or here is None or left.host != here.hostname or not left.is_gone:
            return False
        left.file.unlink(missing_ok=True)
    return True
