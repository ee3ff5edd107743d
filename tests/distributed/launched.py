"""What processes that are started together do in tests."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import torch

from retrievo.distributed.collectives import process_group, rank, sum_over_ranks
from retrievo.support.errors import RetrievoError


def add_up(folder: Path) -> None:
    with process_group("cpu"):
        total = sum_over_ranks(torch.tensor(rank() + 1.0))
        (folder / str(rank())).write_text(str(total.item()))


def one_fails(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        raise RetrievoError("here", "something is wrong", None, "do otherwise")
    time.sleep(60)
    (folder / "late").touch()


def one_dies(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    time.sleep(60)


def one_finds_the_disk_full(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    time.sleep(60)
