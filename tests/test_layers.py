"""Imports go down only, heavy libraries stay where they belong, and functions stay short."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import retrievo
from tests.conftest import CHECKOUT
from tests.house import circles, imported_modules, modules_of, undocumented

PACKAGE = Path(retrievo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "support": 0,
    "data": 1,
    "distributed": 1,
    "models": 2,
    "evaluation": 2,
    "retrieval": 3,
    "mining": 4,
    "training": 5,
}
VERBS, TOP = 6, 7


def layer_of(module: str) -> tuple[int, str]:
    """The layer of `retrievo.x.y`, and the room in it: rooms of one layer do not import one another."""
    name = module.split(".")[1]
    if name in ("cli", "__main__"):
        return TOP, "cli"
    return LAYERS.get(name, VERBS), name


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(("retrievo", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent != PACKAGE or path.stem != "__init__"], ids=module_of
)
def test_imports_go_down_only(path: Path) -> None:
    own_layer, own_room = layer_of(module_of(path))
    for imported in imports_of(path):
        if imported.startswith("retrievo.") and imported != "retrievo.__version__":
            layer, room = layer_of(imported)
            assert layer < own_layer or room == own_room, f"{module_of(path)} imports {imported}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = modules_of(CHECKOUT)
    assert len(imported_modules(modules)["retrievo.commands.table"]) > 10
    assert circles(modules) == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("faiss", "retrieval/"),
        ("pyserini", "retrieval/jvm.py"),
        ("jnius", "retrieval/jvm.py"),
        ("typer", "support/commandline.py cli.py"),
    ],
)
def test_heavy_libraries_are_met_in_one_place(library: str, allowed: str) -> None:
    for path in FILES:
        if any(name.split(".")[0] == library for name in imports_of(path)):
            where = str(path.relative_to(PACKAGE))
            assert any(where.startswith(place) for place in allowed.split()), f"{where} imports {library}"


def test_no_module_is_called_for_what_it_is_not() -> None:
    assert not {path.stem for path in FILES} & {"utils", "common", "base", "helpers", "misc"}


def test_functions_are_short() -> None:
    lengths = {
        f"{module_of(path)}.{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median(lengths.values()) <= 12


def test_public_functions_and_classes_have_docstrings() -> None:
    assert undocumented(modules_of(CHECKOUT)) == []
