"""What `retrievo --help` prints of the commands, and `--help` and `--help-all` of one: a few options, or all by topic.

All read the declarations. The first sentence of a command's help stands in `retrievo --help`, that of an option's in
`--help`, the whole in `--help-all`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING
from pathlib import Path

from retrievo.support.options import GROUPS, Option

REQUIRED = "Required"
WIDEST = 110  # columns; longer lines of text are hard to read
SCREEN = 24  # lines of a small terminal; `--help` fits them
_NAMES = 30  # columns of a flag and its value; longer ones have a line of their own
_KINDS = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}
_LISTED = 24  # characters of choices that are listed beside the flag; longer lists follow the help text

_STYLES = {  # what stands out on a terminal -> its code: headings bold, names of options and commands cyan
    r"^Usage(?=: )|^[A-Z].*(?=:$)": 1,
    r"(?<=^  )(--\S+|[A-Z]+)(?= |$)": 36,
    r"(?<=^.{10})[a-z][a-z-]+(?=  )": 36,
}


def sections(options: Iterable[Option]) -> list[tuple[str, list[Option]]]:
    """Options by the panel that shows them: required ones first, then the groups in their order.

    Within a panel those of `--help` come first, then those that always apply.
    """
    found: dict[str, list[Option]] = {REQUIRED: [], **{group: [] for group in GROUPS}}
    for option in options:
        found[REQUIRED if option.required else option.declaration.group].append(option)
    for members in found.values():
        members.sort(key=lambda option: (not option.declaration.shown, bool(option.rule)))
    return [(name, members) for name, members in found.items() if members]


def value_of(option: Option, listed: int = _LISTED) -> str:
    """What follows a flag: `PATH`, `INT|auto`, the choices, or nothing for a switch."""
    declaration = option.declaration
    if option.kind is bool:
        return ""
    choices = "|".join(declaration.choices)
    if choices and len(choices) <= listed:
        value = choices
    elif choices or declaration.path_or_name:
        value = "NAME"
    else:
        value = "|".join((_KINDS[option.kind], *declaration.words))
    return f"{value} ..." if option.many else value


def first_sentence(text: str) -> str:
    """The beginning of a help text that says what an option is."""
    return re.split(r"(?<=\.) (?=[A-Z0-9a-z])", text, maxsplit=1)[0]


def meaning(option: Option) -> str:
    """The whole help text: what the option is, its choices where they are many, and when it applies."""
    declaration, text = option.declaration, option.declaration.help
    if value_of(option).startswith("NAME") and declaration.choices:
        text += f" The choices are {', '.join(declaration.choices[:-1])} and {declaration.choices[-1]}."
    return f"{text} {option.rule[0].upper()}{option.rule[1:]}." if option.rule else text


def shown_default(option: Option) -> str:
    """The default as the help shows it; empty where there is none."""
    if option.declaration.hidden_default:
        return option.declaration.hidden_default
    if option.default in (MISSING, None, ()) or option.default is False:
        return ""
    if option.default is True:
        return "on"
    return " ".join(map(str, option.default)) if option.many else str(option.default)


def overview(about: str, begin: Sequence[str], commands: Iterable[tuple[str, str, str]], width: int) -> str:
    """The commands in the order of the work, with the lines that a newcomer types first.

    commands: group, name and help of each.
    """
    rows = list(commands)
    groups, names = (max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[:2])
    lines = ["Usage: retrievo COMMAND [OPTIONS]", "", *textwrap.wrap(about, width), "", "How to begin:"]
    lines += [f"  $ {line}" for line in begin]
    lines.append("")
    before = ""
    for group, name, text in rows:
        head = f"{'' if group == before else group:{groups}}{name:{names}}"
        lines += textwrap.wrap(first_sentence(text), width, initial_indent=head, subsequent_indent=" " * len(head))
        before = group
    lines += ["", "Options of a command: retrievo COMMAND --help. Version: retrievo --version"]
    return "\n".join(lines) + "\n"


def short_help(name: str, about: str, examples: Sequence[str], options: Sequence[Option], width: int) -> str:
    """What a newcomer needs, on one screen, with as many examples as it has room for."""
    required = [option for option in options if option.required]
    common = [option for option in options if option not in required and option.declaration.shown]
    common.sort(key=lambda option: (not option.declaration.positional, GROUPS.index(option.declaration.group)))
    lines = [*_head(name, about, options, width)]
    for title, members in ((REQUIRED, required), ("Common options", common)):
        lines += _panel(title, members, width, whole=False)
    lines.append("")
    for number, example in enumerate(examples):
        typed = list(_example(example, width))
        if number and len(lines) + len(typed) >= SCREEN:
            break
        lines += typed
    lines.append(f"All {len(options)} options: retrievo {name} --help-all")
    return "\n".join(lines) + "\n"


def styled(text: str) -> str:
    """The help as a terminal with colors shows it."""
    for where, code in _STYLES.items():
        text = re.sub(where, rf"\033[{code}m\g<0>\033[0m", text, flags=re.MULTILINE)
    return text


def whole_help(name: str, about: str, examples: Sequence[str], options: Sequence[Option], width: int) -> str:
    """Every option by topic, with its whole text."""
    lines = [*_head(name, about, options, width)]
    for title, members in sections(options):
        lines += _panel(title, members, width, whole=True)
    typed = [line for example in examples for line in _example(example, width)]
    return "\n".join([*lines, "", *typed]) + "\n"


def _example(line: str, width: int) -> Iterator[str]:
    """A line to type, cut as a shell reads it where it is too long."""
    room = width - 4 if len(line) <= width - 4 else width - 8
    first, *more = textwrap.wrap(line, room, break_on_hyphens=False, break_long_words=False)
    yield f"  $ {first}" + (" \\" if more else "")
    for number, part in enumerate(more, start=1):
        yield f"      {part}" + (" \\" if number < len(more) else "")


def _head(name: str, about: str, options: Sequence[Option], width: int) -> Iterator[str]:
    arguments = [option for option in options if option.declaration.positional]
    typed = "".join(f" {one.flag}" if one.required else f" [{one.flag}]" for one in arguments)
    yield f"Usage: retrievo {name}{typed} [OPTIONS]"
    yield ""
    yield from textwrap.wrap(about, width)


def _panel(title: str, members: Sequence[Option], width: int, *, whole: bool) -> Iterator[str]:
    if not members:
        return
    names = [_typed(option, _LISTED if whole else 0) for option in members]
    column = min(_NAMES, max(map(len, names))) + 4
    yield ""
    yield f"{title}:"
    for option, name in zip(members, names, strict=True):
        text = meaning(option) if whole else first_sentence(option.declaration.help)
        if default := shown_default(option):
            text += f" [default: {default}]"
        first, *more = textwrap.wrap(text, width - column, break_on_hyphens=False)
        if len(name) + 4 > column:
            yield f"  {name}"
            yield f"{'':{column}}{first}"
        else:
            yield f"{f'  {name}':{column}}{first}"
        yield from (f"{'':{column}}{line}" for line in more)


def _typed(option: Option, listed: int) -> str:
    """A flag with its value, as it is typed; choices of at most so many characters are listed."""
    if option.kind is bool and option.default is not False:
        return f"--[no-]{option.flag[2:]}"
    return option.flag if option.declaration.positional else f"{option.flag} {value_of(option, listed)}".rstrip()
