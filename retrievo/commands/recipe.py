"""`retrievo run`: a recipe, which is a file of steps; each step is a command, and is run once, in order.

Beside the output of each step lies its mark (`.steps/NAME.json`): the options of the step, and the fingerprints of its
inputs and its output. A step whose mark still holds is skipped, and one that was stopped resumes as its command does. A
finished step whose options or inputs changed is redone where `--force` or `--redo` allows it, as its command does with
`--force`; otherwise no step begins.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retrievo.commands import table
from retrievo.commands.recipe_config import RunConfig
from retrievo.distributed.environment import started_together
from retrievo.support import console
from retrievo.support.commandline import as_typed
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.options import Option, Options, options_of
from retrievo.support.settings import Layer, read_toml, relative_to, resolve
from retrievo.support.values import Values
from retrievo.support.verbs import verb

COMMANDS = {name: command for name, command in table.COMMANDS.items() if command.suffix is not None}
SECTIONS = ("variables", "defaults", "steps")
Results = dict[str, dict[str, float | None]]  # run -> metric or figure of its significance test -> value
MARKS = ".steps"  # folder of the marks
# options for a person at a terminal, and those that change an output which is there
_TYPED_ONLY = (
    *("stage", "stages", "question", "interactive", "verify_gradients", "json", "force", "restart", "continue_", "add"),
)
_LITERAL = ("title_template",)  # options whose braces are their own
_NOUNS = {"corpus": "corpus", "queries": "queries", "qrels": "qrels", "judged": "qrels", "tune_on": "qrels"}
FINISHED, AGAIN, UNFINISHED = "finished", "to redo", "unfinished, will resume"


class Step(NamedTuple):
    """One command of a recipe."""

    name: str
    command: str
    config: Options
    output: Path
    needs: tuple[str, ...]  # steps whose output it reads

    @property
    def mark(self) -> Path:
        """The file that records how far this step is."""
        return self.output.parent / MARKS / f"{self.name}.json"


@verb(RunConfig)
def run_recipe(config: RunConfig) -> dict[str, Results]:
    """Runs every unfinished step in order; returns the metrics of each evaluation, by the name of its step.

    Raises: before any step begins, UsageError for a recipe with unknown names or wrong values, and RetrievoError for
    finished steps that would be redone without permission; later, the errors of the steps.
    """
    if started_together() > 1:
        fix = "start its long steps so: retrievo run --dry-run prints their commands"
        raise UsageError("retrievo run", "found several processes", "one", fix)
    steps = read_recipe(config)
    names = [step.name for step in steps]
    for flag, given in (("--only", config.only), ("--redo", config.redo)):
        for name in given:
            if name not in names:
                raise UsageError(flag, f"found '{name}'", None, did_you_mean(name, names))
    chosen = [step for step in steps if not config.only or step.name in config.only]
    if config.dry_run:
        _print_plan(steps, chosen)
        if problem := _forbidden(config, chosen):
            console.note(f"without --dry-run: {problem}")
        return {}
    _end_publications(chosen)
    if config.only:
        _check_needs(steps, chosen)
    if problem := _forbidden(config, chosen):
        raise problem
    if not sum([_do(step, config) for step in chosen]):
        console.note(f"{config.file} is already finished; nothing to do")
    evaluations = [step for step in chosen if step.command == "evaluate"]
    return {step.name: json.loads(step.output.read_text(encoding="utf-8")) for step in evaluations}


# -------------------------------------------------------------------------------------------------------- the recipe


def read_recipe(config: RunConfig) -> list[Step]:
    """The steps of a recipe, with their options checked; runs none of them.

    Raises: RetrievoError where it is no TOML; UsageError for unknown sections, commands, keys, names and values.
    """
    path, sections = config.file, read_toml(config.file)
    for section in sections:
        if section not in SECTIONS:
            raise UsageError(path, f"unknown section [{section}]", None, did_you_mean(section, SECTIONS))
    variables, defaults, steps = (_table(path, name, sections.get(name, {})) for name in SECTIONS)
    reader = _Reader(path, config.home, variables | _given(config.set_, variables, path), defaults)
    for name, values in steps.items():
        reader.add(name, dict(_table(path, f"steps.{name}", values)))
    if not reader.steps:
        raise UsageError(path, "has no steps", "sections such as [steps.stage-1]")
    reader.check_defaults()
    return reader.steps


def _table(path: Path, name: str, value: object) -> Values:
    if not isinstance(value, dict):
        raise UsageError(path, f"{name} is {json.dumps(value, default=str)}", f"a section [{name}]")
    return value


def _given(settings: Sequence[str], variables: Mapping[str, object], recipe: Path) -> Values:
    """The values of `--set`, read as TOML, else as text; a path that exists is made absolute."""

    def meant(text: str) -> Any:
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return os.path.abspath(text) if Path(text).exists() else text

    given = dict(setting.split("=", 1) for setting in settings)
    for name in given:
        if name not in variables:
            fix = did_you_mean(name, variables) if variables else "it has none"
            raise UsageError("--set", f"found '{name}'", f"a variable of {recipe}", fix)
    return {name: meant(text) for name, text in given.items()}


class _Reader:
    """Turns the sections of a recipe into steps; `{name}` is the output of an earlier step, or a variable."""

    def __init__(self, path: Path, home: Path, variables: Mapping[str, object], defaults: Mapping[str, object]):
        self.path, self.home, self.variables, self.defaults = path, home, variables, defaults
        self.steps: list[Step] = []

    def add(self, name: str, values: Values) -> None:
        where = f"{self.path} [steps.{name}]"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in self.variables:
            raise UsageError(where, "is no name for a step", "letters, digits, - and _, and no variable of this name")
        command = values.pop("command", None)
        if command not in COMMANDS:
            found = "has no command" if command is None else f"found the command '{command}'"
            raise UsageError(where, found, None, did_you_mean(str(command), COMMANDS))
        kind, config = COMMANDS[command], COMMANDS[command].step or COMMANDS[command].config
        known = {option.name: option for option in options_of(config)}
        for key in values:
            if key in _TYPED_ONLY or (key in known and known[key].declaration.written):
                raise UsageError(f"{where} {key}", "has no meaning in a recipe", None, "leave it out")
        output = self.home / f"{name}{kind.suffix}"
        needs: list[str] = []
        own = self._filled(where, values, needs)
        shared = self._filled(f"{self.path} [defaults]", self._shared(known, values), needs)
        layers = [
            Layer("recipe", {"output": str(output)} if "output" in known else {}),
            Layer(where, relative_to(self.path.parent, config, own)),
            Layer(f"{self.path} [defaults]", relative_to(self.path.parent, config, shared)),
        ]
        resolved = resolve(config, layers)
        for warning in resolved.warnings:
            if warning.startswith(where):  # a default that a step has no use for is no mistake
                console.warn(warning)
        self.steps.append(Step(name, command, resolved.config, output, tuple(dict.fromkeys(needs))))

    def _shared(self, known: Mapping[str, Option], own: Mapping[str, object]) -> Values:
        """The defaults for options that a step does not set itself; among alternatives the first one counts."""
        groups = {name: option.declaration.alternative for name, option in known.items()}
        found = dict(own)
        for name, value in self.defaults.items():
            if name in known and groups[name] not in {groups.get(other) for other in found} - {None}:
                found.setdefault(name, value)
        return {name: value for name, value in found.items() if name not in own}

    def _filled(self, where: str, values: Mapping[str, object], needs: list[str]) -> Values:
        """Values with their names in braces replaced; a variable that stands alone keeps its type."""
        outputs = {step.name: step.output for step in self.steps}

        def fill(value: object) -> Any:
            if isinstance(value, list):
                return [fill(item) for item in value]
            if not isinstance(value, str):
                return value
            alone = re.fullmatch(r"\{([^{}]*)\}", value)
            return meant(alone[1]) if alone else re.sub(r"\{([^{}]*)\}", lambda found: str(meant(found[1])), value)

        def meant(name: str) -> Any:
            if name in outputs:
                needs.append(name)
                return str(outputs[name])
            if name not in self.variables:
                fix = did_you_mean(name, [*outputs, *self.variables])
                raise UsageError(where, f"found '{{{name}}}'", "an earlier step or a variable", fix)
            return self.variables[name]

        return {name: value if name in _LITERAL else fill(value) for name, value in values.items()}

    def check_defaults(self) -> None:
        """Raises UsageError for a default that no step knows."""
        known = {option.name for step in self.steps for option in options_of(type(step.config))}
        for name in self.defaults:
            if name not in known:
                fix = did_you_mean(name, known)
                raise UsageError(f"{self.path} [defaults]", f"no step knows the key '{name}'", None, fix)


# --------------------------------------------------------------------------------------------------------- the steps


def _do(step: Step, allowed: RunConfig) -> bool:
    """Runs a step unless it is finished; returns whether it ran."""
    from retrievo.support.files import atomic_path, write_json

    work, mark = _work(step), _read_mark(step)
    state = _state(step, work)
    if state == FINISHED:
        if "output" not in mark:  # of options that were changed and changed back
            write_json(step.mark, mark["before"])
        console.note(f"{step.name}: finished")
        return False
    replaces = _replaces(step, work)
    if replaces and not _allows(allowed, step):  # an input changed while earlier steps ran
        raise _stopped(allowed, {step.name: state}, {})
    config = _permitted(step, replaces)
    if state != UNFINISHED:  # else the mark already has what stood there when the step began
        before = mark if "output" in mark else mark.get("before", {})
        found = {"found": _identity(step.output), "replaces": replaces, "before": before}
        write_json(step.mark, {"work": work, **found})
    console.note(f"{step.name}: $ {as_typed(step.command, config)}")
    with console.inner_steps():
        outcome = COMMANDS[step.command].function(config)
    if step.command == "evaluate":
        from retrievo.evaluation.formats import FORMATS

        with atomic_path(step.output) as temporary:
            temporary.write_text(FORMATS["json"](outcome, 0) + "\n", encoding="utf-8")
    write_json(step.mark, {"work": work, "output": _made_of(step)})
    return True


def _allows(config: RunConfig, step: Step) -> bool:
    """Whether a finished step may be redone."""
    return config.force or step.name in config.redo


def _replaces(step: Step, work: Mapping[str, object]) -> bool:
    """Whether running a step would replace its own output of other options or inputs.

    Raises: RetrievoError where something else stands there.
    """
    mark, there = _read_mark(step), _identity(step.output)
    if not mark or there is None:
        return False
    if "output" not in mark:  # stopped: the earlier output stands there, or its own, which the mark does not record yet
        return bool(mark["replaces"]) if there == mark["found"] else bool(mark["work"] != work)
    if mark["work"] == work:  # the output is another one: its command decides whether that is as good
        return False
    if _made_of(step) != mark["output"]:
        fix = "move it away, and run the recipe again"
        raise RetrievoError(step.output, "is in the way: it is not what this recipe made", None, fix)
    return True


def _permitted(step: Step, replaces: bool) -> Options:
    """The options of a step, with `--force` where it replaces an output or unfinished work of its own."""
    unfinished = "output" not in _read_mark(step) and step.mark.is_file() and _identity(step.output) is None
    if step.command == "evaluate" or not (replaces or unfinished):
        return step.config
    return dataclasses.replace(step.config, force=True)  # type: ignore[type-var]


def _identity(output: Path) -> str | None:
    """A fingerprint that differs even between two outputs of equal content; None where the output is not finished."""
    from retrievo.support.artifact import MANIFEST
    from retrievo.support.files import fingerprint

    file = output / MANIFEST if output.is_dir() else output
    return fingerprint([file]) if file.is_file() else None


def _forbidden(config: RunConfig, chosen: Sequence[Step]) -> RetrievoError | None:
    """The error for finished steps that would be redone without permission: changed ones, and those that read them."""
    surely: dict[str, str] = {}
    perhaps: dict[str, str] = {}
    moving: set[str] = set()  # steps whose output may change
    for step in chosen:
        before = [name for name in step.needs if name in moving]
        work = _known_work(step)
        state = "to do" if work is None else _state(step, work)
        if state == FINISHED and not before:
            continue
        moving.add(step.name)
        replaces = work is not None and state != FINISHED and _replaces(step, work)
        if _allows(config, step):
            continue
        if replaces:
            surely[step.name] = "what replaces it is unfinished" if state == UNFINISHED else state
        elif state == FINISHED or (work is None and _is_finished(step)):
            perhaps[step.name] = before[0] if before else ""
    return _stopped(config, surely, perhaps) if surely or perhaps else None


def _known_work(step: Step) -> Values | None:
    """The work of a step; None where an input does not exist yet."""
    try:
        return _work(step)
    except RetrievoError:
        return None


def _is_finished(step: Step) -> bool:
    """Whether the output is the one that this step made."""
    mark = _read_mark(step)
    return "output" in mark and _made_of(step) == mark["output"]


def _stopped(config: RunConfig, surely: Mapping[str, str], perhaps: Mapping[str, str]) -> RetrievoError:
    """The error that names each finished step that would be redone, and why."""
    reasons = [f"{name} ({state.removeprefix(f'{AGAIN}: ')})" for name, state in surely.items()]
    reasons += [f"{name} (if {before or 'its input'} changes)" for name, before in perhaps.items()]
    allowed = " ".join(dict.fromkeys([*config.redo, *surely, *perhaps]))
    found = f"finished steps would be redone: {', '.join(reasons)}"
    return RetrievoError(config.file, found, None, f"pass --force for all of them, or --redo {allowed}")


def _end_publications(steps: Sequence[Step]) -> None:
    """Completes or rolls back swaps of output folders that were interrupted."""
    from retrievo.support.artifact import end_publication

    for step in steps:
        if not COMMANDS[step.command].suffix:
            end_publication(step.output)


def _check_needs(steps: Sequence[Step], chosen: Sequence[Step]) -> None:
    """Raises RetrievoError where a chosen step reads the output of an unfinished step that is not chosen."""
    for step in steps:
        for other in chosen:
            if step.name in other.needs and step not in chosen and (state := _state_now(step)) != FINISHED:
                fix = f"run it too: --only {step.name} {other.name}"
                raise RetrievoError(other.name, f"needs {step.name}, which is not finished ({state})", None, fix)


def _state(step: Step, work: Mapping[str, object]) -> str:
    """The state of a step: finished, or why it is not."""
    mark = _read_mark(step)
    if not mark:
        return "to do"
    if "output" not in mark and mark["before"] and mark["found"] == _identity(step.output):
        before = mark["before"]
        if before["work"] == work and before["output"] == _made_of(step):
            return FINISHED
    if mark["work"] != work:
        return f"{AGAIN}: {', '.join(_changes(mark['work'], work))}"
    if "output" not in mark:
        return UNFINISHED
    return FINISHED if _made_of(step) == mark["output"] else f"{AGAIN}: its output is gone or another one"


def _state_now(step: Step) -> str:
    """The state of a step, or what is wrong with its inputs."""
    try:
        return _state(step, _work(step, fetch=False))
    except RetrievoError as problem:
        return str(problem)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two pieces of work, by name."""
    if before["command"] != now["command"]:
        return [f"it was {before['command']}"]
    parts = [(part, name) for part in ("config", "inputs") for name in dict.fromkeys([*before[part], *now[part]])]
    return [
        f"{name} was {json.dumps(before[part].get(name))}" if part == "config" else f"another {name}"
        for part, name in parts
        if before[part].get(name) != now[part].get(name)
    ]


def _read_mark(step: Step) -> Values:
    from retrievo.support.artifact import in_force

    if not step.mark.is_file():
        return {}
    mark: Values = json.loads(step.mark.read_text(encoding="utf-8"))
    for record in filter(None, (mark, mark.get("before"))):
        # an earlier version may have written more options, all off
        record["work"]["config"] = in_force(record["work"]["config"])
    return mark


def _made_of(step: Step) -> str | None:
    """The fingerprint of the output; None where there is no finished one."""
    try:
        return _fingerprint("", step.output)
    except RetrievoError:
        return None


def _work(step: Step, *, fetch: bool = True) -> Values:
    """What decides the output of a step: the options that affect it, and the fingerprints of all inputs.

    fetch: whether hub models that the local cache lacks are fetched.
    Raises: RetrievoError where an input does not exist.
    """
    from retrievo.models.model_reference import model_record
    from retrievo.support.artifact import in_force

    inputs: dict[str, str] = {}
    config = step.config.record()
    for known in options_of(type(step.config)):
        value = getattr(step.config, known.name)
        if known.kind is Path:
            for name, path in _read_paths(step.config, known):
                if known.name == "extra_dataset":
                    tables = _of_data_set(step.config, path)
                    inputs |= {f"extra-dataset-{table}": fingerprint for table, fingerprint in tables.items()}
                else:
                    inputs[name] = _fingerprint(known.name, path)
        elif known.declaration.path_or_name and value:
            record, read = model_record(value, getattr(step.config, "revision", None), fetch=fetch)
            config = config | record
            if read:
                inputs[known.name] = read["model"].fingerprint
    return {"command": step.command, "config": in_force(json.loads(json.dumps(config))), "inputs": inputs}


