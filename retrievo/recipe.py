"""`retrievo run`: a whole road as one file: steps that are commands, one after the other, each done once.

A composition of verbs. Beside what the steps make lies a mark for each: its options and the fingerprints of its inputs
and of its output. A step whose mark still holds is passed over; one whose options or inputs changed is made anew; one
that was stopped goes on as its own command does.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retrievo.encode import EncodeConfig
from retrievo.evaluate import EvaluateConfig
from retrievo.import_ import ImportConfig
from retrievo.index import IndexConfig
from retrievo.mine import MineConfig
from retrievo.pretrain import PretrainConfig
from retrievo.rerank import RerankConfig
from retrievo.search import SearchConfig
from retrievo.support import console
from retrievo.support.commandline import as_typed
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.options import Options, option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to, resolve
from retrievo.train import TrainConfig


class Kind(NamedTuple):
    """A command that a step may be: its options, where its function lies, and the suffix of what it makes."""

    config: type[Options]
    target: str  # "module:function"
    suffix: str  # "" = a folder


COMMANDS = {
    "import": Kind(ImportConfig, "retrievo.import_:import_", ""),
    "pretrain": Kind(PretrainConfig, "retrievo.pretrain:pretrain", ""),
    "mine-negatives": Kind(MineConfig, "retrievo.mine:mine", ".parquet"),
    "train": Kind(TrainConfig, "retrievo.train:train", ""),
    "encode": Kind(EncodeConfig, "retrievo.encode:encode", ""),
    "index": Kind(IndexConfig, "retrievo.index:index", ""),
    "search": Kind(SearchConfig, "retrievo.search:search", ".parquet"),
    "rerank": Kind(RerankConfig, "retrievo.rerank:rerank", ".parquet"),
    "evaluate": Kind(EvaluateConfig, "retrievo.evaluate:evaluate", ".json"),
}
SECTIONS = ("recipe", "variables", "defaults", "steps")
MARKS = ".steps"
_NOT_INPUTS = ("output", "per_query", "stage")
_LITERAL = ("title_template",)  # options whose braces are their own
FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """Options of `retrievo run`."""

    file: Path = option("Recipe (.toml): steps that are commands.", positional=True)
    only: tuple[str, ...] = option("Steps to run; the others are left as they are.", default=(), several=True)
    dry_run: bool = option("Say what would be done, and why.", default=False)


class Step(NamedTuple):
    """One command of a recipe."""

    name: str
    command: str
    config: Options
    output: Path
    needs: tuple[str, ...]  # steps whose output it reads

    @property
    def mark(self) -> Path:
        """What says how far this step is."""
        return self.output.parent / MARKS / f"{self.name}.json"


def run(config: RunConfig) -> None:
    """Does every step that is not finished, in their order; then shows what the evaluations found.

    Raises: UsageError for a recipe with unknown names or wrong values, before any step begins; what a step raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "start its long steps so: retrievo run --dry-run prints their commands"
        raise UsageError("retrievo run", "found several processes", "one", fix)
    steps = read_recipe(config.file)
    for name in config.only:
        if name not in (known := [step.name for step in steps]):
            raise UsageError("--only", f"found '{name}'", None, did_you_mean(name, known))
    chosen = [step for step in steps if not config.only or step.name in config.only]
    if config.dry_run:
        _tell(steps, chosen)
        return
    done = sum(_do(step) for step in chosen)
    if not done:
        console.note(f"{config.file} is already finished; nothing to do")
    _show_results(chosen)


# -------------------------------------------------------------------------------------------------------- the recipe


def read_recipe(path: Path) -> list[Step]:
    """The steps of a recipe, their options checked.

    Raises: RetrievoError where it is no TOML; UsageError for unknown sections, commands, keys, names and values.
    """
    sections = read_toml(path)
    for section in sections:
        if section not in SECTIONS:
            raise UsageError(path, f"unknown section [{section}]", None, did_you_mean(section, SECTIONS))
    about = sections.get("recipe", {})
    if unknown := sorted(about.keys() - {"home"}):
        raise UsageError(f"{path} [recipe]", f"unknown key '{unknown[0]}'", None, did_you_mean(unknown[0], ["home"]))
    home = Path(os.path.abspath(path.parent / about.get("home", path.stem)))
    reader = _Reader(path, home, sections.get("variables", {}), sections.get("defaults", {}))
    for name, values in sections.get("steps", {}).items():
        reader.add(name, dict(values))
    if not reader.steps:
        raise UsageError(path, "has no steps", "sections such as [steps.stage-1]")
    reader.check_defaults()
    return reader.steps


