"""The counts of tests/house.py, on a small package whose counts are known; the tree of docs/architecture.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.house import measures

FILES = {
    "retrievo/__init__.py": "",
    "retrievo/cli.py": "from retrievo.data import one\nfrom retrievo.commands.go import GoConfig\n",
    "retrievo/data/__init__.py": "",
    "retrievo/data/one.py": "def bare(x: Any):\n    from retrievo.data import two\n",
    "retrievo/data/two.py": "from retrievo.data.one import bare\n\ndef long():\n    'Told.'\n" + "    x = 1\n" * 39,
    "retrievo/commands/go.py": '''
"""A verb."""
from retrievo.data.two import long
TABLE = {"depth": 1}

class GoConfig(Options):
    """Options."""
    depth: int = option("How deep.", only={"output": ()})
    alone: int = option("Said here only.", only={"output": ()})
    span: int = option("Checked by range only.", only={"output": ()})
    output: str = option("Where to.")
    typed: str = option("Checked twice.")

    def check(self):
        if self.typed and self.output:
            raise UsageError("--typed", "does not go with --output")
        if self.span > self.depth:
            raise UsageError("--span", f"found {self.span}", "less")

    def unrelated(self):
        return "alone"

def run(config: GoConfig):
    """Raises: for options that do not apply."""
    return "alone"

def check_more(config: GoConfig):
    """Refuses."""
    return [name for name in TABLE if getattr(config, name)] + ["typed"]
''',
    "tests/data/test_one.py": "",
    "tests/data/test_three.py": "",
}


@pytest.fixture
def counted(tmp_path: Path) -> dict[str, list[str]]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return measures(tmp_path)


def test_each_measure_counts_what_it_says(counted: dict[str, list[str]]) -> None:
    own = {name: [item.replace("retrievo.", "") for item in items] for name, items in counted.items()}
    assert own == {
        "rooms": ["cli", "commands", "data"],
        "folders": ["commands", "data"],
        "arrows": ["cli -> commands", "cli -> data", "commands -> data"],
        "circles": ["data.one, data.two"],
        "long-functions": ["data.two.long: 41 lines"],
        "any": ["data.one:1"],
        "scattered-rules": [
            "GoConfig.depth: declaration, commands.go.TABLE",
            "GoConfig.typed: commands.go.check_more, commands.go.GoConfig.check",
        ],
        "undocumented": ["data.one.bare"],
        "undocumented-methods": ["commands.go.GoConfig.check", "commands.go.GoConfig.unrelated"],
        "untested-modules": ["commands.go", "data.two"],
        "config-parameters": ["commands.go.run(config)", "commands.go.check_more(config)"],
    }


def tree_of_the_page() -> dict[str, str]:
    """Each path of the annotated tree with its note; a path that stands there twice fails."""
    page = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = re.search(r"^## Every file\n.*?^```\nretrievo/\n(.*?)^```$", page, re.M | re.S)
    assert lines, "docs/architecture.md has no tree"
    found: dict[str, str] = {}
    above: list[str] = []
    for line in lines[1].splitlines():
        indent, name, note = re.fullmatch(r"( +)(\S+) +(\S.*)", line).groups()  # type: ignore[union-attr]
        above = [*above[: len(indent) // 2 - 1], name.rstrip("/")]
        assert "/".join(above) not in found, line
        found["/".join(above)] = note
    return found


def test_the_tree_of_the_page_on_architecture_is_the_package() -> None:
    package = CHECKOUT / "retrievo"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    folders = {str(Path(name).parent) for name in files} - {"."}
    there = {name for name in files if name == "__init__.py" or not name.endswith("/__init__.py")} | folders
    listed = tree_of_the_page().keys()
    assert (sorted(there - listed), sorted(listed - there)) == ([], []), "docs/architecture.md, 'Every file'"
