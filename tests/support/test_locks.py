"""Lock files: one writer at a time, on any host; what a killed process leaves is taken over; who holds it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import MarkerSoftFileLock

from retrievo.support import locks
from retrievo.support.errors import RetrievoError
from retrievo.support.locks import LOCK_INSIDE, hold, lock_file, wait_for

HOLDS = """
import os, sys, time
from pathlib import Path
from retrievo.support.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(output: Path) -> subprocess.Popen:
    """Another process that holds an output."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(file: Path, process: int = 4242) -> None:
    """What a process of another host left, or still holds: nobody here can tell."""
    file.write_text(f"filelock/2\npid={process}\nhost=node-7\nmode=exclusive\nstart=1\n")


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    process = holding(tmp_path / "out")
    try:
        with pytest.raises(RetrievoError, match="another retrievo is writing it") as refused, hold(tmp_path / "out"):
            pass
        assert f"process {process.pid} on " in str(refused.value)
        assert f"delete {tmp_path / 'out.lock'} if that process is gone" in str(refused.value)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("exchange", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    process = holding(tmp_path / "out")
    process.kill()
    process.wait()
    assert (tmp_path / "out.lock").is_file()
    if not exchange:  # as on NFS, where filelock can't
        monkeypatch.setattr(MarkerSoftFileLock, "_try_break_stale_lock", lambda self: None)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    with hold(tmp_path / "out"):
        assert (tmp_path / "out.lock").read_text().splitlines()[1] == f"pid={os.getpid()}"
    assert f"left behind by process {process.pid} on " in said()
    assert not (tmp_path / "out.lock").exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_the_lock_of_another_host_is_never_taken_over(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path / "out.lock", process=2**22 - 3)  # no process of that number runs here
    if not exchange:
        monkeypatch.setattr(MarkerSoftFileLock, "_try_break_stale_lock", lambda self: None)
    before = (tmp_path / "out.lock").read_bytes()
    with (
        pytest.raises(RetrievoError, match=r"process 4194301 on node-7, since \d{4}-\d\d-\d\d"),
        hold(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out.lock").read_bytes() == before


def test_a_lock_file_that_names_nobody_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "out.lock").touch()
    with pytest.raises(RetrievoError, match=r"an unknown process, since .*delete"), hold(tmp_path / "out"):
        pass


def test_who_waits_is_told_for_whom_and_goes_on_when_the_file_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "QUIET", 0.0)
    monkeypatch.setattr(locks, "_SELDOM", 0.01)
    elsewhere(tmp_path / "entry.lock")
    told: list[str] = []

    def note(text: str) -> None:
        told.append(text)
        (tmp_path / "entry.lock").unlink()

    monkeypatch.setattr(locks.console, "note", note)
    with wait_for(tmp_path / "entry.lock", "tokens of a corpus"):
        assert (tmp_path / "entry.lock").read_text().splitlines()[1] == f"pid={os.getpid()}"
    assert len(told) == 1
    assert told[0].startswith("waiting for tokens of a corpus, which process 4242 on node-7, since ")
    assert told[0].endswith(f"delete {tmp_path / 'entry.lock'} if that process is gone")


def test_inside_a_folder_whose_parent_is_read_only_the_lock_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    assert lock_file(tmp_path / "out") == tmp_path / "out.lock"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    assert lock_file(tmp_path / "out") == tmp_path / "out" / LOCK_INSIDE
    with hold(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK_INSIDE).is_file()
    assert not (tmp_path / "out" / LOCK_INSIDE).exists()
