"""The documentation is what the code says: pages are fresh, every command is shown, every link leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from retrievo.cli import COMMANDS, several_flags
from retrievo.evaluation.names import CONVENTIONS, NAMES, STYLES
from retrievo.support.commandline import expand_flags
from retrievo.support.options import options_of

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])


def test_the_reference_of_commands_is_fresh() -> None:
    ran = subprocess.run([sys.executable, CHECKOUT / "docs" / "generate.py", "--check"], check=False)
    assert ran.returncode == 0, "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_that_the_page_on_reliability_names_is_there() -> None:
    page = (CHECKOUT / "docs" / "reliability.md").read_text(encoding="utf-8")
    files = sorted((CHECKOUT / "tests").rglob("*.py"))
    known = {path.stem for path in files}.union(
        *(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")) for path in files)
    )
    named = {name.rstrip("_") for name in re.findall(r"\btest_\w+", page)}
    assert len(named) > 50
    assert {name for name in named if not any(other.startswith(name) for other in known)} == set()


def lines_typed() -> list[str]:
    """Every `retrievo ...` line of the pages and of the commands' own examples."""
    pages = re.sub(r"\\\n\s*", "", "\n".join(page.read_text(encoding="utf-8") for page in PAGES))
    blocks = "\n".join(code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", pages, re.DOTALL | re.M) if not kind)
    typed = [line.strip() for line in blocks.splitlines() if line.startswith("retrievo ")]
    return typed + [line for command in COMMANDS.values() for line in command.examples if line.startswith("retrievo ")]


def test_every_metric_alias_convention_and_form_is_explained() -> None:
    page = (CHECKOUT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    names = [*NAMES, *(alias for row in NAMES.values() for alias in row.aliases)]
    assert [name for name in names if not re.search(rf"`{name}(-n)?(@k)?`", page)] == []
    assert [name for name in CONVENTIONS if f"| `{name}`" not in page] == []
    assert f"`--format {'|'.join(STYLES)}`" in page


@pytest.mark.parametrize("line", dict.fromkeys(lines_typed()))
def test_every_line_to_type_uses_known_commands_and_flags(line: str) -> None:
    import shlex

    _, command, *arguments = shlex.split(line)
    known = {option.flag for option in options_of(COMMANDS[command].config)} | {"--help", "--config", "--show-config"}
    typed = [argument.partition("=")[0] for argument in expand_flags([command, *arguments], several_flags())[1:]]
    assert {argument for argument in typed if argument.startswith("--")} <= known
