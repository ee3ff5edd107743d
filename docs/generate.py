"""Writes docs/cli.md, the reference of all commands and options, from their declarations.

python docs/generate.py            write it
python docs/generate.py --check    exit 1 where the file is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from retrievo.cli import COMMANDS, HELP, Command
from retrievo.support.commandline import applies_only, shown_default
from retrievo.support.options import Option, options_of

TARGET = Path(__file__).with_name("cli.md")

INTRODUCTION = f"""# Commands and options

<!-- Written by docs/generate.py from the declarations in the code; do not edit. -->

{HELP}

Every option is also a key of the command's section in `retrievo.toml` (or `--config FILE`): `--min-relevance 2` is
`min_relevance = 2` under `[evaluate]`. A flag wins over the file, the file over the default. `--show-config` prints
every value with its source. Options that take several values accept commas, a repeated flag, and a list in TOML; those
marked *several* also accept values one after another: `--metrics mrr@10 recall@100`.
"""

COMMON = """
Common to all commands: `--config FILE` (defaults, instead of `./retrievo.toml`), `--show-config`, `--help`.
"""


def reference() -> str:
    """The page as Markdown."""
    return INTRODUCTION + "".join(_command(name, command) for name, command in COMMANDS.items()) + COMMON


def _command(name: str, command: Command) -> str:
    examples = "\n".join(command.examples)
    rows = "\n".join(_row(option) for option in options_of(command.config))
    head = "| option | value | default | meaning |\n|---|---|---|---|"
    return f"\n## retrievo {name}\n\n{command.help}\n\n```\n{examples}\n```\n\n{head}\n{rows}\n"


def _row(option: Option) -> str:
    told = option.declaration
    value = " \\| ".join(f"`{choice}`" for choice in told.choices) if told.choices else _KINDS[option.kind]
    if option.many:
        value += ", *several*" if told.several else ", list"
    meaning = told.help + (f" Only with `{applies_only(option)}`." if told.only else "")
    default = shown_default(option)
    return f"| `{option.flag}` | {value} | {f'`{default}`' if default else ''} | {meaning} |"


_KINDS = {str: "text", int: "whole number", float: "number", bool: "switch", Path: "path"}


def main() -> int:
    page = reference()
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page)
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
