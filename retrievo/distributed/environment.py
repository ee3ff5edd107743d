"""What torchrun tells a process of the others, before any of them meet."""

from __future__ import annotations

import os

# The Rust tokenizer works on all cores, which hangs in a process forked after it was used and oversubscribes the cores
# where several workers do it: parallel in the main process unless the user said otherwise, sequential in workers. Of
# processes that share one command each has its part of the cores.
TOKENIZER_SWITCH, _THREADS = "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"


def started_together() -> int:
    """Number of processes that torchrun started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def tokenizing_environment(processes: int) -> dict[str, str]:
    """What the environment of each of some processes on this machine says, unless the user said otherwise."""
    own = {TOKENIZER_SWITCH: os.environ.get(TOKENIZER_SWITCH, "true")}
    if processes > 1 or _THREADS in os.environ:
        own[_THREADS] = os.environ.get(_THREADS, str(max(1, _cores() // processes)))
    return own


def _cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
