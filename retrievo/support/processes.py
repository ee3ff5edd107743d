"""What torchrun tells a process of the others, before any of them meet."""

from __future__ import annotations

import os


def started_together() -> int:
    """Number of processes that torchrun started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
