"""Processes that a launcher started end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only the kernel of Linux ends processes so")

RANK = """
import sys, time
time.sleep(float(sys.argv[1]))
from retrievo.distributed.environment import end_with_launcher
end_with_launcher()
print("goes on", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print(rank.pid, flush=True)
time.sleep(60)
"""


def launched(delay: float) -> tuple[subprocess.Popen[str], int]:
    """A launcher, and the process id of the rank that it started, which asks to end with it after some seconds."""
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", LAUNCHER, RANK, str(delay)]
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    return launcher, int(launcher.stdout.readline())


def ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_rank_ends_when_its_launcher_is_killed() -> None:
    launcher, rank = launched(0)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "goes on\n"
    launcher.kill()
    assert ends_within(rank, 10)


def test_a_rank_whose_launcher_died_before_it_could_ask_ends_at_once() -> None:
    launcher, rank = launched(0.5)
    launcher.kill()
    launcher.wait()
    assert launcher.stdout is not None
    assert ends_within(rank, 10)
    assert launcher.stdout.read() == ""
