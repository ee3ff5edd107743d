"""Each diff of docs/extending.md applies to the package as it is, and what it adds works, tests and all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

PAGE = CHECKOUT / "docs" / "extending.md"
SHOWN = {  # where a user finds the new name: a page of the copy, or a command
    "A metric": ("docs/evaluation.md", "rbp@k"),
    "A loss": ("train --help-all", "hinge"),
    "An objective": ("pretrain --help-all", "neighbors"),
    "An index type": ("index --help-all", "hamming"),
    "A scorer": ("rerank --help-all", "late-interaction"),
    "An importer": ("import --help-all", "anserini"),
}


def diffs() -> dict[str, str]:
    """The diff of each section of the page that has one."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    found = {section.splitlines()[0]: re.findall(r"^```diff\n(.*?)^```$", section, re.M | re.S) for section in sections}
    return {title: "".join(blocks) for title, blocks in found.items() if blocks}


def added_tests(diff: str) -> list[str]:
    """The files of tests that a diff adds."""
    return re.findall(r"^\+\+\+ b/(tests/\S+)$", diff, re.M)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, its pages and what its tests share, without the files of tests."""
    folder = tmp_path / "copy"
    for part in ("retrievo", "docs"):
        shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    (folder / "tests").mkdir()
    for path in (*CHECKOUT.glob("*.toml"), *(CHECKOUT / "tests").glob("*.py")):
        shutil.copy(path, folder / path.relative_to(CHECKOUT))
    return folder


def apply(title: str, folder: Path) -> None:
    """Applies a section's diff; fails with the section and what git says of it."""
    apart = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # the copy is in no repository
    command = ["git", "apply", "-C1", "--whitespace=nowarn", "-"]
    ran = subprocess.run(command, cwd=folder, env=apart, input=diffs()[title], text=True, capture_output=True)
    if ran.returncode:
        pytest.fail(f"docs/extending.md, '{title}': its diff no longer applies; mend the page.\n{ran.stderr}", False)


def run(folder: Path, *arguments: str) -> str:
    """What a fresh Python says that finds the package in a folder."""
    alone = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *arguments]
    ran = subprocess.run(command, cwd=folder, env=alone, text=True, capture_output=True, timeout=300)
    assert ran.returncode == 0, f"{' '.join(arguments)}: {ran.stdout[-3000:]}{ran.stderr[-2000:]}"
    return ran.stdout


def test_every_section_is_tried() -> None:
    assert diffs().keys() == SHOWN.keys()


@pytest.mark.parametrize("title", SHOWN)
def test_at_most_two_files_and_a_test_are_touched(title: str) -> None:
    files = re.findall(r"^\+\+\+ b/(\S+)$", diffs()[title], re.M)
    assert len([name for name in files if name.startswith("retrievo/")]) <= 2, files
    assert len(added_tests(diffs()[title])) == 1, files


@pytest.mark.parametrize("title", SHOWN)
def test_the_diff_applies(title: str, copy: Path) -> None:
    apply(title, copy)


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=() if title == "An importer" else pytest.mark.slow) for title in SHOWN]
)
def test_what_the_diff_adds_works_and_is_shown(title: str, copy: Path) -> None:
    apply(title, copy)
    run(copy, "pytest", "-q", "-p", "no:cacheprovider", *added_tests(diffs()[title]))
    where, name = SHOWN[title]
    page = copy / where
    assert name in (page.read_text(encoding="utf-8") if page.exists() else run(copy, "retrievo", *where.split()))


@pytest.mark.slow
def test_the_diffs_fit_together_and_keep_the_layers(copy: Path) -> None:
    for title in SHOWN:
        apply(title, copy)
    laws = [f"tests/test_{name}.py" for name in ("layers", "imports", "house")]
    run(copy, "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", "not at_once")  # that one goes by the clock


def test_a_diff_that_no_longer_applies_is_named(copy: Path) -> None:
    (copy / "retrievo" / "evaluation" / "names.py").write_text("NAMES = {}\n")
    with pytest.raises(pytest.fail.Exception, match=r"'A metric': its diff no longer applies(.|\n)*names\.py"):
        apply("A metric", copy)
