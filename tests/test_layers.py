"""Imports go down only, heavy libraries stay where they belong, and functions stay short."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import retrievo

PACKAGE = Path(retrievo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "support": 0,
    "data": 1,
    "distributed": 1,
    "models": 2,
    "evaluation": 2,
    "retrieval": 2,
    "mining": 3,
    "training": 4,
}
VERBS, TOP = 5, 6


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


def own_imports() -> dict[str, set[str]]:
    """The modules of this package that each module imports, wherever in the file the import stands."""
    modules = {module_of(path).removesuffix(".__init__") for path in FILES}
    return {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in imports_of(path)
            if name.startswith("retrievo.") and {name, name.rpartition(".")[0]} & modules
        }
        - {module, "retrievo"}
        for path in FILES
        for module in [module_of(path).removesuffix(".__init__")]
    }


def test_no_module_imports_itself_by_way_of_others() -> None:
    arrows = own_imports()
    assert len(arrows["retrievo.cli"]) > 10
    ends = set(arrows)
    while ends:  # what imports nothing that is left, or is imported by nothing that is left, is in no circle
        imported = set().union(*arrows.values())
        ends = {module for module in arrows if not arrows[module] & arrows.keys() or module not in imported}
        arrows = {module: names for module, names in arrows.items() if module not in ends}
    assert {module: sorted(names & arrows.keys()) for module, names in arrows.items()} == {}


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
    bare = [
        f"{module_of(path)}.{node.name}"
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []
