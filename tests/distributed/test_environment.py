"""Processes end with their launcher; programs set the environment, the library never does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrievo.distributed.environment import process_environment, without_spinning
from tests.conftest import CHECKOUT

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only the kernel of Linux ends processes so")

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


@on_linux
def test_a_rank_ends_when_its_launcher_is_killed() -> None:
    launcher, rank = launched(0)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "goes on\n"
    launcher.kill()
    assert ends_within(rank, 10)


@on_linux
def test_a_rank_whose_launcher_died_before_it_could_ask_ends_at_once() -> None:
    launcher, rank = launched(0.5)
    launcher.kill()
    launcher.wait()
    assert launcher.stdout is not None
    assert ends_within(rank, 10)
    assert launcher.stdout.read() == ""


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_how_threads_wait_is_left_to_a_user_who_says_so(name: str) -> None:
    assert without_spinning({"PATH": "/bin"}) == {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
    assert without_spinning({"PATH": "/bin", name: "x"}) == {}


COMMAND = """
import sys
from retrievo.__main__ import main
sys.argv = ["retrievo", "--version"]
try:
    main()
except SystemExit:
    import torch, faiss
"""


def test_the_openmp_runtimes_of_torch_and_faiss_obey_what_the_command_line_sets() -> None:
    """Each runtime tells its settings when it is loaded."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    bare |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(CHECKOUT)}
    ran = subprocess.run([sys.executable, "-c", COMMAND], env=bare, capture_output=True, text=True, check=True)
    assert set(re.findall(r"(?:GOMP_SPINCOUNT|KMP_BLOCKTIME) ?= ?'(\d+)", ran.stderr)) in ({"1000"}, {"0"}), ran.stderr


LIBRARY = """
import os, sys
before = dict(os.environ)
import retrievo
assert dict(os.environ) == before
for name in retrievo.__all__:
    getattr(retrievo, name)
assert dict(os.environ) == before
retrievo.Encoder.load(sys.argv[1]).encode_queries(["flow over a wing"])
assert dict(os.environ) == before
"""


@pytest.mark.slow
def test_the_library_leaves_the_environment_as_it_is(tiny_model: Path) -> None:
    """Java's is tested where it starts: tests/retrieval/test_bm25.py."""
    bare = {name: value for name, value in os.environ.items() if name not in process_environment(2)}
    bare["PYTHONPATH"] = str(CHECKOUT)
    subprocess.run([sys.executable, "-c", LIBRARY, str(tiny_model)], env=bare, check=True)