def _read_paths(config: Options, known: Option) -> list[tuple[str, Path]]:
    """The inputs that an option of paths names, as (name, path): `negatives`, `negatives-2` ..."""
    value = getattr(config, known.name)
    if not value or known.declaration.written or known.declaration.stands_for:
        return []
    paths = value if known.many else (value,)
    return [(f"{known.name}-{number}" if number > 1 else known.name, path) for number, path in enumerate(paths, 1)]


def _of_data_set(config: Options, path: Path) -> dict[str, str]:
    """Fingerprints of a further data set to train on: of its TOML file and of the tables that the file names."""
    from retrievo.training.feeds.dataset_config import open_data_set, settings_of

    data_set, settings = open_data_set(path, {known.name for known in options_of(type(config))}), settings_of(path)
    found = {"file": _fingerprint("", settings)} if settings.is_file() else {}
    for known in options_of(type(data_set)):
        if known.kind is Path:
            found |= {name: _fingerprint(known.name, table) for name, table in _read_paths(data_set, known)}
    return found


def _fingerprint(name: str, path: Path) -> str:
    """A fingerprint of what an option of this name reads: a table, an artifact, or a folder of files.

    Of a dataset folder only the table that the option reads counts.
    """
    from retrievo.data.finding import table_files
    from retrievo.support.artifact import Input, Manifest, has_manifest
    from retrievo.support.files import fingerprint

    whole = path.is_dir() and has_manifest(path)
    if name in _NOUNS and not (whole and Manifest.read(path).kind == "embeddings"):
        return Input.of(path, table_files(path, _NOUNS[name])).fingerprint
    if path.is_dir() and not whole:
        return fingerprint(sorted(file for file in path.rglob("*") if file.is_file()))
    return Input.of(path, None if whole else table_files(path, name or "output")).fingerprint


