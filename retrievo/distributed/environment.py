"""What torchrun tells a process of the others, before any of them meet."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# The Rust tokenizer works on all cores, which hangs in a process forked after it was used and oversubscribes the cores
# where several workers do it: parallel in the main process unless the user said otherwise, sequential in workers. Of
# processes that share one command each has its part of the cores.
TOKENIZER_SWITCH, _THREADS = "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def started_together() -> int:
    """Number of processes that torchrun started, this one among them; 1 without it."""
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
    """What the environment of each of some processes on this machine says, unless the user said otherwise."""
    own = {TOKENIZER_SWITCH: os.environ.get(TOKENIZER_SWITCH, "true")}
    if processes > 1 or _THREADS in os.environ:
        own[_THREADS] = os.environ.get(_THREADS, str(max(1, _cores() // processes)))
    return own


def _cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
