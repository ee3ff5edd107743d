"""What the project says of itself: dependencies, version, citation and changelog agree with the code."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import retrievo

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FAISS = {"faiss-cpu", "faiss-gpu"}  # two builds of one module
EXTRAS = {name for extra in ("cpu", "gpu", "tensorboard", "lora") for name in PROJECT["optional-dependencies"][extra]}


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].replace("_", "-").lower()


def imported() -> Iterator[str]:
    """Top-level names of other people's packages that retrievo imports, inside functions too."""
    for path in (CHECKOUT / "retrievo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from (name.partition(".")[0] for name in names)


def test_every_import_is_declared_and_every_dependency_is_imported() -> None:
    homes = packages_distributions()
    names = {name for name in imported() if name not in sys.stdlib_module_names | {"retrievo"}}
    used = {name_of(home) for name in names for home in homes.get(name, [name])}
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    optional = {name_of(requirement) for requirement in EXTRAS}
    assert used - declared - optional - FAISS == set()
    # pyserini's Java classes are used through pyjnius; torch imports tensorboard
    assert declared - used == {"pyserini"}


def test_the_citation_has_the_version_and_the_license_of_the_package() -> None:
    citation = (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == retrievo.__version__  # type: ignore[index]
    assert re.search(r"^license: (.*)$", citation, re.M)[1] == PROJECT["license"]  # type: ignore[index]


def test_the_changelog_has_known_sections_and_dated_versions() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", changelog, re.M)
    assert versions[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d{2}-\d{2}\)", version) for version in versions[1:])
    assert set(re.findall(r"^### (.*)$", changelog, re.M)) <= {"Added", "Changed", "Fixed", "Removed"}
    unreleased = changelog.partition("## Unreleased")[2].partition("\n## ")[0]
    assert not unreleased.partition("\n### ")[0].strip(), "a line stands in no section"


def test_python_versions_are_those_of_the_workflow() -> None:
    workflow = (CHECKOUT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    tested = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1])  # type: ignore[index]
    prefix = "Programming Language :: Python :: 3."
    assert tested == [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if one.startswith(prefix)]