# --------------------------------------------------------------------------------------------------- what is printed


def _print_plan(steps: Sequence[Step], chosen: Sequence[Step]) -> None:
    """Prints a table of the steps with their states and commands."""
    waiting: set[str] = set()
    rows = []
    for step in steps:
        before = [name for name in step.needs if name in waiting]
        state = _state_now(step)
        if state == FINISHED and before:
            state = f"{AGAIN}, if {before[0]} changes"
        elif before and not step.mark.is_file():
            state = "to do"
        if state != FINISHED:
            waiting.add(step.name)
        if step in chosen:
            rows.append([step.name, state, as_typed(step.command, step.config)])
    console.print_table(["step", "state", "command"], rows)


def print_results(found: Mapping[str, Results]) -> None:
    """Prints a table for each evaluation to stdout."""
    for name, values in found.items():
        columns = list(dict.fromkeys(column for run in values.values() for column in _shown(run)))
        rows = [[run, *(_rounded(means.get(column)) for column in columns)] for run, means in values.items()]
        console.print_table([name, *columns], rows)


def _shown(values: Mapping[str, object]) -> Iterator[str]:
    """The columns to show: means, and the p-values of the randomization test after Holm's correction."""
    return (name for name in values if " " not in name or name.endswith(" p_holm"))


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
