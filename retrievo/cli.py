"""The command line: parse, one library call, print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

import retrievo
from retrievo.commands.evaluate_suite import SweepConfig
from retrievo.commands.recipe_config import RunConfig
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.table import COMMANDS, Command
from retrievo.support.commandline import command_class, command_function, expand_flags, group_class, run_app
from retrievo.support.console import typed_lines
from retrievo.support.options import options_of

HELP = "Retrieval with learned representations and BM25: train, index, search, evaluate."
BEGIN = (
    "retrievo demo --quick                       # everything, in three minutes",
    "retrievo import text notes/ --output data   # your own files, to index next",
)


def _search(config: SearchConfig) -> None:
    from retrievo.commands.search.run import converse, search

    answers = converse(config, typed_lines("question: ")) if config.interactive else [search(config)]
    for answer in answers:
        if answer is not None:
            answer.print(as_json=config.json)


def _evaluate(config: SweepConfig) -> None:
    from retrievo.commands.evaluate_suite import evaluate_any
    from retrievo.evaluation.comparison import Evaluation
    from retrievo.evaluation.formats import print_evaluation
    from retrievo.evaluation.suite import print_suite

    outcome = evaluate_any(config)
    if isinstance(outcome, Evaluation):
        print_evaluation(outcome, config.style, changed=config.changed)
    else:
        print_suite(outcome, config.style)


def _run(config: RunConfig) -> None:
    from retrievo.commands.recipe import print_results, run_recipe

    print_results(run_recipe(config))


def _printed(command: Command) -> Callable[[Any], None]:
    """Runs a command whose outcome is shown as a table or as JSON."""

    def run(config: Any) -> None:
        command.function(config).print(as_json=config.json)

    return run


# commands that print what came out; the others say what they made on the way
SHOWN: dict[str, Callable[[Any], None]] = {
    "search": _search,
    "evaluate": _evaluate,
    "run": _run,
    "cache": _printed(COMMANDS["cache"]),
    "demo": _printed(COMMANDS["demo"]),
}


def _runner(name: str) -> Callable[[Any], None]:
    """What the command line calls with the options of a command."""

    def run(config: object) -> None:
        COMMANDS[name].function(config)

    return SHOWN.get(name, run)


def several_flags() -> dict[str, set[str]]:
    """For each command, the flags that take several values after one another."""
    return {
        name: {option.flag for option in options_of(command.config) if option.declaration.several}
        for name, command in COMMANDS.items()
    }


def _version(wanted: bool) -> None:
    if wanted:
        print(f"retrievo {retrievo.__version__}")
        raise typer.Exit


def _app() -> typer.Typer:
    rows = [(command.group, name, command.help) for name, command in COMMANDS.items()]
    app = typer.Typer(cls=group_class(HELP, BEGIN, rows), add_completion=False)

    @app.callback()
    def main(
        version: bool = typer.Option(
            False, "--version", help="Print the version and stop.", callback=_version, is_eager=True
        ),
    ) -> None:
        pass

    for name, command in COMMANDS.items():
        function = command_function(name, command.config, _runner(name), list(COMMANDS))
        shape = command_class(name, command.help, command.examples, options_of(command.config))
        app.command(name, cls=shape)(function)
    return app


app = _app()


def main() -> None:
    """The installed command `retrievo`."""
    sys.exit(run_app(app, expand_flags(sys.argv[1:], several_flags()) or ["--help"]))