class _Reader:
    """Turns the sections of a recipe into steps; `{name}` is the output of an earlier step, or a variable."""

    def __init__(self, path: Path, home: Path, variables: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.path, self.home, self.defaults = path, home, defaults
        self.variables = {name: str(value) for name, value in variables.items()}
        self.steps: list[Step] = []

    def add(self, name: str, values: dict[str, Any]) -> None:
        where = f"{self.path} [steps.{name}]"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in self.variables:
            raise UsageError(where, "is no name for a step", "letters, digits, - and _, and no variable of this name")
        command = values.pop("command", None)
        if command not in COMMANDS:
            fix = did_you_mean(str(command), COMMANDS)
            raise UsageError(where, f"found the command '{command}'", None, fix)
        if "output" in values:
            raise UsageError(where, "names an output", f"none: it is {name} in the recipe's home", "leave it out")
        kind = COMMANDS[command]
        output = self.home / f"{name}{kind.suffix}"
        needs: list[str] = []
        own = relative_to(self.path.parent, kind.config, self._filled(where, values, needs))
        fixed = {"output": str(output)} if any(known.name == "output" for known in options_of(kind.config)) else {}
        shared = relative_to(self.path.parent, kind.config, self._shared(where, kind, own, needs))
        layers = [Layer("recipe", fixed), Layer(where, own), Layer(f"{self.path} [defaults]", shared)]
        resolved = resolve(kind.config, layers)
        for warning in resolved.warnings:
            if not warning.startswith(layers[-1].name):
                console.warn(warning)
        self.steps.append(Step(name, command, resolved.config, output, tuple(dict.fromkeys(needs))))

    def _shared(self, where: str, kind: Kind, own: Mapping[str, Any], needs: list[str]) -> dict[str, Any]:
        """The defaults that this command knows and that no alternative of its own values displaces."""
        known = {option.name: option.declaration.alternative for option in options_of(kind.config)}
        taken = {known[name] for name in own if known.get(name)}
        values = {name: value for name, value in self.defaults.items() if name in known and known[name] not in taken}
        return self._filled(where, {name: values[name] for name in values if name not in own}, needs)

    def _filled(self, where: str, values: Mapping[str, Any], needs: list[str]) -> dict[str, Any]:
        """Values with their names in braces replaced."""

        def fill(value: Any) -> Any:
            if isinstance(value, list):
                return [fill(item) for item in value]
            return re.sub(r"\{([^{}]*)\}", meant, value) if isinstance(value, str) else value

        def meant(found: re.Match[str]) -> str:
            name, outputs = found[1], {step.name: step.output for step in self.steps}
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


def _do(step: Step) -> bool:
    """Does a step that is not finished; whether there was anything to do."""
    from retrievo.support.files import remove, write_json

    work, mark = _work(step), _read_mark(step)
    if _state(step, work) == FINISHED:
        console.note(f"{step.name}: finished")
        return False
    if mark and mark["work"] != work:  # made by this recipe, for other options or inputs
        for path in _made(step):
            remove(path)
    write_json(step.mark, {"work": work})
    console.note(f"{step.name}: $ {_as_typed(step)}")
    with console.inner_steps():
        module, function = COMMANDS[step.command].target.split(":")
        outcome = getattr(importlib.import_module(module), function)(step.config)
    if step.command == "evaluate":
        write_json(step.output, outcome.as_json())
    write_json(step.mark, {"work": work, "output": _fingerprint("", step.output)})
    return True


def _state(step: Step, work: Mapping[str, Any]) -> str:
    """How far a step is: finished, or why it is not."""
    mark = _read_mark(step)
    if not mark:
        return "to do"
    if mark["work"] != work:
        return f"to do again: {', '.join(_changes(mark['work'], work))}"
    if "output" not in mark:
        return "unfinished, goes on"
    try:
        same = _fingerprint("", step.output) == mark["output"]
    except RetrievoError:
        same = False
    return FINISHED if same else "to do again: its output is gone or another one"


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


def _read_mark(step: Step) -> dict[str, Any]:
    return json.loads(step.mark.read_text(encoding="utf-8")) if step.mark.is_file() else {}


def _made(step: Step) -> list[Path]:
    """What a step leaves: its output, and what its command puts beside it."""
    beside = [step.output.with_suffix(".dropped.parquet"), step.output.with_suffix(".audit.md")]
    unfinished = [step.output.with_name(step.output.name + ending) for ending in (".partial", ".scores")]
    return [step.output, *unfinished, *(beside if step.command == "mine-negatives" else [])]


def _work(step: Step) -> dict[str, Any]:
    """What decides the output of a step: its options that matter, and the fingerprints of all that it reads.

    Raises: RetrievoError where an input is not there.
    """
    from retrievo.models.source import model_record

    inputs: dict[str, str] = {}
    config = step.config.record()
    for known in options_of(type(step.config)):
        value = getattr(step.config, known.name)
        if known.kind is Path and known.name not in _NOT_INPUTS and value is not None:
            paths = value if known.many else (value,)
            inputs |= {
                f"{known.name}-{n}" if n else known.name: _fingerprint(known.name, p) for n, p in enumerate(paths)
            }
    if model := getattr(step.config, "model", None):
        told, folder = model_record(model, getattr(step.config, "revision", None))
        config, inputs = config | told, inputs | {name: given.fingerprint for name, given in folder.items()}
    return {"command": step.command, "config": json.loads(json.dumps(config)), "inputs": inputs}


def _fingerprint(name: str, path: Path) -> str:
    """A fingerprint of whatever lies at a path: a table, an artefact or a folder of files."""
    from retrievo.data.tables import table_files
    from retrievo.support.artifact import MANIFEST, Input
    from retrievo.support.files import fingerprint

    if name in ("corpus", "queries", "qrels") and not _is_artefact(path, "embeddings"):
        return Input.of(path, table_files(path, name)).fingerprint
    if path.is_dir() and not (path / MANIFEST).is_file():
        return fingerprint(sorted(file for file in path.rglob("*") if file.is_file()))
    return (
        Input.of(path).fingerprint if path.is_dir() else Input.of(path, table_files(path, name or "file")).fingerprint
    )


def _is_artefact(path: Path, kind: str) -> bool:
    from retrievo.support.artifact import MANIFEST, Manifest

    return (path / MANIFEST).is_file() and Manifest.read(path).kind == kind


# --------------------------------------------------------------------------------------------------- what is printed


def _as_typed(step: Step) -> str:
    return as_typed(step.command, step.config)


def _tell(steps: Sequence[Step], chosen: Sequence[Step]) -> None:
    """A table of what would be done."""
    waiting: set[str] = set()
    rows = []
    for step in steps:
        try:
            state = _state(step, _work(step))
        except RetrievoError as problem:
            state = "to do" if waiting & set(step.needs) else str(problem)
        if state == FINISHED and (before := [name for name in step.needs if name in waiting]):
            state = f"to do again, if {before[0]} comes out different"
        if state != FINISHED:
            waiting.add(step.name)
        if step in chosen:
            rows.append([step.name, state, _as_typed(step)])
    console.print_table(["step", "state", "command"], rows)


def _show_results(chosen: Sequence[Step]) -> None:
    """The means of every evaluation, read from what it left."""
    for step in chosen:
        if step.command == "evaluate":
            values = json.loads(step.output.read_text(encoding="utf-8"))
            columns = list(dict.fromkeys(name for run in values.values() for name in _shown(run)))
            rows = [[name, *(_rounded(run.get(column)) for column in columns)] for name, run in values.items()]
            console.print_table([step.name, *columns], rows)


def _shown(values: Mapping[str, Any]) -> Iterator[str]:
    """Means, and the p-values of the randomization test."""
    return (name for name in values if not name.endswith((" difference", " p_t_test")))


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
