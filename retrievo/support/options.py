"""An option is declared once: a field of a frozen dataclass.

The command-line flag, the TOML key, the help text, the documentation page, the manifest and the library signature
all come from that field. Standard library only, so that `retrievo --help` stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from retrievo.support.conditions import Condition, Rule, flag_of
from retrievo.support.errors import UsageError, did_you_mean
from retrievo.support.values import Values

GROUPS = (  # the panels of the help, in their order
    "Data",
    "Model",
    "Objective",
    "Loss",
    "Negatives",
    "Batch",
    "Schedule",
    "Search",
    "Fusion",
    "Feedback",
    "Reranking",
    "BM25",
    "FAISS",
    "Metrics",
    "Precision and memory",
    "Validation",
    "Output",
    "Machine",
)


@dataclass(frozen=True)
class Declaration:
    """What an option says of itself beyond its name, type and default."""

    help: str
    choices: tuple[str, ...] = ()
    check: Callable[[str], object] | None = None  # parses one value; raises UsageError
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    applies: Condition | None = None  # beside which other choices the option has a meaning; None = beside all
    alternative: str | None = None  # at most one option of a named group may be given
    affects_output: bool = True  # False: a finished output is still the same work when this changes
    positional: bool = False
    path_or_name: bool = False  # a path where there is such a file, else a name (models)
    written: bool = False  # a path that the command makes, not one that it reads
    # names or replaces what is written in another way than `written`: never from a settings file that just lies here
    decides_output: bool = False
    several: bool = False  # after its flag may stand several values: `--metrics mrr@10 recall@100`
    words: tuple[str, ...] = ()  # what may stand instead of a number
    group: str = ""  # the panel of the help that shows it, one of `GROUPS`
    shown: bool = False  # among the few options of `--help`, as the required ones are; `--help-all` shows all
    of_index: str = ""  # the indexes that it has a meaning for, as their rows in `retrieval.searcher` say, in words
    stands_for: tuple[str, ...] = ()  # options that `recipe` works out from this one
    hidden_default: str | None = None  # how the help describes a default that is worked out


def option(help: str, *, default: Any = MISSING, **declared: Any) -> Any:
    """Declares one option; without `default` it is required, `default=None` means unset."""
    return field(default=default, metadata={"option": Declaration(help=help, **declared)})


def worked_out(config: type, name: str, described: str) -> Any:
    """The option of another Config with a default that `recipe` fills in; `described` is how the help tells it."""
    declaration = config.__dataclass_fields__[name].metadata["option"]  # type: ignore[attr-defined]
    return field(default=None, metadata={"option": dataclasses.replace(declaration, hidden_default=described)})


@dataclass(frozen=True)
class Option:
    """One option of one command: its declaration with the name, type and default of its field."""

    name: str
    kind: type  # str, int, float, bool or Path; of the elements where `many`
    many: bool
    default: Any
    declaration: Declaration

    @property
    def flag(self) -> str:
        return self.name.upper() if self.declaration.positional else flag_of(self.name)

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def convert(self, value: Any, where: str) -> Any:
        """A typed value from what TOML or Typer gave; a list option also accepts one string, split at commas."""
        if value is None:
            return None
        if not self.many:
            return self._convert_one(value, where)
        values = [value] if isinstance(value, (str, Path, int, float)) else list(value)
        return tuple(self._convert_one(part, where) for item in values for part in _split(item))

    def _convert_one(self, value: Any, where: str) -> Any:
        if self.kind is Path and isinstance(value, str):
            return Path(value)
        if self.kind is float and type(value) is int:
            return float(value)
        if value in self.declaration.words:
            return value
        if self.kind in (int, float) and isinstance(value, str):
            value = _number(value, self.kind)
        if not isinstance(value, self.kind) or (self.kind is not bool and isinstance(value, bool)):
            raise UsageError(where, f"found {value!r}", _KIND_NAMES[self.kind])
        return value

    def check(self, value: Any, where: str | None = None) -> None:
        """Raises UsageError where a value is not allowed; `where` names the flag, or the file and key."""
        for item in value if self.many and value is not None else (value,):
            if item is not None:
                self._check_one(item, where or self.flag)

    def _check_one(self, value: Any, where: str) -> None:
        declaration = self.declaration
        if value in declaration.words:
            return
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(where, f"found {value}", "a finite number")
        if declaration.choices and value not in declaration.choices:
            raise UsageError(where, f"found '{value}'", None, did_you_mean(str(value), declaration.choices))
        if declaration.minimum is not None and value < declaration.minimum:
            raise UsageError(where, f"found {value}", f"at least {declaration.minimum:g}")
        if declaration.above is not None and value <= declaration.above:
            raise UsageError(where, f"found {value}", f"more than {declaration.above:g}")
        if declaration.maximum is not None and value > declaration.maximum:
            raise UsageError(where, f"found {value}", f"at most {declaration.maximum:g}")
        if declaration.check is not None:
            declaration.check(value)

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Whether this option has a meaning beside what else was chosen."""
        return self.broken(chosen) is None

    def broken(self, chosen: Mapping[str, Any]) -> Rule | None:
        """The first rule of use that this option breaks beside what else was chosen."""
        return self.declaration.applies.broken(chosen) if self.declaration.applies else None

    @property
    def rule(self) -> str:
        """When this option applies, as in `applies only with --loss kl`; empty where it always does."""
        declaration = self.declaration
        rules = [str(declaration.applies)] if declaration.applies else []
        rules += [f"to {declaration.of_index}"] if declaration.of_index else []
        return f"applies only {' and '.join(rules)}" if rules else ""


def refuse(option: Option, rule: Rule) -> NoReturn:
    """Raises UsageError for an option that breaks a rule of use."""
    raise UsageError(option.flag, rule.refused.found, None, rule.refused.next_step)


_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _split(item: Any) -> list[Any]:
    """Values of a list option may be joined by commas, unless the whole names a file that exists."""
    if not isinstance(item, (str, Path)) or "," not in str(item) or Path(item).exists():
        return [item]
    return [type(item)(part.strip()) for part in str(item).split(",") if part.strip()]


def _number(text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


class Options:
    """Base of every Config: a frozen keyword-only dataclass whose fields are options, checked when it is made."""

    def __post_init__(self) -> None:
        recipe = self.recipe()
        for known in options_of(type(self)):
            value = getattr(self, known.name)
            value = recipe.get(known.name) if value is None else value
            value = known.convert(value, known.flag)  # a library call may pass text for a path
            object.__setattr__(self, known.name, value)
            known.check(value)
        self._check_applies(recipe)
        self.check()

    def _check_applies(self, recipe: Mapping[str, Any]) -> None:
        """Raises UsageError for the first option that was given beside choices where it has no meaning."""
        for known in options_of(type(self)):
            default = recipe.get(known.name, None if known.required else known.default)
            if getattr(self, known.name) not in (default, None) and (rule := known.broken(vars(self))):
                refuse(known, rule)

    def recipe(self) -> Mapping[str, Any]:
        """Values of options that are unset, where they depend on what else was chosen."""
        return {}

    def check(self) -> None:
        """Rules across options; raises UsageError that quotes the flags as typed."""

    @classmethod
    def layers(cls, typed: Mapping[str, Any]) -> list[Any]:
        """Layers of settings between the flags and `retrievo.toml`, where a command has such (`STAGE/train.toml`)."""
        return []

    @classmethod
    def manifest_layers(cls, typed: Mapping[str, Any]) -> list[Any]:
        """Layers of settings below `retrievo.toml`, where a command takes defaults from a manifest."""
        return []

    def record(self) -> Values:
        """The options that affect the output and apply, as JSON values: what a manifest keeps and compares."""
        chosen = vars(self)
        return {
            known.name: _plain(chosen[known.name])
            for known in options_of(type(self))
            if known.declaration.affects_output
            and known.kind is not Path
            and chosen[known.name] is not None
            and known.applies(chosen)
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def options_of(config: type) -> tuple[Option, ...]:
    """The options of a Config in the order of their declaration, positionals first."""
    return _options_of(config)


@functools.cache
def _options_of(config: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(config)
    found = [_option_of(spec, hints[spec.name]) for spec in dataclasses.fields(config)]
    return tuple(sorted(found, key=lambda known: not known.declaration.positional))


def _option_of(spec: dataclasses.Field[Any], hint: Any) -> Option:
    kinds = [kind for kind in _members(hint) if kind is not type(None)]
    many = typing.get_origin(kinds[0]) is tuple
    kind = typing.get_args(kinds[0])[0] if many else kinds[0]
    return Option(spec.name, kind, many, spec.default, spec.metadata["option"])


def _members(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        yield from typing.get_args(hint)
    else:
        yield hint
