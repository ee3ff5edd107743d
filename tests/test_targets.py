"""What is named in a string is there: targets of tables ("module:attribute"), and the package as torchrun starts it."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import retrievo
from tests.conftest import CHECKOUT, run_process

NOT_MODULES = {"retrievo.json", "retrievo.toml", "retrievo.language"}  # two names of files, a key of a Lucene index
TARGET = re.compile(r"(retrievo(?:\.\w+)+)(?::(\w+))?")


def targets_in(folder: Path) -> dict[str, Path]:
    """Each string of a folder's code that is, as a whole, a dotted name in this package, and the file that has it."""
    return {
        node.value: path
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and TARGET.fullmatch(node.value)
        and node.value not in NOT_MODULES
    }


def resolve(target: str) -> object:
    """The module, or the attribute of a module or class, that a string names."""
    dotted, attribute = TARGET.fullmatch(target).groups()  # type: ignore[union-attr]
    parts, found = dotted.split("."), None
    for end in range(1, len(parts) + 1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            found = getattr(found, parts[end - 1])
    return getattr(found, attribute) if attribute else found


def test_every_name_in_a_string_can_be_imported() -> None:
    targets = targets_in(Path(retrievo.__file__).parent) | targets_in(CHECKOUT / "tests")
    assert len(targets) > 40
    missing = {}
    for target, path in targets.items():
        try:
            resolve(target)
        except (AttributeError, ImportError) as error:
            missing[f"{path.relative_to(CHECKOUT)}: {target}"] = str(error)
    assert missing == {}


def test_torchrun_starts_the_package() -> None:
    assert run_process(["--version"], processes=2) is not None
