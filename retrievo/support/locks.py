"""Lock files: a file beside an output says which process is writing it, on which host, and since when.

`flock` is local to a host on many network file systems and does not tell who holds a lock, whereas a file that is
created exclusively is visible to every host (NFS 3 and newer). These locks are therefore the soft locks of `filelock`,
which record the host, the process and its start time. A lock of this host whose process has ended is taken over.
Whether a process of another host has ended cannot be known here, so the message names the file to delete.
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

LOCK_INSIDE = ".lock"  # name of the lock inside a folder whose parent is not writable
QUIET = 1.0  # seconds to wait before a note says so
_OFTEN, _SELDOM = 0.05, 0.5  # seconds between attempts: before that note, and after it


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, according to the lock file."""

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
        """Whether no process on this host has that id; meaningless for a lock of another host."""
        try:
            os.kill(self.pid or 0, 0)
        except OSError as problem:
            return problem.errno == errno.ESRCH
        return False

    @property
    def way_out(self) -> str:
        """Advice for the case that the process has ended and this host cannot know."""
        return f"delete {self.file} if that process is gone"


@contextlib.contextmanager
def hold(output: Path) -> Iterator[None]:
    """Locks an output against a second retrievo process, on this host or another.

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
    """Acquires a lock, waiting while another process holds it; a note names that process and what it is making."""
    lock, start, noted = _lock(file), time.monotonic(), False
    while (held := take(lock)) is not None:
        waited = time.monotonic() - start
        if waited >= QUIET and not noted:
            console.note(f"waiting for {what}, which {held} is making; {held.way_out}")
            noted = True
        time.sleep(_SELDOM if noted else _OFTEN)
    with _held(lock):
        yield


def take(lock: MarkerSoftFileLock, *, quietly: bool = False) -> Holder | None:
    """Acquires a lock or returns its holder; takes over a lock of this host whose process has ended."""
    from filelock import Timeout

    left = holder(lock)
    if left is not None and not left.is_gone:
        left = None
    for _ in range(3):  # the lock may be released between two attempts
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
    """The process that holds a lock; None where none does."""
    file = Path(lock.lock_file)
    try:
        since = file.stat().st_mtime
    except OSError:
        return None
    owner = lock.owner
    return Holder(file, owner.pid, owner.hostname, since) if owner else Holder(file, None, None, since)


def lock_file(output: Path) -> Path:
    """The lock file of an output: `OUTPUT.lock`, or a file inside the folder if its parent is not writable."""
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
    """Removes a lock that an ended process of this host left behind; returns whether it did.

    `filelock` does so itself only on file systems that can exchange two names, which NFS cannot. Here, a second lock
    makes the processes of one host take turns; processes of other hosts never remove the lock.
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
