"""Where the values of a command's options come from.

Precedence: flag > `STAGE/train.toml` > `retrievo.toml` or `--config` > manifest > recipe of the chosen objective >
default of the dataclass. Every layer is a mapping with a name; `--show-config` prints each value with that name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from retrievo.support.conditions import Rule
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.options import Option, Options, options_of, refuse
from retrievo.support.values import Values

SETTINGS_FILE = "retrievo.toml"
Config = TypeVar("Config", bound=Options)


@dataclass(frozen=True)
class Layer:
    """Values from one source. `typed`: a flag, so that what does not apply is an error and not a warning."""

    name: str
    values: Mapping[str, Any]
    typed: bool = False

    def where(self, known: Option) -> str:
        return known.flag if self.typed else f"{self.name} {known.name}"


@dataclass(frozen=True)
class Resolved(Generic[Config]):
    """A Config with the name of the source of each value, and what is worth telling the user."""

    config: Config
    sources: dict[str, str]
    warnings: list[str]

    def show(self, command: str) -> str:
        """The resolved options as TOML, each with its source: what `--show-config` prints."""
        lines = [f"[{command}]"]
        for known in options_of(type(self.config)):
            value = getattr(self.config, known.name)
            shown = f"# {known.name} is unset" if value is None else f"{known.name} = {_toml(value)}"
            source = "".join(letter if letter.isprintable() else " " for letter in self.sources[known.name])
            lines.append(f"{shown}  # {source}" if value is not None else shown)
        return "\n".join(lines)


def resolve(config: type[Config], layers: Sequence[Layer]) -> Resolved[Config]:
    """Builds a Config from layers, highest precedence first.

    Raises: UsageError for values of the wrong type, outside their range, missing, or typed where they do not apply.
    """
    found = _find(config, layers)
    chosen = {
        known.name: found[known.name][0] if known.name in found else known.default for known in options_of(config)
    }
    warnings = []
    beside = _worked_out(config, chosen)
    for known in options_of(config):
        if known.name in found and (rule := known.broken(beside)):
            warnings.append(_does_not_apply(known, rule, found.pop(known.name)[1]))
            chosen[known.name] = beside[known.name] = known.default
    missing = [known.flag for known in options_of(config) if chosen[known.name] is MISSING]
    if missing:
        raise UsageError(missing[0], "is needed but was given neither as a flag nor in a TOML file")
    options = config(**chosen)
    recipe = options.recipe()
    defaults = {name: "recipe" if value is None and name in recipe else "default" for name, value in chosen.items()}
    defaults |= dict.fromkeys(_parts(config, chosen), "data")
    return Resolved(
        options, {name: found[name][1].name if name in found else defaults[name] for name in chosen}, warnings
    )


def _worked_out(config: type[Options], chosen: Mapping[str, object]) -> Values:
    """The chosen values with those that the recipe of a Config gives for unset ones, before any is checked."""
    draft = object.__new__(config)
    vars(draft).update(chosen)
    return {**chosen, **{name: value for name, value in draft.recipe().items() if chosen[name] is None}}


def _find(config: type[Options], layers: Sequence[Layer]) -> dict[str, tuple[Any, Layer]]:
    """The value of each option in the highest layer that has it, or has one of its alternatives."""
    known_names = [known.name for known in options_of(config)]
    groups: dict[str | None, Layer] = {}
    given_as_a_whole: set[str] = set()  # by a higher layer, as --data gives --corpus
    found: dict[str, tuple[Any, Layer]] = {}
    for layer in layers:
        for name in layer.values:
            if name not in known_names:
                raise UsageError(layer.name, f"unknown key '{name}'", None, did_you_mean(name, known_names))
        _check_alternatives(config, layer)
        for known in options_of(config):
            group = known.declaration.alternative
            settled = known.name in found or known.name in given_as_a_whole
            if known.name not in layer.values or settled or groups.get(group, layer) is not layer:
                continue
            value = known.convert(layer.values[known.name], layer.where(known))
            known.check(value, layer.where(known))
            found[known.name] = (value, layer)
        given_as_a_whole |= _parts(config, layer.values)
        groups |= {known.declaration.alternative: layer for known in _grouped(config) if known.name in layer.values}
    return found


def _parts(config: type[Options], values: Mapping[str, object]) -> set[str]:
    """The options that others stand for which have a value."""
    return {part for known in options_of(config) if values.get(known.name) for part in known.declaration.stands_for}


def _check_alternatives(config: type[Options], layer: Layer) -> None:
    """Raises UsageError where one source gives two options that exclude each other."""
    seen: dict[str | None, Option] = {}
    for known in _grouped(config):
        if layer.values.get(known.name) is not None:
            other = seen.setdefault(known.declaration.alternative, known)
            if other is not known:
                raise UsageError(layer.where(known), f"is given together with {layer.where(other)}", "one of them")


def _grouped(config: type[Options]) -> list[Option]:
    return [known for known in options_of(config) if known.declaration.alternative]


def _does_not_apply(known: Option, rule: Rule, layer: Layer) -> str:
    """A warning for what a file sets for other cases than this one; what lacks something is refused there too."""
    if layer.typed or rule.refusal:
        refuse(known, rule)
    return f"{layer.name}: {known.name} is ignored; it {rule.refused.found}"


def read_toml(path: Path) -> Values:
    """A TOML file as a dictionary.

    Raises: RetrievoError where it is absent or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RetrievoError(path, "no such file", "a TOML file", "check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RetrievoError(path, f"is not TOML: {error}", None, "mend that line") from None


def settings_layers(config: type[Options], command: str, commands: Sequence[str], chosen: Path | None) -> list[Layer]:
    """The layer of `--config FILE`, or of the `retrievo.toml` in the working folder, or none.

    Whoever unpacks data and types a command there did not choose the file that lies beside them: it may say what is
    read and how, never what is written or replaced.

    Raises: UsageError where a section or a key is unknown, or a file that nobody named says where to write.
    """
    path = chosen or Path(SETTINGS_FILE)
    if chosen is None and not path.exists():
        return []
    sections = read_toml(path)
    for section, values in sections.items():
        if section not in commands or not isinstance(values, dict):
            raise UsageError(path, f"unknown section [{section}]", None, did_you_mean(section, commands))
    layer = Layer(f"{path} [{command}]", sections.get(command, {}))
    if chosen is None:
        _check_writes_nothing(config, layer, path)
    return [Layer(layer.name, relative_to(path.parent, config, layer.values))] if layer.values else []


def _check_writes_nothing(config: type[Options], layer: Layer, path: Path) -> None:
    """Raises UsageError where a file that was found, not named, sets what is written or replaced."""
    for known in options_of(config):
        declaration = known.declaration
        if known.name in layer.values and (declaration.written or declaration.decides_output):
            what = f"sets '{known.name}', which says what is written or replaced"
            fix = f"pass {known.flag} yourself, or name the file: --config {path}"
            raise UsageError(layer.name, what, "this from the command line only", fix)


def relative_to(folder: Path, config: type[Options], values: Mapping[str, object]) -> Values:
    """Paths of a TOML file read relative to that file's folder."""
    known = {option.name: option for option in options_of(config)}

    def moved(value: object, option: Option) -> Any:
        if isinstance(value, list):
            return [moved(item, option) for item in value]
        is_path = option.kind is Path or (option.declaration.path_or_name and (folder / str(value)).exists())
        return str(folder / value) if is_path and isinstance(value, str) else value

    return {name: moved(value, known[name]) if name in known else value for name, value in values.items()}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return toml_string(str(value))


def toml_string(text: str) -> str:
    """A basic string of TOML: JSON's, but that DEL is escaped and no half of a character is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
