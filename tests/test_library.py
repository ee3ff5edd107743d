"""The library's face: light to import, typed, documented, and the same bytes as the command line."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import retrievo
from retrievo.cli import COMMANDS

PACKAGE = Path(retrievo.__file__).parent
HEAVY = ("torch", "transformers", "faiss", "numpy", "scipy", "pyarrow", "matplotlib", "typer", "rich")
PROBE = """
import json, sys, time
start = time.perf_counter()
import retrievo
took = time.perf_counter() - start
names = dir(retrievo)
print(json.dumps([took, [name for name in %r if name in sys.modules]]))
"""
# verb of the command line -> function, where they are not the same word
NAMED_OTHERWISE = {"import": "import_dataset", "run": "run_recipe"}


def test_importing_costs_nothing() -> None:
    tries = [
        subprocess.run([sys.executable, "-c", PROBE % (HEAVY,)], capture_output=True, check=True) for _ in range(3)
    ]
    took, heavy = zip(*(json.loads(tried.stdout) for tried in tries), strict=True)
    assert min(took) < 0.15
    assert heavy == ([], [], [])


@pytest.mark.parametrize("name", retrievo.__all__)
def test_every_public_name_is_there_documented_and_typed(name: str) -> None:
    found = getattr(retrievo, name)
    assert inspect.getdoc(found)
    if inspect.isclass(found):
        public = [getattr(found, member) for member in vars(found) if not member.startswith("_")]
        methods = [member for member in public if inspect.isroutine(member)]
        assert [member.__name__ for member in methods if not inspect.getdoc(member)] == []
    else:
        signature = inspect.signature(found)
        assert signature.return_annotation is not inspect.Signature.empty
        assert [known.name for known in signature.parameters.values() if known.annotation is known.empty] == []


def test_what_types_see_is_what_is_loaded() -> None:
    """The imports under TYPE_CHECKING and the table of homes name the same things in the same places."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retrievo.")
        for alias in node.names
        if alias.name == alias.asname
    }
    loaded = {name: f"retrievo.{home}" for name, home in retrievo._HOME_OF.items()}
    assert seen == loaded
    assert set(retrievo.__all__) <= set(dir(retrievo))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'retrievo' has no attribute 'trian'"):
        retrievo.trian  # noqa: B018


def test_every_verb_is_a_function_of_its_config() -> None:
    for name, command in COMMANDS.items():
        if name in ("search", "evaluate"):
            continue
        found = getattr(retrievo, NAMED_OTHERWISE.get(name, name.replace("-", "_")))
        parameters = list(inspect.signature(found).parameters)
        assert parameters[0] == "config"
        assert set(parameters[1:]) == set(inspect.signature(command.config).parameters)
        assert getattr(retrievo, command.config.__name__) is command.config


def test_no_module_directly_below_the_package_bears_a_public_name() -> None:
    modules = {path.stem for path in PACKAGE.glob("*")}
    assert modules & {*retrievo.__all__, *(name.replace("-", "_") for name in COMMANDS)} == set()


def test_submodules_are_still_found() -> None:
    assert importlib.import_module("retrievo.commands.train").train is retrievo.train
