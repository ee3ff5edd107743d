"""Writes docs/cli.md from the declarations of commands and options, and docs/errors.md from the tests of bad inputs.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 where one is out of date
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from retrievo.cli import HELP
from retrievo.commands.table import COMMANDS, Command
from retrievo.support.help import sections, shown_default
from retrievo.support.options import Option, options_of

HERE = Path(__file__).parent
CASES = HERE.parent / "tests" / "test_bad_inputs.py"

INTRODUCTION = f"""# Commands and options

<!-- Written by docs/generate.py from the declarations in the code; do not edit. -->

{HELP}

Every option is also a key of the command's section in `retrievo.toml` (or `--config FILE`): `--min-relevance 2` is
`min_relevance = 2` under `[evaluate]`. A flag wins over the file, the file over the default. `--show-config` prints
every value with its source. Options that take several values accept commas, a repeated flag, and a list in TOML; those
marked *several* also accept values one after another: `--metrics mrr@10 recall@100`. What a command writes or
replaces (`--output`, `--report`, `--per-query`, `--force`, `--restart`, `--redo`, `--prune`, `--add`, `--continue`, a
stage, a recipe) is typed, or stands in a file that `--config` names: a `retrievo.toml` that only lies in the working
folder may not set it.
"""

COMMON = """
Common to all commands: `--config FILE` (defaults, instead of `./retrievo.toml`), `--show-config`, `--help` (the options
that most people need) and `--help-all` (all of them).
"""


def reference() -> str:
    """The page as Markdown."""
    return INTRODUCTION + "".join(_command(name, command) for name, command in COMMANDS.items()) + COMMON


def _command(name: str, command: Command) -> str:
    examples = "\n".join(command.examples)
    tables = "".join(_table(title, members) for title, members in sections(options_of(command.config)))
    return f"\n## retrievo {name}\n\n{command.help}\n\n```\n{examples}\n```\n{tables}"


def _table(title: str, members: list[Option]) -> str:
    rows = "\n".join(_row(option) for option in members)
    return f"\n**{title}**\n\n| option | value | default | meaning |\n|---|---|---|---|\n{rows}\n"


def _row(option: Option) -> str:
    declaration = option.declaration
    choices = declaration.choices
    value = " \\| ".join(f"`{choice}`" for choice in choices) if choices else _KINDS[option.kind]
    value += "".join(f" or `{word}`" for word in declaration.words)
    if option.many:
        value += ", *several*" if declaration.several else ", list"
    rule = f" {option.rule[0].upper()}{option.rule[1:]}." if option.rule else ""
    default = shown_default(option)
    return f"| `{option.flag}` | {value} | {f'`{default}`' if default else ''} | {declaration.help}{rule} |"


_KINDS = {str: "text", int: "whole number", float: "number", bool: "switch", Path: "path"}


ERRORS = """# Errors

A problem with data, files or the machine is one line on standard error, `error: where: what was found; expected ...;
next step`, and exit code 1. A problem with what was typed or written in a TOML file exits with 2, Ctrl-C with 130.
Nothing half-written stands at the output. A traceback means a bug: please report it.

Each row is a test in `tests/test_bad_inputs.py`.

| what is wrong | what the line says | exit |
|---|---|---|
"""

WARNINGS = """
## Warnings

Odd but usable data is counted in one line that begins with `warning:`: documents and queries without text, which are
kept; judgments of queries or documents that are not there, which `import` keeps, and `train` and (of documents)
`mine-negatives` leave out; TOML keys that do not apply to what was chosen; a corpus that has changed since its index
was built; runs, negatives, teachers, judgments and vectors of another corpus or of other queries than those they are
read beside; a run that is less deep than a metric looks. `evaluate` reads no corpus: a judged document counts whether
or not it is in one.
"""


def errors() -> str:
    """The page of errors as Markdown."""
    cases = runpy.run_path(str(CASES))["CASES"]
    rows = "".join(f"| {name} | `{message}` | {code} |\n" for name, (_, code, message) in cases.items())
    return ERRORS + rows + WARNINGS


def main() -> int:
    pages = {HERE / "cli.md": reference(), HERE / "errors.md": errors()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != page for path, page in pages.items()))
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
