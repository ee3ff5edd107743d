"""The environment of processes that torchrun starts, read before they join a process group."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# The Rust tokenizer uses all cores, which hangs in a process that is forked afterwards and oversubscribes the cores if
# several workers do so. So it is parallel in the main process, unless the user disabled that, and sequential in
# workers. The processes of one command divide the cores among themselves.
TOKENIZER_SWITCH, _THREADS = "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def started_together() -> int:
    """The number of processes that torchrun started, including this one; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def end_with_launcher(launcher: int | None = None) -> None:
    """Makes the kernel end this process when the one that launched it dies, as after `kill -9` of torchrun.

    Ranks that outlive their launcher wait for one another, for a day where they had not met yet, and hold their device.
    On Linux alone; elsewhere, and without a launcher, this does nothing.

    launcher: the process id of the launcher; None looks whether torchrun started this process.
    Raises: SystemExit where the launcher has died already.
    """
    if sys.platform != "linux" or (launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if launcher is None:  # torchrun does not tell its id; orphans belong to process 1, which torchrun itself may be
        died = os.getppid() == 1 and b"torch" not in Path("/proc/1/cmdline").read_bytes()
    else:
        died = os.getppid() != launcher
    if died:
        raise SystemExit(1)


def tokenizing_environment(processes: int) -> dict[str, str]:
    """Environment variables for each of several processes on this machine; the user's own settings take precedence."""
    own = {TOKENIZER_SWITCH: os.environ.get(TOKENIZER_SWITCH, "true")}
    if processes > 1 or _THREADS in os.environ:
        own[_THREADS] = os.environ.get(_THREADS, str(max(1, _cores() // processes)))
    return own


def _cores() -> int:
    """The number of cores that this process may use, if the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
