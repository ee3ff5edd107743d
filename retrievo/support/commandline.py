"""From a Config to a command: the one place where options meet Typer."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean, from_os_error
from retrievo.support.habits import advice
from retrievo.support.help import WIDEST, overview, short_help, styled, whole_help
from retrievo.support.options import Option, Options, options_of
from retrievo.support.settings import Layer, resolve, settings_layers

SETTINGS_HELP = "TOML file with defaults for this command, instead of ./retrievo.toml."
_NUMBERS = (int, float)
SHOW_HELP = "Print the resolved options as TOML, each with its source, and stop."


def command_function(
    name: str, config: type[Options], run: Callable[[Any], None], commands: Sequence[str]
) -> Callable[..., None]:
    """A function that Typer can read: one parameter per option, then `--config` and `--show-config`.

    It resolves the layers of settings and calls `run` with the finished Config.
    """
    known = options_of(config)

    def command(**flags: Any) -> None:
        chosen, show = flags.pop("config"), flags.pop("show_config")
        del flags["help_all"]
        typed = {flag: value for flag, value in flags.items() if value is not None and value != []}
        files = [*config.layers(typed), *settings_layers(config, name, commands, chosen)]
        resolved = resolve(config, [Layer("flag", typed, typed=True), *files, *config.manifest_layers(typed)])
        for source in files:
            console.note(f"defaults from {source.name}")
        for warning in resolved.warnings:
            console.warn(warning)
        if show:
            print(resolved.show(name))
        else:
            run(resolved.config)

    extra = [
        _parameter("config", Path | None, None, typer.Option("--config", help=SETTINGS_HELP, show_default=False)),
        _parameter("show_config", bool, False, typer.Option("--show-config", help=SHOW_HELP)),
        _parameter("help_all", bool, False, typer.Option("--help-all", is_eager=True, callback=_print_whole_help)),
    ]
    parameters = [_parameter(option.name, _annotation(option), None, _typer_info(option)) for option in known] + extra
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, kind: object, default: object, info: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _annotation(option: Option) -> Any:
    """Numbers arrive as text: our own conversion splits commas and names the flag in its errors."""
    kind = str if option.kind in _NUMBERS else option.kind
    return list[kind] | None if option.many else kind | None  # type: ignore[valid-type]


def _typer_info(option: Option) -> Any:
    if option.declaration.positional:
        return typer.Argument(metavar=option.flag)
    with_no = option.kind is bool and option.default is not False
    return typer.Option(f"{option.flag}/--no-{option.flag[2:]}" if with_no else option.flag)


def command_class(name: str, about: str, examples: Sequence[str], known: Sequence[Option]) -> type[TyperCommand]:
    """A command of Typer that prints its help as `support.help` writes it, and warns of a value typed twice."""

    class WithHelp(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            single = [option.flag for option in known if not (option.many or option.declaration.positional)]
            for flag in single:
                given = [argument for argument in args if argument == flag or argument.startswith(f"{flag}=")]
                if len(given) > 1:
                    console.warn(f"{flag}: is given {len(given)} times and takes one value; the last one counts")
            return super().parse_args(ctx, args)

        def format_help(self, ctx: Any, formatter: Any) -> None:
            formatter.write(_for_terminal(short_help(name, about, examples, known, _width())))

        def print_whole_help(self) -> None:
            print(_for_terminal(whole_help(name, about, examples, known, _width())), end="")

    return WithHelp


def group_class(about: str, begin: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> type[TyperGroup]:
    """All commands, whose help is the overview that `support.help` writes."""

    class WithOverview(TyperGroup):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            formatter.write(_for_terminal(overview(about, begin, rows, _width())))

    return WithOverview


def _for_terminal(text: str) -> str:
    """The text in colors where a person reads it on a terminal that has them and did not say NO_COLOR."""
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else styled(text)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)


def _print_whole_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.command.print_whole_help()  # type: ignore[attr-defined]
        raise typer.Exit


def expand_flags(arguments: Sequence[str], several: dict[str, set[str]]) -> list[str]:
    """Repeats a flag before each of the values that follow it: `--metrics a b` becomes `--metrics a --metrics b`.

    several: command -> its flags that take more than one value. Positionals come before such a flag.
    """
    flags = several.get(arguments[0] if arguments else "", set())
    result: list[str] = []
    open_flag: str | None = None
    for argument in arguments:
        follows_value = open_flag is not None and result[-1] != open_flag
        if argument.startswith("-"):
            name, equals, value = argument.partition("=")
            open_flag = name if name in flags else None
            result += [name, value] if open_flag and equals else [argument]
        elif open_flag and follows_value:
            result += [open_flag, argument]
        else:
            result.append(argument)
    return result


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Runs the app and turns problems into one line and an exit code; a bug shows its traceback.

    Exit codes: 0 done, 1 a problem with data or machine, 2 a problem with what was typed, 130 interrupted.
    """
    console.prepare_streams()
    try:
        _check_command(app, arguments)
        with console.shown():
            code = app(list(arguments), standalone_mode=False)
    except TyperException as problem:
        console.error(_message(problem))
        return problem.exit_code
    except RetrievoError as problem:
        console.error(str(problem))
        return problem.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:  # `retrievo search ... | head`
        sys.stderr.close()
        return 1
    except OSError as problem:
        console.error(str(from_os_error(problem)))
        return 1
    if code == 130:
        console.error("interrupted; run the same command again")
    return code if isinstance(code, int) else 0


def _check_command(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Raises UsageError for a command that there is not."""
    known = [command.name for command in app.registered_commands if command.name]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        raise UsageError("retrievo", f"unknown command '{arguments[0]}'", None, did_you_mean(arguments[0], known))


def _message(problem: TyperException) -> str:
    """What is wrong with what was typed, and what to do about it."""
    context = getattr(problem, "ctx", None)
    if context is not None and (name := getattr(problem, "option_name", None)) and hasattr(problem, "possibilities"):
        flags = [flag for known in context.command.params for flag in known.opts if flag.startswith("--")]
        command = f"retrievo {context.info_name if context.parent else ''}".strip()
        return f"unknown option {name}; {advice(name, flags) or f'{command} --help lists the options'}"
    text = " ".join(problem.format_message().split())
    if "unexpected extra argument" not in text:
        return text
    return f"{text}; put a question in quotes, and repeat a flag for each of its values (--index A --index B)"


def as_typed(command: str, config: Options) -> str:
    """The line that a user would type for a Config: its options that are not the defaults."""
    words = ["retrievo", command]
    for known in options_of(type(config)):
        value = getattr(config, known.name)
        if value in (config.recipe().get(known.name, known.default), None, ()):
            continue
        values = [str(item) for item in value] if known.many else [str(value)]
        if known.declaration.positional:
            words += values
        elif known.kind is bool:
            words.append(known.flag if value else f"--no-{known.flag[2:]}")
        else:
            words += [word for item in values for word in (known.flag, item)]
    return shlex.join(words)
