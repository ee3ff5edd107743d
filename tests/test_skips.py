"""Where skips are counted, one that nobody listed fails the run: a test that never runs cannot fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
LISTED = """
import pytest
def test_with_a_gpu():
    pytest.skip("no CUDA device")
def test_passes():
    pass
"""
UNLISTED = """
def test_with_data():
    pytest.skip("no real collection at /data (set RETRIEVO_DATA)")
@pytest.mark.parametrize("value", [])
def test_of_nothing(value):
    pass
"""
WHOLE_FILE = "import pytest\npytest.importorskip('a_package_that_is_not_there')\n"


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Pytest with the conftest.py of these tests."""
    shutil.copy(TESTS / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", folder, *flags, folder]
    return subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)


@pytest.mark.slow
def test_a_skip_that_is_not_listed_fails_the_run_where_skips_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(LISTED + UNLISTED)
    (tmp_path / "test_two.py").write_text(WHOLE_FILE)
    ran = run(tmp_path, "--listed-skips-only", "-n", "1")  # as in .ci/run, where workers run the tests
    told = [place for place in ("with_data", "of_nothing", "test_two.py", "with_a_gpu") if place in ran.stdout]
    assert (ran.returncode, told) == (1, ["with_data", "of_nothing", "test_two.py"]), ran.stdout


@pytest.mark.slow
def test_a_listed_skip_fails_nothing_and_nor_does_any_where_they_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(LISTED)
    assert run(tmp_path, "--listed-skips-only").returncode == 0
    (tmp_path / "test_two.py").write_text(WHOLE_FILE)
    assert run(tmp_path).returncode == 0
