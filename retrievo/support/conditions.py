"""When an option applies: a predicate over the other options of its command, with the words that say it.

Checks, manifests, help and documentation read the same condition. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """What is wrong with an option beside the others, and the next step where there is an obvious one."""

    found: str
    next_step: str | None = None


@dataclass(frozen=True)
class Rule:
    """One thing that must hold of the other options.

    said:      what follows "applies only", as in `with --loss kl`; worked out when it is asked for.
    needs:     the options that the predicate reads; a Config without them does not restrict the option.
    predicate: the values of options by name -> whether the option applies.
    refusal:   the error message, in place of "applies only ..." where that explains less.
    """

    said: Callable[[], str]
    needs: tuple[str, ...]
    predicate: Callable[[Mapping[str, Any]], bool]
    refusal: Refusal | None = None

    def holds(self, chosen: Mapping[str, object]) -> bool:
        """Whether the option applies beside these values, as far as this rule goes."""
        return not all(name in chosen for name in self.needs) or self.predicate(chosen)

    @property
    def refused(self) -> Refusal:
        """The error message for a broken rule."""
        return self.refusal or Refusal(f"applies only {self.said()}")


@dataclass(frozen=True)
class Condition:
    """What must hold of the other options: some rules, joined by `&`."""

    rules: tuple[Rule, ...]

    def broken(self, chosen: Mapping[str, object]) -> Rule | None:
        """The first rule that does not hold beside these values; None where the option applies."""
        return next((rule for rule in self.rules if not rule.holds(chosen)), None)

    def holds(self, chosen: Mapping[str, object]) -> bool:
        """Whether the option applies beside these values."""
        return self.broken(chosen) is None

    def otherwise(self, found: str, next_step: str | None = None) -> Condition:
        """The same with a message of its own; an option that breaks it is refused in a TOML file too."""
        refusal = Refusal(found, next_step)
        return Condition(tuple(dataclasses.replace(rule, refusal=refusal) for rule in self.rules))

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.rules + other.rules)

    def __str__(self) -> str:
        *first, last = (rule.said() for rule in self.rules)
        return f"{', '.join(first)} and {last}" if first else last


def only_with(name: str, *values: str | Callable[[], Iterable[str]]) -> Condition:
    """An option applies where another has one of these values, or is given at all where none are named.

    values: names, or what gives them once all tables are there. A list has a value where one of its items does;
    `name:detail` is its name.
    """

    def named() -> tuple[str, ...]:
        return tuple(name for value in values for name in ([value] if isinstance(value, str) else value()))

    return _condition(lambda: _said("with", name, named()), (name,), lambda chosen: _meets(chosen[name], named()))


def only_without(name: str) -> Condition:
    """An option applies where another is not given."""
    return _condition(lambda: _said("without", name), (name,), lambda chosen: not _meets(chosen[name], ()))


def only_where(said: str, *needs: str, holds: Callable[..., bool]) -> Condition:
    """An option applies where a predicate holds of the values of some options, in their order."""
    return _condition(lambda: said, needs, lambda chosen: holds(*(chosen[name] for name in needs)))


def _condition(
    said: Callable[[], str], needs: tuple[str, ...], predicate: Callable[[Mapping[str, Any]], bool]
) -> Condition:
    return Condition((Rule(said, needs, predicate),))


def _said(preposition: str, name: str, values: tuple[str, ...] = ()) -> str:
    *first, last = values or ("",)
    listed = f"{', '.join(first)} or {last}" if first else last
    return f"{preposition} {flag_of(name)} {listed}".rstrip()


def _meets(chosen: object, values: tuple[str, ...]) -> bool:
    if not values:
        return not is_off(chosen) and chosen != ()
    items = chosen if isinstance(chosen, tuple) else (chosen,)
    return any(item in values or str(item).partition(":")[0] in values for item in items)


def is_off(value: object) -> bool:
    """Whether an option was not given; 0 is a value."""
    return value is None or value is False


def flag_of(name: str) -> str:
    """What is typed for a field of a Config."""
    return "--" + name.rstrip("_").replace("_", "-")
