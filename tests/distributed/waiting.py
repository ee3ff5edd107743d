"""A module that reads the environment when it is imported, as the OpenMP runtime does."""

from __future__ import annotations

import os
from pathlib import Path

SPINS = os.environ.get("GOMP_SPINCOUNT", "not set")


def waiting_when_imported(folder: Path) -> None:
    (folder / os.environ["RANK"]).write_text(SPINS)
